"""Cluster trees as flat arrays: a cluster is a slice of the leaf order."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from propagation.features import matrix
from propagation.masks import MaskTable

NAMES = "trees.json"
EXACT_BELOW = 10_000
# k-means: points looked at for each micro-cluster, rounds over them, rows assigned at a time
SAMPLE = 64
ROUNDS = 5
CHUNK = 16_384


@dataclass(frozen=True)
class ClusterTree:
    """The binary cluster tree of one category over n masks.

    Nodes 0 … n-1 are single masks, n … 2n-2 the clusters in order of height, the last one the root.
    rows: (n,) rows of the mask table in leaf order; children: (n-1, 2) nodes; heights: (n-1,);
    start, sizes: (2n-1,) the slice of ``rows`` that a node covers. round: in which the masks were found.
    """

    category: str
    rows: NDArray[np.int32]
    children: NDArray[np.int32]
    heights: NDArray[np.float64]
    start: NDArray[np.int32]
    sizes: NDArray[np.int32]
    round: int = 1

    @property
    def name(self) -> str:
        """What the names of its clusters begin with: the category, and the round from the second on."""
        return self.category if self.round == 1 else f"{self.category}@{self.round}"

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
    from scipy.cluster.hierarchy import leaves_list  # these libraries are large, and who reads a tree needs none

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
        rows=rows[order].astype(np.int32),
        children=children.astype(np.int32),
        heights=linkage[:, 2].astype(np.float64),
        start=place[leftmost].astype(np.int32),
        sizes=np.concatenate([np.ones(n, dtype=np.int32), linkage[:, 3].astype(np.int32)]),
    )


def micro_linkage(points: NDArray[np.floating[Any]], seed: int = 0) -> NDArray[np.float64]:
    """The (n-1, 4) scipy linkage of an approximate Ward tree over (n, d) points, n ≥ 1.

    k-means makes about 4·√n micro-clusters; Ward joins the points of each, and Ward over their weighted
    centroids joins them. A cluster is never lower than a cluster within it. Time grows as n^1.5, memory as
    n beyond the points, which are read a piece at a time and so may be memory-mapped, of any float type.
    Columns should be scaled around zero. The same points and seed give the same tree, however many threads
    there are. Raises ValueError where a point is not finite.
    """
    import faiss

    n = len(points)
    # with another number of threads faiss sums in another order, so each thread here gives it only one
    with ThreadPoolExecutor(initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        groups = _micro_clusters(points, seed, pool)
        within = list(pool.map(lambda members: _ward_within(points, members), groups))
    joins = np.empty((n - 1, 4))
    roots = np.empty(len(groups), dtype=np.int64)
    done = 0
    for place, (members, (inside, _)) in enumerate(zip(groups, within, strict=True)):
        nodes = np.concatenate([members, n + done + np.arange(len(inside))])
        joins[done : done + len(inside)] = _renamed(inside, nodes)
        roots[place] = nodes[-1]
        done += len(inside)
    above = _ward_above(
        np.array([centroid for _, centroid in within]),
        np.array([len(members) for members in groups]),
        np.array([inside[-1, 2] if len(inside) else 0.0 for inside, _ in within]),
    )
    joins[done:] = _renamed(above, np.concatenate([roots, n + done + np.arange(len(above))]))
    # parents come after their children here and are no lower, so a stable sort keeps them after
    order = np.argsort(joins[:, 2], kind="stable")
    rank = np.empty(n - 1, dtype=np.int64)
    rank[order] = np.arange(n - 1)
    return _renamed(joins[order], np.concatenate([np.arange(n), n + rank]))


def _renamed(joins: NDArray[np.float64], names: NDArray[np.int64]) -> NDArray[np.float64]:
    """Joins of other nodes: node i becomes names[i]."""
    pairs = np.sort(names[joins[:, :2].astype(np.int64)], axis=1)
    return np.concatenate([pairs, joins[:, 2:]], axis=1)


def _finite(points: NDArray[np.floating[Any]], rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
    block = np.ascontiguousarray(points[rows], dtype=np.float32)
    if not np.isfinite(block).all():
        raise ValueError("a point of the tree is not finite: look for nan and infinity in the features")
    return block


def _micro_clusters(
    points: NDArray[np.floating[Any]], seed: int, pool: ThreadPoolExecutor
) -> list[NDArray[np.int64]]:
    """The rows of each micro-cluster, none empty and none larger than √n."""
    import faiss

    n, width = points.shape
    count = min(n, ceil(4 * sqrt(n)))
    rng = np.random.default_rng(seed)
    means = faiss.Kmeans(
        width,
        count,
        niter=ROUNDS,
        seed=int(rng.integers(2**31)),
        min_points_per_centroid=1,
        max_points_per_centroid=SAMPLE,
    )
    sample = np.sort(rng.choice(n, min(n, SAMPLE * count), replace=False))
    pool.submit(means.train, _finite(points, sample)).result()

    def nearest(start: int) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = means.index.search(_finite(points, slice(start, start + CHUNK)), 1)[1]
        return labels[:, 0]

    labels = np.concatenate(list(pool.map(nearest, range(0, n, CHUNK))))
    groups = []
    ends = np.cumsum(np.bincount(labels, minlength=count))
    for members in np.split(np.argsort(labels, kind="stable"), ends[:-1]):
        pieces = ceil(len(members) / sqrt(n))
        if pieces > 1:
            # many points that are alike or equal: slices along the widest column bound the work
            block = _finite(points, members)
            members = members[np.argsort(block[:, block.var(axis=0).argmax()], kind="stable")]
        groups += np.array_split(members, pieces) if pieces else []
    return groups


def _ward_within(
    points: NDArray[np.floating[Any]], members: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The exact Ward linkage of a micro-cluster, and its centroid."""
    import fastcluster

    block = _finite(points, members)
    joins = fastcluster.linkage(block, method="ward") if len(block) > 1 else np.empty((0, 4))
    return joins, block.mean(axis=0, dtype=np.float64)


