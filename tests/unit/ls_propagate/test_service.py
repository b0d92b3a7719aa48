"""The daemon as a service: its turn, its server, its webhooks, and a store that fails for a while."""

import threading
import time
from contextlib import contextmanager

import httpx
import pytest
from pydantic import SecretStr

from ls_propagate import pipeline, service
from propagation.errors import ServerError, SettingsError, StoreError
from propagation.events import Commanded, CommandRefused, ImageTaken, PageAnswered
from sync.board import Board
from sync.monitor import Monitor
from sync.store import Store

SECRET = "tell nobody"
PATIENCE = 20


def waited_for(what):
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "it never comes"
        time.sleep(0.02)


class Life:
    """A daemon in a thread, with a store of its own as another process would have it."""

    def __init__(self, office, **settings):
        self.settings = office.changed(**{"poll_seconds": 0.05, **settings})
        self.store = Store(self.settings.store_url)
        self.monitor = Monitor()
        self.board = Board(self.settings.terms)
        self.stop, self.wake = threading.Event(), threading.Event()
        self.steps = []
        self.error = None
        self.thread = threading.Thread(target=self._run, args=[office.gateway])

    def _run(self, gateway):
        try:
            told = self.steps.append
            service.run(
                self.settings, self.store, gateway, self.monitor, self.stop, self.wake, told, board=self.board
            )
        except Exception as error:
            self.error = error

    def end(self):
        self.stop.set()
        self.wake.set()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        self.store.close()


@contextmanager
def running(office, **settings):
    life = Life(office, **settings)
    life.thread.start()
    try:
        yield life
    finally:
        life.end()


@pytest.fixture
def begun(office):
    office.prepared()
    return office


def answer_all(office):
    pages = pipeline.connection_of(office.store).pages
    for task in list(office.gateway.tasks(pages, ["annotations"])):
        if not task["annotations"]:
            office.gateway.submit(task["id"], [])


def test_a_second_daemon_waits_and_takes_over(begun):
    with running(begun) as first:
        waited_for(lambda: first.steps)
        with running(begun) as second:
            waited_for(lambda: "another daemon" in second.monitor.ready()[1])
            assert not second.steps
            assert first.monitor.ready()[0]
            first.end()
            waited_for(lambda: second.steps)
            assert second.monitor.ready()[0]
    assert (first.error, second.error) == (None, None)


def test_a_store_that_fails_for_a_while_is_waited_for_and_read_again(begun, monkeypatch):
    monkeypatch.setattr(service, "RETRY_SECONDS", 0.05)
    with running(begun) as life:
        waited_for(lambda: life.steps)
        append, failures = Store.append, iter([True, True])

        def failing(self, *args, **more):
            if next(failures, False):
                raise StoreError("the database is away")
            append(self, *args, **more)

        monkeypatch.setattr(Store, "append", failing)
        answer_all(begun)
        waited_for(lambda: any(isinstance(event, PageAnswered) for event in begun.store.events()))
        waited_for(life.monitor.ready)
        assert next(failures, None) is None
    assert life.error is None


def test_a_store_that_fails_from_the_first_is_told(begun, monkeypatch):
    def failing(*args):
        raise StoreError("the database is away")

    monkeypatch.setattr(Store, "timed", failing)
    with running(begun) as life:
        waited_for(lambda: life.error)
    assert "away" in str(life.error)


def test_a_log_that_another_has_written_to_is_read_anew(begun, monkeypatch):
    monkeypatch.setattr(service, "RETRY_SECONDS", 0.05)
    with running(begun) as life:
        waited_for(lambda: life.steps)
        begun.store.events()
        begun.store.append([ImageTaken(str(pipeline.load_table(begun.store, begun.settings).images[0]))])
        answer_all(begun)
        waited_for(lambda: any(step.questions for step in life.steps))
    assert life.error is None


def served(office, life, **settings):
    return service.serving(office.changed(daemon_port=0, **settings), life.store, life.monitor, life.wake.set)


def test_a_webhook_wakes_the_daemon_at_once(begun):
    given = {"webhook_url": "http://127.0.0.1:9", "webhook_secret": SecretStr(SECRET), "poll_seconds": 60.0}
    with running(begun, **given) as life, served(begun, life, **given) as port:
        waited_for(lambda: life.steps)
        connection = pipeline.connection_of(begun.store)
        for project in (connection.project, connection.pages):
            (hook,) = begun.gateway.webhooks(project)
            assert hook.url == "http://127.0.0.1:9/webhook"
            assert SECRET in hook.headers.values()
        answer_all(begun)
        number = len(life.steps)
        headers = {"X-Propagate-Secret": SECRET}
        answer = httpx.post(
            f"http://127.0.0.1:{port}/webhook", json={"action": "ANNOTATION_CREATED"}, headers=headers
        )
        assert answer.status_code == 200
        waited_for(lambda: any(step.questions for step in life.steps[number:]))
        waited_for(lambda: not begun.store.hints())
        told = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert "ls_propagate_questions_answered_total" in told
        assert SECRET not in told
    assert life.error is None


