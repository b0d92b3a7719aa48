"""A Label Studio under load: annotators who never pause, bulk writes beside them, and how long everybody waits."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
from pycocotools import mask as coco
from rich.console import Console
from rich.table import Table

from ls_propagate import clustering, pipeline
from ls_propagate.demo.annotator import Annotator
from ls_propagate.demo.run import labeling_config
from ls_propagate.demo.server import Server, new_user
from ls_propagate.settings import Settings
from plugin import web
from plugin.label_studio.gateway import Gateway, chunks
from plugin.label_studio.images import image_key
from plugin.label_studio.labeling import read_labeling
from propagation.artefacts import write_artefact
from propagation.campaign import Campaign
from propagation.errors import ServerError
from propagation.events import CampaignStarted, Decided, Event, PageAnswered
from propagation.masks import Detections, MaskTable, build_table, write_table
from propagation.paper import PaperStrategy
from propagation.rle import Rle
from propagation.tree import ClusterTree, tree_from_linkage, write_trees
from sync.monitor import Monitor
from sync.server import SECRET_HEADER, create_app, serve
from sync.source import Source
from sync.store import SourceTask, Store
from sync.verdicts import FIELDS
from sync.writeback import write_back
from tests.faults.worlds import SOAK

#: The folder that figures are written to, as JSON.
REPORT = os.environ.get("LS_PROPAGATE_REPORT")
PEOPLE = 8
PROBE_SECONDS = 0.1  # between two webhooks that the probe sends
NOBODY_SECONDS = 0.2  # that an annotator waits where there is no page
SLOW_SECONDS = 1.0  # a submit that takes longer is listed, with our calls that ran meanwhile
CATEGORY = "cell"
SIDE = 256  # pixels of an image
ACROSS = 32  # masks to be asked, across an image and down
CLUSTER = 20  # masks


@dataclass(frozen=True)
class Size:
    """How much is done.

    written: images that are written to, in ``seconds`` at least; ``stretch`` seconds of that and ``quiet`` seconds
    without it take turns. imported: tasks, and import_seconds that people annotate meanwhile at most. down:
    seconds without the receiver at least. pages: given to the people in the beginning, and again when all are
    answered, with ``questions`` each, about masks of ``asked`` images.
    """

    written: int
    seconds: float
    stretch: float
    quiet: float
    imported: int
    import_seconds: float
    down: float
    pages: int
    questions: int
    asked: int


SIZE = (
    Size(20_000, 540, 20, 10, 20_000, 300, 60, pages=8_000, questions=2, asked=20)
    if SOAK
    else Size(300, 16, 4, 4, 200, 3, 5, pages=150, questions=2, asked=1)
)


@dataclass(frozen=True)
class Did:
    """Something that took its time: when it began, by the monotonic clock; seconds; number: what came of it."""

    name: str
    began: float
    seconds: float
    number: int = 0

    @property
    def ended(self) -> float:
        return self.began + self.seconds


# the people


class Truth(dict[str, bool]):
    """Mask id to whether it is right: three of four are."""

    def __missing__(self, mask: str) -> bool:
        return int(mask[0], 16) >= 4


@dataclass(frozen=True)
class Told:
    """What the people tell in the end: their submits, the probe's webhooks, and what failed.

    number: of an annotation; idle: how often an annotator found no page.
    """

    submits: list[Did]
    probes: list[Did]
    failures: list[str]
    idle: int


_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([__name__])


class People:
    """Annotators who answer page after page, and a probe that sends webhooks, in a process of their own.

    Each annotator has an account and a session.
    """

    def __init__(self, server: Server, project: int, receiver: str, secret: str) -> None:
        self._stop = _forks.Event()
        self._pipe, theirs = _forks.Pipe()
        self._submits = _forks.Value("i", 0)
        arguments = server, project, f"{receiver}/webhook?probe", secret, self._stop, theirs, self._submits
        self._process = _forks.Process(target=_people, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def begin(self) -> None:
        """Let them annotate, as soon as all have their accounts."""
        assert self._pipe.recv() == "ready"
        self._pipe.send(b"")

    @property
    def submits(self) -> int:
        """How many there have been so far."""
        return int(self._submits.value)

    def probe(self, payload: bytes) -> None:
        """Let the probe send this from now on."""
        self._pipe.send(payload)

    def end(self) -> Told:
        """Let everybody finish what they do; what they tell."""
        self._stop.set()
        told: Told = self._pipe.recv()
        self._process.join()
        return told

    def close(self) -> None:
        """Be done with them, whatever they do."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _people(
    server: Server, project: int, webhook: str, secret: str, stop: Any, pipe: Connection, submits: Any
) -> None:
    told = Told([], [], [], 0)
    idle: list[int] = []
    with ThreadPoolExecutor(PEOPLE + 1) as threads:
        clients = list(threads.map(lambda place: _account(server, place, told, submits), range(PEOPLE)))
        pipe.send("ready")
        pipe.recv()
        working = [threads.submit(_answer, client, project, stop, told) for client in clients]
        probing = threads.submit(_probe, webhook, secret, stop, pipe, told)
        idle = [one.result() for one in working]
        probing.result()
    for client in clients:
        client.close()
    pipe.send(Told(told.submits, told.probes, told.failures, sum(idle)))


