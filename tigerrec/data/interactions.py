"""Interactions on their way into DuckDB: ids as text, times at full precision, and the lines that cannot be read."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
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
FLOATS = ("FLOAT", "DOUBLE")
TEXT = ("VARCHAR", "BLOB")
ZONE = r"\s*(Z|UTC|GMT|[+-]\d\d(:?\d\d|:\d\d:\d\d)?)?"
DATE = (
    rf"(?i)\d{{4}}-\d\d-\d\d([T ]\d\d(:\d\d(:\d\d([.,]\d+)?)?)?{ZONE})?"
    rf"|\d{{8}}[T ]\d\d(\d\d(\d\d([.,]\d+)?)?)?{ZONE}"
)
DECIMAL = "DECIMAL(37, 18)"
BY_WHERE = "dataset.where"
BY_RATING = "dataset.min_rating"
UNRATED = "no rating"
FILTERS = (BY_WHERE, BY_RATING, UNRATED)
NO_TIME = "no time"
NOT_A_TIME = "time is neither a number nor an ISO date"
NOT_OF_FORMAT = "time is not written as dataset.time_format says"
NOT_A_RATING = "rating is not a number"
UNREADABLE = "\0"  # stands for a value that no id and no time can be

MACROS = f"""
CREATE MACRO stripped(value) AS CASE  -- nearly all values begin and end with plain characters, which is found fast
    WHEN left(value, 1) BETWEEN '!' AND '~' AND right(value, 1) BETWEEN '!' AND '~' THEN value
    ELSE trim(value, '{SPACES}') END;
CREATE MACRO whole_units(number, units) AS number // units - CASE WHEN number % units < 0 THEN 1 ELSE 0 END;
CREATE MACRO rest_of_units(number, units) AS (number % units + units) % units;
CREATE MACRO decimal_of(number) AS CASE  -- of FLOAT or DOUBLE: exact, or else as it is printed
    WHEN number = floor(number) THEN TRY_CAST(TRY_CAST(number AS HUGEINT) AS {DECIMAL})
    ELSE TRY_CAST(CAST(number AS VARCHAR) AS {DECIMAL}) END;
