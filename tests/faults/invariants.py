"""What must hold of the log and of what Label Studio holds, whatever died when.

``check`` reads both with a gateway that injects nothing and says every breach that it finds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plugin.label_studio.gateway import Gateway
from plugin.label_studio.regions import META, digest, mask_of
from propagation.campaign import Campaign
from propagation.certificate import unpack
from propagation.events import (
    CertificateOpened,
    Certified,
    Commanded,
    Decided,
    Event,
    ImageTaken,
    MasksWritten,
    PageAnswered,
    PageIssued,
    PagePosted,
    PageReopened,
    PageReturned,
)
from propagation.strategies import Choice
from sync.pages import VerifyProjects
from sync.source import Source
from sync.store import Store

Json = dict[str, Any]
FIELDS = (
    "data", "annotations", "predictions", "model_version", "result", "was_cancelled", "completed_by",
    "updated_by", "lead_time", "parent_prediction", "updated_at",
)  # fmt: skip
UNASKED, NO, YES = -1, 0, 1
CHOSEN = (*Choice.__args__, PageIssued)


@dataclass(frozen=True)
class Scene:
    """Where to look. begin: makes the campaign as it is before its first event."""

    store: Store
    gateway: Gateway
    source: Source
    verify: VerifyProjects
    begin: Callable[[], Campaign]


def check(
    scene: Scene,
    settled: bool = True,
    theirs: Mapping[int, Sequence[Json]] | None = None,
    doubled: bool = False,
) -> None:
    """Raises AssertionError that names every breach.

    settled: the daemon has read all there is and says that it is finished; then all must agree, before only
    what may never happen is looked for. theirs: annotation id to result, of what people did to source tasks.
    doubled: requests were, on their way; then a prediction may stand twice, but no annotation.
    """
    events = scene.store.events()
    pages = list(scene.gateway.tasks(scene.verify.pages, FIELDS))
    tasks = list(scene.gateway.tasks(scene.source.project, FIELDS))
    campaign = scene.begin()
    found = [
        *_log(events, campaign),
        *_once(scene, events, pages, tasks, settled, doubled),
        *_whole(scene, tasks, campaign),
    ]
    found += _people(tasks, theirs or {})
    if settled:
        found += [*_answers(events, pages, campaign), *_annotations(scene, events, tasks, campaign)]
        found += _replayed(events, scene.begin())
    assert not found, "\n".join(found)


# the log by itself; it is folded into the campaign on the way


def _log(events: Sequence[Event], campaign: Campaign) -> Iterator[str]:
    asked: dict[str, str] = {}
    latest: dict[tuple[str, ...], PageIssued] = {}
    read: set[tuple[str, int, str]] = set()
    taken: set[str] = set()
    posted: dict[str, int] = {}
    for event in events:
        match event:
            case PageIssued(attempt=1):
                for mask in event.questions:
                    if mask in asked:
                        yield f"mask {mask} is asked on page {asked[mask]} and again on {event.page}"
                    asked[mask] = event.page
            case PageIssued():
                before = latest.get(event.questions)
                if before is None or before.attempt != event.attempt - 1:
                    yield f"page {event.page} is attempt {event.attempt} without an attempt before it"
                elif not campaign.pages[before.page].returned:
                    yield f"page {event.page} asks again what {before.page} asks, which has not come back"
            case PagePosted():
                if event.page in posted and event.task == posted[event.page]:
                    yield f"page {event.page} is posted as task {event.task} twice"
                posted[event.page] = event.task
            case PageAnswered():
                if (key := (event.page, event.annotation, event.version)) in read:
                    yield f"annotation {event.annotation} of page {event.page} is read twice at {event.version}"
                read.add(key)
            case ImageTaken():
                if event.image in taken:
                    yield f"image {event.image} is taken twice"
                taken.add(event.image)
            case MasksWritten():
                if event.image in taken:
                    yield f"image {event.image} is written to after a person took it"
                yield from _written(event, campaign)
        campaign.apply(event)
        if isinstance(event, PageIssued):
            latest[event.questions] = event
            if event.attempt == 1 and any(campaign.verdict[campaign.pages[event.page].rows] != UNASKED):
                yield f"page {event.page} asks what has a verdict"


def _written(event: MasksWritten, campaign: Campaign) -> Iterator[str]:
    rows = {mask: row for row, mask in enumerate(campaign.table.ids.tolist())}
    accepted, rejected = campaign.accepted(), campaign.rejected()
    for mask in event.masks:
        if rejected[rows[mask]]:
            yield f"mask {mask} is rejected and was written to task {event.task}"
        elif not accepted[rows[mask]]:
            yield f"mask {mask} was not accepted and was written to task {event.task}"


def _replayed(events: Sequence[Event], campaign: Campaign) -> Iterator[str]:
    """Every choice in the log must be what a campaign chooses that has lived through the log before it."""
    place = 0
    while place < len(events):
        logged = list(takewhile(lambda event: isinstance(event, CHOSEN), events[place:]))
        done = 0
        for chosen in _choices(campaign) if logged else ():
            if chosen != logged[done : done + len(chosen)]:
                yield f"the log's choices at {place + done + 1}, {logged[done:][:3]}, are not {chosen[:3]}"
                return
            done += len(chosen)
            if done == len(logged):
                break  # what comes next may have been chosen after something else had happened
        if done < len(logged):
            yield f"the log's choice at {place + done + 1}, {logged[done]}, is not called for"
            return
        place += len(logged)
        if place < len(events):
            campaign.apply(events[place])
            place += 1


def _choices(campaign: Campaign) -> Iterator[list[Event]]:
    """What the campaign chooses, as the daemon stores it: all that it may decide, all that it asks, and again."""
    idle = 0
    while idle < 2:
        for choose in (campaign.decisions, campaign.next_round):
            chosen: list[Event] = []
            for choice in choose():
                chosen.append(choice)
                if not isinstance(choice, PageIssued):
                    campaign.apply(choice)
            for choice in chosen:
                if isinstance(choice, PageIssued):
                    campaign.apply(choice)
            idle = 0 if chosen else idle + 1
            if chosen:
                yield chosen


# nothing twice


def _once(
    scene: Scene,
    events: Sequence[Event],
    pages: Sequence[Json],
    tasks: Sequence[Json],
    settled: bool,
    doubled: bool,
) -> Iterator[str]:
    """What a request that was doubled on its way left there twice is gone in the end.

    Save a page that two annotators were quick to answer: their answers stay where they gave them.
    """
    issued = {event.page for event in events if isinstance(event, PageIssued)}
    for name, made in _by_page(pages).items():
        numbers = [page["id"] for page in made]
        if name not in issued:
            yield f"tasks {numbers} of the verify project are of page {name}, which was never issued"
        if settled and len(made) > 1 and not all(page["annotations"] for page in made):
            yield f"page {name} has tasks {numbers}"
    for task in tasks:
        versions = Counter(prediction["model_version"] for prediction in task["predictions"])
        for version, count in versions.items():
            if settled and not doubled and count > 1:
                yield f"task {task['id']} has {count} predictions of {version}"
        made = [annotation["id"] for annotation in _made(task, scene.source)]
        if settled and len(made) > 1:
            yield f"task {task['id']} has annotations {made} of ours"


def _made(task: Json, source: Source) -> list[Json]:
    """The annotations of a task that the daemon's account made from a prediction."""
    made = [annotation for annotation in task["annotations"] if annotation["parent_prediction"] is not None]
    return [annotation for annotation in made if annotation["completed_by"] == source.account]


