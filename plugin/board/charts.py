"""Charts of the progress board, as SVG that takes its colours and letters from the page's style sheet."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pygal
from markupsafe import Markup
from pygal.etree import etree

# it finds pygal's old plugins, in a way that Python 3.11 warns of at each import that fails
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "PluginImportFixer"]

#: Width and height in pixels, on a wide screen and on a narrow one; the style sheet shows one of them.
SIZES: Mapping[str, tuple[int, int]] = {"wide": (620, 300), "narrow": (340, 260)}
FULL = 10_000  # from which on a number is shortened
WORDS = ("", " k", " M", " bn")


@dataclass(frozen=True)
class Line:
    """A line of a chart: the class by which it is styled, and (x, y) in order."""

    kind: str
    points: Sequence[tuple[float, float]]


def short(value: float) -> str:
    """A number for an axis: 0, 0.5, 20, 1,500, 15 k, 2 M."""
    if abs(value) < FULL:
        return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
    power = 0
    while abs(value) >= 1000 and power < len(WORDS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g}{WORDS[power]}"


def lines(drawn: Sequence[Line], x_title: str, sizes: Iterable[str] = SIZES) -> Markup:
    """Lines over a common axis, from 0 on, in each of some sizes."""
    shown = [line for line in drawn if line.points]
    most_x = max((x for line in shown for x, _ in line.points), default=0) or 1
    most_y = max((y for line in shown for _, y in line.points), default=0) or 1
    return _each(
        pygal.XY,
        [(line.kind, line.points) for line in shown],
        sizes,
        x_title=x_title,
        show_dots=False,
        xrange=(0, most_x),
        range=(0, most_y),
        show_x_guides=False,
        x_value_formatter=short,
    )


def stacked(labels: Sequence[str], series: Mapping[str, Sequence[int]], x_title: str) -> Markup:
    """Bars, one a label, of the series on each other. series: the class by which it is styled, and its numbers."""
    return _each(
        pygal.StackedBar, list(series.items()), SIZES, x_title=x_title, x_labels=list(labels), rounded_bars=1
    )


def _each(kind: Any, series: Sequence[tuple[str, Iterable[Any]]], sizes: Iterable[str], **config: Any) -> Markup:
    """The chart in each size. It says nothing to who cannot see it: a table beside it does."""
    return Markup("").join(_drawn(kind, series, name, SIZES[name], config) for name in sizes)


def _drawn(
    kind: Any,
    series: Sequence[tuple[str, Iterable[Any]]],
    name: str,
    size: tuple[int, int],
    config: dict[str, Any],
) -> Markup:
    chart = kind(
        width=size[0],
        height=size[1],
        margin=4,
        spacing=8,
        js=(),
        css=(),
        classes=("chart", name),
        no_prefix=True,
        show_legend=False,
        value_formatter=short,
        x_labels_major_count=5,
        show_minor_x_labels=name == "wide" or kind is not pygal.XY,
        max_scale=6,
        **config,
    )
    for label, values in series:
        chart.add(label, list(values))
    root = chart.render_tree()
    _strip(root)
    for place, (label, _) in enumerate(series):
        for group in root.iter():
            if f"serie-{place}" in group.get("class", "").split():
                group.set("class", f"series {label}")
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    root.attrib.pop("id", None)
    return Markup(etree.tostring(root, encoding="unicode"))  # noqa: S704  made of numbers and our own words


def _strip(parent: Any) -> None:
    """Take out what a page that allows no inline style or script cannot use, and tooltips' hidden data."""
    for child in list(parent):
        tag = child.tag.rpartition("}")[2] if isinstance(child.tag, str) else "comment"
        hidden = child.get("class", "").split() if tag != "comment" else []
        if tag in ("comment", "style", "script", "title", "desc") or "tooltip" in hidden:
            parent.remove(child)
        else:
            child.attrib.pop("style", None)
            child.attrib.pop("id", None)
            _strip(child)
