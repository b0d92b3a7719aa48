"""Cluster trees: every node is a slice of the leaf order, as scipy would cut the same linkage."""

import subprocess
import sys

import faiss
import fastcluster
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, is_monotonic, is_valid_linkage

from propagation.errors import SettingsError
from propagation.features import matrix
from propagation.tree import (
    build_tree,
    cluster_name,
    home_clusters,
    micro_linkage,
    read_trees,
    tree_from_linkage,
    write_trees,
)

points = st.lists(st.integers(-50, 50), min_size=1, max_size=40)


def joined(values):
    if len(values) < 2:
        return np.empty((0, 4))
    return fastcluster.linkage(np.array(values, dtype=float)[:, None], "complete")


def grown(values):
    """A tree over rows that are not 0 … n-1, so that rows and leaves cannot be mixed up."""
    return tree_from_linkage("cell", np.arange(len(values)) * 3 + 100, joined(values))


def rows_of(tree, node):
    return tree.rows[tree.slice(node)].tolist()


@given(points)
def test_every_cluster_is_the_two_halves_that_it_was_joined_from(values):
    tree = grown(values)
    for node in range(len(tree), tree.root + 1):
        left, right = tree.halves(node)
        assert rows_of(tree, node) == rows_of(tree, left) + rows_of(tree, right)
        assert tree.sizes[node] == tree.sizes[left] + tree.sizes[right] == len(rows_of(tree, node))


@given(points)
def test_the_root_covers_every_mask_once_and_a_leaf_is_its_own(values):
    tree = grown(values)
    rows = (np.arange(len(values)) * 3 + 100).tolist()
    assert sorted(rows_of(tree, tree.root)) == rows
    assert [rows_of(tree, leaf) for leaf in range(len(tree))] == [[row] for row in rows]
    assert len(tree) == len(values)


@given(points, st.integers(0, 100))
def test_a_cut_gives_the_same_clusters_as_scipy(values, height):
    tree = grown(values)
    heights = np.concatenate([np.full(len(tree), -1.0), tree.heights])
    low = {node for node in range(tree.root + 1) if heights[node] <= height}
    covered = {half for node in low if node >= len(tree) for half in tree.halves(node)}
    ours = {frozenset(rows_of(tree, node)) for node in low - covered}
    labels = fcluster(joined(values), height, "distance") if len(values) > 1 else np.array([1])
    rows = np.arange(len(values)) * 3 + 100
    assert ours == {frozenset(rows[labels == label].tolist()) for label in set(labels.tolist())}


@given(points, st.integers(1, 12))
def test_the_home_of_a_mask_is_the_smallest_cluster_that_is_large_enough(values, least):
    tree = grown(values)
    clusters = range(tree.root + 1)
    for row, home in zip(tree.rows.tolist(), home_clusters(tree, least).tolist(), strict=True):
        around = [node for node in clusters if row in rows_of(tree, node) and tree.sizes[node] >= least]
        assert home == (min(around, key=lambda node: tree.sizes[node]) if around else tree.root)


def test_a_chain_a_thousand_deep_is_still_slices():
    n = 1000
    chain = np.array([[0, 1, 1, 2]] + [[n + step - 1, step + 1, step + 1, step + 2] for step in range(1, n - 1)])
    tree = tree_from_linkage("cell", np.arange(n), chain.astype(float))
    for step in (0, 500, n - 2):
        assert sorted(rows_of(tree, n + step)) == list(range(step + 2))
    assert (home_clusters(tree, 400) == n + 398).sum() == 400


def test_a_chain_far_deeper_than_any_recursion_is_still_slices():
    n = 200_000
    later = np.arange(1, n - 1)
    chain = np.array([[0, 1, 1, 2], *np.column_stack([n + later - 1, later + 1, later + 1, later + 2])])
    tree = tree_from_linkage("cell", np.arange(n), chain.astype(float))
    assert sorted(rows_of(tree, n + 99_999)) == list(range(100_001))
    assert (home_clusters(tree, 150_000) == n + 149_998).sum() == 150_000


def test_a_single_mask_has_no_halves():
    tree = grown([1, 2])
    with pytest.raises(IndexError, match="node 1 is a single mask"):
        tree.halves(1)