def _ward_above(
    centroids: NDArray[np.float64], counts: NDArray[np.int64], floors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Ward over k centroids of ``counts`` points each, whose own clusters reach up to ``floors``.

    (k-1, 4) as scipy's, but in an order of the nearest-neighbour chain (Müllner, arXiv 1109.2378, figure 3),
    where parents come after their children and are no lower.
    """
    from scipy.spatial.distance import pdist, squareform

    k = len(counts)
    node, weight, height = np.arange(k), counts.astype(np.float64), floors.copy()
    apart = squareform(pdist(centroids, "sqeuclidean"))
    apart *= 2 / (1 / weight[:, None] + 1 / weight)
    np.fill_diagonal(apart, np.inf)
    joins = np.empty((k - 1, 4))
    chain: list[int] = []
    for step in range(k - 1):
        if not chain:
            chain.append(int(weight.argmax()))
        # on a tie the chain turns back, so that it ends
        while len(chain) < 2 or apart[chain[-1], chain[-2]] > apart[chain[-1]].min():
            chain.append(int(apart[chain[-1]].argmin()))
        gone, kept = chain.pop(), chain.pop()
        top = max(sqrt(max(apart[gone, kept], 0.0)), height[gone], height[kept])
        joins[step] = node[gone], node[kept], top, weight[gone] + weight[kept]
        # Lance and Williams; a cluster that is gone stays infinitely far
        row = (weight + weight[gone]) * apart[gone] + (weight + weight[kept]) * apart[kept]
        row = (row - weight * apart[gone, kept]) / (weight + weight[gone] + weight[kept])
        apart[kept], apart[:, kept] = row, row
        apart[gone], apart[:, gone] = np.inf, np.inf
        node[kept], weight[kept], height[kept] = k + step, weight[gone] + weight[kept], top
        weight[gone] = 0
    return joins


def build_tree(
    table: MaskTable,
    category: int,
    weights: Mapping[str, float],
    linkage: str = "complete",
    seed: int = 0,
    exact_below: int = EXACT_BELOW,
) -> ClusterTree | None:
    """The tree of a category's competing masks, or None where it has none.

    linkage: "complete" (paper, section 3.2) or "ward", exact for fewer than ``exact_below`` masks. From
    there on the tree is that of ``micro_linkage``, whatever the linkage. Raises SettingsError for an unknown
    feature block in ``weights``.
    """
    import fastcluster

    rows = np.flatnonzero(table.best & (table.category == category))
    if not len(rows):
        return None
    points = matrix(table, rows, weights, seed)
    if len(rows) >= exact_below:
        joined = micro_linkage(points, seed)
    elif len(rows) > 1:
        joined = fastcluster.linkage(points, method=linkage)
    else:
        joined = np.empty((0, 4))
    return tree_from_linkage(table.categories[category], rows, joined)


def cluster_name(tree: ClusterTree, node: int) -> str:
    """The name of a cluster in events, regions and pages."""
    return f"{tree.name}/{node}"


def home_clusters(tree: ClusterTree, least_size: int) -> NDArray[np.int64]:
    """(n,) for each mask, in leaf order, the smallest cluster around it with at least ``least_size`` masks."""
    n = len(tree)
    parent = np.arange(2 * n - 1)
    parent[tree.children.ravel()] = np.repeat(np.arange(n, 2 * n - 1), 2)
    home: NDArray[np.int64] = np.where(tree.sizes < least_size, parent, np.arange(2 * n - 1))
    # follow the parents up from every node at once, doubling the step
    while (home != (further := home[home])).any():
        home = further
    in_leaf_order = np.empty(n, dtype=np.int64)
    in_leaf_order[tree.start[:n]] = home[:n]
    return in_leaf_order


def write_trees(trees: list[ClusterTree], folder: Path) -> None:
    """Write ``trees.json``, and each array, of all trees in turn, as an ``.npy`` that can be memory-mapped."""
    sizes = [[tree.category, len(tree), tree.round] for tree in trees]
    (folder / NAMES).write_text(json.dumps(sizes))
    for name in _LENGTHS if trees else ():
        np.save(folder / f"{name}.npy", np.concatenate([getattr(tree, name) for tree in trees]))


def read_trees(folder: Path) -> list[ClusterTree]:
    """Read what ``write_trees`` wrote, or an earlier version of it; what is an ``.npy`` stays on disk."""
    if not (folder / NAMES).exists():
        return [_read_npz(path) for path in sorted(folder.glob("tree-*.npz"))]
    sizes = json.loads((folder / NAMES).read_text())
    arrays: dict[str, list[NDArray[Any]]] = {}
    for name, length in _LENGTHS.items() if sizes else ():
        ends = np.cumsum([length(size) for _, size, *_ in sizes])
        arrays[name] = np.split(np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")), ends[:-1])
    return [
        ClusterTree(category, **{name: parts[place] for name, parts in arrays.items()}, round=sum(rest) or 1)
        for place, (category, _, *rest) in enumerate(sizes)
    ]


_LENGTHS: Mapping[str, Callable[[int], int]] = {
    "rows": lambda n: n,
    "children": lambda n: n - 1,
    "heights": lambda n: n - 1,
    "start": lambda n: 2 * n - 1,
    "sizes": lambda n: 2 * n - 1,
}


def _read_npz(path: Path) -> ClusterTree:
    """A tree of the first version, which had an ``.npz`` a tree."""
    with np.load(path) as arrays:
        return ClusterTree(
            category=str(arrays["category"]),
            heights=arrays["heights"],
            **{name: arrays[name].astype(np.int32) for name in _LENGTHS if name != "heights"},
        )
