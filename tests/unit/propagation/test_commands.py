"""Managers' commands: what each makes of a cluster in both strategies, and that the log tells it all."""

import json
from dataclasses import replace

import numpy as np
import pytest

from propagation import posterior
from propagation.calibrated import CalibratedStrategy
from propagation.campaign import NO, UNASKED, YES, Campaign
from propagation.errors import CommandError
from propagation.events import (
    CampaignStarted,
    CertificateOpened,
    Certified,
    Commanded,
    CommandRefused,
    Decided,
    PageAnswered,
    from_record,
    to_record,
)
from propagation.paper import PaperStrategy
from propagation.summary import statement, summarize

N = 40
RIGHT = np.array([True] * 18 + [False] * 12 + [True] * 10)
CALIBRATED_MASKS = 400


@pytest.fixture(autouse=True)
def _small_forests(monkeypatch):
    monkeypatch.setattr(posterior, "TREES", 30)


class Play:
    """A campaign and its log; whoever answers knows the truth."""

    def __init__(self, make, right):
        self.make, self.right = make, right
        self.campaign = make()
        self.log = []
        self.take(CampaignStarted("campaign", {}, "table", "trees"))

    def take(self, event):
        self.campaign.apply(event)
        self.log.append(event)
        return event

    def say(self, command, target):
        said = Commanded(target, command, "user 3", "2026-11-22T10:00:00+00:00", f"here/{len(self.log)}")
        return self.take(self.campaign.commands.checked(said))

    def refused(self, command, target):
        with pytest.raises(CommandError) as refusal:
            self.say(command, target)
        return str(refusal.value)

    def decide(self):
        for decision in self.campaign.decisions():
            self.take(decision)

    def ask(self):
        """The pages that go out now."""
        known = set(self.campaign.pages)
        self.decide()
        for event in self.campaign.next_round():
            self.take(event)
        return [page for name, page in self.campaign.pages.items() if name not in known]

    def answer(self, page, says=None):
        verdicts = tuple("yes" if (self.right[row] if says is None else says) else "no" for row in page.rows)
        self.take(PageAnswered(page.issued.page, 1, f"at {len(self.log)}", 2, 1.0, verdicts))

    def round(self):
        before = len(self.log)
        self.ask()
        for page in list(self.campaign.waiting_pages):
            self.answer(page)
        self.decide()
        return len(self.log) > before

    def to_end(self):
        while self.round():
            pass

    def until(self, kind):
        while not any(isinstance(event, kind) for event in self.log):
            assert self.round()

    def accepted(self):
        """The largest accepted cluster."""
        found = [key for key, state in self.campaign.states().items() if state == "accepted"]
        return max(found, key=lambda key: len(self.campaign.rows(*key)))

    def name(self, key):
        return self.campaign.cluster(*key)

    def check(self):
        """What the log tells is what the campaign knows, now and at each earlier event."""
        again = self.make()
        for event in self.log:
            kind, body = to_record(event)
            again.apply(from_record(kind, json.loads(json.dumps(body))))
        assert facts(again) == facts(self.campaign)


def facts(campaign):
    return {
        "accepted": campaign.accepted().tolist(),
        "rejected": campaign.rejected().tolist(),
        "by command": campaign.by_command().tolist(),
        "states": campaign.states(),
        "state": campaign.state,
        "held": campaign.commands.held.tolist(),
        "reasons": campaign.reasons().tolist(),
        "bound": campaign.search.bound(),
        "estimate": campaign.search.estimate(),
        "claim": campaign.claim,
        "next": [to_record(event) for event in campaign.decisions()],
    }


@pytest.fixture
def paper(table, tree):
    """A campaign by the paper's rule over three groups, of which the middle one is wrong."""
    values = [float(v) for v in range(18)] + [1000.0 + v for v in range(12)] + [2000.0 + v for v in range(10)]

    def make(**changes):
        made = table([0.9] * N)
        rule = PaperStrategy(
            **({"samples": 6, "least_size": 4, "split_below": 0.0, "page_size": 4, "seed": 1} | changes)
        )
        return Play(lambda: Campaign(made, [tree(made, values)], rule), RIGHT)

    return make


