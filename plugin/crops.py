"""Crops: a mask in its surroundings as a JPEG, its outline drawn so that a person can judge it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from propagation.errors import ImageError, MaskError
from propagation.rle import Rle, decode_window

SIDE = 192  # output pixels: sharp at the verify page's tiles of about 160 CSS pixels
MARGIN = 0.6  # of the object's longer side: enough around it to tell what it is
LEAST_MARGIN = 10  # image pixels
QUALITY = 85
BEYOND_IMAGE = 128  # grey
DARK = 140  # where the brightest hundredth of a crop is below this, the crop is lightened
MOST_GAIN = 4.0  # more would show mostly noise
LINE = np.array([255, 232, 31], np.float32)  # yellow: red is the verify page's mark of a wrong mask
HALO = np.array([16, 16, 16], np.float32)
PLACE_SIDE = 900  # output pixels of a place to draw in
RING = 7  # radius in output pixels of the ring that tells which object is meant
LINE_WIDTH, HALO_WIDTH = 1.8, 4.2  # output pixels
GAP = 8  # output pixels between the crops of a strip

#: A piece of an image with a mask's outline, and the same without: each (side, side, 3) uint8 RGB.
Crop = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def render_crops(crops: Sequence[Crop]) -> bytes:
    """A JPEG of crops of one side beside each other: each with its outline and, right of it, without.

    One file for all of a page, since each costs a request.
    """
    return _jpeg(np.hstack([square for crop in crops for square in crop]))


def render_strip(crops: Sequence[NDArray[np.uint8]]) -> bytes:
    """A JPEG of crops (side, side, 3) beside each other, with gaps of white."""
    gap = np.full((len(crops[0]), GAP, 3), 255, np.uint8)
    parts = [part for crop in crops for part in (gap, crop)]
    return _jpeg(np.hstack(parts[1:]))


def draw_crop(pixels: NDArray[np.uint8], rle: Rle, side: int = SIDE) -> Crop:
    """The square of ``side`` pixels around a mask, with the mask's outline and without.

    pixels: (H, W, 3) uint8 RGB. rle: a mask of that image.
    The outline is drawn at the output's resolution, smooth where a small object is enlarged; a dark crop is
    lightened. Raises MaskError for an empty mask or a mask of another image size, ImageError for other pixels.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ImageError(
            f"a crop needs RGB pixels (H, W, 3) uint8, got {pixels.shape} {pixels.dtype}: convert the image to RGB"
        )
    if tuple(rle["size"]) != pixels.shape[:2]:
        raise MaskError(
            f"the mask is of an image of {tuple(rle['size'])} pixels (height, width), but this image has "
            f"{pixels.shape[:2]}: detect again on the image as it is now"
        )
    box = np.asarray(coco.toBbox(dict(rle)), dtype=np.float64)
    if not box[2:].all():
        raise MaskError("the mask is empty, so there is nothing to crop: leave it out of the page")
    left, top, length = _window(box, *pixels.shape[:2])
    part = pixels[max(top, 0) : top + length, max(left, 0) : left + length]
    mask = decode_window(rle, max(left, 0), max(top, 0), part.shape[1], part.shape[0]) * np.uint8(255)
    plain = _square(_lightened(part), left, top, length, side, BEYOND_IMAGE)
    cover = _square(mask, left, top, length, side, 0)
    # A thin mask covers only part of each pixel that it shrinks into, and must not vanish.
    canvas = plain.copy()
    _draw_outline(canvas, cover > (127 if length <= side else 15))
    return canvas, plain


def whole_image(pixels: NDArray[np.uint8]) -> bytes:
    """An image (H, W, 3) as a JPEG."""
    return _jpeg(pixels)


def render_place(
    pixels: NDArray[np.uint8], rle: Rle, rng: np.random.Generator, side: int = PLACE_SIDE
) -> tuple[bytes, tuple[int, int, int, int]]:
    """A JPEG of a mask's surroundings with a ring at the mask's innermost point; its x, y, width, height there.

    Where the object ends is not shown: the piece is three to five times as long as the mask, which lies anywhere
    in it. Its longer side has ``side`` pixels. Raises MaskError for an empty mask or one of another image size.
    """
    if tuple(rle["size"]) != pixels.shape[:2]:
        raise MaskError(f"the mask is of an image of {tuple(rle['size'])} pixels, this one has {pixels.shape[:2]}")
    x, y, w, h = (int(number) for number in coco.toBbox(dict(rle)))
    if not w or not h:
        raise MaskError("the mask is empty, so there is no place to show")
    length = round(max(w, h) * rng.uniform(3, 5)) + 2 * LEAST_MARGIN
    left, wide = _stretch(x, w, length, pixels.shape[1], rng)
    top, high = _stretch(y, h, length, pixels.shape[0], rng)
    mask = np.pad(decode_window(rle, x, y, w, h).astype(np.uint8), 1)
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    scale = side / max(wide, high)
    size = max(round(wide * scale), 1), max(round(high * scale), 1)
    canvas = cv2.resize(
        _lightened(pixels[top : top + high, left : left + wide]),
        size,
        interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC,
    )
    at = round((x + int(column) + 0.5 - left) * scale), round((y + int(row) + 0.5 - top) * scale)
    for colour, width in ((HALO, 4), (LINE, 2)):
        cv2.circle(canvas, at, RING, colour.tolist(), width, cv2.LINE_AA)
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    return jpeg.tobytes(), (left, top, wide, high)


