"""Cluster trees: every node is a slice of the leaf order, as scipy would cut the same linkage."""

import fastcluster
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster

from propagation.errors import SettingsError
from propagation.tree import (
    build_tree,
    cluster_name,
    home_clusters,
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