@pytest.fixture
def calibrated(table, tree):
    """A campaign by the calibrated strategy over masks whose scores know more or less what is right."""

    def make(seed=0, **changes):
        rng = np.random.default_rng([seed, 31])
        right = rng.random(CALIBRATED_MASKS) < 0.65
        score = np.clip(rng.normal(np.where(right, 0.75, 0.5), 0.12), 0.01, 0.99)
        made = table(score)
        rule = CalibratedStrategy(**({"budget": 160, "page_size": 10} | changes))
        return Play(lambda: Campaign(made, [tree(made, score)], rule), right)

    return make


@pytest.fixture(params=["paper", "calibrated"])
def decided(request):
    """A campaign of each strategy at its end, with accepted clusters."""
    play = request.getfixturevalue(request.param)()
    play.to_end()
    assert play.campaign.accepted().any()
    return play


# accept and reject


@pytest.mark.parametrize("strategy", ["paper", "calibrated"])
def test_what_is_accepted_by_command_is_written_but_for_what_was_judged_wrong(request, strategy):
    play = request.getfixturevalue(strategy)()
    for page in play.ask():
        play.answer(page)
    root = play.campaign.trees[0].root
    play.say("accept", f"cell/{root}")
    campaign = play.campaign
    assert (campaign.verdict == NO).any()
    assert np.array_equal(campaign.accepted(), campaign.verdict != NO)
    unasked = campaign.verdict == UNASKED
    assert campaign.by_command()[unasked].all()
    assert set(campaign.reasons()[unasked]) == {f"command/cell/{root}"}
    assert set(campaign.deciding_cluster()[unasked]) == {f"cell/{root}"}
    assert campaign.states()[0, root] == "accepted"
    total = summarize(campaign)[-1]
    assert total.commanded == campaign.by_command().sum()
    assert total.bound is None
    assert f"{total.commanded} more are accepted by command" in statement(campaign)
    play.check()


def test_nothing_of_what_is_rejected_by_command_is_written(decided):
    key = decided.accepted()
    rows = decided.campaign.rows(*key)
    assert decided.campaign.accepted()[rows].any()
    decided.say("reject", decided.name(key))
    assert not decided.campaign.accepted()[rows].any()
    assert decided.campaign.rejected()[rows].all()
    assert decided.campaign.states()[key] == "rejected"
    decided.check()


@pytest.mark.parametrize("command", ["accept", "reject"])
def test_undo_takes_back_the_latest_command_and_leaves_all_as_it_was(decided, command):
    key = decided.accepted()
    before = facts(decided.campaign)
    other = "reject" if command == "accept" else "accept"
    decided.say(other, decided.name(key))
    between = facts(decided.campaign)
    decided.say(command, decided.name(key))
    assert facts(decided.campaign) != between
    decided.say("undo", decided.name(key))
    assert facts(decided.campaign) == between
    decided.say("undo", decided.name(key))
    assert facts(decided.campaign) == before
    decided.check()


@pytest.mark.parametrize("strategy", ["paper", "calibrated"])
def test_of_clusters_within_each_other_the_latest_command_holds(request, strategy):
    play = request.getfixturevalue(strategy)()
    root = play.campaign.trees[0].root
    half, other = play.campaign.trees[0].halves(root)
    play.say("reject", f"cell/{half}")
    play.say("accept", f"cell/{root}")
    assert play.campaign.accepted().all()
    play.say("reject", f"cell/{other}")
    assert play.campaign.accepted().sum() == len(play.campaign.rows(0, half))
    play.say("undo", f"cell/{root}")
    assert not play.campaign.accepted().any()
    play.check()


@pytest.mark.parametrize("command", ["accept", "reject"])
@pytest.mark.parametrize("strategy", ["paper", "calibrated"])
def test_nothing_is_asked_only_to_decide_what_a_command_has_decided(request, strategy, command):
    play = request.getfixturevalue(strategy)()
    root = play.campaign.trees[0].root
    play.say(command, f"cell/{root}")
    assert play.ask() == []
    play.say("undo", f"cell/{root}")
    assert play.ask()
    play.check()


