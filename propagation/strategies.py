"""Strategies: which clusters to ask about, how many questions, and what their answers decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from propagation.errors import SettingsError
from propagation.events import Decision


@dataclass(frozen=True)
class PaperStrategy:
    """The rule of Papadopoulos, Weber and Torralba, ICCV 2021, section 3.3. It proves nothing.

    accept_at: K_a, a cluster whose share of yes is at least this is accepted.
    reject_at: K_r, one whose share is at most this is rejected; negative to never reject.
    split_below: K_pa, a cluster whose mean mask score is lower is split without asking.
    samples: questions a cluster, those already answered inside it included.
    least_size: clusters with fewer masks are left undecided.
    clusters_a_round: clusters asked of a category before their answers are awaited.
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
    clusters_a_round: int = 30
    budget: int | None = None
    page_size: int = 20
    seed: int = 0

    #: what its numbers may be called
    claim: ClassVar[str] = "estimate"

    def __post_init__(self) -> None:
        for name, bad, remedy in (
            ("accept_at", not 0 < self.accept_at <= 1, "a share above 0 and at most 1"),
            ("reject_at", not self.reject_at < self.accept_at, "less than accept_at"),
            ("samples", self.samples < 1, "at least 1"),
            ("least_size", self.least_size < 1, "at least 1"),
            ("clusters_a_round", self.clusters_a_round < 1, "at least 1"),
            ("budget", self.budget is not None and self.budget < 0, "0 or more, or left out"),
            ("page_size", self.page_size < 1, "at least 1"),
        ):
            if bad:
                raise SettingsError(f"strategy.{name} is {getattr(self, name)}; it must be {remedy}")

    def decide(self, right: int, asked: int) -> Decision:
        """What the verdicts of a cluster decide, ``right`` of ``asked`` of them yes."""
        share = right / asked
        if share >= self.accept_at:
            return "accept"
        return "reject" if share <= self.reject_at else "split"
