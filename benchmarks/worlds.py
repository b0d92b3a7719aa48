"""What the benchmarks simulate on: masks with their truth, real and generated."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ls_propagate.demo.dataset import read_dataset
from ls_propagate.demo.scenes import make_scenes
from ls_propagate.simulation import read_masks
from ml_backend.detect import detect
from ml_backend.segmenters.seed_set import read_seed_set
from ml_backend.segmenters.watershed import train
from propagation.masks import MaskTable
from propagation.quality import truth_iou

Masks = tuple[MaskTable, NDArray[np.float32]]

#: predictions of a small U-Net on photographs of nuclei (2018 Data Science Bowl), beside the checkout
NUCLEI = Path(__file__).parents[2] / "shared" / "data" / "nuclei"


def nuclei(folder: Path = NUCLEI) -> Masks:
    """The masks of ``folder``/pool, and the IoU of each with the truth."""
    pool = folder / "pool"
    return read_masks(pool / "predictions.json", pool / "features.npy", pool / "ground_truth.json")


def digits(seed: int = 0, images: int = 420) -> Masks:
    """The masks that the demo finds in its generated scenes, and the IoU of each with the truth."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_scenes(folder, images, seed)
        dataset = read_dataset(folder)
        files = {path.name: path for path in dataset.pool.images}
        table, _ = detect(
            train(read_seed_set(folder / "seed")),
            list(files),
            lambda key: files[key].read_bytes(),
            "watershed",
        )
        return table, truth_iou(table, {key: dataset.pool.objects.get(key, []) for key in files})


def paper_weights(table: MaskTable) -> Mapping[str, float]:
    """The blocks nearest to the paper's: deep features and the score; without a model's, low-resolution masks."""
    return {"deep" if "deep" in table.features else "mask": 1.0, "score": 1.0}
