"""Means over users and their bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

RESAMPLES = 1_000
BOOTSTRAP_SEED = 0
DECIMALS = 8


def means(gain_by_name: Mapping[str, np.ndarray], counts: np.ndarray) -> dict[str, float]:
    """The mean of each gain over users, to eight decimals, given what a user of each kind adds, each (kinds,), and how
    many users there are of each kind, (kinds,)."""
    n_users = counts.sum()
    return {name: round(float((counts * gain).sum() / n_users), DECIMALS) for name, gain in gain_by_name.items()}


def means_with_intervals(gain_by_name: Mapping[str, np.ndarray], counts: np.ndarray) -> dict[str, float]:
    """`means`, each with its 95 % percentile bootstrap interval over users as `…_low` and `…_high`.

    A resample of the users is a multinomial draw over their kinds, so that it costs the same for any number of users.
    """
    n_users = counts.sum()
    resamples = np.random.default_rng(BOOTSTRAP_SEED).multinomial(n_users, counts / n_users, size=RESAMPLES)
    row = {}
    for name, mean in means(gain_by_name, counts).items():
        low, high = np.percentile((resamples * gain_by_name[name]).sum(1) / n_users, [2.5, 97.5])
        row[name] = mean
        row[f"{name}_low"], row[f"{name}_high"] = round(float(low), DECIMALS), round(float(high), DECIMALS)
    return row
