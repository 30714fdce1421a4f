"""Code and token arithmetic, and the suffix."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tigerrec.tokenizers.diagnostics import collisions
from tigerrec.tokenizers.ids import PAD, SemanticIdError, TokenLayout
from tigerrec.tokenizers.suffix import add_suffix, next_suffixes, suffix_size, with_suffix

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
    with pytest.raises(ValueError, match="must be code_sizes"):
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
        "group_sizes": {str(size): count for size, count in sorted(Counter(seen.values()).items())},
    }


def test_new_items_continue_the_suffixes():
    known = with_suffix(np.array([[0, 1], [0, 1], [2, 2]]), (3, 3))
    assert next_suffixes(known, np.array([[0, 1], [1, 1], [0, 1]])).tolist() == [2, 0, 3]
    with pytest.raises(SemanticIdError, match="New item 6 is number 9 with its codes, and the suffix level holds 8"):
        next_suffixes(known, np.array([[0, 1]] * 7))
