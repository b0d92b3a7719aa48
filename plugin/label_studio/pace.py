"""How much goes to the server in one bulk call, and when the server is left alone for a while."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable

import numpy as np

MOST = 1000  # items in a bulk call: larger ones cost the server memory for good
FIRST = 200
TARGET = 0.8  # seconds that a bulk call takes at most, where the server can do anything in that time
SHARE = 4.0  # times what a call costs for itself, its items may cost: some servers recount a project each time
GROWTH = 4.0  # from one call to the next, at most
EVERY = 8  # calls, one is small: an eighth as large, it tells what a call costs for itself
SLOW = 3.0  # times as long as at best, a quick call takes on a busy server
LEAST = 0.15  # seconds above the best, below which a quick call is never slow
AGEING = 1.0003  # of the best, with each quick call: all of them get slower as a project grows
LONGEST = 5.0  # seconds of a rest
STALE = 10.0  # seconds after which a quick call tells nothing any more


class _Kind:
    """The calls of one kind: how many there were, and items and seconds of the latest small and other ones."""

    def __init__(self) -> None:
        self.calls = 0
        self.small: deque[tuple[int, float]] = deque(maxlen=2)
        self.large: deque[tuple[int, float]] = deque(maxlen=5)
        self.ceiling = self.trial = MOST

    def costs(self) -> tuple[float, float]:
        """What a call costs for itself, and what each item costs; of some, so that one stall changes little."""
        items, seconds = np.array(self.large, dtype=float).T
        fixed, each = 0.0, float(np.median(seconds / items))
        for _ in range(5 if self.small else 0):
            fixed = max(0.0, min(took - each * few for few, took in self.small))
            each = max(0.0, float(np.median((seconds - fixed) / items)))
        return fixed, each


class Pace:
    """Learns from the times of calls what a server bears.

    ``size`` says how many items the next bulk call of a kind should take, so that it lasts some 0.8 s. ``rest``
    waits while quick calls take far longer than they can: the server has others to serve.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._kinds: dict[str, _Kind] = defaultdict(_Kind)
        self._best: dict[str, float] = {}
        self._quick: deque[float] = deque(maxlen=3)
        self._felt = -np.inf
        self._last = 0.0

    def size(self, kind: str, first: int = FIRST) -> int:
        """How many items the next bulk call of a kind should take. first: of the first call."""
        known = self._kinds[kind]
        wanted = float(first)
        if known.large:
            fixed, each = known.costs()
            wanted = max(TARGET - fixed, SHARE * fixed) / max(each, 1e-9)
            wanted = min(wanted, GROWTH * max(items for items, _ in known.large))
        if known.calls % EVERY == 1:
            wanted /= EVERY
        return int(np.clip(wanted, 1, min(known.ceiling, known.trial)))

    def took(self, kind: str, items: int, seconds: float) -> None:
        """A bulk call of so many items took so long."""
        known = self._kinds[kind]
        small = known.large and items <= max(most for most, _ in known.large) / (EVERY / 2)
        (known.small if small else known.large).append((items, seconds))
        known.calls += 1
        known.trial = min(MOST, 2 * known.trial)
        self._last = seconds

    def failed(self, kind: str, items: int) -> None:
        """A bulk call of so many items failed, perhaps for being too much; the next ones are smaller."""
        self._kinds[kind].trial = max(1, items // 2)

    def refused(self, kind: str, items: int) -> None:
        """A bulk call of so many items was too large for the server, or for a proxy before it."""
        self._kinds[kind].ceiling = max(1, items // 2)

    def felt(self, name: str, seconds: float) -> None:
        """A quick call of that name took so long."""
        best = self._best[name] = min(seconds, self._best.get(name, seconds) * AGEING)
        self._quick.append(seconds / best if seconds - best > LEAST else 1.0)
        self._felt = self._clock()

    @property
    def numb(self) -> bool:
        """Whether the last quick call is too long ago to tell anything."""
        return self._clock() - self._felt > STALE

    def rest(self) -> None:
        """Where quick calls are slow, leave the server alone for as long as the last bulk call took, or longer."""
        busy = float(np.median(self._quick)) if self._quick else 1.0
        if busy >= SLOW:
            self._sleep(min(LONGEST, self._last * busy / SLOW))
