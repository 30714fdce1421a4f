"""Which tokens may follow a prefix, as tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Trie:
    """The prefix tree of all Semantic IDs, a compressed row per node.

    Nodes of one depth are numbered from 0 in lexicographic order of their prefixes, so the children of a node are
    neighbours. Depth 0 is the root, a node of depth T a leaf: a whole Semantic ID. Its children, at depth T + 1 and
    without a token, are the items that have it: one, or several, the most popular first, where items share ids.

    Attributes:
        first_child: for each depth 0..T int64 (nodes + 1,): the children of node n, one level deeper, are
            `first_child[n]` .. `first_child[n + 1] - 1`.
        token: for each depth 1..T int64 (nodes,): the last token of a node's prefix.
        n_items_below: for each depth 1..T + 1 int64 (nodes,): how many items that may be found lie below a node, or
            are it: all of them but for a trie `within` some.
        path: int64 (T + 1, I): the node of each item at depths 1..T + 1.
        leaf_item: int64 (I,): the item index at each node of depth T + 1.
    """

    first_child: tuple[Tensor, ...]
    token: tuple[Tensor, ...]
    n_items_below: tuple[Tensor, ...]
    path: Tensor
    leaf_item: Tensor

    @property
    def n_levels(self) -> int:
        """T, the number of tokens an item."""
        return len(self.token)

    @cached_property
    def max_children(self) -> tuple[int, ...]:
        """The largest number of children of a node, for each depth 0..T."""
        return tuple(int(first.diff().max()) for first in self.first_child)

    def children(self, depth: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The children of nodes of one depth, int64 (...): their numbers at depth + 1, padded to the largest family of
        that depth, int64 (..., max_children), and which of them exist, bool of the same shape."""
        first = self.first_child[depth][nodes].unsqueeze(-1)
        end = self.first_child[depth][nodes + 1].unsqueeze(-1)
        candidates = first + torch.arange(self.max_children[depth], device=nodes.device)
        exists = candidates < end
        return torch.where(exists, candidates, 0), exists

    def within(self, allowed: Tensor) -> Trie:
        """The same trie, in which items other than those allowed, bool (I,), may not be found."""
        below = [
            torch.zeros_like(counts).index_add_(0, path, allowed.to(counts.dtype))
            for path, counts in zip(self.path, self.n_items_below, strict=True)
        ]
        return replace(self, n_items_below=tuple(below))

    @cached_property
    def allowed(self) -> Tensor | None:
        """Which items may be found, bool (I,); None: all."""
        counts = self.n_items_below[-1]
        return None if bool(counts.all()) else counts[self.path[-1]] > 0

    def closed(self, rows: Tensor, items: Tensor) -> list[Tensor]:
        """The nodes below which a row's forbidden items are all that may be found: for each depth 1..T + 1 their sorted
        keys `row * nodes + node`.

        Args:
            rows: who forbids, int64 (n,).
            items: what, int64 (n,); a pair may occur more than once.
        """
        n_items = len(self.leaf_item)
        pairs = torch.unique(rows * n_items + items)
        rows, items = pairs // n_items, pairs % n_items
        if self.allowed is not None:
            rows, items = rows[self.allowed[items]], items[self.allowed[items]]
        closed = []
        for path, below in zip(self.path, self.n_items_below, strict=True):
            keys, counts = torch.unique(rows * len(below) + path[items], return_counts=True)
            closed.append(keys[counts == below[keys % len(below)]])
        return closed

    def is_closed(self, depth: int, closed: list[Tensor], rows: Tensor, nodes: Tensor) -> Tensor:
        """Whether nodes of a depth (1..T + 1) are among a row's closed ones; `rows` broadcasts against `nodes`."""
        closed_keys = closed[depth - 1]
        if not len(closed_keys):
            return torch.zeros_like(nodes, dtype=torch.bool)
        keys = rows * len(self.n_items_below[depth - 1]) + nodes
        places = torch.searchsorted(closed_keys, keys).clamp_(max=len(closed_keys) - 1)
        return closed_keys[places] == keys

    def to(self, device: torch.device | str) -> Trie:
        """The same trie on another device."""
        first_child, token, n_items_below = (
            tuple(tensor.to(device) for tensor in tensors)
            for tensors in (self.first_child, self.token, self.n_items_below)
        )
        return Trie(first_child, token, n_items_below, self.path.to(device), self.leaf_item.to(device))


def build_trie(tokens: np.ndarray, popularity: np.ndarray | None = None) -> Trie:
    """The trie of a catalogue.

    Args:
        tokens: int (I, T), row = item index; rows unique unless popularity is given.
        popularity: int (I,): orders items with the same tokens, the largest first, ties by item index.

    Raises:
        ValueError: two items have the same tokens and no popularity is given, or there is no item.
    """
    n_items, n_levels = tokens.shape
    if n_items == 0:
        raise ValueError("a trie needs at least one item")
    order = np.lexsort(tokens.T[::-1] if popularity is None else (-popularity, *tokens.T[::-1]))
    ordered = tokens[order].astype(np.int64)
    differs = ordered[1:] != ordered[:-1]
    starts_node = np.concatenate([np.ones((1, n_levels), bool), np.logical_or.accumulate(differs, axis=1)])
    if popularity is None and not starts_node[:, -1].all():
        raise ValueError("two items have the same tokens")
    node_of_row = np.cumsum(starts_node, axis=0) - 1
    first_child, token, n_items_below = [], [], []
    parent_starts = np.zeros(1, np.int64)
    for level in range(n_levels):
        starts = np.flatnonzero(starts_node[:, level])
        first_child.append(np.append(np.searchsorted(starts, parent_starts), len(starts)))
        token.append(ordered[starts, level])
        n_items_below.append(np.diff(np.append(starts, n_items)))
        parent_starts = starts
    first_child.append(np.append(parent_starts, n_items))
    n_items_below.append(np.ones(n_items, np.int64))
    path = np.empty((n_levels + 1, n_items), np.int64)
    path[:, order] = np.column_stack([node_of_row, np.arange(n_items)]).T
    by_depth = [tuple(map(torch.from_numpy, arrays)) for arrays in (first_child, token, n_items_below)]
    return Trie(by_depth[0], by_depth[1], by_depth[2], torch.from_numpy(path), torch.from_numpy(order.astype(np.int64)))
