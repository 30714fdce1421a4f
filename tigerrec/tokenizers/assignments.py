"""How training gives residuals to codewords; outside training each takes the nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Assignment(Protocol):
    """Chooses codes in training: a frozen dataclass of settings."""

    def assign(self, level: int, distances: torch.Tensor) -> torch.Tensor:
        """The code of each residual, int64 (n,), from squared distances (n, k) to the codewords of a level."""
        ...


@dataclass(frozen=True)
class Nearest:
    """The nearest codeword."""

    def assign(self, level: int, distances: torch.Tensor) -> torch.Tensor:
        """The first of the nearest codewords."""
        return distances.argmin(dim=1)


@dataclass(frozen=True)
class Sinkhorn:
    """On some levels the codes of a batch are used evenly, as in LC-Rec (Zheng et al. 2023, arXiv 2311.09049, section 3.1.2); the nearest elsewhere.

    Args:
        levels: where, from 0.
        epsilon: weight of the entropy against distances scaled to [-1, 1]; the smaller, the nearer to the cheapest even assignment.
        iterations: of Sinkhorn's algorithm.
    """

    levels: tuple[int, ...] = (2,)
    epsilon: float = 0.003
    iterations: int = 50

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 0:
            raise ValueError(f"levels must name levels from 0 up, got {self.levels}")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be above 0, got {self.epsilon}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    def assign(self, level: int, distances: torch.Tensor) -> torch.Tensor:
        """The largest entry of each row of the even plan."""
        return (even_plan(distances, self.epsilon, self.iterations) if level in self.levels else -distances).argmax(dim=1)


def even_plan(distances: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """Sinkhorn's transport plan between rows and codewords that gives every codeword the same weight (Cuturi 2013, arXiv 1306.0895).

    Args:
        distances: (n, k).
        epsilon: weight of the entropy, distances being scaled to [-1, 1].

    Returns:
        Logarithms of the plan, float64 (n, k): rows sum to 1, columns to n / k.
    """
    import math

    distances = distances.double()
    middle, reach = (distances.max() + distances.min()) / 2, (distances.max() - distances.min()) / 2
    plan = (middle - distances) / (reach.clamp(min=1e-9) * epsilon)
    for _ in range(iterations):
        plan = plan - plan.logsumexp(dim=0) + math.log(len(plan) / plan.shape[1])
        plan = plan - plan.logsumexp(dim=1, keepdim=True)
    return plan
