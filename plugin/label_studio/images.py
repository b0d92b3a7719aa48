"""Images by the values that tasks have for them: their keys, and their pixels."""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from propagation.errors import ImageError

LOCAL_FILES = "/data/local-files/"
LARGEST = 500_000_000  # pixels: a large slide, and 1.5 GB as RGB
Image.MAX_IMAGE_PIXELS = None  # the limit here is checked before decoding, in words


def image_key(location: str) -> str:
    """The key by which an image is known: its task's value without the query string.

    A signed address changes its query with every signature. Label Studio's local files are the exception:
    there the query names the file. What is no address at all is its own key, percent-encoded.
    """
    try:
        parts = urlsplit(location)
    except ValueError:
        return quote(location)
    if parts.path.endswith(LOCAL_FILES):
        named = parse_qs(parts.query).get("d", [""])[0]
        return f"{parts._replace(query='', fragment='').geturl()}?d={named}"
    return parts._replace(query="", fragment="").geturl()


def file_name(key: str) -> str:
    """The last path segment of an image key, as a person would read it."""
    parts = urlsplit(key)
    path = parse_qs(parts.query)["d"][0] if parts.query.startswith("d=") else parts.path
    return unquote(path).rsplit("/", 1)[-1]


def decode(location: str, content: bytes) -> NDArray[np.uint8]:
    """The (height, width, 3) RGB pixels of an image file, turned as its EXIF orientation says.

    Raises ImageError when the file is empty, no image, broken, or too large to be one.
    """
    try:
        picture: Any = Image.open(io.BytesIO(content))
        if picture.width * picture.height > LARGEST:
            raise ValueError(f"{picture.width} x {picture.height} pixels are more than {LARGEST}")
        picture = ImageOps.exif_transpose(picture)
        pixels = np.asarray(_eight_bit(picture).convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        reason = "the file is empty" if not content else str(error)
        raise ImageError(
            f"image {location!r} cannot be read ({reason}); replace the file, or leave the image out"
        ) from error
    if 0 in pixels.shape:
        raise ImageError(f"image {location!r} has no pixels; replace the file, or leave the image out")
    return pixels


def _eight_bit(picture: Any) -> Any:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        low, high = float(values.min()), float(values.max())
        return Image.fromarray(((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8))
    return picture
