"""What a data set gives the prepare stage: raw interactions and items."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from tigerrec import TigerrecError


class DatasetError(TigerrecError):
    """Raw data that cannot be used: missing, damaged, too many unreadable lines, or nothing left."""


@dataclasses.dataclass(frozen=True)
class RawItem:
    """What the raw files say of an item: HTML entities decoded, white space collapsed, missing parts None or empty."""

    title: str | None
    brand: str | None
    categories: list[str]
    price: float | None


@dataclasses.dataclass
class RawData:
    """Readable interactions in file order, the metadata of their items, and what was lost. `timestamps` is int64.
    `dropped` counts unreadable lines by reason, out of `lines`; `noted` counts what was mended rather than dropped."""

    user_ids: list[str]
    item_ids: list[str]
    timestamps: np.ndarray
    items: dict[str, RawItem]
    dropped: dict[str, int]
    lines: int
    noted: dict[str, int] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Dataset(Protocol):
    """Where interactions come from: a frozen dataclass of files (not identity) and filters (identity). `max_dropped` is
    the largest share of unreadable lines that is put up with, `expected` the users, items and interactions of the known
    release, empty where nothing is known."""

    family: ClassVar[str]
    min_user_interactions: int
    min_item_interactions: int
    max_dropped: float
    expected: tuple[int, ...] = ()

    def files(self) -> dict[str, Path]:
        """Role → raw file, whether it is there or not."""

    def present(self) -> dict[str, Path]:
        """Role → raw file, of those that are there; never downloads."""
        return {role: path for role, path in self.files().items() if path.is_file()}

    def sources(self) -> dict[str, Path]:
        """Role → existing raw file, downloaded where that is possible. Raises TigerrecError if a file is missing."""

    def read(self) -> RawData:
        """The raw files, read to their end. Raises TigerrecError if a file is missing or damaged."""
