"""Training examples against a naive enumeration; batches as a partition under a budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tigerrec.batches import PrefixExamples, equal_batches, history_tokens, length_sorted_batches
from tigerrec.histories import Histories


def histories_of(lists: list[list[int]]) -> Histories:
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    return Histories(offsets, np.concatenate(lists).astype(np.int32), 100)


@pytest.fixture
def random_lists() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.permutation(100)[: rng.integers(3, 30)].tolist() for _ in range(40)]


def test_examples_are_every_prefix_of_the_training_part(random_lists):
    examples = PrefixExamples.of(histories_of(random_lists), max_items=5)
    expected = []
    for history in random_lists:
        training = history[:-2]
        expected += [(training[max(0, end - 5) : end], training[end]) for end in range(1, len(training))]
    found = [(examples.items[start:target].tolist(), int(examples.items[target])) for start, target in zip(examples.start, examples.target, strict=True)]
    assert found == expected
    assert (examples.lengths == [len(history) for history, _ in expected]).all()


def test_a_batch_holds_tokens_masks_and_labels(random_lists):
    examples = PrefixExamples.of(histories_of(random_lists), max_items=5)
    tokens = np.arange(1, 301).reshape(100, 3)
    rows = np.array([7, 0, 90])
    input_ids, mask, labels = examples.batch(rows, tokens)
    for place, row in enumerate(rows):
        items = examples.items[examples.start[row] : examples.target[row]]
        assert input_ids[place][mask[place].bool()].tolist() == tokens[items].ravel().tolist()
        assert (input_ids[place][~mask[place].bool()] == 0).all()
        assert labels[place].tolist() == tokens[examples.items[examples.target[row]]].tolist()


@pytest.mark.parametrize("budget", [1, 17, 64, 10_000])
def test_batches_are_a_partition_within_the_budget(budget):
    lengths = np.random.default_rng(1).integers(1, 20, 200)
    batches = length_sorted_batches(lengths, budget)
    assert sorted(np.concatenate(batches)) == list(range(200))
    for batch in batches:
        assert len(batch) == 1 or lengths[batch].max() * len(batch) <= budget


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_equal_batches_are_a_partition_of_one_size_and_similar_lengths(batch_size):
    lengths = np.random.default_rng(1).integers(1, 20, 200)
    batches = equal_batches(lengths, batch_size, np.random.default_rng(2))
    assert sorted(np.concatenate(batches)) == list(range(200))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    spans = sorted((lengths[batch].min(), lengths[batch].max()) for batch in batches)
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))


def test_shuffling_depends_on_the_seed_alone():
    lengths = np.random.default_rng(1).integers(1, 20, 200)
    plans = [np.concatenate(equal_batches(lengths, 10, np.random.default_rng(seed))) for seed in (5, 5, 6)]
    assert (plans[0] == plans[1]).all()
    assert (plans[0] != plans[2]).any()


def test_no_rows_no_batches():
    assert length_sorted_batches(np.zeros(0, np.int64), 10) == []


def test_history_tokens_pads_on_the_right():
    tokens = np.array([[1, 4], [2, 5], [3, 6]])
    input_ids, mask = history_tokens([np.array([2]), np.array([0, 1])], tokens)
    assert input_ids.tolist() == [[3, 6, 0, 0], [1, 4, 2, 5]]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
