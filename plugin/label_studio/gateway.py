"""The gateway to Label Studio's API: everything the product asks of the server, and nothing else."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Protocol, TypeVar

import httpx

from plugin.label_studio.files import Addresses, Files
from plugin.label_studio.pace import TARGET, Pace
from plugin.label_studio.wire import Forbidden, Observe, Repeat, TooLarge, Wire, is_label_studio, without_secrets
from propagation.errors import Missing, ServerError, SettingsError

log = logging.getLogger(__name__)

Json = dict[str, Any]
T = TypeVar("T")

FILES_A_REQUEST = 100
IDS_A_REQUEST = 500  # in an address, of which proxies take some 8 kB
TASKS_A_PAGE = 500
BULK_SECONDS = (
    600.0  # with each predictions, some servers recount a project, which takes half a millisecond a task
)
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"  # the only one that a filter of tasks takes
WEBHOOK_ACTIONS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED", "TASKS_DELETED")
Filter = tuple[str, str, str, Any]  # column, operator, type and value, as the Data Manager names them
UNANNOTATED: Filter = ("total_annotations", "equal", "Number", 0)


@dataclass(frozen=True)
class User:
    """An account of the server."""

    id: int
    email: str


@dataclass(frozen=True)
class Project:
    """A project of the server; description bears the mark by which the product finds its own again.

    instructions: what its annotators are told, as HTML.
    """

    id: int
    title: str
    label_config: str
    description: str = ""
    instructions: str = ""


@dataclass(frozen=True)
class Webhook:
    """Where the server sends what happens in a project; headers bear a secret."""

    id: int
    url: str
    actions: frozenset[str]
    active: bool
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class Gateway(Protocol):
    """What the product needs of an annotation tool's server. Every method raises ServerError's kinds.

    1. Tasks, predictions and annotations are the server's own JSON; times are as ``moment`` writes them.
    2. ``import_*``, ``upload*`` and ``create_*`` add again when called again: the caller looks up first.
    3. All others may be repeated.

    pace: how many items a bulk call takes.
    """

    pace: Pace

    @property
    def url(self) -> str: ...

    def user(self) -> User: ...

    def people(self) -> dict[int, str]:
        """The names of all accounts, by number: first and last name, or else the address."""

    def projects(self) -> list[Project]: ...

    def project(self, number: int) -> Project: ...

    def create_project(
        self, title: str, label_config: str, description: str, settings: Mapping[str, Any]
    ) -> Project: ...

    def set_label_config(self, project: int, label_config: str) -> None:
        """Give a project another labeling config. Raises ServerError where it does not fit what is there."""
        ...

    def set_instructions(self, project: int, instructions: str) -> None:
        """Give a project other instructions, of which the server takes out what it holds for unsafe HTML."""
        ...

    def tasks(
        self,
        project: int,
        include: Sequence[str],
        since: str | None = None,
        ids: Sequence[int] | None = None,
        without: Sequence[str] = (),
        annotated: bool = False,
    ) -> Iterator[Json]:
        """The tasks of a project with the fields named, in the order of their ids.

        include: names of task fields, and of fields of nested annotations and predictions; beside these also
        ``draft_exists``, whether anybody has begun to annotate. since: only those
        changed after this time (ISO 8601), oldest change first; one that changes meanwhile may come twice, none
        is left out. ids: only these tasks. without: not those whose last change was at one of these moments.
        annotated: only those with an annotation that is no skip.
        """
        ...

    def latest(self, project: int) -> str | None:
        """When a task of the project changed last; None where there is no task."""
        ...

    def unannotated(self, project: int, tasks: Sequence[int]) -> int:
        """How many of these tasks are there and have no annotation, skips aside."""
        ...

    def unpredicted(self, project: int, tasks: Sequence[int], model_version: str) -> int:
        """How many of these tasks are there and have no prediction of that version."""
        ...

    def settled(self, project: int, tasks: Sequence[int], by: int) -> str | None:
        """When this user gave each of these tasks its one annotation, if all at one moment; else None.

        The moment is the tasks' ``updated_at``, but for those that this user has changed since. Skips are no
        annotations here.
        """
        ...

    def drafts(self, task: int) -> set[int]:
        """The annotations of a task that somebody has begun to change, and not submitted yet."""
        ...

    def import_tasks(self, project: int, tasks: Sequence[Json]) -> list[int]:
        """Add tasks; their ids, in order."""
        ...

    def update_task(self, task: int, data: Mapping[str, Any]) -> None:
        """Give a task other data."""
        ...

    def tabs(self, project: int) -> dict[int, Json]:
        """The tabs of a project's Data Manager by number, in their order: title, filters, columns and the like."""
        ...

    def create_tab(self, project: int, tab: Json) -> None:
        """Add a tab behind the others."""
        ...

    def update_tab(self, number: int, tab: Json) -> None:
        """Give a tab another title, filters and columns, all at once."""
        ...

    def delete_tasks(self, project: int, tasks: Sequence[int]) -> None:
        """Delete tasks with all of theirs, a project's last with its tabs; what is not there is left out."""
        ...

    def import_predictions(self, project: int, predictions: Sequence[Json]) -> int:
        """Add predictions (each with task, result, model_version); how many were added."""
        ...

    def predictions_to_annotations(self, project: int, model_version: str, tasks: Sequence[int]) -> None:
        """Make an annotation of each task's prediction of that version, unless it has one already, skips aside."""
        ...

    def update_annotation(self, annotation: int, result: Sequence[Json]) -> str:
        """Give an annotation another result; the annotation's ``updated_at`` after that."""
        ...

    def delete_annotation(self, annotation: int) -> None:
        """Delete an annotation; one that is gone already is no error."""
        ...

    def delete_prediction(self, prediction: int) -> None:
        """Delete a prediction, not what was made of it; one that is gone already is no error."""
        ...

    def upload(self, project: int, files: Sequence[tuple[str, bytes]]) -> list[str]:
        """Store files (name, content) with the project without making tasks; their URL paths, in order."""
        ...

    def upload_one(self, project: int, name: str, content: bytes) -> tuple[int, str]:
        """Store one file; its number, by which it can be deleted, and its URL path."""
        ...

    def delete_upload(self, project: int, number: int) -> None:
        """Delete a stored file; one that is gone already is no error."""
        ...

    def set_hotkeys(self, hotkeys: Mapping[str, Any]) -> None:
        """Set keys of the caller's own account, beside those that it has."""
        ...

    def webhooks(self, project: int) -> list[Webhook]:
        """The webhooks of a project."""
        ...

    def ensure_webhook(self, project: int, url: str, headers: Mapping[str, str]) -> None:
        """Have what people do in a project sent to an address; known again by it, and brought up to date.

        Raises SettingsError where the server does not send to such an address.
        """
        ...

    def read_file(self, location: str) -> bytes:
        """The content of an image value of a task. Raises ImageError when there is none to be had."""
        ...

    def breathe(self) -> None:
        """Leave the server alone for a while, where its quick calls have become slow."""
        ...