@pytest.mark.parametrize(
    ("settings", "lacking"),
    [
        ({"daemon_host": "0.0.0.0"}, "LS_PROPAGATE_DAEMON_PASSWORD and LS_PROPAGATE_WEBHOOK_SECRET"),
        ({"webhook_url": "http://127.0.0.1:9"}, "LS_PROPAGATE_WEBHOOK_SECRET"),
    ],
)
def test_without_its_secrets_it_does_not_serve(begun, settings, lacking):
    life = Life(begun)
    with pytest.raises(SettingsError, match=lacking), served(begun, life, **settings):
        pass
    life.store.close()


def test_the_board_follows_the_campaign_and_names_who_answered(begun, monkeypatch):
    monkeypatch.setattr("sync.board.EVERY", 0.0)
    monkeypatch.setattr("sync.board.SHARE", 1.0)
    with running(begun) as life:
        waited_for(lambda: life.steps)
        assert life.board.edition.document["questions"]["answered"] == 0
        answer_all(begun)
        waited_for(lambda: life.board.edition.document["annotators"])
        document = life.board.edition.document
        assert document["questions"]["answered"] > 0
        assert document["title"] == "cells"
        (annotator,) = document["annotators"]
        known = begun.gateway.people()
        assert annotator["name"] == known.get(annotator["annotator"], f"account {annotator['annotator']}")
    assert life.board.edition is None  # the campaign is nobody's now


def test_names_that_the_server_does_not_tell_are_numbers(begun, monkeypatch):
    def refusing(self):
        raise ServerError("the server stumbles")

    monkeypatch.setattr(type(begun.gateway), "people", refusing)
    monkeypatch.setattr("sync.board.EVERY", 0.0)
    monkeypatch.setattr("sync.board.SHARE", 1.0)
    with running(begun) as life:
        waited_for(lambda: life.steps)
        answer_all(begun)
        waited_for(lambda: life.board.edition and life.board.edition.document["annotators"])
        (annotator,) = life.board.edition.document["annotators"]
        assert annotator["name"] == f"account {annotator['annotator']}"
    assert life.error is None


def accepted_cluster(office):
    campaign = pipeline.open_campaign(office.store, office.settings)
    key = next(key for key, state in campaign.states().items() if state == "accepted")
    return campaign.cluster(*key)


def held(office):
    """The regions that the campaign has written."""
    tasks = office.gateway.tasks(office.project, ["annotations", "result"])
    return sum(len(made["result"]) for task in tasks for made in task["annotations"])


def test_a_running_daemon_obeys_and_says_what_it_does_not(begun):
    begun.finished()
    before = held(begun)
    with running(begun) as life:
        waited_for(lambda: life.steps)
        name = accepted_cluster(begun)
        wanted = pipeline.to_undo(begun.store, begun.settings, [name], None)
        wanted += pipeline.to_undo(begun.store, begun.settings, [name], None)
        done = service.command(begun.settings, begun.store, begun.gateway, wanted)
        assert [type(event) for event in done] == [Commanded, CommandRefused]
        assert [event.source for event in done] == [event.source for event in wanted]
        assert "undone already" in done[1].why
        waited_for(lambda: held(begun) < before)
        waited_for(lambda: not begun.store.hints())
    assert life.error is None


def test_without_a_daemon_commands_are_obeyed_and_written_at_once(begun):
    begun.finished()
    before, name = held(begun), accepted_cluster(begun)
    (done,) = service.command(
        begun.settings,
        begun.store,
        begun.gateway,
        pipeline.to_undo(begun.store, begun.settings, [name], None),
    )
    assert (type(done), done.target) == (Commanded, name)
    assert held(begun) < before
    with running(begun) as life:  # which finds the command in the inbox
        waited_for(lambda: not begun.store.hints())
    assert life.error is None
    assert sum(isinstance(event, Commanded) for event in begun.store.events()) == 1


def test_what_a_busy_daemon_has_not_obeyed_yet_waits_for_it(begun):
    begun.finished()
    wanted = pipeline.to_undo(begun.store, begun.settings, [accepted_cluster(begun)], None)
    busy = Store(begun.settings.store_url)
    assert busy.lock().acquire()
    try:
        assert service.command(begun.settings, begun.store, begun.gateway, wanted, patience=0.1) == []
    finally:
        busy.close()
    with running(begun):
        waited_for(lambda: any(isinstance(event, Commanded) for event in begun.store.events()))
