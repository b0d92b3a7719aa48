"""A random sample of the accepted masks, drawn by an expert who doesn't see them, and what that says."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from plugin.crops import render_place
from plugin.label_studio.drawing import drawing_task, read_drawing
from plugin.label_studio.gateway import Gateway, Json, chunks
from plugin.label_studio.images import decode
from plugin.label_studio.pages import is_answer
from propagation.campaign import Campaign
from propagation.errors import AnswerError, ImageError, InputError, MaskError
from propagation.quality import drawn_quality
from propagation.rle import Rle, decode_window
from propagation.summary import statement

log = logging.getLogger(__name__)

AT_ONCE = 20  # images
FIELDS = ("data", "annotations", "result", "was_cancelled")


@dataclass(frozen=True)
class Sample:
    """A sample: its number, by which it was drawn; how many were wanted; of how many accepted; the mask ids."""

    number: int
    size: int
    of: int
    masks: list[str]


def draw_sample(campaign: Campaign, size: int | None, number: int) -> Sample:
    """Draw from the accepted masks, uniformly; the same of the same masks for the same number.

    Raises InputError where no size is given or nothing is accepted.
    """
    if size is None:
        raise InputError("no sample was drawn yet; say how many masks an expert is to draw: --sample 100")
    rows = np.flatnonzero(campaign.accepted())
    if not len(rows):
        raise InputError("no mask is accepted yet, so there is none to draw; wait for ls-propagate sync")
    chosen = np.random.default_rng([number, len(rows)]).permutation(rows)[:size]
    return Sample(number, size, len(rows), campaign.table.ids[chosen].tolist())


def post_sample(
    gateway: Gateway,
    project: int,
    crops: int,
    campaign: Campaign,
    sample: Sample,
    locations: Mapping[str, str],
) -> int:
    """Make a task of each mask of a sample that has none, in the sample's order; how many were made.

    One whose image cannot be read is left out, and tried again the next time.
    """
    there = {task["data"].get("mask") for task in gateway.tasks(project, ["data"])}
    table = campaign.table
    rows = dict(zip(sample.masks, campaign.rows_of(sample.masks).tolist(), strict=True))
    lacking = [mask for mask in sample.masks if mask not in there]
    made = 0
    for part in chunks(lacking, AT_ONCE):
        shown = {}
        for mask in part:
            row = rows[mask]
            image = str(table.images[table.image[row]])
            rng = np.random.default_rng(list(mask.encode()))
            try:
                pixels = decode(image, gateway.read_file(locations[image]))
                shown[mask] = render_place(pixels, table.rle(row), rng)
            except (ImageError, MaskError) as error:
                log.warning("mask %s cannot be drawn: %s", mask, error)
        urls = gateway.upload(crops, [(f"place-{mask}.jpg", jpeg) for mask, (jpeg, _) in shown.items()])
        tasks = [
            drawing_task(mask, table.categories[table.category[rows[mask]]], url, window)
            for (mask, (_, window)), url in zip(shown.items(), urls, strict=True)
        ]
        made += len(gateway.import_tasks(project, tasks)) if tasks else 0
    return made


def report(gateway: Gateway, project: int, campaign: Campaign, sample: Sample) -> dict[str, Any]:
    """What is drawn so far says, beside what the campaign claims.

    Masks of the sample that were taken back since are left out. Of several answers of a mask, the first counts.
    """
    table = campaign.table
    rows = campaign.rows_of(sample.masks)
    accepted = campaign.accepted()
    standing = {mask: int(row) for mask, row in zip(sample.masks, rows, strict=True) if accepted[row]}
    answers: dict[str, float | None] = {}
    problems = []
    for task in gateway.tasks(project, FIELDS, annotated=True):
        mask = task["data"].get("mask")
        answer = next(filter(is_answer, sorted(task["annotations"], key=lambda a: int(a["id"]))), None)
        if mask not in standing or mask in answers or answer is None:
            continue
        try:
            drawn = read_drawing(answer)
        except AnswerError as error:
            problems.append(str(error))
            continue
        answers[mask] = None if drawn is None else _iou(table.rle(standing[mask]), drawn, task["data"]["window"])
    now = int(accepted.sum())
    found: dict[str, list[float | None]] = defaultdict(list)
    for mask, iou in answers.items():
        found[table.categories[table.category[standing[mask]]]].append(iou)
    sizes = np.bincount(table.category[accepted], minlength=len(table.categories))

    def row(name: str, ious: list[float | None], population: int) -> Json:
        known = np.array([iou or 0.0 for iou in ious], dtype=np.float64)
        return asdict(drawn_quality(name, known, ious.count(None), population))

    return {
        "sample": len(sample.masks),
        "of": sample.of,
        "taken_back": len(sample.masks) - len(standing),
        "accepted_since": max(now - sample.of, 0),
        "claim": campaign.claim,
        "bound": campaign.search.bound(),
        "statement": statement(campaign),
        "categories": [
            row(name, found[name], int(size)) for name, size in zip(table.categories, sizes, strict=True) if size
        ],
        "total": row("total", [iou for ious in found.values() for iou in ious], now),
        "problems": problems,
    }


def _iou(rle: Rle, drawn: Rle, window: list[int]) -> float:
    """The IoU of a mask with what was drawn over a window of its image, in the pixels in which it was drawn."""
    height, width = drawn["size"]
    piece = decode_window(rle, *window).astype(np.uint8)
    # the plain kind takes the pixel at the corner, and so moves the mask by half a pixel
    shown = cv2.resize(piece, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return float(coco.iou([coco.encode(np.asfortranarray(shown, dtype=np.uint8))], [drawn], [0])[0, 0])
