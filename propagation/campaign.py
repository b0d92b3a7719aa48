"""A campaign: the fold over the event log that knows every verdict, decision and open question.

``Campaign.apply`` is the only thing that changes it. ``decisions`` and ``next_round`` say what the state calls
for next, as events for the caller to store and apply. What to ask and what the answers decide is the strategy's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from propagation.annotators import REPEATS, Gold, Labels, Team
from propagation.columns import Ids
from propagation.commands import ACCEPT, REJECT, Commands
from propagation.errors import StoreError
from propagation.events import (
    CampaignStarted,
    Commanded,
    CommandRefused,
    Decided,
    Decision,
    Event,
    GoldAnswered,
    HistoryLost,
    ImageTaken,
    MasksWritten,
    PageAnswered,
    PageIssued,
    PagePosted,
    PageReopened,
    PageReturned,
    RoundStarted,
    Verdict,
    WriteIntended,
)
from propagation.gold import NUMBERS, UNCHECKED, Checks, GoldDraws, number_of
from propagation.masks import MaskTable
from propagation.strategies import Choice, Claim, Draw, Strategy
from propagation.tree import ClusterTree, cluster_name

UNASKED, NO, YES, UNSURE = -1, 0, 1, 2
_NONE = np.empty(0, dtype=np.int32)
_CODES: dict[Verdict, int] = {"no": NO, "yes": YES, "unsure": UNSURE}

State = Literal["open", "asking", "proposed", "accepted", "rejected", "split", "undone"]
_STATES: dict[Decision, State] = {
    "propose": "proposed",
    "accept": "accepted",
    "reject": "rejected",
    "split": "split",
}


@dataclass(eq=False)
class Asked:
    """The same questions, on one page or on several in turn: of the answers, the first that is given counts."""

    rows: NDArray[np.int64]
    pages: list[PageState] = field(default_factory=list)
    counted: PageState | None = None

    def waiting(self) -> PageState | None:
        """The page whose answer is awaited, or else the one to be asked again; None where an answer counts."""
        if self.counted is not None:
            return None
        out = [page for page in self.pages if not page.returned]
        return (out or self.pages)[-1]


@dataclass(frozen=True)
class Check:
    """What the gold on a page said when it was answered.

    by: the account; refused: why the answer does not count, "" where it does; weighed: whether its gold tells
    the rates of the answers that count; gold: as it was answered.
    """

    by: int
    refused: str
    weighed: bool
    gold: Gold


@dataclass(eq=False)
class PageState:
    """A page on its way: what was asked, the task it became, its answer, and whether it came back.

    It comes back without an answer, or with one that doesn't count; ``check`` says which.
    """

    issued: PageIssued
    asked: Asked
    task: int | None = None
    answer: PageAnswered | None = None
    returned: bool = False
    check: Check | None = None

    @property
    def refused(self) -> str:
        """Why the answer does not count, or ""."""
        return self.check.refused if self.check else ""

    @property
    def counts(self) -> bool:
        """Whether there is an answer that may count."""
        return self.answer is not None and not self.refused

    @property
    def shown(self) -> tuple[str, ...]:
        """All masks on the page, gold too, in its order."""
        order = np.argsort(self._places(), kind="stable")
        return tuple(np.array([*self.issued.questions, *self.issued.gold], dtype=object)[order].tolist())

    def _places(self) -> NDArray[np.int64]:
        """The places of the questions, then of the gold."""
        gold = np.array(self.issued.places, dtype=np.int64)
        everything = np.arange(len(self.issued.questions) + len(gold))
        return np.concatenate([np.setdiff1d(everything, gold), gold])

    def verdicts(self) -> tuple[list[Verdict], list[Verdict]]:
        """The answer's verdicts on the questions, and on the gold."""
        assert self.answer is not None
        given = [self.answer.verdicts[place] for place in self._places().tolist()]
        return given[: len(self.issued.questions)], given[len(self.issued.questions) :]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows of the mask table that are asked about, in the page's order."""
        return self.asked.rows


