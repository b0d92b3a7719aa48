"""The services of docker/compose.yaml as processes: Label Studio and the daemon on PostgreSQL, and the backend."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
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

ROOT = Path(__file__).parents[2]


def loaded() -> Any:
    """docker/stack.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("stack", ROOT / "docker" / "stack.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["stack"] = module
    spec.loader.exec_module(module)
    return module


def until(true: Callable[[], Any], why: str, seconds: float = 600) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, why
        time.sleep(0.5)
    return found


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that the user nobody can reach, as whom PostgreSQL runs where we are root."""
    with tempfile.TemporaryDirectory(prefix="stack-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_the_services_of_the_compose_file_run_a_campaign(
    dataset: Dataset, reachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, folder = loaded(), reachable
    project = folder / "project"
    project.mkdir()
    demo_settings(Demo(project, dataset.folder, budget=200), dataset, Server("http://127.0.0.1:1", "", "", "no"))
    variables = tool.read_env(folder / "env")
    assert (folder / "env").stat().st_mode & 0o077 == 0
    assert tool.read_env(folder / "env") == variables  # what was made is kept
    with tool.stack(folder / "data", variables, project) as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        ready = httpx.get(f"{running.addresses['daemon']}/health/ready", timeout=10)
        assert (ready.status_code, "no campaign has begun" in ready.text) == (503, True)
        settings = load_settings(project / "ls-propagate.toml")
        with pipeline.open_store(settings) as store, pipeline.open_gateway(settings) as gateway:
            made = source_project(gateway, dataset, project)
            for words in (["connect", str(made.number)], ["detect"], ["cluster"]):
                program = str(Path(sys.executable).parent / "ls-propagate")
                said = subprocess.run([program, *words], cwd=project, capture_output=True, text=True, check=False)
                assert said.returncode == 0, said.stderr
            connection = pipeline.connection_of(store)
            table = pipeline.load_table(store, settings)
            right = dict(zip(table.ids.tolist(), (truth_iou(table, made.truth) > RIGHT_IOU).tolist(), strict=True))
            known = pipeline.load_gold(store, settings)
            stop = threading.Event()
            with closing(new_user(running.server, "reader@example.com", "look-closely-1")) as client:
                annotator = Annotator(client, connection.pages, right | (known.truth if known else {}))
                worker = threading.Thread(target=annotator.run, args=[stop])
                worker.start()
                try:
                    board = f"{running.addresses['daemon']}/board.json"
                    secret = ("anybody", variables["DAEMON_PASSWORD"])
                    assert httpx.get(board, timeout=10).status_code == 401

                    assert httpx.get(board, auth=secret, timeout=30).is_success

                    def finished() -> bool:
                        campaign = pipeline.open_campaign(store, settings)
                        rested = campaign.questions_asked and not (campaign.waiting_pages or campaign.next_round())
                        accepted = set(table.ids[campaign.accepted()].tolist())
                        return bool(rested) and accepted == set(regions_by_mask(gateway, connection))

                    until(finished, f"the campaign does not end; see {folder / 'data' / 'daemon.log'}")
                finally:
                    stop.set()
                    worker.join()
            campaign = pipeline.open_campaign(store, settings)
            written = regions_by_mask(gateway, connection)
            assert set(written) == set(table.ids[campaign.accepted()].tolist())
            assert len(written) > 50
        backend = running.addresses["backend"]
        assert httpx.get(f"{backend}/health", timeout=10).json()["status"] == "UP"
        assert httpx.post(f"{backend}/setup", json={}, timeout=10).status_code == 401
        secret = ("anybody", variables["BACKEND_PASSWORD"])
        assert "model_version" in httpx.post(f"{backend}/setup", json={}, auth=secret, timeout=10).json()
        database = sa.make_url(os.environ["LS_PROPAGATE_STORE"].replace("postgresql:", "postgresql+psycopg:"))
        for name, rows in (("labelstudio", "task"), ("propagate", "events")):
            engine = sa.create_engine(database.set(database=name))
            with engine.connect() as connected:
                assert (connected.scalar(sa.text(f"SELECT count(*) FROM {rows}")) or 0) > 20
            engine.dispose()
