"""A segmenter that found its masks earlier: COCO results of any model, checked before anything starts."""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import zlib
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from ml_backend.segmenters.base import Image
from plugin.label_studio.images import path_of
from propagation.columns import Runs
from propagation.errors import InputError, MaskError
from propagation.masks import Detections
from propagation.rle import read_segmentation

UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
ROWS_AT_ONCE = 65_536
TEXT_AT_ONCE = 2**20  # characters
SPACES = " \t\n\r"


@dataclass(frozen=True)
class _Entry:
    """An image of the COCO file; its size where the file tells it."""

    name: str
    height: int | None
    width: int | None


class Precomputed:
    """The masks of a COCO results file, looked up by image.

    predictions: a list of {image_id, category_id, segmentation, score}, .json or .json.gz.
    images: a COCO file with ``images`` and ``categories``; its annotations are not read.
    features: .npy, a row a prediction in the order of the file.
    Raises MaskError for a prediction or features that cannot be used, InputError for the COCO file; the
    message names the file, the prediction's index and its image.
    """

    def __init__(self, predictions: Path, images: Path, features: Path | None = None) -> None:
        self._file = predictions
        self._images, categories = _read_coco(images)
        self._names = _Names({key: entry.name for key, entry in self._images.items()}, images)
        self._categories = tuple(name for _, name in categories)
        self._place = {key: place for place, key in enumerate(self._images)}
        rows_of_categories = {key: row for row, (key, _) in enumerate(categories)}
        columns = _Columns()
        for row, result in enumerate(read_results(predictions)):
            self._read_result(row, result, rows_of_categories, columns)
        self._features = None if features is None else read_features(features, len(columns.score), predictions)
        self._size = np.array(columns.size, np.int32).reshape(-1, 2)
        self._counts = Runs(np.frombuffer(columns.text, np.uint8), np.array(columns.ends, np.int64))
        self._scores = np.array(columns.score, np.float32)
        self._category = np.array(columns.category, np.int64)
        image = np.array(columns.image, np.int64)
        self._order = np.argsort(image, kind="stable")
        self._ends = np.cumsum(np.bincount(image, minlength=len(self._images)))

    @property
    def categories(self) -> Sequence[str]:
        """The names of the COCO file's categories, in the order of their ids."""
        return self._categories

    def match(self, keys: Iterable[str]) -> list[int | None]:
        """The COCO image id of each image key, None where the file has no such image.

        Raises InputError where a key may mean two images of the file, or two keys the same image. ``segment``
        looks at the images of one call only, so a pool's keys are best matched once before.
        """
        found: dict[int, str] = {}
        matches: list[int | None] = []
        for key in keys:
            match = self._names.find(key)
            if match is not None and found.setdefault(match, key) != key:
                raise InputError(
                    f"images {found[match]} and {key} of the project both match {self._images[match].name} "
                    f"of {self._names.file}; write their whole paths there as file_name"
                )
            matches.append(match)
        return matches

    def segment(self, images: Sequence[Image]) -> Sequence[Detections]:
        """The predictions of each image, in the file's order; none for an image that it does not have.

        Raises MaskError where a mask is not of the image's size, InputError as ``match`` does.
        """
        matches = self.match(image.key for image in images)
        return [
            self._detections(match, image.key, list(image.pixels.shape[:2]))
            for image, match in zip(images, matches, strict=True)
        ]

    def look_up(self, keys: Sequence[str]) -> Iterator[Detections]:
        """The predictions of each image, as ``segment`` gives them, at the size that the files tell.

        Raises MaskError where masks of an image differ in size, InputError as ``match`` does.
        """
        for key, match in zip(keys, self.match(keys), strict=True):
            rows = self._rows(match)
            yield self._detections(match, key, self._size[rows[0]].tolist() if len(rows) else [])

    def _rows(self, match: int | None) -> NDArray[np.int64]:
        """The predictions of an image of the COCO file."""
        place = None if match is None else self._place[match]
        if place is None:
            return np.empty(0, np.int64)
        return self._order[self._ends[place - 1] if place else 0 : self._ends[place]]

    def _detections(self, match: int | None, key: str, size: list[int]) -> Detections:
        rows = self._rows(match)
        wrong = rows[(self._size[rows] != size).any(axis=1)] if len(rows) else rows
        if len(wrong):
            row = int(wrong[0])
            raise self._error(
                row,
                key,
                f"the mask is {_by(self._size[row])} pixels, the image {_by(size)}; "
                "predict at the image's own size, or hand over the images that were predicted on",
            )
        return Detections(
            rles=[{"size": size, "counts": self._counts[row]} for row in rows],
            scores=self._scores[rows],
            categories=self._category[rows],
            features=None if self._features is None else np.asarray(self._features[rows]),
        )

    def _read_result(self, row: int, result: Any, categories: Mapping[int, int], columns: _Columns) -> None:
        """Check one prediction and put it into the columns."""
        if not isinstance(result, Mapping):
            raise self._error(row, None, "it is not an object; export the file as COCO results")
        key, category, score = (result.get(name) for name in ("image_id", "category_id", "score"))
        entry = self._images.get(key) if isinstance(key, int) else None
        if entry is None or not isinstance(key, int):
            raise self._error(
                row, None, f"image_id {key!r} is not in {self._names.file}; hand over the file that has it"
            )
        if not isinstance(category, int) or category not in categories:
            raise self._error(
                row,
                entry.name,
                f"category_id {category!r} is not in {self._names.file}; hand over the file that has it",
            )
        if not isinstance(score, int | float) or not math.isfinite(score) or not 0 <= score <= 1:
            raise self._error(row, entry.name, f"the score {score!r} is not in [0, 1]; rescale the scores")
        try:
            rle = read_segmentation(result.get("segmentation"), entry.height, entry.width)
        except MaskError as error:
            raise self._error(row, entry.name, f"{error}; export this prediction again") from error
        size = list(rle["size"])
        if entry.height and entry.width and size != [entry.height, entry.width]:
            raise self._error(
                row,
                entry.name,
                f"the mask is {_by(size)} pixels, the image {_by([entry.height, entry.width])} "
                f"in {self._names.file}; predict at the image's own size",
            )
        if not coco.area(rle):
            raise self._error(row, entry.name, "the mask is empty; leave this prediction out")
        columns.size.extend(size)
        columns.text.extend(rle["counts"])
        columns.ends.append(len(columns.text))
        columns.score.append(score)
        columns.category.append(categories[category])
        columns.image.append(self._place[key])

    def _error(self, row: int, image: str | None, what: str) -> MaskError:
        of_image = "" if image is None else f" (image {image})"
        return MaskError(f"{self._file}, prediction {row}{of_image}: {what}")


