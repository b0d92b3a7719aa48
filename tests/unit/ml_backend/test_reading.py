"""Images ahead: in order, in batches that their sizes alone decide, and never more in memory than two batches."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable
from functools import cache

import numpy as np
import PIL.Image
import pytest

from ml_backend import reading
from ml_backend.reading import BLOCK, IMAGES_AT_ONCE, read_ahead
from ml_backend.segmenters.base import Image
from plugin.label_studio import images
from propagation.errors import ImageError, Unreachable

SIDE = 10


@cache
def png(width: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.zeros((SIDE, width, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def read(key: str) -> bytes:
    """A key is a number and the image's width in tens of pixels; one without width is no image."""
    width = int(key.partition(" ")[2] or 0)
    return png(SIDE * width) if width else b"nothing"


def keys(*widths: int) -> list[str]:
    return [f"{place} {width or ''}".strip() for place, width in enumerate(widths)]


def shape(batches: Iterable[list[Image | ImageError]]) -> list[list[int]]:
    """The widths of the images of each batch, in tens of pixels; 0 for what cannot be read."""
    return [[0 if isinstance(i, ImageError) else i.pixels.shape[1] // SIDE for i in batch] for batch in batches]


@pytest.fixture
def hundred(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch takes as many pixels as ten images of width 1."""
    monkeypatch.setattr(reading, "PIXELS_AT_ONCE", 10 * SIDE * SIDE)


@pytest.mark.usefixtures("hundred")
@pytest.mark.parametrize(
    ("widths", "batches"),
    [
        ([], []),
        ([1], [[1]]),
        ([6, 4, 1], [[6, 4], [1]]),
        ([6, 5, 5, 5], [[6], [5, 5], [5]]),
        ([30, 1, 30], [[30], [1], [30]]),
        ([1, 0, 9, 0, 1], [[1, 0, 9, 0], [1]]),
        ([0] * (IMAGES_AT_ONCE + 1), [[0] * IMAGES_AT_ONCE, [0]]),
    ],
)
def test_a_batch_ends_where_the_next_image_would_be_too_many_pixels(
    widths: list[int], batches: list[list[int]]
) -> None:
    assert shape(read_ahead(keys(*widths), read)) == batches


@pytest.mark.usefixtures("hundred")
def test_batches_of_a_part_are_those_of_the_whole() -> None:
    sizes = np.random.default_rng(0).integers(0, 7, 3 * BLOCK - 5).tolist()
    parts = [read_ahead(keys(*sizes[begin : begin + BLOCK]), read) for begin in range(0, len(sizes), BLOCK)]
    assert shape(read_ahead(keys(*sizes), read)) == [batch for part in parts for batch in shape(part)]


@pytest.mark.usefixtures("hundred")
def test_no_more_than_the_next_batch_is_decoded_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, settled = 0, threading.Condition()

    class Counting(images.Undecoded):
        def decode(self) -> np.ndarray:
            nonlocal decoded
            pixels = super().decode()
            with settled:
                decoded += 1
                settled.notify_all()
            return pixels

    monkeypatch.setattr(reading, "Undecoded", Counting)
    for number, _ in enumerate(read_ahead(keys(*[5] * 40), read), start=1):
        expected = min(2 * number + 2, 40)  # two images a batch: those in use, and the next ones
        with settled:
            assert settled.wait_for(lambda expected=expected: decoded >= expected, 10)
            assert decoded == expected


def test_an_error_of_the_reader_comes_out_and_nobody_waits_for_the_rest() -> None:
    def away(key: str) -> bytes:
        if key.startswith("20 "):
            raise Unreachable("away")
        return read(key)

    threads = threading.active_count()
    with pytest.raises(Unreachable, match="away"):
        list(read_ahead(keys(*[1] * 100), away))
    assert threading.active_count() == threads


def test_who_stops_early_leaves_no_thread_behind() -> None:
    threads = threading.active_count()
    batches = read_ahead(keys(*[1] * 100), read)
    next(batches)
    batches.close()
    assert threading.active_count() == threads
