"""What a second round brings: a network trained on a seed set, then also on what a campaign accepted.

``python -m benchmarks.rounds [--json OUT] [--nuclei FOLDER] [--seeds 3] [--first 0] [--budget 600]
[--threads N]``. Trained on ``FOLDER``/seed, the network segments ``FOLDER``/pool; a simulated campaign of 600
questions, by the default strategy and answered by the truth, accepts some of its masks; trained on with the seed
set and these, it segments the same pool. Right is an IoU above 0.75 with an object of the category.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.segmenters import found, row, trained
from benchmarks.worlds import NUCLEI
from ls_propagate.demo.dataset import Dataset, read_dataset
from ls_propagate.simulation import trees_of
from ls_propagate.training import partly_known
from ml_backend.segmenters.base import Image
from ml_backend.segmenters.seed_set import Labeled, Partly, SeedSet, read_seed_set
from ml_backend.segmenters.unet import UNet
from ml_backend.segmenters.unet_training import LATER, Training
from plugin.label_studio.images import decode
from propagation.calibrated import CalibratedStrategy
from propagation.campaign import Campaign
from propagation.masks import MaskTable
from propagation.quality import RIGHT_IOU
from propagation.simulate import World, simulate

AS_MANY = 10_000  # of the best scored masks, by which rounds compare however many masks they keep


def accepted_of(table: MaskTable, iou: Any, budget: int, seed: int) -> tuple[Any, dict[str, Any]]:
    """(n,) what a campaign accepts of a table's masks, and what is told of it."""
    last: list[Campaign] = []
    world = World(table, trees_of(table), iou)
    run = simulate(
        world, CalibratedStrategy(budget=budget), seed, lambda campaign: last.__setitem__(slice(None), [campaign])
    )
    total = run.total
    told = {"questions": total.questions, "accepted": total.accepted, "accepted_right": total.right}
    return last[0].accepted(), told


def partly(dataset: Dataset, seed: SeedSet, table: MaskTable, accepted: Any) -> list[Partly]:
    """The pool's images with accepted masks, to be learned from."""
    files = {path.name: path for path in dataset.pool.images}
    known = []
    for picture in partly_known(table, accepted, seed.categories, {key: key for key in files}):
        image = Image(picture.key, decode(picture.key, files[picture.key].read_bytes()))
        places = np.array([place for _, place in picture.objects], np.int64)
        known.append(Partly(Labeled(image, [rle for rle, _ in picture.objects], places), picture.doubtful or ()))
    return known


def rounds(
    dataset: Dataset, seed: SeedSet, training: Training, budget: int, console: Console
) -> list[dict[str, Any]]:
    """The rows of one seed, of both rounds."""
    rows = []
    known: list[Partly] = []
    campaign: dict[str, Any] = {}
    model: UNet | None = None
    later = replace(LATER, seed=training.seed)
    for number, how in ((1, training), (2, later)):
        began = time.monotonic()
        model, held = trained(seed, how, console, f"seed {training.seed}, round {number}", known, model)
        seconds = round(time.monotonic() - began, 1)
        table, iou = found(model, dataset)
        best = np.argsort(-table.score, kind="stable")[:AS_MANY]
        told = {
            "right_of_best": int((iou[best] > RIGHT_IOU).sum()),
            "round": number,
            "seed": training.seed,
            "training_s": seconds,
            "held_out": vars(held),
            **campaign,
        }
        rows.append(row(f"seed {training.seed}", table, iou, **told))
        console.print(json.dumps(rows[-1]), soft_wrap=True)
        if number == 1:
            accepted, campaign = accepted_of(table, iou, budget, training.seed)
            known = partly(dataset, seed, table, accepted)
            campaign["accepted_images"] = len(known)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--nuclei", type=Path, default=NUCLEI)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--budget", type=int, default=600)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    console = Console(width=120)
    dataset, seed = read_dataset(given.nuclei), read_seed_set(given.nuclei / "seed")
    rows: list[dict[str, Any]] = []
    for number in range(given.first, given.first + given.seeds):
        rows += rounds(dataset, seed, Training(seed=number), given.budget, console)
        if given.json:
            given.json.write_text(json.dumps(rows, indent=1))
    table = Table(box=SIMPLE)
    for title in (
        "seed",
        "round",
        "learned from accepted",
        "masks",
        "right",
        "share",
        "right of the best 10,000",
        "training",
    ):
        table.add_column(title, justify="right")
    for one in rows:
        learned = f"{one['accepted']:,} in {one['accepted_images']} images" if one["round"] == 2 else "–"
        shown = (
            one["seed"],
            one["round"],
            learned,
            f"{one['masks']:,}",
            f"{one['right']:,}",
            f"{one['share']:.1%}",
        )
        table.add_row(*map(str, shown), f"{one['right_of_best']:,}", f"{one['training_s']:.0f} s")
    console.print(table)


if __name__ == "__main__":
    main()
