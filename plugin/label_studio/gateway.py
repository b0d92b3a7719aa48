"""The gateway to Label Studio's API: everything the product asks of the server, and nothing else.

Reads and whole-value writes are repeated by the SDK when the server stumbles; a call that would add a thing
twice when repeated is sent once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Protocol, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx
from label_studio_sdk import LabelStudio
from label_studio_sdk.core.api_error import ApiError
from label_studio_sdk.core.request_options import RequestOptions

from propagation.errors import ImageError, Missing, NotLabelStudio, Refused, ServerError, Unreachable

Json = dict[str, Any]
T = TypeVar("T")

FILES_A_REQUEST = 100
TASKS_A_REQUEST = 1000
TASKS_A_PAGE = 500
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"  # the only one that a filter of tasks takes


@dataclass(frozen=True)
class User:
    """An account of the server."""

    id: int
    email: str


@dataclass(frozen=True)
class Project:
    """A project of the server; description bears the mark by which the product finds its own again."""

    id: int
    title: str
    label_config: str
    description: str = ""


class Gateway(Protocol):
    """What the product needs of an annotation tool's server. Every method raises ServerError's kinds.

    1. Tasks, predictions and annotations are the server's own JSON.
    2. ``import_*`` and ``upload`` add again when called again: the caller looks up first.
    3. ``predictions_to_annotations``, ``update_annotation`` and ``update_project`` may be repeated.
    """

    @property
    def url(self) -> str: ...

    def user(self) -> User: ...

    def projects(self) -> list[Project]: ...

    def project(self, number: int) -> Project: ...

    def create_project(
        self, title: str, label_config: str, description: str, settings: Mapping[str, Any]
    ) -> Project: ...

    def tasks(
        self, project: int, include: Sequence[str], since: str | None = None, ids: Sequence[int] | None = None
    ) -> Iterator[Json]:
        """The tasks of a project with the fields named, oldest change first.

        include: names of task fields, and of fields of nested annotations and predictions.
        since: only those changed after this time (ISO 8601). ids: only these tasks.
        """
        ...

    def import_tasks(self, project: int, tasks: Sequence[Json]) -> list[int]:
        """Add tasks; their ids, in order."""
        ...

    def import_predictions(self, project: int, predictions: Sequence[Json]) -> int:
        """Add predictions (each with task, result, model_version); how many were added."""
        ...

    def predictions_to_annotations(self, project: int, model_version: str, tasks: Sequence[int]) -> None:
        """Make an annotation of each task's prediction of that version, unless there is one already."""
        ...

    def update_annotation(self, annotation: int, result: Sequence[Json]) -> None: ...

    def upload(self, project: int, files: Sequence[tuple[str, bytes]]) -> list[str]:
        """Store files (name, content) with the project without making tasks; their URL paths, in order."""
        ...

    def set_hotkeys(self, hotkeys: Mapping[str, Any]) -> None:
        """Set keys of the caller's own account, beside those that it has."""
        ...

    def read_file(self, location: str) -> bytes:
        """The content of an image value of a task. Raises ImageError when there is none to be had."""
        ...


