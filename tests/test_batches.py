"""Training examples against a naive enumeration; batches as a partition under a budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tigerrec.data.batches import NO_ITEM, Examples, length_sorted_batches, padded
from tigerrec.data.histories import Histories


def histories_of(lists: list[list[int]]) -> Histories:
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    return Histories(offsets, np.concatenate(lists).astype(np.int32), 100)


@pytest.fixture
def random_lists() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.permutation(100)[: rng.integers(3, 30)].tolist() for _ in range(40)]


def listed(examples: Examples) -> list[tuple[list[int], int]]:
    """What each target is given, and the target."""
    return [
        (examples.items[start:place].tolist(), int(examples.items[place]))
        for start, first, stop in zip(examples.start, examples.first, examples.stop, strict=True)
        for place in range(first, stop + 1)
    ]


def test_prefixes_are_every_prefix_of_the_training_part(random_lists):
    examples = Examples.prefixes(histories_of(random_lists), max_items=5)
    expected = []
    for history in random_lists:
        training = history[:-2]
        expected += [(training[max(0, end - 5) : end], training[end]) for end in range(1, len(training))]
    assert listed(examples) == expected
    assert (examples.n_targets == 1).all()
    assert (examples.lengths == [len(given) for given, _ in expected]).all()


@pytest.mark.parametrize(("window", "stride"), [(9, 4), (5, 1), (30, 10)])
def test_each_target_is_in_one_window_the_first_that_holds_it(random_lists, window, stride):
    examples = Examples.windows(histories_of(random_lists), window, stride)
    expected = []
    for history in random_lists:
        training = history[:-2]
        for target in range(1, len(training)):
            start = min(start for start in range(0, len(training), stride) if start <= target < start + window)
            expected.append((training[start:target], training[target]))
            assert target - start >= min(target, window - stride)
    assert sorted(listed(examples)) == sorted(expected)
    assert examples.lengths.max() < window


def test_windows_and_prefixes_have_the_same_targets(random_lists):
    histories = histories_of(random_lists)
    targets = [
        sorted(target for _, target in listed(examples))
        for examples in (Examples.windows(histories, 9, 4), Examples.prefixes(histories, 5))
    ]
    assert targets[0] == targets[1]


@pytest.mark.parametrize(
    "make", [lambda histories: Examples.prefixes(histories, 5), lambda histories: Examples.windows(histories, 9, 4)]
)
def test_a_batch_holds_items_targets_and_what_each_sees(random_lists, make):
    examples = make(histories_of(random_lists))
    for rows in (np.array([7, 0, 40]), np.array([3]), np.arange(len(examples))):
        batch = examples.batch(rows)
        n_visible = batch.n_visible.expand_as(batch.targets)
        for place, row in enumerate(rows):
            items = batch.items[place][batch.items[place] != NO_ITEM].tolist()
            assert items == examples.items[examples.start[row] : examples.stop[row]].tolist()
            assert batch.items[place][: len(items)].tolist() == items
            there = batch.targets[place] != NO_ITEM
            assert (
                batch.targets[place][there].tolist()
                == examples.items[examples.first[row] : examples.stop[row] + 1].tolist()
            )
            assert n_visible[place][there].tolist() == list(
                range(examples.first[row] - examples.start[row], examples.stop[row] - examples.start[row] + 1)
            )


@pytest.mark.parametrize("budget", [1, 17, 64, 10_000])
def test_batches_are_a_partition_within_the_budget(budget):
    lengths = np.random.default_rng(1).integers(1, 20, 200)
    batches = length_sorted_batches(lengths, budget)
    assert sorted(np.concatenate(batches)) == list(range(200))
    for batch in batches:
        assert len(batch) == 1 or lengths[batch].max() * len(batch) <= budget


@pytest.mark.parametrize("batch_targets", [1, 7, 64, 10_000])
@pytest.mark.parametrize(
    "make", [lambda histories: Examples.prefixes(histories, 5), lambda histories: Examples.windows(histories, 9, 4)]
)
def test_shuffled_batches_are_a_partition_of_nearly_equal_numbers_of_targets(random_lists, batch_targets, make):
    examples = make(histories_of(random_lists))
    batches = examples.shuffled_batches(batch_targets, np.random.default_rng(2))
    assert sorted(np.concatenate(batches)) == list(range(len(examples)))
    sizes = np.array([examples.n_targets[batch].sum() for batch in batches])
    assert len(batches) <= -(-examples.n_targets.sum() // batch_targets)
    assert sizes.max() <= batch_targets + examples.n_targets.max() - 1
    assert sizes.max() - sizes.min() <= 2 * examples.n_targets.max()


def test_batches_of_prefixes_have_one_size_and_similar_lengths(random_lists):
    examples = Examples.prefixes(histories_of(random_lists), 5)
    batches = examples.shuffled_batches(20, np.random.default_rng(2))
    assert {len(batch) for batch in batches} <= {len(batches[0]) - 1, len(batches[0]), len(batches[0]) + 1}
    spans = sorted((examples.lengths[batch].min(), examples.lengths[batch].max()) for batch in batches)
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))


def test_shuffling_depends_on_the_seed_alone(random_lists):
    examples = Examples.windows(histories_of(random_lists), 9, 4)
    plans = [np.concatenate(examples.shuffled_batches(20, np.random.default_rng(seed))) for seed in (5, 5, 6)]
    assert (plans[0] == plans[1]).all()
    assert (plans[0] != plans[2]).any()


def test_no_rows_no_batches():
    assert length_sorted_batches(np.zeros(0, np.int64), 10) == []


def test_histories_are_padded_on_the_right():
    assert padded([np.array([2]), np.array([0, 1])]).tolist() == [[2, NO_ITEM], [0, 1]]
