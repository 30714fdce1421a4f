"""Residual vector quantisation of the vectors themselves, codebooks learned by gradient, without an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tigerrec.config import AtLeastOne, options
from tigerrec.tokenizers import Codes, State
from tigerrec.tokenizers.autoencoder import Progress, optimise, restored, standardisation, standardised
from tigerrec.tokenizers.codebooks import ResidualCodes
from tigerrec.tokenizers.residual import LearnedCodebooks, ResidualQuantizer

if TYPE_CHECKING:
    import torch


@options
class RVQ(ResidualCodes, LearnedCodebooks):
    """Residual codebooks of standardised vectors, moved by the gradient of the squared error that each level leaves."""

    family: ClassVar[str] = "rvq"
    epochs: AtLeastOne = 100

    def fit(self, vectors: np.ndarray, *, seed: int, extra: Mapping[str, np.ndarray]) -> tuple[State, Codes]:
        """Learn `codebook_<level>` (k, D), k ≤ `codebook_size`, for vectors less `mean` over `std` (D,); and the codes,
        int32 (I, L), under them."""
        scale = standardisation(vectors)
        state = {**scale, **train(self, standardised(scale, vectors), seed)}
        return state, self.encode(state, vectors)

    def _latents(self, state: State, vectors: np.ndarray) -> np.ndarray:
        return standardised(state, vectors)

    def _restored(self, state: State, latents: np.ndarray) -> np.ndarray:
        return restored(state, latents)


def train(tokenizer: RVQ, rows: np.ndarray, seed: int) -> State:
    """The codebooks learned from standardised rows, float32 (I, D).

    Raises:
        TokenizeError: the loss is no longer finite.
    """
    import torch

    data = torch.from_numpy(rows)
    quantizer = ResidualQuantizer(tokenizer, rows, seed)

    def step(items: torch.Tensor, progress: Progress) -> torch.Tensor:
        return quantizer.quantize(data[items], progress)[2]

    optimise(
        tokenizer,
        [{"params": quantizer.codebooks.parameters()}],
        len(data),
        seed,
        step,
        before_epoch=lambda progress: quantizer.begin_epoch(),
        after_epoch=lambda progress: quantizer.end_epoch(lambda: data, progress),
    )
    return quantizer.state()
