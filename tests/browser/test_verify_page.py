"""The page that annotators see, in a real browser on a real Label Studio, in every way to ask."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

from ls_propagate.demo.browser import log_in, open_browser, wait_for_crops, wait_for_picture
from ls_propagate.demo.server import Server, new_user
from plugin.crops import Crop, draw_crop, render_crops, render_strip, whole_image
from plugin.label_studio.gateway import LabelStudioGateway
from plugin.label_studio.pages import (
    KEYS,
    WAYS,
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
SAID = ("yes", "no", "unsure", "yes", "no")  # what the short pages are answered
#: An account that has no keys of its own: those of the server's EDITOR_KEYMAP are its.
ANNOTATOR = ("page@example.com", "look-closely-1")
SECONDS = 20  # that anything may take


def draw(number: int) -> tuple[Any, Any]:
    """Pixels of a disc on noise, and a mask of it, somewhat too large."""
    rng = np.random.default_rng(number)
    noise = rng.integers(60, 200, (64, 64, 3), dtype=np.uint8)
    pixels = cv2.GaussianBlur(noise, (0, 0), 2).astype(np.uint8)
    cv2.circle(pixels, (32, 32), 8 + number % 5, (220, 220, 220), -1)
    mask = cv2.circle(np.zeros((64, 64), np.uint8), (32, 32), 10 + number % 5, 1, -1)
    return pixels, coco.encode(np.asfortranarray(mask))


def drawn(numbers: Sequence[int], side: int = 192) -> list[Crop]:
    return [draw_crop(*draw(number), side) for number in numbers]


def eventually(read: Callable[[], Any], wanted: Any, about: str = "") -> None:
    """Wait until something is read as wanted: what a key does is seen a moment later."""
    end = time.monotonic() + SECONDS
    while (found := read()) != wanted and time.monotonic() < end:
        time.sleep(0.02)
    assert found == wanted, about


@pytest.fixture(scope="module")
def gateway(label_studio: Server) -> Iterator[LabelStudioGateway]:
    """Label Studio, for the account that makes the pages."""
    gateway = LabelStudioGateway(label_studio.url, label_studio.token)
    yield gateway
    gateway.close()


@pytest.fixture(scope="module")
def crops(gateway: LabelStudioGateway) -> int:
    """The project that holds the pictures."""
    config = files("plugin.label_studio").joinpath("configs/crops.xml").read_text(encoding="utf-8")
    made = gateway.create_project("browser test: crops", config, "", {}).id
    # tasks get numbers as long as on a server in use: they are shown beside the buttons
    gateway.import_tasks(made, [{"data": {"image": "none.png"}}] * 10_000)
    return made


@pytest.fixture(scope="module")
def examples(gateway: LabelStudioGateway, crops: int) -> Examples:
    strip = render_strip([outlined for outlined, _ in drawn(range(3))])
    return Examples(*gateway.upload(crops, [("right.jpg", strip), ("wrong.jpg", strip)]))


@pytest.fixture(scope="module")
def browsers(label_studio: Server) -> Iterator[Any]:
    """The browser, logged in as the annotator."""
    with closing(new_user(label_studio, *ANNOTATOR)), open_browser() as page:
        log_in(page, label_studio.url, *ANNOTATOR)
        page.set_default_timeout(SECONDS * 1000)
        yield page


@pytest.fixture
def browser(browsers: Any) -> Any:
    """The same, as large as at first, the pointer away from what is tested."""
    browsers.set_viewport_size({"width": 1280, "height": 800})
    browsers.mouse.move(5, 5)
    return browsers


class Pages:
    """A verify project, looked at by an annotator."""

    def __init__(self, page: Any, gateway: LabelStudioGateway, crops: int, ask: Ask) -> None:
        self.page, self.gateway, self.crops, self.ask = page, gateway, crops, ask
        self.number = gateway.create_project(f"browser test: {ask}", config_of(ask), "", settings_of(ask)).id

    def add(self, name: str, category: str, numbers: Sequence[int], examples: Examples | None = None) -> None:
        """A page of some of the masks."""
        ids = [IDS[number] for number in numbers]
        if self.ask == "page":
            urls = self.gateway.upload(self.crops, [(f"{name}.jpg", render_crops(drawn(numbers)))]) * len(ids)
        elif self.ask == "single":
            pictures = [(f"{n}.jpg", render_crops([crop])) for n, crop in enumerate(drawn(numbers, 384))]
            urls = self.gateway.upload(self.crops, pictures)
        else:
            pictures = [(f"{number}.jpg", whole_image(draw(number)[0])) for number in numbers]
            urls = self.gateway.upload(self.crops, pictures)
        regions = [outline_of(IDS[n], draw(n)[1]) if self.ask == "context" else () for n in numbers]
        questions = [Question(*each) for each in zip(ids, urls, regions, strict=True)]
        self.gateway.import_tasks(self.number, [page_task(name, category, questions, self.ask, examples)])

    def open(self) -> None:
        """Open the label stream, as "Label All Tasks" does."""
        self.page.goto(f"{self.gateway.url}/projects/{self.number}/data?labeling=1")

    def wait(self, category: str, place: int = 1) -> None:
        """Wait for a page's question and its pictures, in ways that have several for that at a place."""
        self.page.get_by_text(f"“{category}”").wait_for()
        if self.ask == "page":
            wait_for_crops(self.page)
        else:
            eventually(
                lambda: self.page.locator(".lsf-pagination__page-indicator").inner_text()[:4], f"{place} of"
            )
            wait_for_picture(self.page)

    def wait_for_end(self) -> None:
        self.page.get_by_text("No More Tasks Left").wait_for()

    def marked(self) -> tuple[list[int], list[int]]:
        """Places in the grid that are marked wrong, and those that are marked unsure."""
        wrong, unsure = (
            self.page.locator(f".{kind} input[type=checkbox]").evaluate_all(
                "boxes => boxes.map((box, place) => box.checked ? place : -1).filter(place => place >= 0)"
            )
            for kind in ("crops", "unsure")
        )
        return wrong, unsure

    def chosen(self) -> list[bool]:
        """Which of yes, no and unsure is chosen, of the mask that is shown."""
        return list(self.page.locator(".verdict input").evaluate_all("boxes => boxes.map(box => box.checked)"))

    def squares(self) -> list[int]:
        """Which square of the page's picture each crop shows: 2 n is the n-th crop's outlined one."""
        shares = self.page.locator(".crops img").evaluate_all(
            "crops => crops.map(crop => parseFloat(getComputedStyle(crop).objectPosition))"
        )
        return [round(share / 100 * (2 * len(shares) - 1)) for share in shares]

    def say(self, verdicts: Sequence[str], by: str) -> None:
        """Answer what is shown, one after the other, by keys or by clicks, and submit it."""
        for place, verdict in enumerate(verdicts):
            if self.ask == "page":
                self._mark(place, verdict, by)
                continue
            self.wait(CATEGORY, place + 1)
            eventually(self.chosen, [False] * 3)  # those of the mask before are gone
            which = ["yes", "no", "unsure"].index(verdict)
            if by == "keys":
                self.page.keyboard.press(f"{which + 1}")
            else:
                self.page.locator(".verdict label").nth(which).click()
            eventually(self.chosen, [n == which for n in range(3)])
            if place + 1 < len(verdicts):
                self.next(by)
        if by == "keys":
            self.page.keyboard.press("Space")
        else:
            self.page.get_by_test_id("bottombar-submit-button").click()

    def _mark(self, place: int, verdict: str, by: str) -> None:
        if verdict == "yes":
            return
        if by == "keys":
            self.page.keyboard.press(KEYS[place] if verdict == "no" else f"Shift+{code(KEYS[place])}")
        else:
            self.page.locator(".crops img" if verdict == "no" else ".unsure kbd").nth(place).click()
        eventually(lambda: place in self.marked()[verdict == "unsure"], True)

    def next(self, by: str = "keys") -> None:
        """Show the next mask of those that are asked one by one."""
        if by == "keys":
            self.page.keyboard.press("ArrowRight")
        else:
            self.page.locator(
                ".lsf-pagination__btn_arrow-right:not(.lsf-pagination__btn_arrow-right-double)"
            ).click()

    def back(self) -> None:
        """To the page before."""
        self.page.locator(".lsf-bottombar button").first.click()

    def annotations(self) -> dict[str, list[dict[str, Any]]]:
        """Those of each page that has any."""
        fields = ["data", "annotations", "result", "was_cancelled"]
        tasks = self.gateway.tasks(self.number, fields)
        return {task["data"]["page"]: task["annotations"] for task in tasks if task["annotations"]}

    def answer(self, name: str, numbers: Sequence[int]) -> list[str]:
        """What the answer to a page says of each mask, as the daemon reads it."""
        (annotation,) = self.annotations()[name]
        assert is_answer(annotation)
        verdicts = read_answer(name, [IDS[number] for number in numbers], annotation, self.ask)
        assert list(verdicts) == [IDS[number] for number in numbers]
        return list(verdicts.values())


