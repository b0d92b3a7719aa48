"""What the gateway sends, and what it says of answers that a healthy Label Studio would not give."""

from __future__ import annotations

import json
import time
import types
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from plugin.label_studio.gateway import LabelStudioGateway
from propagation.errors import ImageError, NotLabelStudio, Refused, ServerError, Unreachable

URL = "http://label-studio.example/labels"
TOKEN = "0123456789abcdef0123456789abcdef01234567"
VERSION = {"label-studio-os-package": {"version": "1.23.2"}}

Answer = httpx.Response | Exception


class Wire:
    """What was sent, and what is answered: the next of some answers, the last one again and again."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.sent: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.sent.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def gateway(self, **options: Any) -> LabelStudioGateway:
        return LabelStudioGateway(URL, TOKEN, transport=httpx.MockTransport(self), **options)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the SDK would have waited between its attempts."""
    seconds: list[float] = []
    clock = types.SimpleNamespace(sleep=seconds.append, time=time.time)
    monkeypatch.setattr("label_studio_sdk.core.http_client.time", clock)
    return seconds


def answer(status: int = 200, **content: Any) -> httpx.Response:
    return httpx.Response(status, **content)


ADDING: dict[str, Callable[[LabelStudioGateway], object]] = {
    "tasks": lambda gateway: gateway.import_tasks(1, [{"data": {}}]),
    "predictions": lambda gateway: gateway.import_predictions(1, [{"task": 1}]),
    "files": lambda gateway: gateway.upload(1, [("a.png", b"a")]),
    "project": lambda gateway: gateway.create_project("a", "<View/>", "", {}),
}
REPEATABLE: dict[str, Callable[[LabelStudioGateway], object]] = {
    "project": lambda gateway: gateway.project(1),
    "tasks": lambda gateway: list(gateway.tasks(1, ["data"])),
    "annotations": lambda gateway: gateway.predictions_to_annotations(1, "v", [1]),
    "update": lambda gateway: gateway.update_annotation(1, []),
}


@pytest.mark.parametrize("failure", [answer(500), answer(503), answer(429), httpx.ConnectError("refused")])
@pytest.mark.parametrize("add", ADDING.values(), ids=ADDING)
def test_what_adds_is_sent_once(add: Callable[[LabelStudioGateway], object], failure: Answer) -> None:
    wire = Wire(failure)
    with pytest.raises(ServerError):
        add(wire.gateway())
    assert [request.method for request in wire.sent] == ["POST"]


@pytest.mark.parametrize("failure", [answer(500), answer(502), httpx.ConnectError("refused")])
@pytest.mark.parametrize("ask", REPEATABLE.values(), ids=REPEATABLE)
def test_what_may_be_repeated_is_sent_again(
    ask: Callable[[LabelStudioGateway], object], failure: Answer, waits: list[float]
) -> None:
    item = {"id": 1, "title": "a", "label_config": "", "tasks": [], "total": 0}
    wire = Wire(failure, failure, answer(json=item))
    ask(wire.gateway())
    assert len(wire.sent) == 3
    assert len({(request.method, str(request.url), request.content) for request in wire.sent}) == 1
    assert len(waits) == 2


def test_a_read_that_keeps_failing_is_given_up() -> None:
    wire = Wire(answer(500, json={"detail": "database is locked"}))
    with pytest.raises(ServerError, match=r"GET api/projects/1/: .* 500 \(database is locked\); .*server's log"):
        wire.gateway().project(1)
    assert len(wire.sent) == 3


@pytest.mark.parametrize("call", [*ADDING.values(), *REPEATABLE.values()])
def test_a_failure_names_the_call_and_what_to_do(call: Callable[[LabelStudioGateway], object]) -> None:
    with pytest.raises(ServerError, match=rf"^(GET|POST|PATCH) api/.*: {URL} answers 500 .*run the command again"):
        call(Wire(answer(500, html="<h1>Server Error</h1>")).gateway())


def test_markup_of_an_error_page_is_not_shown() -> None:
    with pytest.raises(ServerError, match="no reason given") as raised:
        Wire(answer(500, html="<h1>Server Error</h1>")).gateway().project(1)
    assert "<h1>" not in str(raised.value)


def test_a_long_answer_is_shown_in_part() -> None:
    with pytest.raises(ServerError) as raised:
        Wire(answer(400, text="x" * 100_000)).gateway().project(1)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("body", [b'{"id": 1, "tit', b"\xff\xfe\x00", b"<html>login</html>"])
def test_an_answer_that_is_not_json_is_said_to_be_of_another_server(body: bytes) -> None:
    with pytest.raises(NotLabelStudio, match="LABEL_STUDIO_URL"):
        Wire(answer(content=body)).gateway().project(1)


def test_a_connection_that_breaks_off_is_named() -> None:
    with pytest.raises(Unreachable, match=rf"{URL} \(peer closed\); start it, or correct LABEL_STUDIO_URL"):
        Wire(httpx.RemoteProtocolError("peer closed")).gateway().project(1)


