"""What several runs of one row say: bootstrap over users, and how much of the spread between runs comes from which
seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tigerrec.metrics import BOOTSTRAP_SEED, DECIMALS

RESAMPLES = 10_000
CHUNK = 250
LEAST_P = 2 / (RESAMPLES + 1)
LEAST_RUNS_FOR_SD = 3


def resampled_means(values: np.ndarray, resamples: int = RESAMPLES) -> np.ndarray:
    """Means of columns over resamples of the rows, float64 (resamples, columns); the same resamples for all columns.

    A paired bootstrap (Efron 1979): rows are users, and every column of a user is drawn together.

    Args:
        values: float (users, columns).
    """
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    n_users = len(values)
    means = np.empty((resamples, values.shape[1]))
    for start in range(0, resamples, CHUNK):
        stop = min(start + CHUNK, resamples)
        counts = np.stack(
            [np.bincount(rng.integers(0, n_users, n_users), minlength=n_users) for _ in range(stop - start)]
        )
        means[start:stop] = np.round(
            counts @ values / n_users, 12
        )  # so that equal rows stay equal, whatever the number of threads
    return means


def intervals(means: np.ndarray) -> np.ndarray:
    """The 95 % percentile interval of each column of resampled means, (2, columns), rounded to eight decimals."""
    return np.round(np.percentile(means, [2.5, 97.5], axis=0), DECIMALS)


def two_sided_p(means: np.ndarray) -> np.ndarray:
    """The share of resampled differences on the other side of zero, doubled, of each column; never below 2 / (resamples
    + 1), which is `LEAST_P`."""
    beyond = np.minimum((means <= 0).sum(0), (means >= 0).sum(0))
    return np.minimum(1.0, 2 * (beyond + 1) / (len(means) + 1))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P values corrected for their number, in the same order (Holm 1979): the k-th smallest of m times m - k + 1, never
    below a smaller one's."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def standard_deviation(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample; None below three values."""
    return float(np.std(values, ddof=1)) if len(values) >= LEAST_RUNS_FOR_SD else None


@dataclass(frozen=True)
class Component:
    """The spread that one kind of seed causes.

    Attributes:
        name: `tokenizer seed` or `generator seed`.
        sd: the square root of the variance component, in the metric's unit; 0 where the estimate is negative.
        degrees_of_freedom: that its mean square rests on, over all rows.
    """

    name: str
    sd: float
    degrees_of_freedom: int


def variance_components(rows: Sequence[Mapping[tuple[int, int], float]]) -> list[Component]:
    """How much runs of one row spread because of the generator's seed and because of the tokenizer's, pooled over rows.

    Generator seeds are nested in tokenizer seeds: analysis of variance with random effects (Searle, Casella and
    McCulloch 1992, chapter 3).
    With y(r, t, g) of row r, the mean square within is the sum of (y(r, t, g) - mean(r, t))² over its degrees of
    freedom, over all tokenizer
    seeds with two runs or more. The mean square between is n times the sum of (mean(r, t) - mean(r))² over its own,
    over the rows in which all
    tokenizer seeds have n runs, n being the largest number in the table; the tokenizer's component is (between -
    within) / n.

    Args:
        rows: of each row, the metric of every run by (tokenizer seed, generator seed).

    Returns:
        The components that the runs can tell apart: none for one generator seed a row.
    """
    groups = [_by_tokenizer_seed(row) for row in rows]
    within_freedom = sum(len(values) - 1 for row in groups for values in row)
    if not within_freedom:
        return []
    within = sum(float(np.square(values - values.mean()).sum()) for row in groups for values in row) / within_freedom
    n_runs = max(len(values) for row in groups for values in row)
    means = [
        np.array([values.mean() for values in row]) for row in groups if all(len(values) == n_runs for values in row)
    ]
    between_freedom = sum(len(row) - 1 for row in means)
    components = [Component("generator seed", within**0.5, within_freedom)]
    if between_freedom:
        between = n_runs * sum(float(np.square(row - row.mean()).sum()) for row in means) / between_freedom
        components.insert(0, Component("tokenizer seed", max(0.0, (between - within) / n_runs) ** 0.5, between_freedom))
    return components


def _by_tokenizer_seed(row: Mapping[tuple[int, int], float]) -> list[np.ndarray]:
    """The runs of each tokenizer seed of a row."""
    found: dict[int, list[float]] = {}
    for (tokenizer_seed, _), value in row.items():
        found.setdefault(tokenizer_seed, []).append(value)
    return [np.array(values) for values in found.values()]