def code(key: str) -> str:
    return f"Digit{key}" if key.isdigit() else f"Key{key.upper()}"


@pytest.fixture
def grid(browser: Any, gateway: LabelStudioGateway, crops: int, examples: Examples) -> Pages:
    """A full page with examples, looked at, and one of thirteen crops behind it."""
    pages = Pages(browser, gateway, crops, "page")
    pages.add("first", CATEGORY, range(20), examples)
    pages.add("second", NEXT_CATEGORY, range(20, 33))
    pages.open()
    pages.wait(CATEGORY)
    return pages


@pytest.fixture(params=WAYS)
def short(request: pytest.FixtureRequest, browser: Any, gateway: LabelStudioGateway, crops: int) -> Pages:
    """In each way, a page of five masks, looked at, and another behind it."""
    pages = Pages(browser, gateway, crops, request.param)
    pages.add("first", CATEGORY, range(5))
    pages.add("second", NEXT_CATEGORY, range(5, 10))
    pages.open()
    pages.wait(CATEGORY)
    return pages


# in every way


@pytest.mark.parametrize("by", ["keys", "clicks"])
def test_the_same_verdicts_are_read_from_every_way_to_ask(short: Pages, by: str) -> None:
    short.say(SAID, by)
    short.wait(NEXT_CATEGORY)
    assert short.answer("first", range(5)) == list(SAID)


