"""The progress board as a page, from its document: served and kept up to date, or one file to send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from plugin.board.advice import advice
from plugin.board.charts import Line, lines, short, stacked

#: What the served page may load: its own style sheet, script and figures, and nothing inline.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MOST_ROWS = 12  # of the table beside a chart
NONE = "–"


def page(document: Mapping[str, Any], version: str) -> str:
    """The page that the daemon serves; its script asks for a newer version by itself."""
    return _rendered(document, version=version, style=None)


def file(document: Mapping[str, Any]) -> str:
    """The same page as one file, without a script."""
    return _rendered(document, version=None, style=Markup(asset("board.css")))  # noqa: S704  our own


def picture(document: Mapping[str, Any]) -> str:
    """The progress as a small SVG by itself; document: as ``propagation.progress`` makes it."""
    chart = lines(_curves(document, "questions"), "questions answered", ["wide"])
    template = _environment().get_template("picture.svg")
    return template.render(**document, expected=_expected(document), chart=chart)


def in_words(document: Mapping[str, Any]) -> str:
    """What the picture shows, for who cannot see it."""
    masks = document["masks"]
    told = [
        f"{number(masks['accepted'])} of {number(masks['found'])} masks accepted",
        f"{number(document['questions']['answered'])} questions answered",
        _expected(document),
        moment(document["at"]),
    ]
    return "; ".join(filter(None, told))


def _expected(document: Mapping[str, Any]) -> str:
    """The forecast in words, or none."""
    end = document["forecast"]["end"]
    if end is None:
        return ""
    more = end["questions"] - document["questions"]["answered"]
    return f"some {number(end['accepted'])} masks expected after {number(more)} more"


def waiting(reason: str) -> str:
    """The page while there are no figures here."""
    return _environment().get_template("waiting.html").render(reason=reason)


@cache
def asset(name: str) -> str:
    """The style sheet or the script."""
    return files(__package__).joinpath(name).read_text("utf-8")


def _rendered(document: Mapping[str, Any], **more: Any) -> str:
    return (
        _environment()
        .get_template("board.html")
        .render(
            **document,
            **more,
            advice=advice(document),
            by_questions=_by_questions(document),
            by_hours=_by_hours(document),
            by_size=_by_size(document),
            milestones=_thinned(document["history"]),
            size_names=[size_name(low, high) for low, high in document["clusters"]["sizes"]],
        )
    )


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("plugin.board", "."),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(number=number, share=share, decimal=decimal, hours=hours, money=money, moment=moment)
    return made


# charts


def _by_questions(document: Mapping[str, Any]) -> Markup:
    return lines(_curves(document, "questions"), "questions answered")


def _by_hours(document: Mapping[str, Any]) -> Markup:
    drawn = _curves(document, "hours")
    end = max((x for line in drawn for x, _ in line.points), default=0)
    by_hand = end * 3600 / document["work"]["drawing_seconds"]
    drawn.append(Line("by-hand", [(0, 0), (end, by_hand)] if end else []))
    if end >= 2:
        return lines(drawn, "hours of answering")
    in_minutes = [Line(line.kind, [(60 * x, y) for x, y in line.points]) for line in drawn]
    return lines(in_minutes, "minutes of answering")


def _curves(document: Mapping[str, Any], axis: str) -> list[Line]:
    """What was accepted, in steps; what is expected; and what is wanted."""
    points = [(point[axis], point["accepted"]) for point in document["history"]]
    stepped = points[:1]
    for (_, before), (x, now) in pairwise(points):
        stepped += [(x, before), (x, now)] if now != before else [(x, now)]
    ahead = [(point[axis], point["accepted"]) for point in document["forecast"]["points"]]
    end = max((x for x, _ in [*points, *ahead]), default=0)
    wanted = document["masks"]["wanted"]
    return [
        Line("wanted", [(0, wanted), (end, wanted)] if wanted and end else []),
        Line("forecast", ahead),
        Line("accepted", stepped),
    ]


def _by_size(document: Mapping[str, Any]) -> Markup:
    clusters = document["clusters"]
    names = [f"{short(low)}+" for low, _ in clusters["sizes"]]
    series = {one["state"]: one["by_size"] for one in clusters["states"]}
    return stacked(names, series, "masks in the cluster") if series else Markup("")


def size_name(low: int, high: int) -> str:
    """A bin of cluster sizes, in words."""
    return f"{number(low)}–{number(high)}"


def _thinned(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Some points from the first to the last, for the table beside the chart."""
    if len(points) <= MOST_ROWS:
        return list(points)
    return [points[round(place * (len(points) - 1) / (MOST_ROWS - 1))] for place in range(MOST_ROWS)]


# figures in words


def number(value: float | None) -> str:
    """A whole number."""
    return NONE if value is None else f"{value:,.0f}"


def share(value: float | None) -> str:
    """A share in per cent."""
    return NONE if value is None else f"{value:.1%}"


def decimal(value: float | None) -> str:
    """A number of three figures."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def hours(value: float | None) -> str:
    """Hours, or minutes where they are less than one."""
    if value is None:
        return NONE
    shown, unit = (value * 60, "min") if value < 1 else (value, "h")
    return f"{shown:,.0f} {unit}" if shown >= 10 or shown == 0 else f"{shown:.1f} {unit}"


def money(value: float | None, currency: str) -> str:
    """An amount, of a large one without the hundredths."""
    if value is None:
        return NONE
    return f"{value:,.{0 if value >= 100 else 2}f}\u00a0{currency}".rstrip()


def moment(value: str | None) -> str:
    """A moment in UTC, to the minute."""
    if value is None:
        return NONE
    return f"{datetime.fromisoformat(value):%Y-%m-%d %H:%M} UTC"
