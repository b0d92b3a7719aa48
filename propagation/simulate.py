"""Simulation: campaigns with annotators who know the truth, to see what a strategy would bring."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from propagation.campaign import Campaign, PageState
from propagation.events import (
    CampaignStarted,
    Certified,
    Decided,
    GoldAnswered,
    PageAnswered,
    PageIssued,
    Verdict,
)
from propagation.gold import UNCHECKED, Checks
from propagation.masks import MaskTable
from propagation.quality import RIGHT_IOU
from propagation.strategies import Strategy
from propagation.tree import ClusterTree


@dataclass(frozen=True)
class Member:
    """One simulated annotator: rates of error, and how many pages of the team's they answer, as a weight."""

    miss: float = 0.0
    false_alarm: float = 0.0
    pace: float = 1.0


@dataclass(frozen=True)
class World:
    """What is simulated: the masks, their trees, and (n,) the IoU of each mask with the truth.

    target: q, by which broken promises are counted. right_iou: above it a mask is right. miss, false_alarm:
    how often annotators answer yes on a wrong mask, and no on a right one. gold: the share of questions whose
    truth is known, half of them of wrong masks. team: instead of these three, annotators each with rates of
    their own, whose pages are checked by ``checks``, gold and all.
    """

    table: MaskTable
    trees: Sequence[ClusterTree]
    iou: NDArray[np.float32]
    target: float = 0.85
    right_iou: float = RIGHT_IOU
    miss: float = 0.0
    false_alarm: float = 0.0
    gold: float = 0.0
    team: Sequence[Member] = ()
    checks: Checks = UNCHECKED

    @property
    def right(self) -> NDArray[np.bool_]:
        """(n,) whether a mask is right."""
        return self.iou > self.right_iou


@dataclass(frozen=True)
class Outcome:
    """What one campaign brought, of one category or of all.

    questions: gold included in the campaign's, not in a category's. wrong_ever: whether the share of right
    masks among the accepted was under the target after any decision to write. sq: mean IoU of the accepted.
    """

    questions: int
    accepted: int
    rejected: int
    right: int
    wrong_ever: bool
    precision: float | None
    sq: float | None


@dataclass(frozen=True)
class Run:
    """One simulated campaign. curve: (questions, accepted masks, right ones) after each decision to write."""

    seed: int
    total: Outcome
    categories: dict[str, Outcome]
    claim: str
    bound: float | None
    clusters: int
    curve: list[tuple[int, int, int]]

    def as_json(self) -> dict[str, Any]:
        """The run for machines."""
        return {
            "seed": self.seed,
            **asdict(self.total),
            "claim": self.claim,
            "bound": self.bound,
            "clusters": self.clusters,
            "categories": {name: asdict(outcome) for name, outcome in self.categories.items()},
        }


def simulate(
    world: World, strategy: Strategy, seed: int, observe: Callable[[Campaign], None] = lambda campaign: None
) -> Run:
    """Play one campaign to its end. The strategy's budget counts gold questions too.

    observe: is shown the campaign after the decisions of each round.
    """
    rng = np.random.default_rng([seed, 1, 0x51])
    right = world.right
    errs = rng.random(len(right)) < np.where(right, world.false_alarm, world.miss)
    says_yes = right ^ errs
    budget = strategy.budget
    real = None if budget is None else budget - round(budget * world.gold)
    rule: Strategy = replace(strategy, seed=seed, budget=real)  # type: ignore[type-var]
    campaign = Campaign(world.table, world.trees, rule, world.checks)
    measured = "simulated" if world.checks.measures else ""
    campaign.apply(CampaignStarted(f"simulation-{seed}", {}, "", "", measured))
    category = world.table.category
    watch = Watch(world, campaign)
    gold = 0
    while True:
        moved = False
        for choice in campaign.decisions():
            campaign.apply(choice)
            moved |= isinstance(choice, Certified) or (isinstance(choice, Decided) and choice.decision == "accept")
        if moved:
            watch.look(gold)
        observe(campaign)
        pages: list[PageIssued] = []
        acted = moved
        for event in campaign.next_round():
            acted = True
            if isinstance(event, PageIssued):
                pages.append(event)
            else:
                campaign.apply(event)
        for page in pages:
            campaign.apply(page)
        for page in pages:
            shown = campaign.pages[page.page]
            by, yes = _of_team(shown, world, rng) if world.team else (0, says_yes[shown.rows])
            verdicts: tuple[Verdict, ...] = tuple("yes" if one else "no" for one in yes.tolist())
            campaign.apply(PageAnswered(page.page, 0, "", by, None, verdicts))
        if world.gold and pages:
            due = round(campaign.questions_asked * world.gold / (1 - world.gold)) - gold
            gold += due
            campaign.apply(_gold_answers(due, world, rng))
        if not acted:
            break
    watch.look(gold)
    asked = np.bincount(category[campaign.verdict >= 0], minlength=len(world.table.categories))
    accepted, rejected = campaign.accepted(), campaign.rejected() & world.table.best

    def outcome(of: NDArray[np.bool_], questions: int, wrong_ever: bool) -> Outcome:
        ours = accepted & of
        count = int(ours.sum())
        return Outcome(
            questions,
            count,
            int((rejected & of).sum()),
            int((ours & right).sum()),
            wrong_ever,
            float(right[ours].mean()) if count else None,
            float(world.iou[ours].mean()) if count else None,
        )

    categories = {
        name: outcome(category == place, int(asked[place]), bool(watch.wrong[place]))
        for place, name in enumerate(world.table.categories)
    }
    total = outcome(np.ones(len(right), dtype=bool), campaign.questions_asked + gold, watch.wrong_total)
    clusters = sum(state == "accepted" for state in campaign.state.values())
    return Run(seed, total, categories, campaign.claim, campaign.search.bound(), clusters, watch.curve)


