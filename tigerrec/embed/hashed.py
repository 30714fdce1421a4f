"""Item vectors by feature hashing, without any model."""

from __future__ import annotations

import re
import zlib
from typing import ClassVar

import numpy as np

from tigerrec.config import AtLeastOne, options
from tigerrec.embed.base import EmbedsTexts, Encode
from tigerrec.embed.vectors import unit


@options
class Hashed(EmbedsTexts):
    """Signed feature hashing of words and character n-grams, for tests and offline use. After Weinberger et al. 2009
    (arXiv:0902.2206)."""

    family: ClassVar[str] = "hashed"

    dim: AtLeastOne = 256
    ngram: AtLeastOne = 4

    def open(self) -> Encode:
        """A function of the texts alone, whose vectors have length 1."""
        return lambda item_ids, texts: unit(np.stack([self._vector(text) for text in texts]))

    def _vector(self, text: str) -> np.ndarray:
        words = re.findall(r"\w+", text.lower()) or [text]
        spelled = [f" {word} " for word in words]
        n = self.ngram
        grams = [word[start : start + n] for word in spelled for start in range(max(len(word) - n + 1, 1))]
        features = [f"word:{word}" for word in words] + grams
        hashes = np.array([zlib.crc32(feature.encode()) for feature in features], dtype=np.int64)
        signs = np.where(hashes >> 31, 1.0, -1.0)
        return np.bincount((hashes & 0x7FFFFFFF) % self.dim, weights=signs, minlength=self.dim).astype(np.float32)
