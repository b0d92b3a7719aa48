"""Annotators who err: how often they miss a wrong mask and mark a right one, and what a bound makes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import log

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

    def rates(self, alpha: float, doubt: float, unknown: float = 0.0, dark: float = 0.0) -> Rates:
        """Rates on the safe side, all of them at once and at all times with a chance of 1 - ``alpha``.

        unknown, dark: the shares of the answers of whose misses, and of whose marks, these counts say nothing.
        """
        miss = unknown + (1 - unknown) * _limit(self.missed, self.wrong, alpha / 2, upper=True)
        false_alarm = (1 - dark) * _limit(self.marked, self.right, alpha / 2, upper=False)
        # an annotator no better than chance tells nothing of a mask
        return Rates(max(miss, 1e-9), min(false_alarm, 1 - miss), doubt)


Interval = tuple[float, float, float]


def interval(happened: float, shown: float, confidence: float = 0.95) -> Interval:
    """A share, and its interval of Clopper and Pearson; from 0 to 1 where nothing was shown."""
    if not shown:
        return 0.0, 0.0, 1.0
    tail = (1 - confidence) / 2
    low = float(betaincinv(happened, shown - happened + 1, tail)) if happened else 0.0
    high = float(betaincinv(happened + 1, shown - happened, 1 - tail)) if happened < shown else 1.0
    return happened / shown, low, high


@lru_cache(maxsize=4096)
def _limit(happened: float, shown: float, alpha: float, upper: bool) -> float:
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


# annotators by account

SUSPICION = log(20)  # evidence of a miss rate that is not tolerated, from which on pages are asked again
GOOD = 3  # an annotator who misses this much less than is tolerated is a good one
RECENT = 20  # answers in which an account is seen that is at work now
REPEATS = 3  # answers of one person on the same questions, of which the last one counts in any case
FEW = 8  # wrong masks shown, below which annotators are taken together


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
        """Rates on the safe side of answers of which so many are of each account.

        Each account's own rate, weighed by its answers, with the evidence of as much gold as there is of all in
        that proportion; the accounts with little gold are taken together. Who has none may miss everything.
        """
        if self.common != Gold():
            return self.gold.rates(alpha, doubt)
        known = [(self[account].weighed, many) for account, many in sorted(mix.items()) if many > 0]
        if not known:
            return self.gold.rates(alpha, doubt)
        alone = [(gold, many) for gold, many in known if gold.wrong >= FEW]
        few = [(gold, many) for gold, many in known if gold.wrong < FEW]
        if few:
            alone.append((sum((gold for gold, _ in few), Gold()), sum(many for _, many in few)))
        shown = np.array([[g.wrong, g.missed, g.right, g.marked] for g, _ in alone], dtype=np.float64)
        weight = np.array([many for _, many in alone], dtype=np.float64)
        weight /= weight.sum()
        wrong, missed, unknown = _proportional(shown[:, 0], shown[:, 1], weight)
        right, marked, dark = _proportional(shown[:, 2], shown[:, 3], weight)
        return Gold(wrong, missed, right, marked).rates(alpha, doubt, unknown, dark)


def _proportional(shown: Floats, happened: Floats, weight: Floats) -> tuple[float, float, float]:
    """How much was shown in the proportion of the weights, what happened of that, and the weight of none."""
    there = shown > 0
    unknown = float(weight[~there].sum())
    if not there.any():
        return 0.0, 0.0, 1.0
    part = weight[there] / weight[there].sum()
    size = float((shown[there] / part).min())
    return size, float(size * (part * happened[there] / shown[there]).sum()), unknown


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


def dawid_skene(labels: Labels, steps: int = 100) -> dict[int, Rates]:
    """Each account's rates of missing wrong masks and marking right ones, as answers to the same masks suggest.

    Expectation and maximization over the unknown truth (Dawid and Skene, 1979), each account's rates drawn to one
    error in ten by ten answers. An estimate: where all err alike, all agree.
    """
    if not len(labels):
        return {}
    masks, place = np.unique(labels.mask, return_inverse=True)
    accounts, who = np.unique(labels.account, return_inverse=True)
    right = np.bincount(place, labels.yes) / np.bincount(place)
    for _ in range(steps):
        true = right[place]
        marked = (np.bincount(who, true * ~labels.yes) + 1) / (np.bincount(who, true) + 10)
        missed = (np.bincount(who, (1 - true) * labels.yes) + 1) / (np.bincount(who, 1 - true) + 10)
        share = (right.sum() + 1) / (len(masks) + 2)
        said = np.where(labels.yes, np.log((1 - marked) / missed)[who], np.log(marked / (1 - missed))[who])
        odds = np.log(share / (1 - share)) + np.bincount(place, said)
        after = 1 / (1 + np.exp(-np.clip(odds, -50, 50)))
        if np.abs(after - right).max() < 1e-6:
            break
        right = after
    return {int(a): Rates(float(m), float(f)) for a, m, f in zip(accounts, missed, marked, strict=True)}