class LabelStudioGateway:
    """The real server, through label-studio-sdk.

    url: address, with its sub-path where it has one; token: a personal access token or a legacy one.
    image_hosts: further hosts (``host`` or ``host:port``) from which image addresses may be read.
    Raises Refused for a token that has expired or that no server can have made, Unreachable for a url that
    is none.
    """

    def __init__(
        self,
        url: str,
        token: str,
        image_hosts: Sequence[str] = (),
        timeout: float = 60,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = url.rstrip("/") + "/"
        if not (token.isascii() and token.isprintable()) or " " in token or not token:
            # the HTTP library would refuse it too, in a message that shows it
            raise _refused(self.url, "it is empty or has a character that no token has, a line break perhaps")
        try:
            self._host = urlsplit(self._url).netloc
        except ValueError as error:
            raise Unreachable(f"{url} is no address ({error}); correct LABEL_STUDIO_URL") from error
        self._hosts = {self._host, *image_hosts}
        self._http = httpx.Client(timeout=timeout, follow_redirects=True, transport=transport)
        try:
            client = LabelStudio(base_url=self._url, api_key=token, httpx_client=self._http)
        except ApiError as error:
            self._http.close()
            raise self._not_logged_in(error) from error
        self._wrapper = client._client_wrapper

    def close(self) -> None:
        """Close the connections to the server."""
        self._http.close()

    @property
    def url(self) -> str:
        return self._url.rstrip("/")

    def user(self) -> User:
        version = self._call("GET", "api/version")
        if not isinstance(version, dict) or "label-studio-os-package" not in version:
            raise NotLabelStudio(_not_label_studio(self.url))
        me = self._call("GET", "api/current-user/whoami")
        return User(me["id"], me["email"])

    def projects(self) -> list[Project]:
        found: list[Project] = []
        page = 1
        while True:
            answer = self._call("GET", "api/projects/", params={"page": page, "page_size": 100})
            found.extend(_project(item) for item in answer["results"])
            if not answer.get("next"):
                return found
            page += 1

    def project(self, number: int) -> Project:
        return _project(self._call("GET", f"api/projects/{number}/"))

    def create_project(
        self, title: str, label_config: str, description: str, settings: Mapping[str, Any]
    ) -> Project:
        body = {"title": title, "label_config": label_config, "description": description, **settings}
        return _project(self._once("api/projects/", json=body))

    def tasks(
        self, project: int, include: Sequence[str], since: str | None = None, ids: Sequence[int] | None = None
    ) -> Iterator[Json]:
        query: Json = {"ordering": ["tasks:updated_at"] if since else ["tasks:id"]}
        if since:
            changed = {
                "filter": "filter:tasks:updated_at",
                "operator": "greater",
                "type": "Datetime",
                "value": datetime.fromisoformat(since).astimezone(UTC).strftime(TIME_FORMAT),
            }
            query["filters"] = {"conjunction": "and", "items": [changed]}
        if ids is None:
            yield from self._pages(project, include, query)
            return
        for part in chunks(ids, TASKS_A_PAGE):
            yield from self._pages(project, include, query | {"selectedItems": {"all": False, "included": part}})

    def _pages(self, project: int, include: Sequence[str], query: Json) -> Iterator[Json]:
        seen, total, page = 0, 1, 1
        while seen < total:
            answer = self._call(
                "GET",
                "api/tasks/",
                params={
                    "project": project,
                    "page": page,
                    "page_size": TASKS_A_PAGE,
                    "fields": "all",
                    "include": ",".join(["id", "updated_at", *include]),
                    "query": json.dumps(query),
                },
            )
            yield from answer["tasks"]
            total, page = answer["total"], page + 1
            seen += len(answer["tasks"])
            if not answer["tasks"]:
                return

    def import_tasks(self, project: int, tasks: Sequence[Json]) -> list[int]:
        ids: list[int] = []
        for part in chunks(tasks, TASKS_A_REQUEST):
            path = f"api/projects/{project}/import"
            ids.extend(self._once(path, params={"return_task_ids": "true"}, json=part)["task_ids"])
        return ids

    def import_predictions(self, project: int, predictions: Sequence[Json]) -> int:
        created = 0
        for part in chunks(predictions, TASKS_A_REQUEST):
            created += self._once(f"api/projects/{project}/import/predictions", json=part)["created"]
        return created

    def predictions_to_annotations(self, project: int, model_version: str, tasks: Sequence[int]) -> None:
        for part in chunks(tasks, TASKS_A_REQUEST):
            body = {
                "selectedItems": {"all": False, "included": part},
                "model_version": model_version,
                "project": str(project),
            }
            params = {"id": "predictions_to_annotations", "project": project}
            self._call("POST", "api/dm/actions", params=params, json=body)

    def update_annotation(self, annotation: int, result: Sequence[Json]) -> None:
        self._call("PATCH", f"api/annotations/{annotation}/", json={"result": list(result)})

    def upload(self, project: int, files: Sequence[tuple[str, bytes]]) -> list[str]:
        urls: list[str] = []
        for part in chunks(files, FILES_A_REQUEST):
            # a repeated field name would keep only one of its files
            sent = {f"file{place}": file for place, file in enumerate(part)}
            path = f"api/projects/{project}/import"
            ids = self._once(path, params={"commit_to_project": "false"}, files=sent)["file_upload_ids"]
            stored = self._call("GET", f"api/projects/{project}/file-uploads", params={"ids": json.dumps(ids)})
            place_of = {item["id"]: "/data/" + item["file"] for item in stored}
            urls.extend(place_of[number] for number in ids)
        return urls

    def set_hotkeys(self, hotkeys: Mapping[str, Any]) -> None:
        own = self._call("GET", "api/current-user/whoami").get("custom_hotkeys") or {}
        self._call("PATCH", "api/current-user/hotkeys/", json={"custom_hotkeys": {**own, **hotkeys}})

    def read_file(self, location: str) -> bytes:
        # a task's own path is the server's, whatever sub-path the server has
        address = urljoin(self._url, location.lstrip("/")) if location.startswith("/") else location
        try:
            parts = urlsplit(address)
            httpx.URL(address)
        except (ValueError, httpx.InvalidURL) as error:
            raise ImageError(f"image {location!r} is no address ({error}); correct the task's data") from error
        if parts.scheme not in ("http", "https"):
            raise ImageError(
                f"image {location!r}: only http(s) addresses and the server's own paths can be read; "
                "let Label Studio serve the image"
            )
        if parts.netloc not in self._hosts:
            raise ImageError(
                f"image {location!r}: its host {parts.netloc} is not trusted; "
                "add it to image_hosts in the settings if it is yours"
            )
        own = parts.netloc == self._host
        try:
            headers = self._headers() if own else None
            answer = self._http.get(address, headers=headers, follow_redirects=own)
        except httpx.HTTPError as error:
            raise Unreachable(
                f"image {location!r} cannot be read from {parts.netloc} ({str(error) or type(error).__name__}); "
                "run the command again when it answers"
            ) from error
        if own and answer.status_code == httpx.codes.UNAUTHORIZED:
            raise _refused(self.url, _said(answer))
        if answer.status_code != httpx.codes.OK:
            raise ImageError(
                f"image {location!r}: {parts.netloc} answers {answer.status_code}; "
                "restore the file, or delete the task"
            )
        return answer.content

    def _once(self, path: str, **request: Any) -> Any:
        return self._call("POST", path, once=True, **request)

    def _call(self, method: str, path: str, once: bool = False, **request: Any) -> Any:
        options: RequestOptions = {"max_retries": 0} if once else {}
        try:
            self._headers()
            answer = self._wrapper.httpx_client.request(path, method=method, request_options=options, **request)
        except httpx.HTTPError as error:
            raise Unreachable(
                f"no answer from Label Studio at {self.url} ({str(error) or type(error).__name__}); "
                "start it, or correct LABEL_STUDIO_URL"
            ) from error
        if answer.is_success:
            try:
                return answer.json() if answer.content else None
            except ValueError as error:
                raise NotLabelStudio(_not_label_studio(self.url)) from error
        self._raise(method, path, answer)
        return None

    def _headers(self) -> dict[str, str]:
        """The headers of the caller's account; a personal access token is exchanged for a fresh one here."""
        try:
            return self._wrapper.get_headers()
        except ApiError as error:
            raise self._not_logged_in(error) from error
        except ValueError as error:  # the exchange was not answered in JSON
            raise NotLabelStudio(_not_label_studio(self.url)) from error

    def _not_logged_in(self, error: ApiError) -> ServerError:
        if error.status_code in (400, 401, 403):
            said = error.body.get("detail") if isinstance(error.body, dict) else error.body
            return _refused(self.url, str(said))
        if error.status_code == httpx.codes.NOT_FOUND:
            return NotLabelStudio(_not_label_studio(self.url))
        return ServerError(
            f"POST api/token/refresh/: {self.url} answers {error.status_code}; "
            "look in the server's log, then run the command again"
        )

    def _raise(self, method: str, path: str, answer: httpx.Response) -> None:
        said = _said(answer)
        if answer.status_code in (401, 403):
            raise _refused(self.url, said)
        if answer.status_code == httpx.codes.NOT_FOUND:
            if "label-studio-os-package" not in self._probe():
                raise NotLabelStudio(_not_label_studio(self.url))
            raise Missing(f"{method} {path}: {self.url} has no such thing ({said}); it may have been deleted")
        raise ServerError(
            f"{method} {path}: {self.url} answers {answer.status_code} ({said}); "
            "look in the server's log, then run the command again"
        )

    def _probe(self) -> str:
        try:
            return self._http.get(urljoin(self._url, "api/version")).text
        except httpx.HTTPError:
            return ""


def chunks(items: Iterable[T], size: int = TASKS_A_REQUEST) -> Iterator[list[T]]:
    """The items in order, in lists of at most ``size``, each taken when the one before is done with."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


def _project(item: Mapping[str, Any]) -> Project:
    return Project(item["id"], item["title"], item["label_config"], item.get("description") or "")


def _not_label_studio(url: str) -> str:
    return f"what answers at {url} is not Label Studio; correct LABEL_STUDIO_URL (with its sub-path, if any)"


def _said(answer: httpx.Response) -> str:
    """What an error answer says, without its markup."""
    try:
        body = answer.json()
    except ValueError:
        return "no reason given" if "html" in answer.headers.get("content-type", "") else answer.text[:300]
    if not isinstance(body, dict):
        return str(body)[:300]
    return " ".join(str(body[name]) for name in ("detail", "validation_errors") if body.get(name))[:300]


def _refused(url: str, said: str) -> Refused:
    if "legacy token" in said:
        return Refused(
            f"{url} has legacy tokens switched off; make a personal access token on its Account & Settings "
            "page and set LABEL_STUDIO_API_KEY to it"
        )
    return Refused(
        f"{url} refuses the token ({said}); make a new one on its Account & Settings page and set "
        "LABEL_STUDIO_API_KEY to it"
    )
