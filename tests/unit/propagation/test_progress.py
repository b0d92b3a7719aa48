"""The figures of the progress board: a history that a restart knows again, and a forecast from what is known."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest

from propagation.calibrated import CalibratedStrategy
from propagation.campaign import Campaign
from propagation.events import Decided, GoldAnswered, PageAnswered, PageIssued, PagePosted
from propagation.paper import PaperStrategy
from propagation.progress import (
    DRAWING_SECONDS,
    MOST_CATEGORIES,
    POINTS,
    QUESTION_SECONDS,
    History,
    Terms,
    progress,
)

BEGIN = datetime(2026, 11, 2, 8, tzinfo=UTC)
NOW = BEGIN + timedelta(days=3)
RULE = PaperStrategy(samples=4, least_size=3, split_below=0, page_size=6)


class Watched:
    """A campaign that tells its history before it applies, as the daemon does."""

    def __init__(self, campaign):
        self.history = History(campaign)
        self.campaign = campaign
        self.log = []

    def __getattr__(self, name):
        return getattr(self.campaign, name)

    def apply(self, event):
        at = BEGIN + timedelta(minutes=len(self.log))
        if isinstance(event, PageAnswered):
            event = replace(event, version=at.isoformat(), seconds=2.0 * len(event.verdicts))
        self.log.append((event, at))
        self.history.take(event, at)
        self.campaign.apply(event)


@pytest.fixture
def small(table, tree):
    """Two categories of twenty, the first half of each right."""
    made = table([0.9] * 40, [0, 1] * 20, ("x", "y"))
    right = np.arange(40) < 20
    trees = [tree(made, right * 100 + np.arange(40), place) for place in (0, 1)]
    return made, trees, right


@pytest.fixture
def large(table, tree):
    """Many masks of one category, two thirds of them right, as their scores nearly tell."""
    rng = np.random.default_rng(1)
    right = rng.random(3000) < 0.67
    score = np.clip(np.where(right, 0.75, 0.45) + 0.12 * rng.standard_normal(3000), 0.01, 0.99)
    made = table(score.astype(np.float32))
    return made, [tree(made, score)], right


def replayed(watched, made, trees):
    history = History(Campaign(made, trees, watched.campaign.strategy))
    for event, at in watched.log:
        history.take(event, at)
        history.campaign.apply(event)
    return history


def test_the_history_goes_from_nothing_to_where_the_campaign_stands(small, play):
    made, trees, right = small
    watched = Watched(Campaign(made, trees, RULE))
    play(watched, right)
    points = watched.history.points(NOW)
    assert (points[0].questions, points[0].hours, points[0].accepted) == (0, 0, 0)
    answered = int((watched.campaign.verdict >= 0).sum())
    assert (points[-1].questions, points[-1].accepted) == (answered, watched.campaign.accepted().sum())
    assert points[-1].hours == pytest.approx(answered * 2 / 3600)
    for before, after in pairwise(points):
        assert before.questions <= after.questions
        assert before.hours <= after.hours
        assert before.at <= after.at


def test_a_restart_knows_the_history_again(large, play):
    made, trees, right = large
    watched = Watched(Campaign(made, trees, CalibratedStrategy(budget=600, page_size=2)))
    play(watched, right)
    points = watched.history.points(NOW)
    assert POINTS / 2 <= len(points) <= POINTS + 2
    assert max(point.accepted for point in points) > 1000
    assert replayed(watched, made, trees).points(NOW) == points


def test_untimed_answers_take_the_pace_of_the_timed_ones(small):
    made, trees, _ = small
    history = History(Campaign(made, trees, RULE))
    ids = made.ids.tolist()

    def answer(name, rows, seconds, annotation, by=7):
        issued = PageIssued(name, 1, "x", tuple(ids[row] for row in rows), ("x/38",))
        answered = PageAnswered(name, annotation, "now", by, seconds, ("yes",) * len(rows))
        for event in (issued, PagePosted(name, annotation), answered):
            history.take(event, BEGIN)
            history.campaign.apply(event)

    answer("a", [0, 2], None, 1)
    assert history.pace == QUESTION_SECONDS
    assert not history.timed
    answer("b", [4, 6], 6.0, 2)
    assert history.pace == 3.0
    again = PageAnswered("b", 2, "later", 7, 10.0, ("yes", "no"))
    history.take(again, BEGIN)
    history.campaign.apply(again)
    assert history.pace == 5.0  # of the same annotation: its time holds that of before
    assert history.points(NOW)[-1].hours == pytest.approx(4 * 5.0 / 3600)


def test_hours_and_cost_stand_beside_drawing_by_hand(small, play):
    made, trees, right = small
    watched = Watched(Campaign(made, trees, RULE))
    play(watched, right)
    work = progress(watched.history, Terms(hour_cost=36.0, currency="€"), NOW)["work"]
    accepted = int(watched.campaign.accepted().sum())
    assert work["drawing_hours"] == pytest.approx(accepted * DRAWING_SECONDS / 3600)
    assert work["drawing_cost"] == pytest.approx(accepted * DRAWING_SECONDS / 100)
    assert work["cost"] == pytest.approx(36 * work["hours"])
    assert work["times_faster"] == pytest.approx(work["drawing_hours"] / work["hours"])
    assert progress(watched.history, Terms(), NOW)["work"]["cost"] is None


def test_clusters_are_counted_by_state_and_size(small):
    made, trees, _ = small
    campaign = Campaign(made, trees, RULE)
    left, right = trees[0].halves(trees[0].root)
    for name, decision in ((f"x/{trees[0].root}", "split"), (f"x/{left}", "accept"), (f"x/{right}", "reject")):
        campaign.apply(Decided(name, decision, 4, 4))
    campaign.apply(Decided(f"y/{trees[1].root}", "accept", 4, 4))
    clusters = progress(History(campaign), Terms(), NOW)["clusters"]
    counts = {one["state"]: (one["clusters"], one["masks"]) for one in clusters["states"]}
    assert counts["accepted"] == (2, 20 + trees[0].sizes[left])
    assert counts["rejected"] == (1, trees[0].sizes[right])
    assert all(sum(one["by_size"]) == one["clusters"] for one in clusters["states"])
    assert all(len(one["by_size"]) == len(clusters["sizes"]) for one in clusters["states"])
    accepted = next(one for one in clusters["states"] if one["state"] == "accepted")
    assert [one["cluster"] for one in accepted["largest"]] == [f"y/{trees[1].root}", f"x/{left}"]
    in_bin = [low <= 20 <= high for low, high in clusters["sizes"]]
    assert accepted["by_size"][in_bin.index(True)] >= 1


def test_annotators_stand_by_what_they_answered(small, play):
    made, trees, right = small
    watched = Watched(Campaign(made, trees, RULE))
    play(watched, right)
    document = progress(watched.history, Terms(), NOW)
    (row,) = document["annotators"]
    pages = [page for page in watched.campaign.pages.values() if page.answer]
    assert (row["annotator"], row["pages"]) == (2, len(pages))
    assert row["questions"] == sum(len(page.rows) for page in pages)
    assert row["seconds_a_question"] == 2.0
    assert (row["missed"], row["agreement"], row["asked_again"]) == (None, None, {})
    assert row["latest"] == document["questions"]["latest"]
    assert document["team"]["missed"] is None
    watched.apply(GoldAnswered(10, 1, 20, 2))
    team = progress(watched.history, Terms(), NOW)["team"]
    assert (team["missed"]["share"], team["missed"]["of"]) == (0.1, 10)
    assert (team["false_alarms"]["share"], team["false_alarms"]["of"]) == (0.1, 20)
    assert team["questions"] == row["questions"]


def test_errors_are_told_of_each_annotator(small):
    made, trees, _ = small
    questions = tuple(made.ids[:4:2].tolist())
    history = History(Campaign(made, trees, RULE))
    taken = []

    def answer(name, by, said_of_gold, overlap):
        """The same two questions behind five wrong masks of gold."""
        gold = tuple(f"{name}{place}" for place in range(5))
        shown = gold, (False,) * 5, tuple(range(5))
        issued = PageIssued(name, 1, "x", questions, ("x/38",), *shown, tolerated=0.25, overlap=overlap)
        answered = PageAnswered(name, len(taken), "now", by, 14.0, (*(said_of_gold,) * 5, "yes", "yes"))
        for event in (issued, PagePosted(name, len(taken)), answered):
            taken.append(event)
            at = BEGIN + timedelta(minutes=len(taken))
            history.take(event, at)
            history.campaign.apply(event)

    answer("a", 7, "no", overlap=False)
    answer("b", 9, "yes", overlap=True)  # found out by the gold
    careful, careless = sorted(progress(history, Terms(), NOW)["annotators"], key=lambda row: row["annotator"])
    assert (careful["missed"]["share"], careful["missed"]["of"]) == (0.0, 5)
    assert careful["missed"]["high"] == pytest.approx(1 - 0.025 ** (1 / 5))
    assert careful["false_alarms"] is None
    assert (careful["suspected"], careful["asked_again"]) == (False, {})
    assert careless["missed"]["share"] == 1.0
    assert (careless["suspected"], careless["asked_again"]) == (True, {"missed gold": 1})
    assert careful["agreement"] == careless["agreement"] == {"share": 1.0, "of": 2}
    assert careful["seconds_a_question"] == careless["seconds_a_question"] == 2.0
    assert careful["latest"] < careless["latest"]


def test_of_many_categories_the_largest_have_rows_and_the_others_one(table, tree):
    sizes = [1 + place % 7 for place in range(120)]
    codes = np.repeat(np.arange(120), sizes)
    made = table([0.9] * len(codes), codes, [f"c{place}" for place in range(120)])
    trees = [tree(made, np.arange(len(codes)), place) for place in range(120)]
    document = progress(History(Campaign(made, trees, RULE)), Terms(), NOW)
    rows = document["categories"]
    assert len(rows) == MOST_CATEGORIES
    assert [row["masks"] for row in rows] == sorted(sizes, reverse=True)[:MOST_CATEGORIES]
    assert document["others"]["categories"] == 120 - MOST_CATEGORIES
    assert document["others"]["masks"] + sum(row["masks"] for row in rows) == len(codes)
    assert document["others"]["open"] + sum(row["open"] for row in rows) == document["masks"]["open"]


def test_the_forecast_rises_within_the_budget_and_is_about_what_comes(large, play):
    made, trees, right = large
    watched = Watched(Campaign(made, trees, CalibratedStrategy(budget=600)))
    told = []

    def order(pages):
        document = progress(watched.history, Terms(masks_wanted=1500), NOW)
        if document["forecast"]["end"]:
            told.append(document)
        return pages

    play(watched, right, order)
    end = int(watched.campaign.accepted().sum())
    assert told
    for document in told:
        forecast = document["forecast"]
        points = forecast["points"]
        assert forecast["basis"] == "evidence"
        assert points[0]["accepted"] == document["masks"]["accepted"]
        assert points[-1] == forecast["end"]
        assert points[-1]["questions"] <= 600 + 20
        assert points[-1]["accepted"] <= document["masks"]["found"] - document["masks"]["rejected"]
        for before, after in pairwise(points):
            assert before["questions"] <= after["questions"]
            assert before["accepted"] <= after["accepted"]
        # questions that wait for an answer say nothing of the masks
        assert document["masks"]["estimate"] is None or document["masks"]["estimate"] > 0.75
        assert (forecast["wanted"] is None) == (forecast["end"]["accepted"] < 1500)
    assert told[-1]["forecast"]["end"]["accepted"] == pytest.approx(end, rel=0.2)
    assert progress(watched.history, Terms(), NOW)["forecast"]["end"] is None  # nothing is left to ask


def test_without_proof_on_its_way_the_forecast_goes_on_as_of_late(small):
    made, trees, _ = small
    campaign = Campaign(made, trees, replace(RULE, budget=20))
    history = History(campaign)

    def take(event):
        history.take(event, BEGIN)
        campaign.apply(event)

    for _ in range(2):
        for event in (*campaign.decisions(), *campaign.next_round()):
            take(event)
        assert progress(history, Terms(), NOW)["forecast"]["basis"] is None
        break
    ids = made.ids.tolist()
    for number, rows in enumerate(([0, 2, 4, 6], [8, 10, 12, 14])):
        take(PageIssued(f"p{number}", 1, "x", tuple(ids[row] for row in rows), ("x/38",)))
        take(PageAnswered(f"p{number}", number, "now", 2, 4.0, ("yes",) * 4))
    forecast = progress(history, Terms(), NOW)["forecast"]
    room = 20 - campaign.questions_asked
    assert forecast["basis"] == "pace"
    assert forecast["end"]["questions"] == 8 + room
    assert forecast["end"]["accepted"] == 8 + room  # a mask a question: those judged right


def test_a_campaign_that_nobody_answered_has_a_document(small):
    made, trees, _ = small
    document = progress(History(Campaign(made, trees, RULE)), Terms(), NOW)
    assert document["masks"]["accepted"] == document["questions"]["answered"] == 0
    assert document["work"]["times_faster"] is None
    assert (document["annotators"], document["others"]) == ([], None)
    assert document["team"]["questions"] == 0
    assert [one["state"] for one in document["clusters"]["states"]] == ["open"]
    none = progress(History(Campaign(made, [], CalibratedStrategy())), Terms(), NOW)
    assert none["clusters"] == {"sizes": [], "states": []}
