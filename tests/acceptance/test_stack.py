"""The services of docker/compose.yaml as processes: Label Studio and the daemon on PostgreSQL, and the backend.

A campaign is run by the command line, as a team does that has just started them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from ls_propagate import pipeline
from ls_propagate.demo.annotator import Annotator
from ls_propagate.demo.dataset import Dataset
from ls_propagate.demo.run import Demo, demo_settings, regions_by_mask, source_project
from ls_propagate.demo.server import Server, new_user
from ls_propagate.settings import load_settings
from propagation.quality import RIGHT_IOU, truth_iou


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the user nobody can reach, as whom PostgreSQL runs where we are root."""
    with tempfile.TemporaryDirectory(prefix="stack-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def at_work(annotator: Annotator) -> Iterator[None]:
    """An annotator who answers whatever comes, beside the test."""
    stop = threading.Event()
    worker = threading.Thread(target=annotator.run, args=[stop])
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join()


def waited_for(what: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + 600
    while not what():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.5)


def test_the_services_of_the_compose_file_run_a_campaign(
    stack: ModuleType, dataset: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = folder / "project"
    project.mkdir()
    demo_settings(Demo(project, dataset.folder, budget=200), dataset, Server("http://127.0.0.1:1", "", "", "no"))
    variables = stack.read_env(folder / "env")
    with stack.stack(folder / "data", variables, project) as running:
        for name, value in running.environments["daemon"].items():
            monkeypatch.setenv(name, value)
        log = folder / "data" / "daemon.log"
        settings = load_settings(project / "ls-propagate.toml")

        def told(path: str, password: str = variables["DAEMON_PASSWORD"]) -> httpx.Response:
            return httpx.get(f"{running.addresses['daemon']}{path}", auth=("anybody", password), timeout=30)

        def said(*words: str) -> str:
            command = [str(Path(sys.executable).parent / "ls-propagate"), *words]
            done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout

        with pipeline.open_store(settings) as store, pipeline.open_gateway(settings) as gateway:
            made = source_project(gateway, dataset, project)
            ready = told("/health/ready")
            assert (ready.status_code, "no campaign has begun yet" in ready.text) == (503, True)
            assert "Connected project" in said("connect", str(made.number))
            assert "masks in" in said("detect")
            assert "cluster trees" in said("cluster")
            table, connection = pipeline.load_table(store, settings), pipeline.connection_of(store)
            right = dict(zip(table.ids.tolist(), (truth_iou(table, made.truth) > RIGHT_IOU).tolist(), strict=True))
            known = pipeline.load_gold(store, settings)
            client = new_user(running.server, "reader@example.com", "look-closely-1")
            annotator = Annotator(client, connection.pages, right | (known.truth if known else {}))
            with closing(client), at_work(annotator):
                waited_for(lambda: "Nothing left to ask." in log.read_text(), log)
            assert "ls_propagate_finished 1.0" in told("/metrics").text
            assert told("/health/ready").status_code == 200
            assert 'action="ANNOTATION_CREATED"' in told("/metrics").text
            assert log.read_text().count("Nothing left to ask.") == 1
            assert told("/board.json").is_success
            assert told("/board.json", "wrong").status_code == 401

            total = json.loads(said("status", "--json"))["total"]
            said("export", str(project / "accepted.json"))
            exported = json.loads((project / "accepted.json").read_text())["annotations"]
            written = regions_by_mask(gateway, connection)
            accepted = set(table.ids[pipeline.open_campaign(store, settings).accepted()].tolist())
            assert set(written) == accepted
            assert len(exported) == total["accepted"] == len(accepted) > 50

            task = store.source_tasks()[0].task
            answer = asked_backend(running, variables["BACKEND_PASSWORD"], made.number, task)
            assert answer["model_version"].startswith("precomputed-")
            assert answer["result"]

        database = sa.make_url(settings.store_url)
        for name, table_of in (("labelstudio", "task"), ("propagate", "events")):
            engine = sa.create_engine(database.set(database=name, drivername="postgresql+psycopg"))
            with engine.connect() as connected:
                assert (connected.scalar(sa.text(f"SELECT count(*) FROM {table_of}")) or 0) > 20
            engine.dispose()


def asked_backend(running: Any, password: str, project: int, task: int) -> dict[str, Any]:
    """The backend's prediction of a task, as Label Studio fetches it when a manager has connected the backend."""
    headers = {"Authorization": f"Token {running.server.token}"}
    with httpx.Client(base_url=f"{running.server.url}/api/", headers=headers, timeout=60) as api:
        given = {"project": project, "url": running.addresses["backend"], "title": "propagate"}
        refused = api.post("ml/", json=given)
        assert refused.status_code == 400
        secret = {"auth_method": "BASIC_AUTH", "basic_auth_user": "anybody", "basic_auth_pass": password}
        backend = api.post("ml/", json={**given, **secret}).raise_for_status().json()
        assert backend["state"] == "CO"
        selected = {"selectedItems": {"all": False, "included": [task]}}
        action = {"id": "retrieve_tasks_predictions", "project": project}
        api.post("dm/actions", params=action, json=selected).raise_for_status()
        fetched = [
            prediction
            for prediction in api.get("predictions/", params={"task": task}).raise_for_status().json()
            if prediction["model_version"] == backend["model_version"]
        ]
        assert len(fetched) == 1
        answer: dict[str, Any] = fetched[0]
        return answer
