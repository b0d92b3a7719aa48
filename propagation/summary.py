"""Where a campaign stands, a row a category and a total."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagation.campaign import UNASKED, Campaign


@dataclass(frozen=True)
class Row:
    """The figures of one category, or of all.

    masks: all predicted; outdone: those that a better mask of the same object beat; questions: answered;
    accepted, rejected, open: of the masks that were not outdone; estimate: the share of the masks of
    accepted clusters that is right, as the answers suggest, or None without one.
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


def summarize(campaign: Campaign) -> list[Row]:
    """The categories' rows in order, then the total."""
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
    shares = np.zeros((2, len(table.categories)))
    for (place, node), state in campaign.state.items():
        category = place_of[campaign.trees[place].category]
        kind = {"accepted": 0, "rejected": 1, "open": 2, "asking": 2}.get(state)
        if kind is not None:
            clusters[kind, category] += 1
        if state == "accepted":
            size = campaign.trees[place].sizes[node]
            asked, right = campaign.evidence[campaign.cluster(place, node)]
            shares[:, category] += size, size * right / asked
    rows = [
        _row(name, counts[:, place], clusters[:, place], shares[:, place])
        for place, name in enumerate(table.categories)
    ]
    return [*rows, _row("total", counts.sum(axis=1), clusters.sum(axis=1), shares.sum(axis=1))]


def _row(name: str, counts: NDArray[np.int64], clusters: NDArray[np.int64], shares: NDArray[np.float64]) -> Row:
    size, right = shares.tolist()
    figures = [name, *counts.tolist(), *clusters.tolist(), right / size if size else None]
    return Row(**dict(zip(Row.__dataclass_fields__, figures, strict=True)))


def as_json(campaign: Campaign, rows: Sequence[Row]) -> dict[str, Any]:
    """The summary for machines."""
    return {
        "campaign": campaign.name,
        "claim": campaign.strategy.claim,
        "questions_asked": campaign.questions_asked,
        "pages_waiting": len(campaign.waiting_pages),
        "categories": [asdict(row) for row in rows[:-1]],
        "total": asdict(rows[-1]),
    }
