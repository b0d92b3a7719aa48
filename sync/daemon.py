"""The daemon: looks at Label Studio, decides, asks, writes back, and begins again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from plugin.label_studio.gateway import Gateway
from propagation.campaign import Campaign
from propagation.errors import AnswerError, Missing, NotLabelStudio, Refused, ServerError
from propagation.events import Event, ImageTaken, PageAnswered, PageIssued
from sync.changes import Changes
from sync.pages import VerifyProjects, post_pages
from sync.source import ANNOTATION_FIELDS, Source, people
from sync.store import SourceTask, Store
from sync.verdicts import FIELDS, read_verdicts
from sync.writeback import write_back

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0


@dataclass
class Step:
    """What one pass of the daemon did."""

    questions: int = 0
    decisions: int = 0
    pages: int = 0
    images_written: int = 0
    finished: bool = False
    problems: list[AnswerError] = field(default_factory=list)


class Daemon:
    """Runs one campaign, whose state is that of the store's event log.

    write_every: accepted masks that are not yet written, from which on they are.

    Everything it learns or decides is in the store before anything depends on it; what it sends to the
    server it can look up there first. So it may be stopped anywhere, and started again.
    """

    def __init__(
        self,
        store: Store,
        gateway: Gateway,
        campaign: Campaign,
        source: Source,
        verify: VerifyProjects,
        write_every: int = 20_000,
    ) -> None:
        self.store = store
        self.gateway = gateway
        self.campaign = campaign
        self.source = source
        self.verify = verify
        self.write_every = write_every
        self._tasks: Sequence[SourceTask] = store.source_tasks()
        self._locations = {task.image: task.location for task in self._tasks}
        self._images = {task.task: task.image for task in self._tasks}
        self._cursors = {name: store.fact(name) for name in ("cursor:source", "cursor:verify")}
        self._source_changes = Changes(gateway, source.project, ANNOTATION_FIELDS, self._cursors["cursor:source"])
        self._verify_changes = Changes(gateway, verify.pages, FIELDS, self._cursors["cursor:verify"])

    def step(self) -> Step:
        """One pass: read, decide, ask, write back."""
        step = Step()
        self._read_source()
        # what a run that was cut off has posted must be known before its answers are read
        self._post(step)
        self._read_verify(step)
        step.decisions = len(self._choose(self.campaign.decisions()))
        chosen = self._choose(self.campaign.next_round())
        self._post(step)
        step.finished = not chosen and not self.campaign.waiting_pages
        if step.finished or self._milestone():
            step.images_written = write_back(self.gateway, self.source, self.campaign, self._tasks, self._record)
        return step

    def run(
        self,
        stop: threading.Event,
        every: float = 2.0,
        told: Callable[[Step], None] = lambda step: None,
        until_finished: bool = False,
    ) -> None:
        """Pass after pass, ``every`` seconds apart, until told to stop.

        A server that stumbles or is away for a while is waited for, once a first pass has gone well; before
        that, and where it refuses, its error is raised.
        """
        begun = False
        while not stop.is_set():
            try:
                step = self.step()
            except ServerError as error:
                if not begun or isinstance(error, Refused | NotLabelStudio | Missing):
                    raise
                log.warning("%s; trying again in %s s", error, RETRY_SECONDS)
                stop.wait(RETRY_SECONDS)
                continue
            begun = True
            told(step)
            if step.finished and until_finished:
                return
            stop.wait(every)

    def _post(self, step: Step) -> None:
        unposted = [page for page in self.campaign.waiting_pages if page.task is None]
        post_pages(self.gateway, self.verify, self.campaign.table, unposted, self._locations, self._record)
        step.pages += len(unposted)

    def _milestone(self) -> bool:
        # an image whose set grows is written by itself, which is slow: so each milestone doubles what stands
        written = sum(map(len, self.campaign.written.values()))
        return int(self.campaign.accepted().sum()) - written >= max(self.write_every, written)

    def _read_source(self) -> None:
        taken = [
            ImageTaken(image)
            for task in self._source_changes.read()
            if (image := self._images.get(task["id"])) is not None
            and not self.campaign.is_taken(image)
            and people(task, self.campaign, self.source)
        ]
        self._record(taken, **{"cursor:source": self._source_changes.cursor})

    def _read_verify(self, step: Step) -> None:
        events, step.problems = read_verdicts(self._verify_changes.read(), self.campaign)
        for problem in step.problems:
            log.warning("%s", problem)
        self._record(events, **{"cursor:verify": self._verify_changes.cursor})
        step.questions = sum(len(event.verdicts) for event in events if isinstance(event, PageAnswered))

    def _choose(self, choices: Iterable[Event]) -> Sequence[Event]:
        """Let the campaign choose, and store all that it chose at once; the choices.

        All or none: of a round cut in two, a cluster would stay half asked, or a set certified and its clusters
        not accepted. Each choice but a page may be what the next one follows from, so it is applied before.
        """
        chosen: list[Event] = []
        for choice in choices:
            chosen.append(choice)
            if not isinstance(choice, PageIssued):
                self.campaign.apply(choice)
        if chosen:
            self.store.append(chosen)
        for choice in chosen:
            if isinstance(choice, PageIssued):
                self.campaign.apply(choice)
        return chosen

    def _record(self, events: Sequence[Event], **facts: str | None) -> None:
        """Store events, then let the campaign know them."""
        moved = {name: value for name, value in facts.items() if value != self._cursors.get(name)}
        if events or moved:
            self.store.append(events, **moved)
            self._cursors.update(moved)
        for event in events:
            self.campaign.apply(event)
