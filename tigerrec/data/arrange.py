"""What the prepare stage computes of interactions, as SQL that DuckDB and Spark both take: repeats, k-core, numbers,
order. The table `interactions` has the columns place (where a row stands in the files), user, item, seconds and nanos.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tigerrec.data.base import DatasetError, EqualTimes
from tigerrec.data.histories import PARTS, SHORTEST_HISTORY, SHORTEST_SPLIT

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

logger = logging.getLogger(__name__)

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
    CAST(row_number() OVER (PARTITION BY users.number ORDER BY {order}) - 1 AS INTEGER) AS position{part}
FROM kept JOIN users ON kept.user = users.old JOIN items ON kept.item = items.old
ORDER BY 1, 4
"""
LATEST = """
SELECT place, user, item, seconds, nanos
FROM (SELECT *, row_number() OVER (PARTITION BY user ORDER BY {newest}) AS age FROM kept)
WHERE age <= {most}
"""
OUT_OF_ORDER = """
SELECT count(DISTINCT user), min_by(user, place) FROM (
    SELECT user, place, {part} < lag({part}) OVER (PARTITION BY user ORDER BY {order}) AS falls FROM kept)
WHERE falls
"""
TARGETS = """
SELECT count(*) FROM (SELECT user, min({part}) AS first, bool_or({part} = {number}) AS has FROM kept GROUP BY user)
WHERE has AND first < {number}
"""
LENGTHS = "SELECT user, count(*) AS length FROM kept GROUP BY user"


def order_of(equal_times: EqualTimes, part: str | None = None) -> list[str]:
    """SQL of what puts the interactions of a user in order, oldest first. Equal times that are reversed stay within
    their part, where the data bring a split."""
    return ["seconds", "nanos", *(["place"] if equal_times == "file" else [*filter(None, [part]), "-place"])]


def ordered(part: str | None, equal_times: EqualTimes = "file") -> str:
    """SQL of the interactions as they are written, with the part of each where the data bring a split."""
    order = ", ".join(order_of(equal_times, part))
    return ORDERED.format(part=f", {part} AS part" if part else "", order=order)


def create_table(database: DuckDBPyConnection, table: str, query: str) -> None:
    """Make a table of the answer to a query, in the place of one of that name."""
    database.execute(f"CREATE OR REPLACE TABLE {table} AS {query}")


def arrange(
    database: DuckDBPyConnection,
    min_user: int,
    min_item: int,
    max_user: int | None = None,
    part: str | None = None,
    create: Callable[[str, str], None] | None = None,
    equal_times: EqualTimes = "file",
) -> dict[str, Any]:
    """Drop repeated interactions, keep the last `max_user` of each user, filter, and number by first appearance: makes
    the tables `kept`, `users` and `items` by `create` (None: in the database, which sees them in either case), and
    returns the counts. Users with fewer than three interactions are always left out, for leave-one-out needs three, or
    with fewer than two where SQL of the `part` of each gives the split. Raises DatasetError if nothing is left,
    `max_user` is below `min_user`, or the split is none."""
    create = create or functools.partial(create_table, database)
    order = order_of(equal_times, part)
    shortest = SHORTEST_HISTORY if part is None else SHORTEST_SPLIT

    def number(sql: str) -> int:
        return int(database.execute(sql).fetchone()[0])  # type: ignore[index]

    read = number("SELECT count(*) FROM interactions")
    for side in ("user", "item"):
        create(f"{side}_names", NAMES.format(side=side))
    users, items = (number(f"SELECT count(*) FROM {side}_names") for side in ("user", "item"))
    create("kept", DISTINCT)
    distinct = number("SELECT count(*) FROM kept")
    create("lengths", LENGTHS)
    short = number(f"SELECT count(*) FROM lengths WHERE length < {shortest}")
    least = {"user": max(min_user, shortest), "item": min_item}
    older = {}
    if max_user is not None:
        older["older_interactions"] = _keep_latest(database, max_user, least["user"], order, create)
    while True:
        for side in least:
            create(f"rare_{side}", RARE.format(side=side, least=least[side]))
        if not any(number(f"SELECT count(*) FROM rare_{side}") for side in least):
            break
        create("kept", CORE)
    left = number("SELECT count(*) FROM kept")
    if not left:
        minima = {"min_user_interactions": min_user, "min_item_interactions": min_item}
        lower = " and ".join(f"`dataset.{option}={value}`" for option, value in minima.items() if value)
        raise DatasetError(
            f"Nothing is left of {read:,} interactions of {users:,} users ({short:,} with fewer than "
            f"{shortest}) and {items:,} items after the filters; "
            f"{f'lower {lower} or ' if lower else ''}give users of {shortest} interactions or more."
        )
    for side in ("user", "item"):
        create(f"first_{side}", FIRST.format(side=side))
        create(f"{side}s", NUMBERED.format(side=side))
    create("lengths", LENGTHS)
    kept_users, kept_items = (number(f"SELECT count(*) FROM {side}s") for side in ("user", "item"))
    if kept_users < users or kept_items < items:
        logger.info(
            "left out %s users with fewer than %d interactions, %s other users and %s items by the filters",
            f"{short:,}", shortest, f"{users - short - kept_users:,}", f"{items - kept_items:,}",
        )  # fmt: skip
    minimum, median, maximum = database.execute(
        "SELECT min(length), median(length), max(length) FROM lengths"
    ).fetchone()  # type: ignore[misc]
    return {
        "users": kept_users,
        "items": kept_items,
        "interactions": left,
        "history_length": {
            "min": minimum,
            "median": float(median),
            "mean": left / kept_users,
            "max": maximum,
        },
        "raw": {"users": users, "items": items, "interactions": read},
        "repeated_interactions": read - distinct,
        f"users_with_fewer_than_{shortest}": short,
        "users_filtered": users - short - kept_users,
        "items_filtered": items - kept_items,
        **older,
        **({} if part is None else {"split": check_parts(database, part, order)}),
    }


def _keep_latest(
    database: DuckDBPyConnection, most: int, least: int, order: list[str], create: Callable[[str, str], None]
) -> int:
    """Keep the last interactions of each user; returns how many older ones there were."""
    if most < least:
        raise DatasetError(
            f"dataset.max_user_interactions={most} is less than dataset.min_user_interactions={least}, so no user "
            "would be left; raise the one or lower the other."
        )
    older, users = database.execute(
        f"SELECT coalesce(sum(length - {most}), 0), count(*) FROM lengths WHERE length > {most}"
    ).fetchone()  # type: ignore[misc]
    create("kept", LATEST.format(most=most, newest=", ".join(f"{key} DESC" for key in order)))
    logger.info(
        "kept the last %s interactions of each user, without %s older ones of %s users",
        f"{most:,}", f"{older:,}", f"{users:,}",
    )  # fmt: skip
    return int(older)


def check_parts(database: DuckDBPyConnection, part: str, order: list[str]) -> dict[str, Any]:
    """How many interactions each part has, and how many users have a target in it with an interaction before. Raises
    DatasetError if a part has none, or comes before an earlier one in a history."""
    counts = dict(database.execute(f"SELECT {part}, count(*) FROM kept GROUP BY 1").fetchall())
    falls = OUT_OF_ORDER.format(part=part, order=", ".join(order))
    n_users, first = database.execute(falls).fetchone()  # type: ignore[misc]
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
