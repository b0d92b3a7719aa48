"""The paper's strategy: ask about some masks of a cluster, and let their share of yes decide it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from propagation.events import (
    Command,
    Commanded,
    Decided,
    Decision,
    Event,
    ImageTaken,
    PageAnswered,
    PageIssued,
    PageReopened,
    PageReturned,
)
from propagation.strategies import Claim, Draw, require

if TYPE_CHECKING:
    from propagation.campaign import Campaign, State

Order = Literal["score", "dfs+score", "dfs", "bfs", "threshold"]
Key = tuple[int, int]


@dataclass(frozen=True)
class PaperStrategy:
    """The rule of Papadopoulos, Weber and Torralba, ICCV 2021, section 3.3. It proves nothing.

    accept_at: K_a, a cluster whose share of yes is at least this is accepted.
    reject_at: K_r, one whose share is at most this is rejected; negative to never reject.
    split_below: K_pa, a cluster whose mean mask score is lower is split without asking.
    samples: questions a cluster, those already answered inside it included.
    least_size: clusters with fewer masks are left undecided.
    search: which cluster comes first: of the best mean score; the deepest, with or without the score among
    equals; the least deep; or those below one height of the tree, ``cut``, which are never split.
    cut: that height, as a share of the tree's.
    clusters_a_round: clusters asked before their answers are awaited.
    queue: whether that is of each category, or of all together.
    whole_clusters: an accepted cluster is written whole, the masks judged wrong too, as published.
    budget: questions in all; None for no end but the trees'.
    page_size: questions a page.
    seed: of the draws.
    """

    name: Literal["paper"] = "paper"
    accept_at: float = 0.85
    reject_at: float = 0.15
    split_below: float = 0.7
    samples: int = 15
    least_size: int = 15
    search: Order = "score"
    cut: float = 0.5
    clusters_a_round: int = 30
    queue: Literal["category", "campaign"] = "category"
    whole_clusters: bool = False
    budget: int | None = None
    page_size: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            "strategy",
            accept_at=(self.accept_at, 0 < self.accept_at <= 1, "a share above 0 and at most 1"),
            reject_at=(self.reject_at, self.reject_at < self.accept_at, "less than accept_at"),
            samples=(self.samples, self.samples >= 1, "at least 1"),
            least_size=(self.least_size, self.least_size >= 1, "at least 1"),
            cut=(self.cut, 0 <= self.cut <= 1, "a share of the tree's height"),
            clusters_a_round=(self.clusters_a_round, self.clusters_a_round >= 1, "at least 1"),
            budget=(self.budget, self.budget is None or self.budget >= 0, "0 or more, or left out"),
            page_size=(self.page_size, self.page_size >= 1, "at least 1"),
        )

    def decide(self, right: int, asked: int) -> Decision:
        """What the verdicts of a cluster decide, ``right`` of ``asked`` of them yes."""
        share = right / asked
        if share >= self.accept_at:
            return "accept"
        return "reject" if share <= self.reject_at else "split"

    def begin(self, campaign: Campaign) -> PaperSearch:
        """Begin with the roots of the trees."""
        return PaperSearch(self, campaign)


class PaperSearch:
    """The clusters at the front of the search, best first."""

    claim: Claim = "estimate"

    def __init__(self, strategy: PaperStrategy, campaign: Campaign) -> None:
        self._rule = strategy
        self._campaign = campaign
        self._queue: list[tuple[tuple[float, ...], Key]] = []
        self._depth: dict[Key, int] = {}
        # clusters that a verdict may decide: those asked, and those that were born with verdicts
        self._undecided: set[Key] = set()
        # the verdicts that each decision rests on, and the decisions for which one of them has changed
        self._basis: dict[Key, NDArray[np.int64]] = {}
        self._rests = np.zeros(len(campaign.table), dtype=bool)
        self._doubted: set[Key] = set()
        self._split: set[Key] = set()
        # clusters whose further questions, wished for by command, are out
        self._again: set[Key] = set()
        # what clusters were before they were split by command; the verdicts in those whose decision was undone
        self._before: dict[Key, tuple[State, NDArray[np.int64] | None]] = {}
        self._undone: dict[Key, tuple[int, int]] = {}
        for place, tree in enumerate(campaign.trees):
            self._open((place, tree.root), 0)

    def _open(self, key: Key, depth: int) -> None:
        place, node = key
        if self._campaign.trees[place].sizes[node] >= self._rule.least_size:
            self._campaign.state[key] = "open"
            self._depth[key] = depth
            self._undecided.add(key)
            heapq.heappush(self._queue, (self._priority(key), key))
            said = self._campaign.commands.latest(key)
            if said and said.command == "split":
                self._split_by_command(key)

    def _priority(self, key: Key) -> tuple[float, ...]:
        depth, score = self._depth[key], -self._campaign.mean_score(*key)
        return {
            "score": (score,),
            "threshold": (score,),
            "bfs": (depth,),
            "dfs": (-depth,),
            "dfs+score": (-depth, score),
        }[self._rule.search]

    def apply(self, event: Event) -> None:
        """Follow splits; note which clusters a verdict may decide, and which decisions rest on a changed one."""
        match event:
            case Decided():
                self._decided(event)
            case Commanded():
                self._obey(event)
            case PageIssued():
                self._ask(event)
            case ImageTaken():
                # with fewer masks left to ask about, the verdicts that are there may be enough
                self._undecided |= self._unsettled()
            case PageAnswered() | PageReturned() | PageReopened():
                page = self._campaign.pages[event.page]
                if self._rests[page.rows].any():
                    self._doubt(page.rows)
                if any(self._campaign.state.get(self._campaign.find(c)) == "split" for c in page.issued.clusters):
                    self._undecided |= self._unsettled()

    def _unsettled(self) -> set[Key]:
        return {key for key in self._depth if self._campaign.state[key] in ("open", "asking")}

    def _doubt(self, rows: NDArray[np.int64]) -> None:
        """Verdicts that decisions rest on changed; where one is missing, the cluster is open until it comes."""
        for key in [key for key, basis in self._basis.items() if np.isin(rows, basis).any()]:
            known = (self._campaign.verdict[self._basis[key]] != -1).all()
            if known or self._campaign.state[key] == "split" or key in self._again:
                self._doubted.add(key)
            else:
                self._reopen(key)

    def _reopen(self, key: Key) -> None:
        self._campaign.state[key] = "asking"
        self._undecided.add(key)
        self._doubted.discard(key)
        self._basis.pop(key, None)

    def _ask(self, event: PageIssued) -> None:
        page = self._campaign.pages[event.page].rows
        for key in map(self._campaign.find, event.clusters):
            state = self._campaign.state.get(key, "split")
            rows = page[np.isin(page, self._campaign.rows(*key))]
            if event.attempt == 1 and key in self._campaign.commands.more | self._again:
                self._campaign.commands.no_more(key, rows)
                self._again.add(key)
            if key in self._again and state in ("accepted", "rejected"):
                # its decision stands until all the answers are there, and rests on them too
                self._basis[key] = np.union1d(self._basis.get(key, rows), rows)
                self._rests[rows] = True
            # asked again after its split, a cluster's verdicts count for its halves
            elif state != "split":
                self._reopen(key)

    def _obey(self, event: Commanded) -> None:
        """Split a cluster, or take back what was said or decided."""
        campaign = self._campaign
        key = campaign.commands.key(event.target)
        undone = campaign.commands.undone
        if key is not None and event.command == "split":
            self._split_by_command(key)
        elif key is not None and undone is not None and undone.command == "split":
            self._join(key)
        elif key is not None and event.command == "undo" and undone is None:
            if campaign.state.get(key) == "split":
                self._split.discard(key)
                self._void(*key)
                self._reopen(key)
            self._undone[key] = campaign.known(*key)
        # what commands cover is not decided on, what they no longer do may be
        self._undecided |= self._unsettled()

    def _split_by_command(self, key: Key) -> None:
        campaign = self._campaign
        place, node = key
        self._before[key] = campaign.state[key], self._basis.pop(key, None)
        campaign.state[key] = "split"
        for some in (self._undecided, self._doubted, self._again):
            some.discard(key)
        for half in campaign.trees[place].halves(node):
            if (place, half) not in campaign.state:
                self._open((place, half), self._depth.get(key, 0) + 1)

    def _join(self, key: Key) -> None:
        """A cluster as it was before it was split by command."""
        if key not in self._before:
            return
        state, basis = self._before.pop(key)
        self._void(*key)
        self._campaign.state[key] = state
        if basis is not None:
            self._basis[key] = basis
            self._doubted.add(key)  # a verdict may have changed meanwhile
        if state in ("open", "asking"):
            self._undecided.add(key)
            heapq.heappush(self._queue, (self._priority(key), key))

    def _decided(self, event: Decided) -> None:
        campaign = self._campaign
        key = place, node = campaign.find(event.cluster)
        self._undecided.discard(key)
        self._doubted.discard(key)
        self._again.discard(key)
        self._undone.pop(key, None)
        if event.asked:
            campaign.commands.release(campaign.rows(place, node).astype(np.int64), whole=True)
        if key not in self._basis and event.asked:
            rows = campaign.rows(place, node)
            self._basis[key] = rows[campaign.verdict[rows] != -1]
            self._rests[self._basis[key]] = True
        if event.decision == "split":
            campaign.commands.no_more(key)
            self._split.add(key)
            for half in campaign.trees[place].halves(node):
                if (place, half) not in campaign.state:
                    self._open((place, half), self._depth.get(key, 0) + 1)
        elif key in self._split:
            self._split.discard(key)
            self._void(place, node)

    def _void(self, place: int, node: int) -> None:
        """Forget what became of the parts of a cluster that is no longer split."""
        where = self._campaign.trees[place].slice(node)
        for key in [k for k in self._depth if k[0] == place and k[1] != node]:
            part = self._campaign.trees[place].slice(key[1])
            if where.start <= part.start and part.stop <= where.stop:
                self._campaign.state.pop(key, None)
                self._depth.pop(key)
                self._basis.pop(key, None)
                self._before.pop(key, None)
                for some in (self._undecided, self._doubted, self._split, self._again):
                    some.discard(key)

    def _review(self) -> Iterator[Decided]:
        """Decide anew where a verdict that a decision rests on has changed; larger clusters first."""
        campaign = self._campaign
        for key in sorted(self._doubted, key=lambda k: (-len(campaign.rows(*k)), k)):
            if key not in self._doubted:
                continue  # a larger one is no longer split
            verdicts = campaign.verdict[self._basis[key]]
            asked, right = int((verdicts != -1).sum()), int((verdicts == 1).sum())
            if asked < len(verdicts):
                continue  # until they are answered again
            decision = self._decide(key, asked, right)
            cluster = campaign.cluster(*key)
            if (asked, right) != campaign.evidence[cluster]:
                yield Decided(cluster, decision, asked, right)

    def _decide(self, key: Key, asked: int, right: int) -> Decision:
        place, node = key
        decision = self._rule.decide(right, asked)
        if decision == "split" and (node < len(self._campaign.trees[place]) or self._rule.search == "threshold"):
            return "reject"
        return decision

    def decisions(self) -> Iterator[Decided]:
        """What the share of yes decides, of clusters asked, and of halves that have verdicts enough."""
        yield from self._review()
        campaign = self._campaign
        rank = {"asking": 0, "open": 1}
        awaited: set[Key] = set()
        if self._again:
            awaited = {campaign.find(c) for page in campaign.waiting_pages for c in page.issued.clusters}
        front = sorted(self._undecided, key=lambda key: (rank.get(campaign.state.get(key, ""), 2), key))
        while front:
            key = front.pop(0)
            place, node = key
            if campaign.state.get(key) not in rank or key in self._again & awaited:
                continue
            if campaign.commands.covers(campaign.rows(place, node)):
                continue
            asked, right = campaign.known(place, node)
            if (asked, right) == self._undone.get(key):
                continue
            if asked == 0 or asked < self._wanted(key, asked):
                if campaign.state[key] == "open":
                    self._undecided.discard(key)
                continue
            if campaign.state[key] == "open" and self._split_unasked(key):
                continue
            decision = self._decide(key, asked, right)
            yield Decided(campaign.cluster(place, node), decision, asked, right)
            if decision == "split":
                halves = campaign.trees[place].halves(node)
                front.extend((place, half) for half in halves if (place, half) in campaign.state)

    def draw(self, room: int | None) -> Iterator[Decided | Draw]:
        """Split what is split without asking; then the questions of the first clusters in the queue."""
        campaign, left = self._campaign, np.inf if room is None else room
        more = {key for key in campaign.commands.more if campaign.state.get(key, "split") != "split"}
        for key in sorted(more):
            rows = self._draw_more(key)[: int(min(left, self._rule.samples))]
            if len(rows):
                left -= len(rows)
                yield Draw(key[0], rows, np.full(len(rows), key[1]))
        rooms: dict[int, int] = {}
        kept = []
        limit = self._rule.clusters_a_round * (len(campaign.trees) if self._rule.queue == "category" else 1)
        try:
            while self._queue and limit:
                entry = heapq.heappop(self._queue)
                key = entry[1]
                place, node = key
                if campaign.state.get(key) != "open":
                    continue
                kept.append(entry)
                if key in more or campaign.commands.covers(campaign.rows(place, node)):
                    continue
                if self._split_unasked(key):
                    if node >= len(campaign.trees[place]):
                        yield Decided(campaign.cluster(place, node), "split", 0, 0)
                    continue
                counted = place if self._rule.queue == "category" else 0
                free = rooms.get(counted, self._rule.clusters_a_round)
                rows = self._draw(key) if free else np.empty(0, dtype=np.int64)
                if len(rows) and len(rows) <= left:
                    rooms[counted] = free - 1
                    limit -= 1
                    left -= len(rows)
                    yield Draw(place, rows, np.full(len(rows), node))
        finally:
            # what was not asked for want of room stays; what was asked or split is passed over by its state
            for entry in kept:
                heapq.heappush(self._queue, entry)

    def _split_unasked(self, key: Key) -> bool:
        place, node = key
        tree = self._campaign.trees[place]
        if self._rule.search == "threshold":
            return node >= len(tree) and tree.heights[node - len(tree)] > self._rule.cut * tree.heights[-1]
        return self._campaign.mean_score(place, node) < self._rule.split_below

    def _wanted(self, key: Key, asked: int) -> int:
        return min(self._rule.samples, asked + len(self._campaign.free(*key)))

    def _draw(self, key: Key) -> NDArray[np.int64]:
        asked, _ = self._campaign.known(*key)
        rng = np.random.default_rng([self._rule.seed, *key])
        return rng.permutation(np.sort(self._campaign.free(*key)))[: max(0, self._wanted(key, asked) - asked)]

    def _draw_more(self, key: Key) -> NDArray[np.int64]:
        rng = np.random.default_rng([self._rule.seed, *key])
        return rng.permutation(np.sort(self._campaign.free(*key)))

    def reach(self, place: int, node: int) -> NDArray[np.int64]:
        """The rows of a cluster but those judged right, which stand by their pages."""
        rows = self._campaign.rows(place, node).astype(np.int64)
        return rows[self._campaign.verdict[rows] != 1]

    def refuses(self, place: int, node: int, command: Command) -> str | None:
        """Only what is at the front of the search can be split or asked about."""
        campaign, key = self._campaign, (place, node)
        state = campaign.state.get(key)
        if state is None:
            return "it is not at the front of the search; name a cluster that is on the board"
        if state == "split":
            return "it is split already; name one of its parts"
        if command == "split":
            return self._cannot_split(place, node)
        if key in campaign.commands.more | self._again:
            return "more is being asked about it already; wait for the answers"
        if not len(campaign.free(place, node)):
            return "all its masks have been asked about, or are on images that a person annotated"
        if self._rule.budget is not None and campaign.questions_asked >= self._rule.budget:
            return f"the budget of {self._rule.budget} questions is spent; accept, reject or split it"
        return None

    def _cannot_split(self, place: int, node: int) -> str | None:
        tree = self._campaign.trees[place]
        if self._rule.search == "threshold":
            return 'strategy.search is "threshold", which splits nothing; accept or reject it'
        if node < len(tree) or max(tree.sizes[half] for half in tree.halves(node)) < self._rule.least_size:
            return (
                f"its halves would have fewer than strategy.least_size = {self._rule.least_size} masks, "
                "about which nothing is asked; accept or reject it"
            )
        return None

    def written(self) -> NDArray[np.bool_]:
        """The masks of accepted clusters and those judged right; those judged wrong only as published."""
        inside, verdict = self._campaign.inside("accepted"), self._campaign.verdict
        if self._rule.whole_clusters:
            return inside
        return (inside & (verdict == -1)) | (verdict == 1)

    def reasons(self) -> NDArray[np.object_]:
        """The accepted cluster that a mask is in, else the page on which it was judged right."""
        campaign = self._campaign
        names = np.full(len(campaign.table), None, dtype=object)
        for page in campaign.pages.values():
            if page.asked.counted is page:
                names[page.rows[campaign.verdict[page.rows] == 1]] = f"page/{page.issued.page}"
        for place, node in campaign.clusters("accepted"):
            names[campaign.rows(place, node)] = f"cluster/{campaign.cluster(place, node)}"
        return names

    def estimate(self, category: str | None = None) -> float | None:
        """The share of yes in the accepted clusters, each counted by its size, less what was taken back there."""
        right, size = 0.0, 0
        out = self._campaign.commands.out()
        for place, node in self._campaign.clusters("accepted"):
            if category in (None, self._campaign.trees[place].category):
                masks = int((~out[self._campaign.rows(place, node)]).sum())
                size += masks
                right += masks * (self.share(self._campaign.cluster(place, node)) or 0)
        return right / size if size else None

    def bound(self, category: str | None = None) -> float | None:
        """None: nothing is proven."""
        return None

    def share(self, cluster: str) -> float | None:
        """The share of yes that the cluster was decided by."""
        asked, right = self._campaign.evidence.get(cluster, (0, 0))
        return right / asked if asked else None

    def outlook(self, room: int | None) -> list[tuple[float, int]] | None:
        """None: what the rule will find is not known before it asks."""
        return None

    def leftover(self) -> str:
        """Why masks are left."""
        return (
            f"The budget is spent, or their clusters have fewer masks than strategy.least_size "
            f"({self._rule.least_size}) or a mean score below strategy.split_below ({self._rule.split_below:g})"
        )
