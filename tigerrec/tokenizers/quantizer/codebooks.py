"""Codebooks: how one is learned by k-means, how far vectors are from its codewords, and codes by several in a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tigerrec.config import AtLeastOne, options
from tigerrec.runtime.seeds import derived_seed
from tigerrec.tokenizers.base import Codes, State

if TYPE_CHECKING:
    import torch

BLOCK = 1024
ROWS_AT_ONCE = 65_536  # whose distances to all codewords are in memory
SPLIT_SEED, APART = 1234, 1 / 1024  # of faiss: of its draws, and how far halves of a codeword are set apart
AtLeastTwo = Annotated[int, Field(ge=2)]
KMeansInit = Literal["kmeans", "kmeans++"]
Init = Literal["random", "normal", "kmeans", "kmeans++"]


@options
class EqualLevels:
    """A tokenizer with `codebook_size` codes on each of its `levels`."""

    assigns_jointly: ClassVar[bool] = False
    levels: AtLeastOne = 3
    codebook_size: AtLeastTwo = 256

    @property
    def needs(self) -> tuple[str, ...]:
        """No further vectors."""
        return ()

    @property
    def code_sizes(self) -> tuple[int, ...]:
        """The number of codes a level."""
        return (self.codebook_size,) * self.levels


@options
class ResidualEncoder(EqualLevels):
    """A tokenizer that encodes a latent vector of each vector by a codebook a level, in its state `codebook_<level>`
    (k, latent): each level takes the codeword nearest to the residual, which is what the levels before leave over."""

    def encode(self, state: State, vectors: np.ndarray) -> Codes:
        """Codes, int32 (n, L), of vectors (n, D)."""
        codebooks = codebooks_of(state, self.levels)

        def encode_block(block: np.ndarray) -> np.ndarray:
            residuals, codes = self._latents(state, block), []
            for codebook in codebooks:
                codes.append(self._distances(residuals, codebook).argmin(axis=1))
                residuals = self._residuals(residuals, codebook[codes[-1]])
            return np.stack(codes, axis=1).astype(np.int32)

        return in_blocks(encode_block, vectors)

    def distances(self, state: State, vectors: np.ndarray, codes: Codes) -> np.ndarray:
        """Distances, float64 (n, `codebook_size`), of what codes (n, l) leave over of the latent vectors to the
        codewords of level l; inf for codes without one."""
        codebooks = codebooks_of(state, self.levels)
        residuals = in_blocks(lambda block: self._latents(state, block), vectors)
        for codebook, used in zip(codebooks, codes.T, strict=False):
            residuals = self._residuals(residuals, codebook[used])
        return code_distances(residuals, codebooks[codes.shape[1]], self.codebook_size, self._distances)

    def _latents(self, state: State, vectors: np.ndarray) -> np.ndarray:
        """The latent vectors (n, latent) of a float64 block (n, D): here the vectors themselves."""
        return vectors

    def _distances(self, residuals: np.ndarray, codebook: np.ndarray) -> np.ndarray:
        """Distances, float64 (n, k), of float64 residuals (n, latent) to a codebook (k, latent): here squared ones."""
        return word_distances(residuals, codebook)

    def _residuals(self, residuals: np.ndarray, words: np.ndarray) -> np.ndarray:
        """What codewords (n, latent) leave over of residuals (n, latent)."""
        return residuals - words


@options
class ResidualCodes(ResidualEncoder):
    """A tokenizer that encodes by residuals and decodes by the sums of the codewords."""

    def decode(self, state: State, codes: Codes) -> np.ndarray:
        """Vectors, float64 (n, D), of the sums of the codewords of codes (n, L)."""
        codebooks = codebooks_of(state, self.levels)
        words = [codebook[used].astype(np.float64) for codebook, used in zip(codebooks, codes.T, strict=True)]
        return self._restored(state, np.sum(words, axis=0))

    def _restored(self, state: State, latents: np.ndarray) -> np.ndarray:
        """The vectors, float64 (n, D), of latent vectors (n, latent)."""
        return latents


def codebooks_of(state: State, levels: int) -> list[np.ndarray]:
    """The codebook of each level."""
    return [state[f"codebook_{level}"] for level in range(levels)]


def in_blocks(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Apply a function to float64 blocks of one shape, so that a row's result does not depend on the rows beside it.
    Matrix products round differently for other shapes; double precision keeps what is left of that far below any gap
    between two codewords."""
    results = []
    for part in np.split(rows, range(BLOCK, len(rows), BLOCK)):
        block = np.pad(part.astype(np.float64), ((0, BLOCK - len(part)), (0, 0)))
        results.append(function(block)[: len(part)])
    return np.concatenate(results)


def squared_distances(rows: Any, words: Any) -> Any:
    """Squared Euclidean distances (n, k) of rows (n, D) to words (k, D), arrays or tensors; rounding may make those
    near 0 negative."""
    return (rows**2).sum(1, keepdims=True) + (words**2).sum(1) - 2 * rows @ words.T


