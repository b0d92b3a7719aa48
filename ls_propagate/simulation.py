"""Simulations from files: predictions with a known truth, the paper's ablation, and what a campaign will take."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from pydantic import TypeAdapter, ValidationError

from ls_propagate.pipeline import Progress, silent
from ls_propagate.settings import STRATEGIES
from ml_backend.segmenters.precomputed import read_features, read_json, read_results
from propagation.calibrated import CalibratedStrategy
from propagation.campaign import UNASKED, YES, Campaign
from propagation.errors import InputError, MaskError, SettingsError
from propagation.features import SETS, default_weights, mask_blocks
from propagation.masks import Detections, MaskTable, build_table, mask_id
from propagation.paper import PaperStrategy
from propagation.posterior import covariates, fit
from propagation.progress import QUESTION_SECONDS
from propagation.quality import truth_iou
from propagation.rle import Rle, read_segmentation
from propagation.simulate import Job, Run, World, players, simulate
from propagation.strategies import Strategy
from propagation.tree import ClusterTree, build_tree

PUBLISHED = {"whole_clusters": True, "queue": "campaign", "clusters_a_round": 1}


def choose_strategy(name: str, given: Mapping[str, str] | None = None, **defaults: Any) -> Strategy:
    """The strategy of a name with its settings.

    given: KEY: VALUE as typed, which win over ``defaults``, those of which a strategy does not know are left
    out. ``paper`` keeps the published rule: whole clusters are written, one queue over the categories, one
    cluster at a time. Raises SettingsError for an unknown name, key or value.
    """
    if name not in STRATEGIES:
        raise SettingsError(f"no strategy {name!r}; there are {', '.join(sorted(STRATEGIES))}")
    kind = STRATEGIES[name]
    # the seed is the simulation's, the name is how the strategy was chosen
    known = sorted({one.name for one in fields(kind)} - {"name", "seed"})
    wanted = {**(PUBLISHED if name == "paper" else {}), **defaults}
    settings: dict[str, Any] = {key: value for key, value in wanted.items() if key in known}
    for key, value in (given or {}).items():
        if key not in known:
            raise SettingsError(f"strategy {name} has no setting {key!r}; it has {', '.join(known)}")
        settings[key] = None if value.lower() == "none" else value
    try:
        made = TypeAdapter(kind).validate_python(settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SettingsError(
            f"strategy {name}, setting {key}={first['input']}: {first['msg']}; it has {', '.join(known)}"
        ) from error
    for key, value in vars(made).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingsError(f"strategy {name}, setting {key}={value}: it must be a finite number")
    return made


# loading


def trees_of(
    table: MaskTable, weights: Mapping[str, float] | None = None, progress: Progress = silent
) -> list[ClusterTree]:
    """The tree of each category that has masks. weights: of the feature blocks; None for the product's own."""
    chosen = default_weights(table) if weights is None else weights
    advance = progress("cluster", len(table.categories))
    trees = []
    for place in range(len(table.categories)):
        tree = build_tree(table, place, chosen)
        trees.extend([tree] if tree else [])
        advance(1)
    return trees


def read_masks(
    predictions: Path, features: Path | None = None, ground_truth: Path | None = None
) -> tuple[MaskTable, NDArray[np.float32]]:
    """The table of predicted masks with their feature blocks, and (n,) the IoU of each with the truth.

    predictions: COCO results, .json or .json.gz: a list of {image_id, category_id, segmentation, score}, and
    "iou" in each where there is no ground truth. features: .npy, a row of floats a prediction, in the order of
    the file. ground_truth: COCO; the IoU of a mask is then that with the best object of its category in its
    image, crowds left out. Raises MaskError for a prediction or features, InputError for the ground truth; the
    message names the file and the entry.
    """
    truth = None if ground_truth is None else _read_truth(ground_truth)
    entries, count = _Entries(predictions, truth), 0
    for row, result in enumerate(read_results(predictions)):
        entries.read(row, result)
        count = row + 1
    if not count:
        raise MaskError(f"{predictions} holds no predictions; lower the model's threshold, or name another file")
    deep = None if features is None else read_features(features, count, predictions)
    table, iou = entries.as_table(deep)
    if truth is not None:
        iou = truth_iou(table, truth.objects)
    return table.with_features(**mask_blocks(table)), iou


