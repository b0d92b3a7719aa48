"""What the command line prints: tables, and lines beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from ls_propagate.doctor.case import Finding
from ls_propagate.simulation import Curve
from ls_propagate.training import Trained
from propagation.calibrated import CalibratedStrategy
from propagation.campaign import Campaign
from propagation.progress import DRAWING_SECONDS, QUESTION_SECONDS
from propagation.simulate import Run, World
from propagation.strategies import Strategy
from propagation.summary import Row, summarize


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


def undecided(campaign: Campaign) -> list[str]:
    """Why masks are left when nothing waits for an answer."""
    left = summarize(campaign)[-1].open
    if campaign.waiting_pages or not left:
        return []
    return [f"{left} masks are undecided. {campaign.search.leftover()}."]


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


def quality_table(told: dict[str, Any]) -> Table:
    """What an expert's outlines say, a row a category, for the terminal. told: of ``sync.sample.report``."""
    table = Table(title="As an expert draws them")
    table.add_column("category")
    for name in ("drawn", "no such object", "SQ (mean IoU)", "of one object", "right"):
        table.add_column(name, justify="right")
    for row in [*told["categories"], told["total"]]:
        table.add_row(
            _plain(row["category"]),
            str(row["drawn"]),
            str(row["none"]),
            _within(row["sq"], row["sq_low"], row["sq_high"]),
            _within(row["matched"], None, None),
            _within(row["right_share"], row["right_low"], row["right_high"]),
            end_section=row is told["categories"][-1],
        )
    table.caption = "with 95 % intervals; of one object: the mean of IoUs above 0.5 alone; right: IoU above 0.75"
    return table


def _within(share: float | None, low: float | None, high: float | None) -> str:
    if share is None:
        return "–"
    return f"{share:.1%}" if low is None else f"{share:.1%} ({low:.1%} – {high:.1%})"


def quality_lines(told: dict[str, Any]) -> list[str]:
    """What the table of an expert's outlines leaves out. told: of ``sync.sample.report``."""
    lines = [
        f"{told['total']['drawn']} of {told['sample']} masks drawn, a random sample of {told['of']:,} accepted "
        f"ones; draw at {told['address']}",
        told["statement"],
    ]
    if told["taken_back"]:
        lines.append(f"{told['taken_back']} of the sample were taken back since, and are left out.")
    if told["accepted_since"]:
        lines.append(
            f"{told['accepted_since']:,} masks were accepted since, of which the sample tells nothing; for one of "
            "all, add --new."
        )
    return lines + [f"left out: {problem}" for problem in told["problems"]]


def finding_line(finding: Finding) -> Text:
    """What a check found, and what to do about it, on one line."""
    colour = {"good": "green", "doubtful": "yellow", "bad": "bold red"}[finding.state]
    remedy = f"; {finding.remedy}" if finding.remedy else ""
    said = " ".join(f"{finding.said}{remedy}".split())
    return Text.assemble((f"{finding.state:<9}", colour), (f"{finding.name}: ", "bold"), said)


def training_lines(made: Trained) -> list[str]:
    """What a training came to, and what it learned from."""
    held = made.held_out
    learned = f"learned from {made.objects:,} objects in {made.images:,} annotated images"
    if made.accepted:
        learned += f", and {made.accepted:,} accepted masks in {made.accepted_images:,} others"
    return [
        f"{made.version}: {learned}."
        if made.new
        else f"Nothing has changed since {made.version} was trained; --again trains anew.",
        f"In {held['images']} annotated images held out, {held['right']:,} of {held['objects']:,} objects are "
        f"found right, with {held['masks']:,} masks.",
    ]


def _plain(text: str) -> Text:
    return Text(text)
