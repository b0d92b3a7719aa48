"""Write-back: the source project's annotations are brought to hold just the masks that are accepted."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from plugin.label_studio.gateway import Gateway, Json, chunks, moment
from plugin.label_studio.regions import META, digest, in_words
from propagation.campaign import Campaign
from propagation.events import ImageTaken, MasksWritten, WriteIntended
from propagation.rle import boxed
from propagation.summary import provenance
from sync.source import ANNOTATION_FIELDS, Source, is_ours, people, region_of
from sync.store import SourceTask

PATCHES_AT_FIRST = 4
DRAWN_AHEAD = 1000  # images
DRAWN_AT_ONCE = 25
Record = Callable[[Sequence[WriteIntended | MasksWritten | ImageTaken]], None]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Due:
    """What one image's annotation should hold; digest: the fingerprint of the result."""

    image: str
    task: int
    masks: tuple[str, ...]
    result: list[Json]
    digest: str


def model_version(campaign: Campaign) -> str:
    """The model version of the predictions that annotations are made from."""
    return f"propagated-{campaign.name}"


def write_back(
    gateway: Gateway, source: Source, campaign: Campaign, tasks: Sequence[SourceTask], record: Record
) -> Generator[int, None, None]:
    """Bring every image's annotation up to date, batch by batch; yields how many images each batch has written.

    Between two batches the campaign may learn what it likes: a batch follows what holds when it begins. ``record``
    is told before and after each write, so that one cut off is known again.

    First annotations go in bulk, as predictions that the server turns into annotations; a set that has
    changed since goes by itself. What a person annotated or edited is left alone.
    """
    images = _Images(campaign, source, tasks)
    writer = _Writer(gateway, source, campaign, record)
    try:
        for fresh in (True, False):
            place = -1
            while len(due := images.due(fresh, after=place)):
                size = gateway.pace.size("predictions")
                if not fresh:
                    size = gateway.pace.size("patches", PATCHES_AT_FIRST, alone=True)
                images.draw(due[: size + DRAWN_AHEAD])
                batch = images.items(due[:size])
                place = int(due[:size][-1])
                yield writer.first(batch) if fresh else writer.again(batch)
    finally:
        images.close()


@dataclass(frozen=True)
class _Drawn:
    """The regions of some masks of an image, without what the campaign says of them."""

    rows: Rows
    regions: list[tuple[int, Json]]
    digest: str


class _Images:
    """The images that may be written to, in the mask table's order."""

    def __init__(self, campaign: Campaign, source: Source, tasks: Sequence[SourceTask]) -> None:
        table = campaign.table
        self._campaign = campaign
        self._source = source
        places = {image: place for place, image in enumerate(table.images.tolist())}
        self._tasks = {places[task.image]: task for task in tasks if task.image in places}
        self._order = np.argsort(table.image, kind="stable")
        self._ends = [0, *np.cumsum(np.bincount(table.image, minlength=len(places))).tolist()]
        self._place_of = {task.task: place for place, task in self._tasks.items()}
        self._kind = np.full(len(places), -1)  # 1 fresh, 0 written before
        self._standing = np.zeros(len(table), dtype=bool)
        for place, task in self._tasks.items():
            self._kind[place] = task.task not in campaign.ours
            self._standing[campaign.standing(task.task)] = True
        self._accepted: NDArray[np.bool_] = self._standing
        self._drawer = ThreadPoolExecutor(1)
        self._coming: dict[int, tuple[Future[list[_Drawn]], int]] = {}

    def due(self, fresh: bool, after: int) -> Rows:
        """The images behind one that don't hold what they should: of those never written to, or of the others."""
        self._accepted = self._campaign.accepted()
        wrong = np.zeros(len(self._kind), dtype=bool)
        wrong[self._campaign.table.image[self._accepted != self._standing]] = True
        halfway = [self._place_of[task] for task in self._campaign.halfway if task in self._place_of]
        wrong[np.array(halfway, dtype=np.int64)] = True
        due = wrong & (self._kind == fresh) & ~self._campaign.taken
        return np.flatnonzero(due[after + 1 :]) + after + 1

    def draw(self, images: Rows) -> None:
        """Have the regions drawn that are likely to be wanted next, while the server is at work."""
        for part in chunks([place for place in images.tolist() if place not in self._coming], DRAWN_AT_ONCE):
            made = self._drawer.submit(
                lambda rows: [self._drawn(one) for one in rows], [self._rows(p) for p in part]
            )
            self._coming |= {place: (made, number) for number, place in enumerate(part)}

    def close(self) -> None:
        """Draw nothing more."""
        self._drawer.shutdown(cancel_futures=True)

    def items(self, images: Rows) -> list[Due]:
        """What images should hold now."""
        table, behind = self._campaign.table, provenance(self._campaign)
        found = []
        for place in images.tolist():
            rows = self._rows(place)
            future, number = self._coming.pop(place)
            made = future.result()[number]
            if not np.array_equal(made.rows, rows):
                made = self._drawn(rows)
            for row, region in made.regions:
                region["meta"][META] |= behind(row)
                region["meta"]["text"] = [in_words(region["meta"][META])]
            task = self._tasks[place]
            masks = tuple(table.ids[rows].tolist())
            found.append(Due(task.image, task.task, masks, [region for _, region in made.regions], made.digest))
        return found

    def _rows(self, place: int) -> Rows:
        rows = self._order[self._ends[place] : self._ends[place + 1]]
        return rows[self._accepted[rows]]

    def _drawn(self, rows: Rows) -> _Drawn:
        table, labeling = self._campaign.table, self._source.labeling
        boxes = zip(rows.tolist(), boxed(table.rles(rows)), strict=True)
        regions = [(row, region) for row, box in boxes for region in region_of(table, row, {}, labeling, box)]
        return _Drawn(rows, regions, digest([region for _, region in regions]))


