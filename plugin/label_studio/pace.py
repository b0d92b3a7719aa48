"""How much goes to the server in one bulk call, and when the server is left alone for a while."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

MOST = 1000  # items in a bulk call: larger ones cost the server memory for good
FIRST = 50
TARGET = 0.8  # seconds that a bulk call takes at most, where the server can do anything in that time
SHARE = (
    2.0  # times what a call costs for itself, its items may cost: a server may recount a whole project each time
)
SAMPLES = 12
SLOW = 3.0  # times as long as at best, a quick call takes on a busy server
LEAST = 0.15  # seconds above the best, below which a quick call is never slow
FADING = 1.0003  # by which the best is forgotten with each quick call: all of them get slower as a project grows
LONGEST = 5.0  # seconds of a rest
STALE = 3.0  # seconds after which a quick call tells nothing any more


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
        self._fixed: dict[str, float] = defaultdict(float)
        self._ceiling: dict[str, int] = defaultdict(lambda: MOST)
        self._best: dict[str, float] = {}
        self._quick: deque[float] = deque(maxlen=3)
        self._felt = -np.inf
        self._last = 0.0

    def size(self, kind: str, first: int = FIRST) -> int:
        """How many items the next bulk call of a kind should take. first: of the first call."""
        known = self._bulks[kind]
        if not known:
            return min(first, self._ceiling[kind])
        items, seconds = np.array(known).T
        fixed, each = self._costs(kind, items, seconds)
        wanted = max(TARGET - fixed, SHARE * fixed) / max(each, 1e-9)
        return int(np.clip(wanted, 1, min(2 * items.max(), self._ceiling[kind])))

    def _costs(self, kind: str, items: NDArray[np.float64], seconds: NDArray[np.float64]) -> tuple[float, float]:
        """What a call costs for itself, and for each item: medians, so that one stall changes little."""
        one, other = np.triu_indices(len(items), 1)
        apart = np.abs(items[one] - items[other]) > 0.25 * items.max()
        if apart.any():
            slopes = (seconds[one] - seconds[other])[apart] / (items[one] - items[other])[apart]
            self._fixed[kind] = max(0.0, float(np.median(seconds - max(0.0, float(np.median(slopes))) * items)))
        fixed = min(self._fixed[kind], float(seconds.min()))
        return fixed, float(np.median((seconds - fixed) / items))

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
