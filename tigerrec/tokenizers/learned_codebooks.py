"""How the codewords of a residual quantiser learn: by their gradient, as moving averages, or through one linear map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from tigerrec.config import options
from tigerrec.tokenizers import State

if TYPE_CHECKING:
    import torch

LEAST_COUNT = 1e-12


class RunningCodebooks(Protocol):
    """The codebooks of all levels while they learn."""

    def words(self, level: int) -> torch.Tensor:
        """The codewords of a level, (k, latent), with a gradient where they learn by it."""
        ...

    def parameters(self) -> list[torch.Tensor]:
        """What the optimizer moves."""
        ...

    def observe(self, level: int, residuals: torch.Tensor, codes: torch.Tensor) -> None:
        """See which residuals (n, latent) chose which codes (n,)."""
        ...

    def restart(self, level: int, codes: torch.Tensor, residuals: torch.Tensor) -> None:
        """Move some codes (m,) to residuals (m, latent)."""
        ...

    def state(self) -> State:
        """`codebook_<level>` (k, latent) of each level, and what they are made of."""
        ...


@runtime_checkable
class Codebooks(Protocol):
    """A way of learning codewords: a frozen dataclass of settings."""

    can_restart: ClassVar[bool]
    """Whether single codes can be moved."""

    def start(self, initial: Sequence[torch.Tensor]) -> RunningCodebooks:
        """Begin from codewords (k, latent), one matrix a level."""
        ...


@options
class Gradient:
    """Codewords are weights (van den Oord et al. 2017, arXiv 1711.00937)."""

    family: ClassVar[str] = "gradient"

    can_restart: ClassVar[bool] = True

    def start(self, initial: Sequence[torch.Tensor]) -> RunningCodebooks:
        """Codewords as weights."""
        return GradientCodebooks(initial)


class GradientCodebooks:
    """Codewords as weights."""

    def __init__(self, initial: Sequence[torch.Tensor]) -> None:
        self.weights = [words.clone().requires_grad_() for words in initial]

    def words(self, level: int) -> torch.Tensor:
        """The weights of a level."""
        return self.weights[level]

    def parameters(self) -> list[torch.Tensor]:
        """All weights."""
        return self.weights

    def observe(self, level: int, residuals: torch.Tensor, codes: torch.Tensor) -> None:
        """Nothing: the loss says it."""

    def restart(self, level: int, codes: torch.Tensor, residuals: torch.Tensor) -> None:
        """Set the weights."""
        self.weights[level].data[codes] = residuals

    def state(self) -> State:
        """The weights."""
        return {f"codebook_{level}": words.detach().numpy() for level, words in enumerate(self.weights)}


@options
class MovingAverage:
    """A codeword is the exponential moving average of the residuals that choose it (van den Oord et al. 2017, arXiv
    1711.00937, appendix A.1).

    Args:
        decay: share of the average that a step keeps.
    """

    family: ClassVar[str] = "moving_average"

    decay: float = 0.99

    can_restart: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be from 0 to below 1, got {self.decay}")

    def start(self, initial: Sequence[torch.Tensor]) -> RunningCodebooks:
        """Averages that begin as if each codeword had been chosen once."""
        return MovingAverageCodebooks(initial, self.decay)


class MovingAverageCodebooks:
    """Sums of residuals and counts of choices, both decaying."""

    def __init__(self, initial: Sequence[torch.Tensor], decay: float) -> None:
        self.decay = decay
        self.sums = [words.clone() for words in initial]
        self.counts = [words.new_ones(len(words)) for words in initial]
        self.averages = [words.clone() for words in initial]

    def words(self, level: int) -> torch.Tensor:
        """Sums over counts; a code that is no longer chosen stays where it is."""
        return self.averages[level]

    def parameters(self) -> list[torch.Tensor]:
        """Nothing."""
        return []

    def observe(self, level: int, residuals: torch.Tensor, codes: torch.Tensor) -> None:
        """Mix a batch into the averages."""
        sums = self.sums[level].new_zeros(self.sums[level].shape).index_add_(0, codes, residuals)
        self.sums[level].mul_(self.decay).add_(sums, alpha=1 - self.decay)
        self.counts[level].mul_(self.decay).add_(
            codes.bincount(minlength=len(self.counts[level])), alpha=1 - self.decay
        )
        chosen = self.counts[level] > LEAST_COUNT
        self.averages[level] = (self.sums[level] / self.counts[level][:, None]).where(
            chosen[:, None], self.averages[level]
        )

    def restart(self, level: int, codes: torch.Tensor, residuals: torch.Tensor) -> None:
        """Begin some averages again."""
        self.sums[level][codes] = self.averages[level][codes] = residuals
        self.counts[level][codes] = 1.0

    def state(self) -> State:
        """The averages."""
        return {f"codebook_{level}": words.numpy() for level, words in enumerate(self.averages)}


@options
class SimVQ:
    """Codewords are a frozen matrix times one learned linear map, so that all move together (Zhu et al. 2024, arXiv
    2411.02038)."""

    family: ClassVar[str] = "simvq"

    can_restart: ClassVar[bool] = False

    def start(self, initial: Sequence[torch.Tensor]) -> RunningCodebooks:
        """The frozen matrices, and maps that begin as the identity."""
        return SimVQCodebooks(initial)


class SimVQCodebooks:
    """A frozen matrix and a learned map a level."""

    def __init__(self, initial: Sequence[torch.Tensor]) -> None:
        import torch

        self.frozen = [words.clone() for words in initial]
        self.maps = [torch.eye(words.shape[1], requires_grad=True) for words in initial]

    def words(self, level: int) -> torch.Tensor:
        """The frozen matrix, mapped."""
        return self.frozen[level] @ self.maps[level].T

    def parameters(self) -> list[torch.Tensor]:
        """The maps."""
        return self.maps

    def observe(self, level: int, residuals: torch.Tensor, codes: torch.Tensor) -> None:
        """Nothing: the loss says it."""

    def restart(self, level: int, codes: torch.Tensor, residuals: torch.Tensor) -> None:
        """Never asked for: `can_restart` is false."""
        raise RuntimeError("the codewords of SimVQ are frozen")

    def state(self) -> State:
        """The mapped codewords, `frozen_<level>` (k, latent) and `map_<level>` (latent, latent)."""
        mapped = {f"codebook_{level}": self.words(level).detach().numpy() for level in range(len(self.maps))}
        frozen = {f"frozen_{level}": words.numpy() for level, words in enumerate(self.frozen)}
        return mapped | frozen | {f"map_{level}": matrix.detach().numpy() for level, matrix in enumerate(self.maps)}