@dataclass(frozen=True)
class _Columns:
    """Predictions as they are read, in some bytes a number: where the runs of each end, its image's place."""

    size: array[int] = field(default_factory=lambda: array("i"))
    text: bytearray = field(default_factory=bytearray)
    ends: array[int] = field(default_factory=lambda: array("q", [0]))
    score: array[float] = field(default_factory=lambda: array("f"))
    category: array[int] = field(default_factory=lambda: array("i"))
    image: array[int] = field(default_factory=lambda: array("i"))


class _Names:
    """The file names of a COCO file, found by the image keys of a project."""

    def __init__(self, names: Mapping[int, str], file: Path) -> None:
        self.file = file
        self._whole: dict[str, int] = {}
        self._last: dict[str, list[str]] = defaultdict(list)
        self._uploaded: dict[str, list[str]] = defaultdict(list)
        for key, name in names.items():
            if name in self._whole:
                raise InputError(
                    f"images {self._whole[name]} and {key} of {file} have the same file_name {name}; "
                    "give each image one entry and a name of its own"
                )
            self._whole[name] = key
            last = PurePosixPath(name).name
            self._last[last].append(name)
            self._uploaded[_stored(last)].append(name)

    def find(self, key: str) -> int | None:
        """The image of a key: by its whole name, by the longest end of its path, then by last names alone."""
        parts = path_of(key)
        for spelling in (key, *("/".join(parts[start:]) for start in range(len(parts)))):
            if spelling in self._whole:
                return self._whole[spelling]
        last = parts[-1] if parts else key
        names = self._last.get(last, [])
        if not names and UPLOAD_PREFIX.match(last):
            names = self._uploaded.get(UPLOAD_PREFIX.sub("", last), [])
        if len(names) > 1:
            raise InputError(
                f"image {key} may be {names[0]} or {names[1]} of {self.file}; "
                "make the file names differ, or keep their folders in the project's image paths"
            )
        return self._whole[names[0]] if names else None