def test_a_changed_answer_is_read_as_it_is_now(short: Pages) -> None:
    short.say(SAID, "keys")
    short.wait(NEXT_CATEGORY)
    short.back()
    short.wait(CATEGORY)
    if short.ask == "page":
        eventually(short.marked, ([1, 4], [2]))
        for key in ("1", "2", "Shift+Digit3", "Shift+Digit4"):
            short.page.keyboard.press(key)
        eventually(short.marked, ([0, 4], [3]))
    else:
        # a move to another image after the last change would disable Label Studio's "Update"
        for place, (before, after) in enumerate(((0, 1), (1, 0), (2, 0), (0, 2)), 1):
            if place > 1:
                short.next()
            short.wait(CATEGORY, place)
            eventually(short.chosen, [n == before for n in range(3)])
            short.page.keyboard.press(f"{after + 1}")
            eventually(short.chosen, [n == after for n in range(3)])
    with short.page.expect_response(
        lambda answer: "/annotations/" in answer.url and answer.request.method == "PATCH"
    ):
        short.page.keyboard.press("Space")
    assert short.answer("first", range(5)) == ["no", "yes", "yes", "unsure", "no"]


def test_a_skipped_page_is_no_answer(short: Pages) -> None:
    short.page.keyboard.press("1")
    short.page.get_by_role("button", name="Skip").click()
    short.wait(NEXT_CATEGORY)
    (annotation,) = short.annotations()["first"]
    assert not is_answer(annotation)
    short.page.get_by_role("button", name="Skip").click()
    short.wait_for_end()