def test_a_command_beside_an_open_cluster_is_not_in_its_evidence(paper):
    play = paper()
    play.to_end()
    accepted = play.accepted()
    shares = play.campaign.search.estimate()
    play.say("reject", play.name(accepted))
    left = [key for key, state in play.campaign.states().items() if state == "accepted"]
    told = [(len(play.campaign.rows(*k)), play.campaign.search.share(play.name(k))) for k in left]
    assert play.campaign.search.estimate() == pytest.approx(sum(n * s for n, s in told) / sum(n for n, _ in told))
    play.say("undo", play.name(accepted))
    assert play.campaign.search.estimate() == shares


# undo of decisions


def test_an_undone_decision_stays_undone(decided):
    key = decided.accepted()
    rows = decided.campaign.rows(*key)
    others = decided.campaign.accepted()
    others[rows] = False
    reach = decided.campaign.search.reach(*key)
    decided.say("undo", decided.name(key))
    for _ in range(3):
        decided.round()
        assert not decided.campaign.accepted()[reach].any()
        assert decided.campaign.accepted()[others].all()
    assert decided.campaign.states()[key] == "undone"
    assert "undone already" in decided.refused("undo", decided.name(key))
    decided.check()


def test_a_person_may_accept_what_was_undone(decided):
    key = decided.accepted()
    reach = decided.campaign.search.reach(*key)
    decided.say("undo", decided.name(key))
    decided.say("accept", decided.name(key))
    assert decided.campaign.accepted()[reach[decided.campaign.verdict[reach] != NO]].all()
    decided.say("undo", decided.name(key))
    assert not decided.campaign.accepted()[reach].any()
    decided.check()


def test_new_answers_may_bring_back_what_was_undone_by_the_papers_rule(paper):
    play = paper()
    play.to_end()
    key = play.accepted()
    reach = play.campaign.search.reach(*key)
    play.say("undo", play.name(key))
    play.say("ask", play.name(key))
    pages = play.ask()
    assert len(pages) == 2
    play.answer(pages[0])
    play.decide()
    assert not play.campaign.accepted()[reach[play.campaign.verdict[reach] == UNASKED]].any()
    play.answer(pages[1])
    play.decide()
    assert play.campaign.accepted()[reach].all()
    assert play.campaign.states()[key] == "accepted"
    play.check()


def test_an_answer_said_again_brings_nothing_back(paper):
    play = paper()
    play.to_end()
    key = play.accepted()
    reach = play.campaign.search.reach(*key)
    play.say("undo", play.name(key))
    for page in list(play.campaign.pages.values()):
        play.answer(page)
        play.decide()
    assert not play.campaign.accepted()[reach].any()


def test_undoing_a_split_joins_what_was_split(paper):
    play = paper()
    play.to_end()
    root = play.campaign.trees[0].root
    assert play.campaign.state[0, root] == "split"
    play.say("undo", f"cell/{root}")
    assert play.campaign.states() == {(0, root): "undone"}
    assert play.ask() == []
    assert np.array_equal(play.campaign.accepted(), play.campaign.verdict == YES)
    play.say("ask", f"cell/{root}")
    play.round()
    assert play.campaign.states()[0, root] == "split"
    play.check()


@pytest.mark.parametrize("strategy", ["paper", "calibrated"])
def test_a_decision_is_undone_by_the_name_that_regions_bear(request, strategy):
    play = request.getfixturevalue(strategy)()
    play.to_end()
    reasons = play.campaign.reasons()
    kind = {"paper": "page/", "calibrated": "certificate/"}[strategy]
    name = next(name for name in reasons if name and name.startswith(kind)) if strategy != "paper" else None
    if name is None:
        cluster = play.accepted()
        name = f"cluster/{play.name(cluster)}"
    here = reasons == name
    play.say("undo", name)
    lost = reasons.astype(bool) & ~play.campaign.accepted()
    assert lost.any()
    assert (here | ~lost).all()
    if strategy == "calibrated":
        assert np.array_equal(lost, here)
    play.check()


