"""Eight people annotate on the real server while thousands of images are imported and written to."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from ls_propagate import pipeline, service
from ls_propagate.demo.postgres import Postgres
from ls_propagate.demo.server import Server, label_studio
from ls_propagate.settings import Settings
from plugin.label_studio.gateway import Gateway
from plugin.label_studio.regions import mask_of
from sync.daemon import Step
from sync.monitor import Monitor
from sync.server import SECRET_HEADER
from tests.faults import load
from tests.faults.invariants import check
from tests.faults.load import SIZE, Answer, Calls, Did, People, Receiver, Told, Writing
from tests.faults.sites import scene
from tests.faults.worlds import SOAK

SECRET = "a-secret-of-the-load-test"
PATIENCE = 3600.0 if SOAK else 300.0  # seconds for what takes its time
LONGEST_SUBMIT = 2000.0  # milliseconds, of 99 in 100
LONGEST_WEBHOOK = 50.0
GIVEN_UP = 1000.0  # by Label Studio
SAMPLE = 200  # images whose annotations are read


@contextmanager
def beside(work: Callable[..., Any], *arguments: Any, end: Callable[[], None]) -> Iterator[Future[Any]]:
    """Work in a thread beside the test, which ``end`` ends; its error is raised."""
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(work, *arguments)
        try:
            yield running
        finally:
            end()
        running.result()


def until(holds: Callable[[], bool], running: Future[Any], what: str) -> None:
    """Wait until something holds that a thread works at."""
    began = time.monotonic()
    while not holds():
        if running.done():
            running.result()
        assert time.monotonic() - began < PATIENCE, what
        time.sleep(0.5)


def pause(name: str, seconds: float) -> Did:
    """Wait; when that was."""
    began = time.monotonic()
    time.sleep(seconds)
    return Did(name, began, seconds)


def interleaved(writing: Writing, written: Future[Any]) -> list[Did]:
    """Let images be written, now and then, until all are and time is up; the stretches in which none were."""
    quiet: list[Did] = []
    began = time.monotonic()
    while not written.done() or time.monotonic() - began < SIZE.seconds:
        assert time.monotonic() - began < SIZE.seconds + PATIENCE, "the images are never written"
        writing.go_on()
        wait_for([written], SIZE.stretch)
        with writing.paused():
            quiet.append(pause("quiet", SIZE.quiet))
    return quiet


def lags(mirror: Path) -> list[Did]:
    """How long after it was given each answer was in the event log, by the clocks of server and log."""
    found = []
    for line in mirror.read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "PageAnswered":
            began = datetime.fromisoformat(event["body"]["version"]).timestamp()
            found.append(Did("answer", began, datetime.fromisoformat(event["at"]).timestamp() - began))
    return found


def check_written(gateway: Gateway, writing: Writing) -> None:
    """Some images hold their masks."""
    table, image_of = writing.table, {task.task: task.image for task in writing.tasks}
    rows = dict(zip(table.images.tolist(), table.rows_by_image(), strict=True))
    some = random.Random(0).sample(sorted(image_of), SAMPLE)
    for task in gateway.tasks(writing.project, ["annotations", "result"], ids=some):
        (annotation,) = task["annotations"]
        held = sorted(str(mask_of(region)) for region in annotation["result"])
        assert held == sorted(table.ids[rows[image_of[task["id"]]]].tolist())


@dataclass(frozen=True)
class Run:
    """What was seen under load.

    first, further: the first answer of each page, and those after it; log: the answers in the event log, and how
    often each is; lags: of these, behind the answers; quiet: when no image was written; images: of each, how many
    annotations it has, and how many the server counts; imported: each thousand tasks; away: when there was no
    receiver.
    """

    settings: Settings
    connection: pipeline.Connection

    told: Told
    first: list[Answer]
    further: list[Answer]
    log: dict[Answer, int]
    lags: list[Did]
    writing: Writing
    quiet: list[Did]
    imported: list[Did]
    away: Did
    receiver: Receiver
    calls: dict[str, Calls]
    steps: list[Step]
    images: list[tuple[int, int]]

    def times(self) -> dict[str, dict[str, float]]:
        """How long everybody waited."""
        told = self.told
        busy = set(load.within(told.submits, self.writing.pieces))
        return {
            "submit, while images are written": load.spread(busy),
            "submit, in between": load.spread(set(load.within(told.submits, self.quiet)) - busy),
            "submit, while tasks are imported": load.spread(load.within(told.submits, self.imported)),
            "submit, without the receiver": load.spread(self.missed()),
            "webhook, at the handler": load.spread(self.receiver.handled),
            "webhook, at its sender": load.spread(told.probes),
            "answer to event log": load.spread(self.lags),
        }

    def missed(self) -> list[Did]:
        """The submits of which the receiver was not told."""
        return load.within(self.told.submits, [self.away])

    def heard(self) -> list[float]:
        """When webhooks came where there was no receiver."""
        return [sent for sent in self.receiver.sent if self.away.began < sent < self.away.ended]

    def figures(self) -> dict[str, Any]:
        """All else that was measured."""
        submits, pieces = self.told.submits, self.writing.pieces
        last = max(submit.ended for submit in submits)
        meanwhile = [piece for piece in self.imported if piece.ended < last]
        return {
            "submits": len(submits),
            "submits a second": rate(len(submits), last - min(submit.began for submit in submits)),
            "second answers of a page": len(self.further),
            "asked for a page in vain": self.told.idle,
            "webhooks of Label Studio": len(self.receiver.sent),
            "submits without the receiver": len(self.missed()),
            "images written": sum(piece.number for piece in pieces),
            "images written a second": rate(sum(p.number for p in pieces), sum(p.seconds for p in pieces)),
            "tasks imported": sum(piece.number for piece in self.imported),
            "tasks imported under load": sum(piece.number for piece in meanwhile),
            "tasks imported a second, under load": rate(
                sum(p.number for p in meanwhile), sum(p.seconds for p in meanwhile)
            ),
            "images whose annotations the server miscounts": sum(there != told for there, told in self.images),
            "load average": [round(each, 1) for each in os.getloadavg()],
            "passes of the daemon": len(self.steps),
            "milliseconds of our calls": {who: calls.figures() for who, calls in self.calls.items()},
            "slowest submits": load.slow(submits, [call for each in self.calls.values() for call in each.made]),
        }


def rate(number: float, seconds: float) -> float:
    """How many a second."""
    return round(number / seconds, 1) if seconds else 0.0


def run(server: Server, folder: Path) -> Run:
    """The daemon with its receiver at work, eight people, and one job of ours after the other beside them."""
    calls = {who: Calls() for who in ("daemon", "writer", "importer")}
    steps: list[Step] = []
    wake, stop = threading.Event(), threading.Event()
    monitor = Monitor()

    def halt() -> None:
        stop.set()
        wake.set()

    settings = Settings(
        data_dir=folder, strategy=load.strategy(SIZE), label_studio_url=server.url,
        label_studio_api_key=server.token, webhook_secret=SECRET, write_every=10**9,
        gold_share=0, least_seconds=0, overlap=0,
    )  # fmt: skip
    with ExitStack() as stack:
        store, reader = (stack.enter_context(pipeline.open_store(settings)) for _ in range(2))
        gateway, writer, importer = (
            stack.enter_context(pipeline.open_gateway(settings, observe)) for observe in calls.values()
        )
        receiver = stack.enter_context(closing(Receiver(store, monitor, wake.set, SECRET)))
        address = f"http://127.0.0.1:{receiver.port}"
        settings = settings.model_copy(update={"webhook_url": address})
        connection = load.begin_asking(gateway, store, settings, SIZE.asked)
        people = stack.enter_context(closing(People(server, connection.pages, address, SECRET)))
        daemon = stack.enter_context(
            beside(service.run, settings, store, gateway, monitor, stop, wake, steps.append, end=halt)
        )
        writing = stack.enter_context(closing(Writing(writer, folder, SIZE.written)))
        writer.ensure_webhook(writing.project, f"{address}/webhook", {SECRET_HEADER: SECRET})
        until(lambda: bool(steps) and steps[-1].waiting >= SIZE.pages, daemon, "the pages are never posted")

        people.begin()
        written = stack.enter_context(beside(writing.run, end=writing.stop))
        until(lambda: receiver.payload is not None, daemon, "no webhook ever comes")
        people.probe(receiver.payload or b"")
        quiet = interleaved(writing, written)
        imported: list[Did] = []
        importing = stack.enter_context(
            beside(load.import_images, importer, "imported", SIZE.imported, imported.append, end=lambda: None)
        )
        wait_for([importing], SIZE.import_seconds)
        with receiver.away():
            began = time.monotonic()
            time.sleep(SIZE.down)
            before = people.submits  # who have answered all pages get further ones, also without webhooks
            until(lambda: people.submits > before, daemon, "nobody submits without the receiver")
            away = Did("away", began, time.monotonic() - began)
        time.sleep(SIZE.quiet)
        told = people.end()

        wait_for([importing])
        first, further = load.answers(gateway, connection.pages)
        until(lambda: set(first) <= set(load.logged(reader.stream())), daemon, "answers are lost")
        halt()
        daemon.result()
        log = load.logged(reader.stream())
        fields = ["annotations", "parent_prediction", "total_annotations"]
        images = [(len(t["annotations"]), t["total_annotations"]) for t in writer.tasks(writing.project, fields)]
        return Run(
            settings, connection, told, first, further, log, lags(settings.mirror_file), writing, quiet, imported,
            away, receiver, calls, steps, images,
        )  # fmt: skip


@pytest.fixture(params=["sqlite", "postgresql"] if SOAK else ["sqlite"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A Label Studio, by the database that it has."""
    if request.param == "sqlite":
        yield request.getfixturevalue("label_studio")
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    database = sa.make_url(postgres.create("label_studio"))
    with label_studio(tmp_path / "label-studio", on_postgres(database)) as started:
        yield started