@pytest.mark.parametrize("count", [1, 2, 30])
def test_trees_are_read_as_they_were_written(tmp_path, count):
    rng = np.random.default_rng(0)
    trees = [grown(rng.random(count)), tree_from_linkage("zwölf / 2", np.array([4]), joined([1]))]
    write_trees(trees, tmp_path)
    found = read_trees(tmp_path)
    assert [tree.category for tree in found] == ["cell", "zwölf / 2"]
    for one, other in zip(trees, found, strict=True):
        for name in ("rows", "children", "heights", "start", "sizes"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_trees_lie_on_disk_and_no_trees_are_none(tmp_path):
    write_trees([grown([1, 2, 4]), grown([3, 1])], tmp_path)
    for tree in read_trees(tmp_path):
        for name in ("rows", "children", "heights", "start", "sizes"):
            assert not getattr(tree, name).flags.owndata
            assert not getattr(tree, name).flags.writeable
    empty = tmp_path / "empty"
    empty.mkdir()
    write_trees([], empty)
    assert read_trees(empty) == []


def test_trees_of_the_first_version_are_read_as_they_were_written(tmp_path):
    trees = [
        grown(np.random.default_rng(0).random(30)),
        tree_from_linkage("zwölf / 2", np.array([4]), joined([1])),
    ]
    for place, tree in enumerate(trees):
        arrays = {name: getattr(tree, name).astype(np.int64) for name in ("rows", "children", "start", "sizes")}
        np.savez(
            tmp_path / f"tree-{place:04}.npz",
            category=np.array(tree.category),
            heights=tree.heights,
            **arrays,
        )
    for one, other in zip(trees, read_trees(tmp_path), strict=True):
        assert one.category == other.category
        for name in ("rows", "children", "heights", "start", "sizes"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            assert getattr(one, name).dtype == getattr(other, name).dtype


def test_trees_keep_their_order_past_ten(tmp_path):
    names = [str(number) for number in range(12)]
    write_trees([tree_from_linkage(name, np.array([0]), joined([1])) for name in names], tmp_path)
    assert [tree.category for tree in read_trees(tmp_path)] == names


def test_a_tree_holds_the_masks_of_its_category_that_no_better_one_beat(box, detections, table):
    made = table([0.5] * 8, [0, 1, 0, 1, 0, 1, 0, 1], ("x", "y", "none"))
    made.best[2] = False
    assert sorted(build_tree(made, 0, {"score": 1.0}).rows.tolist()) == [0, 4, 6]
    assert sorted(build_tree(made, 1, {"score": 1.0}).rows.tolist()) == [1, 3, 5, 7]
    assert build_tree(made, 2, {"score": 1.0}) is None


@pytest.mark.parametrize("linkage", ["complete", "ward"])
def test_masks_alike_are_joined_before_others(table, linkage):
    made = table([0.1, 0.12, 0.9, 0.11, 0.88])
    tree = build_tree(made, 0, {"score": 1.0}, linkage)
    halves = {frozenset(rows_of(tree, half)) for half in tree.halves(tree.root)}
    assert halves == {frozenset({0, 1, 3}), frozenset({2, 4})}


def test_a_category_of_one_mask_is_a_tree_of_one(table):
    tree = build_tree(table([0.5, 0.5], [0, 1], ("x", "y")), 1, {"score": 1.0})
    assert (tree.root, rows_of(tree, 0), cluster_name(tree, 0)) == (0, [1], "y/0")


def test_an_unknown_block_is_refused(table):
    with pytest.raises(SettingsError, match="colour"):
        build_tree(table([0.5, 0.6]), 0, {"colour": 1.0})


def is_tree(linkage, n):
    """Whether a linkage matrix is scipy's, each pair in order and no parent lower than a child."""
    in_order = (linkage[:, 0] < linkage[:, 1]).all()
    return linkage.shape == (n - 1, 4) and in_order and is_valid_linkage(linkage) and is_monotonic(linkage)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 400), st.integers(1, 4), st.integers(0, 30), st.integers(0, 9))
def test_micro_clusters_join_to_a_linkage_of_scipy(n, width, values, seed):
    # few values on few columns: many points are equal, and micro-clusters stay empty
    points = np.random.default_rng(seed).integers(0, values + 1, (n, width)).astype(np.float32)
    linkage = micro_linkage(points, seed)
    assert is_tree(linkage, n)
    tree = tree_from_linkage("cell", np.arange(n), linkage)
    assert sorted(rows_of(tree, tree.root)) == list(range(n))
    assert (values == 0) <= (tree.heights == 0).all()


def test_one_point_has_nothing_to_join():
    assert micro_linkage(np.zeros((1, 3), dtype=np.float32)).shape == (0, 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 16), st.integers(0, 99))
