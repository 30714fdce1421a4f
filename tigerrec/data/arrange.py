"""What the prepare stage computes of interactions, as SQL: repeats, k-core, numbers, order. The table `interactions`
has the columns place (where a row stands in the files), user, item, seconds and nanos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tigerrec.data.base import DatasetError
from tigerrec.data.histories import SHORTEST_HISTORY

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

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
    CAST(row_number() OVER (PARTITION BY users.number ORDER BY seconds, nanos, place) - 1 AS INTEGER) AS position
FROM kept JOIN users ON kept.user = users.old JOIN items ON kept.item = items.old
ORDER BY 1, 4
"""
LENGTHS = "SELECT count(*) AS length FROM kept GROUP BY user"


def arrange(database: DuckDBPyConnection, min_user: int, min_item: int) -> dict[str, Any]:
    """Drop repeated interactions, filter, and number by first appearance: makes the tables `kept`, `users` and `items`,
    and returns the counts. Users with fewer than three interactions are always left out: leave-one-out needs three.
    Raises DatasetError if nothing is left."""

    def number(sql: str) -> int:
        return int(database.execute(sql).fetchone()[0])  # type: ignore[index]

    read = number("SELECT count(*) FROM interactions")
    for side in ("user", "item"):
        database.execute(NUMBERED.format(side=side))
    users, items = (number(f"SELECT count(*) FROM {side}_names") for side in ("user", "item"))
    database.execute(DISTINCT)
    distinct = number("SELECT count(*) FROM kept")
    short = number(f"SELECT count(*) FROM ({LENGTHS} HAVING count(*) < {SHORTEST_HISTORY})")
    least = {"user": max(min_user, SHORTEST_HISTORY), "item": min_item}
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
        minima = {"min_user_interactions": min_user, "min_item_interactions": min_item}
        lower = " and ".join(f"`dataset.{option}={value}`" for option, value in minima.items() if value)
        raise DatasetError(
            f"Nothing is left of {read:,} interactions of {users:,} users ({short:,} with fewer than "
            f"{SHORTEST_HISTORY}) and {items:,} items after the filters; "
            f"{f'lower {lower} or ' if lower else ''}give users of {SHORTEST_HISTORY} interactions or more."
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
        "users_with_fewer_than_3": short,
        "users_filtered": users - short - kept_users,
        "items_filtered": items - kept_items,
    }
