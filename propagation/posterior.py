"""The posterior: how probable it is that a mask is right, learned from the verdicts so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression

from propagation.features import matrix
from propagation.masks import MaskTable

DEEP = 8  # principal components of the deep features
TREES = 100
LINEAR = 0.3  # weight of the linear model, on the scale of log odds
MANY_CATEGORIES = 12
PARALLEL_FROM = 100_000  # masks

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Posterior:
    """right: (n,) the probability that each mask is right. unseen: (m,) that of the masks with a verdict,
    from models that did not see it, in the order of the rows that were given."""

    right: Floats
    unseen: Floats


_known: WeakKeyDictionary[MaskTable, tuple[Floats, int]] = WeakKeyDictionary()


def covariates(table: MaskTable) -> tuple[Floats, int]:
    """(n, d) what the posterior is learned from, and how many columns of it, from the first, are plain.

    Plain: the score's log odds and the shape block. Then each mask beside the others of its image and of its
    category (a model's score is worth less where all its neighbours score low); whether it touches the
    image's edge; the category; the first principal components of the deep features. Kept as long as the table.
    """
    if table not in _known:
        _known[table] = _covariates(table)
    return _known[table]


def _covariates(table: MaskTable) -> tuple[Floats, int]:
    score = np.clip(table.score.astype(np.float64), 0.005, 0.995)
    plain = [np.log(score / (1 - score))[:, None], table.score[:, None]]
    if "shape" in table.features:
        plain.append(np.asarray(table.features["shape"]))
    area = np.log(table.area)
    more = []
    for group in (table.image, table.category):
        count = np.maximum(np.bincount(group), 1)
        for value in (table.score, area):
            mean = (np.bincount(group, value) / count)[group]
            more += [mean, value - mean]
        more.append(np.log(count)[group])
    x, y, width, height = table.box.T
    more.append((x < 1) | (y < 1) | (x + width > table.size[:, 1] - 1) | (y + height > table.size[:, 0] - 1))
    blocks: list[NDArray[Any]] = [*plain, np.column_stack(more)]
    if len(table.categories) <= MANY_CATEGORIES:
        blocks.append(np.eye(len(table.categories))[table.category])
    if "deep" in table.features and len(table) > DEEP:
        deep = matrix(table, np.arange(len(table)), {"deep": 1.0})
        blocks.append(deep[:, :DEEP])
    columns = np.concatenate(blocks, axis=1, dtype=np.float32)
    if not len(columns):
        return columns, sum(b.shape[1] for b in plain)
    spread = columns.std(axis=0)
    return (columns - columns.mean(axis=0)) / np.where(spread > 1e-6, spread, 1), sum(b.shape[1] for b in plain)


def fit(columns: Floats, plain: int, rows: NDArray[np.int64], right: NDArray[np.bool_], seed: int) -> Posterior:
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
    jobs = -1 if n >= PARALLEL_FROM else 1
    options = {"n_estimators": TREES, "min_samples_leaf": 3, "max_features": 0.5, "random_state": seed}
    forest = ExtraTreesClassifier(**options, n_jobs=jobs).fit(columns[rows], right)
    bagged = ExtraTreesClassifier(**options, bootstrap=True, oob_score=_no_score, n_jobs=1).fit(
        columns[rows], right
    )
    linear = LogisticRegression(C=0.3, max_iter=300).fit(columns[rows, :plain], right)
    line = linear.decision_function(columns[:, :plain])
    left_out = _log_odds(np.nan_to_num(bagged.oob_decision_function_[:, 1], nan=share))
    seen = (1 - LINEAR) * left_out + LINEAR * line[rows]
    scaling = LogisticRegression(C=10).fit(seen[:, None], right)
    slope, shift = max(float(scaling.coef_[0, 0]), 0.05), float(scaling.intercept_[0])
    forest_says = _log_odds(_predict(forest, columns))
    blended = (1 - LINEAR) * forest_says + LINEAR * line
    return Posterior(_probability(slope * blended + shift), _probability(slope * seen + shift))


def _no_score(*_: Any) -> float:
    return 0.0


def _predict(forest: ExtraTreesClassifier, columns: Floats) -> NDArray[np.float64]:
    """Probabilities in pieces, since a forest's answers for a million masks at once are large."""
    pieces = [
        forest.predict_proba(part)[:, 1] for part in np.array_split(columns, max(1, len(columns) // 200_000))
    ]
    return np.concatenate(pieces)


def _log_odds(p: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    clipped = np.clip(p, 0.01, 0.99).astype(np.float64)
    return np.log(clipped / (1 - clipped))


def _probability(log_odds: NDArray[np.float64]) -> Floats:
    return (1 / (1 + np.exp(-log_odds))).astype(np.float32)
