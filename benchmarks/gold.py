"""Gold: annotators told apart by it, and the promise kept by it where they err.

``python -m benchmarks.gold [--json OUT] [--seeds 200]``. Annotators who miss 2, 10 and 30 % of the wrong masks:
how often the measured rates rank two of them rightly, and how many of their pages are asked again. Then campaigns
in worlds of 16,000 masks, answered by the three of them, of whom the worst answers three pages in five; with gold,
and without. In the world ``misleading`` 82.5 % of the masks are right, which looks like 86 % to such a team; in
``good``, 95 %.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import fastcluster
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from propagation import posterior
from propagation.annotators import Annotator, Gold
from propagation.calibrated import CalibratedStrategy
from propagation.columns import Runs
from propagation.gold import WRONG_SHARE, Checks, GoldPool
from propagation.masks import MaskTable
from propagation.simulate import Member, World, simulate
from propagation.tree import ClusterTree, tree_from_linkage

MISSES = (0.02, 0.1, 0.3)
PAIRS = ((0.02, 0.3, 10), (0.02, 0.1, 100))  # the better, the worse, and the pages that each has answered
TEAM = (Member(0.02, 0.0, 1), Member(0.1, 0.0, 1), Member(0.3, 0.0, 3))
WORLDS = {"misleading": 0.825, "good": 0.95}
MASKS, BUDGET, POOL = 16_000, 2000, 600
GOLD_A_PAGE = 2
BROKEN = 16  # of 200


def pool(masks: int = POOL) -> GoldPool:
    """Gold of one category, a third of it right."""
    ids = np.array([f"{place:020x}" for place in range(masks)])
    return GoldPool(ids, np.full(masks, "object"), np.arange(masks) % 3 == 0)


def world(masks: int, seed: int = 0) -> tuple[MaskTable, ClusterTree]:
    """Masks whose scores say nothing of whether they are right."""
    score = np.random.default_rng(seed).uniform(0.86, 0.9, masks).astype(np.float32)
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
    joined = fastcluster.linkage(score[:, None].astype(np.float64), "single")
    return table, tree_from_linkage("object", np.arange(masks), joined)


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


def campaigns(name: str, seeds: range, masks: int = MASKS, budget: int = BUDGET) -> list[dict[str, Any]]:
    """Campaigns in one world, with gold and without."""
    table, tree = world(masks)
    rows = []
    for kind, checks in (("gold", Checks(pool())), ("no gold", Checks())):
        begin, runs, again = time.monotonic(), [], 0
        refused: dict[int, list[int]] = {}
        for seed in seeds:
            truth = np.random.default_rng([seed, 13]).random(masks) < WORLDS[name]
            iou = np.where(truth, 0.9, 0.3).astype(np.float32)
            seen: list[Any] = []
            one = World(table, [tree], iou, team=TEAM, checks=checks)
            runs.append(simulate(one, CalibratedStrategy(budget=budget), seed, seen.append).total)
            again += sum(page.issued.attempt > 1 for page in seen[-1].pages.values())
            for account, annotator in seen[-1].team.accounts.items():
                told = refused.setdefault(account, [0, 0])
                told[0] += annotator.refused
                told[1] += annotator.answers
        precision = [run.precision for run in runs if run.precision is not None]
        rows.append(
            {
                "world": name,
                "right": WORLDS[name],
                "kind": kind,
                "seeds": len(runs),
                "broken": sum(run.wrong_ever for run in runs),
                "accepted_something": sum(run.accepted > 0 for run in runs),
                "accepted": round(float(np.mean([run.accepted for run in runs])), 1),
                "precision": round(float(np.mean(precision)), 4) if precision else None,
                "questions": round(float(np.mean([run.questions for run in runs])), 1),
                "pages_again": again,
                "refused": {f"{TEAM[a - 1].miss:g}": round(r / n, 4) for a, (r, n) in sorted(refused.items())},
                "seconds": round(time.monotonic() - begin, 1),
            }
        )
    return rows


def measure(seeds: range, console: Console) -> dict[str, Any]:
    """Everything."""
    found: dict[str, Any] = {"told_apart": [], "asked_again": {}, "campaigns": []}
    for better, worse, pages in PAIRS:
        share = told_apart(better, worse, pages)
        found["told_apart"].append({"better": better, "worse": worse, "pages": pages, "share": share})
        console.print(f"{worse:.0%} told from {better:.0%} after {pages} pages: {share:.1%}")
    for miss in MISSES:
        found["asked_again"][f"{miss:g}"] = share = asked_again(miss, 500)
        console.print(f"pages asked again of who misses {miss:.0%}: {share:.2%}")
    for name in WORLDS:
        for row in campaigns(name, seeds):
            found["campaigns"].append(row)
            console.print(
                f"{name} ({row['right']:.1%} right), {row['kind']}: broken {row['broken']} of {row['seeds']}, "
                f"{row['accepted_something']} accepted something, {row['accepted']:.0f} masks at "
                f"{row['precision'] or 0:.1%}, {row['questions']:.0f} questions, "
                f"refused by miss rate {row['refused']}, {row['seconds']:.0f} s"
            )
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--seeds", type=int, default=200)
    given = parser.parse_args()
    posterior.TREES = 30  # scores that say nothing need no forest
    found = measure(range(given.seeds), Console(width=200))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
