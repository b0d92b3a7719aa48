"""What goes through the daemon's calls of a real Label Studio, against its bare API, side by side in one run.

``python -m benchmarks.sync [--json OUT] [--tasks N] [--masks N] [--database sqlite|postgresql] [--plain]``. A
server is started; chunk by chunk, in turn, the product and the bare API import tasks, write first annotations in
bulk, post them one by one, and change them. At last the product looks for changes in a project of 100,000 tasks
without any.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ls_propagate.demo.postgres import postgres
from ls_propagate.demo.server import Server, label_studio
from plugin.label_studio.gateway import LabelStudioGateway, chunks
from plugin.label_studio.inspect import QUICK_IMPORTS
from plugin.label_studio.labeling import read_labeling
from propagation.campaign import Campaign
from propagation.events import CampaignStarted, Decided
from propagation.masks import Detections, build_table
from propagation.paper import PaperStrategy
from propagation.tree import cluster_name, tree_from_linkage
from sync.changes import Changes
from sync.source import ANNOTATION_FIELDS, Source, region_of
from sync.store import SourceTask
from sync.writeback import write_back

CHUNK = 1000
IMPORTED = 20_000
SINGLE = 20  # annotations that are posted one by one, beside each CHUNK
QUIET = 100_000  # tasks of the project without changes
LOOKS = 30
SIDE = 400  # pixels
CONFIG = """<View><Image name="image" value="$image"/>
<PolygonLabels name="label" toName="image"><Label value="cell"/></PolygonLabels></View>"""


@dataclass
class Measurement:
    """Things done in so many seconds, by the product and by the bare API."""

    name: str
    ours: list[tuple[int, float]] = field(default_factory=list)
    bare: list[tuple[int, float]] = field(default_factory=list)

    def rates(self) -> tuple[float, float]:
        """Things a second, of both."""
        ours, bare = (
            sum(count for count, _ in part) / sum(seconds for _, seconds in part)
            for part in (self.ours, self.bare)
        )
        return ours, bare


@contextmanager
def timed(into: list[tuple[int, float]], count: int) -> Iterator[None]:
    began = time.perf_counter()
    yield
    into.append((count, time.perf_counter() - began))


class Bare:
    """Label Studio's API without anything in between."""

    def __init__(self, server: Server) -> None:
        headers = {"Authorization": f"Token {server.token}"}
        self._http = httpx.Client(base_url=f"{server.url}/api/", headers=headers, timeout=600)

    def close(self) -> None:
        self._http.close()

    def project(self, title: str) -> int:
        return int(self._send("POST", "projects/", json={"title": title, "label_config": CONFIG})["id"])

    def import_tasks(self, project: int, count: int) -> list[int]:
        tasks = [{"data": {"image": f"{number}.png"}} for number in range(count)]
        path = f"projects/{project}/import"
        return list(self._send("POST", path, params={"return_task_ids": "true"}, json=tasks)["task_ids"])

    def import_predictions(self, project: int, results: Sequence[tuple[int, Any]]) -> None:
        body = [{"task": task, "model_version": "bare", "result": result} for task, result in results]
        self._send("POST", f"projects/{project}/import/predictions", json=body)

    def predictions_to_annotations(self, project: int, tasks: Sequence[int]) -> None:
        body = {
            "selectedItems": {"all": False, "included": list(tasks)},
            "model_version": "bare",
            "project": str(project),
        }
        params = {"id": "predictions_to_annotations", "project": project}
        self._send("POST", "dm/actions", params=params, json=body)

    def annotate(self, task: int, result: Any) -> int:
        return int(self._send("POST", f"tasks/{task}/annotations/", json={"result": result})["id"])

    def change(self, annotation: int, result: Any) -> None:
        self._send("PATCH", f"annotations/{annotation}/", json={"result": result})

    def _send(self, method: str, path: str, **request: Any) -> Any:
        return self._http.request(method, path, **request).raise_for_status().json()


def blob(rng: np.random.Generator, left: int, top: int) -> Any:
    """The mask of an ellipse of some 30 pixels across, in its cell of the image."""
    y, x = np.mgrid[:80, :80] - 40
    turn, long, wide = rng.uniform(0, np.pi), rng.uniform(12, 20), rng.uniform(8, 14)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    mask[top : top + 80, left : left + 80] = (along / long) ** 2 + (across / wide) ** 2 < 1
    return coco.encode(mask)


