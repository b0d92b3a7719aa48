"""The page that annotators see, in a real browser on a real Label Studio."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

from ls_propagate.demo.browser import log_in, open_browser, open_label_stream, wait_for_crops
from ls_propagate.demo.server import Server
from plugin.crops import render_crop
from plugin.label_studio.gateway import LabelStudioGateway
from plugin.label_studio.pages import (
    KEYS,
    PROJECT_SETTINGS,
    SUBMIT_ON_SPACE,
    Question,
    is_answer,
    page_task,
    read_answer,
)

CATEGORY = '<b>disc</b> & "ball" $page'
NEXT_CATEGORY = "ring"


def draw_crop(number: int) -> bytes:
    """A disc on noise, its mask somewhat too large."""
    rng = np.random.default_rng(number)
    noise = rng.integers(60, 200, (64, 64, 3), dtype=np.uint8)
    pixels = cv2.GaussianBlur(noise, (0, 0), 2).astype(np.uint8)
    cv2.circle(pixels, (32, 32), 8 + number % 5, (220, 220, 220), -1)
    mask = cv2.circle(np.zeros((64, 64), np.uint8), (32, 32), 10 + number % 5, 1, -1)
    return render_crop(pixels, coco.encode(np.asfortranarray(mask)))


@pytest.fixture
def gateway(label_studio: Server) -> Iterator[LabelStudioGateway]:
    """Label Studio, for the user who looks at the page."""
    gateway = LabelStudioGateway(label_studio.url, label_studio.token)
    gateway.set_hotkeys(SUBMIT_ON_SPACE)
    yield gateway
    gateway.close()


@pytest.fixture
def project(gateway: LabelStudioGateway) -> int:
    """A verify project with two pages of twenty crops."""
    crops, verify = (
        gateway.create_project(f"browser test: {config}", read_config(config), "", settings).id
        for config, settings in (("crops", {}), ("verify_page", PROJECT_SETTINGS))
    )
    urls = gateway.upload(crops, [(f"{number}.jpg", draw_crop(number)) for number in range(2 * len(KEYS))])
    questions = [Question(f"{number:020x}", url) for number, url in enumerate(urls)]
    pages = [
        page_task("first", CATEGORY, questions[: len(KEYS)]),
        page_task("second", NEXT_CATEGORY, questions[len(KEYS) :]),
    ]
    gateway.import_tasks(verify, pages)
    return verify


def read_config(name: str) -> str:
    return files("plugin.label_studio").joinpath(f"configs/{name}.xml").read_text(encoding="utf-8")


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


def marked(page: Any) -> list[int]:
    """Places in the grid that are marked wrong."""
    boxes = page.locator(".grid input[type=checkbox]")
    return [place for place in range(boxes.count()) if boxes.nth(place).is_checked()]


def test_two_clicks_and_space_are_an_answer(page: Any, project: int, gateway: LabelStudioGateway) -> None:
    wait_for_question(page, CATEGORY)
    for place in (3, 17):
        page.locator(".grid img").nth(place).click()
    assert marked(page) == [3, 17]
    page.keyboard.press("Space")
    wait_for_question(page, NEXT_CATEGORY)

    (task,) = answered(gateway, project)
    (annotation,) = task["annotations"]
    assert is_answer(annotation)
    answer = read_answer("first", [f"{n:020x}" for n in range(20)], annotation)
    assert [mask for mask, right in answer.items() if not right] == [f"{3:020x}", f"{17:020x}"]

    page.keyboard.press("Space")
    page.get_by_text("No More Tasks Left").wait_for()
    last = next(task for task in answered(gateway, project) if task["data"]["page"] == "second")
    assert last["annotations"][0]["result"] == []


def test_each_key_marks_its_crop_and_nothing_else(page: Any, project: int, gateway: LabelStudioGateway) -> None:
    hints = [hint.lower() for hint in page.locator(".grid kbd").all_inner_texts()]
    assert hints == list(KEYS)
    url = page.url
    for place, key in enumerate(KEYS):
        page.keyboard.press(key)
        assert marked(page) == [place], f"key {key}"
        page.keyboard.press(key)
        assert marked(page) == [], f"key {key}"
    assert page.url == url
    assert page.get_by_text(f"“{CATEGORY}”").is_visible()
    assert answered(gateway, project) == []


def test_the_whole_page_is_seen_without_scrolling(page: Any) -> None:
    for width, height in ((1280, 800), (900, 700), (1920, 1080)):
        page.set_viewport_size({"width": width, "height": height})
        floor = page.locator(".lsf-bottombar").bounding_box()["y"]
        crops = [crop.bounding_box() for crop in page.locator(".grid img").all()]
        assert min(crop["width"] for crop in crops) > 110
        assert all(crop["x"] >= 0 and crop["y"] >= 0 for crop in crops)
        assert all(crop["x"] + crop["width"] <= width for crop in crops)
        assert all(crop["y"] + crop["height"] <= floor for crop in crops)
        for words in (f"“{CATEGORY}”", "Then press space.", "Not sure?"):
            box = page.get_by_text(words).bounding_box()
            assert box["x"] + box["width"] <= width
            assert box["y"] + box["height"] <= floor
        scrolled = "main => main.scrollHeight - main.clientHeight"
        assert page.locator(".lsf-main-content").evaluate(scrolled) <= 0
