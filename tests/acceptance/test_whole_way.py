"""The whole way of the data, in a real Label Studio."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from ls_propagate import pipeline, service
from ls_propagate.demo.run import answered, least_iou, read_back, regions_by_mask
from ls_propagate.demo.server import new_user
from propagation.events import Command, Commanded
from sync.source import ANNOTATION_FIELDS, Source, is_ours

Site = Any
SQUARE = [[10.0, 10.0], [40.0, 10.0], [40.0, 40.0], [10.0, 40.0]]


def prepare(site: Site) -> None:
    pipeline.detect(site.gateway, site.store, site.settings)
    pipeline.cluster(site.gateway, site.store, site.settings)


def drawn(label: str = "one") -> list[dict[str, Any]]:
    """What a person draws."""
    return [
        {
            "id": "by-hand",
            "from_name": "polygon",
            "to_name": "image",
            "type": "polygonlabels",
            "original_width": 288,
            "original_height": 288,
            "image_rotation": 0,
            "value": {"points": SQUARE, "closed": True, "polygonlabels": [label]},
        }
    ]


def draw(client: httpx.Client, task: int) -> dict[str, Any]:
    """A person's annotation of a source task."""
    made = client.post(f"/api/tasks/{task}/annotations/", json={"result": drawn(), "lead_time": 9.0})
    assert made.status_code == 201, made.text
    return stored(client, made.json()["id"])


def stored(client: httpx.Client, annotation: int) -> dict[str, Any]:
    kept: dict[str, Any] = client.get(f"/api/annotations/{annotation}/").json()
    return {name: value for name, value in kept.items() if name != "created_ago"}


def source_tasks(site: Site) -> list[dict[str, Any]]:
    fields = ["data", "annotations", "result", "parent_prediction", "completed_by", "predictions", "model_version"]
    return list(site.gateway.tasks(site.connection.project, fields))


def test_a_campaign_ends_with_the_accepted_masks_in_the_source_project(connect: Callable[[str], Site]) -> None:
    site = connect("campaign")
    with closing(new_user(site.server, "person@example.com", "look-closely-2")) as person:
        pool = [task["id"] for task in source_tasks(site) if not task["annotations"]]
        before = draw(person, pool[0])
        prepare(site)
        assert pool[0] not in {task.task for task in site.store.source_tasks()}
        daemon = pipeline.open_daemon(site.gateway, site.store, site.settings)
        daemon.step()
        during = draw(person, pool[1])
        with site.annotator() as annotator:
            answered(daemon, annotator)

        table, accepted = daemon.campaign.table, daemon.campaign.accepted()
        written = regions_by_mask(site.gateway, site.connection)
        assert set(written) == set(table.ids[accepted].tolist())
        assert accepted.sum() > 100
        wrong = set(table.ids[daemon.campaign.verdict == 0].tolist())
        assert wrong
        assert not wrong & set(written)
        assert (least_iou(site.gateway, site.connection, table) or 0) >= 0.98

        tasks = {task["id"]: task for task in source_tasks(site)}
        for task, annotation in ((pool[0], before), (pool[1], during)):
            assert stored(person, annotation["id"]) == annotation
            assert [kept["id"] for kept in tasks[task]["annotations"]] == [annotation["id"]]
        assert max(len(task["annotations"]) for task in tasks.values()) == 1
        assert max(len(task["predictions"]) for task in tasks.values()) == 2

        counts = read_back(site.gateway, site.connection)
        prepare(site)
        assert pipeline.open_daemon(site.gateway, site.store, site.settings).step().finished
        assert read_back(site.gateway, site.connection) == counts


def test_a_persons_edit_of_a_propagated_annotation_stays(connect: Callable[[str], Site]) -> None:
    site = connect("edited")
    prepare(site)
    daemon = pipeline.open_daemon(site.gateway, site.store, site.settings)
    with site.annotator() as annotator:
        answered(daemon, annotator)
    task = next(task for task in source_tasks(site) if any(a["parent_prediction"] for a in task["annotations"]))
    (ours,) = task["annotations"]
    with closing(new_user(site.server, "editor@example.com", "look-closely-3")) as person:
        change = {"result": ours["result"][1:], "lead_time": 4.0}
        assert person.patch(f"/api/annotations/{ours['id']}/", json=change).is_success
        edited = stored(person, ours["id"])
        daemon = pipeline.open_daemon(site.gateway, site.store, site.settings)
        daemon.step()
        assert daemon.campaign.is_taken(daemon.campaign.table.images[_place(daemon, task["id"])])
        daemon.step()
        assert stored(person, ours["id"]) == edited


