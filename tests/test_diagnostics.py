"""Diagnostics of codes against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tigerrec.tokenizers.diagnostics import (
    collisions,
    level_usage,
    neighbour_agreement,
    prefix_purity,
    reconstruction_error,
)


def test_groups_of_equal_codes_are_counted_by_size():
    codes = np.array([[0, 0], [0, 1], [0, 0], [2, 2], [2, 2], [2, 2], [1, 0]])
    expected = {"collision_rate": 5 / 7, "unique_ids": 4, "largest_group": 3, "group_sizes": {"1": 2, "2": 1, "3": 1}}
    assert collisions(codes) == expected
    assert sum(int(size) * count for size, count in expected["group_sizes"].items()) == len(codes)


def test_usage_of_a_level():
    usage = level_usage(np.array([0, 0, 2, 2]), 8)
    assert usage == {"codes": 8, "used_codes": 2, "dead_codes": 6, "perplexity": pytest.approx(2)}


def test_reconstruction_error_is_relative_to_the_variance():
    vectors = np.array([[0.0, 0.0], [2.0, 4.0]], dtype=np.float32)
    codes = np.arange(2)[:, None]
    assert reconstruction_error(vectors, codes, lambda codes: vectors[codes[:, 0]]) == 0
    assert reconstruction_error(vectors, codes, lambda codes: vectors.mean(axis=0)) == pytest.approx(1)
    assert reconstruction_error(np.ones((2, 2), np.float32), codes, lambda codes: np.zeros((2, 2))) is None


def test_neighbours_agree_as_far_as_clusters_go():
    rng = np.random.default_rng(0)
    clusters = np.repeat([0, 1], 11)
    vectors = np.array([[1.0, 0.0], [0.0, 1.0]])[clusters] + rng.normal(0, 0.01, (22, 2))
    assert neighbour_agreement(vectors, np.column_stack([clusters, np.arange(22)]), seed=0) == [1, 0]
    assert neighbour_agreement(vectors, np.column_stack([np.arange(22), clusters]), seed=0) == [
        0,
        0,
    ]  # a prefix, not a level
    assert neighbour_agreement(vectors[:1], clusters[:1, None], seed=0) is None


def test_agreement_is_counted_over_prefixes_by_hand():
    vectors = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2]])  # each item's neighbours are the two others
    codes = np.array([[5, 1, 1], [5, 1, 2], [5, 0, 2]])
    assert neighbour_agreement(vectors, codes, seed=0) == pytest.approx([1, 1 / 3, 0])


def test_purity_of_prefixes_by_hand():
    categories = np.array([0, 0, 1, 1, 1, 0, -1, -1])
    codes = np.array([[0, 0], [0, 0], [0, 1], [1, 0], [1, 0], [1, 0], [0, 0], [9, 9]])
    found = prefix_purity(codes, categories, seed=0)
    assert found["purity"] == pytest.approx([4 / 6, 5 / 6])  # the last two items have no category
    assert all(chance <= 1 for chance in found["purity_by_chance"])


def test_purity_by_chance_is_that_of_codes_without_meaning():
    rng = np.random.default_rng(0)
    categories = rng.integers(0, 4, 3000)
    meaningless = prefix_purity(rng.integers(0, 30, (3000, 2)), categories, seed=0)
    assert meaningless["purity"] == pytest.approx(meaningless["purity_by_chance"], abs=0.02)
    assert 0.25 < meaningless["purity_by_chance"][0] < 0.4 < meaningless["purity_by_chance"][1]
    telling = prefix_purity(np.column_stack([categories, np.arange(3000)]), categories, seed=0)
    assert telling["purity"] == [1, 1]
    assert telling["purity_by_chance"] == [
        pytest.approx(0.25, abs=0.03),
        1,
    ]  # groups of one item are pure whatever is in them


def test_purity_by_chance_by_hand_where_dealing_changes_nothing():
    found = prefix_purity(np.array([[0], [0], [0], [0]]), np.array([0, 1, 1, 1]), seed=3)
    assert found == {"purity": [0.75], "purity_by_chance": [0.75]}


def test_purity_without_categories_is_empty_and_a_seed_repeats_it():
    codes = np.random.default_rng(0).integers(0, 3, (40, 2))
    assert prefix_purity(codes, np.full(40, -1), seed=0) == {"purity": [], "purity_by_chance": []}
    categories = np.arange(40) % 3
    assert (
        prefix_purity(codes, categories, seed=1)
        == prefix_purity(codes, categories, seed=1)
        != prefix_purity(codes, categories, seed=2)
    )
