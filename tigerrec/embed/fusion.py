"""Item vectors made of several others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from tigerrec.config import options
from tigerrec.embed import EmbedError, ReadsNoFiles, fixed_signs

SMALLEST = 1e-6
"""Deviations from the mean below this share of the largest component are rounding error."""


@options
class Fusion(ReadsNoFiles):
    """Other item vectors side by side, each standardised and weighted, projected to their principal components if
    wanted.

    Args:
        weights: the weight of each part by name; a part's share of the total variance goes with the square of its
            weight.
        dim: the number of principal components; None: no projection.
    """

    family: ClassVar[str] = "fusion"

    weights: dict[str, float]
    dim: int | None = None

    def __post_init__(self) -> None:
        if not all(0 <= weight < float("inf") for weight in self.weights.values()) or not any(self.weights.values()):
            raise ValueError(f"weights must be finite numbers from 0 up, one of them above 0, got {self.weights}")
        if "prepare" in self.weights:
            raise ValueError("weights must give no part the name prepare, which is that of the data")
        if self.dim is not None and self.dim < 1:
            raise ValueError(f"dim must be at least 1 or null, got {self.dim}")

    @property
    def needs(self) -> tuple[str, ...]:
        """The parts, by name: in the order of their columns, which is that of the alphabet."""
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
    """Vectors, float64 (items, dim), of mean 0 and mean squared length 1, both over the items that have a vector; the
    zero vectors of the others stay.

    One factor for the whole matrix makes parts of any dimension and scale count equally and leaves the distances inside
    a part in proportion; a factor a
    column would raise the directions of least variance, which are mostly noise, to the rank of the others. A zero
    vector is that of an item of which the part
    knows nothing: it stays at the mean.
    """
    known = vectors.any(axis=1)
    found = vectors[known].astype(np.float64)
    standard = np.zeros(vectors.shape)
    if len(found):
        centred = found - found.mean(axis=0)
        length = np.sqrt(np.square(centred).sum(axis=1).mean())
        if length > SMALLEST * np.abs(found).max():
            standard[known] = centred / length
    return standard


def principal_components(vectors: np.ndarray, dim: int) -> np.ndarray:
    """The vectors (items, D) in the `dim` directions of largest variance, (items, dim), largest first."""
    centred = vectors - vectors.mean(axis=0)
    directions = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :dim]
    return centred @ fixed_signs(directions)