@pytest.mark.parametrize("ask", WAYS)
def test_an_image_that_cannot_be_read_says_so_in_words(
    browser: Any, gateway: LabelStudioGateway, crops: int, ask: Ask
) -> None:
    pages = Pages(browser, gateway, crops, ask)
    there = gateway.upload(crops, [("there.jpg", whole_image(draw(1)[0]))])[0]
    nowhere = f"{gateway.url}/data/upload/{crops}/nothing.jpg"
    asked = [Question(mask, nowhere if ask == "page" or n != 1 else there) for n, mask in enumerate(IDS[:3])]
    gateway.import_tasks(pages.number, [page_task("first", CATEGORY, asked, ask)])
    pages.open()
    if ask == "page":
        crop = browser.get_by_alt_text("cannot be read: say not sure")
        eventually(crop.count, 3)
        eventually(
            lambda: crop.evaluate_all("crops => crops.map(crop => crop.complete && !crop.naturalWidth)"),
            [True] * 3,
        )
    else:
        notice = browser.get_by_text("This image cannot be read. Press 3: not sure.")
        # of an image that it cannot draw, Label Studio shows the verdict before, until there is another
        for place, (broken, before, key) in enumerate(((True, 0, 3), (False, 0, 1), (True, 1, 3))):
            eventually(lambda: browser.locator(".lsf-pagination__page-indicator").inner_text()[:1], f"{place + 1}")
            eventually(notice.is_visible, broken)
            if not broken:  # until it is drawn, no key is taken
                browser.locator(".picture .konvajs-content").wait_for()
            eventually(pages.chosen, [n == before for n in range(1, 4)], f"image {place}, before")
            browser.keyboard.press(f"{key}")
            eventually(pages.chosen, [n == key for n in range(1, 4)], f"image {place}")
            browser.keyboard.press("ArrowRight")
        browser.keyboard.press("Space")
        pages.wait_for_end()
        assert pages.answer("first", range(3)) == ["unsure", "yes", "unsure"]


# the grid


def test_a_page_without_marks_is_all_right_and_after_the_last_it_says_so(grid: Pages) -> None:
    grid.page.keyboard.press("Space")
    grid.wait(NEXT_CATEGORY)
    grid.page.keyboard.press("Space")
    grid.wait_for_end()
    assert set(grid.answer("first", range(20))) == set(grid.answer("second", range(20, 33))) == {"yes"}
    assert grid.annotations()["second"][0]["result"] == []


def test_each_key_marks_its_crop_and_nothing_else(grid: Pages) -> None:
    hints = [hint.lower() for hint in grid.page.locator(".crops kbd").all_inner_texts()]
    assert hints == list(KEYS)
    url = grid.page.url
    for place, key in enumerate(KEYS):
        for wanted in ([place], []):
            grid.page.keyboard.press(key)
            eventually(grid.marked, (wanted, []), f"key {key}")
    assert grid.page.url == url
    assert grid.page.get_by_text(f"“{CATEGORY}”").is_visible()
    assert grid.annotations() == {}


def test_each_key_with_shift_marks_its_crop_unsure_and_nothing_else(grid: Pages) -> None:
    for place, key in enumerate(KEYS):
        for wanted in ([place], []):
            grid.page.keyboard.press(f"Shift+{code(key)}")
            eventually(grid.marked, ([], wanted), f"shift and {key}")
    assert grid.annotations() == {}


