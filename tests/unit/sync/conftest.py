"""A source project on the server in memory, a campaign over it, and annotators who know the truth."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from plugin.label_studio.fake import FakeGateway
from plugin.label_studio.labeling import read_labeling
from plugin.label_studio.pages import PROJECT_SETTINGS
from propagation.campaign import Campaign
from propagation.events import CampaignStarted, Decided, PageIssued
from propagation.masks import MaskTable
from propagation.paper import PaperStrategy
from propagation.tree import ClusterTree
from sync.daemon import Daemon, Step
from sync.pages import VerifyProjects
from sync.source import Source
from sync.store import SourceTask, Store

CONFIG = """<View><Image name="image" value="$image"/>
<PolygonLabels name="polygon" toName="image"><Label value="x"/><Label value="y"/></PolygonLabels>
<BrushLabels name="brush" toName="image"><Label value="x"/><Label value="y"/></BrushLabels></View>"""


@dataclass
class World:
    """A server with a source project, what detection and clustering made of it, and the truth by mask id."""

    gateway: FakeGateway
    source: Source
    verify: VerifyProjects
    table: MaskTable
    trees: list[ClusterTree]
    strategy: PaperStrategy
    truth: dict[str, bool]
    url: str
    write_every: int = 1
    opened: list[Store] = field(default_factory=list)
    board: int | None = None

    def daemon(self, gateway=None) -> Daemon:
        """A daemon as a new process would have it: all it knows is in the store."""
        store = Store(self.url)
        self.opened.append(store)
        campaign = Campaign(self.table, self.trees, self.strategy)
        for event in store.events():
            campaign.apply(event)
        return Daemon(
            store, gateway or self.gateway, campaign, self.source, self.verify, self.write_every, board=self.board
        )

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()

    def pages(self) -> list[dict]:
        return list(self.gateway.tasks(self.verify.pages, ["data", "annotations", "result", "was_cancelled"]))

    def annotations(self) -> dict[int, list[dict]]:
        """The annotations of each source task."""
        fields = ["annotations", "result", "was_cancelled", "completed_by", "updated_by", "parent_prediction"]
        return {task["id"]: task["annotations"] for task in self.gateway.tasks(self.source.project, fields)}

    def predictions(self) -> dict[int, list[dict]]:
        """The predictions of each source task."""
        return {t["id"]: t["predictions"] for t in self.gateway.tasks(self.source.project, ["predictions"])}

    def marks(self, page: dict) -> list[dict]:
        """What an annotator who knows the truth marks on a page."""
        wrong = [crop["alias"] for crop in page["data"]["crops"] if not self.truth[crop["alias"]]]
        return self.marking(wrong)

    @staticmethod
    def marking(wrong: list[str]) -> list[dict]:
        item = {"from_name": "wrong", "to_name": "page", "type": "choices", "value": {"choices": wrong}}
        return [item] if wrong else []

    def annotate(self) -> int:
        """Every page without an answer gets one; how many."""
        waiting = [page for page in self.pages() if not page["annotations"]]
        for page in waiting:
            self.gateway.submit(page["id"], self.marks(page))
        return len(waiting)

    def run(self, daemon: Daemon, between: Callable[[Step], None] = lambda step: None) -> None:
        """Daemon and annotators in turn, to the end."""
        for _ in range(200):
            step = daemon.step()
            between(step)
            if step.finished:
                return
            self.annotate()
        raise AssertionError("the campaign never ends")

    def outcome(self) -> dict:
        """What a campaign comes to: decisions, masks accepted, pages asked, annotations written."""
        store = Store(self.url)
        campaign = Campaign(self.table, self.trees, self.strategy)
        events = store.events()
        store.close()
        for event in events:
            campaign.apply(event)
        return {
            "decisions": sorted(
                (e.cluster, e.decision, e.asked, e.right) for e in events if isinstance(e, Decided)
            ),
            "issued": sorted(e.page for e in events if isinstance(e, PageIssued)),
            "posted": sorted(page["data"]["page"] for page in self.pages()),
            "accepted": self.table.ids[campaign.accepted()].tolist(),
            "written": {
                task: [[(r["id"], r["type"], r["value"]) for r in annotation["result"]] for annotation in made]
                for task, made in self.annotations().items()
            },
        }


def photo(side):
    content = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), 90, dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def make_world(tmp_path, table, tree):
    """A world of 40 masks of two categories on three images; of each category one group is wrong."""
    made_worlds = []

    def make(shapes=None, write_every=1, **strategy) -> World:
        gateway = FakeGateway()
        project = gateway.create_project("cells", CONFIG, "", {})
        verify = VerifyProjects(
            gateway.create_project("verify", "<View/>", "", PROJECT_SETTINGS).id,
            gateway.create_project("crops", "<View/>", "", {}).id,
        )
        keys = gateway.upload(project.id, [(f"{number}.png", photo(32)) for number in range(3)])
        numbers = gateway.import_tasks(project.id, [{"data": {"image": f"{key}?signed=1"}} for key in keys])
        gateway.files.update({f"{key}?signed=1": gateway.files[key] for key in keys})
        made = (shapes or table)([0.9] * 40, [0] * 28 + [1] * 12, ("x", "y"), keys=keys)
        truth = [True] * 10 + [False] * 9 + [True] * 9 + [True] * 6 + [False] * 6
        values = [0.0] * 10 + [1000.0] * 9 + [2000.0] * 9 + [0.0] * 6 + [1000.0] * 6
        values = [value + place for place, value in enumerate(values)]
        trees = [tree(made, values, 0), tree(made, values, 1)]
        rule = PaperStrategy(
            **(
                {"samples": 8, "least_size": 3, "split_below": 0.0, "page_size": 5, "clusters_a_round": 2}
                | strategy
            )
        )
        world = World(
            gateway,
            Source(project.id, read_labeling(CONFIG, ("x", "y"), {}, "cells"), gateway.user().id),
            verify,
            made,
            trees,
            rule,
            dict(zip(made.ids.tolist(), truth, strict=True)),
            f"sqlite:///{tmp_path / f'store-{len(made_worlds)}.sqlite'}",
            write_every,
        )
        made_worlds.append(world)
        store = Store(world.url)
        store.set_source_tasks(
            [SourceTask(key, number, f"{key}?signed=1") for key, number in zip(keys, numbers, strict=True)]
        )
        store.append([CampaignStarted("campaign", {}, "table", "trees")])
        store.close()
        return world

    yield make
    for world in made_worlds:
        world.close()


@pytest.fixture
def world(make_world):
    return make_world()
