"""A dataset folder: images to be labeled and an annotated seed set, with COCO ground truth for both."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from propagation.errors import InputError, MaskError
from propagation.rle import Rle, read_segmentation

Objects = dict[str, list[tuple[str, Rle]]]


@dataclass(frozen=True)
class Part:
    """The pool or the seed set: image files, and the (category, mask) of their objects by file name."""

    images: list[Path]
    objects: Objects


@dataclass(frozen=True)
class Dataset:
    """A folder with ``pool/`` and, where there is one, ``seed/``: images/ and ground_truth.json in each.

    predictions, features: COCO results and an .npy beside the pool, or None.
    """

    folder: Path
    categories: list[str]
    pool: Part
    seed: Part
    predictions: Path | None
    features: Path | None


def read_dataset(folder: Path) -> Dataset:
    """Read a dataset folder. Raises InputError naming what is missing or broken in it."""
    categories, pool = _part(folder / "pool")
    seed = _part(folder / "seed")[1] if (folder / "seed").is_dir() else Part([], {})
    files = (folder / "pool" / name for name in ("predictions.json", "features.npy"))
    predictions, features = (file if file.is_file() else None for file in files)
    if predictions is None and not seed.images:
        raise InputError(f"{folder} has neither pool/predictions.json nor a seed set to train on; add one of them")
    return Dataset(folder, categories, pool, seed, predictions, features)


def _part(folder: Path) -> tuple[list[str], Part]:
    file = folder / "ground_truth.json"
    try:
        truth = json.loads(file.read_text())
        names = {item["id"]: item["name"] for item in truth["categories"]}
        images = {item["id"]: item for item in truth["images"]}
        objects: Objects = defaultdict(list)
        for item in truth["annotations"]:
            image = images[item["image_id"]]
            rle = read_segmentation(item["segmentation"], image["height"], image["width"])
            objects[image["file_name"]].append((names[item["category_id"]], rle))
    except (OSError, ValueError, KeyError, TypeError, MaskError) as error:
        raise InputError(f"{file} is no COCO ground truth ({error!r}); correct --dataset or the file") from error
    paths = [folder / "images" / item["file_name"] for item in truth["images"]]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"{file} names {missing[0]}, which does not exist; restore it or take it out of the file")
    return list(names.values()), Part(paths, dict(objects))
