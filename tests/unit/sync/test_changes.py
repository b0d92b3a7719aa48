"""Changes of a project: each is read once, and one that shows late is not missed."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from sync import changes
from sync.changes import OVERLAP, Changes

NOON = datetime.fromisoformat("2026-01-01T12:00:00+00:00")


class Server:
    """Tasks with the times of their last change, and what was asked for."""

    def __init__(self) -> None:
        self.changed: dict[int, datetime] = {}
        self.details: list[list[int]] = []
        self.since: list[datetime | None] = []

    def tasks(
        self, project: int, include: list[str], since: str | None = None, ids: list[int] | None = None
    ) -> Any:
        if ids is not None:
            self.details.append(list(ids))
        else:
            self.since.append(since and datetime.fromisoformat(since))
        for task, at in sorted(self.changed.items(), key=lambda item: item[1]):
            if (ids is None or task in ids) and (since is None or at > datetime.fromisoformat(since)):
                yield {"id": task, "updated_at": at.isoformat()}


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(changes.time, "monotonic", lambda: now[0])
    return now


def read(looked: Changes) -> list[int]:
    return [task["id"] for task in looked.read()]


def test_each_change_is_read_once_and_the_oldest_first(server: Server, clock: list[float]) -> None:
    server.changed = {1: NOON + timedelta(seconds=2), 2: NOON}
    looked = Changes(server, 7, ["annotations"], None)  # type: ignore[arg-type]
    assert read(looked) == [2, 1]
    assert read(looked) == []
    server.changed[2] = NOON + timedelta(seconds=3)
    assert read(looked) == [2]
    assert server.details == [[2, 1], [2]]


def test_a_change_that_shows_after_a_later_one_is_read(server: Server, clock: list[float]) -> None:
    server.changed = {1: NOON}
    looked = Changes(server, 7, [], None)  # type: ignore[arg-type]
    assert read(looked) == [1]
    server.changed[2] = NOON - OVERLAP / 2
    assert read(looked) == [2]
    assert looked.cursor == NOON.isoformat()


def test_a_new_daemon_looks_back_from_where_the_last_one_was(server: Server, clock: list[float]) -> None:
    server.changed = {1: NOON - OVERLAP / 2}
    assert read(Changes(server, 7, [], NOON.isoformat())) == [1]  # type: ignore[arg-type]


def test_a_quiet_project_is_not_looked_back_on(server: Server, clock: list[float]) -> None:
    server.changed = {1: NOON}
    looked = Changes(server, 7, [], None)  # type: ignore[arg-type]
    read(looked)
    read(looked)
    clock[0] += OVERLAP.total_seconds() + 1
    read(looked)
    assert server.since == [None, NOON - OVERLAP, NOON]


def test_a_look_that_fails_half_way_is_made_again(server: Server, clock: list[float]) -> None:
    server.changed = {1: NOON}
    looked = Changes(server, 7, [], None)  # type: ignore[arg-type]
    whole = server.tasks

    def cut(project: int, include: list[str], since: str | None = None, ids: list[int] | None = None) -> Any:
        if ids is not None:
            raise ConnectionError
        return whole(project, include, since)

    server.tasks = cut  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        looked.read()
    server.tasks = whole  # type: ignore[method-assign]
    assert read(looked) == [1]
