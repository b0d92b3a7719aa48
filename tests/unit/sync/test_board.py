"""The board between the daemon's thread and the server's: when it is made anew, and that nothing of it changes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

import sync.board
from propagation.campaign import Campaign
from propagation.events import PageAnswered, PageIssued, PagePosted
from propagation.paper import PaperStrategy
from propagation.progress import History, Terms
from sync.board import EVERY, SHARE, Board, Place, described

PLACE = Place("http://labels", 1, "cells", 2, {"y": "Ypsilon"}, {7: "Ada Lovelace"})
NOW = datetime(2026, 11, 2, 8, tzinfo=UTC)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def history(table, tree):
    made = table([0.9] * 40, [0, 1] * 20, ("x", "y"))
    return History(Campaign(made, [tree(made, range(40), 0), tree(made, range(40), 1)], PaperStrategy()))


@pytest.fixture
def clock():
    return Clock()


def answer(history, number, by=7):
    rows = range(8 * number, 8 * number + 8, 2)
    questions = tuple(str(history.campaign.table.ids[row]) for row in rows)
    for event in (
        PageIssued(f"p{number}", 1, "x", questions, ("x/38",)),
        PagePosted(f"p{number}", 50 + number),
        PageAnswered(f"p{number}", number, "now", by, 6.0, ("yes",) * 4),
    ):
        history.take(event, NOW)
        history.campaign.apply(event)


def test_an_edition_stays_as_it_was_made(history, clock):
    board = Board(Terms(), clock)
    assert board.edition is None
    board.look(history, lambda: PLACE)
    first = board.edition
    body, version = first.body, first.version
    answer(history, 0)
    assert (first.body, first.version) == (body, version)
    assert b"0 pages wait" in first.page


def test_it_is_made_anew_where_the_log_has_grown_and_not_too_often(history, clock):
    board = Board(Terms(), clock)
    board.look(history, lambda: PLACE)
    first = board.edition
    answer(history, 0)
    clock.now += EVERY / 2
    board.look(history, lambda: PLACE)
    assert board.edition is first
    clock.now += EVERY
    board.look(history, lambda: PLACE)
    second = board.edition
    assert second.version != first.version
    assert second.document["questions"]["answered"] == 4
    clock.now += 10 * EVERY
    board.look(history, lambda: PLACE)
    assert board.edition is second


def test_a_slow_document_waits_the_longer_for_the_next(history, clock, monkeypatch):
    slow = described

    def taking(*args):
        clock.now += 3.0
        return slow(*args)

    monkeypatch.setattr(sync.board, "described", taking)
    board = Board(Terms(), clock)
    board.look(history, lambda: PLACE)
    first = board.edition
    answer(history, 0)
    clock.now += 3.0 / SHARE - 1
    board.look(history, lambda: PLACE)
    assert board.edition is first
    clock.now += 2
    board.look(history, lambda: PLACE)
    assert board.edition is not first


def test_a_board_that_fails_lets_the_campaign_go_on(history, clock, monkeypatch, caplog):
    board = Board(Terms(), clock)
    board.look(history, lambda: PLACE)
    first = board.edition
    monkeypatch.setattr(sync.board, "described", lambda *args: 1 / 0)
    answer(history, 0)
    clock.now += EVERY + 1
    board.look(history, lambda: PLACE)
    assert board.edition is first
    assert "could not be made" in caplog.text


def test_a_board_whose_campaign_goes_on_elsewhere_shows_nothing(history, clock):
    board = Board(Terms(), clock)
    board.look(history, lambda: PLACE)
    board.close()
    assert board.edition is None
    clock.now += EVERY + 1
    board.look(history, lambda: PLACE)
    assert board.edition is not None


def test_the_document_names_people_and_places(history):
    answer(history, 0)
    answer(history, 1, by=9)
    document = described(history, Terms(), PLACE, NOW)
    assert [row["name"] for row in document["annotators"]] == ["Ada Lovelace", "account 9"]
    assert document["title"] == "cells"
    assert set(document["links"]["categories"]) == {"x", "y"}
    largest = {c["cluster"]: c["links"] for state in document["clusters"]["states"] for c in state["largest"]}
    assert largest["x/38"] == {"card": "http://labels/projects/2/data?task=51", "page": largest["x/38"]["card"]}
    assert largest["y/38"] == {"card": None, "page": None}
    assert json.loads(json.dumps(document)) == document


def test_figures_lead_to_cards_of_the_cluster_board_where_there_is_one(history, monkeypatch):
    answer(history, 0)
    links = described(history, Terms(), PLACE, NOW)["links"]
    assert links["board"] is links["open"] is links["rejected"] is links["categories"]["x"]["open"] is None
    with_board = replace(PLACE, board=5)
    document = described(history, Terms(), with_board, NOW)
    links = document["links"]
    there = [links["open"], links["rejected"], *links["states"].values()]
    there += [links["categories"]["x"][name] for name in ("open", "rejected")]
    cards = [c["links"]["card"] for state in document["clusters"]["states"] for c in state["largest"]]
    assert all(url.startswith("http://labels/projects/5/data?tab=") for url in [*there, *cards])
    monkeypatch.setattr(sync.board, "MOST", 0)  # not all clusters have cards
    largest = [
        c for state in described(history, Terms(), with_board, NOW)["clusters"]["states"] for c in state["largest"]
    ]
    assert all(c["links"]["card"] == c["links"]["page"] for c in largest)
