"""Gold from annotated images: what is made of the objects where a segmenter finds too little."""

import numpy as np
import pytest
from pycocotools import mask as coco

from ml_backend.gold import make_gold
from ml_backend.segmenters.base import Image
from ml_backend.segmenters.seed_set import Labeled
from propagation.masks import Detections


class Fixed:
    """A segmenter that finds what it is told."""

    categories = ("cell", "dirt")

    def __init__(self, found):
        self.found = found

    def segment(self, images):
        return [self.found[image.key] for image in images]


def blob(x, y, width=12, height=12):
    mask = np.zeros((100, 200), np.uint8)
    mask[y : y + height, x : x + width] = 1
    return coco.encode(np.asfortranarray(mask))


def detections(boxes, category):
    rles = [blob(*at) for at in boxes]
    return Detections(rles, np.full(len(rles), 0.9, np.float32), np.full(len(rles), category, np.int64))


@pytest.fixture
def made():
    """Gold of an image with 49 cells, found well and badly often enough, and of one with three bits of dirt."""
    cells = [(4 + 28 * (n % 7), 2 + 14 * (n // 7), 12, 12) for n in range(49)]
    found = detections([*cells, *((x, y, 6, 12) for x, y, _, _ in cells)], 0)
    dirt = [(10, 10), (26, 10), (180, 80)]
    images = [
        Labeled(Image(key, np.zeros((100, 200, 3), np.uint8)), [blob(*at) for at in boxes], np.full(len(boxes), c))
        for key, boxes, c in (("a.png", cells, 0), ("b.png", dirt, 1))
    ]
    return make_gold(Fixed({"a.png": found, "b.png": detections([], 0)}), images)


def test_a_category_that_has_enough_of_its_own_gets_nothing_made(made):
    table, right = made
    cells = table.category == 0
    assert (table.score[cells] > 0.6).all()
    assert int(right[cells].sum()) == 49


def test_a_category_that_lacks_masks_gets_its_objects_and_wrong_ones_of_them(made):
    table, right = made
    dirt = table.category == 1
    assert int(right[dirt].sum()) == 3
    assert int((~right[dirt]).sum()) >= 3 * 2


def test_only_neighbours_are_merged(made):
    table, _ = made
    whole = [int(area) for area in table.area[table.image == 1]]
    assert whole.count(2 * 144) == 1, "the third is far from both: the two near ones make the same mask"
