"""What can be found out about a server, an account and a token without changing anything there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urljoin

import httpx
import jwt

from plugin.label_studio.gateway import Json, LabelStudioGateway
from plugin.label_studio.wire import without_secrets
from propagation.errors import Missing, NotLabelStudio, ServerError, Unreachable

TESTED = "1.23"

#: What the product does there, as the server names it.
NEEDED = (
    "projects.create", "projects.view", "projects.change", "tasks.create", "tasks.view", "tasks.delete",
    "annotations.create", "annotations.view", "annotations.change", "predictions.any", "actions.perform",
)  # fmt: skip
WEBHOOKS = "webhooks.change"
#: Set to "true" in its environment, a server counts anew, after an import of predictions, only the tasks that got
#: one, and not all of the project: 0.5 s a thousand tasks of it, with each import.
QUICK_IMPORTS = "fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short"


@dataclass(frozen=True)
class Answering:
    """A server that answers: its version, and by how many seconds its clock is ahead of ours (None: not told)."""

    version: str
    ahead: float | None


def answering(url: str, timeout: float = 20) -> Answering:
    """What answers at an address; no token is needed. Raises Unreachable, NotLabelStudio, ServerError."""
    before = datetime.now(UTC)
    try:
        answer = httpx.get(urljoin(url.rstrip("/") + "/", "api/version"), timeout=timeout)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(
            f"no answer from Label Studio at {url} ({str(error) or type(error).__name__}); "
            "start it, or correct LABEL_STUDIO_URL"
        ) from error
    after = datetime.now(UTC)
    if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
        raise ServerError(f"GET api/version: {url} answers {answer.status_code}; look in the server's log")
    if answer.is_redirect:
        where = without_secrets(answer.headers.get("location", ""))
        raise NotLabelStudio(f"{url} leads to {where}; correct LABEL_STUDIO_URL to where Label Studio is")
    try:
        version = str(answer.json()["label-studio-os-package"]["version"])
    except (ValueError, LookupError, TypeError) as error:
        raise NotLabelStudio(
            f"what answers at {url} is not Label Studio; correct LABEL_STUDIO_URL (with its sub-path, if any)"
        ) from error
    return Answering(version, _ahead(answer.headers.get("date"), before, after))


def _ahead(date: str | None, before: datetime, after: datetime) -> float | None:
    """The date is cut to whole seconds, and was written at some time between the two."""
    try:
        there = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return None
    if there + 1 < before.timestamp():
        return there + 1 - before.timestamp()
    return max(0.0, there - after.timestamp())


@dataclass(frozen=True)
class Token:
    """What a token says of itself: "access" is the one that a personal token is exchanged for, for minutes."""

    kind: Literal["legacy", "personal", "access"]
    expires: datetime | None = None


def read_token(token: str) -> Token:
    """The kind of a token, by its form."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except jwt.InvalidTokenError:
        return Token("legacy")
    until = claims.get("exp")
    expires = datetime.fromtimestamp(until, UTC) if isinstance(until, int | float) else None
    return Token("access" if claims.get("token_type") == "access" else "personal", expires)


@dataclass(frozen=True)
class Account:
    """The caller's account; permissions: as the server names them, or None where it doesn't tell."""

    id: int
    email: str
    permissions: frozenset[str] | None
    hotkeys: Mapping[str, Any]


def account(gateway: LabelStudioGateway) -> Account:
    """The caller's account."""
    me = _json(gateway, "api/current-user/whoami")
    told = me.get("permissions")
    permissions = frozenset(told) if isinstance(told, list) else None
    return Account(me["id"], me["email"], permissions, me.get("custom_hotkeys") or {})


def server_keymap(gateway: LabelStudioGateway) -> Mapping[str, Any] | None:
    """The keys that the server gives every account; None where it doesn't show them, as to a legacy token."""
    answer = gateway.answer("GET", "projects/")
    found = re.search(r"defaultEditorKeymap = JSON\.parse\((.*?)\);", answer.text)
    if not answer.is_success or found is None:
        return None
    try:
        told = json.loads(found.group(1))
        keymap = json.loads(told) if isinstance(told, str) else told
    except ValueError:  # which the pages there stumble over as well
        return {}
    return keymap if isinstance(keymap, dict) else {}


