"""Where a campaign stands, a row a category and a total."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagation.campaign import UNASKED, Campaign


@dataclass(frozen=True)
class Row:
    """The figures of one category, or of all.

    masks: all predicted; outdone: those that a better mask of the same object beat; questions: answered;
    accepted, rejected, open: of the masks that were not outdone; estimate: the share of the accepted masks
    that is right, as the answers suggest, or None without; bound: the share that is proven, or None; commanded:
    the accepted masks that are so by command alone, of which neither share is told.
    """

    category: str
    masks: int
    outdone: int
    questions: int
    accepted: int
    rejected: int
    open: int
    clusters_accepted: int
    clusters_rejected: int
    clusters_open: int
    estimate: float | None
    bound: float | None
    commanded: int = 0


def summarize(campaign: Campaign, most: int | None = None) -> list[Row]:
    """The categories' rows in order, then the total. most: rows at most; of more categories, the largest first."""
    table = campaign.table
    best = table.best
    accepted = campaign.accepted()
    rejected = campaign.rejected() & best
    per_mask = [
        np.ones(len(table), dtype=bool),
        ~best,
        campaign.verdict != UNASKED,
        accepted,
        rejected,
        best & ~accepted & ~rejected,
    ]
    counts = np.array([np.bincount(table.category[m], minlength=len(table.categories)) for m in per_mask])
    place_of = {category: place for place, category in enumerate(table.categories)}
    clusters = np.zeros((3, len(table.categories)), dtype=int)
    for (place, _), state in campaign.states().items():
        category = place_of[campaign.trees[place].category]
        kind = {"accepted": 0, "rejected": 1, "open": 2, "asking": 2, "proposed": 2, "undone": 2}.get(state)
        if kind is not None:
            clusters[kind, category] += 1

    commanded = np.bincount(table.category[campaign.by_command()], minlength=len(table.categories))
    figures = np.vstack([counts, clusters, commanded])

    def row(name: str, category: str | None, sums: NDArray[np.int64]) -> Row:
        *kinds, by_command = sums.tolist()
        shares = campaign.search.estimate(category), campaign.search.bound(category)
        return Row(**dict(zip(Row.__dataclass_fields__, (name, *kinds, *shares, by_command), strict=True)))

    places = list(range(len(table.categories)))
    if most is not None and len(places) > most:
        places = np.argsort(-counts[0], kind="stable")[:most].tolist()
    named = [(table.categories[place], figures[:, place]) for place in places]
    return [*(row(name, name, sums) for name, sums in named), row("total", None, figures.sum(axis=1))]


def statement(campaign: Campaign) -> str:
    """What may be said of the quality of what is written, in a sentence."""
    commanded = int(campaign.by_command().sum())
    beside = f" {commanded} more are accepted by command; nothing is said of them." if commanded else ""
    return _claimed(campaign) + beside


def _claimed(campaign: Campaign) -> str:
    bound, estimate = campaign.search.bound(), campaign.search.estimate()
    if campaign.claim == "promise" and bound is not None and estimate is not None:
        rule = asdict(campaign.strategy)  # type: ignore[call-overload]
        of = "in each category" if rule["scope"] == "category" else "in all"
        return (
            f"Promise: with {rule['confidence']:.0%} confidence at least {share_text(bound)} of the accepted "
            f"masks are right, {of}; the answers suggest {estimate:.1%}."
        )
    if campaign.claim == "promise":
        return "Nothing is accepted yet, so nothing is promised."
    said = "" if estimate is None else f", {estimate:.1%}"
    return f"The share of right masks{said} is an estimate from the answers, not a promise."


def share_text(share: float) -> str:
    """A share rounded down, to a tenth of a percent where it is not a whole one."""
    tenths = floor(share * 1000 + 1e-6)
    return f"{tenths // 10}%" if tenths % 10 == 0 else f"{tenths / 10}%"


def as_json(campaign: Campaign, rows: Sequence[Row]) -> dict[str, Any]:
    """The summary for machines."""
    return {
        "campaign": campaign.name,
        "claim": campaign.claim,
        "statement": statement(campaign),
        "questions_asked": campaign.questions_asked,
        "pages_waiting": len(campaign.waiting_pages),
        "categories": [asdict(row) for row in rows[:-1]],
        "total": asdict(rows[-1]),
    }
