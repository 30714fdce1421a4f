"""The prepare stage: raw interactions → numbered items, users and per-user histories."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Set
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from tigerrec.data.arrange import ORDERED, arrange
from tigerrec.data.base import Dataset, DatasetError, RawItem
from tigerrec.data.interactions import NOT_A_TIME, ROLE, Loader, working_database
from tigerrec.data.judgement import judge_histories, judge_join
from tigerrec.data.raw import NOT_UTF_8, Tally
from tigerrec.storage.files import unchanged
from tigerrec.storage.stages import StageFiles, writing

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

logger = logging.getLogger(__name__)

ITEM_FIELDS = ("title", "brand", "categories", "price")
BATCH = 50_000  # items
ROW_GROUP = 1 << 20
METADATA = """
CREATE TABLE catalogue (item VARCHAR);
CREATE TABLE metadata (item VARCHAR, title VARCHAR, brand VARCHAR, categories VARCHAR[], price DOUBLE, text VARCHAR);
"""
ITEMS = """
SELECT number AS item, name AS item_id, title, brand, coalesce(categories, []) AS categories, price,
    coalesce(text, 'Item ' || name || '.') AS text
FROM items LEFT JOIN metadata ON items.name = metadata.item ORDER BY number
"""
USERS = "SELECT number AS user, name AS user_id FROM users ORDER BY number"


def item_text(item_id: str, item: RawItem) -> str:
    """The text that is embedded: `Title: …; Brand: …; Categories: A > B; Price: 12.99.`, and any
    further texts by name, without what is missing; `Item <id>.` where all is missing."""
    parts = [
        f"Title: {item.title}" if item.title else None,
        f"Brand: {item.brand}" if item.brand else None,
        f"Categories: {' > '.join(item.categories)}" if item.categories else None,
        None if item.price is None else f"Price: {item.price:.2f}",
        *(f"{name}: {text}" for name, text in item.texts),
    ]
    return f"{'; '.join(filter(None, parts)) or f'Item {item_id}'}."


def _check_dropped(tally: Tally, sources: Mapping[str, Path], dataset: Dataset, checked: Set[str]) -> None:
    """Raise DatasetError if too many lines of a file could not be read, of the roles that were not `checked` before."""
    for role, lines in tally.lines.items():
        if role in checked:
            continue
        reasons = {reason: count for (of, reason), count in tally.dropped.items() if of == role}
        dropped = sum(reasons.values())
        if not dropped:
            continue
        told = "; ".join(
            f"{reason}: {count:,}, as {tally.examples[role, reason][0]}"
            for reason, count in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
        )
        path = sources.get(role, role)
        max_dropped = dataset.max_dropped
        is_encoded = NOT_UTF_8 in reasons and hasattr(dataset, "encoding")
        is_formed = NOT_A_TIME in reasons and hasattr(dataset, "time_format")
        encoding = "name its encoding, as `dataset.encoding=latin-1`, " if is_encoded else ""
        if dropped > max_dropped * lines and dropped == lines:
            raise DatasetError(
                f"None of the {lines:,} lines of {path} can be read ({told}); {encoding}repair it"
                + (", a time must be a number or a date like 2024-03-01" if NOT_A_TIME in reasons else "")
                + (", and a date like 16.11.2023 needs `\"dataset.time_format='%d.%m.%Y'\"`." if is_formed else ".")
            )
        if dropped > max_dropped * lines:
            raise DatasetError(
                f"{dropped:,} of {lines:,} lines of {path} cannot be read ({told}), more than "
                f"max_dropped={max_dropped} allows; {encoding}repair or download the file again, or put up with it by "
                f"`dataset.max_dropped={-(-dropped * 1000 // lines) / 1000}`."
            )
        logger.warning("dropped %s of %s lines of %s (%s)", f"{dropped:,}", f"{lines:,}", path, told)


def _check_expected(stats: Mapping[str, Any], expected: tuple[int, ...]) -> None:
    counts = (stats["users"], stats["items"], stats["interactions"])
    if expected and counts != expected:
        logger.warning(
            "not the files of the known release: expected %s users, %s items, %s interactions, found %s, %s, %s; do "
            "not compare results with published ones",
            *(f"{number:,}" for number in (*expected, *counts)),
        )


def _load_items(database: DuckDBPyConnection, dataset: Dataset, tally: Tally) -> None:
    """Fill the tables `catalogue`, the ids that the files of items tell of, and `metadata`, what they say of those that
    are left."""
    import pyarrow as pa

    database.execute(METADATA)
    needed = {row[0] for row in database.execute("SELECT name FROM items").fetchall()}
    told = iter(tqdm(dataset.read_items(needed, tally), desc="items", unit=" items", disable=None, leave=False))
    while batch := list(islice(told, BATCH)):
        given = pa.table({"item": pa.array([item for item, _ in batch], pa.string())})
        database.register("given", given)
        database.execute("INSERT INTO catalogue SELECT item FROM given")
        known = [(item, record, item_text(item, record)) for item, record in batch if record is not None]
        given = pa.table(
            {
                "item": pa.array([item for item, _, _ in known], pa.string()),
                "title": pa.array([record.title for _, record, _ in known], pa.string()),
                "brand": pa.array([record.brand for _, record, _ in known], pa.string()),
                "categories": pa.array([record.categories for _, record, _ in known], pa.list_(pa.string())),
                "price": pa.array([record.price for _, record, _ in known], pa.float64()),
                "text": pa.array([text for _, _, text in known], pa.string()),
            }
        )
        database.register("given", given)
        database.execute("INSERT INTO metadata SELECT * FROM given")
        database.unregister("given")


def _stats_of_items(database: DuckDBPyConnection) -> dict[str, Any]:
    is_missing = {field: f"{field} IS NULL" for field in ITEM_FIELDS} | {
        "categories": "coalesce(len(categories), 0) = 0"
    }
    without = {field: f"count(*) FILTER ({condition})" for field, condition in is_missing.items()}
    row = database.execute(
        f"SELECT count(*) FILTER (metadata.item IS NULL), {', '.join(without.values())} "
        "FROM items LEFT JOIN metadata ON items.name = metadata.item"
    ).fetchone()
    counts = dict(zip(without, row[1:], strict=True))  # type: ignore[index]
    told = ", ".join(f"{count:,} no {field}" for field, count in counts.items() if count)
    if told:
        logger.info("of the items %s", told)
    return {
        "items_without_metadata": row[0],  # type: ignore[index]
        "items_without": {field: count for field, count in counts.items() if count},
    }


def _write(files: StageFiles, name: str, database: DuckDBPyConnection, sql: str) -> None:
    """Write the answer to a query, row group by row group."""
    import pyarrow.parquet as pq

    schema = _schema(name)
    with files.create(name) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for batch in _row_groups(database.cursor().sql(sql).to_arrow_reader(ROW_GROUP)):
            writer.write_table(batch.cast(schema), row_group_size=ROW_GROUP)


def _row_groups(reader: Any) -> Iterator[Any]:
    import pyarrow as pa

    waiting: list[Any] = []
    for batch in reader:
        waiting.append(batch)
        if sum(map(len, waiting)) >= ROW_GROUP:
            yield pa.Table.from_batches(waiting)
            waiting = []
    yield pa.Table.from_batches(waiting, reader.schema)


def _schema(name: str) -> Any:
    """The types of a table, as `pyarrow` has them."""
    import pyarrow as pa

    columns = {
        "items.parquet": {
            "item": pa.int32(),
            "item_id": pa.string(),
            "title": pa.string(),
            "brand": pa.string(),
            "categories": pa.list_(pa.string()),
            "price": pa.float64(),
            "text": pa.string(),
        },
        "users.parquet": {"user": pa.int32(), "user_id": pa.string()},
        "interactions.parquet": {
            "user": pa.int32(),
            "item": pa.int32(),
            "timestamp": pa.int64(),
            "position": pa.int32(),
        },
    }
    return pa.schema(list(columns[name].items()))


def prepare(dataset: Dataset, out: Path) -> Path:
    """Write `items.parquet`, `users.parquet`, `interactions.parquet` and `stats.json` of a data set. Raises
    TigerrecError if raw files are missing, damaged or changed meanwhile, too many lines are unreadable, or nothing is
    left after filtering."""
    sources, tally = dataset.sources(), Tally()
    with working_database(out) as database:
        with unchanged(sources) as digests:
            loader = Loader(database, tally)
            dataset.load_interactions(loader)
            if not tally.lines[ROLE]:
                raise DatasetError(
                    f"{sources.get(ROLE, out)} holds no interactions: it is empty, or has a header alone; give a file "
                    "with data."
                )
            loader.check_times(str(sources.get("interactions", out)))
            _check_dropped(tally, sources, dataset, set())
            stats = arrange(
                database, dataset.min_user_interactions, dataset.min_item_interactions, dataset.max_user_interactions
            )
            logger.info(
                "read %s interactions from %s",
                f"{stats['raw']['interactions']:,}",
                ", ".join(map(str, sources.values())),
            )
            _load_items(database, dataset, tally)
        _check_dropped(tally, sources, dataset, {ROLE})
        has_items = any(not role.startswith(ROLE) for role in sources)
        stats |= (
            (judge_join(database) if has_items else {})
            | judge_histories(database)
            | _stats_of_items(database)
            | {
                "time_kinds": dict(sorted(loader.kinds.items())),
                "filtered_by_conditions": loader.filtered,
                "lines": tally.lines.total(),
                "dropped": {f"{role}: {reason}": count for (role, reason), count in sorted(tally.dropped.items())},
                "dropped_examples": {
                    f"{role}: {reason}": examples for (role, reason), examples in sorted(tally.examples.items())
                },
                "noted": dict(sorted((+tally.noted).items())),
            }
        )
        _check_expected(stats, dataset.expected)
        with writing(out, "prepare", dataset, sources=digests) as files:
            _write(files, "items.parquet", database, ITEMS)
            _write(files, "users.parquet", database, USERS)
            _write(files, "interactions.parquet", database, ORDERED)
            files.json("stats.json", stats)
    counts = [f"{stats[key]:,}" for key in ("users", "items", "interactions")]
    logger.info("wrote %s users, %s items, %s interactions to %s", *counts, out)
    return out
