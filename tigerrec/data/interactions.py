"""Interactions on their way into DuckDB: ids as text, times at full precision, and the lines that cannot be read."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from tigerrec.data.arrange import create_table, ordered
from tigerrec.data.base import DatasetError
from tigerrec.data.formats import Batch, Table
from tigerrec.data.raw import SPACES, Fault, Tally, Unreadable, plain_id
from tigerrec.storage.files import SPILLED, ArtifactError, not_writable, remove_tree
from tigerrec.text import first_line

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

ROLE = "interactions"
MEMORY = "1GB"  # what DuckDB holds before it spills to disk
UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
DATE = r"\d{4}-\d\d-\d\d([T ]\d\d(:\d\d(:\d\d([.,]\d+)?)?)?\s*(Z|UTC|GMT|[+-]\d\d(:?\d\d)?)?)?"
FILTERED = "filtered"
NO_TIME = "no time"
NOT_A_TIME = "time is neither a number nor an ISO date"
UNREADABLE = "\0"  # stands for a value that no id and no time can be

MACROS = f"""
CREATE MACRO stripped(value) AS CASE  -- nearly all values begin and end with plain characters, which is found fast
    WHEN left(value, 1) BETWEEN '!' AND '~' AND right(value, 1) BETWEEN '!' AND '~' THEN value
    ELSE trim(value, '{SPACES}') END;
CREATE MACRO whole_units(number, units) AS number // units - CASE WHEN number % units < 0 THEN 1 ELSE 0 END;
CREATE MACRO rest_of_units(number, units) AS number - whole_units(number, units) * units;
CREATE MACRO magnitude(number) AS CASE
    WHEN number BETWEEN -99999999 AND 99999999 THEN 'small numbers'
    WHEN number BETWEEN -99999999999 AND 99999999999 THEN 'seconds'
    WHEN number BETWEEN -99999999999999 AND 99999999999999 THEN 'milliseconds'
    WHEN number BETWEEN -99999999999999999 AND 99999999999999999 THEN 'microseconds' ELSE 'nanoseconds' END;
"""
SETUP = "SET TimeZone = 'UTC'; SET enable_progress_bar = false;" + MACROS
TABLES = """
CREATE TABLE lines (place BIGINT, user VARCHAR, item VARCHAR, seconds BIGINT, nanos INTEGER, kind VARCHAR,
    fault VARCHAR, odd VARCHAR);
CREATE VIEW interactions AS SELECT place, user, item, seconds, nanos FROM lines WHERE fault IS NULL;
"""


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
            database.execute(SETUP + TABLES)
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


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a table of interactions, and how its times are written: `time` None: the order of the file stands
    for time; `time_format` as strptime has it; `time_unit` of numbers, None: they stay as they are."""

    user: str
    item: str
    time: str | None
    time_format: str | None = None
    time_unit: str | None = None
    rating: str | None = None
    min_rating: float | None = None
    where: str | None = None


def quoted(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def arrow_column(values: Any, is_id: bool) -> Any:
    """The values of a column as a `pyarrow.Array`; where they are of several types, as text."""
    import pyarrow as pa

    if not isinstance(values, list):
        return values
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError, ValueError):
        return pa.array([_text(value, is_id) for value in values], pa.string())


def _text(value: Any, is_id: bool) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        return repr(value) if isinstance(value, float) and not is_id else plain_id(value, "value")
    except (Unreadable, ValueError):
        return UNREADABLE


