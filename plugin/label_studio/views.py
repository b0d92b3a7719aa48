"""Addresses of Label Studio's pages: a project's data, a task of it, and views that their address alone holds."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any, Literal, NamedTuple


class Where(NamedTuple):
    """A filter of the data manager: a column of the tasks, an operator, the kind of the value, and the value."""

    column: str
    operator: str
    kind: Literal["Number", "String", "List"]
    value: Any


def project_url(server: str, project: int) -> str:
    """Where a project's tasks are listed."""
    return f"{server}/projects/{project}/data"


def task_url(server: str, project: int, task: int) -> str:
    """Where one task is looked at."""
    return f"{project_url(server, project)}?task={task}"


def view_url(server: str, project: int, title: str, *where: Where) -> str:
    """A project's tasks that all filters let through, in a tab that nobody has to make or to delete.

    Label Studio's data manager reads such a tab from its address: JSON, deflated, in URL-safe base 64.
    """
    items = [
        {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}
        for column, operator, kind, value in where
    ]
    view = {"title": title, "filters": {"conjunction": "and", "items": items}, "ordering": []}
    packed = base64.urlsafe_b64encode(zlib.compress(json.dumps(view).encode())).decode().rstrip("=")
    return f"{project_url(server, project)}?tab={packed}"
