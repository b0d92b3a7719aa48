"""What the product relies on of an annotation tool's server, held against the fake and the real one."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from plugin.label_studio import gateway as gateway_module
from plugin.label_studio.gateway import FILES_A_REQUEST
from propagation.errors import ImageError, Missing, ServerError

NOWHERE = 99_999_999
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


@pytest.mark.parametrize(
    "ask",
    [
        lambda gateway: gateway.project(NOWHERE),
        lambda gateway: list(gateway.tasks(NOWHERE, ["data"])),
        lambda gateway: gateway.import_tasks(NOWHERE, [{"data": {"image": "a.png"}}]),
        lambda gateway: gateway.import_predictions(NOWHERE, [{"task": 1, "model_version": "v", "result": []}]),
        lambda gateway: gateway.predictions_to_annotations(NOWHERE, "v", [1]),
        lambda gateway: gateway.update_annotation(NOWHERE, []),
        lambda gateway: gateway.upload(NOWHERE, [("a.png", b"a")]),
    ],
    ids=["project", "tasks", "import", "predictions", "annotations", "update", "upload"],
)
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
    monkeypatch.setattr(gateway_module.chunks, "__defaults__", (2,))
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
    assert repr(location) in str(refusal.value)


def test_hotkeys_are_set_beside_others(side: Any, gateway: Any) -> None:
    one, two = {"key": "f8", "active": False}, {"key": "f9", "active": False}
    gateway.set_hotkeys({"contract:one": one})
    gateway.set_hotkeys({"contract:two": two})
    assert {"contract:one": one, "contract:two": two}.items() <= side.hotkeys().items()
