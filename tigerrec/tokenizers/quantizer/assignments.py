"""How training gives residuals to codewords; outside training each takes the nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol, runtime_checkable

from pydantic import Field

from tigerrec.config import AtLeastOne, options
from tigerrec.tokenizers.quantizer.sinkhorn import LEAST_EPSILON, balanced_codes

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Assignment(Protocol):
    """Chooses codes in training: a frozen dataclass of settings."""

    family: ClassVar[str]

    def assign(self, level: int, distances: Tensor) -> Tensor:
        """The code of each residual, int64 (n,), from squared distances (n, k) to the codewords of a level."""
        ...


@options
class Nearest:
    """The nearest codeword, the first of equals."""

    family: ClassVar[str] = "nearest"

    def assign(self, level: int, distances: Tensor) -> Tensor:
        return distances.argmin(dim=1)


@options
class Sinkhorn:
    """On some levels the codes of a batch are used evenly, as in LC-Rec (Zheng et al. 2023, arXiv 2311.09049, section
    3.1.2), but see `balanced_codes`; the nearest elsewhere.

    Args:
        levels: where, from 0.
        epsilon: weight of the entropy against distances scaled to [-1, 1]; the smaller, the nearer to the cheapest even
            assignment, and below 0.003 exponentials overflow.
        iterations: of Sinkhorn's algorithm.
    """

    family: ClassVar[str] = "sinkhorn"
    levels: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (2,)
    epsilon: Annotated[float, Field(ge=LEAST_EPSILON)] = 0.003
    iterations: AtLeastOne = 50

    def assign(self, level: int, distances: Tensor) -> Tensor:
        import torch

        if level not in self.levels:
            return distances.argmin(dim=1)
        codes = balanced_codes(distances.cpu().numpy(), self.epsilon, self.iterations)
        return torch.from_numpy(codes).to(distances.device)
