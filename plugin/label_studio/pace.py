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
CAUTION = 1.5  # the same after a first call that took too long
GUESS = 0.6  # seconds for the items of a first call
EARLY = (1, 3)  # calls, counted from 0, that are small, to tell what a call costs for itself
EVERY = 12  # calls, one more is small
SMALL = 8  # times smaller than it would be
SAMPLES = 16  # calls that are remembered
FADING = 0.9  # what a call counts against the one after it
FEW = 5  # calls that do not tell whether they take longer the more there is
DOUBT = 0.2  # that what a call takes is not for its items
MISFIT = 0.3  # share of its seconds by which a call is misjudged, from which on it may be left out
SLOW = 3.0  # times as long as at best, a quick call takes on a busy server
LEAST = 0.15  # seconds above the best, below which a quick call is never slow
AGEING = 1.0003  # of the best, with each quick call: all of them get slower as a project grows
LONGEST = 5.0  # seconds of a rest
STALE = 10.0  # seconds after which a quick call tells nothing any more

Floats = NDArray[np.float64]


class _Kind:
    """The calls of one kind: their number, items and seconds of the latest, and the most items of the next."""

    def __init__(self) -> None:
        self.calls = 0
        self.latest: deque[tuple[int, float]] = deque(maxlen=SAMPLES)
        self.ceiling = self.trial = MOST


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

    def size(self, kind: str, first: int = FIRST, alone: bool = False) -> int:
        """How many items the next bulk call of a kind should take.

        first: of the first call. alone: whether each item goes by itself, so that a call costs nothing more.
        """
        known = self._kinds[kind]
        wanted = float(first)
        if known.latest:
            items, seconds = np.array(known.latest, dtype=float).T
            fixed, each = 0.0, float(np.median((seconds / items)[-5:]))
            if not alone:
                fixed, each = _costs(items, seconds, GUESS / first)
            growth = CAUTION if len(items) == 1 and seconds[0] > TARGET else GROWTH
            # who is waited for counts more than what it costs
            target, share = (TARGET / 2, 1.0) if self._busy >= SLOW else (TARGET, SHARE)
            wanted = max(target - fixed, share * fixed) / max(each, 1e-9)
            wanted = min(wanted, growth * items[-6:].max())
        if not alone and (known.calls in EARLY or known.calls % EVERY == EVERY - 1):
            wanted /= SMALL
        return int(np.clip(wanted, 1, min(known.ceiling, known.trial)))

    def took(self, kind: str, items: int, seconds: float) -> None:
        """A bulk call of so many items took so long."""
        known = self._kinds[kind]
        known.latest.append((items, seconds))
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
        if (busy := self._busy) >= SLOW:
            self._sleep(min(LONGEST, self._last * busy / SLOW))

    @property
    def _busy(self) -> float:
        """How many times as long as at best the latest quick calls took."""
        return float(np.median(self._quick)) if self._quick else 1.0


def _costs(items: Floats, seconds: Floats, guess: float) -> tuple[float, float]:
    """What the next call costs for itself, and what each of its items costs; guess: of the latter.

    Seconds are told apart into those for each call, for each item in it, and for each item in any call so far: a
    server that recounts the project takes the longer for that the more there is. Errors count by their share of
    the seconds, and the call that fits least is left out: a server stalls at times.
    """
    if len(items) == 1:
        return max(0.0, float(seconds[0] - guess * items[0])), min(guess, float(seconds[0] / items[0]))
    seconds = np.maximum(seconds, 1e-6)
    total = np.cumsum(items) * (len(items) > FEW)
    causes = np.stack([np.ones(len(items)), total, items], axis=1) / seconds[:, None]
    weights = FADING ** np.arange(len(items))[::-1]
    doubts = DOUBT / np.median(seconds) * np.array([[1, 0, 0], [0, total[-1], 0]])
    for _ in range(2):
        known = np.vstack([causes * weights[:, None], doubts])
        (call, past, item), _ = nnls(known, np.append(weights, [0, 0]))
        error = np.abs(causes @ (call, past, item) - 1)
        if error.max() < MISFIT:
            break
        weights[error.argmax()] = 0
    return call + past * total[-1], item + past
