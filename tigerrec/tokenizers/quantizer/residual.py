"""Residual quantisation while its codebooks learn: assignment, estimator and codebooks are parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tigerrec.config import options
from tigerrec.tokenizers.base import State
from tigerrec.tokenizers.quantizer.assignments import Assignment
from tigerrec.tokenizers.quantizer.autoencoder import GradientTraining, Progress
from tigerrec.tokenizers.quantizer.codebooks import EqualLevels, Init, fit_residual_codebooks, squared_distances
from tigerrec.tokenizers.quantizer.estimators import Estimator
from tigerrec.tokenizers.quantizer.learned_codebooks import Codebooks

if TYPE_CHECKING:
    from torch import Tensor

INIT_ITERATIONS = 20


@options
class LearnedCodebooks(GradientTraining, EqualLevels):
    """A tokenizer whose codebooks are trained by gradient.

    Args:
        init: where codewords begin, as in `fit_codebook`.
        restart_share: the share of the epochs, from the first on, after which codes that no item used are moved to
            random residuals; training ends without restarts.
    """

    init: Init = "kmeans++"
    restart_share: Annotated[float, Field(ge=0, le=0.8)] = 0.7

    def restarts(self, progress: Progress) -> bool:
        """Whether unused codes are moved after this epoch."""
        return progress.epoch < self.restart_share * self.epochs


class ResidualQuantizer:
    """Codebooks that learn to quantise what the levels before them leave over; they start from the latents, float32 (I,
    latent), of all items, on their device, and `beta` weighs the commitment term."""

    def __init__(
        self,
        settings: LearnedCodebooks,
        latents: Tensor,
        seed: int,
        beta: float,
        estimator: Estimator,
        codebooks: Codebooks,
        assignment: Assignment,
    ) -> None:
        self.settings, self.beta, self.estimator, self.assignment = settings, beta, estimator, assignment
        initial = fit_residual_codebooks(
            latents.cpu().numpy(), settings.levels, settings.codebook_size, INIT_ITERATIONS, seed, settings.init
        )
        self.codebooks = codebooks.start([latents.new_tensor(codebook) for codebook in initial])
        self.counts = self.no_counts()

    def words(self) -> list[Tensor]:
        """The codewords of each level, (k, latent)."""
        return [self.codebooks.words(level) for level in range(self.settings.levels)]

    def no_counts(self) -> list[Tensor]:
        """How often each code was used before an epoch: never, int64 (k,) a level."""
        import torch

        return [words.new_zeros(len(words), dtype=torch.int64) for words in self.words()]

    def quantize(self, latents: Tensor, progress: Progress) -> tuple[Tensor, list[Tensor], Tensor]:
        """The quantised latents (n, latent), with the gradient that the estimator gives them; the codes a level, int64
        (n,); and the quantisation loss of an item summed over levels, |sg[r] - e|² + beta |r - sg[e]|² (Rajput et al.
        2023, arXiv 2305.05065, section 3.1)."""
        carried, residuals, quantized, codes, loss = latents, latents, latents.new_zeros(()), [], latents.new_zeros(())
        for level, codebook in enumerate(self.words()):
            codes.append(self.assignment.assign(level, squared_distances(residuals.detach(), codebook.detach())))
            words = codebook[codes[-1]]
            loss = (
                loss
                + (residuals.detach() - words).square().sum(dim=1).mean()
                + self.beta * (residuals - words.detach()).square().sum(dim=1).mean()
            )
            passed = self.estimator.quantize(carried, codebook, codes[-1], progress)
            quantized, carried = quantized + passed, carried - passed
            self.counts[level].scatter_add_(0, codes[-1], codes[-1].new_ones(len(latents)))
            self.codebooks.observe(level, residuals.detach(), codes[-1])
            residuals = residuals - words.detach()
        return quantized, codes, loss

    def end_epoch(self, latents: Callable[[], Tensor], progress: Progress) -> None:
        """While restarts last, move each code that no item of the epoch used to the residual of a random item, each to
        another's; `latents` gives those of all items, without gradient."""
        import torch

        counts, self.counts = self.counts, self.no_counts()
        if not self.settings.restarts(progress) or all((count > 0).all() for count in counts):
            return
        residuals = latents()
        for level, count in enumerate(counts):
            unused = torch.nonzero(count == 0)[:, 0][: len(residuals)]
            if len(unused):
                chosen = torch.randperm(len(residuals), generator=progress.generator)[: len(unused)]
                self.codebooks.restart(level, unused, residuals[chosen.to(residuals.device)])
            words = self.codebooks.words(level).detach()
            residuals = residuals - words[squared_distances(residuals, words).argmin(dim=1)]

    def state(self) -> State:
        """`codebook_<level>` (k, latent) of each level, and what they are made of."""
        return self.codebooks.state(self.settings.levels)
