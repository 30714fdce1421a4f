"""Product quantisation: every slice of a vector has a codebook of its own, so the codes are parallel, not from coarse
to fine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from tigerrec.config import AtLeastOne, Device, options
from tigerrec.runtime.seeds import derived_seed
from tigerrec.storage.fingerprints import not_identity
from tigerrec.tokenizers.base import Codes, State
from tigerrec.tokenizers.quantizer.codebooks import (
    EqualLevels,
    code_distances,
    codebooks_of,
    fit_codebook,
    in_blocks,
    nearest,
)


@options
class ProductQuantizer(EqualLevels):
    """Product quantisation (Jégou et al. 2011), after a learned rotation if asked for (OPQ: Ge et al. 2013).

    VQ-Rec (Hou et al. 2023, arXiv 2210.12316) and RPG (Hou et al. 2025, arXiv 2506.05781) make item ids this way.

    Args:
        levels: the number of slices, one code each; zeros are appended to vectors that it does not divide.
        iterations: k-means iterations a slice.
        device: of k-means, as in `fit_codebook`; a rotation is learned on the CPU.
        rotate: whether to learn a rotation first that spreads what varies together over the slices.
    """

    family: ClassVar[str] = "pq"
    levels: AtLeastOne = 4
    iterations: AtLeastOne = 50
    rotate: bool = False
    device: Device = not_identity(default="cpu")

    def fit(self, vectors: np.ndarray, *, seed: int, extra: Mapping[str, np.ndarray]) -> tuple[State, Codes]:
        """Learn the rotation, if any, and a codebook a slice. The state is `codebook_<level>` float32 (k, W), k ≤
        `codebook_size`, W = ceil(D / L), `dim` int64 (1,), which is D, and with `rotate` the orthogonal matrix
        `rotation` float32 (L · W, L · W)."""
        state: State = {"dim": np.array([vectors.shape[1]], dtype=np.int64)}
        if self.rotate:
            rotation_seed = derived_seed(seed, "rotation")
            state["rotation"] = fit_rotation(self._padded(vectors), self.levels, self.codebook_size, rotation_seed)
        rotated = in_blocks(lambda block: self._rotated(state, block), vectors)
        for level, part in enumerate(np.split(rotated, self.levels, axis=1)):
            level_seed = derived_seed(seed, "codebook", level)
            state[f"codebook_{level}"] = fit_codebook(
                part, self.codebook_size, self.iterations, level_seed, device=self.device
            )
        return state, self.encode(state, vectors)

    def encode(self, state: State, vectors: np.ndarray) -> Codes:
        """Codes, int32 (n, L), of each slice the nearest codeword."""
        codebooks = codebooks_of(state, self.levels)

        def encode_block(block: np.ndarray) -> np.ndarray:
            slices = np.split(self._rotated(state, block), self.levels, axis=1)
            codes = [nearest(part, codebook) for part, codebook in zip(slices, codebooks, strict=True)]
            return np.stack(codes, axis=1).astype(np.int32)

        return in_blocks(encode_block, vectors)

    def decode(self, state: State, codes: Codes) -> np.ndarray:
        """Vectors, float64 (n, D): the codewords side by side, rotated back."""
        words = [words[used] for words, used in zip(codebooks_of(state, self.levels), codes.T, strict=True)]
        rows = np.concatenate(words, axis=1).astype(np.float64)
        rotated_back = rows @ state["rotation"] if self.rotate else rows
        return rotated_back[:, : state["dim"][0]]

    def distances(self, state: State, vectors: np.ndarray, codes: Codes) -> np.ndarray:
        """Squared distances, float64 (n, `codebook_size`), of slice l of vectors (n, D) to its codewords, whatever the
        codes (n, l) of the slices before; inf for codes without a codeword."""
        level = codes.shape[1]
        rotated = in_blocks(lambda block: self._rotated(state, block), vectors)
        part = np.split(rotated, self.levels, axis=1)[level]
        return code_distances(part, state[f"codebook_{level}"], self.codebook_size)

    def _padded(self, rows: np.ndarray) -> np.ndarray:
        return np.pad(rows, ((0, 0), (0, -rows.shape[1] % self.levels)))

    def _rotated(self, state: State, block: np.ndarray) -> np.ndarray:
        """The slices, side by side (n, L · W), of a float64 block (n, D)."""
        padded = self._padded(block)
        return padded @ state["rotation"].T.astype(np.float64) if self.rotate else padded


def fit_rotation(rows: np.ndarray, slices: int, size: int, seed: int) -> np.ndarray:
    """The orthogonal matrix, float32 (D, D), that makes rows (n, D) lose least by product quantisation (Ge et al.
    2013). The identity where no more than `size` rows differ, for then nothing is lost. The codebooks behind the
    rotation have the largest power of two up to `size`."""
    import faiss

    dim = rows.shape[1]
    if len(np.unique(rows, axis=0)) <= size:
        return np.eye(dim, dtype=np.float32)
    quantizer = faiss.ProductQuantizer(dim, slices, size.bit_length() - 1)
    quantizer.cp.seed, quantizer.cp.min_points_per_centroid = seed, 1
    matrix = faiss.OPQMatrix(dim, slices)
    matrix.pq = quantizer
    enough = np.tile(rows, (-(-dim // len(rows)), 1))  # faiss breaks off where rows are fewer than dimensions
    matrix.train(np.ascontiguousarray(enough, dtype=np.float32))
    return faiss.vector_to_array(matrix.A).reshape(dim, dim)
