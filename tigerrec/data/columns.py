"""The columns of a table of interactions as SQL: ids as text, times at full precision."""

from __future__ import annotations

import contextlib
import dataclasses
from decimal import Decimal
from typing import Any

from tigerrec.data.raw import SPACES, Unreadable, plain_id

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


def whole_sql(number: str, unit: str | None) -> tuple[str, str, str]:
    """SQL of the seconds, the nanoseconds beside them and the kind of a whole number."""
    if unit is None:
        return number, "0", f"magnitude({number})"
    units = UNITS[unit]
    nanos = f"rest_of_units({number}, {units}) * {1_000_000_000 // units}"
    return f"whole_units({number}, {units})", nanos, "'numbers'"


def _broken(mark: str, unit: str | None) -> tuple[str, str, str]:
    """SQL of the seconds, the nanoseconds beside them and the kind of a decimal number, of its parts in a batch."""
    seconds, nanos, kind = whole_sql(quoted(f"{mark}whole"), unit)
    return seconds, f"{nanos} + {quoted(f'{mark}billionths')} // {UNITS[unit or 's']}", kind


def _moment(moment: str, nanos: str | None = None) -> tuple[str, str, str]:
    """SQL of the whole seconds, the nanoseconds, where they are not given, and the kind of a moment."""
    seconds, rest, _ = whole_sql(f"epoch_us({moment})", "us")
    return seconds, nanos or rest, f"CASE WHEN {moment} IS NOT NULL THEN 'dates' END"


def batch_sql(given: str, mark: str, kind: str, columns: Columns) -> str:
    """SQL of a batch with what is costly to find of its times, once: the form of a text, and the whole part and the
    billionths of a decimal number."""
    if columns.time_format is not None or not (kind in (*TEXT, *FLOATS) or kind.startswith("DECIMAL")):
        return given
    time, text, form, number = (quoted(mark + name) for name in ("time", "text", "form", "number"))
    decimal = f"decimal_of({time})" if kind in FLOATS else f"TRY_CAST({time} AS {DECIMAL})"
    if kind in TEXT:
        forms = (
            f"CASE WHEN regexp_full_match({text}, '[+-]?\\d{{1,19}}') THEN 'whole' "
            f"WHEN regexp_full_match({text}, '{DATE}') THEN 'date' END"
        )
        given = f"(SELECT *, {forms} AS {form} FROM (SELECT *, {id_sql(time, kind)} AS {text} FROM {given}))"
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
        return whole_sql(f"TRY_CAST({column} AS BIGINT)" if kind in ("UBIGINT", "HUGEINT") else column, unit)
    if is_decimal:
        return _broken(mark, unit)
    if kind not in TEXT:
        return "NULL", "NULL", "NULL"
    text, form = quoted(f"{mark}text"), quoted(f"{mark}form")
    moments = (f"TRY_CAST({date} AS TIMESTAMPTZ)" for date in (f"replace({text}, ',', '.')", f"full_date({text})"))
    forms = (
        whole_sql(f"TRY_CAST({text} AS BIGINT)", unit),
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


def missing_sql(column: str, kind: str) -> str:
    """SQL of whether a value is missing: none, or an empty text."""
    return f"coalesce(stripped({column}), '') = ''" if kind == "VARCHAR" else f"{column} IS NULL"
