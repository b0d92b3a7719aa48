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
from plugin.label_studio.views import project_url, task_url, view_url
from propagation.progress import History, Terms, progress

log = logging.getLogger(__name__)

EVERY = 2.0  # seconds between two documents, at least
SHARE = 0.05  # of the daemon's time that documents may take


@dataclass(frozen=True)
class Place:
    """Where a campaign is: the server, the source project with its title, and the project of its pages.

    labels: predicted category -> label of the project, where they differ. people: names by number.
    """

    server: str
    source: int
    title: str
    verify: int
    labels: Mapping[str, str]
    people: Mapping[int, str]


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
    annotated = view_url(
        place.server, place.source, "annotated images", "total_annotations", "greater", "Number", 0
    )
    answered, waiting = (
        view_url(place.server, place.verify, title, "total_annotations", operator, "Number", 0)
        for title, operator in (("answered pages", "greater"), ("waiting pages", "equal"))
    )
    for row in document["annotators"]:
        number = row["annotator"]
        row["name"] = place.people.get(number, f"account {number}")
        row["link"] = view_url(
            place.server, place.verify, f"by {row['name']}", "annotators", "contains", "List", number
        )
    for state in document["clusters"]["states"]:
        for cluster in state["largest"]:
            task = cluster["task"]
            cluster["link"] = verify if task is None else task_url(place.server, place.verify, task)
    return {
        **document,
        "title": place.title,
        "shown": [
            name
            for name in ("missed", "false_alarms", "agreement")
            if any(row[name] is not None for row in document["annotators"])
        ],
        "links": {
            "source": source,
            "verify": verify,
            "annotated": annotated,
            "answered": answered,
            "waiting": waiting,
            "states": {
                state["state"]: annotated if state["state"] == "accepted" else verify
                for state in document["clusters"]["states"]
            },
            "categories": {
                row["category"]: _of_category(place, place.labels.get(row["category"], row["category"]), annotated)
                for row in document["categories"]
            },
        },
    }


def _of_category(place: Place, label: str, annotated: str) -> str:
    """The images with a region of a label; all of them where a database writes the label in its own way."""
    if not label.isascii():
        return annotated
    text = json.dumps(label)
    return view_url(place.server, place.source, label, "annotations_results", "contains", "String", text)
