"""A segmenter without deep learning: watershed finds the masks, trees learned from a seed set name them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
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
from propagation.errors import ImageError, InputError, MaskError
from propagation.masks import Detections
from propagation.rle import Rle, decode, read_segmentation

BACKGROUND = -1
CROP = 12  # pixels, the side to which a mask and its grey crop are brought
SAME_OBJECT = 0.5  # IoU from which a mask is about an object, and gets its category
RIGHT = 0.75  # IoU above which a mask is right
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
    """Masks by watershed, categories and scores by trees. Made by ``train`` or ``train_watershed``.

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


def train_watershed(seed_set: Path, least_score: float = LEAST_SCORE) -> Watershed:
    """Learn from a folder with ``images/`` and ``ground_truth.json`` (COCO).

    Raises InputError for a ground truth that is missing or empty, ImageError for an image that is missing
    or cannot be read; the message names the file.
    """
    path = seed_set / "ground_truth.json"
    try:
        truth = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); write the COCO ground truth there") from error
    _check_truth(truth, str(path))
    return train([_read(seed_set / "images", image["file_name"]) for image in truth["images"]], truth, least_score)


def train(images: Sequence[Image], ground_truth: Mapping[str, Any], least_score: float = LEAST_SCORE) -> Watershed:
    """Learn from images and their COCO ground truth, matched by ``file_name`` == ``Image.key``.

    Polarity, sizes and the cut are taken from the ground truth. Scores are learned from masks that were
    named by trees which had not seen their image, so that they hold on new images.
    Raises InputError for a ground truth without annotations or with fewer than two images, ImageError for an
    image of the ground truth that is not among ``images``.
    """
    _check_truth(ground_truth, "the ground truth")
    names = tuple(str(category["name"]) for category in _ordered_categories(ground_truth))
    truths = _truths(images, ground_truth)
    if not any(truth.rles for truth in truths):
        raise InputError("no image of the ground truth has an object; annotate some of them")
    cut = _best_cut(truths)
    regions = [_regions(truth.image, cut) for truth in truths]
    learned = _Learned(
        features=np.concatenate([features for _, features in regions]),
        overlaps=np.concatenate(
            [_overlaps(rles, truth, len(names)) for (rles, _), truth in zip(regions, truths, strict=True)]
        ),
        image=np.repeat(np.arange(len(regions)), [len(rles) for rles, _ in regions]),
    )
    if len(np.unique(learned.image)) < 2:
        raise InputError(
            "in fewer than two of the seed images a mask was found: the objects do not stand out from what "
            "is around them; use another segmenter"
        )
    namer, judge = _fit(learned)
    return Watershed(names, cut, namer, judge, least_score)


@dataclass(frozen=True)
class _Truth:
    """An image of the seed set, its objects' encodings and (n,) categories."""

    image: Image
    rles: Sequence[Rle]
    categories: NDArray[np.int64]


@dataclass(frozen=True)
class _Learned:
    """The masks of the seed set: (n, d) features, (n, categories) overlaps with objects, (n,) image rows."""

    features: NDArray[np.float32]
    overlaps: NDArray[np.float64]
    image: NDArray[np.int64]


def _check_truth(truth: Any, name: str) -> None:
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
        with PIL.Image.open(path) as picture:
            return Image(name, np.asarray(picture.convert("RGB")))
    except FileNotFoundError as error:
        raise ImageError(f"{path} is missing; put the image there or take it out of ground_truth.json") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path} cannot be read as an image ({error}); replace the file") from error


def _truths(images: Sequence[Image], ground_truth: Mapping[str, Any]) -> list[_Truth]:
    """The images of the ground truth with their objects, in its order."""
    by_key = {image.key: image for image in images}
    rows = {category["id"]: row for row, category in enumerate(_ordered_categories(ground_truth))}
    annotations: dict[Any, list[Mapping[str, Any]]] = {}
    for annotation in ground_truth["annotations"]:
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    truths = []
    for entry in ground_truth["images"]:
        name = entry["file_name"]
        if name not in by_key:
            raise ImageError(f"the seed image {name} is missing; add it or take it out of the ground truth")
        height, width = by_key[name].pixels.shape[:2]
        rles, categories = [], []
        for annotation in annotations.get(entry["id"], []):
            if annotation.get("iscrowd"):
                continue
            try:
                rle = read_segmentation(annotation["segmentation"], height, width)
                if list(rle["size"]) != [height, width]:
                    raise MaskError(f"the mask is {rle['size']}, the image {[height, width]}")
                categories.append(rows[annotation["category_id"]])
            except (MaskError, KeyError) as error:
                raise MaskError(
                    f"annotation {annotation.get('id')} of seed image {name}: {error}; correct it there"
                ) from error
            rles.append(rle)
        truths.append(_Truth(by_key[name], rles, np.array(categories, np.int64)))
    return truths


