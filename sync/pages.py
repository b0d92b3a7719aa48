"""Pages out: crops are rendered and uploaded, and each issued page becomes one task of the verify project."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plugin.crops import render_crop, unreadable_crop
from plugin.label_studio.gateway import Gateway, chunks
from plugin.label_studio.images import decode
from plugin.label_studio.pages import Question, page_task
from propagation.campaign import PageState
from propagation.errors import ImageError, MaskError
from propagation.events import PagePosted
from propagation.masks import MaskTable

log = logging.getLogger(__name__)

PAGES_AT_ONCE = 10  # of which all crops are made before one is sent; what fails in between is made again

UNREADABLE = unreadable_crop()


@dataclass(frozen=True)
class VerifyProjects:
    """The project in which pages are answered, and the one that holds their crops."""

    pages: int
    crops: int


def post_pages(
    gateway: Gateway,
    projects: VerifyProjects,
    table: MaskTable,
    pages: Sequence[PageState],
    locations: Mapping[str, str],
    posted: Callable[[list[PagePosted]], None],
    gold: MaskTable | None = None,
) -> None:
    """Make a task of each page; ``posted`` is told after every batch that the server took.

    A question whose image cannot be read says so, and to mark it as wrong, so that the rest can be answered. The
    caller has looked before that none has a task already, from a run that was cut off.
    locations: image key to the value by which the image can be read. gold: the masks of known truth; their crops
    are made and named like the rest, and uploaded in the order of mask ids, which tells nothing.
    """
    for batch in chunks(pages, PAGES_AT_ONCE):
        crops = _render(gateway, table, np.concatenate([page.rows for page in batch]), locations)
        known = [mask for page in batch for mask in page.issued.gold]
        if gold is not None and known:
            rows = np.flatnonzero(np.isin(gold.ids, known))
            crops = dict(sorted({**crops, **_render(gateway, gold, rows, locations)}.items()))
        urls = dict(
            zip(crops, gateway.upload(projects.crops, [(f"{c}.jpg", crops[c]) for c in crops]), strict=True)
        )
        tasks = [
            page_task(page.issued.page, page.issued.category, [Question(m, urls[m]) for m in page.shown])
            for page in batch
        ]
        numbers = gateway.import_tasks(projects.pages, tasks)
        posted([PagePosted(page.issued.page, task) for page, task in zip(batch, numbers, strict=True)])


def _render(
    gateway: Gateway, table: MaskTable, rows: NDArray[np.int64], locations: Mapping[str, str]
) -> dict[str, bytes]:
    """Mask id to crop; each image is read once."""
    by_image: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        by_image[str(table.images[table.image[row]])].append(int(row))
    crops = {}
    for image, here in by_image.items():
        pixels = _read(gateway, image, locations[image])
        for row in here:
            mask = str(table.ids[row])
            try:
                crops[mask] = UNREADABLE if pixels is None else render_crop(pixels, table.rle(row))
            except (ImageError, MaskError) as error:  # the image is not the one that the mask was found in
                log.warning("mask %s has no crop: %s", mask, error)
                crops[mask] = UNREADABLE
    return crops


def _read(gateway: Gateway, image: str, location: str) -> NDArray[np.uint8] | None:
    """The pixels of an image; None where it cannot be read, which is no reason to ask nothing else."""
    try:
        try:
            return decode(image, gateway.read_file(location))
        except ImageError:
            return decode(image, gateway.read_file(location))  # the answer may have been another's
    except ImageError as error:
        log.warning("%s", error)
        return None
