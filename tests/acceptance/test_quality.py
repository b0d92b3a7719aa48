"""A sample of what a campaign wrote, drawn by an expert in a real Label Studio, and what comes of it."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import stats

from ls_propagate import pipeline
from ls_propagate.demo.browser import close_popups, log_in, open_browser
from ls_propagate.demo.server import new_user
from propagation.campaign import Campaign
from propagation.errors import InputError
from propagation.rle import decode

Site = Any
SIZE = 12
SHOWN = 900  # pixels of a place's longer side


def quality(site: Site, *words: str) -> dict[str, Any]:
    """What ``ls-propagate quality`` says."""
    code = site.command("quality", *words, "--json").wait(120)
    assert code == 0, site.output.read_text()
    told: dict[str, Any] = json.loads(site.output.read_text())
    return told


def drawings(site: Site, title: str) -> list[dict[str, Any]]:
    """The tasks of a drawing project, with all that an expert can see of them."""
    (project,) = [one for one in site.gateway.projects() if one.description.endswith(title)]
    return list(site.gateway.tasks(project.id, ["data", "project", "predictions", "annotations"]))


def outline(site: Site, campaign: Campaign, task: dict[str, Any]) -> list[list[float]]:
    """The corners, in per cent of what is shown, of the true object where a mask was accepted."""
    (row,) = campaign.rows_of([task["data"]["mask"]])
    table = campaign.table
    mask = decode(table.rle(int(row)))
    objects = [decode(rle) for _, rle in site.truth[str(table.images[table.image[row]])]]
    true = max(objects, key=lambda one: (one & mask).sum() / (one | mask).sum())
    x, y, width, height = task["data"]["window"]
    piece = true[y : y + height, x : x + width].astype(np.uint8)
    large = cv2.resize(piece, None, fx=8, fy=8, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    corners = cv2.approxPolyDP(max(contours, key=cv2.contourArea), 6.0, closed=True)[:, 0]
    return [[100 * a / large.shape[1], 100 * b / large.shape[0]] for a, b in corners.tolist()]


def iou(campaign: Campaign, task: dict[str, Any], points: list[list[float]]) -> float:
    """The IoU of a mask with an outline, both painted anew, the mask corner by corner of its pixels."""
    (row,) = campaign.rows_of([task["data"]["mask"]])
    x, y, width, height = task["data"]["window"]
    piece = decode(campaign.table.rle(int(row)))[y : y + height, x : x + width]
    scale = SHOWN / max(width, height)
    size = round(width * scale), round(height * scale)
    drawn = Image.new("1", size)
    ImageDraw.Draw(drawn).polygon([(a * size[0] / 100, b * size[1] / 100) for a, b in points], fill=1)
    mask = np.array(Image.fromarray(piece).resize(size, Image.Resampling.NEAREST))
    both: NDArray[np.bool_] = np.array(drawn)
    return float((both & mask).sum() / (both | mask).sum())


def answer_of(task: dict[str, Any], points: list[list[float]]) -> list[dict[str, Any]]:
    _, _, width, height = task["data"]["window"]
    scale = SHOWN / max(width, height)
    return [
        {
            "id": "drawn",
            "from_name": "polygon",
            "to_name": "image",
            "type": "polygonlabels",
            "original_width": round(width * scale),
            "original_height": round(height * scale),
            "image_rotation": 0,
            "value": {"points": points, "closed": True, "polygonlabels": ["Outline"]},
        }
    ]


NOTHING = [{"from_name": "none", "to_name": "image", "type": "choices", "value": {"choices": ["none"]}}]


def test_an_experts_outlines_tell_the_quality(finished: tuple[Site, Campaign]) -> None:
    site, campaign = finished
    assert site.command("quality").wait(120) == 1
    assert "--sample" in site.output.read_text()
    first = quality(site, "--sample", str(SIZE))
    assert (first["sample"], first["of"], first["total"]["drawn"]) == (SIZE, campaign.accepted().sum(), 0)

    tasks = drawings(site, f"drawing of project {site.connection.project}")
    accepted = set(campaign.table.ids[campaign.accepted()].tolist())
    assert len({task["data"]["mask"] for task in tasks} & accepted) == SIZE
    for task in tasks:  # nothing shows our mask
        assert task["data"].keys() == {"question", "image", "mask", "window"}
        assert task["predictions"] == task["annotations"] == []

    expected: dict[str, list[float]] = {name: [] for name in campaign.table.categories}

    def expect(task: dict[str, Any], found: float) -> None:
        (row,) = campaign.rows_of([task["data"]["mask"]])
        expected[campaign.table.categories[campaign.table.category[row]]].append(found)

    with closing(new_user(site.server, "expert@example.com", "look-closely-6")) as expert:

        def answer(task: dict[str, Any], result: list[dict[str, Any]], **more: Any) -> None:
            body = {"result": result, "lead_time": 20.0, **more}
            expert.post(f"/api/tasks/{task['id']}/annotations/", json=body).raise_for_status()

        for task in tasks[1:8]:
            points = outline(site, campaign, task)
            answer(task, answer_of(task, points))
            expect(task, iou(campaign, task, points))
        answer(tasks[8], NOTHING)
        expect(tasks[8], 0.0)
        answer(tasks[9], [], was_cancelled=True)
        answer(tasks[10], [*NOTHING, *answer_of(tasks[10], [[1, 1], [9, 1], [9, 9]])])  # which is it?

    told = quality(site)
    assert told["total"]["none"] == 1
    assert len(told["problems"]) == 1
    assert "both" in told["problems"][0]
    assert (told["claim"], told["bound"]) == ("promise", campaign.search.bound())
    assert "at least 85%" in told["statement"]
    everything = [one for some in expected.values() for one in some]
    for name, found, of in [
        *((name, found, None) for name, found in expected.items()),
        ("total", everything, campaign.accepted().sum()),
    ]:
        if name != "total" and name not in {row["category"] for row in told["categories"]}:
            assert not found
            continue
        row = told["total"] if name == "total" else next(r for r in told["categories"] if r["category"] == name)
        inside = campaign.accepted() & (
            campaign.table.category == list(campaign.table.categories).index(name) if name != "total" else True
        )
        assert of is None or of == inside.sum()
        compare(row, found, int(inside.sum()))

    again = quality(site, "--sample", str(SIZE))
    assert again == told
    assert len(drawings(site, f"drawing of project {site.connection.project}")) == SIZE


def compare(row: dict[str, Any], found: list[float], population: int) -> None:
    """A row of the report is what these IoUs come to."""
    assert row["drawn"] == len(found)
    assert row["right"] == sum(one > 0.75 for one in found)
    if not found:
        assert row["sq"] is None
        return
    assert row["sq"] == pytest.approx(np.mean(found), abs=0.01)
    if len(found) == 1:
        assert row["sq_low"] is None
        return
    error = np.std(found, ddof=1) / np.sqrt(len(found)) * np.sqrt((population - len(found)) / (population - 1))
    width = stats.t.ppf(0.975, len(found) - 1) * error
    assert row["sq_low"] == pytest.approx(max(np.mean(found) - width, 0), abs=0.01)
    assert row["sq_high"] == pytest.approx(min(np.mean(found) + width, 1), abs=0.01)


def test_an_expert_draws_in_a_browser(finished: tuple[Site, Campaign]) -> None:
    site, campaign = finished
    quality(site, "--sample", str(SIZE))
    before = quality(site)["total"]["drawn"]
    task = drawings(site, f"drawing of project {site.connection.project}")[0]
    points = outline(site, campaign, task)
    with open_browser(1400, 1200) as page:
        log_in(page, site.server.url, site.server.email, site.server.password)
        page.goto(f"{site.server.url}/projects/{task['project']}/data?task={task['id']}")
        picture = page.locator("canvas").first
        picture.wait_for()
        close_popups(page)
        page.wait_for_timeout(1000)
        box = picture.bounding_box()
        page.keyboard.press("1")
        for a, b in [*points, points[0]]:
            page.mouse.click(box["x"] + a / 100 * box["width"], box["y"] + b / 100 * box["height"])
        page.get_by_role("button", name="Submit").click()
        page.get_by_role("button", name="Update").wait_for()
    told = quality(site)["total"]
    assert told["drawn"] == before + 1


def test_another_sample_has_a_project_of_its_own(finished: tuple[Site, Campaign]) -> None:
    site, _ = finished
    quality(site, "--sample", str(SIZE))
    with pytest.raises(InputError, match="--new"):
        pipeline.quality(site.gateway, site.store, site.settings, SIZE + 1)
    told = quality(site, "--sample", "5", "--new")
    assert (told["sample"], told["total"]["drawn"]) == (5, 0)
    one, other = (
        {task["data"]["mask"] for task in drawings(site, f"{kind} of project {site.connection.project}")}
        for kind in (": drawing", "drawing 2")
    )
    assert (len(one), len(other)) == (SIZE, 5)
    assert one != other
    assert quality(site)["sample"] == 5
    assert site.command("quality", "--sample", "0").wait(60) == 2
