"""A further round: the table of both, what stays, and that the promise holds over all of them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from propagation import calibrated
from propagation.calibrated import CalibratedStrategy
from propagation.campaign import NO, Campaign
from propagation.errors import InputError
from propagation.events import CampaignStarted, ImageTaken, PageAnswered, RoundStarted, from_record, to_record
from propagation.masks import build_table
from propagation.paper import PaperStrategy
from propagation.posterior import Posterior
from propagation.rounds import closed_images, decided, join
from propagation.tree import read_trees, write_trees

PAPER = PaperStrategy(samples=4, least_size=4, split_below=0.0, page_size=8)


def strategy(**changes):
    given = {"learn": 0.2, "learn_most": 12, "sets": 8, "worth": 0.0, "page_size": 10, "budget": 150}
    return CalibratedStrategy(**(given | changes))


@pytest.fixture
def grown(tree):
    """The trees of a second round over the masks that are in play, by score."""

    def grow(table, campaign):
        earlier = np.pad(campaign.accepted(), (0, len(table) - len(campaign.table)))
        grown = tree(replace(table, category=np.where(table.best & ~earlier, table.category, -1)), table.score)
        return [*campaign.trees, replace(grown, round=campaign.round + 1)]

    return grow


def further(log, table, trees, rule):
    """The campaign of a log, and of a round after it."""
    campaign = Campaign(table, trees, rule)
    for event in log:
        campaign.apply(event)
    campaign.apply(RoundStarted(campaign.round + 1, "table-2", "trees-2"))
    return campaign


# the table of both


def test_what_is_kept_hides_what_covers_the_same_object(box, detections):
    first = build_table(["a"], [detections([box(1, 1, 8, 8), box(20, 1, 8, 8)], [0.9, 0.8])], ["x", "y"], "one")
    again = [
        box(1, 1, 8, 8),  # the same mask
        box(2, 1, 8, 8),  # the same object, IoU 0.78 and most of each
        box(2, 1, 7, 8),  # another category, IoU 0.88
        box(20, 1, 8, 4),  # half of what is not kept
        box(1, 20, 8, 8),
    ]
    found = build_table(["a"], [detections(again, [0.9, 0.8, 0.7, 0.6, 0.5], [0, 0, 1, 0, 0])], ["x", "y"], "two")
    found = replace(found, best=np.ones(5, dtype=bool))
    joined = join(first, np.array([True, False]), found)
    assert joined.ids[:2].tolist() == first.ids[:].tolist()
    assert joined.best.tolist() == [True, False, True, True]
    assert {joined.counts[2], joined.counts[3]} == {box(20, 1, 8, 4)["counts"], box(1, 20, 8, 8)["counts"]}
    assert joined.model_version == "two"


def test_a_mask_that_is_found_again_keeps_its_row_and_gets_its_new_score(box, detections):
    squares = [box(1, 1, 8, 8), box(20, 1, 8, 8)]
    first = build_table(["a"], [detections(squares, [0.9, 0.8], features=[[1.0], [2.0]])], ["x"], "one")
    first = first.with_features(shape=np.array([[5.0], [6.0]]))
    told = detections(squares[1:], [0.3], features=[[7.0, 8.0]])
    found = build_table(["b", "a"], [detections([squares[0]], [0.4], features=[[3.0, 4.0]]), told], ["x"], "two")
    found = found.with_features(shape=np.array([[1.0], [2.0]]))
    joined = join(first, np.array([False, False]), found)
    assert joined.images.tolist() == ["a", "b"]
    assert joined.image.tolist() == [0, 0, 1]
    assert joined.best.tolist() == [False, True, True]
    assert joined.score.tolist() == pytest.approx([0.9, 0.3, 0.4])
    assert joined.features["deep"].tolist() == [[0, 0], [7, 8], [3, 4]]
    assert joined.features["shape"].tolist() == [[5], [2], [1]]


def test_categories_that_the_campaign_does_not_know_are_refused(box, detections):
    first = build_table(["a"], [detections([box(1, 1, 8, 8)], [0.9])], ["x"], "one")
    found = build_table(["a"], [detections([box(1, 1, 8, 8)], [0.9])], ["z"], "two")
    with pytest.raises(InputError, match="finds z"):
        join(first, np.array([True]), found)


def test_an_image_of_another_size_is_refused(box, detections):
    first = build_table(["a"], [detections([box(1, 1, 8, 8)], [0.9])], ["x"], "one")
    found = build_table(["a"], [detections([box(1, 1, 8, 8, (64, 64))], [0.9])], ["x"], "two")
    with pytest.raises(InputError, match="image a is"):
        join(first, np.array([True]), found)


def test_trees_of_several_rounds_are_read_as_they_were_written(table, tree, tmp_path):
    base = table(np.linspace(0.9, 0.5, 8))
    one = tree(base, base.score)
    write_trees([one, replace(one, round=2)], tmp_path)
    assert [(each.name, each.round) for each in read_trees(tmp_path)] == [("cell", 1), ("cell@2", 2)]


def test_a_rounds_start_goes_through_the_log():
    event = RoundStarted(2, "table", "trees")
    assert from_record(*to_record(event)) == event


# what stays


@pytest.mark.parametrize("rule", [PAPER, strategy()], ids=["paper", "calibrated"])
def test_what_was_decided_stands_in_the_next_round(table, tree, play, grown, rule):
    base = table(np.linspace(0.99, 0.6, 160))
    right = np.arange(160) < 120
    one = Campaign(base, [tree(base, base.score)], rule)
    log = play(one, right)
    accepted = base.ids[one.accepted()].tolist()
    assert len(accepted) > 60
    found = table(np.linspace(0.5, 0.9, 320))  # the same masks, and as many more
    joined = join(base, decided(one), found)
    two = further(log, joined, grown(joined, one), rule)
    assert joined.ids[two.accepted()].tolist() == accepted
    assert two.evidence == one.evidence
    assert two.reasons()[: len(base)].tolist() == one.reasons().tolist()
    assert (two.room, two.questions_asked) == (rule.budget, one.questions_asked)
    assert two.claim == one.claim
    assert two.search.bound() == one.search.bound()


def test_the_next_round_asks_about_its_own_masks_and_none_again(table, tree, play, grown):
    base = table(np.linspace(0.99, 0.6, 160))
    one = Campaign(base, [tree(base, base.score)], strategy())
    log = play(one, np.arange(160) < 120)
    asked = {mask for page in one.pages.values() for mask in page.issued.questions}
    joined = join(base, decided(one), table(np.linspace(0.99, 0.6, 480)))
    trees = grown(joined, one)
    two = further(log, joined, trees, strategy())
    before = two.accepted()
    truth = np.concatenate([np.arange(160) < 120, np.arange(320) % 8 > 0])
    more = play(two, truth, start=False)
    again = {mask for page in two.pages.values() if page not in one.pages for mask in page.issued.questions}
    assert len(again) > len(asked)
    assert sum(isinstance(event, PageAnswered) for event in more) > 5
    assert not (before & ~two.accepted() & (two.verdict != NO)).any()
    assert two.accepted().sum() > before.sum() + 100
    assert any(cluster.startswith("cell@2/") for cluster in two.evidence)
    replayed = further(log, joined, trees, strategy())
    for event in more:
        replayed.apply(event)
    assert replayed.accepted().tolist() == two.accepted().tolist()
    assert replayed.states() == two.states()


def test_pages_that_are_out_hold_the_next_round_back(table, tree):
    base = table(np.linspace(0.99, 0.6, 64))
    campaign = Campaign(base, [tree(base, base.score)], strategy())
    campaign.apply(CampaignStarted("campaign", {}, "table", "trees"))
    assert not list(campaign.next_round(new=False))
    for event in list(campaign.next_round()):
        campaign.apply(event)
    assert campaign.waiting_pages
    assert not list(campaign.next_round(new=False))


def test_images_in_which_all_is_decided_are_closed(table, tree, play):
    base = table(np.full(64, 0.9), keys=["a", "b", "c", "d"])
    campaign = Campaign(base, [tree(base, np.arange(64.0))], replace(PAPER, samples=64, page_size=64))
    play(campaign, np.arange(64) < 32)
    campaign.apply(ImageTaken("d"))
    assert closed_images(campaign) == {"a", "b", "d"}


# the promise


def test_the_promise_holds_over_the_rounds(table, tree, play, grown, monkeypatch):
    """40 campaigns of two rounds, the second with masks that are worse than the target and look the same."""

    def fit(columns, plain, rows, right, seed):
        return Posterior(columns, columns[rows])

    monkeypatch.setattr(calibrated, "covariates", lambda table: (np.asarray(table.score), 1))
    monkeypatch.setattr(calibrated, "fit", fit)
    broken = accepted = 0
    for seed in range(40):
        rng = np.random.default_rng([seed, 7])
        scores = rng.uniform(0.87, 0.99, 320)
        truth = rng.random(320) < np.where(np.arange(320) < 160, 0.96, 0.8)
        rule = strategy(seed=seed, budget=100)
        base = table(scores[:160])
        one = Campaign(base, [tree(base, base.score)], rule)
        log = play(one, truth[:160])
        joined = join(base, decided(one), table(scores))
        two = further(log, joined, grown(joined, one), rule)
        place = {mask: row for row, mask in enumerate(table(scores).ids.tolist())}
        right = truth[[place[mask] for mask in joined.ids.tolist()]]
        play(two, right, start=False)
        assert two.claim == "promise"
        written = two.accepted()
        accepted += int(written.sum())
        broken += bool(written.any() and right[written].mean() < rule.target)
    assert accepted > 40 * 60
    assert broken / 40 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 40)
