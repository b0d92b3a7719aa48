"""Write-back: the source project's annotations are brought to hold just the masks that are accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from plugin.label_studio.gateway import Gateway, Json, chunks
from plugin.label_studio.regions import digest
from propagation.campaign import Campaign
from propagation.events import ImageTaken, MasksWritten, WriteIntended
from sync.source import ANNOTATION_FIELDS, Source, is_ours, people, region_of
from sync.store import SourceTask

IMAGES_AT_ONCE = 200


@dataclass(frozen=True)
class Due:
    """What one image's annotation should hold."""

    image: str
    task: int
    masks: tuple[str, ...]
    result: list[Json]

    @property
    def digest(self) -> str:
        """The fingerprint of the result."""
        return digest(self.result)


def model_version(campaign: Campaign) -> str:
    """The model version of the predictions that annotations are made from."""
    return f"propagated-{campaign.name}"


def due(campaign: Campaign, tasks: Sequence[SourceTask], source: Source) -> Iterator[Due]:
    """The images whose annotation does not hold the accepted masks, and what it should hold."""
    table, accepted = campaign.table, campaign.accepted()
    cluster = campaign.deciding_cluster()
    share = {name: campaign.search.share(name) for name in set(cluster[accepted].tolist()) - {None}}
    rows_of = dict(zip(table.images.tolist(), table.rows_by_image(), strict=True))
    for task in tasks:
        rows = rows_of.get(task.image, np.empty(0, dtype=np.int64))
        rows = rows[accepted[rows]]
        masks = tuple(table.ids[rows].tolist())
        if masks == campaign.written.get(task.task, ()) or campaign.is_taken(task.image):
            continue
        result = [
            region
            for row in rows
            for region in region_of(
                table,
                row,
                {
                    "campaign": campaign.name,
                    "cluster": cluster[row],
                    "verified": bool(campaign.verdict[row] == 1),
                    campaign.claim: share.get(cluster[row]),
                },
                source.labeling,
            )
        ]
        yield Due(task.image, task.task, masks, result)


def write_back(
    gateway: Gateway,
    source: Source,
    campaign: Campaign,
    tasks: Sequence[SourceTask],
    record: Callable[[Sequence[WriteIntended | MasksWritten | ImageTaken]], None],
) -> int:
    """Bring every image's annotation up to date. How many were written.

    ``record`` is told before and after each batch, so that one cut off is known again.

    First annotations go in bulk, as predictions that the server turns into annotations; a set that has
    changed since goes by itself. What a person annotated or edited is left alone.
    """
    count = 0
    for batch in chunks(due(campaign, tasks, source), IMAGES_AT_ONCE):
        record([WriteIntended(item.task, item.digest) for item in batch])
        events = _write(gateway, source, campaign, batch)
        record(events)
        count += sum(isinstance(event, MasksWritten) for event in events)
    return count


def _write(
    gateway: Gateway, source: Source, campaign: Campaign, batch: list[Due]
) -> list[MasksWritten | ImageTaken]:
    version = model_version(campaign)
    now = _look(gateway, source, [item.task for item in batch], ["predictions", "model_version"])
    taken = [item for item in batch if item.task not in now or people(now[item.task], campaign, source)]
    free = [item for item in batch if item not in taken]
    fresh = [item for item in free if _own(now[item.task], campaign, source) is None]
    lacking = [
        {"task": item.task, "model_version": version, "result": item.result}
        for item in fresh
        if all(p.get("model_version") != version for p in now[item.task].get("predictions") or [])
    ]
    if lacking:
        gateway.import_predictions(source.project, lacking)
    if fresh:
        gateway.predictions_to_annotations(source.project, version, [item.task for item in fresh])
        now |= _look(gateway, source, [item.task for item in fresh])
    events: list[MasksWritten | ImageTaken] = [ImageTaken(item.image) for item in taken]
    for item in free:
        own = _own(now[item.task], campaign, source)
        if own is None:
            events.append(ImageTaken(item.image))
            continue
        if digest(own["result"]) != item.digest:
            gateway.update_annotation(own["id"], item.result)
        events.append(MasksWritten(item.image, item.task, own["id"], item.masks))
    return events


def _look(gateway: Gateway, source: Source, tasks: Sequence[int], more: Sequence[str] = ()) -> dict[int, Json]:
    return {task["id"]: task for task in gateway.tasks(source.project, [*ANNOTATION_FIELDS, *more], ids=tasks)}


def _own(task: Json, campaign: Campaign, source: Source) -> Json | None:
    for annotation in task.get("annotations") or []:
        if not annotation.get("was_cancelled") and is_ours(annotation, task["id"], campaign, source):
            found: Json = annotation
            return found
    return None
