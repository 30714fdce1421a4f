"""Files of tables: which there are, and the reader of each by its ending."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tigerrec.data import raw
from tigerrec.data.delimited import DELIMITED, DelimitedTable
from tigerrec.data.json_records import JSON, JsonTable
from tigerrec.data.parquet import ParquetTable
from tigerrec.data.raw_files import content_suffix, unpacked_suffix
from tigerrec.data.table import WHOLE, Dialect, Table

SUFFIXES = (*DELIMITED, *JSON, ".parquet")


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


def parts_of(path: Path, any_name: bool) -> list[Path]:
    """The tables of a folder, or, where there are none and files of `any_name` can be, all files; those of a pattern
    like `orders-*.parquet`; by name; else the file itself."""
    if path.is_dir():
        parts = [part.relative_to(path) for part in path.rglob("*") if part.is_file()]
        visible = [part for part in parts if not any(name.startswith((".", "_")) for name in part.parts)]
        tables = [part for part in visible if is_table(part)] or (visible if any_name else [])
        return [path / part for part in sorted(tables)] or [path]
    if glob.has_magic(str(path)) and not path.exists():
        return [Path(name) for name in sorted(glob.glob(str(path), recursive=True))] or [path]
    return [path]
