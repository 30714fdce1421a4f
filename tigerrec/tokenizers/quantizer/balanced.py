"""k-means with clusters of equal size."""

from __future__ import annotations

import numpy as np

from tigerrec.tokenizers.quantizer.codebooks import KMeansInit, code_distances, fit_codebook


def assign_balanced(distances: np.ndarray) -> np.ndarray:
    """The codeword's index, int64 (n,), of each row by deferred acceptance (Gale and Shapley 1962), given its distances
    (n, k).

    Each row goes to the nearest codeword that does not refuse it; a codeword keeps the ceil(n / k) nearest of the rows
    that come and refuses the others. So no row and codeword would both gain by leaving what they have for each other.
    """
    n, k = distances.shape
    capacity = -(-n // k)
    wishes, refusals = np.argsort(distances, axis=1, kind="stable"), np.zeros(n, dtype=np.int64)
    codes, contesting = wishes[:, 0].copy(), np.arange(n)
    while len(contesting):
        order = contesting[np.lexsort((distances[contesting, codes[contesting]], codes[contesting]))]
        queue = codes[order]
        refused = order[np.arange(len(order)) - np.searchsorted(queue, queue) >= capacity]
        refusals[refused] += 1
        codes[refused] = wishes[refused, refusals[refused]]
        contesting = np.flatnonzero(np.isin(codes, codes[refused]))
    return codes


def fit_balanced(
    rows: np.ndarray, size: int, iterations: int, seed: int, init: KMeansInit = "kmeans++", device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """A codebook, float32 (k, D), k ≤ `size`, and the codes, int64 (n,), of rows (n, D): no code has more than ceil(n /
    k) of them. Plain k-means gives the start; from there on balanced assignments and means alternate, so that a
    codeword ends as the mean of its rows."""
    codebook, codes = fit_codebook(rows, size, iterations, seed, init, device), np.empty(0, dtype=np.int64)
    for _ in range(iterations):
        before, codes = codes, assign_balanced(code_distances(rows, codebook, len(codebook)))
        if np.array_equal(codes, before):
            break
        codebook = means(rows, codes, codebook)
    return codebook, codes


def means(rows: np.ndarray, codes: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """The mean, float32 (k, D), of the rows (n, D) of each code (n,); the old codeword of a codebook (k, D) where a
    code has none."""
    counts = np.bincount(codes, minlength=len(codebook))
    order = np.argsort(codes, kind="stable")
    used = np.flatnonzero(counts)
    sums = np.add.reduceat(rows[order], (np.cumsum(counts) - counts)[used], axis=0)
    updated = codebook.copy()
    updated[used] = sums / counts[used, None]
    return updated
