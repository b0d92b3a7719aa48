"""What detectors of regions share: from what a network says of regions of interest to detections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ml_backend.segmenters.base import Image
from propagation.errors import MaskError, SettingsError
from propagation.masks import Detections
from propagation.rle import Rle, encode_window

Features = Literal["attention", "box", "none"]

INSIDE = 0.5  # probability from which a pixel is the object's
GRID = 7  # cells a side, to which ROI features and masks are averaged for mask attention
PROJECTED = 512  # numbers a mask, of mask attention
SEED = 0  # of the projection: two runs' features are of one space


@dataclass(frozen=True)
class Regions:
    """What a network says of n regions of an image.

    boxes: (n, 4) left, top, right, bottom, in pixels of the image. scores: (n,) of the class, in [0, 1].
    classes: (n,) numbers of classes, from 0. masks: (n, m, m) probability of the object, which with ``border``
    cells of nothing around it is pasted over the box.
    quality: (n,) predicted IoU of the mask, where the network has a head for it.
    features: (n, d). maps: (n, c, s, s) ROI features of the mask head; the attention is made of them.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    masks: NDArray[np.float32]
    border: int = 0
    quality: NDArray[np.float32] | None = None
    features: NDArray[np.float32] | None = None
    maps: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class RoiSegmenter:
    """A network of regions as a segmenter; see ``Segmenter``.

    network: the regions of (height, width, 3) RGB pixels. classes: the name of each of its classes, None for those
    that mean nothing. categories: the classes that are taken. Regions whose class scores less than
    ``least_score`` are left out, of the others the ``most`` best of an image are taken.
    Made by ``detectron2.load`` and ``torchvision.load``.
    """

    network: Callable[[NDArray[np.uint8]], Regions]
    classes: tuple[str | None, ...]
    categories: tuple[str, ...]
    least_score: float
    most: int

    def segment(self, images: Sequence[Image]) -> Sequence[Detections]:
        """The masks of each image, best first. Raises MaskError where the network's masks are not numbers."""
        # One at a time: in a batch, images are padded to the largest, which changes what is found in the others.
        return [self._detections(image) for image in images]

    def _detections(self, image: Image) -> Detections:
        regions = self.network(image.pixels)
        if not (np.isfinite(regions.boxes).all() and np.isfinite(regions.masks).all()):
            raise MaskError(
                f"image {image.key}: the network's boxes or masks are not numbers; were its weights trained "
                "to the end, and with this config?"
            )
        places = {name: place for place, name in enumerate(self.categories)}
        categories = np.array([places.get(name or "", -1) for name in self.classes], np.int64)[regions.classes]
        scores = regions.scores if regions.quality is None else regions.scores * regions.quality
        # a score that is no number stays, so that it is complained of
        taken = np.flatnonzero((categories >= 0) & ~(regions.scores < self.least_score))
        taken = taken[np.argsort(-scores[taken], kind="stable")][: self.most]
        size = image.pixels.shape[:2]
        rles = [paste(np.pad(regions.masks[row], regions.border), regions.boxes[row], size) for row in taken]
        kept = np.array([rle is not None for rle in rles], bool)
        rows = taken[kept]
        return Detections(
            rles=[rle for rle in rles if rle is not None],
            scores=np.clip(scores[rows], 0, 1).astype(np.float32),
            categories=categories[rows],
            features=_features(regions, rows),
        )


def take(classes: Sequence[str | None], categories: Sequence[str] | None) -> tuple[str, ...]:
    """The categories that a segmenter has: those of the setting, without one all that its classes name.

    Raises SettingsError where a class has no name of its own, or the network none of that name.
    """
    named = [name for name in classes if name is not None]
    if len(set(named)) != len(named):
        double = next(name for name in named if named.count(name) > 1)
        raise SettingsError(f"setting segmenter.classes: two classes are named {double!r}; make the names differ")
    unknown = [name for name in categories or () if name not in named]
    if unknown:
        raise SettingsError(
            f"setting segmenter.categories: the model has no class {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(map(repr, named))}"
        )
    return tuple(dict.fromkeys(categories or named))


