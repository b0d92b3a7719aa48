"""The command line: ``ls-propagate``."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ls_propagate import pipeline
from ls_propagate.settings import Settings, load_settings
from plugin.label_studio.gateway import LabelStudioGateway
from propagation.campaign import Campaign
from propagation.errors import PropagateError, SettingsError
from propagation.summary import Row, as_json, summarize
from sync.daemon import Step
from sync.store import Store

app = typer.Typer(
    name="ls-propagate",
    help="Verify a few masks, label the whole cluster, inside Label Studio.\n\n"
    "The usual order: connect, detect, cluster, then sync for as long as annotators answer. "
    "Try it without a server of your own: ls-propagate demo.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
WIDTH = None if sys.stdout.isatty() else 140
console = Console(width=WIDTH)
errors = Console(stderr=True, width=WIDTH)

Config = Annotated[Path | None, typer.Option("--config", help="Settings file; ls-propagate.toml where it exists.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@contextmanager
def _bars() -> Iterator[pipeline.Progress]:
    """Progress bars, on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as progress:

        def bar(what: str, total: int | None) -> Callable[[int], None]:
            task = progress.add_task(what, total=total)
            return lambda done: progress.advance(task, done)

        yield bar


@contextmanager
def _opened(config: Path | None) -> Iterator[tuple[Settings, Store]]:
    settings = load_settings(config)
    with pipeline.open_store(settings) as store:
        yield settings, store


@contextmanager
def _connected(config: Path | None) -> Iterator[tuple[Settings, Store, LabelStudioGateway]]:
    with _opened(config) as (settings, store), pipeline.open_gateway(settings) as gateway:
        yield settings, store, gateway


@app.command()
def connect(
    project: Annotated[str, typer.Argument(help="Number or title of an existing project.")],
    config: Config = None,
) -> None:
    """Connect a Label Studio project: check its labeling config, make the project where pages are answered."""
    with _connected(config) as (_, store, gateway):
        made = pipeline.connect(gateway, store, project)
        console.print(f"Connected project {made.project} ({made.title}).", markup=False)
        console.print(
            f"Annotators answer pages at {made.server}/projects/{made.pages}/data?labeling=1", soft_wrap=True
        )
        console.print(
            "Space submits a page for this account; for all accounts start Label Studio with\n"
            """  EDITOR_KEYMAP='{"annotation:submit":{"key":"space"}}'""",
            markup=False,
        )


@app.command()
def detect(
    config: Config = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read.")
    ] = False,
) -> None:
    """Find masks in the images that no person has annotated."""
    with _connected(config) as (settings, store, gateway), _bars() as bars:
        table, unreadable = pipeline.detect(gateway, store, settings, skip_unreadable, bars)
    for error in unreadable:
        errors.print(f"left out: {error}", markup=False)
    console.print(f"{len(table)} masks in {len(table.images)} images.")


@app.command()
def cluster(config: Config = None) -> None:
    """Cluster the masks of each category, and give Label Studio the predictions with their clusters."""
    with _connected(config) as (settings, store, gateway), _bars() as bars:
        trees, pushed = pipeline.cluster(gateway, store, settings, bars)
    console.print(f"{len(trees)} cluster trees; predictions of {pushed} images pushed now.")


