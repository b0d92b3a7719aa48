"""Generated scenes for the demo: real handwritten digits on cluttered paper, with their ground truth.

The handwriting is scikit-learn's ``load_digits`` (UCI, 8 x 8 pixels); seed set and pool share no digit of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray
from pycocotools import mask as coco
from sklearn.datasets import load_digits

CATEGORIES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 288  # pixels, height and width of a scene
SEED_SHARE = 0.05  # of the images
SEED_DIGITS = 400  # of the 1797 written digits, kept for the seed set
OBJECTS = (15, 24)  # a scene, upper end exclusive
CLUTTER = (8, 14)  # a scene, upper end exclusive
HOLDS_ON = 0.25  # probability that a digit is put right beside the one before
PAINTED = 0.5  # ink above which a pixel belongs to what was painted
SCALE = (3.6, 4.8)  # pixels of a scene to one of the handwriting
LEAST_VISIBLE = 0.6  # share of a digit that must stay visible for it to be an object
CROWDING = 0.06  # share of a digit that may cover earlier ones, except where it holds on to its neighbour
HOLDING = 0.15  # the same for a digit that holds on


@dataclass(frozen=True)
class Scene:
    """One scene: (SIDE, SIDE, 3) pixels, (n, SIDE, SIDE) masks of the objects, (n,) their categories."""

    pixels: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    categories: NDArray[np.int64]


def make_scenes(folder: Path, images: int = 420, seed: int = 0) -> None:
    """Write scenes as a dataset: ``seed`` and ``pool``, each with ``images/*.png`` and ``ground_truth.json``.

    images: how many in all; one in twenty, and at least one, is of the seed set. The same seed gives the
    same files. The ground truth is COCO, its masks compressed run-length encodings of what is visible.
    """
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    seeds = max(1, round(images * SEED_SHARE))
    parts = {
        "seed": (range(seeds), order[:SEED_DIGITS]),
        "pool": (range(seeds, images), order[SEED_DIGITS:]),
    }
    for part, (numbers, chosen) in parts.items():
        _write_part(folder / part, numbers, digits.images[chosen], digits.target[chosen], seed)


def _write_part(
    folder: Path, numbers: range, written: NDArray[np.float64], labels: NDArray[np.int64], seed: int
) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in numbers:
        scene = make_scene(written, labels, np.random.default_rng((seed, number)))
        name = f"scene_{number + 1:04d}.png"
        PIL.Image.fromarray(scene.pixels).save(folder / "images" / name, compress_level=3)
        entries.append({"id": number + 1, "file_name": name, "height": SIDE, "width": SIDE})
        rles = coco.encode(np.asfortranarray(scene.masks.transpose(1, 2, 0), dtype=np.uint8))
        for rle, category in zip(rles, scene.categories, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": int(category) + 1,
                    "iscrowd": 0,
                    "area": int(coco.area(rle)),
                    "bbox": coco.toBbox(rle).tolist(),
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                }
            )
    truth = {
        "info": {"description": "Generated scenes of handwritten digits (UCI, by way of scikit-learn)"},
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": row + 1, "name": name} for row, name in enumerate(CATEGORIES)],
    }
    (folder / "ground_truth.json").write_text(json.dumps(truth), encoding="utf-8")


def make_scene(written: NDArray[np.float64], labels: NDArray[np.int64], random: np.random.Generator) -> Scene:
    """Paint one scene.

    written: (n, 8, 8) digits with ink from 0 to 16; labels: (n,) the digit each one is.
    """
    canvas = _paper(random)
    owner = np.full((SIDE, SIDE), -1)
    for _ in range(random.integers(*CLUTTER)):
        _paint(canvas, owner, _clutter(written, random), random.integers(0, SIDE, 2), random)
    categories: list[int] = []
    sizes: list[int] = []
    last = None
    for _ in range(random.integers(*OBJECTS)):
        row = random.integers(len(written))
        ink = _enlarged(written[row], random.normal(0, 8), random)
        holds_on = last is not None and random.random() < HOLDS_ON
        place = _free_place(owner, ink, last if holds_on else None, random)
        if place is None:
            continue
        _paint(canvas, owner, ink, place, random, len(categories))
        categories.append(int(labels[row]))
        sizes.append(int((ink > PAINTED).sum()))
        last = place
    visible = np.bincount(owner[owner >= 0], minlength=len(sizes)) / np.array(sizes)
    kept = np.flatnonzero(visible >= LEAST_VISIBLE)
    noisy = canvas + random.normal(0, random.uniform(4, 11), (SIDE, SIDE, 1))
    return Scene(
        pixels=np.clip(noisy, 0, 255).astype(np.uint8),
        masks=owner[None] == kept[:, None, None],
        categories=np.array(categories, np.int64)[kept],
    )


def _paper(random: np.random.Generator) -> NDArray[np.float32]:
    """(SIDE, SIDE, 3), dark, with a tint, a slope of light and a coarse and a fine texture."""
    light = np.full((SIDE, SIDE), random.uniform(45, 70))
    rows, columns = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    light += random.uniform(-14, 14) * rows + random.uniform(-14, 14) * columns
    for cells, depth in ((6, 9.0), (40, 5.0)):
        coarse = random.normal(0, depth, (cells, cells)).astype(np.float32)
        light += cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    tinted: NDArray[np.float64] = light[..., None] * random.uniform(0.85, 1.15, 3)
    return tinted.astype(np.float32)


def _enlarged(written: NDArray[np.float64], degrees: float, random: np.random.Generator) -> NDArray[np.float32]:
    """(side, side), the ink of a digit at the size of the scene, from 0 (none) to 1 (full), turned."""
    scale = random.uniform(*SCALE)
    side = int(np.ceil(8 * scale * 1.3))
    turn = cv2.getRotationMatrix2D((3.5, 3.5), degrees, scale)
    turn[0, :2] = turn[0, :2] * random.uniform(0.88, 1.12)
    turn[:, 2] = side / 2 - turn[:, :2] @ np.array([3.5, 3.5])
    ink = cv2.warpAffine(written.astype(np.float32) / 16, turn, (side, side), flags=cv2.INTER_CUBIC)
    # Steep, so that an edge is a pixel wide and the mask is crisp.
    steep = np.clip((cv2.GaussianBlur(ink, (0, 0), 1.0) - 0.42) * 6 + 0.5, 0, 1)
    return steep.astype(np.float32)


def _clutter(written: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float32]:
    """(side, side), a stroke, a blob or a piece of a digit: ink that is no object."""
    kind = random.integers(3)
    side = int(random.integers(22, 40))
    ink = np.zeros((side, side), np.float32)
    if kind == 0:
        bends = random.integers(3, side - 3, (3, 1, 2)).astype(np.int32)
        cv2.polylines(ink, [bends], False, 1.0, int(random.integers(3, 6)), cv2.LINE_AA)
    elif kind == 1:
        axes = random.integers(3, 9, 2).tolist()
        angle = float(random.uniform(0, 180))
        cv2.ellipse(ink, (side // 2, side // 2), axes, angle, 0, 360, 1.0, -1, cv2.LINE_AA)
    else:
        piece = written[random.integers(len(written))].copy()
        piece[4:] = 0
        return _enlarged(piece, random.uniform(0, 360), random)
    return ink


def _free_place(
    owner: NDArray[np.int64],
    ink: NDArray[np.float32],
    beside: NDArray[np.int64] | None,
    random: np.random.Generator,
) -> NDArray[np.int64] | None:
    """Row and column for ink, right beside a place where one is given; None where the scene is full."""
    side = len(ink)
    allowed = (CROWDING if beside is None else HOLDING) * (ink > PAINTED).sum()
    for _ in range(30):
        if beside is None:
            place = random.integers(0, SIDE - side, 2)
        else:
            angle = random.uniform(0, 2 * np.pi)
            reach = random.uniform(0.55, 0.8) * side
            place = (beside + reach * np.array([np.sin(angle), np.cos(angle)])).astype(np.int64)
            place = np.clip(place, 0, SIDE - side)
        under = owner[place[0] : place[0] + side, place[1] : place[1] + side]
        if ((under >= 0) & (ink > PAINTED)).sum() <= allowed:
            return place
    return None


def _paint(
    canvas: NDArray[np.float32],
    owner: NDArray[np.int64],
    ink: NDArray[np.float32],
    place: NDArray[np.int64],
    random: np.random.Generator,
    number: int = -1,
) -> None:
    """Paint ink in a colour of its own; its pixels belong to the object of that number, or to none."""
    side = len(ink)
    top, left = np.minimum(place, SIDE - side)
    window = slice(top, top + side), slice(left, left + side)
    colour = random.uniform(120, 215) * random.uniform(0.9, 1.1, 3)
    canvas[window] += ink[..., None] * (colour - canvas[window])
    owner[window][(ink > PAINTED)] = number
