"""Images by the values that tasks have for them: their keys, and their pixels."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from propagation.errors import ImageError

LOCAL_FILES = "/data/local-files/"
STORED = re.compile(r"(?:s3|gs|azure-blob)://", re.IGNORECASE)  # storages that Label Studio leads to
LEADS = re.compile(r"/(?:tasks|projects)/\d+/resolve/?$")
#: What is read. Not what runs a program (EPS runs Ghostscript), wraps other formats (PDF, ICNS), or is no image.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
LARGEST = 200_000_000  # pixels: some 1.4 GB while an image is decoded, 0.6 GB after
LARGEST_TILE = 4096**2  # pixels of a TIFF's tile far larger than its image: it is decoded whole
TILE_SIZE = (322, 323)  # a TIFF's tags for the width and the height of its tiles
STRIP = 2**22  # pixels that are converted at once
LONGEST_SHOWN = 300  # characters of a location in a message
Image.MAX_IMAGE_PIXELS = None  # the limit here is checked before decoding, in words


def image_key(location: str) -> str:
    """The key by which an image is known: its task's value without the query string.

    A signed address changes its query with every signature. Where Label Studio leads to a storage, the key is
    the storage's address, ``s3://bucket/folder/a.png``, as it is in tasks that hold that address itself; of Label
    Studio's local files, the query names the file. What is no address at all is its own key, percent-encoded.
    """
    if STORED.match(location):
        return location
    try:
        parts = urlsplit(location)
    except ValueError:
        return quote(location, errors="surrogatepass")
    if LEADS.search(parts.path) and (stored := _stored(parse_qs(parts.query).get("fileuri", [""])[0])):
        return stored
    if parts.path.endswith(LOCAL_FILES):
        named = parse_qs(parts.query).get("d", [""])[0]
        return f"{parts._replace(query='', fragment='').geturl()}?d={named}"
    return parts._replace(query="", fragment="").geturl()


def lead(location: str, task: int) -> str:
    """Where Label Studio leads to the image of a task that holds a storage's address; of others, the location."""
    if not STORED.match(location):
        return location
    return f"/tasks/{task}/resolve/?fileuri={base64.urlsafe_b64encode(location.encode(errors='replace')).decode()}"


def kept_as(location: str) -> str:
    """The value that the server keeps for an image, and filters by: the storage's address, or the location."""
    key = image_key(location)
    return key if STORED.match(key) else location


def path_of(key: str) -> tuple[str, ...]:
    """The path of an image key as a person would read it: host or bucket, folders, the file's name."""
    if STORED.match(key):
        path = key.partition("://")[2]  # what a storage calls a file is not encoded
    elif f"{LOCAL_FILES}?d=" in key:
        path = key.partition("?d=")[2]
    else:
        parts = urlsplit(key)
        path = f"{parts.netloc}/{unquote(parts.path)}"
    return tuple(step for step in path.split("/") if step not in ("", ".", ".."))


def file_names(keys: Sequence[str]) -> list[str]:
    """A name for each image, no two the same: its path below the folder that all have in common."""
    paths = [path_of(key) or ("image",) for key in keys]
    folders = [path[:-1] for path in paths] or [()]
    ends = list(zip(min(folders), max(folders), strict=False))  # what these two share, all between them do
    common = next((place for place, (one, other) in enumerate(ends) if one != other), len(ends))
    names: dict[str, None] = {}
    for place, path in enumerate(paths):
        name = "/".join(path[common:])
        while name in names:
            name = f"{place}/{name}"
        names[name] = None
    return list(names)


def _stored(uri: str) -> str:
    """The storage's address in a ``fileuri``, read as Label Studio does; empty where it holds none."""
    try:
        text = base64.urlsafe_b64decode(uri.encode()).decode()
    except ValueError:
        text = unquote(uri)
    return text if STORED.match(text) else ""


def decode(location: str, content: bytes) -> NDArray[np.uint8]:
    """The (height, width, 3) RGB pixels of an image file, turned as its EXIF orientation says.

    Of several frames or pages the first is read. Raises ImageError when the file is empty, no image of
    ``FORMATS``, broken, or too large to be one; what it holds cannot make it take more memory than
    ``LARGEST`` pixels do.
    """
    return Undecoded(location, content).decode()


class Undecoded:
    """An image file of which only the header was read. pixels: how many it has.

    It raises what ``decode`` does, here or when it is decoded.
    """

    def __init__(self, location: str, content: bytes) -> None:
        self._location = location
        with _told(location, content):
            self._picture = _opened(content)
        self.pixels: int = math.prod(self._picture.size)

    def decode(self) -> NDArray[np.uint8]:
        """The pixels, as those of ``decode``."""
        with _told(self._location):
            ImageOps.exif_transpose(self._picture, in_place=True)
            return _rgb(self._picture)


@contextmanager
def _told(location: str, content: bytes = b"-") -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Pillow's readers raise whatever a broken file makes them stumble over
        reason = "the file is empty" if not content else str(error) or type(error).__name__
        raise ImageError(
            f"image {shown(location)} cannot be read ({reason}); replace the file, or leave the image out"
        ) from error


def shown(location: str) -> str:
    """A task's image value for a message: on one line, without its query, which may hold a signature."""
    text = image_key(location)
    return repr(text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "…")


def _opened(content: bytes) -> Any:
    """The image of a file, not yet decoded, its size checked."""
    try:
        picture: Any = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from error
    wide, high = picture.size
    if not wide or not high:
        raise ValueError("it has no pixels")
    if wide * high > LARGEST:
        raise ValueError(f"{wide} x {high} pixels are more than {LARGEST}")
    tags = getattr(picture, "tag_v2", {})
    tile = math.prod(int(tags.get(side, 0)) for side in TILE_SIZE)
    if tile > max(2 * wide * high, LARGEST_TILE):
        raise ValueError(f"{wide} x {high} pixels are kept in a tile of {tile}")
    return picture


def _rgb(picture: Any) -> NDArray[np.uint8]:
    """An image's pixels in RGB, strip by strip: a whole copy in another mode would double the memory."""
    wide, high = picture.size
    rows = max(1, STRIP // wide)
    boxes = [(0, top, wide, min(top + rows, high)) for top in range(0, high, rows)]
    picture.info.pop("transparency", None)  # dropped, as an alpha channel is
    deep = picture.mode.startswith("I") or picture.mode == "F"
    low, high_value = _range(picture, boxes) if deep else (0.0, 0.0)
    pixels = np.empty((high, wide, 3), np.uint8)
    for box in boxes:
        strip = picture.crop(box) if len(boxes) > 1 else picture
        part = pixels[box[1] : box[3]]
        if deep:
            part[:] = _eight_bit(np.asarray(strip, np.float64), low, high_value)[:, :, None]
        else:
            part[:] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
    return pixels


def _range(picture: Any, boxes: Sequence[tuple[int, int, int, int]]) -> tuple[float, float]:
    """The least and the greatest value of an image that are numbers; 0 and 0 where none is."""
    ends: list[float] = []
    for box in boxes:
        values = np.asarray(picture.crop(box))
        numbers = values[np.isfinite(values)]
        if numbers.size:
            ends += [float(numbers.min()), float(numbers.max())]
    return (min(ends), max(ends)) if ends else (0.0, 0.0)


def _eight_bit(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    """Values between two stretched to 0 to 255; what is no number becomes 0."""
    known = np.clip(np.nan_to_num(values, nan=low, posinf=high, neginf=low), low, high)
    return ((known - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
