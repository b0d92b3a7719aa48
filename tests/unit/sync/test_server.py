"""The daemon's server: who may give hints and who may ask, and that nothing which comes in ends it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from propagation.campaign import Campaign
from propagation.errors import SettingsError, StoreError
from propagation.paper import PaperStrategy
from propagation.progress import History, Terms
from sync.board import Board, Place
from sync.daemon import Step
from sync.monitor import Monitor
from sync.server import LARGEST, LARGEST_READ, MOST_TASKS, SECRET_HEADER, create_app, read_hint, serve
from sync.store import Hint, Store

SECRET, PASSWORD = "geheim-eins", "geheim-zwei"
HEADERS = {SECRET_HEADER: SECRET}
CREATED = {
    "action": "ANNOTATION_CREATED",
    "annotation": {"id": 9, "task": 5, "result": [], "was_cancelled": False},
    "task": {"id": 5, "data": {"page": "p"}},
    "project": {"id": 3, "title": "cells"},
}


class Inbox:
    """The store's inbox in memory; ``broken`` where it cannot be written."""

    def __init__(self) -> None:
        self.hints: list[Hint] = []
        self.broken = False

    def notice(self, hint: Hint) -> None:
        if self.broken:
            raise StoreError("the store postgresql://user@host/db failed; see to it")
        self.hints.append(hint)


