"""What all tests share: one real Label Studio for a whole run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ls_propagate.demo.server import Server
from ls_propagate.demo.server import label_studio as started


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real Label Studio on loopback, with its own data folder."""
    with started(tmp_path_factory.mktemp("label-studio")) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("LABEL_STUDIO_", "LS_PROPAGATE_")) and name != "LS_PROPAGATE_CHROMIUM":
            monkeypatch.delenv(name)
