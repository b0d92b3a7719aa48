"""What changed in a project since the last look, each change read once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from plugin.label_studio.gateway import Gateway, Json

OVERLAP = timedelta(seconds=10)


class Changes:
    """The changed tasks of one project.

    cursor: the time of the latest change that was read, as the server tells it, or None before the first.
    A change may become visible after one with a later time. So each look goes back a little, for as long as
    that can happen, and takes only what it has not seen.
    """

    def __init__(self, gateway: Gateway, project: int, fields: Sequence[str], cursor: str | None) -> None:
        self.cursor = cursor
        self._gateway = gateway
        self._project = project
        self._fields = fields
        self._seen: dict[int, str] = {}
        self._moved = time.monotonic()

    def read(self) -> list[Json]:
        """The tasks that changed, with the fields asked for, oldest change first; moves the cursor."""
        since = self.cursor
        if since is not None and time.monotonic() - self._moved < OVERLAP.total_seconds():
            since = _earlier(since)
        heads = {task["id"]: task["updated_at"] for task in self._gateway.tasks(self._project, [], since)}
        fresh = [task for task, at in heads.items() if self._seen.get(task) != at]
        if not fresh:
            return []
        tasks = list(self._gateway.tasks(self._project, self._fields, ids=fresh))
        self._seen = heads
        self.cursor, self._moved = max(heads.values()), time.monotonic()
        return sorted(tasks, key=lambda task: str(task["updated_at"]))


def _earlier(moment: str) -> str:
    return (datetime.fromisoformat(moment) - OVERLAP).isoformat()
