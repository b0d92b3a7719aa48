"""What goes wrong around a daemon whose server is in memory: calls that fail, changes that show late."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Literal

import pytest

from plugin.crops import unreadable_crop
from propagation.calibrated import CalibratedStrategy
from propagation.campaign import Campaign
from propagation.posterior import Posterior, fit
from sync.store import Store
from tests.faults.invariants import Json, Scene

#: Whether everything is to be tried at length.
SOAK = os.environ.get("LS_PROPAGATE_SOAK") == "1"
#: A change shows no later than this after the time that the server gives it.
LATEST = timedelta(seconds=8)

When = Literal["before", "midway", "after", "twice"]

#: Strategies that come to an end on a world of 40 masks, having decided, certified and written.
STRATEGIES: dict[str, dict[str, Any] | CalibratedStrategy] = {
    "paper": {},
    "calibrated": CalibratedStrategy(
        target=0.6, confidence=0.7, learn=0.3, learn_most=12, sets=4, page_size=8, least_size=3, pages_a_round=3
    ),
}


_learned: dict[bytes, Posterior] = {}


class Crash(Exception):
    """The process ends here."""


def make_campaign(make_world: Callable[..., Any], strategy: str, **settings: Any) -> Any:
    """A world whose campaign follows the strategy of that name."""
    world = make_world(**settings)
    if isinstance(chosen := STRATEGIES[strategy], CalibratedStrategy):
        world.strategy = chosen
    return world


def scene(world: Any, store: Store) -> Scene:
    """A world to be checked."""
    return Scene(
        store,
        world.gateway,
        world.source,
        world.verify,
        lambda: Campaign(world.table, world.trees, world.strategy),
    )


def without_waiting_for_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages have no pictures, and what was learned from the same verdicts before is not learned again."""
    monkeypatch.setattr("sync.pages.draw_crop", lambda pixels, rle, side: unreadable_crop(8))
    monkeypatch.setattr("propagation.posterior.TREES", 40)

    def fit_once(*given: Any) -> Posterior:
        key = pickle.dumps(given)
        if key not in _learned:
            _learned[key] = fit(*given)
        return _learned[key]

    monkeypatch.setattr("propagation.calibrated.fit", fit_once)


class Unsteady:
    """A gateway whose coming calls can be made to fail, and whose server's changes can be made to show late.

    calls: the names of those that there were.
    """

    def __init__(self, gateway: Any) -> None:
        self.calls: list[str] = []
        self._gateway = gateway
        self._faults: dict[int, tuple[When, Exception]] = {}
        self._late: dict[int, Json] = {}

    def fail(self, call: int, when: When, error: Exception) -> None:
        """The ``call``-th call from now, counted from 1, raises ``error``.

        before: and has no effect; after: and has had it; midway: after half of what it reads, or as after;
        twice: it does not, but it takes effect twice.
        """
        self._faults[len(self.calls) + call] = when, error

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._gateway, name)
        if not callable(found):
            return found

        def called(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            when, error = self._faults.pop(len(self.calls), (None, None))
            if error is None:
                return self._seen(name, found, *args, **kwargs)
            if when == "before":
                raise error
            answer = self._seen(name, found, *args, **kwargs)
            if when == "twice":
                return self._seen(name, found, *args, **kwargs)
            if when == "midway" and name == "tasks":
                return _half(answer, error)
            raise error

        return called

    def calm(self) -> None:
        """No more faults, and everything shows."""
        self._faults.clear()
        self._late.clear()

    # changes that show late

    def hide(self, task: int) -> None:
        """What happens to a task from now on does not show, until ``elapse`` has it shown."""
        self._late.setdefault(task, copy.deepcopy(self._gateway._tasks[task]))

    def elapse(self, seconds: float) -> None:
        """Time passes; a change shows in good time."""
        self._gateway._now += timedelta(seconds=seconds)
        for number in list(self._late):
            task = self._gateway._tasks.get(number)
            if task is None or self._gateway._now >= datetime.fromisoformat(task["updated_at"]) + LATEST:
                del self._late[number]

    def _seen(self, name: str, found: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if name != "tasks":
            return found(*args, **kwargs)
        tasks = self._gateway._tasks
        now = {task: tasks[task] for task in self._late if task in tasks}
        tasks.update({task: self._late[task] for task in now})
        try:
            return iter(list(found(*args, **kwargs)))
        finally:
            tasks.update(now)


def _half(tasks: Any, error: Exception) -> Any:
    there = list(tasks)
    yield from there[: len(there) // 2]
    raise error
