"""The ML backend, connected to a real Label Studio as an annotator's lead would do it."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx
import numpy as np
import PIL.Image
import pytest
import waitress
from pycocotools import mask as coco

from ls_propagate.demo.server import Server
from ml_backend.reading import IMAGES_AT_ONCE
from ml_backend.segmenters.base import Image
from ml_backend.server import IN_TIME, create_app
from plugin.label_studio.gateway import LabelStudioGateway
from plugin.label_studio.regions import rle_of
from propagation.errors import ImageError
from propagation.masks import Detections
from sync.source import pool

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <PolygonLabels name="label" toName="image"><Label value="cell"/></PolygonLabels>
</View>
"""
PASSWORD = "a password: größe"
VERSION = "bright-1"


class Bright:
    """What is bright is a cell, found in some seconds an image."""

    categories = ("cell",)

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.calls: list[int] = []

    def segment(self, images: Sequence[Image]) -> Sequence[Detections]:
        self.calls.append(len(images))
        time.sleep(self.seconds * len(images))
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
    gateway: LabelStudioGateway,
    password: str | None,
    segmenter: Bright | None = None,
    seconds: float = IN_TIME,
    asked: list[int | None] | None = None,
) -> Iterator[str]:
    """The backend on a free port of loopback; its address. asked: takes the projects that wish for a training."""

    def train(project: int | None) -> str:
        assert asked is not None
        asked.append(project)
        return "training started"

    @cache
    def file(location: str) -> bytes:
        return gateway.read_file(location)

    def read(location: str) -> bytes:
        return file(location.partition("?again")[0])

    model = segmenter or Bright(), VERSION
    app = create_app(lambda: model, read, {}, password, train, seconds)
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


def retrieve(api: httpx.Client, project: int) -> None:
    """The action "Retrieve Predictions" for all tasks."""
    selected = {"selectedItems": {"all": True, "excluded": []}}
    action = {"id": "retrieve_tasks_predictions", "project": project}
    api.post("dm/actions", params=action, json=selected, timeout=300).raise_for_status()


@pytest.mark.parametrize("password", [None, PASSWORD], ids=["open", "password"])
def test_label_studio_gets_predictions_of_all_its_tasks(
    api: httpx.Client, real_gateway: LabelStudioGateway, project: int, password: str | None
) -> None:
    asked: list[int | None] = []
    with serving(real_gateway, password, asked=asked) as url:
        made = connect(api, project, url, **(with_password(password) if password else {}))
        made.raise_for_status()
        (backend,) = api.get("ml", params={"project": project}).raise_for_status().json()
        assert backend["state"] == "CO"
        assert backend["model_version"] == VERSION
        assert api.get(f"ml/{backend['id']}/versions").json()["versions"] == [VERSION]
        api.post(f"ml/{backend['id']}/train").raise_for_status()  # what its Start Training does
        assert asked == [project]

        for _ in range(2):
            retrieve(api, project)

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


MANY = 270


@pytest.mark.parametrize("in_time", [True, False])
def test_of_many_tasks_each_gets_its_prediction_in_time_or_piece_by_piece(
    api: httpx.Client, real_gateway: LabelStudioGateway, in_time: bool
) -> None:
    project = real_gateway.create_project("contract: many tasks", CONFIG, "", {}).id
    (url,) = real_gateway.upload(project, [("a.png", picture(4))])
    real_gateway.import_tasks(project, [{"data": {"image": f"{url}?again={n}"}} for n in range(MANY)])
    segmenter = Bright(0.002)
    with serving(real_gateway, None, segmenter, IN_TIME if in_time else 0.3) as address:
        connect(api, project, address).raise_for_status()
        retrieve(api, project)
    tasks = list(real_gateway.tasks(project, ["predictions", "result"]))
    assert [len(task["predictions"]) for task in tasks] == [1] * MANY
    assert all(len(task["predictions"][0]["result"]) == 1 for task in tasks)
    assert sum(segmenter.calls) == MANY  # none was looked at twice
    assert (1 in segmenter.calls) is not in_time
    assert segmenter.calls[0] == IMAGES_AT_ONCE


@contextmanager
def storage(objects: dict[str, bytes]) -> Iterator[str]:
    """A stand-in for S3 with one bucket of objects; its address."""

    class Bucket(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(b"")

        def do_GET(self) -> None:
            key = unquote(urlsplit(self.path).path).removeprefix("/bucket").strip("/")
            if not key:
                listed = "".join(
                    f"<Contents><Key>{name}</Key><Size>{len(content)}</Size>"
                    "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                    for name, content in objects.items()
                )
                self.answer(f"<ListBucketResult><Name>bucket</Name>{listed}</ListBucketResult>".encode())
            elif "Signature" not in self.path and "Signature" not in self.headers.get("Authorization", ""):
                self.answer(b"not signed", 403)
            else:
                self.answer(objects.get(key, b"none"), 200 if key in objects else 404)

        def answer(self, content: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/xml" if content[:1] == b"<" else "image/png")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *told: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("presign", [True, False], ids=["led elsewhere", "by the server"])
def test_images_of_a_storage_are_known_and_read(
    api: httpx.Client, label_studio: Server, real_gateway: LabelStudioGateway, presign: bool
) -> None:
    objects = {"set/train/größe 1.png": picture(4), "set/val/größe 1.png": picture(30)}
    with storage(objects) as endpoint:
        project = real_gateway.create_project("contract: a storage", CONFIG, "", {}).id
        made = {
            "project": project,
            "bucket": "bucket",
            "use_blob_urls": True,
            "presign": presign,
            "aws_access_key_id": "key",
            "aws_secret_access_key": "secret",
            "region_name": "eu-west-1",
            "s3_endpoint": endpoint,
        }
        number = api.post("storages/s3", json=made).raise_for_status().json()["id"]
        state = api.post(f"storages/s3/{number}/sync").raise_for_status().json()
        while state["status"] not in ("completed", "failed"):
            state = api.get(f"storages/s3/{number}").raise_for_status().json()
        tasks = pool(real_gateway, project, "image")
        assert sorted(task.image for task in tasks) == [f"s3://bucket/{name}" for name in objects]
        contents = {f"s3://bucket/{name}": content for name, content in objects.items()}
        host = urlsplit(endpoint).netloc
        if presign:
            with pytest.raises(ImageError, match=f"its host {host} is not trusted; add it to image_hosts"):
                real_gateway.read_file(tasks[0].location)
        with closing(LabelStudioGateway(label_studio.url, label_studio.token, [host])) as trusting:
            reading = trusting if presign else real_gateway
            for task in tasks:
                assert reading.read_file(task.location) == contents[task.image]
            with pytest.raises(ImageError, match=r"image 's3://bucket/none\.png'"):
                reading.read_file(tasks[0].location.partition("=")[0] + "=" + quote("s3://bucket/none.png"))
            with serving(reading, None) as address:
                connect(api, project, address).raise_for_status()
                retrieve(api, project)
    found = list(real_gateway.tasks(project, ["predictions", "result"]))
    assert [len(task["predictions"][0]["result"]) for task in found] == [1, 1]
