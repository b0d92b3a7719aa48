"""Time and peak memory of the exact complete-linkage tree and the tree of micro-clusters, in one run.

``python -m benchmarks.trees [--json OUT]``. Each measurement has a process of its own, so that its peak
is its own. The increase is over the process with the points and the libraries loaded.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import faiss  # noqa: F401  loaded before the clock starts, as the other libraries are
import fastcluster
import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.strategies import PUBLISHED
from benchmarks.worlds import digits
from propagation.features import default_weights, matrix
from propagation.simulate import Job, World, players, summary_of
from propagation.tree import micro_linkage, tree_from_linkage

WIDTH = 64
CENTRES = 200
EXACT = "exact"
MICRO = "micro"
YIELD_MASKS = 15_000
IMAGES = 1_110
SEEDS = 100
RUNS = [(EXACT, 20_000), (MICRO, 20_000), (MICRO, 100_000), (MICRO, 1_000_000)]


@dataclass(frozen=True)
class Measurement:
    """linkage_s: building the linkage matrix; tree_s: its arrays as a ClusterTree. Memory in bytes."""

    way: str
    masks: int
    linkage_s: float
    tree_s: float
    increase: int
    total: int


def mixture(count: int, seed: int = 0) -> NDArray[np.float32]:
    """(count, 64) points around 200 centres, in clouds that overlap."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((CENTRES, WIDTH), dtype=np.float32)
    points = np.empty((count, WIDTH), dtype=np.float32)
    # a piece at a time, so that the peak before the measurement is the points alone
    for piece in np.array_split(points, max(1, count // 10_000)):
        piece[:] = centres[rng.integers(CENTRES, size=len(piece))]
        piece += rng.standard_normal(piece.shape, dtype=np.float32)
    return points


def peak() -> int:
    """The most bytes of memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(way: str, count: int) -> Measurement:
    """Build one tree over a mixture of ``count`` points."""
    points = mixture(count)
    before, began = peak(), perf_counter()
    linkage = fastcluster.linkage(points, method="complete") if way == EXACT else micro_linkage(points)
    joined = perf_counter()
    tree_from_linkage("benchmark", np.arange(count), linkage)
    ended = perf_counter()
    return Measurement(way, count, joined - began, ended - joined, peak() - before, peak())


def alone(way: str, count: int) -> Measurement:
    """``measure`` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, way, count).result()


def shown(found: list[Measurement]) -> Table:
    """The measurements against the first of them."""
    first = found[0]
    table = Table(title=f"Cluster trees over {WIDTH} columns", box=SIMPLE)
    for name in ("tree", "masks", "linkage s", "arrays s", "time ×", "grown MB", "grown ×", "peak MB"):
        table.add_column(
            name, justify="left" if name == "tree" else "right", min_width=9 if name == "masks" else 0
        )
    for one in found:
        table.add_row(
            one.way,
            f"{one.masks:,}",
            f"{one.linkage_s:.2f}",
            f"{one.tree_s:.2f}",
            f"{one.linkage_s / first.linkage_s:.4f}",
            f"{one.increase / 1e6:,.0f}",
            f"{one.increase / first.increase:.4f}",
            f"{one.total / 1e6:,.0f}",
        )
    return table


def yields() -> list[dict[str, Any]]:
    """What the paper's rule brings with each tree of the same masks, all of one category; 1,000 questions.

    Three micro trees, since k-means begins at random. ``calibrated`` asks about masks, not about clusters, so that
    its yield is the same with any tree.
    """
    table, iou = digits(0, IMAGES)
    rows = np.flatnonzero(table.best)[:YIELD_MASKS]
    one = replace(table, categories=("digit",), category=np.zeros(len(table), np.int32))
    points = matrix(one, rows, default_weights(one))
    linkages = {
        "exact, complete": fastcluster.linkage(points, "complete"),
        "exact, Ward": fastcluster.linkage(points, "ward"),
        **{f"micro, seed {seed}": micro_linkage(points, seed) for seed in range(3)},
    }
    found = []
    for name, linkage in linkages.items():
        world = World(one, [tree_from_linkage("digit", rows, linkage)], iou)
        strategies = [
            replace(PUBLISHED, budget=1000),
            replace(PUBLISHED, budget=1000, accept_at=0.95, samples=30),
        ]
        with players(world) as play:
            for strategy in strategies:
                runs = list(play(Job(strategy, seed) for seed in range(SEEDS)))
                right = summary_of(world, strategy, runs, 0)
                found.append(
                    {"tree": name, "accept_at": strategy.accept_at, "samples": strategy.samples,
                     "masks": len(rows), "yield": round(right["yield"], 4)}
                )  # fmt: skip
    return found


def shown_yields(found: list[dict[str, Any]]) -> Table:
    """The yields for the terminal."""
    table = Table(box=SIMPLE, title="Yield of the paper's rule with 1,000 questions")
    table.add_column("tree")
    for column in ("masks", "K_a", "samples", "yield"):
        table.add_column(column, justify="right")
    for row in found:
        cells = (f"{row['masks']:,}", str(row["accept_at"]), str(row["samples"]), f"{row['yield']:.1%}")
        table.add_row(row["tree"], *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and peak memory of cluster trees.")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the measurements to this file too")
    options = parser.parse_args()
    console = Console()
    found = []
    for way, count in RUNS:
        with console.status(f"{way}, {count:,} masks"):
            found.append(alone(way, count))
    console.print(shown(found))
    with console.status(f"yields, {YIELD_MASKS:,} masks"):
        measured = yields()
    console.print(shown_yields(measured))
    if options.json:
        made = {"speed": [asdict(one) for one in found], "yields": measured}
        options.json.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