def test_a_page_whose_masks_stand_by_themselves_is_undone(paper):
    play = paper(accept_at=1.0, reject_at=-1, samples=18, budget=18)
    play.to_end()
    reasons = play.campaign.reasons()
    name = next(name for name in reasons if name and name.startswith("page/"))
    play.say("undo", name)
    assert not play.campaign.accepted()[reasons == name].any()
    assert play.campaign.accepted()[reasons.astype(bool) & (reasons != name)].all()
    assert "nor is anything written by a decision of that name" in play.refused("undo", name)
    play.check()


@pytest.mark.parametrize("target", ["cell/9999", "page/none", "certificate/9/9", "nothing"])
def test_what_is_not_there_cannot_be_undone(decided, target):
    assert target in decided.refused("undo", target)


# split and ask more


def test_a_cluster_split_by_command_is_searched_on_in_its_halves(paper):
    play = paper()
    play.to_end()
    key = play.accepted()
    halves = play.campaign.trees[0].halves(key[1])
    before = facts(play.campaign)
    play.say("split", play.name(key))
    assert play.campaign.states()[key] == "split"
    assert {half for half in halves if (0, half) in play.campaign.states()}
    assert not (play.campaign.deciding_cluster() == play.name(key)).any()
    play.say("undo", play.name(key))
    assert facts(play.campaign) == before
    play.say("split", play.name(key))
    play.to_end()
    assert any(isinstance(e, Decided) and e.cluster in {f"cell/{half}" for half in halves} for e in play.log)
    play.check()


def test_an_open_cluster_split_by_command_is_not_asked_as_a_whole(paper):
    play = paper()
    root = play.campaign.trees[0].root
    play.say("split", f"cell/{root}")
    assert {c for page in play.ask() for c in page.issued.clusters} <= {
        f"cell/{half}" for half in play.campaign.trees[0].halves(root)
    }
    assert play.refused("split", f"cell/{root}") == f"cell/{root}: it is split by command already"
    play.check()


def test_what_cannot_be_split_is_told_why(paper, calibrated):
    play = paper()
    root = play.campaign.trees[0].root
    assert "not at the front" in play.refused("split", "cell/3")
    play.say("accept", f"cell/{root}")
    assert "undo that first" in play.refused("split", f"cell/{root}")
    assert "least_size = 30 masks" in paper(least_size=30).refused("split", f"cell/{root}")
    assert "splits nothing" in paper(search="threshold").refused("split", f"cell/{root}")
    other = calibrated()
    assert "sets of masks, not clusters" in other.refused("split", f"cell/{other.campaign.trees[0].root}")


def test_more_is_asked_in_the_next_round_and_the_decision_stands_until_all_is_answered(paper):
    play = paper()
    play.to_end()
    key = play.accepted()
    known, _ = play.campaign.known(*key)
    play.say("ask", play.name(key))
    pages = play.ask()
    asked = np.concatenate([page.rows for page in pages])
    assert len(asked) == 6
    assert np.isin(asked, play.campaign.rows(*key)).all()
    assert play.campaign.states()[key] == "accepted"
    assert "wait for the answers" in play.refused("ask", play.name(key))
    play.answer(pages[0], says=False)
    play.decide()
    assert play.campaign.states()[key] == "accepted"
    play.answer(pages[1], says=False)
    play.decide()
    assert play.campaign.states()[key] in ("split", "rejected")
    assert play.campaign.evidence[play.name(key)] == (known + 6, known)
    play.check()


def test_an_open_cluster_is_asked_before_its_turn(paper):
    play = paper(clusters_a_round=1, search="dfs")
    while len([s for s in play.campaign.state.values() if s == "open"]) < 2:
        assert play.round()
    last = [key for key, state in play.campaign.state.items() if state == "open"][-1]
    play.say("ask", play.name(last))
    assert play.name(last) in {c for page in play.ask() for c in page.issued.clusters}
    play.to_end()
    play.check()


