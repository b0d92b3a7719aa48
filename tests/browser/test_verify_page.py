"""The page that annotators see, in a real browser on a real Label Studio."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

from ls_propagate.demo.browser import log_in, open_browser, open_label_stream, wait_for_crops, wait_for_picture
from ls_propagate.demo.server import Server
from plugin.crops import draw_crop, render_crop, render_strip, whole_image
from plugin.label_studio.gateway import LabelStudioGateway
from plugin.label_studio.pages import (
    HOTKEYS,
    KEYS,
    Ask,
    Examples,
    Question,
    config_of,
    is_answer,
    page_task,
    read_answer,
    settings_of,
)
from plugin.label_studio.regions import outline_of

CATEGORY = '<b>disc</b> & "ball" $page'
NEXT_CATEGORY = "ring"


IDS = [f"{number:020x}" for number in range(2 * len(KEYS))]


def draw(number: int) -> tuple[Any, Any]:
    """Pixels of a disc on noise, and a mask of it, somewhat too large."""
    rng = np.random.default_rng(number)
    noise = rng.integers(60, 200, (64, 64, 3), dtype=np.uint8)
    pixels = cv2.GaussianBlur(noise, (0, 0), 2).astype(np.uint8)
    cv2.circle(pixels, (32, 32), 8 + number % 5, (220, 220, 220), -1)
    mask = cv2.circle(np.zeros((64, 64), np.uint8), (32, 32), 10 + number % 5, 1, -1)
    return pixels, coco.encode(np.asfortranarray(mask))


@pytest.fixture
def gateway(label_studio: Server) -> Iterator[LabelStudioGateway]:
    """Label Studio, for the user who looks at the page."""
    gateway = LabelStudioGateway(label_studio.url, label_studio.token)
    gateway.set_hotkeys(HOTKEYS)
    yield gateway
    gateway.close()


@pytest.fixture
def crops(gateway: LabelStudioGateway) -> int:
    """The project that holds the pictures."""
    config = files("plugin.label_studio").joinpath("configs/crops.xml").read_text(encoding="utf-8")
    return gateway.create_project("browser test: crops", config, "", {}).id


@pytest.fixture
def project(gateway: LabelStudioGateway, crops: int) -> int:
    """A verify project with two pages of twenty crops; the first shows examples."""
    verify = gateway.create_project("browser test: page", config_of("page"), "", settings_of("page")).id
    urls = gateway.upload(crops, [(f"{n}.jpg", render_crop(*draw(n))) for n in range(len(IDS))])
    strip = render_strip([draw_crop(*draw(number))[0] for number in range(3)])
    examples = Examples(*gateway.upload(crops, [("right.jpg", strip), ("wrong.jpg", strip)]))
    questions = [Question(mask, url) for mask, url in zip(IDS, urls, strict=True)]
    pages = [
        page_task("first", CATEGORY, questions[: len(KEYS)], examples=examples),
        page_task("second", NEXT_CATEGORY, questions[len(KEYS) : -7]),
    ]
    gateway.import_tasks(verify, pages)
    return verify


@pytest.fixture
def page(label_studio: Server, project: int) -> Iterator[Any]:
    """The browser, at the first page of the project."""
    with open_browser() as page:
        log_in(page, label_studio.url, label_studio.email, label_studio.password)
        open_label_stream(page, label_studio.url, project)
        yield page


def answered(gateway: LabelStudioGateway, project: int) -> list[dict[str, Any]]:
    """The tasks that have an annotation."""
    fields = ["data", "annotations", "result", "was_cancelled"]
    return [task for task in gateway.tasks(project, fields) if task["annotations"]]


def wait_for_question(page: Any, category: str) -> None:
    page.get_by_text(f"“{category}”", exact=False).wait_for()
    wait_for_crops(page)


def marked(page: Any, kind: str = "crops") -> list[int]:
    """Places in the grid that are marked wrong, or, with "unsure", those that are marked so."""
    return list(
        page.locator(f".{kind} input[type=checkbox]").evaluate_all(
            "boxes => boxes.map((box, place) => box.checked ? place : -1).filter(place => place >= 0)"
        )
    )


def in_picture(page: Any, place: int) -> str:
    """Which half of a crop's picture is seen: "0% 0%" is that with the outline, "100% 0%" that without."""
    return str(page.locator(".crops img").nth(place).evaluate("crop => getComputedStyle(crop).objectPosition"))


OUTLINED, PLAIN = "0px 0px", "100% 0px"