def test_each_crop_and_each_question_mark_is_clicked_by_itself(grid: Pages) -> None:
    for place in range(len(KEYS)):
        for wanted in ([place], []):
            grid.page.locator(".crops img").nth(place).click()
            eventually(grid.marked, (wanted, []), f"crop {place}")
        for wanted in ([place], []):
            grid.page.locator(".unsure kbd").nth(place).click()
            eventually(grid.marked, ([], wanted), f"question mark {place}")
    assert grid.annotations() == {}


def test_what_is_marked_wrong_and_unsure_is_wrong(grid: Pages) -> None:
    for key in ("Shift+KeyQ", "w", "Shift+KeyW"):
        grid.page.keyboard.press(key)
    eventually(grid.marked, ([6], [5, 6]))
    grid.page.keyboard.press("Space")
    grid.wait(NEXT_CATEGORY)
    verdicts = grid.answer("first", range(20))
    assert (verdicts[5], verdicts[6], verdicts.count("yes")) == ("unsure", "no", 18)


def test_a_short_page_has_a_question_mark_a_crop(grid: Pages) -> None:
    grid.page.keyboard.press("Space")
    grid.wait(NEXT_CATEGORY)
    marks = grid.page.locator(".unsure kbd")
    eventually(lambda: [marks.nth(place).is_visible() for place in range(20)], [True] * 13 + [False] * 7)
    assert grid.page.locator(".crops img").count() == 13


