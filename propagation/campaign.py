"""A campaign: the fold over the event log that knows every verdict, decision and open question.

``Campaign.apply`` is the only thing that changes it. ``decisions`` and ``next_round`` say what the state calls
for next, as events for the caller to store and apply. What to ask and what the answers decide is the strategy's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from propagation.annotators import Gold
from propagation.errors import StoreError
from propagation.events import (
    CampaignStarted,
    Decided,
    Decision,
    Event,
    GoldAnswered,
    ImageTaken,
    MasksWritten,
    PageAnswered,
    PageIssued,
    PagePosted,
    PageReturned,
    Verdict,
    WriteIntended,
)
from propagation.masks import MaskTable
from propagation.strategies import Choice, Claim, Draw, Strategy
from propagation.tree import ClusterTree, cluster_name

UNASKED, NO, YES, UNSURE = -1, 0, 1, 2
_CODES: dict[Verdict, int] = {"no": NO, "yes": YES, "unsure": UNSURE}

State = Literal["open", "asking", "proposed", "accepted", "rejected", "split"]
_STATES: dict[Decision, State] = {
    "propose": "proposed",
    "accept": "accepted",
    "reject": "rejected",
    "split": "split",
}


@dataclass
class PageState:
    """A page on its way: what was asked, the task it became, and whether an answer stands."""

    issued: PageIssued
    rows: NDArray[np.int64]
    task: int | None = None
    answer: PageAnswered | None = None
    returned: bool = False
    replaced: bool = False


class Campaign:
    """The state of a campaign over a mask table and its trees.

    verdict: (n,) int8 a mask, -1 unasked, 0 no, 1 yes, 2 unsure. state: of clusters that are or were at
    the front of the search, by (tree, node). evidence: verdicts and yes among them by which a cluster was
    decided. written: the masks on each source task; intended: the digests of all results meant for it.
    gold: the answers to questions whose truth is known. leaf: (n,) where a mask stands in the leaf order of its
    tree. search: the strategy at work.
    """

    def __init__(self, table: MaskTable, trees: Sequence[ClusterTree], strategy: Strategy) -> None:
        self.table = table
        self.trees = trees
        self.strategy = strategy
        self.name: str | None = None
        self.verdict = np.full(len(table), UNASKED, dtype=np.int8)
        self.pages: dict[str, PageState] = {}
        self.state: dict[tuple[int, int], State] = {}
        self.evidence: dict[str, tuple[int, int]] = {}
        self.written: dict[int, tuple[str, ...]] = {}
        self.intended: dict[int, set[str]] = {}
        self.taken = np.zeros(len(table.images), dtype=bool)
        self.gold = Gold()
        self.questions_asked = 0
        self._waiting: dict[str, PageState] = {}
        self._returned: dict[str, PageState] = {}
        self._tree_of = {tree.category: place for place, tree in enumerate(trees)}
        self._row_of = {mask: row for row, mask in enumerate(table.ids.tolist())}
        self._image_of = {image: place for place, image in enumerate(table.images.tolist())}
        self._score_sums = [np.concatenate([[0.0], np.cumsum(table.score[t.rows], dtype=float)]) for t in trees]
        self.leaf = np.zeros(len(table), dtype=np.int64)
        for tree in trees:
            self.leaf[tree.rows] = np.arange(len(tree))
        self.search = strategy.begin(self)

    # the fold

    def apply(self, event: Event) -> None:
        """Take one event of the log into account."""
        match event:
            case CampaignStarted():
                self.name = event.campaign
            case PageIssued():
                self._issue(event)
            case PagePosted():
                self._page(event.page).task = event.task
            case PageAnswered() | PageReturned():
                self._answer(event)
            case ImageTaken():
                self.taken[self._image_of[event.image]] = True
            case Decided():
                self.evidence[event.cluster] = event.asked, event.right
                self.state[self.find(event.cluster)] = _STATES[event.decision]
            case GoldAnswered():
                self.gold += Gold(event.wrong, event.missed, event.right, event.marked)
            case WriteIntended():
                self.intended.setdefault(event.task, set()).add(event.digest)
            case MasksWritten():
                self.written[event.task] = event.masks
        self.search.apply(event)

    def _issue(self, event: PageIssued) -> None:
        rows = np.array([self._row_of[mask] for mask in event.questions], dtype=np.int64)
        if event.attempt > 1:
            for earlier in self._returned.values():
                if earlier.issued.questions == event.questions:
                    earlier.replaced = True
                    del self._returned[earlier.issued.page], self._waiting[earlier.issued.page]
                    break
        page = PageState(event, rows)
        self.pages[event.page] = self._waiting[event.page] = page
        self.questions_asked += len(rows)

    def _answer(self, event: PageAnswered | PageReturned) -> None:
        page = self._page(event.page)
        page.returned = isinstance(event, PageReturned)
        page.answer = None if isinstance(event, PageReturned) else event
        if page.replaced:
            return
        if isinstance(event, PageReturned):
            self._returned[event.page] = self._waiting[event.page] = page
            self.verdict[page.rows] = UNASKED
        else:
            self._returned.pop(event.page, None)
            self._waiting.pop(event.page, None)
            self.verdict[page.rows] = [_CODES[verdict] for verdict in event.verdicts]

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

    def rows(self, place: int, node: int) -> NDArray[np.int64]:
        """The rows of the mask table in a cluster, in leaf order."""
        tree = self.trees[place]
        return tree.rows[tree.slice(node)]

    def known(self, place: int, node: int) -> tuple[int, int]:
        """How many verdicts are known inside a cluster, and how many of them are yes."""
        verdicts = self.verdict[self.rows(place, node)]
        return int((verdicts != UNASKED).sum()), int((verdicts == YES).sum())

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
    def waiting_pages(self) -> list[PageState]:
        """The pages that have no answer yet."""
        return list(self._waiting.values())

    @property
    def claim(self) -> Claim:
        """What the numbers about the accepted masks may be called."""
        return self.search.claim

    def accepted(self) -> NDArray[np.bool_]:
        """(n,) the masks to be written: those that the strategy's decisions cover, on images that are free."""
        return self.table.best & ~self.taken[self.table.image] & self.search.written()

    def rejected(self) -> NDArray[np.bool_]:
        """(n,) the masks of rejected clusters and those judged wrong, unless judged right."""
        return (self.inside("rejected") & (self.verdict != YES)) | (self.verdict == NO)

    def deciding_cluster(self) -> NDArray[np.object_]:
        """(n,) the name of the accepted cluster that a mask is in, or None."""
        names = np.full(len(self.table), None, dtype=object)
        for place, node in self.clusters("accepted"):
            names[self.rows(place, node)] = self.cluster(place, node)
        return names

    def inside(self, state: State) -> NDArray[np.bool_]:
        inside = np.zeros(len(self.table), dtype=bool)
        for place, node in self.clusters(state):
            inside[self.rows(place, node)] = True
        return inside

    def free(self, place: int, node: int) -> NDArray[np.int64]:
        """The rows of a cluster that can be asked: without a verdict, on images that nobody has annotated."""
        rows = self.rows(place, node)
        return rows[(self.verdict[rows] == UNASKED) & ~self.taken[self.table.image[rows]]]

    # what comes next

    def decisions(self) -> Iterator[Choice]:
        """The decisions that the verdicts call for now. Apply each before taking the next."""
        yield from self.search.decisions()

    def next_round(self) -> Iterator[Choice | PageIssued]:
        """What to ask next: decisions made without asking, then pages.

        Apply each decision before taking the next event; store the pages of a round together, all or none.

        Nothing while a page still waits for its answer; first of all, pages that came back are asked
        again. The order of answers within a round changes nothing.
        """
        again = [page.issued for page in self._returned.values()]
        for earlier in again:
            yield self._new_page(earlier.attempt + 1, earlier.category, earlier.questions, earlier.clusters)
        if again or self._waiting:
            return
        draws: list[Draw] = []
        budget = self.strategy.budget
        for step in self.search.draw(None if budget is None else max(0, budget - self.questions_asked)):
            if isinstance(step, Draw):
                draws.append(step)
            else:
                yield step
        yield from self._paged(draws)

    def _paged(self, draws: Sequence[Draw]) -> Iterator[PageIssued]:
        for place, tree in enumerate(self.trees):
            here = [draw for draw in draws if draw.place == place]
            if not here:
                continue
            rows = np.concatenate([draw.rows for draw in here])
            nodes = np.concatenate([draw.clusters for draw in here])
            order = np.argsort(self.leaf[rows], kind="stable")
            for begin in range(0, len(rows), self.strategy.page_size):
                part = order[begin : begin + self.strategy.page_size]
                questions = tuple(self.table.ids[rows[part]].tolist())
                clusters = tuple(cluster_name(tree, node) for node in np.unique(nodes[part]).tolist())
                yield self._new_page(1, tree.category, questions, clusters)

    def _new_page(
        self, attempt: int, category: str, questions: tuple[str, ...], clusters: tuple[str, ...]
    ) -> PageIssued:
        parts = "\0".join([self.name or "", str(attempt), *questions])
        name = hashlib.blake2b(parts.encode(), digest_size=10).hexdigest()
        return PageIssued(name, attempt, category, questions, clusters)