def test_a_page_whose_answer_is_deleted_is_offered_again_as_the_same_task(connect: Callable[[str], Site]) -> None:
    site = connect("deleted")
    prepare(site)
    daemon = pipeline.open_daemon(site.gateway, site.store, site.settings)
    daemon.step()
    with closing(new_user(site.server, "doubter@example.com", "look-closely-4")) as doubter:
        first = doubter.get(f"/api/projects/{site.connection.pages}/next/").json()["id"]
        made = doubter.post(f"/api/tasks/{first}/annotations/", json={"result": [], "lead_time": 2.0})
        daemon.step()
        page = daemon.campaign.page_of[first]
        assert (daemon.campaign.verdict[page.rows] == 1).all()
        assert doubter.delete(f"/api/annotations/{made.json()['id']}/").is_success
        step = daemon.step()
        assert page in daemon.campaign.waiting_pages
        assert (daemon.campaign.verdict[page.rows] == -1).all()
        assert step.pages == 0
        assert doubter.get(f"/api/projects/{site.connection.pages}/next/").json()["id"] == first


def _place(daemon: Any, task: int) -> int:
    image = next(known.image for known in daemon.store.source_tasks() if known.task == task)
    return list(daemon.campaign.table.images).index(image)


def test_the_command_line_walks_the_whole_way(connect: Callable[[str], Site]) -> None:
    site = connect("commands")

    def run(*words: str) -> str:
        code = site.command(*words).wait(300)
        assert code == 0, site.output.read_text()
        return str(site.output.read_text())

    assert "Connected project" in run("connect", str(site.connection.project))
    assert "masks in" in run("detect")
    assert "cluster trees" in run("cluster")
    run("sync", "--once")
    with site.annotator_at_work():
        assert "Nothing left to ask" in run("sync", "--until-finished")
    status = json.loads(run("status", "--json"))
    assert status["claim"] == "promise"
    file = site.config.parent / "accepted.json"
    run("export", str(file))
    exported = json.loads(file.read_text())
    assert (
        len(exported["annotations"])
        == status["total"]["accepted"]
        == len(regions_by_mask(site.gateway, site.connection))
    )


