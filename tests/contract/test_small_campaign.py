"""A small campaign on the real server: the tabs of its source project, and a sample of it drawn by an expert."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

from ls_propagate.demo.browser import log_in, open_browser
from plugin.label_studio.drawing import DRAWING_SETTINGS
from plugin.label_studio.labeling import read_labeling
from propagation.campaign import Campaign
from propagation.events import CampaignStarted, Decided
from propagation.masks import Detections, build_table
from propagation.paper import PaperStrategy
from propagation.progress import History, Terms
from propagation.tree import build_tree, cluster_name
from sync import overview as overview_module
from sync.overview import Overview
from sync.sample import draw_sample, post_sample, report
from sync.source import Source, push_predictions
from sync.store import SourceTask, Store
from sync.writeback import write_back
from tests.contract.conftest import LABEL_CONFIG

SIDE = 60
# whether each mask of an image is in the cluster of the good ones; the others are in that of the bad ones
IMAGES = ((True, True), (True, False), (True, False, False), (False, True), (False, False), (False,), (False,))
OTHERS = 2  # tasks that the campaign knows nothing of


class World:
    """A project with images of two kinds of masks, a campaign over it, and what people see of it."""

    def __init__(self, gateway: Any, folder: Path) -> None:
        self.gateway = gateway
        self.project = gateway.create_project("contract: overview", LABEL_CONFIG, "", {}).id
        self.crops = gateway.create_project("contract: crops", LABEL_CONFIG, "", {}).id
        keys = [f"/data/local-files/?d=a+b ({number}) größe.png" for number in range(len(IMAGES))]
        data = [{"data": {"image": key}} for key in [*keys, *(f"other {n}.png" for n in range(OTHERS))]]
        self.numbers = gateway.import_tasks(self.project, data)
        found = [
            Detections(
                [square(place) for place in range(len(kinds))],
                np.array([0.9 if good else 0.2 for good in kinds], np.float32),
                np.zeros(len(kinds), np.int64),
            )
            for kinds in IMAGES
        ]
        table = build_table(keys, found, ["cell"], "contract")
        tree = build_tree(table, 0, {"score": 1.0}, "complete", exact_below=1000)
        assert tree is not None
        self.campaign = Campaign(table, [tree], PaperStrategy())
        self.history = History(self.campaign)
        self.campaign.apply(CampaignStarted(f"of project {self.project}", {}, "", ""))
        halves = sorted(tree.halves(tree.root), key=lambda node: -table.score[tree.rows[tree.slice(node)]].mean())
        self.good, self.bad = (cluster_name(tree, node) for node in halves)
        self.campaign.apply(Decided(cluster_name(tree, tree.root), "split", 0, 0))
        labeling = read_labeling(LABEL_CONFIG, ("cell",), {}, "contract")
        self.source = Source(self.project, labeling, gateway.user().id)
        self.tasks = [SourceTask(key, number, key) for key, number in zip(keys, self.numbers, strict=False)]
        self.store = Store(f"sqlite:///{folder / 'store'}")
        self.store.set_source_tasks(self.tasks)
        version = f"propagate-{self.project}"
        push_predictions(gateway, self.source, self.tasks, table, [tree], version, 1)
        terms, clock = Terms(), lambda: 0.0
        self.overview = Overview(gateway, self.store, self.project, self.crops, "image", version, terms, clock)

    def decide(self, cluster: str, decision: Literal["accept", "reject"]) -> None:
        """Decide on a cluster, and write what follows."""
        self.campaign.apply(Decided(cluster, decision, 3, 3))

        def record(events: Any) -> None:
            for event in events:
                self.campaign.apply(event)

        assert list(write_back(self.gateway, self.source, self.campaign, self.tasks, record)) is not None

    def look(self) -> None:
        """Have it brought up to date."""
        self.overview.look(self.history, finished=False)
        self.overview.look(self.history, finished=True)

    def listed(self) -> dict[str, list[int]]:
        """The places of the tasks that the server lists in each tab."""
        found = {}
        for number, tab in self.gateway.tabs(self.project).items():
            answer = self.gateway.answer(
                "GET", "api/tasks/", params={"view": number, "project": self.project, "page_size": 100}
            ).json()
            places = [self.numbers.index(task["id"]) for task in answer["tasks"]]
            assert answer["total"] == len(places)
            found[tab["title"]] = sorted(places)
        return found


def square(place: int) -> Any:
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    mask[5:15, 18 * place + 2 : 18 * place + 12] = 1
    return coco.encode(mask)


@pytest.fixture
def world(gateway: Any, tmp_path: Path) -> Iterator[World]:
    made = World(gateway, tmp_path)
    yield made
    made.store.close()


EVERYTHING = list(range(len(IMAGES) + OTHERS))


@pytest.mark.parametrize("side", ["sqlite", "postgresql"], indirect=True)
def test_tabs_list_what_is_propagated_partly_decided_and_undecided(
    side: Any, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.gateway.create_tab(world.project, {"title": "Ours", "type": "list", "target": "tasks"})
    world.overview.make(world.history)
    nothing = {"Ours": EVERYTHING, "Propagated": [], "Partly decided": [], "Undecided": [0, 1, 2, 3, 4, 5, 6]}
    assert world.listed() == nothing

    side.submit(world.numbers[6], [])  # a person's, who does without
    world.decide(world.good, "accept")
    world.look()
    left = overview_module.undecided_masks(world.campaign)
    assert left.tolist() == [0, 1, 2, 1, 2, 1, 1]
    begun = {"Ours": EVERYTHING, "Propagated": [0, 1, 2, 3], "Partly decided": [1, 2, 3], "Undecided": [4, 5]}
    assert world.listed() == begun

    monkeypatch.setattr(overview_module, "MOST", 1)
    world.look()
    listed = world.listed()
    assert listed.pop("Partly decided, 1 of 3") == [2]
    assert listed == {name: places for name, places in begun.items() if name != "Partly decided"}

    world.decide(world.bad, "reject")
    world.look()
    assert world.listed() == {**begun, "Partly decided": []}


@pytest.mark.parametrize("side", ["sqlite"], indirect=True)
def test_each_tab_opens_in_a_browser(world: World, label_studio: Any) -> None:
    world.overview.make(world.history)
    world.decide(world.good, "accept")
    world.look()
    wanted = {"Propagated": 4, "Partly decided": 3, "Undecided": 3}
    numbers = {tab["title"]: number for number, tab in world.gateway.tabs(world.project).items()}
    assert list(numbers) == ["Default", *wanted]
    with open_browser() as page:
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "response",
            lambda said: errors.append(said.url) if said.status >= 400 and "/api/" in said.url else None,
        )
        log_in(page, label_studio.url, label_studio.email, label_studio.password)
        data = f"{label_studio.url}/projects/{world.project}/data"
        page.goto(data)
        page.get_by_text(f"Tasks: {len(EVERYTHING)} / {len(EVERYTHING)}").wait_for()
        for title, count in wanted.items():
            page.goto(f"{data}?tab={numbers[title]}")
            page.get_by_text(f"Tasks: {count} / {len(EVERYTHING)}").wait_for()
        assert errors == []


@pytest.mark.parametrize("side", ["sqlite", "postgresql"], indirect=True)
def test_a_sample_is_drawn_and_read(side: Any, world: World) -> None:
    gateway, campaign = world.gateway, world.campaign
    world.decide(world.good, "accept")
    grey = cv2.imencode(".png", np.full((SIDE, SIDE, 3), 90, np.uint8))[1].tobytes()
    (url,) = gateway.upload(world.crops, [("grey.png", grey)])
    config = files("plugin.label_studio").joinpath("configs/drawing.xml").read_text()
    project = gateway.create_project("contract: drawing", config, "", DRAWING_SETTINGS).id
    sample = draw_sample(campaign, 4, 0)
    locations = dict.fromkeys(campaign.table.images.tolist(), url)
    for made in (4, 0):
        assert post_sample(gateway, project, world.crops, campaign, sample, locations) == made
    exact, half, none, skipped = gateway.tasks(project, ["data"])
    side.submit(exact["id"], box_of(campaign, exact, 1.0))
    side.submit(half["id"], box_of(campaign, half, 0.5))
    nothing = {"from_name": "none", "to_name": "image", "type": "choices", "value": {"choices": ["none"]}}
    side.submit(none["id"], [{"id": "none", **nothing}])
    side.skip(skipped["id"])
    told = report(gateway, project, campaign, sample)
    assert told["problems"] == []
    assert (told["total"]["drawn"], told["total"]["none"], told["total"]["right"]) == (3, 1, 1)
    assert told["total"]["sq"] == pytest.approx(1.5 / 3, abs=0.005)
    assert told["categories"] == [{**told["total"], "category": "cell"}]
    assert told["claim"] == "estimate"


def box_of(campaign: Campaign, task: dict[str, Any], share: float) -> list[dict[str, Any]]:
    """The outline of a mask, or of a share of its height, as drawn over what a task shows."""
    (row,) = campaign.rows_of([task["data"]["mask"]])
    x, y, wide, high = campaign.table.box[row].tolist()
    left, top, width, height = task["data"]["window"]
    across = [100 * (edge - left) / width for edge in (x, x + wide)]
    down = [100 * (edge - top) / height for edge in (y, y + high * share)]
    points = [[across[0], down[0]], [across[1], down[0]], [across[1], down[1]], [across[0], down[1]]]
    scale = 900 / max(width, height)
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
