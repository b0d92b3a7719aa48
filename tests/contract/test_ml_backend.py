"""The ML backend, connected to a real Label Studio as an annotator's lead would do it."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
import waitress
from pycocotools import mask as coco

from ls_propagate.demo.server import Server
from ml_backend.segmenters.base import Image
from ml_backend.server import create_app
from plugin.label_studio.gateway import LabelStudioGateway
from plugin.label_studio.images import decode
from plugin.label_studio.regions import rle_of
from propagation.masks import Detections

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <PolygonLabels name="label" toName="image"><Label value="cell"/></PolygonLabels>
</View>
"""
PASSWORD = "a password: größe"
VERSION = "bright-1"


class Bright:
    """What is bright is a cell."""

    categories = ("cell",)

    def segment(self, images: Sequence[Image]) -> Sequence[Detections]:
        return [self._one(image.pixels) for image in images]

    def _one(self, pixels: np.ndarray[Any, Any]) -> Detections:
        rle = coco.encode(np.asfortranarray(pixels[:, :, 0] > 128, np.uint8))
        count = int(coco.area(rle) > 0)
        return Detections([rle] * count, np.full(count, 0.75, np.float32), np.zeros(count, np.int64))


def picture(left: int) -> bytes:
    """A PNG with a bright block at ``left``; beyond 50 there is none."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:20, left : left + 8] = 255 if left < 50 else 0
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@contextmanager
def serving(
    gateway: LabelStudioGateway, password: str | None, asked: list[int | None] | None = None
) -> Iterator[str]:
    """The backend on a free port of loopback; its address. asked: takes the projects that wish for a training."""

    def train(project: int | None) -> str:
        assert asked is not None
        asked.append(project)
        return "training started"

    def read(location: str) -> np.ndarray[Any, Any]:
        return decode(location, gateway.read_file(location))

    app = create_app(lambda: (Bright(), VERSION), read, {}, password, train)
    sockets: dict[Any, Any] = {}
    server = waitress.create_server(app, host="127.0.0.1", port=0, map=sockets)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.effective_port}"
    finally:
        server.trigger.pull_trigger(lambda: stop(server, sockets))
        thread.join()


def stop(server: Any, sockets: dict[Any, Any]) -> None:
    server.task_dispatcher.shutdown()
    for one in list(sockets.values()):
        one.close()


@pytest.fixture
def api(label_studio: Server) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Token {label_studio.token}"}
    with httpx.Client(base_url=f"{label_studio.url}/api/", headers=headers, timeout=60) as api:
        yield api


@pytest.fixture
def project(real_gateway: LabelStudioGateway) -> int:
    """Three images, the last one without a cell."""
    made = real_gateway.create_project("contract: ML backend", CONFIG, "", {}).id
    urls = real_gateway.upload(made, [(f"{left}.png", picture(left)) for left in (4, 30, 50)])
    real_gateway.import_tasks(made, [{"data": {"image": url}} for url in urls])
    return made


def connect(api: httpx.Client, project: int, url: str, **more: str) -> httpx.Response:
    return api.post("ml/", json={"project": project, "url": url, "title": "propagate", **more})


def with_password(password: str) -> dict[str, str]:
    return {"auth_method": "BASIC_AUTH", "basic_auth_user": "label-studio", "basic_auth_pass": password}


@pytest.mark.parametrize("password", [None, PASSWORD], ids=["open", "password"])
def test_label_studio_gets_predictions_of_all_its_tasks(
    api: httpx.Client, real_gateway: LabelStudioGateway, project: int, password: str | None
) -> None:
    asked: list[int | None] = []
    with serving(real_gateway, password, asked) as url:
        made = connect(api, project, url, **(with_password(password) if password else {}))
        made.raise_for_status()
        (backend,) = api.get("ml", params={"project": project}).raise_for_status().json()
        assert backend["state"] == "CO"
        assert backend["model_version"] == VERSION
        assert api.get(f"ml/{backend['id']}/versions").json()["versions"] == [VERSION]
        api.post(f"ml/{backend['id']}/train").raise_for_status()  # what its Start Training does
        assert asked == [project]

        selected = {"selectedItems": {"all": True, "excluded": []}}
        action = {"id": "retrieve_tasks_predictions", "project": project}
        for _ in range(2):
            api.post("dm/actions", params=action, json=selected).raise_for_status()

    tasks = list(real_gateway.tasks(project, ["predictions", "result", "model_version", "score"]))
    assert [len(task["predictions"]) for task in tasks] == [1, 1, 1]
    predictions = [task["predictions"][0] for task in tasks]
    assert {prediction["model_version"] for prediction in predictions} == {VERSION}
    assert [len(prediction["result"]) for prediction in predictions] == [1, 1, 0]
    assert predictions[0]["score"] == 0.75
    boxes = [coco.toBbox(rle_of(prediction["result"])).tolist() for prediction in predictions[:2]]
    assert boxes == [[4, 10, 8, 10], [30, 10, 8, 10]]
    assert predictions[0]["result"][0]["value"]["polygonlabels"] == ["cell"]


@pytest.mark.parametrize("given", [{}, with_password("wrong")], ids=["none", "wrong"])
def test_label_studio_is_not_let_in_without_the_password(
    api: httpx.Client, real_gateway: LabelStudioGateway, project: int, given: dict[str, str]
) -> None:
    with serving(real_gateway, PASSWORD) as url:
        answer = connect(api, project, url, **given)
        assert answer.status_code == 400
        assert api.get("ml", params={"project": project}).json() == []
