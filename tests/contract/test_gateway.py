"""What the product relies on of an annotation tool's server, held against the fake and the real one."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files
from queue import Queue
from typing import Any

import pytest

from plugin.label_studio import gateway as gateway_module
from plugin.label_studio.clusters import BOARD_SETTINGS, Card, tabs
from plugin.label_studio.files import shown
from plugin.label_studio.gateway import FILES_A_REQUEST, WEBHOOK_ACTIONS, filters_of
from plugin.label_studio.pace import LONGEST, Pace
from plugin.label_studio.tabs import add_tabs, make_source_tabs, source_tabs, update_source_tabs
from propagation.errors import ImageError, Missing, ServerError, SettingsError

NOWHERE = 99_999_999
SOURCE_TABS = source_tabs("propagate-1", "propagated-1", "image", ["a.png"], 1)
CONFIG = """
<View>
  <Image name="picture" value="$photo"/>
  <BrushLabels name="paint" toName="picture"><Label value="cell"/></BrushLabels>
</View>
"""
ANNOTATIONS = (
    "annotations", "result", "was_cancelled", "completed_by", "updated_by", "lead_time", "parent_prediction",
)  # fmt: skip


def region(name: str = "a", x: float = 10.5) -> dict[str, Any]:
    return {
        "id": f"{name}-0",
        "from_name": "label",
        "to_name": "image",
        "type": "polygonlabels",
        "original_width": 200,
        "original_height": 100,
        "image_rotation": 0,
        "score": 0.25,
        "meta": {"propagate": {"mask": name, "cluster": "cell/7", "verified": True, "share": None}},
        "value": {"points": [[x, 10], [50, 10.12345], [50, 50]], "closed": True, "polygonlabels": ["cell"]},
    }


def predict(gateway: Any, project: int, tasks: list[int], version: str = "v1", x: float = 10.5) -> int:
    predictions = [
        {"task": task, "model_version": version, "score": 0.5, "result": [region(f"m{task}", x), region("b")]}
        for task in tasks
    ]
    return int(gateway.import_predictions(project, predictions))


def annotations(gateway: Any, project: int, task: int) -> list[dict[str, Any]]:
    (found,) = gateway.tasks(project, ANNOTATIONS, ids=[task])
    return list(found["annotations"])


def test_a_project_is_found_again_by_its_description(gateway: Any) -> None:
    mark = f"made for {uuid.uuid4()}"
    made = gateway.create_project("contract: crops", CONFIG, mark, {"maximum_annotations": 1})
    assert [project for project in gateway.projects() if project.description == mark] == [made]
    found = gateway.project(made.id)
    assert (found.title, found.description) == ("contract: crops", mark)
    assert found.label_config.strip() == CONFIG.strip()


def test_the_caller_is_a_user_with_an_address(side: Any) -> None:
    user = side.gateway.user()
    assert "@" in user.email
    assert user.id != side.person


def test_everybody_has_a_name(side: Any) -> None:
    me = side.gateway.user()
    assert me.email in side.gateway.people()[me.id]
    assert all(side.gateway.people().values())


OF_NOTHING: dict[str, Callable[[Any], object]] = {
    "project": lambda gateway: gateway.project(NOWHERE),
    "config": lambda gateway: gateway.set_label_config(NOWHERE, "<View/>"),
    "tasks": lambda gateway: list(gateway.tasks(NOWHERE, ["data"])),
    "latest": lambda gateway: gateway.latest(NOWHERE),
    "unannotated": lambda gateway: gateway.unannotated(NOWHERE, [1]),
    "unpredicted": lambda gateway: gateway.unpredicted(NOWHERE, [1], "v"),
    "settled": lambda gateway: gateway.settled(NOWHERE, [1], 1),
    "import": lambda gateway: gateway.import_tasks(NOWHERE, [{"data": {"image": "a.png"}}]),
    "delete": lambda gateway: gateway.delete_tasks(NOWHERE, [1]),
    "predictions": lambda gateway: gateway.import_predictions(
        NOWHERE, [{"task": 1, "model_version": "v", "result": []}]
    ),
    "annotations": lambda gateway: gateway.predictions_to_annotations(NOWHERE, "v", [1]),
    "update": lambda gateway: gateway.update_annotation(NOWHERE, []),
    "upload": lambda gateway: gateway.upload(NOWHERE, [("a.png", b"a")]),
    "instructions": lambda gateway: gateway.set_instructions(NOWHERE, "Look."),
    "upload one": lambda gateway: gateway.upload_one(NOWHERE, "a.png", b"a"),
    "delete upload": lambda gateway: gateway.delete_upload(NOWHERE, 1),
    "tabs": lambda gateway: gateway.tabs(NOWHERE),
    "tab": lambda gateway: gateway.update_tab(NOWHERE, {"title": "a"}),
}


@pytest.mark.parametrize("ask", OF_NOTHING.values(), ids=OF_NOTHING)
def test_what_is_not_there_is_said_to_be_missing(gateway: Any, ask: Callable[[Any], object]) -> None:
    with pytest.raises(Missing, match="deleted") as refusal:
        ask(gateway)
    assert "<" not in str(refusal.value)


def test_tasks_come_back_in_the_order_of_their_import(gateway: Any, project: int, tasks: list[int]) -> None:
    found = list(gateway.tasks(project, ["data"]))
    assert [task["id"] for task in found] == tasks == sorted(tasks)
    assert [task["data"]["image"] for task in found] == [f"{number}.png" for number in range(5)]


def test_only_the_fields_named_are_read(side: Any, gateway: Any, project: int, tasks: list[int]) -> None:
    side.submit(tasks[0], [region()])
    assert {frozenset(task) for task in gateway.tasks(project, ["data"])} == {
        frozenset({"id", "data", "updated_at"})
    }
    first = next(gateway.tasks(project, ["annotations", "was_cancelled"]))
    assert first.keys() == {"id", "updated_at", "annotations"}
    assert first["annotations"][0].keys() == {"id", "updated_at", "was_cancelled"}


def test_a_project_without_tasks_has_none(gateway: Any, project: int) -> None:
    assert list(gateway.tasks(project, ["data"])) == []
    assert gateway.import_tasks(project, []) == []


@pytest.mark.parametrize("page", [2, 5, 500])
def test_tasks_are_read_over_as_many_pages_as_it_takes(
    gateway: Any, project: int, tasks: list[int], page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "TASKS_A_PAGE", page)
    start = next(gateway.tasks(project, []))["updated_at"]
    assert [task["id"] for task in gateway.tasks(project, [])] == tasks
    assert [task["id"] for task in gateway.tasks(project, [], since="2000-01-01T00:00:00Z")] == tasks
    assert [task["id"] for task in gateway.tasks(project, [], since=start)] == tasks[1:]
    assert [task["id"] for task in gateway.tasks(project, [], since=start.replace("Z", "+00:00"))] == tasks[1:]
    assert [task["id"] for task in gateway.tasks(project, [], ids=tasks[1:])] == tasks[1:]


def test_many_tasks_are_imported_in_several_requests(
    gateway: Any, project: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TwoAtOnce(Pace):
        def size(self, kind: str, first: int = 2) -> int:
            return first

    monkeypatch.setattr(gateway, "pace", TwoAtOnce())
    made = gateway.import_tasks(project, [{"data": {"image": f"{number}.png"}} for number in range(5)])
    assert [task["id"] for task in gateway.tasks(project, [])] == made
    assert predict(gateway, project, made) == 5
    gateway.predictions_to_annotations(project, "v1", made)
    assert [len(annotations(gateway, project, task)) for task in made] == [1] * 5


def test_ids_select_tasks_of_the_project(gateway: Any, project: int, tasks: list[int]) -> None:
    assert [task["id"] for task in gateway.tasks(project, [], ids=[tasks[3], NOWHERE, tasks[1]])] == [
        tasks[1],
        tasks[3],
    ]
    assert list(gateway.tasks(project, [], ids=[])) == []


def test_only_what_changed_is_read_since_a_time(side: Any, project: int, tasks: list[int]) -> None:
    gateway = side.gateway
    made: dict[str, int] = {}
    predict(gateway, project, [tasks[3]])

    def edit_by_program() -> None:
        gateway.update_annotation(made["answer"], [region("c")])

    changes: list[tuple[str, int, Callable[[], object]]] = [
        ("submit", tasks[2], lambda: made.update(answer=side.submit(tasks[2], [region()]))),
        ("edit", tasks[2], lambda: side.edit(made["answer"], [region("b")])),
        ("edit by program", tasks[2], edit_by_program),
        ("skip", tasks[0], lambda: side.skip(tasks[0])),
        ("annotate", tasks[3], lambda: gateway.predictions_to_annotations(project, "v1", [tasks[3]])),
        ("delete", tasks[2], lambda: side.delete(made["answer"])),
    ]
    for name, task, change in changes:
        before = max(found["updated_at"] for found in gateway.tasks(project, []))
        assert list(gateway.tasks(project, [], since=before)) == []
        change()
        assert [found["id"] for found in gateway.tasks(project, [], since=before)] == [task], name


def test_a_task_does_not_count_as_changed_by_predictions(gateway: Any, project: int, tasks: list[int]) -> None:
    before = max(found["updated_at"] for found in gateway.tasks(project, []))
    predict(gateway, project, tasks)
    assert list(gateway.tasks(project, [], since=before)) == []


def test_changes_are_read_in_their_order(side: Any, gateway: Any, project: int, tasks: list[int]) -> None:
    before = max(found["updated_at"] for found in gateway.tasks(project, []))
    for task in (tasks[4], tasks[0], tasks[2]):
        side.submit(task, [])
    assert [found["id"] for found in gateway.tasks(project, [], since=before)] == [tasks[4], tasks[0], tasks[2]]


def test_predictions_are_read_back_as_they_were_sent(gateway: Any, project: int, tasks: list[int]) -> None:
    assert predict(gateway, project, tasks[:3]) == 3
    found = list(gateway.tasks(project, ["predictions", "result", "model_version"]))
    assert [len(task["predictions"]) for task in found] == [1, 1, 1, 0, 0]
    (prediction,) = found[0]["predictions"]
    assert prediction["model_version"] == "v1"
    assert prediction["result"] == [region(f"m{tasks[0]}"), region("b")]


def test_the_same_predictions_twice_are_two(gateway: Any, project: int, tasks: list[int]) -> None:
    predict(gateway, project, tasks[:1])
    predict(gateway, project, tasks[:1])
    (task,) = gateway.tasks(project, ["predictions"], ids=tasks[:1])
    assert len(task["predictions"]) == 2


def test_one_prediction_of_a_task_that_is_not_there_stores_none(
    gateway: Any, project: int, tasks: list[int]
) -> None:
    with pytest.raises(ServerError, match=str(NOWHERE)):
        predict(gateway, project, [tasks[0], NOWHERE])
    assert all(not task["predictions"] for task in gateway.tasks(project, ["predictions"]))


def test_annotations_are_made_of_predictions_once(gateway: Any, project: int, tasks: list[int]) -> None:
    predict(gateway, project, tasks, "other", x=20)
    predict(gateway, project, tasks)
    for _ in range(2):
        gateway.predictions_to_annotations(project, "v1", tasks[:2])
    found = list(gateway.tasks(project, [*ANNOTATIONS, "predictions", "model_version"]))
    assert [len(task["annotations"]) for task in found] == [1, 1, 0, 0, 0]
    for task in found[:2]:
        (annotation,) = task["annotations"]
        (source,) = (p for p in task["predictions"] if p["model_version"] == "v1")
        assert annotation["result"] == source["result"] == [region(f"m{task['id']}"), region("b")]
        assert annotation["parent_prediction"] == source["id"]
        assert annotation["lead_time"] is None
        assert annotation["was_cancelled"] is False
        assert annotation["completed_by"] == gateway.user().id
        assert annotation["updated_by"] in (None, gateway.user().id)


def test_annotations_are_made_for_the_tasks_of_the_project_alone(
    gateway: Any, project: int, tasks: list[int]
) -> None:
    elsewhere = gateway.create_project("contract: elsewhere", CONFIG.replace("photo", "image"), "", {}).id
    (other,) = gateway.import_tasks(elsewhere, [{"data": {"image": "other.png"}}])
    predict(gateway, project, tasks[:1])
    predict(gateway, elsewhere, [other])
    gateway.predictions_to_annotations(project, "v1", [tasks[0], other, NOWHERE])
    assert len(annotations(gateway, project, tasks[0])) == 1
    assert annotations(gateway, elsewhere, other) == []


def test_an_annotation_changed_by_the_caller_is_the_callers(gateway: Any, project: int, tasks: list[int]) -> None:
    predict(gateway, project, tasks[:1])
    gateway.predictions_to_annotations(project, "v1", tasks[:1])
    (before,) = annotations(gateway, project, tasks[0])
    gateway.update_annotation(before["id"], [region("c")])
    (after,) = annotations(gateway, project, tasks[0])
    assert (after["id"], after["result"]) == (before["id"], [region("c")])
    assert after["lead_time"] is None
    assert after["completed_by"] == gateway.user().id
    assert after["updated_by"] in (None, gateway.user().id)
    assert after["parent_prediction"] == before["parent_prediction"]


def test_an_annotation_changed_by_a_person_shows_it(
    side: Any, gateway: Any, project: int, tasks: list[int]
) -> None:
    predict(gateway, project, tasks[:1])
    gateway.predictions_to_annotations(project, "v1", tasks[:1])
    (before,) = annotations(gateway, project, tasks[0])
    side.edit(before["id"], [region("c")])
    (after,) = annotations(gateway, project, tasks[0])
    assert after["result"] == [region("c")]
    assert after["completed_by"] == gateway.user().id
    assert after["updated_by"] == side.person


def test_a_persons_annotation_is_that_persons(side: Any, gateway: Any, project: int, tasks: list[int]) -> None:
    number = side.submit(tasks[0], [region()])
    (found,) = annotations(gateway, project, tasks[0])
    assert (found["id"], found["completed_by"]) == (number, side.person)
    assert found["was_cancelled"] is False
    assert found["result"] == [region()]
    assert found["lead_time"] == 1.0
    assert found["parent_prediction"] is None


def test_a_skip_is_a_cancelled_annotation(side: Any, gateway: Any, project: int, tasks: list[int]) -> None:
    number = side.skip(tasks[0])
    (found,) = annotations(gateway, project, tasks[0])
    assert (found["id"], found["completed_by"]) == (number, side.person)
    assert found["was_cancelled"] is True


def test_a_deleted_annotation_is_gone(side: Any, gateway: Any, project: int, tasks: list[int]) -> None:
    side.delete(side.submit(tasks[0], []))
    assert annotations(gateway, project, tasks[0]) == []


@pytest.mark.parametrize("name", ["a.png", "two words.jpg", "größe ☃ 日本.png", "a+b (1) & 100%#?.png"])
def test_an_uploaded_file_is_read_back(gateway: Any, project: int, name: str) -> None:
    content = bytes(range(256))
    (url,) = gateway.upload(project, [(name, content)])
    assert url.startswith(f"/data/upload/{project}/")
    assert gateway.read_file(url) == content


def test_an_uploaded_file_is_named_by_its_word_characters(gateway: Any, project: int) -> None:
    (url,) = gateway.upload(project, [("größe (1) b+c.d.png", b"x")])
    assert url.rsplit("/", 1)[1][9:] == "größe_1_bc.d.png"


def test_more_files_than_fit_in_a_request_are_told_apart(gateway: Any, project: int) -> None:
    files = [(f"{number % 7}.png", f"file {number}".encode()) for number in range(FILES_A_REQUEST + 1)]
    urls = gateway.upload(project, files)
    assert len(set(urls)) == len(files)
    for place in (0, 7, FILES_A_REQUEST - 1, FILES_A_REQUEST):
        assert gateway.read_file(urls[place]) == files[place][1]


def test_files_make_no_tasks(gateway: Any, project: int) -> None:
    assert gateway.upload(project, []) == []
    gateway.upload(project, [("a.png", b"a")])
    assert list(gateway.tasks(project, [])) == []


@pytest.mark.parametrize(
    "location",
    [
        "/data/upload/1/00000000-none.png",
        "/data/local-files/?d=none.png",
        "https://elsewhere.example/a.png",
        "//elsewhere.example/a.png",
        "http://[broken/a.png",
        "/data/upload/1/a\x00b.png",
        "file:///etc/passwd",
        "s3://bucket/a.png",
        "../secret.png",
        "",
    ],
)
def test_an_image_that_cannot_be_had_is_named(gateway: Any, location: str) -> None:
    with pytest.raises(ImageError) as refusal:
        gateway.read_file(location)
    assert str(refusal.value).startswith(f"image {shown(location)}")


def test_hotkeys_are_set_beside_others(side: Any, gateway: Any) -> None:
    one, two = {"key": "f8", "active": False}, {"key": "f9", "active": False}
    gateway.set_hotkeys({"contract:one": one})
    gateway.set_hotkeys({"contract:two": two})
    assert {"contract:one": one, "contract:two": two}.items() <= side.hotkeys().items()


def test_all_tasks_are_read_though_one_changes_meanwhile(
    side: Any, gateway: Any, project: int, tasks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "TASKS_A_PAGE", 2)
    listing = gateway.tasks(project, ["annotations"], since="2000-01-01T00:00:00Z")
    seen = [next(listing)]
    side.submit(tasks[0], [])
    side.submit(tasks[2], [])
    seen += listing
    assert {task["id"] for task in seen} == set(tasks)
    assert [[task["id"] for task in seen].count(number) for number in (tasks[1], tasks[3], tasks[4])] == [1] * 3
    last = {task["id"]: task for task in seen}
    assert len(last[tasks[2]]["annotations"]) == 1


def test_all_tasks_are_read_though_one_is_deleted_meanwhile(
    gateway: Any, project: int, tasks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "TASKS_A_PAGE", 2)
    for since in (None, "2000-01-01T00:00:00Z"):
        listing = gateway.tasks(project, [], since=since)
        seen = [next(listing)]
        gateway.delete_tasks(project, [tasks[0]])
        seen += listing
        assert [task["id"] for task in seen] == tasks
        tasks = tasks[1:]


@pytest.mark.parametrize("page", [2, 3, 5])
def test_tasks_that_changed_at_one_moment_are_all_read_and_once(
    side: Any, gateway: Any, project: int, tasks: list[int], page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "TASKS_A_PAGE", page)
    predict(gateway, project, tasks)
    before = gateway.latest(project)
    gateway.predictions_to_annotations(project, "v1", tasks[1:])
    side.submit(tasks[0], [])
    found = list(gateway.tasks(project, ["annotations"], since=before))
    assert [task["id"] for task in found] == [*tasks[1:], tasks[0]]
    assert len({task["updated_at"] for task in found}) == 2


def test_times_are_all_of_one_form(side: Any, gateway: Any, project: int, tasks: list[int]) -> None:
    side.submit(tasks[0], [])
    (task,) = gateway.tasks(project, ["annotations"], ids=tasks[:1])
    for stamp in (task["updated_at"], task["annotations"][0]["updated_at"], gateway.latest(project)):
        assert stamp == gateway_module.moment(stamp)


def test_tasks_without_an_annotation_that_is_no_skip_are_left_out(
    side: Any, gateway: Any, project: int, tasks: list[int]
) -> None:
    start = gateway.latest(project)
    side.skip(tasks[0])
    side.submit(tasks[3], [])
    side.skip(tasks[1])
    side.submit(tasks[1], [])
    side.delete(side.submit(tasks[4], []))

    def found(**chosen: Any) -> list[int]:
        return [task["id"] for task in gateway.tasks(project, [], annotated=True, **chosen)]

    assert found() == [tasks[1], tasks[3]]
    assert found(since=start) == [tasks[3], tasks[1]]
    assert found(ids=[tasks[0], tasks[1]]) == [tasks[1]]


def test_tasks_last_changed_at_given_moments_are_left_out(
    side: Any, gateway: Any, project: int, tasks: list[int]
) -> None:
    predict(gateway, project, tasks)
    start = gateway.latest(project)
    for part in (tasks[:2], tasks[2:4]):
        gateway.predictions_to_annotations(project, "v1", part)
    moments = {task["updated_at"] for task in gateway.tasks(project, [], ids=tasks[:4])}
    assert len(moments) == 2

    def found(**chosen: Any) -> list[int]:
        return [task["id"] for task in gateway.tasks(project, [], without=sorted(moments), **chosen)]

    assert found() == [tasks[4]]
    assert found(since=start) == []
    side.submit(tasks[1], [])
    assert found() == [tasks[1], tasks[4]]
    assert found(since=start) == found(annotated=True) == found(ids=tasks[:4]) == [tasks[1]]


def test_the_last_change_of_a_project_is_its_tasks(side: Any, gateway: Any, project: int) -> None:
    assert gateway.latest(project) is None
    tasks = gateway.import_tasks(project, [{"data": {"image": f"{number}.png"}} for number in range(3)])
    assert gateway.latest(project) == max(task["updated_at"] for task in gateway.tasks(project, []))
    side.submit(tasks[1], [])
    (changed,) = gateway.tasks(project, [], ids=[tasks[1]])
    assert gateway.latest(project) == changed["updated_at"]


def test_tasks_without_annotation_are_counted(
    side: Any, gateway: Any, project: int, tasks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "IDS_A_REQUEST", 2)
    assert gateway.unannotated(project, [*tasks, NOWHERE]) == 5
    answer = side.submit(tasks[0], [])
    side.skip(tasks[1])
    assert gateway.unannotated(project, tasks) == 4
    assert gateway.unannotated(project, tasks[:2]) == 1
    assert gateway.unannotated(project, []) == 0
    side.delete(answer)
    assert gateway.unannotated(project, tasks) == 5
    gateway.delete_tasks(project, tasks[:2])
    assert gateway.unannotated(project, tasks) == 3


def test_tasks_without_a_prediction_of_a_version_are_counted(
    gateway: Any, project: int, tasks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "IDS_A_REQUEST", 2)
    predict(gateway, project, tasks[:3], "v1")
    predict(gateway, project, tasks[1:4], "other")
    assert gateway.unpredicted(project, [*tasks, NOWHERE], "v1") == 2
    assert gateway.unpredicted(project, tasks[:3], "v1") == 0
    assert gateway.unpredicted(project, tasks, "other") == 2
    assert gateway.unpredicted(project, tasks, "v2") == 5
    assert gateway.unpredicted(project, [], "v1") == 0
    gateway.delete_tasks(project, [tasks[4]])
    assert gateway.unpredicted(project, tasks, "v1") == 1


def test_a_version_that_is_part_of_another_is_told_from_it(gateway: Any, project: int, tasks: list[int]) -> None:
    predict(gateway, project, tasks[:2], "v10")
    assert gateway.unpredicted(project, tasks, "v1") == 5
    gateway.predictions_to_annotations(project, "v1", tasks)
    assert gateway.unannotated(project, tasks) == 5


def test_annotations_made_in_one_call_are_settled(
    side: Any, gateway: Any, project: int, tasks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "IDS_A_REQUEST", 2)
    me = gateway.user().id
    side.skip(tasks[3])
    predict(gateway, project, tasks)
    assert gateway.settled(project, tasks, me) is None
    gateway.predictions_to_annotations(project, "v1", tasks[:4])
    (at,) = {task["updated_at"] for task in gateway.tasks(project, [], ids=tasks[:4])}
    assert gateway.settled(project, tasks[:4], me) == gateway.settled(project, tasks[1:3], me) == at
    assert gateway.settled(project, tasks[:4], side.person) is None
    assert gateway.settled(project, tasks, me) is None
    assert gateway.settled(project, [tasks[0], NOWHERE], me) is None
    assert gateway.settled(project, [], me) is None
    (made,) = annotations(gateway, project, tasks[0])
    gateway.update_annotation(made["id"], [])
    assert gateway.settled(project, tasks[:2], me) == at


@pytest.mark.parametrize("came", ["submit", "edit", "skip", "delete", "submit before", "delete the task"])
def test_nothing_is_settled_where_a_person_came_in_between(
    side: Any, gateway: Any, project: int, tasks: list[int], came: str
) -> None:
    predict(gateway, project, tasks)
    if came == "submit before":
        side.submit(tasks[0], [])
    gateway.predictions_to_annotations(project, "v1", tasks)
    (made,) = annotations(gateway, project, tasks[0])
    {
        "submit": lambda: side.submit(tasks[0], []),
        "edit": lambda: side.edit(made["id"], []),
        "skip": lambda: side.skip(tasks[0]),
        "delete": lambda: side.delete(made["id"]),
        "submit before": lambda: None,
        "delete the task": lambda: gateway.delete_tasks(project, tasks[:1]),
    }[came]()
    assert gateway.settled(project, tasks, gateway.user().id) is None
    assert gateway.settled(project, tasks[1:], gateway.user().id) is not None


def test_deleted_tasks_are_gone_and_others_stay(gateway: Any, project: int, tasks: list[int]) -> None:
    predict(gateway, project, tasks)
    gateway.predictions_to_annotations(project, "v1", tasks)
    elsewhere = gateway.create_project("contract: elsewhere", CONFIG.replace("photo", "image"), "", {}).id
    (other,) = gateway.import_tasks(elsewhere, [{"data": {"image": "other.png"}}])
    (made,) = annotations(gateway, project, tasks[0])
    gateway.delete_tasks(project, [])
    for _ in range(2):
        gateway.delete_tasks(project, [tasks[0], tasks[3], other, NOWHERE])
    assert [task["id"] for task in gateway.tasks(project, [])] == [tasks[1], tasks[2], tasks[4]]
    assert [task["id"] for task in gateway.tasks(elsewhere, [])] == [other]
    with pytest.raises(Missing, match="deleted"):
        gateway.update_annotation(made["id"], [])
    gateway.delete_tasks(project, tasks)
    assert list(gateway.tasks(project, [])) == []


def test_an_annotation_is_deleted_once_and_for_all(
    side: Any, gateway: Any, project: int, tasks: list[int]
) -> None:
    numbers = [side.submit(tasks[0], []), side.submit(tasks[0], [region()])]
    before = gateway.latest(project)
    for _ in range(2):
        gateway.delete_annotation(numbers[0])
    gateway.delete_annotation(NOWHERE)
    assert [found["id"] for found in annotations(gateway, project, tasks[0])] == numbers[1:]
    assert [task["id"] for task in gateway.tasks(project, [], since=before)] == tasks[:1]


def test_a_prediction_is_deleted_and_what_was_made_of_it_stays(
    gateway: Any, project: int, tasks: list[int]
) -> None:
    predict(gateway, project, tasks[:2])
    predict(gateway, project, tasks[:1], "other")
    gateway.predictions_to_annotations(project, "v1", tasks[:2])
    (made,) = annotations(gateway, project, tasks[0])
    before = gateway.latest(project)
    for _ in range(2):
        gateway.delete_prediction(made["parent_prediction"])
    gateway.delete_prediction(NOWHERE)
    (task,) = gateway.tasks(project, ["predictions", "model_version"], ids=tasks[:1])
    assert [prediction["model_version"] for prediction in task["predictions"]] == ["other"]
    assert annotations(gateway, project, tasks[0]) == [{**made, "parent_prediction": None}]
    assert gateway.unpredicted(project, tasks[:2], "v1") == 1
    assert [task["id"] for task in gateway.tasks(project, [], since=before)] == tasks[:1]


def test_what_somebody_has_begun_is_seen_until_it_is_changed(
    side: Any, gateway: Any, project: int, tasks: list[int]
) -> None:
    predict(gateway, project, tasks)
    gateway.predictions_to_annotations(project, "v1", tasks[:3])
    (made,) = annotations(gateway, project, tasks[0])
    before = gateway.latest(project)
    side.draft(tasks[0], made["id"])
    side.draft(tasks[3])
    assert gateway.latest(project) == before
    found = gateway.tasks(project, ["annotations", "draft_exists"])
    assert [task["id"] for task in found if task["draft_exists"]] == [tasks[0], tasks[3]]
    assert [gateway.drafts(task) for task in tasks[:4]] == [{made["id"]}, set(), set(), set()]
    gateway.update_annotation(made["id"], [])
    assert gateway.drafts(tasks[0]) == set()


def test_a_change_answers_the_annotations_time(side: Any, gateway: Any, project: int, tasks: list[int]) -> None:
    number = side.submit(tasks[0], [region()])
    (before,) = annotations(gateway, project, tasks[0])
    at = gateway.update_annotation(number, [region("b")])
    (after,) = annotations(gateway, project, tasks[0])
    assert before["updated_at"] < at == after["updated_at"]
    again = gateway.update_annotation(number, [region("b")])
    (after,) = annotations(gateway, project, tasks[0])
    assert at < again == after["updated_at"]
    assert after["completed_by"] == side.person
    assert after["updated_by"] == gateway.user().id


@pytest.mark.parametrize("came", ["submit", "skip", "other version"])
def test_annotations_are_made_where_there_is_none_but_skips(
    side: Any, gateway: Any, project: int, tasks: list[int], came: str
) -> None:
    predict(gateway, project, tasks[:2])
    if came == "submit":
        side.submit(tasks[0], [])
    elif came == "skip":
        side.skip(tasks[0])
    else:
        predict(gateway, project, tasks[:1], "other")
        gateway.predictions_to_annotations(project, "other", tasks[:1])
    for _ in range(2):
        gateway.predictions_to_annotations(project, "v1", tasks[:2])
        assert len(annotations(gateway, project, tasks[0])) == (2 if came == "skip" else 1)
        assert len(annotations(gateway, project, tasks[1])) == 1


def test_a_prediction_of_another_projects_task_stores_none(gateway: Any, project: int, tasks: list[int]) -> None:
    elsewhere = gateway.create_project("contract: elsewhere", CONFIG.replace("photo", "image"), "", {}).id
    (other,) = gateway.import_tasks(elsewhere, [{"data": {"image": "other.png"}}])
    with pytest.raises(ServerError):
        predict(gateway, project, [tasks[0], other])
    for number in (project, elsewhere):
        assert all(not task["predictions"] for task in gateway.tasks(number, ["predictions"]))


def test_a_webhook_is_set_up_once_and_brought_up_to_date(gateway: Any, project: int) -> None:
    elsewhere = gateway.create_project("contract: elsewhere", CONFIG, "", {}).id
    assert gateway.webhooks(project) == []
    for secret in ("one", "one", "two"):
        gateway.ensure_webhook(project, "http://127.0.0.1:9/webhook", {"X-Secret": secret})
        (hook,) = gateway.webhooks(project)
        assert (hook.url, hook.active) == ("http://127.0.0.1:9/webhook", True)
        assert hook.headers == {"X-Secret": secret}
        assert hook.actions == set(WEBHOOK_ACTIONS)
        assert secret not in repr(hook)
    gateway.ensure_webhook(project, "http://127.0.0.1:10/webhook", {})
    assert [hook.url for hook in gateway.webhooks(project)] == [
        "http://127.0.0.1:9/webhook",
        "http://127.0.0.1:10/webhook",
    ]
    assert gateway.webhooks(elsewhere) == []
    with pytest.raises(ServerError):
        gateway.webhooks(NOWHERE)
    with pytest.raises(ServerError):
        gateway.ensure_webhook(NOWHERE, "http://127.0.0.1:9/webhook", {})


def test_a_webhook_to_what_the_server_does_not_send_to_is_a_wrong_setting(gateway: Any, project: int) -> None:
    with pytest.raises(SettingsError, match="webhook_url"):
        gateway.ensure_webhook(project, "ftp://127.0.0.1/webhook", {})
    assert gateway.webhooks(project) == []


@pytest.mark.parametrize("side", ["sqlite", "postgresql"], indirect=True)
def test_what_people_do_is_sent_to_a_webhook(side: Any, gateway: Any, project: int, tasks: list[int]) -> None:
    told: Queue[tuple[str | None, dict[str, Any]]] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            told.put((self.headers["x-secret"], json.loads(body)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            gateway.ensure_webhook(project, f"http://127.0.0.1:{server.server_port}", {"X-Secret": "word"})
            number = side.submit(tasks[0], [])
            side.edit(number, [region()])
            side.delete(number)
            side.skip(tasks[1])
            gateway.delete_tasks(project, [tasks[2]])
            sent = [told.get(timeout=10) for _ in range(5)]
        finally:
            server.shutdown()
            thread.join()
    assert {secret for secret, _ in sent} == {"word"}
    assert {body["project"]["id"] for _, body in sent} == {project}
    assert [body["action"] for _, body in sent] == [
        "ANNOTATION_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATIONS_DELETED",
        "ANNOTATION_CREATED",
        "TASKS_DELETED",
    ]


def test_a_file_that_is_not_among_the_uploads_is_named(gateway: Any, project: int) -> None:
    (url,) = gateway.upload(project, [("a.png", b"a")])
    with pytest.raises(ImageError, match="restore the file") as refusal:
        gateway.read_file(url.replace("a.png", "b.png"))
    assert repr(url.replace("a.png", "b.png")) in str(refusal.value)


def test_the_server_is_left_alone_where_its_quick_calls_have_become_slow(
    gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    pace = Pace(sleep=rests.append)
    monkeypatch.setattr(gateway, "pace", pace)
    for _ in range(3):
        pace.felt("a", 0.01)
    gateway.breathe()
    assert rests == []
    pace.took("tasks", 10, 1.0)
    for _ in range(2):
        pace.felt("a", 5.0)
    gateway.breathe()
    assert len(rests) == 1
    assert 1 <= rests[0] <= LONGEST


def test_a_task_is_given_other_data_and_keeps_its_annotation(
    side: Any, gateway: Any, project: int, tasks: list[int]
) -> None:
    made = side.submit(tasks[0], [region()])
    before = gateway.latest(project)
    data = {"image": "other.png", "size": 12, "yes": None, "said": "<b>“x”</b>"}
    gateway.update_task(tasks[0], data)
    (found,) = gateway.tasks(project, ["data", "annotations"], ids=[tasks[0]])
    assert found["data"] == data
    assert [annotation["id"] for annotation in found["annotations"]] == [made]
    assert gateway.latest(project) > before
    with pytest.raises(Missing):
        gateway.update_task(NOWHERE, data)


def titles(gateway: Any, project: int) -> list[str]:
    return [tab["title"] for tab in gateway.tabs(project).values()]


def test_tabs_are_made_once(gateway: Any, project: int) -> None:
    assert gateway.tabs(project) == {}
    for _ in range(2):
        add_tabs(gateway, project, tabs())
    assert titles(gateway, project) == [tab["title"] for tab in tabs()]


def test_a_tab_is_given_other_filters_and_keeps_its_place(gateway: Any, project: int) -> None:
    for title in ("One", "Two"):
        gateway.create_tab(project, {**SOURCE_TABS[0], "title": title})
    (number, one), (_, two) = gateway.tabs(project).items()
    assert one == {**SOURCE_TABS[0], "title": "One"}
    other = {**one, "filters": SOURCE_TABS[1]["filters"], "columnsWidth": {"tasks:id": 70}}
    gateway.update_tab(number, other)
    assert list(gateway.tabs(project).values()) == [other, two]


def test_the_tabs_of_a_source_project_are_made_behind_the_list_of_all_tasks(gateway: Any, project: int) -> None:
    for _ in range(2):
        make_source_tabs(gateway, project, SOURCE_TABS)
    assert titles(gateway, project) == ["Default", "Propagated", "Partly decided", "Undecided"]


def test_tabs_of_an_earlier_campaign_are_brought_up_to_date_and_peoples_stay(gateway: Any, project: int) -> None:
    mine = {**SOURCE_TABS[0], "title": "Undecided", "filters": filters_of([("id", "greater", "Number", 3)])}
    gateway.create_tab(project, mine)
    make_source_tabs(gateway, project, SOURCE_TABS)
    _, first, second, third = gateway.tabs(project)
    before = gateway.tabs(project)
    gateway.update_tab(first, {**before[first], "title": "Done", "columnsWidth": {"tasks:id": 70}})
    later = source_tabs("propagate-2", "propagated-2", "image", ["a.png", "b.png"], 9)
    make_source_tabs(gateway, project, later)
    after = gateway.tabs(project)
    assert list(after) == list(before)
    assert titles(gateway, project) == ["Undecided", "Done", "Partly decided, 2 of 9", "Undecided"]
    assert [after[n]["filters"] for n in (first, second, third)] == [tab["filters"] for tab in later]
    assert after[first]["columnsWidth"] == {"tasks:id": 70}
    assert next(iter(after.values())) == mine
    update_source_tabs(gateway, after, SOURCE_TABS)
    assert gateway.tabs(project)[second] == before[second]


def test_instructions_are_replaced(gateway: Any, project: int) -> None:
    assert gateway.project(project).instructions == ""
    text = '<b>Look</b> at <img src="/data/upload/1/a.svg" alt="5 of 7; 1 &lt; 2" width="640">'
    gateway.set_instructions(project, text)
    assert gateway.project(project).instructions == text


def test_one_file_is_uploaded_and_deleted(side: Any, gateway: Any, project: int) -> None:
    kept, url = gateway.upload_one(project, "kept.svg", b"<svg/>")
    number, gone = gateway.upload_one(project, "a.svg", b"<svg/>")
    assert gone.endswith("-a.svg")
    assert number != kept
    for _ in range(2):
        gateway.delete_upload(project, number)
    assert gateway.read_file(url) == b"<svg/>"
    with pytest.raises((ImageError, ServerError)):
        gateway.read_file(gone)


def test_the_tabs_of_the_board_list_its_cards(label_studio: Any, real_gateway: Any) -> None:
    config = files("plugin.label_studio").joinpath("configs/cluster_board.xml").read_text()
    board = real_gateway.create_project("contract: board", config, "", BOARD_SETTINGS).id
    cards = [
        Card(f"x/{n}", "x", tab, tab, 10 + n, n, None, 85.0, n, "", "/data/upload/1/a.jpg").data()
        for n, tab in enumerate(["open", "accepted", "rejected", "stuck", "open"])
    ]
    numbers = real_gateway.import_tasks(board, [{"data": card} for card in cards])
    for _ in range(2):
        add_tabs(real_gateway, board, tabs())
    views = real_gateway.answer("GET", "api/dm/views/", params={"project": board}).json()
    by_title = {view["data"]["title"]: view["id"] for view in views}
    assert sorted(by_title) == ["Accepted", "Open clusters", "Rejected", "Split", "Stuck"]

    def listed(title: str) -> list[int]:
        answer = real_gateway.answer("GET", "api/tasks/", params={"view": by_title[title], "project": board})
        return [task["id"] for task in answer.json()["tasks"]]

    assert listed("Open clusters") == [numbers[4], numbers[0]]
    assert [listed(title) for title in ("Accepted", "Rejected", "Stuck")] == [[n] for n in numbers[1:4]]
    for going, left in ((numbers[1:], 5), (numbers, 0)):  # with its last task a project loses its tabs
        real_gateway.delete_tasks(board, going)
        assert len(real_gateway.answer("GET", "api/dm/views/", params={"project": board}).json()) == left


def test_a_projects_labeling_config_is_replaced_and_its_tasks_stay(gateway: Any, project: int) -> None:
    (task,) = gateway.import_tasks(project, [{"data": {"image": "/a.png"}}])
    config = gateway.project(project).label_config.replace("</View>", '<Header value="Look"/></View>')
    gateway.set_label_config(project, config)
    assert gateway.project(project).label_config.strip() == config.strip()
    assert [found["id"] for found in gateway.tasks(project, ["data"], ids=[task])] == [task]
