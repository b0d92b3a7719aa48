"""Feature blocks of masks, and the scaled, weighted matrix that trees are built on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from sklearn.decomposition import PCA

from propagation.errors import SettingsError
from propagation.masks import MaskTable
from propagation.rle import Rle, decode_window

SHAPE = ("score", "log_area", "log_aspect", "extent", "solidity", "circularity", "euler_number")
WIDEST = 64


def shape_block(table: MaskTable) -> NDArray[np.float32]:
    """(n, 7) the numbers named in ``SHAPE``: the score and six of the mask's outline.

    extent: area ÷ area of the box. solidity: area ÷ area of the convex hull. circularity: 4π·area ÷
    perimeter². Euler number: parts minus holes.
    """
    block = np.empty((len(table), len(SHAPE)), dtype=np.float32)
    width, height = table.box[:, 2], table.box[:, 3]
    block[:, 0] = table.score
    block[:, 1] = np.log(table.area)
    block[:, 2] = np.log(width / height)
    block[:, 3] = table.area / (width * height)
    block[:, 4:] = [_outline(crop) for crop in map(crop_of, table.rles(range(len(table))))] or np.empty((0, 3))
    return block


def crop_of(rle: Rle) -> NDArray[np.uint8]:
    """The mask within its box, with one empty pixel around it."""
    x, y, width, height = coco.toBbox(rle).astype(int)
    return np.pad(decode_window(rle, x, y, width, height), 1).astype(np.uint8)


def _outline(crop: NDArray[np.uint8]) -> tuple[float, float, float]:
    # pixel corners, so that a single pixel has an area and a hull
    doubled = np.pad(np.kron(crop, np.ones((2, 2), np.uint8)), 1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer = [contour for contour, link in zip(contours, hierarchy[0], strict=True) if link[3] < 0]
    # a chain from pixel to pixel overstates a slanted edge; half a pixel lies beyond each side of it
    perimeter = sum(cv2.arcLength(cv2.approxPolyDP(contour, 1.5, True), True) + 4 for contour in contours)
    hull = cv2.contourArea(cv2.convexHull(np.concatenate(outer)))
    area = float(np.count_nonzero(doubled))
    solidity = min(1.0, area / max(hull, area))
    circularity = min(1.0, 4 * np.pi * area / perimeter**2)
    return solidity, circularity, float(len(outer) - (len(contours) - len(outer)))


def matrix(
    table: MaskTable, rows: NDArray[np.int64], weights: Mapping[str, float], seed: int = 0
) -> NDArray[np.float32]:
    """(len(rows), d) the blocks named in ``weights``, side by side.

    Each column is scaled to unit variance over ``rows``; a block wider than 64 is first reduced to its
    principal components; each block is divided by the root of its width, so that its weight is its share
    of the squared distance. The block ``score`` is the mask score. Raises SettingsError for an unknown
    block.
    """
    blocks: dict[str, NDArray[Any]] = {"score": table.score[:, None], **table.features}
    chosen = {name: weight for name, weight in weights.items() if weight > 0}
    unknown = sorted(set(chosen) - set(blocks))
    if unknown or not chosen:
        raise SettingsError(
            f"no feature block {', '.join(unknown) or 'is chosen'}; "
            f"the mask table has {', '.join(sorted(blocks))}: name some of them in the feature weights"
        )
    parts = []
    for name, weight in sorted(chosen.items()):
        block = np.asarray(blocks[name][rows], dtype=np.float32)
        if block.shape[1] > WIDEST:
            block = _principal(_scaled(block), seed)
        parts.append(_scaled(block) * np.float32(np.sqrt(weight / block.shape[1])))
    return np.concatenate(parts, axis=1)


def _principal(block: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    if len(block) < 2:
        return block[:, :1]
    reducer = PCA(min(WIDEST, len(block)), svd_solver="randomized", random_state=seed)
    return np.asarray(reducer.fit_transform(block), dtype=np.float32)


def _scaled(block: NDArray[np.float32]) -> NDArray[np.float32]:
    spread = block.std(axis=0)
    return (block - block.mean(axis=0)) / np.where(spread > 1e-6, spread, 1)
