"""Changes of a project: each is read once, one that shows late is not missed, and our own are not read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from plugin.label_studio.gateway import moment
from sync import changes
from sync.changes import OVERLAP, Changes

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(seconds: float) -> str:
    """The moment so many seconds after noon, as the gateway writes it."""
    return moment((NOON + timedelta(seconds=seconds)).isoformat())


class Server:
    """Tasks with the moments of their last change, and what was asked for."""

    def __init__(self, changed: dict[int, str]) -> None:
        self.changed = changed
        self.hidden: set[int] = set()
        self.details: list[list[int]] = []
        self.since: list[str] = []
        self.firsts: list[bool] = []

    def latest(self, project: int) -> str | None:
        return max((at for task, at in self.changed.items() if task not in self.hidden), default=None)

    def tasks(
        self,
        project: int,
        include: Sequence[str],
        since: str | None = None,
        ids: Sequence[int] | None = None,
        without: Sequence[str] = (),
        annotated: bool = False,
    ) -> Iterator[dict[str, Any]]:
        if ids is not None:
            self.details.append(list(ids))
        elif since is not None:
            self.since.append(since)
        else:
            self.firsts.append(annotated)
        for task, changed in sorted(self.changed.items(), key=lambda item: item[1]):
            shown = task not in self.hidden and changed not in without and (since is None or changed > since)
            if shown and (ids is None or task in ids):
                yield {"id": task, "updated_at": changed}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(changes.time, "monotonic", lambda: now[0])
    return now


def looking(server: Server, cursor: str | None = None, ours: Any = None) -> Changes:
    return Changes(server, 7, ["annotations"], cursor, ours)  # type: ignore[arg-type]


def read(looked: Changes) -> list[int]:
    return [task["id"] for task in looked.read()]


def test_each_change_is_read_once_and_the_oldest_first(clock: list[float]) -> None:
    server = Server({1: at(2), 2: at(0)})
    looked = looking(server)
    assert read(looked) == [2, 1]
    assert read(looked) == []
    server.changed[2] = at(3)
    assert read(looked) == [2]
    assert looked.cursor == at(3)
    assert server.details == [[2]]


def test_a_project_without_tasks_is_looked_at_from_its_first_one_on(clock: list[float]) -> None:
    server = Server({})
    looked = looking(server)
    assert read(looked) == []
    assert looked.cursor is None
    server.changed[1] = at(0)
    assert read(looked) == [1]


def test_a_change_that_shows_after_a_later_one_is_read(clock: list[float]) -> None:
    server = Server({1: at(0)})
    looked = looking(server)
    assert read(looked) == [1]
    server.changed[2] = at(-OVERLAP.total_seconds() / 2)
    assert read(looked) == [2]
    assert looked.cursor == at(0)


@pytest.mark.parametrize("pause", [0, 1, 29, 31, 3600])
def test_a_change_that_shows_late_is_read_however_late_the_next_look_is(clock: list[float], pause: float) -> None:
    """As after a long write-back, or a server that was away."""
    server = Server({1: at(0), 2: at(-5)})
    server.hidden = {2}
    looked = looking(server, at(-100))
    assert read(looked) == [1]
    server.hidden = set()
    clock[0] += pause
    assert read(looked) == [2]


def test_a_new_daemon_looks_back_from_where_the_last_one_was(clock: list[float]) -> None:
    assert read(looking(Server({1: at(-OVERLAP.total_seconds() / 2)}), at(0))) == [1]


def test_a_quiet_project_is_not_looked_back_on(clock: list[float]) -> None:
    server = Server({1: at(0)})
    looked = looking(server)
    for _ in range(2):
        read(looked)
    clock[0] += OVERLAP.total_seconds() + 1
    for _ in range(3):
        read(looked)
    back = at(-OVERLAP.total_seconds())
    assert server.since == [back, back, at(0), at(0)]
    server.changed[1] = at(100)
    assert read(looked) == [1]
    read(looked)
    assert server.since[-1] == at(100 - OVERLAP.total_seconds())


def test_a_look_that_fails_half_way_is_made_again(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server({1: at(0)})
    looked = looking(server, at(-1))
    whole = server.tasks

    def cut(*args: Any, **more: Any) -> Any:
        if more.get("ids"):
            raise ConnectionError
        return whole(*args, **more)

    monkeypatch.setattr(server, "tasks", cut)
    with pytest.raises(ConnectionError):
        looked.read()
    monkeypatch.setattr(server, "tasks", whole)
    assert read(looked) == [1]


def test_what_the_campaign_changed_itself_is_not_read(clock: list[float]) -> None:
    server = Server({1: at(0), 2: at(1), 3: at(2)})
    ours = {2: (20, at(1)), 3: (30, at(1.5))}
    looked = looking(server, at(-1), ours)
    assert read(looked) == [1, 3]  # the third was changed by somebody else since
    ours[3] = 30, at(2)
    assert read(looked) == []
    ours[1] = 10, at(9)
    server.changed[1] = at(9)
    assert read(looked) == []
    assert looked.cursor == at(9)


def test_more_of_our_own_changes_than_a_request_can_name_are_left_out_all_the_same(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MOST_NAMED", 2)
    server = Server({number: at(number) for number in range(1, 9)})
    ours = {number: (number, at(number)) for number in range(1, 8)}
    assert read(looking(server, at(0), ours)) == [8]


def test_the_first_look_at_a_project_that_we_write_to_takes_annotated_tasks_alone(clock: list[float]) -> None:
    server = Server({1: at(0)})
    read(looking(server, None, {}))
    read(looking(server))
    assert server.firsts == [True, False]
