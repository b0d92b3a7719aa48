"""Images are known by keys that outlive signatures, and are read whatever their kind, or refused by name."""

from __future__ import annotations

import io
import json
import math
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plugin.label_studio import images
from plugin.label_studio.images import decode, file_names, image_key, kept_as, lead, path_of
from propagation.errors import ImageError

HEIGHT, WIDTH = 4, 6


@pytest.mark.parametrize(
    ("location", "key", "name"),
    [
        ("/data/upload/3/0123abcd-a.png", "/data/upload/3/0123abcd-a.png", "0123abcd-a.png"),
        ("https://host/b/a.png?X-Signature=1&Expires=2#top", "https://host/b/a.png", "a.png"),
        ("s3://bucket/folder/a.png", "s3://bucket/folder/a.png", "a.png"),
        ("gs://bucket/100%20a#1?.png", "gs://bucket/100%20a#1?.png", "100%20a#1?.png"),
        ("azure-blob://container/x/a.png", "azure-blob://container/x/a.png", "a.png"),
        ("/tasks/5/resolve/?fileuri=czM6Ly9iL2cvxLEgPy5wbmc=", "s3://b/g/ı ?.png", "ı ?.png"),
        ("http://ls/x/projects/7/resolve?fileuri=Z3M6Ly9iL2EucG5n&n=1", "gs://b/a.png", "a.png"),
        ("/tasks/5/resolve/?fileuri=s3%3A%2F%2Fb%2Fa.png", "s3://b/a.png", "a.png"),
        ("/tasks/5/resolve/?fileuri=Li4vLi4=", "/tasks/5/resolve/", "resolve"),
        ("/data/local-files/?d=x/a.png", "/data/local-files/?d=x/a.png", "a.png"),
        ("/labels/data/local-files/?d=x/a.png&t=1", "/labels/data/local-files/?d=x/a.png", "a.png"),
        ("/data/local-files/?d=x%2Fmy%20a.png", "/data/local-files/?d=x/my a.png", "my a.png"),
        ("https://host/my%20a%2Bb.png?s=1", "https://host/my%20a%2Bb.png", "my a+b.png"),
        ("https://host/größe.png", "https://host/größe.png", "größe.png"),
    ],
)
def test_a_key_is_the_location_without_what_changes(location: str, key: str, name: str) -> None:
    assert image_key(location) == key
    assert path_of(key)[-1] == name
    assert image_key(key) == key


def test_a_local_file_may_be_called_anything() -> None:
    assert path_of(image_key("/data/local-files/?d=x/a%2Bb%23c%26d.png")) == ("x", "a+b#c&d.png")


@pytest.mark.parametrize("key", ["s3://bucket/größe 1.png", "gs://bucket/a?b#c.png", "AZURE-BLOB://c/d/e.png"])
def test_label_studio_leads_to_what_a_task_says_of_a_storage(key: str) -> None:
    assert re.fullmatch(r"/tasks/7/resolve/\?fileuri=[\w=-]+", lead(key, 7))
    assert image_key(lead(key, 7)) == kept_as(lead(key, 7)) == key
    for other in ("/data/upload/1/a.png", "https://host/a.png", lead(key, 7)):
        assert lead(other, 7) == other
    assert kept_as("/data/local-files/?d=a%20b.png&x=1") == "/data/local-files/?d=a%20b.png&x=1"


def test_a_name_is_the_path_below_the_folder_that_all_share() -> None:
    keys = ["s3://bucket/set/train/a.png", "s3://bucket/set/val/a.png", "s3://bucket/set/b.png"]
    assert file_names(keys) == ["train/a.png", "val/a.png", "b.png"]
    assert file_names(keys[:1]) == ["a.png"]
    assert file_names(["/data/local-files/?d=x/a.png", "/data/local-files/?d=x/b.png"]) == ["a.png", "b.png"]
    assert file_names(["https://one/a.png", "/data/upload/3/a.png"]) == ["one/a.png", "data/upload/3/a.png"]
    assert file_names([]) == []


def test_names_differ_and_lead_out_of_no_folder() -> None:
    names = file_names(["http://h/a.png", "https://h/a.png", "http://h/%2e%2e/../a.png", "http://h/b/", ""])
    assert len(set(names)) == len(names)
    assert not any(name.startswith("/") or ".." in name or not name for name in names)


def test_two_signatures_of_an_image_are_one_image_and_two_files_are_two() -> None:
    assert image_key("https://host/a.png?s=1") == image_key("https://host/a.png?s=2")
    assert image_key("/data/local-files/?d=a.png") != image_key("/data/local-files/?d=b.png")
    assert image_key("https://host/a%2Fb.png") != image_key("https://host/a/b.png")


def test_what_is_no_address_has_a_key_all_the_same() -> None:
    key = image_key("http://[broken/a.png")
    assert key != image_key("http://[broken/b.png")
    assert image_key(key) == key
    assert path_of(key)[-1].endswith("a.png")


