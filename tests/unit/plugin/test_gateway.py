"""What the gateway asks of Label Studio and makes of its answers; that nothing is left out or made twice."""

from __future__ import annotations

import json
import random
import types
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from plugin.label_studio import gateway as module
from plugin.label_studio.gateway import LabelStudioGateway, Project, Webhook, moment
from plugin.label_studio.pace import Pace
from plugin.label_studio.wire import ATTEMPTS
from propagation.errors import Missing, NotLabelStudio, Refused, ServerError, SettingsError, Unreachable

URL = "http://label-studio.example/labels"
TOKEN = "0123456789abcdef0123456789abcdef01234567"
VERSION = {"label-studio-os-package": {"version": "1.23.2"}}
HOOK = "http://127.0.0.1:9091/webhook?key=secret"
PROJECT = {"id": 1, "title": "a", "label_config": "<View/>", "description": None}

Answer = httpx.Response | Exception
Call = Callable[[LabelStudioGateway], object]


def calm() -> Pace:
    """A pace that need not ask how the server is."""
    pace = Pace(clock=lambda: 0.0, sleep=lambda seconds: None)
    pace.felt("user", 0.01)
    return pace


class Server:
    """What was sent, and what is answered: the next of some answers, the last one again and again."""

    def __init__(self, *answers: Answer | Callable[[httpx.Request], httpx.Response]) -> None:
        self.answers = list(answers)
        self.sent: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.sent.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer = answer(request)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def gateway(self, **options: Any) -> LabelStudioGateway:
        return LabelStudioGateway(URL, TOKEN, transport=httpx.MockTransport(self), **{"pace": calm(), **options})

    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.sent if request.content]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time", types.SimpleNamespace(sleep=lambda seconds: None))


def answer(status: int = 200, **content: Any) -> httpx.Response:
    return httpx.Response(status, **content)


def failing(call: Call, *answers: Answer, **options: Any) -> tuple[str, Server]:
    """The message of the error that a call raises, and the server; no message shows a secret."""
    server = Server(*answers)
    with pytest.raises((ServerError, SettingsError)) as raised:
        call(server.gateway(**options))
    assert TOKEN not in str(raised.value)
    assert "secret" not in str(raised.value)
    return str(raised.value), server


ADDING: dict[str, Call] = {
    "tasks": lambda gateway: gateway.import_tasks(1, [{"data": {}}]),
    "predictions": lambda gateway: gateway.import_predictions(1, [{"task": 1}]),
    "files": lambda gateway: gateway.upload(1, [("a.png", b"a")]),
    "project": lambda gateway: gateway.create_project("a", "<View/>", "", {}),
}
REPEATABLE: dict[str, Call] = {
    "project": lambda gateway: gateway.project(1),
    "tasks": lambda gateway: list(gateway.tasks(1, ["data"])),
    "annotations": lambda gateway: gateway.predictions_to_annotations(1, "v", [1]),
    "deleted tasks": lambda gateway: gateway.delete_tasks(1, [1]),
    "update": lambda gateway: gateway.update_annotation(1, []),
    "deletion": lambda gateway: gateway.delete_annotation(1),
    "latest": lambda gateway: gateway.latest(1),
    "count": lambda gateway: gateway.unannotated(1, [1]),
}
ANYTHING = {
    **PROJECT,
    "tasks": [],
    "total": 0,
    "detail": "done",
    "updated_at": "2026-01-01T00:00:00.000000Z",
}


# what is sent again, and what is not


@pytest.mark.parametrize(
    "failure", [answer(500), answer(502), answer(503), answer(429), httpx.ConnectError("refused"),
                httpx.ReadTimeout(""), answer(200, text='{"id": 1, "tit'), answer(302, headers={"location": "/"})]
)  # fmt: skip
@pytest.mark.parametrize("add", ADDING.values(), ids=ADDING)
def test_what_adds_is_sent_once(add: Call, failure: Answer) -> None:
    _, server = failing(add, failure)
    assert [request.method for request in server.sent] == ["POST"]


@pytest.mark.parametrize("failure", [answer(500), answer(503), httpx.ConnectError("refused")])
@pytest.mark.parametrize("ask", REPEATABLE.values(), ids=REPEATABLE)
def test_what_may_be_repeated_is_sent_again(ask: Call, failure: Answer) -> None:
    server = Server(failure, failure, answer(json=ANYTHING))
    ask(server.gateway())
    assert len(server.sent) == 3
    assert len({(request.method, str(request.url), request.content) for request in server.sent}) == 1


