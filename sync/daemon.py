"""The daemon: looks at Label Studio, decides, asks, writes back, and begins again."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from plugin.label_studio.gateway import Gateway
from propagation.campaign import NO, Campaign, PageState
from propagation.errors import AnswerError, Missing, NotLabelStudio, Refused, ServerError
from propagation.events import (
    Commanded,
    CommandRefused,
    Event,
    ImageTaken,
    PageAnswered,
    PageIssued,
    PagePosted,
    PageReturned,
)
from propagation.masks import MaskTable
from propagation.progress import History
from sync.changes import Changes
from sync.clusters import FIELDS as CARD_FIELDS
from sync.clusters import Board
from sync.pages import VerifyProjects, post_pages
from sync.source import ANNOTATION_FIELDS, Source, people
from sync.store import SourceTask, Store
from sync.verdicts import FIELDS, read_verdicts
from sync.writeback import write_back

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0  # after a first failure; doubled with each further one
RETRY_MOST = 60.0
TRIES = 3  # passes in a row that may fail in a way that waiting does not help
BOARD_SECONDS = 10.0  # between two looks at which cards of the cluster board have changed
LOOK_SECONDS = 60.0  # between two looks whether the tasks of waiting pages are still there


@dataclass
class Step:
    """What one pass of the daemon did, and where the campaign stands after it.

    waiting: pages without an answer; accepted: masks; seconds: that it took. commands: obeyed.
    """

    questions: int = 0
    decisions: int = 0
    pages: int = 0
    images_written: int = 0
    finished: bool = False
    waiting: int = 0
    accepted: int = 0
    seconds: float = 0.0
    commands: int = 0
    problems: list[AnswerError] = field(default_factory=list)


class Daemon:
    """Runs one campaign, whose state is that of the store's event log.

    write_every: accepted masks that are not yet written, from which on they are. abandoned_after: seconds that
    a page may be overtaken by later ones before it is asked again: somebody opened it and went away, and Label
    Studio keeps it for them. poll_every: seconds between looks for answers while a long write-back runs. board:
    the project where managers see clusters and give commands, None without one. history: of the campaign so far.
    gold: the masks of known truth, and where their images are.

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
        abandoned_after: float = 1800.0,
        poll_every: float = 2.0,
        board: int | None = None,
        history: History | None = None,
        gold: tuple[MaskTable, Mapping[str, str]] | None = None,
    ) -> None:
        self.store = store
        self.gateway = gateway
        self.campaign = campaign
        self.source = source
        self.verify = verify
        self.write_every = write_every
        self.abandoned_after = abandoned_after
        self.poll_every = poll_every
        self.history = history or History(campaign)
        self.stopping: Callable[[], bool] = lambda: False
        self.alive: Callable[[], None] = lambda: None  # is told during a long pass that it goes on
        self._tasks: Sequence[SourceTask] = store.source_tasks()
        self._gold = gold[0] if gold else None
        self._locations = {**(gold[1] if gold else {}), **{task.image: task.location for task in self._tasks}}
        self._images = {task.task: task.image for task in self._tasks}
        self._task_of = {task.image: task for task in self._tasks}
        self._cursors = {name: store.fact(name) for name in ("cursor:source", "cursor:verify", "cursor:board")}
        self._board = None if board is None else Board(gateway, board, verify.crops, self._locations)
        self._shown = -np.inf
        self._foreign: set[int] = set()
        self._overtaken: dict[str, float] = {}
        self._looked = -np.inf
        # a run that was cut off may have left a mask written that was judged wrong since
        self._revised = [np.flatnonzero(campaign.verdict == NO)]
        # or not have written all that a command asks for
        self._commanded = [np.flatnonzero(campaign.commands.out() | (campaign.commands.ruled != 0))]
        self._begin_reading()

    def _begin_reading(self) -> None:
        """Read on from what the store knows."""
        cursor = self._cursors["cursor:source"]
        self._source_changes = Changes(
            self.gateway, self.source.project, ANNOTATION_FIELDS, cursor, self.campaign.ours
        )
        self._verify_changes = Changes(self.gateway, self.verify.pages, FIELDS, self._cursors["cursor:verify"])
        if self._board is not None:
            self._board.forget()
            self._board_changes = Changes(
                self.gateway, self._board.project, CARD_FIELDS, self._cursors["cursor:board"]
            )

    def step(self) -> Step:
        """One pass: read, decide, ask, write back.

        Raises ServerError where Label Studio fails; what was read by then and not stored is read again.
        """
        step, begin = Step(), time.monotonic()
        try:
            hints = self.store.hints()
            self._read_source()
            self._read_verify(step)
            self._obey(step)
            self._look_after(any(hint.action == "TASKS_DELETED" for _, hint in hints))
            chosen = self._ask(step)
            step.finished = not chosen and not self.campaign.waiting_pages
            self._take_back(step)
            if step.finished or self._milestone():
                self._write(step)
            self._show(step)
            if hints:
                self.store.forget_hints(hints[-1][0])
        except BaseException:
            self._begin_reading()
            raise
        step.waiting = len(self.campaign.waiting_pages)
        step.accepted = int(self.campaign.accepted().sum())
        step.seconds = time.monotonic() - begin
        return step

    def run(
        self,
        stop: threading.Event,
        every: float = 2.0,
        told: Callable[[Step], None] = lambda step: None,
        until_finished: bool = False,
        wake: threading.Event | None = None,
        failed: Callable[[ServerError], None] = lambda error: None,
    ) -> None:
        """Pass after pass, ``every`` seconds apart, until told to stop.

        wake: begins the next pass at once; who sets ``stop`` sets it too, to be heard at once. failed: is told
        of each failure that is waited out. A server that stumbles or is away for a while is waited for, once a
        first pass has gone well; before that, and where it refuses again and again, its error is raised.
        """
        wake = wake or threading.Event()
        self.stopping = stop.is_set
        begun, failures = False, 0
        while not stop.is_set():
            wake.clear()
            try:
                step = self.step()
            except ServerError as error:
                failures += 1
                lasting = isinstance(error, Refused | NotLabelStudio | Missing)
                if not begun or (lasting and failures >= TRIES):
                    raise
                pause = min(RETRY_SECONDS * 2 ** (failures - 1), RETRY_MOST) * random.uniform(0.5, 1)  # noqa: S311
                log.warning("%s; trying again in %.0f s", error, pause)
                failed(error)
                stop.wait(pause)
                continue
            begun, failures = True, 0
            told(step)
            if step.finished and until_finished:
                return
            if not stop.is_set():
                wake.wait(every)

    def obey(self) -> Step:
        """Obey the commands that wait, and write what follows from them; nothing is asked."""
        step = Step()
        self._read_source()
        self._obey(step)
        self._take_back(step)
        step.finished = not self.campaign.waiting_pages and next(self.campaign.next_round(), None) is None
        self._show(step)
        step.accepted = int(self.campaign.accepted().sum())
        return step  # the hints stay for the daemon, which has not seen what webhooks said

    # what people did

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
        tasks = self._verify_changes.read()
        self._adopt([task["id"] for task in tasks if task["id"] not in self.campaign.page_of])
        events, problems = read_verdicts(tasks, self.campaign, self.verify.ask)
        for problem in problems:
            log.warning("%s", problem)
        step.problems += problems
        self._record(events, **{"cursor:verify": self._verify_changes.cursor})
        step.questions += sum(len(event.verdicts) for event in events if isinstance(event, PageAnswered))

    def _obey(self, step: Step) -> None:
        """Take commands into the log, from the board and from beside the daemon, each once."""
        hints = [hint for _, hint in self.store.hints()]
        said = [Commanded(**fields) for hint in hints for fields in hint.commands]  # type: ignore[arg-type]
        if self._board is not None:
            try:
                said += self._board.read(self._board_changes.read(), self.campaign)
            except Missing as error:
                log.warning("the cluster board is gone (%s); going on without it", error)
                self._board = None
        for command in said:
            if command.source in self.campaign.commands.sources:
                continue
            judged = self.campaign.commands.judged(command)
            if isinstance(judged, CommandRefused):
                told = judged.command, judged.by, judged.target, judged.why
                log.warning("the command to %s, of %s, was not obeyed: %s: %s", *told)
            else:
                step.commands += 1
            self._record([judged])
            self._shown = -np.inf
        if self._board is not None:
            self._record([], **{"cursor:board": self._board_changes.cursor})

    def _show(self, step: Step) -> None:
        """Bring the cluster board up to date, a little at a time."""
        moment = time.monotonic()
        if self._board is None or moment - self._shown < BOARD_SECONDS:
            return
        try:
            more = self._board.update(self.campaign, step.finished)
        except Missing as error:
            log.warning("the cluster board has changed (%s); looking at it anew", error)
            self._board.forget()
            more = True
        self._shown = -np.inf if more else moment

    def _adopt(self, unknown: Sequence[int]) -> None:
        """Find the pages of tasks that the log does not know.

        They were posted by a run that was cut off, or the server took an import whose answer was lost. Of two
        tasks with one page, one is deleted: that which nobody has answered.
        """
        unknown = [task for task in unknown if task not in self._foreign]
        if not unknown:
            return
        for task in self.gateway.tasks(self.verify.pages, ["data", *FIELDS], ids=unknown):
            page = self.campaign.pages.get(task["data"].get("page"))
            if page is None:
                self._foreign.add(task["id"])
            elif page.task is None:
                self._record([PagePosted(page.issued.page, task["id"])])
            elif not task.get("annotations"):
                log.warning("page %s has two tasks; deleting %s", page.issued.page, task["id"])
                self.gateway.delete_tasks(self.verify.pages, [task["id"]])
            elif self._unanswered(page):
                log.warning("page %s has two tasks; deleting %s", page.issued.page, page.task)
                self.gateway.delete_tasks(self.verify.pages, [page.task])
                self._record([PagePosted(page.issued.page, task["id"])])
            else:
                log.warning("page %s was answered in two tasks; %s is left out", page.issued.page, task["id"])
                self._foreign.add(task["id"])

    def _unanswered(self, page: PageState) -> bool:
        assert page.task is not None
        found = self.gateway.tasks(self.verify.pages, FIELDS, ids=[page.task])
        return page.answer is None and not any(task.get("annotations") for task in found)

    def _look_after(self, now: bool) -> None:
        """Let pages come back whose task was deleted, or that somebody opened and left."""
        moment = time.monotonic()
        if not now and moment - self._looked < min(LOOK_SECONDS, self.abandoned_after):
            return
        self._looked = moment
        out = {page.task: page for page in self.campaign.waiting_pages if page.task and not page.returned}
        there = {task["id"] for task in self.gateway.tasks(self.verify.pages, [], ids=list(out))} if out else set()
        gone = [page for task, page in out.items() if task not in there]
        latest = max((task for task, page in self.campaign.page_of.items() if page.answer), default=0)
        overtaken = {page.issued.page: page for task, page in out.items() if task in there and task < latest}
        self._overtaken = {name: self._overtaken.get(name, moment) for name in overtaken}
        left = [page for name, page in overtaken.items() if moment - self._overtaken[name] >= self.abandoned_after]
        for why, pages in (("deleted", gone), ("abandoned", left)):
            for page in pages:
                log.warning("page %s was %s, and is asked again", page.issued.page, why)
            self._record([PageReturned(page.issued.page, 0, why) for page in pages])

    # what follows

    def _ask(self, step: Step) -> Sequence[Event]:
        """Decide, choose what to ask next, and post it; what was chosen to be asked."""
        step.decisions += len(self._choose(self.campaign.decisions()))
        chosen = self._choose(self.campaign.next_round())
        unposted = self.campaign.unposted_pages
        post_pages(
            self.gateway, self.verify, self.campaign.table, unposted, self._locations, self._record, self._gold
        )
        step.pages += len(unposted)
        return chosen

    def _milestone(self) -> bool:
        # an image whose set grows is written by itself, which is slow: so each milestone doubles what stands
        written = self.campaign.written
        return int(self.campaign.accepted().sum()) - written >= max(self.write_every, written)

    def _take_back(self, step: Step) -> None:
        """Write the images anew that hold a mask which was judged wrong since, and those that commands change."""
        revised, commanded = self._revised, self._commanded
        self._revised, self._commanded = [], []  # what comes while it is written is for the next time
        try:
            wrong = _rows(revised)
            wrong = wrong[self.campaign.verdict[wrong] == NO]
            tasks = [t for t in self._tasks_of(wrong) if np.isin(self.campaign.standing(t.task), wrong).any()]
            if len(rows := _rows(commanded)):
                tasks += self._lacking(rows)
            if tasks:
                self._write(step, list(dict.fromkeys(tasks)))
        except BaseException:
            self._revised += revised
            self._commanded += commanded
            raise

    def _tasks_of(self, rows: NDArray[np.int64]) -> list[SourceTask]:
        """The source tasks of some masks."""
        images = self.campaign.table.images[np.unique(self.campaign.table.image[rows])].tolist()
        return [self._task_of[image] for image in images if image in self._task_of]

    def _lacking(self, rows: NDArray[np.int64]) -> list[SourceTask]:
        """The source tasks of those of some masks that are written and should not be, or the other way round."""
        tasks = self._tasks_of(rows)
        stands = np.zeros(len(self.campaign.table), dtype=bool)
        for task in tasks:
            stands[self.campaign.standing(task.task)] = True
        return self._tasks_of(rows[stands[rows] != self.campaign.accepted()[rows]])

    def _write(self, step: Step, tasks: Sequence[SourceTask] | None = None) -> None:
        """Write images batch by batch; answers are read and pages go out in between."""
        looked = time.monotonic()
        batches = write_back(
            self.gateway, self.source, self.campaign, self._tasks if tasks is None else tasks, self._record
        )
        for written in batches:
            step.images_written += written
            self.alive()
            if self.stopping():
                step.finished = False
                return
            if time.monotonic() - looked >= self.poll_every:
                self._read_source()
                self._read_verify(step)
                self._obey(step)
                step.finished &= not self._ask(step) and not self.campaign.waiting_pages
                looked = time.monotonic()

    def _choose(self, choices: Iterable[Event]) -> Sequence[Event]:
        """Let the campaign choose, and store all that it chose at once; the choices.

        All or none: of a round cut in two, a cluster would stay half asked, or a set certified and its clusters
        not accepted. Each choice but a page may be what the next one follows from, so it is applied before.
        """
        chosen: list[Event] = []
        for choice in choices:
            chosen.append(choice)
            if not isinstance(choice, PageIssued):
                self.history.take(choice, datetime.now(UTC))
                self.campaign.apply(choice)
        if chosen:
            self.store.append(chosen)
        for choice in chosen:
            if isinstance(choice, PageIssued):
                self.history.take(choice, datetime.now(UTC))
                self.campaign.apply(choice)
        return chosen

    def _record(self, events: Sequence[Event], **facts: str | None) -> None:
        """Store events, then let the campaign know them."""
        moved = {name: value for name, value in facts.items() if value != self._cursors.get(name)}
        if events or moved:
            self.store.append(events, **moved)
            self._cursors.update(moved)
        now = datetime.now(UTC)
        for event in events:
            self.history.take(event, now)
            self.campaign.apply(event)
            if len(self.campaign.revised):
                self._revised.append(self.campaign.revised)
            if len(self.campaign.commands.rows):
                self._commanded.append(self.campaign.commands.rows)


def _rows(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The rows in any of the parts, each once."""
    return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *parts]))
