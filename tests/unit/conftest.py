"""What unit tests build on: masks drawn by hand, tables and trees over them, and a campaign played through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import fastcluster
import numpy as np
import pytest
from pycocotools import mask as coco

from ml_backend.segmenters.base import Image
from ml_backend.segmenters.seed_set import Labeled
from propagation.campaign import Campaign
from propagation.events import CampaignStarted, PageAnswered, PagePosted
from propagation.masks import Detections, MaskTable, build_table
from propagation.tree import ClusterTree, tree_from_linkage

CELLS = 4  # a side: sixteen masks an image
CELL = 8  # pixels


def _encode(painted):
    return coco.encode(np.asfortranarray(painted, dtype=np.uint8))


def _box(left, top, width, height, image=(CELLS * CELL, CELLS * CELL)):
    painted = np.zeros(image, np.uint8)
    painted[top : top + height, left : left + width] = 1
    return _encode(painted)


def _detections(rles, scores, categories=None, features=None):
    return Detections(
        list(rles),
        np.array(scores, dtype=np.float32),
        np.zeros(len(rles), dtype=np.int64) if categories is None else np.array(categories, dtype=np.int64),
        None if features is None else np.asarray(features),
    )


def _table(scores, categories=None, names=("cell",), features=None, keys=None) -> MaskTable:
    """A table with a small square for each score, sixteen an image, in order."""
    n = len(scores)
    an_image = CELLS * CELLS
    keys = keys or [f"/data/upload/1/{number:03}.png" for number in range(-(-n // an_image))]
    codes = np.zeros(n, dtype=np.int64) if categories is None else np.asarray(categories)
    squares = [
        _box(place % CELLS * CELL + 1, place // CELLS % CELLS * CELL + 1, 5, 5) for place in range(an_image)
    ]
    found = []
    for begin in range(0, len(keys) * an_image, an_image):
        part = slice(begin, min(begin + an_image, n))
        rles = squares[: max(0, part.stop - part.start)]
        deep = None if features is None else np.asarray(features)[part]
        found.append(_detections(rles, scores[part], codes[part], deep))
    return build_table(keys, found, names, "model-1")


def _scene(number: int, height: int = 64, width: int = 80) -> Labeled:
    """Discs on a dark, noisy ground, every other one red, which is the second category; two of them touch."""
    random = np.random.default_rng(number)
    pixels = random.normal(40, 6, (height, width, 3))
    rows, columns = np.mgrid[:height, :width]
    rles, categories = [], []
    for place, (y, x) in enumerate([(14, 14), (14, 60), (46, 20), (46, 37), (48, 66)]):
        here = (rows - y) ** 2 + (columns - x) ** 2 <= (8 + random.integers(2)) ** 2
        category = (place + number) % 2
        pixels[here] += (150, 20, 20) if category else (150, 150, 150)
        rles.append(_encode(here))
        categories.append(category)
    image = Image(f"{number}.png", pixels.clip(0, 255).astype(np.uint8))
    return Labeled(image, rles, np.array(categories, np.int64))


def _tree(table: MaskTable, values: Sequence[float], category: int = 0) -> ClusterTree:
    """The complete-linkage tree of a category's masks by one number each."""
    rows = np.flatnonzero(table.category == category)
    joined = np.empty((0, 4))
    if len(rows) > 1:
        joined = fastcluster.linkage(np.asarray(values, dtype=float)[rows, None], "complete")
    return tree_from_linkage(table.categories[category], rows, joined)


def _play(
    campaign: Campaign,
    right: Sequence[bool],
    order: Callable[[list], Iterable] = list,
    rounds: int = 1000,
    start: bool = True,
) -> list:
    """Answer every page truthfully, in some order, until nothing is left to ask; the event log."""
    log = []

    def take(event):
        campaign.apply(event)
        log.append(event)

    if start:
        take(CampaignStarted("campaign", {}, "table", "trees"))
    for _ in range(rounds):
        for decision in campaign.decisions():
            take(decision)
        asked = [take(event) for event in campaign.next_round()]
        if not asked and not campaign.waiting_pages:
            return log
        for page in order(campaign.waiting_pages):
            number = len(campaign.pages)
            take(PagePosted(page.issued.page, number))
            verdicts = tuple("yes" if right[row] else "no" for row in page.rows)
            take(PageAnswered(page.issued.page, number, "now", 2, 1.0, verdicts))
            for decision in campaign.decisions():
                take(decision)
    raise AssertionError("the campaign never ends")


@pytest.fixture(scope="session")
def encode():
    """The run-length encoding of a painted array."""
    return _encode


@pytest.fixture(scope="session")
def box():
    """The encoding of a rectangle: left, top, width, height[, image size]."""
    return _box


@pytest.fixture(scope="session")
def detections():
    """Detections of some encodings: rles, scores[, categories, features]."""
    return _detections


@pytest.fixture(scope="session")
def table():
    """A table of small squares: scores[, categories, names, features, keys]."""
    return _table


@pytest.fixture(scope="session")
def scene():
    """An image with five objects of two categories, by its number."""
    return _scene


@pytest.fixture(scope="session")
def tree():
    """The tree of a category's masks by one number each."""
    return _tree


@pytest.fixture(scope="session")
def play():
    """A campaign answered truthfully to its end; its event log."""
    return _play