@pytest.mark.parametrize("failure", [answer(502), answer(504), httpx.ReadTimeout("")])
def test_annotations_are_not_made_anew_while_they_may_still_be_being_made(failure: Answer) -> None:
    _, server = failing(REPEATABLE["annotations"], failure)
    assert len(server.sent) == 1


@pytest.mark.parametrize("call", [*ADDING.values(), *REPEATABLE.values()], ids=[*ADDING, *REPEATABLE])
def test_a_failure_names_the_call_and_what_to_do(call: Call) -> None:
    said, _ = failing(call, answer(500, html="<h1>Server Error</h1>"))
    assert said.startswith(("GET api/", "POST api/", "PATCH api/", "DELETE api/"))
    assert f"{URL} answers 500 (no reason given); look in the server's log, then run the command again" in said


@pytest.mark.parametrize("body", [{}, [], "text", None, 1, [{"id": "1"}]])
@pytest.mark.parametrize(
    "call",
    [call for name, call in (ADDING | REPEATABLE).items() if name != "deletion"]
    + [LabelStudioGateway.user, LabelStudioGateway.projects],
)
def test_an_answer_of_another_form_is_an_error_of_the_server(call: Call, body: Any) -> None:
    failing(call, answer(json=body))
    server = Server(answer(json=VERSION), answer(json={"id": 1, "email": "a@example.com"}), answer(json=body))
    gateway = server.gateway()
    gateway.user()
    with pytest.raises(ServerError, match="answers what is no answer to it") as raised:
        call(gateway)
    assert type(raised.value) is ServerError


def test_a_task_of_another_form_is_an_error_of_the_server() -> None:
    task = {"id": 1, "updated_at": "2026-01-01T00:00:00Z"}
    for odd in (
        {**task, "id": "1"},
        {**task, "updated_at": "yesterday"},
        {**task, "updated_at": None},
        {**task, "data": []},
        {**task, "annotations": [{"id": None}]},
        {**task, "annotations": 5},
        {"id": 1},
        5,
    ):
        with pytest.raises(NotLabelStudio):
            list(Server(answer(json={"tasks": [odd], "total": 1})).gateway().tasks(1, ["annotations"]))


def test_another_server_is_told_before_and_a_stumble_after_it_was_recognised() -> None:
    page = answer(200, html="<h1>maintenance</h1>")
    assert "is not Label Studio; correct LABEL_STUDIO_URL" in failing(LabelStudioGateway.projects, page)[0]
    server = Server(answer(json=VERSION), answer(json={"id": 1, "email": "a"}), page, page, answer(json=PROJECT))
    gateway = server.gateway()
    gateway.user()
    assert gateway.project(1).title == "a"


def test_calls_go_below_the_servers_path_with_the_token() -> None:
    server = Server(answer(json=VERSION), answer(json={"id": 3, "email": "a@example.com"}))
    assert server.gateway().user().id == 3
    assert [str(request.url) for request in server.sent] == [
        f"{URL}/api/version",
        f"{URL}/api/current-user/whoami",
    ]
    assert {request.headers["authorization"] for request in server.sent} == {f"Token {TOKEN}"}


def test_requests_are_told_of() -> None:
    seen: list[tuple[str, bool]] = []
    server = Server(answer(500), answer(json=PROJECT))
    server.gateway(observe=lambda name, seconds, ok: seen.append((name, ok))).project(1)
    assert seen == [("project", False), ("project", True)]


@pytest.mark.parametrize("url", ["http://[broken", "http://me:secret@label-studio.example"])
def test_an_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(Unreachable, match="LABEL_STUDIO_URL") as raised:
        LabelStudioGateway(url, TOKEN)
    assert "secret" not in str(raised.value)


def test_a_token_that_no_server_can_have_made_is_refused() -> None:
    with pytest.raises(Refused, match="LABEL_STUDIO_API_KEY"):
        LabelStudioGateway(URL, "two words")


# projects


def test_all_pages_of_projects_are_read() -> None:
    def page(number: int, more: str | None) -> httpx.Response:
        return answer(json={"results": [{**PROJECT, "id": number}], "next": more})

    server = Server(page(1, "…"), page(2, "…"), page(3, None))
    assert server.gateway().projects() == [Project(number, "a", "<View/>", "") for number in (1, 2, 3)]
    assert [request.url.params["page"] for request in server.sent] == ["1", "2", "3"]


