"""The command line: ``ls-propagate``."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
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
from ls_propagate.plots import draw_ablation, draw_hours, draw_simulation
from ls_propagate.settings import STRATEGIES, Settings, load_settings
from ls_propagate.simulation import (
    DRAWING_SECONDS,
    QUESTION_SECONDS,
    Curve,
    choose_strategy,
    forecast,
    read_masks,
    trees_of,
)
from ls_propagate.simulation import ablation as run_ablation
from plugin.label_studio.gateway import LabelStudioGateway
from propagation.calibrated import CalibratedStrategy
from propagation.campaign import Campaign
from propagation.errors import PropagateError, SettingsError
from propagation.paper import PaperStrategy
from propagation.quality import RIGHT_IOU
from propagation.simulate import Run, World, simulate_many, summary_of
from propagation.strategies import Strategy
from propagation.summary import Row, as_json, statement, summarize
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
    return [f"{left} masks are undecided. {campaign.search.leftover()}."]


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
        console.print(statement(campaign))


def summary_table(rows: Sequence[Row]) -> Table:
    """The rows of a summary for the terminal."""
    table = Table()
    table.add_column("category")
    names = (
        "masks", "outdone", "questions", "accepted", "rejected", "open", "clusters", "right (estimate)", "proven",
    )  # fmt: skip
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        counts = (row.masks, row.outdone, row.questions, row.accepted, row.rejected, row.open)
        clusters = f"{row.clusters_accepted} / {row.clusters_rejected} / {row.clusters_open}"
        shares = ("–" if share is None else f"{share:.1%}" for share in (row.estimate, row.bound))
        table.add_row(_plain(row.category), *map(str, counts), clusters, *shares)
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


def ablation_table(curves: Sequence[Curve]) -> Table:
    """What each curve has come to at 10, 30 and 100 annotated clusters and at its end, for the terminal."""
    table = Table()
    for name in ("row", "curve"):
        table.add_column(name)
    for name in ("at 10 clusters", "at 30", "at 100", "at its end"):
        table.add_column(name, justify="right")
    for curve in curves:
        cells = []
        for most in (10, 30, 100, np.inf):
            place = int(np.searchsorted(curve.clusters, most, side="right")) - 1
            if place < 0 or not curve.masks[place]:
                cells.append("–")
                continue
            share = curve.right[place] / curve.masks[place]
            good = "" if curve.name == CalibratedStrategy.name else f"{curve.good[place]:.1f} "
            cells.append(f"{good}{curve.masks[place]:,.0f} {share:.0%} {curve.quality[place]:.3f}")
        table.add_row(curve.row, curve.name, *cells)
    table.caption = "high-quality clusters, accepted masks, right among them, mean IoU; means over seeds"
    return table


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


def simulation_table(world: World, runs: Sequence[Run]) -> Table:
    """The mean over runs of each category and of all, for the terminal."""
    table = Table()
    table.add_column("category")
    names = ("masks", "right", "questions", "accepted", "precision", "worst", "yield", "SQ")
    for name in names:
        table.add_column(name, justify="right")
    best = world.table.best
    for place, name in [*enumerate(world.table.categories), (None, "total")]:
        here = best if place is None else best & (world.table.category == place)
        if place is not None and not here.any():
            continue
        told = [run.total if place is None else run.categories[name] for run in runs]
        right = int((here & world.right).sum())
        precisions = [one.precision for one in told if one.precision is not None]
        quality = [one.sq for one in told if one.sq is not None]
        means = [np.mean([getattr(one, kind) for one in told]) for kind in ("questions", "accepted", "right")]
        table.add_row(
            _plain(name),
            f"{int(here.sum()):,}",
            f"{right:,}",
            f"{means[0]:,.0f}",
            f"{means[1]:,.0f}",
            f"{np.mean(precisions):.1%}" if precisions else "–",
            f"{min(precisions):.1%}" if precisions else "–",
            f"{means[2] / right:.1%}" if right else "–",
            f"{np.mean(quality):.1%}" if quality else "–",
            end_section=place == len(world.table.categories) - 1,
        )
    table.caption = (
        f"means over {len(runs)} campaigns, worst of them; masks that a better one outdoes are left out; "
        "gold questions are in the total alone"
    )
    return table


def simulation_lines(world: World, strategy: Strategy, told: dict[str, Any]) -> list[str]:
    """What the runs say together, in words. told: of ``summary_of``."""
    runs = told["runs"]
    kept = sum(not run["wrong_ever"] for run in runs)
    nothing = sum(run["accepted"] == 0 for run in runs)
    questions, accepted = (float(np.mean([run[name] for run in runs])) for name in ("questions", "accepted"))
    lines = [
        f"Strategy {strategy.name}: its figures are called {told['claim']}s.",
        f"Yield: {told['yield']:.1%} of the {told['right_total']:,} right masks, "
        f"{told['masks_per_question']:.1f} masks a question.",
        f"Promise kept (never under {world.target:.0%} right after any write) in {kept} of {len(runs)} campaigns; "
        f"nothing accepted in {nothing}.",
        f"{questions * QUESTION_SECONDS / 3600:.2f} hours at {QUESTION_SECONDS:g} s a question, beside "
        f"{accepted * DRAWING_SECONDS / 3600:,.1f} hours to draw as many masks by hand at "
        f"{DRAWING_SECONDS:g} s each; both figures are the paper's, nobody was timed here.",
    ]
    if (world.miss or world.false_alarm) and isinstance(strategy, CalibratedStrategy) and strategy.perfect:
        lines.append(
            "The annotators err, and the strategy takes them not to; add --gold 0.1, or tell it with "
            f"--set miss={world.miss:g} --set false_alarm={world.false_alarm:g}."
        )
    return [*lines, f"Simulated in {told['seconds']:.0f} s."]


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


def forecast_table(told: dict[str, Any]) -> Table:
    """A row a budget, for the terminal. told: of ``forecast``."""
    table = Table(title="Forecast")
    for name in ("budget", "masks", "right", "questions", "hours", "questions left", "hours left"):
        table.add_column(name, justify="right")
    for row in told["budgets"]:
        marked = " (set)" if row["budget"] == told["budget"] else ""
        cells = ["none" if row["budget"] is None else f"{row['budget']:,}"]
        for name, form in (
            ("masks", ",.0f"),
            ("right", ",.0f"),
            ("questions", ",.0f"),
            ("hours", ",.2f"),
            ("questions_left", ",.0f"),
            ("hours_left", ",.2f"),
        ):
            if row[name] is None:
                cells.append("–")
                continue
            low, middle, high = (format(row[name][part], form) for part in ("low", "expected", "high"))
            cells.append(f"{middle}\n{low} – {high}")
        table.add_row(cells[0] + marked, *cells[1:])
    table.caption = f"mean, and 10 to 90 % of {told['draws']} campaigns simulated on plausible truths"
    return table


def forecast_lines(told: dict[str, Any]) -> list[str]:
    """What the forecast rests on, in words. told: of ``forecast``."""
    pace = f"{told['seconds_a_question']:.3g} s a question"
    if told["learned_from"] == "verdicts":
        basis = f"It is learned from {told['verdicts']:,} verdicts."
    else:
        basis = (
            f"With {told['verdicts']:,} verdicts there is too little to learn from: the mask scores are taken for "
            "probabilities, and may be off. Ask for it again once some pages are answered."
        )
    measured = "the median of the pages answered" if told["seconds_measured"] else "as given; nobody was timed yet"
    begun = "; it keeps the budget that it began with, the other rows are of campaigns begun anew"
    return [
        f"{told['questions_asked']:,} questions asked so far, {told['accepted']:,} masks accepted"
        f"{begun if told['questions_asked'] else ''}.",
        basis,
        f"Hours are at {pace}, {measured}.",
        f"A forecast, not a promise; the strategy {told['strategy']} itself gives "
        f"{'a promise' if told['claim'] == 'promise' else 'an estimate'}.",
    ]


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