def test_asking_more_ends_with_the_budget(paper):
    play = paper()
    play.to_end()
    spent = play.campaign.questions_asked
    key = play.accepted()
    other = paper(budget=spent)
    for event in play.log:
        other.take(event)
    assert f"the budget of {spent} questions is spent" in other.refused("ask", other.name(key))
    other = paper(budget=spent + 2)
    for event in play.log:
        other.take(event)
    other.say("ask", other.name(key))
    (page,) = other.ask()
    assert len(page.rows) == 2
    other.answer(page)
    other.decide()
    assert not other.ask()


def test_more_is_asked_about_a_cluster_of_the_calibrated_strategy(calibrated):
    play = calibrated()
    play.until(CertificateOpened)
    key = max(
        (k for k, s in play.campaign.states().items() if s in ("proposed", "accepted")),
        key=lambda k: len(play.campaign.free(*k)),
    )
    for page in list(play.campaign.waiting_pages):
        play.answer(page)
    play.decide()
    play.say("ask", play.name(key))
    pages = play.ask()
    assert pages
    asked = np.concatenate([page.rows for page in pages])
    assert np.isin(asked, play.campaign.rows(*key)).all()
    for page in pages:
        play.answer(page)
    play.to_end()
    play.check()


# the promise


def test_what_commands_decide_is_in_no_new_set(calibrated):
    play = calibrated()
    root = play.campaign.trees[0].root
    half, other = play.campaign.trees[0].halves(root)
    play.say("accept", f"cell/{half}")
    left, _ = play.campaign.trees[0].halves(other)
    play.say("reject", f"cell/{left}")
    play.to_end()
    opened = [event for event in play.log if isinstance(event, CertificateOpened)]
    assert opened
    from propagation.certificate import unpack

    for event in opened:
        levels = unpack(event.levels)
        assert not levels[play.campaign.rows(0, half)].any()
        assert not levels[play.campaign.rows(0, left)].any()
    play.check()


def test_what_a_frozen_set_holds_stays_counted_there_whatever_is_commanded(calibrated):
    play, calm = calibrated(), calibrated()
    play.until(CertificateOpened)
    for event in play.log:
        calm.take(event)
    for key in [k for k, s in play.campaign.state.items() if s == "proposed"][::2]:
        play.say("reject", play.name(key))
    play.until(Certified)
    calm.until(Certified)
    told, as_told = ([e for e in some.log if isinstance(e, Certified)] for some in (play, calm))
    assert told[0] == as_told[0]


