"""The demo: the whole job in a Label Studio of its own, and a report of what came of it."""

from __future__ import annotations

import colorsys
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from os.path import relpath
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ls_propagate import clustering, pipeline
from ls_propagate.demo.annotator import Annotator
from ls_propagate.demo.dataset import Dataset, Objects, read_dataset
from ls_propagate.demo.scenes import make_scenes
from ls_propagate.demo.server import Server, label_studio, new_user
from ls_propagate.settings import Settings, load_settings
from plugin.label_studio.gateway import Gateway, chunks
from plugin.label_studio.images import image_key
from plugin.label_studio.labeling import read_labeling
from plugin.label_studio.regions import mask_of, regions_of, rle_of
from propagation.campaign import Campaign
from propagation.errors import InputError
from propagation.masks import MaskTable, mask_id
from propagation.quality import RIGHT_IOU, truth_iou
from propagation.summary import Row, statement, summarize
from sync.daemon import Daemon, Step

WRITTEN = ("annotations", "result", "was_cancelled", "parent_prediction")
PROJECT = "project.json"  # what is known of the source project, in the demo's folder
ANNOTATOR = ("annotator@example.com", "look-closely-1")


@dataclass(frozen=True)
class Demo:
    """What to run. images: generated scenes where no dataset is given; budget: questions in all."""

    data: Path
    dataset: Path | None = None
    images: int = 420
    budget: int = 1500
    error_rate: float = 0.0
    delay: float = 0.0
    seed: int = 0
    keep: bool = False
    interactive: bool = False


@dataclass(frozen=True)
class Project:
    """The demo's source project: its number, and the objects of each image by image key."""

    number: int
    truth: Objects


class Clock:
    """Seconds a step, told as they are known."""

    def __init__(self, console: Console) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time one step."""
        begin = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begin, 1)
        self._console.print(f"{name}: {self.seconds[name]} s")


def run_demo(demo: Demo, report: Path | None, console: Console, progress: pipeline.Progress) -> dict[str, Any]:
    """Run the demo, print its report, write it to ``report`` as JSON, and answer it."""
    clock = Clock(console)
    demo.data.mkdir(parents=True, exist_ok=True)
    with clock.step("images"):
        folder = demo.dataset or demo.data / f"scenes-{demo.images}-{demo.seed}"
        _check_free(demo.data, folder)
        if demo.dataset is None and not (folder / "pool" / "ground_truth.json").is_file():
            make_scenes(folder, demo.images, demo.seed)
        dataset = read_dataset(folder)
    with ExitStack() as stack:
        with clock.step("start Label Studio"):
            server = stack.enter_context(label_studio(demo.data / "label-studio"))
        made = _run(demo, dataset, server, clock, console, progress)
        console.print(report_table(made))
        for line in closing_lines(made):
            console.print(line, markup=False)
        if report is not None:
            report.write_text(json.dumps(made, indent=1))
        if demo.keep:
            console.print(
                f"Label Studio runs at {server.url}: {server.email}, password {server.password}. Ctrl-C ends."
            )
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
        return made


def _check_free(data: Path, folder: Path) -> None:
    """Refuse to go on with the demo of other images."""
    known = data / PROJECT
    other = json.loads(known.read_text()).get("dataset") if known.is_file() else None
    if other not in (None, relpath(folder, data)):
        raise InputError(
            f"{data} holds the demo of {data / other}; give another folder with --data, or delete {data}"
        )


def _run(
    demo: Demo, dataset: Dataset, server: Server, clock: Clock, console: Console, progress: pipeline.Progress
) -> dict[str, Any]:
    settings = demo_settings(demo, dataset, server)
    with pipeline.open_store(settings) as store, pipeline.open_gateway(settings) as gateway:
        with clock.step("source project"):
            project = source_project(gateway, dataset, demo.data)
            connection = pipeline.connect(gateway, store, str(project.number))
        with clock.step("detect"):
            table, _ = pipeline.detect(gateway, store, settings, progress=progress)
        with clock.step("cluster and push predictions"):
            clustering.cluster(gateway, store, settings, progress)
        iou = truth_iou(table, project.truth)
        right = dict(zip(table.ids.tolist(), (iou > RIGHT_IOU).tolist(), strict=True))
        known = pipeline.load_gold(store, settings)
        right |= known.truth if known else {}
        with clock.step("ask, answer, decide, write back"):
            daemon = pipeline.open_daemon(gateway, store, settings)
            if demo.interactive:
                console.print(
                    f"Answer pages at {server.url}/projects/{connection.pages}/data?labeling=1\n"
                    f"as {ANNOTATOR[0]}, password {ANNOTATOR[1]}. Ctrl-C ends the demo.",
                    markup=False,
                )
            bar = progress("questions", demo.budget)
            interruptible = suppress(KeyboardInterrupt) if demo.interactive else nullcontext()
            with closing(new_user(server, *ANNOTATOR)) as client, interruptible:
                annotator = Annotator(client, connection.pages, right, demo.error_rate, demo.delay)
                answered(daemon, None if demo.interactive else annotator, lambda step: bar(step.questions))
        pipeline.open_overview(gateway, store, settings).look(daemon.history, finished=True)
        counts = read_back(gateway, connection)
        faithful = least_iou(gateway, connection, table)
        with clock.step("run every step again"):
            pipeline.detect(gateway, store, settings)
            clustering.cluster(gateway, store, settings)
            pipeline.open_daemon(gateway, store, settings).step()
        again = read_back(gateway, connection)
    made = report_of(daemon.campaign, iou, counts, clock.seconds)
    return {**made, "least_region_iou": faithful, "second_run_changed_nothing": again == counts}


def answered(
    daemon: Daemon, annotator: Annotator | None, told: Callable[[Step], None] = lambda step: None
) -> None:
    """Run the daemon until it has nothing left to ask, with a simulated annotator at work beside it, or none.

    Raises what the annotator raised.
    """
    failed: list[Exception] = []
    stop = threading.Event()

    def answer(annotator: Annotator) -> None:
        try:
            annotator.run(stop)
        except Exception as error:
            failed.append(error)
            stop.set()

    worker = threading.Thread(target=answer, args=[annotator]) if annotator else None
    if worker:
        worker.start()
    try:
        daemon.run(stop, every=0.3, told=told, until_finished=True)
    finally:
        stop.set()
        if worker:
            worker.join()
    if failed:
        raise failed[0]


def demo_settings(demo: Demo, dataset: Dataset, server: Server) -> Settings:
    """The demo's settings, also left as a file for ``ls-propagate status --config``."""
    if dataset.predictions is not None:
        chosen: dict[str, Any] = {
            "name": "precomputed",
            "predictions": dataset.predictions,
            "images": dataset.folder / "pool" / "ground_truth.json",
        }
        if dataset.features is not None:
            chosen["features"] = dataset.features
    else:
        chosen = {"name": "watershed", "seed": dataset.folder / "seed"}
    folder = json.dumps(str(demo.data.resolve() / "campaign"))
    lines = [f"data_dir = {folder}", "daemon_port = 0", "least_seconds = 0", "", "[segmenter]"]
    for name, value in chosen.items():
        lines.append(f"{name} = {json.dumps(str(value.resolve() if isinstance(value, Path) else value))}")
    lines += ["", "[strategy]", f"budget = {demo.budget}", f"seed = {demo.seed}", ""]
    file = demo.data / "ls-propagate.toml"
    file.write_text("\n".join(lines))
    return load_settings(file, label_studio_url=server.url, label_studio_api_key=server.token)


