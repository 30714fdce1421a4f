"""Random codes: the floor that every tokenizer must beat."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from tigerrec.config import options
from tigerrec.tokenizers.base import Codes, State
from tigerrec.tokenizers.quantizer.codebooks import EqualLevels


@options
class RandomCodes(EqualLevels):
    """Codes by a hash of the vector: equal vectors get equal codes, all else is chance."""

    family: ClassVar[str] = "random"

    def fit(self, vectors: np.ndarray, *, seed: int, extra: Mapping[str, np.ndarray]) -> tuple[State, Codes]:
        """Learn nothing but the seed, `seed` int64 (1,)."""
        state = {"seed": np.array([seed], dtype=np.int64)}
        return state, self.encode(state, vectors)

    def encode(self, state: State, vectors: np.ndarray) -> Codes:
        """Codes, int32 (n, L), from SHAKE-256 of the seed and the vector's bytes."""
        salt = state["seed"].astype("<i8").tobytes()
        rows = np.ascontiguousarray(vectors, dtype="<f4") + np.float32(0)  # turns -0 into 0
        digests = b"".join(hashlib.shake_256(salt + row.tobytes()).digest(8 * self.levels) for row in rows)
        numbers = np.frombuffer(digests, dtype="<u8").reshape(len(rows), self.levels)
        return (numbers % self.codebook_size).astype(np.int32)
