"""The progress board of a campaign of 1,000,000 masks, 20,000 clusters and 50 annotators: how soon it is there.

``python -m benchmarks.board [--json OUT] [--masks 1000000] [--clusters 20000] [--annotators 50]
[--categories 4]``. The log of a campaign is folded with its history; the document is made as the daemon makes it;
then the page is opened in Chromium, from the daemon's own server, until it is drawn. The first opening counts,
with nothing kept from before.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.campaign import CATEGORIES, million
from ls_propagate.demo.browser import open_browser
from propagation.campaign import Campaign
from propagation.events import (
    CampaignStarted,
    Decided,
    Decision,
    Event,
    PageAnswered,
    PageIssued,
    PagePosted,
    Verdict,
)
from propagation.masks import MaskTable
from propagation.paper import PaperStrategy
from propagation.progress import History, Terms
from propagation.tree import ClusterTree, build_tree, cluster_name
from sync.board import Board, Edition, Place
from sync.monitor import Monitor
from sync.server import create_app, serve
from sync.store import Hint

BEGIN = datetime(2026, 11, 2, 8, tzinfo=UTC)
PAGES = 10_000
PAGE_SIZE = 20
OPENINGS = 5
DRAWN = """() => new Promise(done => requestAnimationFrame(() => setTimeout(() =>
  done([performance.now(), performance.getEntriesByType("navigation")[0].responseEnd]))))"""


class Nobody:
    """An inbox that nothing comes to."""

    def notice(self, hint: Hint) -> None:
        """Nothing."""


def place(annotators: int) -> Place:
    """A Label Studio that is named, and never called."""
    people = {number: f"Annotator {number}" for number in range(1, annotators + 1)}
    return Place("http://127.0.0.1:8080", 1, "A million masks", 2, {}, people)


def clusters_of(tree: ClusterTree, most: int) -> NDArray[np.int64]:
    """The largest clusters of at most so many masks."""
    parent = np.full(2 * len(tree) - 1, -1)
    parent[tree.children.ravel()] = np.repeat(np.arange(len(tree), 2 * len(tree) - 1), 2)
    return np.flatnonzero((tree.sizes <= most) & (parent >= 0) & (tree.sizes[parent] > most))


def told(
    table: MaskTable, trees: list[ClusterTree], right: NDArray[np.bool_], clusters: int, annotators: int
) -> Iterator[tuple[Event, datetime]]:
    """A log in which pages are answered and clusters decided in turn."""
    rng = np.random.default_rng(0)
    yield CampaignStarted("board", {}, "", ""), BEGIN
    named = [
        (tree, node) for tree in trees for node in clusters_of(tree, 3 * len(table) // (2 * clusters)).tolist()
    ]
    order = rng.permutation(len(named))[:clusters]
    unasked = {tree.category: rng.permutation(tree.rows) for tree in trees}  # no mask is asked twice
    each = -(-len(order) // PAGES)
    pace = rng.uniform(0.8, 2.5, annotators)
    for number in range(PAGES):
        at = BEGIN + timedelta(seconds=20 * number)
        here = [named[which] for which in order[number * each : (number + 1) * each]]
        tree = max(trees, key=lambda one: len(unasked[one.category]))
        rows, unasked[tree.category] = np.split(unasked[tree.category], [PAGE_SIZE])
        names = tuple(cluster_name(other, node) for other, node in here if other is tree)
        page, by = f"{number:020x}", int(rng.integers(annotators))
        yield PageIssued(page, 1, tree.category, tuple(table.ids[rows].tolist()), names), at
        yield PagePosted(page, number + 1), at
        verdicts: tuple[Verdict, ...] = tuple("yes" if yes else "no" for yes in right[rows].tolist())
        seconds = float(PAGE_SIZE * pace[by] * rng.uniform(0.7, 1.4))
        yield PageAnswered(page, number, at.isoformat(), by + 1, seconds, verdicts), at
        for other, node in here:
            share = float(right[other.rows[other.slice(node)]].mean())
            decision: Decision = "accept" if share > 0.85 else "reject" if share < 0.3 else "split"
            yield Decided(cluster_name(other, node), decision, 15, round(15 * share)), at


def opened(board: Board) -> list[dict[str, float]]:
    """Seconds of openings, each in a fresh browser context: of the two answers, and until the page is drawn."""
    served = serve(create_app(Nobody(), Monitor(), lambda: None, None, None, board), "127.0.0.1", 0)
    found = []
    try:
        with open_browser() as page:
            browser = page.context.browser
            assert browser is not None
            for _ in range(OPENINGS):
                context = browser.new_context()
                fresh = context.new_page()
                fresh.goto(f"http://127.0.0.1:{served.port}/board")
                drawn, answered = fresh.evaluate(DRAWN)
                begin = time.perf_counter()
                answer = context.request.get(f"http://127.0.0.1:{served.port}/board.json")
                figures = time.perf_counter() - begin
                size = len(answer.body())
                found.append(
                    {"board": answered / 1000, "drawn": drawn / 1000, "board.json": figures, "bytes": size}
                )
                context.close()
    finally:
        served.close()
    return found


def measure(masks: int, clusters: int, annotators: int, categories: int, console: Console) -> dict[str, Any]:
    """All figures."""
    table, right = million(masks, categories=categories)
    built = [build_tree(table, place_, {"score": 1.0, "shape": 1.0}) for place_ in range(categories)]
    trees = [tree for tree in built if tree]
    log = list(told(table, trees, right, clusters, annotators))
    console.print(f"{len(table):,} masks, {len(log):,} events")
    rule = PaperStrategy(page_size=PAGE_SIZE, budget=2 * PAGES * PAGE_SIZE)
    seconds: dict[str, float] = {}
    begin = time.perf_counter()
    plain = Campaign(table, trees, rule)
    for event, _ in log:
        plain.apply(event)
    seconds["fold"] = time.perf_counter() - begin
    begin = time.perf_counter()
    history = History(Campaign(table, trees, rule))
    for event, at in log:
        history.take(event, at)
        history.campaign.apply(event)
    seconds["fold with history"] = time.perf_counter() - begin
    board = Board(Terms(hour_cost=30.0, currency="€", masks_wanted=masks // 2))
    begin = time.perf_counter()
    board.look(history, lambda: place(annotators))
    seconds["document"] = time.perf_counter() - begin
    edition = board.edition
    assert edition is not None
    begin = time.perf_counter()
    size = len(Edition(edition.document).page)
    seconds["page of it"] = time.perf_counter() - begin
    openings = opened(board)
    return {
        "masks": len(table),
        "clusters": len(history.campaign.state),
        "annotators": annotators,
        "categories": categories,
        "events": len(log),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "page_bytes": size,
        "openings": [{name: round(value, 3) for name, value in one.items()} for one in openings],
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--masks", type=int, default=1_000_000)
    parser.add_argument("--clusters", type=int, default=20_000)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--categories", type=int, default=CATEGORIES)
    given = parser.parse_args()
    console = Console(width=140)
    found = measure(given.masks, given.clusters, given.annotators, given.categories, console)
    shown = Table(
        box=SIMPLE, title=f"The progress board of {found['masks']:,} masks, {found['clusters']:,} clusters"
    )
    shown.add_column("what")
    shown.add_column("seconds", justify="right")
    for name, value in found["seconds"].items():
        shown.add_row(name, f"{value:.3f}")
    for name in ("board", "drawn", "board.json"):
        values = [one[name] for one in found["openings"]]
        shown.add_row(f"{name}, first opening", f"{values[0]:.3f}")
        shown.add_row(f"{name}, slowest of {len(values)}", f"{max(values):.3f}")
    console.print(shown)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
