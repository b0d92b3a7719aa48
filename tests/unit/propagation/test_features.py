"""Features: the numbers of known shapes, and blocks whose weight is their share of the distance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.distance import pdist

from propagation import features
from propagation.errors import SettingsError
from propagation.features import (
    SETS,
    SHAPE,
    leading,
    low_resolution_block,
    mask_blocks,
    matrix,
    random_block,
    shape_block,
)
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
def drawn(encode, detections):
    """The table of the drawn shapes, a row each."""
    found = [detections([encode(painted(inside))], [0.5]) for inside in SHAPES.values()]
    return build_table(list(SHAPES), found, ["x"], "m")


@pytest.fixture(scope="module")
def shapes(drawn):
    """Name to {number: value} of each drawn shape."""
    block = shape_block(drawn)
    assert np.isfinite(block).all()
    return {name: dict(zip(SHAPE, row.tolist(), strict=True)) for name, row in zip(SHAPES, block, strict=True)}


def test_the_area_is_that_of_the_mask(shapes):
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


def low_resolution(detections, encode, mask):
    found = detections([encode(mask)], [0.5])
    return low_resolution_block(build_table(["a.png"], [found], ["x"], "m")).astype(float).reshape(14, 14)


@pytest.mark.parametrize("name", ["square", "bar", "pixel", "edge", "all"])
def test_a_full_box_is_full_at_any_resolution(drawn, name):
    assert (low_resolution_block(drawn)[list(SHAPES).index(name)] == 1).all()


def test_the_low_resolution_mask_is_upright_and_fills_its_box(detections, encode):
    mask = np.zeros((SIDE, SIDE))
    mask[20:48, 7:21] = 1  # 28 high, 14 wide
    mask[20:34, 7:14] = 0  # less its upper left quarter
    expected = np.ones((14, 14))
    expected[:7, :7] = 0
    np.testing.assert_array_equal(low_resolution(detections, encode, mask), expected)


@settings(max_examples=50, deadline=None)
@given(
    mask=arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.booleans()).filter(
        lambda mask: mask.any()
    )
)
def test_a_low_resolution_pixel_is_the_share_of_its_part_of_the_box(detections, encode, mask):
    crop = mask[np.ix_(*(slice_of(mask.any(axis=axis)) for axis in (1, 0)))]
    exact = crop.repeat(14, 0).repeat(14, 1).reshape(14, crop.shape[0], 14, crop.shape[1]).mean(axis=(1, 3))
    np.testing.assert_allclose(low_resolution(detections, encode, mask), exact, atol=1e-3)


def slice_of(used):
    """From the first True to the last."""
    places = np.flatnonzero(used)
    return np.arange(places[0], places[-1] + 1)


def test_the_blocks_of_masks_come_in_one_pass(drawn):
    blocks = mask_blocks(drawn)
    assert blocks.keys() == {"shape", "mask"}
    np.testing.assert_array_equal(blocks["shape"], shape_block(drawn))
    np.testing.assert_array_equal(blocks["mask"], low_resolution_block(drawn))
    assert blocks["mask"].dtype == np.float16


def test_a_table_without_masks_has_empty_blocks(detections):
    table = build_table(["a.png"], [detections([], [])], ["x"], "m")
    assert shape_block(table).shape == (0, len(SHAPE))
    assert low_resolution_block(table).shape == (0, 196)
    assert {name: block.shape for name, block in mask_blocks(table).items()} == {"shape": (0, 6), "mask": (0, 196)}


def test_random_features_follow_their_seed():
    assert random_block(5, 0).shape == (5, 16)
    np.testing.assert_array_equal(random_block(5, 1), random_block(5, 1))
    assert (random_block(5, 1) != random_block(5, 2)).all()


# sets


@pytest.fixture(scope="module")
def shown(table):
    """A table with every block that is stored."""
    made = table(np.linspace(0, 1, 80), features=np.random.default_rng(0).normal(size=(80, 100)))
    return made.with_features(**mask_blocks(made))


@pytest.mark.parametrize(
    ("name", "width"),
    [("random", 16), ("score", 1), ("shape", 6), ("mask", 64), ("deep", 64), ("deep+score", 65)],
)
def test_a_set_makes_a_matrix_of_its_blocks(shown, name, width):
    values = matrix(shown, np.arange(80), SETS[name])
    assert values.shape == (80, width)
    assert np.isfinite(values).all()


def test_every_set_is_known():
    assert list(SETS) == ["random", "score", "shape", "mask", "deep", "deep+score"]


def test_the_shape_does_not_tell_the_score(shown):
    assert not matrix(shown, np.arange(80), SETS["shape"]).any()  # the same square 80 times


# the matrix


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


@pytest.mark.parametrize("reduce", ["pca", "projection"])
def test_a_wide_block_is_reduced(blocks, reduce):
    values = matrix(blocks, np.arange(80), {"wide": 2.0}, reduce=reduce)
    assert values.shape == (80, 64)
    assert spread(values) == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize("reduce", ["pca", "projection"])
def test_a_reduced_block_keeps_distances(table, reduce):
    rng = np.random.default_rng(4)
    deep = rng.normal(size=(80, 10)) @ rng.normal(size=(10, 300))
    whole = pdist((deep - deep.mean(axis=0)) / deep.std(axis=0)) / np.sqrt(300)
    kept = pdist(matrix(table(np.zeros(80), features=deep), np.arange(80), {"deep": 1.0}, reduce=reduce))
    ratio = kept / whole
    assert abs(ratio - 1).max() < {"pca": 0.01, "projection": 0.5}[reduce]
    assert abs(np.median(ratio) - 1) < 0.1


def test_principal_components_of_noise_in_few_dimensions_stay_small(table):
    """Components without variance are not blown up to unit variance."""
    rng = np.random.default_rng(5)
    flat = np.zeros((80, 100), dtype=np.float32)
    flat[:, :] = rng.normal(size=(80, 1))
    values = matrix(table(np.zeros(80)).with_features(flat=flat), np.arange(80), {"flat": 1.0})
    assert values[:, 0].var() == pytest.approx(1, rel=1e-3)
    assert abs(values[:, 1:]).max() < 1e-3


@pytest.mark.parametrize("reduce", ["pca", "projection"])
def test_the_size_of_the_pieces_does_not_matter(blocks, reduce, monkeypatch):
    weights = {"wide": 1.0, "middle": 1.0, "half_flat": 1.0}
    whole = matrix(blocks, np.arange(80), weights, reduce=reduce)
    monkeypatch.setattr(features, "ROWS_AT_ONCE", 7)
    np.testing.assert_allclose(matrix(blocks, np.arange(80), weights, reduce=reduce), whole, atol=1e-5)


def test_a_reduction_learned_from_some_rows_fits_the_others(table, monkeypatch):
    rng = np.random.default_rng(6)
    deep = rng.normal(size=(400, 8)) @ rng.normal(size=(8, 100))
    made = table(np.zeros(400), features=deep)
    whole = pdist(matrix(made, np.arange(400), {"deep": 1.0}))
    monkeypatch.setattr(features, "FITTED_ON", 100)
    one, other = (matrix(made, np.arange(400), {"deep": 1.0}, seed=2) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(pdist(one), whole, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("block", ["wide", "middle", "half_flat"])
def test_leading_columns_are_those_of_the_matrix_but_for_scale_and_sign(blocks, block):
    columns = leading(blocks.features[block], 3)
    whole = matrix(blocks, np.arange(80), {block: 1.0})[:, :3]
    assert columns.shape == whole.shape
    for one, other in zip(columns.T, whole.T, strict=True):
        if other.std() > 1e-3 * whole.std():
            assert abs(np.corrcoef(one, other)[0, 1]) > 0.999


def test_leading_columns_of_narrow_or_few_rows_are_the_columns_themselves():
    rng = np.random.default_rng(8)
    for shape in ((80, 5), (30, 100), (2, 3)):
        block = rng.normal(3, 2, shape)
        expected = (block - block.mean(axis=0)) / block.std(axis=0)
        np.testing.assert_allclose(leading(block, 4), expected[:, :4], atol=1e-5)
    assert leading(np.ones((9, 3), dtype=np.float16), 8).tolist() == [[0.0] * 3] * 9


def test_leading_columns_learned_from_some_rows_and_in_pieces_are_the_same(monkeypatch):
    rng = np.random.default_rng(9)
    block = rng.normal(size=(400, 3)) * [3, 2, 1] @ rng.normal(size=(3, 100))
    whole = leading(block, 2)
    np.testing.assert_array_equal(leading(block, 2), whole)
    monkeypatch.setattr(features, "VALUES_AT_ONCE", 1700)
    np.testing.assert_allclose(leading(block, 2), whole, atol=1e-4)
    monkeypatch.setattr(features, "FITTED_ON", 200)
    for one, other in zip(leading(block, 2).T, whole.T, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.98


def test_half_precision_numbers_do_not_overflow(table):
    rng = np.random.default_rng(7)
    huge = rng.uniform(-60000, 60000, (80, 100)).astype(np.float16)
    made = table(np.zeros(80)).with_features(huge=huge, few=huge[:, :5])
    values = matrix(made, np.arange(80), {"huge": 1.0, "few": 1.0})
    assert spread(values) == pytest.approx(2.0, rel=1e-3)


@settings(max_examples=50, deadline=None)
@given(
    block=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 70), st.sampled_from([1, 3, 70])),
        elements=st.floats(-1e6, 1e6, width=32),
    ),
    reduce=st.sampled_from(["pca", "projection"]),
)
def test_any_numbers_make_a_finite_matrix_of_at_most_their_weight(table, block, reduce):
    made = table(np.zeros(len(block))).with_features(any=block)
    values = matrix(made, np.arange(len(block)), {"any": 1.0}, reduce=reduce)
    assert len(values) == len(block)
    assert np.isfinite(values).all()
    assert spread(values) <= 1.001


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


@settings(max_examples=50, deadline=None)
@given(value=st.floats(-(2.0**100), 2.0**100, width=32), count=st.integers(2, 100))
def test_a_constant_block_is_nothing_whatever_its_value(table, value, count):
    flat = np.full((count, 3), value, dtype=np.float32)
    flat[::2] = np.nextafter(flat[::2], np.float32(np.inf))  # up to rounding
    made = table(np.zeros(count)).with_features(flat=flat)
    assert not matrix(made, np.arange(count), {"flat": 1.0}).any()


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


@pytest.mark.parametrize("weights", [{"wide": 1.0}, {"random": 1.0}])
def test_the_seed_draws_projections_and_random_features(blocks, weights):
    one, again, other = (matrix(blocks, np.arange(80), weights, seed, "projection") for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_rows_of_random_features_stay_with_their_masks(blocks):
    some = np.array([3, 40, 41, 79])
    whole = random_block(80, 0)[some]
    np.testing.assert_allclose(
        matrix(blocks, some, {"random": 16.0}), (whole - whole.mean(axis=0)) / whole.std(axis=0), atol=1e-5
    )


@pytest.mark.parametrize(
    ("weights", "said"),
    [({"colour": 1.0, "score": 1.0}, "colour"), ({}, "is chosen"), ({"score": 0.0}, "is chosen")],
)
def test_an_unknown_block_or_none_at_all_is_refused(blocks, weights, said):
    with pytest.raises(SettingsError, match=rf"{said}.*narrow"):
        matrix(blocks, np.arange(80), weights)
