"""What all tests share: one real Label Studio and one real PostgreSQL for a whole run."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ls_propagate.demo.postgres import Postgres
from ls_propagate.demo.postgres import postgres as started_postgres
from ls_propagate.demo.server import Server
from ls_propagate.demo.server import label_studio as started


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real Label Studio on loopback, with its own data folder."""
    with started(tmp_path_factory.mktemp("label-studio")) as server:
        yield server


@pytest.fixture(scope="session")
def stack() -> ModuleType:
    """docker/stack.py, which is in no package."""
    file = Path(__file__).parents[1] / "docker" / "stack.py"
    spec = importlib.util.spec_from_file_location("stack", file)
    assert spec
    assert spec.loader
    module = sys.modules["stack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL on loopback; each test makes databases of its own."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # below pytest's folder, the user nobody cannot reach it
    try:
        with started_postgres(folder, durable=False) as server:
            yield server
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def make_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """The address of a store that is still to be made, in "sqlite" or in "postgresql"."""

    def make(kind: str) -> str:
        name = f"store {secrets.token_hex(6)}"
        if kind == "sqlite":
            return f"sqlite:///{tmp_path / 'deep' / name}"
        server: Postgres = request.getfixturevalue("postgres")
        return server.create(name)

    return make


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("LABEL_STUDIO_", "LS_PROPAGATE_")) and name != "LS_PROPAGATE_CHROMIUM":
            monkeypatch.delenv(name)
