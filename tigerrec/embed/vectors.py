"""Arithmetic of vectors, one a row."""

from __future__ import annotations

import numpy as np


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors (..., D) at Euclidean length 1; a zero vector stays."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def fixed_signs(columns: np.ndarray) -> np.ndarray:
    """Columns (n, k), each times 1 or -1 so that its largest component in size is positive. The sign of an eigenvector
    is arbitrary otherwise."""
    largest = columns[np.abs(columns).argmax(axis=0), np.arange(columns.shape[1])]
    return columns * np.where(largest < 0, -1, 1)
