"""Item vectors from which items are bought together, without any text."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tigerrec.config import AtLeastOne, NotNegative, options
from tigerrec.data.histories import load_histories, training_histories
from tigerrec.embed.base import EmbedsCatalogue
from tigerrec.embed.vectors import fixed_signs, unit

logger = logging.getLogger(__name__)

DENSE = 1000
"""Up to so many items, all eigenvectors are computed at once."""
SMALLEST = 1e-6
"""A vector shorter than this share of the longest one is rounding error, and set to zero."""


@options
class Collaborative(EmbedsCatalogue):
    """Factors of the shifted positive PMI of items' co-occurrence in the training histories.

    After Levy and Goldberg 2014 (NeurIPS). Validation and test items are never read; an item that does not occur in
    training has a zero vector.

    Attributes:
        dim: the dimension of the vectors.
        window: items of a history that stand at most so many places apart count as a pair; None: all of a history.
        shift: what is subtracted from the PMI, in nats: log k for k negative samples.
        normalize: whether vectors have length 1.
    """

    family: ClassVar[str] = "collaborative"

    dim: AtLeastOne = 64
    window: AtLeastOne | None = 5
    shift: NotNegative = 0.0
    normalize: bool = True

    def vectors(self, prepared: Path, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """Vectors, float32 (items, dim), of the training interactions alone."""
        histories = load_histories(prepared)
        training = training_histories(histories)
        counts = count_pairs(training, histories.n_items, self.window)
        vectors = symmetric_factors(shifted_ppmi(counts, self.shift), self.dim)
        zeros, never = int((~vectors.any(axis=1)).sum()), len(vectors) - len(np.unique(np.concatenate(training)))
        if zeros:
            logger.warning(
                "%d of %d items have a zero vector: %d never occur in training, %d occur there without another item "
                "that the %d dimensions can show",
                zeros, len(vectors), never, zeros - never, self.dim,
            )  # fmt: skip
        return (unit(vectors) if self.normalize else vectors).astype(np.float32)


def count_pairs(histories: Sequence[np.ndarray], n_items: int, window: int | None) -> Any:
    """How often two different items stand at most `window` places apart: sparse, symmetric (n_items, n_items)."""
    from scipy.sparse import coo_array, csr_array

    items, lengths = np.concatenate(histories), np.array([len(history) for history in histories])
    ends = np.repeat(np.cumsum(lengths), lengths)
    first = np.arange(len(items))
    counts = csr_array((n_items, n_items))
    for gap in range(1, min(window or max(lengths), max(lengths) - 1) + 1):
        first = first[first + gap < ends[first]]
        pairs = np.stack([items[first], items[first + gap]])
        pairs = pairs[:, pairs[0] != pairs[1]]
        counts += coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), counts.shape).tocsr()
    return counts + counts.T


def shifted_ppmi(counts: Any, shift: float) -> Any:
    """max(PMI - shift, 0) of pair counts (n, n), sparse (Levy and Goldberg 2014, section 4.1)."""
    from scipy.sparse import coo_array

    pairs, totals = counts.tocoo(), counts.sum(axis=1)
    values = np.log(pairs.data * totals.sum() / (totals[pairs.row] * totals[pairs.col])) - shift
    kept = values > 0
    return coo_array((values[kept], (pairs.row[kept], pairs.col[kept])), counts.shape).tocsr()


def symmetric_factors(matrix: Any, dim: int) -> np.ndarray:
    """The W, float64 (n, dim), whose W Wᵀ is nearest to a sparse symmetric matrix (n, n).

    It is half the sum of word and context vectors of the matrix's SVD (Levy, Goldberg and Dagan 2015, TACL), in which
    the negative eigenvalues cancel: word vectors alone set two items apart that occur with each other only. Columns
    beyond the positive eigenvalues are zero.
    """
    from scipy.sparse.linalg import eigsh

    n = matrix.shape[0]
    if not matrix.nnz:
        return np.zeros((n, dim))
    if n <= max(4 * dim, DENSE):
        values, columns = np.linalg.eigh(matrix.toarray())
    else:
        values, columns = eigsh(matrix, k=dim, which="LA", v0=np.random.default_rng(0).normal(size=n))
    largest = np.argsort(-values)[:dim]
    columns = fixed_signs(columns[:, largest]) * np.sqrt(np.maximum(values[largest], 0))
    lengths = np.linalg.norm(columns, axis=1, keepdims=True)
    columns = np.where(lengths > SMALLEST * lengths.max(), columns, 0)
    return np.pad(columns, ((0, 0), (0, dim - columns.shape[1])))
