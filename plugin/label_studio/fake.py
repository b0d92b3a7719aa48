"""A gateway with the server in memory, for tests; the contract tests hold it to the real one."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from plugin.label_studio.gateway import Json, Project, User
from propagation.errors import ImageError, Missing, ServerError


class FakeGateway:
    """Label Studio as far as ``Gateway`` shows it, plus what an annotator can do.

    calls: the names of the methods called, in order. Its clock moves a millisecond a change.
    """

    url = "http://fake"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.files: dict[str, bytes] = {}
        self.hotkeys: dict[str, Any] = {}
        self._projects: dict[int, Project] = {}
        self._tasks: dict[int, Json] = {}
        self._numbers = iter(range(1, 1 << 40))
        self._now = datetime(2026, 1, 1, tzinfo=UTC)

    def user(self) -> User:
        return User(1, "daemon@example.com")

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
        made = Project(next(self._numbers), title, label_config, description)
        self._projects[made.id] = made
        return made

    def tasks(
        self, project: int, include: Sequence[str], since: str | None = None, ids: Sequence[int] | None = None
    ) -> Iterator[Json]:
        self.calls.append("tasks")
        self.project(project)
        wanted = {"id", "updated_at", *include}
        found = [
            task
            for task in self._tasks.values()
            if task["project"] == project
            and (since is None or datetime.fromisoformat(task["updated_at"]) > datetime.fromisoformat(since))
            and (ids is None or task["id"] in set(ids))
        ]
        for task in sorted(found, key=lambda task: (task["updated_at"] if since else "", task["id"])):
            shown = {name: value for name, value in task.items() if name in wanted}
            if "annotations" in shown:
                shown["annotations"] = [
                    {name: value for name, value in annotation.items() if name in wanted}
                    for annotation in shown["annotations"]
                ]
            yield copy.deepcopy(shown)

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

    def predictions_to_annotations(self, project: int, model_version: str, tasks: Sequence[int]) -> None:
        self.calls.append("predictions_to_annotations")
        self.project(project)
        for task in [task for task in self._tasks.values() if task["project"] == project and task["id"] in tasks]:
            made = {annotation["parent_prediction"] for annotation in task["annotations"]}
            for prediction in task["predictions"]:
                if prediction["model_version"] == model_version and prediction["id"] not in made:
                    self._annotate(task, prediction["result"], self.user().id, parent=prediction["id"])

    def update_annotation(self, annotation: int, result: Sequence[Json]) -> None:
        self.calls.append("update_annotation")
        self._edit(annotation, result, self.user().id)

    def upload(self, project: int, files: Sequence[tuple[str, bytes]]) -> list[str]:
        self.calls.append("upload")
        self.project(project)
        names = [re.sub(r"[^-\w.]", "", name.replace(" ", "_")) for name, _ in files]
        urls = [f"/data/upload/{project}/{next(self._numbers):08x}-{name}" for name in names]
        self.files.update(zip(urls, (content for _, content in files), strict=True))
        return urls

    def set_hotkeys(self, hotkeys: Mapping[str, Any]) -> None:
        self.hotkeys.update(hotkeys)

    def read_file(self, location: str) -> bytes:
        if location not in self.files:
            raise ImageError(f"image {location!r}: {self.url} answers 404; restore the file, or delete the task")
        return self.files[location]

    # what annotators do

    def submit(self, task: int, result: Sequence[Json], by: int = 2, seconds: float = 1.0) -> int:
        """A person's new annotation; its id."""
        return self._annotate(self._task(task), result, by, seconds=seconds)

    def skip(self, task: int, by: int = 2) -> int:
        """A person skips a task; the id of the cancelled annotation."""
        return self._annotate(self._task(task), [], by, cancelled=True)

    def edit(self, annotation: int, result: Sequence[Json], by: int = 2) -> None:
        """A person changes an annotation."""
        self._edit(annotation, result, by)

    def delete(self, annotation: int) -> None:
        """A person deletes an annotation."""
        task, found = self._find(annotation)
        task["annotations"].remove(found)
        task["updated_at"] = self._tick()

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
        task["updated_at"] = self._tick()
        number: int = made["id"]
        return number

    def _edit(self, annotation: int, result: Sequence[Json], by: int) -> None:
        task, found = self._find(annotation)
        found.update(result=copy.deepcopy(list(result)), updated_by=by, updated_at=self._tick())
        task["updated_at"] = self._tick()

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
