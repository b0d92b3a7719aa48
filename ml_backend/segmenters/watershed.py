"""A segmenter without deep learning: watershed finds the masks, trees learned from a seed set name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.measure import label
from skimage.segmentation import watershed
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
from sklearn.model_selection import GroupKFold

from ml_backend.segmenters.base import Image
from ml_backend.segmenters.seed_set import Labeled, SeedSet, count_right, f2, overlaps, painted
from propagation.errors import InputError
from propagation.masks import Detections
from propagation.quality import RIGHT_IOU
from propagation.rle import Rle, encode_window

BACKGROUND = -1
CROP = 12  # pixels, the side to which a mask and its grey crop are brought
SAME_OBJECT = 0.5  # IoU from which a mask is about an object, and gets its category
LEAST_SCORE = 0.05  # masks less likely to be right are not worth a question
FOLDS = 5
TREES = 150
SEARCHED = 20  # seed images, enough to choose the cut by
FEATURES = 2 * CROP * CROP + 10


@dataclass(frozen=True)
class Cut:
    """How an image is cut into masks.

    bright: objects are brighter than what is around them.
    smoothing, surround: standard deviations in pixels; what is brighter than its surround by Otsu's
    threshold is foreground (surround 0: than the whole image).
    spacing: in pixels, about the distance of two objects' centres; basins of the foreground's depth,
    smoothed that much, part what touches. 0 parts nothing.
    least_area: in pixels.
    """

    bright: bool
    smoothing: float
    surround: float
    spacing: float
    least_area: int


@dataclass(frozen=True)
class Watershed:
    """Masks by watershed, categories and scores by trees. Made by ``train``.

    The features of a mask are the mask and its grey crop at 12 x 12 pixels, then its size, shape and
    brightness: (n, 298) float32. Masks that score under ``least_score`` are left out.
    """

    categories: tuple[str, ...]
    cut: Cut
    namer: ExtraTreesClassifier
    judge: ExtraTreesRegressor
    least_score: float = LEAST_SCORE

    def segment(self, images: Sequence[Image]) -> Sequence[Detections]:
        """The masks of each image; see ``Segmenter``."""
        regions = [_regions(image, self.cut) for image in images]
        features = np.concatenate([np.zeros((0, FEATURES), np.float32), *(found for _, found in regions)])
        chances = _chances(self.namer, features, len(self.categories))
        scores = _scores(self.judge, chances, features)
        categories = chances[:, 1:].argmax(axis=1)
        ends = np.cumsum([len(rles) for rles, _ in regions])
        detections = []
        for (rles, found), end in zip(regions, ends, strict=True):
            rows = np.arange(end - len(rles), end)
            kept = np.flatnonzero(scores[rows] >= self.least_score)
            detections.append(
                Detections(
                    rles=[rles[row] for row in kept],
                    scores=scores[rows[kept]],
                    categories=categories[rows[kept]],
                    features=found[kept],
                )
            )
        return detections


def train(seed: SeedSet, least_score: float = LEAST_SCORE) -> Watershed:
    """Learn from a seed set.

    Polarity, sizes and the cut are taken from its objects. Scores are learned from masks that were named by
    trees which had not seen their image, so that they hold on new images.
    Raises InputError where the objects of the seed set do not stand out from what is around them.
    """
    cut = _best_cut(seed.images)
    regions = [_regions(labeled.image, cut) for labeled in seed.images]
    learned = _Learned(
        features=np.concatenate([features for _, features in regions]),
        overlaps=np.concatenate(
            [
                overlaps(rles, labeled, len(seed.categories))
                for (rles, _), labeled in zip(regions, seed.images, strict=True)
            ]
        ),
        image=np.repeat(np.arange(len(regions)), [len(rles) for rles, _ in regions]),
    )
    if len(np.unique(learned.image)) < 2:
        raise InputError(
            "in fewer than two of the seed images a mask was found: the objects do not stand out from what "
            "is around them; use another segmenter"
        )
    namer, judge = _fit(learned)
    return Watershed(seed.categories, cut, namer, judge, least_score)


@dataclass(frozen=True)
class _Learned:
    """The masks of the seed set: (n, d) features, (n, categories) overlaps with objects, (n,) image rows."""

    features: NDArray[np.float32]
    overlaps: NDArray[np.float64]
    image: NDArray[np.int64]


def _grey(pixels: NDArray[np.uint8], bright: bool) -> NDArray[np.float32]:
    """(h, w) brightness, turned round where objects are dark, so that they are always the brighter part."""
    grey: NDArray[np.float32] = pixels.mean(axis=2, dtype=np.float32)
    return grey if bright else 255 - grey


def _partition(grey: NDArray[np.float32], cut: Cut) -> NDArray[np.int64]:
    """(h, w) the number of the region that a pixel belongs to, 0 for none."""
    smooth = _blurred(grey, cut.smoothing)
    if cut.surround:
        smooth = smooth - _blurred(grey, cut.surround)
    foreground = smooth > threshold_otsu(smooth)
    parts = np.where(foreground, _basins(foreground, cut.spacing), 0)
    numbers: NDArray[np.int64] = label(parts, connectivity=1)
    areas = np.bincount(numbers.ravel())
    large = areas >= cut.least_area
    large[0] = False
    return np.where(large, np.cumsum(large), 0)[numbers]


def _basins(foreground: NDArray[np.bool_], spacing: float) -> NDArray[np.int64]:
    """(h, w) from 1: which object's reach a pixel is in. Rings and strokes stay whole by the smoothing."""
    if not spacing:
        return np.ones(foreground.shape, np.int64)
    distance = cv2.distanceTransform(foreground.astype(np.uint8), cv2.DIST_L2, 5)
    depth = _blurred(distance.astype(np.float32), spacing / 2)
    reach = max(1, round(spacing / 2))
    peaks = peak_local_max(depth, reach, exclude_border=False)
    markers = np.zeros(foreground.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    # A peak may lie in the hole of a ring, so the flood runs outside of the foreground too.
    within = foreground | (depth > 0)
    basins: NDArray[np.int64] = watershed(-depth, markers, mask=within)
    return basins + 1


def _blurred(grey: NDArray[np.float32], deviation: float) -> NDArray[np.float32]:
    return cv2.GaussianBlur(grey, (0, 0), deviation)  # type: ignore[return-value]


def _regions(image: Image, cut: Cut) -> tuple[list[Rle], NDArray[np.float32]]:
    """The masks that an image is cut into, and (n, 298) their features."""
    grey = _grey(image.pixels, cut.bright)
    numbers = _partition(grey, cut)
    rles, features = [], []
    for number, window in enumerate(ndimage.find_objects(numbers), start=1):
        mask = numbers[window] == number
        rles.append(encode_window(mask, window[1].start, window[0].start, numbers.shape))
        features.append(_features(grey, mask, window))
    return rles, np.array(features, np.float32).reshape(-1, FEATURES)


def _features(
    grey: NDArray[np.float32], mask: NDArray[np.bool_], window: tuple[slice, slice]
) -> NDArray[np.float32]:
    """(298,) the mask and its grey crop in their square, then ten numbers on size, shape and brightness."""
    height, width = mask.shape
    crop = grey[window]
    inside = crop[mask]
    outside = crop[~mask] if not mask.all() else inside
    contrast = max(float(inside.mean() - outside.mean()), 1.0)
    levels = np.clip((crop - outside.mean()) / contrast, -1, 2).astype(np.float32)
    area = float(mask.sum())
    outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    border = sum(cv2.arcLength(line, True) for line in outline)
    hull = cv2.contourArea(cv2.convexHull(np.concatenate(outline)))
    numbers = [
        np.log(area),
        np.log(height),
        np.log(width),
        area / (height * width),
        area / max(hull, area),
        border / np.sqrt(area),
        len(outline),
        inside.mean() / 255,
        inside.std() / 255,
        contrast / 255,
    ]
    return np.concatenate([_square(mask.astype(np.float32)), _square(levels), numbers]).astype(np.float32)


def _square(crop: NDArray[np.float32]) -> NDArray[np.float32]:
    """(CROP * CROP,) a crop in the middle of its square, so that its proportions stay."""
    height, width = crop.shape
    side = max(height, width)
    square = np.zeros((side, side), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = crop
    return cv2.resize(square, (CROP, CROP), interpolation=cv2.INTER_AREA).ravel()  # type: ignore[return-value]


def _best_cut(images: Sequence[Labeled]) -> Cut:
    """The cut that finds the most objects of some seed images: a setting at a time, over a few values."""
    some = images[:SEARCHED]
    objects = [rle for labeled in images for rle in labeled.rles]
    boxes = coco.toBbox(objects)
    # One at a time: pycocotools 2.0.11 counts a list's masks in a byte under NumPy 2.
    areas = [coco.area(rle) for rle in objects]
    size = float(np.median(np.sqrt(boxes[:, 2] * boxes[:, 3])))
    objects_of = [painted(labeled) for labeled in some]
    bright = _objects_are_bright(some, objects_of)
    greys = [_grey(labeled.image.pixels, bright) for labeled in some]
    best = Cut(
        bright=bright,
        smoothing=1.0,
        surround=0.0,
        spacing=0.4 * size,
        least_area=max(1, round(float(np.percentile(areas, 2)) / 2)),
    )
    tried: tuple[tuple[str, tuple[float, ...]], ...] = (
        ("surround", (size, 3 * size)),
        ("smoothing", (0.5, 0.75, 1.5, 2.5)),
        ("spacing", (0.0, 0.15 * size, 0.25 * size, 0.6 * size, 0.8 * size)),
    )
    for setting, values in tried:
        changes: list[dict[str, Any]] = [{setting: value} for value in values]
        cuts = [best, *(replace(best, **change) for change in changes)]
        best = max(cuts, key=lambda cut: _found(greys, objects_of, cut))
    return best


def _objects_are_bright(images: Sequence[Labeled], painted: Sequence[NDArray[np.int64]]) -> bool:
    """Whether objects are brighter than the rest of their image, in most of the images."""
    votes = []
    for labeled, numbers in zip(images, painted, strict=True):
        grey = _grey(labeled.image.pixels, bright=True)
        if 0 < np.count_nonzero(numbers) < numbers.size:
            votes.append(grey[numbers > 0].mean() > grey[numbers == 0].mean())
    return not votes or bool(np.mean(votes) >= 0.5)


def _found(greys: Sequence[NDArray[np.float32]], painted: Sequence[NDArray[np.int64]], cut: Cut) -> float:
    """How well a cut finds the objects of some images."""
    return f2([count_right(_partition(grey, cut), numbers) for grey, numbers in zip(greys, painted, strict=True)])


def _fit(learned: _Learned, seed: int = 0) -> tuple[ExtraTreesClassifier, ExtraTreesRegressor]:
    """The trees that name a mask, and those that judge it by what the first ones say of an unseen image."""
    best = learned.overlaps.argmax(axis=1)
    names = np.where(learned.overlaps.max(axis=1) >= SAME_OBJECT, best, BACKGROUND)
    categories = learned.overlaps.shape[1]
    chances = np.zeros((len(names), categories + 1), np.float32)
    folds = GroupKFold(min(FOLDS, len(np.unique(learned.image))))
    for known, unseen in folds.split(learned.features, groups=learned.image):
        namer = _namer(seed).fit(learned.features[known], names[known])
        chances[unseen] = _chances(namer, learned.features[unseen], categories)
    proposed = chances[:, 1:].argmax(axis=1)
    right = learned.overlaps[np.arange(len(names)), proposed] > RIGHT_IOU
    judge = ExtraTreesRegressor(TREES, min_samples_leaf=5, max_features=0.5, random_state=seed)
    judge.fit(_evidence(chances, learned.features), right.astype(np.float32))
    return _namer(seed).fit(learned.features, names), judge


def _namer(seed: int) -> ExtraTreesClassifier:
    return ExtraTreesClassifier(TREES, min_samples_leaf=2, max_features=30, random_state=seed)


def _chances(namer: ExtraTreesClassifier, features: NDArray[np.float32], categories: int) -> NDArray[np.float32]:
    """(n, 1 + categories) the probability of background, then of each category, whichever were seen."""
    chances = np.zeros((len(features), categories + 1), np.float32)
    if len(features):
        chances[:, namer.classes_ + 1] = namer.predict_proba(features)
    return chances


def _evidence(chances: NDArray[np.float32], features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 13) what a mask is judged by: best chance, lead over the second, background's, its ten numbers."""
    best = np.sort(chances[:, 1:], axis=1)[:, ::-1]
    first, second = best[:, :1], best[:, 1:2] if best.shape[1] > 1 else np.zeros_like(best)
    return np.hstack([first, first - second, chances[:, :1], features[:, 2 * CROP * CROP :]])


def _scores(
    judge: ExtraTreesRegressor, chances: NDArray[np.float32], features: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(n,) the estimated probability that a mask and its likeliest category are right."""
    if not len(features):
        return np.zeros(0, np.float32)
    predicted = judge.predict(_evidence(chances, features))
    scores: NDArray[np.float32] = np.clip(predicted, 0, 1).astype(np.float32)
    return scores
