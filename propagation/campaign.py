"""A campaign: the fold over the event log that knows every verdict, decision and open question.

``Campaign.apply`` is the only thing that changes it. ``decisions`` and ``pages`` say what the state calls
for next, as events for the caller to store and apply; they change nothing themselves.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from propagation.errors import StoreError
from propagation.events import (
    CampaignStarted,
    Decided,
    Event,
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
from propagation.strategies import PaperStrategy
from propagation.tree import ClusterTree, cluster_name

UNASKED, NO, YES, UNSURE = -1, 0, 1, 2
_CODES: dict[Verdict, int] = {"no": NO, "yes": YES, "unsure": UNSURE}

State = Literal["open", "asking", "accepted", "rejected", "split"]


@dataclass
class PageState:
    """A page on its way: what was asked, the task it became, and whether an answer stands."""

    issued: PageIssued
    rows: NDArray[np.int64]
    task: int | None = None
    answer: PageAnswered | None = None
    returned: bool = False
    replaced: bool = False

    @property
    def waiting(self) -> bool:
        """Whether the campaign still waits for its answer."""
        return self.answer is None and not self.replaced


class Campaign:
    """The state of a campaign over a mask table and its trees.

    verdict: (n,) int8 a mask, -1 unasked, 0 no, 1 yes, 2 unsure. state: of clusters that are or were at
    the front of the search, by (tree, node). evidence: verdicts and yes among them by which a cluster was
    decided. written: the masks on each source task; intended: the digests of all results meant for it.
    """

    def __init__(self, table: MaskTable, trees: Sequence[ClusterTree], strategy: PaperStrategy) -> None:
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
        self._tree_of = {tree.category: place for place, tree in enumerate(trees)}
        self._row_of = {mask: row for row, mask in enumerate(table.ids.tolist())}
        self._image_of = {image: place for place, image in enumerate(table.images.tolist())}
        self._score_sums = [np.concatenate([[0.0], np.cumsum(table.score[t.rows], dtype=float)]) for t in trees]
        for place, tree in enumerate(trees):
            self._open(place, tree.root)

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
            case PageAnswered():
                page = self._page(event.page)
                page.answer, page.returned = event, False
                if not page.replaced:
                    self.verdict[page.rows] = [_CODES[verdict] for verdict in event.verdicts]
            case PageReturned():
                page = self._page(event.page)
                page.answer, page.returned = None, True
                if not page.replaced:
                    self.verdict[page.rows] = UNASKED
            case ImageTaken():
                self.taken[self._image_of[event.image]] = True
            case Decided():
                self._decide(event)
            case WriteIntended():
                self.intended.setdefault(event.task, set()).add(event.digest)
            case MasksWritten():
                self.written[event.task] = event.masks

    def _issue(self, event: PageIssued) -> None:
        rows = np.array([self._row_of[mask] for mask in event.questions], dtype=np.int64)
        for earlier in self.pages.values():
            if earlier.returned and earlier.issued.questions == event.questions:
                earlier.replaced = True
        self.pages[event.page] = PageState(event, rows)
        for key in map(self.find, event.clusters):
            # asked again after its split, a cluster's verdicts count for its halves
            if self.state.get(key) != "split":
                self.state[key] = "asking"

    def _decide(self, event: Decided) -> None:
        place, node = self.find(event.cluster)
        self.evidence[event.cluster] = event.asked, event.right
        match event.decision:
            case "accept":
                self.state[place, node] = "accepted"
            case "reject":
                self.state[place, node] = "rejected"
            case "split":
                self.state[place, node] = "split"
                for half in self.trees[place].halves(node):
                    self._open(place, half)

    def _open(self, place: int, node: int) -> None:
        if self.trees[place].sizes[node] >= self.strategy.least_size:
            self.state[place, node] = "open"

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
    def questions_asked(self) -> int:
        """Questions put to annotators, those of pages asked again included."""
        return sum(len(page.rows) for page in self.pages.values())

    @property
    def waiting_pages(self) -> list[PageState]:
        """The pages that have no answer yet."""
        return [page for page in self.pages.values() if page.waiting]

    def accepted(self) -> NDArray[np.bool_]:
        """(n,) the masks to be written: of accepted clusters, or judged right; never one judged wrong."""
        inside = self._inside("accepted")
        free = self.table.best & ~self.taken[self.table.image]
        return free & ((inside & (self.verdict == UNASKED)) | (self.verdict == YES))

    def rejected(self) -> NDArray[np.bool_]:
        """(n,) the masks of rejected clusters and those judged wrong, unless judged right."""
        return (self._inside("rejected") & (self.verdict != YES)) | (self.verdict == NO)

    def deciding_cluster(self) -> NDArray[np.object_]:
        """(n,) the name of the accepted cluster that a mask is in, or None."""
        names = np.full(len(self.table), None, dtype=object)
        for place, node in self.clusters("accepted"):
            names[self.rows(place, node)] = self.cluster(place, node)
        return names

    def _inside(self, state: State) -> NDArray[np.bool_]:
        inside = np.zeros(len(self.table), dtype=bool)
        for place, node in self.clusters(state):
            inside[self.rows(place, node)] = True
        return inside

    # what comes next

    def decisions(self) -> Iterator[Decided]:
        """The decisions that the verdicts call for now. Apply each before taking the next."""
        front = [*self.clusters("asking"), *self.clusters("open")]
        while front:
            place, node = front.pop(0)
            asked, right = self.known(place, node)
            if asked == 0 or asked < self._wanted(place, node, asked):
                continue
            if self.state[place, node] == "open" and self._split_unasked(place, node):
                continue
            decision = self.strategy.decide(right, asked)
            if decision == "split" and node < len(self.trees[place]):
                decision = "reject"
            yield Decided(self.cluster(place, node), decision, asked, right)
            if decision == "split":
                halves = self.trees[place].halves(node)
                front.extend((place, half) for half in halves if (place, half) in self.state)

    def next_round(self) -> Iterator[Decided | PageIssued]:
        """What to ask next: splits made without asking, then pages.

        Apply each split before taking the next event; store the pages of a round together, all or none.

        Nothing while a page still waits for its answer; first of all, pages that came back are asked
        again. The order of answers within a round changes nothing.
        """
        returned = [page for page in self.pages.values() if page.returned and not page.replaced]
        for page in returned:
            earlier = page.issued
            yield self._new_page(earlier.attempt + 1, earlier.category, earlier.questions, earlier.clusters)
        if self.waiting_pages:
            return
        chosen: dict[tuple[int, int], NDArray[np.int64]] = {}
        left = np.inf if self.strategy.budget is None else self.strategy.budget - self.questions_asked
        room = [self.strategy.clusters_a_round] * len(self.trees)
        queue = [(-self.mean_score(*key), key) for key in self.clusters("open")]
        heapq.heapify(queue)
        while queue:
            _, (place, node) = heapq.heappop(queue)
            if self._split_unasked(place, node):
                if node >= len(self.trees[place]):
                    yield Decided(self.cluster(place, node), "split", 0, 0)
                    for half in self.trees[place].halves(node):
                        if (place, half) in self.state:
                            heapq.heappush(queue, (-self.mean_score(place, half), (place, half)))
                continue
            draw = self._draw(place, node)
            if len(draw) and room[place] and len(draw) <= left:
                chosen[place, node] = draw
                room[place] -= 1
                left -= len(draw)
        yield from self._paged(chosen)

    def _split_unasked(self, place: int, node: int) -> bool:
        return self.mean_score(place, node) < self.strategy.split_below

    def _free(self, place: int, node: int) -> NDArray[np.int64]:
        rows = self.rows(place, node)
        return rows[(self.verdict[rows] == UNASKED) & ~self.taken[self.table.image[rows]]]

    def _wanted(self, place: int, node: int, asked: int) -> int:
        return min(self.strategy.samples, asked + len(self._free(place, node)))

    def _draw(self, place: int, node: int) -> NDArray[np.int64]:
        asked, _ = self.known(place, node)
        free = self._free(place, node)
        rng = np.random.default_rng([self.strategy.seed, place, node])
        return rng.permutation(np.sort(free))[: max(0, self._wanted(place, node, asked) - asked)]

    def _paged(self, chosen: dict[tuple[int, int], NDArray[np.int64]]) -> Iterator[PageIssued]:
        for place, tree in enumerate(self.trees):
            where = np.empty(len(self.table), dtype=np.int64)
            where[tree.rows] = np.arange(len(tree))
            asked = [
                (int(where[row]), row, node) for (p, node), rows in chosen.items() if p == place for row in rows
            ]
            asked.sort()
            size = self.strategy.page_size
            for begin in range(0, len(asked), size):
                part = asked[begin : begin + size]
                questions = tuple(str(self.table.ids[row]) for _, row, _ in part)
                clusters = tuple(cluster_name(tree, node) for node in sorted({node for *_, node in part}))
                yield self._new_page(1, tree.category, questions, clusters)

    def _new_page(
        self, attempt: int, category: str, questions: tuple[str, ...], clusters: tuple[str, ...]
    ) -> PageIssued:
        parts = "\0".join([self.name or "", str(attempt), *questions])
        name = hashlib.blake2b(parts.encode(), digest_size=10).hexdigest()
        return PageIssued(name, attempt, category, questions, clusters)
