"""A sample of the accepted masks, drawn on the server in memory by an expert who knows or errs."""

from __future__ import annotations

import numpy as np
import pytest

from propagation.errors import InputError
from propagation.quality import drawn_quality
from propagation.rle import decode_window
from sync.sample import draw_sample, post_sample, report


@pytest.fixture
def finished(world):
    daemon = world.daemon()
    world.run(daemon)
    return world, daemon.campaign


def posted(world, campaign, size=10):
    sample = draw_sample(campaign, size, 0)
    project = world.gateway.create_project("drawing", "<View/>", "", {}).id
    store = world.daemon().store
    locations = {task.image: task.location for task in store.source_tasks()}
    for expected in (len(sample.masks), 0):  # the second time nothing is left to make
        crops = world.verify.crops
        assert post_sample(world.gateway, project, crops, campaign, sample, locations) == expected
    return sample, project


def outline(campaign, task, shift=0):
    """A polygon around the mask of a task, moved by some of the image's pixels."""
    row = campaign.rows_of([task["data"]["mask"]])[0]
    x, y, width, height = task["data"]["window"]
    down, across = np.nonzero(decode_window(campaign.table.rle(row), x, y, width, height))
    left, right = across.min() + shift, across.max() + 1 + shift
    corners = [(left, down.min()), (right, down.min()), (right, down.max() + 1), (left, down.max() + 1)]
    points = [[100 * a / width, 100 * b / height] for a, b in corners]
    scale = 900 / max(width, height)
    size = {"original_width": round(width * scale), "original_height": round(height * scale)}
    value = {"points": points, "closed": True, "polygonlabels": ["Outline"]}
    return [{"from_name": "polygon", "to_name": "image", "type": "polygonlabels", **size, "value": value}]


NOTHING = [{"from_name": "none", "to_name": "image", "type": "choices", "value": {"choices": ["none"]}}]


def test_what_an_expert_draws_is_measured(finished):
    world, campaign = finished
    sample, project = posted(world, campaign)
    tasks = list(world.gateway.tasks(project, ["data"]))
    assert [task["data"]["mask"] for task in tasks] == sample.masks
    for task in tasks[:6]:
        world.gateway.submit(task["id"], outline(campaign, task))
    world.gateway.submit(tasks[6]["id"], NOTHING)
    world.gateway.skip(tasks[7]["id"])
    world.gateway.submit(tasks[8]["id"], [])
    told = report(world.gateway, project, campaign, sample)
    total = told["total"]
    assert (total["drawn"], total["none"], total["right"]) == (7, 1, 6)
    assert total["matched"] > 0.97
    assert total["sq"] == pytest.approx(total["matched"] * 6 / 7)
    assert total["sq_low"] < total["sq"] < total["sq_high"]
    assert sum(row["drawn"] for row in told["categories"]) == 7
    assert len(told["problems"]) == 1
    assert "neither" in told["problems"][0]


def test_an_outline_beside_the_mask_is_not_right(finished):
    world, campaign = finished
    sample, project = posted(world, campaign, 1)
    (task,) = world.gateway.tasks(project, ["data"])
    row = campaign.rows_of(sample.masks)[0]
    wide = int(campaign.table.box[row][2])
    world.gateway.submit(task["id"], outline(campaign, task, shift=-(wide // 2) or 1))
    told = report(world.gateway, project, campaign, sample)["total"]
    assert told["right"] == 0
    assert told["sq"] == pytest.approx((wide - wide // 2) / (wide + wide // 2), abs=0.05)


def test_a_mask_that_was_taken_back_is_left_out(finished):
    world, campaign = finished
    sample, project = posted(world, campaign, 5)
    for task in world.gateway.tasks(project, ["data"]):
        world.gateway.submit(task["id"], outline(campaign, task))
    campaign.taken[campaign.table.image[campaign.rows_of(sample.masks)[0]]] = True
    told = report(world.gateway, project, campaign, sample)
    assert told["taken_back"] >= 1
    assert told["total"]["drawn"] == 5 - told["taken_back"]


def test_the_same_sample_is_drawn_again_and_another_for_another_number(finished):
    _, campaign = finished
    first = draw_sample(campaign, 8, 0)
    assert draw_sample(campaign, 8, 0) == first
    assert draw_sample(campaign, 8, 1).masks != first.masks
    assert set(first.masks) <= set(campaign.table.ids[campaign.accepted()].tolist())


def test_nothing_accepted_is_nothing_to_draw(world):
    campaign = world.daemon().campaign
    with pytest.raises(InputError, match="accepted"):
        draw_sample(campaign, 5, 0)
    with pytest.raises(InputError, match="--sample"):
        draw_sample(campaign, None, 0)


def test_intervals_hold_what_they_should():
    random = np.random.default_rng(0)
    truth = np.where(random.random(400) < 0.9, random.beta(20, 3, 400), 0.0)
    held = 0
    for _ in range(400):
        told = drawn_quality("x", random.choice(truth, 60, replace=False), 0, 400)
        held += told.sq_low <= truth.mean() <= told.sq_high
    assert held >= 0.9 * 400
    whole = drawn_quality("x", truth, 0, 400)
    assert whole.sq_low == whole.sq == whole.sq_high  # all of them were drawn
    assert drawn_quality("x", np.empty(0), 0, 400).sq is None
