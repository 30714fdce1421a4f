"""Spark as the engine of the prepare stage: its workers read and clean interactions by the SQL of DuckDB's engine, each
in a DuckDB of its own; Spark itself arranges them by the SQL that both take."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tigerrec.data.arrange import ordered
from tigerrec.data.base import DatasetError, EqualTimes
from tigerrec.data.columns import MACROS, Columns
from tigerrec.data.interactions import ROLE, Loader, lines_of, set_up, wanted_columns
from tigerrec.data.parquet import ParquetTable
from tigerrec.data.raw import Tally
from tigerrec.data.table import Table
from tigerrec.storage.files import ArtifactError, remove_tree
from tigerrec.text import first_line

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from pyspark.sql import DataFrame, SparkSession

logger = logging.getLogger(__name__)

LINES = "place BIGINT, user STRING, item STRING, seconds BIGINT, nanos INT, kind STRING, fault STRING, odd STRING"
INTERACTIONS = "SELECT place, user, item, seconds, nanos FROM lines WHERE fault IS NULL"
GLOB = re.compile(r"([][{}*?\\])")  # what a path means as a pattern


def _cleaner(groups: list[tuple[Path, int, int]], columns: Columns) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """What a worker of Spark does: of the numbers of row groups (file, number, places taken before the file), the rows
    of the table `lines`."""

    def clean(batches: Iterator[Any]) -> Iterator[Any]:
        import duckdb

        with duckdb.connect(config={"threads": 1}) as database:
            set_up(database)
            database.execute(MACROS)
            for number in (number for batch in batches for number in batch.column(0).to_pylist()):
                path, group, before = groups[number]
                table = ParquetTable(path)
                for batch in table.batches(wanted_columns(table, columns), group):
                    with lines_of(database, batch, columns, before) as sql:
                        yield from database.sql(sql).to_arrow_table().to_batches()

    return clean


class SparkLoader(Loader):
    """Loads Parquet files by Spark, all of them at once, and makes tables by it: each is a folder of Parquet files that
    DuckDB reads too."""

    def __init__(self, database: DuckDBPyConnection, tally: Tally, spark: SparkSession, folder: Path) -> None:
        super().__init__(database, tally)
        self.spark, self.folder = spark, folder
        self.groups: list[tuple[Path, int, int]] = []
        self.tables: list[tuple[int, str]] = []
        self.columns: Columns | None = None
        self.stored: dict[str, int] = {}

    def load(self, table: Table, columns: Columns, role: str = ROLE) -> None:
        """Note the Parquet file of a role, whose rows follow those of the files before. Raises DatasetError if it is
        damaged."""
        assert isinstance(table, ParquetTable)
        self._check(wanted_columns(table, columns), columns)
        sizes = table.group_sizes()
        self.groups += [(table.path.absolute(), group, self.before) for group in range(len(sizes))]
        self.tables.append((self.before, role))
        self.before += sum(sizes)
        self.columns = columns
        self.tally.lines[role] += sum(sizes)

    def finish(self) -> None:
        """Read and clean all files."""
        assert self.columns is not None
        numbers = self.spark.range(0, len(self.groups), 1, max(len(self.groups), 1))
        self.database.execute("DROP TABLE lines")
        self._store("lines", numbers.mapInArrow(_cleaner(self.groups, self.columns), LINES))
        self.spark.sql(INTERACTIONS).createOrReplaceTempView("interactions")
        self._count(self.tables)

    def create(self, table: str, query: str) -> None:
        self._store(table, self.spark.sql(query))

    def ordered(self, part: str | None, equal_times: EqualTimes) -> str:
        self.create("ordered", ordered(part, equal_times))
        return "SELECT * FROM ordered"

    def _store(self, table: str, frame: DataFrame) -> None:
        """Write a table, in the place of one of its name, and let Spark and DuckDB read it; DuckDB reads the parts in
        the order of their names, which is that of a sorted table."""
        older = self.stored.get(table, 0)
        self.stored[table] = older + 1
        folder = self.folder / f"{table}-{older + 1}"
        frame.write.parquet(f"file://{folder}")
        self.spark.read.parquet("file://" + GLOB.sub(r"\\\1", str(folder))).createOrReplaceTempView(table)
        parts = glob.escape(str(folder)).replace("'", "''")
        self.database.execute(f"CREATE OR REPLACE VIEW {table} AS SELECT * FROM read_parquet('{parts}/*.parquet')")
        remove_tree(self.folder / f"{table}-{older}")


@contextlib.contextmanager
def spark_loader(
    database: DuckDBPyConnection, tally: Tally, folder: Path, properties: Mapping[str, Any]
) -> Iterator[SparkLoader]:
    """A loader that keeps its tables in a folder which all machines of Spark see; it works in the session that runs
    already, beside that one's tables, or in one of its own with these properties. Raises DatasetError if Spark is not
    installed or does not start, ArtifactError if it fails."""
    try:
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise DatasetError("dataset.engine=spark needs PySpark; `pip install 'tigerrec[spark]'`.") from None
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    is_main = threading.current_thread() is threading.main_thread()
    given, handler = SparkSession.getActiveSession(), signal.getsignal(signal.SIGINT)
    if given and properties:
        logger.warning("dataset.spark= is left aside, since a session of Spark runs already")
    builder = SparkSession.builder.appName("tigerrec prepare")
    for name, value in properties.items():
        builder = builder.config(name, value)
    try:
        spark = given.newSession() if given else builder.getOrCreate()
    except (PySparkException, Py4JError, OSError) as error:
        raise DatasetError(
            f"Spark did not start ({_reason(error)}); it needs Java 17 (as `apt-get install openjdk-17-jre-headless` "
            "and JAVA_HOME give it) and properties that it knows in `dataset.spark=`."
        ) from error
    try:
        yield SparkLoader(database, tally, spark, folder.absolute())
    except (PySparkException, Py4JError) as error:
        told = re.search(r"DatasetError: (.*)", str(error))
        if told:
            raise DatasetError(told[1]) from None
        raise ArtifactError(
            f"Spark could not work on the data ({_reason(error)}); give its workers what they lack, be it memory, disk "
            "space or a Python with tigerrec (PYSPARK_PYTHON), and run again."
        ) from error
    finally:
        if given is None:
            spark.stop()
            if is_main:
                signal.signal(signal.SIGINT, handler)


def _reason(error: Exception) -> str:
    """What an error of Spark says in one line: the last cause that it names."""
    causes = re.findall(r"^(?:Caused by: )?((?:\w+\.)*\w*(?:Error|Exception): .*)$", str(error), re.MULTILINE)
    return causes[-1] if causes else first_line(error)
