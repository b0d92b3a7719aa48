"""How far a campaign has come, how it came there, and what is still to come: the figures of the progress board."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagation.annotators import Annotator, Gold, Interval
from propagation.campaign import UNASKED, Campaign, PageState
from propagation.events import Event, PageAnswered
from propagation.summary import Row, statement, summarize

QUESTION_SECONDS = 1.4  # a question, of the paper's annotators (section 4)
DRAWING_SECONDS = 80.0  # a mask drawn by hand, the paper's figure for a polygon of COCO
POINTS = 60  # of the history, at most
EXAMPLES = 5  # clusters named of each state, the largest
MOST_CATEGORIES = 50  # that have a row of their own, the largest; the others share one
EDGES = np.outer(10 ** np.arange(9), (1, 3)).ravel()  # of bins of cluster sizes
STATES = ("accepted", "proposed", "asking", "open", "rejected", "split", "undone")
PER_HOUR = 3600.0


@dataclass(frozen=True)
class Terms:
    """What a team compares with: seconds to draw a mask by hand, the cost of an hour and its currency.

    masks_wanted: the masks that it wants in the end, or None.
    """

    drawing_seconds: float = DRAWING_SECONDS
    hour_cost: float | None = None
    currency: str = ""
    masks_wanted: int | None = None


@dataclass(frozen=True)
class Point:
    """A moment of a campaign: questions with an answer, hours that answering took, masks accepted."""

    at: str
    questions: int
    hours: float
    accepted: int


class History:
    """The fold over the log that remembers how far a campaign was, when.

    It is told of each event before the campaign is, with the time at which it was stored. A point is kept as an
    answer comes in, of what followed from those before; whenever there are ``POINTS`` of them, every second one is
    let go and the next are kept half as often. So the same log makes the same history.

    begun: when the log begins; version: events so far; latest: of each account, when its latest answer came in.
    """

    def __init__(self, campaign: Campaign) -> None:
        self.campaign = campaign
        self.begun: datetime | None = None
        self.version = 0
        self.latest: dict[int, datetime] = {}
        self._seconds = 0.0
        self._timed = 0
        self._points: list[tuple[datetime, int, float, int]] = []
        self._step = 1
        self._answered = 0
        self._kept = 0

    def take(self, event: Event, at: datetime) -> None:
        """Take in an event that the campaign is about to apply."""
        self.begun = self.begun or at
        self.version += 1
        if not isinstance(event, PageAnswered):
            return
        if self._answered - self._kept >= self._step:
            self._keep(max(self.latest.values(), default=at))
        self._answered += len(event.verdicts)
        self.latest[event.by] = at
        page = self.campaign.pages.get(event.page)
        before = page.answer if page else None
        if before is not None and before.annotation == event.annotation:
            self._count(before, -1)  # Label Studio's time of a changed answer includes that of the first one
        self._count(event, 1)

    def _count(self, answer: PageAnswered, sign: int) -> None:
        if answer.seconds:
            self._seconds += sign * answer.seconds
            self._timed += sign * len(answer.verdicts)

    def _keep(self, at: datetime) -> None:
        self._kept = self._answered
        self._points.append((at, *self._figures()))
        if len(self._points) >= POINTS:
            self._points = self._points[1::2]
            span = max(self._points[-1][1] - self._points[0][1], 1)
            self._step = max(2 * self._step, span // len(self._points))

    def _figures(self) -> tuple[int, float, int]:
        questions = int((self.campaign.verdict != UNASKED).sum())
        untimed = max(questions - self._timed, 0)
        return questions, self._seconds + untimed * self.pace, int(self.campaign.accepted().sum())

    @property
    def pace(self) -> float:
        """Seconds a question: of the answers that were timed, or the paper's."""
        return self._seconds / self._timed if self._timed else QUESTION_SECONDS

    @property
    def timed(self) -> bool:
        """Whether any answer was."""
        return self._timed > 0

    def points(self, now: datetime) -> list[Point]:
        """From nothing to now."""
        kept = [(self.begun or now, 0, 0.0, 0), *self._points]
        latest = now, *self._figures()
        if latest[1:] != kept[-1][1:]:
            kept.append(latest)
        return [Point(_iso(at), asked, seconds / PER_HOUR, masks) for at, asked, seconds, masks in kept]


