"""Feature blocks of masks, named sets of them, and the scaled, weighted matrix that trees are built on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from propagation.columns import forget
from propagation.errors import SettingsError
from propagation.masks import MaskTable
from propagation.rle import boxed

SHAPE = ("log_area", "log_aspect", "extent", "solidity", "circularity", "euler_number")
SIDE = 14  # of a low-resolution mask
RANDOM_COLUMNS = 16
WIDEST = 64
FITTED_ON = 50_000  # rows that a reduction is learned from
ROWS_AT_ONCE = 8192
VALUES_AT_ONCE = 2**19

Reduce = Literal["pca", "projection"]

SETS: Mapping[str, Mapping[str, float]] = {
    name: dict.fromkeys(blocks, 1.0)
    for name, blocks in {
        "random": ("random",),
        "score": ("score",),
        "shape": ("shape",),
        "mask": ("mask",),
        "deep": ("deep",),
        "deep+score": ("deep", "score"),
    }.items()
}
"""The feature sets that are compared with each other: the weights of the blocks of each.

After the ablation of Papadopoulos et al. 2021 (features: section 3.2), which goes from random numbers to
deep features with the mask score; "score" and "shape" are ours.
"""


def default_weights(table: MaskTable) -> dict[str, float]:
    """The weights for clustering where none are set: score, shape and, where there are any, deep features."""
    return {name: 1.0 for name in ("score", "shape", "deep") if name == "score" or name in table.features}


def mask_blocks(table: MaskTable) -> dict[str, NDArray[np.floating[Any]]]:
    """``shape_block`` as "shape" and ``low_resolution_block`` as "mask", each mask decoded once."""
    outlines = np.empty((len(table), 3), dtype=np.float32)
    pixels = np.empty((len(table), SIDE * SIDE), dtype=np.float16)
    for row, crop in enumerate(_crops(table)):
        outlines[row] = _outline(crop)
        pixels[row] = _low_resolution(crop)
    return {"shape": _shape(table, outlines), "mask": pixels}


def shape_block(table: MaskTable) -> NDArray[np.float32]:
    """(n, 6) the numbers named in ``SHAPE``, of the mask's outline.

    extent: area ÷ area of the box. solidity: area ÷ area of the convex hull. circularity: 4π·area ÷
    perimeter². Euler number: parts minus holes.
    """
    outlines = np.array([_outline(crop) for crop in _crops(table)], dtype=np.float32)
    return _shape(table, outlines.reshape(-1, 3))


def low_resolution_block(table: MaskTable) -> NDArray[np.float16]:
    """(n, 196) each mask within its box at 14 x 14 pixels, row by row: the share of each pixel inside.

    In place of the mask logits of Papadopoulos et al. 2021, section 3.2, which need the model.
    """
    pixels = np.array([_low_resolution(crop) for crop in _crops(table)], dtype=np.float16)
    return pixels.reshape(-1, SIDE * SIDE)


def random_block(n: int, seed: int) -> NDArray[np.float32]:
    """(n, 16) normal numbers that know nothing of the masks: the baseline of Papadopoulos et al. 2021."""
    return np.random.default_rng(seed).standard_normal((n, RANDOM_COLUMNS), dtype=np.float32)


def _crops(table: MaskTable) -> Iterator[NDArray[np.uint8]]:
    """The masks within their boxes, one after the other."""
    for _, _, mask in boxed(map(table.rle, range(len(table)))):
        yield mask.astype(np.uint8, order="C")


def _shape(table: MaskTable, outlines: NDArray[np.float32]) -> NDArray[np.float32]:
    width, height = table.box[:, 2], table.box[:, 3]
    columns = (np.log(table.area), np.log(width / height), table.area / (width * height), outlines)
    return np.column_stack(columns).astype(np.float32)


def _outline(crop: NDArray[np.uint8]) -> tuple[float, float, float]:
    # pixel corners, so that a single pixel has an area and a hull
    doubled = cv2.resize(crop, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    doubled = cv2.copyMakeBorder(doubled, 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer = [contour for contour, link in zip(contours, hierarchy[0], strict=True) if link[3] < 0]
    # a chain from pixel to pixel overstates a slanted edge; half a pixel lies beyond each side of it
    perimeter = sum(cv2.arcLength(cv2.approxPolyDP(contour, 1.5, True), True) + 4 for contour in contours)
    hull = cv2.contourArea(cv2.convexHull(np.concatenate(outer)))
    area = float(cv2.countNonZero(doubled))
    solidity = min(1.0, area / max(hull, area))
    circularity = min(1.0, 4 * np.pi * area / perimeter**2)
    return solidity, circularity, float(len(outer) - (len(contours) - len(outer)))


def _low_resolution(crop: NDArray[np.uint8]) -> NDArray[np.float32]:
    # OpenCV averages over areas only where both sides shrink
    for axis in (0, 1):
        if crop.shape[axis] < SIDE:
            crop = crop.repeat(SIDE, axis)
    small = cv2.resize(crop.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.float32).ravel()


def matrix(
    table: MaskTable,
    rows: NDArray[np.int64],
    weights: Mapping[str, float],
    seed: int = 0,
    reduce: Reduce = "pca",
) -> NDArray[np.float32]:
    """(len(rows), d) the blocks named in ``weights``, side by side.

    Each column is scaled to unit variance over ``rows``. A block of more than 64 columns, over more than 64
    rows, is then reduced to 64: to its principal components, or by a Gaussian random projection
    (Papadopoulos et al. 2021, section 3.2, to 512), and scaled as a whole, so that its distances keep their
    proportions. Each block is divided by the root of its width, so that its weight is its share of the
    squared distance. Beside the table's blocks there are ``score``, the mask score, and ``random``,
    see ``random_block``. A block is read a few thousand rows at a time, so it may be memory-mapped and larger
    than memory. Raises SettingsError for an unknown block.
    """
    chosen = {name: weight for name, weight in sorted(weights.items()) if weight > 0}
    blocks: dict[str, NDArray[Any]] = {"score": table.score[:, None], **table.features}
    if "random" in chosen:
        blocks["random"] = random_block(len(table), seed)
    unknown = sorted(set(chosen) - set(blocks))
    if unknown or not chosen:
        raise SettingsError(
            f"no feature block {', '.join(unknown) or 'is chosen'}; "
            f"the mask table has {', '.join(sorted(blocks))}: name some of them in the feature weights"
        )
    most = WIDEST if len(rows) > WIDEST else None
    widths = [len(range(blocks[name].shape[1])[:most]) for name in chosen]
    values = np.empty((len(rows), sum(widths)), dtype=np.float32)
    parts = np.split(values, np.cumsum(widths)[:-1], axis=1)
    # with another number of threads a sum has another order, and a tree on another machine other clusters
    with threadpool_limits(1):
        for part, (name, weight) in zip(parts, chosen.items(), strict=True):
            _fill(part, blocks[name], rows, seed, reduce)
            part *= np.float32(np.sqrt(weight / part.shape[1]))
    return values


def _fill(
    part: NDArray[np.float32], block: NDArray[Any], rows: NDArray[np.int64], seed: int, reduce: Reduce
) -> None:
    """Write the scaled and, where ``part`` is narrower, reduced rows of a block into ``part``."""
    mean, spread = _scale(block, rows)
    if part.shape[1] == block.shape[1]:
        for at, values in _pieces(block, rows):
            part[at] = (values - mean) / spread
        return
    sample = _sample(rows, seed)
    known = np.empty((len(sample), block.shape[1]), dtype=np.float32)
    for at, values in _pieces(block, sample):
        known[at] = (values - mean) / spread
    if not known.any():
        part[:] = 0
        return
    reducer = _reducer(reduce, seed).fit(known)
    for at, values in _pieces(block, rows):
        part[at] = reducer.transform(((values - mean) / spread).astype(np.float32))
    part /= np.float32(np.sqrt(np.mean(_moments(part, np.arange(len(part)))[1] ** 2)))


def _reducer(reduce: Reduce, seed: int) -> Any:
    from sklearn.decomposition import PCA  # slow to load, and large
    from sklearn.random_projection import GaussianRandomProjection

    if reduce == "pca":
        return PCA(WIDEST, svd_solver="randomized", random_state=seed)
    return GaussianRandomProjection(WIDEST, random_state=seed)


def leading(block: NDArray[Any], count: int, seed: int = 0) -> NDArray[np.float32]:
    """(n, at most count) the first columns of what ``matrix`` makes of a block, but for their common scale.

    They take no more memory than their own, however wide the block is.
    """
    rows = np.arange(len(block))
    mean, spread = _scale(block, rows)
    axes = np.eye(block.shape[1])
    if min(block.shape) > WIDEST:
        squares = np.zeros_like(axes)
        for _, values in _pieces(block, _sample(rows, seed)):
            values -= mean
            values /= spread
            squares += values.T @ values
        axes = np.linalg.eigh(squares)[1][:, ::-1]
        axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(len(axes))])
    axes = axes[:, :count]
    found = np.empty((len(block), axes.shape[1]), dtype=np.float32)
    for at, values in _pieces(block, rows):
        values -= mean
        values /= spread
        found[at] = values @ axes
    return found


def _scale(block: NDArray[Any], rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What is taken from each column, and what it is then divided by."""
    mean, spread = _moments(block, rows)
    # a constant column, up to rounding, adds nothing
    spread[spread <= np.maximum(1e-6, 1e-7 * np.abs(mean))] = np.inf
    return mean, spread


def _sample(rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The rows that a reduction is learned from."""
    if len(rows) <= FITTED_ON:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), FITTED_ON, replace=False))]


def _pieces(block: NDArray[Any], rows: NDArray[np.int64]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Some rows of a block, a few thousand at a time, and where they lie in ``rows``."""
    step = min(ROWS_AT_ONCE, max(1, VALUES_AT_ONCE // max(block.shape[1], 1)))
    for begin in range(0, len(rows), step):
        at = slice(begin, begin + step)
        yield at, np.asarray(block[rows[at]], dtype=np.float64)
        forget(block)


def _moments(block: NDArray[Any], rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each column over ``rows``.

    Source: Chan, Golub and LeVeque 1979, who join the moments of pieces without cancellation.
    """
    count = 0
    mean, squares = np.zeros(block.shape[1]), np.zeros(block.shape[1])
    for _, values in _pieces(block, rows):
        here, joined = values.mean(axis=0), count + len(values)
        step = here - mean
        values -= here
        squares += np.einsum("ij,ij->j", values, values) + step**2 * (count * len(values) / joined)
        mean += step * (len(values) / joined)
        count = joined
    return mean, np.sqrt(squares / max(count, 1))