# nothing half, nothing of others


def _whole(scene: Scene, tasks: Sequence[Json], campaign: Campaign) -> Iterator[str]:
    for task in tasks:
        for made in _made(task, scene.source):
            by_a_person = made["lead_time"] is not None or made["updated_by"] not in (None, scene.source.account)
            if not by_a_person and digest(made["result"]) not in campaign.intended.get(task["id"], ()):
                yield f"annotation {made['id']} of task {task['id']} holds what was never intended"


def _people(tasks: Sequence[Json], theirs: Mapping[int, Sequence[Json]]) -> Iterator[str]:
    there = {annotation["id"]: annotation for task in tasks for annotation in task["annotations"]}
    for number, result in theirs.items():
        if number not in there:
            yield f"annotation {number}, a person's, is gone"
        elif there[number]["result"] != list(result):
            yield f"annotation {number}, a person's, was changed"


# all read, all written


def _answers(events: Sequence[Event], pages: Sequence[Json], campaign: Campaign) -> Iterator[str]:
    """The answers that stand in the verify project against the log and the campaign's verdicts."""
    last = {event.page: event for event in events if isinstance(event, PageAnswered | PageReturned | PageReopened)}
    standing: dict[tuple[str, ...], list[list[int]]] = defaultdict(list)
    for name, made in _by_page(pages).items():
        if (state := campaign.pages.get(name)) is None:
            continue
        questions, told = state.issued.questions, last.get(name)
        answers = [answer for page in made if (answer := _answer(page, questions)) is not None]
        standing[questions] += [[NO if mask in marked else YES for mask in questions] for _, marked in answers]
        known = told if isinstance(told, PageAnswered) else None
        wanted = [
            (answer["id"], answer["updated_at"], tuple("no" if mask in marked else "yes" for mask in questions))
            for answer, marked in answers
        ]
        if wanted and (known and (known.annotation, known.version, known.verdicts)) not in wanted:
            yield f"page {name} is answered by {wanted}, the log says {told}"
        if known and not wanted:
            yield f"page {name} has no answer that can be used, the log says {told}"
    there = _by_page(pages)
    for event in last.values():
        if isinstance(event, PageAnswered) and event.page not in there:  # somebody deleted the task
            read = [NO if verdict == "no" else YES for verdict in event.verdicts]
            standing[campaign.pages[event.page].issued.questions].append(read)
    for state in campaign.pages.values():
        given = standing[state.issued.questions]
        if campaign.verdict[state.rows].tolist() not in given:
            yield f"the verdicts on page {state.issued.page} are none of its answers, {given}"


