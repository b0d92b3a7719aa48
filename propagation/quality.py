"""The quality of masks against a ground truth: simulation's stand-in for what annotators see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from propagation.masks import MaskTable
from propagation.rle import Rle

RIGHT_IOU = 0.75  # K_iou of the paper: above it a mask counts as right


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
