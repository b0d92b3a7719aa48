"""The source project as the daemon sees it: its pool, whose annotations are whose, and predictions out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plugin.label_studio.gateway import Gateway, Json, chunks
from plugin.label_studio.images import image_key
from plugin.label_studio.labeling import Labeling
from plugin.label_studio.regions import META, digest, regions_of
from propagation.campaign import Campaign
from propagation.errors import ConfigError
from propagation.masks import MaskTable
from propagation.tree import ClusterTree, cluster_name, home_clusters
from sync.store import SourceTask

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


def _propagated(annotation: Mapping[str, Any]) -> bool:
    """Whether all regions of an annotation are as a campaign writes them."""
    metas = [(region.get("meta") or {}).get(META) for region in annotation.get("result") or []]
    return bool(metas) and all(isinstance(meta, dict) and "campaign" in meta for meta in metas)


def is_ours(annotation: Mapping[str, Any], task: int, campaign: Campaign, source: Source) -> bool:
    """Whether an annotation is the campaign's own and no person has touched it.

    The server made it from a prediction of ours, nobody spent time on it in the editor, and it holds what
    was meant for it.
    """
    return (
        annotation.get("parent_prediction") is not None
        and annotation.get("lead_time") is None
        and annotation.get("completed_by") == source.account
        and annotation.get("updated_by") in (None, source.account)
        and digest(annotation["result"]) in campaign.intended.get(task, ())
    )


def people(task: Json, campaign: Campaign, source: Source) -> bool:
    """Whether a person has annotated a task, or edited what the campaign wrote there."""
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
    have = {
        task["id"]
        for task in gateway.tasks(source.project, ["predictions", "model_version"])
        if any(p.get("model_version") == model_version for p in task.get("predictions") or [])
    }
    cluster = np.full(len(table), None, dtype=object)
    for tree in trees:
        cluster[tree.rows] = [cluster_name(tree, node) for node in home_clusters(tree, least_size).tolist()]
    rows_of = dict(zip(table.images.tolist(), table.rows_by_image(), strict=True))

    def predictions() -> Iterator[Json]:
        for task in tasks:
            rows = [row for row in rows_of.get(task.image, ()) if table.best[row]]
            if rows and task.task not in have:
                yield {
                    "task": task.task,
                    "model_version": model_version,
                    "score": round(float(table.score[rows].mean()), 4),
                    "result": [
                        region
                        for row in rows
                        for region in region_of(table, row, {"cluster": cluster[row]}, source.labeling)
                    ],
                }

    added = 0
    for part in chunks(predictions(), 200):
        added += gateway.import_predictions(source.project, part)
        progress(len(part))
    return added


def region_of(table: MaskTable, row: int, provenance: Mapping[str, Any], labeling: Labeling) -> list[Json]:
    """The regions of one row of a mask table."""
    category = table.categories[table.category[row]]
    return regions_of(str(table.ids[row]), table.rle(row), category, float(table.score[row]), provenance, labeling)
