"""A gateway with the server in memory, for tests; the contract tests hold it to the real one."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from plugin.label_studio.files import shown
from plugin.label_studio.gateway import WEBHOOK_ACTIONS, Json, Project, User, Webhook, moment
from plugin.label_studio.pace import Pace
from propagation.errors import ImageError, Missing, ServerError, SettingsError


class FakeGateway:
    """Label Studio as far as ``Gateway`` shows it, plus what an annotator can do.

    calls: the names of the methods called, in order. Its clock moves a millisecond a change.
    """

    url = "http://fake"

    def __init__(self) -> None:
        self.pace = Pace(clock=lambda: 0.0)
        self.calls: list[str] = []
        self.files: dict[str, bytes] = {}
        self.hotkeys: dict[str, Any] = {}
        self._projects: dict[int, Project] = {}
        self._tasks: dict[int, Json] = {}
        self._tabs: dict[int, tuple[int, Json]] = {}
        self._uploads: dict[int, str] = {}
        self._webhooks: dict[int, tuple[int, Webhook]] = {}
        self._changed_by: dict[int, int] = {}
        self._numbers = iter(range(1, 1 << 40))
        self._drafts: list[tuple[int, int | None]] = []
        self._now = datetime(2026, 1, 1, tzinfo=UTC)

    def user(self) -> User:
        return User(1, "daemon@example.com")

    def people(self) -> dict[int, str]:
        self.calls.append("people")
        return {1: "daemon@example.com"}

    def projects(self) -> list[Project]:
        self.calls.append("projects")
        return list(self._projects.values())

    def project(self, number: int) -> Project:
        if number not in self._projects:
            raise Missing(f"no project {number}; it may have been deleted")
        return self._projects[number]

    def create_project(
        self, title: str, label_config: str, description: str, settings: Mapping[str, Any]
    ) -> Project:
        self.calls.append("create_project")
        told = settings.get("expert_instruction", "")
        made = Project(next(self._numbers), title, label_config, description, told)
        self._projects[made.id] = made
        return made

    def set_label_config(self, project: int, label_config: str) -> None:
        self.calls.append("set_label_config")
        self._projects[project] = replace(self.project(project), label_config=label_config)

    def set_instructions(self, project: int, instructions: str) -> None:
        self.calls.append("set_instructions")
        self._projects[project] = replace(self.project(project), instructions=instructions)

    def tasks(
        self,
        project: int,
        include: Sequence[str],
        since: str | None = None,
        ids: Sequence[int] | None = None,
        without: Sequence[str] = (),
        annotated: bool = False,
    ) -> Iterator[Json]:
        self.calls.append("tasks")
        wanted = {"id", "updated_at", *include}
        found = [
            task
            for task in self._of(project, ids)
            if (since is None or task["updated_at"] > moment(since))
            and task["updated_at"] not in without
            and (_count(task) or not annotated)
        ]
        for task in sorted(found, key=lambda task: (task["updated_at"] if since else "", task["id"])):
            shown = {name: value for name, value in task.items() if name in wanted}
            if "annotations" in shown:
                shown["annotations"] = [
                    {name: value for name, value in annotation.items() if name in wanted}
                    for annotation in shown["annotations"]
                ]
            if "draft_exists" in wanted:
                shown["draft_exists"] = any(drawn_on == task["id"] for drawn_on, _ in self._drafts)
            yield copy.deepcopy(shown)

    def latest(self, project: int) -> str | None:
        self.calls.append("latest")
        return max((task["updated_at"] for task in self._of(project)), default=None)

    def unannotated(self, project: int, tasks: Sequence[int]) -> int:
        self.calls.append("unannotated")
        return sum(not _count(task) for task in self._of(project, tasks))

    def unpredicted(self, project: int, tasks: Sequence[int], model_version: str) -> int:
        self.calls.append("unpredicted")
        return sum(
            all(prediction["model_version"] != model_version for prediction in task["predictions"])
            for task in self._of(project, tasks)
        )

    def settled(self, project: int, tasks: Sequence[int], by: int) -> str | None:
        self.calls.append("settled")
        found = self._of(project, tasks)
        moments = {task["updated_at"] for task in found}
        mine = [task for task in found if _count(task) == 1 and self._changed_by[task["id"]] == by]
        return min(moments) if len(mine) == len(tasks) and tasks else None

    def drafts(self, task: int) -> set[int]:
        self.calls.append("drafts")
        return {of for drawn_on, of in self._drafts if drawn_on == task and of is not None}

    def _of(self, project: int, ids: Sequence[int] | None = None) -> list[Json]:
        self.project(project)
        numbers = self._tasks if ids is None else sorted(set(ids) & self._tasks.keys())
        return [self._tasks[number] for number in numbers if self._tasks[number]["project"] == project]

    def import_tasks(self, project: int, tasks: Sequence[Json]) -> list[int]:
        self.calls.append("import_tasks")
        self.project(project)
        ids = []
        for task in tasks:
            number = next(self._numbers)
            self._tasks[number] = {
                "id": number,
                "project": project,
                "data": copy.deepcopy(task["data"]),
                "annotations": [],
                "predictions": [],
                "updated_at": self._tick(),
            }
            ids.append(number)
        return ids

    def import_predictions(self, project: int, predictions: Sequence[Json]) -> int:
        self.calls.append("import_predictions")
        self.project(project)
        for prediction in predictions:
            if self._tasks.get(prediction["task"], {}).get("project") != project:
                raise ServerError(f"project {project} has no task {prediction['task']}; it may have been deleted")
        for prediction in predictions:
            task = self._task(prediction["task"])
            # as on the server, a task does not count as changed by it
            task["predictions"].append({"id": next(self._numbers), **copy.deepcopy(prediction)})
        return len(predictions)

    def update_task(self, task: int, data: Mapping[str, Any]) -> None:
        self.calls.append("update_task")
        found = self._task(task)
        found["data"] = copy.deepcopy(dict(data))
        found["updated_at"] = self._tick()

    def tabs(self, project: int) -> dict[int, Json]:
        self.project(project)
        return {number: copy.deepcopy(tab) for number, (of, tab) in self._tabs.items() if of == project}

    def create_tab(self, project: int, tab: Json) -> None:
        self.calls.append("create_tab")
        self.project(project)
        self._tabs[next(self._numbers)] = project, copy.deepcopy(dict(tab))

    def update_tab(self, number: int, tab: Json) -> None:
        self.calls.append("update_tab")
        if number not in self._tabs:
            raise Missing(f"no tab {number}; it may have been deleted")
        self._tabs[number] = self._tabs[number][0], copy.deepcopy(dict(tab))

    def delete_tasks(self, project: int, tasks: Sequence[int]) -> None:
        self.calls.append("delete_tasks")
        self.project(project)
        for number in tasks:
            if self._tasks.get(number, {}).get("project") == project:
                del self._tasks[number]
        if tasks and not self._of(project):
            self._tabs = {number: tab for number, tab in self._tabs.items() if tab[0] != project}

    def predictions_to_annotations(self, project: int, model_version: str, tasks: Sequence[int]) -> None:
        self.calls.append("predictions_to_annotations")
        made: list[Json] = []
        for task in self._of(project, tasks):
            parents = {annotation["parent_prediction"] for annotation in task["annotations"]}
            found = [p for p in task["predictions"] if p["model_version"] == model_version]
            lacking = [prediction for prediction in found if prediction["id"] not in parents]
            if lacking and not _count(task):
                for prediction in lacking:
                    self._annotate(task, prediction["result"], self.user().id, parent=prediction["id"])
                made.append(task)
        now = self._tick()
        for task in made:  # as on the server, at one moment
            task["updated_at"] = now

    def update_annotation(self, annotation: int, result: Sequence[Json]) -> str:
        self.calls.append("update_annotation")
        return self._edit(annotation, result, self.user().id)

    def delete_annotation(self, annotation: int) -> None:
        self.calls.append("delete_annotation")
        with contextlib.suppress(Missing):
            self._delete(annotation, self.user().id)

    def delete_prediction(self, prediction: int) -> None:
        self.calls.append("delete_prediction")
        for task in self._tasks.values():
            kept = [one for one in task["predictions"] if one["id"] != prediction]
            if len(kept) < len(task["predictions"]):
                task["predictions"] = kept
                for annotation in task["annotations"]:
                    if annotation["parent_prediction"] == prediction:
                        annotation["parent_prediction"] = None
                self._changed(task, self.user().id)

    def upload(self, project: int, files: Sequence[tuple[str, bytes]]) -> list[str]:
        self.calls.append("upload")
        self.project(project)
        names = [re.sub(r"[^-\w.]", "", name.replace(" ", "_")) for name, _ in files]
        urls = [f"/data/upload/{project}/{next(self._numbers):08x}-{name}" for name in names]
        self.files.update(zip(urls, (content for _, content in files), strict=True))
        return urls

    def upload_one(self, project: int, name: str, content: bytes) -> tuple[int, str]:
        (url,) = self.upload(project, [(name, content)])
        number = next(self._numbers)
        self._uploads[number] = url
        return number, url

    def delete_upload(self, project: int, number: int) -> None:
        self.calls.append("delete_upload")
        self.project(project)
        self.files.pop(self._uploads.pop(number, ""), None)

    def webhooks(self, project: int) -> list[Webhook]:
        self.project(project)
        return [hook for of, hook in self._webhooks.values() if of == project]

    def ensure_webhook(self, project: int, url: str, headers: Mapping[str, str]) -> None:
        if not url.startswith(("http://", "https://")):
            raise SettingsError(f"{self.url} takes no webhook to {url}; correct webhook_url in the settings")
        known = [hook.id for hook in self.webhooks(project) if hook.url == url]
        number = known[0] if known else next(self._numbers)
        hook = Webhook(number, url, frozenset(WEBHOOK_ACTIONS), True, dict(headers))
        self._webhooks[number] = project, hook

    def breathe(self) -> None:
        self.pace.rest()

    def set_hotkeys(self, hotkeys: Mapping[str, Any]) -> None:
        self.hotkeys.update(hotkeys)

    def read_file(self, location: str) -> bytes:
        if location not in self.files:
            raise ImageError(
                f"image {shown(location)}: {self.url} answers 404; restore the file, or delete the task"
            )
        return self.files[location]

    # what annotators do

    def submit(self, task: int, result: Sequence[Json], by: int = 2, seconds: float = 1.0) -> int:
        """A person's new annotation; its id."""
        return self._annotate(self._task(task), result, by, seconds=seconds)

    def skip(self, task: int, by: int = 2) -> int:
        """A person skips a task; the id of the cancelled annotation."""
        return self._annotate(self._task(task), [], by, cancelled=True)

    def draft(self, task: int, annotation: int | None = None) -> None:
        """A person begins to draw, or to change an annotation, and has not submitted it yet."""
        self._drafts.append((self._task(task)["id"], annotation))  # by which a task does not count as changed

    def edit(self, annotation: int, result: Sequence[Json], by: int = 2) -> None:
        """A person changes an annotation."""
        self._edit(annotation, result, by)

    def delete(self, annotation: int, by: int = 2) -> None:
        """A person deletes an annotation."""
        self._delete(annotation, by)

    def _delete(self, annotation: int, by: int) -> None:
        task, found = self._find(annotation)
        self._without_drafts(annotation)
        task["annotations"].remove(found)
        self._changed(task, by)

    def _annotate(
        self,
        task: Json,
        result: Sequence[Json],
        by: int,
        parent: int | None = None,
        cancelled: bool = False,
        seconds: float | None = None,
    ) -> int:
        made: Json = {
            "id": next(self._numbers),
            "result": copy.deepcopy(list(result)),
            "completed_by": by,
            "updated_by": None,
            "was_cancelled": cancelled,
            "lead_time": seconds,
            "parent_prediction": parent,
            "updated_at": self._tick(),
        }
        task["annotations"].append(made)
        self._changed(task, by)
        number: int = made["id"]
        return number

    def _edit(self, annotation: int, result: Sequence[Json], by: int) -> str:
        task, found = self._find(annotation)
        self._without_drafts(annotation)
        at = self._tick()
        found.update(result=copy.deepcopy(list(result)), updated_by=by, updated_at=at)
        self._changed(task, by)
        return at

    def _without_drafts(self, annotation: int) -> None:
        self._drafts = [draft for draft in self._drafts if draft[1] != annotation]

    def _changed(self, task: Json, by: int) -> None:
        task["updated_at"] = self._tick()
        self._changed_by[task["id"]] = by

    def _find(self, annotation: int) -> tuple[Json, Json]:
        for task in self._tasks.values():
            for found in task["annotations"]:
                if found["id"] == annotation:
                    return task, found
        raise Missing(f"no annotation {annotation}; it may have been deleted")

    def _task(self, number: int) -> Json:
        if number not in self._tasks:
            raise Missing(f"no task {number}; it may have been deleted")
        return self._tasks[number]

    def _tick(self) -> str:
        self._now += timedelta(milliseconds=1)
        return self._now.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _count(task: Json) -> int:
    """How many annotations a task has, skips aside."""
    return sum(not annotation["was_cancelled"] for annotation in task["annotations"])