class LabelStudioGateway:
    """The real server.

    url: address, with its sub-path where it has one; token: a personal access token or a legacy one.
    image_hosts: further hosts (``host`` or ``host:port``) from which image addresses may be read. observe: is told
    of each request: its name, its seconds, and whether it went well.
    Raises Refused for a token that has expired or that no server can have made, Unreachable for a url that
    is none, SettingsError for an image host that is none.
    """

    def __init__(
        self,
        url: str,
        token: str,
        image_hosts: Sequence[str] = (),
        timeout: float = 60,
        transport: httpx.BaseTransport | None = None,
        observe: Observe = lambda name, seconds, ok: None,
        pace: Pace | None = None,
    ) -> None:
        self.pace = pace or Pace()
        addresses = Addresses(url.rstrip("/") + "/", image_hosts)
        self._path = addresses.path
        self._wire = Wire(url, token, timeout, transport, observe)
        self._files = Files(self._wire, addresses)

    def close(self) -> None:
        """Close the connections to the server."""
        self._wire.close()

    @property
    def url(self) -> str:
        return self._wire.url

    def answer(self, method: str, path: str, **request: Any) -> httpx.Response:
        """What the server answers to one request, sent once: refusals too, which other methods raise."""
        return self._wire.answer(method, path, **request)

    # accounts and projects

    def user(self) -> User:
        self._wire.get("version", "api/version", is_label_studio)
        return self._wire.get("user", "api/current-user/whoami", lambda me: User(_id(me), str(me["email"])))

    def set_hotkeys(self, hotkeys: Mapping[str, Any]) -> None:
        own = self._wire.get("user", "api/current-user/whoami", lambda me: dict(me.get("custom_hotkeys") or {}))
        body = {"custom_hotkeys": {**own, **hotkeys}}
        self._wire.call("set_hotkeys", "PATCH", "api/current-user/hotkeys/", dict, body=body)

    def people(self) -> dict[int, str]:
        return self._wire.get("people", "api/users/", lambda answer: {_id(one): _name(one) for one in answer})

    def projects(self) -> list[Project]:
        found: list[Project] = []
        page, more = 0, True
        while more:
            page += 1
            here, more = self._wire.get(
                "projects",
                "api/projects/",
                lambda answer: ([_project(item) for item in answer["results"]], bool(answer.get("next"))),
                page=page,
                page_size=100,
            )
            found.extend(here)
        return found

    def project(self, number: int) -> Project:
        return self._wire.get("project", f"api/projects/{number}/", _project)

    def create_project(
        self, title: str, label_config: str, description: str, settings: Mapping[str, Any]
    ) -> Project:
        body = {"title": title, "label_config": label_config, "description": description, **settings}
        return self._wire.call("create_project", "POST", "api/projects/", _project, "never", body=body)

    def set_label_config(self, project: int, label_config: str) -> None:
        body = {"label_config": label_config}
        self._wire.call("set_label_config", "PATCH", f"api/projects/{project}/", _project, body=body)

    def set_instructions(self, project: int, instructions: str) -> None:
        body = {"expert_instruction": instructions}
        self._wire.call("set_instructions", "PATCH", f"api/projects/{project}/", _project, body=body)

    # what is there

    def tasks(
        self,
        project: int,
        include: Sequence[str],
        since: str | None = None,
        ids: Sequence[int] | None = None,
        without: Sequence[str] = (),
        annotated: bool = False,
    ) -> Iterator[Json]:
        filters: list[Filter] = []
        if annotated:
            filters.append(("total_annotations", "greater", "Number", 0))
        if without:
            filters.append(("updated_at", "not_in_list", "Datetime", list(without)))
        for part in [None] if ids is None else chunks(ids, IDS_A_REQUEST):
            if since is None:
                yield from self._by_id(project, include, filters, part)
            else:
                yield from self._by_time(project, include, filters, part, moment(since))

    def _by_id(
        self, project: int, include: Sequence[str], filters: list[Filter], ids: Sequence[int] | None
    ) -> Iterator[Json]:
        # a page begins after the last task of the one before, since a deletion moves all behind it up by one
        last = 0
        while True:
            after: Filter = ("id", "greater", "Number", last)
            page, total = self._page("tasks", project, include, [*filters, after], ids, "id", last)
            yield from page
            if not page or len(page) == total:
                return
            last = page[-1]["id"]

    def _by_time(
        self, project: int, include: Sequence[str], filters: list[Filter], ids: Sequence[int] | None, since: str
    ) -> Iterator[Json]:
        # Pages by number would leave tasks out: one that changes meanwhile moves to the end of the list, and all
        # behind it move up by one. So a page begins after the time of the last task of the one before; those of
        # just that time, some of which the page may have cut off, are read by their ids.
        while True:
            later: Filter = ("updated_at", "greater", "Datetime", since)
            page, total = self._page("tasks", project, include, [*filters, later], ids, "updated_at", since)
            page.sort(key=lambda task: (task["updated_at"], task["id"]))  # PostgreSQL has equal times in any order
            if not page or len(page) == total:
                yield from page
                return
            since = page[-1]["updated_at"]
            yield from (task for task in page if task["updated_at"] < since)
            same: Filter = ("updated_at", "equal", "Datetime", since)
            yield from self._by_id(project, include, [*filters, same], ids)

    def _page(
        self,
        name: str,
        project: int,
        include: Sequence[str],
        filters: Sequence[Filter],
        ids: Sequence[int] | None,
        order: str,
        after: Any = None,
        size: int | None = None,
    ) -> tuple[list[Json], int]:
        """The first tasks that pass the filters, and how many do. after: of which in ``order`` all come."""
        query: Json = {"ordering": [f"tasks:{order}"]}
        if filters:
            query["filters"] = filters_of(filters)
        if ids is not None:
            query["selectedItems"] = {"all": False, "included": list(ids)}
        nested = {"annotations", "predictions"}.intersection(include)

        def read(answer: Any) -> tuple[list[Json], int]:
            page, total = [_task(task, nested) for task in answer["tasks"]], int(answer["total"])
            if len(page) > total or (after is not None and page and page[0][order] <= after):
                raise ValueError("these are not the tasks that were asked for")
            return page, total

        return self._wire.get(
            name,
            "api/tasks/",
            read,
            project=project,
            page=1,
            page_size=size or TASKS_A_PAGE,
            fields="all" if nested else "task_only",
            include=",".join(["id", "updated_at", *include]),
            query=json.dumps(query, separators=(",", ":")),
        )

    def latest(self, project: int) -> str | None:
        page, _ = self._page("latest", project, [], [], None, "-updated_at", size=1)
        return str(page[0]["updated_at"]) if page else None

    def unannotated(self, project: int, tasks: Sequence[int]) -> int:
        return self._count("unannotated", project, tasks, UNANNOTATED)

    def unpredicted(self, project: int, tasks: Sequence[int], model_version: str) -> int:
        lacking = ("predictions_model_versions", "not_contains", "List", [model_version])
        count = self._count("unpredicted", project, tasks, lacking)
        if count == len(tasks) or not self._in_others(project, model_version):
            return count
        found = self.tasks(project, ["predictions", "model_version"], ids=tasks)
        return sum(all(p["model_version"] != model_version for p in task["predictions"]) for task in found)

    def _in_others(self, project: int, model_version: str) -> bool:
        """Whether a version's name is part of another's there: a filter of tasks takes the one for the other."""

        def read(answer: Any) -> bool:
            return any(model_version in other and model_version != other for other in answer)

        return self._wire.get("model_versions", f"api/projects/{project}/model-versions/", read)

    def settled(self, project: int, tasks: Sequence[int], by: int) -> str | None:
        mine: list[Filter] = [("updated_by", "contains", "List", by), ("total_annotations", "equal", "Number", 1)]
        found = [self._quick("settled", project, part, mine) for part in chunks(tasks, IDS_A_REQUEST)]
        moments = {at for at, _ in found}
        whole = len(moments) == 1 and sum(total for _, total in found) == len(tasks)
        return moments.pop() if whole else None

    def _count(self, name: str, project: int, tasks: Sequence[int], column: Filter) -> int:
        """How many of these tasks pass a filter."""
        return sum(self._quick(name, project, part, [column])[1] for part in chunks(tasks, IDS_A_REQUEST))

    def _quick(
        self, name: str, project: int, tasks: Sequence[int], filters: Sequence[Filter]
    ) -> tuple[str | None, int]:
        """When the first of the tasks that pass the filters changed, and how many pass, as the database counts."""
        began = time.monotonic()
        page, total = self._page(name, project, [], filters, tasks, "updated_at", size=1)
        self.pace.felt(name, time.monotonic() - began)
        return page[0]["updated_at"] if page else None, total

    def drafts(self, task: int) -> set[int]:
        def read(answer: Any) -> set[int]:
            return {int(draft["annotation"]) for draft in answer if draft["annotation"] is not None}

        return self._wire.get("drafts", f"api/tasks/{task}/drafts", read)

    # what is changed

    def import_tasks(self, project: int, tasks: Sequence[Json]) -> list[int]:
        path, params = f"api/projects/{project}/import", {"return_task_ids": "true"}

        def send(part: Sequence[Json]) -> list[int]:
            read = _numbers("task_ids", len(part))
            return self._wire.call(
                "import_tasks", "POST", path, read, "never", params=params, body=part, timeout=BULK_SECONDS
            )

        return [number for made in self._bulk("tasks", tasks, send) for number in made]

    def update_task(self, task: int, data: Mapping[str, Any]) -> None:
        self._wire.call("update_task", "PATCH", f"api/tasks/{task}/", _id, body={"data": dict(data)})

    def tabs(self, project: int) -> dict[int, Json]:
        def read(answer: Any) -> dict[int, Json]:
            found = {_id(view): dict(view["data"] or {}) for view in answer}
            for tab in found.values():
                tab.pop("selectedItems", None)  # is no property of a tab, and shown with it
            return found

        return self._wire.get("tabs", "api/dm/views/", read, project=project)

    def create_tab(self, project: int, tab: Json) -> None:
        body = {"project": project, "data": tab}
        self._wire.call("create_tab", "POST", "api/dm/views/", _id, "never", body=body)

    def update_tab(self, number: int, tab: Json) -> None:
        self._wire.call("update_tab", "PATCH", f"api/dm/views/{number}/", _id, body={"data": tab})

    def delete_tasks(self, project: int, tasks: Sequence[int]) -> None:
        for part in chunks(tasks):  # never an empty one, by which the server means all tasks
            self._act("delete_tasks", project, part, {}, "always")

    def import_predictions(self, project: int, predictions: Sequence[Json]) -> int:
        path = f"api/projects/{project}/import/predictions"

        def send(part: Sequence[Json]) -> int:
            return self._wire.call(
                "import_predictions", "POST", path, _created, "never", body=part, timeout=BULK_SECONDS
            )

        return sum(self._bulk("predictions", predictions, send))

    def predictions_to_annotations(self, project: int, model_version: str, tasks: Sequence[int]) -> None:
        # the server looks again itself: somebody may have annotated a task since the caller looked
        more = {"model_version": model_version, "filters": filters_of([UNANNOTATED])}

        def send(part: Sequence[int]) -> None:
            # begun anew while it still runs, it would make the annotations twice
            self._act("predictions_to_annotations", project, part, more, "done")

        for _ in self._bulk("annotations", tasks, send):
            pass

    def _act(self, action: str, project: int, tasks: Sequence[int], more: Json, repeat: Repeat) -> None:
        body = {"selectedItems": {"all": False, "included": list(tasks)}, "project": str(project), **more}
        params = {"id": action, "project": project}
        self._wire.call(
            action, "POST", "api/dm/actions", _detail, repeat, params=params, body=body, timeout=BULK_SECONDS
        )

    def update_annotation(self, annotation: int, result: Sequence[Json]) -> str:
        path, body = f"api/annotations/{annotation}/", {"result": list(result)}
        return self._wire.call(
            "update_annotation", "PATCH", path, lambda answer: moment(answer["updated_at"]), body=body
        )

    def delete_annotation(self, annotation: int) -> None:
        self._delete("delete_annotation", f"api/annotations/{annotation}/")

    def delete_prediction(self, prediction: int) -> None:
        self._delete("delete_prediction", f"api/predictions/{prediction}/")

    def _delete(self, name: str, path: str) -> None:
        try:
            self._wire.call(name, "DELETE", path, lambda answer: None)
        except Missing:
            log.info("%s is gone already", path)

    def upload(self, project: int, files: Sequence[tuple[str, bytes]]) -> list[str]:
        return [place for _, place in self._uploaded(project, files)]

    def upload_one(self, project: int, name: str, content: bytes) -> tuple[int, str]:
        ((number, place),) = self._uploaded(project, [(name, content)])
        return number, place

    def delete_upload(self, project: int, number: int) -> None:
        body = {"file_upload_ids": [number]}  # without it, the server would delete all of the project
        path = f"api/projects/{project}/file-uploads"
        self._wire.call("delete_upload", "DELETE", path, lambda answer: int(answer["deleted"]), body=body)

    def _uploaded(self, project: int, files: Sequence[tuple[str, bytes]]) -> list[tuple[int, str]]:
        """Store files; the number and the URL path of each."""
        path, params = f"api/projects/{project}/import", {"commit_to_project": "false"}

        def send(part: Sequence[tuple[str, bytes]]) -> list[tuple[int, str]]:
            # a repeated field name would keep only one of its files
            sent = {f"file{place}": file for place, file in enumerate(part)}
            read = _numbers("file_upload_ids", len(part))
            numbers = self._wire.call("upload", "POST", path, read, "never", params=params, files=sent)

            def places(answer: Any) -> list[tuple[int, str]]:
                stored = {_id(item): str(item["file"]) for item in answer}
                return [(number, f"{self._path}data/{stored[number]}") for number in numbers]

            return self._wire.get(
                "uploads", f"api/projects/{project}/file-uploads", places, ids=json.dumps(numbers)
            )

        return [one for made in self._bulk("files", files, send, FILES_A_REQUEST) for one in made]

    def webhooks(self, project: int) -> list[Webhook]:
        return self._wire.get(
            "webhooks",
            "api/webhooks/",
            lambda answer: [_webhook(hook) for hook in answer if hook["project"] == project],
            project=project,
        )

    def ensure_webhook(self, project: int, url: str, headers: Mapping[str, str]) -> None:
        body = {
            "project": project,
            "url": url,
            "headers": dict(headers),
            "actions": WEBHOOK_ACTIONS,
            "send_for_all_actions": False,
            "send_payload": True,
            "is_active": True,
        }
        known = next((hook for hook in self.webhooks(project) if hook.url == url), None)
        try:
            if known is None:
                self._wire.call("ensure_webhook", "POST", "api/webhooks/", _webhook, "never", body=body)
            else:
                self._wire.call("ensure_webhook", "PATCH", f"api/webhooks/{known.id}/", _webhook, body=body)
        except Forbidden as error:
            raise SettingsError(
                f"{self.url} takes no webhook to {without_secrets(url)} ({error.said}); start Label Studio with "
                "USE_DEFAULT_BANNED_SUBNETS=false, or with SSRF_PROTECTION_ENABLED=false for webhooks alone, or "
                "take webhook_url out of the settings"
            ) from error

    # in bulk, and gently

    def _bulk(
        self, kind: str, items: Sequence[Any], send: Callable[[Sequence[Any]], T], most: int | None = None
    ) -> Iterator[T]:
        """Send items in as many calls as the pace asks for."""
        place = 0
        while place < len(items):
            part = items[place : place + min(self.pace.size(kind), most or len(items))]
            self.breathe()
            began = time.monotonic()
            try:
                made = send(part)
            except TooLarge:
                if len(part) == 1:
                    raise
                self.pace.refused(kind, len(part))
                continue
            except ServerError:
                if time.monotonic() - began > TARGET:
                    self.pace.failed(kind, len(part))
                raise
            self.pace.took(kind, len(part), time.monotonic() - began)
            place += len(part)
            yield made

    def breathe(self) -> None:
        if self.pace.numb:
            began = time.monotonic()
            self._wire.get("user", "api/current-user/whoami", _id)
            self.pace.felt("user", time.monotonic() - began)
        self.pace.rest()

    def read_file(self, location: str) -> bytes:
        return self._files.read(location)