def source_project(gateway: Gateway, dataset: Dataset, data: Path) -> Project:
    """The source project with every image as a task, the seed set's with its annotations; made once."""
    known = data / PROJECT
    if not known.is_file():
        config = labeling_config(dataset.categories)
        number = gateway.create_project(f"Demo: {dataset.folder.name[:40]}", config, "", {}).id
        labeling = read_labeling(config, dataset.categories, {}, "demo")
        files: dict[str, str] = {}
        for part in (dataset.seed, dataset.pool):
            tasks = []
            for paths in chunks(part.images, 100):
                urls = gateway.upload(number, [(path.name, path.read_bytes()) for path in paths])
                for path, url in zip(paths, urls, strict=True):
                    files[image_key(url)] = path.name
                    tasks.append(_task(url, part.objects.get(path.name, []), labeling, part is dataset.seed))
            gateway.import_tasks(number, tasks)
        known.write_text(json.dumps({"project": number, "files": files, "dataset": relpath(dataset.folder, data)}))
    made = json.loads(known.read_text())
    truth = {key: dataset.pool.objects.get(name, []) for key, name in made["files"].items()}
    return Project(made["project"], truth)


def _task(url: str, objects: list[Any], labeling: Any, annotated: bool) -> dict[str, Any]:
    task: dict[str, Any] = {"data": {"image": url}}
    if annotated:
        result = [
            {name: value for name, value in region.items() if name not in ("meta", "score")}
            for category, rle in objects
            for region in regions_of(mask_id(url, category, rle), rle, category, 1.0, {}, labeling)
        ]
        task["annotations"] = [{"result": result, "ground_truth": False}]
    return task


def labeling_config(categories: list[str]) -> str:
    """A labeling config with polygons and brushes for every category."""
    hues = (colorsys.hsv_to_rgb(place / len(categories), 0.85, 1.0) for place in range(len(categories)))
    colours = (f"#{''.join(f'{round(255 * part):02x}' for part in hue)}" for hue in hues)
    labels = "".join(
        f'<Label value={quoteattr(name)} background="{colour}"/>'
        for name, colour in zip(categories, colours, strict=True)
    )
    return (
        '<View><Image name="image" value="$image" zoom="true" zoomControl="true"/>'
        f'<PolygonLabels name="polygon" toName="image" strokeWidth="3" opacity="0.5">{labels}</PolygonLabels>'
        f'<BrushLabels name="brush" toName="image">{labels}</BrushLabels></View>'
    )


