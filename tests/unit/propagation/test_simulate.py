"""Simulation: the annotators it plays, what it counts, and how runs are told together."""

from dataclasses import replace

import numpy as np
import pytest

from propagation import posterior
from propagation.calibrated import CalibratedStrategy
from propagation.campaign import Campaign
from propagation.events import Decided
from propagation.paper import PaperStrategy
from propagation.simulate import Outcome, Run, Watch, World, simulate, simulate_many, summary_of, timed

N = 320
PAPER = PaperStrategy(samples=8, least_size=8, split_below=0.0, page_size=8, budget=120)


@pytest.fixture(autouse=True)
def _small_forests(monkeypatch):
    monkeypatch.setattr(posterior, "TREES", 30)


@pytest.fixture(scope="module")
def world(table, tree):
    """Masks of two categories whose scores know what is right."""
    rng = np.random.default_rng([5, 51])
    right = rng.random(N) < 0.7
    score = np.clip(rng.normal(np.where(right, 0.8, 0.5), 0.1), 0.01, 0.99)
    made = table(score, np.arange(N) % 4 // 3, ("many", "few"))
    trees = [tree(made, score, 0), tree(made, score, 1)]
    return World(made, trees, np.where(right, 0.9, 0.4).astype(np.float32))


def calibrated(**changes):
    return CalibratedStrategy(**({"budget": 120, "page_size": 10} | changes))


@pytest.mark.parametrize("strategy", [PAPER, calibrated()], ids=["paper", "calibrated"])
def test_the_same_seed_makes_the_same_run(world, strategy):
    first, again, other = (simulate(world, strategy, seed) for seed in (3, 3, 4))
    assert first == again
    assert first.seed == 3
    assert first.curve != other.curve


def test_a_mask_is_right_above_the_limit_and_not_at_it(world):
    iou = np.array([0.75, 0.76, 0.74], dtype=np.float32)
    assert replace(world, iou=iou).right.tolist() == [False, True, False]
    assert replace(world, iou=iou, right_iou=0.5).right.all()


@pytest.mark.parametrize("strategy", [PAPER, calibrated()], ids=["paper", "calibrated"])
def test_the_categories_add_up(world, strategy):
    run = simulate(world, strategy, 0)
    assert list(run.categories) == ["many", "few"]
    for name in ("questions", "accepted", "rejected", "right"):
        assert sum(getattr(of, name) for of in run.categories.values()) == getattr(run.total, name)
    assert run.total.accepted
    assert run.total.precision == run.total.right / run.total.accepted
    right, wrong = run.total.right, run.total.accepted - run.total.right
    assert run.total.sq == pytest.approx((0.9 * right + 0.4 * wrong) / run.total.accepted)
    assert run.curve[-1] == (run.total.questions, run.total.accepted, run.total.right)
    assert run.claim == ("estimate" if strategy is PAPER else "promise")
    assert (run.bound is None) == (strategy is PAPER)
    assert run.clusters > 0


def test_without_a_budget_everything_is_asked_that_the_rule_wants(world):
    run = simulate(world, replace(PAPER, budget=None), 0)
    assert run.total.questions > 0


# annotators


def test_annotators_who_never_err_leave_no_mask_judged_wrong_accepted(world):
    everything = replace(PAPER, budget=None, samples=N, least_size=1, accept_at=1.0, reject_at=0.0)
    run = simulate(world, everything, 0)
    assert run.total.precision == 1
    assert run.total.accepted == world.right.sum()
    assert run.total.rejected == (~world.right).sum()
    assert run.total.questions == N
    assert not run.total.wrong_ever


@pytest.mark.parametrize(("miss", "false_alarm"), [(0.3, 0.0), (0.0, 0.3), (1.0, 1.0)])
def test_annotators_err_as_often_as_the_world_says(world, miss, false_alarm):
    everything = replace(PAPER, budget=None, samples=N, least_size=1, accept_at=1.0, reject_at=0.0)
    run = simulate(replace(world, miss=miss, false_alarm=false_alarm), everything, 1)
    wrong, right = (~world.right).sum(), world.right.sum()
    assert (run.total.accepted - run.total.right) / wrong == pytest.approx(miss, abs=0.12)
    assert run.total.right / right == pytest.approx(1 - false_alarm, abs=0.08)


@pytest.mark.parametrize("gold", [0.0, 0.2, 0.5])
def test_gold_questions_are_paid_from_the_budget(world, gold):
    run = simulate(replace(world, gold=gold), calibrated(rates="gold", budget=100), 0)
    asked = sum(of.questions for of in run.categories.values())
    assert asked <= 100 * (1 - gold)
    assert run.total.questions <= 101
    if gold:
        assert (run.total.questions - asked) / run.total.questions == pytest.approx(gold, abs=0.03)
    else:
        assert run.total.questions == asked


def test_gold_answers_are_those_of_the_worlds_annotators(world, monkeypatch):
    seen = []
    monkeypatch.setattr(
        Campaign, "apply", lambda self, event, apply=Campaign.apply: (seen.append(event), apply(self, event))[1]
    )
    simulate(replace(world, gold=0.5, miss=0.5, false_alarm=0.2), calibrated(rates="gold", budget=300), 0)
    gold = [event for event in seen if type(event).__name__ == "GoldAnswered"]
    wrong, right = sum(event.wrong for event in gold), sum(event.right for event in gold)
    assert abs(wrong - right) <= len(gold)
    assert sum(event.missed for event in gold) / wrong == pytest.approx(0.5, abs=0.15)
    assert sum(event.marked for event in gold) / right == pytest.approx(0.2, abs=0.15)


def test_the_errors_of_annotators_know_nothing_of_the_order_of_questions(world, monkeypatch):
    """The seed makes both: were they one stream, the wrong masks asked first would be those that are missed."""
    campaigns = set()
    monkeypatch.setattr(
        Campaign, "apply", lambda self, event, apply=Campaign.apply: (campaigns.add(self), apply(self, event))[1]
    )
    for seed in range(12):
        simulate(replace(world, miss=0.3), calibrated(learn=0.1, budget=60), seed)
    answers = [campaign.verdict[(campaign.verdict >= 0) & ~world.right] for campaign in campaigns]
    assert len(np.concatenate(answers)) > 80
    assert np.concatenate(answers).mean() == pytest.approx(0.3, abs=0.1)


# what is watched


def test_a_promise_broken_once_is_broken_though_it_recovers(table, tree):
    """Of two clusters the first is bad; with the second, all of them together are good enough."""
    made = table([0.9] * 40)
    right = np.array([False] * 4 + [True] * 36)
    trees = [tree(made, [*range(8), *range(1000, 1032)])]
    campaign = Campaign(made, trees, PAPER)
    watch = Watch(World(made, trees, np.where(right, 0.9, 0.1).astype(np.float32)), campaign)
    watch.look(0)
    assert not watch.wrong_total
    halves = trees[0].halves(trees[0].root)
    bad, good = sorted(halves, key=lambda node: trees[0].sizes[node])
    campaign.apply(Decided(campaign.cluster(0, bad), "accept", 8, 4))
    watch.look(3)
    assert watch.wrong_total
    assert watch.wrong.tolist() == [True]
    campaign.apply(Decided(campaign.cluster(0, good), "accept", 8, 8))
    watch.look(3)
    assert watch.wrong_total
    assert watch.curve == [(0, 0, 0), (3, 8, 4), (3, 40, 36)]


def test_a_category_can_break_the_promise_that_all_of_them_keep(table, tree):
    made = table([0.9] * 40, [0] * 36 + [1] * 4, ("good", "bad"))
    right = made.category == 0
    trees = [tree(made, range(40), 0), tree(made, range(40), 1)]
    campaign = Campaign(made, trees, PAPER)
    watch = Watch(World(made, trees, np.where(right, 0.9, 0.1).astype(np.float32)), campaign)
    for place in (0, 1):
        campaign.apply(Decided(campaign.cluster(place, trees[place].root), "accept", 1, 1))
    watch.look(0)
    assert not watch.wrong_total
    assert watch.wrong.tolist() == [False, True]


def test_exactly_the_target_is_no_broken_promise(table, tree):
    made = table([0.9] * 20)
    right = np.arange(20) < 17
    trees = [tree(made, range(20))]
    campaign = Campaign(made, trees, PAPER)
    watch = Watch(World(made, trees, np.where(right, 0.9, 0.1).astype(np.float32)), campaign)
    campaign.apply(Decided(campaign.cluster(0, trees[0].root), "accept", 1, 1))
    watch.look(0)
    assert not watch.wrong_total


# many runs


def run_of(seed, accepted, right, questions=10, wrong_ever=False, claim="promise"):
    share = right / accepted if accepted else None
    total = Outcome(questions, accepted, 0, right, wrong_ever, share, share)
    return Run(seed, total, {"cell": total}, claim, 0.86, 1, [(questions, accepted, right)])


def test_the_summary_is_of_all_runs(table, tree):
    made = table([0.9] * 20)
    made.best[19] = False
    world = World(made, [tree(made, range(20))], np.where(np.arange(20) < 11, 0.1, 0.9).astype(np.float32))
    runs = [run_of(0, 10, 8, wrong_ever=True), run_of(1, 0, 0), run_of(2, 8, 8, questions=4), run_of(3, 0, 0)]
    told = summary_of(world, PAPER, runs, 1.234)
    assert told["right_total"] == 8  # of nine, one is outdone
    assert told["predictions"] == 20
    assert told["outdone"] == 1
    assert told["yield"] == pytest.approx(16 / 4 / 8)
    assert told["masks_per_question"] == pytest.approx((1 + 0 + 2 + 0) / 4)
    assert told["promise_kept_rate"] == 0.75
    assert told["accepted_nothing_rate"] == 0.5
    assert told["claim"] == "promise"
    assert told["strategy"] == "paper"
    assert told["settings"]["samples"] == 8
    assert told["seconds"] == 1.23
    assert [run["seed"] for run in told["runs"]] == [0, 1, 2, 3]
    assert told["runs"][0]["categories"]["cell"]["right"] == 8
    assert summary_of(world, PAPER, [*runs, run_of(4, 1, 1, claim="estimate")], 1)["claim"] == "estimate"


def test_runs_side_by_side_are_those_one_after_the_other(world):
    done = []
    alone = simulate_many(world, PAPER, [0, 1], processes=1, progress=done.append)
    beside = simulate_many(world, PAPER, [0, 1], processes=2, progress=done.append)
    assert alone == beside
    assert done == [1, 1, 1, 1]
    assert [run.seed for run in alone] == [0, 1]


def test_timed_runs_are_summarized(world):
    told = timed(world, PAPER, [0], processes=1)
    assert told["runs"][0]["accepted"] == simulate(world, PAPER, 0).total.accepted
    assert told["seconds"] >= 0
    assert told["target"] == 0.85