def word_distances(rows: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Squared distances, float64 (n, k), of float64 rows (n, D) to a codebook (k, D)."""
    return np.maximum(squared_distances(rows, codebook.astype(np.float64)), 0)


def nearest(rows: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """The nearest codeword's index, int64 (n,), of float64 rows (n, D) in a codebook (k, D); the first of equals."""
    return word_distances(rows, codebook).argmin(axis=1)


def code_distances(
    rows: np.ndarray, codebook: np.ndarray, size: int, distances: Callable[..., np.ndarray] = word_distances
) -> np.ndarray:
    """Distances, float64 (n, `size`), of rows (n, D) to a codebook (k, D), k ≤ `size`; inf for codes without a
    codeword."""
    to_words = in_blocks(lambda block: distances(block, codebook), rows)
    return np.pad(to_words, ((0, 0), (0, size - len(codebook))), constant_values=np.inf)


def fit_codebook(
    rows: np.ndarray, size: int, iterations: int, seed: int, init: Init = "kmeans++", device: str = "cpu"
) -> np.ndarray:
    """At most `size` codewords, float32 (k, D), by k-means on all rows (n, D); where no more than `size` rows differ,
    they are the codewords (but with `normal`).

    On a GPU (`device`: `cpu`, `cuda`, or `auto`, which takes a GPU where there is one) k-means begins at the same rows
    and follows the same rule; where rounding decides which of two codewords is nearer, it may take another way. Raises
    TigerrecError if there is no such device.

    `init` says where codewords begin: `kmeans` starts k-means at random rows, `kmeans++` at rows far apart (Arthur and
    Vassilvitskii 2007); without k-means they are `random` distinct rows, or `size` vectors from a `normal` distribution
    with the expected length 1.
    """
    import faiss

    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if init == "normal":
        return np.random.default_rng(seed).normal(0, rows.shape[1] ** -0.5, (size, rows.shape[1])).astype(np.float32)
    distinct = np.unique(rows, axis=0)
    if len(distinct) <= size:
        return distinct
    if init == "random":
        return np.random.default_rng(seed).permutation(distinct)[:size]
    starts = {"kmeans": faiss.ClusteringInitMethod_RANDOM, "kmeans++": faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS}
    limits = {"min_points_per_centroid": 1, "max_points_per_centroid": len(rows)}
    at = None if device == "cpu" else _elsewhere(device)
    begun = iterations if at is None else 0
    kmeans = faiss.Kmeans(rows.shape[1], size, niter=begun, seed=seed, init_method=starts[init], **limits)
    kmeans.train(rows)
    if at is None:
        return np.asarray(kmeans.centroids)
    import torch

    return lloyd(torch.from_numpy(rows).to(at), torch.from_numpy(kmeans.centroids).to(at), iterations).cpu().numpy()


def _elsewhere(device: str) -> torch.device | None:
    """A device that is not the CPU, or None."""
    from tigerrec.runtime.devices import resolve_device

    found = resolve_device(device)
    return None if found.type == "cpu" else found


def lloyd(rows: torch.Tensor, words: torch.Tensor, iterations: int) -> torch.Tensor:
    """The codewords (k, D) to which k-means moves those given on rows (n, D), by the steps that faiss takes on a CPU
    (Lloyd 1982): a word without rows becomes one half of a word drawn by its rows, as in faiss's `Clustering`."""
    import torch

    for _ in range(iterations):
        sums, counts = torch.zeros_like(words), words.new_zeros(len(words))
        for block in rows.split(ROWS_AT_ONCE):
            chosen = torch.nn.functional.one_hot(squared_distances(block, words).argmin(1), len(words)).to(block.dtype)
            sums += chosen.T @ block  # in one order, unlike `index_add_` on a GPU
            counts += chosen.sum(0)
        words = sums / counts.clamp(min=1)[:, None]
        sizes = counts.tolist()
        draws = np.random.RandomState(SPLIT_SEED)
        for empty in [word for word, size in enumerate(sizes) if not size]:
            split = 0
            while draws.randint(2**32, dtype=np.uint32) / (2**32 - 1) >= (sizes[split] - 1) / (len(rows) - len(words)):
                split = (split + 1) % len(words)
            apart = torch.where(torch.arange(words.shape[1], device=words.device) % 2 == 0, 1 + APART, 1 - APART)
            words[empty], words[split] = words[split] * apart, words[split] * (2 - apart)
            sizes[empty] = sizes[split] / 2
            sizes[split] -= sizes[empty]
    return words


def fit_residual_codebooks(
    rows: np.ndarray, levels: int, size: int, iterations: int, seed: int, init: Init = "kmeans++", device: str = "cpu"
) -> list[np.ndarray]:
    """One codebook a level, each fitted to what the levels before leave over of all rows (n, D); see `fit_codebook`."""
    residuals, codebooks = rows.astype(np.float64), []
    for level in range(levels):
        codebook = fit_codebook(residuals, size, iterations, derived_seed(seed, "codebook", level), init, device)
        residuals = residuals - codebook[in_blocks(lambda block, words=codebook: nearest(block, words), residuals)]  # type: ignore[misc]
        codebooks.append(codebook)
    return codebooks