@pytest.mark.parametrize("seed", range(6))
def test_a_manager_who_takes_back_the_best_breaks_no_promise(calibrated, seed):
    play = calibrated(seed=seed)
    play.until(Certified)
    campaign = play.campaign
    standing = campaign.search._scopes[""].standing
    members = (standing.certificate.levels > 0) & (standing.certificate.levels <= standing.certified)
    share = play.right[members].mean()
    clusters = [k for k, s in campaign.states().items() if s == "accepted"]
    clusters.sort(key=lambda k: -play.right[campaign.rows(*k)].mean())
    for key in clusters[: len(clusters) // 2]:
        play.say("reject" if key[1] % 2 else "undo", play.name(key))
    written = campaign.accepted()
    bound = campaign.search.bound()
    if not written.any():
        assert bound is None
        return
    assert bound < 0.85
    assert campaign.claim == "promise"
    if share >= 0.85:  # as it is with the confidence that is promised
        assert play.right[written].mean() >= bound
    assert f"{int(bound * 1000) / 10}%" in statement(campaign) or f"{bound:.0%}" in statement(campaign)
    play.check()


def test_what_was_undone_comes_back_only_by_a_certificate_opened_since(calibrated):
    play = calibrated(budget=400)
    play.until(Certified)
    key = play.accepted()
    written = np.flatnonzero(
        play.campaign.accepted() & np.isin(np.arange(CALIBRATED_MASKS), play.campaign.rows(*key))
    )
    play.say("undo", play.name(key))
    opened = len([e for e in play.log if isinstance(e, CertificateOpened)])
    while True:
        since = [e for e in play.log if isinstance(e, CertificateOpened)][opened:]
        proven = {e.certificate for e in play.log if isinstance(e, Certified)} & {e.certificate for e in since}
        if not proven:
            assert not play.campaign.accepted()[written].any()
        if not play.round():
            break
    play.check()


def test_settings_of_before_commands_still_replay(paper):
    play = paper()
    play.to_end()
    assert replace(play.campaign.strategy) == play.campaign.strategy
    play.check()


# what is said last


def test_a_wish_for_more_is_taken_back_before_any_decision_is(paper):
    play = paper()
    play.to_end()
    key = play.accepted()
    before = facts(play.campaign)
    play.say("ask", play.name(key))
    play.say("undo", play.name(key))
    assert facts(play.campaign) == before
    assert play.ask() == []
    play.say("ask", play.name(key))
    pages = play.ask()
    assert len(pages) == 2
    for page in pages:
        assert "wait for the answers" in play.refused("undo", play.name(key))
        play.answer(page)
    play.decide()
    reach = play.campaign.search.reach(*key)
    play.say("undo", play.name(key))
    assert not play.campaign.accepted()[reach].any()
    play.check()


def test_a_wish_for_more_of_the_calibrated_strategy_is_taken_back(calibrated):
    play = calibrated()
    play.until(CertificateOpened)
    for page in list(play.campaign.waiting_pages):
        play.answer(page)
    play.decide()
    key = max((k for k, s in play.campaign.states().items() if s in ("proposed", "accepted")), key=lambda k: k[1])
    calm = calibrated()
    for event in play.log:
        calm.take(event)
    play.say("ask", play.name(key))
    play.say("undo", play.name(key))
    assert [page.issued for page in play.ask()] == [page.issued for page in calm.ask()]
    play.check()


def test_a_split_cluster_is_asked_no_more(paper):
    play = paper()
    root = play.campaign.trees[0].root
    pages = play.ask()
    play.say("ask", f"cell/{root}")
    for page in pages:
        play.answer(page)
    play.decide()
    assert play.campaign.state[0, root] == "split"
    assert play.campaign.commands.more == set()
    play.say("undo", f"cell/{root}")
    assert play.campaign.states()[0, root] == "undone"
    play.check()


def test_a_refusal_is_in_the_log_and_changes_nothing(decided):
    key = decided.accepted()
    before = facts(decided.campaign)
    said = Commanded("nowhere/1", "undo", "user 3", "now", "here/first")
    refused = decided.take(decided.campaign.commands.judged(said))
    assert isinstance(refused, CommandRefused)
    assert (refused.target, refused.source) == (said.target, said.source)
    assert said.source in decided.campaign.commands.sources
    again = replace(said, target=f"cluster/{decided.name(key)}", command="accept", source="here/second")
    decided.take(decided.campaign.commands.judged(again))
    third = decided.take(decided.campaign.commands.judged(replace(again, source="here/third")))
    assert isinstance(third, CommandRefused)
    assert decided.campaign.commands.said[key] == third
    decided.say("undo", decided.name(key))
    assert facts(decided.campaign) == before
    decided.check()


def test_what_came_back_after_it_was_undone_is_undone_again(calibrated):
    play = calibrated(budget=400)
    play.until(Certified)
    key = play.accepted()
    reach = play.campaign.search.reach(*key)
    play.say("undo", play.name(key))
    while not play.campaign.accepted()[reach].any():
        assert play.round()
    assert play.campaign.commands.held[reach].any()
    play.say("undo", play.name(key))
    assert not play.campaign.accepted()[reach].any()
    play.check()


def test_all_decisions_can_be_undone_the_latest_first(decided):
    clusters = [event.cluster for event in decided.log if isinstance(event, Decided)]
    standing = [
        name for name in dict.fromkeys(reversed(clusters)) if decided.campaign.find(name) in decided.campaign.state
    ]
    kept = {decided.name(key) for key, state in decided.campaign.state.items() if state != "proposed"}
    for name in standing:
        if name in kept:
            decided.say("undo", name)
    campaign = decided.campaign
    assert not campaign.accepted()[campaign.verdict != YES].any()
    assert not decided.round()
    decided.check()
