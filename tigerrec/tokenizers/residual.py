"""Residual quantisation while its codebooks learn: assignment, estimator and codebooks are parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tigerrec.tokenizers import State
from tigerrec.tokenizers.assignments import Assignment
from tigerrec.tokenizers.autoencoder import Progress
from tigerrec.tokenizers.codebooks import fit_residual_codebooks
from tigerrec.tokenizers.estimators import Estimator
from tigerrec.tokenizers.learned_codebooks import Codebooks

if TYPE_CHECKING:
    import torch

INIT_ITERATIONS = 20
LARGEST_RESTART_SHARE = 0.8


class Settings(Protocol):
    """What a tokenizer with learned residual codebooks says of them."""

    @property
    def levels(self) -> int: ...
    @property
    def codebook_size(self) -> int: ...
    @property
    def init(self) -> str: ...
    @property
    def epochs(self) -> int: ...
    @property
    def restart_share(self) -> float: ...
    @property
    def estimator(self) -> Estimator: ...
    @property
    def codebooks(self) -> Codebooks: ...
    @property
    def assignment(self) -> Assignment: ...


class ResidualQuantizer:
    """Codebooks that learn to quantise what the levels before them leave over.

    Args:
        settings: of the tokenizer.
        latents: of all items, float32 (I, latent), from which the codebooks start.
        beta: weight of the commitment term.
    """

    def __init__(self, settings: Settings, latents: np.ndarray, beta: float, seed: int) -> None:
        import torch

        self.settings, self.beta = settings, beta
        initial = fit_residual_codebooks(
            latents, settings.levels, settings.codebook_size, INIT_ITERATIONS, seed, init=settings.init
        )
        self.codebooks = settings.codebooks.start([torch.from_numpy(codebook) for codebook in initial])
        self.counts: list[torch.Tensor] = []

    def words(self) -> list[torch.Tensor]:
        """The codewords of each level, (k, latent)."""
        return [self.codebooks.words(level) for level in range(self.settings.levels)]

    def begin_epoch(self) -> None:
        """Count the use of codes anew."""
        import torch

        self.counts = [torch.zeros(len(words), dtype=torch.int64) for words in self.words()]

    def quantize(
        self, latents: torch.Tensor, progress: Progress
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Quantise latents (n, latent).

        Returns:
            The quantised latents (n, latent), with the gradient that the estimator gives them; the codes a level, int64
            (n,); and the quantisation
            loss of an item summed over levels, |sg[r] - e|² + beta |r - sg[e]|² (Rajput et al. 2023, arXiv 2305.05065,
            section 3.1).
        """
        carried, residuals, quantized, codes, loss = latents, latents, latents.new_zeros(()), [], latents.new_zeros(())
        for level, codebook in enumerate(self.words()):
            codes.append(
                self.settings.assignment.assign(level, squared_distances(residuals.detach(), codebook.detach()))
            )
            words = codebook[codes[-1]]
            loss = (
                loss
                + (residuals.detach() - words).square().sum(dim=1).mean()
                + self.beta * (residuals - words.detach()).square().sum(dim=1).mean()
            )
            passed = self.settings.estimator.quantize(carried, codebook, codes[-1], progress)
            quantized, carried = quantized + passed, carried - passed
            self.counts[level] += codes[-1].bincount(minlength=len(codebook))
            self.codebooks.observe(level, residuals.detach(), codes[-1])
            residuals = residuals - words.detach()
        return quantized, codes, loss

    def end_epoch(self, latents: Callable[[], torch.Tensor], progress: Progress) -> None:
        """In the first `restart_share` of training move each code that no item of the epoch used to the residual of a
        random item.

        Args:
            latents: gives those of all items, without gradient.
        """
        if progress.epoch >= self.settings.restart_share * self.settings.epochs or all(
            (count > 0).all() for count in self.counts
        ):
            return
        residuals = latents()
        for level, count in enumerate(self.counts):
            self.restart(level, count, residuals, progress.generator)
            if level + 1 < len(self.counts):
                words = self.codebooks.words(level).detach()
                residuals = residuals - words[squared_distances(residuals, words).argmin(dim=1)]

    def restart(self, level: int, count: torch.Tensor, residuals: torch.Tensor, generator: torch.Generator) -> None:
        """Move the codes of a level with count 0 to residuals of random items, each to another."""
        import torch

        dead = torch.nonzero(count == 0)[:, 0][: len(residuals)]
        if len(dead):
            self.codebooks.restart(
                level, dead, residuals[torch.randperm(len(residuals), generator=generator)[: len(dead)]]
            )

    def state(self) -> State:
        """`codebook_<level>` (k, latent) of each level, and what they are made of."""
        return self.codebooks.state()


def squared_distances(rows: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Squared distances (n, k) of rows (n, d) to codewords (k, d)."""
    return rows.square().sum(dim=1, keepdim=True) + words.square().sum(dim=1) - 2 * rows @ words.T


def check_codebooks(settings: Any, known_inits: Sequence[str]) -> None:
    """Check `init` and `restart_share`, which all learned codebooks have.

    Raises:
        ValueError: names the field.
    """
    if settings.init not in known_inits:
        raise ValueError(f"init must be one of {', '.join(known_inits)}, got {settings.init!r}")
    if not 0 <= settings.restart_share <= LARGEST_RESTART_SHARE:
        raise ValueError(
            f"restart_share must be between 0 and {LARGEST_RESTART_SHARE}, so that training ends without restarts, "
            f"got {settings.restart_share}"
        )


def check_learning(settings: Settings, known_inits: Sequence[str]) -> None:
    """Check what tokenizers with learned residual codebooks have in common.

    Raises:
        ValueError: names the field.
    """
    check_codebooks(settings, known_inits)
    if settings.restart_share and not settings.codebooks.can_restart:
        raise ValueError(
            f"restart_share must be 0 with {type(settings.codebooks).__name__} codebooks, whose codes do not move one "
            "by one"
        )
    levels = getattr(settings.assignment, "levels", ())
    if levels and max(levels) >= settings.levels:
        raise ValueError(f"assignment.levels must name levels from 0 to {settings.levels - 1}, got {levels}")
    if levels and not settings.estimator.follows_codes:
        raise ValueError(
            f"assignment must be Nearest with the estimator {type(settings.estimator).__name__}, which mixes "
            "codewords itself"
        )
