"""Strategies: what every rule for asking and deciding offers, and the rules by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from propagation.errors import SettingsError
from propagation.events import (
    CertificateClosed,
    CertificateOpened,
    Certified,
    Command,
    Decided,
    Event,
    ProposalPutOff,
)

if TYPE_CHECKING:
    from propagation.campaign import Campaign

Claim = Literal["promise", "estimate"]
Choice = Decided | CertificateOpened | Certified | CertificateClosed | ProposalPutOff


@dataclass(frozen=True)
class Draw:
    """Questions that a strategy wants asked now.

    place: of the tree; rows: of the mask table; clusters: of the tree, as nodes, that they are asked for.
    """

    place: int
    rows: NDArray[np.int64]
    clusters: NDArray[np.int64]


class Search(Protocol):
    """A strategy at work on one campaign. What it knows is a fold over the campaign's events, like the rest."""

    @property
    def claim(self) -> Claim:
        """What the numbers about what is written may be called now."""

    def apply(self, event: Event) -> None:
        """Take an event into account, after the campaign did."""

    def decisions(self) -> Iterator[Choice]:
        """What the verdicts call for now. Apply each before taking the next."""

    def draw(self, room: int | None) -> Iterator[Choice | Draw]:
        """What to do and to ask next, at most ``room`` questions. Apply each choice before taking the next."""

    def written(self) -> NDArray[np.bool_]:
        """(n,) the masks that stand as decided, whoever annotated their images."""

    def reasons(self) -> NDArray[np.object_]:
        """(n,) by which decision a mask that is written stands: ``cluster/…``, ``page/…``, ``certificate/…``."""

    def reach(self, place: int, node: int) -> NDArray[np.int64]:
        """The rows that a decision on a cluster lets be written: who undoes it takes back these."""

    def refuses(self, place: int, node: int, command: Command) -> str | None:
        """Why a cluster can't be split, or more be asked there, as a clause with the remedy; None where it can."""

    def estimate(self, category: str | None = None) -> float | None:
        """The share of right masks that the answers suggest of what is written; None without answers."""

    def bound(self, category: str | None = None) -> float | None:
        """The share of right masks that is proven of what is written, of a category or of all; None without."""

    def share(self, cluster: str) -> float | None:
        """The share of right masks that is claimed where a cluster's masks are written."""

    def outlook(self, room: int | None) -> list[tuple[float, int]] | None:
        """What at most ``room`` further questions are likely to bring, ascending: questions, masks accepted then.

        A forecast: empty where no more is to be expected, None where there is nothing to make one from.
        """

    def leftover(self) -> str:
        """Why masks are left undecided when there is nothing more to ask, as a clause."""


class Strategy(Protocol):
    """A rule, as settings: frozen, compared and stored as they are."""

    @property
    def name(self) -> str:
        """By which it is chosen."""

    @property
    def budget(self) -> int | None:
        """Questions in all; None for no end but the rule's own."""

    @property
    def page_size(self) -> int:
        """Questions a page."""

    @property
    def least_size(self) -> int:
        """The masks that a cluster has at least."""

    @property
    def __dataclass_fields__(self) -> dict[str, Any]: ...

    def begin(self, campaign: Campaign) -> Search:
        """Begin to work on a campaign."""


def require(group: str, **checks: tuple[object, bool, str]) -> None:
    """Refuse settings: name = (value, whether it is good, what it must be). Raises SettingsError."""
    for name, (value, good, remedy) in checks.items():
        if not good:
            raise SettingsError(f"{group}.{name} is {value}; it must be {remedy}")
