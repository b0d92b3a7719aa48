"""A crop shows a mask in its surroundings, with an outline that can be seen wherever it lies."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from plugin.crops import (
    BEYOND_IMAGE,
    GAP,
    SIDE,
    contact_sheet,
    draw_crop,
    render_crops,
    render_strip,
    unreadable_crop,
)
from propagation.errors import ImageError, MaskError
from propagation.rle import Rle


def encode(mask: NDArray[np.bool_]) -> Rle:
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))  # type: ignore[no-any-return]


def disc(size: int, x: float, y: float, radius: float) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:size, :size]
    return np.asarray(np.hypot(columns - x, rows - y) <= radius)


def crop(mask: NDArray[np.bool_], value: int = 200, side: int = SIDE) -> NDArray[np.int32]:
    """The outlined crop's pixels (side, side, 3) RGB, of an image of one grey value."""
    return read(whole(mask, value, side))[:, :side]


def whole(mask: NDArray[np.bool_], value: int = 200, side: int = SIDE) -> bytes:
    return render_crops([draw_crop(np.full((*mask.shape, 3), value, np.uint8), encode(mask), side)])


def read(jpeg: bytes) -> NDArray[np.int32]:
    assert jpeg.startswith(b"\xff\xd8")
    shown = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(shown, dtype=np.int32)[:, :, ::-1]


