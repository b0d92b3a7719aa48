"""Features: the numbers of known shapes, and blocks whose weight is their share of the distance."""

import numpy as np
import pytest

from propagation.errors import SettingsError
from propagation.features import SHAPE, matrix, shape_block
from propagation.masks import build_table

SIDE = 64


def painted(inside):
    y, x = np.mgrid[:SIDE, :SIDE]
    return inside(x - 32, y - 32)


SHAPES = {
    "square": lambda x, y: (abs(x) <= 10) & (abs(y) <= 10),
    "bar": lambda x, y: (abs(x) <= 20) & (abs(y) <= 2),
    "disc": lambda x, y: x**2 + y**2 <= 20**2,
    "ring": lambda x, y: (x**2 + y**2 <= 20**2) & (x**2 + y**2 > 10**2),
    "two": lambda x, y: (abs(y) <= 5) & (abs(abs(x) - 15) <= 5),
    "cross": lambda x, y: ((abs(x) <= 3) & (abs(y) <= 20)) | ((abs(y) <= 3) & (abs(x) <= 20)),
    "corners": lambda x, y: (
        ((x >= 0) & (y >= 0) & (x < 4) & (y < 4)) | ((x < 0) & (y < 0) & (x >= -4) & (y >= -4))
    ),
    "pixel": lambda x, y: (x == 0) & (y == 0),
    "edge": lambda x, y: x == -32,
    "all": lambda x, y: x == x,
}


@pytest.fixture(scope="module")
def shapes(encode, detections):
    """Name to {number: value} of each drawn shape."""
    found = []
    for place, inside in enumerate(SHAPES.values()):
        found.append(detections([encode(painted(inside))], [place / 16]))
    block = shape_block(build_table(list(SHAPES), found, ["x"], "m"))
    assert np.isfinite(block).all()
    return {name: dict(zip(SHAPE, row.tolist(), strict=True)) for name, row in zip(SHAPES, block, strict=True)}


def test_the_score_and_area_are_those_of_the_mask(shapes):
    assert shapes["bar"]["score"] == pytest.approx(1 / 16)
    assert shapes["square"]["log_area"] == pytest.approx(np.log(21 * 21))


def test_a_square_fills_its_box_and_hull(shapes):
    square = shapes["square"]
    assert square["log_aspect"] == pytest.approx(0)
    assert square["extent"] == pytest.approx(1)
    assert square["solidity"] == pytest.approx(1)
    assert square["circularity"] == pytest.approx(np.pi / 4, abs=0.05)


def test_a_bar_is_longer_than_high(shapes):
    assert shapes["bar"]["log_aspect"] == pytest.approx(np.log(41 / 5))
    assert shapes["bar"]["circularity"] < 0.5


def test_a_disc_is_the_roundest(shapes):
    disc = shapes["disc"]
    assert disc["extent"] == pytest.approx(np.pi * 20**2 / 41**2, rel=0.01)
    assert disc["solidity"] > 0.95
    for other in ("bar", "ring", "two", "cross"):
        assert disc["circularity"] > shapes[other]["circularity"]


def test_a_cross_leaves_most_of_its_hull_empty(shapes):
    assert shapes["cross"]["solidity"] < 0.5


@pytest.mark.parametrize(
    ("name", "number"),
    [("square", 1), ("disc", 1), ("ring", 0), ("two", 2), ("pixel", 1), ("edge", 1), ("all", 1)],
)
def test_the_euler_number_is_parts_minus_holes(shapes, name, number):
    assert shapes[name]["euler_number"] == number


@pytest.mark.parametrize("name", SHAPES)
def test_shares_are_shares(shapes, name):
    for number in ("extent", "solidity", "circularity"):
        assert 0 < shapes[name][number] <= 1


def test_a_table_without_masks_has_an_empty_block(detections):
    block = shape_block(build_table(["a.png"], [detections([], [])], ["x"], "m"))
    assert block.shape == (0, len(SHAPE))


@pytest.fixture(scope="module")
def blocks(table):
    """A table of 80 masks with blocks of several widths."""
    rng = np.random.default_rng(3)
    made = table(rng.random(80))
    return made.with_features(
        narrow=rng.normal(5, 100, (80, 3)).astype(np.float32),
        middle=rng.normal(0, 0.01, (80, 20)).astype(np.float16),
        wide=rng.normal(0, 1, (80, 200)).astype(np.float32),
        flat=np.full((80, 4), 7, dtype=np.float32),
        half_flat=np.column_stack([rng.normal(size=80), np.full(80, 1e6)]).astype(np.float32),
    )


def spread(values):
    """The mean squared distance between two rows, halved."""
    return float(values.astype(float).var(axis=0).sum())


def test_a_weight_is_the_share_of_the_squared_distance(blocks):
    rows = np.arange(80)
    weights = {"score": 1.0, "narrow": 2.0, "middle": 0.5, "wide": 3.0}
    values = matrix(blocks, rows, weights)
    ends = np.cumsum([20, 3, 1, 64])  # by name
    parts = np.split(values, ends[:-1], axis=1)
    shares = dict(zip(sorted(weights), [spread(part) for part in parts], strict=True))
    assert shares == pytest.approx(weights, rel=1e-3)


def test_a_wide_block_is_reduced_to_its_principal_components(blocks):
    assert matrix(blocks, np.arange(80), {"wide": 1.0}).shape == (80, 64)


@pytest.mark.parametrize("count", [1, 2, 30])
def test_few_masks_make_a_finite_matrix(blocks, count):
    values = matrix(blocks, np.arange(count), {"wide": 1.0, "score": 1.0, "narrow": 1.0})
    assert len(values) == count
    assert np.isfinite(values).all()
    assert spread(values) <= 3.001


def test_constant_columns_are_harmless(blocks):
    values = matrix(blocks, np.arange(80), {"flat": 1.0, "score": 1.0, "half_flat": 1.0})
    assert np.isfinite(values).all()
    # the flat block adds nothing, of the half flat one the other column counts
    assert spread(values) == pytest.approx(1.5, rel=1e-3)


def test_only_the_rows_asked_for_scale_a_block(blocks):
    values = matrix(blocks, np.arange(10, 30), {"narrow": 1.0})
    assert values.shape == (20, 3)
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-5)


def test_a_block_without_weight_is_left_out(blocks):
    rows = np.arange(80)
    one, other = matrix(blocks, rows, {"score": 1.0, "wide": 0.0}), matrix(blocks, rows, {"score": 1.0})
    np.testing.assert_array_equal(one, other)


def test_the_same_seed_gives_the_same_matrix(blocks):
    one, other = (matrix(blocks, np.arange(80), {"wide": 1.0}, seed=5) for _ in range(2))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("weights", "said"),
    [({"colour": 1.0, "score": 1.0}, "colour"), ({}, "is chosen"), ({"score": 0.0}, "is chosen")],
)
def test_an_unknown_block_or_none_at_all_is_refused(blocks, weights, said):
    with pytest.raises(SettingsError, match=rf"{said}.*narrow"):
        matrix(blocks, np.arange(80), weights)
