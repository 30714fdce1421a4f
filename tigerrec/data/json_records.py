"""Tables of JSON: a record a line, also as a Python literal, or an array of records."""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tigerrec.data import raw
from tigerrec.data.base import DatasetError
from tigerrec.data.raw_files import LINE_LIMIT, opened, read_lines
from tigerrec.data.table import EXCERPT, Dialect, RowTable

JSON = (".jsonl", ".ndjson", ".json")
FIRST_LINES = 100  # of JSON Lines, looked at for the names of the columns
UNDECODED = re.compile(r"[\udc80-\udcff]")  # bytes that are not UTF-8
BETWEEN = re.compile(r"[ \t\r\n,]*")  # elements of a JSON array


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
