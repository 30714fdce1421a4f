"""Tables as people have them, read in batches: CSV and its kin, JSON Lines, JSON arrays, Python literals, Parquet."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import itertools
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tigerrec.data import raw
from tigerrec.data.base import DatasetError
from tigerrec.data.raw_files import LINE_LIMIT, content_suffix, opened, read_lines, unpacked_suffix
from tigerrec.text import first_line

DELIMITED = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".item": "\t"}  # the last two are of RecBole
JSON = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*DELIMITED, *JSON, ".parquet")
BATCH = 50_000  # rows
FIRST_LINES = 100  # of JSON Lines, looked at for the names of the columns
EXCERPT = 100  # characters of a line that cannot be read
MANY = 10  # names of columns in a message
WHOLE = "give a whole file"
UNDECODED = re.compile(r"[\udc80-\udcff]")  # bytes that are not UTF-8
BETWEEN = re.compile(r"[ \t\r\n,]*")  # elements of a JSON array
TYPED = re.compile(r"(.+):(token|token_seq|float|float_seq)")
SAID = re.compile(r"sep=(.)\s*")  # the first line of tables for Excel
SEPARATORS = {";": ";", "\t": r"\t", "|": "|", "::": "::", ",": ","}


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How a table of text is written: what stands between its columns (None: as its ending tells), its encoding,
    whether its first line names the columns, and the marks that quote and escape (None: quotes in CSV alone)."""

    separator: str | None = None
    encoding: str = "utf-8"
    header: bool = True
    quote: str | None = None
    escape: str | None = None


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


class DelimitedTable(RowTable):
    """A file of lines with a separator between columns; every value is text."""

    def __init__(self, path: Path, dialect: Dialect, remedy: str) -> None:
        super().__init__(path)
        self.remedy = remedy
        self.dialect = dialect
        start = next(read_lines(path, remedy, encoding=dialect.encoding), (1, b""))[1] or b""
        said = SAID.fullmatch(start.decode("utf-8", "replace").strip("\r\n"))
        self.is_said = said is not None
        named = (dialect.separator or "").replace(r"\t", "\t") or (said and said[1])
        self.separator = named or DELIMITED[content_suffix(path)]
        names = self._first()
        self.width, self.first = len(names), names
        if not dialect.header:
            names = [str(number) for number in range(1, len(names) + 1)]
        elif names and all(TYPED.fullmatch(name) for name in names):  # the headers of RecBole
            names = [name.rpartition(":")[0] for name in names]
        self.columns = self._named(names)

    def _first(self) -> list[str]:
        """The header; without one, the first row that can be read."""
        rows = (row for _, row, _ in self._records())
        first: Any = next(rows, [])
        if type(first) is raw.Fault and not self.dialect.header:
            first = next((row for row in rows if type(row) is list), first)
        if type(first) is raw.Fault:
            self.fault = first
            return []
        return list(first)

    def _records(self) -> Iterator[tuple[int, Any, int]]:
        """The number of the last line, the row or its `Fault`, and how many lines it takes."""
        csv.field_size_limit(LINE_LIMIT)
        ended, taken, unusable = 0, 0, ""  # the last line, how many there were, and what is wrong with the last row's

        def texts() -> Iterator[str]:
            nonlocal ended, taken, unusable
            lines = read_lines(self.path, self.remedy, encoding=self.dialect.encoding)
            for number, line in itertools.islice(lines, int(self.is_said), None):
                ended, taken = number, taken + 1
                try:
                    yield raw.text_of(line)
                except raw.Unreadable as reason:
                    unusable = str(reason)
                    yield (line or b"").decode("utf-8", "replace")

        quote = self.dialect.quote or (None if self.separator == "\t" or self.dialect.quote == "" else '"')
        escape = self.dialect.escape if self.dialect.escape != quote else None  # a doubled quote
        reader: Iterator[list[str]]
        if len(self.separator) > 1:
            reader = (text.rstrip("\r\n").split(self.separator) for text in texts())
        else:
            reader = csv.reader(
                texts(),
                delimiter=self.separator,
                quotechar=quote,
                quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
                escapechar=escape,
                strict=True,
            )  # fmt: skip
        while True:
            before, begun = ended, taken
            try:
                row: Any = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                row = raw.Fault(before + 1, _csv_reason(str(error)), lines=max(taken - begun, 1))
            if unusable:
                row, unusable = raw.Fault(ended, unusable, str(row)[:EXCERPT], max(taken - begun, 1)), ""
            yield ended, row, taken - begun

    def numbered_rows(self) -> Iterator[tuple[int, Any]]:
        records, width = self._records(), self.width
        if self.dialect.header:
            next(records, None)
        for line, row, lines in records:
            if type(row) is list and len(row) != width:
                yield line, raw.Fault(line, "another number of columns than the header", str(row)[:EXCERPT], lines)
            else:
                yield line, row

    def column(self, rows: list[list[str]], name: str) -> list[str]:
        place = self.columns.index(name)
        return [row[place] for row in rows]

    def advice(self, wanted: Sequence[str]) -> str | None:
        text = self.separator.join(self.first)
        if "\0" in text:
            order = "be" if text.startswith("\0") else "le"
            return f"it seems to be in UTF-16: add `dataset.encoding=utf-16-{order}`"
        for separator, written in SEPARATORS.items():
            parts = text.split(separator)
            if separator != self.separator and (set(wanted) & set(parts) or (self.width < 2 < len(parts))):
                return f"its columns seem to be separated by '{written}': add `\"dataset.separator='{written}'\"`"
        if self.dialect.header and any(re.fullmatch(r"[-+.\d]+", name) for name in self.first):
            return (
                "its first line seems to hold data, not names: add `dataset.header=false` and number the columns, as "
                "`dataset.user_column=1 dataset.item_column=2 dataset.time_column=4`"
            )
        return None


