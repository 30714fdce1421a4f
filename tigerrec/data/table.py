"""A table as the readers of all formats give it: its columns by name and its rows in batches."""

from __future__ import annotations

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tigerrec.data import raw
from tigerrec.data.base import DatasetError
from tigerrec.text import first_line

BATCH = 50_000  # rows
EXCERPT = 100  # characters of a line that cannot be read
MANY = 10  # names of columns in a message
WHOLE = "give a whole file"


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How a table of text is written: what stands between its columns (None: as its ending tells), its encoding,
    whether its first line names the columns, the marks that quote and escape (None: quotes in CSV alone), and what the
    options that say so begin with, where they are of this table alone."""

    separator: str | None = None
    encoding: str = "utf-8"
    header: bool = True
    quote: str | None = None
    escape: str | None = None
    of: str = ""


@dataclasses.dataclass
class Batch:
    """Some rows: the number of the line, or of the row, where each stands, and the values of each column, a list or a
    `pyarrow.Array`; beside the lines between them that cannot be read."""

    lines: Sequence[int]
    columns: dict[str, Any]
    faults: list[raw.Fault] = dataclasses.field(default_factory=list)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each row as a dict. Raises DatasetError if a column holds what Python cannot."""
        lists = [_as_list(values, name) for name, values in self.columns.items()]
        for row in zip(*lists, strict=True) if lists else ((),) * len(self.lines):
            yield dict(zip(self.columns, row, strict=True))


def _as_list(values: Any, name: str) -> list[Any]:
    try:
        return values if isinstance(values, list) else list(values.to_pylist())
    except (OverflowError, ValueError) as error:
        raise DatasetError(
            f"The column '{name}' of type {values.type} holds what cannot be read ({first_line(error)}); write it "
            "as text."
        ) from None


def shown(columns: Sequence[str]) -> str:
    """The names of columns for a message, on one line."""
    names = [
        name if name.isprintable() and name == name.strip() != "" else repr(name)
        for name in (str(name)[:40] for name in columns[:MANY])
    ]
    more = f" and {len(columns) - MANY} more" if len(columns) > MANY else ""
    return ", ".join(names) + more if names else "none"


class Table(ABC):
    """A table: the names of its columns, and its rows in batches; without columns, `fault` is the line that should
    have told them and cannot be read, None of an empty file. Rows of one that `is_open` may have other columns than the
    first rows."""

    is_open: ClassVar[bool] = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        self.fault: raw.Fault | None = None

    @abstractmethod
    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        """The rows, with some columns alone. Raises DatasetError if the file turns out to be damaged."""

    def all_columns(self) -> list[str]:
        """The names of the columns that any row has."""
        return self.columns

    def advice(self, wanted: Sequence[str]) -> str | None:
        """The option that would read the file, where a look at it tells why it lacks columns."""
        return None

    def _named(self, names: list[str]) -> list[str]:
        """Names of columns, once it is sure that each means one."""
        repeated = [name for name, count in Counter(names).items() if count > 1 and name]
        if repeated:
            raise DatasetError(
                f"{self.path} has more than one column {shown(repeated[:1])}; give each a name of its own."
            )
        return names


class RowTable(Table):
    """A table that is read row by row."""

    @abstractmethod
    def numbered_rows(self) -> Iterator[tuple[int, Any]]:
        """The number of the line and the row, or a `Fault` in its place."""

    @abstractmethod
    def column(self, rows: list[Any], name: str) -> list[Any]:
        """The values of a column in some rows."""

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        numbered = self.numbered_rows()
        while chunk := list(itertools.islice(numbered, BATCH)):
            faults = [row for _, row in chunk if type(row) is raw.Fault]
            good = [pair for pair in chunk if type(pair[1]) is not raw.Fault] if faults else chunk
            rows = [row for _, row in good]
            yield Batch([line for line, _ in good], {name: self.column(rows, name) for name in columns}, faults)
