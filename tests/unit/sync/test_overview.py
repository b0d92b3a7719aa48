"""What is shown in the source project is brought up to date seldom, beside what people have there."""

from __future__ import annotations

import logging
import re

import pytest

from propagation.errors import Refused
from propagation.progress import History, Terms
from sync.overview import EVERY, Overview

PICTURE = re.compile(r'<img src="([^"]+)" alt="([^"]+)" width="640">')


class Desk:
    """An overview of a world, with a clock of its own."""

    def __init__(self, world):
        self.now = 0.0
        self.world = world
        self.gateway = world.gateway
        self.project = world.source.project
        self.daemon = world.daemon()
        self.history = History(self.daemon.campaign)
        crops = world.verify.crops
        self.overview = Overview(
            self.gateway, self.daemon.store, self.project, crops, "image", "propagate-1", Terms(), lambda: self.now
        )

    def look(self, finished=False, later=EVERY):
        self.now += later
        self.overview.look(self.history, finished)

    @property
    def instructions(self):
        return self.gateway.project(self.project).instructions

    def pictures(self):
        return PICTURE.findall(self.instructions)

    def files(self):
        return [url for url in self.gateway.files if "propagate-progress" in url]

    def titles(self):
        return [tab["title"] for tab in self.gateway.tabs(self.project).values()]


@pytest.fixture
def desk(world):
    return Desk(world)


def test_the_picture_comes_below_the_teams_own_words(desk):
    desk.gateway.set_instructions(desk.project, "<b>Draw tightly.</b>")
    desk.overview.make(desk.history)
    assert desk.instructions.startswith("<b>Draw tightly.</b><p><img ")
    ((url, told),) = desk.pictures()
    assert told.startswith("0 of 40 masks accepted; 0 questions answered; ")
    assert desk.gateway.files[url].startswith(b"<svg")
    before = desk.instructions
    desk.overview.make(desk.history)
    assert desk.instructions == before


def test_it_shows_what_is_accepted_now_and_its_old_file_is_deleted(desk):
    desk.overview.make(desk.history)
    ((before, _),) = desk.pictures()
    desk.world.run(desk.daemon)
    desk.gateway.set_instructions(desk.project, f"New rules. {desk.instructions} And more.")
    desk.look()
    ((url, told),) = desk.pictures()
    assert told.startswith(f"{desk.daemon.campaign.accepted().sum()} of 40 masks accepted")
    assert desk.instructions.startswith("New rules. <p>")
    assert desk.instructions.endswith("</p> And more.")
    assert desk.files() == [url] != [before]


def test_what_somebody_writes_while_the_picture_is_drawn_stays(desk, monkeypatch):
    desk.overview.make(desk.history)
    desk.world.run(desk.daemon)
    upload = desk.gateway.upload_one

    def slow(*given):
        desk.gateway.set_instructions(desk.project, f"Meanwhile. {desk.instructions}")
        return upload(*given)

    monkeypatch.setattr(desk.gateway, "upload_one", slow)
    desk.look()
    assert desk.instructions.startswith("Meanwhile. <p>")
    assert not desk.pictures()[0][1].startswith("0 of")


def test_what_somebody_takes_away_stays_away_until_it_is_made_again(desk):
    desk.overview.make(desk.history)
    assert desk.titles() == ["Default", "Propagated", "Partly decided", "Undecided"]
    desk.gateway.set_instructions(desk.project, "Plain.")
    gone = next(number for number, tab in desk.gateway.tabs(desk.project).items() if tab["title"] == "Undecided")
    del desk.gateway._tabs[gone]
    desk.world.run(desk.daemon)
    desk.look(finished=True)
    assert desk.instructions == "Plain."
    assert desk.titles() == ["Default", "Propagated", "Partly decided"]
    desk.overview.make(desk.history)
    assert desk.pictures()
    assert desk.titles() == ["Default", "Propagated", "Partly decided", "Undecided"]


def test_the_server_is_asked_every_now_and_then_and_in_the_end(desk):
    desk.overview.make(desk.history)

    def asked(**how):
        desk.gateway.calls.clear()
        desk.look(**how)
        return desk.gateway.calls

    assert asked() == []  # nothing is new, nothing is changed
    desk.world.run(desk.daemon)
    assert asked(later=EVERY / 2) == []
    assert "upload" in asked(later=EVERY / 2)
    campaign = desk.daemon.campaign
    campaign.taken[campaign.table.image[campaign.accepted()][0]] = True
    assert asked(later=1) == []
    assert "upload" in asked(later=1, finished=True)
    assert asked(later=1, finished=True) == []


def test_a_server_that_refuses_is_said_once_and_keeps_nothing_up(desk, caplog, monkeypatch):
    desk.overview.make(desk.history)

    def refuse(*given):
        raise Refused("the account may not change it")

    for name in ("tabs", "set_instructions"):
        monkeypatch.setattr(desk.gateway, name, refuse)
    desk.world.run(desk.daemon)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            desk.look()
    said = [record.getMessage() for record in caplog.records if record.name == "sync.overview"]
    assert len(said) == 2
    assert all("may not change it" in line for line in said)
    monkeypatch.undo()
    desk.look()
    assert not desk.pictures()[0][1].startswith("0 of")


def test_an_answer_of_another_form_stops_nothing(desk, caplog, monkeypatch):
    desk.overview.make(desk.history)
    monkeypatch.setattr("plugin.board.render.picture", lambda document: 1 / 0)
    desk.world.run(desk.daemon)
    desk.look()
    assert "ZeroDivisionError" in caplog.text
