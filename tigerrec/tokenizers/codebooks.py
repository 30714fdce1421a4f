"""Residual codebooks: how to learn one by k-means and how to encode with several."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tigerrec.seeds import derived_seed

BLOCK = 1024


def in_blocks(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Apply a function to float64 blocks of one shape, so that a row's result does not depend on the rows it comes with.

    Matrix products round differently for other shapes; double precision keeps what is left of that far below any gap between two codewords.
    """
    results = []
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        block = np.zeros((BLOCK, rows.shape[1]))
        block[: len(part)] = part
        results.append(function(block)[: len(part)])
    return np.concatenate(results)


def nearest(rows: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """The nearest codeword's index, int64 (n,), of rows (n, D) in a codebook (k, D); the first of equals."""
    return np.argmin(np.square(codebook).sum(axis=1) - 2 * rows @ codebook.T, axis=1)


def encode_residuals(rows: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """Greedy residual codes, int32 (n, L), of a float64 block (n, D): each level takes the codeword nearest to what the levels before left over."""
    residuals, codes = rows, []
    for codebook in codebooks:
        words = codebook.astype(np.float64)
        codes.append(nearest(residuals, words))
        residuals = residuals - words[codes[-1]]
    return np.stack(codes, axis=1).astype(np.int32)


def decode_residuals(codes: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of the codewords, float64 (n, D), of codes (n, L)."""
    return np.sum([codebook[codes[:, level]].astype(np.float64) for level, codebook in enumerate(codebooks)], axis=0)


def fit_codebook(rows: np.ndarray, size: int, iterations: int, seed: int) -> np.ndarray:
    """At most `size` codewords, float32 (k, D), by k-means on all rows (n, D).

    Where no more than `size` rows differ, they are the codewords: k < `size`, and the remaining codes are never given.
    """
    import faiss

    rows = np.ascontiguousarray(rows, dtype=np.float32)
    distinct = np.unique(rows, axis=0)
    if len(distinct) <= size:
        return distinct
    kmeans = faiss.Kmeans(rows.shape[1], size, niter=iterations, seed=seed, min_points_per_centroid=1, max_points_per_centroid=len(rows))
    kmeans.train(rows)
    return np.asarray(kmeans.centroids)


def fit_residual_codebooks(rows: np.ndarray, levels: int, size: int, iterations: int, seed: int) -> list[np.ndarray]:
    """One codebook a level, each fitted to what the levels before left over of all rows (n, D)."""
    residuals, codebooks = rows.astype(np.float64), []
    for level in range(levels):
        codebook = fit_codebook(residuals, size, iterations, derived_seed(seed, "codebook", level))
        residuals = residuals - codebook[in_blocks(lambda block, words=codebook: nearest(block, words.astype(np.float64)), residuals)]  # type: ignore[misc]
        codebooks.append(codebook)
    return codebooks
