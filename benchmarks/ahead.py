"""How busy a model is kept while images are read ahead: the share of its time that detection waits for images.

``python -m benchmarks.ahead [--json OUT]``. Each file of 512 x 512 pixels comes 20 ms after it was asked for, as
from a server; a model takes a given time an image. With one image read after the other, and with the readers that
detection has. The wait for the first batch counts too.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ml_backend.reading import IMAGES_AT_ONCE, READERS, read_ahead
from plugin.label_studio.images import decode

IMAGES = 320
LATENCY = 0.02  # seconds an image
MODELS = (0.005, 0.01, 0.02, 0.05)  # seconds an image


def read(key: str) -> bytes:
    """The file of an image, as late as a server gives it."""
    time.sleep(LATENCY)
    return FILE.getvalue()


def waited(batches: Iterable[list[Any]], model: float) -> dict[str, float]:
    """Seconds in all, and the share of them in which the model had nothing to do."""
    begin = time.perf_counter()
    idle, free = 0.0, begin
    for batch in batches:
        idle += time.perf_counter() - free
        time.sleep(model * len(batch))
        free = time.perf_counter()
    seconds = free - begin
    return {"seconds": round(seconds, 2), "waited": round(idle / seconds, 3)}


def one_by_one(keys: list[str]) -> Iterable[list[Any]]:
    """The batches of a single reader that reads nothing ahead."""
    for begin in range(0, len(keys), IMAGES_AT_ONCE):
        yield [decode(key, read(key)) for key in keys[begin : begin + IMAGES_AT_ONCE]]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="How busy a model is kept while images are read ahead.")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the measurements to this file too")
    options = parser.parse_args()
    keys = [str(number) for number in range(IMAGES)]
    ways: dict[str, Callable[[], Iterable[list[Any]]]] = {
        "one by one": lambda: one_by_one(keys),
        f"{READERS} readers ahead": lambda: read_ahead(keys, lambda key: read(key)),
    }
    found: list[dict[str, Any]] = [
        {"way": name, "model_ms": 1000 * model, **waited(way(), model)}
        for model in MODELS
        for name, way in ways.items()
    ]
    table = Table(title=f"{IMAGES} images, {1000 * LATENCY:.0f} ms each until they come", box=SIMPLE)
    table.add_column("reading")
    for column in ("model, ms an image", "s", "of it waiting"):
        table.add_column(column, justify="right")
    for row in found:
        table.add_row(row["way"], f"{row['model_ms']:g}", str(row["seconds"]), f"{row['waited']:.0%}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


FILE = io.BytesIO()
PIL.Image.fromarray(np.random.default_rng(0).integers(0, 99, (512, 512, 3), np.uint8)).save(FILE, "JPEG")

if __name__ == "__main__":
    main()
