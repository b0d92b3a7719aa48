"""Annotators who err: how often they miss a wrong mask and mark a right one, and what a bound makes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import exp, log

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv, betaln, xlog1py, xlogy

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rates:
    """Error rates on the safe side: what is wrong is answered no at least so often.

    miss: at most this share of wrong masks is answered yes. false_alarm: at least this share of right masks
    is answered no. doubt: the chance that is left to the errors to fall out worse, those in one set of masks and
    those in what was asked before. earlier: the rate of misses in what was asked before, where it is another.
    """

    miss: float = 0.0
    false_alarm: float = 0.0
    doubt: float = 0.0
    earlier: float | None = None

    def least_no(self, wrong: Ints, sizes: Ints) -> Ints:
        """The number of no that ``wrong`` wrong masks among ``sizes`` bring, but for a chance of ``doubt``."""
        if self.miss <= 0 and self.false_alarm <= 0:
            return wrong
        wrong = np.minimum(wrong, sizes + 1)
        caught = quantile(self.doubt / 4, wrong, 1 - self.miss)
        return caught + quantile(self.doubt / 4, np.maximum(sizes - wrong, 0), self.false_alarm)

    def missed(self, no: int) -> int:
        """How many wrong masks may have been answered yes before, where ``no`` were not; for half of ``doubt``."""
        return _missed(self.miss if self.earlier is None else self.earlier, self.doubt, no)

    def answered_no(self, wrong: Floats) -> Floats:
        """The share of no to be expected where a share ``wrong`` is wrong."""
        return wrong * (1 - self.miss) + (1 - wrong) * self.false_alarm

    def right(self, yes: NDArray[np.float32]) -> NDArray[np.float32]:
        """The chance that a mask is right that is answered yes with the chance ``yes``."""
        told = max(1 - self.miss - self.false_alarm, 0.1)
        return np.clip((yes - np.float32(self.miss)) / np.float32(told), 0, 1)


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
def _missed(miss: float, doubt: float, no: int) -> int:
    if miss <= 0:
        return 0
    if miss >= 1:
        return ANY_NUMBER
    # the most wrong masks that would bring no more than so many no
    few, many = no, int(4 * (no + 60) / (1 - miss))
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if bdtr(no, middle, 1 - miss) >= doubt / 4 else (few, middle)
    return int(quantile(1 - doubt / 4, np.array(few), miss))


@dataclass(frozen=True)
class Gold:
    """Answers to questions whose truth is known.

    wrong, missed: wrong masks shown, and those of them answered yes. right, marked: right masks shown, and
    those of them not answered yes.
    """

    wrong: float = 0
    missed: float = 0
    right: float = 0
    marked: float = 0

    def __add__(self, other: Gold) -> Gold:
        return Gold(
            self.wrong + other.wrong,
            self.missed + other.missed,
            self.right + other.right,
            self.marked + other.marked,
        )

    def __sub__(self, other: Gold) -> Gold:
        return self + Gold(-other.wrong, -other.missed, -other.right, -other.marked)

    def miss_interval(self, confidence: float = 0.95) -> Interval:
        """The rate of answering yes on a wrong mask, as ``interval`` has it."""
        return interval(self.missed, self.wrong, confidence)

    def false_alarm_interval(self, confidence: float = 0.95) -> Interval:
        """The rate of not answering yes on a right mask, as ``interval`` has it."""
        return interval(self.marked, self.right, confidence)

    def likely(self) -> Rates:
        """The rates, a few errors expected beforehand."""
        return Rates((self.missed + 0.5) / (self.wrong + 5), (self.marked + 0.5) / (self.right + 10))

    def rates(self, alpha: float, doubt: float) -> Rates:
        """Rates of one annotator, on the safe side: ``rates_of`` one."""
        return rates_of([self], [1], alpha, doubt)


Interval = tuple[float, float, float]


def interval(happened: float, shown: float, confidence: float = 0.95) -> Interval:
    """A share, and its interval of Clopper and Pearson; from 0 to 1 where nothing was shown."""
    if not shown:
        return 0.0, 0.0, 1.0
    tail = (1 - confidence) / 2
    low = float(betaincinv(happened, shown - happened + 1, tail)) if happened else 0.0
    high = float(betaincinv(happened + 1, shown - happened, 1 - tail)) if happened < shown else 1.0
    return happened / shown, low, high


def rates_of(golds: Sequence[Gold], weights: Sequence[float], alpha: float, doubt: float) -> Rates:
    """Rates on the safe side of answers of which so large a part is of each annotator.

    golds: of every annotator with any; weights: (a,) theirs of the answers, in any unit. With a chance of
    1 - ``alpha`` the bounds hold at all times, for all annotators and whatever the weights, all at once.
    """
    shown = tuple((gold.wrong, gold.missed, gold.right, gold.marked) for gold in golds)
    return _rates_of(shown, tuple(weights), alpha, doubt)


@lru_cache(maxsize=4096)
def _rates_of(
    golds: tuple[tuple[float, ...], ...], weights: tuple[float, ...], alpha: float, doubt: float
) -> Rates:
    wrong, missed, right, marked = np.array(golds, dtype=np.float64).T
    weight = np.array(weights, dtype=np.float64) / sum(weights)
    miss = _greatest_mean(missed, wrong - missed, weight, alpha / 2, LOW_RATE)
    false_alarm = 1 - _greatest_mean(right - marked, marked, weight, alpha / 2, LOW_RATE[::-1])
    # an annotator no better than chance tells nothing of a mask
    return Rates(max(miss, 1e-9), max(0.0, min(false_alarm, 1 - miss)), doubt)


LOW_RATE = 0.5, 4.5  # the working prior, a beta distribution: one error in ten
TINY = 1e-300


def _greatest_mean(
    happened: Floats, not_: Floats, weight: Floats, alpha: float, prior: tuple[float, ...]
) -> float:
    """The greatest weighed mean of the rates of several annotators that their counts leave possible.

    happened, not_: (a,) counts of each; weight: (a,), sums to 1. For each annotator the chance of the counts under
    the prior, over that under their true rate, is a martingale that begins at 1, and so is the product of all. It
    ever reaches 1/α with probability at most α; so but for that the true rates are always among those at which the
    product is less, and no mean of them exceeds the greatest one there. The prior moves the bound, not its truth.
    """
    shown = happened + not_
    seen = float((betaln(prior[0] + happened, prior[1] + not_) - betaln(*prior)).sum())

    def rates(price: float) -> Floats:
        """(a,) the rates at which the mean, less the price of the log evidence, is greatest."""
        slack = weight - price * shown
        root = np.sqrt(slack**2 + 4 * weight * price * happened)
        # the same number in two ways, each exact where the other isn't
        small, large = 2 * price * happened / (root - slack + TINY), (root + slack) / (2 * weight + TINY)
        return np.clip(np.where(slack > 0, large, small), 0.0, 1.0)

    def possible(price: float) -> bool:
        at = rates(price)
        return bool(seen - (xlogy(happened, at) + xlog1py(not_, -at)).sum() < log(1 / alpha))

    low, high = -60.0, 30.0  # logarithms of prices; the higher, the nearer to what was seen
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if possible(exp(middle)) else (middle, high)
    return min(float(weight @ rates(exp(high))), 1.0)


# annotators by account

SUSPICION = log(20)  # evidence of a miss rate that is not tolerated, from which on pages are asked again
GOOD = 3  # an annotator who misses this much less than is tolerated is a good one
RECENT = 20  # answers in which an account is seen that is at work now
REPEATS = 3  # answers of one person on the same questions, of which the last one counts in any case


@dataclass(eq=False)
class Annotator:
    """What is known of one account.

    shown: all of its gold; weighed: that which tells the rates of the answers that count. suspicion: evidence of
    the latest answers that more is missed than tolerated. answers, refused: pages; seconds, questions: of those
    that Label Studio timed, as asked. counted: questions whose verdict counts.
    """

    shown: Gold = Gold()
    weighed: Gold = Gold()
    suspicion: float = 0.0
    answers: int = 0
    refused: int = 0
    questions: int = 0
    seconds: float = 0.0
    counted: int = 0

    @property
    def suspected(self) -> bool:
        """Whether the pages of this account are asked again."""
        return self.suspicion >= SUSPICION

    def take(self, gold: Gold, tolerated: float) -> None:
        """Weigh the gold of one more page: a cumulated sum of log likelihood ratios (Page, 1954).

        It asks whether ``tolerated`` is missed, or a third of that; what speaks for a good annotator counts
        back to none, what speaks against one to twice the limit, so that the latest answers tell.
        """
        good = tolerated / GOOD
        caught = gold.wrong - gold.missed
        moved = gold.missed * log(tolerated / good) + caught * log((1 - tolerated) / (1 - good))
        self.suspicion = min(max(self.suspicion + moved, 0.0), 2 * SUSPICION)


@dataclass(eq=False)
class Team:
    """All annotators of a campaign, by account.

    common: gold that was answered by all of them together. recent: the accounts of the latest answers.
    """

    common: Gold = Gold()
    accounts: dict[int, Annotator] = field(default_factory=dict)
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT))

    def __getitem__(self, account: int) -> Annotator:
        return self.accounts.setdefault(account, Annotator())

    def alone(self, account: int) -> bool:
        """Whether nobody else is at work now."""
        return all(other == account for other in self.recent)

    @property
    def gold(self) -> Gold:
        """The gold of all that tells the rates."""
        return sum((one.weighed for one in self.accounts.values()), self.common)

    def counted(self) -> dict[int, int]:
        """How many verdicts that count are of which account."""
        return {account: one.counted for account, one in self.accounts.items() if one.counted}

    def rates(self, mix: Mapping[int, int], alpha: float, doubt: float) -> Rates:
        """Rates on the safe side of answers of which so many are of each account; ``rates_of`` says how sure.

        Who has answered no gold may miss everything.
        """
        told = {account for account, one in self.accounts.items() if one.weighed != Gold()}
        known = sorted(told | {account for account, many in mix.items() if many > 0})
        many = [max(mix.get(account, 0), 0) for account in known]
        if self.common != Gold() or not any(many):
            return self.gold.rates(alpha, doubt)
        return rates_of([self[account].weighed for account in known], many, alpha, doubt)


# overlap


@dataclass(frozen=True)
class Labels:
    """Answers of several annotators to the same questions: (k,) mask, account, and whether it was a yes."""

    mask: Ints
    account: Ints
    yes: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.mask)

    def agreement(self) -> float | None:
        """The share of pairs of answers to one question that are the same; None without any."""
        if not len(self):
            return None
        same, others = self._others()
        return float(same.sum() / others.sum())

    def with_others(self) -> dict[int, tuple[float, int]]:
        """Of each account, the share of the others' answers that are the same as its own, and its questions."""
        if not len(self):
            return {}
        same, others = self._others()
        accounts, who = np.unique(self.account, return_inverse=True)
        shares = np.bincount(who, same) / np.bincount(who, others)
        return dict(
            zip(accounts.tolist(), zip(shares.tolist(), np.bincount(who).tolist(), strict=True), strict=True)
        )

    def _others(self) -> tuple[Floats, Ints]:
        """(k,) how many of the others' answers to the same question are the same, and how many there are."""
        _, place = np.unique(self.mask, return_inverse=True)
        others = np.bincount(place)[place] - 1
        yes = np.bincount(place, self.yes)[place]
        return np.where(self.yes, yes - 1, others - yes), others