def progress(history: History, terms: Terms, now: datetime) -> dict[str, Any]:
    """The document of the progress board, as JSON holds it; every figure in it is of the moment ``now``."""
    campaign = history.campaign
    *rows, total = summarize(campaign, MOST_CATEGORIES)
    points = history.points(now)
    rule = asdict(campaign.strategy)  # type: ignore[call-overload]
    return {
        "campaign": campaign.name,
        "strategy": campaign.strategy.name,
        "claim": campaign.claim,
        "statement": statement(campaign),
        "target": rule.get("target", rule.get("accept_at")),
        "scope": rule.get("scope"),
        "measured": campaign.measured,
        "assumed": {name: rule[name] for name in ("miss", "false_alarm")} if "miss" in rule else None,
        "at": _iso(now),
        "begun": None if history.begun is None else _iso(history.begun),
        "masks": _masks(campaign, total, terms),
        "questions": {
            "answered": total.questions,
            "asked": campaign.questions_asked,
            "budget": campaign.strategy.budget,
            "pages_waiting": len(campaign.waiting_pages),
            "waiting": sum(len(page.shown) for page in campaign.waiting_pages),
            "latest": _iso(max(history.latest.values())) if history.latest else None,
        },
        "leftover": campaign.search.leftover() if total.open and not campaign.waiting_pages else None,
        "work": _work(history, terms, points[-1]),
        "history": [asdict(point) for point in points],
        "forecast": _forecast(history, terms, points),
        "clusters": _clusters(campaign),
        "categories": [asdict(row) for row in rows],
        "others": _others(campaign, rows, total),
        "annotators": _annotators(history),
        "team": _team(campaign),
    }


def _others(campaign: Campaign, rows: Sequence[Row], total: Row) -> dict[str, int] | None:
    """The figures of the categories without a row, together; None where each has one."""
    left = len(campaign.table.categories) - len(rows)
    names = ("masks", "outdone", "questions", "accepted", "rejected", "open")
    counts = {name: getattr(total, name) - sum(getattr(row, name) for row in rows) for name in names}
    return {"categories": left, **counts} if left else None


def _masks(campaign: Campaign, total: Row, terms: Terms) -> dict[str, Any]:
    return {
        "found": total.masks - total.outdone,
        "outdone": total.outdone,
        "accepted": total.accepted,
        "rejected": total.rejected,
        "open": total.open,
        "written": campaign.written,
        "wanted": terms.masks_wanted,
        "estimate": total.estimate,
        "bound": total.bound,
    }


def _work(history: History, terms: Terms, now: Point) -> dict[str, Any]:
    """Hours and cost of answering, beside those of drawing as many masks by hand."""
    by_hand = now.accepted * terms.drawing_seconds / PER_HOUR
    costs = [None if terms.hour_cost is None else hours * terms.hour_cost for hours in (now.hours, by_hand)]
    return {
        "seconds_a_question": history.pace,
        "measured": history.timed,
        "hours": now.hours,
        "drawing_seconds": terms.drawing_seconds,
        "drawing_hours": by_hand,
        "times_faster": by_hand / now.hours if now.hours else None,
        "hour_cost": terms.hour_cost,
        "currency": terms.currency,
        "cost": costs[0],
        "drawing_cost": costs[1],
    }


# what is to come


def _forecast(history: History, terms: Terms, points: Sequence[Point]) -> dict[str, Any]:
    """Where the campaign is likely to be after further questions, and when it has the masks that are wanted."""
    campaign, now = history.campaign, points[-1]
    budget = campaign.strategy.budget
    room = None if budget is None else max(0, budget - campaign.questions_asked)
    steps, basis = campaign.search.outlook(room), "evidence"
    if steps is None:
        steps, basis = _straight_on(campaign, points, room), "pace"
    ahead = [
        Point(now.at, now.questions + round(more), now.hours + more * history.pace / PER_HOUR, masks)
        for more, masks in ((0.0, now.accepted), *steps)
    ]
    return {
        "basis": basis if steps or basis == "evidence" else None,
        "points": [asdict(point) for point in ahead] if steps else [],
        "end": asdict(ahead[-1]) if steps else None,
        "wanted": _reached(ahead, terms.masks_wanted),
    }


def _straight_on(campaign: Campaign, points: Sequence[Point], room: int | None) -> list[tuple[float, int]]:
    """On as over the last half of the questions, to the end of the budget; nothing where there is none."""
    if not room or not campaign.waiting_pages:
        return []
    now = points[-1]
    half = next(point for point in points if 2 * point.questions >= now.questions)
    slope = (now.accepted - half.accepted) / max(now.questions - half.questions, 1)
    if slope <= 0:
        return []
    left = int((campaign.table.best & ~campaign.taken[campaign.table.image]).sum()) - now.accepted
    more = min(float(room), left / slope)
    return [(more, now.accepted + round(more * slope))]


def _reached(ahead: Sequence[Point], wanted: int | None) -> dict[str, Any] | None:
    """The questions and hours after which the masks that are wanted are there; None where they won't be."""
    if wanted is None or len(ahead) < 2 or ahead[-1].accepted < wanted:
        return None
    accepted = [point.accepted for point in ahead]
    place = int(np.searchsorted(accepted, wanted))
    return {"questions": ahead[place].questions, "hours": ahead[place].hours}


