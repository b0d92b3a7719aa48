"""What Ray costs: detection by the local engine and by Ray's workers, with a model that waits, as for a GPU.

``python -m benchmarks.engines [--json OUT] [--images 1280]``. Overhead is what is above the own time of the model,
which the workers share; Ray's start and end are told apart.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from pycocotools import mask as coco
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ls_propagate.engines import Read, running, segment_on_ray
from ml_backend.detect import segment
from ml_backend.segmenters.base import Image, Segmenter
from propagation.masks import Detections

MODEL = 0.02  # seconds an image
SIDE = 256


class Waiting:
    """Ten masks an image, after a while."""

    categories = ("cell",)

    def __init__(self) -> None:
        mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
        mask[40:90, 40:90] = 1
        self._found = Detections([coco.encode(mask)] * 10, np.full(10, 0.5, np.float32), np.zeros(10, np.int64))

    def segment(self, images: Sequence[Image]) -> Sequence[Detections]:
        time.sleep(MODEL * len(images))
        return [self._found] * len(images)


def made() -> tuple[Segmenter, Read]:
    """The model, and a reader that has each image at once."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(file, "PNG")
    return Waiting(), lambda location: file.getvalue()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="What Ray costs.")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the measurements to this file too")
    parser.add_argument("--images", type=int, default=1280)
    options = parser.parse_args()
    keys = {f"{number}.png": f"{number}.png" for number in range(options.images)}
    segmenter, read = made()
    begin = time.perf_counter()
    list(segment(segmenter, list(keys), read, False))
    found: list[dict[str, Any]] = [row("local", 1, time.perf_counter() - begin, 0.0, options.images)]
    for workers in (1, 2):
        begin = time.perf_counter()
        with running(workers):
            began = time.perf_counter()
            list(segment_on_ray(made, keys, False, workers))
            done = time.perf_counter()
        outside = began - begin + time.perf_counter() - done
        found.append(row("ray", workers, done - began, outside, options.images))
    table = Table(title=f"{options.images} images, {1000 * MODEL:.0f} ms each", box=SIMPLE)
    table.add_column("engine")
    for column in ("workers", "s", "overhead s", "start and end, s"):
        table.add_column(column, justify="right")
    for one in found:
        table.add_row(one["engine"], *(str(one[name]) for name in ("workers", "seconds", "overhead", "outside")))
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def row(engine: str, workers: int, seconds: float, outside: float, images: int) -> dict[str, Any]:
    """What one engine took."""
    overhead = round(seconds - images * MODEL / workers, 1)
    taken = {"seconds": round(seconds, 1), "overhead": overhead, "outside": round(outside, 1)}
    return {"engine": engine, "workers": workers, **taken}


if __name__ == "__main__":
    main()