def test_two_clicks_and_space_are_an_answer(page: Any, project: int, gateway: LabelStudioGateway) -> None:
    wait_for_question(page, CATEGORY)
    for place in (3, 17):
        page.locator(".crops img").nth(place).click()
    assert marked(page) == [3, 17]
    page.keyboard.press("Space")
    wait_for_question(page, NEXT_CATEGORY)

    (task,) = answered(gateway, project)
    (annotation,) = task["annotations"]
    assert is_answer(annotation)
    answer = read_answer("first", IDS[:20], annotation)
    assert [mask for mask, verdict in answer.items() if verdict == "no"] == [IDS[3], IDS[17]]
    assert list(answer.values()).count("yes") == 18

    page.keyboard.press("Space")
    page.get_by_text("No More Tasks Left").wait_for()
    last = next(task for task in answered(gateway, project) if task["data"]["page"] == "second")
    assert last["annotations"][0]["result"] == []


def test_each_key_marks_its_crop_and_nothing_else(page: Any, project: int, gateway: LabelStudioGateway) -> None:
    hints = [hint.lower() for hint in page.locator(".crops kbd").all_inner_texts()]
    assert hints == list(KEYS)
    url = page.url
    for place, key in enumerate(KEYS):
        page.keyboard.press(key)
        assert (marked(page), marked(page, "unsure")) == ([place], []), f"key {key}"
        page.keyboard.press(key)
        assert (marked(page), marked(page, "unsure")) == ([], []), f"key {key}"
    assert page.url == url
    assert page.get_by_text(f"“{CATEGORY}”").is_visible()
    assert answered(gateway, project) == []


def code(key: str) -> str:
    return f"Digit{key}" if key.isdigit() else f"Key{key.upper()}"


def test_each_key_with_shift_marks_its_crop_unsure_and_nothing_else(
    page: Any, project: int, gateway: LabelStudioGateway
) -> None:
    for place, key in enumerate(KEYS):
        for wanted in ([place], []):
            page.keyboard.press(f"Shift+{code(key)}")
            assert (marked(page), marked(page, "unsure")) == ([], wanted), f"shift and {key}"
    assert answered(gateway, project) == []


def test_unsure_by_key_and_by_click_is_a_verdict_of_its_own(
    page: Any, project: int, gateway: LabelStudioGateway
) -> None:
    page.keyboard.press("Shift+KeyQ")
    page.locator(".unsure kbd").nth(2).click()
    page.keyboard.press("w")
    page.keyboard.press("Shift+KeyW")
    assert (marked(page), marked(page, "unsure")) == ([6], [2, 5, 6])
    page.keyboard.press("Space")
    wait_for_question(page, NEXT_CATEGORY)
    (task,) = answered(gateway, project)
    verdicts = list(read_answer("first", IDS[:20], task["annotations"][0]).values())
    assert [verdicts.index("no"), verdicts.count("no"), verdicts.count("yes")] == [6, 1, 17]
    assert [place for place, verdict in enumerate(verdicts) if verdict == "unsure"] == [2, 5]


def test_a_short_page_has_a_question_mark_a_crop(page: Any) -> None:
    page.keyboard.press("Space")
    wait_for_question(page, NEXT_CATEGORY)
    assert page.locator(".crops img").count() == 13
    assert [page.locator(".unsure kbd").nth(place).is_visible() for place in (0, 12, 13, 19)] == [
        True,
        True,
        False,
        False,
    ]


def test_outlines_are_hidden_under_the_pointer_and_all_of_them_by_a_key(
    page: Any, project: int, gateway: LabelStudioGateway
) -> None:
    page.mouse.move(5, 5)
    assert {in_picture(page, place) for place in range(20)} == {OUTLINED}
    page.locator(".crops img").nth(7).hover()
    assert [in_picture(page, place) for place in (6, 7, 8)] == [OUTLINED, PLAIN, OUTLINED]
    page.mouse.move(5, 5)
    page.keyboard.press("h")
    assert {in_picture(page, place) for place in range(20)} == {PLAIN}
    page.keyboard.press("h")
    assert {in_picture(page, place) for place in range(20)} == {OUTLINED}
    page.keyboard.press("h")
    page.keyboard.press("Space")
    wait_for_question(page, NEXT_CATEGORY)
    page.mouse.move(5, 5)
    assert in_picture(page, 0) == OUTLINED
    (task,) = answered(gateway, project)
    assert set(read_answer("first", IDS[:20], task["annotations"][0]).values()) == {"yes"}


