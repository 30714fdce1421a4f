"""Code and token arithmetic, the suffix, and diagnostics against cases worked out by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tigerrec.semantic_ids import (
    PAD,
    SemanticIdError,
    TokenLayout,
    add_suffix,
    collisions,
    level_usage,
    neighbour_agreement,
    next_suffixes,
    reconstruction_error,
    suffix_size,
    with_suffix,
)

sizes = st.lists(st.integers(1, 300), min_size=1, max_size=5)


def test_the_layout_of_a_small_vocabulary():
    layout = TokenLayout((4, 3), (4, 3, 8))
    assert (layout.n_levels, layout.vocab_size, layout.offsets.tolist()) == (3, 16, [1, 5, 8])
    assert layout.to_tokens(np.array([[0, 0, 0], [3, 2, 7]])).tolist() == [[1, 5, 8], [4, 7, 15]]


@settings(max_examples=50, deadline=None)
@given(sizes, st.integers(0, 2**32 - 1))
def test_tokens_and_codes_are_one_to_one(level_sizes, seed):
    layout = TokenLayout(tuple(level_sizes), tuple(level_sizes))
    codes = np.random.default_rng(seed).integers(0, level_sizes, (5, 2, len(level_sizes)))
    tokens = layout.to_tokens(codes)
    assert tokens.dtype == np.int64
    assert layout.to_codes(tokens).dtype == np.int32
    assert np.array_equal(layout.to_codes(tokens), codes)
    every = np.concatenate([layout.offsets[level] + np.arange(size) for level, size in enumerate(level_sizes)])
    assert sorted([PAD, *every]) == list(range(layout.vocab_size))


def test_level_sizes_must_begin_with_code_sizes():
    with pytest.raises(ValueError, match="must begin with code_sizes"):
        TokenLayout((4, 3), (4, 8))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_the_suffix_counts_earlier_items_with_the_same_codes(rows):
    seen: Counter[tuple[int, int]] = Counter()
    expected = []
    for row in rows:
        expected.append(seen[row])
        seen[row] += 1
    codes = np.array(rows, dtype=np.int32)
    assert add_suffix(codes).tolist() == expected
    assert suffix_size(codes) == max(2 * max(seen.values()), 8)
    ids = with_suffix(codes, (3, 3))
    assert len(np.unique(ids.tokens, axis=0)) == len(rows)
    assert ids.layout.level_sizes == (3, 3, suffix_size(codes))
    assert collisions(codes) == {
        "collision_rate": pytest.approx(sum(count for count in seen.values() if count > 1) / len(rows)),
        "unique_ids": len(seen),
        "largest_group": max(seen.values()),
    }


def test_new_items_continue_the_suffixes():
    known = with_suffix(np.array([[0, 1], [0, 1], [2, 2]]), (3, 3))
    assert next_suffixes(known, np.array([[0, 1], [1, 1], [0, 1]])).tolist() == [2, 0, 3]
    with pytest.raises(SemanticIdError, match="New item 6 is number 9 with its codes, and the suffix level holds 8"):
        next_suffixes(known, np.array([[0, 1]] * 7))


def test_usage_of_a_level():
    usage = level_usage(np.array([0, 0, 2, 2]), 8)
    assert usage == {"codes": 8, "used_codes": 2, "dead_codes": 6, "perplexity": pytest.approx(2)}


def test_reconstruction_error_is_relative_to_the_variance():
    vectors = np.array([[0.0, 0.0], [2.0, 4.0]], dtype=np.float32)
    assert reconstruction_error(vectors, vectors) == 0
    assert reconstruction_error(vectors, np.tile(vectors.mean(axis=0), (2, 1))) == pytest.approx(1)
    assert reconstruction_error(np.ones((3, 2), np.float32), np.zeros((3, 2))) is None


def test_neighbours_agree_as_far_as_clusters_go():
    rng = np.random.default_rng(0)
    clusters = np.repeat([0, 1], 11)
    vectors = np.array([[1.0, 0.0], [0.0, 1.0]])[clusters] + rng.normal(0, 0.01, (22, 2))
    assert neighbour_agreement(vectors, clusters, seed=0) == 1
    assert neighbour_agreement(vectors, np.arange(22), seed=0) == 0
    assert neighbour_agreement(vectors[:1], clusters[:1], seed=0) is None
