"""A small dataset on disk, connected to a real Label Studio: what the acceptance tests begin with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from ls_propagate import pipeline
from ls_propagate.demo.annotator import Annotator
from ls_propagate.demo.dataset import Dataset, Objects, read_dataset
from ls_propagate.demo.run import Demo, answered, demo_settings, source_project
from ls_propagate.demo.scenes import make_scenes
from ls_propagate.demo.server import Server, new_user
from ls_propagate.settings import Settings
from plugin.label_studio.gateway import LabelStudioGateway
from propagation.campaign import Campaign
from propagation.quality import RIGHT_IOU, truth_iou
from propagation.rle import Rle, decode
from sync.store import Store


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Scenes with predictions made from their truth: three in ten eaten away, and scored as such."""
    folder = tmp_path_factory.mktemp("scenes")
    make_scenes(folder, images=50, seed=3)
    truth = json.loads((folder / "pool" / "ground_truth.json").read_text())
    rng = np.random.default_rng(0)
    predictions = []
    for item in truth["annotations"]:
        right = bool(rng.random() < 0.7)
        rle = item["segmentation"]
        predictions.append(
            {
                "image_id": item["image_id"],
                "category_id": item["category_id"],
                "segmentation": rle if right else eaten(rle, rng),
                "score": float(np.clip(rng.normal(0.85 if right else 0.6, 0.1), 0.01, 1)),
            }
        )
    (folder / "pool" / "predictions.json").write_text(json.dumps(predictions))
    return read_dataset(folder)


def eaten(rle: dict[str, object], rng: np.random.Generator) -> dict[str, object]:
    """The mask with the lower part of its box taken away."""
    checked: Rle = {"size": rle["size"], "counts": str(rle["counts"]).encode()}  # type: ignore[typeddict-item]
    mask = decode(checked).copy()
    filled = np.flatnonzero(mask.any(axis=1))
    mask[filled[0] + max(1, int(len(filled) * rng.uniform(0.35, 0.6))) :] = False
    made = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": made["size"], "counts": made["counts"].decode()}


@dataclass(frozen=True)
class Site:
    """One connected project: its settings and how to reach it."""

    server: Server
    settings: Settings
    config: Path
    gateway: LabelStudioGateway
    store: Store
    connection: pipeline.Connection
    truth: Objects

    def right(self) -> dict[str, bool]:
        """Mask id to whether it is right."""
        table = pipeline.load_table(self.store, self.settings)
        right = dict(zip(table.ids.tolist(), (truth_iou(table, self.truth) > RIGHT_IOU).tolist(), strict=True))
        known = pipeline.load_gold(self.store, self.settings)
        return right | (known.truth if known else {})

    @contextmanager
    def annotator(self) -> Iterator[Annotator]:
        """An annotator with an account of its own."""
        with closing(new_user(self.server, "reader@example.com", "look-closely-1")) as client:
            yield Annotator(client, self.connection.pages, self.right())

    @contextmanager
    def annotator_at_work(self) -> Iterator[None]:
        """An annotator who answers whatever comes, beside the test."""
        stop = threading.Event()
        with self.annotator() as annotator:
            worker = threading.Thread(target=annotator.run, args=[stop])
            worker.start()
            try:
                yield
            finally:
                stop.set()
                worker.join()

    def command(self, *words: str) -> subprocess.Popen[bytes]:
        """``ls-propagate`` with these words, as a process; what it says goes to ``output``."""
        environment = {
            **os.environ,
            "LABEL_STUDIO_URL": self.server.url,
            "LABEL_STUDIO_API_KEY": self.server.token,
        }
        program = str(Path(sys.executable).parent / "ls-propagate")
        with self.output.open("w") as said:
            return subprocess.Popen(
                [program, *words, "--config", str(self.config)], env=environment, stdout=said, stderr=said
            )

    @property
    def output(self) -> Path:
        """What the latest command said."""
        return self.config.with_suffix(".out")


@contextmanager
def connecting(server: Server, dataset: Dataset, data: Path) -> Iterator[Site]:
    """A source project of its own made from the dataset, and connected; data: an empty folder."""
    settings = demo_settings(Demo(data, dataset.folder, budget=300), dataset, server)
    store, gateway = Store(settings.store_url), LabelStudioGateway(server.url, server.token)
    with closing(store), closing(gateway):
        project = source_project(gateway, dataset, data)
        connection = pipeline.connect(gateway, store, str(project.number))
        config = data / "ls-propagate.toml"
        yield Site(server, settings, config, gateway, store, connection, project.truth)


@pytest.fixture
def connect(label_studio: Server, dataset: Dataset, tmp_path: Path) -> Iterator[Callable[[str], Site]]:
    """Makes a source project of its own from the dataset, and connects it."""
    with ExitStack() as opened:

        def make(name: str) -> Site:
            (tmp_path / name).mkdir()
            return opened.enter_context(connecting(label_studio, dataset, tmp_path / name))

        yield make


#: What the team of the finished campaign tells its annotators.
RULES = "<b>Draw tightly.</b>"


@pytest.fixture(scope="session")
def finished(
    label_studio: Server, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, Campaign]]:
    """A campaign that has come to its end, in a project of a team that has instructions of its own."""
    with connecting(label_studio, dataset, tmp_path_factory.mktemp("finished")) as site:
        site.gateway.set_instructions(site.connection.project, RULES)
        pipeline.detect(site.gateway, site.store, site.settings)
        pipeline.cluster(site.gateway, site.store, site.settings)
        daemon = pipeline.open_daemon(site.gateway, site.store, site.settings)
        with site.annotator() as annotator:
            answered(daemon, annotator)
        pipeline.open_overview(site.gateway, site.store, site.settings).look(daemon.history, finished=True)
        yield site, daemon.campaign
