"""Tables of text with a separator between columns: CSV, TSV and their kin."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tigerrec.data import raw
from tigerrec.data.raw_files import LINE_LIMIT, content_suffix, read_lines
from tigerrec.data.table import EXCERPT, Dialect, RowTable

DELIMITED = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".item": "\t"}  # the last two are of RecBole
TYPED = re.compile(r"(.+):(token|token_seq|float|float_seq)")
SAID = re.compile(r"sep=(.)\s*")  # the first line of tables for Excel
SEPARATORS = {";": ";", "\t": r"\t", "|": "|", "::": "::", ",": ","}


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
        text, of = self.separator.join(self.first), self.dialect.of
        if "\0" in text:
            order = "be" if text.startswith("\0") else "le"
            return f"it seems to be in UTF-16: add `dataset.{of}encoding=utf-16-{order}`"
        for separator, written in SEPARATORS.items():
            parts = text.split(separator)
            if separator != self.separator and (set(wanted) & set(parts) or (self.width < 2 < len(parts))):
                option = f"dataset.{of}separator='{written}'"
                return f"its columns seem to be separated by '{written}': add `\"{option}\"`"
        if self.dialect.header and any(re.fullmatch(r"[-+.\d]+", name) for name in self.first):
            columns = "items_item_column=1 dataset.title_column=2" if of else "user_column=1 dataset.item_column=2"
            return (
                f"its first line seems to hold data, not names: add `dataset.{of}header=false` and number the columns, "
                f"as `dataset.{columns}{'' if of else ' dataset.time_column=4'}`"
            )
        return None


def _csv_reason(error: str) -> str:
    """Why the csv module refused a line, in plain words."""
    if "expected after" in error:
        return raw.NOT_QUOTED
    if "unexpected end" in error:
        return "a quote that is never closed"
    return raw.LONE_BREAK if "new-line" in error else f"no valid row ({error})"