@pytest.mark.parametrize(
    "location", ["http://[\ud800", "/data/local-files/?d=", "/data/local-files/?d=\ud800", "\ud800"]
)
def test_any_text_has_a_key_and_a_name(location: str) -> None:
    key = image_key(location)
    assert image_key(key) == key
    assert isinstance(path_of(key), tuple)


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


@pytest.mark.parametrize("mode", ["I;16B", "I", "F"])
def test_deep_images_of_any_number_format_keep_their_contrast(mode: str) -> None:
    kind = {"I;16B": ">u2", "I": np.int32, "F": np.float32}[mode]
    deep = np.linspace(0, 60_000, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(kind)
    pixels = decode("a.tif", content(Image.fromarray(deep), "TIFF"))
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert (np.diff(pixels[:, :, 0].ravel().astype(int)) > 0).all()


def test_what_is_no_number_takes_no_contrast_away() -> None:
    values = np.array([[np.nan, -np.inf, 0.0], [np.inf, 1.0, 0.5]], np.float32)
    pixels = decode("a.tif", content(Image.fromarray(values), "TIFF"))
    assert pixels[:, :, 0].tolist() == [[0, 0, 0], [255, 255, 127]]
    assert not decode("a.tif", content(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF")).any()


def test_the_largest_numbers_do_not_overflow() -> None:
    values = np.array([[-(2**31), 0, 2**31 - 1]], np.int32)
    assert decode("a.tif", content(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 127, 255]


@pytest.mark.parametrize("value", [0, 1000, 65535])
def test_sixteen_bits_of_one_brightness_are_one_grey(value: int) -> None:
    flat = np.full((HEIGHT, WIDTH), value, np.uint16)
    assert np.ptp(decode("a.png", content(Image.fromarray(flat)))) == 0


def test_transparency_is_dropped() -> None:
    see_through = np.dstack([painted(), np.full((HEIGHT, WIDTH), 128, np.uint8)])
    np.testing.assert_array_equal(decode("a.png", content(Image.fromarray(see_through))), painted())


def test_a_palette_with_transparency_is_read_as_its_colours() -> None:
    picture = Image.fromarray(painted()).convert("P")
    expected = np.asarray(picture.convert("RGB"))
    see_through = content(picture, transparency=bytes(range(256)))
    np.testing.assert_array_equal(decode("a.png", see_through), expected)


def test_an_image_is_the_same_whether_or_not_it_is_read_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decode("a.png", PNG)
    deep = content(Image.fromarray(np.arange(24, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 100))
    deep_whole = decode("a.png", deep)
    monkeypatch.setattr(images, "STRIP", 1)
    np.testing.assert_array_equal(decode("a.png", PNG), whole)
    np.testing.assert_array_equal(decode("a.png", deep), deep_whole)


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


def test_a_message_shows_neither_a_signature_nor_a_whole_data_address() -> None:
    with pytest.raises(ImageError) as signed:
        decode("https://host/a.png?X-Amz-Signature=geheim", b"")
    assert "https://host/a.png" in str(signed.value)
    assert "geheim" not in str(signed.value)
    with pytest.raises(ImageError) as inlined:
        decode("data:image/png;base64," + "A" * 1_000_000, b"")
    assert len(str(inlined.value)) < 1000


def chunk(kind: bytes, body: bytes) -> bytes:
    """A piece of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def squeezed(megabytes: int) -> bytes:
    """So many megabytes of nothing, in a thousandth of them."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


def tiff(width: int, height: int, data: bytes, tile: int = 0) -> bytes:
    """A deflated TIFF, with a tile of so many pixels a side where one is given."""
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1}
    offset, size = (324, 325) if tile else (273, 279)
    tags |= {322: tile, 323: tile} if tile else {278: height}
    tags |= {offset: 8 + 2 + 12 * (len(tags) + 2) + 4, size: len(data)}
    fields = (struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(fields) + bytes(4) + data


def webp(width: int, height: int) -> bytes:
    """An animation of one small frame on a large canvas."""

    def part(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)

    def three(number: int) -> bytes:
        return struct.pack("<I", number)[:3]

    frame = content(Image.new("RGB", (16, 16)), "WEBP", lossless=True)[12:]
    body = part(b"VP8X", b"\x02\0\0\0" + three(width - 1) + three(height - 1)) + part(b"ANIM", bytes(6))
    body += part(b"ANMF", bytes(6) + three(15) + three(15) + three(100) + b"\0" + frame)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def jpeg(width: int, height: int) -> bytes:
    """A JPEG whose header lies."""
    file = bytearray(content(Image.new("L", (16, 16)), "JPEG"))
    at = file.index(b"\xff\xc0") + 5
    file[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(file)


def jpeg2000(width: int, height: int) -> bytes:
    size = struct.pack(">HIIIIIIIIHBBB", 0, width, height, 0, 0, width, height, 0, 0, 1, 7, 1, 1)
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size + b"\xff\xd9"


PIXELS = chunk(b"IDAT", zlib.compress(bytes(8 * 9)))
GIF_SCREEN = struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
GIF_FRAME = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x4c\x01\0;"
BMP_HEADER = struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
BOMBS = {
    "png": png(60_000, 60_000, chunk(b"IDAT", squeezed(100))),
    "png of one line": png(2**31 - 1, 1, chunk(b"IDAT", squeezed(1))),
    "tiff": tiff(60_000, 60_000, squeezed(1)),
    "tiff with a tile": tiff(16, 16, squeezed(400), tile=20_480),
    "tiff with a tile of text": tiff(16, 16, squeezed(1), tile=2**31 - 1).replace(
        struct.pack("<HHI", 323, 4, 1), struct.pack("<HHI", 323, 2, 4)
    ),
    "gif": b"GIF89a" + GIF_SCREEN + GIF_FRAME,
    "webp": webp(16_383, 16_383),
    "webp canvas": webp(60_000, 60_000),
    "bmp": b"BM" + BMP_HEADER,
    "ppm": b"P6\n60000 60000\n255\n" + bytes(1000),
    "jpeg": jpeg(65_500, 65_500),
    "jpeg2000": jpeg2000(60_000, 60_000),
    "compressed text": png(8, 8, chunk(b"zTXt", b"a\0\0" + squeezed(400)), PIXELS),
    "international text": png(8, 8, chunk(b"iTXt", b"a\0\1\0\0\0" + squeezed(400)), PIXELS),
    "many texts": png(8, 8, *[chunk(b"zTXt", b"a%d\0\0" % n + squeezed(1)) for n in range(100)], PIXELS),
    "colour profile": png(8, 8, chunk(b"iCCP", b"a\0\0" + squeezed(400)), PIXELS),
}
HARMLESS = {
    "more pixels than it says": png(8, 8, chunk(b"IDAT", squeezed(400))),
    "a tile over its border": tiff(16, 16, squeezed(1), tile=64),
}
MEASURE = """
import json, pathlib, sys
from plugin.label_studio.images import decode
from propagation.errors import ImageError

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

told, before = {}, peak()
for name in sys.argv[1:]:
    try:
        shape = list(decode(name, pathlib.Path(name).read_bytes()).shape)
        told[pathlib.Path(name).name] = [shape, peak() - before]
    except ImageError as error:
        told[pathlib.Path(name).name] = [str(error), peak() - before]
print(json.dumps(told))
"""


def test_a_bomb_is_refused_in_words_before_it_takes_any_memory(tmp_path: Path) -> None:
    for name, file in {**BOMBS, **HARMLESS}.items():
        (tmp_path / name).write_bytes(file)
    files = [str(tmp_path / name) for name in (*BOMBS, *HARMLESS)]
    run = subprocess.run([sys.executable, "-c", MEASURE, *files], capture_output=True, text=True, check=True)
    told = json.loads(run.stdout)
    for name in BOMBS:
        said, megabytes = told[name]
        assert "cannot be read" in said, name
        assert "replace the file, or leave the image out" in said, name
        assert megabytes < 120, f"{name}: {megabytes} MB"
    for name in HARMLESS:
        shape, megabytes = told[name]
        assert math.prod(shape) < 1000, name
        assert megabytes < 120, f"{name}: {megabytes} MB"


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n"
OTHERS = {
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>',
    "eps": EPS,
    "eps in dos": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(EPS)) + bytes(18) + EPS,
    "pdf": b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>",
    "xpm": b'/* XPM */\nstatic char *x[] = {"1 1 1 1","a c #ffffff","a"};',
    "icns": b"icns" + struct.pack(">I", 8),
    "npy": b"\x93NUMPY\x01\x00v\x00",
    "pickle": b"cos\nsystem\n(S'true'\ntR.",
    "zip": b"PK\x03\x04" + bytes(26),
}


@pytest.mark.parametrize("file", OTHERS.values(), ids=OTHERS)
def test_what_is_no_image_format_is_not_even_tried(file: bytes) -> None:
    with pytest.raises(ImageError, match=r"it is none of BMP, GIF, JPEG, JPEG2000, PNG, PPM, TIFF, WEBP"):
        decode("x", file)


def test_only_the_first_of_thousands_of_frames_is_decoded() -> None:
    frames = [Image.fromarray(np.full((64, 64), n % 256, np.uint8)) for n in range(2000)]
    file = content(frames[7], "GIF", save_all=True, append_images=frames)
    decoded = decode("a.gif", file)
    assert decoded.shape == (64, 64, 3)
    assert (decoded == 7).all()


WEBP = content(Image.fromarray(painted()), "WEBP")


@pytest.mark.parametrize("file", [PNG, JPEG, WEBP, tiff(8, 8, zlib.compress(bytes(64)))], ids=len)
def test_a_file_changed_anywhere_is_an_image_or_refused(file: bytes) -> None:
    chosen = np.random.default_rng(5)
    refused = 0
    for _ in range(300):
        changed = bytearray(file)
        for place in chosen.integers(0, len(changed), 3):
            changed[place] = chosen.integers(256)
        try:
            assert decode("a", bytes(changed)).ndim == 3
        except ImageError:
            refused += 1
    assert refused