def check_classes(classes: Sequence[str | None] | None, number: int) -> tuple[str | None, ...]:
    """The names of a network's classes. Raises SettingsError where they are unknown, or of another number."""
    if not classes:
        raise SettingsError(
            f"setting segmenter.classes: the names of the model's {number} classes are not known; list them in "
            "the order in which it was trained"
        )
    if len(classes) != number:
        raise SettingsError(
            f"setting segmenter.classes: {len(classes)} names, but the model has {number} classes; name each, in "
            "the order in which it was trained"
        )
    return tuple(classes)


def pick_device(name: str) -> str:
    """The device that torch shall use; "auto": a GPU where there is one. Raises SettingsError where it fails."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise SettingsError(f"setting segmenter.device: no {name} ({first}); set auto or cpu") from error
    return name


def paste(mask: NDArray[np.float32], box: NDArray[np.float32], size: Sequence[int]) -> Rle | None:
    """The encoding of a mask over a box as one of the image's size; None where no pixel is inside.

    mask: (m, m) probabilities, of cells as large as the box is m-th parts; box: left, top, right, bottom in
    pixels; size: height and width. A pixel is inside where its centre has ``INSIDE`` or more, between the
    cells' centres bilinearly, as detectron2's ``paste_masks_in_image`` has it. Only the box is computed.
    """
    height, width = size
    across, left = _between(float(box[0]), float(box[2]), width, mask.shape[1])
    down, top = _between(float(box[1]), float(box[3]), height, mask.shape[0])
    inside = down @ mask @ across.T >= INSIDE
    return encode_window(inside, left, top, size) if inside.any() else None


def _between(begin: float, end: float, side: int, cells: int) -> tuple[NDArray[np.float32], int]:
    """(pixels, cells) how much of each cell the pixels between begin and end take; and the first of them.

    A pixel is where its centre is. Outside of the cells is nothing, so the outermost may take half a cell only.
    """
    first = max(0, int(np.ceil(begin - 0.5)))
    last = min(side, int(np.floor(end - 0.5)) + 1)
    centres = np.arange(first, max(first, last), dtype=np.float32) + np.float32(0.5)
    at = (centres - np.float32(begin)) / np.float32(max(end - begin, 1e-6)) * cells - np.float32(0.5)
    away = np.abs(at[:, None] - np.arange(cells, dtype=np.float32))
    return np.clip(1 - away, 0, None).astype(np.float32), first


def _features(regions: Regions, rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
    if regions.maps is not None:
        return attention(regions.maps[rows], regions.masks[rows])
    return None if regions.features is None else regions.features[rows]


def attention(maps: NDArray[np.float32], masks: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 512) the paper's mask attention: ROI features weighted by the mask, randomly projected.

    maps: (n, c, s, s); masks: (n, m, m) probabilities over the same boxes. Both are averaged to 7 x 7, multiplied,
    and c x 7 x 7 numbers projected by a fixed Gaussian matrix.
    Source: Papadopoulos et al., ICCV 2021, section 3.1, and the authors' code (``features_attention``).
    """
    weighted = _averaged(np.asarray(maps, np.float32)) * _averaged(np.asarray(masks, np.float32))[:, None]
    width = maps.shape[1] * GRID * GRID
    return (weighted.reshape(len(maps), width) @ _projection(width)).astype(np.float32)


def _averaged(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., 7, 7) the averages over equal parts of (..., s, s)."""
    shares = _shares(cells.shape[-1])
    return (shares @ cells @ shares.T).astype(np.float32)


@cache
def _shares(side: int) -> NDArray[np.float32]:
    """(7, side) which share of a seventh each cell of a side is."""
    edges = np.arange(GRID + 1)[:, None] * side / GRID
    begin, end = np.arange(side), np.arange(side) + 1
    shared = np.minimum(edges[1:], end) - np.maximum(edges[:-1], begin)
    return (np.clip(shared, 0, None) * GRID / side).astype(np.float32)


@cache
def _projection(width: int) -> NDArray[np.float32]:
    """(width, 512) normally distributed, of variance 1 / 512: distances stay about what they were."""
    drawn = np.random.default_rng(SEED).standard_normal((width, PROJECTED), np.float32)
    return (drawn / np.sqrt(PROJECTED)).astype(np.float32)