def _ordered_categories(ground_truth: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(ground_truth["categories"], key=lambda category: int(category["id"]))


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
    canvas = np.zeros((*numbers.shape, 1), np.uint8, order="F")
    rles, features = [], []
    for number, window in enumerate(ndimage.find_objects(numbers), start=1):
        mask = numbers[window] == number
        canvas[window][..., 0] = mask
        rles.append(coco.encode(canvas)[0])
        canvas[window] = 0
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


def _best_cut(truths: Sequence[_Truth]) -> Cut:
    """The cut that finds the most objects of some seed images: a setting at a time, over a few values."""
    some = truths[:SEARCHED]
    objects = [rle for truth in truths for rle in truth.rles]
    boxes = coco.toBbox(objects)
    # One at a time: pycocotools 2.0.11 counts a list's masks in a byte under NumPy 2.
    areas = [coco.area(rle) for rle in objects]
    size = float(np.median(np.sqrt(boxes[:, 2] * boxes[:, 3])))
    painted = [_painted(truth) for truth in some]
    bright = _objects_are_bright(some, painted)
    greys = [_grey(truth.image.pixels, bright) for truth in some]
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
        best = max(cuts, key=lambda cut: _found(greys, painted, cut))
    return best


def _painted(truth: _Truth) -> NDArray[np.int64]:
    """(h, w) the number of the object that covers a pixel, from 1, 0 for none."""
    numbers = np.zeros(truth.image.pixels.shape[:2], np.int64)
    for number, rle in enumerate(truth.rles, start=1):
        numbers[decode(rle)] = number
    return numbers


def _objects_are_bright(truths: Sequence[_Truth], painted: Sequence[NDArray[np.int64]]) -> bool:
    """Whether objects are brighter than the rest of their image, in most of the images."""
    votes = []
    for truth, numbers in zip(truths, painted, strict=True):
        grey = _grey(truth.image.pixels, bright=True)
        if 0 < np.count_nonzero(numbers) < numbers.size:
            votes.append(grey[numbers > 0].mean() > grey[numbers == 0].mean())
    return not votes or bool(np.mean(votes) >= 0.5)


def _found(greys: Sequence[NDArray[np.float32]], painted: Sequence[NDArray[np.int64]], cut: Cut) -> float:
    """The F2 score of right masks, whatever their category: a missed object costs more than a wrong mask."""
    right = masks = objects = 0
    for grey, numbers in zip(greys, painted, strict=True):
        parts = _partition(grey, cut)
        shape = (int(parts.max()) + 1, int(numbers.max()) + 1)
        pairs = np.ravel_multi_index((parts.ravel(), numbers.ravel()), shape)
        shared = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
        together = shared.sum(axis=1)[:, None] + shared.sum(axis=0) - shared
        right += np.count_nonzero((shared / np.maximum(together, 1))[1:, 1:] > RIGHT)
        masks += shared.shape[0] - 1
        objects += shared.shape[1] - 1
    return 5 * right / max(masks + 4 * objects, 1)


def _overlaps(rles: Sequence[Rle], truth: _Truth, categories: int) -> NDArray[np.float64]:
    """(n, categories) the IoU of each mask with the nearest object of each category."""
    overlaps = np.zeros((len(rles), categories))
    if rles and truth.rles:
        pairs = coco.iou(list(rles), list(truth.rles), [0] * len(truth.rles))
        np.maximum.at(overlaps.T, truth.categories, pairs.T)
    return overlaps


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
    right = learned.overlaps[np.arange(len(names)), proposed] > RIGHT
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
