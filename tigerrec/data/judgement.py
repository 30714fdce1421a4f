"""What the reader thinks of what it read: whether interactions and items belong together, and what is odd."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tigerrec.data.base import DatasetError
from tigerrec.text import percent

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

logger = logging.getLogger(__name__)

FEW = 0.9  # a smaller share of interactions whose item has metadata is warned of
MUCH = 0.1  # a larger share of all interactions by one of many users is warned of
MANY_USERS = 20
CAUSES = {
    "a trailing .0": r"regexp_replace({id}, '\.0+$', '')",
    "leading zeros": "ltrim({id}, '0')",
    "letter case": "lower({id})",
    "the Unicode form": "nfc_normalize({id})",
    "quotes around them": "trim({id}, chr(34) || chr(39))",
    "invisible characters": r"regexp_replace({id}, '[\x{{ad}}\x{{200b}}-\x{{200f}}\x{{2060}}\x{{feff}}]', '', 'g')",
    "thousands separators": "replace({id}, ',', '')",
}
"""Why ids of one thing differ in two files → SQL of the id without that difference."""


def _some(database: DuckDBPyConnection, sql: str) -> str:
    return ", ".join(repr(row[0]) for row in database.execute(f"{sql} LIMIT 3").fetchall()) or "none"


def judge_join(database: DuckDBPyConnection, can_leave_out: bool) -> dict[str, Any]:
    """The share of interactions whose item the files of items tell of. Raises DatasetError, which names the likely
    cause, if there is none, and warns of few; `can_leave_out` says whether items may be left out."""

    def number(sql: str) -> int:
        return int(database.execute(sql).fetchone()[0])  # type: ignore[index]

    database.execute("CREATE TABLE known AS SELECT DISTINCT item FROM catalogue")
    total = number("SELECT count(*) FROM interactions")
    matched = number("SELECT count(*) FROM interactions WHERE item IN (SELECT item FROM known)")
    share = matched / total
    result = {"interactions_with_metadata": round(share, 4)}
    if share >= FEW:
        return result
    unmatched = "SELECT item FROM item_names WHERE item NOT IN (SELECT item FROM known)"
    database.execute(f"CREATE TABLE unmatched AS {unmatched} ORDER BY number")
    examples = (
        f"items of interactions: {_some(database, 'SELECT item FROM unmatched')}; of metadata: "
        f"{_some(database, 'SELECT item FROM catalogue')}"
    )
    causes = {}
    for cause, form in CAUSES.items():
        plain = form.format(id="item")
        causes[cause] = number(f"SELECT count(*) FROM unmatched WHERE {plain} IN (SELECT {plain} FROM known)")
    cause, count = max(causes.items(), key=lambda pair: pair[1])
    likely = f"; {count:,} of them differ in {cause} alone" if count else ""
    swapped = number("SELECT count(*) FROM user_names WHERE user IN (SELECT item FROM known)")
    if not matched and swapped:
        raise DatasetError(
            f"The column of users holds items: {swapped:,} of its ids are items of the metadata, and none of the "
            "column of items; give the columns the other way round: `dataset.user_column=` and `dataset.item_column=` "
            "of `dataset=tables`, or, for Amazon's release of 2018, `dataset=amazon2018`."
        )
    if not matched and total:
        raise DatasetError(
            f"No interaction has an item of the metadata ({examples}{likely}); write the ids the same way in both "
            f"files{', or leave `dataset.items=` out' if can_leave_out else ''}."
        )
    logger.warning("only %s of the interactions have an item of the metadata (%s%s)", percent(share), examples, likely)
    return result


def judge_histories(database: DuckDBPyConnection) -> dict[str, Any]:
    """The range of times and the longest history; a user with much of all data is warned of."""
    first, last = database.execute("SELECT min(seconds), max(seconds) FROM kept").fetchone()  # type: ignore[misc]
    user, count, total, users = database.execute(
        "SELECT name, count(*), (SELECT count(*) FROM kept), (SELECT count(*) FROM users) "
        "FROM kept JOIN users ON kept.user = users.old GROUP BY name ORDER BY count(*) DESC, name LIMIT 1"
    ).fetchone()  # type: ignore[misc]
    if users >= MANY_USERS and count > MUCH * total:
        logger.warning(
            "the user %r has %s of all interactions (%s); leave such users out where they are no people",
            user, percent(count / total), f"{count:,}",
        )  # fmt: skip
    return {
        "time": {"first": first, "last": last},
        "longest_history": {"user": user, "interactions": count, "share": round(count / total, 4)},
    }
