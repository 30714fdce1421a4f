"""Balanced residual k-means: residual k-means in which no codeword takes more than its share of the items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from tigerrec.config import AtLeastOne, options
from tigerrec.runtime.seeds import derived_seed
from tigerrec.tokenizers.base import Codes, State
from tigerrec.tokenizers.quantizer.balanced import fit_balanced
from tigerrec.tokenizers.rkmeans import ResidualKMeans


@options
class BalancedResidualKMeans(ResidualKMeans):
    """Residual k-means whose levels use all their codes alike: of I different vectors, at most ceil(I / k) get one of a
    level's k codewords. Equal vectors share their codes, and an item encoded later gets the nearest codeword. There are
    at most `iterations` plain ones a level, then as many balanced ones."""

    family: ClassVar[str] = "rkmeans_balanced"
    assigns_jointly: ClassVar[bool] = True
    iterations: AtLeastOne = 10

    def fit(self, vectors: np.ndarray, *, seed: int, extra: Mapping[str, np.ndarray]) -> tuple[State, Codes]:
        """Learn one codebook a level, `codebook_<level>` float32 (k, D), k ≤ `codebook_size`; the codes are
        balanced."""
        distinct, inverse = np.unique(vectors, axis=0, return_inverse=True)
        residuals, codes, state = distinct.astype(np.float64), [], {}
        for level in range(self.levels):
            level_seed = derived_seed(seed, "codebook", level)
            codebook, chosen = fit_balanced(
                residuals, self.codebook_size, self.iterations, level_seed, self.init, self.device
            )
            residuals = residuals - codebook[chosen]
            state[f"codebook_{level}"] = codebook
            codes.append(chosen)
        return state, np.stack(codes, axis=1).astype(np.int32)[inverse.reshape(-1)]