def test_each_crop_shows_its_own_mask(grid: Pages) -> None:
    """Each tile's pixels are those of the crop that was drawn for it, and of no other."""
    grid.page.add_style_tag(content=".grid kbd{display:none!important}")
    wanted = [outlined[16:-16, 16:-16].astype(int) for outlined, _ in drawn(range(20))]
    for place, tile in enumerate(grid.page.locator(".crops img").all()):
        shot = cv2.imdecode(np.frombuffer(tile.screenshot(), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        seen = cv2.resize(shot, (192, 192), interpolation=cv2.INTER_AREA)[16:-16, 16:-16].astype(int)
        assert int(np.argmin([abs(seen - each).mean() for each in wanted])) == place


def test_outlines_are_hidden_under_the_pointer_and_all_of_them_by_a_key(grid: Pages) -> None:
    outlined, plain = list(range(0, 40, 2)), list(range(1, 40, 2))
    eventually(grid.squares, outlined)
    grid.page.locator(".crops img").nth(7).hover()
    eventually(grid.squares, [*outlined[:7], plain[7], *outlined[8:]])
    grid.page.mouse.move(5, 5)
    grid.page.keyboard.press("h")
    eventually(grid.squares, plain)
    grid.page.keyboard.press("h")
    eventually(grid.squares, outlined)
    grid.page.get_by_text("hide outlines").click()
    eventually(grid.squares, plain)
    grid.page.keyboard.press("Space")
    grid.wait(NEXT_CATEGORY)
    grid.page.mouse.move(5, 5)
    eventually(grid.squares, list(range(0, 26, 2)))
    assert set(grid.answer("first", range(20))) == {"yes"}


def test_a_page_of_an_earlier_version_is_seen_whole_and_answered(
    browser: Any, gateway: LabelStudioGateway, crops: int
) -> None:
    """A file a crop: of the outlined crop alone at first, then of both squares."""
    pages = Pages(browser, gateway, crops, "page")
    made = [done.tobytes() for outlined, _ in drawn(range(2)) if (done := cv2.imencode(".jpg", outlined)[1]).size]
    made += [render_crops([crop]) for crop in drawn(range(2, 4))]
    urls = gateway.upload(crops, [(f"{n}.jpg", content) for n, content in enumerate(made)])
    task = page_task("old", CATEGORY, [Question(mask, url) for mask, url in zip(IDS, urls, strict=False)])
    del task["data"]["examples"]
    for crop, url, key in zip(task["data"]["crops"], urls, KEYS, strict=False):
        crop["html"] = f'<img src="{url}" alt=""><kbd>{key}</kbd>'
    gateway.import_tasks(pages.number, [task])
    pages.open()
    pages.wait(CATEGORY)
    boxes = [crop.bounding_box() for crop in browser.locator(".crops img").all()]
    assert all(box["width"] == pytest.approx(box["height"], abs=1) for box in boxes)
    for key in ("2", "Shift+Digit4"):
        browser.keyboard.press(key)
    eventually(pages.marked, ([1], [3]))
    browser.keyboard.press("Space")
    pages.wait_for_end()
    assert pages.answer("old", range(4)) == ["yes", "no", "yes", "unsure"]


# one by one


@pytest.fixture(params=["single", "context"])
def one_by_one(request: pytest.FixtureRequest, browser: Any, gateway: LabelStudioGateway, crops: int) -> Pages:
    """A page of three masks, looked at."""
    pages = Pages(browser, gateway, crops, request.param)
    pages.add("first", CATEGORY, range(3))
    pages.open()
    pages.wait(CATEGORY)
    return pages


def test_one_by_one_every_key_is_a_verdict_and_none_can_be_left_out(one_by_one: Pages) -> None:
    pages, press = one_by_one, one_by_one.page.keyboard.press
    for key, wanted in (("1", [True, False, False]), ("3", [False, False, True]), ("2", [False, True, False])):
        press(key)
        eventually(pages.chosen, wanted, f"key {key}")
    press("ArrowRight")
    pages.wait(CATEGORY, 2)
    eventually(pages.chosen, [False] * 3)
    press("3")
    eventually(pages.chosen, [False, False, True])
    press("ArrowLeft")
    pages.wait(CATEGORY, 1)
    eventually(pages.chosen, [False, True, False])
    press("Space")  # the third is not answered yet, so that it comes up
    pages.page.get_by_text("Some are not answered yet").first.wait_for()
    press("Escape")
    pages.wait(CATEGORY, 3)
    assert pages.annotations() == {}
    press("1")
    eventually(pages.chosen, [True, False, False])
    press("Space")
    pages.wait_for_end()
    assert pages.answer("first", range(3)) == ["no", "unsure", "yes"]


def yellow(page: Any) -> int:
    """How many pixels of the picture have the outline's colour."""
    shot = np.frombuffer(page.locator(".picture").screenshot(), np.uint8)
    blue, green, red = cv2.split(cv2.imdecode(shot, cv2.IMREAD_COLOR).astype(int))  # type: ignore[union-attr]
    return int(((red - blue > 90) & (green - blue > 90)).sum())


@pytest.fixture
def context(browser: Any, gateway: LabelStudioGateway, crops: int) -> Pages:
    """Three masks on their images, looked at."""
    pages = Pages(browser, gateway, crops, "context")
    pages.add("first", CATEGORY, range(3))
    pages.open()
    pages.wait(CATEGORY)
    return pages


def test_in_context_each_image_has_its_outline_which_a_key_hides(context: Pages) -> None:
    for place in (1, 2, 3):
        context.wait(CATEGORY, place)
        for shown in (True, False):
            eventually(lambda: yellow(context.page) > 300, shown, f"the outline on image {place}")
            context.page.keyboard.press("Control+h")
        eventually(lambda: yellow(context.page) > 300, True, f"the outline on image {place}")
        if place < 3:
            context.next()


def test_in_context_nothing_is_drawn_by_accident(context: Pages) -> None:
    before = context.page.locator(".picture").screenshot()
    box = context.page.locator(".picture canvas").first.bounding_box()
    at = [
        (box["x"] + box["width"] * x, box["y"] + box["height"] * y)
        for x, y in ((0.1, 0.1), (0.9, 0.1), (0.5, 0.8))
    ]
    context.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)  # the outline is selected
    for point in at:
        context.page.mouse.click(*point)
    context.page.mouse.dblclick(*at[0])
    context.page.mouse.move(*at[1])
    context.page.mouse.down()
    context.page.mouse.move(*at[2], steps=4)
    context.page.mouse.up()
    context.page.mouse.move(5, 5)
    for key in ("Backspace", "Delete", "p", "Escape"):
        context.page.keyboard.press(key)
    eventually(lambda: context.page.locator(".picture").screenshot() == before, True)
    context.say(("yes", "no", "unsure"), "keys")
    context.wait_for_end()
    assert context.answer("first", range(3)) == ["yes", "no", "unsure"]
    outlines = [each for each in context.annotations()["first"][0]["result"] if each["from_name"] == "outline"]
    assert [each["value"]["points"] for each in outlines] == [
        each["value"]["points"] for number in range(3) for each in outline_of(IDS[number], draw(number)[1])
    ]


# windows

WORDS: dict[Ask, tuple[str, ...]] = {
    "page": (f"“{CATEGORY}”", "Then press space.", "Not sure?", "hide outlines"),
    "single": (f"“{CATEGORY}”", "After the last, press space.", "Beside each outline"),
    "context": (f"“{CATEGORY}”", "After the last, press space.", "To look beneath"),
}


@pytest.mark.parametrize("ask", WAYS)
def test_the_whole_page_is_seen_without_scrolling(
    browser: Any, gateway: LabelStudioGateway, crops: int, examples: Examples, ask: Ask
) -> None:
    pages = Pages(browser, gateway, crops, ask)
    pages.add("first", CATEGORY, range(20), examples)
    pages.open()
    pages.wait(CATEGORY)
    for width, height in ((1280, 800), (900, 700), (1920, 1080)):
        browser.set_viewport_size({"width": width, "height": height})
        floor = browser.locator(".lsf-bottombar").bounding_box()["y"]
        seen = [browser.get_by_text(words).first for words in WORDS[ask]]
        seen += [*browser.locator(".examples img").all(), *browser.locator(".crops img, .verdict label").all()]
        assert len(seen) >= len(WORDS[ask]) + 2 + (20 if ask == "page" else 3)
        for each in seen:
            box = each.bounding_box()
            assert box["x"] >= 0, f"{each} at {width} x {height}"
            assert box["y"] >= 0
            assert box["x"] + box["width"] <= width, f"{each} at {width} x {height}"
            assert box["y"] + box["height"] <= floor, f"{each} at {width} x {height}"
        if ask == "page":
            assert min(crop.bounding_box()["width"] for crop in browser.locator(".crops img").all()) > 110
        scrolled = "main => main.scrollHeight - main.clientHeight"
        assert browser.locator(".lsf-main-content").evaluate(scrolled) <= 0


@pytest.mark.parametrize("ask", WAYS)
@pytest.mark.parametrize("width", [480, 420])
def test_a_narrow_window_shows_all_of_its_width(
    browser: Any, gateway: LabelStudioGateway, crops: int, examples: Examples, ask: Ask, width: int
) -> None:
    pages = Pages(browser, gateway, crops, ask)
    pages.add("first", CATEGORY, range(20), examples)
    browser.set_viewport_size({"width": width, "height": 900})
    pages.open()
    pages.wait(CATEGORY)
    assert browser.locator(".lsf-main-content").evaluate("main => main.scrollWidth - main.clientWidth") <= 0
    shown = ".crops img, .verdict label, .lsf-image, .examples img, [data-testid=bottombar-submit-button]"
    boxes = [box for each in browser.locator(shown).all() if (box := each.bounding_box())]
    assert [box for box in boxes if box["x"] < 0 or box["x"] + box["width"] > width] == []
    if ask == "page":
        tiles = [crop.bounding_box() for crop in browser.locator(".crops img").all()]
        assert len({round(tile["y"]) for tile in tiles}) == 4
        assert min(tile["width"] for tile in tiles) > 70
