"""The quality of masks against a ground truth, or against what an expert drew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from propagation.masks import MaskTable
from propagation.rle import Rle

RIGHT_IOU = 0.75  # K_iou of the paper: above it a mask counts as right
MATCHED_IOU = 0.5  # of panoptic quality: above it, two masks are of one object


def truth_iou(table: MaskTable, truth: Mapping[str, Sequence[tuple[str, Rle]]]) -> NDArray[np.float32]:
    """(n,) the best IoU of each mask with an object of its category in its image, 0 where there is none.

    truth: image key to the (category, mask) of its objects.
    """
    best = np.zeros(len(table), dtype=np.float32)
    for image, rows in zip(table.images.tolist(), table.rows_by_image(), strict=True):
        objects = truth.get(image, ())
        for number, category in enumerate(table.categories):
            here = rows[table.category[rows] == number]
            there = [rle for name, rle in objects if name == category]
            if len(here) and there:
                best[here] = coco.iou(table.rles(here), there, [0] * len(there)).max(axis=1)
    return best


@dataclass(frozen=True)
class Drawn:
    """What an expert's outlines say of some masks, of one category or of all.

    drawn: masks that the expert answered; none: those where there was no such object; right: those whose IoU with
    the outline is above ``RIGHT_IOU``, with the exact 95 % interval of their share. sq: the mean IoU, where none
    was counts as 0, with its 95 % t interval, corrected for a finite population; matched: the mean of those
    above ``MATCHED_IOU`` alone. None where there is too little to tell.
    """

    category: str
    drawn: int
    none: int
    right: int
    right_share: float | None
    right_low: float | None
    right_high: float | None
    sq: float | None
    sq_low: float | None
    sq_high: float | None
    matched: float | None


def drawn_quality(category: str, iou: NDArray[np.float64], none: int, population: int) -> Drawn:
    """What outlines say of masks. iou: (n,) of each with what was drawn, 0 where there is none; population:
    the masks that these were drawn from at random."""
    from scipy import stats

    count, right = len(iou), int((iou > RIGHT_IOU).sum())
    if not count:
        return Drawn(category, 0, 0, 0, *[None] * 7)
    exact = stats.binomtest(right, count).proportion_ci(0.95, method="exact")
    mean = float(iou.mean())
    low = high = None
    if count > 1:
        left = max(population - count, 0) / max(population - 1, 1)
        width = float(stats.t.ppf(0.975, count - 1) * iou.std(ddof=1) / np.sqrt(count) * np.sqrt(left))
        low, high = max(mean - width, 0.0), min(mean + width, 1.0)
    matched = iou[iou > MATCHED_IOU]
    shares = right / count, float(exact.low), float(exact.high)
    return Drawn(
        category, count, none, right, *shares, mean, low, high, float(matched.mean()) if len(matched) else None
    )
