"""What segmenters make of one seed set: right masks in a pool whose truth is known, beside a model made elsewhere.

``python -m benchmarks.segmenters [--json OUT] [--nuclei FOLDER] [--seeds 1] [--threads N]``. Each segmenter is
trained on ``FOLDER``/seed alone and segments ``FOLDER``/pool; right is an IoU above 0.75 with an object of its
category. The masks of ``predictions.json`` are those of a U-Net of two million parameters, trained on the same
images.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from benchmarks.worlds import NUCLEI, nuclei
from ls_propagate.demo.dataset import Dataset, read_dataset
from ml_backend import detect
from ml_backend.segmenters import unet_training, watershed
from ml_backend.segmenters.base import Segmenter
from ml_backend.segmenters.seed_set import Partly, SeedSet, read_seed_set
from ml_backend.segmenters.unet import UNet
from ml_backend.segmenters.unet_training import Held, Training
from propagation.masks import MaskTable
from propagation.quality import RIGHT_IOU, truth_iou


def found(segmenter: Segmenter, dataset: Dataset) -> tuple[MaskTable, NDArray[np.float32]]:
    """The masks of a segmenter in a dataset's pool, and the IoU of each with the truth."""
    files = {path.name: path for path in dataset.pool.images}
    table, _ = detect.detect(segmenter, list(files), lambda key: files[key].read_bytes(), "benchmark")
    return table, truth_iou(table, {key: dataset.pool.objects.get(key, []) for key in files})


def row(name: str, table: MaskTable, iou: NDArray[np.float32], **more: Any) -> dict[str, Any]:
    """What is told of one segmenter. auc: how well its score tells right masks from wrong ones."""
    right = iou > RIGHT_IOU
    order = np.argsort(np.argsort(table.score, kind="stable")) + 1
    pairs = max(int(right.sum()) * int((~right).sum()), 1)
    auc = (order[right].sum() - right.sum() * (right.sum() + 1) / 2) / pairs
    by_category = {
        name: [int(right[table.category == place].sum()), int((table.category == place).sum())]
        for place, name in enumerate(table.categories)
    }
    return {
        "segmenter": name,
        "masks": len(table),
        "right": int(right.sum()),
        "share": round(float(right.mean()), 4),
        "auc": round(float(auc), 3),
        "by_category": by_category,
        **more,
    }


def trained(
    seed: SeedSet,
    training: Training,
    console: Console,
    name: str,
    partly: Sequence[Partly] = (),
    start: UNet | None = None,
) -> tuple[UNet, Held]:
    """A network trained with a progress bar, and what it came to on the images held out."""
    with Progress(console=console) as progress:
        bar = progress.add_task(name, total=training.steps)
        told = partial(_tell, progress, bar)
        return unet_training.train(seed, training, told, partly, start)


def _tell(progress: Progress, bar: TaskID, step: int, loss: float) -> None:
    progress.update(bar, completed=step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--nuclei", type=Path, default=NUCLEI)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    console = Console(width=120)
    dataset, seed = read_dataset(given.nuclei), read_seed_set(given.nuclei / "seed")
    rows = [row("predictions.json", *nuclei(given.nuclei))]

    def tell(segmenter: Callable[[], tuple[str, Segmenter, dict[str, Any]]]) -> None:
        began = time.monotonic()
        name, made, more = segmenter()
        trained = time.monotonic()
        masks, iou = found(made, dataset)
        now = time.monotonic()
        seconds: dict[str, Any] = {
            "training_s": round(trained - began, 1),
            "images_per_s": len(dataset.pool.images) / (now - trained),
        }
        rows.append(row(name, masks, iou, **seconds, **more))

    tell(lambda: ("watershed", watershed.train(seed), {}))
    for number in range(given.seeds):
        training = Training(seed=number)

        def one(training: Training = training) -> tuple[str, Segmenter, dict[str, Any]]:
            model, held = trained(seed, training, console, f"unet, seed {training.seed}")
            return f"unet, seed {training.seed}", model, {"held_out": vars(held)}

        tell(one)
    table = Table(box=SIMPLE)
    for title in ("segmenter", "masks", "right", "share", "AUC of the score", "training", "images a second"):
        table.add_column(title, justify="left" if title == "segmenter" else "right")
    for told in rows:
        speed = (
            [f"{told['training_s']:.0f} s", f"{told['images_per_s']:.1f}"] if "training_s" in told else ["", ""]
        )
        counts = f"{told['masks']:,}", f"{told['right']:,}", f"{told['share']:.1%}", f"{told['auc']:.3f}"
        table.add_row(told["segmenter"], *counts, *speed)
    console.print(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