def test_a_server_that_is_too_slow_is_named() -> None:
    with pytest.raises(Unreachable, match=r"\(ReadTimeout\)"):
        Wire(httpx.ReadTimeout("")).gateway().project(1)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_names_its_reason_and_not_the_token(status: int) -> None:
    with pytest.raises(Refused, match="User inactive") as raised:
        Wire(answer(status, json={"detail": "User inactive"})).gateway().project(1)
    assert TOKEN not in str(raised.value)


def test_calls_go_below_the_servers_path_with_the_token() -> None:
    wire = Wire(answer(json=VERSION), answer(json={"id": 3, "email": "a@example.com"}))
    wire.gateway().user()
    assert [str(request.url) for request in wire.sent] == [
        f"{URL}/api/version",
        f"{URL}/api/current-user/whoami",
    ]
    assert {request.headers["authorization"] for request in wire.sent} == {f"Token {TOKEN}"}


def test_all_pages_of_projects_are_read() -> None:
    def page(number: int, more: str | None) -> httpx.Response:
        item = {"id": number, "title": f"project {number}", "label_config": "", "description": None}
        return answer(json={"results": [item], "next": more})

    wire = Wire(page(1, "…"), page(2, "…"), page(3, None))
    assert [(project.id, project.description) for project in wire.gateway().projects()] == [
        (1, ""),
        (2, ""),
        (3, ""),
    ]
    assert [request.url.params["page"] for request in wire.sent] == ["1", "2", "3"]


def test_reading_ends_where_tasks_vanish_while_they_are_read() -> None:
    wire = Wire(answer(json={"tasks": [{"id": 1}], "total": 9}), answer(json={"tasks": [], "total": 9}))
    assert [task["id"] for task in wire.gateway().tasks(1, [])] == [1]


@pytest.mark.parametrize("since", ["2026-01-02T03:04:05Z", "2026-01-02T05:04:05.000000+02:00"])
def test_a_time_is_sent_in_the_servers_own_format(since: str) -> None:
    wire = Wire(answer(json={"tasks": [], "total": 0}))
    list(wire.gateway().tasks(1, [], since=since))
    (item,) = json.loads(wire.sent[0].url.params["query"])["filters"]["items"]
    assert item["value"] == "2026-01-02T03:04:05.000000Z"


@pytest.mark.parametrize(
    ("location", "address"),
    [
        ("/data/upload/1/a.png", f"{URL}/data/upload/1/a.png"),
        (f"{URL}/data/upload/1/a.png", f"{URL}/data/upload/1/a.png"),
        ("/data/local-files/?d=a/b%20c.png", f"{URL}/data/local-files/?d=a/b%20c.png"),
    ],
)
def test_the_servers_own_images_are_read_with_the_token(location: str, address: str) -> None:
    wire = Wire(answer(content=b"pixels"))
    assert wire.gateway().read_file(location) == b"pixels"
    assert str(wire.sent[0].url) == address
    assert wire.sent[0].headers["authorization"] == f"Token {TOKEN}"


def test_a_trusted_hosts_images_are_read_without_the_token() -> None:
    wire = Wire(answer(content=b"pixels"))
    gateway = wire.gateway(image_hosts=["images.example:8443"])
    assert gateway.read_file("https://images.example:8443/a.png?signature=x") == b"pixels"
    assert "authorization" not in wire.sent[0].headers


def test_a_trusted_host_does_not_lead_elsewhere() -> None:
    wire = Wire(answer(302, headers={"location": "http://169.254.169.254/"}), answer(content=b"secret"))
    with pytest.raises(ImageError, match=r"images\.example answers 302"):
        wire.gateway(image_hosts=["images.example"]).read_file("https://images.example/a.png")
    assert len(wire.sent) == 1


def test_a_storage_that_the_server_leads_to_does_not_get_the_token() -> None:
    wire = Wire(answer(302, headers={"location": "https://bucket.example/a.png"}), answer(content=b"pixels"))
    assert wire.gateway().read_file("/data/a.png") == b"pixels"
    assert "authorization" not in wire.sent[1].headers


@pytest.mark.parametrize(
    "location",
    [
        "http://label-studio.example@evil.example/a.png",
        "http://label-studio.example.evil.example/a.png",
        "http://label-studio.example:81/a.png",
        "file://label-studio.example/etc/passwd",
    ],
)
def test_nothing_is_sent_to_a_host_that_is_not_trusted(location: str) -> None:
    wire = Wire(answer(content=b"pixels"))
    with pytest.raises(ImageError):
        wire.gateway().read_file(location)
    assert wire.sent == []


def test_an_image_host_that_does_not_answer_is_named() -> None:
    with pytest.raises(Unreachable, match=r"'/data/a\.png' cannot be read .*ConnectTimeout.*again"):
        Wire(httpx.ConnectTimeout("")).gateway().read_file("/data/a.png")