def test_hotkeys_are_set_beside_those_that_are_there() -> None:
    server = Server(answer(json={"id": 1, "custom_hotkeys": {"a": 1, "b": 2}}), answer(json={"id": 1}))
    server.gateway().set_hotkeys({"b": 3})
    assert server.sent[1].method == "PATCH"
    assert server.bodies() == [{"custom_hotkeys": {"a": 1, "b": 3}}]


# tasks


class Database:
    """Tasks as the server lists them; something may happen between two listings."""

    def __init__(self, count: int, meanwhile: Callable[[Database], None] = lambda database: None) -> None:
        self.ticks = 0
        self.tasks: dict[int, str] = {}
        self.meanwhile = meanwhile
        self.listings = 0
        for number in range(1, count + 1):
            self.touch(number)

    def touch(self, number: int) -> None:
        self.ticks += 1
        self.tasks[number] = self.now

    @property
    def now(self) -> str:
        return f"2026-01-01T00:{self.ticks // 60:02}:{self.ticks % 60:02}.000000Z"

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.listings:
            self.meanwhile(self)
        self.listings += 1
        params = request.url.params
        query = json.loads(params["query"])
        found = [{"id": number, "updated_at": at} for number, at in self.tasks.items()]
        if "selectedItems" in query:
            found = [task for task in found if task["id"] in query["selectedItems"]["included"]]
        for item in query["filters"]["items"]:
            passes: Any = {
                "greater": lambda had, value: had > value,
                "equal": lambda had, value: had == value,
                "not_in_list": lambda had, value: had not in value,
            }[item["operator"]]
            column, value = item["filter"].removeprefix("filter:tasks:"), item["value"]
            found = [task for task in found if passes(task[column], value)]
        (order,) = query["ordering"]
        found.sort(key=lambda task: task[order.removeprefix("tasks:")])
        assert params["page"] == "1"
        page = found[: int(params["page_size"])]
        return httpx.Response(200, json={"tasks": page, "total": len(found)})


@pytest.fixture
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TASKS_A_PAGE", 3)


@pytest.mark.usefixtures("_small_pages")
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6, 7, 20])
@pytest.mark.parametrize("since", [None, "2025-01-01T00:00:00Z"])
def test_all_tasks_come_once_and_in_order(count: int, since: str | None) -> None:
    database = Database(count)
    found = [task["id"] for task in Server(database).gateway().tasks(1, ["data"], since=since)]
    assert list(dict.fromkeys(found)) == list(range(1, count + 1))
    assert since is not None or len(found) == count


@pytest.mark.usefixtures("_small_pages")
@pytest.mark.parametrize("seed", range(20))
def test_tasks_that_vanish_meanwhile_take_no_other_with_them(seed: int) -> None:
    chance = random.Random(seed)

    def remove(database: Database) -> None:
        for number in chance.sample(sorted(database.tasks), k=min(2, len(database.tasks))):
            del database.tasks[number]

    database = Database(30, remove)
    found = [task["id"] for task in Server(database).gateway().tasks(1, [])]
    assert set(database.tasks) <= set(found)
    assert found == sorted(set(found))


@pytest.mark.usefixtures("_small_pages")
@pytest.mark.parametrize("seed", range(20))
def test_tasks_that_change_meanwhile_are_not_left_out(seed: int) -> None:
    chance = random.Random(seed)
    budget = iter(range(15))

    def change(database: Database) -> None:
        if next(budget, None) is not None:
            for number in chance.sample(sorted(database.tasks), k=3):
                database.touch(number)
                database.ticks -= chance.randrange(2)  # also several of one moment

    database = Database(30, change)
    since = database.tasks[6]
    due = {number for number, at in database.tasks.items() if at > since}
    last: dict[int, str] = {}
    for task in Server(database).gateway().tasks(1, [], since=since):
        last[task["id"]] = max(task["updated_at"], last.get(task["id"], ""))
    assert due <= set(last)


@pytest.mark.usefixtures("_small_pages")
def test_many_tasks_of_one_moment_are_all_read() -> None:
    database = Database(20)
    database.tasks = dict.fromkeys(database.tasks, database.now)
    found = {task["id"] for task in Server(database).gateway().tasks(1, [], since="2025-01-01T00:00:00Z")}
    assert found == set(range(1, 21))


def test_ids_are_asked_for_in_addresses_that_proxies_take() -> None:
    database = Database(1200)
    server = Server(database)
    wanted = list(range(1, 1200, 2))
    assert [task["id"] for task in server.gateway().tasks(1, [], ids=wanted)] == wanted
    assert all(len(str(request.url)) < 8000 for request in server.sent)


