"""Anyone's own data: a table of interactions and one of items, as CSV, JSON Lines or Parquet with named columns."""

from __future__ import annotations

import csv
import datetime
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from tigerrec.config import Share, options
from tigerrec.data import raw
from tigerrec.data.base import Dataset, DatasetError, RawData, RawItem
from tigerrec.data.prepare import ITEM_FIELDS
from tigerrec.storage.fingerprints import not_identity
from tigerrec.text import first_line

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
FIRST_LINES = 100  # of JSON Lines, looked at for the names of the columns
GIVE_BOTH = "`dataset.interactions=<file> dataset.items=<file> dataset.name=<shop>` (CSV, TSV, JSON Lines or Parquet)"
Row = dict[str, Any] | raw.Unreadable


def _format(path: Path) -> str:
    """The file's ending without `.gz`."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def is_table(path: Path) -> bool:
    """Whether a file has the ending of a table that can be read."""
    return _format(path) in SUFFIXES and not (path.suffix == ".gz" and _format(path) == ".parquet")


def shown(columns: list[str]) -> str:
    """The names of columns for a message, on one line."""
    return ", ".join(name if name.isprintable() else repr(name) for name in columns) or "none"


def _header(path: Path, names: list[str]) -> Row:
    """The columns of a table as its first row, once it is sure that a name means one of them."""
    repeated = [name for name, count in Counter(names).items() if count > 1 and name]
    if repeated:
        raise DatasetError(f"{path} has more than one column {shown(repeated[:1])}; give each a name of its own.")
    return dict.fromkeys(names)


def _delimited_rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV (comma) or TSV (tab) file with a header; every value is text."""
    lines = ((line or b"").decode("utf-8", "surrogateescape") for line in raw.read_lines(path, "give a whole file"))
    csv.field_size_limit(raw.LINE_LIMIT)
    reader = csv.reader(lines, delimiter="\t" if _format(path) == ".tsv" else ",", strict=True)
    try:
        header = next(reader, [])
        yield _header(path, header)
        for row in reader:
            if len(row) == len(header):
                yield dict(zip(header, row, strict=True))
            else:
                yield raw.Unreadable("another number of columns than the header")
    except csv.Error as error:
        place = f"line {reader.line_num:,}"
        raise DatasetError(f"{path} is no valid table at {place} ({error}); repair that line.") from None


def _json_rows(path: Path) -> Iterator[Row]:
    rows = map(_json_row, raw.read_lines(path, "give a whole file"))
    first = list(itertools.islice(rows, FIRST_LINES))
    yield dict.fromkeys(name for row in first if isinstance(row, dict) for name in row)
    yield from first
    yield from rows


def _json_row(line: bytes | None) -> Row:
    try:
        return raw.json_record(raw.text_of(line))
    except raw.Unreadable as reason:
        return reason


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield _header(path, file.schema_arrow.names)
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except DatasetError:
        raise
    except Exception as error:  # libraries raise many kinds, for damage as for dates that Python cannot hold
        raise DatasetError(f"{path} cannot be read as Parquet ({first_line(error)}); write it again.") from error


def read_rows(path: Path) -> tuple[list[str], Iterator[Row]]:
    """The names of a table's columns, and its rows; a row that cannot be read is an `Unreadable` with the reason.
    Raises DatasetError, also while the rows are read, if the file is damaged or no table."""
    read = {".csv": _delimited_rows, ".tsv": _delimited_rows, ".parquet": _parquet_rows}.get(_format(path), _json_rows)
    rows = read(path)
    return list(next(rows) or {}), rows  # type: ignore[arg-type]


