"""What changed in a project since the last look, each change read once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from plugin.label_studio.gateway import Gateway, Json, moment

# Label Studio gives a change its time, and then stores it, each change by itself: so it shows late by as long as
# the server stalls in between, for which 15 s were measured, or waits for a lock, 5 s on SQLite.
OVERLAP = timedelta(seconds=30)
MOST_NAMED = 150  # moments in a request; they are part of its address


class Changes:
    """The changed tasks of one project.

    cursor: the time of the latest change that was read, as the server tells it, or None before the first. ours:
    the moments of the campaign's own changes, by task, as ``Campaign.ours`` has them; what changed then is not
    read, and the first look takes annotated tasks alone.

    A change may become visible after one with a later time. So each look goes back by ``OVERLAP``, for as long as
    that can happen, and takes only what it has not seen. Of what it goes back over, the campaign's own changes are
    the most by far, and these the server leaves out: they are named by their moments.
    """

    def __init__(
        self,
        gateway: Gateway,
        project: int,
        fields: Sequence[str],
        cursor: str | None,
        ours: Mapping[int, tuple[int, str]] | None = None,
    ) -> None:
        self.cursor = cursor
        self._gateway = gateway
        self._project = project
        self._fields = fields
        self._ours = ours
        self._seen: dict[int, str] = {}
        self._moved = time.monotonic()
        self._settled = False

    def read(self) -> list[Json]:
        """The tasks that changed, with the fields asked for, oldest change first; moves the cursor."""
        begun = time.monotonic()
        tasks, seen, latest = self._begin() if self.cursor is None else self._go_on(moment(self.cursor))
        self._seen = seen
        # nothing shows late any more once a whole look, begun long after the cursor moved, has found nothing
        self._settled = not tasks and begun - self._moved >= OVERLAP.total_seconds()
        if latest is not None and latest != self.cursor:
            self.cursor, self._moved, self._settled = latest, time.monotonic(), False
        return sorted(tasks, key=lambda task: str(task["updated_at"]))

    def _begin(self) -> tuple[list[Json], dict[int, str], str | None]:
        latest = self._gateway.latest(self._project)  # before the tasks, so that none after it is passed over
        if latest is None:
            return [], {}, None
        tasks = list(self._gateway.tasks(self._project, self._fields, annotated=self._ours is not None))
        return tasks, {task["id"]: task["updated_at"] for task in tasks}, latest

    def _go_on(self, cursor: str) -> tuple[list[Json], dict[int, str], str]:
        since = cursor if self._settled else _earlier(cursor)
        ours = {task: at for task, (_, at) in (self._ours or {}).items() if at > since}
        named = sorted(set(ours.values()))[-MOST_NAMED:]
        heads = {
            task["id"]: task["updated_at"] for task in self._gateway.tasks(self._project, [], since, without=named)
        }
        fresh = [task for task, at in heads.items() if at not in (self._seen.get(task), ours.get(task))]
        tasks = list(self._gateway.tasks(self._project, self._fields, ids=fresh)) if fresh else []
        return tasks, heads, max([cursor, *heads.values(), *ours.values()])


def _earlier(time: str) -> str:
    return moment((datetime.fromisoformat(time) - OVERLAP).isoformat())
