"""Tables that a database holds or a query answers with: files of DuckDB and SQLite, and SQL that DuckDB runs."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tigerrec.data.base import DatasetError
from tigerrec.data.columns import quoted
from tigerrec.data.interactions import MEMORY, set_up
from tigerrec.data.table import BATCH, Batch, RowTable, Table, shown
from tigerrec.text import first_line

SQL = ".sql"
DATABASES = (".duckdb", ".db", ".sqlite", ".sqlite3")
UNSAVED = ("-wal", "-journal", ".wal")  # beside a database: changes that its file does not hold yet
QUERY = re.compile(r"\s*(select|with|from)\s", re.IGNORECASE)
TABLES_OF_SQLITE = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%'"
TABLES_OF_DUCKDB = "SELECT table_name FROM information_schema.tables"


@contextlib.contextmanager
def _answered(path: Path) -> Iterator[None]:
    """Whatever a database finds wrong with a query or with its file is a sentence."""
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:  # of DuckDB, SQLite and Arrow
        raise DatasetError(
            f"The query of {path} fails ({first_line(error)}); correct it, or give an undamaged database."
        ) from error


def _query(path: Path, name: str, option: str, tables: list[str]) -> str:
    """The query for a table of a database by its name; a query is taken as it is."""
    if QUERY.match(name):
        return name
    if name.rpartition(".")[2] not in tables:
        raise DatasetError(
            f"{path} has no table '{name}', only {shown(sorted(tables))}; name yours by `{option}=<table>`."
        )
    return f"SELECT * FROM {'.'.join(map(quoted, name.split('.')))}"


class DuckDBTable(Table):
    """The answer of DuckDB to the SQL of a file, or to a query of a database file."""

    def __init__(self, path: Path, name: str = "", option: str = "") -> None:
        super().__init__(path)
        import duckdb

        settings: dict[str, Any] = {
            "memory_limit": MEMORY,
            "temp_directory": tempfile.gettempdir(),
            "autoinstall_known_extensions": False,
        }
        is_query = path.suffix.lower() == SQL
        with _answered(path):
            query = path.read_text(encoding="utf-8-sig") if is_query else ""
            place = ":memory:" if is_query else path
            self.database = duckdb.connect(place, read_only=not is_query, config=settings)
            set_up(self.database)
            if not is_query:
                tables = [row[0] for row in self.database.execute(TABLES_OF_DUCKDB).fetchall()]
                query = _query(path, name, option, tables)
            self.answer = self.database.sql(query)
        if self.answer is None:
            raise DatasetError(f"{path} holds no query; its last statement must be a SELECT.")
        self.columns = self._named(self.answer.columns)

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        number = 1
        with self.database, _answered(self.path):
            for batch in self.answer.to_arrow_reader(BATCH * 4):
                yield Batch(range(number, number + len(batch)), {name: batch.column(name) for name in columns})
                number += len(batch)


class SQLiteTable(RowTable):
    """The answer to a query of a SQLite file."""

    def __init__(self, path: Path, name: str, option: str) -> None:
        super().__init__(path)
        with self._connected() as database:
            self.query = _query(path, name, option, [row[0] for row in database.execute(TABLES_OF_SQLITE)])
            cursor = database.execute(self.query)
            self.columns = self._named([column[0] for column in cursor.description])

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        address = f"{self.path.resolve().as_uri()}?mode=ro&immutable=1"
        with _answered(self.path), contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            database.text_factory = lambda content: content.decode("utf-8", "surrogateescape")
            yield database

    def numbered_rows(self) -> Iterator[tuple[int, Any]]:
        with self._connected() as database:
            yield from enumerate(database.execute(self.query), start=1)

    def column(self, rows: list[Any], name: str) -> list[Any]:
        place = self.columns.index(name)
        return [row[place] for row in rows]


def is_database(path: Path) -> bool:
    """Whether a file has the ending of a database, or of SQL."""
    return path.suffix.lower() in (*DATABASES, SQL)


def open_database(path: Path, name: str | None, option: str) -> Table:
    """The table of a database that has the name, or answers a query in its place, or the answer to the SQL of a file.
    Raises DatasetError if there is none, or the `option` that names it is missing or too much."""
    if path.suffix.lower() == SQL:
        if name is not None:
            raise DatasetError(f"{path} is a query, not a database; leave `{option}={name}` out.")
        return DuckDBTable(path)
    if name is None:
        raise DatasetError(f"{path} is a database; name its table, or a query, by `{option}=<table>`.")
    for unsaved in (path.with_name(path.name + ending) for ending in UNSAVED):
        if unsaved.is_file() and unsaved.stat().st_size:
            raise DatasetError(
                f"{path} lacks the changes that {unsaved.name} holds; close the program that writes it, or give a copy "
                "made by `VACUUM INTO`."
            )
    with open(path, "rb") as file:
        start = file.read(16)
    if start.startswith(b"SQLite format 3\0"):
        return SQLiteTable(path, name, option)
    if start[8:12] == b"DUCK":
        return DuckDBTable(path, name, option)
    raise DatasetError(f"{path} is no database of DuckDB or SQLite; give one of these, or a table in another file.")
