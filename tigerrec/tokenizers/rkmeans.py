"""Residual k-means: each level clusters what the levels before left over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from tigerrec.config import AtLeastOne, Device, options
from tigerrec.storage.fingerprints import not_identity
from tigerrec.tokenizers.base import Codes, State
from tigerrec.tokenizers.quantizer.codebooks import KMeansInit, ResidualCodes, fit_residual_codebooks


@options
class ResidualKMeans(ResidualCodes):
    """Residual k-means on the vectors as they are; `init` and `device` as in `fit_codebook`."""

    family: ClassVar[str] = "rkmeans"
    iterations: AtLeastOne = 50
    init: KMeansInit = "kmeans++"
    device: Device = not_identity(default="cpu")

    def fit(self, vectors: np.ndarray, *, seed: int, extra: Mapping[str, np.ndarray]) -> tuple[State, Codes]:
        """Learn one codebook a level, `codebook_<level>` float32 (k, D), k ≤ `codebook_size`."""
        codebooks = fit_residual_codebooks(
            vectors, self.levels, self.codebook_size, self.iterations, seed, self.init, self.device
        )
        state = {f"codebook_{level}": codebook for level, codebook in enumerate(codebooks)}
        return state, self.encode(state, vectors)
