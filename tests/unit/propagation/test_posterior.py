"""The posterior: what it learns from verdicts, and that it doesn't tell of a mask what only its verdict knew."""

import gc

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from propagation import posterior
from propagation.posterior import Columns, covariates, fit


@pytest.fixture(autouse=True)
def _small_forests(monkeypatch):
    monkeypatch.setattr(posterior, "TREES", 40)


def shapes(n, seed=0):
    return np.random.default_rng([seed, 41]).random((n, 6)).astype(np.float32)


def separable(table, n=480, seed=0):
    """Masks of which the score and a shape together tell whether they are right."""
    rng = np.random.default_rng([seed, 42])
    right = rng.random(n) < 0.6
    made = table(np.clip(rng.normal(np.where(right, 0.75, 0.5), 0.1), 0.01, 0.99))
    block = shapes(n)
    block[:, 2] += right
    return made.with_features(shape=block), right


def test_masks_that_can_be_told_apart_are_ranked(table):
    made, right = separable(table)
    rows = np.random.default_rng(43).permutation(480)[:120]
    found = fit(*covariates(made), rows, right[rows], 0)
    rest = np.setdiff1d(np.arange(480), rows)
    assert roc_auc_score(right[rest], found.right[rest]) > 0.95
    assert roc_auc_score(right[rows], found.unseen) > 0.9
    # and its probabilities are about right
    assert abs(found.right[rest].mean() - right[rest].mean()) < 0.05
    sure = rest[found.right[rest] > 0.9]
    assert len(sure) > 50
    assert right[sure].mean() > 0.9
    assert ((found.right >= 0) & (found.right <= 1)).all()


@pytest.mark.parametrize(
    ("verdicts", "share"), [([True] * 30, 31 / 32), ([False] * 30, 1 / 32), ([True, False] * 4, 0.5), ([], 0.5)]
)
def test_where_there_is_nothing_to_tell_apart_all_masks_are_as_likely(table, verdicts, share):
    made = table([0.3, 0.9] * 20)
    right = np.array(verdicts, dtype=bool)
    found = fit(*covariates(made), np.arange(len(right)), right, 0)
    assert found.right.tolist() == pytest.approx([share] * 40)
    assert found.unseen.tolist() == pytest.approx([share] * len(right))
    assert found.right.dtype == np.float32


def test_a_verdict_says_nothing_of_its_own_mask(table):
    """On random verdicts the masks' own probabilities know nothing: else known masks would look like better
    ones than those that are proposed beside them. Found: 0.50 on average of 12."""
    scores = np.random.default_rng(44).random(480)
    made = table(scores).with_features(shape=shapes(480))
    areas, seen = [], []
    for seed in range(12):
        rng = np.random.default_rng([seed, 45])
        rows, right = rng.permutation(480)[:160], rng.random(160) < 0.5
        found = fit(*covariates(made), rows, right, seed)
        areas.append(roc_auc_score(right, found.unseen))
        seen.append(roc_auc_score(right, found.right[rows]))
    assert abs(np.mean(areas) - 0.5) < 0.08
    # whereas the model that saw them knows them by heart
    assert np.mean(seen) > 0.8


def test_random_verdicts_make_no_mask_likely(table):
    made = table(np.random.default_rng(46).random(480)).with_features(shape=shapes(480))
    rng = np.random.default_rng(47)
    rows, right = rng.permutation(480)[:160], rng.random(160) < 0.5
    found = fit(*covariates(made), rows, right, 0)
    rest = np.setdiff1d(np.arange(480), rows)
    assert np.abs(found.right[rest] - 0.5).mean() < 0.2


def test_the_same_verdicts_and_seed_teach_the_same(table):
    made, right = separable(table)
    rows = np.arange(0, 480, 4)
    first, second = (fit(*covariates(made), rows, right[rows], 3) for _ in range(2))
    assert first.right.tolist() == second.right.tolist()
    assert first.unseen.tolist() == second.unseen.tolist()
    other = fit(*covariates(made), rows, right[rows], 4)
    assert first.right.tolist() != other.right.tolist()