def _account(server: Server, place: int, told: Told, submits: Any) -> httpx.Client:
    client = new_user(server, f"load-{place}@example.com", "look-closely-1")

    def note(answer: httpx.Response) -> None:
        if answer.request.method == "POST" and answer.is_success:
            number = json.loads(answer.read())["id"]
            seconds = answer.elapsed.total_seconds()
            told.submits.append(Did("submit", time.monotonic() - seconds, seconds, number))
            with submits:
                submits.value += 1

    client.event_hooks["response"].append(note)
    return client


def _answer(client: httpx.Client, project: int, stop: Any, told: Told) -> int:
    annotator, idle = Annotator(client, project, Truth()), 0
    while not stop.is_set():
        try:
            if not annotator.answer_next():
                idle += 1
                stop.wait(NOBODY_SECONDS)
        except (ServerError, httpx.HTTPError) as error:
            told.failures.append(f"{type(error).__name__}: {error}")
    return idle


def _probe(webhook: str, secret: str, stop: Any, pipe: Connection, told: Told) -> None:
    while not pipe.poll(0.2):
        if stop.is_set():
            return
    payload: bytes = pipe.recv()
    headers = {SECRET_HEADER: secret, "Content-Type": "application/json"}
    with httpx.Client(headers=headers, timeout=60) as client:
        while not stop.wait(PROBE_SECONDS):
            began = time.monotonic()
            try:
                client.post(webhook, content=payload).raise_for_status()
            except httpx.TransportError:
                continue  # the receiver is away
            told.probes.append(Did("probe", began, time.monotonic() - began))


# the receiver of webhooks


class Receiver:
    """The daemon's server, each request timed at its application.

    handled: the webhooks, those of the probe included; number: the status of the answer. sent: when Label Studio
    sent one. payload: the body of the first of these.
    """

    def __init__(self, store: Store, monitor: Monitor, wake: Callable[[], None], secret: str) -> None:
        self.handled: list[Did] = []
        self.sent: list[float] = []
        self.payload: bytes | None = None
        self._app = create_app(store, monitor, wake, secret, None)
        self._inner = self._app.wsgi_app
        self._app.wsgi_app = self._timed  # type: ignore[method-assign]
        self._served = serve(self._app, "127.0.0.1", 0)
        self.port = self._served.port

    def _timed(self, environ: Any, start: Any) -> Any:
        if environ["QUERY_STRING"] != "probe":
            self.sent.append(time.monotonic())
            if self.payload is None:
                self.payload = environ["wsgi.input"].read()
                environ["wsgi.input"] = io.BytesIO(self.payload)
        statuses: list[int] = []

        def begin(status: str, *more: Any) -> Any:
            statuses.append(int(status.split()[0]))
            return start(status, *more)

        began = time.monotonic()
        with closing(self._inner(environ, begin)) as answer:
            body = list(answer)
        self.handled.append(Did(environ["PATH_INFO"], began, time.monotonic() - began, statuses[0]))
        return body

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody listens at its port."""
        self._served.close()
        try:
            yield
        finally:
            self._served: web.Served = serve(self._app, "127.0.0.1", self.port)

    def close(self) -> None:
        """Stop serving."""
        self._served.close()


# what is asked, and what is written


def begin_asking(gateway: Gateway, store: Store, settings: Settings, images: int) -> pipeline.Connection:
    """A campaign that asks about each of many small masks, whose clusters are neighbours in one image."""
    project = gateway.create_project("Load: asked", labeling_config([CATEGORY]), "", {}).id
    urls = gateway.upload(project, [(f"{place}.png", photo(place)) for place in range(images)])
    numbers = gateway.import_tasks(project, [{"data": {"image": url}} for url in urls])
    store.set_source_tasks([SourceTask(image_key(u), n, u) for u, n in zip(urls, numbers, strict=True)])
    connection = pipeline.connect(gateway, store, str(project))
    table = table_of([image_key(url) for url in urls], squares())
    masks = write_artefact(settings.artefacts, "masks", {}, [], lambda folder: write_table(table, folder))
    tree = rows_of_clusters(table)
    trees = write_artefact(
        settings.artefacts, "trees", {}, [masks.fingerprint], lambda folder: write_trees([tree], folder)
    )
    store.remember(table=masks.folder.name)
    store.append([clustering.started_by(connection, settings.strategy, trees, None)], trees=trees.folder.name)
    return connection


def strategy(size: Size) -> PaperStrategy:
    """Asks about all masks of cluster after cluster, many in a round."""
    return PaperStrategy(
        search="threshold",
        cut=0.5,
        samples=CLUSTER,
        least_size=2,
        queue="campaign",
        clusters_a_round=size.pages * size.questions // CLUSTER,
        page_size=size.questions,
    )


class Writing:
    """A project of its own, of whose images all masks are accepted and are to be written.

    pieces: of the work, each with the number of images.
    """

    def __init__(self, gateway: Gateway, folder: Path, images: int) -> None:
        self.pieces: list[Did] = []
        self.gateway = gateway
        self.store = Store(f"sqlite:///{folder / 'writing.sqlite'}")
        self.project, self.tasks = import_images(gateway, "written", images)
        self.table = table_of([task.image for task in self.tasks], ellipses())
        tree = rows_of_clusters(self.table)
        self.campaign = Campaign(self.table, [tree], PaperStrategy())
        root = self.campaign.cluster(0, tree.root)
        self._record([CampaignStarted("load", {}, "masks", "trees"), Decided(root, "accept", 15, 15)])
        labeling = read_labeling(labeling_config([CATEGORY]), [CATEGORY], {}, "written")
        self.source = Source(self.project, labeling, gateway.user().id)
        self._open, self._turn = threading.Event(), threading.Lock()
        self._stopped = False

    def run(self) -> None:
        """Write piece by piece, while it is wanted, until all is written."""
        work = write_back(self.gateway, self.source, self.campaign, self.tasks, self._record)
        while True:
            self._open.wait()
            with self._turn:
                began = time.monotonic()
                written = None if self._stopped else next(work, None)
                if written is None:
                    return
                self.pieces.append(Did("write", began, time.monotonic() - began, written))

    def go_on(self) -> None:
        """Write from now on."""
        self._open.set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Wait for the piece at work to end, and begin none."""
        self._open.clear()
        with self._turn:
            yield

    def stop(self) -> None:
        """Begin no further piece."""
        self._stopped = True
        self._open.set()

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def _record(self, events: Sequence[Event]) -> None:
        self.store.append(events)
        for event in events:
            self.campaign.apply(event)


