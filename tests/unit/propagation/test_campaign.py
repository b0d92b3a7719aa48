"""Campaigns: what is asked, what answers decide, what may be written, and that the event log tells it all."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from propagation.campaign import NO, UNASKED, UNSURE, YES, Campaign
from propagation.errors import StoreError
from propagation.events import (
    CampaignStarted,
    Decided,
    ImageTaken,
    MasksWritten,
    PageAnswered,
    PageIssued,
    PagePosted,
    PageReopened,
    PageReturned,
    WriteIntended,
    from_record,
    to_record,
)
from propagation.paper import PaperStrategy

N = 40
TRUTHS = st.lists(st.booleans(), min_size=N, max_size=N)


def rule(**changes):
    return PaperStrategy(**({"samples": 5, "least_size": 4, "split_below": 0.0, "page_size": 6} | changes))


@pytest.fixture(scope="session")
def begun(table, tree):
    """A campaign over 40 masks of two categories whose clusters follow some numbers."""

    def begin(values=None, scores=None, strategy=None):
        made = table(scores or [0.9] * N, [0] * 30 + [1] * 10, ("x", "y"))
        numbers = range(N) if values is None else values
        return Campaign(made, [tree(made, numbers, 0), tree(made, numbers, 1)], strategy or rule())

    return begin


def answered(campaign, page, right):
    verdicts = tuple("yes" if right[row] else "no" for row in page.rows)
    return PageAnswered(page.issued.page, 1, "now", 2, 1.0, verdicts)


def one_round(campaign):
    """Apply everything that the campaign calls for now; its new pages."""
    known = set(campaign.pages)
    for decision in campaign.decisions():
        campaign.apply(decision)
    for event in campaign.next_round():
        campaign.apply(event)
    return [page for name, page in campaign.pages.items() if name not in known]


def facts(campaign):
    """All that a campaign knows, to be compared."""
    return {
        "name": campaign.name,
        "accepted": campaign.accepted().tolist(),
        "rejected": campaign.rejected().tolist(),
        "verdict": campaign.verdict.tolist(),
        "state": campaign.state,
        "evidence": campaign.evidence,
        "taken": campaign.taken.tolist(),
        "written": {task: campaign.standing(task).tolist() for task in campaign.ours},
        "intended": campaign.intended,
        "deciding": campaign.deciding_cluster().tolist(),
        "pages": {
            name: (page.issued, page.task, page.answer, page.returned, page.asked.counted is page)
            for name, page in campaign.pages.items()
        },
    }


# what answers decide


@pytest.mark.parametrize(
    ("right", "state"), [(20, "accepted"), (17, "accepted"), (16, "split"), (4, "split"), (3, "rejected")]
)
def test_the_share_of_yes_decides_a_cluster(table, tree, right, state):
    made = table([0.9] * 30)
    campaign = Campaign(made, [tree(made, range(30))], rule(samples=20, page_size=20, least_size=16))
    (page,) = one_round(campaign)
    truth = np.zeros(30, dtype=bool)
    truth[page.rows[:right]] = True
    campaign.apply(answered(campaign, page, truth))
    one_round(campaign)
    root = campaign.trees[0].root
    assert campaign.state[0, root] == state
    assert campaign.evidence[f"cell/{root}"] == (20, right)
    assert campaign.deciding_cluster()[0] == (f"cell/{root}" if state == "accepted" else None)


def test_only_as_many_questions_as_the_rule_says_are_asked_of_a_cluster(begun):
    pages = one_round(begun())
    assert sum(len(page.rows) for page in pages) == 10
    assert {page.issued.category for page in pages} == {"x", "y"}
    assert all(len(page.rows) <= 6 for page in pages)
    for page in pages:
        assert {question[:1] for question in page.issued.clusters} == {page.issued.category}


def test_a_cluster_smaller_than_its_questions_is_asked_whole(table, tree):
    made = table([0.9] * 4)
    campaign = Campaign(made, [tree(made, range(4))], rule(samples=50))
    (page,) = one_round(campaign)
    assert sorted(page.rows.tolist()) == [0, 1, 2, 3]
    campaign.apply(answered(campaign, page, [True] * 4))
    one_round(campaign)
    assert campaign.accepted().all()


def test_clusters_that_are_too_small_are_left_undecided(table, tree, play):
    made = table([0.9] * 6)
    grown = tree(made, [0, 1, 2, 100, 101, 102])
    campaign = Campaign(made, [grown], rule(samples=6, least_size=4))
    log = play(campaign, [True, True, True, False, False, False])
    assert [event.decision for event in log if isinstance(event, Decided)] == ["split"]
    assert set(campaign.state) == {(0, grown.root)}
    # what was judged right may still be written
    assert campaign.accepted().tolist() == [True] * 3 + [False] * 3


def test_a_tree_smaller_than_a_cluster_may_be_asks_nothing(table, tree, play):
    made = table([0.9] * 3)
    campaign = Campaign(made, [tree(made, range(3))], rule())
    assert play(campaign, [True] * 3) == [CampaignStarted("campaign", {}, "table", "trees")]
    assert not campaign.accepted().any()


def test_a_cluster_of_low_score_is_split_without_asking(table, tree):
    made = table([0.2] * 20 + [0.9] * 10)
    grown = tree(made, [*range(20), *range(1000, 1010)])
    campaign = Campaign(made, [grown], rule(split_below=0.7, samples=10, page_size=10))
    events = []
    for event in campaign.next_round():
        campaign.apply(event)
        events.append(event)
    *splits, page = events
    assert splits[0] == Decided(f"cell/{grown.root}", "split", 0, 0)
    assert all(isinstance(event, Decided) and event.asked == 0 for event in splits)
    rows = campaign.pages[page.page].rows.tolist()
    assert sorted(rows) == list(range(20, 30))
    # down to clusters too small to ask, none of the low ones is open
    assert [campaign.mean_score(*key) for key in campaign.clusters("open")] == []


def test_a_cluster_at_the_limit_is_asked(table, tree):
    made = table([0.5] * 8)
    assert one_round(Campaign(made, [tree(made, range(8))], rule(split_below=0.5)))


def test_the_clusters_with_the_best_scores_are_asked_first(table, tree):
    made = table([0.7] * 8 + [0.8] * 8)
    grown = tree(made, [*range(8), *range(100, 108)])
    campaign = Campaign(made, [grown], rule(clusters_a_round=1))
    campaign.apply(Decided(f"cell/{grown.root}", "split", 0, 0))
    (page,) = one_round(campaign)
    assert page.rows.min() >= 8


def test_single_masks_that_are_judged_are_decided_one_by_one(table, tree, play):
    made = table([0.9] * 8)
    truth = [True, False] * 4
    campaign = Campaign(made, [tree(made, range(8))], rule(least_size=1, samples=8, reject_at=-1))
    play(campaign, truth)
    assert campaign.accepted().tolist() == truth
    assert campaign.rejected().tolist() == [not right for right in truth]
    assert not campaign.clusters("open")


def test_verdicts_of_a_parent_count_for_its_halves(table, tree):
    made = table([0.9] * 20)
    grown = tree(made, [*range(10), *range(1000, 1010)])
    campaign = Campaign(made, [grown], rule(samples=10, page_size=20))
    truth = [True] * 10 + [False] * 10
    (page,) = one_round(campaign)
    campaign.apply(answered(campaign, page, truth))
    known = {half: campaign.known(0, half) for half in grown.halves(grown.root)}
    assert sum(asked for asked, _ in known.values()) == 10
    (more,) = one_round(campaign)
    assert not set(page.rows.tolist()) & set(more.rows.tolist())
    for half, (asked, _) in known.items():
        inside = set(campaign.rows(0, half).tolist())
        assert len(inside & set(more.rows.tolist())) == 10 - asked


def test_halves_whose_verdicts_suffice_are_decided_without_asking(table, tree):
    made = table([0.9] * 20)
    grown = tree(made, [*range(10), *range(1000, 1010)])
    campaign = Campaign(made, [grown], rule(samples=20, page_size=20))
    (page,) = one_round(campaign)
    campaign.apply(answered(campaign, page, [True] * 10 + [False] * 10))
    assert one_round(campaign) == []
    assert campaign.accepted().tolist() == [True] * 10 + [False] * 10
    assert campaign.rejected().tolist() == [False] * 10 + [True] * 10


def test_a_perfect_annotator_and_separable_clusters_leave_no_mask_undecided(table, tree, play):
    truth = ([True] * 10 + [False] * 10) * 3
    made = table([0.9] * 60)
    values = [place // 10 * 1000 + place for place in range(60)]
    campaign = Campaign(made, [tree(made, values)], rule(samples=6))
    play(campaign, truth)
    assert campaign.accepted().tolist() == truth
    assert campaign.rejected().tolist() == [not right for right in truth]
    assert campaign.questions_asked < 60


# what is asked


@settings(max_examples=20, deadline=None)
@given(right=TRUTHS, budget=st.integers(0, N), seed=st.integers(0, 3))
def test_the_budget_is_never_exceeded_and_nothing_asked_twice(begun, play, right, budget, seed):
    campaign = begun(strategy=rule(budget=budget, seed=seed, clusters_a_round=2))
    log = play(campaign, right)
    questions = [mask for event in log if isinstance(event, PageIssued) for mask in event.questions]
    assert len(questions) == campaign.questions_asked <= budget
    assert len(set(questions)) == len(questions)


def test_a_page_asks_masks_of_its_category_in_the_order_of_the_tree(begun):
    campaign = begun()
    for page in one_round(campaign):
        place = ["x", "y"].index(page.issued.category)
        assert (campaign.table.category[page.rows] == place).all()
        order = campaign.trees[place].rows.tolist()
        assert [order.index(row) for row in page.rows] == sorted(order.index(row) for row in page.rows)
        assert list(page.issued.questions) == campaign.table.ids[page.rows].tolist()


def test_nothing_new_is_asked_while_a_page_waits(begun):
    campaign = begun()
    first, *others = one_round(campaign)
    assert others
    for page in others:
        campaign.apply(answered(campaign, page, [True] * N))
    assert one_round(campaign) == []
    assert campaign.waiting_pages == [first]


def test_draws_depend_on_the_seed_alone(begun):
    asked = [[page.issued.questions for page in one_round(begun(strategy=rule(seed=seed)))] for seed in (1, 1, 2)]
    assert asked[0] == asked[1] != asked[2]


def test_the_name_of_the_campaign_makes_its_pages_others(begun):
    names = []
    for name in ("one", "other"):
        campaign = begun()
        campaign.apply(CampaignStarted(name, {}, "table", "trees"))
        names.append({page.issued.page for page in one_round(campaign)})
    assert not names[0] & names[1]


# what may be written


@settings(max_examples=20, deadline=None)
@given(right=TRUTHS, seed=st.integers(0, 3))
def test_a_mask_judged_wrong_is_never_accepted_and_one_judged_right_is(begun, play, right, seed):
    campaign = begun(strategy=rule(seed=seed, accept_at=0.6, reject_at=0.4))
    play(campaign, right)
    accepted, judged = campaign.accepted(), campaign.verdict != UNASKED
    assert (accepted[judged] == np.array(right)[judged]).all()
    assert not (accepted & campaign.rejected()).any()


@pytest.mark.parametrize("decision", ["accept", "reject"])
def test_a_verdict_stands_against_the_decision_of_its_cluster(begun, decision):
    campaign = begun()
    page = one_round(campaign)[0]
    truth = [True] * N
    truth[page.rows[0]] = False
    campaign.apply(answered(campaign, page, truth))
    place = ["x", "y"].index(page.issued.category)
    root = campaign.trees[place].root
    campaign.apply(Decided(campaign.cluster(place, root), decision, 5, 4))
    assert not campaign.accepted()[page.rows[0]]
    assert campaign.accepted()[page.rows[1:]].all()
    others = np.setdiff1d(campaign.rows(place, root), page.rows)
    assert campaign.accepted()[others].all() == (decision == "accept")
    assert campaign.rejected()[others].all() == (decision == "reject")


def test_an_unsure_answer_counts_as_wrong_and_is_not_written(table, tree):
    made = table([0.9] * 10)
    grown = tree(made, range(10))
    campaign = Campaign(made, [grown], rule(samples=4))
    (page,) = one_round(campaign)
    campaign.apply(PageAnswered(page.issued.page, 1, "v", 2, None, ("yes", "yes", "unsure", "unsure")))
    assert campaign.known(0, grown.root) == (4, 2)
    assert sorted(campaign.verdict[page.rows].tolist()) == [YES, YES, UNSURE, UNSURE]
    assert campaign.accepted().sum() == 2


def test_a_changed_answer_counts_as_it_is_now(begun):
    campaign = begun()
    page = one_round(campaign)[0]
    campaign.apply(answered(campaign, page, [True] * N))
    assert (campaign.verdict[page.rows] == YES).all()
    campaign.apply(answered(campaign, page, [False] * N))
    assert (campaign.verdict[page.rows] == NO).all()
    assert not campaign.accepted()[page.rows].any()


def test_a_mask_outdone_is_never_accepted(table, tree):
    made = table([0.9] * 10)
    grown = tree(made, range(10))
    made.best[3] = False
    campaign = Campaign(made, [grown], rule())
    campaign.apply(Decided(f"cell/{grown.root}", "accept", 5, 5))
    assert campaign.accepted().tolist() == [True] * 3 + [False] + [True] * 6


def test_a_taken_image_gets_nothing_and_is_asked_nothing(table, tree, play):
    made = table([0.9] * N)
    campaign = Campaign(made, [tree(made, range(N))], rule(samples=N, page_size=20))
    image = str(made.images[1])
    campaign.apply(ImageTaken(image))
    log = play(campaign, [True] * N)
    there = made.image == 1
    assert campaign.is_taken(image)
    assert not campaign.is_taken(str(made.images[0]))
    assert campaign.accepted().tolist() == (~there).tolist()
    asked = {mask for event in log if isinstance(event, PageIssued) for mask in event.questions}
    assert not asked & set(made.ids[there].tolist())


def test_an_image_taken_after_its_masks_were_judged_gets_nothing(begun, play):
    campaign = begun()
    play(campaign, [True] * N)
    assert campaign.accepted().all()
    campaign.apply(ImageTaken(str(campaign.table.images[0])))
    assert campaign.accepted().tolist() == (campaign.table.image != 0).tolist()


def test_an_image_taken_while_its_page_waits_does_not_hold_the_campaign_up(begun, play):
    campaign = begun()
    one_round(campaign)
    campaign.apply(ImageTaken(str(campaign.table.images[0])))
    play(campaign, [True] * N)
    assert not campaign.waiting_pages
    assert campaign.accepted().tolist() == (campaign.table.image != 0).tolist()


# pages that come back


def test_a_returned_page_is_asked_again_as_a_new_one(begun, play):
    campaign = begun()
    page, *_ = one_round(campaign)
    campaign.apply(PagePosted(page.issued.page, 7))
    campaign.apply(PageReturned(page.issued.page, 1, "v"))
    (again,) = one_round(campaign)
    assert again.issued.page != page.issued.page
    assert again.issued.attempt == 2
    assert (again.issued.questions, again.issued.clusters) == (page.issued.questions, page.issued.clusters)
    assert again.task is None
    assert page not in campaign.waiting_pages
    assert again in campaign.waiting_pages
    campaign.apply(PageReturned(again.issued.page, 1, "v"))
    (third,) = one_round(campaign)
    assert third.issued.attempt == 3
    assert len({page.issued.page, again.issued.page, third.issued.page}) == 3
    play(campaign, [True] * N)
    assert campaign.accepted().all()


def test_a_returned_page_counts_for_nothing_until_it_is_answered(begun):
    campaign = begun()
    page, *_ = one_round(campaign)
    campaign.apply(answered(campaign, page, [True] * N))
    campaign.apply(PageReturned(page.issued.page, 1, "v"))
    assert (campaign.verdict[page.rows] == UNASKED).all()
    assert page in campaign.waiting_pages


def test_a_page_answered_after_all_is_not_asked_again(begun):
    campaign = begun()
    page, *_ = one_round(campaign)
    campaign.apply(PageReturned(page.issued.page, 1, "v"))
    campaign.apply(answered(campaign, page, [True] * N))
    assert one_round(campaign) == []
    assert (campaign.verdict[page.rows] == YES).all()


@pytest.mark.parametrize("late", ["answered", "answered and taken back"])
def test_what_becomes_of_a_page_asked_anew_elsewhere_changes_nothing(begun, late):
    campaign = begun()
    page, *_ = one_round(campaign)
    campaign.apply(PageReturned(page.issued.page, 1, "v"))
    (again,) = one_round(campaign)
    campaign.apply(answered(campaign, again, [False] * N))
    campaign.apply(answered(campaign, page, [True] * N))
    if late == "answered and taken back":
        campaign.apply(PageReturned(page.issued.page, 1, "v"))
    assert (campaign.verdict[page.rows] == NO).all()
    assert page not in campaign.waiting_pages
    assert page.issued.attempt == 1
    assert all(new.issued.questions != page.issued.questions for new in one_round(campaign))


@pytest.mark.parametrize("second", [True, False])
def test_a_page_taken_back_after_its_cluster_was_split_leaves_each_mask_decided_once(table, tree, play, second):
    made = table([0.9] * 20)
    truth = [True] * 10 + [False] * 10
    grown = tree(made, [*range(10), *range(1000, 1010)])
    campaign = Campaign(made, [grown], rule(samples=20, page_size=20))
    page = one_round(campaign)[0]
    play(campaign, truth)
    assert campaign.state[0, grown.root] == "split"
    campaign.apply(PageReturned(page.issued.page, 1, "v"))
    play(campaign, truth if second else [True] * 20, start=False)
    assert campaign.state[0, grown.root] == ("split" if second else "accepted")
    decided = [*campaign.clusters("accepted"), *campaign.clusters("rejected"), *campaign.clusters("open")]
    rows = np.concatenate([campaign.rows(*key) for key in decided])
    assert len(set(rows.tolist())) == len(rows)
    assert not (campaign.accepted() & campaign.rejected()).any()
    asked = campaign.verdict != UNASKED
    assert asked[page.rows].all()
    if second:
        assert campaign.accepted().tolist() == truth


def test_a_page_taken_back_after_its_cluster_was_accepted_decides_it_anew(begun, play):
    campaign = begun()
    page = one_round(campaign)[0]
    play(campaign, [True] * N)
    campaign.apply(PageReturned(page.issued.page, 1, "v"))
    one_round(campaign)
    place = ["x", "y"].index(page.issued.category)
    assert not campaign.accepted()[campaign.trees[place].rows].all()
    play(campaign, [False] * N, start=False)
    assert not campaign.accepted()[page.rows].any()
    assert not campaign.waiting_pages


def test_an_image_that_leaves_may_make_the_verdicts_of_a_cluster_enough(table, tree):
    """Whether or not somebody looked for decisions before."""
    decided = []
    for looks in (False, True):
        made = table([0.9] * 30)
        grown = tree(made, [*range(15), *range(1000, 1015)])
        campaign = Campaign(made, [grown], rule(samples=10, page_size=30, least_size=6))
        page = one_round(campaign)[0]
        campaign.apply(answered(campaign, page, [row < 15 for row in range(30)]))
        for event in campaign.decisions():
            campaign.apply(event)
        if looks:
            list(campaign.decisions())
        asked = set(page.rows.tolist())
        for row in range(30):
            if row not in asked:
                campaign.apply(ImageTaken(str(made.images[made.image[row]])))
        again = [event for event in campaign.decisions() if campaign.apply(event) is None]
        decided.append([(event.cluster, event.decision) for event in again])
    assert decided[0] == decided[1]
    assert {decision for _, decision in decided[0]} == {"accept", "reject"}


def changed(campaign, page, verdicts, version="later"):
    """An answer is edited, and what follows is decided; the decisions."""
    campaign.apply(PageAnswered(page.issued.page, 1, version, 2, 1.0, tuple(verdicts)))
    log = []
    for event in campaign.decisions():
        campaign.apply(event)
        log.append(event)
    return log


def test_a_changed_answer_decides_its_cluster_anew(table, tree, play):
    made = table([0.9] * 20)
    campaign = Campaign(made, [tree(made, range(20))], rule(samples=10, page_size=20, least_size=11))
    play(campaign, [True] * 20)
    (page,) = campaign.pages.values()
    assert campaign.accepted().all()
    (event,) = changed(campaign, page, ["no"] * 9 + ["yes"], "second")
    assert (event.decision, event.asked, event.right) == ("reject", 10, 1)
    assert campaign.accepted().sum() == 1
    (event,) = changed(campaign, page, ["no"] * 5 + ["yes"] * 5, "third")
    assert event.decision == "split"
    assert campaign.accepted().sum() == 5
    (event,) = changed(campaign, page, ["yes"] * 10, "fourth")
    assert (event.decision, event.asked, event.right) == ("accept", 10, 10)
    assert campaign.accepted().all()
    assert changed(campaign, page, ["yes"] * 10, "fifth") == []


def test_a_cluster_that_was_split_by_mistake_is_accepted_whole_and_its_parts_are_forgotten(table, tree, play):
    made = table([0.9] * 40)
    truth = [True] * 20 + [False] * 20
    grown = tree(made, [*range(20), *range(1000, 1020)])
    campaign = Campaign(made, [grown], rule(samples=10, page_size=40, least_size=5))
    first = one_round(campaign)[0]
    play(campaign, truth)
    assert campaign.state[0, grown.root] == "split"
    assert len(campaign.state) > 2
    (event,) = changed(campaign, first, ["yes"] * 10)
    assert (event.cluster, event.decision) == (f"cell/{grown.root}", "accept")
    assert set(campaign.state) == {(0, grown.root)}
    assert campaign.accepted()[campaign.verdict != NO].all()
    assert not campaign.accepted()[campaign.verdict == NO].any()


def test_a_deleted_answer_opens_its_cluster_until_the_same_page_is_answered_again(table, tree, play):
    made = table([0.9] * 20)
    campaign = Campaign(made, [tree(made, range(20))], rule(samples=10, page_size=20, least_size=11))
    play(campaign, [True] * 20)
    (page,) = campaign.pages.values()
    campaign.apply(PageReopened(page.issued.page, 1, "gone"))
    assert campaign.waiting_pages == [page]
    assert not campaign.accepted().any()
    assert list(campaign.decisions()) == list(campaign.next_round()) == []
    (event,) = changed(campaign, page, ["yes"] * 10, "again")
    assert event.decision == "accept"
    assert campaign.accepted().all()


def test_of_two_pages_with_the_same_questions_the_first_answer_counts(begun):
    campaign = begun()
    first = one_round(campaign)[0]
    campaign.apply(PageReturned(first.issued.page, 0, "abandoned"))
    second = next(page for page in one_round(campaign) if page.issued.questions == first.issued.questions)
    assert first not in campaign.waiting_pages
    assert second in campaign.waiting_pages
    # who had opened the first one answers it after all
    campaign.apply(answered(campaign, first, [True] * N))
    assert second not in campaign.waiting_pages
    campaign.apply(answered(campaign, second, [False] * N))
    assert (campaign.verdict[first.rows] == YES).all()
    # once it is taken back, the other one stands
    campaign.apply(PageReopened(first.issued.page, 1, "gone"))
    assert (campaign.verdict[first.rows] == NO).all()
    campaign.apply(PageReopened(second.issued.page, 1, "gone"))
    assert (campaign.verdict[first.rows] == UNASKED).all()
    assert sum(page.issued.questions == first.issued.questions for page in campaign.waiting_pages) == 1


@settings(max_examples=25, deadline=None)
@given(right=TRUTHS, edits=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6), st.randoms()), max_size=6))
def test_whatever_answers_are_changed_decisions_are_what_the_verdicts_say(begun, play, right, edits):
    strategy = rule(page_size=3, clusters_a_round=2)
    campaign = begun(values=[v % 7 * 50 + v for v in range(N)], strategy=strategy)
    log = play(campaign, right)
    for version, (which, kind, chance) in enumerate(edits):
        page = list(campaign.pages.values())[which % len(campaign.pages)]
        name = page.issued.page
        if kind == 0:
            event = PageReopened(name, 1, f"v{version}")
        elif kind == 1:
            event = PageReturned(name, 1, f"v{version}")
        else:
            verdicts = tuple(chance.choice(["yes", "no"]) for _ in page.rows)
            event = PageAnswered(name, 1, f"v{version}", 2, 1.0, verdicts)
        campaign.apply(event)
        log.append(event)
        log.extend(play(campaign, right, start=False))
    assert not campaign.waiting_pages
    decided = [*campaign.clusters("accepted"), *campaign.clusters("rejected"), *campaign.clusters("open")]
    rows = np.concatenate([campaign.rows(*key) for key in decided]) if decided else np.empty(0)
    assert len(set(rows.tolist())) == len(rows)
    for key in decided:
        asked, yes = campaign.evidence.get(campaign.cluster(*key), (0, 0))
        state = campaign.state[key]
        if state == "accepted":
            assert strategy.decide(yes, asked) == "accept"
        assert campaign.known(*key)[0] >= asked
    assert not campaign.accepted()[campaign.verdict == NO].any()
    assert campaign.accepted()[campaign.verdict == YES].all()
    assert (campaign.reasons()[campaign.accepted()] != None).all()  # noqa: E711
    again = begun(values=[v % 7 * 50 + v for v in range(N)], strategy=strategy)
    for event in log:
        again.apply(event)
    assert facts(again) == facts(campaign)


# the log


@settings(max_examples=20, deadline=None)
@given(right=TRUTHS, seed=st.integers(0, 1 << 30))
def test_the_order_of_answers_within_a_round_changes_nothing(begun, play, right, seed):
    scores = (0.5 + np.arange(N) % 7 / 14).tolist()
    strategy = rule(page_size=3, clusters_a_round=4, split_below=0.6)
    kept = []
    for shuffler in (None, random.Random(seed)):
        campaign = begun(scores=scores, values=[v % 11 * 50 + v for v in range(N)], strategy=strategy)
        order = list if shuffler is None else lambda pages, r=shuffler: r.sample(pages, len(pages))
        log = play(campaign, right, order)
        decided = [event for event in log if isinstance(event, Decided)]
        issued = {event for event in log if isinstance(event, PageIssued)}
        kept.append((set(decided), len(decided), issued, campaign.accepted().tolist(), campaign.state))
    assert kept[0] == kept[1]


@settings(max_examples=15, deadline=None)
@given(right=TRUTHS, cut=st.integers(0, 200))
def test_replaying_the_log_tells_the_same(begun, play, right, cut):
    campaign = begun()
    log = [CampaignStarted("campaign", {"samples": 5, "nested": {"a": [1]}}, "table", "trees")]
    campaign.apply(log[0])
    page = one_round(campaign)[0]
    log.extend(page.issued for page in campaign.pages.values())
    for event in (
        PageReturned(page.issued.page, 1, "v"),
        ImageTaken(str(campaign.table.images[2])),
        WriteIntended(5, "digest"),
        WriteIntended(5, "other"),
        MasksWritten(str(campaign.table.images[0]), 5, 6, (str(campaign.table.ids[0]),)),
    ):
        campaign.apply(event)
        log.append(event)
    log.extend(play(campaign, right, start=False))
    records = [json.dumps(to_record(event)) for event in log]
    replayed = [from_record(*json.loads(record)) for record in records]
    assert replayed == log
    again, half = begun(), begun()
    for event in replayed:
        again.apply(event)
    assert facts(again) == facts(campaign)
    # and a campaign cut off anywhere goes on to the same end
    for event in replayed[:cut]:
        half.apply(event)
    for event in replayed[cut:]:
        half.apply(event)
    assert facts(half) == facts(campaign)


@settings(max_examples=15, deadline=None)
@given(right=TRUTHS, cut=st.integers(1, 60))
def test_a_campaign_cut_off_anywhere_comes_to_the_same_end(begun, play, right, cut):
    campaign = begun()
    log = play(campaign, right)
    resumed = begun()
    while 0 < cut < len(log) and isinstance(log[cut], PageIssued) and isinstance(log[cut - 1], PageIssued):
        cut += 1  # the pages of a round are stored together
    for event in log[:cut]:
        resumed.apply(event)
    play(resumed, right, start=False)
    ends = [(c.accepted().tolist(), c.rejected().tolist(), c.state, set(c.pages)) for c in (campaign, resumed)]
    assert ends[0] == ends[1]


def test_the_pages_of_a_round_do_not_depend_on_one_another(begun):
    one, other = begun(strategy=rule(page_size=2)), begun(strategy=rule(page_size=2))
    together = list(one.next_round())
    assert len(together) > 2
    assert together == [page.issued for page in one_round(other)]
    for event in together:
        one.apply(event)
    for campaign in (one, other):
        for page in together[:2]:
            campaign.apply(PageReturned(page.page, 1, "v"))
    assert list(one.next_round()) == [page.issued for page in one_round(other)]


def test_events_and_pages_change_only_by_apply(begun):
    campaign = begun()
    before = facts(campaign)
    list(campaign.decisions())
    list(campaign.next_round())
    assert facts(campaign) == before


@pytest.mark.parametrize(
    "event",
    [
        PagePosted("nowhere", 1),
        PageAnswered("nowhere", 1, "v", 2, None, ("yes",)),
        PageReturned("nowhere", 1, "v"),
    ],
)
def test_a_page_that_was_never_issued_is_refused(begun, event):
    with pytest.raises(StoreError, match="page nowhere was never issued"):
        begun().apply(event)


@pytest.mark.parametrize("cluster", ["z/1", "x/59", "x/-1", "x/one", "x", "", "/3", "x/"])
def test_a_cluster_that_is_not_there_is_refused(begun, cluster):
    with pytest.raises(StoreError, match="no cluster"):
        begun().apply(Decided(cluster, "accept", 1, 1))


def test_a_cluster_is_found_by_its_name_whatever_the_category_is_called(table, tree):
    made = table([0.9] * 5, names=("a/b 3/4",))
    campaign = Campaign(made, [tree(made, range(5))], rule())
    assert campaign.find(campaign.cluster(0, 8)) == (0, 8)
    assert campaign.cluster(0, 8) == "a/b 3/4/8"
