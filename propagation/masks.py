"""Masks as columns: the detections of an image, and the table of all masks of a pool.

A mask is kept as COCO run-length encoding (column-major runs, compressed counts), never decoded in bulk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from propagation.columns import Ids, Runs
from propagation.errors import MaskError
from propagation.rle import Rle

COMPETE_IOU = 0.8
AT_ONCE = 8192  # masks
NAMES = "names.json"
EARLIER = "masks.parquet"
NUMBERS = ("image", "category", "score", "box", "area", "size", "best")


@dataclass(frozen=True)
class Detections:
    """The masks that a segmenter found in one image, best told as columns.

    rles: n run-length encodings, all of the image's size.
    scores: (n,) in [0, 1], the model's own estimate that the mask is right.
    categories: (n,) indices into the segmenter's categories.
    features: (n, d) or None, one row a mask ("deep" features).
    """

    rles: Sequence[Rle]
    scores: NDArray[np.float32]
    categories: NDArray[np.int64]
    features: NDArray[np.floating[Any]] | None = None

    def __len__(self) -> int:
        return len(self.rles)


NOTHING = Detections([], np.empty(0, np.float32), np.empty(0, np.int64))


@dataclass(frozen=True, eq=False)
class MaskTable:
    """The masks of a pool, a row each.

    ids: (n,) 20 hex digits, the same whenever the same mask of the same image is found again.
    images: (m,) image keys; image: (n,) int32 rows of ``images``.
    categories: category names; category: (n,) int32 rows of ``categories``.
    score: (n,) float32; box: (n, 4) float32 x, y, width, height in pixels; area: (n,) int32 in pixels;
    size: (n, 2) int32, height and width of the image.
    counts: (n,) the compressed runs, as bytes.
    best: (n,) bool, False where a better mask of the same image covers the same object.
    features: blocks by name, each (n, d).
    model_version: the version of the model that found the masks.
    """

    ids: NDArray[np.str_] | Ids
    images: NDArray[np.str_]
    image: NDArray[np.int32]
    categories: tuple[str, ...]
    category: NDArray[np.int32]
    score: NDArray[np.float32]
    box: NDArray[np.float32]
    area: NDArray[np.int32]
    size: NDArray[np.int32]
    counts: NDArray[np.object_] | Runs
    best: NDArray[np.bool_]
    model_version: str
    features: Mapping[str, NDArray[np.floating[Any]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def rle(self, row: int) -> Rle:
        """The run-length encoding of one mask."""
        counts: bytes = self.counts[row]
        return {"size": self.size[row].tolist(), "counts": counts}

    def rles(self, rows: Iterable[int]) -> list[Rle]:
        """The run-length encodings of some masks."""
        return [self.rle(row) for row in rows]

    def rows_by_image(self) -> list[NDArray[np.int64]]:
        """For each image, the rows of its masks, ascending."""
        order = np.argsort(self.image, kind="stable")
        ends = np.cumsum(np.bincount(self.image, minlength=len(self.images)))
        return np.split(order, ends[:-1]) if len(ends) else []

    def with_features(self, **blocks: NDArray[np.floating[Any]]) -> MaskTable:
        """The same table with further feature blocks."""
        return replace(self, features={**self.features, **blocks})


def mask_id(key: str, category: str, rle: Rle) -> str:
    """20 hex digits made of the image key, the category and the mask, and of nothing else."""
    height, width = rle["size"]
    head = f"{key}\0{category}\0{height}x{width}\0".encode()
    return hashlib.blake2b(head + rle["counts"], digest_size=10).hexdigest()


def check_detections(key: str, found: Detections, categories: Sequence[str]) -> None:
    """Refuse detections that could not be clustered, asked or written; the message names image and mask.

    Raises MaskError.
    """
    if len(found.scores) != len(found) or len(found.categories) != len(found):
        raise MaskError(
            f"image {key}: {len(found)} masks, but {len(found.scores)} scores and "
            f"{len(found.categories)} categories; a segmenter answers one of each a mask"
        )
    if found.features is not None and len(found.features) != len(found):
        raise MaskError(
            f"image {key}: {len(found)} masks, but {len(found.features)} rows of features; give one row a mask"
        )
    broken = {
        "its score is not a number": ~np.isfinite(found.scores),
        "its category is not one of the segmenter's": (found.categories < 0)
        | (found.categories >= len(categories)),
        "the mask is empty": np.array([coco.area(rle) == 0 for rle in found.rles], dtype=bool),
    }
    if found.features is not None:
        kept = np.abs(found.features) <= np.finfo(np.float16).max  # as which the table keeps them
        broken["its features are not all numbers, from -65504 to 65504"] = ~kept.all(axis=1)
    for what, where in broken.items():
        if where.any():
            raise MaskError(
                f"image {key}, mask {int(np.flatnonzero(where)[0])} of {len(found)}: {what}; "
                "mend or drop it where the masks come from, then detect again"
            )


def build_table(
    keys: Sequence[str],
    found: Sequence[Detections],
    categories: Sequence[str],
    model_version: str,
) -> MaskTable:
    """The table of the masks found in some images.

    keys: an image key for each of ``found``. A mask found twice in an image is kept once, with its better
    score. Raises MaskError where detections cannot be used.
    """
    for key, detections in zip(keys, found, strict=True):
        check_detections(key, detections, categories)
    pairs = zip(keys, found, strict=True)
    widths = {None if d.features is None else d.features.shape[1]: key for key, d in pairs if len(d)}
    if len(widths) > 1:
        listed = ", ".join(f"{width} in image {key}" for width, key in widths.items())
        raise MaskError(f"features of different widths ({listed}); a segmenter gives one width")
    rles = [rle for detections in found for rle in detections.rles]
    image = np.repeat(np.arange(len(found), dtype=np.int32), [len(d) for d in found])
    category = _joined([d.categories for d in found], np.int32)
    score = _joined([d.scores for d in found], np.float32)
    names = (mask_id(keys[i], categories[c], rle) for i, c, rle in zip(image, category, rles, strict=True))
    ids = np.fromiter((name.encode() for name in names), dtype="S20", count=len(rles))
    by_score = np.lexsort((np.arange(len(ids)), -score))
    rows = np.sort(by_score[np.unique(ids[by_score], return_index=True)[1]])
    features: dict[str, NDArray[np.floating[Any]]] = {}
    if widths.keys() - {None}:
        deep = np.concatenate([d.features for d in found if d.features is not None and len(d)])
        features["deep"] = deep[rows].astype(np.float16)
    table = MaskTable(
        ids=ids[rows].astype(np.str_),
        images=np.array(keys, dtype=np.str_),
        image=image[rows],
        categories=tuple(categories),
        category=category[rows],
        score=score[rows],
        box=_boxes(rles)[rows],
        area=np.array([coco.area(rle) for rle in rles], dtype=np.int32)[rows],
        size=np.array([rle["size"] for rle in rles], dtype=np.int32).reshape(-1, 2)[rows],
        counts=Runs.of(rles[row]["counts"] for row in rows),
        best=np.ones(len(rows), dtype=bool),
        model_version=model_version,
        features=features,
    )
    return replace(table, best=compete(table))


def _boxes(rles: Sequence[Rle]) -> NDArray[np.float32]:
    """(n, 4) x, y, width, height. Some masks at a time: pycocotools unpacks the runs of all that it is given."""
    parts = [coco.toBbox(rles[begin : begin + AT_ONCE]) for begin in range(0, len(rles), AT_ONCE)]
    return np.concatenate([np.empty((0, 4), np.float32), *(part.astype(np.float32) for part in parts)])


def _joined(parts: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype=dtype), *(np.asarray(part, dtype=dtype) for part in parts)])


def compete(table: MaskTable, iou: float = COMPETE_IOU) -> NDArray[np.bool_]:
    """(n,) bool: False for a mask that overlaps a better-scored one of its image by more than ``iou``.

    Across categories too: one object gets one mask. Equal scores are settled by mask id.
    """
    best = np.ones(len(table), dtype=bool)
    for rows in table.rows_by_image():
        if len(rows) < 2:
            continue
        order = rows[np.lexsort((table.ids[rows], -table.score[rows]))]
        rles = table.rles(order)
        overlap = coco.iou(rles, rles, [0] * len(rles)) > iou
        for place in range(1, len(order)):
            best[order[place]] = not (overlap[place, :place] & best[order[:place]]).any()
    return best


def write_table(table: MaskTable, folder: Path) -> None:
    """Write ``names.json``, and each column as an ``.npy`` that can be memory-mapped."""
    ids, runs = Ids.of(table.ids), Runs.of(table.counts)
    columns: dict[str, NDArray[Any]] = {
        "ids": ids.ordered,
        "ids-rows": ids.rows,
        "runs": runs.text,
        "runs-ends": runs.ends,
        **{name: getattr(table, name) for name in NUMBERS},
        **{f"features-{name}": block for name, block in table.features.items()},
    }
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)
    names = {name: list(getattr(table, name)) for name in ("images", "categories")}
    (folder / NAMES).write_text(json.dumps({**names, "model_version": table.model_version}))


def read_table(folder: Path) -> MaskTable:
    """Read what ``write_table`` wrote, or an earlier version of it; what is an ``.npy`` stays on disk."""
    features = {
        path.stem.removeprefix("features-"): np.load(path, mmap_mode="r")
        for path in sorted(folder.glob("features-*.npy"))
    }
    if (folder / EARLIER).exists():
        return replace(_read_parquet(folder), features=features)

    def column(name: str) -> NDArray[Any]:
        return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))

    names = json.loads((folder / NAMES).read_text())
    return MaskTable(
        ids=Ids(column("ids"), column("ids-rows")),
        images=np.array(names["images"], dtype=np.str_),
        categories=tuple(names["categories"]),
        counts=Runs(column("runs"), column("runs-ends")),
        model_version=names["model_version"],
        features=features,
        **{name: column(name) for name in NUMBERS},
    )


def _read_parquet(folder: Path) -> MaskTable:
    """A table of the first version, which had a Parquet file of all columns but the features."""
    import pyarrow as pa  # not needed otherwise
    import pyarrow.parquet as pq

    images = pq.read_table(folder / "images.parquet")
    names = json.loads(images.schema.metadata[b"names"])
    keys = images["image"].to_pylist()

    def column(name: str) -> Any:
        return pq.read_table(folder / EARLIER, columns=[name])[name].unify_dictionaries().combine_chunks()

    def numbers(name: str) -> NDArray[Any]:
        read = column(name)
        values = read.flatten() if pa.types.is_fixed_size_list(read.type) else read
        return np.array(values.to_numpy(zero_copy_only=False))

    def codes(name: str, places: Sequence[str]) -> NDArray[np.int32]:
        read = column(name)
        place_of = {text: place for place, text in enumerate(places)}
        known = np.array([place_of[text] for text in read.dictionary.to_pylist()], dtype=np.int32)
        return known[read.indices.to_numpy()]

    def runs() -> Runs:
        read = column("counts").cast(pa.large_binary())
        _, ends, text = (np.frombuffer(buffer or b"", np.uint8) for buffer in read.buffers())
        return Runs(text.copy(), ends.view(np.int64)[: len(read) + 1].copy())

    ids = column("mask_id").cast(pa.binary()).cast(pa.binary(20)).buffers()[1]
    table = MaskTable(
        ids=Ids.of(np.frombuffer(ids, dtype="S20")),
        images=np.array(keys, dtype=np.str_),
        image=codes("image", keys),
        categories=tuple(names["categories"]),
        category=codes("category", names["categories"]),
        score=numbers("score"),
        box=numbers("box").reshape(-1, 4),
        area=numbers("area"),
        size=numbers("size").reshape(-1, 2),
        counts=runs(),
        best=numbers("best").astype(bool),
        model_version=names["model_version"],
    )
    pa.default_memory_pool().release_unused()
    return table
