"""Both servers against requests made from their own descriptions, and against those that keep to none.

LS_PROPAGATE_SOAK=1 sends thousands of them, other ones each time.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from pycocotools import mask as coco
from schemathesis.checks import CheckFunction
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks
from werkzeug.datastructures import Authorization
from werkzeug.test import Client

import ml_backend.server
import sync.server
from ml_backend.segmenters.base import Image
from plugin.label_studio.fake import FakeGateway
from propagation.calibrated import CalibratedStrategy
from propagation.campaign import Campaign
from propagation.errors import StoreError, Unreachable
from propagation.masks import Detections, build_table
from propagation.progress import History, Terms
from sync.board import Board, Place
from sync.monitor import Monitor
from sync.server import SECRET_HEADER
from sync.store import Hint

SOAK = bool(os.environ.get("LS_PROPAGATE_SOAK"))
REQUESTS = 5000 if SOAK else 300
SECRET, PASSWORD = "geheim-8c1f5e", "geheim-77a0b2"
CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<PolygonLabels name="label" toName="image"><Label value="cell"/></PolygonLabels></View>'
)
CONFORM: list[CheckFunction] = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]
SETTINGS = settings(
    max_examples=REQUESTS,
    derandomize=not SOAK,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink] if SOAK else [Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Bright:
    """What is bright is a cell."""

    categories = ("cell",)

    def segment(self, images: Sequence[Image]) -> Sequence[Detections]:
        return [self._one(image.pixels) for image in images]

    def _one(self, pixels: np.ndarray[Any, Any]) -> Detections:
        rle = coco.encode(np.asfortranarray(pixels[:, :, 0] > 128, np.uint8))
        count = int(coco.area(rle) > 0)
        return Detections([rle] * count, np.full(count, 0.75, np.float32), np.zeros(count, np.int64))


class Inbox:
    """A store's inbox that now and then cannot be written."""

    def __init__(self) -> None:
        self.noticed = 0

    def notice(self, hint: Hint) -> None:
        self.noticed += 1
        if self.noticed % 7 == 0:
            raise StoreError("the store failed; see to it")


def picture() -> bytes:
    pixels = np.zeros((12, 16, 3), np.uint8)
    pixels[3:8, 4:9] = 255
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def daemon() -> Flask:
    monitor = Monitor()
    monitor.began()
    board = Board(Terms())
    history = History(Campaign(build_table([], [], ["cell"], "bright-1"), [], CalibratedStrategy()))
    board.look(history, lambda: Place("http://labels", 1, "cells", 2, {}, {}))
    return sync.server.create_app(Inbox(), monitor, lambda: None, SECRET, PASSWORD, board)


def backend() -> Flask:
    gateway = FakeGateway()
    gateway.files.update({"/good.png": picture(), "/cut.png": picture()[:60], "/text.png": b"<html>"})

    def read(location: str) -> bytes:
        if location == "/away.png":
            raise Unreachable("Label Studio does not answer; start it")
        return gateway.read_file(location)

    return ml_backend.server.create_app(lambda: (Bright(), "bright-1"), read, {}, PASSWORD)


MAKES = {"daemon": daemon, "backend": backend}
OPEN = {"/health", "/health/live", "/health/ready"}


class Watch(logging.Handler):
    """Everything that a server let out: its answers counted, its logs kept."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: Counter[tuple[str, int]] = Counter()
        self.logs: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.logs.append(self.format(record))

    def see(self, path: str, status: int, headers: Any, content: bytes) -> None:
        """Count an answer, and look through it."""
        self.answers[path, status] += 1
        assert status < 500 or status == 503, f"{path} answers {status}: {content!r}"
        check_out(f"{headers}{content!r}")
        assert "nosniff" in str(headers)
        if status >= 400 and status != 503:
            assert list(json.loads(content)) == ["error"]

    def statuses(self) -> set[int]:
        return {status for _, status in self.answers}

    def tell(self) -> str:
        """What was answered how often."""
        seen = Counter(status for _, status in self.answers.elements())
        return f"{sum(seen.values())} requests: " + ", ".join(
            f"{n} x {status}" for status, n in sorted(seen.items())
        )


def check_out(text: str) -> None:
    """No secret, trace or path of this machine is let out."""
    for word in (SECRET, PASSWORD, "Traceback", str(Path(sync.server.__file__).parents[1])):
        assert word not in text


@pytest.fixture
def watch() -> Any:
    watch = Watch()
    logging.getLogger().addHandler(watch)
    yield watch
    logging.getLogger().removeHandler(watch)
    check_out("\n".join(watch.logs))


def credentials() -> dict[str, str]:
    basic = Authorization("basic", {"username": "any", "password": PASSWORD}).to_header()
    return {"Authorization": basic, SECRET_HEADER: SECRET}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_every_answer_is_one_that_the_description_promises(make: Callable[[], Flask], watch: Watch) -> None:
    app = make()
    schema = schemathesis.openapi.from_wsgi("/openapi.json", app, headers=credentials())
    operations = [found.ok() for found in schema.get_all_operations()]
    cases = st.one_of([operation.as_strategy(mode) for operation in operations for mode in GenerationMode])

    @SETTINGS
    @given(case=cases, known=st.booleans())
    def send(case: schemathesis.Case, known: bool) -> None:
        answer = case.call(headers=credentials() if known else {})
        watch.see(case.path, answer.status_code, answer.headers, answer.content)
        case.validate_response(answer, checks=CONFORM)
        if not known and case.path not in OPEN:
            refused = 403 if make is daemon else 200
            assert answer.status_code == (refused if case.path == "/webhook" else 401)

    send()
    print(watch.tell())
    assert {200, 401} <= watch.statuses()
    assert {path for path, _ in watch.answers} == {operation.path for operation in operations}


texts = st.text() | st.text(st.characters(categories=["Cs", "Cc", "Cf"]), max_size=5)
odd = st.sampled_from(
    [float("nan"), float("inf"), 10**400, -(2**63), True, "\ud800", "\0", "\u202e", {}, [], None]
)
values = st.recursive(
    odd | texts | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.just("id"), inner, max_size=4),
    max_leaves=8,
)


def often(usual: st.SearchStrategy[Any], seldom: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Three times of four the usual."""
    return st.sampled_from([usual, usual, usual, seldom]).flatmap(lambda chosen: chosen)


