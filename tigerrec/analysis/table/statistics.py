"""What several runs of one row say: bootstrap over users, and which seed causes how much of the spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tigerrec.evaluation.intervals import BOOTSTRAP_SEED, DECIMALS

RESAMPLES = 10_000
CHUNK = 250
LEAST_P = 2 / (RESAMPLES + 1)
LEAST_RUNS_FOR_SD = 3
NEITHER, SAME_TOKENIZER, SAME_GENERATOR = (False, False), (True, False), (False, True)  # seeds that two runs share
COMPONENTS = ("tokenizer seed", "generator seed", "interaction")

Runs = Mapping[tuple[int, int], float]  # a metric of each run of a row, by (tokenizer seed, generator seed)


def resampled_means(values: np.ndarray, resamples: int = RESAMPLES) -> np.ndarray:
    """Means of the columns of float (users, columns) over resamples of the users, float64 (resamples, columns).

    A paired bootstrap (Efron 1979): every column of a user is drawn together.
    """
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    n_users, means = len(values), np.empty((resamples, values.shape[1]))
    for start in range(0, resamples, CHUNK):
        stop = min(start + CHUNK, resamples)
        draws = (rng.integers(0, n_users, n_users) for _ in range(stop - start))
        counts = np.stack([np.bincount(draw, minlength=n_users) for draw in draws])
        means[start:stop] = np.round(counts @ values / n_users, 12)  # equal rows stay equal with any number of threads
    return means


def intervals(means: np.ndarray) -> np.ndarray:
    """The 95 % percentile interval of each column of resampled means, (2, columns), rounded to eight decimals."""
    return np.round(np.percentile(means, [2.5, 97.5], axis=0), DECIMALS)


def two_sided_p(means: np.ndarray) -> np.ndarray:
    """Twice the share of resampled differences on the other side of zero, of each column; at least `LEAST_P`."""
    beyond = np.minimum((means <= 0).sum(0), (means >= 0).sum(0))
    return np.minimum(1.0, 2 * (beyond + 1) / (len(means) + 1))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P values corrected for their number, in the same order, by the step-down method of Holm (1979)."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


@dataclass(frozen=True)
class Component:
    """The spread of runs that one kind of seed causes, or that two kinds cause together."""

    name: str  # one of `COMPONENTS`
    sd: float  # the square root of the variance component, in the metric's unit; 0 where the estimate is negative
    degrees_of_freedom: int  # that the estimate rests on, over all rows


def _variances_of_pairs(runs: Runs) -> dict[tuple[bool, bool], float]:
    """Half the mean squared difference of two runs, by whether they share the tokenizer seed and the generator seed."""
    halves: dict[tuple[bool, bool], list[float]] = {}
    for ((tokenizer, generator), first), ((tokenizer2, generator2), second) in combinations(runs.items(), 2):
        halves.setdefault((tokenizer == tokenizer2, generator == generator2), []).append((first - second) ** 2 / 2)
    return {shared: float(np.mean(values)) for shared, values in halves.items()}


def standard_deviation(runs: Runs) -> float | None:
    """The standard deviation of a run whose tokenizer seed and generator seed are both new; None below three runs.

    Two runs that share neither seed are independent, so half their squared difference has the variance of such a run as
    its expectation. The mean over all these pairs is the sum of the components of `variance_components` before negative
    ones are set to 0. Where only one kind of seed was varied this is the usual sample standard deviation.
    """
    if len(runs) < LEAST_RUNS_FOR_SD:
        return None
    variances = _variances_of_pairs(runs)
    return variances.get(NEITHER, next(iter(variances.values()))) ** 0.5


def variance_components(rows: Sequence[Runs]) -> list[Component]:
    """How much the tokenizer seed, the generator seed and their interaction spread the runs of a row, over some rows.

    Within a row every tokenizer seed is run with the same generator seeds: y(t, g) = mean + a(t) + b(g) + c(t, g), a
    two-way crossed classification with random effects (Searle, Casella and McCulloch 1992, chapter 4). Half the squared
    difference of two runs has the expectation var b + var c where they share t, var a + var c where they share g, and
    var a + var b + var c where they share neither; solved for the three variances, the means over pairs are the
    estimates of the analysis of variance. Rows are averaged; those that lack a run of their seeds are left out.
    Where no row has several seeds of both kinds there is one component, of the kind varied; it holds the interaction.
    """
    by_row = [(runs, _variances_of_pairs(runs)) for runs in rows]
    crossed = []
    for runs, variances in by_row:
        n_tokenizer, n_generator = (len({seeds[place] for seeds in runs}) for place in range(2))
        if len(variances) == 3 and len(runs) == n_tokenizer * n_generator:
            freedom = (n_tokenizer - 1, n_generator - 1, (n_tokenizer - 1) * (n_generator - 1))
            crossed.append((*(variances[shared] for shared in (NEITHER, SAME_TOKENIZER, SAME_GENERATOR)), *freedom))
    if crossed:
        neither, same_tokenizer, same_generator = np.mean(crossed, axis=0)[:3]
        estimates = (neither - same_tokenizer, neither - same_generator, same_tokenizer + same_generator - neither)
        return [
            Component(name, max(0.0, float(estimate)) ** 0.5, int(count))
            for name, estimate, count in zip(COMPONENTS, estimates, np.sum(crossed, axis=0)[3:], strict=True)
        ]
    components = []
    for name, shared in zip(COMPONENTS, (SAME_GENERATOR, SAME_TOKENIZER), strict=False):
        alone = [(variances[shared], len(runs) - 1) for runs, variances in by_row if list(variances) == [shared]]
        if alone:
            estimates, freedom = zip(*alone, strict=True)
            pooled = float(np.average(estimates, weights=freedom))
            components.append(Component(name, pooled**0.5, sum(freedom)))
    return components
