"""Tables of Parquet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tigerrec.data.base import DatasetError
from tigerrec.data.table import BATCH, Batch, Table
from tigerrec.text import first_line


class ParquetTable(Table):
    """A Parquet file; values have its types."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import pyarrow.parquet

        with self._readable():
            names = pyarrow.parquet.read_schema(path).names
        self.columns = self._named(names)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except DatasetError:
            raise
        except Exception as error:  # libraries raise many kinds
            raise DatasetError(
                f"{self.path} cannot be read as Parquet ({first_line(error)}); write it again."
            ) from error

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
