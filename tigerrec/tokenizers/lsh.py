"""Locality-sensitive hashing: on which side of random hyperplanes a vector lies (Rajput et al. 2023, arXiv 2305.05065,
section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from tigerrec.config import options
from tigerrec.runtime.seeds import derived_seed
from tigerrec.tokenizers.base import Codes, State
from tigerrec.tokenizers.quantizer.codebooks import EqualLevels, in_blocks


@options
class LSH(EqualLevels):
    """Codes by random hyperplanes through the origin: each level has log2(`codebook_size`) of them, whose sides are the
    bits of its code; `codebook_size` is a power of two."""

    family: ClassVar[str] = "lsh"

    def __post_init__(self) -> None:
        if self.codebook_size.bit_count() != 1:
            raise ValueError(f"codebook_size must be a power of two, got {self.codebook_size}")

    @property
    def bits(self) -> int:
        """The number of hyperplanes a level."""
        return self.codebook_size.bit_length() - 1

    def fit(self, vectors: np.ndarray, *, seed: int, extra: Mapping[str, np.ndarray]) -> tuple[State, Codes]:
        """Draw the normals of the hyperplanes, `hyperplanes` float32 (L · `bits`, D), from a normal distribution."""
        generator = np.random.default_rng(derived_seed(seed, "hyperplanes"))
        normals = generator.standard_normal((self.levels * self.bits, vectors.shape[1]), dtype=np.float32)
        state = {"hyperplanes": normals}
        return state, self.encode(state, vectors)

    def encode(self, state: State, vectors: np.ndarray) -> Codes:
        """Codes, int32 (n, L): bit i of level l is 1 where the vector lies on the side of hyperplane l · `bits` + i
        that its normal points to."""
        normals = state["hyperplanes"].astype(np.float64).T
        sides = in_blocks(lambda block: block @ normals > 0, vectors).reshape(len(vectors), self.levels, self.bits)
        return (sides @ (1 << np.arange(self.bits))).astype(np.int32)
