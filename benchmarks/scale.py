"""A campaign over 1,000,000 masks of 100,000 images, step by step: seconds, and the peak of memory.

``python -m benchmarks.scale [--json OUT] [--masks 1000000]``. The images do not exist: a model's COCO results are
generated, ten masks an image, and imported as ``detect`` imports them where ``read_images`` is false. Then come
the trees, the questions, answered by the truth, and the export, through the functions of the commands. Each step
has a process of its own, which opens what the one before has left on disk; so a peak is the step's own. CPU
seconds are those of all threads: on a machine with other work, they tell more than the clock.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.memory import alone, peak

# all other modules are imported where they are used: what a process loads is a part of what it is measured by
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ls_propagate.settings import Settings

AN_IMAGE = 10  # masks
SIDE = 512  # pixels of an image
CORNERS = 14  # of an outline
CATEGORIES = ("car", "person", "tree", "sign")
BUDGET = 10_000  # questions


@dataclass(frozen=True)
class Step:
    """What a step took: seconds by the clock and of the processor, bytes of memory at the most; what it made."""

    name: str
    seconds: float
    cpu_seconds: float
    peak: int
    made: str


def settings_of(folder: Path) -> Settings:
    """The settings of the campaign in a folder."""
    from ls_propagate.settings import PrecomputedSettings, Settings
    from propagation.calibrated import CalibratedStrategy

    chosen = PrecomputedSettings(
        name="precomputed",
        predictions=folder / "predictions.json",
        images=folder / "images.json",
        read_images=False,
    )
    strategy = CalibratedStrategy(budget=BUDGET)
    return Settings(data_dir=folder / "data", segmenter=chosen, strategy=strategy)


def generate(folder: Path, count: int) -> str:
    """Write images.json, predictions.json and the truth: round masks, most of which are right, and ragged ones."""
    import numpy as np
    from pycocotools import mask as coco

    rng = np.random.default_rng(0)
    images = -(-count // AN_IMAGE)
    names = [{"id": n, "file_name": f"{n:06}.png", "height": SIDE, "width": SIDE} for n in range(images)]
    categories = [{"id": n, "name": name} for n, name in enumerate(CATEGORIES, 1)]
    (folder / "images.json").write_text(json.dumps({"images": names, "categories": categories}))
    ragged = rng.random(count)
    right = ragged + 0.15 * rng.standard_normal(count) < 0.6
    scores = np.clip(1 - ragged + 0.2 * rng.standard_normal(count), 0, 1).round(4)
    category = np.minimum(rng.geometric(0.5, count), len(CATEGORIES))
    turns = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    with (folder / "predictions.json").open("w") as file:
        for image in range(images):
            rows = range(image * AN_IMAGE, min((image + 1) * AN_IMAGE, count))
            reach = rng.uniform(10, 40, (len(rows), 1)) * (
                1 - 0.7 * ragged[rows.start : rows.stop, None] * rng.random((len(rows), CORNERS))
            )
            centres = rng.uniform(45, SIDE - 45, (len(rows), 1, 2))
            outlines = centres + reach[..., None] * np.stack([np.cos(turns), np.sin(turns)], axis=-1)
            rles = coco.frPyObjects(outlines.reshape(len(rows), -1).tolist(), SIDE, SIDE)
            for row, rle in zip(rows, rles, strict=True):
                counts = rle["counts"].decode()
                entry = {
                    "image_id": image,
                    "category_id": int(category[row]),
                    "segmentation": {"size": [SIDE, SIDE], "counts": counts},
                    "score": float(scores[row]),
                }
                file.write(("[" if row == 0 else ",\n") + json.dumps(entry))
        file.write("]")
    np.save(folder / "right.npy", right)
    return f"{_size(folder / 'predictions.json')} of results"


def detect(folder: Path) -> str:
    """Import the results as a mask table, with the features of the masks' shapes."""
    from ls_propagate import engines, pipeline
    from ls_propagate.models import load_segmenter
    from ml_backend.detect import gather
    from propagation.artefacts import write_artefact
    from propagation.masks import write_table
    from sync.store import SourceTask

    settings = settings_of(folder)
    segmenter, version = load_segmenter(settings)
    names = json.loads((folder / "images.json").read_text())["images"]
    tasks = [SourceTask(f"/data/upload/1/{one['file_name']}", one["id"] + 1, "") for one in names]
    tasks = [SourceTask(task.image, task.task, task.image) for task in tasks]
    locations = {task.image: task.location for task in tasks}
    batches = engines.segment(settings, segmenter, locations, lambda location: b"", False)
    table, _ = gather(list(locations), batches, segmenter.categories, version)
    made = write_artefact(settings.artefacts, "masks", {}, [], lambda at: write_table(table, at))
    with pipeline.open_store(settings) as store:
        store.set_source_tasks(tasks)
        store.remember(table=made.folder.name)
    return f"{len(table):,} masks, {_size(made.folder)}"