def import_images(
    gateway: Gateway, name: str, images: int, told: Callable[[Did], None] = lambda piece: None
) -> tuple[int, list[SourceTask]]:
    """A project with so many images, which are not really there. told: of each thousand."""
    project = gateway.create_project(f"Load: {name}", labeling_config([CATEGORY]), "", {}).id
    tasks: list[SourceTask] = []
    for places in chunks(f"/data/upload/0/{name}-{number:06}.png" for number in range(images)):
        began = time.monotonic()
        numbers = gateway.import_tasks(project, [{"data": {"image": place}} for place in places])
        told(Did("import", began, time.monotonic() - began, len(numbers)))
        tasks += [SourceTask(image_key(p), n, p) for p, n in zip(places, numbers, strict=True)]
    return project, tasks


def table_of(keys: Sequence[str], rles: Sequence[Rle]) -> MaskTable:
    """The table of images that have the same masks each."""
    found = Detections(rles, np.full(len(rles), 0.9, np.float32), np.zeros(len(rles), np.int64))
    return build_table(keys, [found] * len(keys), [CATEGORY], "load")


def rows_of_clusters(table: MaskTable) -> ClusterTree:
    """A tree whose clusters below half its height are neighbouring rows of the table, ``CLUSTER`` each."""
    joins: list[tuple[float, float, float, float]] = []
    above: tuple[int, int] | None = None
    for rows in chunks(range(len(table)), CLUSTER):
        node = rows[0]
        for size, row in enumerate(rows[1:], 2):
            joins.append((node, row, 0.1, size))
            node = len(table) + len(joins) - 1
        if above is None:
            above = node, len(rows)
        else:
            joins.append((above[0], node, 1.0, above[1] + len(rows)))
            above = len(table) + len(joins) - 1, above[1] + len(rows)
    return tree_from_linkage(CATEGORY, np.arange(len(table)), np.array(joins))


def squares() -> list[Rle]:
    """Small squares all over an image."""
    cell = SIDE // ACROSS
    corners = [(x, y) for y in range(0, SIDE, cell) for x in range(0, SIDE, cell)]
    found: list[Rle] = []
    for left, top in corners:
        painted = np.zeros((SIDE, SIDE), np.uint8, order="F")
        painted[top + 1 : top + cell - 1, left + 1 : left + cell - 1] = 1
        found.append(coco.encode(painted))
    return found


def ellipses() -> list[Rle]:
    """Three of an image, apart."""
    y, x = np.mgrid[:SIDE, :SIDE]
    middles = ((60, 60, 40, 25), (190, 80, 30, 45), (120, 190, 55, 35))
    inside = [((x - a) / c) ** 2 + ((y - b) / d) ** 2 < 1 for a, b, c, d in middles]
    return [coco.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in inside]


