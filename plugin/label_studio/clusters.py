"""The cluster board: a cluster as a task that managers sort, filter and give commands on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from plugin.label_studio.gateway import filters_of
from plugin.label_studio.pages import in_a_line, is_answer
from plugin.label_studio.tabs import HIDDEN
from propagation.events import Command

COMMANDS: Mapping[str, Command] = {
    "Accept": "accept",
    "Reject": "reject",
    "Split": "split",
    "Ask more": "ask",
    "Undo": "undo",
}

ACCOUNT = "user "  # before the number of one, where it gave a command

_HOW_TO = """
<b>Choose a command and submit it.</b> To give another one later, choose it and press Update; to give the same once
more, untick it and tick it again. The card says what came of it once the page is loaded anew.<br><br>
<b>Accept</b>: all its masks are written, but those judged wrong. They are marked as accepted by command, and left
out of the promise.<br>
<b>Reject</b>: nothing of it is written.<br>
<b>Split</b>: its two halves are looked at by themselves.<br>
<b>Ask more</b>: more of its masks are asked about in the next round.<br>
<b>Undo</b>: takes back the latest command on it; or else what was decided about it.<br><br>
Who gave a command and when is recorded. What people drew or edited is never touched.
"""

#: What makes a project one where commands are given, by any number of people.
BOARD_SETTINGS: Mapping[str, Any] = {
    "maximum_annotations": 1,
    "enable_empty_annotation": False,
    "show_collab_predictions": False,
    "show_skip_button": False,
    "sampling": "Sequential sampling",
    "expert_instruction": _HOW_TO,
    "show_instruction": False,
}

_SHOWN = ("size", "asked", "yes", "proven", "accepted")
_HIDDEN = (
    *HIDDEN, "annotators", "cancelled_annotations", "completed_at", "total_annotations", "total_predictions",
    "data.tab", "data.title", "data.facts",
)  # fmt: skip


@dataclass(frozen=True)
class Card:
    """A cluster as the board shows it.

    tab: under which it is listed; size: masks; asked, yes: of them, and the share judged right in percent;
    proven: the share that is promised of what is written, in percent; accepted: masks; said: the last command on
    it, by whom and when, and why if it was not obeyed; sheet: the address of some crops of it.
    """

    cluster: str
    category: str
    state: str
    tab: str
    size: int
    asked: int
    yes: float | None
    proven: float | None
    accepted: int
    said: str
    sheet: str

    def data(self) -> dict[str, Any]:
        """The card as a task's data."""
        known = f"{self.asked} asked" + ("" if self.yes is None else f", {self.yes:g} % of them right")
        proven = "" if self.proven is None else f"; {self.proven:g} % promised of what is written"
        facts = f"{self.size} masks; {known}; {self.accepted} accepted{proven}. State: {self.state}."
        return {
            **asdict(self),
            "category": in_a_line(self.category),
            "title": f"“{in_a_line(self.category)}”, cluster {self.cluster.rpartition('/')[2]}",
            "facts": f"{facts} {self.said}".strip(),
        }


def tabs() -> list[dict[str, Any]]:
    """The board's tabs, as the Data Manager's views: the largest clusters first."""
    return [
        {
            "title": title,
            "type": "list",
            "target": "tasks",
            "filters": filters_of([("data.tab", "equal", "String", tab)]),
            "ordering": ["-tasks:data.size"],
            "hiddenColumns": {"explore": [f"tasks:{name}" for name in _HIDDEN], "labeling": []},
            "columnsDisplayType": {f"tasks:data.{name}": "Number" for name in _SHOWN},
        }
        for title, tab in (
            ("Open clusters", "open"),
            ("Accepted", "accepted"),
            ("Rejected", "rejected"),
            ("Stuck", "stuck"),
            ("Split", "split"),
        )
    ]


@dataclass(frozen=True)
class Said:
    """A command as an annotation of a card says it: by whom, when, and the annotation that says it."""

    command: Command
    by: str
    at: str
    annotation: int


def read_commands(annotations: Sequence[Mapping[str, Any]]) -> list[Said]:
    """What the annotations of a card say, in the order in which it was said; what says nothing is left out."""
    found = []
    for annotation in annotations:
        command = _chosen(annotation) if is_answer(annotation) else None
        if command is not None:
            by = annotation.get("updated_by") or annotation.get("completed_by")
            found.append(Said(command, f"{ACCOUNT}{by}", str(annotation["updated_at"]), int(annotation["id"])))
    return sorted(found, key=lambda said: (said.at, said.annotation))


def _chosen(annotation: Mapping[str, Any]) -> Command | None:
    for item in annotation.get("result") or ():
        if item.get("from_name") == "command":
            for choice in item["value"]["choices"]:
                return COMMANDS.get(str(choice))
    return None