def cluster(folder: Path) -> str:
    """Build the trees, and begin the campaign."""
    from ls_propagate import clustering, pipeline

    settings = settings_of(folder)
    with pipeline.open_store(settings) as store:
        store.remember(connection=asdict(pipeline.Connection("http://benchmark", 1, "benchmark", 2, 3)))
        clustering.begin_campaign(store, settings, pipeline.load_table(store, settings))
        trees = pipeline.load_trees(store, settings)
        made = settings.artefacts / str(store.fact("trees"))
    return f"{len(trees)} trees, {_size(made)}"


def ask(folder: Path) -> str:
    """Ask, answer and decide until the campaign ends, each round stored."""
    import numpy as np

    from benchmarks.memory import a_round
    from ls_propagate import pipeline

    settings = settings_of(folder)
    right: NDArray[np.bool_] = np.load(folder / "right.npy")
    with pipeline.open_store(settings) as store:
        campaign = pipeline.open_campaign(store, settings)
        assert len(campaign.table) == len(right), "a mask was generated twice"
        while more := a_round(campaign, right):
            store.append(more)
    accepted = campaign.accepted()
    share = right[accepted].mean() if accepted.any() else 0.0
    asked = f"{campaign.questions_asked:,} questions, {accepted.sum():,} masks accepted"
    return f"{asked}, {share:.1%} right ({right.mean():.1%} of all)"


def export(folder: Path) -> str:
    """Write the accepted masks as a COCO dataset."""
    from ls_propagate import pipeline

    settings = settings_of(folder)
    file = folder / "export.json"
    with pipeline.open_store(settings) as store, file.open("w") as written:
        masks, images = pipeline.export_coco(
            pipeline.open_campaign(store, settings), store.source_tasks(), written
        )
    return f"{masks:,} masks of {images:,} images, {_size(file)}"


STEPS: dict[str, Callable[[Path], str]] = {
    "import": detect,
    "trees": cluster,
    "questions and answers": ask,
    "export": export,
}


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:,.0f} MB"


def measured(name: str, folder: Path) -> Step:
    """A step, in the process that this is called in."""
    begin, cpu = perf_counter(), process_time()
    made = STEPS[name](folder)
    return Step(name, round(perf_counter() - begin, 1), round(process_time() - cpu, 1), peak(), made)


def shown(steps: list[Step], count: int) -> Table:
    """The steps, a row each."""
    table = Table(title=f"A campaign over {count:,} masks", box=SIMPLE)
    table.add_column("step")
    for column in ("s", "CPU s", "peak MB"):
        table.add_column(column, justify="right")
    table.add_column("made")
    for step in steps:
        figures = (f"{step.seconds:,.1f}", f"{step.cpu_seconds:,.1f}", f"{step.peak / 1e6:,.0f}")
        table.add_row(step.name, *figures, step.made)
    return table


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="A campaign over a million masks, step by step.")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the measurements to this file too")
    parser.add_argument("--masks", type=int, default=1_000_000)
    options = parser.parse_args()
    console = Console(width=130)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        console.print(alone(generate, folder, options.masks))
        steps = []
        for step in STEPS:
            with console.status(step):
                steps.append(alone(measured, step, folder))
            console.print(f"{steps[-1]}", soft_wrap=True)
    console.print(shown(steps, options.masks))
    if options.json:
        found: dict[str, Any] = {"masks": options.masks, "steps": [asdict(step) for step in steps]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