def _answer(page: Json, questions: Sequence[str]) -> tuple[Json, set[str]] | None:
    """The first answer of a page that was not skipped, and the masks it marks; None where it is of no use."""
    answers = [annotation for annotation in page["annotations"] if annotation["was_cancelled"] is False]
    if not answers:
        return None
    first = min(answers, key=lambda annotation: int(annotation["id"]))
    marked = {m for item in first["result"] if item["from_name"] == "wrong" for m in item["value"]["choices"]}
    return None if marked - set(questions) else (first, marked)


def _by_page(pages: Sequence[Json]) -> dict[str, list[Json]]:
    """The tasks of each page."""
    found = defaultdict(list)
    for page in pages:
        found[page["data"].get("page")].append(page)
    return found


def _annotations(
    scene: Scene, events: Sequence[Event], tasks: Sequence[Json], campaign: Campaign
) -> Iterator[str]:
    """The annotations of free images hold the accepted masks and nothing else, each traced to its decision."""
    table, accepted, rejected = campaign.table, campaign.accepted(), campaign.rejected()
    rows = dict(zip(table.images.tolist(), table.rows_by_image(), strict=True))
    row_of = {mask: row for row, mask in enumerate(table.ids.tolist())}
    covered = _covered(events, campaign)
    by_task = {task["id"]: task for task in tasks}
    for known in scene.store.source_tasks():
        task = by_task.get(known.task)
        if task is None or campaign.is_taken(known.image):
            continue
        regions = [region for annotation in _made(task, scene.source) for region in annotation["result"]]
        held = {mask_of(region) for region in regions}
        here = rows.get(known.image, np.empty(0, dtype=np.int64))
        wanted = set(table.ids[here[accepted[here]]].tolist())
        if held != wanted:
            yield f"task {known.task} holds {held - wanted} too many and lacks {wanted - held}"
        for region in regions:
            told = region["meta"][META]
            if rejected[row_of[told["mask"]]]:
                yield f"task {known.task} holds mask {told['mask']}, which is rejected"
            if told["mask"] not in covered.get(told["decision"], ()):
                yield f"mask {told['mask']} is written by {told['decision']}, which does not cover it"


def _covered(events: Sequence[Event], campaign: Campaign) -> dict[str, set[str]]:
    """The masks that each decision in the log lets be written, by the decision's name."""
    ids = campaign.table.ids
    levels: dict[int, NDArray[np.uint16]] = {}
    covered: dict[str, set[str]] = defaultdict(set)
    for event in events:
        match event:
            case Decided(decision="accept"):
                covered[f"cluster/{event.cluster}"] |= set(ids[campaign.rows(*campaign.find(event.cluster))])
            case Commanded(command="accept"):
                covered[f"command/{event.target}"] |= set(ids[campaign.rows(*campaign.find(event.target))])
            case PageAnswered():
                right = np.array([verdict == "yes" for verdict in event.verdicts])
                covered[f"page/{event.page}"] |= set(ids[campaign.pages[event.page].rows[right]])
            case CertificateOpened():
                levels[event.certificate] = unpack(event.levels)
            case Certified():
                inside = (levels[event.certificate] > 0) & (levels[event.certificate] <= event.level)
                covered[f"certificate/{event.certificate}/{event.level}"] |= set(ids[inside])
    return covered