@dataclass(frozen=True)
class _Truth:
    """A ground truth: image keys and categories by id as text, (height, width) and objects by image key."""

    file: Path
    images: dict[str, str]
    categories: dict[str, str]
    sizes: dict[str, tuple[int, int]]
    objects: dict[str, list[tuple[str, Rle]]]


def _id(value: Any) -> str | None:
    """An id as text; COCO has numbers, some tools write them as text."""
    return str(value) if isinstance(value, int | str) and not isinstance(value, bool) else None


def _read_truth(file: Path) -> _Truth:
    content = read_json(file, InputError)
    truth = _Truth(file, {}, {}, {}, defaultdict(list))
    try:
        for image in content["images"]:
            key = str(image.get("file_name", image["id"]))
            truth.images[str(image["id"])] = key
            if image.get("height") and image.get("width"):
                truth.sizes[key] = int(image["height"]), int(image["width"])
        for category in sorted(content["categories"], key=lambda category: category["id"]):
            truth.categories[str(category["id"])] = str(category["name"])
        annotations = list(enumerate(content["annotations"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{file} is not a COCO ground truth with images, categories and annotations: {error!r}; "
            "export it again"
        ) from error
    if len(truth.images) != len(content["images"]) or len(set(truth.images.values())) != len(truth.images):
        raise InputError(f"{file} has two images of one id or one file_name; make them differ")
    if len(set(truth.categories.values())) != len(content["categories"]):
        raise InputError(f"{file} has two categories of one id or one name; make them differ")
    for place, annotation in annotations:
        _read_object(truth, place, annotation)
    return truth


def _read_object(truth: _Truth, place: int, annotation: Any) -> None:
    where = f"{truth.file}, annotation {place}"
    if not isinstance(annotation, Mapping):
        raise InputError(f"{where}: it is not an object; export the file as COCO")
    if annotation.get("iscrowd"):
        return
    key = truth.images.get(_id(annotation.get("image_id")) or "")
    category = truth.categories.get(_id(annotation.get("category_id")) or "")
    for name, found in (("image_id", key), ("category_id", category)):
        if found is None:
            raise InputError(
                f"{where}: {name} {annotation.get(name)!r} is not among the file's own; export it again"
            )
    assert key is not None
    assert category is not None
    height, width = truth.sizes.get(key, (None, None))
    try:
        rle = read_segmentation(annotation.get("segmentation"), height, width)
    except MaskError as error:
        raise InputError(f"{where} (image {key}): {error}; export this annotation again") from error
    size = rle["size"][0], rle["size"][1]
    if truth.sizes.setdefault(key, size) != size:
        raise InputError(
            f"{where} (image {key}): the mask is {size[0]} x {size[1]} pixels, its image "
            f"{truth.sizes[key][0]} x {truth.sizes[key][1]}; export this annotation again"
        )
    truth.objects[key].append((category, rle))


@dataclass
class _Entries:
    """The predictions of a file as they are read. Each list has an item a prediction."""

    file: Path
    truth: _Truth | None
    keys: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    rles: list[Rle] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    iou: list[float] = field(default_factory=list)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def read(self, row: int, result: Any) -> None:
        """Check one prediction and keep it."""
        if not isinstance(result, Mapping):
            raise self._error(row, "it is not an object; export the file as COCO results")
        wanted = ["image_id", "category_id", "segmentation", "score", *([] if self.truth else ["iou"])]
        lacking = [name for name in wanted if result.get(name) is None]
        if lacking == ["iou"]:
            raise self._error(row, 'it has no "iou"; add it to each prediction, or name a --ground-truth')
        if lacking:
            raise self._error(row, f"it has no {lacking[0]}; export the file as COCO results")
        self.keys.append(self._known(row, result, "image_id", self.truth.images if self.truth else None))
        categories = self.truth.categories if self.truth else None
        self.categories.append(self._known(row, result, "category_id", categories))
        self.scores.append(self._share(row, result, "score"))
        self.iou.append(0.0 if self.truth else self._share(row, result, "iou"))
        self.rles.append(self._mask(row, result["segmentation"], self.keys[-1]))

    def _error(self, row: int, what: str) -> MaskError:
        return MaskError(f"{self.file}, prediction {row}: {what}")

    def _known(self, row: int, result: Mapping[str, Any], name: str, known: Mapping[str, str] | None) -> str:
        """The image key or category name of a prediction."""
        told = _id(result[name])
        if told is None:
            raise self._error(row, f"{name} {result[name]!r} is neither a number nor text; export the file again")
        if known is None:
            return told
        if told not in known:
            assert self.truth is not None
            raise self._error(
                row, f"{name} {result[name]!r} is not in {self.truth.file}; hand over the file that has it"
            )
        return known[told]

    def _share(self, row: int, result: Mapping[str, Any], name: str) -> float:
        value = result[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= 1:
            raise self._error(row, f"the {name} {value!r} is not in [0, 1]; rescale or mend it")
        return float(value)

    def _mask(self, row: int, segmentation: Any, key: str) -> Rle:
        sizes = self.truth.sizes if self.truth else self.sizes
        height, width = self.truth.sizes.get(key, (None, None)) if self.truth else (None, None)
        try:
            rle = read_segmentation(segmentation, height, width)
        except MaskError as error:
            raise self._error(row, f"{error} (image {key}); export this prediction again") from error
        size = rle["size"][0], rle["size"][1]
        if sizes.setdefault(key, size) != size:
            raise self._error(
                row,
                f"the mask is {size[0]} x {size[1]} pixels, image {key} {sizes[key][0]} x {sizes[key][1]}; "
                "predict at the image's own size",
            )
        if not coco.area(rle):
            raise self._error(row, f"the mask is empty (image {key}); leave this prediction out")
        return rle

    def as_table(self, deep: NDArray[Any] | None) -> tuple[MaskTable, NDArray[np.float32]]:
        """The mask table, and (n,) the IoU that the predictions bore."""
        names = list(self.truth.categories.values()) if self.truth else sorted(set(self.categories), key=_order)
        place = {name: number for number, name in enumerate(names)}
        rows_of: dict[str, list[int]] = {}
        for row, key in enumerate(self.keys):
            rows_of.setdefault(key, []).append(row)
        found = [
            Detections(
                [self.rles[row] for row in rows],
                np.array([self.scores[row] for row in rows], dtype=np.float32),
                np.array([place[self.categories[row]] for row in rows], dtype=np.int64),
                None if deep is None else np.asarray(deep[rows]),
            )
            for rows in rows_of.values()
        ]
        table = build_table(list(rows_of), found, names, f"simulation-{self.file.name}")
        # of a mask found twice the table keeps the better score, and of equals the first
        kept: dict[str, tuple[float, float]] = {}
        for rows, one in zip(rows_of.values(), found, strict=True):
            for row, score in zip(rows, one.scores.tolist(), strict=True):
                mask = mask_id(self.keys[row], self.categories[row], self.rles[row])
                if mask not in kept or score > kept[mask][0]:
                    kept[mask] = score, self.iou[row]
        return table, np.array([kept[mask][1] for mask in table.ids.tolist()], dtype=np.float32)


def _order(name: str) -> tuple[int, int, str]:
    """Numbers by size, then the rest by the alphabet."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)


# the paper's ablation


@dataclass(frozen=True)
class Curve:
    """What one way of working brings while clusters are annotated, the mean over seeds.

    row, name: where it stands in the figure. clusters: (k,) annotated, that is asked; questions: (k,).
    good: (k,) accepted clusters of high quality, whose share of right masks is K_a or more. masks: (k,)
    accepted; right: (k,) right ones among them; quality: (k,) their mean IoU, NaN while there are none.
    """

    row: str
    name: str
    clusters: NDArray[np.float64]
    questions: NDArray[np.float64]
    good: NDArray[np.float64]
    masks: NDArray[np.float64]
    right: NDArray[np.float64]
    quality: NDArray[np.float64]


ROWS = ("features", "search", "K_pa")
BLIND = {"split_below": 0.0}
SEARCHES: dict[str, dict[str, Any]] = {
    "threshold": {"search": "threshold", **BLIND},
    "bfs": {"search": "bfs", **BLIND},
    "dfs": {"search": "dfs", **BLIND},
    "dfs+score": {"search": "dfs+score"},
    "score": {"search": "score"},
}
SPLITS = {"ask all": 0.0, "0.5": 0.5, "0.7": 0.7, "0.9": 0.9}
ORACLE = ", true IoU"
GRID = 60  # points of a curve


def ablation(
    world: World,
    strategy: PaperStrategy,
    calibrated: CalibratedStrategy,
    seeds: Sequence[int],
    progress: Progress = silent,
) -> list[Curve]:
    """The paper's figure on given masks: by feature set, by search and by K_pa, and ``calibrated`` in each row.

    world: its trees are not looked at, each feature set has its own; the other rows use deep features and
    score where there are deep ones. strategy: what all rows have in common; its budget ends all curves.
    A search or K_pa "with the true IoU" takes it in place of the mask score, on the same trees. A point of
    ``calibrated`` is the end of a campaign of its own; its clusters are those that the search by score has
    annotated with as many questions.
    """
    table = world.table
    names = [name for name in SETS if not set(SETS[name]) - {"random", "score", *table.features}]
    advance = progress("trees", len(names))
    worlds = {}
    for name in names:
        worlds[name] = replace(world, trees=trees_of(table, SETS[name]))
        advance(1)
    base = worlds.get("deep+score") or replace(world, trees=trees_of(table))
    oracle = replace(base, table=replace(table, score=world.iou))
    ways: list[tuple[str, str, World, dict[str, Any]]] = [
        *(("features", name, worlds[name], {}) for name in names),
        *(("search", name, base, given) for name, given in SEARCHES.items()),
        *(("search", name + ORACLE, oracle, SEARCHES[name]) for name in ("dfs+score", "score")),
        *(("K_pa", name, base, {"split_below": split}) for name, split in SPLITS.items()),
        ("K_pa", f"{strategy.split_below:g}{ORACLE}", oracle, {}),
    ]
    advance = progress("campaigns", len(ways) + 1)
    curves = []
    for row, name, where, given in ways:
        followed = [_follow(where, replace(strategy, **given), seed) for seed in seeds]
        curves.append(_mean_curve(row, name, followed))
        advance(1)
    published = next(curve for curve in curves if (curve.row, curve.name) == ("search", "score"))
    ends = _ends(base, calibrated, published, strategy.budget, seeds)
    advance(1)
    everywhere = [*curves, *(replace(ends, row=row) for row in ROWS)]
    return sorted(everywhere, key=lambda curve: ROWS.index(curve.row))


def _follow(world: World, strategy: Strategy, seed: int) -> NDArray[np.float64]:
    """(k, 6) a round: clusters asked, questions, good clusters, accepted masks, right ones, their IoU summed."""
    right, iou = world.right, world.iou
    least = strategy.accept_at if isinstance(strategy, PaperStrategy) else world.target
    asked: set[str] = set()
    pages, steps = 0, []

    def observe(campaign: Campaign) -> None:
        nonlocal pages
        for page in islice(campaign.pages.values(), pages, None):
            asked.update(page.issued.clusters)
        pages = len(campaign.pages)
        accepted = campaign.accepted()
        good = 0
        for key in campaign.clusters("accepted"):
            rows = campaign.rows(*key)
            rows = rows[accepted[rows]]
            good += len(rows) > 0 and right[rows].mean() >= least
        figures = accepted.sum(), right[accepted].sum(), iou[accepted].sum(dtype=np.float64)
        steps.append((len(asked), campaign.questions_asked, good, *figures))

    simulate(world, strategy, seed, observe)
    return np.array(steps, dtype=np.float64)


def _mean_curve(row: str, name: str, followed: Sequence[NDArray[np.float64]]) -> Curve:
    """The mean of campaigns, each of which stays where it ended."""
    most = max(float(steps[-1, 0]) for steps in followed)
    grid = np.unique(np.geomspace(1, max(most, 1), GRID).round())
    figures = np.mean([steps[np.searchsorted(steps[:, 0], grid, side="right") - 1] for steps in followed], axis=0)
    return _curve(row, name, grid, figures)


def _curve(row: str, name: str, clusters: NDArray[np.float64], figures: NDArray[np.float64]) -> Curve:
    _, questions, good, masks, right, summed = figures.T
    quality = np.divide(summed, masks, out=np.full(len(masks), np.nan), where=masks > 0)
    return Curve(row, name, clusters, questions, good, masks, right, quality)


def _ends(
    world: World, strategy: CalibratedStrategy, published: Curve, budget: int | None, seeds: Sequence[int]
) -> Curve:
    """A point a budget: where campaigns of the calibrated strategy ended.

    They stand where ``published`` has asked as many questions; beyond its end, at its last number of questions
    a cluster.
    """
    most = budget or int(world.table.best.sum())
    budgets = np.unique(np.geomspace(min(100, most), most, 8).astype(int)).tolist()
    figures = np.array(
        [
            np.mean([_follow(world, replace(strategy, budget=one), seed)[-1] for seed in seeds], axis=0)
            for one in budgets
        ]
    )
    questions = figures[:, 1]
    clusters = np.interp(questions, published.questions, published.clusters)
    clusters *= np.maximum(questions / max(published.questions[-1], 1), 1)
    return _curve("", strategy.name, clusters, figures)


# what a campaign will take


SCORE_DOUBT = 0.5  # standard deviation, in log odds, by which mask scores may be off as a whole
ENOUGH_VERDICTS = 40  # from so many on they are learned from


def measured_seconds(campaign: Campaign) -> float | None:
    """The median seconds a question of the pages whose annotators were timed; None where none was."""
    answers = [page.answer for page in campaign.pages.values() if page.answer is not None]
    timed = [answer.seconds / len(answer.verdicts) for answer in answers if answer.seconds and answer.verdicts]
    return float(np.median(timed)) if timed else None


def plausible(campaign: Campaign, draws: int) -> Iterator[NDArray[np.bool_]]:
    """Which masks may be right, (n,) a draw: judged ones as they were judged, the others by their probability.

    The probabilities are the posterior's, learned in each draw from another half of the verdicts, so that
    draws differ about as much as other verdicts would make them (half-samples; McCarthy 1969). While
    there are too few verdicts to learn from, the mask scores are taken for probabilities, all of them shifted
    by a random amount in each draw, since nobody knows yet what the scores are worth.
    """
    table = campaign.table
    rows = np.flatnonzero(campaign.verdict != UNASKED)
    yes = campaign.verdict[rows] == YES
    score = np.clip(table.score.astype(np.float64), 0.005, 0.995)
    for draw in range(draws):
        rng = np.random.default_rng([draw, 2])
        if len(rows) < ENOUGH_VERDICTS:
            odds = score / (1 - score) * np.exp(SCORE_DOUBT * rng.standard_normal())
            probability = odds / (1 + odds)
        else:
            half = np.sort(rng.permutation(len(rows))[: (len(rows) + 1) // 2])
            probability = fit(*covariates(table), rows[half], yes[half], draw).right
        right = rng.random(len(table)) < probability
        right[rows] = yes
        yield right


def forecast(
    campaign: Campaign,
    draws: int = 20,
    seconds: float = QUESTION_SECONDS,
    processes: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """What a campaign is likely to bring and to take: masks, questions and hours, for some budgets.

    Each draw is a plausible truth (``plausible``), and a campaign is simulated on it from its start, with its own
    seed, so that what was asked is asked again and answered as it was. It knows nothing of answers that
    were changed, of pages that wait, or of masks predicted later. Budgets: half, one and two times the
    campaign's; without one, the strategy's own end, then a half and a quarter of the questions that it took.
    A campaign keeps the budget that it began with: the other rows are of campaigns that begin anew with theirs,
    and what is left to ask is told of the campaign's own only, once it has begun.
    seconds: a question, where no annotator was timed. Intervals are from 10 to 90 % of the draws.
    """
    strategy = campaign.strategy
    timed = measured_seconds(campaign)
    pace = timed or seconds
    verdicts = int((campaign.verdict != UNASKED).sum())
    table = campaign.table
    taken = campaign.taken[table.image]
    if taken.any():
        table = replace(table, best=table.best & ~taken)
    target = strategy.target if isinstance(strategy, CalibratedStrategy) else 0.85
    gold = campaign.gold
    share = 0.0
    if isinstance(strategy, CalibratedStrategy) and strategy.rates == "gold":
        shown = gold.wrong + gold.right
        share = shown / max(shown + campaign.questions_asked, 1) or 0.1
    world = World(
        table,
        campaign.trees,
        np.zeros(len(table), dtype=np.float32),
        target,
        0.5,
        gold.missed / max(gold.wrong, 1),
        gold.marked / max(gold.right, 1),
        share,
    )
    shares = (0.5, 1.0, 2.0) if strategy.budget is not None else (0.5, 0.25)
    advance = progress("campaigns", draws * (len(shares) + (strategy.budget is None)))
    found: list[tuple[int | None, list[Run]]] = []
    truths = [right.astype(np.float32) for right in plausible(campaign, draws)]
    with players(world, processes) as play_all:

        def play(budget: int | None) -> list[Run]:
            tried: Strategy = replace(strategy, budget=budget)  # type: ignore[type-var]
            runs = []
            for run in play_all(Job(tried, getattr(strategy, "seed", 0), truth) for truth in truths):
                runs.append(run)
                advance(1)
            return runs

        base = strategy.budget
        if base is None:
            found.append((None, play(None)))
            base = int(np.median([run.total.questions for run in found[0][1]]))
        for part in shares:
            found.append((round(part * base), play(round(part * base))))
    return {
        "kind": "forecast",
        "strategy": strategy.name,
        "claim": "promise" if all(run.claim == "promise" for _, runs in found for run in runs) else "estimate",
        "learned_from": "verdicts" if verdicts >= ENOUGH_VERDICTS else "scores",
        "verdicts": verdicts,
        "questions_asked": campaign.questions_asked,
        "accepted": int(campaign.accepted().sum()),
        "draws": draws,
        "seconds_a_question": pace,
        "seconds_measured": timed is not None,
        "budget": strategy.budget,
        "budgets": [_expected(campaign, budget, runs, pace) for budget, runs in found],
    }


def _expected(campaign: Campaign, budget: int | None, runs: Sequence[Run], pace: float) -> dict[str, Any]:
    """The mean over simulated campaigns of one budget, and from 10 to 90 % of them."""

    def spread(values: NDArray[np.float64]) -> dict[str, float]:
        low, high = np.quantile(values, [0.1, 0.9]).tolist()
        return {"low": low, "expected": float(values.mean()), "high": high}

    questions = np.array([run.total.questions for run in runs], dtype=np.float64)
    left = np.maximum(questions - campaign.questions_asked, 0)
    own = budget == campaign.strategy.budget or not campaign.questions_asked
    return {
        "budget": budget,
        "masks": spread(np.array([run.total.accepted for run in runs], dtype=np.float64)),
        "right": spread(np.array([run.total.right for run in runs], dtype=np.float64)),
        "questions": spread(questions),
        "hours": spread(questions * pace / 3600),
        "questions_left": spread(left) if own else None,
        "hours_left": spread(left * pace / 3600) if own else None,
    }