def test_tasks_of_no_ids_are_not_asked_for() -> None:
    server = Server(Database(3))
    assert list(server.gateway().tasks(1, [], ids=[])) == []
    assert server.sent == []


def test_tasks_last_changed_at_known_moments_are_left_out() -> None:
    database = Database(5)
    gateway = Server(database).gateway()
    without = [database.tasks[2], database.tasks[4]]
    assert [task["id"] for task in gateway.tasks(1, [], without=without)] == [1, 3, 5]


def test_a_listing_that_does_not_move_on_is_an_error_of_the_server() -> None:
    page = {"tasks": [{"id": 1, "updated_at": "2026-01-01T00:00:00Z"}], "total": 9}
    server = Server(answer(json=page))
    with pytest.raises(ServerError, match="what is no answer to it"):
        list(server.gateway().tasks(1, []))
    assert len(server.sent) == 1 + ATTEMPTS


@pytest.mark.parametrize(
    ("include", "fields"), [(["data"], "task_only"), (["annotations"], "all"), (["predictions", "data"], "all")]
)
def test_nested_fields_are_asked_for_where_they_are_wanted(include: list[str], fields: str) -> None:
    server = Server(answer(json={"tasks": [], "total": 0}))
    list(server.gateway().tasks(1, include))
    params = server.sent[0].url.params
    assert params["fields"] == fields
    assert params["include"].split(",") == ["id", "updated_at", *include]


@pytest.mark.parametrize(
    ("stamp", "told"),
    [
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000000Z"),
        ("2026-01-02T05:04:05.000000+02:00", "2026-01-02T03:04:05.000000Z"),
        ("2026-01-02T03:04:05.678", "2026-01-02T03:04:05.678000Z"),
        ("2026-01-02T03:04:05.678901Z", "2026-01-02T03:04:05.678901Z"),
    ],
)
def test_a_time_is_told_in_the_one_form_that_filters_take(stamp: str, told: str) -> None:
    assert moment(stamp) == told
    server = Server(answer(json={"tasks": [], "total": 0}))
    list(server.gateway().tasks(1, [], since=stamp))
    (item,) = json.loads(server.sent[0].url.params["query"])["filters"]["items"]
    assert item["value"] == told


def test_the_latest_change_is_read_without_the_rest() -> None:
    task = {"id": 4, "updated_at": "2026-01-02T05:04:05+02:00"}
    server = Server(answer(json={"tasks": [task], "total": 90}), answer(json={"tasks": [], "total": 0}))
    gateway = server.gateway()
    assert gateway.latest(1) == "2026-01-02T03:04:05.000000Z"
    assert gateway.latest(1) is None
    assert server.sent[0].url.params["page_size"] == "1"


