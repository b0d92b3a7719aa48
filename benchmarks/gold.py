"""Gold: annotators told apart by it, and the promise kept by it where they err.

``python -m benchmarks.gold [--json OUT] [--seeds 200] [--worlds nuclei graded] [--nuclei DIR]``. Annotators who
miss 2, 10 and 30 % of the wrong masks: how often the measured rates rank two of them rightly, and how many of
their pages are asked again. Then campaigns that a team of the three answers, of whom the worst answers three pages
in five: without gold, with it, and, to compare with, by annotators who never err and need none. ``nuclei``:
predictions of a small U-Net on photographs, 64 % right. ``graded``: generated masks, right the more often the
better they score, and a promise of 70 % instead of 85 %. OUT is written anew after every ten campaigns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastcluster
import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from benchmarks.worlds import NUCLEI, nuclei
from ls_propagate.simulation import trees_of
from propagation import posterior
from propagation.annotators import Annotator, Gold
from propagation.calibrated import CalibratedStrategy
from propagation.campaign import Campaign
from propagation.columns import Runs
from propagation.gold import WRONG_SHARE, Checks, GoldPool
from propagation.masks import MaskTable
from propagation.simulate import Member, Run, World, simulate
from propagation.tree import tree_from_linkage

MISSES = (0.02, 0.1, 0.3)
PAIRS = ((0.02, 0.3, 10), (0.02, 0.1, 100))  # the better, the worse, and the pages that each has answered
TEAM = (Member(0.02, 0.0, 1), Member(0.1, 0.0, 1), Member(0.3, 0.0, 3))
BUDGETS = {"nuclei": 2000, "graded": 2600}
MASKS, POOL = 8000, 600
GOLD_A_PAGE = 2
BROKEN = 16  # of 200
KINDS = ("no gold", "gold", "never err")
Row = dict[str, Any]


def pool(categories: Sequence[str] = ("object",), masks: int = POOL) -> GoldPool:
    """Gold of each category, a third of it right."""
    names = np.repeat(np.array(categories), masks)
    ids = np.array([f"{place:020x}" for place in range(len(names))])
    return GoldPool(ids, names, np.arange(len(names)) % 3 == 0)


def graded(masks: int = MASKS, seed: int = 0) -> World:
    """Masks of one category, right the more often the better they score: from 99 % down to 30 %."""
    rng = np.random.default_rng([seed, 13])
    score = rng.uniform(0.5, 1.0, masks).astype(np.float32)
    right = rng.random(masks) < 0.3 + 0.69 * (2 * score - 1)
    table = MaskTable(
        ids=np.array([f"a{place:019x}" for place in range(masks)]),
        images=np.array([f"{place}.png" for place in range(masks)]),
        image=np.arange(masks, dtype=np.int32),
        categories=("object",),
        category=np.zeros(masks, dtype=np.int32),
        score=score,
        box=np.tile(np.array([0, 0, 8, 8], dtype=np.float32), (masks, 1)),
        area=np.full(masks, 64, dtype=np.int32),
        size=np.full((masks, 2), 8, dtype=np.int32),
        counts=Runs.of([b"0"] * masks),
        best=np.ones(masks, dtype=bool),
        model_version="benchmark",
    )
    linked = fastcluster.linkage_vector(score[:, None].astype(np.float64), "single")
    tree = tree_from_linkage("object", np.arange(masks), linked)
    return World(table, [tree], np.where(right, 0.9, 0.3).astype(np.float32), target=0.7)


def answers(miss: float, pages: int, many: int, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """(many, pages) wrong gold shown to annotators of one rate, and missed by them."""
    wrong = rng.binomial(GOLD_A_PAGE, WRONG_SHARE, (many, pages))
    return wrong, rng.binomial(wrong, miss)


def told_apart(better: float, worse: float, pages: int, many: int = 2000, seed: int = 0) -> float:
    """How often two annotators are ranked rightly by the rates that their gold says, so many pages each."""
    rng = np.random.default_rng([seed, 11])
    rates = []
    for miss in (better, worse):
        wrong, missed = (counts.sum(axis=1) for counts in answers(miss, pages, many, rng))
        rates.append(missed / np.maximum(wrong, 1))
    return float((rates[0] < rates[1]).mean())


def asked_again(miss: float, pages: int, many: int = 50, seed: int = 0) -> float:
    """The share of an annotator's pages that would be asked again."""
    wrong, missed = answers(miss, pages, many, np.random.default_rng([seed, 12]))
    refused = 0
    for one in zip(wrong.tolist(), missed.tolist(), strict=True):
        annotator = Annotator()
        for shown, passed in zip(*one, strict=True):
            annotator.take(Gold(shown, passed), Checks().tolerated)
            refused += annotator.suspected
    return refused / (many * pages)