def test_micro_clusters_of_one_point_each_make_the_exact_ward_tree(n, seed):
    points = np.random.default_rng(seed).random((n, 3), dtype=np.float32)
    np.testing.assert_allclose(micro_linkage(points), fastcluster.linkage(points, "ward"), rtol=1e-6)


def test_micro_clusters_join_as_ward_joins_their_points():
    # equal points are joined at no cost, so above them the exact tree weighs spots as we weigh centroids
    rng = np.random.default_rng(1)
    spots = rng.integers(-99, 99, (9, 2)).astype(np.float32)
    points = np.repeat(spots, rng.integers(1, 6, 9), axis=0)
    ours, exact = micro_linkage(points), fastcluster.linkage(points, "ward")
    np.testing.assert_allclose(ours[:, 2], exact[:, 2], rtol=1e-6)


@pytest.fixture
def omp_threads():
    before = faiss.omp_get_max_threads()
    yield faiss.omp_set_num_threads
    faiss.omp_set_num_threads(before)


def test_the_same_seed_gives_the_same_tree_with_any_number_of_threads(omp_threads):
    # each point twice: which of two equal means is nearer hangs on the last bit of a sum
    points = np.tile(np.random.default_rng(0).standard_normal((2000, 129), dtype=np.float32), (2, 1))
    found = []
    for threads in (1, 2, 4, 8):
        omp_threads(threads)
        found.append(micro_linkage(points, 5))
    assert all((found[0] == linkage).all() for linkage in found)
    assert (found[0] != micro_linkage(points, 6)).any()


@pytest.mark.parametrize("size", [40, 400])
def test_every_blob_apart_is_a_cluster(size):
    rng = np.random.default_rng(2)
    blob = np.repeat(np.arange(10), size)
    points = rng.normal(0, 100, (10, 8))[blob] + rng.standard_normal((len(blob), 8))
    tree = tree_from_linkage("cell", np.arange(len(blob)), micro_linkage(points.astype(np.float32)))
    whole = [blob[rows_of(tree, node)] for node in np.flatnonzero(tree.sizes == size)]
    assert sorted(found[0] for found in whole if (found == found[0]).all()) == list(range(10))


def test_a_crowd_of_equal_points_is_one_cluster_of_height_zero_and_is_joined_in_small_pieces(monkeypatch):
    sizes = []

    def counted(points, method, exact=fastcluster.linkage):
        sizes.append(len(points))
        return exact(points, method)

    monkeypatch.setattr(fastcluster, "linkage", counted)
    points = np.concatenate([np.zeros((3000, 2)), np.random.default_rng(3).normal(50, 1, (1000, 2))])
    tree = tree_from_linkage("cell", np.arange(4000), micro_linkage(points.astype(np.float32)))
    crowd = [node for node in np.flatnonzero(tree.sizes == 3000) if max(rows_of(tree, node)) < 3000]
    assert [tree.heights[node - 4000] for node in crowd] == [0]
    assert max(sizes) <= np.sqrt(4000)


def test_memory_mapped_half_floats_give_the_tree_of_the_same_numbers(tmp_path):
    values = np.random.default_rng(4).standard_normal((500, 6)).astype(np.float16)
    np.save(tmp_path / "points.npy", values)
    mapped = np.load(tmp_path / "points.npy", mmap_mode="r")
    np.testing.assert_array_equal(micro_linkage(mapped), micro_linkage(values.astype(np.float32)))


def test_a_point_that_is_not_finite_is_refused():
    points = np.zeros((300, 2), dtype=np.float32)
    points[7, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        micro_linkage(points)


@pytest.mark.parametrize(("exact_below", "same_as"), [(31, fastcluster.linkage), (30, micro_linkage)])
def test_a_category_too_large_for_the_exact_tree_gets_the_one_of_micro_clusters(table, exact_below, same_as):
    scores = np.random.default_rng(5).random(30)
    made = table(scores.tolist())
    points = matrix(made, np.arange(30), {"score": 1.0})
    expected = same_as(points, **({"method": "complete"} if same_as is fastcluster.linkage else {}))
    tree = build_tree(made, 0, {"score": 1.0}, exact_below=exact_below)
    np.testing.assert_array_equal(tree.heights, expected[:, 2])


def test_faiss_is_not_loaded_before_a_tree_needs_it():
    subprocess.run(
        [sys.executable, "-c", "import sys, propagation.tree; sys.exit('faiss' in sys.modules)"], check=True
    )