def test_examples_of_right_and_wrong_are_seen_where_there_are_any(page: Any) -> None:
    examples = page.locator(".examples img")
    assert [each.get_attribute("alt") for each in examples.all()] == ["right outlines", "wrong outlines"]
    assert all(each.evaluate("image => image.naturalWidth") == 3 * 192 + 2 * 8 for each in examples.all())
    page.keyboard.press("Space")
    wait_for_question(page, NEXT_CATEGORY)
    assert examples.count() == 0


def test_a_changed_answer_is_read_as_it_is_now(page: Any, project: int, gateway: LabelStudioGateway) -> None:
    page.keyboard.press("1")
    page.keyboard.press("Space")
    wait_for_question(page, NEXT_CATEGORY)
    page.locator(".lsf-bottombar button").first.click()  # back to the page before
    wait_for_question(page, CATEGORY)
    page.wait_for_function("document.querySelectorAll('.crops input:checked').length === 1")
    for key in ("1", "2", "Shift+Digit3"):
        page.keyboard.press(key)
    with page.expect_response(lambda answer: "/annotations/" in answer.url and answer.request.method == "PATCH"):
        page.keyboard.press("Space")
    (task,) = answered(gateway, project)
    verdicts = list(read_answer("first", IDS[:20], task["annotations"][0]).values())
    assert verdicts[:4] == ["yes", "no", "unsure", "yes"]


def test_a_skipped_page_is_no_answer(page: Any, project: int, gateway: LabelStudioGateway) -> None:
    page.keyboard.press("1")
    page.get_by_role("button", name="Skip").click()
    wait_for_question(page, NEXT_CATEGORY)
    (task,) = answered(gateway, project)
    assert not is_answer(task["annotations"][0])


def test_a_page_of_an_earlier_version_is_seen_whole_and_answered(
    page: Any, label_studio: Server, gateway: LabelStudioGateway, crops: int
) -> None:
    verify = gateway.create_project("browser test: earlier", config_of("page"), "", settings_of("page")).id
    done, square = cv2.imencode(".jpg", draw_crop(*draw(0))[0])
    assert done
    urls = gateway.upload(crops, [(f"{n}.jpg", square.tobytes()) for n in range(4)])
    task = page_task("old", CATEGORY, [Question(mask, url) for mask, url in zip(IDS, urls, strict=False)])
    del task["data"]["examples"]
    gateway.import_tasks(verify, [task])
    open_label_stream(page, label_studio.url, verify)
    boxes = [crop.bounding_box() for crop in page.locator(".crops img").all()]
    assert all(box["width"] == pytest.approx(box["height"], abs=1) for box in boxes)
    page.keyboard.press("2")
    page.keyboard.press("Space")
    page.get_by_text("No More Tasks Left").wait_for()
    (answer,) = answered(gateway, verify)
    assert list(read_answer("old", IDS[:4], answer["annotations"][0]).values()) == ["yes", "no", "yes", "yes"]


def test_the_whole_page_is_seen_without_scrolling(page: Any) -> None:
    for width, height in ((1280, 800), (900, 700), (1920, 1080)):
        page.set_viewport_size({"width": width, "height": height})
        floor = page.locator(".lsf-bottombar").bounding_box()["y"]
        crops = [crop.bounding_box() for crop in page.locator(".crops img").all()]
        assert min(crop["width"] for crop in crops) > 110
        assert all(crop["x"] >= 0 and crop["y"] >= 0 for crop in crops)
        assert all(crop["x"] + crop["width"] <= width for crop in crops)
        assert all(crop["y"] + crop["height"] <= floor for crop in crops)
        for words in (f"“{CATEGORY}”", "Then press space.", "Not sure?", "hide outlines"):
            box = page.get_by_text(words).bounding_box()
            assert box["x"] + box["width"] <= width
            assert box["y"] + box["height"] <= floor
        scrolled = "main => main.scrollHeight - main.clientHeight"
        assert page.locator(".lsf-main-content").evaluate(scrolled) <= 0


def test_a_narrow_window_shows_five_crops_a_row(page: Any) -> None:
    page.set_viewport_size({"width": 420, "height": 900})
    crops = [crop.bounding_box() for crop in page.locator(".crops img").all()]
    assert len({round(crop["y"]) for crop in crops}) == 4
    assert min(crop["width"] for crop in crops) > 70
    assert all(crop["x"] >= 0 and crop["x"] + crop["width"] <= 420 for crop in crops)
    assert page.locator(".lsf-main-content").evaluate("main => main.scrollWidth - main.clientWidth") <= 0


