"""The paper's rule, at its limits."""

from dataclasses import replace

import numpy as np
import pytest

from propagation.campaign import Campaign
from propagation.errors import SettingsError
from propagation.paper import PaperStrategy


@pytest.mark.parametrize(
    ("right", "asked", "decision"),
    [
        (20, 20, "accept"),
        (17, 20, "accept"),  # 0.85 itself
        (16, 20, "split"),
        (13, 15, "accept"),
        (12, 15, "split"),
        (4, 20, "split"),
        (3, 20, "reject"),  # 0.15 itself
        (0, 20, "reject"),
        (1, 1, "accept"),
        (0, 1, "reject"),
    ],
)
def test_the_share_of_yes_decides(right, asked, decision):
    assert PaperStrategy().decide(right, asked) == decision


def test_a_negative_limit_never_rejects():
    assert PaperStrategy(reject_at=-1).decide(0, 15) == "split"


def test_its_numbers_are_estimates_and_prove_nothing(table, tree, play):
    made = table([0.9] * 20)
    campaign = Campaign(made, [tree(made, range(20))], PaperStrategy())
    assert campaign.claim == "estimate"
    play(campaign, [True] * 20)
    assert campaign.accepted().all()
    assert campaign.claim == "estimate"
    assert campaign.search.bound() is None


@pytest.mark.parametrize("whole", [True, False])
def test_the_masks_judged_wrong_in_an_accepted_cluster_are_written_as_published_or_not(table, tree, play, whole):
    made = table([0.9] * 20)
    right = np.arange(20) > 0
    campaign = Campaign(
        made, [tree(made, range(20))], PaperStrategy(samples=20, split_below=0.0, whole_clusters=whole)
    )
    play(campaign, right)
    assert campaign.accepted().tolist() == (right | whole).tolist()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accept_at", 0.0),
        ("accept_at", 1.01),
        ("reject_at", 0.85),
        ("samples", 0),
        ("cut", 1.5),
        ("least_size", 0),
        ("clusters_a_round", 0),
        ("budget", -1),
        ("page_size", 0),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=rf"strategy\.{name} is {value}; it must be"):
        PaperStrategy(**{name: value})


@pytest.mark.parametrize("name", ["accept_at", "split_below", "budget", "seed"])
def test_a_parameter_at_its_limit_is_taken(name):
    limit = {"accept_at": 1.0, "split_below": 0.0, "budget": 0, "seed": 0}[name]
    assert getattr(replace(PaperStrategy(), **{name: limit}), name) == limit