def id_sql(column: str, kind: str) -> str:
    """SQL of an id as text: NULL where there is none, the mark UNREADABLE where it is no text."""
    if kind == "VARCHAR":
        return f"nullif(stripped({column}), '')"
    if kind in (*WHOLE, "UUID"):
        return f"CAST({column} AS VARCHAR)"
    if kind in ("FLOAT", "DOUBLE") or kind.startswith("DECIMAL"):
        whole = f"CAST(TRY_CAST({column} AS HUGEINT) AS VARCHAR)"
        missing = f"isnan({column})" if kind in ("FLOAT", "DOUBLE") else "false"
        return (
            f"CASE WHEN {column} IS NULL OR {missing} THEN NULL WHEN {column} = floor({column}) "
            f"THEN coalesce({whole}, chr(0)) ELSE chr(0) END"
        )
    if kind == "BLOB":
        text = f"CASE WHEN {column} IS NOT NULL THEN coalesce(TRY(decode({column})), chr(0)) END"
        return id_sql(text, "VARCHAR")
    return f"CASE WHEN {column} IS NOT NULL THEN chr(0) END"


def _whole(number: str, unit: str | None) -> tuple[str, str, str]:
    """SQL of the seconds, the nanoseconds beside them and the kind of a whole number."""
    if unit is None:
        return number, "0", f"magnitude({number})"
    units = UNITS[unit]
    nanos = f"rest_of_units({number}, {units}) * {1_000_000_000 // units}"
    return f"whole_units({number}, {units})", nanos, "'numbers'"


def _broken(number: str, unit: str | None) -> tuple[str, str, str]:
    """SQL of the seconds, the nanoseconds beside them and the kind of a number with a fraction."""
    number = f"({number} / {UNITS[unit or 's']})"
    nanos = f"least(CAST(({number} - floor({number})) * 1000000000 AS BIGINT), 999999999)"
    return f"TRY_CAST(floor({number}) AS BIGINT)", nanos, "'numbers'" if unit else f"magnitude({number})"


def _microseconds(moment: str) -> tuple[str, str]:
    """SQL of the whole seconds and the nanoseconds of a moment."""
    return f"whole_units(epoch_us({moment}), 1000000)", f"rest_of_units(epoch_us({moment}), 1000000) * 1000"


def time_sql(column: str, kind: str, columns: Columns) -> tuple[str, str, str]:
    """SQL of a time of a type of DuckDB: whole seconds, nanoseconds beside them, and which kind of time it is; NULL
    where it is none."""
    if columns.time_format is not None and kind in (*WHOLE, "FLOAT", "DOUBLE"):
        column, kind = f"CAST({column} AS VARCHAR)", "VARCHAR"
    if kind in WHOLE:
        return _whole(f"TRY_CAST({column} AS BIGINT)" if kind in ("UBIGINT", "HUGEINT") else column, columns.time_unit)
    if kind in ("FLOAT", "DOUBLE"):
        return _broken(f"CASE WHEN isfinite({column}) THEN CAST({column} AS DOUBLE) END", columns.time_unit)
    if kind.startswith("DECIMAL"):
        return _broken(column, columns.time_unit)
    if kind in ("TIMESTAMP_NS", "TIMESTAMPTZ_NS"):
        nanos = f"epoch_ns({column})"
        return f"whole_units({nanos}, 1000000000)", f"rest_of_units({nanos}, 1000000000)", "'dates'"
    if kind == "DATE" or kind.startswith("TIMESTAMP"):
        return *_microseconds(f"CAST({column} AS TIMESTAMP)" if kind == "DATE" else column), "'dates'"
    if kind == "BLOB":
        column, kind = f"TRY(decode({column}))", "VARCHAR"
    if kind != "VARCHAR":
        return "NULL", "NULL", "NULL"
    text = f"stripped({column})"
    if columns.time_format is not None:
        return *_microseconds(f"try_strptime({text}, {literal(columns.time_format)})"), "'dates'"
    is_whole, is_date = f"regexp_full_match({text}, '[+-]?\\d{{1,19}}')", f"regexp_full_match({text}, '{DATE}')"
    moment = f"TRY_CAST(replace({text}, ',', '.') AS TIMESTAMPTZ)"
    whole = _whole(f"TRY_CAST({text} AS BIGINT)", columns.time_unit)
    date = (
        _microseconds(moment)[0],
        f"CAST(rpad(left(regexp_extract({text}, '[.,](\\d+)', 1), 9), 9, '0') AS BIGINT)",
        f"CASE WHEN {moment} IS NOT NULL THEN 'dates' END",
    )
    number = _broken(
        f"CASE WHEN isfinite(TRY_CAST({text} AS DOUBLE)) THEN TRY_CAST({text} AS DOUBLE) END", columns.time_unit
    )
    seconds, nanos, name = (
        f"CASE WHEN {is_whole} THEN {a} WHEN {is_date} THEN {b} ELSE {c} END"
        for a, b, c in zip(whole, date, number, strict=True)
    )
    return seconds, nanos, name


