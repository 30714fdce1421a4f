"""The plan of Sinkhorn's algorithm: even, scaled from the kernel, and at small epsilon the cheapest assignment; and the
codes taken from it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tigerrec.tokenizers.quantizer.sinkhorn import LEAST_EPSILON, balanced_codes, even_plan


@pytest.mark.parametrize("shape", [(60, 6), (20, 6), (5, 6)])
def test_all_columns_get_the_same_weight(shape):
    torch.manual_seed(0)
    distances = torch.rand(shape).square()
    distances[:, 0] -= 1  # all would take it
    plan = even_plan(distances, epsilon=0.05, iterations=300).exp()
    torch.testing.assert_close(
        plan.sum(0), torch.full((shape[1],), shape[0] / shape[1], dtype=torch.float64), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(plan.sum(1), torch.ones(shape[0], dtype=torch.float64))


def test_a_plan_is_the_kernel_with_rows_and_columns_scaled():
    distances = torch.rand((4, 10), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logarithms = even_plan(distances, epsilon=0.5, iterations=200) + distances / (
        0.5 * (distances.max() - distances.min()) / 2
    )
    torch.testing.assert_close(logarithms, logarithms[:, :1] + logarithms[:1] - logarithms[0, 0])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_a_sharp_plan_of_a_square_is_the_cheapest_assignment(seed):
    distances = np.random.default_rng(seed).random((4, 4))
    plan = even_plan(torch.from_numpy(distances), epsilon=0.005, iterations=1000)
    costs = {order: distances[range(4), order].sum() for order in itertools.permutations(range(4))}
    best, second = sorted(costs.values())[:2]
    assume(second - best > 0.05)
    assert costs[tuple(plan.argmax(dim=1).tolist())] == best


def test_equal_distances_are_shared_out_evenly():
    torch.testing.assert_close(
        even_plan(torch.ones(3, 6), epsilon=0.003, iterations=5).exp(), torch.full((3, 6), 1 / 6, dtype=torch.float64)
    )


@pytest.mark.parametrize("side", [0, 1])
def test_the_smallest_epsilon_keeps_within_double_precision(side):
    generator = torch.Generator().manual_seed(0)
    distances = torch.rand((50, 20), generator=generator, dtype=torch.float64).pow(8)
    distances[:2] = side  # as far from all columns as can be, or as near
    plan = even_plan(distances, LEAST_EPSILON, iterations=500).exp()
    torch.testing.assert_close(plan.sum(1), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(0), torch.full((20,), 2.5, dtype=torch.float64), rtol=0.05, atol=0)


def test_balanced_codes_are_the_nearest_of_the_codes_a_row_holds():
    assert balanced_codes(np.array([[1.0, 2.0, 9.0, 9.0], [1.1, 9.0, 5.0, 4.0]]), 0.003, 50).tolist() == [0, 3]
    assert set(balanced_codes(np.ones((3, 2)), 0.003, 50).tolist()) <= {0, 1}