def read_back(gateway: Gateway, connection: pipeline.Connection) -> dict[str, int]:
    """What Label Studio holds, counted there."""
    tasks = list(gateway.tasks(connection.project, [*WRITTEN, "predictions", "model_version"]))
    pages = list(gateway.tasks(connection.pages, ["data", "annotations", "was_cancelled"]))
    written = [a for task in tasks for a in task["annotations"] if a.get("parent_prediction")]
    masks = [mask_of(region) for annotation in written for region in annotation["result"]]
    return {
        "tasks": len(tasks),
        "predictions": sum(len(task["predictions"]) for task in tasks),
        "annotations": sum(len(task["annotations"]) for task in tasks),
        "propagated_annotations": len(written),
        "propagated_regions": len(masks),
        "propagated_masks": len(set(masks)),
        "pages": len(pages),
        "answers": sum(len(page["annotations"]) for page in pages),
    }


def regions_by_mask(gateway: Gateway, connection: pipeline.Connection) -> dict[str, list[dict[str, Any]]]:
    """Mask id to the regions that the source project's propagated annotations have of it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for task in gateway.tasks(connection.project, WRITTEN):
        for annotation in task["annotations"]:
            for region in annotation["result"] if annotation.get("parent_prediction") else ():
                found.setdefault(str(mask_of(region)), []).append(region)
    return found


def least_iou(gateway: Gateway, connection: pipeline.Connection, table: MaskTable) -> float | None:
    """The worst IoU of a written mask's regions with the mask, or None where nothing is written."""
    row_of = {mask: row for row, mask in enumerate(table.ids.tolist())}
    ious = [
        float(coco.iou([rle_of(regions)], [table.rle(row_of[mask])], [0])[0, 0])
        for mask, regions in regions_by_mask(gateway, connection).items()
    ]
    return round(min(ious), 4) if ious else None


def report_of(
    campaign: Campaign,
    iou: NDArray[np.float32],
    counts: Mapping[str, int],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The report: the campaign's rows with their truth, and what Label Studio says."""
    rows = summarize(campaign)
    accepted, category = campaign.accepted(), campaign.table.category
    inside = [accepted & (category == place) for place in range(len(rows) - 1)] + [accepted]
    return {
        "claim": campaign.claim,
        "statement": statement(campaign),
        "rows": [_scored(row, iou[mask]) for row, mask in zip(rows, inside, strict=True)],
        "questions_asked": campaign.questions_asked,
        "label_studio": dict(counts),
        "regions_equal_accepted": counts["propagated_masks"] == int(accepted.sum()),
        "seconds": dict(seconds),
    }


def _scored(row: Row, iou: NDArray[np.float32]) -> dict[str, Any]:
    known = len(iou) > 0
    return {
        **asdict(row),
        "precision": round(float((iou > RIGHT_IOU).mean()), 4) if known else None,
        "mean_iou": round(float(iou.mean()), 4) if known else None,
    }


def report_table(report: Mapping[str, Any]) -> Table:
    """The report's rows for the terminal."""
    table = Table(title="What came of it")
    table.add_column("category")
    for name in (
        "masks",
        "outdone",
        "questions",
        "accepted",
        "rejected",
        "open",
        "estimate",
        "proven",
        "truly right",
        "mean IoU",
    ):
        table.add_column(name, justify="right")
    for row in report["rows"]:
        shares = (_percent(row[name]) for name in ("estimate", "bound", "precision", "mean_iou"))
        counts = (str(row[name]) for name in ("masks", "outdone", "questions", "accepted", "rejected", "open"))
        table.add_row(Text(row["category"]), *counts, *shares, end_section=row is report["rows"][-2])
    return table


def closing_lines(report: Mapping[str, Any]) -> list[str]:
    """What the table leaves out."""
    counts, total = report["label_studio"], report["rows"][-1]
    questions = report["questions_asked"]
    return [
        f"{total['accepted']} masks accepted for {questions} questions"
        + (f", {total['accepted'] / questions:.1f} a question." if questions else "."),
        f"In Label Studio: {counts['propagated_masks']} masks in {counts['propagated_annotations']} annotations "
        f"({'the same masks' if report['regions_equal_accepted'] else 'NOT the accepted number'}), "
        f"{counts['predictions']} predictions, {counts['answers']} answers on {counts['pages']} pages.",
        f"The worst IoU of a written mask with the predicted one is {report['least_region_iou']}.",
        "Every step run again: "
        + ("no count changed." if report["second_run_changed_nothing"] else "COUNTS CHANGED."),
        report["statement"],
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