def _csv_reason(error: str) -> str:
    """Why the csv module refused a line, in plain words."""
    if "expected after" in error:
        return raw.NOT_QUOTED
    if "unexpected end" in error:
        return "a quote that is never closed"
    return raw.LONE_BREAK if "new-line" in error else f"no valid row ({error})"


def _names(rows: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


class JsonTable(RowTable):
    """A file of one record a line, in JSON or as a Python literal, or of one JSON array of records."""

    is_open = True

    def __init__(self, path: Path, dialect: Dialect, remedy: str) -> None:
        super().__init__(path)
        self.remedy = remedy
        self.dialect = dialect
        first = list(itertools.islice(self._records(), FIRST_LINES))
        self.wrapped = next((name for row in first[:1] for name, value in row.items() if _is_table(value)), None)
        self.columns = _names(first)
        self.fault = None if first else next((row for _, row in self.numbered_rows()), None)

    def _records(self) -> Iterator[dict[str, Any]]:
        return (row for _, row in self.numbered_rows() if type(row) is not raw.Fault)

    def all_columns(self) -> list[str]:
        return _names(self._records())

    def numbered_rows(self) -> Iterator[tuple[int, Any]]:
        with opened(self.path, self.remedy, encoding=self.dialect.encoding) as file:
            is_array = file.peek(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["  # type: ignore[attr-defined]
        if is_array:
            yield from self._elements()
            return
        for number, line in read_lines(self.path, self.remedy, encoding=self.dialect.encoding):
            try:
                yield number, raw.record_of(raw.text_of(line))
            except raw.Unreadable as reason:
                yield number, raw.Fault(number, str(reason), repr(line)[:EXCERPT])

    def _elements(self) -> Iterator[tuple[int, Any]]:
        """The elements of a JSON array, numbered from 1, without holding more than one of them."""
        decoder, number = json.JSONDecoder(), 0
        with opened(self.path, self.remedy, encoding=self.dialect.encoding) as file:
            texts = codecs.iterdecode(iter(lambda: file.read(1 << 20), b""), "utf-8", "surrogateescape")
            text = next(texts, "").lstrip("\ufeff \t\r\n")
            place = 1  # in the text, after the bracket
            while True:
                place = BETWEEN.match(text, place).end()  # type: ignore[union-attr]
                try:
                    if text.startswith("]", place):  # and nothing follows but another array
                        text = text[place + 1 :].lstrip() or "".join(texts).lstrip()
                        if not text:
                            return
                        if not text.startswith("["):
                            raise DatasetError(f"{self.path} goes on after its array; write one record a line.")
                        place = 1
                        continue
                    value, end = decoder.raw_decode(text, place)
                    if end == len(text):  # a number may go on
                        raise ValueError
                except (ValueError, RecursionError):
                    more = next(texts, None)
                    if more is None or len(text) - place > LINE_LIMIT:
                        raise DatasetError(
                            f"{self.path} is no valid JSON after its element {number:,}; repair it, or write one "
                            "record a line."
                        ) from None
                    text, place = text[place:] + more, 0
                    continue
                element = text[place:end]
                number, place = number + 1, end
                if not element.isascii() and UNDECODED.search(element):
                    yield number, raw.Fault(number, raw.NOT_UTF_8, ascii(element)[:EXCERPT])
                elif isinstance(value, dict):
                    yield number, value
                else:
                    yield number, raw.Fault(number, raw.NO_RECORD, str(value)[:EXCERPT])

    def column(self, rows: list[dict[str, Any]], name: str) -> list[Any]:
        return [row.get(name) for row in rows]

    def advice(self, wanted: Sequence[str]) -> str | None:
        return self.wrapped and f"its records seem to stand in '{self.wrapped}': write that array alone"


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(row, dict) for row in value)


class ParquetTable(Table):
    """A Parquet file; values have its types."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import pyarrow.parquet

        with self._readable():
            names = pyarrow.parquet.read_schema(path).names
        self.columns = self._named(names)

    def _readable(self) -> Any:
        import contextlib

        @contextlib.contextmanager
        def guard() -> Iterator[None]:
            try:
                yield
            except DatasetError:
                raise
            except Exception as error:  # libraries raise many kinds
                raise DatasetError(
                    f"{self.path} cannot be read as Parquet ({first_line(error)}); write it again."
                ) from error

        return guard()

    def group_sizes(self) -> list[int]:
        """The rows of each row group."""
        import pyarrow.parquet

        with self._readable():
            metadata = pyarrow.parquet.read_metadata(self.path)
            return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def batches(self, columns: Sequence[str], group: int | None = None) -> Iterator[Batch]:
        """The rows, of one row group if it is given, with some columns alone. Raises DatasetError if the file turns out
        to be damaged."""
        import pyarrow.parquet

        with self._readable(), pyarrow.parquet.ParquetFile(self.path) as file:
            nested = any("." in name for name in columns)
            number = 1 + sum(self.group_sizes()[: group or 0])
            groups = None if group is None else [group]
            names = None if nested else list(dict.fromkeys(columns))
            for batch in file.iter_batches(BATCH * 4, row_groups=groups, columns=names):
                batch.validate(full=True)
                yield Batch(range(number, number + len(batch)), {name: batch.column(name) for name in columns})
                number += len(batch)


def is_table(path: Path) -> bool:
    """Whether a file has the ending of a table that can be read."""
    return unpacked_suffix(path) in SUFFIXES


def open_table(path: Path, dialect: Dialect | None = None, remedy: str = WHOLE) -> Table:
    """A table, its columns read. Raises DatasetError, which ends in the `remedy`, if it is damaged or no table."""
    dialect = dialect or Dialect()
    suffix = content_suffix(path)
    if suffix == ".parquet":
        return ParquetTable(path)
    if suffix in JSON:
        return JsonTable(path, dialect, remedy)
    return DelimitedTable(path, dialect, remedy)


def read_rows(path: Path) -> tuple[list[str], Iterator[dict[str, Any] | raw.Fault]]:
    """The names of a table's columns, and its rows, with a `Fault` for each line that cannot be read, after the rows
    that stand near it. Raises DatasetError, also while the rows are read, if the file is damaged or no table."""
    table = open_table(path)
    columns = table.all_columns()

    def rows() -> Iterator[dict[str, Any] | raw.Fault]:
        for batch in table.batches(columns):
            yield from batch.rows()
            yield from batch.faults

    return columns, rows()
