"""What a data set gives the prepare stage: raw interactions and items."""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import Field

from tigerrec import TigerrecError

if TYPE_CHECKING:
    from tigerrec.data.interactions import Loader
    from tigerrec.data.raw import Tally


AtLeastThree = Annotated[int, Field(ge=3)]
EqualTimes = Literal["file", "reversed"]


class DatasetError(TigerrecError):
    """Raw data that cannot be used: missing, damaged, too many unreadable lines, or nothing left."""


class RawItem(NamedTuple):
    """What the raw files say of an item: HTML entities decoded, white space collapsed, missing parts None or empty."""

    title: str | None
    brand: str | None
    categories: list[str]
    price: float | None
    texts: tuple[tuple[str, str], ...] = ()  # the name and the content of each further text


@runtime_checkable
class Dataset(Protocol):
    """Where interactions come from: a frozen dataclass of files (not identity) and filters (identity). `max_dropped` is
    the largest share of unreadable lines of a file that is put up with, `expected` the users, items and interactions of
    the known release, empty where nothing is known, `max_user_interactions` how many of a user, the last, are kept,
    `equal_times` how interactions of a user at the same time stand: in the order of the file or reversed."""

    family: ClassVar[str]
    min_user_interactions: int
    min_item_interactions: int
    max_dropped: float
    expected: tuple[int, ...] = ()
    max_user_interactions: int | None = None
    equal_times: EqualTimes = "file"

    def files(self) -> dict[str, Path]:
        """Role → raw file, whether it is there or not."""

    def present(self) -> dict[str, Path]:
        """Role → raw file, of those that are there; never downloads."""
        return {role: path for role, path in self.files().items() if path.is_file()}

    def named(self) -> dict[str, str]:
        """Role → what the options call its raw file, or the folder or pattern of several, whatever is there."""
        return {role: path.name for role, path in self.files().items()}

    def sources(self) -> dict[str, Path]:
        """Role → existing raw file, downloaded where that is possible. Raises TigerrecError if a file is missing."""

    def load_interactions(self, loader: Loader) -> None:
        """Load every interaction in the order of the files. Raises TigerrecError if a file is missing or damaged, or
        its columns are not those that were named."""

    def read_items(self, needed: Set[str], tally: Tally) -> Iterator[tuple[str, RawItem | None]]:
        """Each item that the files tell of, in their order, with what they say of it if it is needed and was not told
        of before. Raises TigerrecError as `load_interactions`."""