# clusters, annotators


def _clusters(campaign: Campaign) -> dict[str, Any]:
    """Clusters and masks of each state, by the cluster's size."""
    states = campaign.states()
    keys = np.array(list(states), dtype=np.int64).reshape(-1, 2)
    codes = np.array([STATES.index(state) for state in states.values()], dtype=np.int64)
    sizes = np.array([campaign.trees[place].sizes[node] for place, node in states], dtype=np.int64)
    bins = np.searchsorted(EDGES, sizes, side="right") - 1
    low, high = (int(bins.min()), int(bins.max())) if len(bins) else (0, -1)
    width = high - low + 1
    counts = np.bincount(codes * width + bins - low, minlength=len(STATES) * width).reshape(len(STATES), width)
    return {
        "sizes": [[int(EDGES[b]), int(EDGES[b + 1]) - 1] for b in range(low, high + 1)],
        "states": [
            {
                "state": name,
                "clusters": int(counts[code].sum()),
                "masks": int(sizes[codes == code].sum()),
                "by_size": counts[code].tolist(),
                "largest": _largest(campaign, keys[codes == code], sizes[codes == code]),
            }
            for code, name in enumerate(STATES)
            if counts[code].any()
        ],
    }


def _largest(campaign: Campaign, keys: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for which in np.argsort(-sizes, kind="stable")[:EXAMPLES]:
        place, node = keys[which].tolist()
        asked, yes = campaign.known(place, node)
        name = campaign.cluster(place, node)
        found.append({"cluster": name, "masks": int(sizes[which]), "asked": asked, "yes": yes, "task": None})
    named = {one["cluster"]: one for one in found}
    for page in campaign.pages.values():
        for name in named.keys() & set(page.issued.clusters):
            named[name]["task"] = page.task
    return found


def _annotators(history: History) -> list[dict[str, Any]]:
    """A row an annotator, who answered most first."""
    campaign = history.campaign
    answered = [page for page in campaign.pages.values() if page.answer is not None]
    by: dict[int, list[PageState]] = {}
    for page in answered:
        by.setdefault(page.answer.by, []).append(page)  # type: ignore[union-attr]
    agreed = campaign.overlaps().with_others()
    rows = [
        {
            "annotator": number,
            **_answers(pages),
            "latest": _iso(history.latest[number]) if number in history.latest else None,
            **_gold(campaign.team.accounts.get(number, Annotator()).shown),
            "agreement": _agreement(*agreed[number]) if number in agreed else None,
            "suspected": campaign.team.accounts.get(number, Annotator()).suspected,
        }
        for number, pages in by.items()
    ]
    return sorted(rows, key=lambda row: (-row["questions"], row["annotator"]))


def _answers(pages: Sequence[PageState]) -> dict[str, Any]:
    """What somebody answered. asked_again: why answers do not count, and of how many pages."""
    answers = [page.answer for page in pages if page.answer is not None]
    timed = np.array([(a.seconds, len(a.verdicts)) for a in answers if a.seconds and a.verdicts]).reshape(-1, 2)
    questions = sum(len(answer.verdicts) for answer in answers)
    marked = sum(len(answer.verdicts) - answer.verdicts.count("yes") for answer in answers)
    return {
        "pages": len(pages),
        "questions": questions,
        "seconds_a_question": float(np.median(timed[:, 0] / timed[:, 1])) if len(timed) else None,
        "hours": float(timed[:, 0].sum()) / PER_HOUR if len(timed) else None,
        "marked": marked / questions if questions else None,
        "asked_again": dict(Counter(page.refused for page in pages if page.refused)),
    }


def _team(campaign: Campaign) -> dict[str, Any]:
    """All annotators together, with the gold that tells of the answers that count. gold_share: of new pages."""
    labels = campaign.overlaps()
    share = labels.agreement()
    return {
        **_answers([page for page in campaign.pages.values() if page.answer is not None]),
        **_gold(campaign.gold),
        "agreement": None if share is None else _agreement(share, len(np.unique(labels.mask))),
        "gold_share": campaign.checks.share if campaign.checks.measures else 0.0,
    }


def _gold(gold: Gold) -> dict[str, dict[str, float] | None]:
    """The rates of error on masks of known truth; None where none were shown."""
    return {
        "missed": _rate(gold.miss_interval(), gold.wrong),
        "false_alarms": _rate(gold.false_alarm_interval(), gold.right),
    }


def _rate(shares: Interval, of: float) -> dict[str, float] | None:
    return dict(zip(("share", "low", "high", "of"), (*shares, of), strict=True)) if of else None


def _agreement(share: float, questions: int) -> dict[str, float]:
    return {"share": share, "of": questions}


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
