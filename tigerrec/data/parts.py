"""Splits that data bring along: which interactions are for training, validation and test, as SQL of the table
`kept`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tigerrec.data.base import DatasetError
from tigerrec.data.histories import PARTS

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from tigerrec.data.interactions import Columns, Loader

logger = logging.getLogger(__name__)

COMPARABLE = {"dates": ("dates", "seconds", "numbers")}  # kinds of times that count seconds as a kind does
OUT_OF_ORDER = """
SELECT count(DISTINCT user), min_by(user, place) FROM (
    SELECT user, place, {part} < lag({part}) OVER (PARTITION BY user ORDER BY seconds, nanos, place) AS falls FROM kept)
WHERE falls
"""
TARGETS = """
SELECT count(*) FROM (SELECT user, min({part}) AS first, bool_or({part} = {number}) AS has FROM kept GROUP BY user)
WHERE has AND first < {number}
"""


def parts_by_place(validation: int, test: int) -> str:
    """SQL of the part of an interaction: those after a place are for validation, after another for test."""
    return f"CAST(CASE WHEN place > {test} THEN 2 WHEN place > {validation} THEN 1 ELSE 0 END AS TINYINT)"


def parts_by_time(loader: Loader, columns: Columns, validation_from: str, test_from: str) -> str:
    """SQL of the part of an interaction: those at a time or later are for validation, at another for test. Raises
    DatasetError if a time is not written as those of the data, or the second is not later."""
    from tigerrec.data.interactions import literal, time_sql

    moments = []
    for option, text in (("validation_from", validation_from), ("test_from", test_from)):
        seconds, nanos, kind = loader.database.execute(
            f"SELECT {', '.join(time_sql(literal(text), 'VARCHAR', columns))}"
        ).fetchone()  # type: ignore[misc]
        alike = COMPARABLE.get(kind, (kind,))
        odd = [of_data for of_data in loader.kinds if of_data not in alike and of_data != "small numbers"]
        if seconds is None or kind is None or odd:
            told = ", ".join(f"{of_data} ({loader.examples[of_data]})" for of_data in odd or loader.kinds)
            raise DatasetError(
                f"dataset.{option}={text} is not to be compared with the times of the data, {told}; write it as they "
                "are, or say what they are by `dataset.time_unit=ms` (s, us, ns) or `dataset.time_format='%Y-%m-%d'`."
            )
        moments.append((seconds, nanos))
    if moments[0] >= moments[1]:
        raise DatasetError(
            f"dataset.validation_from={validation_from} is not before dataset.test_from={test_from}; validation lies "
            "between the two."
        )
    is_later = [f"(seconds > {seconds} OR (seconds = {seconds} AND nanos >= {nanos}))" for seconds, nanos in moments]
    return f"CAST(CASE WHEN {is_later[1]} THEN 2 WHEN {is_later[0]} THEN 1 ELSE 0 END AS TINYINT)"


def check_parts(database: DuckDBPyConnection, part: str) -> dict[str, Any]:
    """How many interactions each part has, and how many users have a target in it with an interaction before. Raises
    DatasetError if a part has none, or comes before an earlier one in a history."""
    counts = dict(database.execute(f"SELECT {part}, count(*) FROM kept GROUP BY 1").fetchall())
    n_users, first = database.execute(OUT_OF_ORDER.format(part=part)).fetchone()  # type: ignore[misc]
    if n_users:
        name = database.execute("SELECT name FROM users WHERE old = ?", [first]).fetchone()[0]  # type: ignore[index]
        raise DatasetError(
            f"{n_users:,} users have interactions of a later part before those of an earlier one, as user {name!r}; "
            "give parts that follow each other in time."
        )
    targets = {
        number: database.execute(TARGETS.format(part=part, number=number)).fetchone()[0]  # type: ignore[index]
        for number in (1, 2)
    }
    for number, users in targets.items():
        if not users:
            raise DatasetError(
                f"No user has an interaction of {PARTS[number]} and one before it ({counts.get(number, 0):,} "
                f"interactions of {PARTS[number]} are left after the filters); give another split."
            )
    stats = {name: counts.get(number, 0) for number, name in enumerate(PARTS)}
    stats |= {f"users_with_{PARTS[number]}_target": users for number, users in targets.items()}
    logger.info("the split of the data: %s", ", ".join(f"{name} {count:,}" for name, count in stats.items()))
    return stats
