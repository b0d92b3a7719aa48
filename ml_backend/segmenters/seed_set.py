"""A seed set: a few images with all their objects, from which a segmenter is trained."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from ml_backend.segmenters.base import Image
from plugin.label_studio.images import decode as decode_image
from propagation.errors import ImageError, InputError, MaskError
from propagation.quality import RIGHT_IOU
from propagation.rle import Rle, decode, read_segmentation


@dataclass(frozen=True)
class Labeled:
    """An image of a seed set, its n objects' encodings, and (n,) indices into the set's categories."""

    image: Image
    rles: Sequence[Rle]
    categories: NDArray[np.int64]


@dataclass(frozen=True)
class Partly:
    """An image of which some objects are known. doubtful: masks of which it isn't known whether they are right."""

    labeled: Labeled
    doubtful: Sequence[Rle]


@dataclass(frozen=True)
class SeedSet:
    """Two or more images, one object at least, and the categories in the order of their COCO ids."""

    categories: tuple[str, ...]
    images: Sequence[Labeled]


def read_seed_set(folder: Path) -> SeedSet:
    """Read a folder with ``images/`` and ``ground_truth.json`` (COCO).

    Raises InputError for a ground truth that is missing or empty, ImageError for an image that is missing
    or cannot be read, MaskError for an object; the message names the file.
    """
    path = folder / "ground_truth.json"
    try:
        truth = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); write the COCO ground truth there") from error
    _check(truth, str(path))
    return make_seed_set([_read(folder / "images", image["file_name"]) for image in truth["images"]], truth)


def make_seed_set(images: Sequence[Image], truth: Mapping[str, Any]) -> SeedSet:
    """Join images with their COCO ground truth, by ``file_name`` == ``Image.key``; crowds are left out.

    Raises InputError for a ground truth without objects or with fewer than two images, ImageError for an
    image of the ground truth that is not among ``images``, MaskError for an object that cannot be used.
    """
    _check(truth, "the ground truth")
    categories = sorted(truth["categories"], key=lambda category: int(category["id"]))
    places = {category["id"]: place for place, category in enumerate(categories)}
    by_key = {image.key: image for image in images}
    objects: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in truth["annotations"]:
        if not annotation.get("iscrowd"):
            objects[annotation["image_id"]].append(annotation)
    labeled = []
    for entry in truth["images"]:
        name = entry["file_name"]
        if name not in by_key:
            raise ImageError(f"the seed image {name} is missing; add it or take it out of the ground truth")
        here = objects[entry["id"]]
        labeled.append(
            Labeled(
                by_key[name],
                [_mask(annotation, by_key[name], places) for annotation in here],
                np.array([places[annotation["category_id"]] for annotation in here], np.int64),
            )
        )
    if not any(image.rles for image in labeled):
        raise InputError("no image of the ground truth has an object; annotate some of them")
    return SeedSet(tuple(str(category["name"]) for category in categories), labeled)


def _mask(annotation: Mapping[str, Any], image: Image, categories: Mapping[Any, int]) -> Rle:
    height, width = image.pixels.shape[:2]
    try:
        rle = read_segmentation(annotation.get("segmentation"), height, width)
        if list(rle["size"]) != [height, width]:
            raise MaskError(f"the mask is {rle['size']}, the image {[height, width]}")
        if annotation.get("category_id") not in categories:
            raise MaskError(f"there is no category {annotation.get('category_id')!r}")
    except MaskError as error:
        raise MaskError(
            f"annotation {annotation.get('id')} of seed image {image.key}: {error}; correct it there"
        ) from error
    return rle


def _check(truth: Any, name: str) -> None:
    parts = ("images", "annotations", "categories")
    if not isinstance(truth, Mapping) or not all(truth.get(part) for part in parts):
        raise InputError(
            f"{name} is no COCO ground truth with images, annotations and categories; "
            "annotate some images and export them as COCO first"
        )
    if len(truth["images"]) < 2:
        raise InputError(f"{name} has one image; the scores need two or more, annotate another one")


def _read(folder: Path, name: str) -> Image:
    path = folder / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} is missing; put the image there or take it out of ground_truth.json") from error
    return Image(name, decode_image(str(path), content))


def painted(labeled: Labeled) -> NDArray[np.int64]:
    """(h, w) the number of the object that covers a pixel, from 1, 0 for none."""
    numbers = np.zeros(labeled.image.pixels.shape[:2], np.int64)
    for number, rle in enumerate(labeled.rles, start=1):
        numbers[decode(rle)] = number
    return numbers


def overlaps(rles: Sequence[Rle], labeled: Labeled, categories: int) -> NDArray[np.float64]:
    """(n, categories) the IoU of each mask with the nearest object of each category."""
    found = np.zeros((len(rles), categories))
    if rles and labeled.rles:
        pairs = coco.iou(list(rles), list(labeled.rles), [0] * len(labeled.rles))
        np.maximum.at(found.T, labeled.categories, pairs.T)
    return found


def count_right(parts: NDArray[np.int64], numbers: NDArray[np.int64]) -> tuple[int, int, int]:
    """How many parts of an image are right, whatever their category, how many there are, and how many objects.

    parts, numbers: (h, w) the part and the object that each pixel belongs to, from 1, 0 for none.
    """
    shape = (int(parts.max()) + 1, int(numbers.max()) + 1)
    pairs = np.ravel_multi_index((parts.ravel(), numbers.ravel()), shape)
    shared = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
    together = shared.sum(axis=1)[:, None] + shared.sum(axis=0) - shared
    right = np.count_nonzero((shared / np.maximum(together, 1))[1:, 1:] > RIGHT_IOU)
    return right, shape[0] - 1, shape[1] - 1


def f2(counts: Sequence[tuple[int, int, int]]) -> float:
    """The F2 score over images, of what ``count_right`` counted: a missed object costs more than a wrong mask."""
    right, masks, objects = np.sum(counts, axis=0).tolist()
    return 5 * right / max(masks + 4 * objects, 1)