def one_by_one(gateway: LabelStudioGateway, crops: int, ask: Ask) -> int:
    """A verify project in which two pages of three masks are asked one by one."""
    verify = gateway.create_project(f"browser test: {ask}", config_of(ask), "", settings_of(ask)).id
    drawn = [draw(number) for number in range(6)]
    if ask == "single":
        urls = gateway.upload(crops, [(f"{n}.jpg", render_crop(*each, 384)) for n, each in enumerate(drawn)])
        questions = [Question(mask, url) for mask, url in zip(IDS, urls, strict=False)]
    else:
        urls = gateway.upload(crops, [(f"{n}.jpg", whole_image(pixels)) for n, (pixels, _) in enumerate(drawn)])
        questions = [
            Question(mask, url, outline_of(mask, rle))
            for mask, url, (_, rle) in zip(IDS, urls, drawn, strict=False)
        ]
    pages = [
        page_task("first", CATEGORY, questions[:3], ask),
        page_task("second", NEXT_CATEGORY, questions[3:], ask),
    ]
    gateway.import_tasks(verify, pages)
    return verify


@pytest.fixture
def browser(label_studio: Server, gateway: LabelStudioGateway) -> Iterator[Any]:
    """The browser, logged in."""
    with open_browser() as page:
        log_in(page, label_studio.url, label_studio.email, label_studio.password)
        yield page


def chosen(page: Any) -> list[bool]:
    return list(page.locator(".verdict input").evaluate_all("boxes => boxes.map(box => box.checked)"))


def wait_for_item(page: Any, category: str, place: int) -> None:
    page.get_by_text(f"“{category}”").wait_for()
    page.wait_for_function(
        f"[...document.querySelectorAll('[class*=pagination]')].some(e => e.innerText.startsWith('{place} of'))"
    )
    wait_for_picture(page)


@pytest.mark.parametrize("ask", ["single", "context"])
def test_one_by_one_every_key_is_a_verdict_and_none_can_be_left_out(
    browser: Any, label_studio: Server, gateway: LabelStudioGateway, crops: int, ask: Ask
) -> None:
    verify = one_by_one(gateway, crops, ask)
    browser.goto(f"{label_studio.url}/projects/{verify}/data?labeling=1")
    wait_for_item(browser, CATEGORY, 1)
    for key, wanted in (("1", [True, False, False]), ("3", [False, False, True]), ("2", [False, True, False])):
        browser.keyboard.press(key)
        assert chosen(browser) == wanted
    browser.keyboard.press("ArrowRight")
    wait_for_item(browser, CATEGORY, 2)
    assert chosen(browser) == [False, False, False]
    browser.keyboard.press("3")
    browser.keyboard.press("ArrowLeft")
    wait_for_item(browser, CATEGORY, 1)
    assert chosen(browser) == [False, True, False]
    browser.keyboard.press("Space")  # the third is not answered yet, so that it comes up
    browser.get_by_text("Some are not answered yet").first.wait_for()
    browser.keyboard.press("Escape")
    wait_for_item(browser, CATEGORY, 3)
    assert answered(gateway, verify) == []
    browser.keyboard.press("1")
    browser.keyboard.press("Space")
    wait_for_item(browser, NEXT_CATEGORY, 1)
    (task,) = answered(gateway, verify)
    answer = read_answer("first", IDS[:3], task["annotations"][0], ask)
    assert list(answer.items()) == list(zip(IDS, ["no", "unsure", "yes"], strict=False))

    browser.get_by_role("button", name="Skip").click()
    browser.get_by_text("No More Tasks Left").wait_for()
    skipped = next(task for task in answered(gateway, verify) if task["data"]["page"] == "second")
    assert not is_answer(skipped["annotations"][0])


def yellow(page: Any) -> int:
    """How many pixels of the picture have the outline's colour."""
    shot = np.frombuffer(page.locator(".picture").screenshot(), np.uint8)
    blue, green, red = cv2.split(cv2.imdecode(shot, cv2.IMREAD_COLOR).astype(int))  # type: ignore[union-attr]
    return int(((red - blue > 90) & (green - blue > 90)).sum())


def test_in_context_each_image_has_its_outline_which_a_key_hides(
    browser: Any, label_studio: Server, gateway: LabelStudioGateway, crops: int
) -> None:
    verify = one_by_one(gateway, crops, "context")
    browser.goto(f"{label_studio.url}/projects/{verify}/data?labeling=1")
    for place in (1, 2, 3):
        wait_for_item(browser, CATEGORY, place)
        browser.wait_for_timeout(300)
        shown = yellow(browser)
        assert shown > 300, f"no outline on image {place}"
        browser.keyboard.press("Control+h")
        browser.wait_for_timeout(300)
        assert yellow(browser) < shown / 10
        browser.keyboard.press("Control+h")
        browser.keyboard.press("ArrowRight")