class Watch:
    """Looks at what would be written, each time that it changes."""

    def __init__(self, world: World, campaign: Campaign) -> None:
        self._world, self._campaign = world, campaign
        self.wrong = np.zeros(len(world.table.categories), dtype=bool)
        self.wrong_total = False
        self.curve: list[tuple[int, int, int]] = []

    def look(self, gold: int) -> None:
        """Note the share of right masks among the accepted, of all and by category."""
        accepted = self._campaign.accepted()
        right = accepted & self._world.right
        size = len(self.wrong)
        many = np.bincount(self._world.table.category[accepted], minlength=size)
        good = np.bincount(self._world.table.category[right], minlength=size)
        self.wrong |= good < self._world.target * many
        self.wrong_total |= bool(good.sum() < self._world.target * many.sum())
        self.curve.append((self._campaign.questions_asked + gold, int(many.sum()), int(good.sum())))


def _of_team(page: PageState, world: World, rng: np.random.Generator) -> tuple[int, NDArray[np.bool_]]:
    """Who answers a page, from account 1 on, and (k,) what they say of all that it shows."""
    pace = np.array([one.pace for one in world.team])
    by = int(rng.choice(len(pace), p=pace / pace.sum()))
    truth = world.right[page.rows]
    places = np.array(page.issued.places, dtype=np.int64)
    truth = np.insert(truth, places - np.arange(len(places)), np.array(page.issued.truth, dtype=bool))
    errs = rng.random(len(truth)) < np.where(truth, world.team[by].false_alarm, world.team[by].miss)
    return by + 1, truth ^ errs


def _gold_answers(count: int, world: World, rng: np.random.Generator) -> GoldAnswered:
    wrong = count // 2 + (count % 2 and int(rng.random() < 0.5))
    return GoldAnswered(
        wrong,
        int(rng.binomial(wrong, world.miss)),
        count - wrong,
        int(rng.binomial(count - wrong, world.false_alarm)),
    )


@dataclass(frozen=True)
class Job:
    """A campaign to be played. iou: (n,) another truth than the world's, or None."""

    strategy: Strategy
    seed: int
    iou: NDArray[np.float32] | None = None


Players = Callable[[Iterable[Job]], Iterator[Run]]

_world: World | None = None


def _prepare(world: World) -> None:
    global _world
    _world = world
    threadpool_limits(1)


def _play(world: World, job: Job) -> Run:
    return simulate(world if job.iou is None else replace(world, iou=job.iou), job.strategy, job.seed)


def _play_here(job: Job) -> Run:
    assert _world is not None
    return _play(_world, job)


@contextmanager
def players(world: World, processes: int | None = None) -> Iterator[Players]:
    """What plays campaigns in a world side by side, and answers the runs in the order of the jobs.

    processes: None for one a core; 1 to stay in this one.
    """
    workers = processes or multiprocessing.cpu_count()
    if workers <= 1:
        yield lambda jobs: (_play(world, job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _prepare, (world,)) as pool:
        yield lambda jobs: pool.map(_play_here, jobs)


def simulate_many(
    world: World,
    strategy: Strategy,
    seeds: Sequence[int],
    processes: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Run]:
    """Campaigns that differ in the seed alone. processes: None for one a core."""
    with players(world, 1 if len(seeds) == 1 else processes) as play:
        runs = []
        for run in play(Job(strategy, seed) for seed in seeds):
            runs.append(run)
            progress(1)
        return runs


def summary_of(world: World, strategy: Strategy, runs: Sequence[Run], seconds: float) -> dict[str, Any]:
    """What all runs say together, for machines."""
    right_total = int((world.right & world.table.best).sum())
    totals = [run.total for run in runs]
    return {
        "strategy": strategy.name,
        "settings": asdict(strategy),  # type: ignore[call-overload]
        "target": world.target,
        "predictions": len(world.table),
        "outdone": int((~world.table.best).sum()),
        "right_total": right_total,
        "yield": float(np.mean([total.right for total in totals])) / max(right_total, 1),
        "masks_per_question": float(np.mean([total.accepted / max(total.questions, 1) for total in totals])),
        "promise_kept_rate": 1 - float(np.mean([total.wrong_ever for total in totals])),
        "accepted_nothing_rate": float(np.mean([total.accepted == 0 for total in totals])),
        "claim": "promise" if all(run.claim == "promise" for run in runs) else "estimate",
        "seconds": round(seconds, 2),
        "runs": [run.as_json() for run in runs],
    }


def timed(
    world: World,
    strategy: Strategy,
    seeds: Sequence[int],
    processes: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """``simulate_many`` and ``summary_of``, with the seconds that they took."""
    begin = time.monotonic()
    runs = simulate_many(world, strategy, seeds, processes, progress)
    return summary_of(world, strategy, runs, time.monotonic() - begin)
