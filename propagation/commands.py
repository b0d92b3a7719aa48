"""Commands: what managers said about clusters, which of it stands, and the masks that it is about.

Accept and reject lie over what the strategy decides and leave its decisions as they are: who takes one back finds
what the strategy has come to by then. What an undone decision wrote is held back until new answers speak for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from propagation.errors import CommandError, StoreError
from propagation.events import Commanded, CommandRefused

if TYPE_CHECKING:
    from propagation.campaign import Campaign, State

ACCEPT, REJECT = 1, 2  # of a mask; 0 where no command is about it
_RULINGS = {"accept": ACCEPT, "reject": REJECT}
_STATES: dict[str, State] = {"accept": "accepted", "reject": "rejected"}
_DONE = {"accept": "accepted", "reject": "rejected", "split": "split"}
_OF_CLUSTERS = ("cluster/", "command/")
_UNKNOWN = (
    "this campaign has no such cluster, nor is anything written by a decision of that name; the board "
    "names clusters, the meta of a region its decision"
)
NO_ROWS: NDArray[np.int64] = np.empty(0, dtype=np.int64)

Key = tuple[int, int]


@dataclass
class Hold:
    """What somebody took back of a decision.

    number: of the command; key: the cluster, None where a decision was named; rows: those still held.
    """

    number: int
    key: Key | None
    rows: NDArray[np.int64]


class Commands:
    """The commands of a campaign, as a fold.

    standing: by cluster, those not taken back, each with its number, the latest last; that more is to be asked
    stands until it is. said: by cluster, the last word on it, obeyed or not. ruled: (n,) int8 a mask, what the
    latest standing accept or reject says of it. held: (n,) masks whose decision was taken back. count: of all
    that were obeyed so far; sources: where all came from. rows: that the latest event's command is about. undone:
    the command that it took back.
    """

    def __init__(self, campaign: Campaign) -> None:
        self._campaign = campaign
        self.standing: dict[Key, list[tuple[int, Commanded]]] = {}
        self.said: dict[Key, Commanded | CommandRefused] = {}
        self.ruled = np.zeros(len(campaign.table), dtype=np.int8)
        self.held = np.zeros(len(campaign.table), dtype=bool)
        self.holds: list[Hold] = []
        self.count = 0
        self.sources: set[str] = set()
        self.rows: NDArray[np.int64] = NO_ROWS
        self.undone: Commanded | None = None
        self._asked: dict[Key, NDArray[np.int64]] = {}

    # the fold

    def apply(self, event: Commanded | CommandRefused) -> None:
        """Take a command into account."""
        self.sources.add(event.source)
        key = self.key(event.target)
        if key is not None:
            self.said[key] = event
        if isinstance(event, CommandRefused):
            return
        self.count += 1
        if event.command == "undo":
            self._undo(event.target, key)
        elif key is not None:
            self.standing.setdefault(key, []).append((self.count, event))
            self._rule(key)

    def no_more(self, key: Key, rows: NDArray[np.int64] = NO_ROWS) -> None:
        """No more is to be asked about a cluster than these masks, which are on a page."""
        self._asked[key] = np.union1d(self._asked.get(key, NO_ROWS), rows)
        kept = [one for one in self.standing.pop(key, []) if one[1].command != "ask"]
        if kept:
            self.standing[key] = kept

    def forget_latest(self) -> None:
        """The latest event is no longer that command."""
        self.rows, self.undone = NO_ROWS, None

    def _undo(self, target: str, key: Key | None) -> None:
        said = [] if key is None else self.standing.get(key, [])
        if key is not None and said:
            self.undone = said.pop()[1]
            if not said:
                del self.standing[key]
            self._rule(key)
            return
        self.rows = self._reach(target, key)
        self.holds.append(Hold(self.count, key, self.rows))
        self.held[self.rows] = True

    def _reach(self, target: str, key: Key | None) -> NDArray[np.int64]:
        """The masks that a decision lets be written."""
        if key is not None:
            return self._campaign.search.reach(*key)
        return np.flatnonzero((self._campaign.search.reasons() == target) & ~self.held)

    def _rule(self, key: Key) -> None:
        self.rows = self._campaign.rows(*key).astype(np.int64)
        self.ruled[:] = 0
        for place, ruling in self._rulings():
            self.ruled[self._campaign.rows(*place)] = ruling

    def _rulings(self) -> Iterator[tuple[Key, int]]:
        """The clusters that are accepted or rejected by a standing command, the latest last."""
        said = [(number, key, event.command) for key, all_ in self.standing.items() for number, event in all_]
        yield from ((key, _RULINGS[command]) for _, key, command in sorted(said) if command in _RULINGS)

    def release(self, rows: NDArray[np.int64], whole: bool, up_to: int | None = None) -> None:
        """New answers speak for masks that were held.

        whole: for all that was held together with them. up_to: only of commands up to that number.
        """
        kept = []
        for hold in self.holds:
            among = np.isin(hold.rows, rows)
            if among.any() and (up_to is None or hold.number <= up_to):
                hold.rows = NO_ROWS if whole else hold.rows[~among]
            if len(hold.rows):
                kept.append(hold)
        self.holds = kept
        self.held[:] = False
        for hold in kept:
            self.held[hold.rows] = True

    # what is known

    @property
    def any(self) -> bool:
        """Whether a command stands, or a decision is held."""
        return bool(self.standing or self.holds)

    @property
    def more(self) -> set[Key]:
        """The clusters about which more is still to be asked."""
        return {key for key, said in self.standing.items() if any(e.command == "ask" for _, e in said)}

    def out(self) -> NDArray[np.bool_]:
        """(n,) the masks that no decision of the strategy writes now."""
        return self.held | (self.ruled == REJECT)

    def covers(self, rows: NDArray[np.int32]) -> bool:
        """Whether a standing accept or reject is about each of these masks."""
        return bool(self.standing) and bool((self.ruled[rows] != 0).all())

    def states(self) -> dict[Key, State]:
        """What commands make of clusters."""
        found: dict[Key, State] = {hold.key: "undone" for hold in self.holds if hold.key is not None}
        for key, said in self.standing.items():
            ruling = next((_STATES[e.command] for _, e in reversed(said) if e.command in _STATES), None)
            if ruling:
                found[key] = ruling
        return found

    def latest(self, key: Key) -> Commanded | None:
        """The latest standing command on a cluster."""
        return self.standing[key][-1][1] if key in self.standing else None

    def names(self) -> NDArray[np.object_]:
        """(n,) the cluster that a mask was accepted with by command, or None."""
        names = np.full(len(self.ruled), None, dtype=object)
        for key, _ in self._rulings():
            names[self._campaign.rows(*key)] = self._campaign.cluster(*key)
        names[self.ruled != ACCEPT] = None
        return names

    # what can be obeyed

    def key(self, target: str) -> Key | None:
        """The cluster that a target names, or None where it names a decision."""
        prefix = next((prefix for prefix in _OF_CLUSTERS if target.startswith(prefix)), "")
        for name in dict.fromkeys([target, target.removeprefix(prefix)]):
            try:
                return self._campaign.find(name)
            except StoreError:
                continue
        return None

    def judged(self, event: Commanded) -> Commanded | CommandRefused:
        """The command with its target by its plain name; refused where it can't be obeyed."""
        key = self.key(event.target)
        if key is not None:
            event = replace(event, target=self._campaign.cluster(*key))
        why = self._refusal(event, key)
        return CommandRefused(**vars(event), why=why) if why else event

    def checked(self, event: Commanded) -> Commanded:
        """The command with its target by its plain name. Raises CommandError where it can't be obeyed."""
        judged = self.judged(event)
        if isinstance(judged, CommandRefused):
            raise CommandError(f"{judged.target}: {judged.why}")
        return judged

    def _refusal(self, event: Commanded, key: Key | None) -> str | None:
        if event.command == "undo":
            return self._nothing_to_undo(event.target, key)
        if key is None:
            return "this campaign has no such cluster; name one as the board does, category/number"
        latest = self.latest(key)
        if latest and latest.command == event.command and event.command in _DONE:
            return f"it is {_DONE[event.command]} by command already"
        if event.command in ("split", "ask"):
            if self.covers(self._campaign.rows(*key)):
                return "it is accepted or rejected by command; undo that first"
            return self._campaign.search.refuses(*key, event.command)
        return None

    def _nothing_to_undo(self, target: str, key: Key | None) -> str | None:
        stands = self._stands(self._reach(target, key))
        if key is None:
            return None if stands else _UNKNOWN
        if key in self.standing:
            return None
        if self._awaited(key):
            return "more is asked about it, as was wished; wait for the answers, or accept or reject it"
        if stands:
            return None
        if any(hold.key == key for hold in self.holds):
            return "its decision is undone already; ask more there, or accept or reject it"
        if self._campaign.state.get(key) in ("accepted", "rejected", "split"):
            return None
        return "there is no command on it and no decision, so there is nothing to undo"

    def _stands(self, rows: NDArray[np.int64]) -> bool:
        """Whether a decision lets any of these masks be written."""
        campaign = self._campaign
        decided = campaign.table.best & ~campaign.taken[campaign.table.image] & campaign.search.written()
        return bool((decided & ~self.out())[rows].any())

    def _awaited(self, key: Key) -> bool:
        """Whether answers are awaited that somebody wished for."""
        return bool((self._campaign.verdict[self._asked.get(key, NO_ROWS)] == -1).any())