def plain_id(value: Any, name: str) -> str:
    """An id as text; whole numbers are taken too (12 and 12.0 become "12"), text stays as it is."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return raw.checked_id(str(value) if isinstance(value, int) and not isinstance(value, bool) else value, name)


def parse_time(value: Any) -> int:
    """A time as int64: numbers keep their unit (fractions are cut off), dates become seconds since 1970. Dates are ISO
    8601, in UTC where they name no zone. Raises Unreadable if it is neither a number nor an ISO date."""
    if isinstance(value, str):
        text = value.strip()
        for read in (int, float, datetime.datetime.fromisoformat):
            try:
                value = read(text)
                break
            except ValueError:
                continue
        else:
            raise raw.Unreadable("no time" if not text else "time is neither a number nor an ISO date")
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime(value.year, value.month, value.day)
    if isinstance(value, datetime.datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()
    return raw.checked_time(value)


@options
class TablesDataset(Dataset):
    """A user's own interactions and, if there are any, items.

    Attributes:
        interactions: a table with one row an interaction: user, item, time.
        items: a table with one row an item; None: item ids stand for titles.
        user_column, item_column, time_column: columns of `interactions`.
        items_item_column: the column of item ids in `items`; None: as `item_column`.
        title_column, brand_column, categories_column, price_column: columns of `items`; None: `title`, `brand`,
            `categories`, `price` where the file has them.
        categories_separator: between the levels of a category written as one text.
        min_user_interactions: users with fewer are left out (0: no filter, but three are always needed); repeated with
            the item filter until nothing changes.
        min_item_interactions: items with fewer are left out (0: no filter).
        max_dropped: the largest share of unreadable lines that is put up with.
    """

    family: ClassVar[str] = "tables"

    interactions: Path | None = not_identity(default=None)
    items: Path | None = not_identity(default=None)
    user_column: str = "user"
    item_column: str = "item"
    time_column: str = "time"
    items_item_column: str | None = None
    title_column: str | None = None
    brand_column: str | None = None
    categories_column: str | None = None
    price_column: str | None = None
    categories_separator: str = Field(default=">", min_length=1)
    min_user_interactions: int = Field(default=0, ge=0)
    min_item_interactions: int = Field(default=0, ge=0)
    max_dropped: Share = not_identity(default=0.001)

    def files(self) -> dict[str, Path]:
        """Role → file, of those that are named."""
        named = {"interactions": self.interactions, "items": self.items}
        return {role: path.expanduser() for role, path in named.items() if path is not None}

    def sources(self) -> dict[str, Path]:
        """Role → existing file. Raises DatasetError if no file was named, or it does not exist, or its ending is
        unknown."""
        if self.interactions is None:
            raise DatasetError(f"dataset=tables needs your files; give {GIVE_BOTH}; `dataset.items` may be left out.")
        files = self.files()
        for role, path in files.items():
            if not path.is_file():
                raise DatasetError(f"dataset.{role}={path} is no file; give {GIVE_BOTH}.")
            if not is_table(path):
                raise DatasetError(
                    f"dataset.{role}={path} is no known kind of table; it must end in {', '.join(SUFFIXES)}, all but "
                    "Parquet also with .gz."
                )
        return files

    def read(self) -> RawData:
        """Both tables, read to their end. Raises DatasetError if a file or column is missing, or a file is damaged."""
        sources, tally = self.sources(), raw.Tally()
        rows = self._rows(sources["interactions"], ["user_column", "item_column", "time_column"])
        users, items, times = raw.read_interactions(rows, self._interaction, tally)
        if "items" in sources:
            metadata = self._read_items(sources["items"], tally)
        else:
            logger.warning("no dataset.items: item ids stand for titles, so text embeddings know little of the items")
            metadata = {item: RawItem(item, None, [], None) for item in dict.fromkeys(items)}
        return RawData(users, items, times, metadata, dict(tally.dropped), tally.lines, dict(tally.noted))

    def _interaction(self, row: Row) -> tuple[str, str, int]:
        """User, item and time of a row."""
        if isinstance(row, raw.Unreadable):
            raise row
        user, item = plain_id(row.get(self.user_column), "user"), plain_id(row.get(self.item_column), "item")
        return user, item, parse_time(row.get(self.time_column))

    def _rows(self, path: Path, options: Sequence[str], any_of: Sequence[str] = ()) -> Iterator[Row]:
        """The rows of a table that has every column named by `options`, and one of the columns `any_of` if given."""
        columns, rows = read_rows(path)
        for option in options:
            name = getattr(self, option) or self.item_column
            if name not in columns:
                raise DatasetError(
                    f"{path} has no column '{name}', only {shown(columns)}; name yours by `dataset.{option}=<column>`."
                )
        if any_of and not set(any_of) & set(columns):
            raise DatasetError(
                f"{path} has none of the columns {', '.join(any_of)}, only {shown(columns)}; name yours, as "
                "`dataset.title_column=<column>`."
            )
        return rows

    def _read_items(self, path: Path, tally: raw.Tally) -> dict[str, RawItem]:
        """The first row of each item."""
        id_column = self.items_item_column or self.item_column
        given = [f"{field}_column" for field in ITEM_FIELDS if getattr(self, f"{field}_column")]
        columns = {field: getattr(self, f"{field}_column") or field for field in ITEM_FIELDS}
        by_id: dict[str, RawItem] = {}
        for row in self._rows(path, ["items_item_column", *given], list(columns.values())):
            with tally.line("items"):
                if isinstance(row, raw.Unreadable):
                    raise row
                item = plain_id(row.get(id_column), "item")
                if item in by_id:
                    tally.noted["repeated items"] += 1
                else:
                    record = {field: row.get(column) for field, column in columns.items()}
                    by_id[item] = raw.make_item(record, tally, self.categories_separator)
        return by_id
