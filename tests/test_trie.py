"""The tensor trie against a dict of sets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from tigerrec.tokenizers.trie import build_trie


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
            below = [
                {item for item in range(len(tokens)) if int(trie.path[depth - 1, item]) == node}
                for node in nodes.tolist()
            ]
            expected = [items <= set(seen[row].tolist()) for items in below]
            assert trie.is_closed(depth, closed, torch.tensor(row), nodes).tolist() == expected


def shared_tokens(n_items: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that several items share, and how popular each item is, with ties."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 3, (n_items, 2)) + 1 + np.arange(2) * 3, rng.integers(0, 4, n_items)


def test_a_leaf_lists_its_items_by_popularity():
    tokens, popularity = shared_tokens(50, seed=7)
    trie = build_trie(tokens, popularity)
    leaves = sorted(set(map(tuple, tokens.tolist())))
    assert len(trie.token[-1]) == len(leaves) < 50
    places, exists = trie.children(2, torch.arange(len(leaves)))
    for leaf, row, there in zip(leaves, places, exists, strict=True):
        members = [item for item in range(50) if tuple(tokens[item]) == leaf]
        assert trie.leaf_item[row[there]].tolist() == sorted(members, key=lambda item: (-popularity[item], item))
    assert trie.max_children[2] == max(Counter(map(tuple, tokens.tolist())).values())


def test_a_shared_leaf_is_closed_when_all_its_items_are_seen():
    tokens, popularity = shared_tokens(50, seed=8)
    trie, seen = build_trie(tokens, popularity), np.random.default_rng(9).permutation(50)[:35]
    closed = trie.closed(torch.zeros(35, dtype=torch.int64), torch.from_numpy(seen))
    leaves = torch.arange(len(trie.token[-1]))
    below = [{item for item in range(50) if int(trie.path[1, item]) == leaf} for leaf in leaves.tolist()]
    expected = [items <= set(seen.tolist()) for items in below]
    assert 0 < sum(expected) < len(expected)
    assert trie.is_closed(2, closed, torch.tensor(0), leaves).tolist() == expected
    assert trie.is_closed(3, closed, torch.tensor(0), trie.path[-1]).tolist() == [item in seen for item in range(50)]


def test_items_with_equal_tokens_are_refused_without_popularity():
    with pytest.raises(ValueError, match="same tokens"):
        build_trie(np.array([[1, 2], [1, 2]]))
    with pytest.raises(ValueError, match="at least one"):
        build_trie(np.zeros((0, 3), int))
