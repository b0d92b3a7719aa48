"""A sample of what a campaign wrote, drawn by an expert in a real Label Studio, and what comes of it."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from skimage.draw import polygon2mask

from ls_propagate import pipeline
from ls_propagate.demo.browser import close_popups, log_in, open_browser
from ls_propagate.demo.server import new_user
from propagation.campaign import Campaign
from propagation.errors import InputError
from propagation.rle import decode

Site = Any
SIZE = 12
SHOWN = 900  # pixels of a place's longer side
NEAR = 0.005  # in IoU, of two ways to paint an outline


def quality(site: Site, size: int | None = None, new: bool = False) -> dict[str, Any]:
    """What the drawings tell so far."""
    return pipeline.quality(site.gateway, site.store, site.settings, size, new)


def drawings(site: Site, kind: str) -> list[dict[str, Any]]:
    """The tasks of a drawing project, with all that an expert can see of them."""
    mark = f": {kind} of project {site.connection.project}"
    (project,) = [one for one in site.gateway.projects() if one.description.endswith(mark)]
    fields = ["data", "predictions", "annotations"]
    return [{**task, "project": project.id} for task in site.gateway.tasks(project.id, fields)]


def outline(site: Site, campaign: Campaign, task: dict[str, Any], loose: float = 0.75) -> list[list[float]]:
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
    corners = cv2.approxPolyDP(max(contours, key=cv2.contourArea), 8 * loose, closed=True)[:, 0]
    return [[100 * a / large.shape[1], 100 * b / large.shape[0]] for a, b in corners.tolist()]


def iou(campaign: Campaign, task: dict[str, Any], points: list[list[float]]) -> float:
    """The IoU of a mask with an outline, both painted anew, the mask corner by corner of its pixels."""
    (row,) = campaign.rows_of([task["data"]["mask"]])
    x, y, width, height = task["data"]["window"]
    piece = decode(campaign.table.rle(int(row)))[y : y + height, x : x + width]
    scale = SHOWN / max(width, height)
    size = round(width * scale), round(height * scale)
    corners = np.array([(b * size[1] / 100, a * size[0] / 100) for a, b in points])
    drawn: NDArray[np.bool_] = polygon2mask((size[1], size[0]), corners - 0.5)  # pixels whose centre is inside
    mask = np.array(Image.fromarray(piece).resize(size, Image.Resampling.NEAREST))
    return float((drawn & mask).sum() / (drawn | mask).sum())


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
    accepted, categories = campaign.accepted(), campaign.table.categories
    assert site.command("quality").wait(120) == 1
    assert "--sample" in site.output.read_text()
    assert site.command("quality", "--sample", str(SIZE), "--json").wait(120) == 0
    first = json.loads(site.output.read_text())
    assert (first["sample"], first["of"], first["total"]["drawn"]) == (SIZE, accepted.sum(), 0)

    tasks = drawings(site, "drawing")
    rows = campaign.rows_of([task["data"]["mask"] for task in tasks])
    assert len(set(rows.tolist())) == SIZE
    assert accepted[rows].all()
    for task in tasks:  # nothing shows our mask
        assert task["data"].keys() == {"question", "image", "mask", "window"}
        assert task["predictions"] == task["annotations"] == []

    found: list[float] = []
    with closing(new_user(site.server, "expert@example.com", "look-closely-6")) as expert:

        def answer(task: dict[str, Any], result: list[dict[str, Any]], **more: Any) -> None:
            body = {"result": result, "lead_time": 20.0, **more}
            expert.post(f"/api/tasks/{task['id']}/annotations/", json=body).raise_for_status()

        for task in tasks[1:9]:
            points = outline(site, campaign, task)
            answer(task, answer_of(task, points))
            found.append(iou(campaign, task, points))
        answer(tasks[9], NOTHING)
        found.append(0.0)
        answer(tasks[10], [], was_cancelled=True)
        answer(tasks[11], [*NOTHING, *answer_of(tasks[11], [[1, 1], [9, 1], [9, 9]])])  # which is it?

    told = quality(site)
    assert told["total"]["none"] == 1
    assert len(told["problems"]) == 1
    assert "both" in told["problems"][0]
    assert (told["claim"], told["bound"]) == ("promise", campaign.search.bound())
    assert "at least 85%" in told["statement"]
    category = campaign.table.category[rows[1:10]]
    for row in told["categories"]:
        place = categories.index(row["category"])
        here = [one for one, of in zip(found, category, strict=True) if of == place]
        compare(row, here, int((accepted & (campaign.table.category == place)).sum()))
    assert sum(row["drawn"] for row in told["categories"]) == len(found)
    compare(told["total"], found, int(accepted.sum()))

    assert quality(site, SIZE) == told  # the same sample
    assert len(drawings(site, "drawing")) == SIZE


def compare(row: dict[str, Any], found: list[float], population: int) -> None:
    """A row of the report is what these IoUs come to, each of which our painting may miss by ``NEAR``."""
    drawn, iou = len(found), np.array(found)
    assert row["drawn"] == drawn
    assert (iou > 0.75 + NEAR).sum() <= row["right"] <= (iou > 0.75 - NEAR).sum()
    assert row["sq"] == (pytest.approx(iou.mean(), abs=NEAR) if drawn else None)
    if drawn < 2:
        assert row["sq_low"] is None
        return
    times = stats.t.ppf(0.975, drawn - 1) * np.sqrt((population - drawn) / (population - 1) / drawn)
    width = times * iou.std(ddof=1)
    near = NEAR * (1 + times * np.sqrt(drawn / (drawn - 1)))  # the most that mean and width can be off
    wanted = [max(iou.mean() - width, 0), min(iou.mean() + width, 1)]
    assert [row["sq_low"], row["sq_high"]] == pytest.approx(wanted, abs=near)


def test_an_expert_draws_in_a_browser(finished: tuple[Site, Campaign]) -> None:
    site, campaign = finished
    quality(site, SIZE)
    task = drawings(site, "drawing")[0]
    points = outline(site, campaign, task, loose=3)
    with open_browser(1400, 1200) as page:
        log_in(page, site.server.url, site.server.email, site.server.password)
        page.goto(f"{site.server.url}/projects/{task['project']}/data?task={task['id']}")
        page.locator("canvas").first.wait_for()
        close_popups(page)
        page.get_by_role("button", name="Instructions").wait_for()
        page.wait_for_load_state("networkidle")
        box, before, still = None, None, 0
        while still < 4:  # until the page has settled
            page.wait_for_timeout(500)
            before, box = box, page.locator("canvas").first.bounding_box()
            still = still + 1 if box == before else 0
        assert box is not None
        page.keyboard.press("1")
        for a, b in [*points, points[0]]:
            page.mouse.click(box["x"] + a / 100 * box["width"], box["y"] + b / 100 * box["height"], delay=50)
        page.get_by_role("button", name="Submit").click()
        page.get_by_text("Annotation saved successfully", exact=True).wait_for()
    (drawn,) = site.gateway.tasks(task["project"], ["data", "annotations", "result"], ids=[task["id"]])
    (answer,) = drawn["annotations"]
    assert answer["result"][0]["value"]["points"] == [pytest.approx(point, abs=0.5) for point in points]
    everything = list(site.gateway.tasks(task["project"], ["annotations", "was_cancelled"], annotated=True))
    assert quality(site)["total"]["drawn"] + len(quality(site)["problems"]) == len(everything)


def test_another_sample_has_a_project_of_its_own(finished: tuple[Site, Campaign]) -> None:
    site, _ = finished
    quality(site, SIZE)
    with pytest.raises(InputError, match="--new"):
        quality(site, SIZE + 1)
    told = quality(site, 5, new=True)
    assert (told["sample"], told["total"]["drawn"]) == (5, 0)
    one, other = ({t["data"]["mask"] for t in drawings(site, kind)} for kind in ("drawing", "drawing 2"))
    assert (len(one), len(other)) == (SIZE, 5)
    assert not other <= one
    assert quality(site)["sample"] == 5
    assert site.command("quality", "--sample", "0").wait(60) == 2
