"""A project on the server in memory, and precomputed masks on disk for it."""

from __future__ import annotations

import io
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ls_propagate import clustering, pipeline
from ls_propagate.settings import Settings, load_settings
from plugin.label_studio.fake import FakeGateway
from sync.store import Store

CONFIG = """<View><Image name="image" value="$image"/>
<PolygonLabels name="label" toName="image"><Label value="x"/><Label value="Y"/></PolygonLabels></View>"""
STRATEGY = {"name": "paper", "samples": 6, "least_size": 3, "split_below": 0.0, "page_size": 8}


def png(side=32):
    content = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), 120, dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(autouse=True)
def _logs_as_before():
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@dataclass
class Office:
    """A gateway, a store and settings, and the project's number."""

    gateway: FakeGateway
    store: Store
    settings: Settings
    project: int

    def prepared(self) -> Office:
        """Connected, detected and clustered."""
        pipeline.connect(self.gateway, self.store, str(self.project))
        pipeline.detect(self.gateway, self.store, self.settings)
        clustering.cluster(self.gateway, self.store, self.settings)
        return self

    def finished(self, wrong: str = "Y") -> Office:
        """The whole campaign, with annotators who find all masks of a category wrong."""
        daemon = pipeline.open_daemon(self.gateway, self.store, self.settings)
        pages = pipeline.connection_of(self.store).pages
        while not daemon.step().finished:
            for task in list(self.gateway.tasks(pages, ["data", "annotations"])):
                if not task["annotations"]:
                    marked = [
                        c["alias"] for c in task["data"]["crops"] if f"“{wrong}”" in task["data"]["question"]
                    ]
                    value = {
                        "from_name": "wrong",
                        "to_name": "page",
                        "type": "choices",
                        "value": {"choices": marked},
                    }
                    self.gateway.submit(task["id"], [value] if marked else [])
        return self

    def changed(self, **given) -> Settings:
        """The same settings but for some."""
        return self.settings.model_copy(update=given)


@pytest.fixture
def make_office(tmp_path, monkeypatch, box):
    """An office over a project with some images, uploaded or in a storage; eight x, four Y predicted in each."""
    monkeypatch.chdir(tmp_path)
    stores = []

    def make(
        config=CONFIG, images=("a.png", "b.png"), broken=(), categories=("x", "Y"), masks=12, storage=""
    ) -> Office:
        gateway = FakeGateway()
        project = gateway.create_project("cells", config, "", {}).id
        files = [(name, b"no image" if name in broken else png()) for name in images]
        urls = [storage + name for name in images] if storage else gateway.upload(project, files)
        gateway.files.update(zip(urls, (content for _, content in files), strict=True))
        gateway.import_tasks(project, [{"data": {"image": url}} for url in urls])
        coco = {
            "images": [{"id": number, "file_name": name} for number, name in enumerate(images, 1)],
            "categories": [{"id": number, "name": name} for number, name in enumerate(categories, 1)],
        }
        results = []
        for number in range(1, len(images) + 1):
            for place in range(masks):
                rle = box(place % 4 * 8 + 1, place // 4 * 8 + 1, 5, 5)
                results.append(
                    {
                        "image_id": number,
                        "category_id": 1 + (place >= 8),
                        "score": 0.9 - place / 100,
                        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
                    }
                )
        Path("coco.json").write_text(json.dumps(coco))
        Path("predictions.json").write_text(json.dumps(results))
        settings = load_settings(
            data_dir=tmp_path / "data",
            segmenter={
                "name": "precomputed",
                "predictions": tmp_path / "predictions.json",
                "images": tmp_path / "coco.json",
            },
            strategy=STRATEGY,
            least_seconds=0.0,
        )
        stores.append(Store(settings.store_url))
        return Office(gateway, stores[-1], settings, project)

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def office(make_office):
    return make_office()
