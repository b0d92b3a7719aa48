"""Tabs of the Data Manager: those of the source project, made, known again, and brought up to date."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby, takewhile
from typing import Any

from plugin.label_studio.gateway import Filter, Gateway, Json, filters_of

MARK = "propagate"  # with which the versions of all our predictions begin
PROPAGATED, PARTLY, UNDECIDED = "Propagated", "Partly decided", "Undecided"
_TITLE = re.compile(r"(Propagated|Partly decided|Undecided)(, [\d,]+ of [\d,]+)?")

#: What Label Studio itself hides of a new tab: in the list, and beside an open task.
HIDDEN = (
    "inner_id", "annotations_results", "annotations_ids", "predictions_score", "predictions_model_versions",
    "predictions_results", "file_upload", "storage_filename", "created_at", "updated_at", "updated_by",
    "avg_lead_time", "draft_exists",
)  # fmt: skip
_BESIDE = ("id", "completed_at", "cancelled_annotations", "total_predictions", "annotators")


def add_tabs(gateway: Gateway, project: int, tabs: Sequence[Json]) -> None:
    """Make the tabs whose title no tab of the project has."""
    there = {tab.get("title") for tab in gateway.tabs(project).values()}
    for tab in tabs:
        if tab["title"] not in there:
            gateway.create_tab(project, tab)


def source_tabs(predicted: str, written: str, field: str, partly: Sequence[str], of: int) -> list[Json]:
    """The tabs of a source project: its propagated, partly decided and undecided images.

    predicted, written: the versions of the predictions that show all masks, and of those that annotations were
    made from. field: of the tasks' data that has the image. partly: the images with masks to decide that are to be
    listed, as they are there; of: how many there are.
    """
    title = PARTLY if of == len(partly) else f"{PARTLY}, {len(partly):,} of {of:,}"
    # by annotation or task, a server on SQLite takes minutes for thousands of 100,000, or its page shows an error
    pattern = f"^{_any_of(sorted(set(partly)))}$" if partly else "^$"
    return [
        _tab(PROPAGATED, written, ("total_annotations", "greater", "Number", 0)),
        _tab(title, written, (f"data.{field}", "regex", "String", pattern)),
        _tab(UNDECIDED, predicted, ("total_annotations", "equal", "Number", 0)),
    ]


def _any_of(texts: Sequence[str]) -> str:
    """A regular expression for some different texts, in order, as a tree of their beginnings: quick to search."""
    first, last = texts[0], texts[-1]
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    start = first[: len(list(same))]
    rest = [text[len(start) :] for text in texts]
    if len(rest) == 1:
        return re.escape(start)
    parts = [_any_of(list(some)) for _, some in groupby(rest, key=lambda text: text[:1])]
    return f"{re.escape(start)}(?:{'|'.join(parts)})"


def make_source_tabs(gateway: Gateway, project: int, tabs: Sequence[Json]) -> None:
    """Make those of the source project's tabs that are not there, and bring the others up to date.

    A project without any tab gets the one that Label Studio would make first: a list of all tasks.
    """
    there = gateway.tabs(project)
    if not there:
        gateway.create_tab(project, _shown("Default", []))
    update_source_tabs(gateway, there, tabs)
    known = {_shape(tab) for tab in there.values() if _shape(tab)}
    for tab in tabs:
        if _shape(tab) not in known:
            gateway.create_tab(project, tab)


def update_source_tabs(gateway: Gateway, there: Mapping[int, Json], tabs: Sequence[Json]) -> None:
    """Give the tabs that are there their filters as they are now; of each kind the first.

    A tab is known again by its filters, whatever it is called. What people chose to see in it stays, and so does
    a name that they gave it.
    """
    wanted = {_shape(tab): tab for tab in tabs}
    for number, tab in there.items():
        new = wanted.pop(_shape(tab), None)
        if new is None:
            continue
        ours = _TITLE.fullmatch(str(tab.get("title")))
        changed = {**tab, "filters": new["filters"], "title": new["title"] if ours else tab.get("title")}
        if _values(changed) != _values(tab) or changed["title"] != tab.get("title"):
            gateway.update_tab(number, changed)


def _shape(tab: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """By which one of our tabs is known again: columns and operators of its filters. Empty for all others."""
    items = _items(tab)
    versions = items[0].get("value") if items else None
    if not (isinstance(versions, list) and len(versions) == 1 and str(versions[0]).startswith(MARK)):
        return ()
    return tuple((str(item.get("filter")), str(item.get("operator"))) for item in items)


def _values(tab: Mapping[str, Any]) -> list[Any]:
    return [item.get("value") for item in _items(tab)]


def _items(tab: Mapping[str, Any]) -> list[Json]:
    return list((tab.get("filters") or {}).get("items") or [])


def _tab(title: str, version: str, column: Filter) -> Json:
    return _shown(title, [("predictions_model_versions", "contains", "List", [version]), column])


def _shown(title: str, filters: Sequence[Filter]) -> Json:
    return {
        "title": title,
        "type": "list",
        "target": "tasks",
        "filters": filters_of(filters),
        "hiddenColumns": {
            "explore": [f"tasks:{name}" for name in HIDDEN],
            "labeling": [f"tasks:{name}" for name in (*HIDDEN, *_BESIDE)],
        },
    }
