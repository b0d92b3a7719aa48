"""Run lengths of COCO's compressed encoding, checked before anything decodes them.

pycocotools trusts its input: broken counts make it read or write past the mask. So they are checked here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from propagation.errors import MaskError

FIRST_CHARACTER = 48
PAYLOAD_BITS = 5
CONTINUES = 0x20
SIGN = 0x10
LARGEST_RUN = 2**32 - 1  # pycocotools keeps a run in 32 bits
FURTHEST = 4  # sides of the image that a polygon may reach
AT_ONCE, PIXELS_AT_ONCE = 1024, 2**24  # masks that are decoded together, and pixels in the columns of their boxes
LONGEST_RUN = 7  # characters: 35 bits hold every run that pycocotools can write (32 bits and a sign)


class Rle(TypedDict):
    """COCO run-length encoding: size is [height, width], counts the compressed bytes."""

    size: Sequence[int]
    counts: bytes


#: A part of a mask: its left, its top, and (height, width) of it, True inside.
Box = tuple[int, int, NDArray[np.bool_]]


def run_lengths(counts: bytes) -> NDArray[np.int64]:
    """The runs, in pixels, of a compressed COCO string; the first is background, then they alternate.

    Raises MaskError where the string is not of that encoding, or a run is negative.
    """
    return _runs([counts])[0]


def _runs(strings: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The runs of some strings, one string after the other, and the place of each run in its own string.

    Source: ``rleFrString`` in pycocotools' maskApi.c.
    """
    written = np.frombuffer(b"".join(strings), np.uint8) - np.uint8(FIRST_CHARACTER)
    if not len(written):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if written.max() > 63:  # a character below '0' wraps to far above it
        raise MaskError("the counts hold a character outside '0' to 'o'; write them with pycocotools")
    stops = np.cumsum([len(string) for string in strings])
    if (written[stops - 1] >= CONTINUES).any():
        raise MaskError("the counts stop in the middle of a run; was the string cut off?")
    characters = written.astype(np.int64)
    (ends,) = (written < CONTINUES).nonzero()
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > LONGEST_RUN:
        raise MaskError(f"the counts hold a run of over {LONGEST_RUN} characters; write them with pycocotools")
    digit = np.arange(len(characters)) - starts.repeat(lengths)
    runs = np.add.reduceat((characters & (CONTINUES - 1)) << (PAYLOAD_BITS * digit), starts)
    runs -= ((characters[ends] & SIGN) // SIGN) << (PAYLOAD_BITS * lengths)
    last = np.searchsorted(ends, stops)  # of the string after each
    firsts = np.concatenate(([0], last[:-1]))
    place = np.arange(len(runs)) - firsts.repeat(last - firsts)
    # From the fourth on, a run is stored as its difference to the one two before.
    for chain in (place & 1 == 1, (place & 1 == 0) & (place > 0)):
        sums = np.where(chain, runs, 0).cumsum()
        sums -= sums[firsts].repeat(last - firsts)
        np.copyto(runs, sums, where=chain)
    if runs.min() < 0 or runs.max() > LARGEST_RUN:
        raise MaskError("the counts hold a run that is negative or over 32 bits; write them with pycocotools")
    return runs, place


def check_rle(rle: Rle) -> None:
    """Check that the runs of a mask fill its size exactly.

    Raises MaskError unless ``size`` is two positive integers and ``counts`` decode to height x width pixels.
    """
    size = list(rle["size"])
    if len(size) != 2 or not all(isinstance(side, int | np.integer) and side > 0 for side in size):
        raise MaskError(f"the size {size} is not [height, width] in pixels")
    pixels = int(size[0]) * int(size[1])
    covered = int(run_lengths(rle["counts"]).sum())
    if covered != pixels:
        raise MaskError(
            f"the runs cover {covered} pixels, a mask of {size[0]} x {size[1]} has {pixels}; "
            "was it encoded at another size, or with rows and columns swapped?"
        )


def decode(rle: Rle) -> NDArray[np.bool_]:
    """The (height, width) mask of a checked encoding, True inside.

    As ``pycocotools.mask.decode``, which warns under NumPy 2.
    """
    height, width = rle["size"]
    return decode_window(rle, 0, 0, width, height)


def decode_window(rle: Rle, left: int, top: int, width: int, height: int) -> NDArray[np.bool_]:
    """The (height, width) part of a mask at ``left``, ``top``, without decoding the columns beside it.

    The window lies within the mask's image.
    """
    return next(_windows([rle], np.array([[left, top, width, height]])))[2]


def boxed(rles: Iterable[Rle]) -> Iterator[Box]:
    """Each of some masks within its box: what ``decode_window`` has there, for many in a fraction of the time."""
    left = iter(rles)
    while some := list(islice(left, AT_ONCE)):
        boxes = coco.toBbox(some).astype(np.int64)
        pixels = boxes[:, 2] * [rle["size"][0] for rle in some]
        cuts = np.flatnonzero(np.diff(pixels.cumsum() // PIXELS_AT_ONCE)) + 1
        for first, last in pairwise([0, *cuts.tolist(), len(some)]):
            yield from _windows(some[first:last], boxes[first:last])


def _windows(rles: Sequence[Rle], windows: NDArray[np.int64]) -> Iterator[Box]:
    """A window of each mask. windows: (n, 4) left, top, width, height."""
    runs, place = _runs([rle["counts"] for rle in rles])
    firsts = np.flatnonzero(place == 0)
    counts = np.diff(firsts, append=len(runs))
    high = np.array([rle["size"][0] for rle in rles])
    begin, end = windows[:, 0] * high, (windows[:, 0] + windows[:, 2]) * high
    bounds = runs.cumsum()  # where each run ends: in all masks, in its own, in the window's columns
    bounds -= (bounds - runs)[firsts].repeat(counts)
    bounds = bounds.clip(begin.repeat(counts), end.repeat(counts))
    lengths = np.diff(bounds, prepend=0)
    lengths[firsts] = bounds[firsts] - begin
    columns = np.split((place % 2 == 1).repeat(lengths), (end - begin).cumsum()[:-1])
    for inside, (left, top, width, height), whole in zip(columns, windows.tolist(), high.tolist(), strict=True):
        yield left, top, inside.reshape(width, whole).T[top : top + height]


def encode_window(window: NDArray[np.bool_], left: int, top: int, size: Sequence[int]) -> Rle:
    """The encoding of a mask that is False outside of a window: what ``decode_window`` reads.

    window: (height, width), at ``left``, ``top`` of an image of ``size``, height and width, and within it.
    The same bytes as ``pycocotools.mask.encode`` of the whole mask, without the whole mask.
    """
    height, width = size
    framed = np.pad(window.T, ((0, 0), (1, 1))).astype(np.int8)
    column, row = np.nonzero(np.diff(framed, axis=1))
    changes = (left + column) * height + top + row
    # Where a column ends at the bottom and the next begins at the top, the run goes on.
    goes_on = np.flatnonzero(changes[1:-1:2] == changes[2::2])
    changes = np.delete(changes, np.concatenate([2 * goes_on + 1, 2 * goes_on + 2]))
    runs = np.diff(changes, prepend=0, append=height * width)
    plain = {"size": [height, width], "counts": runs[: len(runs) - (runs[-1] == 0)].tolist()}
    rle: Rle = coco.frPyObjects(plain, height, width)
    return rle


def read_segmentation(segmentation: Any, height: int | None, width: int | None) -> Rle:
    """The mask of a COCO entry, whichever of COCO's ways it is written in, checked.

    segmentation: {"size", "counts"} with compressed (str or bytes) or plain (list) counts, or a list of
    polygons [x, y, x, y, ...] in pixels. height, width: of the image, in pixels; only polygons need them.
    Raises MaskError where it is none of them, or its runs do not fill its size.
    """
    match segmentation:
        case {"size": [int() as high, int() as wide], "counts": str() | bytes() | list() as counts}:
            rle: Rle = {"size": [high, wide], "counts": _compressed(counts, high, wide)}
        case [[*_], *_]:
            if height is None or width is None:
                raise MaskError("polygons need the height and width of their image")
            rle = coco.merge(coco.frPyObjects(_checked_polygons(segmentation, height, width), height, width))
        case _:
            raise MaskError(
                'the segmentation is neither {"size": [height, width], "counts": ...} nor a list of polygons'
            )
    check_rle(rle)
    return rle


def _compressed(counts: str | bytes | list[Any], height: int, width: int) -> bytes:
    if isinstance(counts, bytes):
        return counts
    if isinstance(counts, str):
        return counts.encode("utf-8")
    if not all(isinstance(run, int) and 0 <= run <= LARGEST_RUN for run in counts):
        raise MaskError("the counts hold something that is not a run of pixels, 0 or more")
    # An empty list crashes pycocotools' own reader; its string is as empty.
    rle = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width) if counts else {}
    return bytes(rle.get("counts", b""))


def _checked_polygons(polygons: list[Any], height: int, width: int) -> list[list[float]]:
    # pycocotools walks each edge pixel by pixel, so a point far away costs memory without end.
    furthest = FURTHEST * max(height, width)
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(isinstance(at, int | float) for at in polygon)
        if not numbers or len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(polygon).all():
            raise MaskError("a polygon is not a list of three or more finite points [x, y, x, y, ...]")
        if max(map(abs, polygon)) > furthest:
            raise MaskError(f"a polygon reaches over {furthest} pixels out; is it in pixels of this image?")
    return polygons
