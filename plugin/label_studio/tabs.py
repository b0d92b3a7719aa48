"""Tabs of the Data Manager: the views of a project's tasks that a person finds there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Filter = tuple[str, str, str, Any]  # column, operator, type and value, as the Data Manager names them

ALL_TASKS = "Default"  # as the server calls the tab that it shows where there is none


@dataclass(frozen=True)
class Tab:
    """A tab: its number, and what it is, as the server's own JSON."""

    id: int
    data: Json

    @property
    def title(self) -> str:
        return str(self.data.get("title", ""))


def filter_group(filters: Iterable[Filter]) -> Json:
    """Filters that a task has to pass all of."""
    items = [
        {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}
        for column, operator, kind, value in filters
    ]
    return {"conjunction": "and", "items": items}


def tab_data(
    title: str,
    filters: Sequence[Filter],
    columns: Mapping[str, str] | None,
    ordering: Sequence[str],
    known: Sequence[str] = (),
    before: Json | None = None,
) -> Json:
    """What a tab is, as the server takes it.

    columns: those shown, each with the type by which it is shown and sorted, or "" for its own; None for all
    that the server shows by itself. known: all that the project has. before: what it was; what a person has
    set there beside title, filters and ordering stays.
    """
    data: Json = {"type": "list", "target": "tasks", **(before or {})}
    if columns is not None and before is None:
        hidden = [f"tasks:{name}" for name in known if name not in columns]
        data["hiddenColumns"] = {"explore": hidden, "labeling": hidden}
        data["columnsDisplayType"] = {f"tasks:{name}": kind for name, kind in columns.items() if kind}
    ordered = [f"-tasks:{name[1:]}" if name.startswith("-") else f"tasks:{name}" for name in ordering]
    return {**data, "title": title, "filters": filter_group(filters), "ordering": ordered}


def column_names(answer: Any) -> list[str]:
    """The columns of a project, named as filters name them, of what the server tells about them."""
    found = []
    for column in answer["columns"]:
        if column.get("children") is None:
            parent = f"{column['parent']}." if column.get("parent") else ""
            found.append(f"{parent}{column['id']}")
    return found
