"""The ML backend's answers: those of the protocol, and those to what it cannot use."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import PIL.Image
import pytest
from flask.testing import FlaskClient
from pycocotools import mask as coco

from ml_backend import reading, server
from ml_backend.reading import IMAGES_AT_ONCE
from ml_backend.segmenters.base import Image
from ml_backend.server import create_app
from plugin.label_studio.regions import mask_of, rle_of
from propagation.errors import ImageError, Unreachable
from propagation.masks import Detections, mask_id
from propagation.rle import decode

CONFIG = """
<View>
  <Image name="picture" value="$photo"/>
  <PolygonLabels name="outline" toName="picture"><Label value="cell"/></PolygonLabels>
</View>
"""
HEIGHT, WIDTH = 20, 30


class Bars:
    """A bar in every image; two of them where the image is bright, none where it is black."""

    categories = ("cell",)

    def segment(self, images: Sequence[Image]) -> Sequence[Detections]:
        return [self._one(image) for image in images]

    def _one(self, image: Image) -> Detections:
        count = int(image.pixels[0, 0, 0]) // 100
        rles = []
        for number in range(count):
            mask = np.zeros(image.pixels.shape[:2], np.uint8, order="F")
            mask[5:10, 10 * number : 10 * number + 8] = 1
            rles.append(coco.encode(mask))
        scores = np.array([0.5, 0.25][:count], np.float32)
        return Detections(rles, scores, np.zeros(count, np.int64))


def read(location: str) -> bytes:
    levels = {"/black.png": 0, "/grey.png": 100, "/white.png": 200}
    path = location.split("?")[0]
    if path not in levels:
        raise ImageError(f"image {location!r} cannot be read")
    return png(levels[path])


def bars(location: str) -> Sequence[Any]:
    with PIL.Image.open(io.BytesIO(read(location))) as picture:
        return Bars().segment([Image(location, np.asarray(picture))])[0].rles


@cache
def png(level: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((HEIGHT, WIDTH, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def backend(
    password: str | None = None,
    names: dict[str, str] | None = None,
    train: Callable[[int | None], str] | None = None,
) -> FlaskClient:
    return create_app(lambda: (Bars(), "bars-1"), read, names or {}, password, train).test_client()


@pytest.fixture
def client() -> FlaskClient:
    return backend()


def request(*photos: Any, config: str = CONFIG) -> dict[str, Any]:
    tasks = [{"id": number, "data": {"photo": photo}} for number, photo in enumerate(photos)]
    return {"tasks": tasks, "project": "7.1700000000", "label_config": config, "params": {"context": None}}


def test_the_backend_says_that_it_is_up(client: FlaskClient) -> None:
    for path in ("/health", "/"):
        assert client.get(path).get_json() == {"status": "UP", "model_class": "Bars"}


def test_a_project_is_set_up_with_the_models_version(client: FlaskClient) -> None:
    body = {"project": "7.1700000000", "schema": CONFIG, "hostname": "http://a", "access_token": "t"}
    assert client.post("/setup", json=body).get_json() == {"model_version": "bars-1"}
    assert client.get("/versions").get_json() == {"versions": ["bars-1"]}


@pytest.mark.parametrize("action", ["START_TRAINING", "ANNOTATION_CREATED", None])
def test_events_are_acknowledged_and_so_is_the_wish_to_train_what_does_not_learn(
    client: FlaskClient, action: str | None
) -> None:
    answer = client.post("/webhook", json={"action": action})
    assert (answer.status_code, answer.get_json()) == (200, {"status": "ignored"})


def test_a_training_is_started_by_who_may_and_by_no_event() -> None:
    asked: list[int | None] = []

    def train(project: int | None) -> str:
        asked.append(project)
        return "training started"

    guarded, open_ = backend("secret", train=train), backend(train=train)
    wish = {"action": "START_TRAINING", "project": {"id": 7, "title": "cells"}}
    mine = {"Authorization": "Basic " + base64.b64encode(b"anyone:secret").decode()}
    for event in (
        {"action": "ANNOTATION_CREATED", "project": {"id": 7}},
        {"action": ["START_TRAINING"]},
        [wish],
        3,
    ):
        assert guarded.post("/webhook", json=event).get_json() == {"status": "ignored"}
    assert guarded.post("/webhook", json=wish).status_code == 401
    assert open_.post("/webhook", json=wish, headers={"Host": "evil.example"}).status_code == 421
    assert open_.post("/webhook", data=json.dumps(wish), content_type="text/plain").get_json() == {
        "status": "ignored"
    }
    assert asked == []
    assert guarded.post("/webhook", json=wish, headers=mine).get_json() == {"status": "training started"}
    for project in (7, "7", None, {"id": "7"}, {"id": [7]}):
        assert open_.post("/webhook", json={"action": "START_TRAINING", "project": project}).status_code == 200
    assert asked == [7, None, None, None, None, None]


def test_a_newer_model_answers_from_the_next_request_on() -> None:
    versions = ["bars-1"]
    client = create_app(lambda: (Bars(), versions[-1]), read, {}).test_client()
    assert client.get("/versions").get_json() == {"versions": ["bars-1"]}
    versions.append("bars-2")
    assert client.get("/versions").get_json() == {"versions": ["bars-2"]}
    [result] = client.post("/predict", json=request("/grey.png")).get_json()["results"]
    assert result["model_version"] == "bars-2"


def test_every_task_gets_one_result_in_order(client: FlaskClient) -> None:
    answer = client.post("/predict", json=request("/white.png", "/black.png", "/grey.png?signature=1"))
    results = answer.get_json()["results"]
    assert [len(result["result"]) for result in results] == [2, 0, 1]
    assert [result["score"] for result in results] == [0.375, 0.0, 0.5]
    assert {result["model_version"] for result in results} == {"bars-1"}


def test_a_mask_comes_as_regions_that_cover_it(client: FlaskClient) -> None:
    [result] = client.post("/predict", json=request("/grey.png?signature=1")).get_json()["results"]
    (region,) = result["result"]
    assert (region["from_name"], region["to_name"]) == ("outline", "picture")
    assert region["value"]["polygonlabels"] == ["cell"]
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[5:10, :8] = True
    np.testing.assert_array_equal(decode(rle_of([region])), expected)
    assert mask_of(region) == mask_id("/grey.png", "cell", coco.encode(np.asfortranarray(expected, np.uint8)))


def test_the_masks_of_a_request_are_each_of_their_own_image(client: FlaskClient) -> None:
    photos = ["/white.png", "/gone.png", "/grey.png", "/black.png"] * 10
    results = client.post("/predict", json=request(*photos)).get_json()["results"]
    for photo, result in zip(photos, results, strict=True):
        own = [] if photo == "/gone.png" else bars(photo)
        assert [mask_of(region) for region in result["result"]] == [mask_id(photo, "cell", rle) for rle in own]
        for region, rle in zip(result["result"], own, strict=True):
            np.testing.assert_array_equal(decode(rle_of([region])), decode(rle))


@pytest.mark.parametrize("data", [{}, {"photo": None}, {"photo": ""}, {"photo": 3}, {"photo": ["/a.png"]}, None])
def test_a_task_without_an_image_gets_an_empty_result_in_its_place(client: FlaskClient, data: Any) -> None:
    body = request("/grey.png", "…", "/white.png")
    body["tasks"][1]["data"] = data
    results = client.post("/predict", json=body).get_json()["results"]
    assert [len(result["result"]) for result in results] == [1, 0, 2]


def test_no_tasks_give_no_results(client: FlaskClient) -> None:
    assert client.post("/predict", json=request()).get_json() == {"results": []}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'{"tasks": []}',
        b'{"label_config": "<View/>"}',
        b'{"tasks": {}, "label_config": "<View/>"}',
        b"[" * 100_000,
        b'{"tasks":' * 20_000,
        b'{"tasks": [], "label_config": ' + b"9" * 10_000,
        b'{"tasks": [{"data": "\xff\xfe"}]}',
        b"NaN",
    ],
)
def test_a_body_that_is_no_request_is_refused_in_words(client: FlaskClient, body: bytes) -> None:
    answer = client.post("/predict", data=body, content_type="application/json")
    assert answer.status_code == 400
    assert "send JSON with tasks (a list) and label_config" in answer.get_json()["error"]


@pytest.mark.parametrize("tasks", [[3], [None], [{"data": 3}], ["a"]])
def test_tasks_that_are_none_are_refused_in_words(client: FlaskClient, tasks: list[Any]) -> None:
    answer = client.post("/predict", json=request() | {"tasks": tasks})
    assert answer.status_code == 400
    assert "tasks" in answer.get_json()["error"]


LAUGHS = '<!DOCTYPE View [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><View>&b;</View>'
READS = '<!DOCTYPE View [<!ENTITY x SYSTEM "file:///etc/passwd">]><View>&x;</View>'


@pytest.mark.parametrize(
    "config", [None, 3, "<View", "<View/>", [], {}, "\ud800", LAUGHS, READS, "<View>" * 10_000, "x" * 2_000_000]
)
def test_a_labeling_config_that_cannot_be_used_is_refused_in_words(client: FlaskClient, config: Any) -> None:
    answer = client.post("/predict", json=request("/grey.png", config=config))
    assert answer.status_code == 400
    assert "labeling config" in answer.get_json()["error"]
    assert "root:" not in answer.get_data(as_text=True)
    assert len(answer.data) < 3000


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_answered(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    results = client.post("/predict", json=request("/missing.png", "/grey.png")).get_json()["results"]
    assert results[0]["result"] == []
    assert results[1]["result"]
    assert "/missing.png" in caplog.text


def test_a_category_without_a_label_is_named(client: FlaskClient) -> None:
    answer = client.post("/predict", json=request("/grey.png", config=CONFIG.replace('"cell"', '"Zelle"')))
    assert answer.status_code == 400
    assert "no label for the predicted category 'cell'" in answer.get_json()["error"]


def test_a_category_may_be_written_as_another_label() -> None:
    body = request("/grey.png", config=CONFIG.replace('"cell"', '"Zelle"'))
    [result] = backend(names={"cell": "Zelle"}).post("/predict", json=body).get_json()["results"]
    assert result["result"][0]["value"]["polygonlabels"] == ["Zelle"]


CALLS = [("post", "/predict"), ("post", "/setup"), ("get", "/versions")]


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize("auth", [None, ("user", ""), ("user", "wrong"), ("geheim", "user")])
def test_nobody_is_let_in_without_the_password(method: str, path: str, auth: tuple[str, str] | None) -> None:
    answer = backend("geheim").open(path, method=method.upper(), json=request("/grey.png"), auth=auth)
    assert answer.status_code == 401
    assert "password" in answer.get_data(as_text=True)
    assert "geheim" not in answer.get_data(as_text=True)
    assert answer.headers["WWW-Authenticate"].startswith("Basic")


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize("password", ["geheim", "schlüssel: ☃"])
def test_the_password_lets_in_as_any_user(method: str, path: str, password: str) -> None:
    answer = backend(password).open(path, method=method.upper(), json=request("/grey.png"), auth=("any", password))
    assert answer.status_code == 200


def test_the_password_may_come_in_latin_1_as_label_studio_sends_it() -> None:
    sent = base64.b64encode("any:größe".encode("latin-1")).decode()
    answer = backend("größe").get("/versions", headers={"Authorization": f"Basic {sent}"})
    assert answer.status_code == 200


@pytest.mark.parametrize("header", ["Basic", "Basic !", "Basic é", "Basic Z2VoZWlt", "", "Basic a b"])
def test_a_broken_header_is_not_a_password(header: str) -> None:
    assert backend("geheim").get("/versions", headers={"Authorization": header}).status_code == 401


def test_another_kind_of_credentials_is_not_a_password() -> None:
    answer = backend("geheim").get("/versions", headers={"Authorization": "Bearer geheim"})
    assert answer.status_code == 401


def test_health_and_events_need_no_password() -> None:
    client = backend("geheim")
    assert client.get("/health").status_code == 200
    assert client.post("/webhook", json={}).status_code == 200


@pytest.mark.parametrize(
    "project", [None, [], [[[]]], {"id": 1}, "p" * 1_000_000, 10**300, float("nan"), "\ud800"]
)
def test_a_project_of_any_kind_is_named_briefly(client: FlaskClient, project: Any) -> None:
    answer = client.post("/predict", json=request("/grey.png", config="<View/>") | {"project": project})
    assert answer.status_code == 400
    assert len(answer.data) < 3000


def test_a_long_error_is_cut(client: FlaskClient) -> None:
    labels = "".join(f'<Label value="{number}"/>' for number in range(20_000))
    answer = client.post("/predict", json=request(config=CONFIG.replace('<Label value="cell"/>', labels)))
    assert answer.status_code == 400
    assert "no label for the predicted category 'cell'" in answer.get_json()["error"]
    assert len(answer.data) < 3000


HOSTILE = ["\ud800", "http://[", "/\0", "a" * 1_000_000, "javascript:alert(1)", "file:///etc/passwd", "\u202e\r\n"]


@pytest.mark.parametrize("location", HOSTILE)
def test_a_hostile_location_gets_an_empty_result(client: FlaskClient, location: str) -> None:
    results = client.post("/predict", json=request(location, "/grey.png")).get_json()["results"]
    assert [len(result["result"]) for result in results] == [0, 1]


def test_a_label_studio_that_does_not_answer_is_said_as_such() -> None:
    def unreachable(location: str) -> np.ndarray[Any, Any]:
        raise Unreachable(f"image {location!r} cannot be read from a; run the command again when it answers")

    answer = (
        create_app(lambda: (Bars(), "bars-1"), unreachable, {})
        .test_client()
        .post("/predict", json=request("/grey.png"))
    )
    assert answer.status_code == 503
    assert "cannot be read" in answer.get_json()["error"]


def test_a_model_that_fails_says_nothing_of_its_inside() -> None:
    class Broken(Bars):
        def segment(self, images: Sequence[Image]) -> Sequence[Detections]:
            raise RuntimeError("weights at /srv/geheim")

    answer = (
        create_app(lambda: (Broken(), "bars-1"), read, {})
        .test_client()
        .post("/predict", json=request("/grey.png"))
    )
    assert answer.status_code == 500
    assert answer.get_json() == {"error": "this failed here; the server's log says why"}


def test_a_body_that_is_too_large_is_refused(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LARGEST", 1000)
    answer = backend().post("/predict", json=request("/grey.png", config="x" * 1000))
    assert answer.status_code == 413


@pytest.mark.parametrize("largest", [10 * HEIGHT * WIDTH, 1])
def test_only_some_images_are_in_memory_at_once(monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    sizes: list[int] = []

    class Counting(Bars):
        def segment(self, images: Sequence[Image]) -> Sequence[Detections]:
            sizes.append(len(images))
            return super().segment(images)

    monkeypatch.setattr(reading, "PIXELS_AT_ONCE", largest)
    photos = ["/grey.png", "/missing.png", "/white.png"] * 20
    app = create_app(lambda: (Counting(), "bars-1"), read, {})
    results = app.test_client().post("/predict", json=request(*photos)).get_json()["results"]
    assert [len(result["result"]) for result in results] == [1, 0, 2] * 20
    assert sum(sizes) == 40
    assert max(sizes) == (10 if largest > 1 else 1)


@pytest.mark.parametrize("host", ["evil.example:9090", "[::2]", ""])
def test_without_a_password_only_loopback_names_are_answered(client: FlaskClient, host: str) -> None:
    assert client.post("/predict", json=request("/grey.png"), headers={"Host": host}).status_code == 421
    assert client.get("/health", headers={"Host": host}).status_code == 200


def test_the_description_names_every_address(client: FlaskClient) -> None:
    routes = {rule.rule for rule in client.application.url_map.iter_rules()}
    assert set(client.get("/openapi.json").get_json()["paths"]) == routes


@pytest.mark.parametrize("seconds", [60.0, -1.0])
def test_where_time_is_short_the_tasks_are_asked_for_one_by_one(seconds: float) -> None:
    asked: list[str] = []

    def reading(location: str) -> bytes:
        asked.append(location)
        return read(location)

    client = create_app(lambda: (Bars(), "bars-1"), reading, {}, None, None, seconds).test_client()
    photos = ["/grey.png", "/white.png", "/black.png"] * 20
    answer = client.post("/predict", json=request(*photos)).get_json()["results"]
    assert len(answer) == (1 if seconds < 0 else len(photos))
    assert len(asked) <= 3 * IMAGES_AT_ONCE if seconds < 0 else len(asked) == len(photos)
    before = len(asked)
    alone = [client.post("/predict", json=request(photo)).get_json()["results"] for photo in photos[:3]]
    assert [len(one["result"]) for (one,) in alone] == [1, 2, 0]
    assert alone[0] == answer[:1]
    assert len(asked) - before == (0 if seconds < 0 else 3)  # what was found before is not looked for again


def test_a_storages_image_is_read_where_label_studio_leads_to_it() -> None:
    asked: list[str] = []

    def reading(location: str) -> bytes:
        asked.append(location)
        return read("/grey.png")

    body = request("s3://bucket/a.png", "/grey.png")
    body["tasks"][0]["id"] = 17
    create_app(lambda: (Bars(), "bars-1"), reading, {}).test_client().post("/predict", json=body)
    assert asked == ["/tasks/17/resolve/?fileuri=czM6Ly9idWNrZXQvYS5wbmc=", "/grey.png"]
