"""How training gives residuals to codewords; outside training each takes the nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tigerrec.config import options
from tigerrec.ranges import at_least_one
from tigerrec.sinkhorn import LEAST_EPSILON, balanced_codes

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Assignment(Protocol):
    """Chooses codes in training: a frozen dataclass of settings."""

    def assign(self, level: int, distances: torch.Tensor) -> torch.Tensor:
        """The code of each residual, int64 (n,), from squared distances (n, k) to the codewords of a level."""
        ...


@options
class Nearest:
    """The nearest codeword."""

    def assign(self, level: int, distances: torch.Tensor) -> torch.Tensor:
        """The first of the nearest codewords."""
        return distances.argmin(dim=1)


@options
class Sinkhorn:
    """On some levels the codes of a batch are used evenly, as in LC-Rec (Zheng et al. 2023, arXiv 2311.09049, section
    3.1.2); the nearest elsewhere.

    Args:
        levels: where, from 0.
        epsilon: weight of the entropy against distances scaled to [-1, 1], at least 0.003; the smaller, the nearer to
            the cheapest even assignment.
        iterations: of Sinkhorn's algorithm.
    """

    levels: tuple[int, ...] = (2,)
    epsilon: float = 0.003
    iterations: int = 50

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 0:
            raise ValueError(f"levels must name levels from 0 up, got {self.levels}")
        if not self.epsilon >= LEAST_EPSILON:
            raise ValueError(
                f"epsilon must be at least {LEAST_EPSILON}, below which exponentials overflow, got {self.epsilon}"
            )
        at_least_one(self, "iterations")

    def assign(self, level: int, distances: torch.Tensor) -> torch.Tensor:
        """The balanced codes of the batch on the levels named, the nearest on others."""
        import torch

        if level not in self.levels:
            return distances.argmin(dim=1)
        return torch.from_numpy(balanced_codes(distances.numpy(), self.epsilon, self.iterations))