def test_the_backend_command_serves_the_segmenter(
    connect: Callable[[str], Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = connect("backend")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setenv("LS_PROPAGATE_BACKEND_PORT", str(port))
    process = site.command("backend")
    try:
        deadline = time.monotonic() + 60
        health = None
        while health is None and time.monotonic() < deadline:
            assert process.poll() is None, site.output.read_text()
            with suppress(httpx.HTTPError):
                health = httpx.get(f"http://127.0.0.1:{port}/health", timeout=1)
        assert health is not None
        assert health.json()["status"] == "UP"
        assert httpx.get(f"http://127.0.0.1:{port}/versions").json()["versions"][0].startswith("precomputed-")
    finally:
        process.terminate()
        process.wait(20)
    monkeypatch.setenv("LS_PROPAGATE_BACKEND_HOST", "0.0.0.0")
    assert site.command("backend").wait(60) == 1
    assert "LS_PROPAGATE_BACKEND_PASSWORD" in site.output.read_text()


def test_undoing_what_was_accepted_leaves_the_counts_of_before(connect: Callable[[str], Site]) -> None:
    site = connect("undone")
    prepare(site)
    with closing(new_user(site.server, "drawer@example.com", "look-closely-5")) as person:
        draw(person, source_tasks(site)[0]["id"])
        before = counts(site)
        daemon = pipeline.open_daemon(site.gateway, site.store, site.settings)
        with site.annotator() as annotator:
            answered(daemon, annotator)
        assert counts(site) != before
        names = sorted({str(name) for name in daemon.campaign.reasons() if name})
        assert names
        assert site.command("undo", *names).wait(120) == 0, site.output.read_text()
        assert f"Undone: {names[0]}" in site.output.read_text()
        assert counts(site) == before
        daemon = pipeline.open_daemon(site.gateway, site.store, site.settings)
        daemon.step()
        assert counts(site) == before


def test_a_daemon_that_runs_obeys_what_is_undone_beside_it(connect: Callable[[str], Site]) -> None:
    site = connect("beside")
    prepare(site)
    daemon = pipeline.open_daemon(site.gateway, site.store, site.settings)
    with site.annotator() as annotator:
        answered(daemon, annotator)
    since = datetime.now(UTC).isoformat()
    key = next(key for key, state in daemon.campaign.states().items() if state == "accepted")
    cluster, gone = daemon.campaign.cluster(*key), daemon.campaign.rows(*key)
    ids = daemon.campaign.table.ids
    left = set(ids[daemon.campaign.accepted()].tolist()) - set(ids[gone].tolist())
    beside = dataclasses.replace(site, config=site.config.with_name("daemon.toml"))
    beside.config.write_text(f"poll_seconds = 0.2\n{site.config.read_text()}")
    running = beside.command("sync")
    try:
        waited_for(lambda: is_held(site.store), running, beside)
        assert site.command("undo", cluster).wait(120) == 0, site.output.read_text()
        assert site.output.read_text().strip() == f"Undone: {cluster}"
        waited_for(lambda: held(site) == left, running, beside)
        assert site.command("undo", cluster).wait(120) == 1
        assert f"error: {cluster}: its decision is undone already" in site.output.read_text()
        accept = Commanded(cluster, "accept", "somebody", since, "test/accept")
        assert service.command(site.settings, site.store, site.gateway, [accept]) == [accept]
        waited_for(lambda: held(site) > left, running, beside)
        assert site.command("undo", "--since", since).wait(120) == 0, site.output.read_text()
        assert site.output.read_text().strip() == f"Undone: {cluster}"
        waited_for(lambda: held(site) == left, running, beside)
        assert running.poll() is None
        commanded = [event for event in site.store.events() if isinstance(event, Commanded)]
        assert [event.command for event in commanded] == ["undo", "accept", "undo"]
    finally:
        running.terminate()
        running.wait(60)


def held(site: Site) -> set[str]:
    """The masks that are written."""
    return set(regions_by_mask(site.gateway, site.connection))


def is_held(store: Any) -> bool:
    """Whether a daemon has the store's lock."""
    if store.lock().acquire():
        store.lock().release()
        return False
    return True


def waited_for(what: Callable[[], bool], running: Any, site: Site) -> None:
    deadline = time.monotonic() + 240
    while not what():
        assert running.poll() is None, site.output.read_text()
        assert time.monotonic() < deadline, site.output.read_text()
        time.sleep(0.3)


def test_what_people_did_is_the_same_byte_for_byte_after_an_accept_and_its_undo(
    connect: Callable[[str], Site],
) -> None:
    site = connect("people")
    with closing(new_user(site.server, "people@example.com", "look-closely-6")) as person:
        bare = [task["id"] for task in source_tasks(site) if not task["annotations"]]
        draw(person, bare[0])
        prepare(site)
        campaign = pipeline.open_campaign(site.store, site.settings)
        first, second = (campaign.cluster(place, campaign.trees[place].root) for place in (0, 1))
        command(site, first, "accept")
        ours = {task["id"]: task["annotations"][0] for task in source_tasks(site) if by_us(task)}
        edited, beside, skipped, unlike, begun, changing, *others = sorted(set(ours) & tasks_of(site, second))
        assert others
        unwritten = min(tasks_of(site, second) - set(ours))
        change = {"result": ours[edited]["result"][1:], "lead_time": 4.0}
        assert person.patch(f"/api/annotations/{ours[edited]['id']}/", json=change).is_success
        draw(person, beside)
        skip(person, skipped)
        skip(person, unlike, parent_prediction=ours[unlike]["parent_prediction"])
        skip(person, unwritten)
        begin_to_draw(person, f"/api/tasks/{begun}/drafts")
        begin_to_draw(person, f"/api/tasks/{changing}/annotations/{ours[changing]['id']}/drafts")
        pipeline.open_daemon(site.gateway, site.store, site.settings).step()

        before, theirs, written = counts(site), people(site, person), results(site)
        kinds = [annotation["was_cancelled"] for annotation in theirs["annotations"].values()]
        assert (kinds.count(True), len(theirs["drafts"])) == (3, 2)
        assert len(kinds) >= 6
        command(site, second, "accept")
        during = counts(site)
        assert during["project"]["total_annotations_number"] > before["project"]["total_annotations_number"]
        assert people(site, person) == theirs
        assert site.command("undo", second).wait(300) == 0, site.output.read_text()
        assert people(site, person) == theirs
        assert results(site) == written
        assert counts(site) == before


def command(site: Site, cluster: str, what: Command) -> None:
    said = Commanded(cluster, what, "somebody", "2026-11-22T10:00:00Z", f"test/{cluster}")
    assert service.command(site.settings, site.store, site.gateway, [said]) == [said]


def tasks_of(site: Site, cluster: str) -> set[int]:
    """The tasks whose images have masks of a cluster."""
    campaign = pipeline.open_campaign(site.store, site.settings)
    rows = campaign.rows(*campaign.find(cluster))
    images = set(campaign.table.images[campaign.table.image[rows[campaign.table.best[rows]]]].tolist())
    return {known.task for known in site.store.source_tasks() if known.image in images}


def skip(client: httpx.Client, task: int, **more: Any) -> None:
    body = {"result": [], "was_cancelled": True, **more}
    assert client.post(f"/api/tasks/{task}/annotations/", json=body).status_code == 201


def begin_to_draw(client: httpx.Client, path: str) -> None:
    """What the editor keeps of an annotation that is not submitted yet."""
    made = client.post(path, json={"result": drawn(), "lead_time": 2.0})
    assert made.status_code == 201, made.text


def by_us(task: dict[str, Any]) -> bool:
    return any(annotation["parent_prediction"] for annotation in task["annotations"])


def people(site: Site, client: httpx.Client) -> dict[str, dict[int, Any]]:
    """What people did in the source project, as the API tells it: annotations, and what is not submitted."""
    fields = [*ANNOTATION_FIELDS, "draft_exists"]
    tasks = list(site.gateway.tasks(site.connection.project, fields))
    theirs = [annotation["id"] for _, annotation, own in told_apart(site, tasks) if not own]
    drafts = [
        draft
        for task in tasks
        if task["draft_exists"]
        for draft in client.get(f"/api/tasks/{task['id']}/drafts").json()
    ]
    return {
        "annotations": {number: stored(client, number) for number in theirs},
        "drafts": {draft["id"]: {**draft, "created_ago": ""} for draft in drafts},
    }


def results(site: Site) -> dict[int, Any]:
    """What the campaign's own annotations hold."""
    tasks = list(site.gateway.tasks(site.connection.project, ANNOTATION_FIELDS))
    return {task: annotation["result"] for task, annotation, own in told_apart(site, tasks) if own}


def told_apart(site: Site, tasks: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any], bool]]:
    """Each annotation with its task, and whether it is the campaign's own."""
    campaign = pipeline.open_campaign(site.store, site.settings)
    labeling = pipeline.labeling_of(site.gateway, site.connection, site.settings, campaign.table.categories)
    source = Source(site.connection.project, labeling, site.gateway.user().id)
    for task in tasks:
        for annotation in task["annotations"]:
            yield task["id"], annotation, is_ours(annotation, task["id"], campaign, source)


def counts(site: Site) -> dict[str, Any]:
    """All that Label Studio counts of the source project and its tasks, and the regions of each task."""
    names = ("total_annotations", "cancelled_annotations", "total_predictions", "is_labeled", "draft_exists")
    fields = ["annotations", "result", *names]
    told = site.gateway.answer("GET", f"api/projects/{site.connection.project}/").json()
    return {
        "project": {name: value for name, value in told.items() if isinstance(value, int) and "number" in name},
        "tasks": {
            task["id"]: {
                "regions": sum(len(annotation["result"]) for annotation in task["annotations"]),
                **{name: task[name] for name in names},
            }
            for task in site.gateway.tasks(site.connection.project, fields)
        },
    }
