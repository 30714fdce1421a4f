"""Histories as sequences: tables with one row a user, whose items stand in one column, oldest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tigerrec.data import raw
from tigerrec.data.raw_files import read_lines
from tigerrec.data.table import BATCH, EXCERPT, WHOLE, Batch, Dialect, RowTable, Table


class LineTable(RowTable):
    """A file of lines `user item item …` as a table of two columns."""

    def __init__(self, path: Path, columns: list[str], dialect: Dialect) -> None:
        super().__init__(path)
        self.columns, self.encoding = columns, dialect.encoding

    def numbered_rows(self) -> Iterator[tuple[int, Any]]:
        for number, line in read_lines(self.path, WHOLE, encoding=self.encoding):
            try:
                words = raw.text_of(line).split()
                yield number, ("".join(words[:1]), words[1:])
            except raw.Unreadable as reason:
                yield number, raw.Fault(number, str(reason), repr(line)[:EXCERPT])

    def column(self, rows: list[Any], name: str) -> list[Any]:
        return [row[self.columns.index(name)] for row in rows]


class SequenceTable(Table):
    """A table of histories as one of interactions, with a user and an item each, numbered in their order; what cannot
    be read is named by its line in the file."""

    def __init__(self, table: Table, user: str, items: str, item: str, separator: str | None) -> None:
        super().__init__(table.path)
        self.table, self.user, self.items, self.separator = table, user, items, separator
        self.columns = [user, item]

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        users: list[str] = []
        items: list[str] = []
        faults: list[raw.Fault] = []
        number = 1

        def interactions() -> Batch:
            values = dict(zip(self.columns, (users, items), strict=True))
            return Batch(range(number, number + len(users)), {name: values[name] for name in columns}, faults)

        for batch in self.table.batches([self.user, self.items]):
            faults += batch.faults
            for line, row in zip(batch.lines, batch.rows(), strict=True):
                try:
                    user = raw.plain_id(row[self.user], "user")
                    history = self._history(row[self.items])
                except raw.Unreadable as reason:
                    faults.append(raw.Fault(line, str(reason), str(row[self.items])[:EXCERPT]))
                    continue
                for value in history:
                    try:
                        items.append(raw.plain_id(value, "item"))
                        users.append(user)
                    except raw.Unreadable as reason:
                        faults.append(raw.Fault(line, str(reason), repr(value)[:EXCERPT]))
                if len(users) + len(faults) >= BATCH:
                    yield interactions()
                    number += len(users)
                    users, items, faults = [], [], []
        yield interactions()

    def _history(self, value: Any) -> list[Any]:
        """The items of a row; none where it has nothing. Raises Unreadable if it holds neither a list nor a text."""
        if value is None or value != value:
            return []
        listed = raw.listed(value) if isinstance(value, str) else value
        if isinstance(listed, (list, tuple)):
            return list(listed)
        if not isinstance(value, str) or value.strip().startswith("["):
            raise raw.Unreadable("neither a list of items nor a text of them")
        items = value.split(self.separator) if value.strip() else []
        if self.separator is None and items[1:] and all(item[-1] in ",;" for item in items[:-1]):
            raise raw.Unreadable(raw.SEPARATED)
        return items
