"""Bootstrap over users, Holm's correction and components of variance, against formulas and numbers known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from tigerrec.analysis.table.statistics import (
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


def crossed_runs(rng: np.random.Generator, tokenizer: float, generator: float, interaction: float, sizes=(2, 2)):
    """A row whose tokenizer seeds, generator seeds and pairs of both have effects of these standard deviations."""
    n_tokenizer, n_generator = sizes
    values = rng.normal(0, interaction, sizes) + rng.normal(0, tokenizer, (n_tokenizer, 1))
    values += 10 + rng.normal(0, generator, n_generator)
    return {(t, g): float(values[t, g]) for t in range(n_tokenizer) for g in range(n_generator)}


def mean_squares(runs) -> tuple[float, float, float]:
    """The mean squares of tokenizer seeds, of generator seeds and of the rest in the two-way analysis of variance."""
    sizes = [len({seeds[place] for seeds in runs}) for place in range(2)]
    values = np.array([runs[seeds] for seeds in sorted(runs)]).reshape(sizes)
    rest = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    by_tokenizer, by_generator = (values.mean(axis).var(ddof=1) for axis in (1, 0))
    return sizes[1] * by_tokenizer, sizes[0] * by_generator, (rest**2).sum() / ((sizes[0] - 1) * (sizes[1] - 1))


def test_plus_minus_needs_three_runs():
    assert standard_deviation({(0, 0): 1.0, (1, 0): 2.0}) is None
    assert standard_deviation({(0, 0): 1.0, (1, 0): 2.0, (2, 0): 3.0}) == pytest.approx(1.0)
    assert standard_deviation({(0, 0): 1.0, (0, 1): 2.0, (0, 2): 3.0}) == pytest.approx(1.0)


def test_plus_minus_is_that_of_a_run_with_new_seeds_although_the_runs_share_theirs():
    rng = np.random.default_rng(5)
    rows = [crossed_runs(rng, tokenizer=2.0, generator=1.0, interaction=0.5) for _ in range(4_000)]
    of_a_new_run = 2.0**2 + 1.0**2 + 0.5**2
    assert np.mean([standard_deviation(runs) ** 2 for runs in rows]) == pytest.approx(of_a_new_run, rel=0.05)
    as_if_independent = np.mean([np.var(list(runs.values()), ddof=1) for runs in rows])
    assert as_if_independent < 0.75 * of_a_new_run
    unfinished = [{seeds: value for seeds, value in runs.items() if seeds != (1, 1)} for runs in rows]
    assert np.mean([standard_deviation(runs) ** 2 for runs in unfinished]) == pytest.approx(of_a_new_run, rel=0.07)


def test_components_of_a_worked_example():
    # half squared differences of pairs: of one tokenizer seed 2 and 8, of one generator seed 18 and 32, of neither
    # 50 and 8
    components = variance_components([{(0, 0): 0, (0, 1): 2, (1, 0): 6, (1, 1): 10}])
    assert {component.name: component.sd for component in components} == pytest.approx(
        {"tokenizer seed": 24**0.5, "generator seed": 4**0.5, "interaction": 1.0}
    )
    assert [component.degrees_of_freedom for component in components] == [1, 1, 1]
    assert standard_deviation({(0, 0): 0, (0, 1): 2, (1, 0): 6, (1, 1): 10}) == pytest.approx(29**0.5)


@pytest.mark.parametrize("sizes", [(2, 2), (3, 2), (2, 4), (5, 3)])
def test_components_are_those_of_the_two_way_analysis_of_variance(sizes):
    runs = crossed_runs(np.random.default_rng(6), 3.0, 2.0, 0.3, sizes)
    n_tokenizer, n_generator = sizes
    tokenizer, generator, rest = mean_squares(runs)
    components = variance_components([runs])
    expected = [(tokenizer - rest) / n_generator, (generator - rest) / n_tokenizer, rest]
    assert [component.sd**2 for component in components] == pytest.approx([max(0, variance) for variance in expected])
    freedom = [n_tokenizer - 1, n_generator - 1, (n_tokenizer - 1) * (n_generator - 1)]
    assert [component.degrees_of_freedom for component in components] == freedom
    assert standard_deviation(runs) ** 2 == pytest.approx(sum(expected))


def test_components_are_those_that_made_crossed_runs_where_nested_ones_would_not_be():
    rng = np.random.default_rng(4)
    rows = [crossed_runs(rng, tokenizer=1.0, generator=2.0, interaction=0.5) for _ in range(4_000)]
    sds = {component.name: component.sd for component in variance_components(rows)}
    assert sds == pytest.approx({"tokenizer seed": 1.0, "generator seed": 2.0, "interaction": 0.5}, rel=0.1)
    between, within = (
        np.mean([mean_squares(runs)[0] for runs in rows]),
        np.mean([[(runs[t, 0] - runs[t, 1]) ** 2 / 2 for t in range(2)] for runs in rows]),
    )
    assert (between - within) / 2 < -0.5  # the estimate for nested seeds of a variance of 1


def test_no_component_is_negative():
    lower, upper = {(0, 0): 1.0, (0, 1): 3.0}, {(1, 0): 3.0, (1, 1): 1.0}
    assert [component.sd for component in variance_components([lower | upper])] == [0, 0, 2]


def test_a_seed_that_was_not_varied_has_no_component():
    assert variance_components([]) == variance_components([{(0, 0): 1.0}]) == []
    for name, first, second in (("generator seed", (0, 0), (0, 1)), ("tokenizer seed", (0, 0), (1, 0))):
        (component,) = variance_components([{first: 1.0, second: 3.0}, {first: 5.0, second: 5.0}, {first: 9.0}])
        assert (component.name, component.sd, component.degrees_of_freedom) == (name, 1.0, 2)


def test_unfinished_rows_are_left_out_of_components_of_crossed_seeds():
    whole = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 5.0, (1, 1): 9.0}
    for unfinished in ({(0, 0): 10.0, (0, 1): 16.0, (1, 0): 500.0}, {(0, 0): 10.0, (0, 1): 16.0}):
        assert variance_components([whole, unfinished]) == variance_components([whole])
    assert variance_components([{(0, 0): 10.0, (0, 1): 16.0, (1, 0): 500.0}]) == []
