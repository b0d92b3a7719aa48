"""How much goes to the server in one bulk call, and when the server is left alone for a while."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

MOST = 1000  # items in a bulk call: larger ones cost the server memory for good
FIRST = 200
TARGET = 0.8  # seconds that a bulk call takes at most, where the server can do anything in that time
SHARE = 4.0  # times what a call costs for itself, its items may cost: some servers recount a project each time
GROWTH = 4.0  # from one call to the next, at most
GUESS = 0.6  # seconds for the items of a first call
TRUST = 0.3  # in that guess, against 1 in a measurement
SAMPLES = 12
FEW = 3  # calls that do not tell whether they take longer the more there is
SLOW = 3.0  # times as long as at best, a quick call takes on a busy server
LEAST = 0.15  # seconds above the best, below which a quick call is never slow
FADING = 1.0003  # by which the best is forgotten with each quick call: all of them get slower as a project grows
LONGEST = 5.0  # seconds of a rest
STALE = 10.0  # seconds after which a quick call tells nothing any more

Floats = NDArray[np.float64]


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
        self._bulks: dict[str, deque[tuple[int, float]]] = defaultdict(lambda: deque(maxlen=SAMPLES))
        self._ceiling: dict[str, int] = defaultdict(lambda: MOST)
        self._best: dict[str, float] = {}
        self._quick: deque[float] = deque(maxlen=3)
        self._felt = -np.inf
        self._last = 0.0

    def size(self, kind: str, first: int = FIRST) -> int:
        """How many items the next bulk call of a kind should take. first: of the first call."""
        wanted = float(first)
        if self._bulks[kind]:
            items, seconds = np.array(self._bulks[kind], dtype=float).T
            fixed, each = _costs(items, seconds, GUESS / first)
            wanted = max(TARGET - fixed, SHARE * fixed) / max(each, 1e-9)
            if len(items) == SAMPLES and np.ptp(items) < 0.2 * items.max():
                wanted *= 1.5  # calls of one size do not tell what is for the call and what for its items
            wanted = min(wanted, GROWTH * items[-4:].max())
        return int(np.clip(wanted, 1, self._ceiling[kind]))

    def took(self, kind: str, items: int, seconds: float) -> None:
        """A bulk call of so many items took so long."""
        self._bulks[kind].append((items, seconds))
        self._last = seconds

    def refused(self, kind: str, items: int) -> None:
        """A bulk call of so many items was too large for the server, or for a proxy before it."""
        self._ceiling[kind] = max(1, items // 2)

    def felt(self, name: str, seconds: float) -> None:
        """A quick call of that name took so long."""
        best = self._best[name] = min(seconds, self._best.get(name, seconds) * FADING)
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


def _costs(items: Floats, seconds: Floats, guess: float) -> tuple[float, float]:
    """What the next call costs for itself, and what each of its items costs; guess: of the latter.

    Seconds are told apart into those for each call, for each item in it, and for each item in any call so far: a
    server that recounts the project takes the longer for that the more there is. Errors count by their share of
    the seconds, and calls that don't fit are left out: a server stalls at times.
    """
    total = np.cumsum(items) * (len(items) > FEW)
    causes = np.stack([np.ones(len(items)), total, items], axis=1) / np.maximum(seconds, 1e-6)[:, None]
    guessed = TRUST * np.array([0, 0, 1 / guess])
    usual = np.ones(len(items), dtype=bool)
    for _ in range(2):
        wanted = np.append(np.ones(int(usual.sum())), TRUST)
        (call, past, item), _ = nnls(np.vstack([causes[usual], guessed]), wanted)
        error = np.abs(causes @ (call, past, item) - 1)
        usual = error <= max(0.3, 2 * float(np.median(error)))
    return call + past * total[-1], item + past
