"""Plots of simulations, as PNG files; matplotlib is loaded where something is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ls_propagate.simulation import ORACLE, ROWS, Curve
from propagation.calibrated import CalibratedStrategy
from propagation.paper import PaperStrategy
from propagation.progress import DRAWING_SECONDS, QUESTION_SECONDS
from propagation.simulate import Run, World

# Okabe and Ito's colours, which colour-blind people can tell apart, without their yellow
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
BLACK = "#000000"
CALIBRATED = CalibratedStrategy.name
MOST_BARS = 30  # categories that are still told apart as bars
DPI = 100


def draw_simulation(world: World, runs: Sequence[Run], folder: Path) -> list[Path]:
    """Draw masks against questions, the precision at the end, and where they are few the categories' yield."""
    files = [
        _draw_masks(world, runs, folder / "masks.png"),
        _draw_precision(world, runs, folder / "precision.png"),
    ]
    best = world.table.best
    right = np.bincount(world.table.category[best & world.right], minlength=len(world.table.categories))
    if len(right) <= MOST_BARS:
        files.append(_draw_yield(world, runs, right, folder / "yield.png"))
    return files


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _save(figure: Any, file: Path) -> Path:
    """Write a figure whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(file.name + ".part")
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    # a palette is enough for lines, and takes a third of the bytes
    Image.open(drawn).convert("RGB").quantize(256).save(draft, "PNG", optimize=True)
    draft.replace(file)
    return file


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def _draw_masks(world: World, runs: Sequence[Run], file: Path) -> Path:
    figure = _figure(9, 5.5)
    axes = figure.add_subplot()
    most = max(run.total.questions for run in runs)
    grid = np.linspace(0, float(max(most, 1)), 200, dtype=np.float64)
    for place, name in ((1, "accepted masks"), (2, "right ones among them")):
        curves = np.array([_steps(run.curve, grid, place) for run in runs])
        low, middle, high = np.quantile(curves, [0.1, 0.5, 0.9], axis=0)
        colour = COLOURS[place - 1]
        axes.fill_between(grid, low, high, step="post", color=colour, alpha=0.2, linewidth=0)
        axes.step(grid, middle, where="post", color=colour, linewidth=2, label=name)
    total = int((world.right & world.table.best).sum())
    axes.axhline(total, color=BLACK, linewidth=1, linestyle="--", label=f"right masks there are ({total:,})")
    axes.set(xlabel="questions", ylabel="masks", xlim=(0, max(most, 1)), ylim=(0, None))
    axes.set_title(f"Median of {len(runs)} campaigns; bands hold 10 to 90 % of them")
    axes.legend(frameon=False, loc="lower right")
    _tidy(axes)
    return _save(figure, file)


def _steps(curve: Sequence[tuple[int, int, int]], grid: NDArray[np.float64], place: int) -> NDArray[np.float64]:
    """(len(grid),) what a run had at a number of questions; it keeps what it ended with."""
    points = np.array([(0, 0, 0), *curve], dtype=np.float64)
    return points[np.searchsorted(points[:, 0], grid, side="right") - 1, place]


def _draw_precision(world: World, runs: Sequence[Run], file: Path) -> Path:
    figure = _figure(9, 5)
    axes = figure.add_subplot()
    found = [run.total.precision for run in runs if run.total.precision is not None]
    axes.hist(found, bins=np.arange(0, 1.0001, 0.01).tolist(), color=COLOURS[0], edgecolor="white", linewidth=0.4)
    axes.axvline(world.target, color=COLOURS[1], linewidth=2, label=f"target {world.target:g}")
    low = min([world.target, *found])
    axes.set(xlabel="share of right masks among the accepted at the end", ylabel="campaigns")
    axes.set_xlim(max(0.0, low - 0.05), 1.0)
    axes.yaxis.get_major_locator().set_params(integer=True)
    nothing = len(runs) - len(found)
    axes.set_title(f"{len(runs)} campaigns; {nothing} accepted nothing")
    axes.legend(frameon=False, loc="upper left")
    _tidy(axes)
    return _save(figure, file)


def _draw_yield(world: World, runs: Sequence[Run], right: NDArray[np.int64], file: Path) -> Path:
    names = [name for name, count in zip(world.table.categories, right.tolist(), strict=True) if count]
    counts = right[right > 0]
    found = np.array([[run.categories[name].right for name in names] for run in runs]).reshape(len(runs), -1)
    shares = found / counts
    middle = shares.mean(axis=0)
    low, high = np.quantile(shares, [0.1, 0.9], axis=0) if len(names) else (middle, middle)
    figure = _figure(9, 1.6 + 0.35 * max(len(names), 1))
    axes = figure.add_subplot()
    place = np.arange(len(names))[::-1]
    axes.barh(place, middle, color=COLOURS[0], height=0.7)
    axes.hlines(place, low, high, color=BLACK, linewidth=2)
    told = [f"{name} ({count:,})" for name, count in zip(names, counts.tolist(), strict=True)]
    axes.set_yticks(place, told, parse_math=False)  # a category's name is no formula
    axes.set(xlim=(0, 1), xlabel="yield: accepted right masks ÷ right masks there are (their number in brackets)")
    axes.set_title(f"Mean of {len(runs)} campaigns; lines hold 10 to 90 % of them")
    _tidy(axes)
    return _save(figure, file)


COLUMNS = (
    ("good", "high-quality clusters"),
    ("masks", "annotation quantity\n(accepted masks)"),
    ("quality", "annotation quality\n(mean IoU of accepted masks)"),
)
TITLES = {"features": "Clustering, by features", "search": "Searching, by algorithm", "K_pa": "Selecting, by K_pa"}


def draw_ablation(curves: Sequence[Curve], strategy: PaperStrategy, folder: Path) -> Path:
    """Draw ``ablation.png``: three rows by three columns against annotated clusters, log-log."""
    figure = _figure(16, 12)
    axes = figure.subplots(len(ROWS), len(COLUMNS), sharex=True, sharey="col")
    for across, row in zip(axes, ROWS, strict=True):
        here = [curve for curve in curves if curve.row == row]
        for panel, (figures, title) in zip(across, COLUMNS, strict=True):
            for place, curve in enumerate(here):
                if (figures, curve.name) == ("good", CALIBRATED):
                    continue  # it accepts masks, whose clusters are of any number
                _draw_curve(panel, curve, place, getattr(curve, figures))
            panel.set_xscale("log")
            if any((getattr(curve, figures) > 0).any() for curve in curves):
                panel.set_yscale("log")
            panel.set_xlabel("annotated clusters", fontsize=12)
            panel.set_ylabel(title, fontsize=12)
            panel.tick_params(labelsize=11, labelbottom=True)
            _tidy(panel)
        across[1].set_title(TITLES[row], fontsize=15, fontweight="bold")
        across[-1].legend(frameon=False, fontsize=12, loc="center left", bbox_to_anchor=(1.02, 0.5))
    _plain_ticks([panel for across in axes for panel in across[2:]])
    figure.supxlabel(
        f"Means over seeds. High-quality: an accepted cluster whose masks are right with a share of "
        f"{strategy.accept_at:g} or more. “True IoU”: it takes the place of the mask score.\n"
        "calibrated: each point is the end of a campaign of its own, where the search by score has asked as many "
        "questions; it accepts masks, not clusters, so it is not in the first column.",
        fontsize=12,
    )
    return _save(figure, folder / "ablation.png")


def _draw_curve(panel: Any, curve: Curve, place: int, values: NDArray[np.float64]) -> None:
    if curve.name == CALIBRATED:
        style: dict[str, Any] = {"color": BLACK, "linestyle": "--", "marker": "*", "markersize": 9, "zorder": 3}
    else:
        style = {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[place % len(MARKERS)],
            "markersize": 5,
            "markevery": (place % 4, 6),
            "linestyle": ":" if curve.name.endswith(ORACLE) else "-",
        }
    seen = np.isfinite(values) & (values > 0)
    # later lines are thinner, so that those below them show where they lie on each other
    width = 2.0 if curve.name == CALIBRATED else max(1.4, 4.2 - 0.5 * place)
    panel.plot(curve.clusters[seen], values[seen], linewidth=width, label=curve.name, **style)


def _plain_ticks(panels: Sequence[Any]) -> None:
    """Write a log axis of less than a decade in plain numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for panel in panels:
        panel.yaxis.set_major_locator(MaxNLocator(6))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def draw_hours(curves: Sequence[Curve], folder: Path) -> Path:
    """Draw ``hours.png``: accepted masks against hours of answering, beside drawing by hand, log-log."""
    figure = _figure(11, 7)
    axes = figure.add_subplot()
    named = {(curve.row, curve.name): curve for curve in curves}
    shown = [
        ("the paper's rule", named.get(("search", "score")), COLOURS[1], "-"),
        (CALIBRATED, named.get(("search", CALIBRATED)), BLACK, "--"),
    ]
    ends = []
    for name, curve, colour, line in shown:
        if curve is None:
            continue
        hours = curve.questions * QUESTION_SECONDS / 3600
        seen = (curve.masks > 0) & (hours > 0)
        if not seen.any():
            continue
        precision = curve.right[seen][-1] / curve.masks[seen][-1]
        label = f"{name} ({precision:.0%} right at the end)"
        axes.plot(hours[seen], curve.masks[seen], color=colour, linestyle=line, linewidth=2.2, label=label)
        ends.append((hours[seen].min(), hours[seen].max()))
    begin, end = (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (0.01, 1.0)
    span = np.geomspace(begin, max(end, begin * 1.1), 50)
    label = f"drawing by hand, {DRAWING_SECONDS:g} s a mask"
    axes.plot(span, span * 3600 / DRAWING_SECONDS, color=COLOURS[0], linewidth=2.2, linestyle="-.", label=label)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel(f"hours, at {QUESTION_SECONDS:g} s a question", fontsize=13)
    axes.set_ylabel("annotation quantity (accepted masks)", fontsize=13)
    axes.tick_params(labelsize=12)
    axes.set_title("Masks against hours; both paces are the paper's", fontsize=14)
    axes.legend(frameon=False, fontsize=13, loc="best")
    _tidy(axes)
    return _save(figure, folder / "hours.png")
