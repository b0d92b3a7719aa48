"""A lost store made again: from the mirror of its event log, or from what Label Studio still holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from plugin.label_studio.gateway import Gateway, Json, chunks
from plugin.label_studio.images import image_key
from plugin.label_studio.pages import Ask, masks_of
from plugin.label_studio.regions import digest, mask_of
from propagation.campaign import Campaign, page_name
from propagation.errors import AnswerError, StoreError
from propagation.events import (
    CampaignStarted,
    Event,
    HistoryLost,
    MasksWritten,
    PageIssued,
    PagePosted,
    RoundStarted,
    WriteIntended,
)
from propagation.masks import MaskTable
from sync.source import ANNOTATION_FIELDS, Source
from sync.store import EVENTS, SourceTask, Store
from sync.verdicts import FIELDS, read_verdicts

ATTEMPTS = 100  # of a page, that are told by its name
ROWS_AT_ONCE = 5000


@dataclass
class Found:
    """What Label Studio still holds of a campaign. lost: what it does not, in words."""

    events: list[Event] = field(default_factory=list)
    pages: int = 0
    answers: int = 0
    images: int = 0
    lost: list[str] = field(default_factory=list)


def read_mirror(path: Path) -> Iterator[tuple[int, str, dict[str, Any], datetime]]:
    """The entries of a mirrored event log: number, kind, body, time. A torn last line is left out.

    Raises StoreError where the file cannot be read, or an entry is broken or missing.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                entry = json.loads(line)
                if entry["seq"] != number:
                    raise ValueError(f"its number is {entry['seq']}")
                yield number, entry["kind"], entry["body"], datetime.fromisoformat(entry["at"])
    except OSError as error:
        raise StoreError(
            f"the mirror {path} cannot be read ({error}); name another with the setting mirror"
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise StoreError(
            f"line {number} of the mirror {path} is broken ({error}); mend it, or move the mirror away to rebuild "
            "from what Label Studio holds"
        ) from error


def restore_log(store: Store, path: Path) -> int:
    """Fill an empty event log from its mirror, all or nothing; how many entries. Raises StoreError."""
    count = 0
    with store.database.writing() as connection:
        if connection.execute(sa.select(EVENTS.c.seq).limit(1)).first():
            raise StoreError(f"the store {store.url} has an event log already; rebuild into an empty one")
        for part in chunks(read_mirror(path), ROWS_AT_ONCE):
            names = ("seq", "kind", "body", "at")
            connection.execute(sa.insert(EVENTS), [dict(zip(names, entry, strict=True)) for entry in part])
            count += len(part)
    return count


def read_pool(gateway: Gateway, project: int, field_name: str, table: MaskTable) -> list[SourceTask]:
    """The source project's tasks of a mask table's images; of tasks with the same image, the first."""
    known = set(table.images.tolist())
    found: dict[str, SourceTask] = {}
    for task in gateway.tasks(project, ["data"]):
        location = task["data"].get(field_name)
        if isinstance(location, str) and (key := image_key(location)) in known:
            found.setdefault(key, SourceTask(key, task["id"], location))
    return list(found.values())


def names_pages(gateway: Gateway, pages: int, campaign: str, gold: Mapping[str, bool]) -> bool:
    """Whether pages in a verify project bear names that this campaign gives. gold: masks of known truth."""
    return any(_attempt(campaign, task["data"], gold) for task in gateway.tasks(pages, ["data"]))


def read_back(
    gateway: Gateway,
    source: Source,
    pages: int,
    started: CampaignStarted,
    begin: Callable[[], Campaign],
    tasks: Sequence[SourceTask],
    gold: Mapping[str, bool],
    ask: Ask = "page",
    rounds: Sequence[RoundStarted] = (),
) -> Found:
    """The events that Label Studio's own data tell: pages, answers, and what was written.

    started: the campaign's first event; rounds: those of its further rounds; begin: makes the campaign without
    any; gold: whether masks of known truth are right. What a page was for and what was decided is told nowhere in
    Label Studio, where annotators could read it; that the log has lost this is an event of its own.
    """
    found = Found([started, *rounds, HistoryLost()])
    campaign = begin()
    categories = campaign.table.categories

    def take(event: Event) -> None:
        campaign.apply(event)
        found.events.append(event)

    for event in list(found.events):
        campaign.apply(event)
    foreign = twice = 0
    seen = []
    for task in sorted(gateway.tasks(pages, ["data", *FIELDS]), key=lambda task: int(task["id"])):
        data = task["data"]
        attempt = _attempt(started.campaign, data, gold)
        if not attempt:
            foreign += 1
            continue
        if data["page"] in campaign.pages:
            twice += 1
            continue
        shown = masks_of(data)
        questions = tuple(mask for mask in shown if mask not in gold)
        known = {place: mask for place, mask in enumerate(shown) if mask in gold}
        category = categories[campaign.table.category[campaign.rows_of(questions)[0]]]
        truth = tuple(gold[mask] for mask in known.values())
        take(
            PageIssued(data["page"], attempt, category, questions, (), tuple(known.values()), truth, tuple(known))
        )
        take(PagePosted(data["page"], task["id"]))
        found.pages += 1
        seen.append(task)
    events, problems = read_verdicts(seen, campaign, ask)
    for event in events:
        take(event)
    found.answers = sum(page.answer is not None for page in campaign.pages.values())
    image_of = {task.task: task.image for task in tasks}
    for task in gateway.tasks(source.project, ANNOTATION_FIELDS):
        ours = _own(task, source, started.campaign)
        if ours is not None and task["id"] in image_of:
            masks = tuple(dict.fromkeys(str(mask_of(region)) for region in ours["result"]))
            take(WriteIntended(task["id"], digest(ours["result"])))
            take(MasksWritten(image_of[task["id"]], task["id"], ours["id"], masks))
            found.images += 1
    found.lost = list(_lost(problems, foreign, twice))
    return found


def _lost(problems: Sequence[AnswerError], foreign: int, twice: int) -> Iterator[str]:
    yield "what each page was asked for: its questions count as verdicts, not as evidence of a certificate"
    yield "the decisions taken, and the error they had spent: they are taken anew, and are an estimate, no promise"
    yield "gold answers, pages issued but not yet posted, and when things happened"
    if foreign:
        yield f"{foreign} tasks of the verify project, which are no pages of this campaign"
    if twice:
        yield f"{twice} tasks with the page of another task"
    yield from (f"an answer: {problem}" for problem in problems)


def _attempt(campaign: str, data: Json, gold: Mapping[str, bool]) -> int | None:
    """Which attempt of a campaign a page's task is; None where it is no page of it."""
    page = data.get("page")
    questions = tuple(mask for mask in masks_of(data) if mask not in gold)
    if not isinstance(page, str) or not questions:
        return None
    return next((n for n in range(1, ATTEMPTS) if page_name(campaign, n, questions) == page), None)


def _own(task: Json, source: Source, campaign: str) -> Json | None:
    """The annotation that a campaign wrote and nobody has touched, as far as its own data tell."""
    for annotation in task.get("annotations") or []:
        metas = [(region.get("meta") or {}).get("propagate") or {} for region in annotation.get("result") or []]
        if (
            metas
            and all(meta.get("campaign") == campaign for meta in metas)
            and not annotation.get("was_cancelled")
            and annotation.get("parent_prediction") is not None
            and annotation.get("lead_time") is None
            and annotation.get("completed_by") == source.account
            and annotation.get("updated_by") in (None, source.account)
        ):
            found: Json = annotation
            return found
    return None