def _stretch(start: int, extent: int, length: int, limit: int, rng: np.random.Generator) -> tuple[int, int]:
    """Where a stretch of ``length`` begins that has another in it, and how much of it is within ``limit``."""
    margin = min(max(extent // 2, LEAST_MARGIN), (length - extent) // 2)
    begin = start - round(rng.uniform(margin, length - extent - margin))
    begin = max(0, min(begin, limit - length))
    return begin, min(length, limit - begin)


def unreadable_crop(side: int = SIDE) -> Crop:
    """In place of a crop whose image cannot be read: it says what to do."""
    canvas = np.full((side, side, 3), BEYOND_IMAGE, np.uint8)
    for line, text in enumerate(("This image", "cannot be read:", "say: not sure")):
        place = (round(side * 0.06), round(side * (0.38 + 0.16 * line)))
        cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, side / 370, (255, 255, 255), 1, cv2.LINE_AA)
    return canvas, canvas


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    done, jpeg = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise ImageError(f"a picture of {pixels.shape[:2]} could not be written as JPEG: choose another side")
    return jpeg.tobytes()


def contact_sheet(crops: Sequence[Crop], columns: int = 4) -> bytes:
    """Outlined crops of one side as one JPEG, in rows of so many."""
    tiles = [outlined for outlined, _ in crops]
    columns = min(columns, len(tiles))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    return _jpeg(np.vstack([np.hstack(tiles[begin : begin + columns]) for begin in range(0, len(tiles), columns)]))


def _window(box: NDArray[np.float64], height: int, width: int) -> tuple[int, int, int]:
    """Left, top and side of the square to show, in image pixels, moved into the image as far as it fits."""
    x, y, w, h = box
    longer = int(max(w, h))
    # Beyond the image is nothing to see: a mask as large as its image fills the crop.
    length = min(round(longer + 2 * max(MARGIN * longer, LEAST_MARGIN)), max(height, width))
    return _start(x + w / 2, length, width), _start(y + h / 2, length, height), length


def _start(centre: float, length: int, extent: int) -> int:
    """Where a window around ``centre`` starts on an axis of ``extent`` pixels; negative where it is longer."""
    if length >= extent:
        return (extent - length) // 2
    return min(max(round(centre - length / 2), 0), extent - length)


def _lightened(part: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A dark piece of an image with all channels raised alike, so that dim objects can be judged."""
    gain = min(DARK / max(float(np.percentile(part, 99)), 1.0), MOST_GAIN)
    return _uint8(cv2.convertScaleAbs(part, alpha=gain)) if gain > 1 else part


def _square(
    part: NDArray[np.uint8], left: int, top: int, length: int, side: int, beyond: int
) -> NDArray[np.uint8]:
    """The window's part of an image or a mask as (side, side[, 3]), ``beyond`` where the image ends."""
    high, wide = part.shape[:2]
    above, before = max(-top, 0), max(-left, 0)
    if length > side:
        # shrunk before it is made a square: that of a very long image would not fit into the memory
        above, high = _shrunk(above, high, side / length, side)
        before, wide = _shrunk(before, wide, side / length, side)
        part, length = _uint8(cv2.resize(part, (wide, high), interpolation=cv2.INTER_AREA)), side
    below, after = length - above - high, length - before - wide
    padded = cv2.copyMakeBorder(
        part, above, below, before, after, cv2.BORDER_CONSTANT, value=(beyond, beyond, beyond)
    )
    return _uint8(cv2.resize(padded, (side, side), interpolation=cv2.INTER_CUBIC))


def _shrunk(start: int, extent: int, scale: float, side: int) -> tuple[int, int]:
    """Where a stretch of at least a pixel starts when shrunk, and how long it is, within ``side`` pixels."""
    begin = min(round(start * scale), side - 1)
    return begin, max(round((start + extent) * scale) - begin, 1)


def _draw_outline(canvas: NDArray[np.uint8], mask: NDArray[np.bool_]) -> None:
    """A bright line with a dark halo along the mask's edge, on the canvas (side, side, 3) itself."""
    distance = np.abs(_signed_distance(mask))
    near = distance < HALO_WIDTH / 2 + 0.5
    away = distance[near][:, None]
    blend = canvas[near].astype(np.float32)
    for colour, width in ((HALO, HALO_WIDTH), (LINE, LINE_WIDTH)):
        blend += np.clip(width / 2 + 0.5 - away, 0, 1) * (colour - blend)
    canvas[near] = blend.astype(np.uint8)


def _signed_distance(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Pixels to the mask's edge, positive inside, smoothed so that pixel steps do not show."""
    # The ring of zeros gives a mask an edge where it leaves the crop.
    ringed = np.pad(mask.astype(np.uint8), 1)
    within = cv2.distanceTransform(ringed, cv2.DIST_L2, cv2.DIST_MASK_5)
    without = cv2.distanceTransform(1 - ringed, cv2.DIST_L2, cv2.DIST_MASK_5)
    signed = np.where(ringed > 0, within - 0.5, 0.5 - without).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(signed, (0, 0), 1.2)[1:-1, 1:-1], dtype=np.float32)


def _uint8(array: Any) -> NDArray[np.uint8]:
    return np.asarray(array, dtype=np.uint8)
