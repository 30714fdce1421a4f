"""The tensor trie against a dict of sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tigerrec.trie import build_trie


def random_tokens(n_items: int, n_levels: int, size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.unique(rng.integers(0, size, (n_items, n_levels)), axis=0)
    return rng.permutation(rows) + 1 + np.arange(n_levels) * size


@pytest.mark.parametrize(("n_items", "n_levels", "size"), [(200, 4, 6), (50, 1, 100), (300, 6, 3), (1, 3, 5)])
def test_children_equal_a_dict_of_sets(n_items, n_levels, size):
    tokens = random_tokens(n_items, n_levels, size, seed=n_items)
    children: dict[tuple[int, ...], set[int]] = {}
    for row in tokens.tolist():
        for level in range(n_levels):
            children.setdefault(tuple(row[:level]), set()).add(row[level])
    trie = build_trie(tokens)
    prefixes: list[tuple[int, ...]] = [()]
    for depth in range(n_levels):
        nodes, exists = trie.children(depth, torch.arange(len(prefixes)))
        found = [trie.token[depth][row[there]].tolist() for row, there in zip(nodes, exists, strict=True)]
        assert [set(row) for row in found] == [children[prefix] for prefix in prefixes]
        assert all(len(row) == len(set(row)) for row in found)
        prefixes = [(*prefix, token) for prefix, row in zip(prefixes, found, strict=True) for token in row]
    assert prefixes == [tuple(tokens[item]) for item in trie.leaf_item.tolist()]


def test_paths_lead_to_the_items():
    tokens = random_tokens(100, 3, 5, seed=4)
    trie = build_trie(tokens)
    assert (trie.leaf_item[trie.path[-1]] == torch.arange(len(tokens))).all()
    for level in range(3):
        assert (trie.token[level][trie.path[level]].numpy() == tokens[:, level]).all()


def test_a_node_is_closed_when_everything_below_it_is_seen():
    tokens = random_tokens(80, 3, 4, seed=5)
    rng = np.random.default_rng(6)
    seen = [rng.permutation(len(tokens))[: rng.integers(0, len(tokens))] for _ in range(10)]
    trie = build_trie(tokens)
    rows = torch.from_numpy(np.repeat(np.arange(10), [len(items) for items in seen]))
    items = torch.from_numpy(np.concatenate(seen))
    closed = trie.closed(torch.cat([rows, rows]), torch.cat([items, items]))
    for depth in (1, 2, 3):
        for row in range(10):
            nodes = torch.arange(len(trie.token[depth - 1]))
            below = [{item for item in range(len(tokens)) if int(trie.path[depth - 1, item]) == node} for node in nodes.tolist()]
            expected = [items <= set(seen[row].tolist()) for items in below]
            assert trie.is_closed(depth, closed, torch.tensor(row), nodes).tolist() == expected


def test_items_with_equal_tokens_are_refused():
    with pytest.raises(ValueError, match="same tokens"):
        build_trie(np.array([[1, 2], [1, 2]]))
    with pytest.raises(ValueError, match="at least one"):
        build_trie(np.zeros((0, 3), int))
