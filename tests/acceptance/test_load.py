"""Eight people annotate on the real server while thousands of images are imported and written back."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ls_propagate import pipeline, service
from ls_propagate.demo.server import Server
from ls_propagate.settings import Settings
from plugin.label_studio.gateway import Gateway
from plugin.label_studio.regions import mask_of
from propagation.events import PageAnswered
from sync.daemon import Step
from sync.monitor import Monitor
from sync.server import SECRET_HEADER
from tests.faults import load
from tests.faults.invariants import check
from tests.faults.load import SIZE, Calls, Did, People, Receiver, Told, Writing
from tests.faults.sites import scene
from tests.faults.worlds import SOAK

SECRET = "a-secret-of-the-load-test"
PATIENCE = 900.0 if SOAK else 120.0  # seconds for what takes its time
LONGEST_SUBMIT_MS = 2000.0
LONGEST_WEBHOOK_MS = 50.0
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


def until(holds: Callable[[], bool], running: Future[Any], what: str) -> float:
    """Wait until something holds that a thread works at; the seconds that took."""
    began = time.monotonic()
    while not holds():
        if running.done():
            running.result()
        assert time.monotonic() - began < PATIENCE, what
        time.sleep(0.5)
    return time.monotonic() - began


def stretch(name: str, work: Callable[[], Any]) -> Did:
    """Do something; when, and for how long."""
    began = time.monotonic()
    work()
    return Did(name, began, time.monotonic() - began)


def interleaved(writing: Writing, written: Future[Any]) -> list[Did]:
    """Stretches with our writes and without, in turn, until time is up and all is written."""
    found: list[Did] = []
    began = time.monotonic()

    def write() -> None:
        writing.go_on()
        wait_for([written], SIZE.stretch)

    while not written.done() or time.monotonic() - began < SIZE.seconds:
        assert time.monotonic() - began < SIZE.seconds + PATIENCE, "the images are never written"
        if not written.done():
            wrote = stretch("with our writes", write)
            with writing.paused():
                # a piece of work that had begun was ended first
                found.append(Did(wrote.name, wrote.began, time.monotonic() - wrote.began))
                found.append(stretch("without", lambda: time.sleep(SIZE.stretch)))
        else:
            found.append(stretch("without", lambda: time.sleep(SIZE.stretch)))
    return found


def latencies(mirror: Path) -> list[Did]:
    """How long after its submit each verdict was in the event log, by the clocks of server and log."""
    found = []
    for line in mirror.read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "PageAnswered":
            began = datetime.fromisoformat(event["body"]["version"]).timestamp()
            found.append(Did("verdict", began, datetime.fromisoformat(event["at"]).timestamp() - began))
    return found


def all_is_written(gateway: Gateway, writing: Writing) -> None:
    """Each image holds one annotation, made of one prediction; some are read, and hold their masks."""
    counted = list(gateway.tasks(writing.project, ["total_annotations", "total_predictions"]))
    assert len(counted) == len(writing.tasks) == SIZE.images
    assert {(task["total_annotations"], task["total_predictions"]) for task in counted} == {(1, 1)}
    image_of = {task.task: task.image for task in writing.tasks}
    table = writing.table
    rows = dict(zip(table.images.tolist(), table.rows_by_image(), strict=True))
    some = random.Random(0).sample(sorted(image_of), SAMPLE)
    for task in gateway.tasks(writing.project, ["annotations", "result"], ids=some):
        (annotation,) = task["annotations"]
        held = sorted(str(mask_of(region)) for region in annotation["result"])
        assert held == sorted(table.ids[rows[image_of[task["id"]]]].tolist())


def figures(
    stretches: list[Did], told: Told, receiver: Receiver, writing: Writing, lags: list[Did], calls: list[Calls]
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """What everybody waited for, and what was done meanwhile."""
    kinds = dict.fromkeys(one.name for one in stretches)
    during = {kind: [one for one in stretches if one.name == kind] for kind in kinds}
    times = {f"submit, {kind}": load.spread(load.within(told.submits, during[kind])) for kind in kinds}
    times["webhook, at the handler"] = load.spread(receiver.handled)
    times["webhook, at its sender"] = load.spread(told.probes)
    times["submit to event log"] = load.spread(lags)
    rates: dict[str, Any] = {}
    for kind in kinds:
        seconds = sum(one.seconds for one in during[kind])
        rates[f"submits a second, {kind}"] = len(load.within(told.submits, during[kind])) / seconds
    for name in ("import", "write"):
        pieces = [piece for piece in writing.pieces if piece.name == name]
        number = sum(piece.number for piece in pieces)
        rates[f"{name}: images"] = number
        rates[f"{name}: images a second"] = number / sum(piece.seconds for piece in pieces)
    rates["submits"] = len(told.submits)
    rates["webhooks of Label Studio"] = len(receiver.sent)
    rates["asked for a page in vain"] = told.idle
    rates["calls of the daemon"], rates["calls of the writer"] = (each.figures() for each in calls)
    rates["slow submits"] = load.slow(told.submits, [call for each in calls for call in each.made])
    rates["pieces"] = [[one.name, round(one.seconds, 2), one.number] for one in writing.pieces]
    return times, rates


def test_nobody_waits_long_and_nothing_is_lost_while_thousands_of_images_are_written(
    label_studio: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs, steps = Calls(), Calls(), list[Step]()
    wake, stop = threading.Event(), threading.Event()
    monitor = Monitor()

    def halt() -> None:
        stop.set()
        wake.set()

    settings = Settings(
        data_dir=tmp_path, strategy=load.strategy(SIZE), label_studio_url=label_studio.url,
        label_studio_api_key=label_studio.token, webhook_secret=SECRET, write_every=10**9,
    )  # fmt: skip
    with ExitStack() as stack:
        store = stack.enter_context(pipeline.open_store(settings))
        reader = stack.enter_context(pipeline.open_store(settings))
        gateway = stack.enter_context(pipeline.open_gateway(settings, ours))
        receiver = stack.enter_context(closing(Receiver(store, monitor, wake.set, SECRET)))
        address = f"http://127.0.0.1:{receiver.port}"
        settings = settings.model_copy(update={"webhook_url": address})
        connection = load.begin_asking(gateway, store, settings, SIZE.asked)
        daemon = stack.enter_context(
            beside(service.run, settings, store, gateway, monitor, stop, wake, steps.append, end=halt)
        )
        writers = stack.enter_context(pipeline.open_gateway(settings, theirs))
        writing = Writing(writers, tmp_path, SIZE.images)
        stack.callback(writing.store.close)
        writers.ensure_webhook(writing.project, f"{address}/webhook", {SECRET_HEADER: SECRET})
        until(lambda: bool(steps) and steps[-1].waiting >= SIZE.pages, daemon, "the pages are never posted")
        T0=time.monotonic()
        people = stack.enter_context(closing(People(label_studio, connection.pages, address, SECRET)))
        print("people", time.monotonic()-T0)
        written = stack.enter_context(beside(writing.run, end=writing.stop))
        until(lambda: receiver.payload is not None, daemon, "no webhook ever comes")
        people.probe(receiver.payload or b"")

        stretches = interleaved(writing, written)
        with receiver.away():
            away = stretch("without the receiver", lambda: time.sleep(SIZE.down))
        stretches += [away, stretch("after that", lambda: time.sleep(SIZE.stretch / 2))]
        told = people.end()

        first, further = load.answers(gateway, connection.pages)

        def read() -> bool:
            return set(first) <= set(load.logged(reader.stream()))

        until(read, daemon, "verdicts are lost")
        halt()
        daemon.result()

        times, rates = figures(
            stretches, told, receiver, writing, latencies(settings.mirror_file), [ours, theirs]
        )
        rates["steps of the daemon"] = len(steps)
        with capsys.disabled():
            load.show("load", rates, times)
        missed = [one for one in told.submits if away.began < one.ended < away.ended]
        heard = [sent for sent in receiver.sent if away.began < sent < away.ended]
        log = load.logged(reader.stream())
        with capsys.disabled():
            print(len(first), len(further), len(missed), len(heard), told.failures[:3], len(told.failures))
        assert {one.number for one in told.submits} == {one.annotation for one in [*first, *further]}
        assert [log[one] for one in first] == [1] * len(first)
        assert set(log) <= set(first) | set(further)
        all_is_written(writers, writing)
        check(scene(SimpleNamespace(store=reader, gateway=gateway, settings=settings, connection=connection)), settled=False)