class Campaign:
    """The state of a campaign over a mask table and its trees.

    pages: by name; page_of: by the task that they became.
    verdict: (n,) int8 a mask, -1 unasked, 0 no, 1 yes, 2 unsure. state: of clusters that are or were at
    the front of the search, by (tree, node). evidence: verdicts and yes among them by which a cluster was
    the latest event changed or took back. team: the annotators; measured: whether their rates are those of the
    gold on the pages. checks: how new pages are checked. leaf: (n,) where a mask stands in the leaf order of its
    tree; place: (n,) that tree, the latest where it was found in several rounds, -1 in none. round: its number.
    commands: what managers said. search: the strategy at work.
    """

    def __init__(
        self, table: MaskTable, trees: Sequence[ClusterTree], strategy: Strategy, checks: Checks = UNCHECKED
    ) -> None:
        self.table = table
        self.trees = trees
        self.strategy = strategy
        self.checks = checks
        self.name: str | None = None
        self.verdict = np.full(len(table), UNASKED, dtype=np.int8)
        self.pages: dict[str, PageState] = {}
        self.page_of: dict[int, PageState] = {}
        self.state: dict[tuple[int, int], State] = {}
        self.evidence: dict[str, tuple[int, int]] = {}
        self.intended: dict[int, set[str]] = {}
        self.halfway: set[int] = set()
        self.ours: dict[int, tuple[int, str]] = {}
        self.whole = True
        self.revised: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.taken = np.zeros(len(table.images), dtype=bool)
        self.team = Team()
        self.measured = False
        self.questions_asked = 0
        self.round = 1
        self._asked_before = 0  # this round
        self._draws = GoldDraws(checks)
        self._alone: dict[tuple[str, ...], Asked] = {}  # a second annotator is to be asked these
        self._second: dict[str, PageState] = {}  # and is asked these
        self._overlaps: list[Asked] = []
        self._standing: dict[int, NDArray[np.int32]] = {}
        self._written = 0
        self._asked: dict[tuple[str, ...], Asked] = {}
        self._waiting: dict[tuple[str, ...], Asked] = {}
        self._tree_of = {tree.name: place for place, tree in enumerate(trees)}
        # a dictionary of a million strings would take ten times the memory
        self._ids = Ids.of(table.ids)
        self._image_of = {image: place for place, image in enumerate(table.images.tolist())}
        self.leaf = np.zeros(len(table), dtype=np.int32)
        self.place = np.full(len(table), -1, dtype=np.int16)
        for place, tree in enumerate(trees):
            self.leaf[tree.rows] = np.arange(len(tree), dtype=np.int32)
            self.place[tree.rows] = place
        self.commands = Commands(self)
        self.search = strategy.begin(self)

    # the fold

    def apply(self, event: Event) -> None:
        """Take one event of the log into account."""
        self.revised = self.revised[:0]
        self.commands.forget_latest()
        match event:
            case CampaignStarted():
                self.name = event.campaign
                self.measured = bool(event.gold)
            case RoundStarted():
                self.round = event.round
                over = ("accepted", "rejected", "split")
                self.state = {key: state for key, state in self.state.items() if state in over}
                self._asked_before = self.questions_asked
            case PageIssued():
                self._issue(event)
            case PagePosted():
                page = self._page(event.page)
                if page.task is not None:
                    self.page_of.pop(page.task, None)
                page.task = event.task
                self.page_of[event.task] = page
            case PageAnswered() | PageReturned() | PageReopened():
                self._answer(event)
            case ImageTaken():
                self.taken[self._image_of[event.image]] = True
            case Decided():
                self.evidence[event.cluster] = event.asked, event.right
                self.state[self.find(event.cluster)] = _STATES[event.decision]
            case Commanded() | CommandRefused():
                self.commands.apply(event)
            case GoldAnswered():
                self.team.common += Gold(event.wrong, event.missed, event.right, event.marked)
            case WriteIntended():
                self.intended.setdefault(event.task, set()).add(event.digest)
                self.halfway.add(event.task)
            case MasksWritten():
                rows = self.rows_of(event.masks).astype(np.int32)
                self._written += len(rows) - len(self.standing(event.task))
                self._standing[event.task] = np.sort(rows)
                self.ours[event.task] = event.annotation, event.version
                self.halfway.discard(event.task)
            case HistoryLost():
                self.whole = False
        self.search.apply(event)

    @property
    def trees_now(self) -> list[tuple[int, ClusterTree]]:
        """The trees of this round, each with its place."""
        return [(place, tree) for place, tree in enumerate(self.trees) if tree.round == self.round]

    @property
    def budget(self) -> int | None:
        """The questions in all after which this round ends; None for no end but the strategy's own."""
        budget = self.strategy.budget
        return None if budget is None else self._asked_before + budget

    @property
    def room(self) -> int | None:
        """The questions left; None for no end."""
        return None if self.budget is None else max(0, self.budget - self.questions_asked)

    def rows_of(self, masks: Sequence[str]) -> NDArray[np.int64]:
        """The rows of masks by their ids. Raises StoreError where one is not in the table."""
        if masks and not len(self.table):
            raise StoreError("the event log has masks, the mask table has none; the log is of another table")
        rows = self._ids.find(masks)
        if (rows < 0).any():
            unknown = masks[int(np.argmin(rows))]
            raise StoreError(f"no mask {unknown!r} in the mask table; the event log is of another table")
        return rows

    def _issue(self, event: PageIssued) -> None:
        asked = self._asked.get(event.questions)
        if asked is None:
            asked = self._asked[event.questions] = Asked(self.rows_of(event.questions))
        page = PageState(event, asked)
        asked.pages.append(page)
        self.pages[event.page] = page
        if asked.counted is None:
            self._waiting[event.questions] = asked
        if event.overlap:
            self._alone.pop(event.questions, None)
            self._second[event.page] = page
            self._overlaps.append(asked)
        self.questions_asked += len(asked.rows) + len(event.gold)
        self._draws.showed(event.gold)

    def _answer(self, event: PageAnswered | PageReturned | PageReopened) -> None:
        page = self._page(event.page)
        asked = page.asked
        before = self.verdict[asked.rows]
        counted = asked.counted
        if counted is not None and counted.check is not None:
            self.team[counted.check.by].counted -= len(asked.rows)
        page.answer = event if isinstance(event, PageAnswered) else None
        self._check(page)
        page.returned = isinstance(event, PageReturned) or bool(page.refused)
        self._second.pop(event.page, None)
        if page.counts and page.issued.attempt == 1 and number_of(event.page) < self.checks.overlap * NUMBERS:
            self._alone[page.issued.questions] = asked
        if asked.counted in (None, page):
            asked.counted = next((p for p in [page, *asked.pages] if p.counts), None)
        if asked.counted is None:
            self._waiting[page.issued.questions] = asked
            self.verdict[asked.rows] = UNASKED
        else:
            self._waiting.pop(page.issued.questions, None)
            self.verdict[asked.rows] = [_CODES[verdict] for verdict in asked.counted.verdicts()[0]]
            assert asked.counted.check is not None
            self.team[asked.counted.check.by].counted += len(asked.rows)
        self.revised = asked.rows[(before != UNASKED) & (before != self.verdict[asked.rows])]

    def _check(self, page: PageState) -> None:
        """Count the gold of a page's answer, and say whether the answer counts.

        What an annotator's earlier gold said decides whether this page's tells their rates: were it left out for
        what it says itself, the rates would look better than they are. An answer that is changed later changes
        the counts, and nothing else.
        """
        answer, before = page.answer, page.check
        if before is not None:
            one = self.team[before.by]
            one.shown -= before.gold
            one.weighed -= before.gold if before.weighed else Gold()
        if answer is None:
            page.check = None
            return
        gold = gold_answers(page.issued.truth, page.verdicts()[1])
        if before is None or before.by != answer.by:
            page.check = self._first_check(page, answer, gold)
        else:
            page.check = Check(before.by, before.refused, before.weighed, gold)
        one = self.team[answer.by]
        one.shown += gold
        one.weighed += gold if page.check.weighed else Gold()

    def _first_check(self, page: PageState, answer: PageAnswered, gold: Gold) -> Check:
        one, issued = self.team[answer.by], page.issued
        one.answers += 1
        self.team.recent.append(answer.by)
        questions = len(answer.verdicts)
        if answer.seconds is not None:
            one.questions += questions
            one.seconds += answer.seconds
        good = not one.suspected
        if issued.tolerated:
            one.take(gold, issued.tolerated)
        fast = answer.seconds is not None and answer.seconds < issued.least_seconds
        earlier = [p for p in page.asked.pages if p is not page and p.check and p.check.by == answer.by]
        refused = ""
        if any(p.refused for p in earlier):
            last = self.team.alone(answer.by) or len(earlier) + 1 >= REPEATS
            refused = "" if last else "the same annotator again"
        elif fast:
            refused = "too fast"
        elif issued.tolerated and one.suspected:
            refused = "missed gold"
        one.refused += bool(refused)
        weighed = not refused or (good and refused == "missed gold")
        return Check(answer.by, refused, weighed, gold)

    def _page(self, name: str) -> PageState:
        if name not in self.pages:
            raise StoreError(f"page {name} was never issued in this campaign; the event log is damaged")
        return self.pages[name]

    # what is known

    def find(self, cluster: str) -> tuple[int, int]:
        """The tree and node of a cluster's name. Raises StoreError when there is no such cluster."""
        category, _, node = cluster.rpartition("/")
        place = self._tree_of.get(category)
        if place is None or not node.isdecimal() or int(node) > self.trees[place].root:
            raise StoreError(f"no cluster {cluster!r} in this campaign; its trees are not the ones it began with")
        return place, int(node)

    def cluster(self, place: int, node: int) -> str:
        """The name of a cluster."""
        return cluster_name(self.trees[place], node)

    def rows(self, place: int, node: int) -> NDArray[np.int32]:
        """The rows of the mask table in a cluster, in leaf order."""
        tree = self.trees[place]
        return tree.rows[tree.slice(node)]

    def known(self, place: int, node: int) -> tuple[int, int]:
        """How many verdicts are known inside a cluster, and how many of them are yes."""
        verdicts = self.verdict[self.rows(place, node)]
        return int((verdicts != UNASKED).sum()), int((verdicts == YES).sum())

    @cached_property
    def _score_sums(self) -> list[NDArray[np.float64]]:
        """Of each tree, (n + 1,) the sum of the mask scores before each place in its leaf order."""
        scores = [self.table.score[tree.rows] for tree in self.trees]
        return [np.concatenate([[0.0], np.cumsum(score, dtype=float)]) for score in scores]

    def mean_score(self, place: int, node: int) -> float:
        """The mean mask score of a cluster."""
        where = self.trees[place].slice(node)
        sums = self._score_sums[place]
        return float(sums[where.stop] - sums[where.start]) / (where.stop - where.start)

    def is_taken(self, image: str) -> bool:
        """Whether a person has annotated an image."""
        return bool(self.taken[self._image_of[image]])

    def clusters(self, state: State) -> list[tuple[int, int]]:
        """The clusters in a state, ordered."""
        return sorted(key for key, value in self.state.items() if value == state)

    @property
    def gold(self) -> Gold:
        """The answers to questions of known truth, as far as they tell the rates of the answers that count."""
        return self.team.gold

    def overlaps(self) -> Labels:
        """The answers to what several annotators were asked; of one annotator's, the first."""
        rows, accounts, yes = [], [], []
        for asked in self._overlaps:
            first: dict[int, PageState] = {}
            for page in asked.pages:
                if page.check is not None:
                    first.setdefault(page.check.by, page)
            if len(first) > 1:
                for account, page in first.items():
                    rows.append(asked.rows)
                    accounts.append(np.full(len(asked.rows), account))
                    yes.append(np.array([verdict == "yes" for verdict in page.verdicts()[0]]))
        if not rows:
            return Labels(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_))
        return Labels(np.concatenate(rows), np.concatenate(accounts), np.concatenate(yes))

    @property
    def waiting_pages(self) -> list[PageState]:
        """The pages whose answer is awaited, and those that came back and are to be asked again."""
        return [page for asked in self._waiting.values() if (page := asked.waiting())]

    @property
    def unposted_pages(self) -> list[PageState]:
        """The pages that are to become tasks."""
        due = [*self.waiting_pages, *self._second.values()]
        return [page for page in due if page.task is None and not page.returned]

    @property
    def written(self) -> int:
        """How many masks stand in Label Studio."""
        return self._written

    def standing(self, task: int) -> NDArray[np.int32]:
        """The rows of the masks on a source task's annotation, as last written; ascending."""
        return self._standing.get(task, _NONE)

    def reasons(self) -> NDArray[np.object_]:
        """(n,) the name of the decision by which an accepted mask is written, or None."""
        names = self.search.reasons()
        if self.commands.any:
            names[self.commands.out()] = None
            by_command = self.by_command()
            names[by_command] = [f"command/{cluster}" for cluster in self.commands.names()[by_command]]
        names[~self.accepted()] = None
        return names

    def states(self) -> dict[tuple[int, int], State]:
        """The clusters' states, as commands left them."""
        return {**self.state, **self.commands.states()}

    @property
    def claim(self) -> Claim:
        """What the numbers about the accepted masks may be called."""
        return self.search.claim

    def accepted(self) -> NDArray[np.bool_]:
        """(n,) the masks to be written: those that decisions and commands cover, on images that are free."""
        written = self.search.written()
        if self.commands.any:
            written = (written & ~self.commands.out()) | self._commanded()
        return self.table.best & ~self.taken[self.table.image] & written

    def _commanded(self) -> NDArray[np.bool_]:
        """(n,) the masks accepted by command, but those judged wrong."""
        return (self.commands.ruled == ACCEPT) & ((self.verdict == UNASKED) | (self.verdict == YES))

    def by_command(self) -> NDArray[np.bool_]:
        """(n,) the accepted masks that no decision covers, only a command: nothing is claimed of them."""
        if not self.commands.any:
            return np.zeros(len(self.table), dtype=bool)
        decided = self.search.written() & ~self.commands.out()
        return self.accepted() & self._commanded() & ~decided

    def rejected(self) -> NDArray[np.bool_]:
        """(n,) the masks of rejected clusters and those judged wrong, unless judged right; commands go before."""
        rejected = self.inside("rejected") & (self.verdict != YES)
        if self.commands.any:
            rejected &= (self.commands.ruled != ACCEPT) & ~self.commands.held
            rejected |= self.commands.ruled == REJECT
        return rejected | (self.verdict == NO)

    def deciding_cluster(self) -> NDArray[np.object_]:
        """(n,) the name of the accepted cluster that a mask is in, or None."""
        names = np.full(len(self.table), None, dtype=object)
        for place, node in self.clusters("accepted"):
            names[self.rows(place, node)] = self.cluster(place, node)
        if self.commands.any:
            by_command = self.by_command()
            names[self.commands.out()] = None
            names[by_command] = self.commands.names()[by_command]
        return names

    def front(self) -> NDArray[np.object_]:
        """(n,) the name of the smallest cluster looked at that a mask is in, whatever became of it."""
        names = np.full(len(self.table), None, dtype=object)
        roots = [(place, tree.root) for place, tree in enumerate(self.trees)]
        for place, node in sorted([*roots, *self.state], key=lambda key: -int(self.trees[key[0]].sizes[key[1]])):
            names[self.rows(place, node)] = self.cluster(place, node)
        return names

    def inside(self, state: State) -> NDArray[np.bool_]:
        inside = np.zeros(len(self.table), dtype=bool)
        for place, node in self.clusters(state):
            inside[self.rows(place, node)] = True
        return inside

    def free(self, place: int, node: int) -> NDArray[np.int32]:
        """The rows of a cluster that can be asked.

        They have no verdict, nor a command that makes one needless, and nobody has annotated their images.
        """
        rows = self.rows(place, node)
        free = (self.verdict[rows] == UNASKED) & (self.commands.ruled[rows] == 0) & self.table.best[rows]
        return rows[free & ~self.taken[self.table.image[rows]]]

    # what comes next

    def decisions(self) -> Iterator[Choice]:
        """The decisions that the verdicts call for now. Apply each before taking the next."""
        yield from self.search.decisions()

    def next_round(self, new: bool = True) -> Iterator[Choice | PageIssued]:
        """What to ask next: decisions made without asking, then pages.

        Apply each decision before taking the next event; store the pages of a round together, all or none.

        Nothing while a page still waits for its answer; first of all, pages that came back are asked
        again. The order of answers within a round changes nothing. Without ``new``, only these are.
        """
        gold = self._draws.ahead()
        again = [page.asked.pages[-1].issued for page in self.waiting_pages if page.returned]
        for earlier in again:
            yield self._new_page(earlier.attempt + 1, earlier.category, earlier.questions, earlier.clusters, gold)
        if again or self._waiting or not new:
            return
        draws: list[Draw] = []
        if len(set(self.team.recent)) > 1:
            for asked in list(self._alone.values()):
                last = asked.pages[-1].issued
                yield self._new_page(
                    last.attempt + 1, last.category, last.questions, last.clusters, gold, overlap=True
                )
        room = self.room
        if room is not None and self.checks.measures:
            room = round(room * (1 - self.checks.share))
        for step in self.search.draw(room):
            if isinstance(step, Draw):
                draws.append(step)
            else:
                yield step
        yield from self._paged(draws, gold)

    def _paged(self, draws: Sequence[Draw], gold: GoldDraws) -> Iterator[PageIssued]:
        spare = None if self.room is None else self.room - sum(len(draw.rows) for draw in draws)
        for place, tree in enumerate(self.trees):
            here = [draw for draw in draws if draw.place == place]
            if not here:
                continue
            rows = np.concatenate([draw.rows for draw in here])
            nodes = np.concatenate([draw.clusters for draw in here])
            order = np.argsort(self.leaf[rows], kind="stable")
            size = self.checks.room(self.strategy.page_size)
            for begin in range(0, len(rows), size):
                part = order[begin : begin + size]
                questions = tuple(self.table.ids[rows[part]].tolist())
                clusters = tuple(cluster_name(tree, node) for node in np.unique(nodes[part]).tolist())
                page = self._new_page(1, tree.category, questions, clusters, gold, spare=spare)
                spare = None if spare is None else spare - len(page.gold)
                yield page

    def _new_page(
        self,
        attempt: int,
        category: str,
        questions: tuple[str, ...],
        clusters: tuple[str, ...],
        draws: GoldDraws,
        overlap: bool = False,
        spare: int | None = None,
    ) -> PageIssued:
        name = page_name(self.name or "", attempt, questions)
        checks = self.checks
        size = self.strategy.page_size if spare is None else min(self.strategy.page_size, len(questions) + spare)
        gold = draws.draw(name, category, len(questions), size)
        return PageIssued(
            name,
            attempt,
            category,
            questions,
            clusters,
            gold.ids,
            gold.truth,
            gold.places,
            checks.tolerated if gold.ids else 0.0,
            checks.least_seconds * (len(questions) + len(gold.ids)),
            overlap,
        )


def gold_answers(truth: Sequence[bool], verdicts: Sequence[Verdict]) -> Gold:
    """What verdicts on masks of known truth come to."""
    told = [(right, verdict == "yes") for right, verdict in zip(truth, verdicts, strict=True)]
    return Gold(
        sum(not right for right, _ in told),
        sum(yes and not right for right, yes in told),
        sum(right for right, _ in told),
        sum(right and not yes for right, yes in told),
    )


def page_name(campaign: str, attempt: int, questions: Sequence[str]) -> str:
    """20 hex digits made of a campaign, an attempt and the questions, and of nothing else."""
    parts = "\0".join([campaign, str(attempt), *questions])
    return hashlib.blake2b(parts.encode(), digest_size=10).hexdigest()
