"""Interactions on their way into DuckDB: ids as text, times at full precision, and the lines that cannot be read."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

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
NOT_IN_FORMAT = "time is not as dataset.time_format says"
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(folder, error) from None
    try:
        with duckdb.connect(config=settings) as database:
            database.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false;" + MACROS + TABLES)
            yield database
    except duckdb.Error as error:
        raise ArtifactError(
            f"DuckDB could not work on the data ({first_line(error)}); free memory or disk space in {folder}, or "
            "choose another place by `paths.runs=<folder>`, and run again."
        ) from error
    finally:
        remove_tree(spilled)
        with contextlib.suppress(OSError):  # it holds the stage
            folder.rmdir()


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


class Loader:
    """Loads batches of interactions into the table `interactions` of a database, one file after the other."""

    def __init__(self, database: DuckDBPyConnection, tally: Tally) -> None:
        self.database, self.tally = database, tally
        self.kinds: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.filtered = 0
        self.before = 0

    def load(self, table: Table, columns: Columns) -> None:
        """Load a table, whose lines follow those of the tables before. Raises DatasetError if it is damaged."""
        last = 0
        named = [columns.user, columns.item, *filter(None, (columns.time, columns.rating))]
        wanted = table.columns if columns.where else list(dict.fromkeys(named))
        self.database.begin()
        bar = tqdm(desc=table.path.name, unit=" lines", unit_scale=True, disable=None, leave=False)
        for batch in table.batches(wanted):
            bar.update(len(batch.lines) + len(batch.faults))
            for fault in batch.faults:
                self.tally.drop(ROLE, fault)
                self.tally.lines[ROLE] += fault.lines
            if batch.lines:
                self._insert(batch, columns)
            last = max([last, *batch.lines[-1:], *(fault.line for fault in batch.faults)])
        bar.close()
        self._count()
        self.database.commit()
        self.before += last

    def _insert(self, batch: Batch, columns: Columns) -> None:
        import duckdb
        import pyarrow as pa

        self.tally.lines[ROLE] += len(batch.lines)
        arrays = {
            name: arrow_column(values, name in (columns.user, columns.item)) for name, values in batch.columns.items()
        }
        given = pa.table({"the line": pa.array(batch.lines, pa.int64()), **arrays})
        self.database.register("given", given)
        try:
            kinds = dict(row[:2] for row in self.database.execute("DESCRIBE given").fetchall())
            self.database.execute(self._sql(kinds, columns))
        except duckdb.Error as error:
            self.database.rollback()
            where = "; look at `dataset.where=`" if columns.where else ""
            raise DatasetError(
                f"The interactions cannot be read ({' '.join(str(error).split())[:200]}){where}."
            ) from None
        finally:
            self.database.unregister("given")

    def _sql(self, kinds: dict[str, str], columns: Columns) -> str:
        user, item = (quoted(name) for name in (columns.user, columns.item))
        place = f'{self.before} + "the line"'
        if columns.time is None:
            time, is_missing = "NULL", "false"
            seconds, nanos, kind = place, "0", "'places in the file'"
        else:
            time = quoted(columns.time)
            is_missing = f"{time} IS NULL"
            if kinds[columns.time] == "VARCHAR":
                is_missing = f"coalesce(stripped({time}), '') = ''"
            seconds, nanos, kind = time_sql(time, kinds[columns.time], columns)
        no_time = NOT_A_TIME if columns.time_format is None else NOT_IN_FORMAT
        conditions = [columns.where] if columns.where else []
        if columns.rating is not None and columns.min_rating is not None:
            rating = f"TRY_CAST({quoted(columns.rating)} AS DOUBLE)"
            conditions.append(f"NOT isnan({rating}) AND {rating} >= {float(columns.min_rating)}")
        kept = " AND ".join(f"({condition})" for condition in conditions) or "true"
        return f"""
            INSERT INTO lines
            SELECT place, user, item, seconds, nanos, kind, CASE
                WHEN NOT kept THEN '{FILTERED}'
                WHEN user IS NULL THEN 'no user'
                WHEN contains(user, chr(0)) THEN 'user is not valid text'
                WHEN item IS NULL THEN 'no item'
                WHEN contains(item, chr(0)) THEN 'item is not valid text'
                WHEN no_time THEN '{NO_TIME}'
                WHEN seconds IS NULL OR nanos IS NULL OR kind IS NULL THEN '{no_time}' END AS fault,
                CASE WHEN fault IS NOT NULL THEN CAST(time AS VARCHAR) END
            FROM (
                SELECT {place} AS place, {id_sql(user, kinds[columns.user])} AS user,
                    {id_sql(item, kinds[columns.item])} AS item, TRY_CAST({seconds} AS BIGINT) AS seconds,
                    TRY_CAST({nanos} AS INTEGER) AS nanos, {kind} AS kind, {is_missing} AS no_time, {time} AS time,
                    coalesce({kept}, false) AS kept
                FROM given)
        """

    def _count(self) -> None:
        """Count the lines of a table that cannot be read, and the kinds of its times."""
        lost = self.database.execute(
            "SELECT fault, count(*), min(place, 3), arg_min(coalesce(odd, ''), place, 3) FROM lines "
            f"WHERE fault IS NOT NULL AND place > {self.before} GROUP BY fault"
        ).fetchall()
        for reason, count, places, times in lost:
            if reason == FILTERED:
                self.filtered += count
                continue
            for place, time in zip(places, times, strict=True):
                self.tally.drop(
                    ROLE,
                    Fault(
                        place - self.before, reason, repr(time)[:40] if reason in (NOT_A_TIME, NOT_IN_FORMAT) else ""
                    ),
                )
            self.tally.dropped[ROLE, reason] += count - len(places)
        for kind, count, example in self.database.execute(
            "SELECT kind, count(*), first(seconds) FROM lines "
            f"WHERE fault IS NULL AND place > {self.before} GROUP BY kind"
        ).fetchall():
            self.kinds[kind] += count
            self.examples.setdefault(kind, str(example))

    def check_times(self, where: str) -> None:
        """Raise DatasetError if times of several kinds stand in one column."""
        kinds = {kind: count for kind, count in self.kinds.items() if kind != "small numbers"}
        if "dates" in kinds:
            kinds = dict(self.kinds)
        if len(kinds) > 1:
            told = ", ".join(f"{count:,} {kind} ({self.examples[kind]})" for kind, count in sorted(kinds.items()))
            raise DatasetError(
                f"The times of {where} are of several kinds: {told}; say what they are by `dataset.time_unit=s` "
                "(ms, us, ns) for numbers, or by `dataset.time_format='%Y-%m-%d'` for dates: other lines are "
                "dropped and counted."
            )
