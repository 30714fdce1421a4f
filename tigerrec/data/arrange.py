"""What the prepare stage computes of interactions, as SQL that DuckDB and Spark both take: repeats, k-core, numbers,
order. The table `interactions` has the columns place (where a row stands in the files), user, item, seconds and nanos.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tigerrec.data.base import DatasetError
from tigerrec.data.histories import SHORTEST_HISTORY

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

BLOCK = 1 << 20  # places; the rows of a block are numbered together
NAMES = "SELECT {side}, min(place) AS number FROM interactions GROUP BY {side}"
DISTINCT = """
SELECT min(place) AS place, user_names.number AS user, item_names.number AS item, seconds, nanos
FROM interactions JOIN user_names USING (user) JOIN item_names USING (item)
GROUP BY user_names.number, item_names.number, seconds, nanos
"""
RARE = "SELECT {side} FROM kept GROUP BY {side} HAVING count(*) < {least}"
CORE = "SELECT * FROM kept ANTI JOIN rare_user USING (user) ANTI JOIN rare_item USING (item)"
FIRST = f"""
SELECT old, first, first - first % {BLOCK} AS block
FROM (SELECT {{side}} AS old, min(place) AS first FROM kept GROUP BY {{side}})
"""
NUMBERED = """
SELECT CAST(before + row_number() OVER (PARTITION BY block ORDER BY first) - 1 AS INTEGER) AS number, old,
    {side}_names.{side} AS name
FROM first_{side}
JOIN (
    SELECT block, sum(members) OVER (PARTITION BY block IS NULL ORDER BY block) - members AS before
    FROM (SELECT block, count(*) AS members FROM first_{side} GROUP BY block)
) USING (block)
JOIN {side}_names ON old = {side}_names.number
"""
ORDERED = """
SELECT users.number AS user, items.number AS item, seconds AS timestamp,
    CAST(row_number() OVER (PARTITION BY users.number ORDER BY seconds, nanos, place) - 1 AS INTEGER) AS position
FROM kept JOIN users ON kept.user = users.old JOIN items ON kept.item = items.old
ORDER BY 1, 4
"""
LENGTHS = "SELECT user, count(*) AS length FROM kept GROUP BY user"


def create_table(database: DuckDBPyConnection, table: str, query: str) -> None:
    """Make a table of the answer to a query, in the place of one of that name."""
    database.execute(f"CREATE OR REPLACE TABLE {table} AS {query}")


def arrange(
    database: DuckDBPyConnection, min_user: int, min_item: int, create: Callable[[str, str], None] | None = None
) -> dict[str, Any]:
    """Drop repeated interactions, filter, and number by first appearance: makes the tables `kept`, `users` and `items`
    by `create` (None: in the database, which sees them in either case), and returns the counts. Users with fewer than
    three interactions are always left out: leave-one-out needs three. Raises DatasetError if nothing is left."""
    create = create or functools.partial(create_table, database)

    def number(sql: str) -> int:
        return int(database.execute(sql).fetchone()[0])  # type: ignore[index]

    read = number("SELECT count(*) FROM interactions")
    for side in ("user", "item"):
        create(f"{side}_names", NAMES.format(side=side))
    users, items = (number(f"SELECT count(*) FROM {side}_names") for side in ("user", "item"))
    create("kept", DISTINCT)
    distinct = number("SELECT count(*) FROM kept")
    create("lengths", LENGTHS)
    short = number(f"SELECT count(*) FROM lengths WHERE length < {SHORTEST_HISTORY}")
    least = {"user": max(min_user, SHORTEST_HISTORY), "item": min_item}
    while True:
        for side in least:
            create(f"rare_{side}", RARE.format(side=side, least=least[side]))
        if not any(number(f"SELECT count(*) FROM rare_{side}") for side in least):
            break
        create("kept", CORE)
    left = number("SELECT count(*) FROM kept")
    if not left:
        raise DatasetError(
            f"Nothing is left of {read:,} interactions of {users:,} users ({short:,} with fewer than "
            f"{SHORTEST_HISTORY}) and {items:,} items after the filters; lower "
            f"`dataset.min_user_interactions={min_user}` and `dataset.min_item_interactions={min_item}` or give more "
            "data."
        )
    for side in ("user", "item"):
        create(f"first_{side}", FIRST.format(side=side))
        create(f"{side}s", NUMBERED.format(side=side))
    create("lengths", LENGTHS)
    kept_users, kept_items = (number(f"SELECT count(*) FROM {side}s") for side in ("user", "item"))
    shortest, median, longest = database.execute(
        "SELECT min(length), median(length), max(length) FROM lengths"
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