def on_postgres(database: sa.URL) -> dict[str, str]:
    """The environment by which Label Studio takes a database of PostgreSQL."""
    return {
        "DJANGO_DB": "default",
        "POSTGRE_NAME": str(database.database),
        "POSTGRE_USER": str(database.username),
        "POSTGRE_PASSWORD": str(database.password),
        "POSTGRE_HOST": str(database.host),
        "POSTGRE_PORT": str(database.port),
    }


def test_nobody_waits_long_and_nothing_is_lost_while_thousands_of_images_are_written_to(
    server: Server, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = run(server, tmp_path / "campaign")
    times = seen.times()
    with capsys.disabled():
        load.show(request.node.callspec.id, times, seen.figures())
    with pipeline.open_store(seen.settings) as store, pipeline.open_gateway(seen.settings) as gateway:
        site = SimpleNamespace(store=store, gateway=gateway, settings=seen.settings, connection=seen.connection)
        check(scene(site), settled=False)
        check_written(gateway, seen.writing)
    assert [there for there, _ in seen.images] == [1] * SIZE.written
    assert seen.told.failures == []
    assert {submit.number for submit in seen.told.submits} == {a.annotation for a in seen.first + seen.further}
    assert [answer for answer in seen.first if seen.log[answer] != 1] == []
    assert max(seen.log.values()) == 1
    assert set(seen.log) <= {*seen.first, *seen.further}
    assert seen.missed()
    assert seen.heard() == []
    assert {handled.number for handled in seen.receiver.handled} == {200}
    if SOAK:  # a tail is seen in many samples only
        assert times["submit, while images are written"]["99 %"] <= LONGEST_SUBMIT
        assert times["submit, while tasks are imported"]["99 %"] <= LONGEST_SUBMIT
        assert times["webhook, at the handler"]["99 %"] < LONGEST_WEBHOOK
        assert times["webhook, at its sender"]["99 %"] < GIVEN_UP
