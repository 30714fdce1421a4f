"""Interactions on their way into DuckDB, the lines that conditions leave out, and those that cannot be read."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from tigerrec.data.arrange import create_table, ordered
from tigerrec.data.base import DatasetError, EqualTimes
from tigerrec.data.columns import (
    MACROS,
    Columns,
    arrow_column,
    batch_sql,
    id_sql,
    missing_sql,
    quoted,
    ticks,
    time_sql,
    whole_sql,
)  # fmt: skip
from tigerrec.data.raw import Fault, Tally
from tigerrec.data.table import Batch, Table
from tigerrec.storage.files import SPILLED, ArtifactError, not_writable, remove_tree
from tigerrec.text import first_line

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

ROLE = "interactions"
MEMORY = "1GB"  # what DuckDB holds before it spills to disk
BY_WHERE = "dataset.where"
BY_RATING = "dataset.min_rating"
UNRATED = "no rating"
FILTERS = (BY_WHERE, BY_RATING, UNRATED)
NO_TIME = "no time"
NOT_A_TIME = "time is neither a number nor an ISO date"
NOT_OF_FORMAT = "time is not written as dataset.time_format says"
NOT_A_RATING = "rating is not a number"
TABLES = """
CREATE TABLE lines (place BIGINT, user VARCHAR, item VARCHAR, seconds BIGINT, nanos INTEGER, kind VARCHAR,
    fault VARCHAR, odd VARCHAR);
