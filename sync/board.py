"""The progress board's document: made by the daemon between two steps, read by the server's threads."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from plugin.board import render
from plugin.label_studio.pages import in_a_line
from plugin.label_studio.views import Where, project_url, task_url, view_url
from propagation.progress import History, Terms, progress
from sync.clusters import MOST

log = logging.getLogger(__name__)

EVERY = 2.0  # seconds between two documents, at least
SHARE = 0.05  # of the daemon's time that documents may take


@dataclass(frozen=True)
class Place:
    """Where a campaign is: the server, the source project with its title, and the project of its pages.

    labels: predicted category -> label of the project, where they differ. people: names by number. board: the
    project of the clusters' cards, or None.
    """

    server: str
    source: int
    title: str
    verify: int
    labels: Mapping[str, str]
    people: Mapping[int, str]
    board: int | None = None


@dataclass(frozen=True)
class Edition:
    """A document, and what is made of it on demand; nothing of it ever changes."""

    document: Mapping[str, Any]

    @cached_property
    def body(self) -> bytes:
        """The document as JSON."""
        return json.dumps(self.document, allow_nan=False).encode()

    @cached_property
    def version(self) -> str:
        """By which it is told from every other one."""
        return hashlib.blake2b(self.body, digest_size=10).hexdigest()

    @cached_property
    def page(self) -> bytes:
        """The page."""
        return render.page(self.document, self.version).encode()


class Board:
    """Holds the latest edition: ``look`` belongs to the daemon's thread, ``edition`` to any other.

    An edition is made only between two steps of the fold, where the log has grown since, and seldom enough to
    take no more than ``SHARE`` of the time.
    """

    def __init__(self, terms: Terms, clock: Callable[[], float] = time.monotonic) -> None:
        self._terms = terms
        self._clock = clock
        self._lock = threading.Lock()
        self._edition: Edition | None = None
        self._seen: tuple[int, int] | None = None
        self._next = float("-inf")

    def look(self, history: History, place: Callable[[], Place]) -> None:
        """Make a new edition where one is due. Whatever fails in it is logged: the campaign goes on."""
        began = self._clock()
        seen = id(history), history.version
        if seen == self._seen or began < self._next:
            return
        try:
            edition = Edition(described(history, self._terms, place(), datetime.now(UTC)))
        except Exception:
            log.exception("the progress board could not be made; its figures stay as they were")
        else:
            with self._lock:
                self._edition = edition
        self._seen = seen
        ended = self._clock()
        self._next = ended + max(EVERY, (ended - began) / SHARE)

    def close(self) -> None:
        """Show nothing: the campaign goes on elsewhere."""
        with self._lock:
            self._edition, self._seen = None, None

    @property
    def edition(self) -> Edition | None:
        """The latest one, or None before the first."""
        with self._lock:
            return self._edition


def described(history: History, terms: Terms, place: Place, now: datetime) -> dict[str, Any]:
    """The document with titles, names, and for each figure the view of Label Studio behind it."""
    document = progress(history, terms, now)
    source, verify = project_url(place.server, place.source), project_url(place.server, place.verify)
    answered = Where("total_annotations", "greater", "Number", 0)
    waiting = Where("total_annotations", "equal", "Number", 0)
    for row in document["annotators"]:
        number = row["annotator"]
        row["name"] = place.people.get(number, f"account {number}")
        by = Where("annotators", "contains", "List", number)
        row["link"] = view_url(place.server, place.verify, f"by {row['name']}", by)
    states = document["clusters"]["states"]
    all_shown = sum(state["clusters"] for state in states if state["state"] != "split") <= MOST
    for cluster in (one for state in states for one in state["largest"]):
        name, task = cluster["cluster"], cluster["task"]
        page = None if task is None else task_url(place.server, place.verify, task)
        card = _cards(place, name, Where("data.cluster", "equal", "String", name)) if all_shown else None
        cluster["links"] = {"card": card or page, "page": page}
    links: dict[str, Any] = {
        "source": source,
        "verify": verify,
        "answer": f"{verify}?labeling=1",
        "board": None if place.board is None else project_url(place.server, place.board),
        "annotated": view_url(place.server, place.source, "annotated images", answered),
        "answered": view_url(place.server, place.verify, "answered pages", answered),
        "waiting": view_url(place.server, place.verify, "waiting pages", waiting),
        "rejected": _cards(place, "rejected", _REJECTED),
        "open": _cards(place, "open", *_OPEN),
    }
    links["states"] = {
        state["state"]: _cards(place, state["state"], Where("data.state", "contains", "String", state["state"]))
        or (links["annotated"] if state["state"] == "accepted" else verify)
        for state in states
    }
    links["categories"] = {
        row["category"]: _of_category(place, row["category"], links) for row in document["categories"]
    }
    return {**document, "title": place.title, "links": links}


_REJECTED = Where("data.tab", "equal", "String", "rejected")
_OPEN = tuple(Where("data.tab", "not_equal", "String", tab) for tab in ("accepted", "rejected", "split"))


def _cards(place: Place, title: str, *where: Where) -> str | None:
    """Some cards of the cluster board; None where the campaign has none."""
    return None if place.board is None else view_url(place.server, place.board, title, *where)


def _of_category(place: Place, category: str, links: Mapping[str, Any]) -> dict[str, str | None]:
    """The views of a category: images with a region of it, pages that ask about it, its cards of either kind."""
    label, name = place.labels.get(category, category), in_a_line(category)
    region = Where("annotations_results", "contains", "String", json.dumps(label))
    asked = Where("data.question", "contains", "String", f"“{name}”")
    own = Where("data.category", "equal", "String", name)
    return {
        # a database writes what is not ASCII in its own way
        "accepted": view_url(place.server, place.source, label, region) if label.isascii() else links["annotated"],
        "questions": view_url(place.server, place.verify, f"pages of {name}", asked),
        "rejected": _cards(place, f"rejected, {name}", own, _REJECTED),
        "open": _cards(place, f"open, {name}", own, *_OPEN),
    }
