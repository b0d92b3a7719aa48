"""The cluster board kept up to date, gently, and the commands that managers give there."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from plugin.crops import contact_sheet
from plugin.label_studio.clusters import ACCOUNT, COMMANDS, Card, read_commands
from plugin.label_studio.gateway import Gateway, Json
from plugin.label_studio.pages import in_a_line
from propagation.campaign import UNASKED, YES, Campaign
from propagation.commands import ACCEPT, REJECT
from propagation.errors import ServerError
from propagation.events import Commanded, CommandRefused
from sync.pages import draw_crops

log = logging.getLogger(__name__)

FIELDS = ("data", "annotations", "result", "was_cancelled", "completed_by", "updated_by")

MOST = 300  # clusters that are put on the board: those that matter most
NEW_AT_ONCE = 5  # cards that are added in a pass, for each of which images are read
PATCHES_AT_ONCE = 20  # cards that are changed in a pass; the server takes 0.1 s for each
CROPS = 12

Key = tuple[int, int]
ELSEWHERE = "in other clusters now"
_FIRST: Mapping[str, int] = {"undone": 0, "asking": 1, "proposed": 1, "open": 2, "accepted": 3, "rejected": 4}
_TABS: Mapping[str, str] = {
    "accepted": "accepted",
    "rejected": "rejected",
    "undone": "stuck",
    "split": "split",
    ELSEWHERE: "split",
}


@dataclass
class Shown:
    """A card that is on the board: its task and data, and whether anybody has annotated it."""

    task: int
    data: Json
    annotated: bool


@dataclass
class Board:
    """One campaign's board.

    project, crops: the projects of the cards and of their pictures. locations: image key to where it is read.
    """

    gateway: Gateway
    project: int
    crops: int
    locations: Mapping[str, str]
    _shown: dict[str, Shown] | None = None
    _names: dict[int, str] = field(default_factory=dict)

    def read(self, tasks: Iterable[Json], campaign: Campaign) -> list[Commanded]:
        """The commands that changed cards call for, in the order in which they were given.

        One whose annotation was deleted, or says nothing any more, is taken back.
        """
        found: list[Commanded] = []
        for task in tasks:
            cluster = task["data"].get("cluster")
            key = campaign.commands.key(cluster) if isinstance(cluster, str) else None
            if key is None:
                continue
            annotations = task.get("annotations") or []
            if self._shown and cluster in self._shown:
                self._shown[cluster].annotated = bool(annotations)
            said = read_commands(annotations)
            found += _withdrawn(campaign, key, cluster, {one.annotation for one in said}, task["updated_at"])
            found += [
                Commanded(cluster, one.command, one.by, one.at, f"board/{one.annotation}/{one.at}") for one in said
            ]
        fresh = [event for event in found if event.source not in campaign.commands.sources]
        return sorted(fresh, key=lambda event: event.at)

    # what it shows

    def update(self, campaign: Campaign, finished: bool) -> bool:
        """Add, change and take away some cards, the most telling first; whether more is to be done."""
        shown = self._look()
        states = _front(campaign)
        for name, card in shown.items():  # what somebody spoke on stays, to be told what came of it
            if card.annotated and (key := campaign.commands.key(name)) is not None:
                states.setdefault(key, campaign.state.get(key, ELSEWHERE))
        cards = self._cards(campaign, states, finished)
        gone = [name for name in shown if name not in cards]
        changed = [
            (name, data)
            for name, card in cards.items()
            if name in shown
            and (data := card.data() | {"sheet": shown[name].data.get("sheet")}) != shown[name].data
        ]
        changed.sort(
            key=lambda one: all(one[1][told] == shown[one[0]].data.get(told) for told in ("state", "said"))
        )
        for name, data in changed[:PATCHES_AT_ONCE]:
            self.gateway.update_task(shown[name].task, data)
            shown[name].data = data
        fresh = [name for name in cards if name not in shown][: max(0, MOST - len(shown) + len(gone))]
        self._add(campaign, {name: cards[name] for name in fresh[:NEW_AT_ONCE]})
        self._clear(gone)  # last, since a project loses its tabs with its last task
        return len(changed) > PATCHES_AT_ONCE or len(fresh) > NEW_AT_ONCE

    def forget(self) -> None:
        """Look at the server anew: a call has failed, and may have had its effect."""
        self._shown = None

    def _look(self) -> dict[str, Shown]:
        if self._shown is None:
            self._shown = {}
            twice = []
            for task in self.gateway.tasks(self.project, FIELDS):
                name, annotated = task["data"].get("cluster"), bool(task.get("annotations"))
                if not isinstance(name, str):
                    continue
                known = self._shown.get(name)
                if known is None or (annotated and not known.annotated):
                    self._shown[name] = Shown(task["id"], task["data"], annotated)
                    twice += [known.task] if known else []
                elif not annotated:
                    twice.append(task["id"])
            if twice:  # an import was made whose answer was lost
                self.gateway.delete_tasks(self.project, twice)
        return self._shown

    def _clear(self, names: Sequence[str]) -> None:
        """Take away cards of clusters that are no longer looked at, unless somebody has annotated them."""
        shown = self._look()
        bare = [name for name in names if not shown[name].annotated]
        tasks = [shown[name].task for name in bare]
        if tasks and self.gateway.unannotated(self.project, tasks) == len(tasks):
            self.gateway.delete_tasks(self.project, tasks)
            for name in bare:
                del shown[name]

    def _add(self, campaign: Campaign, cards: Mapping[str, Card]) -> None:
        if not cards:
            return
        sheets = [(f"{name.replace('/', '-')}.jpg", self._sheet(campaign, campaign.find(name))) for name in cards]
        urls = self.gateway.upload(self.crops, sheets)
        made = [card.data() | {"sheet": url} for card, url in zip(cards.values(), urls, strict=True)]
        numbers = self.gateway.import_tasks(self.project, [{"data": data} for data in made])
        for name, number, data in zip(cards, numbers, made, strict=True):
            self._look()[name] = Shown(number, data, annotated=False)

    def _sheet(self, campaign: Campaign, key: Key) -> bytes:
        """Some masks of a cluster, spread over it."""
        rows = campaign.rows(*key)
        best = rows[campaign.table.best[rows]]
        rows = best if len(best) else rows
        some = rows[np.unique(np.linspace(0, len(rows) - 1, min(CROPS, len(rows))).astype(int))]
        drawn = dict(draw_crops(self.gateway, [(campaign.table, some.astype(np.int64))], self.locations))
        return contact_sheet([drawn[str(campaign.table.ids[row])] for row in some])

    def _cards(self, campaign: Campaign, states: Mapping[Key, str], finished: bool) -> dict[str, Card]:
        accepted, by_command = campaign.accepted(), campaign.by_command()
        shown = self._look()
        found: dict[str, Card] = {}
        for key, state in states.items():
            name = campaign.cluster(*key)
            if len(found) < MOST or name in shown:
                found[name] = self._card(campaign, key, state, accepted, by_command, finished)
        return found

    def _card(
        self,
        campaign: Campaign,
        key: Key,
        state: str,
        accepted: NDArray[np.bool_],
        by_command: NDArray[np.bool_],
        finished: bool,
    ) -> Card:
        name, rows = campaign.cluster(*key), campaign.rows(*key)
        state, commanded = _state(campaign, key, state)
        verdict = campaign.verdict[rows]
        asked, right = int((verdict != UNASKED).sum()), int((verdict == YES).sum())
        decided = state == "accepted" and campaign.claim == "promise" and not by_command[rows].any()
        share = campaign.search.share(name) if decided else None
        return Card(
            cluster=name,
            category=campaign.trees[key[0]].category,
            state=f"{state} by command" if commanded else state,
            tab=_TABS.get(state, "stuck" if finished else "open"),
            size=len(rows),
            asked=asked,
            yes=round(100 * right / asked, 1) if asked else None,
            proven=None if share is None else int(share * 1000 + 1e-6) / 10,
            accepted=int(accepted[rows].sum()),
            said=self._said(campaign.commands.said.get(key)),
            sheet="",
        )

    def _said(self, event: Commanded | CommandRefused | None) -> str:
        """The last word on a cluster."""
        if event is None:
            return ""
        title = next(title for title, command in COMMANDS.items() if command == event.command)
        told = f"{title}, by {in_a_line(self._name(event.by))}, {event.at[:16].replace('T', ' ')} UTC"
        return f"Not obeyed: {told}: {event.why}." if isinstance(event, CommandRefused) else f"{told}."

    def _name(self, by: str) -> str:
        """What somebody is called; an account by its number where no name is to be had."""
        number = by.removeprefix(ACCOUNT)
        if number == by or not number.isdecimal():
            return by
        if int(number) not in self._names:
            try:
                self._names |= self.gateway.people()
            except ServerError as error:
                log.warning("%s; the cluster board shows accounts by their numbers", error)
        return self._names.setdefault(int(number), by)


def _front(campaign: Campaign) -> dict[Key, str]:
    """The clusters that are looked at, those first that managers are likely to care about."""
    commands = campaign.commands
    states: dict[Key, str] = {
        key: state for key, state in campaign.states().items() if state != "split" or commands.latest(key)
    }
    for place, tree in enumerate(campaign.trees):
        if not any(key[0] == place for key in states) and campaign.state.get((place, tree.root)) != "split":
            states[place, tree.root] = "open"
    order = sorted(
        states,
        key=lambda key: (
            commands.latest(key) is None,
            _FIRST.get(states[key], 5),
            -int(campaign.trees[key[0]].sizes[key[1]]),
            key,
        ),
    )
    return {key: states[key] for key in order}


def _state(campaign: Campaign, key: Key, state: str) -> tuple[str, bool]:
    """A cluster's state, and whether it is so by command: that of one around it, where that came later."""
    ruled = campaign.commands.ruled[campaign.rows(*key)]
    for ruling, name in ((ACCEPT, "accepted"), (REJECT, "rejected")):
        if (ruled == ruling).all():
            return name, True
    latest = campaign.commands.latest(key)
    return state, latest is not None and latest.command != "ask"


def _withdrawn(campaign: Campaign, key: Key, cluster: str, there: set[int], at: str) -> Iterator[Commanded]:
    """Take back the latest commands on a cluster that the board no longer says."""
    for _, event in reversed(campaign.commands.standing.get(key, [])):
        origin, _, rest = event.source.partition("/")
        if origin != "board" or int(rest.partition("/")[0]) in there:
            return
        yield Commanded(cluster, "undo", event.by, at, f"{event.source}/deleted")
