"""Bootstrap over users, Holm's correction and components of variance, against formulas and numbers known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from tigerrec.table.statistics import (
    holm,
    intervals,
    resampled_means,
    standard_deviation,
    two_sided_p,
    variance_components,
)


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(0).normal(2, 3, (4_000, 1))
    (low,), (high,) = intervals(resampled_means(values))
    error = values.std() / 4_000**0.5
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.05 * error * 2)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.05 * error * 2)


def test_columns_are_resampled_together_so_that_what_they_share_cancels():
    rng = np.random.default_rng(1)
    users = rng.normal(0, 5, (2_000, 1))
    columns = np.hstack([users, users + 0.01])
    means = resampled_means(columns, 300)
    assert np.allclose(means[:, 1] - means[:, 0], 0.01)
    assert means[:, 0].std() > 0.05


def test_resamples_are_of_the_users_and_the_same_every_time():
    values = np.eye(7)
    means = resampled_means(values, 50)
    assert np.allclose(means.sum(1), 1)
    assert np.allclose(means * 7, np.round(means * 7))
    assert np.array_equal(means, resampled_means(values, 50))
    assert len(np.unique(means, axis=0)) > 20


def test_p_is_large_without_a_difference_and_small_with_one():
    rng = np.random.default_rng(2)
    p_values = two_sided_p(np.column_stack([rng.normal(0, 1, 10_000), rng.normal(6, 1, 10_000), np.zeros(10_000)]))
    assert p_values[0] > 0.9
    assert p_values[1] == pytest.approx(2 / 10_001)
    assert p_values[2] == 1


def test_p_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(3)
    p_values = two_sided_p(
        np.column_stack([resampled_means(rng.normal(0, 1, (200, 1)), 400)[:, 0] for _ in range(200)])
    )
    assert 0.01 <= (p_values < 0.05).mean() <= 0.12


def test_holm_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == pytest.approx([0.2])


def test_a_standard_deviation_needs_three_runs():
    assert standard_deviation([1.0, 2.0]) is None
    assert standard_deviation([1.0, 2.0, 3.0]) == pytest.approx(1.0)


def test_components_of_a_worked_example():
    # means of tokenizer seeds 2 and 6 of one row, 5 and 5 of the other; each pair of runs one apart from its mean:
    # within = 8 / 4 = 2
    rows = [{(0, 0): 1, (0, 1): 3, (1, 0): 5, (1, 1): 7}, {(0, 0): 4, (0, 1): 6, (1, 0): 4, (1, 1): 6}]
    found = {component.name: component for component in variance_components(rows)}
    assert found["generator seed"].sd == pytest.approx(2**0.5)
    assert found["generator seed"].degrees_of_freedom == 4
    # between = 2 * (4 + 4 + 0 + 0) / 2 = 8, so (8 - 2) / 2 = 3
    assert found["tokenizer seed"].sd == pytest.approx(3**0.5)
    assert found["tokenizer seed"].degrees_of_freedom == 2


def test_components_are_those_that_made_the_runs():
    rng = np.random.default_rng(4)
    rows = []
    for _ in range(300):
        seeds = rng.normal(0, 2.0, 3)
        rows.append({(t, g): 10 + seeds[t] + rng.normal(0, 0.5) for t in range(3) for g in range(2)})
    tokenizer, generator = variance_components(rows)
    assert tokenizer.sd == pytest.approx(2.0, rel=0.1)
    assert generator.sd == pytest.approx(0.5, rel=0.1)


def test_no_component_is_told_from_one_generator_seed_and_none_is_negative():
    assert variance_components([{(0, 0): 1.0, (1, 0): 2.0}]) == []
    assert variance_components([{(0, 0): 1.0}]) == []
    assert variance_components([]) == []
    alone = variance_components([{(0, 0): 1.0, (0, 1): 3.0}])
    assert [component.name for component in alone] == ["generator seed"]
    crossed = variance_components([{(0, 0): 1.0, (0, 1): 3.0, (1, 0): 1.0, (1, 1): 3.0}])
    assert crossed[0].sd == 0


def test_of_an_unfinished_row_only_what_its_seeds_share_counts():
    whole = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 5.0, (1, 1): 7.0}
    unfinished = {(0, 0): 10.0, (0, 1): 16.0, (1, 0): 500.0}
    tokenizer, generator = variance_components([whole, unfinished])
    assert tokenizer.degrees_of_freedom == 1
    assert generator.degrees_of_freedom == 3
    assert generator.sd == pytest.approx(((2 + 2 + 18) / 3) ** 0.5)
    assert tokenizer.sd == pytest.approx(((16 - 22 / 3) / 2) ** 0.5)  # between = 2 * (4 + 4) / 1, of the whole row
    assert [component.name for component in variance_components([unfinished])] == ["generator seed"]
