"""The nodes of a trie that a model keeps an embedding of: those with siblings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tigerrec.tokenizers.trie import build_trie

NO_NODE = -1


@dataclass(frozen=True)
class Families:
    """The children of each node of a trie that has several, one family after the other in the order of depth and
    prefix; a child is a row. A child without siblings has no row: that it follows is certain.

    Attributes:
        start: int64 (families + 1,): the rows of family f are `start[f]` .. `start[f + 1] - 1`.
        token: int64 (rows,): the last token of a child's prefix.
        of_item: int64 (I, T): the family from which each token of an item is chosen, -1 where nothing else follows.
        row_of_item: int64 (I, T): the row of each prefix of an item, -1 where it has none.
    """

    start: np.ndarray
    token: np.ndarray
    of_item: np.ndarray
    row_of_item: np.ndarray

    @staticmethod
    def of(tokens: np.ndarray) -> Families:
        """The families of the trie of some items' tokens, int64 (I, T)."""
        trie = build_trie(tokens, np.zeros(len(tokens), np.int64))
        path = np.concatenate([np.zeros((1, len(tokens)), np.int64), trie.path.numpy()])
        start, token = [np.zeros(1, np.int64)], []
        of_item, row_of_item = np.full(tokens.shape, -1), np.full(tokens.shape, NO_NODE)
        n_families = n_rows = 0
        for level in range(trie.n_levels):
            sizes = trie.first_child[level].diff().numpy()
            several = sizes > 1
            family = np.where(several, n_families + np.cumsum(several) - 1, -1)
            of_child = np.repeat(several, sizes)
            row = np.where(of_child, n_rows + np.cumsum(of_child) - 1, NO_NODE)
            of_item[:, level], row_of_item[:, level] = family[path[level]], row[path[level + 1]]
            start.append(n_rows + np.cumsum(sizes[several]))
            token.append(trie.token[level].numpy()[of_child])
            n_families, n_rows = n_families + int(several.sum()), n_rows + int(of_child.sum())
        return Families(np.concatenate(start), np.concatenate(token), of_item, row_of_item)


def rows_by_prefix(tokens: np.ndarray, row_of_item: np.ndarray) -> np.ndarray:
    """The row of each prefix of these and of further items, int64 (n, T): that of the first item with the prefix, -1
    where none of these has it.

    Args:
        tokens: int64 (n, T), of these items and the further ones after them.
        row_of_item: int64 (I, T), of these.
    """
    rows = np.full(tokens.shape, NO_NODE)
    for level in range(tokens.shape[1]):
        _, first, group = np.unique(tokens[:, : level + 1], axis=0, return_index=True, return_inverse=True)
        first = first[group.reshape(-1)]
        known = first < len(row_of_item)
        rows[known, level] = row_of_item[first[known], level]
    return rows