def _stored(name: str) -> str:
    """What Label Studio calls an uploaded file behind its prefix, as Django's ``get_valid_filename`` does."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _by(size: Iterable[int]) -> str:
    return " x ".join(str(side) for side in size)


def read_json(path: Path, error_type: type[InputError]) -> Any:
    """The content of a .json or .json.gz file."""
    try:
        raw = path.read_bytes()
        return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except FileNotFoundError as error:
        raise error_type(f"{path} is missing; check the path") from error
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise error_type(f"{path} cannot be read as JSON ({error}); export it again") from error


def read_results(path: Path) -> Iterator[Any]:
    """The entries of a file of COCO results, one after the other: a list of them would be ten times the file.

    Raises MaskError for a file that cannot be read, is no JSON, or no list.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            encoding = json.detect_encoding(file.peek(4)[:4])
            with io.TextIOWrapper(file, encoding, "surrogatepass") as text:
                yield from _entries(text)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        if isinstance(read_json(path, MaskError), list):  # which says where it is broken
            raise MaskError(f"{path} cannot be read as JSON ({error}); export it again") from error
        raise MaskError(f"{path} is not a list of predictions; export it as COCO results") from error


def _entries(file: TextIO) -> Iterator[Any]:
    """The entries of a JSON list. Raises ValueError where it is none."""
    text = _Text(file)
    if text.take() != "[":
        raise ValueError("no list")
    after = text.take() if text.peek() == "]" else ","
    while after == ",":
        yield text.value()
        after = text.take()
    if after != "]":
        raise ValueError("no comma between two entries")
    if text.peek():
        raise ValueError("more than a list")


class _Text:
    """The text of a JSON file, a part of it at a time."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text, self._at = "", 0
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in SPACES:
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def take(self) -> str:
        """The same, and go on behind it."""
        character = self.peek()
        self._at += len(character)
        return character

    def value(self) -> Any:
        """The next value, which is whole where something comes behind it. Raises ValueError where none is."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except ValueError:
                end = len(self._text)
            if end < len(self._text):
                self._at = end
                return value
            if not self._more():
                raise ValueError("cut off, or no JSON")

    def _more(self) -> bool:
        more = self._file.read(max(TEXT_AT_ONCE, len(self._text)))
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)


def _read_coco(path: Path) -> tuple[dict[int, _Entry], list[tuple[int, str]]]:
    """The images by id, and the categories' (id, name) in the order of their ids."""
    content = read_json(path, InputError)
    try:
        images = {
            int(image["id"]): _Entry(str(image["file_name"]), _side(image, "height"), _side(image, "width"))
            for image in content["images"]
        }
        categories = sorted((int(category["id"]), str(category["name"])) for category in content["categories"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is not a COCO file with images (id, file_name) and categories (id, name): {error!r}; "
            "the ground truth file that the model was trained with has both"
        ) from error
    if len(images) != len(content["images"]) or len({name for _, name in categories}) != len(categories):
        raise InputError(f"{path} has two images of one id or two categories of one name; make them differ")
    return images, categories


def _side(image: Mapping[str, Any], name: str) -> int | None:
    side = image.get(name)
    if side is not None and (not isinstance(side, int) or side <= 0):
        raise ValueError(f"{name} {side!r} of image {image['id']} is not a number of pixels")
    return side


def read_features(path: Path, predictions: int, file: Path) -> NDArray[np.floating[Any]]:
    """(predictions, d) features, left on disk."""
    try:
        features: NDArray[np.floating[Any]] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise MaskError(f"{path} is missing; check the path") from error
    except (OSError, EOFError, ValueError) as error:
        raise MaskError(f"{path} cannot be read as features ({error}); write it with numpy.save") from error
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise MaskError(
            f"{path} holds {features.dtype} of shape {features.shape}; save one row of floats a prediction"
        )
    if len(features) != predictions:
        raise MaskError(
            f"{path} has {len(features)} rows, {file} {predictions} predictions; "
            "save one row a prediction, in the order of the file"
        )
    for start in range(0, predictions, ROWS_AT_ONCE):
        finite = np.isfinite(features[start : start + ROWS_AT_ONCE]).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise MaskError(f"{path}, row {row} (prediction {row} of {file}): NaN or infinite; compute it again")
    return features