def campaigns(
    world: World,
    kind: str,
    seeds: range,
    budget: int,
    tell: Callable[[Row], None] = lambda row: None,
) -> Row:
    """Campaigns in one world: what came of them. tell: is shown that after every ten."""
    team = (Member(),) if kind == "never err" else TEAM
    checks = Checks(pool(world.table.categories)) if kind == "gold" else Checks()
    played = replace(world, team=team, checks=checks)
    begin, runs, again = time.monotonic(), list[Run](), 0
    row: Row = {}
    refused: dict[int, list[int]] = {}
    for seed in seeds:
        seen: list[Campaign] = []
        runs.append(simulate(played, CalibratedStrategy(target=world.target, budget=budget), seed, seen.append))
        again += sum(page.issued.attempt > 1 for page in seen[-1].pages.values())
        for account, annotator in seen[-1].team.accounts.items():
            told = refused.setdefault(account, [0, 0])
            told[0] += annotator.refused
            told[1] += annotator.answers
        totals = [run.total for run in runs]
        precision = [total.precision for total in totals if total.precision is not None]
        row = {
            "kind": kind,
            "target": world.target,
            "budget": budget,
            "seeds": len(runs),
            "broken": sum(total.wrong_ever for total in totals),
            "accepted_something": sum(total.accepted > 0 for total in totals),
            "accepted": round(float(np.mean([total.accepted for total in totals])), 1),
            "precision": round(float(np.mean(precision)), 4) if precision else None,
            "worst_precision": round(min(precision), 4) if precision else None,
            "yield": round(float(np.mean([total.right for total in totals])) / int(world.right.sum()), 4),
            "questions": round(float(np.mean([total.questions for total in totals])), 1),
            "pages_again": again,
            "refused": {f"{team[a - 1].miss:g}": round(r / n, 4) for a, (r, n) in sorted(refused.items())},
            "seconds": round(time.monotonic() - begin, 1),
        }
        if len(runs) % 10 == 0:
            tell(row)
    return row


def measure(given: argparse.Namespace, console: Console) -> None:
    """Everything."""
    found: dict[str, Any] = {"told_apart": [], "asked_again": {}, "campaigns": []}
    rows = found["campaigns"]

    def keep(*more: Row) -> None:
        if given.json:
            given.json.write_text(json.dumps({**found, "campaigns": [*rows, *more]}, indent=1))

    for better, worse, pages in PAIRS:
        share = told_apart(better, worse, pages)
        found["told_apart"].append({"better": better, "worse": worse, "pages": pages, "share": share})
        console.print(f"{worse:.0%} told from {better:.0%} after {pages} pages: {share:.1%}")
    for miss in MISSES:
        found["asked_again"][f"{miss:g}"] = share = asked_again(miss, 500)
        console.print(f"pages asked again of who misses {miss:.0%}: {share:.2%}")
    for name in given.worlds:
        world = graded() if name == "graded" else _nuclei(given.nuclei)
        console.print(f"{name}: {len(world.table)} masks, {world.right.mean():.1%} right")
        for kind in KINDS:
            about = {"world": name, "right": round(float(world.right.mean()), 4)}

            def tell(row: Row, about: Row = about) -> None:
                keep(about | row)

            rows.append(about | campaigns(world, kind, range(given.seeds), BUDGETS[name], tell))
            keep()
        console.print(as_table([row for row in rows if row["world"] == name]))


def _nuclei(folder: Path) -> World:
    table, iou = nuclei(folder)
    return World(table, trees_of(table), iou)


def as_table(rows: list[Row]) -> Table:
    """Campaigns of one world for the terminal; accepted also as a share of what those who never err get."""
    table = Table(box=SIMPLE)
    for column in (
        "world",
        "annotators",
        "broken",
        "accepted in",
        "accepted",
        "share",
        "yield",
        "right",
        "refused",
    ):
        table.add_column(column, justify="left" if column in ("world", "annotators", "refused") else "right")
    for row in rows:
        table.add_row(
            row["world"],
            row["kind"],
            f"{row['broken']} of {row['seeds']}",
            str(row["accepted_something"]),
            f"{row['accepted']:.0f}",
            f"{row['accepted'] / max(rows[-1]['accepted'], 1):.0%}",
            f"{row['yield']:.0%}",
            "–" if row["precision"] is None else f"{row['precision']:.1%}",
            ", ".join(f"{miss}: {share:.0%}" for miss, share in row["refused"].items()),
        )
    return table


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--worlds", nargs="+", choices=list(BUDGETS), default=list(BUDGETS))
    parser.add_argument("--nuclei", type=Path, default=NUCLEI, help="folder of the nuclei, with pool/ in it")
    posterior.TREES = 30  # a forest for each of hundreds of campaigns
    threadpool_limits(1)
    measure(parser.parse_args(), Console(width=160))


if __name__ == "__main__":
    main()