class _Writer:
    """Writes batches."""

    def __init__(self, gateway: Gateway, source: Source, campaign: Campaign, record: Record) -> None:
        self._gateway = gateway
        self._source = source
        self._campaign = campaign
        self._record = record
        self._version = model_version(campaign)

    def first(self, items: list[Due]) -> int:
        """Annotate images that the log knows no annotation of; how many."""
        doubtful = [item for item in items if item.task in self._campaign.intended]  # a run was cut off there
        bare = [item for item in items if item.task not in self._campaign.intended]
        # the server counts more quickly than it lists: mostly nobody has been there, and nothing is to be read
        if self._gateway.unannotated(self._source.project, _tasks(bare)) < len(bare):
            doubtful, bare = items, []
        self._record([WriteIntended(item.task, item.digest) for item in items])
        return (self._in_bulk(bare) if bare else 0) + (self._with_care(doubtful) if doubtful else 0)

    def again(self, items: list[Due]) -> int:
        """Change annotations that the campaign has written before; how many."""
        self._gateway.breathe()
        self._record([WriteIntended(item.task, item.digest) for item in items])
        return self._with_care(items)

    def _in_bulk(self, items: list[Due]) -> int:
        project, written = self._source.project, 0
        self._gateway.import_predictions(project, [self._prediction(item) for item in items])
        while items:
            calls = ceil(len(items) / self._gateway.pace.size("annotations"))
            some = ceil(len(items) / calls)
            part, items = items[:some], items[some:]
            self._gateway.predictions_to_annotations(project, self._version, _tasks(part))
            at = self._gateway.settled(project, _tasks(part), self._source.account)
            if at is None:  # somebody came in between
                written += self._with_care(part)
                continue
            # which number each annotation has is told by no quick call, and needed by none
            self._record([MasksWritten(item.image, item.task, 0, item.masks, at) for item in part])
            written += len(part)
        return written

    def _with_care(self, items: list[Due]) -> int:
        """Bring annotations up to date after reading them; how many are."""
        now = self._look(items)
        free = [item for item in items if item.task in now and not self._theirs(now[item.task])]
        now |= self._annotate([item for item in free if item.result and not self._own(now[item.task])])
        # of what a death left of one that was taken back, only the prediction is there
        made = self._predictions([item for item in free if not item.result and not self._own(now[item.task])])
        written: dict[int, tuple[int, str]] = {}
        expected: dict[int, dict[int, str]] = {}
        seconds = 0.0
        for item in free:
            task = now[item.task]
            found = self._own(task)
            if not (found or not item.result) or self._theirs(task):
                continue
            if not item.result:  # all was taken back: the image is as it was before
                began = time.monotonic()
                written[item.task] = 0, task["updated_at"]
                if self._clear(task, found, made.get(item.task) or [own["parent_prediction"] for own in found]):
                    gone = {own["id"] for own in found}
                    expected[item.task] = {n: at for n, at in _moments(task).items() if n not in gone}
                seconds += time.monotonic() - began
                continue
            own, *twins = found
            for twin in twins:  # the answer to a call was lost, which was then made again
                self._gateway.delete_annotation(twin["id"])
            written[item.task] = own["id"], "" if twins else task["updated_at"]
            if digest(own["result"]) != item.digest:
                began = time.monotonic()
                expected[item.task] = _moments(task) | {
                    own["id"]: self._gateway.update_annotation(own["id"], item.result)
                }
                seconds += time.monotonic() - began
        if expected:
            self._gateway.pace.took("patches", len(expected), seconds)
        for number, version in self._versions(expected).items():
            written[number] = written[number][0], version
        self._record(
            [
                MasksWritten(item.image, item.task, written[item.task][0], item.masks, written[item.task][1])
                if item.task in written
                else ImageTaken(item.image)
                for item in items
            ]
        )
        return len(written)

    def _annotate(self, items: list[Due]) -> dict[int, Json]:
        """Have annotations made of predictions, which are made where there are none; the tasks after that."""
        if not items:
            return {}
        there = self._predictions(items)
        lacking = [self._prediction(item) for item in items if not there.get(item.task)]
        self._gateway.import_predictions(self._source.project, lacking)
        self._gateway.predictions_to_annotations(self._source.project, self._version, _tasks(items))
        return self._look(items)

    def _clear(self, task: Json, own: Sequence[Json], predictions: Sequence[int]) -> bool:
        """Take away annotations of ours and what they were made from; whether there was anything.

        The predictions last, since an annotation is known as ours by its own; but none that a person's skip names.
        """
        for annotation in own:
            self._gateway.delete_annotation(annotation["id"])
        kept = {a.get("parent_prediction") for a in task.get("annotations") or [] if a not in own}
        going = [prediction for prediction in predictions if prediction not in kept]
        for prediction in going:
            self._gateway.delete_prediction(prediction)
        return bool(own or going)

    def _predictions(self, items: list[Due]) -> dict[int, list[int]]:
        """The predictions of each task that annotations of ours are made from."""
        if not items:
            return {}
        fields = ["predictions", "model_version"]
        return {
            task["id"]: [p["id"] for p in task.get("predictions") or [] if p.get("model_version") == self._version]
            for task in self._gateway.tasks(self._source.project, fields, ids=_tasks(items))
        }

    def _versions(self, expected: dict[int, dict[int, str]]) -> dict[int, str]:
        """When tasks changed last, whose annotations are as expected; "" where somebody came in between."""
        found = {}
        for task in self._gateway.tasks(self._source.project, ["annotations"], ids=list(expected)):
            found[task["id"]] = task["updated_at"] if _moments(task) == expected[task["id"]] else ""
        return {number: found.get(number, "") for number in expected}

    def _prediction(self, item: Due) -> Json:
        return {"task": item.task, "model_version": self._version, "result": item.result}

    def _look(self, items: list[Due]) -> dict[int, Json]:
        fields = [*ANNOTATION_FIELDS, "draft_exists"]
        return {task["id"]: task for task in self._gateway.tasks(self._source.project, fields, ids=_tasks(items))}

    def _theirs(self, task: Json) -> bool:
        """Whether a person has annotated a task, or edited what the campaign wrote there or begun to.

        What somebody has begun, the server drops with the next change of that annotation by anybody.
        """
        if people(task, self._campaign, self._source):
            return True
        begun = self._gateway.drafts(task["id"]) if task.get("draft_exists") else set()
        return any(own["id"] in begun for own in self._own(task))

    def _own(self, task: Json) -> list[Json]:
        """The annotations of a task that are the campaign's, and that no person has touched."""
        return [
            annotation
            for annotation in task.get("annotations") or []
            if not annotation.get("was_cancelled")
            and is_ours(annotation, task["id"], self._campaign, self._source)
        ]


def _tasks(items: Sequence[Due]) -> list[int]:
    return [item.task for item in items]


def _moments(task: Json) -> dict[int, str]:
    """When each annotation of a task changed last."""
    return {annotation["id"]: moment(annotation["updated_at"]) for annotation in task.get("annotations") or []}