def chunks(items: Iterable[T], size: int = 1000) -> Iterator[list[T]]:
    """The items in order, in lists of at most ``size``, each taken when the one before is done with."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


def moment(stamp: str) -> str:
    """A time (ISO 8601) in UTC, in the one form that a filter of tasks takes; such times are in order as texts."""
    if len(stamp) == len("2026-01-01T00:00:00.000000Z") and stamp.endswith("Z"):
        return stamp
    at = datetime.fromisoformat(stamp)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC).strftime(TIME_FORMAT)


# what answers are made of; each raises what Python raises for JSON of another form


def _name(person: Json) -> str:
    full = f"{person.get('first_name') or ''} {person.get('last_name') or ''}".strip()
    return full or str(person["email"])


def filters_of(filters: Iterable[Filter]) -> Json:
    """Filters that all have to pass, as the server takes them."""
    items = [
        {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}
        for column, operator, kind, value in filters
    ]
    return {"conjunction": "and", "items": items}


def _id(item: Any) -> int:
    number = item["id"]
    if type(number) is not int:
        raise TypeError(f"{number!r} is no id")
    return number


def _numbers(name: str, count: int) -> Callable[[Any], list[int]]:
    def read(answer: Any) -> list[int]:
        numbers = [_id({"id": number}) for number in answer[name]]
        if len(numbers) != count:
            raise ValueError(f"{len(numbers)} ids for {count} things")
        return numbers

    return read


def _created(answer: Any) -> int:
    return int(answer["created"])


def _detail(answer: Any) -> str:
    return str(answer["detail"])


def _project(item: Any) -> Project:
    told = item.get("description") or "", item.get("expert_instruction") or ""
    return Project(_id(item), str(item["title"]), str(item["label_config"]), *told)


def _webhook(item: Any) -> Webhook:
    return Webhook(
        _id(item),
        str(item["url"]),
        frozenset(map(str, item["actions"])),
        bool(item["is_active"]),
        dict(item.get("headers") or {}),
    )


def _task(task: Any, nested: Iterable[str]) -> Json:
    _id(task)
    task["updated_at"] = moment(task["updated_at"])
    if not isinstance(task.get("data", {}), dict):
        raise TypeError("its data is no object")
    for name in nested:
        for item in task.get(name) or ():
            _id(item)
            if "updated_at" in item:
                item["updated_at"] = moment(item["updated_at"])
    found: Json = task
    return found