class World:
    """A project with images, and a campaign over them that can accept the first masks of each, then all."""

    def __init__(self, gateway: LabelStudioGateway, project: int, tasks: Sequence[int], masks: int) -> None:
        rng = np.random.default_rng(0)
        cells = [(left, top) for left in range(0, SIDE, 80) for top in range(0, SIDE, 80)]
        shapes = [[blob(rng, *cells[place]) for place in range(masks)] for _ in range(50)]
        found = [
            Detections(shapes[n % 50], np.full(masks, 0.9, np.float32), np.zeros(masks, np.int64))
            for n in range(len(tasks))
        ]
        keys = [f"{number:07d}.png" for number in range(len(tasks))]
        table = build_table(keys, found, ["cell"], "benchmark")
        order = np.lexsort((table.ids, table.image))
        later = np.zeros(len(table), dtype=bool)
        later[order[masks - 1 :: masks]] = True  # one of each image
        tree = tree_from_linkage("cell", np.arange(len(table)), two_chains(later))
        self.campaign = Campaign(table, [tree], PaperStrategy())
        self.campaign.apply(CampaignStarted("benchmark", {}, "", ""))
        self.first, self.rest = (
            cluster_name(tree, node)
            for node in sorted(tree.halves(tree.root), key=lambda node: later[tree.rows[tree.slice(node)]].any())
        )
        self.apply("split", cluster_name(tree, tree.root))
        labeling = read_labeling(CONFIG, ("cell",), {}, "benchmark")
        self.source = Source(project, labeling, gateway.user().id)
        self.tasks = [SourceTask(key, task, key) for key, task in zip(keys, tasks, strict=True)]
        self._gateway = gateway

    def apply(self, decision: Literal["accept", "split"], cluster: str) -> None:
        self.campaign.apply(Decided(cluster, decision, 0, 0))

    def write(self, tasks: Sequence[SourceTask]) -> Generator[int, None, None]:
        """Write back; after each batch, how many images it wrote."""
        return write_back(self._gateway, self.source, self.campaign, tasks, self._record)

    def _record(self, events: Sequence[Any]) -> None:
        for event in events:
            self.campaign.apply(event)

    def results(self, masks: int) -> list[Any]:
        """The regions of the first masks of some images, as the bare API is given them: made before."""
        table = self.campaign.table
        rows = np.argsort(table.image, kind="stable")[: 50 * (len(table) // len(self.tasks))].reshape(50, -1)
        about = {"campaign": "bare", "cluster": "cell/1", "decision": "cluster/cell/1", "verified": False}
        return [
            [region for row in image[:masks] for region in region_of(table, int(row), about, self.source.labeling)]
            for image in rows
        ]


def two_chains(later: NDArray[np.bool_]) -> NDArray[np.float64]:
    """A linkage whose top has two branches: the rows that come later, and the others."""
    merges: list[tuple[float, float, float, float]] = []
    tops = []
    for rows, height in ((np.flatnonzero(~later), 1.0), (np.flatnonzero(later), 1.0)):
        # pairs of pairs: a chain of all would be as deep as it is long
        nodes = [(int(row), 1) for row in rows]
        while len(nodes) > 1:
            paired = []
            for (one, few), (other, more) in zip(nodes[::2], nodes[1::2], strict=False):
                merges.append((one, other, height, few + more))
                paired.append((len(later) + len(merges) - 1, few + more))
            nodes = paired + (nodes[-1:] if len(nodes) % 2 else [])
        tops.append(nodes[0])
    merges.append((tops[0][0], tops[1][0], 2.0, len(later)))
    return np.array(merges)


def measure(server: Server, count: int, masks: int, said: Any) -> tuple[list[Measurement], list[float]]:
    """All measurements, and the seconds of each look for changes."""
    gateway, bare = LabelStudioGateway(server.url, server.token), Bare(server)
    gateway.user()
    try:
        said("importing tasks")
        quiet = bare.project("quiet")
        tasks = [task for _ in range(QUIET // CHUNK) for task in bare.import_tasks(quiet, CHUNK)]
        imports = measure_imports(gateway, bare)
        said("writing back")
        written = measure_writing(gateway, bare, count, masks, said)
        said("looking for changes")
        bare.annotate(tasks[0], [])  # the latest change is one by itself, not one of the import's
        return [imports, *written], measure_looks(gateway, quiet)
    finally:
        gateway.close()
        bare.close()


def measure_imports(gateway: LabelStudioGateway, bare: Bare) -> Measurement:
    found = Measurement("tasks imported")
    one, other = bare.project("imports, ours"), bare.project("imports, bare")
    for _ in range(IMPORTED // 5000):
        tasks = [{"data": {"image": f"{number}.png"}} for number in range(5000)]
        with timed(found.ours, len(tasks)):
            gateway.import_tasks(one, tasks)
        for _ in range(5000 // CHUNK):
            with timed(found.bare, CHUNK):
                bare.import_tasks(other, CHUNK)
    return found


def measure_writing(
    gateway: LabelStudioGateway, bare: Bare, count: int, masks: int, said: Any
) -> list[Measurement]:
    first, single = Measurement("images written first"), Measurement("images written first, against one by one")
    growth = Measurement("images whose set has grown")
    projects = [bare.project(f"writing, {name}") for name in ("ours", "bare", "one by one")]
    mine, theirs, singles = (
        [task for part in chunks(range(size), CHUNK) for task in bare.import_tasks(project, len(part))]
        for project, size in zip(projects, (count, count, SINGLE * ceil(count / CHUNK)), strict=True)
    )
    world = World(gateway, projects[0], mine, masks)
    results, grown = world.results(masks - 1), world.results(masks)
    made: list[int] = []
    world.apply("accept", world.first)
    batches = world.write(world.tasks)
    done = 0
    for place in range(0, count, CHUNK):
        part = theirs[place : place + CHUNK]
        with timed(first.bare, len(part)):
            bare.import_predictions(projects[1], [(task, results[task % 50]) for task in part])
            bare.predictions_to_annotations(projects[1], part)
        few = singles[len(made) : len(made) + SINGLE]
        with timed(single.bare, len(few)):
            made += [bare.annotate(task, results[task % 50]) for task in few]
        done += take(batches, place + len(part) - done, first.ours)
        said(f"writing back, {done:,} of {count:,}")
    single.ours = first.ours
    world.apply("accept", world.rest)
    batches = world.write(world.tasks)
    done = 0
    for place in range(0, len(made), 10):
        with timed(growth.bare, 10):
            for number in made[place : place + 10]:
                bare.change(number, grown[number % 50])
        done += take(batches, place + 10 - done, growth.ours)
    batches.close()
    return [first, single, growth]


def take(batches: Iterator[int], wanted: int, into: list[tuple[int, float]]) -> int:
    """Let at least so many images be written; how many were."""
    began, done = time.perf_counter(), 0
    while done < wanted:
        done += next(batches)
    if done:
        into.append((done, time.perf_counter() - began))
    return done


def measure_looks(gateway: LabelStudioGateway, project: int) -> list[float]:
    changes = Changes(gateway, project, ANNOTATION_FIELDS, None, {})
    changes.read()
    seconds = []
    for _ in range(LOOKS):
        began = time.perf_counter()
        assert changes.read() == []
        seconds.append(time.perf_counter() - began)
    return seconds


@contextmanager
def running(database: str, folder: Path, plain: bool = False) -> Iterator[Server]:
    """A Label Studio on a database of its own; plain: without what makes its imports quick."""
    settings = {QUICK_IMPORTS: "false" if plain else "true"}
    if database == "sqlite":
        with label_studio(folder / "label-studio", settings) as server:
            yield server
        return
    with tempfile.TemporaryDirectory(prefix="postgres-") as data, postgres(Path(data)) as running:
        running.create("labelstudio")
        extra = {
            "DJANGO_DB": "default",
            "POSTGRE_NAME": "labelstudio",
            "POSTGRE_USER": running.user,
            "POSTGRE_PASSWORD": running.password,
            "POSTGRE_HOST": running.host,
            "POSTGRE_PORT": str(running.port),
        }
        with label_studio(folder / "label-studio", settings | extra) as server:
            yield server


def shown(found: list[Measurement], looks: list[float], title: str) -> Table:
    """The measurements for the terminal."""
    table = Table(title=title, box=SIMPLE)
    table.add_column("what")
    for name in ("ours /s", "bare /s", "ours ÷ bare"):
        table.add_column(name, justify="right")
    for one in found:
        ours, bare = one.rates()
        table.add_row(one.name, f"{ours:,.1f}", f"{bare:,.1f}", f"{ours / bare:.2f}")
    middle, slow = np.percentile(looks, [50, 95])
    table.caption = f"a look that finds nothing new in {QUIET:,} tasks: median {middle:.3f} s, 95 % {slow:.3f} s"
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="What goes through the daemon's calls of a real Label Studio.")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the measurements to this file too")
    parser.add_argument("--tasks", type=int, default=5000, metavar="N", help="images that are written to")
    parser.add_argument("--masks", type=int, default=5, metavar="N", help="masks of an image, 2 to 25")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--plain", action="store_true", help="a server as it comes, without quick imports")
    options = parser.parse_args()
    console = Console()
    with (
        tempfile.TemporaryDirectory() as folder,
        console.status("starting Label Studio") as status,
        running(options.database, Path(folder), options.plain) as server,
    ):
        found, looks = measure(server, options.tasks, options.masks, status.update)
    server_kind = f"{'plain ' * options.plain}Label Studio on {options.database}"
    title = f"{server_kind}, {options.tasks:,} images of {options.masks} masks"
    console.print(shown(found, looks, title))
    if options.json:
        made = {
            "database": options.database,
            "plain": options.plain,
            "tasks": options.tasks,
            "masks": options.masks,
            "looks": looks,
        }
        options.json.write_text(json.dumps(made | {"found": [asdict(one) for one in found]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
