"""What the embed stage asks of embedders: item vectors of texts, or of all items at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from tigerrec import TigerrecError

Encode = Callable[[list[str], list[str]], np.ndarray]


class EmbedError(TigerrecError):
    """Item vectors that cannot be had: no encoder, a wrong file, or values that are not numbers."""


@runtime_checkable
class Embedder(Protocol):
    """What turns items into vectors: a frozen dataclass of settings; one that derives from this reads no files by
    default."""

    family: ClassVar[str]

    def present(self) -> dict[str, Path]:
        """Those of the files of `sources` that are on this machine; never downloads."""
        return {}

    def named(self) -> dict[str, str]:
        """What the files of `sources` are called in the options, by role, whether they are there or not."""
        return {}

    def sources(self) -> dict[str, Path]:
        """The existing files, by role, whose sha256 say which vectors come out; cheap. Raises EmbedError if a file is
        not there, cannot be fetched, or is not the expected one."""
        return {}

    def environment(self) -> dict[str, str]:
        """What of this machine, beside its number of threads, decides the last bits of the vectors."""
        return {}


@runtime_checkable
class EmbedsTexts(Embedder, Protocol):
    """An embedder that turns item ids and texts into vectors, item by item."""

    shard_items: ClassVar[int | None] = None
    """Items encoded between two saves, or None where encoding takes seconds."""

    def open(self) -> Encode:
        """A function from (item ids, texts) of n items to their vectors (n, dim), float32, in the order given."""


@runtime_checkable
class EmbedsCatalogue(Embedder, Protocol):
    """An embedder that makes the vectors of all items at once, of the interactions or of other vectors."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the other item vectors that it reads."""
        return ()

    def vectors(self, prepared: Path, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """Vectors, float32 (items, dim), row = item index, of the data in the folder of a prepare stage and of the
        vectors (items, any dim) that it `needs`, by name."""


def few(names: Sequence[str], limit: int = 3) -> str:
    """The first few of some names, and how many more there are."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def needed_parts(embedder: Embedder) -> tuple[str, ...]:
    """Names of the other item vectors that an embedder reads."""
    return embedder.needs if isinstance(embedder, EmbedsCatalogue) else ()


def checked(vectors: np.ndarray, item_ids: list[str]) -> np.ndarray:
    """The vectors, after making sure that there is one finite row of float32 an item. Raises EmbedError, which names
    the items, if values are NaN or infinite or the shape is another."""
    if vectors.ndim != 2 or len(vectors) != len(item_ids) or vectors.dtype != np.float32:
        raise EmbedError(
            f"The embedder gave {vectors.dtype} of shape {vectors.shape} for {len(item_ids)} items; it must give "
            "float32 (items, dim)."
        )
    bad = [item_ids[row] for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1))]
    if bad:
        raise EmbedError(
            f"The vectors of {len(bad)} items are NaN or infinite ({few(bad)}); correct them, or choose another "
            "embedder with `embedder=<name>`."
        )
    return vectors