def project_settings(gateway: LabelStudioGateway, project: int) -> Json:
    """A project with all its settings."""
    return _json(gateway, f"api/projects/{project}/")


def worked_on(gateway: LabelStudioGateway, project: int, user: int, most: int = 100) -> int:
    """How many tasks somebody has annotated by hand as this user, with time spent in the editor.

    most: tasks that are looked at.
    """
    by_hand = [
        {"filter": "filter:tasks:annotators", "operator": "contains", "type": "List", "value": user},
        {"filter": "filter:tasks:avg_lead_time", "operator": "greater", "type": "Number", "value": 0},
    ]
    params = {
        "project": project,
        "page": 1,
        "page_size": most,
        "fields": "all",
        "include": "annotations,completed_by,updated_by,lead_time",
        "query": json.dumps({"filters": {"conjunction": "and", "items": by_hand}}),
    }
    tasks = _json(gateway, "api/tasks/", params)["tasks"]
    # what the daemon wrote and somebody else edited has time spent as well
    return sum(
        any(
            annotation["completed_by"] == user
            and annotation.get("updated_by") in (None, user)
            and annotation.get("lead_time") is not None
            for annotation in task["annotations"]
        )
        for task in tasks
    )


@dataclass(frozen=True)
class Refusal:
    """Why a server does not take an address; banned: by its rules about private networks."""

    said: str
    banned: bool


def refuses_webhook(gateway: LabelStudioGateway, project: int, url: str) -> Refusal | None:
    """Why the server takes no webhook to an address, or None; the one that is made to find out is deleted.

    It is not active, so nothing is ever sent to it.
    """
    body = {"project": project, "url": url, "is_active": False, "send_for_all_actions": False, "actions": []}
    answer = gateway.answer("POST", "api/webhooks/", json=body)
    if answer.is_success:
        gateway.answer("DELETE", f"api/webhooks/{answer.json()['id']}/")
        return None
    return _refusal(answer)


def refuses_backend(gateway: LabelStudioGateway, url: str) -> Refusal | None:
    """Why the server takes no ML backend at an address, or None.

    The request lacks its project, so nothing is made and nobody is called: of an address that is allowed,
    the server says that alone.
    """
    answer = gateway.answer("POST", "api/ml/", json={"url": url})
    return None if _errors(answer).keys() == {"project"} else _refusal(answer)


def imports_quickly(gateway: LabelStudioGateway, project: int) -> bool | None:
    """Whether the server is started with QUICK_IMPORTS; None where it doesn't show.

    The two ways of importing predictions differ in how they refuse one for a task that isn't there.
    """
    answer = gateway.answer("POST", f"api/projects/{project}/import/predictions", json=[{"task": 0, "result": []}])
    said = _refusal(answer).said
    if answer.is_success or "task" not in said:
        return None
    return "not found in project" in said


def _refusal(answer: httpx.Response) -> Refusal:
    said = " ".join(str(message) for messages in _errors(answer).values() for message in messages)
    return Refusal(said or _detail(answer), answer.status_code == httpx.codes.FORBIDDEN)


def _errors(answer: httpx.Response) -> Mapping[str, list[str]]:
    """What a server finds wrong, by field."""
    found = _body(answer).get("validation_errors")
    return found if isinstance(found, dict) else {}


def _detail(answer: httpx.Response) -> str:
    return str(_body(answer).get("detail") or f"it answers {answer.status_code}")[:300]


def _body(answer: httpx.Response) -> Json:
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _json(gateway: LabelStudioGateway, path: str, params: Mapping[str, Any] | None = None) -> Any:
    answer = gateway.answer("GET", path, params=params)
    if answer.status_code == httpx.codes.NOT_FOUND:
        raise Missing(f"GET {path}: {gateway.url} has no such thing; it may have been deleted")
    if not answer.is_success:
        raise ServerError(
            f"GET {path}: {gateway.url} answers {answer.status_code} ({_detail(answer)}); look in the server's log"
        )
    try:
        return answer.json()
    except ValueError as error:
        raise NotLabelStudio(
            f"what answers at {gateway.url} is not Label Studio; correct LABEL_STUDIO_URL"
        ) from error
