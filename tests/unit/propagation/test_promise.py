"""The promise, by simulation: kept by the strategy as it is, and seen to be broken by each way of cheating on it.

The posterior is made to mislead: it is sure of sets that are a little worse than the target, or that only
begin well. So nothing but the proof stands between them and what is written.
"""

import math

import numpy as np
import pytest

from propagation import calibrated
from propagation.annotators import PERFECT
from propagation.calibrated import CalibratedSearch, CalibratedStrategy, Scope
from propagation.certificate import Certificate
from propagation.posterior import Posterior
from propagation.simulate import World, simulate

RUNS = 100
SURE = {"learn": 0.2, "learn_most": 12, "sets": 8, "worth": 0.0, "page_size": 10, "least_size": 15}


def kept(runs, alpha):
    """Whether no more campaigns broke the promise than may: two standard deviations above alpha of them.

    A campaign breaks it when less than the target was right of what stood written at any moment.
    """
    broken = np.mean([run.total.wrong_ever for run in runs])
    return broken <= alpha + 2 * math.sqrt(alpha * (1 - alpha) / len(runs))


def share_broken(runs):
    return float(np.mean([run.total.wrong_ever for run in runs]))


@pytest.fixture(scope="module")
def played(table, tree):
    """Campaigns in worlds of their own: the share of right masks by place, from the surest one on."""
    made = {}

    def play(shares, strategy, runs=RUNS, **world):
        """shares: of right masks in equal parts of the pool, from the surest part on."""
        n = len(shares) * 100
        if n not in made:
            score = np.linspace(0.99, 0.87, n)
            base = table(score)
            made[n] = base, [tree(base, score)], score
        base, trees, score = made[n]
        found = []
        for seed in range(runs):
            rng = np.random.default_rng([seed, 1, 2, 3])
            right = np.concatenate([rng.permutation(100) < round(100 * share) for share in shares])
            one = World(base, trees, np.where(right, 0.9, 0.3).astype(np.float32), **world)
            found.append(simulate(one, strategy, seed))
        return found

    return play


@pytest.fixture(autouse=True)
def _misled(monkeypatch):
    """A posterior that says the score, whatever the verdicts."""

    def covariates(table):
        return np.asarray(table.score)[:, None], 1

    def fit(columns, plain, rows, right, seed):
        return Posterior(columns[:, 0], columns[rows, 0])

    monkeypatch.setattr(calibrated, "covariates", covariates)
    monkeypatch.setattr(calibrated, "fit", fit)


def rule(budget=200, alpha=0.05, **changes):
    return CalibratedStrategy(**(SURE | {"budget": budget, "confidence": 1 - alpha} | changes))


def counts_of(certificate, rows):
    """Certificate.counts of these questions, without asking after gaps in the order."""
    inside = certificate.levels[rows] <= np.arange(1, certificate.count + 1)[:, None]
    return inside.sum(axis=1), (inside & certificate._wrong[rows]).sum(axis=1)


# as it is


@pytest.mark.parametrize(
    ("shares", "alpha"),
    [([0.84] * 6, 0.05), ([0.84] * 20, 0.2), ([0.98, *[0.8] * 5], 0.05), ([0.95, 0.9, 0.8, 0.8, 0.7, 0.7], 0.05)],
)
def test_the_promise_is_kept_where_the_posterior_is_too_sure(played, shares, alpha):
    """Broken: 0, 7, 0 and 0 % of 60 campaigns."""
    runs = played(shares, rule(alpha=alpha, budget=250), runs=60)
    assert kept(runs, alpha)
    assert all(run.claim == "promise" for run in runs)


def test_much_is_accepted_where_much_is_right(played):
    """A strategy that accepts nothing keeps every promise: this one accepts in 98 % of 40 campaigns."""
    runs = played([0.96] * 6, rule(), runs=40)
    assert kept(runs, 0.05)
    assert np.mean([run.total.accepted > 300 for run in runs]) > 0.8


# every way of cheating is noticed


def test_attempts_that_each_spend_the_whole_error_are_noticed(played, monkeypatch):
    """Many short attempts on sets that are 83 % right. Broken: 3 % of 60 campaigns at an error of
    20 %, which honestly spent stops most attempts short; 31 % of 150 where each attempt may spend 18 %.
    """

    def restless(self, attempt, left, first):
        if attempt.certificate.rings()[0].sum() >= 40:
            return 0, math.inf, 0.0
        return attempt.certificate.count, 10.0, 100.0

    monkeypatch.setattr(CalibratedSearch, "_aim", restless)
    monkeypatch.setattr(calibrated, "HELD_BACK", 0.0)
    strategy = rule(alpha=0.2, budget=350, spend=0.9, sets=1)
    assert kept(played([0.83] * 30, strategy, runs=60), 0.2)
    monkeypatch.setattr(Scope, "spent", property(lambda scope: 0.0, lambda scope, value: None))
    assert not kept(played([0.83] * 30, strategy, runs=150), 0.2)


