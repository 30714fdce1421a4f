"""How the codewords of a residual quantiser learn: by their gradient, as moving averages, or through one linear map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from tigerrec.config import BelowOne, options
from tigerrec.tokenizers.base import State

if TYPE_CHECKING:
    from torch import Tensor

LEAST_COUNT = 1e-12


class RunningCodebooks:
    """The codebooks of all levels while they learn."""

    def words(self, level: int) -> Tensor:
        """The codewords of a level, (k, latent), with a gradient where they learn by it."""
        raise NotImplementedError

    def parameters(self) -> list[Tensor]:
        """What the optimizer moves."""
        return []

    def observe(self, level: int, residuals: Tensor, codes: Tensor) -> None:
        """See which residuals (n, latent) chose which codes (n,)."""

    def restart(self, level: int, codes: Tensor, residuals: Tensor) -> None:
        """Move some codes (m,) to residuals (m, latent)."""
        raise NotImplementedError

    def state(self, levels: int) -> State:
        """`codebook_<level>` (k, latent) of each level, and what they are made of."""
        return {f"codebook_{level}": self.words(level).detach().cpu().numpy() for level in range(levels)}


@runtime_checkable
class Codebooks(Protocol):
    """A way of learning codewords: a frozen dataclass of settings."""

    family: ClassVar[str]
    can_restart: ClassVar[bool]
    """Whether single codes can be moved."""

    def start(self, initial: Sequence[Tensor]) -> RunningCodebooks:
        """Begin from codewords (k, latent), one matrix a level."""
        ...


@options
class Gradient:
    """Codewords are weights (van den Oord et al. 2017, arXiv 1711.00937)."""

    family: ClassVar[str] = "gradient"
    can_restart: ClassVar[bool] = True

    def start(self, initial: Sequence[Tensor]) -> RunningCodebooks:
        return GradientCodebooks(initial)


class GradientCodebooks(RunningCodebooks):
    """A matrix of weights a level."""

    def __init__(self, initial: Sequence[Tensor]) -> None:
        self.weights = [words.clone().requires_grad_() for words in initial]

    def words(self, level: int) -> Tensor:
        return self.weights[level]

    def parameters(self) -> list[Tensor]:
        return self.weights

    def restart(self, level: int, codes: Tensor, residuals: Tensor) -> None:
        self.weights[level].data[codes] = residuals


@options
class MovingAverage:
    """A codeword is the exponential moving average of the residuals that choose it, of which a step keeps the share
    `decay` (van den Oord et al. 2017, arXiv 1711.00937, appendix A.1)."""

    family: ClassVar[str] = "moving_average"
    can_restart: ClassVar[bool] = True
    decay: BelowOne = 0.99

    def start(self, initial: Sequence[Tensor]) -> RunningCodebooks:
        return MovingAverageCodebooks(initial, self.decay)


class MovingAverageCodebooks(RunningCodebooks):
    """Sums of residuals over counts of choices, both decaying, as if each codeword had been chosen once before; a code
    that is no longer chosen stays where it is."""

    def __init__(self, initial: Sequence[Tensor], decay: float) -> None:
        self.decay = decay
        self.sums = [words.clone() for words in initial]
        self.counts = [words.new_ones(len(words)) for words in initial]
        self.averages = [words.clone() for words in initial]

    def words(self, level: int) -> Tensor:
        return self.averages[level]

    def observe(self, level: int, residuals: Tensor, codes: Tensor) -> None:
        import torch

        sums, counts = self.sums[level], self.counts[level]
        sums.mul_(self.decay).add_(sums.new_zeros(sums.shape).index_add_(0, codes, residuals), alpha=1 - self.decay)
        chosen_now = torch.zeros_like(counts, dtype=torch.int64).scatter_add_(0, codes, torch.ones_like(codes))
        counts.mul_(self.decay).add_(chosen_now, alpha=1 - self.decay)
        chosen = (counts > LEAST_COUNT)[:, None]
        self.averages[level] = (sums / counts[:, None]).where(chosen, self.averages[level])

    def restart(self, level: int, codes: Tensor, residuals: Tensor) -> None:
        self.sums[level][codes] = self.averages[level][codes] = residuals
        self.counts[level][codes] = 1.0


@options
class SimVQ:
    """Codewords are a frozen matrix times one learned linear map, so that all move together (Zhu et al. 2024, arXiv
    2411.02038)."""

    family: ClassVar[str] = "simvq"
    can_restart: ClassVar[bool] = False

    def start(self, initial: Sequence[Tensor]) -> RunningCodebooks:
        return SimVQCodebooks(initial)


class SimVQCodebooks(RunningCodebooks):
    """A frozen matrix and a learned map a level, which begins as the identity."""

    def __init__(self, initial: Sequence[Tensor]) -> None:
        import torch

        self.frozen = [words.clone() for words in initial]
        self.maps = [torch.eye(words.shape[1], device=words.device, requires_grad=True) for words in initial]

    def words(self, level: int) -> Tensor:
        return self.frozen[level] @ self.maps[level].T

    def parameters(self) -> list[Tensor]:
        return self.maps

    def state(self, levels: int) -> State:
        """Also `frozen_<level>` (k, latent) and `map_<level>` (latent, latent)."""
        frozen = {f"frozen_{level}": words.cpu().numpy() for level, words in enumerate(self.frozen)}
        maps = {f"map_{level}": matrix.detach().cpu().numpy() for level, matrix in enumerate(self.maps)}
        return super().state(levels) | frozen | maps
