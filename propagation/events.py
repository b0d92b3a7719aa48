"""The event log's entries: everything that ever happened in a campaign, as plain records.

The log is the truth; a campaign's state is a fold over it. An entry is never rewritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["yes", "no", "unsure"]
Decision = Literal["propose", "accept", "reject", "split"]
Command = Literal["accept", "reject", "split", "ask", "undo"]


@dataclass(frozen=True)
class CampaignStarted:
    """A campaign over one mask table and its trees begins.

    settings: the strategy's name and parameters; table, trees: fingerprints of the artefacts; gold: that of the
    masks whose truth is known, by which annotators' rates are measured, or "".
    """

    campaign: str
    settings: Mapping[str, Any]
    table: str
    trees: str
    gold: str = ""


@dataclass(frozen=True)
class PageIssued:
    """A page of questions is to be asked.

    questions: mask ids of one category; clusters: those whose questions stand on the page; attempt: 1, or
    more where there was an earlier page with the same questions. gold: masks shown besides, whose ``truth`` is
    known, right or not, at these ``places`` of the page. tolerated: the rate of missed gold from which an
    annotator's page is asked again, 0 for never; least_seconds: below which an answer is too fast. overlap:
    whether an answer counts already, and this page asks another annotator the same.
    """

    page: str
    attempt: int
    category: str
    questions: tuple[str, ...]
    clusters: tuple[str, ...]
    gold: tuple[str, ...] = ()
    truth: tuple[bool, ...] = ()
    places: tuple[int, ...] = ()
    tolerated: float = 0.0
    least_seconds: float = 0.0
    overlap: bool = False


@dataclass(frozen=True)
class PagePosted:
    """A page became a task of the verify project."""

    page: str
    task: int


@dataclass(frozen=True)
class PageAnswered:
    """An annotator answered a page, or changed the answer.

    verdicts: one a question, gold among them, in the page's order; version: the annotation's ``updated_at``;
    seconds: the time the annotator took, where Label Studio knows it.
    """

    page: str
    annotation: int
    version: str
    by: int
    seconds: float | None
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class PageReturned:
    """A page came back without an answer: skipped, unusable, abandoned, or its task was deleted.

    It is asked again, as a new page. annotation: the one that was cancelled, or 0; version: its time, or why.
    """

    page: str
    annotation: int
    version: str


@dataclass(frozen=True)
class PageReopened:
    """The answer of a page was deleted: Label Studio offers its task again, and the page waits anew."""

    page: str
    annotation: int
    version: str


@dataclass(frozen=True)
class ImageTaken:
    """A person annotated an image: it gets nothing new from the campaign."""

    image: str


@dataclass(frozen=True)
class Decided:
    """A cluster is proposed, accepted, rejected or split.

    asked, right: the verdicts known inside the cluster when it was decided; 0 asked where the strategy
    split it without asking. A later decision on the same cluster, upon changed answers, replaces it.
    """

    cluster: str
    decision: Decision
    asked: int
    right: int


@dataclass(frozen=True)
class Commanded:
    """A manager said what is to become of a cluster.

    target: the cluster; to undo, also a decision by the name that regions bear. ask: more questions about it;
    undo: of the latest command on it that stands, or else of its decision. by: who said so; at: when; source:
    where it was said, by which the same is not taken twice.
    """

    target: str
    command: Command
    by: str
    at: str
    source: str


@dataclass(frozen=True)
class CommandRefused:
    """A command could not be obeyed. It is not tried again, whatever comes.

    The fields of ``Commanded``; why: as a clause, with the remedy.
    """

    target: str
    command: Command
    by: str
    at: str
    source: str
    why: str


@dataclass(frozen=True)
class CertificateOpened:
    """Nested sets of masks are frozen, to be certified.

    certificate: its number in the campaign; scope: the category that it is about, or "" for all; alpha: the
    error that this attempt may spend; levels: which set each mask enters at, as ``certificate.pack`` writes
    it; expected: the share of no expected of each set.
    """

    certificate: int
    scope: str
    alpha: float
    levels: str
    expected: tuple[float, ...]


@dataclass(frozen=True)
class Certified:
    """The first ``level`` of a certificate's sets are proven: they may be written.

    Fewer than before where answers were changed: what is no longer proven is taken back.

    members: masks in the set; asked, wrong: the random questions in it, and those not answered yes; bound:
    the share of right masks that they prove of this set taken by itself.
    """

    certificate: int
    level: int
    members: int
    asked: int
    wrong: int
    bound: float


@dataclass(frozen=True)
class CertificateClosed:
    """No more questions for a certificate: its next set is out of reach."""

    certificate: int


@dataclass(frozen=True)
class ProposalPutOff:
    """Nothing of a scope is worth proposing before it has so many verdicts."""

    scope: str
    until: int


@dataclass(frozen=True)
class HistoryLost:
    """The log was made again from what Label Studio holds: decisions, and the error they spent, are unknown."""


@dataclass(frozen=True)
class GoldAnswered:
    """Annotators answered questions whose truth is known.

    wrong, missed: wrong masks shown, and those of them answered yes; right, marked: right masks shown, and
    those of them not answered yes.
    """

    wrong: int
    missed: int
    right: int
    marked: int


@dataclass(frozen=True)
class WriteIntended:
    """The annotation of one source task is about to be written.

    digest: of its result, by which the campaign's own annotation is told from a person's.
    """

    task: int
    digest: str


@dataclass(frozen=True)
class MasksWritten:
    """The annotation of one source task now holds these masks.

    annotation: its number, 0 where it was not told; version: the task's ``updated_at`` right after, "" where
    somebody else may have changed it too.
    """

    image: str
    task: int
    annotation: int
    masks: tuple[str, ...]
    version: str = ""


Event = (
    CampaignStarted
    | PageIssued
    | PagePosted
    | PageAnswered
    | PageReturned
    | PageReopened
    | ImageTaken
    | Decided
    | Commanded
    | CommandRefused
    | CertificateOpened
    | Certified
    | CertificateClosed
    | ProposalPutOff
    | HistoryLost
    | GoldAnswered
    | WriteIntended
    | MasksWritten
)
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in Event.__args__}


def to_record(event: Event) -> tuple[str, dict[str, Any]]:
    """The kind of an event, and its fields as JSON can hold them."""
    return type(event).__name__, asdict(event)


def from_record(kind: str, fields: Mapping[str, Any]) -> Event:
    """The event of a record; lists become tuples again."""
    event: Event = _KINDS[kind](
        **{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    )
    return event
