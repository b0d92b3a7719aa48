"""Cluster trees as flat arrays: a cluster is a slice of the leaf order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastcluster
import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list

from propagation.features import matrix
from propagation.masks import MaskTable


@dataclass(frozen=True)
class ClusterTree:
    """The binary cluster tree of one category over n masks.

    Nodes 0 … n-1 are single masks, n … 2n-2 the clusters in order of height, the last one the root.
    rows: (n,) rows of the mask table in leaf order; children: (n-1, 2) nodes; heights: (n-1,);
    start, sizes: (2n-1,) the slice of ``rows`` that a node covers.
    """

    category: str
    rows: NDArray[np.int64]
    children: NDArray[np.int64]
    heights: NDArray[np.float64]
    start: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def root(self) -> int:
        return 2 * len(self) - 2

    def slice(self, node: int) -> slice:
        """Where the masks of a node are in the leaf order."""
        return slice(int(self.start[node]), int(self.start[node] + self.sizes[node]))

    def halves(self, node: int) -> tuple[int, int]:
        """The two clusters that a cluster was joined from; a single mask has none (IndexError)."""
        if node < len(self):
            raise IndexError(f"node {node} is a single mask")
        left, right = self.children[node - len(self)]
        return int(left), int(right)


def tree_from_linkage(category: str, rows: NDArray[np.int64], linkage: NDArray[np.float64]) -> ClusterTree:
    """The tree of a scipy linkage matrix, (n-1, 4), over ``rows``."""
    n = len(rows)
    children = linkage[:, :2].astype(np.int64)
    order = leaves_list(linkage) if n > 1 else np.arange(n)
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    # follow the left child down from every node at once, doubling the step
    leftmost = np.concatenate([np.arange(n), children[:, 0]])
    while (leftmost >= n).any():
        leftmost = leftmost[leftmost]
    return ClusterTree(
        category=category,
        rows=rows[order],
        children=children,
        heights=linkage[:, 2].astype(np.float64),
        start=place[leftmost],
        sizes=np.concatenate([np.ones(n, dtype=np.int64), linkage[:, 3].astype(np.int64)]),
    )


def build_tree(
    table: MaskTable, category: int, weights: Mapping[str, float], linkage: str = "complete", seed: int = 0
) -> ClusterTree | None:
    """The exact tree of a category's competing masks, or None where it has none.

    linkage: "complete" (paper, section 3.2) or "ward".
    """
    rows = np.flatnonzero(table.best & (table.category == category))
    if not len(rows):
        return None
    joined = np.empty((0, 4))
    if len(rows) > 1:
        joined = fastcluster.linkage(matrix(table, rows, weights, seed), method=linkage)
    return tree_from_linkage(table.categories[category], rows, joined)


def cluster_name(tree: ClusterTree, node: int) -> str:
    """The name of a cluster in events, regions and pages."""
    return f"{tree.category}/{node}"


def home_clusters(tree: ClusterTree, least_size: int) -> NDArray[np.int64]:
    """(n,) for each mask, in leaf order, the smallest cluster around it with at least ``least_size`` masks."""
    n = len(tree)
    parent = np.arange(2 * n - 1)
    parent[tree.children.ravel()] = np.repeat(np.arange(n, 2 * n - 1), 2)
    home: NDArray[np.int64] = np.arange(2 * n - 1)
    while ((small := tree.sizes[home] < least_size) & (home != tree.root)).any():
        home = np.where(small, parent[home], home)
    in_leaf_order = np.empty(n, dtype=np.int64)
    in_leaf_order[tree.start[:n]] = home[:n]
    return in_leaf_order


def write_trees(trees: list[ClusterTree], folder: Path) -> None:
    """Write each tree as an ``.npz`` of its arrays."""
    for place, tree in enumerate(trees):
        fields: dict[str, Any] = {name: value for name, value in vars(tree).items() if name != "category"}
        np.savez(folder / f"tree-{place:04}.npz", category=np.array(tree.category), **fields)


def read_trees(folder: Path) -> list[ClusterTree]:
    """Read what ``write_trees`` wrote."""
    trees = []
    for path in sorted(folder.glob("tree-*.npz")):
        with np.load(path) as arrays:
            fields = {name: arrays[name] for name in arrays.files if name != "category"}
            trees.append(ClusterTree(category=str(arrays["category"]), **fields))
    return trees
