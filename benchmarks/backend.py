"""What the ML backend adds to its model: whole /predict requests over ``segment`` alone, on the same images.

    python -m benchmarks.backend SEED POOL [--segmenter unet] [--images 32] [--rounds 7] [--threads N] [--json OUT]

SEED: a folder with ``images/`` and ``ground_truth.json``, which the segmenter learns from; POOL: one of images.
The two are timed in turn, there and back, on the processor's clock too, which other programs disturb less; medians
are told. On a busy machine these differ from round to round by more than is asked for. What "outside the model"
says, by how much a request is longer than the model works in it, does not.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ml_backend.segmenters import unet_training, watershed
from ml_backend.segmenters.base import Image, Segmenter
from ml_backend.segmenters.seed_set import SeedSet, read_seed_set
from ml_backend.server import create_app
from plugin.label_studio.images import decode
from propagation.masks import Detections

KINDS = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
MOST = 0.05  # of the model's own time
SEGMENTERS: dict[str, Callable[[SeedSet], Segmenter]] = {
    "unet": lambda seed: unet_training.train(seed)[0],
    "watershed": watershed.train,
}


class Watched:
    """A segmenter, and the seconds that were spent in it."""

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        self.categories = segmenter.categories
        self.seconds = 0.0

    def segment(self, images: Sequence[Image]) -> Sequence[Detections]:
        begun = time.perf_counter()
        try:
            return self._segmenter.segment(images)
        finally:
            self.seconds += time.perf_counter() - begun


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the wall and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def measure(segmenter: Segmenter, paths: Sequence[Path], rounds: int) -> dict[str, Any]:
    """The medians of some rounds, and the shares that the backend adds."""
    labels = "".join(f'<Label value="{name}"/>' for name in segmenter.categories)
    config = (
        '<View><Image name="image" value="$image"/>'
        f'<PolygonLabels name="label" toName="image">{labels}</PolygonLabels></View>'
    )
    body = {
        "tasks": [{"id": number, "data": {"image": str(path)}} for number, path in enumerate(paths)],
        "project": "1.1",
        "label_config": config,
        "params": {},
    }

    def read(location: str) -> NDArray[np.uint8]:
        return decode(location, Path(location).read_bytes())

    watched = Watched(segmenter)
    model = watched, "benchmark"
    client = create_app(lambda: model, lambda location: Path(location).read_bytes(), {}).test_client()
    images = [Image(str(path), read(str(path))) for path in paths]
    works: dict[str, Callable[[], object]] = {
        "model": lambda: [segmenter.segment(images[at : at + 16]) for at in range(0, len(images), 16)],
        "reading": lambda: [read(str(path)) for path in paths],
        "predict": lambda: client.post("/predict", json=body).get_data(),
    }
    answer = client.post("/predict", json=body)  # warms up
    gc.freeze()  # as the server does that is started
    results = answer.get_json()["results"]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    watched.seconds = 0.0
    for _ in range(rounds):
        # there and back, so that a machine that gets slower or faster meanwhile does so to both
        for name in ("model", "predict", "reading", "predict", "model"):
            times[name].append(timed(works[name]))
    told: dict[str, Any] = {
        "images": len(paths),
        "regions": sum(len(one["result"]) for one in results),
        "bytes": len(answer.get_data()),
        "rounds": rounds,
    }
    whole_seconds = sum(wall for wall, _ in times["predict"])
    told["outside the model"] = round(whole_seconds / watched.seconds - 1, 4)
    for place, clock in enumerate(("wall", "processor")):
        took = {name: median(each[place] for each in seconds) for name, seconds in times.items()}
        whole, bare = (np.array(times[name])[:, place].reshape(-1, 2).sum(1) for name in ("predict", "model"))
        told[clock] = {
            **{name: round(seconds, 4) for name, seconds in took.items()},
            "overhead": round(median((whole / bare).tolist()) - 1, 4),
            "of it reading": round(took["reading"] / took["model"], 4),
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("seed", type=Path)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--segmenter", choices=sorted(SEGMENTERS), default="unet")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    paths = sorted(path for path in given.pool.iterdir() if path.suffix.lower() in KINDS)[: given.images]
    if not paths:
        raise SystemExit(f"{given.pool} holds no image; give a folder of {', '.join(sorted(KINDS))}")
    segmenter = SEGMENTERS[given.segmenter](read_seed_set(given.seed))
    told = {"segmenter": given.segmenter, **measure(segmenter, paths, given.rounds)}
    if given.json:
        given.json.write_text(json.dumps(told, indent=1))
    print(json.dumps(told, indent=1))
    print(f"a request is {told['outside the model']:.1%} longer than the model works in it")
    for clock in ("wall", "processor"):
        over = told[clock]["overhead"]
        verdict = "within" if over <= MOST else "more than"
        print(f"/predict costs {over:.1%} over the model by the {clock}; {verdict} {MOST:.0%}")


if __name__ == "__main__":
    main()
