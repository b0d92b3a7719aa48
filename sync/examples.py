"""Examples of right and wrong outlines, made of what people have annotated in the source project."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from plugin.crops import draw_crop, render_strip
from plugin.label_studio.gateway import Gateway, Json
from plugin.label_studio.images import decode, image_key
from plugin.label_studio.labeling import Labeling
from plugin.label_studio.pages import Examples
from plugin.label_studio.regions import META, rle_of
from propagation.errors import ImageError, MaskError
from propagation.rle import Rle
from propagation.rle import decode as decode_rle
from sync.source import ANNOTATION_FIELDS

log = logging.getLogger(__name__)

TASKS = 200  # annotated ones that are looked at
EACH = 3  # examples of right, and of wrong
LEAST_AREA = 60  # pixels; smaller objects show little

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Drawn:
    """An object that a person has outlined: its image's location, and its mask."""

    location: str
    rle: Rle


def make_examples(gateway: Gateway, project: int, labeling: Labeling, crops: int) -> dict[str, Examples]:
    """By label, pictures of some objects as people have outlined them, and of the same outlined wrongly.

    crops: the project that holds them. Nothing for a label of which nobody has drawn an object.
    """
    drawn = _drawn(gateway, project, labeling)
    strips: dict[str, list[tuple[str, bytes]]] = {}
    for number, label in enumerate(sorted(drawn)):
        right, wrong = _pictures(gateway, drawn[label])
        if right:
            strips[label] = [
                (f"example-{number}-right.jpg", render_strip(right)),
                (f"example-{number}-wrong.jpg", render_strip(wrong)),
            ]
    files = [file for pair in strips.values() for file in pair]
    urls = iter(gateway.upload(crops, files) if files else ())
    return {label: Examples(next(urls), next(urls)) for label in strips}


def _drawn(gateway: Gateway, project: int, labeling: Labeling) -> dict[str, list[Drawn]]:
    """By label, the objects on the first tasks that people have annotated."""
    found: dict[str, list[Drawn]] = defaultdict(list)
    tasks = gateway.tasks(project, ["data", *ANNOTATION_FIELDS], annotated=True)
    for task in islice(tasks, TASKS):
        location = task["data"].get(labeling.field)
        if not isinstance(location, str) or not location:
            continue
        regions = [
            region
            for annotation in task.get("annotations") or ()
            if not annotation.get("was_cancelled")
            for region in annotation.get("result") or ()
        ]
        for region in regions:
            label = _label(region, labeling)
            try:
                if label is not None and coco.area(rle := rle_of([region])) >= LEAST_AREA:
                    found[label].append(Drawn(location, rle))
            except (LookupError, TypeError, ValueError, MaskError) as error:
                log.info("region %s of task %s is no example: %s", region.get("id"), task["id"], error)
    return found


def _label(region: Json, labeling: Labeling) -> str | None:
    """The label of a mask that a person drew; None for anything else."""
    controls = {"polygonlabels": labeling.polygons, "brushlabels": labeling.brushes}
    kind = region.get("type")
    if kind not in controls or META in (region.get("meta") or {}):
        return None
    names = region["value"].get(kind) or ()
    return next((name for name in names if controls[kind].get(name) == region.get("from_name")), None)


def _pictures(gateway: Gateway, drawn: Sequence[Drawn]) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Crops of the most usual objects, outlined rightly and wrongly, of as many images as there are."""
    area = np.array([float(coco.area(each.rle)) for each in drawn])
    usual = np.argsort(np.abs(np.log(area / np.median(area))), kind="stable").tolist()
    first = {drawn[place].location: place for place in reversed(usual)}
    order = [*sorted(first.values(), key=usual.index), *(p for p in usual if p not in set(first.values()))]
    right: list[NDArray[np.uint8]] = []
    wrong: list[NDArray[np.uint8]] = []
    for place in order[: 3 * EACH]:
        each = drawn[place]
        others = [other.rle for other in drawn if other.location == each.location and other is not each]
        try:
            pixels = decode(image_key(each.location), gateway.read_file(each.location))
            shown = draw_crop(pixels, each.rle)[0], draw_crop(pixels, spoiled(each.rle, others, len(wrong)))[0]
        except (ImageError, MaskError) as error:
            log.info("no example of %s: %s", each.location, error)
            continue
        right.append(shown[0])
        wrong.append(shown[1])
        if len(right) == EACH:
            break
    return right, wrong


def spoiled(rle: Rle, others: Sequence[Rle], how: int) -> Rle:
    """A mask made wrong, in turn: shifted by half its size, half of it gone, or joined with its neighbour.

    Without a neighbour, it takes in its surroundings.
    """
    mask = decode_rle(rle)
    rows, columns = np.nonzero(mask)
    top, left = int(rows.min()), int(columns.min())
    height, width = int(rows.max()) - top + 1, int(columns.max()) - left + 1
    made = (_shifted, _halved, _joined)[how % 3](mask, (top, left, height, width), others)
    if not made.any():
        made = _halved(mask, (top, left, height, width), others)
    encoded: Rle = coco.encode(np.asfortranarray(made, dtype=np.uint8))
    return encoded


Box = tuple[int, int, int, int]


def _shifted(mask: Mask, box: Box, others: Sequence[Rle]) -> Mask:
    top, left, height, width = box
    down = -(height // 3) if top + height + height // 3 > mask.shape[0] else height // 3
    aside = -(width // 2) if left + width + width // 2 > mask.shape[1] else width // 2
    moved = np.zeros_like(mask)
    rows, columns = np.nonzero(mask)
    rows, columns = rows + down, columns + aside
    inside = (rows >= 0) & (columns >= 0) & (rows < mask.shape[0]) & (columns < mask.shape[1])
    moved[rows[inside], columns[inside]] = True
    return moved


def _halved(mask: Mask, box: Box, others: Sequence[Rle]) -> Mask:
    kept = mask.copy()
    kept[box[0] + max(1, box[2] // 2) :] = False
    return kept


def _joined(mask: Mask, box: Box, others: Sequence[Rle]) -> Mask:
    """With the nearest other object and what lies between, where it is near; else grown by a third."""
    top, left, height, width = box
    reach = max(height, width)
    near = mask.copy()
    near[
        max(0, top - reach // 2) : top + height + reach // 2, max(0, left - reach // 2) : left + width + reach // 2
    ] = True
    for other in others:
        beside = decode_rle(other) if tuple(other["size"]) == mask.shape else np.zeros_like(mask)
        if (beside & near).any() and not (beside & mask).any():
            size = 2 * (reach // 2) + 1
            closed = cv2.morphologyEx(
                (mask | beside).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((size, size), np.uint8)
            )
            return np.asarray(closed > 0)
    size = 2 * max(2, reach // 3) + 1
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((size, size), np.uint8)) > 0)
