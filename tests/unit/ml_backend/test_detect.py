"""Batch detection: all images through the segmenter in order, unreadable ones named."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco

from ml_backend.detect import detect
from ml_backend.reading import IMAGES_AT_ONCE
from ml_backend.segmenters.base import Image
from propagation.errors import ImageError, MaskError
from propagation.masks import Detections

SIDE = 32
KEYS = [f"{number}.png" for number in range(2 * IMAGES_AT_ONCE + 3)]


class Corners:
    """One mask an image: as many columns as the image's first pixel says. Remembers its calls."""

    categories = ("cell", "dust")

    def __init__(self, score: float = 0.5) -> None:
        self.calls: list[list[str]] = []
        self.score = score

    def segment(self, images: Sequence[Image]) -> Sequence[Detections]:
        self.calls.append([image.key for image in images])
        return [self._one(image) for image in images]

    def _one(self, image: Image) -> Detections:
        mask = np.zeros(image.pixels.shape[:2], np.uint8, order="F")
        mask[:4, : int(image.pixels[0, 0, 0])] = 1
        return Detections([coco.encode(mask)], np.array([self.score], np.float32), np.array([1]))


def read(key: str) -> bytes:
    return png(int(key.split(".")[0]) % SIDE + 1)


@cache
def png(level: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((SIDE, SIDE, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def unreadable(*keys: str) -> Any:
    def read_some(key: str) -> bytes:
        if key in keys:
            raise ImageError(f"image {key!r} cannot be read")
        return read(key)

    return read_some


def test_every_image_gets_its_own_masks() -> None:
    table, missing = detect(Corners(), KEYS, read, "v1")
    assert missing == []
    assert table.images.tolist() == KEYS
    assert table.image.tolist() == list(range(len(KEYS)))
    assert table.area.tolist() == [4 * (number % SIDE + 1) for number in range(len(KEYS))]
    assert table.categories == ("cell", "dust")
    assert set(table.category.tolist()) == {1}
    assert table.model_version == "v1"


def test_the_segmenter_gets_batches_in_order() -> None:
    segmenter = Corners()
    detect(segmenter, KEYS, read, "v1")
    assert [len(call) for call in segmenter.calls] == [IMAGES_AT_ONCE, IMAGES_AT_ONCE, 3]
    assert [key for call in segmenter.calls for key in call] == KEYS


def test_masks_do_not_depend_on_their_batch() -> None:
    whole, _ = detect(Corners(), KEYS, read, "v1")
    parts = [detect(Corners(), [key], read, "v1")[0] for key in KEYS]
    assert whole.ids.tolist() == [number for part in parts for number in part.ids.tolist()]


def test_masks_have_features_of_their_shape() -> None:
    table, _ = detect(Corners(), KEYS[:3], read, "v1")
    assert table.features.keys() == {"shape", "mask"}
    for block in table.features.values():
        assert len(block) == len(table) == 3
        assert np.isfinite(block).all()


@pytest.mark.parametrize("count", [0, 1, IMAGES_AT_ONCE, IMAGES_AT_ONCE + 1])
def test_progress_counts_every_image(count: int) -> None:
    told: list[int] = []
    detect(Corners(), KEYS[:count], read, "v1", progress=told.append)
    assert sum(told) == count
    assert 0 not in told


def test_progress_counts_unreadable_images_too() -> None:
    told: list[int] = []
    detect(Corners(), KEYS, unreadable(KEYS[0], KEYS[-1]), "v1", skip_unreadable=True, progress=told.append)
    assert sum(told) == len(KEYS)


def test_all_unreadable_images_are_named_at_once() -> None:
    broken = [KEYS[1], KEYS[IMAGES_AT_ONCE], KEYS[-1]]
    with pytest.raises(ImageError, match=rf"3 of {len(KEYS)} images cannot be read.*--skip-unreadable") as raised:
        detect(Corners(), KEYS, unreadable(*broken), "v1")
    assert all(repr(key) in str(raised.value) for key in broken)


def test_of_very_many_unreadable_images_some_are_named() -> None:
    with pytest.raises(ImageError, match=f"and {len(KEYS) - 20} more") as raised:
        detect(Corners(), KEYS, unreadable(*KEYS), "v1")
    assert len(str(raised.value).splitlines()) == 22


def test_after_an_unreadable_image_nothing_more_is_segmented() -> None:
    segmenter = Corners()
    with pytest.raises(ImageError):
        detect(segmenter, KEYS, unreadable(KEYS[IMAGES_AT_ONCE]), "v1")
    assert len(segmenter.calls) == 1


def test_unreadable_images_can_be_left_out() -> None:
    broken = [KEYS[0], KEYS[IMAGES_AT_ONCE]]
    table, missing = detect(Corners(), KEYS, unreadable(*broken), "v1", skip_unreadable=True)
    assert table.images.tolist() == [key for key in KEYS if key not in broken]
    assert [str(error) for error in missing] == [f"image {key!r} cannot be read" for key in broken]


def test_a_pool_of_unreadable_images_gives_an_empty_table() -> None:
    table, missing = detect(Corners(), KEYS[:2], unreadable(*KEYS[:2]), "v1", skip_unreadable=True)
    assert len(table) == 0
    assert len(missing) == 2


def test_masks_that_cannot_be_used_are_refused_with_their_image() -> None:
    with pytest.raises(MaskError, match=r"0\.png.*score is not a number"):
        detect(Corners(score=float("nan")), KEYS, read, "v1")


def test_an_error_of_another_kind_is_not_taken_for_an_unreadable_image() -> None:
    def fail(key: str) -> bytes:
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        detect(Corners(), KEYS, fail, "v1", skip_unreadable=True)
