"""RQ-VAE: an autoencoder whose latent vector is quantised by residual codebooks (Rajput et al. 2023, arXiv 2305.05065,
section 3.1).

Its variations are parts: how gradients pass the quantiser, how codewords learn, how training assigns them, and what
else is learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tigerrec.config import AtLeastOne, NotNegative, options
from tigerrec.tokenizers.base import Codes, State
from tigerrec.tokenizers.quantizer import autoencoder
from tigerrec.tokenizers.quantizer.assignments import Assignment, Nearest, Sinkhorn
from tigerrec.tokenizers.quantizer.codebooks import ResidualCodes
from tigerrec.tokenizers.quantizer.estimators import Estimator, StraightThrough
from tigerrec.tokenizers.quantizer.learned_codebooks import Codebooks, Gradient, MovingAverage
from tigerrec.tokenizers.quantizer.objectives import Letter, Objective, Quantized, Reconstruction
from tigerrec.tokenizers.quantizer.residual import LearnedCodebooks, ResidualQuantizer

if TYPE_CHECKING:
    from torch import Tensor


@options
class RQVAE(ResidualCodes, LearnedCodebooks):
    """TIGER's tokenizer: MLP encoder, residual quantiser, mirrored MLP decoder.

    Args:
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        latent_dim: dimension of the codewords.
        beta: weight of the commitment term.
        weight_decay: decay of the encoder's and decoder's weights, not of the codebooks.
        estimator: how gradients pass the quantiser.
        codebooks: how codewords learn.
        assignment: how training gives residuals to codewords.
        objective: what is learned beside the quantisation.
    """

    family: ClassVar[str] = "rqvae"
    hidden: autoencoder.Widths = (512, 256, 128)
    latent_dim: AtLeastOne = 32
    beta: NotNegative = 0.25
    weight_decay: NotNegative = 0.0
    estimator: Estimator = field(default_factory=StraightThrough)
    codebooks: Codebooks = field(default_factory=Gradient)
    assignment: Assignment = field(default_factory=Nearest)
    objective: Objective = field(default_factory=Reconstruction)

    def __post_init__(self) -> None:
        codebooks = type(self.codebooks).__name__
        if self.restart_share and not self.codebooks.can_restart:
            raise ValueError(f"restart_share must be 0 with {codebooks} codebooks, whose codes do not move one by one")
        if isinstance(self.assignment, Sinkhorn):
            levels = self.assignment.levels
            if max(levels) >= self.levels:
                raise ValueError(f"assignment.levels must name levels from 0 to {self.levels - 1}, got {levels}")
            if not self.estimator.follows_codes:
                raise ValueError(
                    f"assignment must be Nearest with the estimator {type(self.estimator).__name__}, which mixes "
                    "codewords itself"
                )
        if (
            isinstance(self.codebooks, MovingAverage)
            and isinstance(self.objective, Letter)
            and self.objective.diversity
        ):
            raise ValueError(
                f"objective.diversity must be 0 with {codebooks} codebooks, whose codewords have no gradient"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """What the objective reads."""
        return self.objective.needs

    def fit(self, vectors: np.ndarray, *, seed: int, extra: Mapping[str, np.ndarray]) -> tuple[State, Codes]:
        """Train the autoencoder and its codebooks. The state is `mean`, `std` (D,) of the vectors,
        `encoder.<i>.weight|bias`, `decoder.<i>.weight|bias`, `codebook_<level>` (k, latent), k ≤ `codebook_size`, and
        what the codebooks are made of."""
        import torch

        scale = autoencoder.standardisation(vectors)
        (data,) = self.on_device(autoencoder.standardised(scale, vectors))
        sizes = vectors.shape[1], *self.hidden, self.latent_dim
        encoder, decoder = (part.to(data.device) for part in autoencoder.build_autoencoder(sizes, seed))
        with torch.no_grad():
            latents = encoder(data)
        quantizer = ResidualQuantizer(self, latents, seed, self.beta, self.estimator, self.codebooks, self.assignment)
        objective = self.objective.start(extra, self.latent_dim, seed)

        def step(items: Tensor, progress: autoencoder.Progress) -> Tensor:
            words = quantizer.words()
            latents, codes, quantization = quantizer.quantize(encoder(data[items]), progress)
            batch = Quantized(items, data[items], latents, decoder(latents), codes, words, quantization)
            return objective(batch, progress)

        @torch.no_grad()
        def end_epoch(progress: autoencoder.Progress) -> None:
            quantizer.end_epoch(lambda: encoder(data), progress)

        groups: list[dict[str, Any]] = [
            {"params": [*encoder.parameters(), *decoder.parameters()], "weight_decay": self.weight_decay},
            {"params": quantizer.codebooks.parameters()},
        ]
        autoencoder.optimise(self, groups, len(data), seed, step, end_epoch)
        state = scale | autoencoder.networks_state(encoder=encoder, decoder=decoder) | quantizer.state()
        return state, self.encode(state, vectors)

    def _latents(self, state: State, vectors: np.ndarray) -> np.ndarray:
        return autoencoder.encoded(state, vectors)

    def _restored(self, state: State, latents: np.ndarray) -> np.ndarray:
        return autoencoder.decoded(state, latents)
