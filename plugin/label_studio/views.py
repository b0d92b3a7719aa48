"""Addresses of Label Studio's pages: a project's data, a task of it, and views that their address alone holds."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any, Literal

Kind = Literal["Number", "String", "List"]


def project_url(server: str, project: int) -> str:
    """Where a project's tasks are listed."""
    return f"{server}/projects/{project}/data"


def task_url(server: str, project: int, task: int) -> str:
    """Where one task is looked at."""
    return f"{project_url(server, project)}?task={task}"


def view_url(server: str, project: int, title: str, column: str, operator: str, kind: Kind, value: Any) -> str:
    """A project's tasks that a filter lets through, in a tab that nobody has to make or to delete.

    Label Studio's data manager reads such a tab from its address: JSON, deflated, in URL-safe base 64.
    """
    item = {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}
    view = {"title": title, "filters": {"conjunction": "and", "items": [item]}, "ordering": []}
    packed = base64.urlsafe_b64encode(zlib.compress(json.dumps(view).encode())).decode().rstrip("=")
    return f"{project_url(server, project)}?tab={packed}"
