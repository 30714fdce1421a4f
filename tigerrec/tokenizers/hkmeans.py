"""Hierarchical k-means: the children of a node cluster only the items of that node (DSI: Tay et al. 2022, arXiv
2202.06991, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from tigerrec.config import AtLeastOne, options
from tigerrec.runtime.seeds import derived_seed
from tigerrec.tokenizers.base import Codes, State
from tigerrec.tokenizers.quantizer.codebooks import AtLeastTwo, EqualLevels, fit_codebook

BLOCK = 64


def child_distances(
    rows: np.ndarray, nodes: np.ndarray, centroids: np.ndarray, offsets: np.ndarray, size: int
) -> np.ndarray:
    """Squared distances, float64 (n, `size`), of rows (n, D) to the children of their nodes (n,); inf where a node has
    no such child. `centroids` (M, D) are the children of all nodes, one node after the other; those of node i are at
    `offsets[i]` to `offsets[i + 1]`."""
    distances = np.full((len(rows), size), np.inf)
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        children = offsets[nodes[block], None] + np.arange(size)
        row, child = np.nonzero(children < offsets[nodes[block] + 1, None])
        gaps = rows[block].astype(np.float64)[row] - centroids[children[row, child]]
        distances[block][row, child] = np.square(gaps).sum(axis=1)
    return distances


@options
class HierarchicalKMeans(EqualLevels):
    """A tree of k-means centroids, in which a node has at most `codebook_size` children: a Semantic ID is the path from
    the root to a leaf, so the meaning of a code depends on the codes before it."""

    family: ClassVar[str] = "hkmeans"
    codebook_size: AtLeastTwo = 32
    iterations: AtLeastOne = 50

    def fit(self, vectors: np.ndarray, *, seed: int, extra: Mapping[str, np.ndarray]) -> tuple[State, Codes]:
        """Grow the tree level by level; a node with no more different vectors than codes gives each its own. The state
        is `centroids_<level>` float32 (M, D) and `offsets_<level>` int64 (N + 1,), see `child_distances`."""
        state: State = {}
        codes = np.empty((len(vectors), self.levels), dtype=np.int32)
        nodes, count = np.zeros(len(vectors), dtype=np.int64), 1
        for level in range(self.levels):
            grown, offsets = [], np.zeros(count + 1, dtype=np.int64)
            order = np.argsort(nodes, kind="stable")
            for node, members in enumerate(np.split(order, np.searchsorted(nodes[order], np.arange(1, count)))):
                rows, node_seed = vectors[members], derived_seed(seed, "node", level, node)
                centroids = fit_codebook(rows, self.codebook_size, self.iterations, node_seed)
                root, whole = np.zeros(len(members), dtype=np.int64), np.array([0, len(centroids)])
                chosen = child_distances(rows, root, centroids, whole, self.codebook_size).argmin(axis=1)
                used, codes[members, level] = np.unique(chosen, return_inverse=True)
                grown.append(centroids[used])
                offsets[node + 1] = offsets[node] + len(used)
            nodes, count = offsets[nodes] + codes[:, level], int(offsets[-1])
            state |= {f"centroids_{level}": np.concatenate(grown), f"offsets_{level}": offsets}
        return state, codes

    def _nodes(self, state: State, codes: Codes) -> np.ndarray:
        """The node, int64 (n,), that codes (n, l) lead to, counted among all nodes of its level."""
        nodes = np.zeros(len(codes), dtype=np.int64)
        for level in range(codes.shape[1]):
            nodes = state[f"offsets_{level}"][nodes] + codes[:, level]
        return nodes

    def encode(self, state: State, vectors: np.ndarray) -> Codes:
        """Codes, int32 (n, L), from the root to a leaf, at each node the child with the nearest centroid."""
        codes = np.empty((len(vectors), 0), dtype=np.int32)
        for _ in range(self.levels):
            codes = np.column_stack([codes, self.distances(state, vectors, codes).argmin(axis=1).astype(np.int32)])
        return codes

    def decode(self, state: State, codes: Codes) -> np.ndarray:
        """Vectors, float64 (n, D): the centroids of the leaves."""
        return state[f"centroids_{self.levels - 1}"][self._nodes(state, codes)].astype(np.float64)

    def distances(self, state: State, vectors: np.ndarray, codes: Codes) -> np.ndarray:
        """Squared distances, float64 (n, `codebook_size`), of vectors (n, D) to the children of the node that codes (n,
        l) lead to; inf for codes without a child."""
        nodes, level = self._nodes(state, codes), codes.shape[1]
        centroids, offsets = state[f"centroids_{level}"], state[f"offsets_{level}"]
        return child_distances(vectors, nodes, centroids, offsets, self.codebook_size)