def test_counts_of_many_tasks_are_added_up() -> None:
    def listed(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/model-versions/"):
            return answer(json=["v", "another"])
        ids = json.loads(request.url.params["query"])["selectedItems"]["included"]
        return answer(json={"tasks": [{"id": 1, "updated_at": "2026-01-01T00:00:00Z"}], "total": len(ids) - 1})

    server = Server(listed)
    gateway = server.gateway()
    assert gateway.unannotated(1, range(1200)) == 1200 - 3
    assert gateway.unpredicted(1, range(700), "v") == 700 - 2
    assert gateway.unpredicted(1, [], "v") == 0
    assert sum("query" in request.url.params for request in server.sent) == 5


def test_a_version_that_is_part_of_anothers_name_is_told_apart() -> None:
    at = "2026-01-01T00:00:00Z"
    listed = [
        {"id": number, "updated_at": at, "predictions": [{"id": number, "model_version": version}]}
        for number, version in ((1, "v1"), (2, "v10"))
    ]
    server = Server(
        answer(json={"tasks": [], "total": 0}),
        answer(json=["v1", "v10"]),
        answer(json={"tasks": listed, "total": 2}),
    )
    assert server.gateway().unpredicted(1, [1, 2], "v1") == 1


def settled(*parts: tuple[str | None, int], of: int) -> str | None:
    listed = [
        answer(json={"tasks": [{"id": 1, "updated_at": at}] if at else [], "total": total}) for at, total in parts
    ]
    return Server(*listed).gateway().settled(1, range(of), by=7)


def test_tasks_annotated_in_one_call_are_told_by_their_moment() -> None:
    at, other = "2026-01-01T00:00:00.000000Z", "2026-01-01T00:00:01.000000Z"
    assert settled((at, 3), of=3) == at
    assert settled((at, 500), (at, 100), of=600) == at
    assert settled((at, 500), (other, 100), of=600) is None
    assert settled((at, 2), of=3) is None
    assert settled((None, 0), of=3) is None


# writes in bulk


class Importer:
    """Takes what is imported, no more than some things at once."""

    def __init__(self, most: int = 10**9) -> None:
        self.most = most
        self.taken: list[Any] = []
        self.asked = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            self.asked += 1
            return answer(json={"id": 1})
        body = json.loads(request.content)
        if len(body) > self.most:
            return answer(413, html="<h1>Too Large</h1>")
        self.taken += body
        numbers = list(range(len(self.taken) - len(body), len(self.taken)))
        return answer(json={"task_ids": numbers, "created": len(body)})


@pytest.mark.parametrize("most", [3, 7, 150, 10**9])
def test_many_things_are_sent_in_parts_that_the_server_takes(most: int) -> None:
    importer = Importer(most)
    things = [{"data": {"n": number}} for number in range(411)]
    assert Server(importer).gateway().import_tasks(1, things) == list(range(411))
    assert importer.taken == things
    assert Server(Importer(most)).gateway().import_predictions(1, things) == 411


def test_one_thing_that_is_too_large_is_an_error_with_the_remedy() -> None:
    said, server = failing(ADDING["tasks"], answer(413, html="<h1>Too Large</h1>"))
    assert "client_max_body_size" in said
    assert len(server.sent) == 1


@pytest.mark.parametrize("answered", [{"task_ids": [1, 2]}, {"task_ids": []}, {"task_ids": ["1"]}])
def test_ids_that_are_not_as_many_as_the_tasks_are_an_error_of_the_server(answered: Any) -> None:
    failing(ADDING["tasks"], answer(json=answered))


def test_nothing_to_send_is_not_sent() -> None:
    server = Server(answer(500))
    gateway = server.gateway()
    assert gateway.import_tasks(1, []) == []
    assert gateway.import_predictions(1, []) == 0
    assert gateway.upload(1, []) == []
    gateway.delete_tasks(1, [])
    gateway.predictions_to_annotations(1, "v", [])
    assert server.sent == []


def test_a_server_not_felt_for_a_while_is_felt_before_a_bulk_call() -> None:
    importer = Importer()
    gateway = Server(importer).gateway(pace=Pace(clock=lambda: 0.0, sleep=lambda seconds: None))
    gateway.import_tasks(1, [{"data": {}}] * 300)
    assert importer.asked == 1


def test_a_bulk_call_waits_where_the_server_is_slow() -> None:
    rests: list[float] = []
    pace = Pace(clock=lambda: 0.0, sleep=rests.append)
    for seconds in (0.1, 1.0, 1.0, 1.0):
        pace.felt("user", seconds)
    pace.took("tasks", 200, 0.8)
    Server(Importer()).gateway(pace=pace).import_tasks(1, [{"data": {}}])
    assert len(rests) == 1


def test_annotations_are_made_of_the_tasks_named_that_have_none() -> None:
    server = Server(answer(json={"detail": "done"}))
    server.gateway().predictions_to_annotations(1, "v", [4, 5])
    (body,) = server.bodies()
    assert body["selectedItems"] == {"all": False, "included": [4, 5]}
    assert body["model_version"] == "v"
    assert [(item["filter"], item["value"]) for item in body["filters"]["items"]] == [
        ("filter:tasks:total_annotations", 0)
    ]


def test_an_annotations_time_after_a_change_is_told() -> None:
    server = Server(answer(json={"id": 4, "updated_at": "2026-01-02T05:04:05+02:00"}))
    assert server.gateway().update_annotation(4, [{"id": "r"}]) == "2026-01-02T03:04:05.000000Z"
    assert server.bodies() == [{"result": [{"id": "r"}]}]


def test_an_annotation_that_is_gone_is_deleted_already() -> None:
    server = Server(answer(404, json={"detail": "Not found"}), answer(json=VERSION))
    server.gateway().delete_annotation(4)
    with pytest.raises(Missing):
        Server(answer(404, json={"detail": "Not found"}), answer(json=VERSION)).gateway().update_annotation(4, [])


def test_uploaded_files_are_told_apart_and_found_below_the_servers_path() -> None:
    stored = [{"id": 8, "file": "upload/1/b.png"}, {"id": 7, "file": "upload/1/a.png"}]
    server = Server(answer(json={"file_upload_ids": [7, 8]}), answer(json=stored))
    places = server.gateway().upload(1, [("x.png", b"first"), ("x.png", b"second")])
    assert places == ["/labels/data/upload/1/a.png", "/labels/data/upload/1/b.png"]
    assert server.sent[0].url.params["commit_to_project"] == "false"
    for part in (b'name="file0"; filename="x.png"', b'name="file1"; filename="x.png"', b"first", b"second"):
        assert part in server.sent[0].content


def test_an_upload_that_is_not_found_again_is_an_error_of_the_server() -> None:
    _, server = failing(ADDING["files"], answer(json={"file_upload_ids": [7]}), answer(json=[]))
    assert [request.method for request in server.sent].count("POST") == 1


# webhooks


def hook(number: int, project: int = 1, url: str = HOOK, **more: Any) -> dict[str, Any]:
    return {"id": number, "project": project, "url": url, "actions": ["TASKS_DELETED"], "is_active": True, **more}


def ensure(gateway: LabelStudioGateway) -> None:
    gateway.ensure_webhook(1, HOOK, {"X-Key": "secret"})


def test_webhooks_of_other_projects_are_left_aside() -> None:
    listed = [hook(1, project=2), hook(2, headers={"X-Key": "secret"}), hook(3, project=None)]  # type: ignore[arg-type]
    (found,) = Server(answer(json=listed)).gateway().webhooks(1)
    assert found == Webhook(2, HOOK, frozenset({"TASKS_DELETED"}), True, {"X-Key": "secret"})
    assert "X-Key" not in repr(found)


def test_a_webhook_is_made_where_there_is_none() -> None:
    server = Server(answer(json=[hook(1, url="http://other.example/"), hook(2, project=2)]), answer(json=hook(3)))
    ensure(server.gateway())
    assert [request.method for request in server.sent] == ["GET", "POST"]
    (body,) = server.bodies()
    assert (body["project"], body["url"], body["headers"]) == (1, HOOK, {"X-Key": "secret"})
    assert body["is_active"] is True
    assert "ANNOTATION_UPDATED" in body["actions"]


@pytest.mark.parametrize(
    "had", [hook(5, is_active=False), hook(5, headers={"X-Key": "old"}), hook(5, actions=[]), hook(5)]
)
def test_a_webhook_that_is_there_is_brought_up_to_date(had: dict[str, Any]) -> None:
    server = Server(answer(json=[had]), answer(json=hook(5)))
    ensure(server.gateway())
    assert [request.method for request in server.sent] == ["GET", "PATCH"]
    assert server.sent[1].url.path == "/labels/api/webhooks/5/"
    (body,) = server.bodies()
    assert body["headers"] == {"X-Key": "secret"}
    assert body["is_active"] is True


def test_a_webhook_is_made_once_whatever_is_answered() -> None:
    for failure in (answer(500), answer(502), httpx.ReadTimeout(""), answer(200, text="{")):
        _, server = failing(ensure, answer(json=[]), failure)
        assert [request.method for request in server.sent] == ["GET", "POST"]


@pytest.mark.parametrize("there", [[], [hook(5)]], ids=["new", "known"])
def test_an_address_that_the_server_does_not_send_to_is_said_with_the_remedy(there: list[Any]) -> None:
    banned = answer(403, json={"detail": "URL resolves to a reserved network address (block: 127.0.0.0/8)"})
    server = Server(answer(json=there), banned)
    with pytest.raises(SettingsError) as raised:
        ensure(server.gateway())
    said = str(raised.value)
    assert f"{URL} takes no webhook to http://127.0.0.1:9091/webhook (URL resolves to a reserved network" in said
    assert "USE_DEFAULT_BANNED_SUBNETS=false" in said
    assert "take webhook_url out of the settings" in said
    assert "secret" not in said
    assert len(server.sent) == 2


# images


def test_images_are_read_by_the_files_rules() -> None:
    server = Server(answer(content=b"pixels"))
    gateway = server.gateway(image_hosts=["images.example:8443"])
    assert gateway.read_file("/data/upload/1/a.png") == b"pixels"
    assert gateway.read_file("https://images.example:8443/a.png?signature=x") == b"pixels"
    assert [request.headers.get("authorization") for request in server.sent] == [f"Token {TOKEN}", None]
