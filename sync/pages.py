"""Pages out: crops are rendered and uploaded, and each issued page becomes one task of the verify project."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from plugin.crops import SIDE, Crop, draw_crop, render_crops, unreadable_crop, whole_image
from plugin.label_studio.gateway import Gateway, chunks
from plugin.label_studio.images import decode
from plugin.label_studio.pages import Ask, Examples, Question, page_task
from plugin.label_studio.regions import outline_of
from propagation.campaign import PageState
from propagation.errors import ImageError, MaskError
from propagation.events import PagePosted
from propagation.masks import MaskTable

log = logging.getLogger(__name__)

PAGES_AT_ONCE = 10  # of which all crops are made before one is sent; what fails in between is made again

PLAIN_ADDRESSES = ("/", "http://", "https://")  # what a browser reads by itself, in whatever project
LARGE_SIDE = 384  # pixels of a crop that is asked about by itself

UNREADABLE = whole_image(unreadable_crop(2 * SIDE)[0])

#: Some rows of a mask table.
Some = tuple[MaskTable, NDArray[np.int64]]


@dataclass(frozen=True)
class VerifyProjects:
    """The project in which pages are answered, and the one that holds their crops.

    ask: the way in which they are asked; examples: what they show of a category.
    """

    pages: int
    crops: int
    ask: Ask = "page"
    examples: Mapping[str, Examples] = field(default_factory=dict)


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

    A question whose image cannot be read says so, and to say "not sure", so that the rest can be answered. The
    caller has looked before that none has a task already, from a run that was cut off.
    locations: image key to the value by which the image can be read. gold: the masks of known truth; their crops
    are made and named like the rest, in an order that tells nothing.
    """
    ways = {"page": _in_a_grid, "single": _by_themselves, "context": _in_context}
    for batch in chunks(pages, PAGES_AT_ONCE):
        masks = [(table, np.concatenate([page.rows for page in batch]))]
        known = [mask for page in batch for mask in page.issued.gold]
        if gold is not None and known:
            masks.append((gold, np.flatnonzero(np.isin(gold.ids, known))))
        asked = ways[projects.ask](gateway, projects, batch, masks, locations)
        tasks = [
            page_task(
                page.issued.page,
                page.issued.category,
                questions,
                projects.ask,
                projects.examples.get(page.issued.category),
            )
            for page, questions in zip(batch, asked, strict=True)
        ]
        numbers = gateway.import_tasks(projects.pages, tasks)
        posted([PagePosted(page.issued.page, task) for page, task in zip(batch, numbers, strict=True)])


def _in_a_grid(
    gateway: Gateway,
    projects: VerifyProjects,
    pages: Sequence[PageState],
    masks: Sequence[Some],
    locations: Mapping[str, str],
) -> list[list[Question]]:
    """The questions of pages whose crops are one picture each."""
    crops = dict(draw_crops(gateway, masks, locations))
    sheets = {page.issued.page: render_crops([crops[mask] for mask in page.shown]) for page in pages}
    urls = _uploaded(gateway, projects, sheets)
    return [[Question(mask, urls[page.issued.page]) for mask in page.shown] for page in pages]


def _by_themselves(
    gateway: Gateway,
    projects: VerifyProjects,
    pages: Sequence[PageState],
    masks: Sequence[Some],
    locations: Mapping[str, str],
) -> list[list[Question]]:
    """The questions of pages that show one large crop at a time."""
    drawn = draw_crops(gateway, masks, locations, LARGE_SIDE)
    crops = {mask: render_crops([crop]) for mask, crop in drawn}
    urls = _uploaded(gateway, projects, dict(sorted(crops.items())))
    return [[Question(mask, urls[mask]) for mask in page.shown] for page in pages]


def _in_context(
    gateway: Gateway,
    projects: VerifyProjects,
    pages: Sequence[PageState],
    masks: Sequence[Some],
    locations: Mapping[str, str],
) -> list[list[Question]]:
    """The questions of pages that show one whole image at a time.

    The image is at its own address, unless that is one that Label Studio reads for the source project alone,
    from a storage connected there. What a browser cannot read at its own address, it says itself.
    """
    images = {image for table, rows in masks for image in _by_image(table, rows)}
    elsewhere = sorted(image for image in images if not locations[image].startswith(PLAIN_ADDRESSES))
    copies, unreadable = {}, set()
    for place, image in enumerate(elsewhere):
        pixels = _read(gateway, image, locations[image])
        copies[f"{place}"] = UNREADABLE if pixels is None else whole_image(pixels)
        unreadable |= {image} if pixels is None else set()
    urls = {**locations, **dict(zip(elsewhere, _uploaded(gateway, projects, copies).values(), strict=True))}
    shown = {}
    for table, rows in masks:
        for image, here in _by_image(table, rows).items():
            for row in here:
                mask = str(table.ids[row])
                outline = () if image in unreadable else outline_of(mask, table.rle(row))
                shown[mask] = Question(mask, urls[image], outline)
    return [[shown[mask] for mask in page.shown] for page in pages]


def _uploaded(gateway: Gateway, projects: VerifyProjects, pictures: Mapping[str, bytes]) -> dict[str, str]:
    """Name to the address of its picture."""
    urls = gateway.upload(projects.crops, [(f"{name}.jpg", content) for name, content in pictures.items()])
    return dict(zip(pictures, urls, strict=True))


def _by_image(table: MaskTable, rows: NDArray[np.int64]) -> dict[str, list[int]]:
    by_image: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        by_image[str(table.images[table.image[row]])].append(int(row))
    return by_image


def draw_crops(
    gateway: Gateway, masks: Sequence[Some], locations: Mapping[str, str], side: int = SIDE
) -> Iterator[tuple[str, Crop]]:
    """Each mask's id and crop; of a table's masks, each image is read once."""
    for table, rows in masks:
        for image, here in _by_image(table, rows).items():
            pixels = _read(gateway, image, locations[image])
            for row in here:
                mask = str(table.ids[row])
                try:
                    crop = None if pixels is None else draw_crop(pixels, table.rle(row), side)
                except (ImageError, MaskError) as error:  # the image is not the one that the mask was found in
                    log.warning("mask %s has no crop: %s", mask, error)
                    crop = None
                yield mask, crop or unreadable_crop(side)


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