def wanted_columns(table: Table, columns: Columns) -> list[str]:
    """The columns of a table that have to be read: all of them where a condition may name any."""
    named = [columns.user, columns.item, *filter(None, (columns.time, columns.rating))]
    return table.columns if columns.where else list(dict.fromkeys(named))


def _sql(kinds: dict[str, str], columns: Columns, before: int) -> str:
    """SQL of the table `given`, whose columns are of these kinds, as rows of the table `lines`."""
    user, item = (quoted(name) for name in (columns.user, columns.item))
    place = f'{before} + "the line"'
    if columns.time is None:
        time, is_missing = "NULL", "false"
        seconds, nanos, kind = place, "0", "'places in the file'"
    else:
        time = quoted(columns.time)
        is_missing = f"{time} IS NULL"
        if kinds[columns.time] == "VARCHAR":
            is_missing = f"coalesce(stripped({time}), '') = ''"
        seconds, nanos, kind = time_sql(time, kinds[columns.time], columns)
    conditions = [columns.where] if columns.where else []
    if columns.rating is not None and columns.min_rating is not None:
        rating = f"TRY_CAST({quoted(columns.rating)} AS DOUBLE)"
        conditions.append(f"NOT isnan({rating}) AND {rating} >= {float(columns.min_rating)}")
    kept = " AND ".join(f"({condition})" for condition in conditions) or "true"
    return f"""
        SELECT place, user, item, seconds, nanos, kind, CASE
            WHEN NOT kept THEN '{FILTERED}'
            WHEN user IS NULL THEN 'no user'
            WHEN contains(user, chr(0)) THEN 'user is not valid text'
            WHEN item IS NULL THEN 'no item'
            WHEN contains(item, chr(0)) THEN 'item is not valid text'
            WHEN no_time THEN '{NO_TIME}'
            WHEN seconds IS NULL OR nanos IS NULL OR kind IS NULL THEN '{NOT_A_TIME}' END AS fault,
            CASE WHEN fault IS NOT NULL THEN CAST(time AS VARCHAR) END
        FROM (
            SELECT {place} AS place, {id_sql(user, kinds[columns.user])} AS user,
                {id_sql(item, kinds[columns.item])} AS item, TRY_CAST({seconds} AS BIGINT) AS seconds,
                TRY_CAST({nanos} AS INTEGER) AS nanos, {kind} AS kind, {is_missing} AS no_time, {time} AS time,
                coalesce({kept}, false) AS kept
            FROM given)
    """


@contextlib.contextmanager
def lines_of(database: DuckDBPyConnection, batch: Batch, columns: Columns, before: int) -> Iterator[str]:
    """SQL of a batch as rows of the table `lines`, to be executed in the body; `before`: the places taken by the files
    before. Raises DatasetError if DuckDB cannot."""
    import duckdb
    import pyarrow as pa

    arrays = {
        name: arrow_column(values, name in (columns.user, columns.item)) for name, values in batch.columns.items()
    }
    given = pa.table({"the line": pa.array(batch.lines, pa.int64()), **arrays})
    database.register("given", given)
    try:
        kinds = dict(row[:2] for row in database.execute("DESCRIBE given").fetchall())
        yield _sql(kinds, columns, before)
        database.unregister("given")
    except duckdb.Error as error:
        where = "; look at `dataset.where=`" if columns.where else ""
        raise DatasetError(f"The interactions cannot be read ({' '.join(str(error).split())[:200]}){where}.") from None


