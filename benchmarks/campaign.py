"""The time from an answered page to the next questions, in a campaign over a million masks.

``python -m benchmarks.campaign [--json OUT] [--masks 1000000]``. A campaign of each strategy is played until it
has 10,000 verdicts. A step is all that the daemon lets the campaign do after a page was answered: take the answer
in, decide, choose, and take the next pages in. Steps in which the posterior is learned anew and sets are frozen
are listed apart.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from propagation.calibrated import CalibratedStrategy
from propagation.campaign import Campaign
from propagation.events import CampaignStarted, CertificateOpened, Event, PageAnswered, PageIssued, Verdict
from propagation.masks import MaskTable
from propagation.paper import PaperStrategy
from propagation.strategies import Strategy
from propagation.tree import ClusterTree, build_tree

VERDICTS = 10_000
CATEGORIES = 4


def million(count: int, seed: int = 0, categories: int = CATEGORIES) -> tuple[MaskTable, NDArray[np.bool_]]:
    """Masks that exist as numbers only, and (n,) whether each is right; scores tell a good deal of it.

    Of the categories, the first is the largest.
    """
    rng = np.random.default_rng(seed)
    shape = rng.standard_normal((count, 6), dtype=np.float32)
    shape[:, 0] += 6
    quality = 1.2 * shape[:, 1] + 0.8 * shape[:, 2] + rng.standard_normal(count) + 1.0
    right = quality + 0.7 * rng.standard_normal(count) > 0
    score = (1 / (1 + np.exp(-quality - 0.8 * rng.standard_normal(count)))).astype(np.float32)
    counts = np.empty(count, dtype=object)
    counts[:] = b"0"
    images = count // 40
    table = MaskTable(
        ids=np.char.zfill(np.arange(count).astype("U20"), 20),
        images=np.arange(images).astype("U8"),
        image=rng.integers(images, size=count).astype(np.int32),
        categories=tuple(f"category {place}" for place in range(categories)),
        category=np.minimum(rng.geometric(2.4 / categories, count) - 1, categories - 1).astype(np.int32),
        score=score,
        box=np.tile(np.array([10, 10, 30, 30], dtype=np.float32), (count, 1)),
        area=np.exp(shape[:, 0]).astype(np.int32) + 1,
        size=np.full((count, 2), 600, dtype=np.int32),
        counts=counts,
        best=np.ones(count, dtype=bool),
        model_version="benchmark",
        features={"shape": shape},
    )
    return table, right


@dataclass
class Played:
    """Seconds of the steps: (verdicts before it, seconds) without and with a refit; and of the first of all."""

    steps: list[tuple[int, float]] = field(default_factory=list)
    refits: list[tuple[int, float]] = field(default_factory=list)


def play(table: MaskTable, trees: list[ClusterTree], strategy: Strategy, right: NDArray[np.bool_]) -> Played:
    """Answer page after page, and time what the campaign does between."""
    campaign = Campaign(table, trees, strategy)
    campaign.apply(CampaignStarted("benchmark", {}, "", ""))
    played, verdicts = Played(), 0
    answers: list[PageAnswered] = []
    while verdicts < VERDICTS:
        begin = time.perf_counter()
        for answer in answers:
            campaign.apply(answer)
        events: list[Event] = []
        for decision in campaign.decisions():
            campaign.apply(decision)
            events.append(decision)
        pages = []
        for event in campaign.next_round():
            if isinstance(event, PageIssued):
                pages.append(event)
            else:
                campaign.apply(event)
            events.append(event)
        for page in pages:
            campaign.apply(page)
        seconds = time.perf_counter() - begin
        # a round's pages come together: its time is shared by the pages that it answers for
        share = seconds / max(len(answers), 1)
        if any(isinstance(event, CertificateOpened) for event in events):
            played.refits.append((verdicts, seconds))
        elif answers:
            played.steps += [(verdicts, share)] * len(answers)
        if not pages and not campaign.waiting_pages:
            break
        answers = []
        for page in pages:
            rows = campaign.pages[page.page].rows
            said: tuple[Verdict, ...] = tuple("yes" if yes else "no" for yes in right[rows].tolist())
            answers.append(PageAnswered(page.page, 0, "", 0, None, said))
            verdicts += len(rows)
    return played


def figures(played: Played) -> dict[str, Any]:
    """Milliseconds a step: over all, and over the first and the last fifth of the campaign."""
    verdicts, seconds = np.array(played.steps).T
    milliseconds = 1000 * seconds
    early = verdicts <= np.quantile(verdicts, 0.2)
    late = verdicts >= np.quantile(verdicts, 0.8)
    return {
        "steps": len(seconds),
        "verdicts": int(verdicts.max()),
        "median_ms": round(float(np.median(milliseconds)), 2),
        "p99_ms": round(float(np.quantile(milliseconds, 0.99)), 2),
        "early_median_ms": round(float(np.median(milliseconds[early])), 2),
        "late_median_ms": round(float(np.median(milliseconds[late])), 2),
        "refits": [{"verdicts": at, "seconds": round(seconds, 2)} for at, seconds in played.refits],
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--masks", type=int, default=1_000_000)
    given = parser.parse_args()
    console = Console(width=140)
    table, right = million(given.masks)
    begin = time.perf_counter()
    weights = {"score": 1.0, "shape": 1.0}
    built = [build_tree(table, place, weights) for place in range(CATEGORIES)]
    trees = [tree for tree in built if tree]
    console.print(f"{len(table)} masks, trees in {time.perf_counter() - begin:.1f} s")
    strategies: list[Strategy] = [
        # many questions before the first certificate, so that its steps come late in the campaign
        CalibratedStrategy(learn_most=VERDICTS // 2, target=0.9, pages_a_round=1, worth=0.0),
        PaperStrategy(accept_at=0.97, clusters_a_round=1, queue="campaign"),
    ]
    found = {strategy.name: figures(play(table, trees, strategy, right)) for strategy in strategies}
    shown = Table(box=SIMPLE, title="From an answered page to the next")
    shown.add_column("strategy")
    for column in ("verdicts", "steps", "median ms", "99 of 100 ms", "early ms", "late ms", "refits, s"):
        shown.add_column(column, justify="right")
    for name, row in found.items():
        shown.add_row(
            name,
            *(
                str(row[key])
                for key in ("verdicts", "steps", "median_ms", "p99_ms", "early_median_ms", "late_median_ms")
            ),
            ", ".join(str(refit["seconds"]) for refit in row["refits"]) or "none",
        )
    console.print(shown)
    if given.json:
        given.json.write_text(json.dumps({"masks": len(table), **found}, indent=1))


if __name__ == "__main__":
    main()