def photo(seed: int) -> bytes:
    """Grey noise as a PNG."""
    pixels = np.random.default_rng(seed).integers(90, 120, (SIDE, SIDE)).astype(np.uint8)
    content = io.BytesIO()
    PIL.Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


# what came of it


class Calls:
    """Our calls of the server, as a gateway's ``observe`` tells of them; number: 1 where it failed."""

    def __init__(self) -> None:
        self.made: list[Did] = []

    def __call__(self, name: str, seconds: float, ok: bool) -> None:
        self.made.append(Did(name, time.monotonic() - seconds, seconds, int(not ok)))

    def figures(self) -> dict[str, Any]:
        """Of each kind of call, how many, how many failed, and how long they took."""
        kinds: dict[str, list[Did]] = defaultdict(list)
        for call in self.made:
            kinds[call.name].append(call)
        return {
            name: {**spread(calls), "failed": sum(call.number for call in calls)} for name, calls in kinds.items()
        }


def spread(things: Iterable[Did]) -> dict[str, float]:
    """How many, and the milliseconds that half, 90 and 99 of 100, and all of them, took at most."""
    milliseconds = [1000 * thing.seconds for thing in things]
    if not milliseconds:
        return {"count": 0}
    least = np.quantile(milliseconds, [0.5, 0.9, 0.99, 1.0]).round(1).tolist()
    return {"count": len(milliseconds), **dict(zip(("median", "90 %", "99 %", "most"), least, strict=True))}


def within(things: Iterable[Did], stretches: Sequence[Did]) -> list[Did]:
    """Those that ran during stretches of time, in whole or in part."""
    return [thing for thing in things if meanwhile(thing, stretches)]


def meanwhile(thing: Did, others: Iterable[Did]) -> list[Did]:
    """The others that ran while it did."""
    return [other for other in others if other.began < thing.ended and thing.began < other.ended]


def slow(submits: Sequence[Did], calls: Sequence[Did]) -> list[dict[str, Any]]:
    """The slowest submits, with the calls of ours that ran for long meanwhile."""
    found = sorted((one for one in submits if one.seconds > SLOW_SECONDS), key=lambda one: -one.seconds)[:20]
    return [
        {
            "seconds": round(one.seconds, 2),
            "calls": {c.name: round(c.seconds, 2) for c in meanwhile(one, calls) if c.seconds > 0.2},
        }
        for one in found
    ]


@dataclass(frozen=True)
class Answer:
    """What stands in the verify project: an annotation, when it changed last, and its verdicts."""

    annotation: int
    version: str
    verdicts: tuple[str, ...]


def answers(gateway: Gateway, pages: int) -> tuple[list[Answer], list[Answer]]:
    """The first answer of every page that has one; and further ones, of annotators who got a page at once."""
    first: list[Answer] = []
    further: list[Answer] = []
    for task in gateway.tasks(pages, ["data", *FIELDS]):
        made = sorted(task["annotations"], key=lambda annotation: annotation["id"])
        given = [Answer(each["id"], each["updated_at"], _verdicts(task, each)) for each in made]
        first += given[:1]
        further += given[1:]
    return first, further


def logged(events: Iterable[Event]) -> Counter[Answer]:
    """The answers in the event log, and how often each is there."""
    return Counter(
        Answer(event.annotation, event.version, event.verdicts)
        for event in events
        if isinstance(event, PageAnswered)
    )


def _verdicts(task: Any, annotation: Any) -> tuple[str, ...]:
    wrong = {mask for item in annotation["result"] for mask in item["value"]["choices"]}
    return tuple("no" if crop["alias"] in wrong else "yes" for crop in task["data"]["crops"])


def show(name: str, times: Mapping[str, Mapping[str, float]], more: Mapping[str, Any]) -> None:
    """Print times as a table, and plain figures below; all go to the folder of reports, if there is one."""
    table = Table(title=f"{name}, milliseconds")
    for column in ("", "count", "median", "90 %", "99 %", "most"):
        table.add_column(column, justify="right" if column else "left")
    for what, row in times.items():
        table.add_row(what, str(row["count"]), *(f"{row[key]:,.0f}" for key in list(row)[1:]))
    console = Console(width=115)
    console.print()
    console.print(table)
    for what, value in more.items():
        if not isinstance(value, dict | list):
            console.print(f"{what}: {value}", markup=False, highlight=False)
    if REPORT:
        folder = Path(REPORT)
        folder.mkdir(parents=True, exist_ok=True)
        made = {"size": asdict(SIZE), "milliseconds": times, **more}
        (folder / f"{name}.json").write_text(json.dumps(made, indent=1))
