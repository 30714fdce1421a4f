"""Item vectors made of several others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from tigerrec.config import AtLeastOne, NotNegative, options
from tigerrec.embed.base import EmbedError, EmbedsCatalogue
from tigerrec.embed.vectors import fixed_signs

SMALLEST = 1e-6
"""Deviations from the mean below this share of the largest component are rounding error."""


@options
class Fusion(EmbedsCatalogue):
    """Other item vectors side by side, each standardised and weighted, or `dim` principal components of them all.
    `weights` go by name; a part's share of the total variance goes with the square of its weight."""

    family: ClassVar[str] = "fusion"

    weights: dict[str, NotNegative]
    dim: AtLeastOne | None = None

    def __post_init__(self) -> None:
        if not any(self.weights.values()):
            raise ValueError(f"weights must hold one above 0, got {self.weights}")
        if "prepare" in self.weights:
            raise ValueError("weights must give no part the name prepare, which is that of the data")

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the parts in alphabetical order, which is that of their columns."""
        return tuple(sorted(self.weights))

    def vectors(self, prepared: Path, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """Vectors, float32 (items, the parts' dimensions together, or dim)."""
        fused = np.concatenate([self.weights[name] * standardized(parts[name]) for name in self.needs], axis=1)
        if self.dim is not None:
            if self.dim > fused.shape[1]:
                raise EmbedError(
                    f"embedder.dim={self.dim} is more than the {fused.shape[1]} dimensions of the parts together; "
                    "lower it, or give null."
                )
            fused = principal_components(fused, self.dim)
        return fused.astype(np.float32)


def standardized(vectors: np.ndarray) -> np.ndarray:
    """Vectors, float64 (items, dim), shifted to mean 0 and scaled to mean squared length 1.

    A zero vector is that of an item of which the part knows nothing: it does not count and stays at the mean. One
    factor for the whole matrix makes parts of any dimension and scale count equally and leaves the distances inside a
    part in proportion; a factor a column would raise the directions of least variance, which are mostly noise, to the
    rank of the others.
    """
    is_known = vectors.any(axis=1)
    known = vectors[is_known].astype(np.float64)
    standard = np.zeros(vectors.shape)
    if len(known):
        centred = known - known.mean(axis=0)
        length = np.sqrt(np.square(centred).sum(axis=1).mean())
        if length > SMALLEST * np.abs(known).max():
            standard[is_known] = centred / length
    return standard


def principal_components(vectors: np.ndarray, dim: int) -> np.ndarray:
    """The vectors (items, D) in the `dim` directions of largest variance, (items, dim), largest first."""
    centred = vectors - vectors.mean(axis=0)
    directions = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :dim]
    return centred @ fixed_signs(directions)
