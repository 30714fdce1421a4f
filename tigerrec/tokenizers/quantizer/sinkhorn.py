"""Entropic optimal transport: how rows share out columns evenly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

LEAST_EPSILON = 0.003
"""The smallest weight whose exponentials stay within double precision in all iterations."""


def even_plan(distances: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """Sinkhorn's transport plan that gives every column the same weight at low cost (Cuturi 2013, arXiv 1306.0895,
    algorithm 1), from finite distances (n, k).

    `epsilon`, at least `LEAST_EPSILON`, weighs the entropy against distances scaled to [-1, 1]. The result are
    logarithms, float64 (n, k), of a plan whose rows sum to 1 and columns to n / k.
    """
    distances = distances.double()
    middle, reach = (distances.max() + distances.min()) / 2, (distances.max() - distances.min()) / 2
    exponents = (middle - distances) / (reach.clamp(min=1e-9) * epsilon)
    kernel = exponents.exp()
    rows = kernel.new_ones(len(kernel))
    for _ in range(iterations):
        columns = len(kernel) / kernel.shape[1] / (rows @ kernel)
        rows = 1 / (kernel @ columns)
    return exponents + rows.log()[:, None] + columns.log()


def balanced_codes(distances: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """A code for each row of finite distances (n, k), int64 (n,): of the codes that the plan gives mostly to the row
    the nearest, and where there is none the one of which it gives the row most. Where codes outnumber rows, a row has
    many codes in about equal shares, so the largest share alone, which LC-Rec takes, would be a choice by rounding."""
    import torch

    plan = even_plan(torch.from_numpy(distances), epsilon, iterations).numpy()
    is_mine = plan.argmax(axis=0) == np.arange(len(plan))[:, None]
    nearest = np.where(is_mine, distances, np.inf).argmin(axis=1)
    return np.where(is_mine.any(axis=1), nearest, plan.argmax(axis=1))
