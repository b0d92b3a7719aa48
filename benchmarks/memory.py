"""The memory of the daemon's process over a million masks: part by part, and when the posterior is learned anew.

``python -m benchmarks.memory [--json OUT] [--masks 1000000]``. A table, its trees and the store of a campaign with
3,000 answers, all of whose images were written, are made in a folder; then they are opened as the daemon opens
them, each time in a process of its own: as they lie on disk, and as copies in memory, of Python objects and
numbers of 64 bits. Memory is all that is resident, pages of mapped files too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

# all other modules are imported where they are used: what a process loads is a part of what it is measured by
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from propagation.campaign import Campaign
    from propagation.events import Event, Verdict
    from propagation.masks import MaskTable
    from propagation.tree import ClusterTree

QUESTIONS = 3_000
RUNS_BYTES = 90  # of a mask of some 60 pixels across
ON_DISK, IN_MEMORY = "on disk", "in memory"


@dataclass(frozen=True)
class Part:
    """What the process took after it had done something more: bytes resident, and at the most so far; seconds."""

    name: str
    resident: int
    peak: int
    seconds: float


def resident() -> int:
    """The bytes of memory that this process holds; where the system does not tell, the most it ever held."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * resource.getpagesize() if status.exists() else peak()


def peak() -> int:
    """The most bytes of memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def make(folder: Path, count: int) -> int:
    """Write a table, its trees and a store; the number of events in it."""
    from hashlib import blake2b

    import numpy as np

    from benchmarks.campaign import CATEGORIES, million
    from propagation.columns import Runs
    from propagation.masks import write_table
    from propagation.tree import build_tree, write_trees
    from sync.store import SourceTask, Store

    table, right = million(count)
    keys = [f"/data/upload/12/{place:08x}-image_{place:06d}.png" for place in range(len(table.images))]
    characters = np.random.default_rng(0).integers(48, 110, (count, RUNS_BYTES), dtype=np.uint8)
    table = _replaced(
        table,
        ids=np.array([blake2b(b"%d" % row, digest_size=10).hexdigest() for row in range(count)]),
        images=np.array(keys),
        counts=Runs(characters.ravel(), np.arange(count + 1) * RUNS_BYTES),
    )
    built = [build_tree(table, place, {"shape": 1.0}) for place in range(CATEGORIES)]
    trees = [tree for tree in built if tree]
    for name in ("table", "trees"):
        (folder / name).mkdir()
    write_table(table, folder / "table")
    write_trees(trees, folder / "trees")
    log = played(table, trees, right)
    store = Store(f"sqlite:///{folder / 'store.db'}")
    store.set_source_tasks([SourceTask(key, place, key) for place, key in enumerate(keys, 1)])
    store.append(log)
    store.close()
    return len(log)


def played(table: MaskTable, trees: list[ClusterTree], right: NDArray[np.bool_]) -> list[Event]:
    """The log of a campaign that has its answers, and has written what was accepted."""
    from propagation.calibrated import CalibratedStrategy
    from propagation.campaign import Campaign
    from propagation.events import CampaignStarted

    campaign = Campaign(table, trees, CalibratedStrategy())
    log: list[Event] = [CampaignStarted("benchmark", {}, "", "")]
    campaign.apply(log[0])
    while len(campaign.verdict[campaign.verdict >= 0]) < QUESTIONS and (more := a_round(campaign, right)):
        log += more
    return [*log, *written(campaign)]


def written(campaign: Campaign) -> Iterator[Event]:
    """The events of writing all that is accepted."""
    from hashlib import blake2b

    from propagation.events import MasksWritten, WriteIntended

    table, accepted = campaign.table, campaign.accepted()
    for task, (image, rows) in enumerate(zip(table.images.tolist(), table.rows_by_image(), strict=True), 1):
        masks = tuple(table.ids[rows[accepted[rows]]].tolist())
        if masks:
            yield WriteIntended(task, blake2b(image.encode(), digest_size=10).hexdigest())
            yield MasksWritten(image, task, task, masks, f"2026-01-01T00:00:00.{task:06}Z")


def a_round(campaign: Campaign, right: NDArray[np.bool_]) -> list[Event]:
    """Let a campaign decide and ask, and answer all that it asks; the events."""
    from propagation.events import PageAnswered, PagePosted

    log: list[Event] = []

    def take(event: Event) -> None:
        campaign.apply(event)
        log.append(event)

    for event in chain(campaign.decisions(), campaign.next_round()):
        take(event)
    for page in campaign.waiting_pages:
        name, task = page.issued.page, 1 + len(campaign.page_of)
        said: tuple[Verdict, ...] = tuple("yes" if yes else "no" for yes in right[page.rows].tolist())
        take(PagePosted(name, task))
        take(PageAnswered(name, task, "2026-01-01T00:00:00.000000Z", 3, 20.0, said))
    return log


def opened(folder: Path, way: str) -> list[Part]:
    """Open everything as the daemon does, read the store, and play on until the posterior was learned anew."""
    parts: list[Part] = []
    begin = perf_counter()

    def told(name: str) -> None:
        nonlocal begin
        parts.append(Part(name, resident(), peak(), round(perf_counter() - begin, 2)))
        begin = perf_counter()

    import numpy as np

    import ls_propagate.service  # noqa: F401  the daemon and its server
    from propagation.calibrated import CalibratedStrategy
    from propagation.campaign import Campaign
    from propagation.events import CertificateOpened, ProposalPutOff
    from propagation.masks import read_table
    from propagation.tree import read_trees
    from sync.store import Store

    told("libraries")
    table = read_table(folder / "table")
    if way == IN_MEMORY:
        table = _copied(table)
    told("table")
    trees = read_trees(folder / "trees")
    if way == IN_MEMORY:
        trees = [_replaced(tree, **_numbers(tree, np.int64)) for tree in trees]
    told("trees")
    campaign = Campaign(table, trees, CalibratedStrategy())
    told("campaign")
    store = Store(f"sqlite:///{folder / 'store.db'}")
    tasks = store.source_tasks()
    for event in store.stream():
        campaign.apply(event)
    told(f"log, {len(tasks):,} tasks")
    accepted = campaign.accepted()
    for row in np.flatnonzero(accepted):
        table.rle(row)
    told("accepted outlines")
    # bad news, so that the sets which are asked about are given up and others are proposed
    wrong = np.zeros(len(table), dtype=bool)
    events: list[Event] = []
    while not any(isinstance(event, CertificateOpened | ProposalPutOff) for event in events):
        events = a_round(campaign, wrong)
    told("posterior anew")
    store.close()
    return parts


def _copied(table: MaskTable) -> MaskTable:
    """A table of Python objects and of arrays that lie in memory."""
    import numpy as np

    counts = np.empty(len(table), dtype=object)
    counts[:] = [table.counts[row] for row in range(len(table))]
    features = {name: np.array(block) for name, block in table.features.items()}
    return _replaced(table, ids=np.array(table.ids), counts=counts, features=features, **_numbers(table))


def _numbers(columns: Any, dtype: Any = None) -> dict[str, Any]:
    """Copies of the fields that are arrays of numbers; whole numbers become ``dtype``."""
    import numpy as np

    arrays = {name: value for name, value in vars(columns).items() if isinstance(value, np.ndarray)}
    return {
        name: np.array(value, dtype=dtype if dtype and value.dtype.kind == "i" else value.dtype)
        for name, value in arrays.items()
        if value.dtype.kind in "bif"
    }


def _replaced(item: Any, **fields: Any) -> Any:
    from dataclasses import replace

    return replace(item, **fields)


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def shown(found: dict[str, list[Part]]) -> Table:
    """The parts, a row each, for the terminal."""
    table = Table(title="The daemon's memory", box=SIMPLE)
    table.add_column("after")
    for way in found:
        for name in ("MB", "peak MB", "s"):
            table.add_column(f"{way}: {name}", justify="right")
    for row in zip(*found.values(), strict=True):
        cells = [f for p in row for f in (f"{p.resident / 1e6:,.0f}", f"{p.peak / 1e6:,.0f}", f"{p.seconds:.1f}")]
        table.add_row(row[0].name, *cells)
    return table


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="The memory of the daemon's process.")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the measurements to this file too")
    parser.add_argument("--masks", type=int, default=1_000_000)
    options = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as name:
        with console.status(f"making {options.masks:,} masks"):
            events = alone(make, Path(name), options.masks)
        console.print(f"{options.masks:,} masks, {events:,} events")
        found = {}
        for way in (ON_DISK, IN_MEMORY):
            with console.status(way):
                found[way] = alone(opened, Path(name), way)
    console.print(shown(found))
    if options.json:
        made = {"masks": options.masks, "events": events}
        ways = {way: [asdict(part) for part in parts] for way, parts in found.items()}
        options.json.write_text(json.dumps({**made, **ways}, indent=1) + "\n")


if __name__ == "__main__":
    main()
