"""Splits that data bring along: which interactions are for training, validation and test, as SQL of the table
`kept`."""

from __future__ import annotations

from tigerrec.data.base import DatasetError
from tigerrec.data.columns import Columns, batch_sql, literal, time_sql
from tigerrec.data.interactions import Loader

COMPARABLE = {"dates": ("dates", "seconds", "numbers")}  # kinds of times that count seconds as a kind does


def parts_by_place(validation: int, test: int) -> str:
    """SQL of the part of an interaction: those after a place are for validation, after another for test."""
    return f"CAST(CASE WHEN place > {test} THEN 2 WHEN place > {validation} THEN 1 ELSE 0 END AS TINYINT)"


def parts_by_time(loader: Loader, columns: Columns, validation_from: str, test_from: str) -> str:
    """SQL of the part of an interaction: those at a time or later are for validation, at another for test. Raises
    DatasetError if a time is not written as those of the data, or the second is not later."""
    moments = []
    for option, text in (("validation_from", validation_from), ("test_from", test_from)):
        batch = batch_sql(f'(SELECT {literal(text)} AS "_time")', "_", "VARCHAR", columns)
        seconds, nanos, kind = loader.database.execute(
            f"SELECT {', '.join(time_sql('_', 'VARCHAR', columns))} FROM {batch}"
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
