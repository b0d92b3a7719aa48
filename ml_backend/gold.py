"""Gold: masks on images that people annotated, whose truth is therefore known, right and wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from ml_backend.segmenters.base import Segmenter
from ml_backend.segmenters.seed_set import Labeled, SeedSet
from ml_backend.segmenters.watershed import Watershed, train
from propagation.columns import Runs
from propagation.errors import InputError
from propagation.masks import NOTHING, Detections, MaskTable, build_table
from propagation.quality import RIGHT_IOU, truth_iou
from propagation.rle import Rle, decode

FOLDS = 4
ENOUGH_RIGHT, ENOUGH_WRONG = 20, 40  # of a category; below, masks are made from the ground truth
NEAR = 1.5  # sides of an object between its centre and that of a neighbour, at most
SIDES = ((0, 1), (1, 0), (0, -1), (-1, 0))


def make_gold(
    segmenter: Segmenter, images: Sequence[Labeled], taken: frozenset[str] = frozenset()
) -> tuple[MaskTable, NDArray[np.bool_]]:
    """Masks on annotated images, and (g,) whether each is right: its IoU with an object of its category.

    They are what a segmenter finds there that has not seen these images; of categories in which that is too
    little, also the objects, and what is made wrong of them. taken: ids of masks that are asked about anyway.
    """
    categories = segmenter.categories
    keys = [labeled.image.key for labeled in images]
    truth = {
        labeled.image.key: [(categories[c], rle) for c, rle in zip(labeled.categories, labeled.rles, strict=True)]
        for labeled in images
    }
    found = [_best(d, key, categories) for key, d in zip(keys, unseen(segmenter, images), strict=True)]
    right = truth_iou(build_table(keys, found, categories, "gold"), truth) > RIGHT_IOU
    category = np.concatenate([np.empty(0, np.int64), *(d.categories for d in found)])
    if len(right) == len(category):
        size = len(categories)
        lacking = np.bincount(category[right], minlength=size) < ENOUGH_RIGHT
        wanting = np.bincount(category[~right], minlength=size) < ENOUGH_WRONG
        found = [
            _joined(d, made)
            for d, made in zip(found, (_made(one, lacking, wanting, size) for one in images), strict=True)
        ]
    table = build_table(keys, found, categories, "gold")
    right = truth_iou(table, truth) > RIGHT_IOU
    kept = np.flatnonzero(~np.isin(table.ids, list(taken)))
    return _rows(table, kept), right[kept]


def unseen(segmenter: Segmenter, images: Sequence[Labeled]) -> Sequence[Detections]:
    """What a segmenter finds on annotated images that it has not learned from.

    One that learns at once is trained on the other images for each part of them; where one says which images it
    has ``learned``, nothing is taken of these. Of predictions found earlier, those that the file has of these
    images are taken: who made them knows whether the model had seen them.
    """
    if not isinstance(segmenter, Watershed):
        learned: frozenset[str] = getattr(segmenter, "learned", frozenset())
        fresh = [labeled.image for labeled in images if labeled.image.key not in learned]
        found = dict(zip([image.key for image in fresh], segmenter.segment(fresh), strict=True))
        return [found.get(labeled.image.key, NOTHING) for labeled in images]
    seed = SeedSet(segmenter.categories, images)
    fold = np.arange(len(images)) % FOLDS
    answered: dict[int, Detections] = {}
    for part in range(FOLDS):
        here = np.flatnonzero(fold == part)
        others = [images[place] for place in np.flatnonzero(fold != part)]
        if not len(here):
            continue
        try:
            model = train(replace(seed, images=others), segmenter.least_score)
        except (InputError, ValueError):  # too few objects among the others to learn from
            continue
        answers = model.segment([images[place].image for place in here])
        answered.update(zip(here.tolist(), answers, strict=True))
    return [answered.get(place, NOTHING) for place in range(len(images))]


def _best(found: Detections, key: str, categories: Sequence[str]) -> Detections:
    """The masks that no other of the same object beat: only these are asked about elsewhere. Without features."""
    table = build_table([key], [replace(found, features=None)], categories, "gold")
    rows = np.flatnonzero(table.best)
    return Detections(table.rles(rows), table.score[rows], table.category[rows].astype(np.int64))


def _joined(one: Detections, other: Detections) -> Detections:
    return Detections(
        [*one.rles, *other.rles],
        np.concatenate([one.scores, other.scores]).astype(np.float32),
        np.concatenate([one.categories, other.categories]).astype(np.int64),
    )


def _made(labeled: Labeled, lacking: NDArray[np.bool_], wanting: NDArray[np.bool_], categories: int) -> Detections:
    """The objects of an image, and what is made wrong of them, of categories that lack right or wrong masks."""
    made: list[tuple[Rle, int]] = []
    for place, (rle, category) in enumerate(zip(labeled.rles, labeled.categories.tolist(), strict=True)):
        if lacking[category]:
            made.append((rle, category))
        if wanting[category]:
            made += [(wrong, category) for wrong in _spoiled(labeled, place)]
            other = (category + 1 + place % max(categories - 1, 1)) % categories
            if other != category and wanting[other]:
                made.append((rle, other))
    return Detections(
        [rle for rle, _ in made], np.full(len(made), 0.5, np.float32), np.array([c for _, c in made], np.int64)
    )


def _spoiled(labeled: Labeled, place: int) -> Iterator[Rle]:
    """An object's mask shifted, eaten away, and merged with a neighbour's."""
    rle = labeled.rles[place]
    mask = decode(rle).astype(np.uint8)
    width, height = coco.toBbox(dict(rle))[2:]
    across, down = SIDES[place % 4]
    moved = np.array([[1, 0, across * width * 0.3], [0, 1, down * height * 0.3]], np.float32)
    size = mask.shape[::-1]
    yield from _encoded(cv2.warpAffine(mask, moved, size, flags=cv2.INTER_NEAREST))
    thick = max(3, round(min(width, height) * 0.25)) | 1
    yield from _encoded(cv2.erode(mask, np.ones((thick, thick), np.uint8), borderValue=0))
    if (other := _neighbour(labeled, place)) is not None:
        yield coco.merge([dict(rle), dict(labeled.rles[other])])


def _neighbour(labeled: Labeled, place: int) -> int | None:
    """The object nearest to another, None where it is far: what nobody would merge is no question."""
    left, top, width, height = coco.toBbox([dict(rle) for rle in labeled.rles]).T
    away = np.hypot(*(at - at[place] for at in (left + width / 2, top + height / 2)))
    away[place] = np.inf
    nearest = int(away.argmin())
    return nearest if away[nearest] <= NEAR * max(width[place], height[place]) else None


def _encoded(mask: NDArray[Any]) -> Iterator[Rle]:
    if mask.any():
        yield coco.encode(np.asfortranarray(mask, dtype=np.uint8))


def _rows(table: MaskTable, rows: NDArray[np.int64]) -> MaskTable:
    return replace(
        table,
        **{
            name: getattr(table, name)[rows]
            for name in ("ids", "image", "category", "score", "box", "area", "size", "best")
        },
        counts=Runs.of(table.counts[row] for row in rows),
    )
