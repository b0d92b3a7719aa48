"""Annotators who err: how often they miss a wrong mask and mark a right one, and what a bound makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaln, xlog1py, xlogy

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rates:
    """Error rates on the safe side: what is wrong is answered no at least so often.

    miss: at most this share of wrong masks is answered yes. false_alarm: at least this share of right masks
    is answered no. doubt: the chance that is left to the errors to fall out worse, those in one set of masks and
    those in what was asked before.
    """

    miss: float = 0.0
    false_alarm: float = 0.0
    doubt: float = 0.0

    def least_no(self, wrong: Ints, sizes: Ints) -> Ints:
        """The number of no that ``wrong`` wrong masks among ``sizes`` bring, but for a chance of ``doubt``."""
        if self.miss <= 0 and self.false_alarm <= 0:
            return wrong
        wrong = np.minimum(wrong, sizes + 1)
        caught = quantile(self.doubt / 4, wrong, 1 - self.miss)
        return caught + quantile(self.doubt / 4, np.maximum(sizes - wrong, 0), self.false_alarm)

    def missed(self, no: int) -> int:
        """How many wrong masks may have been answered yes where ``no`` masks were not; for half of ``doubt``."""
        return _missed(self, no)

    def answered_no(self, wrong: Floats) -> Floats:
        """The share of no to be expected where a share ``wrong`` is wrong."""
        return wrong * (1 - self.miss) + (1 - wrong) * self.false_alarm


def quantile(chance: float, trials: Ints, rate: float) -> Ints:
    """The least number of successes that is not exceeded with a chance of at least ``chance``.

    As scipy.stats.binom.ppf above 0, without loading that library.
    """
    low, high = np.full_like(trials, -1), trials
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = bdtr(middle, trials, rate) >= chance
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high


PERFECT = Rates()
ANY_NUMBER = 2**40


@lru_cache(maxsize=4096)
def _missed(rates: Rates, no: int) -> int:
    if rates.miss <= 0:
        return 0
    if rates.miss >= 1:
        return ANY_NUMBER
    # the most wrong masks that would bring no more than so many no
    few, many = no, int(4 * (no + 60) / (1 - rates.miss))
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if bdtr(no, middle, 1 - rates.miss) >= rates.doubt / 4 else (few, middle)
    return int(quantile(1 - rates.doubt / 4, np.array(few), rates.miss))


@dataclass(frozen=True)
class Gold:
    """Answers to questions whose truth is known.

    wrong, missed: wrong masks shown, and those of them answered yes. right, marked: right masks shown, and
    those of them not answered yes.
    """

    wrong: int = 0
    missed: int = 0
    right: int = 0
    marked: int = 0

    def __add__(self, other: Gold) -> Gold:
        return Gold(
            self.wrong + other.wrong,
            self.missed + other.missed,
            self.right + other.right,
            self.marked + other.marked,
        )

    def likely(self) -> Rates:
        """The rates, a few errors expected beforehand."""
        return Rates((self.missed + 0.5) / (self.wrong + 5), (self.marked + 0.5) / (self.right + 10))

    def rates(self, alpha: float, doubt: float) -> Rates:
        """Rates on the safe side, all of them at once and at all times with a chance of 1 - ``alpha``."""
        miss = _limit(self.missed, self.wrong, alpha / 2, upper=True)
        false_alarm = _limit(self.marked, self.right, alpha / 2, upper=False)
        # an annotator no better than chance tells nothing of a mask
        return Rates(max(miss, 1e-9), min(false_alarm, 1 - miss), doubt)


def _limit(happened: int, shown: int, alpha: float, upper: bool) -> float:
    """A bound on a rate that holds at all times: where the prior-posterior ratio reaches 1/α.

    The working prior, beta(1/2, 9/2), expects one error in ten; it moves the bound, not its truth.
    """
    prior = 0.5, 4.5
    seen = betaln(prior[0] + happened, prior[1] + shown - happened) - betaln(*prior)

    def excluded(rate: float) -> bool:
        likelihood = xlogy(happened, rate) + xlog1py(shown - happened, -rate)
        return bool(seen - likelihood >= np.log(1 / alpha))

    likeliest = happened / shown if shown else 0.5
    inside, outside = likeliest, 1.0 if upper else 0.0
    if not excluded(outside):
        return outside
    for _ in range(40):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if excluded(middle) else (middle, outside)
    return outside