class Loader:
    """Loads batches of interactions into the table `interactions` of a database, one file after the other, and makes
    further tables of them."""

    def __init__(self, database: DuckDBPyConnection, tally: Tally) -> None:
        self.database, self.tally = database, tally
        self.kinds: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.filtered = 0
        self.before = 0
        self.split: Callable[[Loader], str] | None = None

    def load(self, table: Table, columns: Columns, role: str = ROLE) -> None:
        """Load the table of a role, whose lines follow those of the tables before. Raises DatasetError if it is
        damaged."""
        last = 0
        self.database.begin()
        bar = tqdm(desc=table.path.name, unit=" lines", unit_scale=True, disable=None, leave=False)
        for batch in table.batches(wanted_columns(table, columns)):
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
        self.database.commit()
        self.before += last

    def finish(self) -> None:
        """Complete the table `interactions` when every file has been given."""

    def create(self, table: str, query: str) -> None:
        """Make a table of the answer to a query, in the place of one of that name."""
        create_table(self.database, table, query)

    def part(self) -> str | None:
        """SQL of the part of an interaction in the table `kept`, where the data bring a `split`."""
        return None if self.split is None else self.split(self)

    def ordered(self, part: str | None) -> str:
        """SQL of the arranged interactions in their order, for the database."""
        return ordered(part)

    def _insert(self, batch: Batch, columns: Columns) -> None:
        with lines_of(self.database, batch, columns, self.before) as sql:
            self.database.execute(f"INSERT INTO lines {sql}")

    def _count(self, tables: list[tuple[int, str]]) -> None:
        """Count the lines of tables that cannot be read, and the kinds of their times; `tables`: the places taken
        before each, and its role."""
        roles = dict(tables)
        first = min(roles)
        self.database.execute("CREATE OR REPLACE TEMP TABLE starts AS SELECT unnest(?::BIGINT[]) AS start", [[*roles]])
        lost = self.database.execute(
            "SELECT start, fault, count(*), min(place, 3), arg_min(coalesce(odd, ''), place, 3) "
            f"FROM (SELECT * FROM lines WHERE fault IS NOT NULL AND place > {first}) ASOF JOIN starts ON place > start "
            "GROUP BY start, fault ORDER BY start"
        ).fetchall()
        for start, reason, count, places, times in lost:
            if reason == FILTERED:
                self.filtered += count
                continue
            for place, time in zip(places, times, strict=True):
                line = Fault(place - start, reason, repr(time)[:40] if reason == NOT_A_TIME else "")
                self.tally.drop(roles[start], line)
            self.tally.dropped[roles[start], reason] += count - len(places)
        for kind, count, example in self.database.execute(
            "SELECT kind, count(*), arg_min(seconds, place) FROM lines "
            f"WHERE fault IS NULL AND place > {first} GROUP BY kind"
        ).fetchall():
            self.kinds[kind] += count
            self.examples.setdefault(kind, str(example))

    def check_times(self, where: str, has_options: bool = True) -> None:
        """Raise DatasetError if times of several kinds stand in one column; it names the options that say which they
        are, where the data set has them."""
        kinds = {kind: count for kind, count in self.kinds.items() if kind != "small numbers"}
        if "dates" in kinds:
            kinds = dict(self.kinds)
        if len(kinds) > 1:
            told = ", ".join(f"{count:,} {kind} ({self.examples[kind]})" for kind, count in sorted(kinds.items()))
            repair = "write them in one unit"
            if has_options:
                repair = (
                    "say what they are by `dataset.time_unit=s` (ms, us, ns) for numbers, or by "
                    "`dataset.time_format='%Y-%m-%d'` for dates: other lines are dropped and counted"
                )
            raise DatasetError(f"The times of {where} are of several kinds: {told}; {repair}.")
