"""What the prepare stage computes of interactions, as SQL: repeats, k-core, numbers, order. The table `interactions`
has the columns place (where a row stands in the files), user, item, seconds and nanos."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tigerrec.data.base import DatasetError
from tigerrec.data.histories import SHORTEST_HISTORY, SHORTEST_SPLIT
from tigerrec.data.parts import check_parts

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

logger = logging.getLogger(__name__)

NUMBERED = """
CREATE TABLE {side}_names AS
SELECT {side}, CAST(row_number() OVER (ORDER BY min(place)) - 1 AS INTEGER) AS number FROM interactions GROUP BY {side}
"""
DISTINCT = """
CREATE TABLE kept AS
SELECT min(place) AS place, user_names.number AS user, item_names.number AS item, seconds, nanos
FROM interactions JOIN user_names USING (user) JOIN item_names USING (item)
GROUP BY user_names.number, item_names.number, seconds, nanos
"""
RARE = "SELECT {side} FROM kept GROUP BY {side} HAVING count(*) < {least}"
CORE = """
CREATE TABLE core AS
SELECT * FROM kept WHERE user NOT IN (SELECT user FROM rare_user) AND item NOT IN (SELECT item FROM rare_item)
"""
RENUMBERED = """
CREATE TABLE {side}s AS
SELECT CAST(row_number() OVER (ORDER BY first) - 1 AS INTEGER) AS number, old, {side}_names.{side} AS name
FROM (SELECT {side} AS old, min(place) AS first FROM kept GROUP BY {side})
JOIN {side}_names ON old = {side}_names.number
"""
ORDERED = """
SELECT users.number AS user, items.number AS item, seconds AS timestamp,
    CAST(row_number() OVER (PARTITION BY users.number ORDER BY seconds, nanos, place) - 1 AS INTEGER) AS position{part}
FROM kept JOIN users ON kept.user = users.old JOIN items ON kept.item = items.old
ORDER BY 1, 4
"""
LATEST = """
CREATE TABLE latest AS SELECT * FROM kept
QUALIFY row_number() OVER (PARTITION BY user ORDER BY seconds DESC, nanos DESC, place DESC) <= {most}
"""
LENGTHS = "SELECT count(*) AS length FROM kept GROUP BY user"


def ordered(part: str | None) -> str:
    """SQL of the interactions as they are written, with the part of each where the data bring a split."""
    return ORDERED.format(part=f", {part} AS part" if part else "")


def arrange(
    database: DuckDBPyConnection, min_user: int, min_item: int, max_user: int | None = None, part: str | None = None
) -> dict[str, Any]:
    """Drop repeated interactions, keep the last `max_user` of each user, filter, and number by first appearance: makes
    the tables `kept`, `users` and `items`, and returns the counts. Users with fewer than three interactions are always
    left out, for leave-one-out needs three, or with fewer than two where SQL of the `part` of each gives the split.
    Raises DatasetError if nothing is left, `max_user` is below `min_user`, or the split is none."""
    shortest = SHORTEST_HISTORY if part is None else SHORTEST_SPLIT

    def number(sql: str) -> int:
        return int(database.execute(sql).fetchone()[0])  # type: ignore[index]

    read = number("SELECT count(*) FROM interactions")
    for side in ("user", "item"):
        database.execute(NUMBERED.format(side=side))
    users, items = (number(f"SELECT count(*) FROM {side}_names") for side in ("user", "item"))
    database.execute(DISTINCT)
    distinct = number("SELECT count(*) FROM kept")
    short = number(f"SELECT count(*) FROM ({LENGTHS} HAVING count(*) < {shortest})")
    least = {"user": max(min_user, shortest), "item": min_item}
    older = {} if max_user is None else {"older_interactions": _keep_latest(database, max_user, least["user"])}
    while True:
        for side in least:
            database.execute(f"CREATE OR REPLACE TABLE rare_{side} AS {RARE.format(side=side, least=least[side])}")
        if not any(number(f"SELECT count(*) FROM rare_{side}") for side in least):
            break
        database.execute(CORE)
        database.execute("DROP TABLE kept")
        database.execute("ALTER TABLE core RENAME TO kept")
    left = number("SELECT count(*) FROM kept")
    if not left:
        raise DatasetError(
            f"Nothing is left of {read:,} interactions of {users:,} users ({short:,} with fewer than "
            f"{shortest}) and {items:,} items after the filters; lower "
            f"`dataset.min_user_interactions={min_user}` and `dataset.min_item_interactions={min_item}` or give more "
            "data."
        )
    for side in ("user", "item"):
        database.execute(RENUMBERED.format(side=side))
    kept_users, kept_items = (number(f"SELECT count(*) FROM {side}s") for side in ("user", "item"))
    shortest, median, longest = database.execute(
        f"SELECT min(length), median(length), max(length) FROM ({LENGTHS})"
    ).fetchone()  # type: ignore[misc]
    return {
        "users": kept_users,
        "items": kept_items,
        "interactions": left,
        "history_length": {
            "min": shortest,
            "median": float(median),
            "mean": left / kept_users,
            "max": longest,
        },
        "raw": {"users": users, "items": items, "interactions": read},
        "repeated_interactions": read - distinct,
        f"users_with_fewer_than_{shortest}": short,
        "users_filtered": users - short - kept_users,
        "items_filtered": items - kept_items,
        **older,
        **({} if part is None else {"split": check_parts(database, part)}),
    }


def _keep_latest(database: DuckDBPyConnection, most: int, least: int) -> int:
    """Keep the last interactions of each user; returns how many older ones there were."""
    if most < least:
        raise DatasetError(
            f"dataset.max_user_interactions={most} is less than dataset.min_user_interactions={least}, so no user "
            "would be left; raise the one or lower the other."
        )
    older, users = database.execute(
        f"SELECT coalesce(sum(length - {most}), 0), count(*) FROM ({LENGTHS} HAVING count(*) > {most})"
    ).fetchone()  # type: ignore[misc]
    database.execute(LATEST.format(most=most))
    database.execute("DROP TABLE kept")
    database.execute("ALTER TABLE latest RENAME TO kept")
    logger.info(
        "kept the last %s interactions of each user, without %s older ones of %s users",
        f"{most:,}", f"{older:,}", f"{users:,}",
    )  # fmt: skip
    return int(older)
