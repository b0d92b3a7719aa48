"""The source project as the daemon sees it: its pool, whose annotations are whose, and predictions out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from plugin.label_studio.gateway import IDS_A_REQUEST, Gateway, Json
from plugin.label_studio.images import image_key
from plugin.label_studio.labeling import Labeling
from plugin.label_studio.regions import META, digest, regions_of, rle_of
from propagation.campaign import Campaign
from propagation.errors import ConfigError, MaskError
from propagation.masks import MaskTable
from propagation.rle import Box, Rle, boxed
from propagation.tree import ClusterTree, cluster_name, home_clusters
from sync.store import SourceTask

T = TypeVar("T")
S = TypeVar("S")

ANNOTATION_FIELDS = (
    "annotations", "result", "was_cancelled", "completed_by", "updated_by", "lead_time",
    "parent_prediction", "updated_at",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """The source project: number and labeling, and the account that the daemon writes as."""

    project: int
    labeling: Labeling
    account: int


def pool(gateway: Gateway, project: int, field: str) -> list[SourceTask]:
    """The tasks that no person has annotated, by image; of tasks with the same image, the first.

    Raises ConfigError when no task has the image field.
    """
    found: dict[str, SourceTask] = {}
    annotated: set[str] = set()
    tasks = 0
    for task in gateway.tasks(
        project, ["data", *ANNOTATION_FIELDS[:1], "was_cancelled", "result", "completed_by"]
    ):
        tasks += 1
        location = task["data"].get(field)
        if not isinstance(location, str) or not location:
            continue
        key = image_key(location)
        if any(not a.get("was_cancelled") and not _propagated(a) for a in task.get("annotations") or []):
            annotated.add(key)
        found.setdefault(key, SourceTask(key, task["id"], location))
    if not found:
        raise ConfigError(
            f"project {project}: none of its {tasks} tasks has an image in {field!r}; import images first"
        )
    return [task for key, task in found.items() if key not in annotated]


def annotated(
    gateway: Gateway, project: int, labeling: Labeling, categories: Sequence[str]
) -> Iterator[tuple[str, list[tuple[Rle, int]]]]:
    """The images that people have annotated: where each is, and its objects with the rows of their categories.

    In an order of their own that does not change; only those whose objects can all be read. Of several annotations
    of an image, the latest.
    """
    place_of = {labeling.label(name): place for place, name in enumerate(categories)}
    found: dict[str, tuple[str, Json]] = {}
    for task in gateway.tasks(project, ["data", *ANNOTATION_FIELDS]):
        location = task["data"].get(labeling.field)
        drawn = [a for a in task.get("annotations") or [] if not a.get("was_cancelled") and not _propagated(a)]
        if isinstance(location, str) and location and drawn:
            found.setdefault(image_key(location), (location, max(drawn, key=lambda one: int(one["id"]))))
    for key in sorted(found, key=lambda key: hashlib.blake2b(key.encode(), digest_size=8).digest()):
        location, annotation = found[key]
        objects = _objects(annotation["result"], labeling, place_of)
        if objects:
            yield location, objects


def _objects(result: Sequence[Json], labeling: Labeling, place_of: Mapping[str, int]) -> list[tuple[Rle, int]]:
    """The objects of an annotation that the categories are about; none where one cannot be read."""
    objects = []
    try:
        for region in result:
            value = region.get("value", {})
            labels = value.get("polygonlabels") or value.get("brushlabels") or []
            if region.get("to_name") == labeling.image and labels and labels[0] in place_of:
                objects.append((rle_of([region]), place_of[labels[0]]))
    except (LookupError, TypeError, ValueError, MaskError):  # no result of this labeling
        return []
    return objects


def _propagated(annotation: Mapping[str, Any]) -> bool:
    """Whether all regions of an annotation are as a campaign writes them."""
    metas = [(region.get("meta") or {}).get(META) for region in annotation.get("result") or []]
    return bool(metas) and all(isinstance(meta, dict) and "campaign" in meta for meta in metas)


def is_ours(annotation: Mapping[str, Any], task: int, campaign: Campaign, source: Source) -> bool:
    """Whether an annotation is the campaign's own and no person has touched it.

    The server made it from a prediction of ours, nobody spent time on it in the editor, and it holds what
    was meant for it.
    """
    untouched = (
        annotation.get("parent_prediction") is not None
        and annotation.get("lead_time") is None
        and annotation.get("completed_by") == source.account
        and annotation.get("updated_by") in (None, source.account)
    )
    try:
        return untouched and digest(annotation["result"]) in campaign.intended.get(task, ())
    except (LookupError, TypeError):  # a result of another form than ours
        return False


def people(task: Json, campaign: Campaign, source: Source) -> bool:
    """Whether a person has annotated a task, or edited what the campaign wrote there.

    A task whose last change was the campaign's own writing needs no look at its annotations.
    """
    if campaign.ours.get(task["id"], (0, ""))[1] == task["updated_at"]:
        return False
    return any(
        not annotation.get("was_cancelled") and not is_ours(annotation, task["id"], campaign, source)
        for annotation in task.get("annotations") or []
    )


def push_predictions(
    gateway: Gateway,
    source: Source,
    tasks: Sequence[SourceTask],
    table: MaskTable,
    trees: Sequence[ClusterTree],
    model_version: str,
    least_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Give every task of the pool its masks as one prediction, each region with its cluster.

    Tasks that have a prediction of this version get no second one. How many were added.
    """
    cluster = np.full(len(table), None, dtype=object)
    for tree in trees:
        cluster[tree.rows] = [cluster_name(tree, node) for node in home_clusters(tree, least_size).tolist()]
    rows_of = dict(zip(table.images.tolist(), table.rows_by_image(), strict=True))

    def best(task: SourceTask) -> list[int]:
        return [row for row in rows_of.get(task.image, ()) if table.best[row]]

    def lacking() -> Iterator[list[SourceTask]]:
        wanted = [task for task in tasks if best(task)]
        while wanted:
            size = min(gateway.pace.size("predictions"), IDS_A_REQUEST)
            part, wanted = wanted[:size], wanted[size:]
            numbers = [task.task for task in part]
            count = gateway.unpredicted(source.project, numbers, model_version)
            if 0 < count < len(part):
                found = gateway.tasks(source.project, ["predictions", "model_version"], ids=numbers)
                bare = {task["id"] for task in found if not _predicted(task, model_version)}
                part = [task for task in part if task.task in bare]
            if count:
                yield part

    def predictions(part: Sequence[SourceTask]) -> list[Json]:
        return [
            {
                "task": task.task,
                "model_version": model_version,
                "score": round(float(table.score[best(task)].mean()), 4),
                "result": [
                    region
                    for row, box in zip(best(task), boxed(table.rles(best(task))), strict=True)
                    for region in region_of(table, row, {"cluster": cluster[row]}, source.labeling, box)
                ],
            }
            for task in part
        ]

    added = 0
    for made in ahead(predictions, lacking()):
        added += gateway.import_predictions(source.project, made)
        progress(len(made))
    return added


def _predicted(task: Json, model_version: str) -> bool:
    return any(prediction.get("model_version") == model_version for prediction in task.get("predictions") or [])


def ahead(make: Callable[[S], T], parts: Iterable[S]) -> Iterator[T]:
    """What is made of each part; the next one is made while the caller, and the server, work on this one."""
    with ThreadPoolExecutor(1) as maker:
        coming: Future[T] | None = None
        for part in parts:
            following = maker.submit(make, part)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


def region_of(
    table: MaskTable, row: int, provenance: Mapping[str, Any], labeling: Labeling, box: Box | None = None
) -> list[Json]:
    """The regions of one row of a mask table. box: see ``regions_of``."""
    category, score = table.categories[table.category[row]], float(table.score[row])
    return regions_of(str(table.ids[row]), table.rle(row), category, score, provenance, labeling, box)
