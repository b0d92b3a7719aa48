"""The whole way of the data, in a real Label Studio."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import httpx
import pytest

from ls_propagate import pipeline
from ls_propagate.demo.run import answered, least_iou, read_back, regions_by_mask
from ls_propagate.demo.server import new_user

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
        drawn = source_tasks(site)[0]["id"]
        result = [dict(region, meta={}, id="mine") for region in _region(site)]
        made = person.post(f"/api/tasks/{drawn}/annotations/", json={"result": result, "lead_time": 3.0})
        theirs = stored(person, made.json()["id"])
        before = _counts(site)
        daemon = pipeline.open_daemon(site.gateway, site.store, site.settings)
        with site.annotator() as annotator:
            answered(daemon, annotator)
        assert _counts(site) != before
        site.store.lock().release()
        names = sorted({str(name) for name in daemon.campaign.reasons() if name})
        assert names
        assert site.command("undo", *names).wait(120) == 0, site.output.read_text()
        assert f"Undone: {names[0]}" in site.output.read_text()
        assert _counts(site) == before
        assert stored(person, theirs["id"]) == theirs
        daemon = pipeline.open_daemon(site.gateway, site.store, site.settings)
        daemon.step()
        assert _counts(site) == before


def _region(site: Site) -> list[dict[str, Any]]:
    """The first predicted region of the project."""
    found = site.gateway.tasks(site.connection.project, ["predictions", "result"])
    return next(p["result"][:1] for task in found for p in task["predictions"] if p["result"])


def _counts(site: Site) -> dict[int, tuple[int, int]]:
    """The annotations of each source task, and their regions."""
    return {
        task["id"]: (len(task["annotations"]), sum(len(a["result"]) for a in task["annotations"]))
        for task in source_tasks(site)
    }
