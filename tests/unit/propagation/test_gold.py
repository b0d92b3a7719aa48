"""Gold: how it gets onto pages, what it says of annotators, which answers count, what it does for the promise."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import betaln, xlogy

from benchmarks import gold as benchmark
from propagation import posterior
from propagation.annotators import Annotator, Gold, Labels, Team, rates_of
from propagation.calibrated import CalibratedStrategy
from propagation.campaign import Campaign
from propagation.errors import SettingsError
from propagation.events import CampaignStarted, PageAnswered, PageIssued, PageReopened, from_record, to_record
from propagation.gold import Checks, GoldPool
from propagation.paper import PaperStrategy
from propagation.simulate import Member, World, simulate

POOL = GoldPool(np.array([f"{n:020x}" for n in range(90)]), np.full(90, "cell"), np.arange(90) % 3 == 0)


@pytest.fixture
def begun(table, tree):
    def make(checks=None, n=200, page_size=20, **changes):
        made = table(np.linspace(0.95, 0.75, n))
        rule = PaperStrategy(samples=60, page_size=page_size, split_below=0.0, **changes)
        campaign = Campaign(made, [tree(made, range(n))], rule, checks or Checks(POOL))
        campaign.apply(CampaignStarted("campaign", {}, "", "", "gold"))
        return campaign

    return make


def issue(campaign):
    pages = [event for event in campaign.next_round() if isinstance(event, PageIssued)]
    for page in pages:
        campaign.apply(page)
    return pages


def answer(campaign, page, by, misses=False, seconds=None, real="yes"):
    """Answer a page; of the gold, the wrong masks are all missed or all marked."""
    truth = dict(zip(page.gold, page.truth, strict=True))
    said = [
        ("yes" if truth[mask] or misses else "no") if mask in truth else real
        for mask in campaign.pages[page.page].shown
    ]
    event = PageAnswered(page.page, len(campaign.pages), "now", by, seconds, tuple(said))
    campaign.apply(event)
    return event


# on pages


def test_a_share_of_each_page_is_gold_that_is_not_of_the_table(begun):
    campaign = begun()
    pages = issue(campaign)
    assert [len(page.gold) for page in pages[:3]] == [2, 2, 2]
    for page in pages:
        shown = campaign.pages[page.page].shown
        assert len(set(shown)) == len(shown) == len(page.questions) + len(page.gold) <= 20
        assert [shown[place] for place in page.places] == list(page.gold)
        assert [mask for mask in shown if mask not in page.gold] == list(page.questions)
        assert list(page.truth) == [bool(POOL.right[POOL.ids == mask][0]) for mask in page.gold]
    assert campaign.questions_asked == sum(len(p.questions) + len(p.gold) for p in pages)


def test_gold_stands_anywhere_and_is_wrong_two_times_in_three(begun):
    draws = begun()._draws
    drawn = [draws.draw(f"{n * 7919:020x}", "cell", 18, 20) for n in range(900)]
    places = np.bincount([place for one in drawn for place in one.places], minlength=20)
    assert places.min() > 0.5 * places.mean()
    assert np.mean([right for one in drawn for right in one.truth]) == pytest.approx(1 / 3, abs=0.04)
    shown = np.array(list(draws._shown))
    assert shown[POOL.right].max() - shown[POOL.right].min() <= 2, "what was shown least comes first"


def test_gold_is_of_the_budget_too(table, tree):
    made = table(np.linspace(0.95, 0.75, 200))
    left = []
    for budget in range(20, 60):
        rule = CalibratedStrategy(budget=budget, page_size=10)
        campaign = Campaign(made, [tree(made, range(200))], rule, Checks(POOL))
        campaign.apply(CampaignStarted("campaign", {}, "", "", "gold"))
        while pages := issue(campaign):
            for page in pages:
                answer(campaign, page, 2)
        left.append(budget - campaign.questions_asked)
    assert min(left) == 0
    assert max(left) < 20


def test_the_same_state_draws_the_same_gold_and_asking_changes_nothing(begun):
    campaign = begun()
    assert list(campaign.next_round()) == list(campaign.next_round())


def test_a_category_without_gold_gets_none(begun):
    other = GoldPool(POOL.ids, np.full(90, "other"), POOL.right)
    assert all(not page.gold for page in issue(begun(Checks(other))))


def test_no_gold_no_change(begun, table, tree):
    plain = begun(Checks(POOL, share=0.0))
    pages = issue(plain)
    assert [len(page.questions) for page in pages] == [20, 20, 20]
    assert all(page.gold == () and page.tolerated == 0 for page in pages)


def test_events_survive_the_log_and_old_ones_still_mean_what_they_did(begun):
    page = issue(begun())[0]
    kind, fields = to_record(page)
    assert from_record(kind, fields) == page
    for name in ("gold", "truth", "places", "tolerated", "least_seconds", "overlap"):
        del fields[name]
    old = from_record(kind, fields)
    campaign = begun()
    campaign.apply(old)
    campaign.apply(PageAnswered(old.page, 1, "now", 2, 0.1, ("no",) * len(old.questions)))
    assert (campaign.verdict[campaign.pages[old.page].rows] == 0).all()


@pytest.mark.parametrize("bad", [{"share": 0.6}, {"tolerated": 0.0}, {"least_seconds": -1}, {"overlap": 2}])
def test_bad_settings_are_named(bad):
    with pytest.raises(SettingsError, match=next(iter(bad))):
        Checks(**bad)


# what it says


def test_verdicts_on_gold_are_no_verdicts_on_masks(begun):
    campaign = begun()
    page = issue(campaign)[0]
    answer(campaign, page, 7)
    assert (campaign.verdict[campaign.pages[page.page].rows] == 1).all()
    assert int((campaign.verdict != -1).sum()) == len(page.questions)
    wrong = page.truth.count(False)
    assert campaign.team[7].shown == Gold(wrong, 0, len(page.truth) - wrong, 0)
    assert campaign.gold == campaign.team[7].shown


def test_changed_and_deleted_answers_change_the_counts(begun):
    campaign = begun()
    page = next(p for p in issue(campaign) if False in p.truth)
    answer(campaign, page, 7, misses=True)
    assert campaign.gold.missed == page.truth.count(False)
    answer(campaign, page, 7)
    assert campaign.gold.missed == 0
    assert campaign.team[7].answers == 1
    campaign.apply(PageReopened(page.page, 1, "later"))
    assert campaign.gold == Gold()
    assert campaign.team.counted() == {}


def test_intervals_are_those_of_clopper_and_pearson():
    _, low, high = Gold(20, 3, 0, 0).miss_interval()
    assert (low, high) == pytest.approx((0.0321, 0.3789), abs=1e-3)
    assert Gold().miss_interval() == (0.0, 0.0, 1.0)
    assert Gold(10, 10).miss_interval()[2] == 1.0


def test_the_rates_of_several_lie_within_their_bound_at_all_times_whoever_is_asked_more():
    """Whoever looks best is asked on. Of 40 runs a mean of the rates was ever beyond its bound in 0."""
    rng, alpha, missing, weights = np.random.default_rng(5), 0.4, np.array([0.02, 0.1, 0.3]), np.eye(3)
    broken, last = 0, []
    for _ in range(40):
        shown, missed, beyond = np.zeros(3), np.zeros(3), False
        for turn in range(60):
            one = int(rng.integers(3)) if turn < 20 else int(np.argmin((missed + 0.5) / (shown + 1)))
            shown[one] += 1
            missed[one] += rng.random() < missing[one]
            if turn % 10 == 9:
                golds = [Gold(int(a), int(b)) for a, b in zip(shown, missed, strict=True)]
                mixes = [*weights, np.ones(3) / 3]
                bounds = [rates_of(golds, mix.tolist(), alpha, 0.001).miss for mix in mixes]
                beyond |= any(bound < mix @ missing for bound, mix in zip(bounds, mixes, strict=True))
        broken += beyond
        last.append(bounds[-1])
    assert broken <= 40 * alpha / 2
    assert np.mean(last) < 0.6, "and it says something"


def test_a_bound_is_that_of_the_worst_rates_that_are_possible_together():
    golds = [Gold(40, 2, 30, 1), Gold(25, 6, 20, 3)]
    weight = np.array([0.3, 0.7])
    steps = np.linspace(0.001, 0.999, 600)
    logs = []
    for gold in golds:
        prior = betaln(0.5 + gold.missed, 4.5 + gold.wrong - gold.missed) - betaln(0.5, 4.5)
        logs.append(prior - xlogy(gold.missed, steps) - xlogy(gold.wrong - gold.missed, 1 - steps))
    possible = logs[0][:, None] + logs[1][None, :] < np.log(2 / 0.01)
    greatest = (weight[0] * steps[:, None] + weight[1] * steps[None, :])[possible].max()
    assert rates_of(golds, [3, 7], 0.01, 0.001).miss == pytest.approx(greatest, abs=0.004)


@pytest.mark.parametrize("many", [1, 2, 3, 5, 7, 11, 40])
def test_bounds_are_shares_however_many_annotators_there_are(many):
    rates = rates_of([Gold(20, 2, 20, 0)] * many, [1 / 3] * many, 0.01, 0.001)
    assert 0.1 < rates.miss <= 1
    assert 0 <= rates.false_alarm < 1e-12


def test_rates_follow_who_answers():
    team = Team()
    team[1].weighed, team[2].weighed = Gold(300, 3, 100, 1), Gold(300, 90, 100, 1)
    good, bad, both = (team.rates(mix, 0.01, 0.001).miss for mix in ({1: 9}, {2: 9}, {1: 9, 2: 9}))
    assert good < 0.065 < both < bad
    assert 0.15 < both < 0.25
    assert team.rates({1: 50, 3: 50}, 0.01, 0.001).miss > 0.5, "who has answered no gold may miss everything"


# which answers count


def fail(campaign, by, pages=40):
    """Let an annotator miss gold until a page is refused; that page."""
    for _ in range(pages):
        for state in campaign.waiting_pages or [campaign.pages[p.page] for p in issue(campaign)]:
            answer(campaign, state.issued, by, misses=True)
            if state.refused:
                return state
    raise AssertionError("never refused")


def test_a_page_that_fails_its_gold_does_not_count_and_is_asked_again(begun):
    campaign = begun()
    campaign.team.recent.append(8)
    refused = fail(campaign, 7)
    assert refused.refused == "missed gold"
    assert (campaign.verdict[refused.rows] == -1).all()
    assert campaign.gold.missed == campaign.team[7].shown.missed, "the rates know of it all the same"
    again = issue(campaign)
    assert [page.questions for page in again] == [refused.issued.questions]
    assert again[0].attempt == 2
    assert again[0].gold != refused.issued.gold
    answer(campaign, again[0], 7)
    assert campaign.pages[again[0].page].refused == "the same annotator again"
    third = issue(campaign)[0]
    answer(campaign, third, 8)
    assert (campaign.verdict[refused.rows] == 1).all()
    assert not [page for page in campaign.waiting_pages if page.issued.questions == third.questions]


def test_a_team_of_one_is_not_stalled(begun):
    campaign = begun()
    refused = fail(campaign, 7)
    before = campaign.gold
    again = issue(campaign)[0]
    answer(campaign, again, 7, misses=True)
    assert not campaign.pages[again.page].refused
    assert (campaign.verdict[refused.rows] == 1).all()
    assert campaign.gold.missed == before.missed + again.truth.count(False)


def test_one_slip_is_no_failure():
    careful = Annotator()
    for _ in range(20):
        careful.take(Gold(1, 0), 0.25)
    careful.take(Gold(1, 1), 0.25)
    assert not careful.suspected
    careful.take(Gold(3, 3), 0.25)
    assert careful.suspected


def test_an_answer_that_is_too_fast_is_asked_again(begun):
    campaign = begun(Checks(POOL, least_seconds=0.5))
    campaign.team.recent.append(8)
    first, second, third, *_ = issue(campaign)
    answer(campaign, first, 7, seconds=3.0)
    answer(campaign, second, 7, seconds=12.0)
    answer(campaign, third, 7, seconds=None)
    states = [campaign.pages[page.page].refused for page in (first, second, third)]
    assert states == ["too fast", "", ""]


def test_a_replay_knows_the_same(begun):
    campaign, log = begun(), []
    for by in range(6):
        for state in campaign.waiting_pages or [campaign.pages[p.page] for p in issue(campaign)]:
            log += [state.issued] if state.issued not in log else []
            log.append(answer(campaign, state.issued, by % 2 + 7, misses=by % 2 == 0))
    again = begun(Checks())
    for event in log:
        again.apply(event)
    assert again.gold == campaign.gold
    assert again.verdict.tolist() == campaign.verdict.tolist()
    assert [p.refused for p in again.pages.values()] == [p.refused for p in campaign.pages.values() if p.answer]


# overlap


def test_some_pages_are_asked_of_two_and_only_answers_of_two_are_compared(begun):
    campaign = begun(Checks(POOL, overlap=1.0), n=400)
    campaign.team.recent.append(8)
    for page in issue(campaign):
        answer(campaign, page, 7)
    second = []
    for event in campaign.next_round():
        campaign.apply(event)  # at once, though what comes next depends on who was asked what
        second += [event] if isinstance(event, PageIssued) and event.overlap else []
    assert second
    assert {p.issued.page for p in campaign.unposted_pages} >= {p.page for p in second}
    assert not [page for page in campaign.waiting_pages if page.issued.overlap], "the round does not wait for them"
    answer(campaign, second[0], 7, real="no")
    assert len(campaign.overlaps()) == 0
    answer(campaign, second[1], 8, real="no")
    assert campaign.overlaps().agreement() == 0.0
    rows = campaign.pages[second[1].page].rows
    assert campaign.overlaps().with_others() == {7: (0.0, len(rows)), 8: (0.0, len(rows))}
    assert (campaign.verdict[rows] == 1).all(), "the first answer counts"


def test_agreement_tells_the_careless_from_the_careful():
    rng = np.random.default_rng(0)
    right = rng.random(600) < 0.7
    said, who = [], []
    for account, miss in ((1, 0.02), (2, 0.1), (3, 0.4)):
        said.append(right ^ (rng.random(600) < np.where(right, 0.02, miss)))
        who.append(np.full(600, account))
    labels = Labels(np.tile(np.arange(600), 3), np.concatenate(who), np.concatenate(said))
    assert 0.8 < labels.agreement() < 0.95
    agreed = labels.with_others()
    assert min(agreed[1][0], agreed[2][0]) > agreed[3][0]
    assert np.mean([share for share, _ in agreed.values()]) == pytest.approx(labels.agreement())
    assert {questions for _, questions in agreed.values()} == {600}


# simulated: a small version of ``python -m benchmarks.gold``


def test_annotators_are_told_apart():
    assert benchmark.told_apart(0.02, 0.3, 10, many=500) > 0.95
    assert benchmark.told_apart(0.02, 0.1, 100, many=500) > 0.98
    assert benchmark.asked_again(0.02, 500, 20) < 0.002
    assert benchmark.asked_again(0.1, 500, 20) < 0.15
    assert benchmark.asked_again(0.3, 100, 20) > 0.8


def test_gold_keeps_the_promise_that_a_careless_team_would_break(monkeypatch):
    """Broken in one world: 5 of 5 campaigns without gold; of 10 with it none, and all accept something."""
    monkeypatch.setattr(posterior, "TREES", 30)
    world = benchmark.graded()
    without = benchmark.campaigns(world, "no gold", range(5), 2600)
    assert without["broken"] >= 4
    with_gold = benchmark.campaigns(world, "gold", range(10), 2600)
    assert with_gold["broken"] <= 1
    assert with_gold["accepted_something"] >= 7
    assert with_gold["accepted"] > 0.2 * len(world.table)
    assert with_gold["refused"]["0.3"] > 0.4 > with_gold["refused"]["0.1"] >= with_gold["refused"]["0.02"]


def test_a_replay_of_a_campaign_with_gold_comes_to_the_same():
    world = benchmark.graded(1500)
    checks = Checks(benchmark.pool())
    seen = []
    rule = CalibratedStrategy(target=0.5, budget=700, worth=0.0)
    log = []
    with pytest.MonkeyPatch.context() as patch:
        apply = Campaign.apply
        patch.setattr(Campaign, "apply", lambda self, event: (log.append(event), apply(self, event))[1])
        simulate(replace(world, team=benchmark.TEAM, checks=checks), rule, 3, seen.append)
    campaign = seen[-1]
    assert campaign.accepted().any()
    again = Campaign(world.table, world.trees, replace(rule, seed=3), Checks())
    for event in log:
        again.apply(from_record(*to_record(event)))
    assert again.accepted().tolist() == campaign.accepted().tolist()
    assert again.team.counted() == campaign.team.counted()
    one, other = (c.search._scopes[""].attempts[-1] for c in (campaign, again))
    assert one.certificate.evidence(campaign.search._rates(one)).tolist() == pytest.approx(
        other.certificate.evidence(again.search._rates(other)).tolist()
    )
    assert campaign.search._rates(one) == again.search._rates(other)


def test_a_careful_team_is_hardly_held_up(table, tree):
    made = table(np.linspace(0.95, 0.75, 400))
    team = (Member(0.02, 0.02), Member(0.02, 0.02))
    one = World(made, [tree(made, range(400))], np.full(400, 0.9, np.float32), team=team, checks=Checks(POOL))
    run = simulate(one, PaperStrategy(samples=60), 0)
    assert run.total.accepted > 300
