"""The summary: every mask counted once, and an estimate weighted by cluster size."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from propagation.campaign import Campaign
from propagation.events import Decided, ImageTaken, PageAnswered, PageIssued
from propagation.masks import build_table
from propagation.paper import PaperStrategy
from propagation.summary import as_json, summarize

RULE = PaperStrategy(samples=4, least_size=3, split_below=0, page_size=6)


@settings(max_examples=15, deadline=None)
@given(
    right=st.lists(st.booleans(), min_size=40, max_size=40),
    taken=st.sets(st.sampled_from(range(3))),
    budget=st.integers(0, 40),
)
def test_every_mask_is_outdone_accepted_rejected_or_open(table, tree, play, right, taken, budget):
    made = table([0.9] * 40, [0, 1] * 20, ("x", "y"))
    made.best[[4, 5]] = False
    values = np.array(right) * 100 + np.arange(40)
    made_trees = [tree(made, values, 0), tree(made, values, 1)]
    campaign = Campaign(made, made_trees, replace(RULE, budget=budget))
    for place in taken:
        campaign.apply(ImageTaken(str(made.images[place])))
    play(campaign, right)
    for row in summarize(campaign):
        assert row.masks == row.outdone + row.accepted + row.rejected + row.open
    *rows, total = summarize(campaign)
    assert [row.category for row in rows] == ["x", "y"]
    assert (total.category, total.masks, total.outdone) == ("total", 40, 2)
    for name in set(asdict(total)) - {"category", "estimate", "bound"}:
        assert getattr(total, name) == sum(getattr(row, name) for row in rows)
    assert total.accepted == campaign.accepted().sum()
    assert total.questions == (campaign.verdict >= 0).sum()


def test_the_estimate_weighs_clusters_by_their_size(table, tree):
    made = table([0.9] * 12)
    grown = tree(made, [0, 1, 2, 50, 51, 52, 53, 54, 55, 56, 57, 58])
    small, large = grown.halves(grown.root)
    if grown.sizes[small] > grown.sizes[large]:
        small, large = large, small
    campaign = Campaign(made, [grown], RULE)
    campaign.apply(Decided(f"cell/{grown.root}", "split", 0, 0))
    assert summarize(campaign)[-1].estimate is None
    campaign.apply(Decided(f"cell/{small}", "accept", 2, 1))
    campaign.apply(Decided(f"cell/{large}", "accept", 4, 4))
    (row, total) = summarize(campaign)
    assert row.estimate == total.estimate == pytest.approx((3 * 0.5 + 9 * 1) / 12)
    assert (row.clusters_accepted, row.clusters_rejected, row.clusters_open) == (2, 0, 0)
    assert (row.accepted, row.open) == (12, 0)


def test_clusters_are_counted_by_their_state(table, tree):
    made = table([0.9] * 12)
    grown = tree(made, [0, 1, 2, 50, 51, 52, 53, 54, 55, 56, 57, 58])
    campaign = Campaign(made, [grown], RULE)
    root = f"cell/{grown.root}"
    campaign.apply(PageIssued("p", 1, "cell", (str(made.ids[0]), str(made.ids[9])), (root,)))
    campaign.apply(PageAnswered("p", 1, "v", 2, None, ("yes", "no")))
    (row, _) = summarize(campaign)
    assert (row.clusters_open, row.questions, row.accepted, row.rejected, row.open) == (1, 2, 1, 1, 10)
    campaign.apply(Decided(root, "reject", 2, 1))
    (row, _) = summarize(campaign)
    assert (row.clusters_open, row.clusters_rejected, row.accepted, row.rejected) == (0, 1, 1, 11)


def test_a_category_without_masks_has_a_row_of_zeros(detections):
    empty = build_table(["a.png"], [detections([], [])], ["x"], "m")
    (row, total) = summarize(Campaign(empty, [], RULE))
    assert row.masks == total.masks == 0
    assert row.estimate is None


def test_the_summary_for_machines_says_what_it_claims(table, tree, play):
    made = table([0.9] * 12)
    campaign = Campaign(made, [tree(made, range(12))], RULE)
    play(campaign, [True] * 12)
    said = as_json(campaign, summarize(campaign))
    assert said["claim"] == "estimate"
    assert said["campaign"] == "campaign"
    assert said["pages_waiting"] == 0
    assert said["questions_asked"] == 4
    assert said["total"]["accepted"] == said["categories"][0]["accepted"] == 12
