"""Images are known by keys that outlive signatures, and are read whatever their kind, or refused by name."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plugin.label_studio import images
from plugin.label_studio.images import decode, file_name, image_key
from propagation.errors import ImageError

HEIGHT, WIDTH = 4, 6


@pytest.mark.parametrize(
    ("location", "key", "name"),
    [
        ("/data/upload/3/0123abcd-a.png", "/data/upload/3/0123abcd-a.png", "0123abcd-a.png"),
        ("https://host/b/a.png?X-Signature=1&Expires=2#top", "https://host/b/a.png", "a.png"),
        ("s3://bucket/folder/a.png", "s3://bucket/folder/a.png", "a.png"),
        ("gs://bucket/a.png?generation=5", "gs://bucket/a.png", "a.png"),
        ("/data/local-files/?d=x/a.png", "/data/local-files/?d=x/a.png", "a.png"),
        ("/labels/data/local-files/?d=x/a.png&t=1", "/labels/data/local-files/?d=x/a.png", "a.png"),
        ("/data/local-files/?d=x%2Fmy%20a.png", "/data/local-files/?d=x/my a.png", "my a.png"),
        ("https://host/my%20a%2Bb.png?s=1", "https://host/my%20a%2Bb.png", "my a+b.png"),
        ("https://host/größe.png", "https://host/größe.png", "größe.png"),
    ],
)
def test_a_key_is_the_location_without_what_changes(location: str, key: str, name: str) -> None:
    assert image_key(location) == key
    assert file_name(key) == name
    assert image_key(key) == key


def test_two_signatures_of_an_image_are_one_image_and_two_files_are_two() -> None:
    assert image_key("https://host/a.png?s=1") == image_key("https://host/a.png?s=2")
    assert image_key("/data/local-files/?d=a.png") != image_key("/data/local-files/?d=b.png")
    assert image_key("https://host/a%2Fb.png") != image_key("https://host/a/b.png")


def test_what_is_no_address_has_a_key_all_the_same() -> None:
    key = image_key("http://[broken/a.png")
    assert key != image_key("http://[broken/b.png")
    assert image_key(key) == key
    assert file_name(key).endswith("a.png")


def painted() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def content(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def test_rgb_is_read_as_it_is() -> None:
    pixels = decode("a.png", content(Image.fromarray(painted())))
    np.testing.assert_array_equal(pixels, painted())
    assert pixels.dtype == np.uint8


def test_grey_is_read_as_three_equal_channels() -> None:
    grey = painted()[:, :, 0]
    pixels = decode("a.png", content(Image.fromarray(grey)))
    np.testing.assert_array_equal(pixels, np.repeat(grey[:, :, None], 3, axis=2))


def test_sixteen_bits_keep_their_contrast() -> None:
    deep = np.linspace(1000, 3000, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    pixels = decode("a.png", content(Image.fromarray(deep)))
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert (np.diff(pixels[:, :, 0].ravel().astype(int)) > 0).all()


@pytest.mark.parametrize("value", [0, 1000, 65535])
def test_sixteen_bits_of_one_brightness_are_one_grey(value: int) -> None:
    flat = np.full((HEIGHT, WIDTH), value, np.uint16)
    assert np.ptp(decode("a.png", content(Image.fromarray(flat)))) == 0


def test_transparency_is_dropped() -> None:
    see_through = np.dstack([painted(), np.full((HEIGHT, WIDTH), 128, np.uint8)])
    np.testing.assert_array_equal(decode("a.png", content(Image.fromarray(see_through))), painted())


@pytest.mark.parametrize("mode", ["P", "1", "LA", "CMYK"])
def test_other_kinds_of_pixels_are_read_as_rgb(mode: str) -> None:
    picture = Image.fromarray(painted()).convert(mode)
    expected = np.asarray(picture.convert("RGB"))
    kind = "TIFF" if mode == "CMYK" else "PNG"
    np.testing.assert_array_equal(decode("a", content(picture, kind)), expected)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_a_turned_photograph_is_put_upright(orientation: int, turns: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode("a.png", content(Image.fromarray(painted()), exif=exif))
    np.testing.assert_array_equal(pixels, np.rot90(painted(), turns))


def test_the_first_of_several_frames_is_read() -> None:
    frames = [Image.fromarray(np.full((HEIGHT, WIDTH, 3), value, np.uint8)) for value in (7, 200)]
    file = content(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert (decode("a.tif", file) == 7).all()


PNG = content(Image.fromarray(painted()))
JPEG = content(Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
ZERO_SIZED = b"P6\n0 4\n255\n"
BROKEN = {
    "empty": b"",
    "text": b"<html>please log in</html>",
    "cut header": PNG[:20],
    "cut pixels": PNG[: len(PNG) // 2],
    "cut jpeg": JPEG[: len(JPEG) // 2],
    "broken checksum": PNG[:29] + b"\0\0\0\0" + PNG[33:],
    "zero-sized": ZERO_SIZED,
    "zero-sized gif": b"GIF89a" + b"\0" * 7,
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_file_that_cannot_be_read_is_named(broken: bytes) -> None:
    with pytest.raises(ImageError, match=r"image '/data/x\.png' .*replace the file, or leave the image out"):
        decode("/data/x.png", broken)


def test_an_empty_file_is_said_to_be_empty() -> None:
    with pytest.raises(ImageError, match="the file is empty"):
        decode("/data/x.png", b"")


def test_a_file_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGEST", 23)
    with pytest.raises(ImageError, match=r"x\.png.*6 x 4 pixels are more than 23"):
        decode("x.png", PNG)
