"""The posterior: how probable it is that a mask is right, learned from the verdicts so far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from propagation.columns import forget
from propagation.features import leading
from propagation.masks import MaskTable

DEEP = 8  # principal components of the deep features
TREES = 100
LINEAR = 0.3  # weight of the linear model, on the scale of log odds
MANY_CATEGORIES = 12
PARALLEL_FROM = 100_000  # masks
ROWS_AT_ONCE = 2**15

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Posterior:
    """right: (n,) the probability that each mask is right. unseen: (m,) that of the masks with a verdict,
    from models that did not see it, in the order of the rows that were given."""

    right: Floats
    unseen: Floats


class Columns:
    """(n, d) what the posterior is learned from, made for the rows that are asked for: all take 100 bytes a mask.

    ``columns[rows]`` is (len(rows), d), of a slice or an array of rows.
    """

    def __init__(self, table: MaskTable) -> None:
        none = np.empty((len(table), 0), dtype=np.float32)
        self._score = table.score
        self._shape = table.features.get("shape", none)
        self._box, self._area, self._size = table.box, table.area, table.size
        self._category = table.category
        self._categories = len(table.categories)
        self._groups = [self._grouped(group) for group in (table.image, table.category)]
        deep = table.features.get("deep", none)
        self._deep = leading(deep, DEEP) if len(table) > DEEP else none
        self.plain = 2 + self._shape.shape[1]
        self._mean: Floats = np.zeros(1, dtype=np.float32)
        self._spread: Floats = np.ones(1, dtype=np.float32)
        self._mean, self._spread = self._moments()

    def __len__(self) -> int:
        return len(self._score)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Floats:
        score = np.clip(self._score[rows].astype(np.float64), 0.005, 0.995)
        values = self._score[rows], np.log(self._area[rows])
        more = []
        for group, means, count in self._groups:
            for value, mean in zip(values, means, strict=True):
                more += [mean[group[rows]], value - mean[group[rows]]]
            more.append(count[group[rows]])
        (x, y, width, height), (high, wide) = self._box[rows].T, self._size[rows].T
        more.append((x < 1) | (y < 1) | (x + width > wide - 1) | (y + height > high - 1))
        blocks = [np.log(score / (1 - score)), self._score[rows], self._shape[rows], *more]
        if self._categories <= MANY_CATEGORIES:
            blocks.append(np.eye(self._categories)[self._category[rows]])
        columns: Floats = np.column_stack([*blocks, self._deep[rows]]).astype(np.float32)
        columns -= self._mean
        columns /= self._spread
        forget(self._shape, self._box, self._area, self._size)
        return columns

    def pieces(self) -> Iterator[tuple[slice, Floats]]:
        """All of them, some rows at a time, and where these are."""
        for at in self._slices():
            yield at, self[at]

    def _slices(self) -> list[slice]:
        return [slice(begin, begin + ROWS_AT_ONCE) for begin in range(0, len(self), ROWS_AT_ONCE)]

    def _grouped(self, group: NDArray[np.int32]) -> tuple[NDArray[np.int32], list[Doubles], Doubles]:
        """A group a mask; the mean score and the mean log area of each group, and the logarithm of its size."""
        groups = int(group.max(initial=-1)) + 1
        count, score, area = np.zeros((3, groups))
        for at in self._slices():
            count += np.bincount(group[at], minlength=groups)
            score += np.bincount(group[at], self._score[at], minlength=groups)
            area += np.bincount(group[at], np.log(self._area[at]), minlength=groups)
        count = np.maximum(count, 1)
        return group, [score / count, area / count], np.log(count)

    def _moments(self) -> tuple[Floats, Floats]:
        """The mean of each column, and what it is divided by."""
        found = [(len(part), part.mean(axis=0), part.var(axis=0)) for _, part in self.pieces()]
        if not found:
            return self._mean, self._spread
        count, means, variances = (np.array(each, dtype=np.float64) for each in zip(*found, strict=True))
        mean = np.average(means, axis=0, weights=count)
        spread = np.sqrt(np.average(variances + (means - mean) ** 2, axis=0, weights=count)).astype(np.float32)
        return mean.astype(np.float32), np.where(spread > 1e-6, spread, self._spread)


_known: WeakKeyDictionary[MaskTable, Columns] = WeakKeyDictionary()


def covariates(table: MaskTable) -> tuple[Columns, int]:
    """(n, d) what the posterior is learned from, and how many columns of it, from the first, are plain.

    Plain: the score's log odds and the shape block. Then each mask beside the others of its image and of its
    category (a model's score is worth less where all its neighbours score low); whether it touches the
    image's edge; the category; the first principal components of the deep features. Kept as long as the table.
    """
    if table not in _known:
        _known[table] = Columns(table)
    return _known[table], _known[table].plain


def fit(columns: Columns, plain: int, rows: NDArray[np.int64], right: NDArray[np.bool_], seed: int) -> Posterior:
    """Learn from verdicts which masks are right.

    columns, plain: of ``covariates``; rows: (m,) masks with a verdict; right: (m,) whether it was yes.

    A forest of extremely randomized trees (Geurts et al. 2006), blended with ridge logistic regression on the
    plain columns, which is steadier while verdicts are few; then made honest by Platt scaling, learned on each
    verdict from the trees that did not see it.
    """
    n, m = len(columns), len(rows)
    share = (right.sum() + 1) / (m + 2)
    if right.all() or not right.any() or m < 10:
        return Posterior(np.full(n, share, dtype=np.float32), np.full(m, share, dtype=np.float32))
    from sklearn.ensemble import ExtraTreesClassifier  # with 120 MB of libraries, and not every run learns
    from sklearn.linear_model import LogisticRegression

    jobs = -1 if n >= PARALLEL_FROM else 1
    options = {"n_estimators": TREES, "min_samples_leaf": 3, "max_features": 0.5, "random_state": seed}
    known = columns[rows]
    forest = ExtraTreesClassifier(**options, n_jobs=jobs).fit(known, right)
    bagged = ExtraTreesClassifier(**options, bootstrap=True, oob_score=_no_score, n_jobs=1).fit(known, right)
    linear = LogisticRegression(C=0.3, max_iter=300).fit(known[:, :plain], right)
    left_out = _log_odds(np.nan_to_num(bagged.oob_decision_function_[:, 1], nan=share))
    seen = (1 - LINEAR) * left_out + LINEAR * linear.decision_function(known[:, :plain])
    scaling = LogisticRegression(C=10).fit(seen[:, None], right)
    slope, shift = max(float(scaling.coef_[0, 0]), 0.05), float(scaling.intercept_[0])
    likely = np.empty(n, dtype=np.float32)
    for at, part in columns.pieces():
        forest_says = _log_odds(forest.predict_proba(part)[:, 1])
        blended = (1 - LINEAR) * forest_says + LINEAR * linear.decision_function(part[:, :plain])
        likely[at] = _probability(slope * blended + shift)
    return Posterior(likely, _probability(slope * seen + shift))


def _no_score(*_: Any) -> float:
    return 0.0


def _log_odds(p: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    clipped = np.clip(p, 0.01, 0.99).astype(np.float64)
    return np.log(clipped / (1 - clipped))


def _probability(log_odds: NDArray[np.float64]) -> Floats:
    return (1 / (1 + np.exp(-log_odds))).astype(np.float32)
