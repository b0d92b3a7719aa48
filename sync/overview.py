"""What people see of a campaign in its source project: tabs, and its progress as a picture in the instructions."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape

import numpy as np
from numpy.typing import NDArray

from plugin.board import render
from plugin.label_studio.gateway import Gateway
from plugin.label_studio.tabs import make_source_tabs, source_tabs, update_source_tabs
from propagation.campaign import Campaign
from propagation.errors import ServerError
from propagation.progress import History, Terms, progress
from sync.store import SourceTask, Store
from sync.writeback import model_version

log = logging.getLogger(__name__)

EVERY = 600.0  # seconds between two looks
MOST = 2000  # images that the tab of partly decided ones lists
FILE = "propagate-progress.svg"
WIDTH = 640  # pixels
_PICTURE = re.compile(rf"<img\b[^>]*{re.escape(FILE)}[^>]*>")  # the server takes comments out


class Overview:
    """Keeps the tabs and the picture of one campaign up to date.

    project: the source project; crops: the project that keeps the picture's file; field: of the tasks' data that
    has the image; predicted: the version of the predictions that show all masks. What cannot be done on the server
    is logged once, and tried again in time.
    """

    def __init__(
        self,
        gateway: Gateway,
        store: Store,
        project: int,
        crops: int,
        field: str,
        predicted: str,
        terms: Terms,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._project = project
        self._crops = crops
        self._field = field
        self._predicted = predicted
        self._terms = terms
        self._clock = clock
        self._tasks: Sequence[SourceTask] = store.source_tasks()
        self._next = float("-inf")
        self._finished = False
        self._failed: set[str] = set()

    def make(self, history: History) -> None:
        """Make the tabs and the picture where they are missing, and bring them up to date."""
        self._both(history, new=True)

    def look(self, history: History, finished: bool) -> None:
        """Bring up to date those that are there, every now and then and as the campaign finishes.

        What people have taken away stays away.
        """
        ended = finished and not self._finished
        self._finished = finished
        if ended or self._clock() >= self._next:
            self._both(history, new=False)
            self._next = self._clock() + EVERY

    def _both(self, history: History, new: bool) -> None:
        for what, bring in (("tabs", self._list), ("progress picture", self._draw)):
            try:
                bring(history, new)
            except Exception as error:  # the campaign goes on, whatever it is
                if what not in self._failed:
                    said = "the %s of project %s could not be brought up to date: %s"
                    unknown = not isinstance(error, ServerError)
                    log.warning(said, what, self._project, error, exc_info=unknown)
                self._failed.add(what)
            else:
                self._failed.discard(what)

    def _list(self, history: History, new: bool) -> None:
        campaign = history.campaign
        tabs = source_tabs(self._predicted, model_version(campaign), self._field, *self._partly(campaign))
        if new:
            make_source_tabs(self._gateway, self._project, tabs)
        else:
            update_source_tabs(self._gateway, self._gateway.tabs(self._project), tabs)

    def _partly(self, campaign: Campaign) -> tuple[list[str], int]:
        """Where images with masks to decide are, those with most first; and how many there are."""
        left = undecided_masks(campaign)
        places = {image: place for place, image in enumerate(campaign.table.images.tolist())}
        found = [
            (-int(left[places[task.image]]), task.task, task.location)
            for task in self._tasks
            if task.image in places and len(campaign.standing(task.task))
        ]
        partly = sorted(one for one in found if one[0])
        return [location for _, _, location in partly[:MOST]], len(partly)

    def _draw(self, history: History, new: bool) -> None:
        document = progress(history, self._terms, datetime.now(UTC))
        told = {name: document[name] for name in ("masks", "questions")}
        before = self._store.fact("picture") or {}
        there = self._picture()
        if not (there or new) or (there and before.get("told") == told):
            return
        content = render.picture(document).encode()
        number, url = self._gateway.upload_one(self._crops, FILE, content)
        image = f'<img src="{escape(url)}" alt="{escape(render.in_words(document))}" width="{WIDTH}">'
        # the team's own text is read as late as can be: what they have written meanwhile stays
        text = self._gateway.project(self._project).instructions
        written, times = _PICTURE.subn(lambda _: image, text)
        self._gateway.set_instructions(self._project, written if times else f"{text}<p>{image}</p>")
        self._store.remember(picture={"file": number, "told": told})
        if "file" in before:
            self._gateway.delete_upload(self._crops, before["file"])

    def _picture(self) -> bool:
        return bool(_PICTURE.search(self._gateway.project(self._project).instructions))


def undecided_masks(campaign: Campaign) -> NDArray[np.int64]:
    """(images,) masks of each image that are neither accepted nor rejected; none where a person took the image."""
    table = campaign.table
    free = table.best & ~campaign.taken[table.image]
    rest = free & ~campaign.accepted() & ~campaign.rejected()
    return np.bincount(table.image[rest], minlength=len(table.images))
