"""Certificates: nested sets of masks, frozen, and the proof that a share q of one of them is right.

``docs/promise.md`` says why it holds. In short: questions come in one random order over the largest set, so
that those inside any of the sets are a uniform sample of it without replacement; the evidence against "too
many of this set are wrong" is a martingale under it, whenever one looks; and a set is certified only
together with all that lie within it, so that the error of all of them is that of the first one that is bad.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, gammaln

from propagation.annotators import PERFECT, Rates

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

STRENGTH = 25.0


def log_choose(n: Ints | Floats, k: Ints | Floats) -> Floats:
    """Logarithm of the binomial coefficient; minus infinity where there is no way to choose."""
    possible = (k >= 0) & (k <= n)
    m, j = np.where(possible, n, 0), np.where(possible, k, 0)
    return np.where(possible, gammaln(m + 1) - gammaln(j + 1) - gammaln(m - j + 1), -np.inf)


def log_evidence(
    sizes: Ints,
    asked: Ints | Floats,
    wrong: Ints | Floats,
    bad_from: Ints,
    expected: Floats,
    strength: float = STRENGTH,
) -> Floats:
    """(k,) log evidence that fewer than ``bad_from`` of the members of each set would be answered no.

    sizes: members; asked: drawn from them at random without replacement; wrong: of these, answered no;
    expected: the share of no that was expected before, and ``strength`` how many answers that is worth.

    It is the prior-posterior ratio for sampling without replacement (Waudby-Smith and Ramdas, *Confidence
    sequences for sampling without replacement*, 2020): the chance of the answers under a beta prior, over their
    greatest chance under any number of no from ``bad_from`` on. Under each such number it is at most a
    martingale that begins at 1, so it exceeds 1/α at any time at all with probability at most α. The prior
    makes it grow faster where it is right, and can't make it false where it is wrong.
    """
    a = np.maximum(strength * expected, 0.5)
    b = np.maximum(strength * (1 - expected), 0.5)
    seen = betaln(a + wrong, b + asked - wrong) - betaln(a, b)
    likeliest = np.floor((sizes + 1) * wrong / np.maximum(asked, 1))
    worst = np.minimum(np.maximum(bad_from, likeliest), sizes)
    null = log_choose(sizes - asked, worst - wrong) - log_choose(sizes, worst)
    impossible = (bad_from > sizes) | np.isneginf(null)
    return np.where(impossible, np.inf, np.where(asked > 0, seen - np.where(impossible, 0, null), 0.0))


def pack(levels: NDArray[np.uint16]) -> str:
    """The levels of all masks as text for the event log."""
    return base64.b85encode(zlib.compress(levels.astype("<u2").tobytes(), 6)).decode()


def unpack(text: str) -> NDArray[np.uint16]:
    """The levels that ``pack`` made text of."""
    return np.frombuffer(zlib.decompress(base64.b85decode(text)), dtype="<u2").astype(np.uint16)


@dataclass
class Level:
    """What a report says of one of the nested sets: members, asked, answered no, and the proven share."""

    members: int
    asked: int
    wrong: int
    bound: float


class Certificate:
    """Nested sets S_1 ⊂ … ⊂ S_k of masks, the random order of their questions, and what was answered.

    levels: (n,) uint16 a mask, j where S_j is the first set that it is in, 0 outside of all. known: (n,)
    whether a mask had a verdict when the sets were frozen: it is a member that counts, never a question.
    expected: (k,) the share of no that is expected of each set, fixed beforehand. target: q. alpha: the error
    that this attempt may spend. entropy: of the random order.

    The state is that of ``issue``, ``answer`` and ``remove``, in the order in which they were called.
    """

    def __init__(
        self,
        levels: NDArray[np.uint16],
        known: NDArray[np.bool_],
        expected: Floats,
        target: float,
        alpha: float,
        entropy: tuple[int, ...],
    ) -> None:
        self.levels = levels
        self.count = len(expected)
        self.target = target
        self.alpha = alpha
        self.expected = expected
        fresh = np.flatnonzero((levels > 0) & ~known).astype(np.int32)
        # raw bits of a bit generator stay the same in every version of numpy
        bits = np.random.PCG64(np.random.SeedSequence(entropy))
        fresh = fresh[np.argsort(bits.random_raw(len(fresh)), kind="stable")]
        # 32 bits where there is a number a mask: certificates of a million masks are most of what a campaign holds
        self._place = np.full(len(levels), -1, dtype=np.int32)
        self._place[fresh] = np.arange(len(fresh), dtype=np.int32)
        enters = levels[fresh]
        ends = np.cumsum(np.bincount(enters, minlength=self.count + 1)[1:])
        self._queues = np.split(fresh[np.argsort(enters, kind="stable")], ends)[: self.count]
        self._places = [self._place[queue] for queue in self._queues]
        self._known: Ints = np.flatnonzero((levels > 0) & known)
        self._heads = np.zeros(self.count, dtype=np.int64)
        self._sizes: Ints = np.array([len(queue) for queue in self._queues], dtype=np.int64)
        self._removed = np.zeros(len(levels), dtype=bool)
        self._any_removed = False
        self._asked: list[int] = []
        self._issued = np.zeros(len(levels), dtype=bool)
        self._answered = np.zeros(len(levels), dtype=bool)
        self._wrong = np.zeros(len(levels), dtype=bool)
        # of each queue, how many of its first were asked and count, and how many of these were not answered yes
        self._sums = [(np.zeros(1, np.int64), np.zeros(1, np.int64)) for _ in self._queues]
        self._before = known
        self._no_before = 0
        self._right_before: Ints = np.zeros(self.count, dtype=np.int64)
        self._wrong_before: Ints = np.zeros(self.count, dtype=np.int64)
        self._best: Floats = np.zeros(self.count)
        self._stale = False

    # what happens to it

    def issue(self, rows: Ints) -> None:
        """Questions were put to annotators; until they are answered they count as no."""
        rows = rows[(self._place[rows] >= 0) & ~self._issued[rows]]
        self._issued[rows] = self._wrong[rows] = True
        self._asked += rows.tolist()
        self._recount(rows)

    def _recount(self, rows: Ints) -> None:
        """Move the heads of the queues of some rows past what was asked or taken out, and sum up anew.

        A queue's sums are made again from its first changed question on, so that a page costs the same early and
        late.
        """
        for j in np.unique(self.levels[rows]).astype(int) - 1:
            queue, head = self._queues[j], int(self._heads[j])
            while head < len(queue) and (self._issued[queue[head]] or self._removed[queue[head]]):
                head += 1
            self._heads[j] = head
            here = rows[self.levels[rows] == j + 1]
            changed_first = int(np.searchsorted(self._places[j], self._place[here].min()))
            first = min(changed_first, len(self._sums[j][0]) - 1, head)
            changed = queue[first:head]
            wrong = self._wrong[changed]
            counts = self._issued[changed] & (~self._removed[changed] | wrong)
            self._sums[j] = tuple(
                np.concatenate([old[: first + 1], old[first] + np.cumsum(new)])
                for old, new in zip(self._sums[j], (counts, counts & wrong), strict=True)
            )

    def answer(self, rows: Ints, yes: NDArray[np.bool_]) -> None:
        """Verdicts on questions, or changed ones; an unsure or withdrawn one is no yes."""
        asked = self._issued[rows]
        rows, yes = rows[asked], yes[asked]
        if not len(rows):
            return
        if (self._answered[rows] & (self._wrong[rows] == yes)).any():
            self._stale = True  # what was proven with the earlier answer has to be proven again
        self._answered[rows] = True
        self._wrong[rows] = ~yes
        self._recount(rows)

    def count_known(self, yes: NDArray[np.bool_], no: NDArray[np.bool_]) -> None:
        """Count the members with a verdict from before: (n,) now judged right; (n,) now judged wrong."""
        rows = self._known[~self._removed[self._known]]
        if self._asked:
            self._stale = True
        else:
            self._best[:] = 0
        level = self.levels[rows].astype(np.int64) - 1
        right = np.bincount(level[yes[rows]], minlength=self.count)
        doubtful = np.bincount(level[~yes[rows] & ~no[rows]], minlength=self.count)
        self._right_before, self._wrong_before = np.cumsum(right), np.cumsum(doubtful)
        self._no_before = int((self._before & ~yes).sum())

    def _members_before(self, rates: Rates) -> tuple[Ints, Ints]:
        """(k,) the members from before that count as right, and as wrong: annotators may have missed some."""
        missed = np.minimum(rates.missed(self._no_before), self._right_before)
        return self._right_before - missed, self._wrong_before + missed

    def begin_anew(self) -> None:
        """Weigh the evidence anew from the answers that stand."""
        self._stale = True

    def asks(self, rows: Ints) -> int:
        """How many of these masks are questions that were put to annotators."""
        return int(self._issued[rows].sum())

    def knew(self, rows: Ints) -> bool:
        """Whether any of these masks is a member that had a verdict before."""
        return bool(((self.levels[rows] > 0) & (self._place[rows] < 0)).any())

    def remove(self, rows: Ints) -> None:
        """Masks leave the sets because a person has annotated their image.

        One that was asked and not answered yes still counts as a question and as a member that is wrong, though
        of no use to what is left: else who mends an image on seeing its wrong mask would mend the evidence too.
        """
        rows = rows[(self.levels[rows] > 0) & ~self._removed[rows]]
        if not len(rows):
            return
        fresh = rows[self._place[rows] >= 0]
        self._removed[rows] = True
        self._any_removed = True
        self._sizes -= np.bincount(self.levels[fresh].astype(np.int64) - 1, minlength=self.count)
        self._stale = True
        self._recount(fresh)

    # what it says

    def draw(self, level: int, count: int) -> Ints:
        """The next questions from S_level, at most ``count``: those that come first in the random order."""
        ahead = []
        for j in range(level):
            rows = self._queues[j][self._heads[j] :]
            # seldom was anything past the head asked out of order, or taken out
            few = self._open(rows[: count + 64])
            ahead.append((few if len(few) >= count else self._open(rows))[:count])
        found: Ints = np.concatenate([np.empty(0, dtype=np.int64), *ahead])
        return found[np.argsort(self._place[found], kind="stable")[:count]]

    def _open(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Those that can still be asked."""
        return rows[~self._removed[rows] & ~self._issued[rows]]

    def sizes(self) -> Ints:
        """(k,) the members of each set that had no verdict when it was frozen."""
        return np.cumsum(self._sizes) + self._gone()

    def _gone(self) -> Ints:
        """(k,) the masks that left, of each set, and count as wrong all the same."""
        if not self._any_removed:
            return np.zeros(self.count, dtype=np.int64)
        rows = np.array(self._asked, dtype=np.int64)
        left = self.levels[rows[self._removed[rows] & self._wrong[rows]]].astype(np.int64) - 1
        return np.cumsum(np.bincount(left, minlength=self.count))

    def known_right(self) -> Ints:
        """(k,) the members judged right before."""
        return self._right_before

    def _until(self) -> Ints:
        """(k,) the place in the random order up to which each set was asked without a gap."""
        ends = [
            places[head] if head < len(places) else len(self._place)
            for places, head in zip(self._places, self._heads.tolist(), strict=True)
        ]
        return np.minimum.accumulate(np.array(ends, dtype=np.int64))

    def counts(self) -> tuple[Ints, Ints]:
        """(k,) how many of each set were asked in the random order without a gap, and not answered yes."""
        until = self._until()
        asked, wrong = np.zeros((2, self.count), dtype=np.int64)
        for j, (places, sums) in enumerate(zip(self._places, self._sums, strict=True)):
            reached = np.searchsorted(places[: len(sums[0]) - 1], until[j:])
            asked[j:] += sums[0][reached]
            wrong[j:] += sums[1][reached]
        return asked, wrong

    def _along(self, rates: Rates) -> Floats:
        """(k,) the greatest log evidence at any question of the random order, by the answers as they are now."""
        rows = np.array(self._asked, dtype=np.int64)
        rows = rows[~self._removed[rows] | self._wrong[rows]]
        rows = rows[np.argsort(self._place[rows], kind="stable")]
        member = self.levels[rows, None] <= np.arange(1, self.count + 1)
        inside = member & (self._place[rows, None] < self._until())
        asked: Ints = np.cumsum(inside, axis=0, dtype=np.int64)
        wrong: Ints = np.cumsum(inside & self._wrong[rows, None], axis=0, dtype=np.int64)
        seen = log_evidence(self.sizes(), asked, wrong, self.bad_from(rates), self.expected)
        return np.asarray(np.max(seen, axis=0, initial=0.0))

    def rings(self) -> tuple[Ints, Ints]:
        """(k,) how many were asked of what each set adds to the one within it, and not answered yes."""
        asked, wrong = (np.array([sums[which][-1] for sums in self._sums]) for which in (0, 1))
        return asked, wrong

    def issued(self, rows: Ints) -> Ints:
        """(k,) how many of some rows were asked of what each set adds to the one within it."""
        rows = rows[self._issued[rows] & ~self._removed[rows]]
        return np.bincount(self.levels[rows].astype(np.int64), minlength=self.count + 1)[1:]

    def answers(
        self, inside: NDArray[np.bool_], answered: NDArray[np.bool_], yes: NDArray[np.bool_]
    ) -> tuple[float, float]:
        """The weights of the questions answered ``inside``, of those answered yes and of all; each (n,).

        A question weighs as many masks as it stands for: what a set adds may be asked more or less densely.
        """
        rows = np.array(self._asked, dtype=np.int64)
        rows = rows[~self._removed[rows] & answered[rows]]
        ring = self.levels[rows].astype(np.int64) - 1
        weight = (self._sizes / np.maximum(np.bincount(ring, minlength=self.count), 1))[ring] * inside[rows]
        return float(weight[yes[rows]].sum()), float(weight.sum())

    def bad_from(self, rates: Rates = PERFECT) -> Ints:
        """(k,) the least number of no among the members that a set with too many wrong masks would have."""
        sizes, gone = self.sizes(), self._gone()
        right, wrong = self._members_before(rates)
        allowed = np.floor((1 - self.target) * (sizes - gone + right + wrong) + 1e-9)
        least_wrong = np.maximum(allowed - wrong + 1, 0).astype(np.int64) + gone
        return rates.least_no(least_wrong, sizes)

    def evidence(self, rates: Rates = PERFECT) -> Floats:
        """(k,) the greatest log evidence so far that each set has a share q of right masks.

        Where answers were changed, or masks left, it is that of the random order as it reads now.
        """
        if self._stale:
            self._best, self._stale = self._along(rates), False
        asked, wrong = self.counts()
        now = log_evidence(self.sizes(), asked, wrong, self.bad_from(rates), self.expected)
        self._best = np.maximum(self._best, now)
        return self._best

    def proven(self, rates: Rates = PERFECT) -> int:
        """The greatest j such that S_1 … S_j are all certified; 0 for none."""
        enough = self.evidence(rates) >= np.log(1 / self.alpha)
        return int(np.argmin(enough)) if not enough.all() else self.count

    def bound(self, level: int, rates: Rates = PERFECT) -> float:
        """The share of right masks in S_level that the answers prove by now, at this attempt's error."""
        size, gone = int(self.sizes()[level - 1]), int(self._gone()[level - 1])
        right, doubtful = (int(count[level - 1]) for count in self._members_before(rates))
        asked, wrong = (np.array([count[level - 1]]) for count in self.counts())
        expected = self.expected[level - 1 : level]
        low, high = 0, size + 1  # with at least ``high`` wrong masks the answers would be too unlikely
        while high - low > 1:
            middle = (low + high) // 2
            bad_from = rates.least_no(np.array([middle]), np.array([size]))
            sure = log_evidence(np.array([size]), asked, wrong, bad_from, expected)[0] >= np.log(1 / self.alpha)
            low, high = (low, middle) if sure else (middle, high)
        return 1 - (max(low - gone, 0) + doubtful) / max(size - gone + right + doubtful, 1)

    def level_report(self, level: int, rates: Rates = PERFECT) -> Level:
        """What is known of S_level."""
        asked, wrong = self.counts()
        of = self.sizes() - self._gone() + self._right_before + self._wrong_before
        return Level(int(of[level - 1]), int(asked[level - 1]), int(wrong[level - 1]), self.bound(level, rates))
