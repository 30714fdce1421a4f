"""Residual k-means: each level clusters what the levels before left over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from tigerrec.config import options
from tigerrec.tokenizers import Codes, State, check_least
from tigerrec.tokenizers.codebooks import (
    KMEANS_INITS,
    decode_residuals,
    encode_residuals,
    fit_residual_codebooks,
    in_blocks,
    residual_distances,
)


@options
class ResidualKMeans:
    """Residual k-means on the vectors as they are.

    Args:
        levels: the number of codes an item.
        codebook_size: the number of codewords a level.
        iterations: k-means iterations a level.
        init: how k-means starts, one of `KMEANS_INITS`.
    """

    family: ClassVar[str] = "rkmeans"
    needs: ClassVar[tuple[str, ...]] = ()
    assigns_jointly: ClassVar[bool] = False
    levels: int = 3
    codebook_size: int = 256
    iterations: int = 50
    init: str = "kmeans++"

    def __post_init__(self) -> None:
        check_least(self, levels=1, codebook_size=2, iterations=1)
        if self.init not in KMEANS_INITS:
            raise ValueError(f"init must be one of {', '.join(KMEANS_INITS)}, got {self.init!r}")

    @property
    def code_sizes(self) -> tuple[int, ...]:
        """The number of codes a level."""
        return (self.codebook_size,) * self.levels

    def _codebooks(self, state: State) -> list[np.ndarray]:
        return [state[f"codebook_{level}"] for level in range(self.levels)]

    def fit(self, vectors: np.ndarray, *, seed: int, extra: Mapping[str, np.ndarray]) -> tuple[State, Codes]:
        """Learn one codebook a level, `codebook_<level>` float32 (k, D), k ≤ `codebook_size`."""
        codebooks = fit_residual_codebooks(vectors, self.levels, self.codebook_size, self.iterations, seed, self.init)
        state = {f"codebook_{level}": codebook for level, codebook in enumerate(codebooks)}
        return state, self.encode(state, vectors)

    def encode(self, state: State, vectors: np.ndarray) -> Codes:
        """Codes, int32 (n, L), each level the codeword nearest to the residual."""
        codebooks = self._codebooks(state)
        return in_blocks(lambda block: encode_residuals(block, codebooks), vectors)

    def decode(self, state: State, codes: Codes) -> np.ndarray:
        """Vectors, float64 (n, D): the sum of the codewords."""
        return decode_residuals(codes, self._codebooks(state))

    def distances(self, state: State, vectors: np.ndarray, codes: Codes) -> np.ndarray:
        """Squared distances, float64 (n, `codebook_size`), of the residuals of vectors (n, D) after codes (n, l) to the
        codewords of level l."""
        return residual_distances(vectors, codes, self._codebooks(state), self.codebook_size)
