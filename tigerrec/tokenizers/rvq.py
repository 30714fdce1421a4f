"""Residual vector quantisation of the vectors themselves, codebooks learned by gradient, without an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tigerrec.config import AtLeastOne, options
from tigerrec.tokenizers.base import Codes, State
from tigerrec.tokenizers.quantizer.assignments import Nearest
from tigerrec.tokenizers.quantizer.autoencoder import Progress, optimise, restored, standardisation, standardised
from tigerrec.tokenizers.quantizer.codebooks import ResidualCodes
from tigerrec.tokenizers.quantizer.estimators import StraightThrough
from tigerrec.tokenizers.quantizer.learned_codebooks import Gradient
from tigerrec.tokenizers.quantizer.residual import LearnedCodebooks, ResidualQuantizer

if TYPE_CHECKING:
    from torch import Tensor


@options
class RVQ(ResidualCodes, LearnedCodebooks):
    """Residual codebooks of standardised vectors, moved by the gradient of the squared error that each level leaves."""

    family: ClassVar[str] = "rvq"
    epochs: AtLeastOne = 100

    def fit(self, vectors: np.ndarray, *, seed: int, extra: Mapping[str, np.ndarray]) -> tuple[State, Codes]:
        """Learn `codebook_<level>` (k, D), k ≤ `codebook_size`, for vectors less `mean` over `std` (D,)."""
        scale = standardisation(vectors)
        (data,) = self.on_device(standardised(scale, vectors))
        quantizer = ResidualQuantizer(self, data, seed, 0.0, StraightThrough(), Gradient(), Nearest())

        def step(items: Tensor, progress: Progress) -> Tensor:
            return quantizer.quantize(data[items], progress)[2]

        def end_epoch(progress: Progress) -> None:
            quantizer.end_epoch(lambda: data, progress)

        optimise(self, [{"params": quantizer.codebooks.parameters()}], len(data), seed, step, end_epoch)
        state = scale | quantizer.state()
        return state, self.encode(state, vectors)

    def _latents(self, state: State, vectors: np.ndarray) -> np.ndarray:
        return standardised(state, vectors)

    def _restored(self, state: State, latents: np.ndarray) -> np.ndarray:
        return restored(state, latents)
