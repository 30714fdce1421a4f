"""Codebooks: how to learn one by k-means, how to encode with several, and how far vectors are from their codewords."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tigerrec.seeds import derived_seed

BLOCK = 1024
RANDOM, NORMAL, KMEANS, KMEANS_PLUS_PLUS = INITS = ("random", "normal", "kmeans", "kmeans++")
KMEANS_INITS = (KMEANS, KMEANS_PLUS_PLUS)


def in_blocks(function: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Apply a function to float64 blocks of one shape, so that a row's result does not depend on the rows it comes
    with.

    Matrix products round differently for other shapes; double precision keeps what is left of that far below any gap
    between two codewords.
    """
    results = []
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        block = np.zeros((BLOCK, rows.shape[1]))
        block[: len(part)] = part
        results.append(function(block)[: len(part)])
    return np.concatenate(results)


def squared_distances(rows: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances, float64 (n, k), of a float64 block (n, D) to a codebook (k, D)."""
    words = codebook.astype(np.float64)
    return np.maximum(np.square(rows).sum(axis=1, keepdims=True) - 2 * rows @ words.T + np.square(words).sum(axis=1), 0)


def nearest(rows: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """The nearest codeword's index, int64 (n,), of rows (n, D) in a codebook (k, D); the first of equals."""
    return np.argmin(squared_distances(rows, codebook), axis=1)


def encode_residuals(rows: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """Greedy residual codes, int32 (n, L), of a float64 block (n, D): each level takes the codeword nearest to what the
    levels before left over."""
    residuals, codes = rows, []
    for codebook in codebooks:
        codes.append(nearest(residuals, codebook))
        residuals = residuals - codebook[codes[-1]]
    return np.stack(codes, axis=1).astype(np.int32)


def decode_residuals(codes: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of the codewords, float64 (n, D), of codes (n, L)."""
    return np.sum([codebook[codes[:, level]].astype(np.float64) for level, codebook in enumerate(codebooks)], axis=0)


def code_distances(rows: np.ndarray, codebook: np.ndarray, size: int) -> np.ndarray:
    """Squared distances, float64 (n, `size`), of rows (n, D) to a codebook (k, D), k ≤ `size`; inf for the codes
    without a codeword."""
    found = in_blocks(lambda block: squared_distances(block, codebook), rows)
    return np.pad(found, ((0, 0), (0, size - len(codebook))), constant_values=np.inf)


def residual_distances(rows: np.ndarray, codes: np.ndarray, codebooks: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Squared distances, float64 (n, `size`), of what codes (n, l) leave over of rows (n, D) to the codewords of level
    l; inf for the codes without one."""
    residuals, level = rows.astype(np.float64), codes.shape[1]
    for codebook, used in zip(codebooks[:level], codes.T, strict=True):
        residuals = residuals - codebook[used]
    return code_distances(residuals, codebooks[level], size)


def fit_codebook(rows: np.ndarray, size: int, iterations: int, seed: int, init: str = KMEANS_PLUS_PLUS) -> np.ndarray:
    """At most `size` codewords, float32 (k, D), by k-means on all rows (n, D).

    Where no more than `size` rows differ, they are the codewords (but with `normal`): k < `size`, and the remaining
    codes are never given.

    Args:
        init: where codewords begin, one of `INITS`: `kmeans` starts k-means at random rows, `kmeans++` at rows far
            apart (Arthur and Vassilvitskii 2007);
            without k-means they are `random` distinct rows, or `size` vectors from a `normal` distribution with the
            expected length 1.
    """
    import faiss

    rows = np.ascontiguousarray(rows, dtype=np.float32)
    if init == NORMAL:
        return np.random.default_rng(seed).normal(0, rows.shape[1] ** -0.5, (size, rows.shape[1])).astype(np.float32)
    distinct = np.unique(rows, axis=0)
    if len(distinct) <= size:
        return distinct
    if init == RANDOM:
        return np.random.default_rng(seed).permutation(distinct)[:size]
    method = {KMEANS: faiss.ClusteringInitMethod_RANDOM, KMEANS_PLUS_PLUS: faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS}[
        init
    ]
    kmeans = faiss.Kmeans(
        rows.shape[1],
        size,
        niter=iterations,
        seed=seed,
        init_method=method,
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows),
    )
    kmeans.train(rows)
    return np.asarray(kmeans.centroids)


def fit_residual_codebooks(
    rows: np.ndarray, levels: int, size: int, iterations: int, seed: int, init: str = KMEANS_PLUS_PLUS
) -> list[np.ndarray]:
    """One codebook a level, each fitted to what the levels before left over of all rows (n, D); `init` as in
    `fit_codebook`."""
    residuals, codebooks = rows.astype(np.float64), []
    for level in range(levels):
        codebook = fit_codebook(residuals, size, iterations, derived_seed(seed, "codebook", level), init)
        residuals = residuals - codebook[in_blocks(lambda block, words=codebook: nearest(block, words), residuals)]  # type: ignore[misc]
        codebooks.append(codebook)
    return codebooks
