"""Finite scalar quantisation: an autoencoder whose latent dimensions are rounded, one a level (Mentzer et al. 2023,
arXiv 2309.15505)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tigerrec.config import AtLeastOne, NotNegative, Positive, options
from tigerrec.tokenizers.base import Codes, State
from tigerrec.tokenizers.quantizer import autoencoder
from tigerrec.tokenizers.quantizer.codebooks import AtLeastTwo, EqualLevels, in_blocks
from tigerrec.tokenizers.quantizer.estimators import with_value

if TYPE_CHECKING:
    from torch import Tensor

MARGIN, LARGEST_MARGIN = 1e-3, 0.25


@options
class FSQ(autoencoder.GradientTraining, EqualLevels):
    """An autoencoder with a bounded latent dimension a level, rounded to one of `codebook_size` grid points; there is
    no codebook to learn.

    Args:
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        weight_decay: decay of the weights.
    """

    family: ClassVar[str] = "fsq"
    levels: AtLeastOne = 4
    codebook_size: AtLeastTwo = 32
    hidden: autoencoder.Widths = (512, 256, 128)
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 0.0

    def fit(self, vectors: np.ndarray, *, seed: int, extra: Mapping[str, np.ndarray]) -> tuple[State, Codes]:
        """Train the autoencoder with straight-through gradients; the state is `mean`, `std` (D,) of the vectors,
        `encoder.<i>.weight|bias` and `decoder.<i>.weight|bias`."""
        import torch

        scale, size = autoencoder.standardisation(vectors), self.codebook_size
        (data,) = self.on_device(autoencoder.standardised(scale, vectors))
        sizes = vectors.shape[1], *self.hidden, self.levels
        encoder, decoder = (part.to(data.device) for part in autoencoder.build_autoencoder(sizes, seed))

        def step(items: Tensor, progress: autoencoder.Progress) -> Tensor:
            latents = bounded(encoder(data[items]), size, torch.tanh)
            reconstructed = decoder(scaled(with_value(latents.round(), latents), size))
            loss: Tensor = (reconstructed - data[items]).square().sum(dim=1).mean()
            return loss

        weights = [*encoder.parameters(), *decoder.parameters()]
        autoencoder.optimise(self, [{"params": weights, "weight_decay": self.weight_decay}], len(data), seed, step)
        state = scale | autoencoder.networks_state(encoder=encoder, decoder=decoder)
        return state, self.encode(state, vectors)

    def encode(self, state: State, vectors: np.ndarray) -> Codes:
        """Codes, int32 (n, L): the number of the nearest grid point of each dimension."""
        return grid_codes(np.rint(self._bounded(state, vectors)), self.codebook_size)

    def decode(self, state: State, codes: Codes) -> np.ndarray:
        """Vectors, float64 (n, D), that the decoder makes of the grid points."""
        return autoencoder.decoded(state, scaled(grid_points(codes, self.codebook_size), self.codebook_size))

    def distances(self, state: State, vectors: np.ndarray, codes: Codes) -> np.ndarray:
        """Distances, float64 (n, `codebook_size`), to the grid points of the next dimension."""
        points = grid_points(np.arange(self.codebook_size), self.codebook_size)
        return np.abs(self._bounded(state, vectors)[:, codes.shape[1], None] - points)

    def _bounded(self, state: State, vectors: np.ndarray) -> np.ndarray:
        """The latent vectors, float64 (n, L), that are rounded."""
        size = self.codebook_size
        return in_blocks(lambda block: bounded(autoencoder.encoded(state, block), size, np.tanh), vectors)


def bounded(latents: Any, size: int, tanh: Callable[[Any], Any]) -> Any:
    """Latents of any shape within the reach of `size` whole numbers around 0, so that 0 stays and each of them is the
    nearest to some; `tanh` is that of their library, numpy or torch."""
    reach = (size - 1) / 2 + min((size - 1) * MARGIN / 2, LARGEST_MARGIN)
    offset = 0.5 if size % 2 == 0 else 0.0
    return tanh(latents + math.atanh(offset / reach)) * reach - offset


def grid_codes(points: np.ndarray, size: int) -> Codes:
    """The codes, int32 from 0 to `size` - 1, of grid points, whole numbers from -(size // 2) on."""
    return (points + size // 2).astype(np.int32)


def grid_points(codes: np.ndarray, size: int) -> np.ndarray:
    """The grid points of codes, float64."""
    return codes.astype(np.float64) - size // 2


def scaled(points: Any, size: int) -> Any:
    """Grid points as the decoder reads them, between -1 and 1."""
    return points / (size // 2)