CREATE MACRO full_date(date) AS regexp_replace(  -- of one without its minutes, seconds, hyphens or colons
    rpad(regexp_replace(regexp_extract(date, '^[-\\d]+[Tt ][\\d:]+'), '\\D', '', 'g'), 14, '0'),
    '(....)(..)(..)(..)(..)(..)', '\\1-\\2-\\3 \\4:\\5:\\6') || regexp_extract(date, '[Tt ].*([-+].*)$', 1);
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
    for time; `time_format` as strptime has it; `time_unit` of numbers, None: they stay as they are; `decimal_comma` of
    ratings."""

    user: str
    item: str
    time: str | None
    time_format: str | None = None
    time_unit: str | None = None
    rating: str | None = None
    min_rating: float | None = None
    where: str | None = None
    decimal_comma: bool = False


def quoted(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def arrow_column(values: Any, is_id: bool) -> Any:
    """The values of a column as a `pyarrow.Array` of a type that DuckDB has; where there is none, as text."""
    import pyarrow as pa

    if not isinstance(values, list):
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_float16(values.type):
            return values.cast(pa.float32())
        if not pa.types.is_decimal256(values.type):
            return values
        values = values.to_pylist()
    with contextlib.suppress(pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError, ValueError):
        array = pa.array(values)
        if not pa.types.is_decimal256(array.type):
            return array
    return pa.array([_text(value, is_id) for value in values], pa.string())


def ticks(values: Any) -> tuple[Any, str | None]:
    """A `pyarrow.Array` of dates as whole numbers since 1970 and their unit; another array and None."""
    import pyarrow as pa

    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("s" if pa.types.is_date32(values.type) else "ms"))
    return (values.cast(pa.int64()), values.type.unit) if pa.types.is_timestamp(values.type) else (values, None)


def _text(value: Any, is_id: bool) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        return str(value) if isinstance(value, (float, Decimal)) and not is_id else plain_id(value, "value")
    except (Unreadable, ValueError):
        return UNREADABLE


def id_sql(column: str, kind: str) -> str:
    """SQL of an id as text: NULL where there is none, the mark UNREADABLE where it is no text."""
    if kind == "VARCHAR":
        return f"nullif(stripped({column}), '')"
    if kind in (*WHOLE, "UUID"):
        return f"CAST({column} AS VARCHAR)"
    if kind in FLOATS or kind.startswith("DECIMAL"):
        whole = f"CAST(TRY_CAST({column} AS HUGEINT) AS VARCHAR)"
        missing = f"isnan({column})" if kind in FLOATS else "false"
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


def _broken(mark: str, unit: str | None) -> tuple[str, str, str]:
    """SQL of the seconds, the nanoseconds beside them and the kind of a decimal number, of its parts in a batch."""
    seconds, nanos, kind = _whole(quoted(f"{mark}whole"), unit)
    return seconds, f"{nanos} + {quoted(f'{mark}billionths')} // {UNITS[unit or 's']}", kind


def _moment(moment: str, nanos: str | None = None) -> tuple[str, str, str]:
    """SQL of the whole seconds, the nanoseconds, where they are not given, and the kind of a moment."""
    seconds, rest, _ = _whole(f"epoch_us({moment})", "us")
    return seconds, nanos or rest, f"CASE WHEN {moment} IS NOT NULL THEN 'dates' END"


def batch_sql(mark: str, kind: str, columns: Columns) -> str:
    """SQL of the batch `given` with what is costly to find of its times, once: the form of a text, and the whole part
    and the billionths of a decimal number."""
    if columns.time_format is not None or not (kind in (*TEXT, *FLOATS) or kind.startswith("DECIMAL")):
        return "given"
    time, text, form, number = (quoted(mark + name) for name in ("time", "text", "form", "number"))
    given, decimal = "given", f"decimal_of({time})" if kind in FLOATS else f"TRY_CAST({time} AS {DECIMAL})"
    if kind in TEXT:
        forms = (
            f"CASE WHEN regexp_full_match({text}, '[+-]?\\d{{1,19}}') THEN 'whole' "
            f"WHEN regexp_full_match({text}, '{DATE}') THEN 'date' END"
        )
        given = f"(SELECT *, {forms} AS {form} FROM (SELECT *, {id_sql(time, kind)} AS {text} FROM given))"
        decimal = (
            f"CASE WHEN {form} IS NOT NULL THEN NULL WHEN contains(lower({text}), 'e') "
            f"THEN decimal_of(TRY_CAST({text} AS DOUBLE)) ELSE TRY_CAST({text} AS {DECIMAL}) END"
        )
    return f"""(
        SELECT *, TRY_CAST(floor({number}) AS BIGINT) AS {quoted(f"{mark}whole")},
            CAST(floor(({number} - floor({number})) * 1000000000) AS BIGINT) AS {quoted(f"{mark}billionths")}
        FROM (SELECT *, {decimal} AS {number} FROM {given}))"""


def time_sql(mark: str, kind: str, columns: Columns) -> tuple[str, str, str]:
    """SQL of the times of a batch (see `batch_sql`), of a type of DuckDB: whole seconds, nanoseconds beside them, and
    which kind of time it is; NULL where it is none."""
    column, unit = quoted(f"{mark}time"), columns.time_unit
    is_decimal = kind in FLOATS or kind.startswith("DECIMAL")
    if columns.time_format is not None and (is_decimal or kind in (*WHOLE, *TEXT)):
        moment = f"try_strptime({id_sql(column, kind)}, {literal(columns.time_format)})"
        nanos = f"rest_of_units(epoch_ns({moment}), 1000000000)" if "%n" in columns.time_format else None
        return _moment(moment, nanos)
    if kind in WHOLE:
        return _whole(f"TRY_CAST({column} AS BIGINT)" if kind in ("UBIGINT", "HUGEINT") else column, unit)
    if is_decimal:
        return _broken(mark, unit)
    if kind not in TEXT:
        return "NULL", "NULL", "NULL"
    text, form = quoted(f"{mark}text"), quoted(f"{mark}form")
    moments = (f"TRY_CAST({date} AS TIMESTAMPTZ)" for date in (f"replace({text}, ',', '.')", f"full_date({text})"))
    forms = (
        _whole(f"TRY_CAST({text} AS BIGINT)", unit),
        _moment(
            f"coalesce({', '.join(moments)})",
            f"CAST(rpad(left(regexp_extract({text}, '[.,](\\d+)', 1), 9), 9, '0') AS BIGINT)",
        ),
        _broken(mark, unit),
    )
    seconds, nanos, name = (
        f"CASE {form} WHEN 'whole' THEN {whole} WHEN 'date' THEN {date} ELSE {number} END"
        for whole, date, number in zip(*forms, strict=True)
    )
    return seconds, nanos, name


class Loader:
    """Loads batches of interactions into the table `interactions` of a database, one file after the other."""

    def __init__(self, database: DuckDBPyConnection, tally: Tally) -> None:
        self.database, self.tally = database, tally
        self.kinds: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.filtered: Counter[str] = Counter()
        self.before = 0

    def load(self, table: Table, columns: Columns) -> None:
        """Load a table, whose lines follow those of the tables before. Raises DatasetError if it is damaged, or the
        condition or the format of times cannot be used."""
        last = 0
        named = [columns.user, columns.item, *filter(None, (columns.time, columns.rating))]
        wanted = table.all_columns() if columns.where else list(dict.fromkeys(named))
        self._check(wanted, columns)
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

    def _check(self, names: Sequence[str], columns: Columns) -> None:
        """Raise DatasetError if the format of times is none, or the condition could mean several columns."""
        import duckdb

        if columns.time_format is not None:
            try:
                self.database.execute("SELECT try_strptime('', ?)", [columns.time_format])
            except duckdb.Error as error:
                raise DatasetError(
                    f"dataset.time_format={columns.time_format} is no format of times ({first_line(error)}); write it "
                    "as `dataset.time_format='%d.%m.%Y %H:%M'`."
                ) from None
        if columns.where is not None:
            counts = Counter(name.lower() for name in names)
            unclear = [name for name in names if counts[name.lower()] > 1 and name.lower() in columns.where.lower()]
            if unclear:
                raise DatasetError(
                    f"dataset.where={columns.where} cannot tell columns {', '.join(unclear)} apart, which differ in "
                    "letter case alone; rename one."
                )

    def _insert(self, batch: Batch, columns: Columns) -> None:
        import duckdb
        import pyarrow as pa

        self.tally.lines[ROLE] += len(batch.lines)
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
        if columns.where is not None:
            given |= {name: arrow_column(values, False) for name, values in batch.columns.items()}
        self.database.register("given", pa.table(list(given.values()), names=list(given)))
        try:
            described = self.database.execute("DESCRIBE given").fetchall()
            kinds = {name.removeprefix(mark): kind for name, kind, *_ in described if name.startswith(mark)}
            self.database.execute(self._sql(mark, kinds, unit, columns))
        except duckdb.Error as error:
            self.database.rollback()
            where = "look at `dataset.where=`" if columns.where else "write them as text, numbers or dates"
            raise DatasetError(
                f"The interactions cannot be read ({' '.join(str(error).split())[:200]}); {where}."
            ) from None
        finally:
            self.database.unregister("given")

    def _sql(self, mark: str, kinds: dict[str, str], unit: str | None, columns: Columns) -> str:
        """SQL that inserts a batch whose columns of some `kinds` have names with a `mark`; `unit`: of dates that are
        whole numbers."""
        line, user, item, time, rating = (quoted(mark + role) for role in ("line", "user", "item", "time", "rating"))
        place = f"{self.before} + {line}"
        if columns.time is None:
            time, is_missing = "NULL", "false"
            seconds, nanos, kind = place, "0", "'places in the file'"
            batch = "given"
        else:
            is_missing = _is_missing(time, kinds["time"])
            seconds, nanos, kind = (
                (*_whole(time, unit)[:2], "'dates'") if unit else time_sql(mark, kinds["time"], columns)
            )
            batch = batch_sql(mark, kinds["time"], columns)
        filters = f"WHEN NOT coalesce(({columns.where}), false) THEN '{BY_WHERE}'" if columns.where else ""
        number = "0"
        if columns.min_rating is not None:
            text = f"replace(CAST({rating} AS VARCHAR), ',', '.')" if columns.decimal_comma else rating
            number = f"TRY_CAST({text} AS DOUBLE)"
            filters += f"""
                WHEN {_is_missing(rating, kinds["rating"])} OR isnan({number}) THEN '{UNRATED}'
                WHEN {number} < {float(columns.min_rating)} THEN '{BY_RATING}'"""
        else:
            rating = "NULL"
        not_a_time = NOT_A_TIME if columns.time_format is None else NOT_OF_FORMAT
        return f"""
            INSERT INTO lines
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

    def _count(self) -> None:
        """Count the lines of a table that are left out or cannot be read, and the kinds of its times."""
        lost = self.database.execute(
            "SELECT fault, count(*), min(place, 3), arg_min(coalesce(odd, ''), place, 3) FROM lines "
            f"WHERE fault IS NOT NULL AND place > {self.before} GROUP BY fault"
        ).fetchall()
        for reason, count, places, values in lost:
            if reason in FILTERS:
                self.filtered[reason] += count
                continue
            for place, value in zip(places, values, strict=True):
                shown = repr(value)[:40] if reason in (NOT_A_TIME, NOT_OF_FORMAT, NOT_A_RATING) else ""
                self.tally.drop(ROLE, Fault(place - self.before, reason, shown))
            self.tally.dropped[ROLE, reason] += count - len(places)
        for kind, count, example in self.database.execute(
            "SELECT kind, count(*), first(seconds) FROM lines "
            f"WHERE fault IS NULL AND place > {self.before} GROUP BY kind"
        ).fetchall():
            self.kinds[kind] += count
            self.examples.setdefault(kind, str(example))

    def check_times(self, where: str) -> None:
        """Raise DatasetError if times of several kinds stand in one column; those of a known unit are as good as
        dates."""
        kinds = {kind: count for kind, count in self.kinds.items() if kind != "numbers"}
        if "dates" not in kinds:
            kinds.pop("small numbers", None)
        if len(kinds) > 1:
            told = ", ".join(f"{count:,} {kind} ({self.examples[kind]})" for kind, count in sorted(kinds.items()))
            raise DatasetError(
                f"The times of {where} are of several kinds: {told}; say by `dataset.time_unit=s` (ms, us, ns) what "
                "the numbers are, beside dates too, or by `dataset.time_format='%Y-%m-%d'` how all times are written: "
                "other lines are then dropped and counted."
            )


def _is_missing(column: str, kind: str) -> str:
    """SQL of whether a value is missing: none, or an empty text."""
    return f"coalesce(stripped({column}), '') = ''" if kind == "VARCHAR" else f"{column} IS NULL"