@app.command()
def sync(
    config: Config = None,
    once: Annotated[bool, typer.Option("--once", help="One pass, then stop.")] = False,
    until_finished: Annotated[
        bool, typer.Option("--until-finished", help="Stop when the campaign has nothing left to ask.")
    ] = False,
) -> None:
    """Ask, read answers, decide and write back, until stopped. Safe to stop anywhere and start again."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with _connected(config) as (settings, store, gateway):
        daemon = pipeline.open_daemon(gateway, store, settings)
        if once:
            _tell(daemon.step())
        else:
            daemon.run(stop, settings.poll_seconds, _tell, until_finished)
        for line in undecided(daemon.campaign):
            console.print(line)


def undecided(campaign: Campaign) -> list[str]:
    """Why masks are left when nothing waits for an answer."""
    left = summarize(campaign)[-1].open
    if campaign.waiting_pages or not left:
        return []
    strategy = campaign.strategy
    return [
        f"{left} masks are undecided. The budget is spent, or their clusters have fewer masks than "
        f"strategy.least_size ({strategy.least_size}) or a mean score below strategy.split_below "
        f"({strategy.split_below:g})."
    ]


def _tell(step: Step) -> None:
    for problem in step.problems:
        errors.print(f"answer left out: {problem}", markup=False)
    if step.questions or step.decisions or step.pages or step.images_written:
        console.print(
            f"{step.questions} questions answered, {step.decisions} decisions, {step.pages} pages out, "
            f"{step.images_written} images written"
        )
    if step.finished:
        console.print("Nothing left to ask.")


@app.command()
def backend(config: Config = None) -> None:
    """Serve the segmenter as a Label Studio ML backend."""
    from waitress import serve

    from ml_backend.server import create_app
    from plugin.label_studio.images import decode

    settings = load_settings(config)
    password = settings.backend_password.get_secret_value() if settings.backend_password else None
    if settings.backend_host not in ("127.0.0.1", "localhost", "::1") and password is None:
        raise SettingsError(
            f"backend_host is {settings.backend_host}, which others can reach; set LS_PROPAGATE_BACKEND_PASSWORD"
        )
    segmenter, version = pipeline.load_segmenter(settings)
    with pipeline.open_gateway(settings) as gateway:

        def read(location: str) -> NDArray[np.uint8]:
            return decode(location, gateway.read_file(location))

        served = create_app(segmenter, version, read, settings.labels, password)
        console.print(f"{version} on http://{settings.backend_host}:{settings.backend_port}")
        serve(served, host=settings.backend_host, port=settings.backend_port, threads=4, _quiet=True)


@app.command()
def status(config: Config = None, as_json_: AsJson = False) -> None:
    """Show where the campaign stands."""
    with _opened(config) as (settings, store):
        campaign = pipeline.open_campaign(store, settings)
        rows = summarize(campaign)
        if as_json_:
            print(json.dumps(as_json(campaign, rows), indent=1))
            return
        console.print(summary_table(rows))
        console.print(f"{campaign.questions_asked} questions asked; {len(campaign.waiting_pages)} pages wait.")
        for line in undecided(campaign):
            console.print(line)
        console.print("The share right is an estimate from the answers, not a promise.")


def summary_table(rows: Sequence[Row]) -> Table:
    """The rows of a summary for the terminal."""
    table = Table()
    table.add_column("category")
    names = ("masks", "outdone", "questions", "accepted", "rejected", "open", "clusters", "right (estimate)")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        counts = (row.masks, row.outdone, row.questions, row.accepted, row.rejected, row.open)
        clusters = f"{row.clusters_accepted} / {row.clusters_rejected} / {row.clusters_open}"
        estimate = "–" if row.estimate is None else f"{row.estimate:.1%}"
        table.add_row(_plain(row.category), *map(str, counts), clusters, estimate)
    table.caption = "clusters: accepted / rejected / open"
    return table


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)


@app.command()
def export(file: Annotated[Path, typer.Argument(help="COCO file to write.")], config: Config = None) -> None:
    """Write the accepted masks as a COCO dataset."""
    with _opened(config) as (settings, store):
        made = pipeline.export_coco(pipeline.open_campaign(store, settings), store.source_tasks())
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(file.name + ".part")
    draft.write_text(json.dumps(made))
    draft.replace(file)
    console.print(
        f"{len(made['annotations'])} masks in {len(made['images'])} images: {file}", markup=False, soft_wrap=True
    )


@app.command()
def demo(
    dataset: Annotated[
        Path | None, typer.Option(help="Folder with pool/ and seed/ to use instead of generated scenes.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Where the demo keeps everything.")] = Path("demo-data"),
    report: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    images: Annotated[int, typer.Option(min=20, help="Generated scenes.")] = 420,
    budget: Annotated[int, typer.Option(min=0, help="Questions in all.")] = 1500,
    error_rate: Annotated[float, typer.Option(min=0, max=1, help="Of the simulated annotator.")] = 0.0,
    delay: Annotated[float, typer.Option(min=0, help="Seconds the annotator takes a page.")] = 0.0,
    seed: int = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave Label Studio running until Ctrl-C.")] = False,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Leave the pages to you; print address and login.")
    ] = False,
) -> None:
    """Start a Label Studio of its own and run the whole job in it, with a simulated annotator."""
    from ls_propagate.demo.run import Demo, run_demo

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    with _bars() as bars:
        run_demo(
            Demo(data, dataset, images, budget, error_rate, delay, seed, keep, interactive), report, console, bars
        )


def main() -> None:
    """Run the command line; errors that the product raises on purpose are said in words, exit code 1."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except PropagateError as error:
        errors.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
