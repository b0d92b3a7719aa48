"""The command line: ``ls-propagate``."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ls_propagate import clustering, logs, pipeline, recovery, service, training
from ls_propagate.doctor.examine import examine
from ls_propagate.models import Newest
from ls_propagate.plots import draw_ablation, draw_hours, draw_simulation
from ls_propagate.settings import STRATEGIES, Engine, Settings, UNetSettings, load_settings, secrets_outside
from ls_propagate.simulation import ablation as run_ablation
from ls_propagate.simulation import (
    choose_strategy,
    forecast,
    read_masks,
    trees_of,
)
from ls_propagate.tables import (
    ablation_table,
    finding_line,
    forecast_lines,
    forecast_table,
    quality_lines,
    quality_table,
    simulation_lines,
    simulation_table,
    summary_table,
    training_lines,
    undecided,
)
from plugin import web
from plugin.board import render
from plugin.label_studio.gateway import LabelStudioGateway
from plugin.label_studio.pages import KEYMAP
from propagation.calibrated import CalibratedStrategy
from propagation.campaign import Campaign
from propagation.errors import PropagateError, SettingsError
from propagation.events import CommandRefused
from propagation.paper import PaperStrategy
from propagation.progress import QUESTION_SECONDS
from propagation.quality import RIGHT_IOU
from propagation.simulate import World, simulate_many, summary_of
from propagation.summary import as_json, statement, summarize
from sync.board import Board, described
from sync.daemon import Step
from sync.monitor import Monitor
from sync.store import Store

log = logging.getLogger(__name__)

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
EngineName = Annotated[
    Engine | None, typer.Option("--engine", help="Where the work is done: in this process, or by Ray's workers.")
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Of Ray; else a GPU each, or a core.")]
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


def _settings(config: Path | None, **given: Any) -> Settings:
    """The settings, and logs as they say. given: options that win over the settings, but for None."""
    settings = load_settings(config, **{name: value for name, value in given.items() if value is not None})
    logs.configure(settings.log_format, settings.log_level, settings.secrets)
    return settings


@contextmanager
def _opened(config: Path | None, **given: Any) -> Iterator[tuple[Settings, Store]]:
    settings = _settings(config, **given)
    with pipeline.open_store(settings) as store:
        yield settings, store


@contextmanager
def _connected(config: Path | None, **given: Any) -> Iterator[tuple[Settings, Store, LabelStudioGateway]]:
    with _opened(config, **given) as (settings, store), pipeline.open_gateway(settings) as gateway:
        yield settings, store, gateway


@app.command()
def connect(
    project: Annotated[str, typer.Argument(help="Number or title of an existing project.")],
    config: Config = None,
) -> None:
    """Connect a Label Studio project: check its labeling config, make the project where pages are answered."""
    with _connected(config) as (settings, store, gateway):
        made = pipeline.connect(gateway, store, project, settings.ask)
        pipeline.show(gateway, store, settings)
        console.print(f"Connected project {made.project} ({made.title}).", markup=False)
        console.print(
            f"Annotators answer pages at {made.server}/projects/{made.pages}/data?labeling=1", soft_wrap=True
        )
        console.print(
            "Space submits a page for this account; for all accounts start Label Studio with\n"
            f"  EDITOR_KEYMAP='{json.dumps(KEYMAP, separators=(',', ':'))}'",
            markup=False,
            soft_wrap=True,
        )


@app.command()
def detect(
    config: Config = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read.")
    ] = False,
    further: Annotated[
        bool, typer.Option("--further", help="For a further round: look anew where something is open.")
    ] = False,
    engine: EngineName = None,
    workers: Workers = None,
) -> None:
    """Find masks in the images that no person has annotated."""
    with _connected(config, engine=engine, workers=workers) as (settings, store, gateway), _bars() as bars:
        table, unreadable = pipeline.detect(gateway, store, settings, skip_unreadable, bars, further)
    for error in unreadable:
        errors.print(f"left out: {error}", markup=False)
    console.print(f"{len(table)} masks in {len(table.images)} images.")


@app.command()
def cluster(config: Config = None, engine: EngineName = None, workers: Workers = None) -> None:
    """Cluster the masks of each category, and give Label Studio the predictions with their clusters."""
    with _connected(config, engine=engine, workers=workers) as (settings, store, gateway), _bars() as bars:
        trees, pushed = clustering.cluster(gateway, store, settings, bars)
        waits = store.fact("following") is not None
    console.print(f"{len(trees)} cluster trees; predictions of {pushed} images pushed now.")
    if waits:
        console.print("The next round begins with the daemon, once no page waits for its answers.")


@app.command()
def sync(
    config: Config = None,
    once: Annotated[bool, typer.Option("--once", help="One pass, then stop.")] = False,
    until_finished: Annotated[
        bool, typer.Option("--until-finished", help="Stop when the campaign has nothing left to ask.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for a campaign that has not begun yet.")] = False,
) -> None:
    """Ask, read answers, decide and write back, until stopped. Safe to stop anywhere and start again.

    A second one on the same store waits for the first to end.
    """
    stop, wake = threading.Event(), threading.Event()

    def end(*_: object) -> None:
        stop.set()
        wake.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    settings = _settings(config)
    monitor, board = Monitor(settings.poll_seconds), Board(settings.terms)
    with pipeline.open_store(settings) as store, pipeline.open_gateway(settings, monitor.called) as gateway:
        if once:
            with pipeline.writing(store):
                daemon = pipeline.open_daemon(gateway, store, settings)
                _tell(step := daemon.step())
                pipeline.open_overview(gateway, store, settings).look(daemon.history, step.finished)
                campaign: Campaign | None = daemon.campaign
        else:
            with service.serving(settings, store, monitor, wake.set, board) as port:
                console.print(f"Progress board: http://{settings.daemon_host}:{port}/board", soft_wrap=True)
                campaign = service.run(
                    settings, store, gateway, monitor, stop, wake, _teller(), until_finished, board, wait
                )
        for line in undecided(campaign) if campaign else ():
            console.print(line)


@app.command()
def rebuild(
    project: Annotated[str, typer.Argument(help="Number or title of the project that the campaign was about.")],
    config: Config = None,
) -> None:
    """Make a lost store again, from the mirror of its event log, or from what Label Studio still holds."""
    settings = _settings(config)
    with pipeline.open_gateway(settings) as gateway:
        for line in recovery.rebuild(gateway, settings, project):
            console.print(line, markup=False, soft_wrap=True)


def _teller() -> Callable[[Step], None]:
    """Tells pass after pass; that nothing is left to ask, once."""
    finished = False

    def tell(step: Step) -> None:
        nonlocal finished
        _tell(step, already=finished)
        finished = step.finished

    return tell


def _tell(step: Step, already: bool = False) -> None:
    for problem in step.problems:
        errors.print(f"answer left out: {problem}", markup=False)
    if step.questions or step.decisions or step.pages or step.images_written:
        console.print(
            f"{step.questions} questions answered, {step.decisions} decisions, {step.pages} pages out, "
            f"{step.images_written} images written"
        )
    if step.finished and not already:
        console.print("Nothing left to ask.")


@app.command()
def backend(config: Config = None) -> None:
    """Serve the segmenter as a Label Studio ML backend."""
    from ml_backend.server import create_app

    settings = _settings(config)
    password = settings.backend_password.get_secret_value() if settings.backend_password else None
    web.check_exposure(settings.backend_host, {"LS_PROPAGATE_BACKEND_PASSWORD": password})
    with (
        pipeline.open_store(settings) as store,
        closing(Newest(settings, store)) as model,
        pipeline.open_gateway(settings) as gateway,
    ):
        trainer = (
            training.Trainer(settings, store, config) if isinstance(settings.segmenter, UNetSettings) else None
        )
        start = trainer.start if trainer else None
        made = create_app(model, gateway.read_file, settings.labels, password, start)
        served = web.serve(made, settings.backend_host, settings.backend_port, "backend")
        console.print(f"{model()[1]} on http://{settings.backend_host}:{served.port}")
        try:
            served.wait()
        finally:
            served.close()
            if trainer:
                trainer.close()


@app.command()
def train(
    config: Config = None,
    again: Annotated[bool, typer.Option("--again", help="Begin anew, also where nothing has changed.")] = False,
    as_json_: AsJson = False,
) -> None:
    """Train the network on what people annotated and what the campaign accepted; detect and backend use it."""
    if hasattr(os, "nice"):
        os.nice(10)  # whatever else runs on this machine goes first
    with _connected(config) as (settings, store, gateway), _bars() as bars:
        made = training.train(gateway, store, settings, again, bars)
    if as_json_:
        print(json.dumps(asdict(made), indent=1))
        return
    for line in training_lines(made):
        console.print(line, markup=False, soft_wrap=True)


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
        console.print(statement(campaign))


@app.command()
def undo(
    targets: Annotated[
        list[str] | None,
        typer.Argument(help="Clusters (category/number), or decisions as the meta of a region names them."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Everything decided or commanded since a time, such as 2026-11-22T10:00.")
    ] = None,
    config: Config = None,
) -> None:
    """Take back decisions or commands, and what they wrote; never what a person drew or edited.

    Of a cluster, the latest command on it that stands; else its decision. What is undone stays so until new
    answers or a person say otherwise. A daemon that runs obeys, and takes out what was written in its next pass;
    where none runs, this does both itself.
    """
    with _connected(config) as (settings, store, gateway):
        wanted = pipeline.to_undo(store, settings, targets or [], since)
        if not wanted:
            console.print("Nothing was decided or commanded since then that still stands.")
            return
        done = service.command(settings, store, gateway, wanted)
    for event in done:
        told = f"Undone: {event.target}"
        if isinstance(event, CommandRefused):
            told = f"Not undone: {event.target}: {event.why}"
        console.print(told, markup=False, soft_wrap=True)
    if len(done) < len(wanted):
        console.print("The daemon is busy; it obeys as soon as it looks into its inbox.")
    if any(isinstance(event, CommandRefused) for event in done):
        raise typer.Exit(1)


@app.command()
def report(
    html: Annotated[Path, typer.Option("--html", metavar="FILE", help="The page to write.")],
    config: Config = None,
) -> None:
    """Write the progress board as one page to send: no server, no script and no network is needed to read it."""
    with _opened(config) as (settings, store):
        history, place = pipeline.open_history(store, settings), pipeline.place_of(store, settings)
        page = render.file(described(history, settings.terms, place, datetime.now(UTC)))
    html.parent.mkdir(parents=True, exist_ok=True)
    draft = html.with_name(html.name + ".part")
    draft.write_text(page, "utf-8")
    draft.replace(html)
    console.print(f"The board: {html}", markup=False, soft_wrap=True)


@app.command()
def quality(
    config: Config = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Accepted masks to be drawn by an expert.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Draw another sample, in another project.")] = False,
    as_json_: AsJson = False,
) -> None:
    """Measure the accepted masks against outlines that an expert draws, without seeing them, of a random sample.

    The first run makes the project; every later one reads what is drawn so far.
    """
    with _connected(config) as (settings, store, gateway):
        told = pipeline.quality(gateway, store, settings, sample, new)
    if as_json_:
        print(json.dumps(told, indent=1))
        return
    console.print(quality_table(told))
    for line in quality_lines(told):
        console.print(line, markup=False, soft_wrap=True)


@app.command()
def export(file: Annotated[Path, typer.Argument(help="COCO file to write.")], config: Config = None) -> None:
    """Write the accepted masks as a COCO dataset."""
    with _opened(config) as (settings, store):
        campaign = pipeline.open_campaign(store, settings)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(file.name + ".part")
        with draft.open("w", encoding="utf-8") as written:
            masks, images = pipeline.export_coco(campaign, store.source_tasks(), written)
        draft.replace(file)
    console.print(f"{masks} masks in {images} images: {file}", markup=False, soft_wrap=True)


@app.command()
def doctor(config: Config = None, as_json_: AsJson = False) -> None:
    """Check all that a campaign rests on, and say what to do about what is bad; then the exit code is 1."""
    with suppress(SettingsError):  # which is a finding
        _settings(config)
    found = []
    for finding in examine(config):
        found.append(finding)
        if not as_json_:
            console.print(finding_line(finding), soft_wrap=True)
    if as_json_:
        print(json.dumps({"findings": [asdict(finding) for finding in found]}, indent=1))
    if any(finding.state == "bad" for finding in found):
        raise typer.Exit(1)


@app.command()
def backup(file: Annotated[Path, typer.Argument(help="File to write.")], config: Config = None) -> None:
    """Write the store and its artefacts to one file; a daemon may run meanwhile."""
    from sync.backup import backup as write

    with _opened(config) as (settings, store):
        pipeline.connection_of(store)  # nothing is worth a backup before
        write(store, settings.artefacts, file)
    console.print(f"{file.stat().st_size / 1e6:,.1f} MB: {file}", markup=False, soft_wrap=True)


@app.command()
def restore(file: Annotated[Path, typer.Argument(help="A backup.")], config: Config = None) -> None:
    """Fill an empty store, and its folder of artefacts, from a backup."""
    from sync.backup import restore as read

    with _opened(config) as (settings, store):
        read(file, store, settings.artefacts)
        url = store.url
    console.print(f"Restored {url} and {settings.artefacts} from {file}.", markup=False, soft_wrap=True)


simulations = typer.Typer(invoke_without_command=True)
app.add_typer(simulations, name="simulate")

Predictions = Annotated[Path | None, typer.Option("--predictions", help="COCO results, .json or .json.gz.")]
Features = Annotated[Path | None, typer.Option("--features", help="Deep features, .npy, a row a prediction.")]
GroundTruth = Annotated[
    Path | None, typer.Option("--ground-truth", help='COCO; not needed where each prediction bears "iou".')
]
Setting = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the strategy; repeatable.")
]
RightIou = Annotated[float, typer.Option("--iou", min=0, max=1, help="A mask is right above this IoU.")]
Target = Annotated[float, typer.Option("--target", min=0, max=1, help="The share of right masks wanted.")]
Confidence = Annotated[float, typer.Option("--confidence", min=0, max=1, help="The chance that a promise holds.")]


@simulations.callback()
def simulate(
    context: typer.Context,
    predictions: Predictions = None,
    features: Features = None,
    ground_truth: GroundTruth = None,
    strategy: Annotated[str, typer.Option(help=f"One of {', '.join(STRATEGIES)}.")] = "calibrated",
    setting: Setting = None,
    budget: Annotated[
        int | None, typer.Option(min=0, help="Questions in all, gold included; else the strategy's own end.")
    ] = None,
    target: Target = 0.85,
    confidence: Confidence = 0.95,
    iou: RightIou = RIGHT_IOU,
    scope: Annotated[str, typer.Option(help="What the promise is about: campaign or category.")] = "campaign",
    seeds: Annotated[int, typer.Option(min=1, help="Campaigns that are simulated.")] = 20,
    miss: Annotated[float, typer.Option(min=0, max=1, help="How often annotators say yes to a wrong mask.")] = 0.0,
    false_alarm: Annotated[
        float, typer.Option(min=0, max=1, help="How often annotators say no to a right mask.")
    ] = 0.0,
    gold: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the questions whose answer is known before.")
    ] = 0.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write all runs as JSON.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw the runs as PNGs there.")] = None,
) -> None:
    """Simulate campaigns on predictions with a known truth, to see what a strategy brings before anybody is asked.

    The paper's rule is "paper"; its settings are as published unless --set says otherwise.
    """
    if context.invoked_subcommand is not None:
        if predictions is not None:
            raise typer.BadParameter(f"put the options after {context.invoked_subcommand}")
        return
    rule = choose_strategy(
        strategy,
        _settings_of(setting),
        budget=budget,
        target=target,
        confidence=confidence,
        scope=scope,
        rates="gold" if gold else "known",
    )
    with _bars() as bars:
        table, found = read_masks(_named(predictions), features, ground_truth)
        world = World(table, trees_of(table, None, bars), found, target, iou, miss, false_alarm, gold)
        begin = time.monotonic()
        runs = simulate_many(world, rule, range(seeds), None, bars("campaigns", seeds))
        told = summary_of(world, rule, runs, time.monotonic() - begin)
    console.print(simulation_table(world, runs))
    for line in simulation_lines(world, rule, told):
        console.print(line)
    if json_file is not None:
        _write_json(json_file, told)
        console.print(f"All runs: {json_file}", markup=False, soft_wrap=True)
    if plots is not None:
        for file in draw_simulation(world, runs, plots):
            console.print(f"Drawn: {file}", markup=False, soft_wrap=True)


@simulations.command()
def ablation(
    plots: Annotated[Path, typer.Option(metavar="DIR", help="Draw ablation.png and hours.png there.")],
    predictions: Predictions = None,
    features: Features = None,
    ground_truth: GroundTruth = None,
    setting: Setting = None,
    budget: Annotated[int, typer.Option(min=1, help="Questions at which the curves end.")] = 3000,
    target: Target = 0.85,
    confidence: Confidence = 0.95,
    iou: RightIou = RIGHT_IOU,
    seeds: Annotated[int, typer.Option(min=1, help="Campaigns a curve.")] = 5,
) -> None:
    """Draw the paper's ablation on these predictions: features, search and K_pa against annotated clusters.

    Another figure has the masks against hours of answering, beside drawing by hand. --set is of the
    paper's strategy.
    """
    rule = choose_strategy("paper", _settings_of(setting), budget=budget)
    beside = choose_strategy("calibrated", budget=budget, target=target, confidence=confidence)
    assert isinstance(rule, PaperStrategy)
    assert isinstance(beside, CalibratedStrategy)
    with _bars() as bars:
        table, found = read_masks(_named(predictions), features, ground_truth)
        curves = run_ablation(World(table, [], found, target, iou), rule, beside, range(seeds), bars)
    console.print(ablation_table(curves))
    for file in (draw_ablation(curves, rule, plots), draw_hours(curves, plots)):
        console.print(f"Drawn: {file}", markup=False, soft_wrap=True)


def _named(predictions: Path | None) -> Path:
    if predictions is None:
        raise typer.BadParameter("name the predictions, COCO results", param_hint="--predictions")
    return predictions


def _settings_of(given: Sequence[str] | None) -> dict[str, str]:
    """KEY=VALUE apart. Raises SettingsError for anything else."""
    settings = {}
    for one in given or ():
        key, equals, value = one.partition("=")
        if not equals:
            raise SettingsError(f"--set {one}: write it as KEY=VALUE")
        settings[key.strip()] = value.strip()
    return settings


def _write_json(file: Path, content: Any) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(file.name + ".part")
    draft.write_text(json.dumps(content, indent=1, allow_nan=False))
    draft.replace(file)


@app.command()
def plan(
    config: Config = None,
    seeds: Annotated[int, typer.Option(min=1, help="Plausible truths that are simulated.")] = 20,
    seconds: Annotated[
        float, typer.Option(min=0, help="A question, where no annotator was timed yet.")
    ] = QUESTION_SECONDS,
    as_json_: AsJson = False,
) -> None:
    """Forecast masks, questions and hours of the campaign, for some budgets, from the verdicts so far."""
    with _opened(config) as (settings, store):
        campaign = pipeline.open_campaign(store, settings)
        with _bars() as bars:
            told = forecast(campaign, seeds, seconds, None, bars)
    if as_json_:
        print(json.dumps(told, indent=1))
        return
    console.print(forecast_table(told))
    for line in forecast_lines(told):
        console.print(line)


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
    """Run the command line; exit code 1 after an error: in words where the product raises it on purpose."""
    logs.configure(secrets=secrets_outside())
    try:
        app()
    except PropagateError as error:
        errors.print(logs.hidden(f"error: {error}"), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except Exception:
        log.critical("a fault of the product; please report it", exc_info=True)  # as a log, it shows no secret
        sys.exit(1)