files = st.sampled_from(["/good.png", "/cut.png", "/text.png", "/away.png", "http://[", "//x", ""])
bent = st.builds(
    lambda part, other, at: CONFIG.replace(part, other)[:at],
    st.sampled_from(["image", '"$image"', "Polygon", "cell", "</View>", 'toName="image"', "<View>", "value"]),
    texts | st.sampled_from(["Brush", "valueList", "<Image/>", "<!DOCTYPE a>", "&x;", "$", "<!--", "]]>"]),
    st.none() | st.integers(0, len(CONFIG)),
)
tasks = st.fixed_dictionaries({"data": st.fixed_dictionaries({"image": often(files, values)})})
odd_tasks = st.lists(st.fixed_dictionaries({"data": values}) | values, max_size=3) | values
predicts = st.fixed_dictionaries(
    {
        "tasks": often(st.lists(tasks, min_size=1, max_size=3), odd_tasks),
        "label_config": often(st.just(CONFIG), bent | values),
    },
    optional={"project": values},
)
ids = st.fixed_dictionaries({"id": st.integers() | values})
hints = st.fixed_dictionaries(
    {"action": st.sampled_from(["ANNOTATION_CREATED", "TASKS_DELETED", "DROP"]) | values},
    optional={"project": ids | values, "task": ids | values, "tasks": st.lists(ids | values) | values},
)
deep = st.builds(
    lambda part, times: part * times, st.sampled_from([b"[", b'{"a":', b"9", b"("]), st.integers(0, 50_000)
)


def bodies(fitting: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Bodies from those that nearly fit to mere bytes."""
    near = st.builds(lambda value: json.dumps(value).encode(), fitting)
    cut = st.builds(lambda body, at: body[:at], near, st.integers(0, 300))
    raw = st.builds(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"), values)
    return often(near, st.one_of(cut, raw, st.binary(max_size=200), deep))


paths = st.sampled_from(
    ["/", "/webhook", "/predict", "/setup", "/versions", "/health", "/health/live", "/health/ready", "/metrics"]
    + ["/openapi.json", "/webhook/", "/../etc/passwd", "/%2e%2e/", "/static/x", "/\ud800", "/a?b=%ff&b[]=1#c"]
)
headers = st.dictionaries(
    st.sampled_from(
        [
            "Content-Type",
            "Content-Encoding",
            "Content-Length",
            "Transfer-Encoding",
            "Accept",
            "Cookie",
            "Host",
            "Range",
        ]
        + ["X-Forwarded-For", "X-Forwarded-Host", "X-HTTP-Method-Override", "If-None-Match", "Origin", "Expect"]
    ),
    st.sampled_from(
        [
            "application/json",
            "application/json; charset=utf-7",
            "multipart/form-data; boundary=",
            "text/plain",
            "gzip",
        ]
        + [
            "-1",
            "0",
            "99999999999999999999",
            "chunked",
            "a" * 9000,
            "=;=",
            "bytes=9-1",
            "localhost",
            "evil.example",
            "[::1",
        ]
    ),
    max_size=4,
)
methods = st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_requests_that_keep_to_nothing_are_answered_in_words(make: Callable[[], Flask], watch: Watch) -> None:
    client = Client(make())
    aimed = st.just(("POST", "/webhook" if make is daemon else "/predict"))
    body = bodies(hints if make is daemon else predicts)
    known = often(st.just(True), st.just(False))

    @SETTINGS
    @given(often(aimed, st.tuples(methods, paths)), often(st.none(), headers), body, known)
    def send(target: tuple[str, str], more: dict[str, str] | None, body: bytes, known: bool) -> None:
        method, path = target
        given_headers = {"Content-Type": "application/json"} if more is None else more
        given_headers |= credentials() if known else {}
        answer = client.open(
            path.encode("utf-8", "replace").decode(), method=method, headers=given_headers, data=body
        )
        if method == "HEAD" or method == "OPTIONS":
            assert answer.status_code < 500 or answer.status_code == 503
        else:
            watch.see(path, answer.status_code, answer.headers, answer.get_data())
        if not known and path not in OPEN | {"/webhook"}:
            assert answer.status_code == 401

    send()
    print(watch.tell())
    assert {200, 401, 404, 405, 503} <= watch.statuses()
