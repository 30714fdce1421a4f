"""Tokenizers turn item vectors into codes: their protocols, and what is checked of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from tigerrec import TigerrecError

State = dict[str, np.ndarray]
Codes = np.ndarray
MAX_DIM = 2**20


class TokenizeError(TigerrecError):
    """Vectors that cannot be tokenized, or a tokenizer that cannot be read."""


@runtime_checkable
class Tokenizer(Protocol):
    """Turns item vectors into codes: a frozen dataclass of hyper-parameters; what it learned is a dict of arrays."""

    family: ClassVar[str]
    """The name that an artefact keeps of it, unique in this package."""
    assigns_jointly: ClassVar[bool]
    """Whether `fit` assigns items jointly, so that `encode` may give other codes to the items it was fitted on."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of further item-aligned matrices that `fit` reads from `extra`."""

    @property
    def code_sizes(self) -> tuple[int, ...]:
        """The number of codes a level, without the suffix."""

    def fit(self, vectors: np.ndarray, *, seed: int, extra: Mapping[str, np.ndarray]) -> tuple[State, Codes]:
        """Learn from finite vectors, float32 (I, D); returns what was learned and the items' codes, int32 (I, L)."""

    def encode(self, state: State, vectors: np.ndarray) -> Codes:
        """Codes, int32 (n, L), of vectors, float32 (n, D), each row by itself."""


@runtime_checkable
class Reconstructs(Protocol):
    """A tokenizer that can turn codes back into vectors."""

    def decode(self, state: State, codes: Codes) -> np.ndarray:
        """Vectors, float (n, D), of codes, int (n, L)."""


@runtime_checkable
class MeasuresDistances(Protocol):
    """A tokenizer that can say how far a vector is from each code of a level."""

    def distances(self, state: State, vectors: np.ndarray, codes: Codes) -> np.ndarray:
        """Distances, float64 (n, code_sizes[l]), of vectors (n, D) to all codes of level l, given the rows' codes at
        the levels before, int (n, l). They are inf where a code does not exist. The nearest is the code that `encode`
        gives."""


def check_vectors(vectors: np.ndarray, where: str) -> np.ndarray:
    """The vectors as contiguous float32 (n, D). Raises TokenizeError, which names the rows, if they are no matrix,
    empty or not finite."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or not vectors.size:
        raise TokenizeError(
            f"{where} must be a matrix with a row an item, got shape {vectors.shape}; add `overwrite=embed`."
        )
    faulty = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(faulty):
        shown = ", ".join(map(str, faulty[:10])) + (", …" if len(faulty) > 10 else "")
        raise TokenizeError(
            f"{where} hold NaN or infinity in {len(faulty)} rows (items {shown}); correct them and add "
            "`overwrite=embed`."
        )
    return vectors


def check_codes(tokenizer: Tokenizer, codes: Codes, n_items: int) -> None:
    """Check what a tokenizer gives for some items. Raises TokenizeError if it is not a whole number below `code_sizes`
    for each item and level."""
    sizes = tokenizer.code_sizes
    are_numbers = codes.shape == (n_items, len(sizes)) and codes.dtype.kind in "iu"
    if not are_numbers or (codes < 0).any() or (codes >= sizes).any():
        raise TokenizeError(
            f"{tokenizer.family} gave codes of shape {codes.shape} and type {codes.dtype}, from "
            f"{codes.min(initial=0)} to {codes.max(initial=0)}, for {n_items} items; its code_sizes {sizes} ask for "
            f"one whole number from 0 to below each: correct {type(tokenizer).__module__}."
        )