def yellow(pixels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Where the outline's line lies."""
    return (pixels[:, :, 0] - pixels[:, :, 2] > 60) & (pixels[:, :, 1] > 120)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_the_outline_is_seen_on_any_background(value: int) -> None:
    pixels = crop(disc(100, 50, 50, 10), value)
    line = yellow(pixels)
    assert 0.01 < line.mean() < 0.1
    dark_beside = cv2.dilate(line.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool) & ~line
    assert pixels[dark_beside].mean(axis=1).min() < 90


def test_the_outline_lies_on_the_masks_edge_and_leaves_the_object_free() -> None:
    rows, columns = np.nonzero(yellow(crop(disc(100, 50, 50, 10))))
    scale = SIDE / (21 + 2 * 13)  # a disc of 21 pixels, a margin of 60 % on each side
    radii = np.hypot(columns - SIDE / 2, rows - SIDE / 2)
    assert np.median(radii) == pytest.approx(10.5 * scale, abs=2)
    assert radii.min() > 8.5 * scale
    assert radii.max() < 12 * scale


def test_an_enlarged_mask_has_a_smooth_outline() -> None:
    rows, columns = np.nonzero(yellow(crop(disc(60, 30, 30, 5))))
    radii = np.hypot(columns - columns.mean(), rows - rows.mean())
    scale = SIDE / (11 + 2 * 10)
    assert radii.std() < 0.3 * scale


def test_a_hole_is_outlined_too() -> None:
    ring = disc(100, 50, 50, 12) & ~disc(100, 50, 50, 5)
    islands, _ = cv2.connectedComponents(yellow(crop(ring)).astype(np.uint8))
    assert islands - 1 == 2


@pytest.mark.parametrize("corner", [(0, 0), (99, 0), (0, 99), (99, 99)])
def test_at_the_border_the_crop_stays_inside_the_image(corner: tuple[int, int]) -> None:
    pixels = crop(disc(100, *corner, 10))
    assert yellow(pixels).any()
    assert not beyond(pixels).any()


def beyond(pixels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Rows that show nothing of the image (of value 200)."""
    return np.asarray((abs(pixels - BEYOND_IMAGE) < 8).all(axis=(1, 2)))


def test_where_the_image_ends_the_crop_is_grey() -> None:
    mask = np.zeros((20, 120), bool)
    mask[5:15, 40:80] = True
    grey = beyond(crop(mask))
    assert grey[:20].all()
    assert grey[-20:].all()
    assert not grey[SIDE // 2 - 10 : SIDE // 2 + 10].any()


def test_one_pixel_is_outlined_at_the_middle() -> None:
    mask = np.zeros((80, 80), bool)
    mask[40, 40] = True
    rows, columns = np.nonzero(yellow(crop(mask)))
    assert abs(rows - SIDE / 2).max() < 15
    assert abs(columns - SIDE / 2).max() < 15


def test_a_mask_of_the_whole_image_is_outlined_along_its_border() -> None:
    line = yellow(crop(np.ones((50, 50), bool)))
    for edge in (line[:4], line[-4:], line[:, :4], line[:, -4:]):
        assert edge.any(axis=0).mean() > 0.9 or edge.any(axis=1).mean() > 0.9
    assert not line[10:-10, 10:-10].any()


def test_a_thin_mask_does_not_vanish_when_shrunk() -> None:
    mask = np.zeros((1500, 1500), bool)
    mask[100:1400, 700:702] = True
    assert yellow(crop(mask)).any(axis=1).mean() > 0.7


def test_a_dark_image_is_lightened_and_a_light_one_is_not() -> None:
    mask = disc(100, 50, 50, 10)
    assert crop(mask, 20)[0, 0].mean() == pytest.approx(80, abs=3)
    assert crop(mask, 180)[0, 0].mean() == pytest.approx(180, abs=3)


def test_a_crop_has_the_side_asked_for_and_twenty_are_a_light_page() -> None:
    assert read(whole(disc(100, 50, 50, 10), side=96)).shape == (96, 192, 3)
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    photo = cv2.GaussianBlur(noise, (0, 0), 2).astype(np.uint8)
    assert len(render_crops([draw_crop(photo, encode(disc(400, 200, 200, 20)))])) < 20_000


def test_beside_the_crop_is_the_same_without_the_outline() -> None:
    pixels = np.full((100, 100, 3), 200, np.uint8)
    pixels[40:60, 40:60] = 90
    both = read(render_crops([draw_crop(pixels, encode(disc(100, 50, 50, 12)))]))
    outlined, plain = both[:, :SIDE], both[:, SIDE:]
    assert yellow(outlined).any()
    assert not yellow(plain).any()
    away = cv2.dilate(yellow(outlined).astype(np.uint8), np.ones((15, 15), np.uint8)) == 0
    assert abs(outlined - plain)[away].max() < 40
    assert abs(outlined - plain)[away].mean() < 1


def test_all_crops_of_a_page_are_one_picture_in_their_order() -> None:
    pixels = np.full((100, 100, 3), 90, np.uint8)
    masks = [disc(100, 50, 50, 12), disc(100, 20, 70, 5)]
    alone = [read(render_crops([draw_crop(pixels, encode(mask), 64)])) for mask in masks]
    page = read(render_crops([draw_crop(pixels, encode(mask), 64) for mask in masks]))
    assert page.shape == (64, 4 * 64, 3)
    assert abs(page - np.hstack(alone)).mean() < 1


def test_a_contact_sheet_shows_outlined_crops_in_rows_that_are_filled_up_with_white() -> None:
    drawn = draw_crop(np.full((100, 100, 3), 90, np.uint8), encode(disc(100, 50, 50, 12)), 64)
    sheet = read(contact_sheet([drawn] * 5, columns=3))
    assert sheet.shape == (2 * 64, 3 * 64, 3)
    assert abs(sheet[:64, 64:128] - read(render_crops([drawn]))[:, :64]).mean() < 1
    assert (sheet[64:, 130:] > 240).all()
    assert read(contact_sheet([drawn] * 2)).shape == (64, 2 * 64, 3)


def test_a_crop_of_no_image_says_so_in_words_of_its_size() -> None:
    for side in (64, SIDE, 384):
        outlined, plain = unreadable_crop(side)
        assert outlined.shape == plain.shape == (side, side, 3)
        words = (outlined > 200).all(axis=2)
        assert words.any(axis=1).mean() > 0.15
        assert not words[:, -2:].any()


def test_a_strip_holds_its_crops_beside_each_other() -> None:
    pixels = np.full((100, 100, 3), 90, np.uint8)
    outlined, plain = draw_crop(pixels, encode(disc(100, 50, 50, 12)), side=64)
    strip = read(render_strip([outlined, plain, outlined]))
    assert strip.shape == (64, 3 * 64 + 2 * GAP, 3)
    assert yellow(strip[:, :64]).any()
    assert not yellow(strip[:, 64 + GAP : 128 + GAP]).any()
    assert (strip[:, 66:70] > 240).all()


def test_colours_are_kept() -> None:
    pixels = np.zeros((60, 60, 3), np.uint8)
    pixels[:] = (200, 40, 90)
    shown = read(render_crops([draw_crop(pixels, encode(disc(60, 30, 30, 5)))]))
    assert shown[5, 5].tolist() == pytest.approx([200, 40, 90], abs=6)


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(MaskError, match="empty"):
        crop(np.zeros((30, 30), bool))


def test_a_mask_of_another_image_is_refused() -> None:
    with pytest.raises(MaskError, match=r"\(30, 30\).*\(30, 40\)"):
        draw_crop(np.zeros((30, 40, 3), np.uint8), encode(np.ones((30, 30), bool)))


@pytest.mark.parametrize("pixels", [np.zeros((30, 30), np.uint8), np.zeros((30, 30, 3), np.float32)])
def test_other_pixels_are_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ImageError, match="RGB"):
        draw_crop(pixels, encode(np.ones((30, 30), bool)))


@pytest.mark.parametrize("shape", [(2, 3_000_000), (3_000_000, 2), (1, 3_000_000)])
def test_a_mask_along_a_very_long_image_fills_its_crop_and_not_the_memory(shape: tuple[int, int]) -> None:
    line = yellow(crop(np.ones(shape, bool)))
    assert line.any(axis=np.argmin(shape)).mean() > 0.9


def test_a_shrunk_crop_is_grey_where_a_long_image_ends() -> None:
    mask = np.zeros((400, 2400), bool)
    mask[100:300, 800:1600] = True
    grey = beyond(crop(mask))
    assert grey[:60].all()
    assert grey[-60:].all()
    assert not grey[SIDE // 2 - 15 : SIDE // 2 + 15].any()
