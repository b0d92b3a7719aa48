"""The calibrated strategy: learn which masks are right, propose the likeliest, prove them on random questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from propagation.annotators import PERFECT, Rates
from propagation.certificate import STRENGTH, Certificate, Level, log_evidence, pack, unpack
from propagation.commands import ACCEPT
from propagation.events import (
    CampaignStarted,
    CertificateClosed,
    CertificateOpened,
    Certified,
    Command,
    Decided,
    Decision,
    Event,
    GoldAnswered,
    ImageTaken,
    PageAnswered,
    PageIssued,
    PageReopened,
    PageReturned,
    ProposalPutOff,
)
from propagation.posterior import Columns, Posterior, covariates, fit
from propagation.strategies import Choice, Claim, Draw, require
from propagation.tree import ClusterTree

if TYPE_CHECKING:
    from propagation.campaign import Campaign, PageState, State

NO, YES = 0, 1
PRIOR = 60.0  # answers that the posterior's word on a set is worth, where questions are aimed
CAUTION = 0.3  # standard deviations by which answers are expected to fall out worse
MARGIN = 0.005  # by which the largest set is expected to exceed the target
FIRST_SET = 0.15  # of the largest set, the smallest one at least
FRONT = 500  # clusters of a tree that are decided on, about
MOSTLY, HARDLY = 0.9, 0.02  # shares of a cluster's masks that are proposed, from and up to which it stays whole
HELD_BACK = 0.05  # chance of a category's verdicts, were it as good as the target, under which it stays out
ORDER = 0x0DE5  # sets the random order of questions apart from every other stream of the same seed
LEARN_MORE = 40  # questions after which it is tried again to propose anything
ATTEMPTS = 8  # certificates of a scope
ENOUGH_GOLD = 30  # wrong masks of known truth shown, before which the rates of the settings are taken
GOLD_ALPHA, DOUBT_ALPHA = 0.2, 0.1  # shares of the error for the annotators' rates, where they err


@dataclass(frozen=True)
class CalibratedStrategy:
    """Learn, propose, certify: the most masks for the fewest questions at a promise that holds.

    target: q, the share of right masks that is promised.
    confidence: 1 - α, the chance that the promise holds.
    scope: whether that is of all that is written, or of each category jointly.
    learn: share of the budget that is asked to learn from, before anything is proposed.
    learn_most: questions that are asked for that, at most; so many where there is no budget.
    sets: nested sets that a certificate freezes.
    spend: share of the error not yet spent that an attempt spends.
    worth: masks that a question has to bring; below it, no more are asked.
    reject_at: K_r, clusters of which no more than this share is expected to be right are rejected.
    least_size: the masks of a cluster that is not split further.
    rates: whether the annotators' error rates are known, or learned from gold questions.
    miss, false_alarm: the known rates of answering yes on a wrong mask, and no on a right one.
    pages_a_round: pages asked before their answers are awaited, at most.
    budget: questions in all; None for no end but worth.
    page_size: questions a page.
    seed: of the draws.
    """

    name: Literal["calibrated"] = "calibrated"
    target: float = 0.85
    confidence: float = 0.95
    scope: Literal["campaign", "category"] = "campaign"
    learn: float = 0.36
    learn_most: int = 500
    sets: int = 24
    spend: float = 0.85
    worth: float = 0.1
    reject_at: float = 0.15
    least_size: int = 15
    rates: Literal["known", "gold"] = "known"
    miss: float = 0.0
    false_alarm: float = 0.0
    pages_a_round: int = 5
    budget: int | None = None
    page_size: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        share = "a share above 0 and below 1"
        require(
            "strategy",
            target=(self.target, 0 < self.target < 1, share),
            confidence=(self.confidence, 0 < self.confidence < 1, share),
            learn=(self.learn, 0 < self.learn < 1, share),
            learn_most=(self.learn_most, self.learn_most >= 1, "at least 1"),
            sets=(self.sets, 1 <= self.sets <= 1000, "from 1 to 1000"),
            spend=(self.spend, 0 < self.spend < 1, share),
            worth=(self.worth, self.worth >= 0, "0 or more"),
            reject_at=(self.reject_at, self.reject_at < self.target, "less than target"),
            least_size=(self.least_size, self.least_size >= 1, "at least 1"),
            miss=(self.miss, 0 <= self.miss < 0.5, "a share below 0.5"),
            false_alarm=(self.false_alarm, 0 <= self.false_alarm < 0.5, "a share below 0.5"),
            pages_a_round=(self.pages_a_round, self.pages_a_round >= 1, "at least 1"),
            budget=(self.budget, self.budget is None or self.budget >= 0, "0 or more, or left out"),
            page_size=(self.page_size, self.page_size >= 1, "at least 1"),
        )

    def begin(self, campaign: Campaign) -> CalibratedSearch:
        """Begin with nothing known."""
        return CalibratedSearch(self, campaign)

    @property
    def perfect(self) -> bool:
        """Whether annotators are taken not to err."""
        return self.rates == "known" and self.miss == self.false_alarm == 0


@dataclass
class Attempt:
    """A certificate on its way: its number, how far it was proven at which steps, whether more is asked for it.

    doubted: an answer was changed, so that what was proven may no longer be. peak: the most that ever was.
    commands: how many there had been when it was opened. before: how many verdicts there were then, by account;
    since: how many of its questions have one; pages: the account and the questions of each page among these.
    """

    number: int
    certificate: Certificate
    steps: list[int] = field(default_factory=list)
    open: bool = True
    doubted: bool = False
    peak: int = 0
    commands: int = 0
    before: Counter[int] = field(default_factory=Counter)
    since: Counter[int] = field(default_factory=Counter)
    pages: dict[str, tuple[int, int]] = field(default_factory=dict)

    def answered(self, page: str, by: int | None, questions: int) -> None:
        """Count so many questions of a page as answered by an account, or by none."""
        account, many = self.pages.pop(page, (0, 0))
        self.since[account] -= many
        if by is not None and questions:
            self.pages[page] = by, questions
            self.since[by] += questions

    @property
    def certified(self) -> int:
        """The greatest of the nested sets that is proven; 0 for none."""
        return self.steps[-1] if self.steps else 0


@dataclass
class Scope:
    """What is promised together: all masks, or those of one category.

    spent: error spent so far, in so many tries; attempts: the latest, and that which what is written rests on;
    idle_until: the number of verdicts in it from which proposing is tried again, after nothing was worth it.
    """

    category: str
    alpha: float
    spent: float = 0.0
    tries: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    idle_until: int = 0

    @property
    def standing(self) -> Attempt | None:
        """The attempt that what is written rests on."""
        return next((attempt for attempt in reversed(self.attempts) if attempt.certified), None)

    @property
    def open(self) -> Attempt | None:
        """The attempt that questions are asked for now."""
        return self.attempts[-1] if self.attempts and self.attempts[-1].open else None


class CalibratedSearch:
    """What the calibrated strategy knows of a campaign."""

    def __init__(self, strategy: CalibratedStrategy, campaign: Campaign) -> None:
        self._rule = strategy
        self._campaign = campaign
        self._alpha = 1 - strategy.confidence
        table = campaign.table
        self._asked = 0
        self._masks = int(table.best.sum())
        self._columns: tuple[Columns, int] | None = None
        self._learning: NDArray[np.int32] | None = None
        self._attempt: dict[int, Attempt] = {}
        self._left = False  # the latest event was of an image that left; of many in a row, the last one is weighed
        self._posterior: tuple[int, Posterior] | None = None
        names = [tree.category for tree in campaign.trees] if strategy.scope == "category" else [""]
        self._measured = self._enough = False
        self._scopes = {name: Scope(name, self._alpha / max(len(names), 1)) for name in names}
        if strategy.rates == "gold":
            self._measure()
            self._enough = True
        self._category = {name: place for place, name in enumerate(table.categories)}

    # the fold

    def apply(self, event: Event) -> None:
        """Take an event into account."""
        if self._left and not isinstance(event, ImageTaken):
            self._weigh()
        match event:
            case CampaignStarted(gold=gold) if gold and not self._measured:
                self._measure()
            case PageIssued():
                rows = self._campaign.pages[event.page].rows
                self._asked += len(rows) if event.attempt == 1 else 0
                if event.attempt == 1:
                    for key in self._campaign.commands.more:
                        if len(some := rows[np.isin(rows, self._campaign.rows(*key))]):
                            self._campaign.commands.no_more(key, some)
                for attempt in self._attempt.values():
                    if attempt.open:
                        attempt.certificate.issue(rows)
            case PageAnswered() | PageReturned() | PageReopened():
                self._answered(self._campaign.pages[event.page])
            case ImageTaken():
                taken = np.flatnonzero(self._campaign.taken[self._campaign.table.image])
                for attempt in self._attempt.values():
                    attempt.certificate.remove(taken)
                    if attempt.certificate.knew(taken):
                        self._count_known(attempt.certificate)
            case CertificateOpened():
                self._opened(event)
            case Certified():
                attempt = self._attempt[event.certificate]
                attempt.steps = [step for step in attempt.steps if step < event.level]
                attempt.steps += [event.level] if event.level else []
                attempt.doubted = False
                attempt.peak = max(attempt.peak, event.level)
                # proven by questions that were asked since: what was held back for want of these is no longer
                inside = (attempt.certificate.levels > 0) & (attempt.certificate.levels <= event.level)
                self._campaign.commands.release(np.flatnonzero(inside), whole=False, up_to=attempt.commands)
            case CertificateClosed():
                self._attempt[event.certificate].open = False
            case ProposalPutOff():
                self._scopes[event.scope].idle_until = event.until
        if isinstance(event, PageIssued | PageAnswered | PageReturned | PageReopened | GoldAnswered):
            self._weigh()
        self._left = isinstance(event, ImageTaken)

    def _weigh(self) -> None:
        if self._measured and not self._enough and self._campaign.gold.wrong >= ENOUGH_GOLD:
            self._enough = True
            for attempt in self._attempt.values():
                # what was proven with the rates of the settings has to be proven with those of the annotators
                attempt.certificate.begin_anew()
                attempt.doubted = True
        # the greatest evidence is part of the state: it must not depend on when somebody asks for it
        for attempt in self._attempt.values():
            attempt.certificate.evidence(self._rates(attempt))

    def _measure(self) -> None:
        """Learn the annotators' rates from gold: a part of the error is theirs."""
        self._measured = True
        for scope in self._scopes.values():
            scope.alpha *= 1 - GOLD_ALPHA

    def _answered(self, page: PageState) -> None:
        counted, rows = page.asked.counted, page.rows
        if not len(self._campaign.revised) and (page.refused if counted is None else counted is not page):
            return  # an answer that changes no verdict
        self._posterior = None
        yes = self._campaign.verdict[rows] == YES
        by = counted.answer.by if counted and counted.answer else None
        for attempt in self._attempt.values():
            attempt.answered(page.asked.pages[0].issued.page, by, attempt.certificate.asks(rows))
            attempt.doubted |= bool(len(self._campaign.revised))
            attempt.certificate.answer(rows, yes)
            if attempt.certificate.knew(rows):
                self._count_known(attempt.certificate)

    def _count_known(self, certificate: Certificate) -> None:
        certificate.count_known(self._campaign.verdict == YES, self._campaign.verdict == NO)

    def _opened(self, event: CertificateOpened) -> None:
        scope = self._scopes[event.scope]
        certificate = Certificate(
            unpack(event.levels),
            self._campaign.verdict != -1,
            np.array(event.expected),
            self._rule.target,
            event.alpha * (1 if self._perfect else 1 - DOUBT_ALPHA),
            (self._rule.seed, event.certificate, ORDER),
        )
        taken = np.flatnonzero(self._campaign.taken[self._campaign.table.image])
        certificate.remove(taken)
        self._count_known(certificate)
        scope.spent += event.alpha
        scope.tries += 1
        for earlier in scope.attempts:
            if earlier is not scope.standing:
                del self._attempt[earlier.number]
        scope.idle_until = 0
        standing = [scope.standing] if scope.standing else []
        opened = Attempt(
            event.certificate,
            certificate,
            commands=self._campaign.commands.count,
            before=Counter(self._campaign.team.counted()),
        )
        scope.attempts = [*standing, opened]
        self._attempt[event.certificate] = scope.attempts[-1]
        for key in [key for key, state in self._campaign.state.items() if state != "accepted"]:
            if event.scope in ("", self._campaign.trees[key[0]].category):
                del self._campaign.state[key]

    @property
    def _perfect(self) -> bool:
        """Whether annotators are taken not to err."""
        return self._rule.perfect and not self._measured

    def _rates(self, attempt: Attempt) -> Rates:
        """The annotators' error rates, on the safe side, of the answers that an attempt rests on."""
        alpha = attempt.certificate.alpha
        since = self._rates_of(attempt.since or attempt.before, alpha)
        return replace(since, earlier=self._rates_of(attempt.before, alpha).miss)

    def _rates_of(self, mix: Mapping[int, int], alpha: float) -> Rates:
        """The annotators' error rates, on the safe side, where so many answers are of each account."""
        if self._perfect:
            return PERFECT
        doubt = alpha * DOUBT_ALPHA
        if self._enough:
            return self._campaign.team.rates(mix, self._alpha * GOLD_ALPHA, doubt)
        return Rates(self._rule.miss, self._rule.false_alarm, doubt)

    def _likely_rates(self) -> Rates:
        """The annotators' error rates as far as they are known."""
        if self._enough:
            return self._campaign.gold.likely()
        return Rates(self._rule.miss, self._rule.false_alarm)

    # what is decided

    def decisions(self) -> Iterator[Choice]:
        """Certify the sets that are proven, and accept the clusters that have masks in them.

        What is no longer proven, since an answer was changed, is taken back.
        """
        for scope in self._scopes.values():
            for attempt in scope.attempts:
                if not (attempt.open or attempt.peak):
                    continue
                rates = self._rates(attempt)
                level = attempt.certificate.proven(rates)
                if not attempt.open:
                    level = min(level, attempt.peak)
                if level > attempt.certified or (level < attempt.certified and attempt.doubted):
                    told = attempt.certificate.level_report(level, rates) if level else Level(0, 0, 0, 0.0)
                    yield Certified(attempt.number, level, told.members, told.asked, told.wrong, told.bound)
                    yield from self._follow(scope)

    def _follow(self, scope: Scope) -> Iterator[Decided]:
        """Accept the proposed clusters with certified masks; propose anew the accepted ones left without."""
        inside = self._certified(scope)
        after: dict[State, tuple[bool, Decision]] = {"proposed": (True, "accept"), "accepted": (False, "propose")}
        for (place, node), state in list(self._campaign.state.items()):
            if scope.category not in ("", self._campaign.trees[place].category) or state not in after:
                continue
            wanted, decision = after[state]
            if inside[self._campaign.rows(place, node)].any() == wanted:
                yield Decided(self._campaign.cluster(place, node), decision, *self._campaign.known(place, node))

    # what is asked

    def draw(self, room: int | None) -> Iterator[Choice | Draw]:
        """Learn; then, for each scope, propose, and ask what proves it."""
        left = np.inf if room is None else room
        if more := self._campaign.commands.more:
            some = [self._draw_more(key)[: self._rule.page_size] for key in sorted(more)]
            rows = np.unique(np.concatenate(some))
            if len(rows) and left:
                yield from self._as_draws(rows[: int(min(left, len(rows)))])
                return
        budget = self._rule.budget
        learn = self._rule.learn_most
        if budget is not None:
            learn = min(learn, int(np.ceil(self._rule.learn * budget)))
        learn = min(learn, int(np.ceil(self._rule.learn * self._masks)))
        if self._asked < learn:
            yield from self._to_learn(int(min(learn - self._asked, left)))
            return
        for scope in self._scopes.values():
            if scope.open is None:
                yield from self._propose(scope, left)
            if scope.open is not None and self._proven(scope.open) > scope.open.certified:
                return  # without a question, as where all masks were judged; decided on first
        best: tuple[float, Attempt, int, float] | None = None
        for scope in self._scopes.values():
            if scope.open is None:
                continue
            level, need, gain = self._aim(scope.open, left, scope.standing is None)
            if not level:
                yield CertificateClosed(scope.open.number)
            elif best is None or gain / need > best[0]:
                best = gain / need, scope.open, level, need
        if best is not None:
            _, attempt, level, need = best
            pages = int(np.clip(need / (3 * self._rule.page_size), 1, self._rule.pages_a_round))
            rows = attempt.certificate.draw(level, int(min(pages * self._rule.page_size, left)))
            yield from self._as_draws(rows)
        elif (
            not any(scope.attempts for scope in self._scopes.values()) and self._asked < 2 * self._rule.learn_most
        ):
            yield from self._to_learn(int(min(LEARN_MORE, left)))
        elif any(self._known(scope) >= scope.idle_until for scope in self._scopes.values()):
            # an attempt was closed just now; another may be worth it
            yield from self.draw(room)

    def _as_draws(self, rows: NDArray[np.int64]) -> Iterator[Draw]:
        """Questions with the clusters that are decided on."""
        for place, tree in enumerate(self._campaign.trees):
            here = rows[self._campaign.table.category[rows] == self._category[tree.category]]
            if len(here):
                nodes = np.full(len(here), tree.root)
                leaf = self._campaign.leaf[here]
                for (other, node), state in self._campaign.state.items():
                    if other == place and state in ("proposed", "accepted"):
                        where = tree.slice(node)
                        nodes[(leaf >= where.start) & (leaf < where.stop)] = node
                yield Draw(place, here, nodes)

    def _known(self, scope: Scope) -> int:
        """The verdicts in a scope."""
        verdict, category = self._campaign.verdict, self._campaign.table.category
        if not scope.category:
            return int((verdict != -1).sum())
        return int((verdict[category == self._category[scope.category]] != -1).sum())

    def _to_learn(self, count: int) -> Iterator[Draw]:
        """Random masks: half of them whatever they are, half spread over the categories."""
        table, campaign = self._campaign.table, self._campaign
        if self._learning is None:
            masks = np.flatnonzero(table.best)
            sizes = np.bincount(table.category[masks], minlength=len(table.categories))
            spread = np.sqrt(sizes) / np.maximum(sizes, 1) / max(np.sqrt(sizes).sum(), 1)
            weight = (1 / max(len(masks), 1) + spread)[table.category[masks]]
            raw = np.random.PCG64(np.random.SeedSequence((self._rule.seed,))).random_raw(len(masks))
            # the smallest of exponential times is drawn in proportion to its rate
            times = -np.log((raw.astype(np.float64) + 1) / 2.0**64) / weight
            self._learning = masks[np.argsort(times, kind="stable")].astype(np.int32)
        free = (campaign.verdict[self._learning] == -1) & ~campaign.taken[table.image[self._learning]]
        free &= campaign.commands.ruled[self._learning] == 0
        yield from self._as_draws(self._learning[np.flatnonzero(free)[:count]].astype(np.int64))

    def _draw_more(self, key: tuple[int, int]) -> NDArray[np.int64]:
        """A cluster's masks that can be asked, in random order."""
        rng = np.random.default_rng([self._rule.seed, *key])
        rows = self._campaign.free(*key)
        return rng.permutation(np.sort(rows[self._campaign.table.best[rows]])).astype(np.int64)

    def _proven(self, attempt: Attempt) -> int:
        return attempt.certificate.proven(self._rates(attempt))

    def _aim(self, attempt: Attempt, left: float, first: bool) -> tuple[int, float, float]:
        """The set that is asked for next, the questions that it needs, and the masks that it brings.

        The largest one within reach; where nothing is certified yet, the likeliest at all.
        """
        return self._reach(attempt.certificate, attempt.certified, self._rates(attempt), left, first)

    def _reach(
        self,
        certificate: Certificate,
        certified: int,
        rates: Rates,
        left: float,
        first: bool,
        out: NDArray[np.int64] | int = 0,
    ) -> tuple[int, float, float]:
        sizes, bad_from = certificate.sizes(), certificate.bad_from(rates)
        questions = questions_to(certificate, sizes, bad_from, certificate.expected, certified, out)
        gain = sizes - (sizes[certified - 1] if certified else 0)
        later = np.arange(1, certificate.count + 1) > certified
        finite = np.isfinite(questions)
        worth = gain >= self._rule.worth * np.where(finite, questions, 0.0)
        within = later & finite & (questions <= left) & worth
        if within.any():
            level = int(np.flatnonzero(within)[-1])
        elif first and np.isfinite(questions[later]).any():
            level = int(np.argmin(np.where(later, questions, np.inf)))
        else:
            return 0, np.inf, 0.0
        return level + 1, float(questions[level]), float(gain[level])

    # what is proposed

    def _propose(self, scope: Scope, left: float) -> Iterator[Choice]:
        """Freeze sets of the likeliest masks, if any of them is within reach; decide on clusters by them."""
        known = self._known(scope)
        if known < scope.idle_until:
            return
        if scope.tries < ATTEMPTS:
            alpha = (scope.alpha - scope.spent) * self._rule.spend
            levels, expected = self._sets(scope, alpha)
            if len(expected) and self._worth(scope, levels, expected, alpha, left):
                number = 1 + max(self._attempt, default=0)
                yield CertificateOpened(number, scope.category, alpha, pack(levels), tuple(expected.tolist()))
                yield from self._decide_clusters(scope, levels)
                return
        yield ProposalPutOff(scope.category, known + LEARN_MORE)

    def _worth(
        self,
        scope: Scope,
        levels: NDArray[np.uint16],
        expected: NDArray[np.float64],
        alpha: float,
        left: float,
    ) -> bool:
        """Whether any of these sets is within reach, or needs no question."""
        known, entropy = self._campaign.verdict != -1, (self._rule.seed, 0)
        trial = Certificate(levels, known, expected, self._rule.target, alpha, entropy)
        self._count_known(trial)
        judged = not trial.sizes().any()
        rates = self._rates_of(self._campaign.team.counted(), alpha)
        return judged or self._reach(trial, 0, rates, left, scope.standing is None)[0] > 0

    def _sets(self, scope: Scope, alpha: float) -> tuple[NDArray[np.uint16], NDArray[np.float64]]:
        """(n,) the set that each mask enters at, and (k,) the share of no expected in each, or none."""
        campaign, rule = self._campaign, self._rule
        table, verdict = campaign.table, campaign.verdict
        levels = np.zeros(len(table), dtype=np.uint16)
        inside = table.best & ~campaign.taken[table.image]
        if scope.category:
            inside &= table.category == self._category[scope.category]
        says_yes, likely = self._learned(), self._likely_rates()
        right = likely.right(says_yes)
        # a new set is frozen without what commands decide, but for what was proven before they came
        proven, commands = self._certified(scope) & ~campaign.commands.out(), campaign.commands
        inside &= (commands.ruled == 0) | (proven & (commands.ruled == ACCEPT))
        fresh = inside & (verdict == -1)
        sure = proven & fresh
        judged = inside & (verdict == YES)
        if not self._perfect:
            judged &= right >= rule.target - 0.1
            missed = self._rates_of(campaign.team.counted(), alpha).missed(
                int(((verdict != -1) & (verdict != YES)).sum())
            )
            # they are left out where more of them may be wrong than they make up for
            judged &= missed < (1 - rule.target) * judged.sum()
        fresh &= ~self._held_back(says_yes) | sure
        # of as many numbers as masks, few and short ones at a time: they are the most memory that a campaign takes
        order = np.flatnonzero(fresh).astype(np.int32)
        order = order[np.lexsort((-right[order], ~sure[order]))]
        before, known = int(sure.sum()), int(judged.sum())
        expected_right = np.cumsum(right[order], dtype=np.float64)
        share = expected_right + known
        share /= np.arange(1 + known, len(order) + 1 + known)
        good = np.flatnonzero(share >= rule.target + MARGIN)
        top = int(good[-1]) + 1 if len(good) else 0
        if top <= before or top < rule.least_size:
            if self._perfect and scope.standing is None and known:
                # nothing else can be shown: what was judged right one by one needs no proof
                levels[judged] = 1
                return levels, np.zeros(1)
            return levels, np.empty(0)
        low = max(before, min(int(FIRST_SET * top), top - 1))
        ends = np.unique(np.linspace(low, top, rule.sets + 1).astype(int)[1:])
        ends = ends[ends > 0]
        levels[order[:top]] = np.repeat(np.arange(1, len(ends) + 1, dtype=np.uint16), np.diff(ends, prepend=0))
        levels[judged] = 1
        return levels, likely.answered_no(1 - expected_right[ends - 1] / ends)

    def _learned(self) -> NDArray[np.float32]:
        """(n,) the posterior of all verdicts so far; a mask's own verdict is left out of what is said of it."""
        campaign = self._campaign
        if self._columns is None:
            self._columns = covariates(campaign.table)
        rows = np.flatnonzero(campaign.verdict != -1)
        if self._posterior is None or self._posterior[0] != len(rows):
            yes = campaign.verdict[rows] == YES
            self._posterior = len(rows), fit(*self._columns, rows, yes, self._rule.seed)
        posterior = self._posterior[1]
        right = posterior.right.copy()
        right[rows] = posterior.unseen
        return right

    def _held_back(self, right: NDArray[np.float32]) -> NDArray[np.bool_]:
        """(n,) the masks of categories whose likely masks have been answered no too often for the target.

        Where no likely one was asked, all that were asked tell.
        """
        table, verdict = self._campaign.table, self._campaign.verdict
        asked = verdict != -1
        likely = asked & (right >= self._rule.target - 0.15)
        none = np.bincount(table.category[likely], minlength=len(table.categories)) == 0
        tells = np.where(none[table.category], asked, likely)
        many = np.bincount(table.category[tells], minlength=len(none))
        yes = np.bincount(table.category[tells & (verdict == YES)], minlength=len(none))
        return np.asarray((bdtr(yes, many, self._rule.target) < HELD_BACK)[table.category])

    def _decide_clusters(self, scope: Scope, levels: NDArray[np.uint16]) -> Iterator[Decided]:
        """Propose the clusters that have proposed masks, reject those with hardly a right one."""
        right = self._learned()
        for place, tree in enumerate(self._campaign.trees):
            if scope.category not in ("", tree.category):
                continue
            proposed = np.concatenate([[0], np.cumsum(levels[tree.rows] > 0)])
            likely = np.concatenate([[0.0], np.cumsum(right[tree.rows], dtype=np.float64)])
            accepted = [n for (p, n), state in self._campaign.state.items() if p == place and state == "accepted"]
            least = max(self._rule.least_size, len(tree) // FRONT)
            for node in front(tree, proposed, accepted, least):
                where = tree.slice(node)
                size = where.stop - where.start
                decision: Decision
                if proposed[where.stop] > proposed[where.start]:
                    decision = "propose"
                elif likely[where.stop] - likely[where.start] <= self._rule.reject_at * size:
                    decision = "reject"
                else:
                    continue
                yield Decided(self._campaign.cluster(place, node), decision, *self._campaign.known(place, node))

    # what stands

    def _certified(self, scope: Scope) -> NDArray[np.bool_]:
        if scope.standing is None:
            return np.zeros(len(self._campaign.table), dtype=bool)
        levels = scope.standing.certificate.levels
        return (levels > 0) & (levels <= scope.standing.certified)

    def written(self) -> NDArray[np.bool_]:
        """The masks of certified sets, less those judged wrong or unsure."""
        verdict = self._campaign.verdict
        inside = np.zeros(len(verdict), dtype=bool)
        for scope in self._scopes.values():
            inside |= self._certified(scope)
        return inside & ((verdict == -1) | (verdict == YES))

    def _holds(self, scope: Scope) -> bool:
        standing = scope.standing
        if standing is None:
            return True
        return standing.certificate.proven(self._rates(standing)) >= standing.certified

    @property
    def claim(self) -> Claim:
        """A promise, unless an answer that it rested on was changed since, or the log has lost what was tried."""
        whole = self._campaign.whole and all(map(self._holds, self._scopes.values()))
        return "promise" if whole else "estimate"

    def reach(self, place: int, node: int) -> NDArray[np.int64]:
        """All rows of a cluster."""
        return self._campaign.rows(place, node).astype(np.int64)

    def refuses(self, place: int, node: int, command: Command) -> str | None:
        """A split is refused: what is proven are sets of masks, which cut through clusters as it is."""
        campaign = self._campaign
        if command == "split":
            return (
                "the calibrated strategy proves sets of masks, not clusters, so a split would change nothing; "
                "accept, reject, or ask more"
            )
        if not len(self._draw_more((place, node))):
            return "all its masks have been asked about, or are on images that a person annotated"
        if (place, node) in campaign.commands.more:
            return "more is asked about it in the next round already; wait for the answers"
        if self._rule.budget is not None and campaign.questions_asked >= self._rule.budget:
            return f"the budget of {self._rule.budget} questions is spent; accept or reject it"
        return None

    def reasons(self) -> NDArray[np.object_]:
        """The certificate that a mask is written by, and the step of it that proved a set with the mask."""
        names = np.full(len(self._campaign.table), None, dtype=object)
        for scope in self._scopes.values():
            if scope.standing is not None:
                rows = np.flatnonzero(self._certified(scope))
                steps = scope.standing.steps
                at = np.searchsorted(steps, scope.standing.certificate.levels[rows])
                told = np.array([f"certificate/{scope.standing.number}/{step}" for step in steps], dtype=object)
                names[rows] = told[at]
        return names

    def estimate(self, category: str | None = None) -> float | None:
        """The share of yes among the random questions in the certified sets, and the masks judged right."""
        campaign = self._campaign
        right, size, unknown = 0.0, 0, False
        for scope in self._scopes.values():
            if scope.standing is None:
                continue
            inside = self._certified(scope) & ~campaign.commands.out()
            if category is not None:
                inside &= campaign.table.category == self._category[category]
            judged = int((inside & (campaign.verdict == YES)).sum())
            fresh = int((inside & (campaign.verdict == -1)).sum())
            yes, weight = scope.standing.certificate.answers(
                inside, campaign.verdict != -1, campaign.verdict == YES
            )
            unknown |= fresh > 0 and weight == 0
            right += judged + fresh * yes / max(weight, 1e-9)
            size += judged + fresh
        return None if unknown or not size else right / size

    def bound(self, category: str | None = None) -> float | None:
        """The share of right masks that is proven; of a category only where the promise is by category.

        Just the target: what the answers prove beyond it of the set that was chosen by them, they don't prove
        of all sets at once. Less, where commands took back part of a set: it may have been the best of it.
        """
        held = [s for s in self._scopes.values() if s.standing is not None and category in (None, s.category)]
        if not (held and self._campaign.whole and all(map(self._holds, held))):
            return None
        out = self._campaign.commands.out() if self._campaign.commands.any else None
        if out is None or not out.any():
            return self._rule.target
        free = ~self._campaign.taken[self._campaign.table.image]
        members = [self._certified(scope) & free for scope in held]
        kept, proven = (sum(int(m.sum()) for m in some) for some in ([m & ~out for m in members], members))
        if kept == proven:
            return self._rule.target
        return max(0.0, 1 - (1 - self._rule.target) * proven / kept) if kept else None

    def share(self, cluster: str) -> float | None:
        """The share that is proven of all that is written with the cluster."""
        return self.bound(cluster.rpartition("/")[0] if self._rule.scope == "category" else None)

    def outlook(self, room: int | None) -> list[tuple[float, int]] | None:
        """The sets of the open certificates that are within reach, with the questions that they may need.

        Questions that wait for an answer count as wrong for a proof; here they count as not asked yet.
        """
        if not any(scope.attempts for scope in self._scopes.values()):
            return None
        campaign = self._campaign
        accepted = campaign.accepted()
        now = int(accepted.sum())
        free = campaign.table.best & ~campaign.taken[campaign.table.image] & ~accepted
        free &= (campaign.verdict == -1) | (campaign.verdict == YES)
        waiting = np.concatenate([[], *(page.rows for page in campaign.waiting_pages)]).astype(np.int64)
        left = np.inf if room is None else float(room + len(waiting))
        spent, steps = 0.0, []
        for scope in self._scopes.values():
            attempt = scope.open
            if attempt is None:
                continue
            certificate, certified = attempt.certificate, attempt.certified
            rates = self._rates(attempt)
            out = certificate.issued(waiting)
            first = scope.standing is None
            level, need, _ = self._reach(certificate, certified, rates, left - spent, first, out)
            if not level or need > left - spent:
                continue
            needs = questions_to(
                certificate, certificate.sizes(), certificate.bad_from(rates), certificate.expected, certified, out
            )
            levels = certificate.levels[free]
            gains = np.cumsum(np.bincount(levels, minlength=certificate.count + 1)[1:])
            steps += [(spent + float(needs[j]), now + int(gains[j])) for j in range(certified, level)]
            spent, now = spent + need, now + int(gains[level - 1])
        return steps

    def leftover(self) -> str:
        """Why masks are left."""
        return (
            f"No more of them can be shown to be right with a share of {self._rule.target:g} within the budget, "
            f"or for less than one question a {1 / max(self._rule.worth, 1e-9):g} mask"
        )


def questions_to(
    certificate: Certificate,
    sizes: NDArray[np.int64],
    bad_from: NDArray[np.int64],
    expected: NDArray[np.float64],
    certified: int,
    out: NDArray[np.int64] | int = 0,
) -> NDArray[np.float64]:
    """(k,) the questions that are likely to be missing until each set is proven; infinite where none would do.

    A look ahead, by which questions are aimed: what was answered counts as it fell out, what is missing as the
    posterior and the answers so far let expect. sizes, bad_from: of the sets; expected: share of no in each. out:
    (k,) how many questions of what each set adds are asked, and taken for missing all the same.
    """
    rings = np.diff(sizes, prepend=0)
    means = np.clip(np.diff(expected * sizes, prepend=0.0) / np.maximum(rings, 1), 0.0, 1.0)
    asked, wrong = (count - out for count in certificate.rings())
    # the posterior may be off as a whole, and within each ring
    off = (wrong.sum() + PRIOR * 0.1) / (means @ asked + PRIOR * 0.1)
    strength = PRIOR * rings / max(sizes[-1], 1) + 4
    share = np.clip((strength * np.clip(means * off, 0, 1) + wrong) / (strength + asked), 1e-4, 1 - 1e-4)
    goal = np.log(1 / certificate.alpha)
    within = np.tri(len(sizes), dtype=bool)
    part = np.where(within, rings / np.maximum(sizes, 1)[:, None], 0.0)

    def sample(total: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Questions missing, and the wrong ones among all, of a sample of so many from each set."""
        drawn = part * total[:, None]
        missing = np.maximum(drawn - asked, 0)
        no = np.minimum(drawn, asked) * wrong / np.maximum(asked, 1) + missing * share
        spread = np.sqrt((missing * share * (1 - share)).sum(axis=1))
        return missing.sum(axis=1), no.sum(axis=1) + CAUTION * spread

    low: NDArray[np.float64] = np.zeros(len(sizes))
    high = sizes.astype(np.float64)
    for _ in range(14):
        middle = (low + high) / 2
        _, no = sample(middle)
        enough = log_evidence(sizes, middle, np.minimum(no, middle), bad_from, expected, STRENGTH) >= goal
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    _, no = sample(high)
    reached = log_evidence(sizes, high, np.minimum(no, high), bad_from, expected, STRENGTH) >= goal
    # a set is proven after all within it
    depth = np.where(reached & (high < sizes), high / np.maximum(sizes, 1), np.inf)
    depth[:certified] = 0
    depth = np.maximum.accumulate(depth)
    far = np.isinf(depth)
    missing, _ = sample(np.where(far, 0, depth) * sizes)
    return np.where(far, np.inf, np.maximum(missing, 1.0))


def front(tree: ClusterTree, proposed: NDArray[np.int64], accepted: list[int], least: int) -> list[int]:
    """The clusters that are decided on: from the root down until nearly all or none of a cluster is proposed.

    proposed: (n + 1,) the masks proposed before each place in the leaf order. accepted: clusters that stand
    as they are. least: clusters of less than twice that many masks are not split.
    """
    stands = set(accepted)
    begins = np.zeros(len(tree) + 1, dtype=np.int64)
    for node in accepted:
        begins[tree.start[node] + 1] += 1
    marks = np.cumsum(begins)
    found, stack = [], [tree.root]
    while stack:
        node = stack.pop()
        where = tree.slice(node)
        size = where.stop - where.start
        if node in stands:
            continue
        share = (proposed[where.stop] - proposed[where.start]) / size
        around = marks[where.stop] > marks[where.start]
        if node >= len(tree) and (around or (size >= 2 * least and HARDLY < share < MOSTLY)):
            stack.extend(tree.halves(node))
        else:
            found.append(node)
    return found