CREATE VIEW interactions AS SELECT place, user, item, seconds, nanos FROM lines WHERE fault IS NULL;
"""


def set_up(database: DuckDBPyConnection) -> None:
    """Let a database read times as UTC and show no progress of its own. In a notebook without ipywidgets it shows none,
    and takes no word about it."""
    database.execute("SET TimeZone = 'UTC'")
    ((shows,),) = database.execute("SELECT current_setting('enable_progress_bar')").fetchall()
    if shows:
        database.execute("SET enable_progress_bar = false")


@contextlib.contextmanager
def working_database(folder: Path) -> Iterator[DuckDBPyConnection]:
    """An empty DuckDB; what its memory does not hold it spills into the folder of a stage, for as long as it lives.
    Raises ArtifactError if the folder cannot be made, or there is too little memory and disk space for the data."""
    import duckdb

    spilled = folder / SPILLED
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": MEMORY,
        "temp_directory": str(spilled),
        "autoinstall_known_extensions": False,
    }
    remove_tree(spilled)
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(folder, error) from None
    try:
        with duckdb.connect(config=settings) as database:
            set_up(database)
            database.execute(MACROS + TABLES)
            yield database
    except duckdb.Error as error:
        raise ArtifactError(
            f"DuckDB could not work on the data ({first_line(error)}); free memory or disk space in {folder}, or "
            "choose another place by `paths.runs=<folder>`, and run again."
        ) from error
    finally:
        remove_tree(spilled)
        with contextlib.suppress(OSError):  # it holds the stage
            for parent in made:
                parent.rmdir()


def wanted_columns(table: Table, columns: Columns) -> list[str]:
    """The columns of a table that have to be read: all of them where a condition may name any."""
    named = [columns.user, columns.item, *filter(None, (columns.time, columns.rating))]
    return table.all_columns() if columns.where else list(dict.fromkeys(named))


@contextlib.contextmanager
def lines_of(database: DuckDBPyConnection, batch: Batch, columns: Columns, before: int) -> Iterator[str]:
    """SQL of a batch as rows of the table `lines`, to be executed in the body; `before`: the places taken by the files
    before. Raises DatasetError if DuckDB cannot."""
    import duckdb
    import pyarrow as pa

    mark = "_"  # before the names of columns that are not the table's own
    while any(name.lower().startswith(mark) for name in batch.columns):
        mark += "_"
    given = {f"{mark}line": pa.array(batch.lines, pa.int64())}
    for role in ("user", "item", "time", "rating"):
        if (name := getattr(columns, role)) is not None:
            given[mark + role] = arrow_column(batch.columns[name], role in ("user", "item"))
    unit = None
    if columns.time is not None:
        given[f"{mark}time"], unit = ticks(given[f"{mark}time"])
    if columns.where:
        given |= {name: arrow_column(values, False) for name, values in batch.columns.items()}
    database.register("given", pa.table(list(given.values()), names=list(given)))
    try:
        described = database.execute("DESCRIBE given").fetchall()
        kinds = {name.removeprefix(mark): kind for name, kind, *_ in described if name.startswith(mark)}
        yield _sql(mark, kinds, unit, columns, before)
        database.unregister("given")
    except duckdb.Error as error:
        where = "write them as text, numbers or dates"
        if columns.where:
            where = "look at `dataset.where=`, or read every line by `dataset.where=null`"
        raise DatasetError(
            f"The interactions cannot be read ({' '.join(str(error).split())[:200]}); {where}."
        ) from None


def _sql(mark: str, kinds: dict[str, str], unit: str | None, columns: Columns, before: int) -> str:
    """SQL of the rows of the table `lines` of a batch whose columns of some `kinds` have names with a `mark`; `unit`:
    of dates that are whole numbers."""
    line, user, item, time, rating = (quoted(mark + role) for role in ("line", "user", "item", "time", "rating"))
    place, batch, filters = f"{before} + {line}", "given", ""
    if columns.where:
        kept = quoted(f"{mark}kept")
        batch = f"(SELECT *, coalesce(({columns.where}), false) AS {kept} FROM given)"
        filters = f"WHEN NOT {kept} THEN '{BY_WHERE}'"
    if columns.time is None:
        time, is_missing = "NULL", "false"
        seconds, nanos, kind = place, "0", "'places in the file'"
    else:
        is_missing = missing_sql(time, kinds["time"])
        seconds, nanos, kind = (
            (*whole_sql(time, unit)[:2], "'dates'") if unit else time_sql(mark, kinds["time"], columns)
        )
        batch = batch_sql(batch, mark, kinds["time"], columns)
    number = "0"
    if columns.min_rating is not None:
        text = f"replace(CAST({rating} AS VARCHAR), ',', '.')" if columns.decimal_comma else rating
        number = f"TRY_CAST({text} AS DOUBLE)"
        filters += f"""
            WHEN {missing_sql(rating, kinds["rating"])} OR isnan({number}) THEN '{UNRATED}'
            WHEN {number} < {float(columns.min_rating)} THEN '{BY_RATING}'"""
    else:
        rating = "NULL"
    not_a_time = NOT_A_TIME if columns.time_format is None else NOT_OF_FORMAT
    return f"""
        SELECT place, user, item, seconds, nanos, kind, CASE
            WHEN filter IS NOT NULL THEN filter
            WHEN user IS NULL THEN 'no user'
            WHEN contains(user, chr(0)) THEN 'user is not valid text'
            WHEN item IS NULL THEN 'no item'
            WHEN contains(item, chr(0)) THEN 'item is not valid text'
            WHEN no_time THEN '{NO_TIME}'
            WHEN seconds IS NULL OR nanos IS NULL OR kind IS NULL THEN '{not_a_time}'
            WHEN number IS NULL THEN '{NOT_A_RATING}' END AS fault,
            CASE fault WHEN '{not_a_time}' THEN CAST(time AS VARCHAR)
                WHEN '{NOT_A_RATING}' THEN CAST(rating AS VARCHAR) END
        FROM (
            SELECT {place} AS place, {id_sql(user, kinds["user"])} AS user, {id_sql(item, kinds["item"])} AS item,
                TRY_CAST({seconds} AS BIGINT) AS seconds, TRY_CAST({nanos} AS INTEGER) AS nanos, {kind} AS kind,
                {is_missing} AS no_time, {time} AS time, {rating} AS rating, CAST({number} AS DOUBLE) AS number,
                CASE {filters or "WHEN false THEN ''"} END AS filter
            FROM {batch})
    """


class Loader:
    """Loads batches of interactions into the table `interactions` of a database, one file after the other, and makes
    further tables of them."""

    def __init__(self, database: DuckDBPyConnection, tally: Tally) -> None:
        self.database, self.tally = database, tally
        self.kinds: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.filtered: Counter[str] = Counter()
        self.before = 0
        self.split: Callable[[Loader], str] | None = None

    def load(self, table: Table, columns: Columns, role: str = ROLE) -> None:
        """Load the table of a role, whose lines follow those of the tables before. Raises DatasetError if it is
        damaged, or the condition or the format of times cannot be used."""
        last, wanted = 0, wanted_columns(table, columns)
        self._check(wanted, columns)
        bar = tqdm(desc=table.path.name, unit=" lines", unit_scale=True, disable=None, leave=False)
        for batch in table.batches(wanted):
            bar.update(len(batch.lines) + len(batch.faults))
            for fault in batch.faults:
                self.tally.drop(role, fault)
                self.tally.lines[role] += fault.lines
            if batch.lines:
                self.tally.lines[role] += len(batch.lines)
                self._insert(batch, columns)
            last = max([last, *batch.lines[-1:], *(fault.line for fault in batch.faults)])
        bar.close()
        self._count([(self.before, role)])
        self.before += last

    def _check(self, names: Sequence[str], columns: Columns) -> None:
        """Raise DatasetError if the format of times is none, or the condition could mean several columns."""
        import duckdb

        if columns.time_format is not None:
            try:
                self.database.execute("SELECT try_strptime('', ?)", [columns.time_format]).fetchall()
            except duckdb.Error as error:
                raise DatasetError(
                    f"dataset.time_format={columns.time_format} is no format of times ({first_line(error)}); write it "
                    "as `dataset.time_format='%d.%m.%Y %H:%M'`."
                ) from None
        if columns.where:
            counts = Counter(name.lower() for name in names)
            unclear = [name for name in names if counts[name.lower()] > 1 and name.lower() in columns.where.lower()]
            if unclear:
                raise DatasetError(
                    f"dataset.where={columns.where} cannot tell columns {', '.join(unclear)} apart, which differ in "
                    "letter case alone; rename one."
                )

    def finish(self) -> None:
        """Complete the table `interactions` when every file has been given."""

    def create(self, table: str, query: str) -> None:
        """Make a table of the answer to a query, in the place of one of that name."""
        create_table(self.database, table, query)

    def part(self) -> str | None:
        """SQL of the part of an interaction in the table `kept`, where the data bring a `split`."""
        return None if self.split is None else self.split(self)

    def ordered(self, part: str | None, equal_times: EqualTimes) -> str:
        """SQL of the arranged interactions in their order, for the database."""
        return ordered(part, equal_times)

    def _insert(self, batch: Batch, columns: Columns) -> None:
        with lines_of(self.database, batch, columns, self.before) as sql:
            self.database.execute(f"INSERT INTO lines {sql}")

    def _count(self, tables: list[tuple[int, str]]) -> None:
        """Count the lines of tables that are left out or cannot be read, and the kinds of their times; `tables`: the
        places taken before each, and its role."""
        roles = dict(tables)
        first = min(roles)
        self.database.execute("CREATE OR REPLACE TEMP TABLE starts AS SELECT unnest(?::BIGINT[]) AS start", [[*roles]])
        lost = self.database.execute(
            "SELECT start, fault, count(*), min(place, 3), arg_min(coalesce(odd, ''), place, 3) "
            f"FROM (SELECT * FROM lines WHERE fault IS NOT NULL AND place > {first}) ASOF JOIN starts ON place > start "
            "GROUP BY start, fault ORDER BY start"
        ).fetchall()
        for start, reason, count, places, values in lost:
            if reason in FILTERS:
                self.filtered[reason] += count
                continue
            for place, value in zip(places, values, strict=True):
                told = repr(value)[:40] if reason in (NOT_A_TIME, NOT_OF_FORMAT, NOT_A_RATING) else ""
                self.tally.drop(roles[start], Fault(place - start, reason, told))
            self.tally.dropped[roles[start], reason] += count - len(places)
        for kind, count, example in self.database.execute(
            "SELECT kind, count(*), arg_min(seconds, place) FROM lines "
            f"WHERE fault IS NULL AND place > {first} GROUP BY kind"
        ).fetchall():
            self.kinds[kind] += count
            self.examples.setdefault(kind, str(example))

    def check_times(self, where: str, has_options: bool = True) -> None:
        """Raise DatasetError if times of several kinds stand in one column, those of a known unit being as good as
        dates; it names the options that say which they are, where the data set has them."""
        kinds = {kind: count for kind, count in self.kinds.items() if kind != "numbers"}
        if "dates" not in kinds:
            kinds.pop("small numbers", None)
        if len(kinds) > 1:
            told = ", ".join(f"{count:,} {kind} ({self.examples[kind]})" for kind, count in sorted(kinds.items()))
            repair = "write them in one unit"
            if has_options and len(kinds.keys() - {"dates", "small numbers"}) < 2:
                repair = (
                    "say by `dataset.time_unit=s` (ms, us, ns) what the numbers are, beside dates too, or by "
                    "`dataset.time_format='%Y-%m-%d'` how all times are written: other lines are then dropped and "
                    "counted"
                )
            raise DatasetError(f"The times of {where} are of several kinds: {told}; {repair}.")