def test_questions_from_the_promising_end_are_noticed(played, monkeypatch):
    """The surest sixth of the masks is 98 % right, the others 80 %. Broken: 0 % as it is, 97 % so."""
    world, strategy = [0.98, *[0.8] * 5], rule()
    assert kept(played(world, strategy), 0.05)

    def draw(self, level, count):
        rows = np.flatnonzero((self.levels > 0) & (self.levels <= level) & (self._place >= 0))
        rows = rows[~self._issued[rows]]
        return rows[np.argsort(self.levels[rows], kind="stable")][:count]

    monkeypatch.setattr(Certificate, "draw", draw)
    # without its own order's rule that a gap ends what counts, which would notice it first
    monkeypatch.setattr(Certificate, "counts", lambda self: counts_of(self, np.array(self._asked, dtype=int)))
    assert not kept(played(world, strategy), 0.05)


def test_questions_out_of_their_order_prove_nothing(played, monkeypatch):
    """Were the promising end asked, the certificate would not count it. Broken: 0 %."""

    def draw(self, level, count):
        rows = np.flatnonzero((self.levels > 0) & (self.levels <= level) & (self._place >= 0))
        return rows[~self._issued[rows]][:count]

    monkeypatch.setattr(Certificate, "draw", draw)
    assert kept(played([0.98, *[0.8] * 5], rule(), runs=50), 0.05)


def test_unsure_answers_that_are_swapped_for_others_are_noticed(played, monkeypatch):
    """Annotators are unsure of three in four of the wrong masks; 80 % of the sets is right.

    Broken: 1 % as it is, 66 % so.
    """
    world, strategy = [0.8] * 20, rule()
    assert kept(played(world, strategy), 0.05)

    def swapped(self):
        rows = np.array(self._asked, dtype=int)
        return counts_of(self, rows[~(self._wrong[rows] & (rows * 2654435761 % 97 < 73))])

    monkeypatch.setattr(Certificate, "counts", swapped)
    assert not kept(played(world, strategy), 0.05)


def test_the_luckiest_of_many_sets_is_noticed(played, monkeypatch):
    """80 nested sets that are all 84 % right, any of which may be proven without those within. Broken: 10 %
    at an error of 20 % in order, 34 % so.
    """

    def whole(self, attempt, left, first):
        return attempt.certificate.count, 30.0, 100.0

    def luckiest(self, rates=PERFECT):
        enough = self.evidence(rates) >= np.log(1 / self.alpha)
        return int(np.flatnonzero(enough)[-1]) + 1 if enough.any() else 0

    monkeypatch.setattr(CalibratedSearch, "_aim", whole)
    strategy = rule(alpha=0.2, budget=250, spend=0.95, sets=80, page_size=5)
    assert kept(played([0.84] * 20, strategy), 0.2)
    monkeypatch.setattr(Certificate, "proven", luckiest)
    assert not kept(played([0.84] * 20, strategy), 0.2)


def test_annotators_who_miss_wrong_masks_are_noticed_where_that_is_ignored(played):
    """80 to 83 % of the sets is right, and two in five wrong masks are answered yes.

    Broken: 0 % with gold questions or known rates, 22 % where the errors are ignored. (Annotators who also mark
    3 % of the right masks make up for missing 5 % of the wrong ones: ignoring these breaks nothing.)
    """
    erring = {"miss": 0.4, "gold": 0.4}
    assert kept(played([0.8] * 20, rule(rates="gold", budget=300), **erring), 0.05)
    assert kept(played([0.8] * 20, rule(miss=0.4), miss=0.4), 0.05)
    assert not kept(played([0.83] * 20, rule(budget=300), miss=0.4), 0.05)


def test_good_masks_are_certified_though_annotators_err(played):
    """98 % right, 5 % missed and 3 % marked: accepted in most of 30 campaigns."""
    runs = played([0.98] * 20, rule(rates="gold", budget=500), runs=30, miss=0.05, false_alarm=0.03, gold=0.4)
    assert kept(runs, 0.05)
    assert np.mean([run.total.accepted > 0 for run in runs]) > 0.6


def test_whoever_mends_an_image_on_seeing_its_wrong_mask_does_not_mend_the_proof():
    """One set of 200 masks, 70 % of them right; each mask answered no leaves with its image. Proven: never,
    and always where a mask that left is forgotten.
    """

    def proves(seed, forget):
        rng = np.random.default_rng([seed, 1, 2, 4])
        right = rng.permutation(200) >= 60
        made = Certificate(np.ones(200, np.uint16), np.zeros(200, bool), np.array([0.08]), 0.85, 0.05, (seed, 3))
        gone = np.zeros(200, dtype=bool)
        while right[~gone].mean() < 0.85 and len(rows := made.draw(1, 5)):
            made.issue(rows)
            made.answer(rows, right[rows])
            if forget:
                made._wrong[rows] = False
            made.remove(rows[~right[rows]])
            gone[rows[~right[rows]]] = True
            if right[~gone].mean() < 0.85 and made.proven():
                return True
        return False

    assert np.mean([proves(seed, forget=False) for seed in range(100)]) <= 0.08
    assert np.mean([proves(seed, forget=True) for seed in range(100)]) > 0.5


def test_the_promise_is_kept_where_what_was_learned_from_is_wrongly_answered_yes(played, monkeypatch):
    """Seven in ten masks are right, three in ten wrong ones are answered yes, and most were asked before.

    Broken: 22 % of 50 campaigns.
    """
    monkeypatch.setattr(calibrated, "HELD_BACK", 0.0)
    strategy = rule(miss=0.3, budget=590, learn=0.85, learn_most=510)
    assert kept(played([0.68] * 6, strategy, runs=50, miss=0.3), 0.05)