def test_predictions_in_pieces_are_those_of_the_whole(table, monkeypatch):
    made, right = separable(table)
    columns, plain = covariates(made)
    rows = np.arange(0, 480, 4)
    whole = fit(columns, plain, rows, right[rows], 0)
    monkeypatch.setattr(posterior, "PARALLEL_FROM", 100)
    monkeypatch.setattr(posterior, "ROWS_AT_ONCE", 100)
    pieces = fit(columns, plain, rows, right[rows], 0)
    assert np.allclose(pieces.right, whole.right)
    assert np.allclose(pieces.unseen, whole.unseen)


def test_columns_in_pieces_are_those_of_the_whole(table, monkeypatch):
    made = table(np.random.default_rng(49).random(480), np.arange(480) % 3, ("a", "b", "c"))
    made = made.with_features(shape=shapes(480))
    whole = Columns(made)[:]
    varied = whole.std(axis=0) > 0.5
    assert varied.sum() >= 15
    monkeypatch.setattr(posterior, "ROWS_AT_ONCE", 100)
    columns = Columns(made)
    assert np.allclose(columns[:][:, varied], whole[:, varied], atol=1e-4)
    assert np.concatenate([part for _, part in columns.pieces()]).tolist() == columns[:].tolist()
    rows = np.array([7, 479, 7])
    assert columns[rows].tolist() == columns[:][rows].tolist()


# covariates


def test_covariates_are_made_once_for_a_table_and_go_with_it(table):
    made = table([0.5, 0.6, 0.7])
    assert covariates(made)[0] is covariates(made)[0]
    assert covariates(made)[0] is not covariates(table([0.5, 0.6, 0.7]))[0]
    known = len(posterior._known)
    del made
    gc.collect()
    assert len(posterior._known) < known


@pytest.mark.parametrize("shape", [False, True])
@pytest.mark.parametrize("deep", [0, 3, 80])
@pytest.mark.parametrize("names", [("a", "b", "c"), tuple("abcdefghijklmnop")])
def test_every_covariate_is_a_number_on_one_scale(table, shape, deep, names):
    """A category of one mask, one without any, scores of 0 and 1, with and without further features."""
    n = 60
    rng = np.random.default_rng(48)
    scores = rng.random(n)
    scores[:2] = 0, 1
    features = rng.random((n, deep)) if deep else None
    made = table(scores, [2] + [0] * (n - 1), names, features)
    if shape:
        made = made.with_features(shape=shapes(n))
    made_columns, plain = covariates(made)
    assert len(made_columns) == n
    columns = made_columns[:]
    assert columns.shape[0] == n
    assert plain == 2 + 6 * shape
    assert columns.dtype == np.float32
    assert np.isfinite(columns).all()
    spread = columns.std(axis=0)
    assert (np.isclose(spread, 1, atol=0.01) | np.isclose(spread, 0, atol=0.01)).all()
    categories = 3 if len(names) <= posterior.MANY_CATEGORIES else 0
    assert columns.shape[1] == plain + 11 + categories + min(deep, posterior.DEEP)


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_few_masks_have_covariates_too(table, n):
    made = table([0.5] * n, features=np.ones((n, 4)) if n else None)
    columns, _ = covariates(made)
    assert len(columns) == n
    assert np.isfinite(columns[:]).all()


def test_a_mask_stands_beside_the_others_of_its_image(table):
    """The same score is worth less where all others of the image are better."""
    made = table([0.5, *[0.9] * 15, 0.5, *[0.1] * 15])
    made_columns, plain = covariates(made)
    columns = made_columns[:]
    assert columns[0, :plain].tolist() == columns[16, :plain].tolist()
    assert columns[0, plain + 1] < 0 < columns[16, plain + 1]