class Wakes:
    """How often the daemon was waked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def wakes() -> Wakes:
    return Wakes()


@pytest.fixture
def monitor() -> Monitor:
    return Monitor()


@pytest.fixture
def client(inbox: Inbox, monitor: Monitor, wakes: Wakes) -> FlaskClient:
    return create_app(inbox, monitor, wakes, SECRET, PASSWORD).test_client()


def test_a_webhook_is_noted_counted_and_wakes_the_daemon(
    client: FlaskClient, inbox: Inbox, monitor: Monitor, wakes: Wakes
) -> None:
    answer = client.post("/webhook", json=CREATED, headers=HEADERS)
    assert (answer.status_code, answer.get_json()) == (200, {"status": "noted"})
    assert inbox.hints == [Hint("ANNOTATION_CREATED", 3, (5,))]
    assert wakes.count == 1
    assert b'ls_propagate_hints_total{action="ANNOTATION_CREATED"} 1.0' in monitor.metrics()


@pytest.mark.parametrize(
    "given", [None, "", "geheim", SECRET + "x", SECRET.upper(), PASSWORD, "größe", "\xff" * 999]
)
def test_a_webhook_without_the_secret_does_nothing(
    client: FlaskClient, inbox: Inbox, wakes: Wakes, given: str | None
) -> None:
    answer = client.post("/webhook", json=CREATED, headers={} if given is None else {SECRET_HEADER: given})
    assert answer.status_code == 403
    assert SECRET_HEADER in answer.get_json()["error"]
    assert SECRET not in answer.get_data(as_text=True)
    assert (inbox.hints, wakes.count) == ([], 0)


@pytest.mark.parametrize("secret", [None, ""])
def test_without_a_secret_of_its_own_the_daemon_takes_no_webhook(
    inbox: Inbox, monitor: Monitor, wakes: Wakes, secret: str | None
) -> None:
    client = create_app(inbox, monitor, wakes, secret, PASSWORD).test_client()
    for given in ("", "None", SECRET):
        answer = client.post("/webhook", json=CREATED, headers={SECRET_HEADER: given})
        assert answer.status_code == 403
        assert "set LS_PROPAGATE_WEBHOOK_SECRET" in answer.get_json()["error"]
    assert (inbox.hints, wakes.count) == ([], 0)


@pytest.mark.parametrize("secret", ["größe ☃", "größe", "a b:c"])
def test_a_secret_may_have_any_characters(inbox: Inbox, monitor: Monitor, wakes: Wakes, secret: str) -> None:
    client = create_app(inbox, monitor, wakes, secret, None).test_client()
    sent = secret.encode().decode("latin-1")  # as the bytes of UTF-8 arrive
    assert client.post("/webhook", json=CREATED, headers={SECRET_HEADER: sent}).status_code == 200


def test_a_store_that_fails_is_said_and_the_daemon_is_waked_all_the_same(
    client: FlaskClient, inbox: Inbox, wakes: Wakes, caplog: pytest.LogCaptureFixture
) -> None:
    inbox.broken = True
    answer = client.post("/webhook", json=CREATED, headers=HEADERS)
    assert answer.status_code == 503
    assert "postgresql" not in answer.get_data(as_text=True)
    assert "postgresql" in caplog.text
    assert wakes.count == 1


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[" * 100_000, b'"\xff"', b"null", b"3", b"[]", b'{"action": 3}', b'{"action": "DROP TABLE"}'],
)
def test_a_hint_that_says_nothing_still_is_one(
    client: FlaskClient, inbox: Inbox, wakes: Wakes, body: bytes
) -> None:
    answer = client.post("/webhook", data=body, content_type="application/json", headers=HEADERS)
    assert answer.status_code == 200
    assert inbox.hints == [Hint("other", None)]
    assert wakes.count == 1


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (
            {"action": "TASKS_DELETED", "tasks": [{"id": 7}, {"id": 8}, {"id": 7}]},
            Hint("TASKS_DELETED", None, (7, 8)),
        ),
        ({"action": "ANNOTATIONS_DELETED", "project": {"id": 3}}, Hint("ANNOTATIONS_DELETED", 3)),
        ({"action": "ANNOTATIONS_CREATED", "task": [{"id": 7}]}, Hint("ANNOTATIONS_CREATED", None, (7,))),
        (
            {"action": "TASKS_CREATED", "tasks": [None, {}, {"id": "7"}, {"id": True}, 7]},
            Hint("TASKS_CREATED", None),
        ),
        ({"project": {"id": 2**63}, "task": {"id": -1}}, Hint("other", None)),
        ({"project": {"id": float("nan")}, "task": {"id": 1e300}}, Hint("other", None)),
        ({"tasks": [{"id": n} for n in range(1, MOST_TASKS + 2)]}, Hint("other", None)),
        ({"action": ["TASKS_DELETED"], "project": 3, "tasks": {"id": 4}}, Hint("other", None, (4,))),
    ],
)
def test_a_hint_is_read_as_far_as_it_can_be(body: dict[str, Any], hint: Hint) -> None:
    assert read_hint(body) == hint


def test_a_large_body_is_a_hint_that_nobody_reads(client: FlaskClient, inbox: Inbox, wakes: Wakes) -> None:
    large = CREATED | {"annotation": {"result": ["x" * LARGEST_READ]}}
    assert client.post("/webhook", json=large, headers=HEADERS).status_code == 200
    assert inbox.hints == [Hint("other", None)]
    assert wakes.count == 1


def test_a_body_that_is_too_large_is_refused(client: FlaskClient, inbox: Inbox) -> None:
    answer = client.post("/webhook", data=b"x" * (LARGEST + 1), headers=HEADERS)
    assert answer.status_code == 413
    assert inbox.hints == []


def test_the_real_store_keeps_hints_in_their_order_and_quickly(
    tmp_path: Path, monitor: Monitor, wakes: Wakes
) -> None:
    store = Store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    client = create_app(store, monitor, wakes, SECRET, PASSWORD).test_client()
    seconds = []
    for number in range(1, 51):
        begin = time.perf_counter()
        client.post("/webhook", json=CREATED | {"task": {"id": number}}, headers=HEADERS)
        seconds.append(time.perf_counter() - begin)
    assert [hint for _, hint in store.hints()] == [Hint("ANNOTATION_CREATED", 3, (n,)) for n in range(1, 51)]
    assert sorted(seconds)[25] < 0.1
    store.close()
    assert wakes.count == 50


def test_health_tells_whether_the_campaign_goes_on(client: FlaskClient, monitor: Monitor) -> None:
    assert client.get("/health/live").get_json() == {"live": True}
    assert client.get("/health").get_json() == {
        "live": True,
        "ready": False,
        "reason": "this daemon has not begun yet",
    }
    assert client.get("/health/ready").status_code == 503
    monitor.began()
    monitor.passed(Step(), 1)
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.get_json()["ready"]) == (200, True)
    assert client.get("/health").get_json()["ready"] is True


GUARDED = ("/", "/metrics", "/openapi.json")


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("auth", [None, ("any", ""), ("any", SECRET), (PASSWORD, "any")])
def test_nobody_reads_without_the_password(client: FlaskClient, path: str, auth: tuple[str, str] | None) -> None:
    answer = client.get(path, auth=auth, headers=HEADERS)
    assert answer.status_code == 401
    assert "geheim" not in answer.get_data(as_text=True)


@pytest.mark.parametrize("path", GUARDED)
def test_the_password_lets_in(client: FlaskClient, path: str) -> None:
    assert client.get(path, auth=("any", PASSWORD)).status_code == 200


def test_without_a_password_only_loopback_names_are_answered(inbox: Inbox, monitor: Monitor, wakes: Wakes) -> None:
    client = create_app(inbox, monitor, wakes, SECRET, None).test_client()
    elsewhere = {"Host": "daemon.example:9091"}
    assert [client.get(path).status_code for path in GUARDED] == [200] * 3
    assert [client.get(path, headers=elsewhere).status_code for path in GUARDED] == [421] * 3
    assert client.get("/health", headers=elsewhere).status_code == 200
    assert client.post("/webhook", headers=elsewhere | HEADERS).status_code == 200


def test_nothing_is_changed_by_looking(client: FlaskClient, inbox: Inbox, wakes: Wakes) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"):
        client.open("/webhook", method=method, json=CREATED, headers=HEADERS, auth=("any", PASSWORD))
    assert (inbox.hints, wakes.count) == ([], 0)


def test_metrics_are_prometheus_text(client: FlaskClient) -> None:
    answer = client.get("/metrics", auth=("any", PASSWORD))
    assert answer.content_type.startswith("text/plain; version=0.0.4")
    assert b"# TYPE ls_propagate_passes_total counter" in answer.data


def test_the_first_page_and_the_description_name_every_address(client: FlaskClient) -> None:
    routes = {rule.rule for rule in client.application.url_map.iter_rules()}
    index = client.get("/", auth=("any", PASSWORD)).get_json()
    described = client.get("/openapi.json", auth=("any", PASSWORD)).get_json()
    assert set(index) == set(described["paths"]) == routes


def test_the_server_is_served_and_closed(inbox: Inbox, monitor: Monitor, wakes: Wakes) -> None:
    served = serve(create_app(inbox, monitor, wakes, SECRET, PASSWORD), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{served.port}"
    try:
        assert httpx.get(f"{url}/health").json()["live"] is True
        assert httpx.post(f"{url}/webhook", content=json.dumps(CREATED), headers=HEADERS).status_code == 200
        with pytest.raises(SettingsError, match="daemon_port"):
            serve(create_app(inbox, monitor, wakes, SECRET, PASSWORD), "127.0.0.1", served.port)
    finally:
        served.close()
    assert inbox.hints == [Hint("other", None)]  # without a content type it is not read
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


@pytest.fixture
def board(table: Any, tree: Any) -> Board:
    """A board with an edition of a campaign that nobody has answered."""
    made = table([0.9] * 12)
    history = History(Campaign(made, [tree(made, range(12))], PaperStrategy()))
    board = Board(Terms())
    board.look(history, lambda: Place("http://labels", 1, "cells", 2, {}, {}))
    return board


def reader(board: Board | None, password: str | None = None) -> FlaskClient:
    return create_app(Inbox(), Monitor(), lambda: None, SECRET, password, board).test_client()


def test_the_board_is_a_page_that_loads_nothing_from_elsewhere(board: Board) -> None:
    answer = reader(board).get("/board")
    assert answer.status_code == 200
    assert answer.content_type == "text/html; charset=utf-8"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert b"cells" in answer.data
    for path, kind in (("/board.css", "text/css"), ("/board.js", "text/javascript")):
        assert reader(board).get(path).content_type.startswith(kind)


def test_who_has_the_latest_figures_gets_none(board: Board) -> None:
    client = reader(board)
    answer = client.get("/board.json")
    assert answer.get_json()["masks"]["found"] == 12
    again = client.get("/board.json", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert client.get("/board.json", headers={"If-None-Match": '"older"'}).status_code == 200
    assert f'data-version="{answer.headers["ETag"].strip(chr(34))}"' in client.get("/board").text


@pytest.mark.parametrize("made", [None, Board(Terms())])
def test_without_figures_the_board_says_why(made: Board | None) -> None:
    page, figures = reader(made).get("/board"), reader(made).get("/board.json")
    assert (page.status_code, figures.status_code) == (503, 503)
    assert "has not begun yet" in page.text
    assert "has not begun yet" in figures.get_json()["error"]


def test_the_board_asks_for_the_password(board: Board) -> None:
    client = reader(board, PASSWORD)
    for path in ("/", "/board", "/board.json", "/board.css", "/board.js"):
        assert client.get(path).status_code == 401
        assert client.get(path, auth=("anybody", PASSWORD)).status_code in (200, 302)


def test_a_browser_is_led_to_the_board(board: Board) -> None:
    client = reader(board)
    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    answer = client.get("/", headers={"Accept": browser})
    assert (answer.status_code, answer.headers["Location"]) == (302, "board")
    for machine in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
        assert "/board" in client.get("/", headers=machine).get_json()
