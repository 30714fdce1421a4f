"""Item vectors by feature hashing, without any model."""

from __future__ import annotations

import re
import zlib
from typing import ClassVar

import numpy as np

from tigerrec.config import options
from tigerrec.embed import Encode, ReadsNoFiles, unit
from tigerrec.ranges import at_least_one


@options
class Hashed(ReadsNoFiles):
    """Signed feature hashing of words and character n-grams (Weinberger et al. 2009, arXiv:0902.2206): no model, for
    tests and offline use."""

    family: ClassVar[str] = "hashed"

    dim: int = 256
    ngram: int = 4

    shard_items: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        at_least_one(self, "dim")
        if self.ngram < 1:
            raise ValueError(f"ngram must be at least 1 character, got {self.ngram}")

    def open(self) -> Encode:
        """A function of the texts alone, whose vectors have length 1."""
        return lambda item_ids, texts: unit(np.stack([self._vector(text) for text in texts]))

    def _vector(self, text: str) -> np.ndarray:
        words = re.findall(r"\w+", text.lower()) or [text]
        spelled = [f" {word} " for word in words]
        grams = [
            word[start : start + self.ngram] for word in spelled for start in range(max(len(word) - self.ngram + 1, 1))
        ]
        hashes = np.array(
            [zlib.crc32(feature.encode()) for feature in [f"word:{word}" for word in words] + grams], dtype=np.int64
        )
        signs = np.where(hashes >> 31, 1.0, -1.0)
        return np.bincount((hashes & 0x7FFFFFFF) % self.dim, weights=signs, minlength=self.dim).astype(np.float32)
