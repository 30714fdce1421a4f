"""How the gradient passes a quantiser, whose choice of a codeword has none.

Each estimator gives the quantised residuals as a function of the residuals: the value is the codeword (for
Gumbel-softmax a mixture that sharpens), the gradient is the estimator's idea. Factors made of the residuals or
codewords are constants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from tigerrec.config import Positive, options
from tigerrec.tokenizers.quantizer.codebooks import squared_distances

if TYPE_CHECKING:
    from torch import Tensor

    from tigerrec.tokenizers.quantizer.autoencoder import Progress

NO_DIRECTION = 1e-6
SMALLEST_DISTANCE = 1e-9
LEAST_RELAXATION = 0.5
"""Of the temperature of Gumbel-softmax, as in its paper: gradients below vary too much."""


@runtime_checkable
class Estimator(Protocol):
    """Quantises with a gradient: a frozen dataclass of settings."""

    family: ClassVar[str]
    follows_codes: ClassVar[bool]
    """Whether the value is the codeword of the code that was chosen."""

    def quantize(self, residuals: Tensor, codebook: Tensor, codes: Tensor, progress: Progress) -> Tensor:
        """The quantised residuals (n, latent), with their gradient, of residuals (n, latent), a codebook (k, latent)
        and the chosen codes (n,)."""
        ...


@options
class StraightThrough:
    """The gradient passes unchanged (Bengio et al. 2013, arXiv 1308.3432; van den Oord et al. 2017, 1711.00937)."""

    family: ClassVar[str] = "straight_through"
    follows_codes: ClassVar[bool] = True

    def quantize(self, residuals: Tensor, codebook: Tensor, codes: Tensor, progress: Progress) -> Tensor:
        return with_value(codebook[codes], residuals)


@options
class Rotation:
    """The codeword as the residual rotated and scaled, so that a gradient keeps its angle to the codeword (Fifty et al.
    2024, arXiv 2410.06424, section 4)."""

    family: ClassVar[str] = "rotation"
    follows_codes: ClassVar[bool] = True

    def quantize(self, residuals: Tensor, codebook: Tensor, codes: Tensor, progress: Progress) -> Tensor:
        words = codebook[codes].detach()
        start, end = unit(residuals.detach()), unit(words)
        between = unit(start + end)
        rotated = residuals - 2 * dot(residuals, between) * between + 2 * dot(residuals, start) * end
        return with_value(words, stretch(residuals, words) * rotated)


@options
class Reflection:
    """The codeword as the residual mirrored and scaled, by the Householder reflection that takes the one's direction to
    the other's: the contrast to `Rotation`."""

    family: ClassVar[str] = "reflection"
    follows_codes: ClassVar[bool] = True

    def quantize(self, residuals: Tensor, codebook: Tensor, codes: Tensor, progress: Progress) -> Tensor:
        words = codebook[codes].detach()
        across = unit(unit(residuals.detach()) - unit(words))
        mirrored = residuals - 2 * dot(residuals, across) * across
        return with_value(words, stretch(residuals, words) * mirrored)


@options
class Gumbel:
    """A mixture of codewords by Gumbel-softmax (Jang et al. 2017, arXiv 1611.01144), annealed.

    A codeword's probability falls with exp(-squared distance / temperature), as in SQ-VAE (Takida et al. 2022, arXiv
    2205.07547), and the temperature of the softmax falls with it, from 1 to 0.5: a draw becomes the nearest codeword,
    and a mixture only where several are about equally near. Codewords have gradients as well.

    Args:
        start_temperature: of the probabilities in the first epoch, in units of the mean squared distance between
            residuals and codewords.
        end_temperature: in the last; between them it falls geometrically.
    """

    family: ClassVar[str] = "gumbel"
    follows_codes: ClassVar[bool] = False
    start_temperature: Positive = 0.1
    end_temperature: Positive = 0.005

    def __post_init__(self) -> None:
        if self.end_temperature > self.start_temperature:
            raise ValueError(
                f"end_temperature must be at most start_temperature ({self.start_temperature}), got "
                f"{self.end_temperature}"
            )

    def temperature(self, share: float) -> float:
        """The temperature after a share of training."""
        return float(self.start_temperature * (self.end_temperature / self.start_temperature) ** share)

    def quantize(self, residuals: Tensor, codebook: Tensor, codes: Tensor, progress: Progress) -> Tensor:
        import torch

        distances = squared_distances(residuals, codebook)
        draws = torch.empty(distances.shape, dtype=distances.dtype).exponential_(generator=progress.generator)
        noise = -draws.to(distances.device).clamp(min=torch.finfo(distances.dtype).tiny).log()
        temperature = self.temperature(progress.share)
        scale = temperature * distances.detach().mean().clamp(min=SMALLEST_DISTANCE)
        relaxation = max(temperature / self.start_temperature, LEAST_RELAXATION)
        weights: Tensor = ((noise - distances / scale) / relaxation).softmax(dim=1)
        return weights @ codebook


def with_value(value: Tensor, gradient: Tensor) -> Tensor:
    """A tensor with the value of one and the gradient of another of the same shape."""
    return gradient + (value - gradient).detach()


def unit(rows: Tensor) -> Tensor:
    """Rows (n, latent) at length 1; rows of almost no length become 0."""
    lengths = rows.norm(dim=1, keepdim=True)
    return (rows / lengths.clamp(min=NO_DIRECTION)) * (lengths > NO_DIRECTION)


def dot(one: Tensor, other: Tensor) -> Tensor:
    """Products of rows (n, latent), (n, 1)."""
    return (one * other).sum(dim=1, keepdim=True)


def stretch(residuals: Tensor, words: Tensor) -> Tensor:
    """The lengths of codewords over those of residuals, a constant (n, 1); 1 where a residual has almost no length."""
    import torch

    lengths = residuals.detach().norm(dim=1, keepdim=True)
    return torch.where(lengths > NO_DIRECTION, words.norm(dim=1, keepdim=True) / lengths.clamp(min=NO_DIRECTION), 1.0)
