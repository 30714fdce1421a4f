"""The prepare stage: raw interactions → numbered items, users and per-user histories."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from tigerrec.data.arrange import arrange
from tigerrec.data.base import Dataset, DatasetError, RawItem
from tigerrec.data.interactions import NOT_A_RATING, NOT_A_TIME, ROLE, Loader, working_database
from tigerrec.data.judgement import judge_histories, judge_join
from tigerrec.data.raw import LONE_BREAK, NO_RECORD, NOT_A_PRICE, NOT_JSON, NOT_QUOTED, NOT_UTF_8, SEPARATED, Tally
from tigerrec.runtime.memory import without_cycle_search
from tigerrec.storage.files import SPILLED, unchanged
from tigerrec.storage.stages import StageFiles, writing

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

logger = logging.getLogger(__name__)

ITEM_FIELDS = ("title", "brand", "categories", "price")
BATCH = 50_000  # items
ROW_GROUP = 1 << 20
CHUNK = 122_880  # rows; how long the pieces are that Parquet is given decides on its bytes
WRITTEN = 9 * CHUNK
REPAIRS = {
    NOT_UTF_8: "name its encoding, as `dataset.encoding=latin-1`",
    NOT_QUOTED: 'read quotes written as \\" by `dataset.escape="\\\\"`',
    NOT_JSON: "write one record a line, or one array of records",
    NO_RECORD: "write one record a line, or one array of records",
    NOT_A_RATING: "read a rating like 4,5 by `dataset.decimal_comma=true`",
    LONE_BREAK: "end its lines as Unix or Windows does",
    SEPARATED: "name what stands between items, as `\"dataset.sequence_separator=','\"`",
}
"""The reason for which a line cannot be read → what helps."""
OPTIONS = {  # of `dataset`, for repairs
    NOT_UTF_8: "encoding",
    NOT_QUOTED: "escape",
    NOT_A_RATING: "decimal_comma",
    SEPARATED: "sequence_separator",
}
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


def repair_of(reason: str, of_items: bool) -> str:
    """What helps where lines cannot be read for a reason; the file of items has an encoding of its own."""
    repair = REPAIRS.get(reason, "repair it")
    return repair.replace("dataset.encoding", "dataset.items_encoding") if of_items else repair


def check_dropped(tally: Tally, sources: Mapping[str, Path], dataset: Dataset, checked: Set[str]) -> None:
    """Raise DatasetError if too many lines of a file could not be read, of the roles that were not `checked` before."""
    for role, lines in tally.lines.items():
        if role in checked:
            continue
        reasons = {reason: count for (of, reason), count in tally.dropped.items() if of == role}
        dropped = sum(reasons.values())
        if not dropped:
            continue
        told = _counted(reasons, {reason: tally.examples[role, reason][:1] for reason in reasons})
        path = sources.get(role, role)
        max_dropped = dataset.max_dropped
        options = [reason for reason, option in OPTIONS.items() if reason in reasons and hasattr(dataset, option)]
        remedies = "".join(f"{repair_of(reason, role.startswith('items'))}, or " for reason in options)
        if dropped > max_dropped * lines and dropped == lines:
            is_formed = NOT_A_TIME in reasons and hasattr(dataset, "time_format")
            raise DatasetError(
                f"None of the {lines:,} lines of {path} can be read ({told}); {remedies}repair it"
                + (", a time must be a number or a date like 2024-03-01" if NOT_A_TIME in reasons else "")
                + (
                    ", and a date like 16.11.2023 18:05 needs `\"dataset.time_format='%d.%m.%Y %H:%M'\"`."
                    if is_formed
                    else "."
                )
            )
        if dropped > max_dropped * lines:
            raise DatasetError(
                f"{dropped:,} of {lines:,} lines of {path} cannot be read ({told}), more than "
                f"max_dropped={max_dropped} allows; {remedies}repair or download the file again, or put up with it by "
                f"`dataset.max_dropped={-(-dropped * 1000 // lines) / 1000}`."
            )
        logger.warning("dropped %s of %s lines of %s (%s)", f"{dropped:,}", f"{lines:,}", path, told)


def _counted(counts: Mapping[str, int], examples: Mapping[str, list[str]]) -> str:
    """Counts for a message, the largest first, with examples."""
    return "; ".join(
        f"{what}: {count:,}" + (f", as {', '.join(examples[what])}" if what in examples else "")
        for what, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    )


def place_of(sources: Mapping[str, Path]) -> str:
    """The file of interactions, or the folder in which all of them stand."""
    files = [path for role, path in sources.items() if role.startswith(ROLE)] or list(sources.values())
    return str(files[0]) if len(files) == 1 else os.path.commonpath([path.absolute() for path in files])


def check_filtered(loader: Loader, path: str) -> None:
    """Say how many interactions the conditions leave out. Raises DatasetError if that, or what cannot be read, is
    all."""
    lines, told = loader.tally.lines.total(), _counted(loader.filtered, {})
    if not loader.kinds:
        change = "change `dataset.where=` or `dataset.min_rating=`" if told else "repair it"
        raise DatasetError(
            f"None of the {lines:,} lines of {path} is left ({told or 'none can be read'}); {change}, or give "
            "other data."
        )
    if told:
        logger.info(
            "left out %s of %s interactions by condition (%s)", f"{loader.filtered.total():,}", f"{lines:,}", told
        )


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

    query = database.cursor().sql(sql)
    schema = _schema(name, query.columns)
    with files.create(name) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for batch in _row_groups(query.to_arrow_reader(ROW_GROUP)):
            writer.write_table(batch.cast(schema), row_group_size=ROW_GROUP)


def _row_groups(reader: Any) -> Iterator[Any]:
    """The rows of an answer in tables and chunks of one length, however long its batches are."""
    import pyarrow as pa

    waiting = pa.Table.from_batches([], reader.schema)
    for batch in reader:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
        while len(waiting) >= WRITTEN:
            yield _in_chunks(waiting.slice(0, WRITTEN))
            waiting = waiting.slice(WRITTEN)
    yield _in_chunks(waiting)


def _in_chunks(table: Any) -> Any:
    import pyarrow as pa

    return pa.concat_tables(table.slice(start, CHUNK).combine_chunks() for start in range(0, len(table) or 1, CHUNK))


def _schema(name: str, names: Sequence[str]) -> Any:
    """The types of some columns of a table, as `pyarrow` has them."""
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
            "part": pa.int8(),
        },
    }
    return pa.schema([(column, columns[name][column]) for column in names])


@contextlib.contextmanager
def _loader(dataset: Dataset, database: DuckDBPyConnection, tally: Tally, out: Path) -> Iterator[Loader]:
    """The loader of the engine that the data set names."""
    if getattr(dataset, "engine", "duckdb") == "duckdb":
        yield Loader(database, tally)
        return
    from tigerrec.data.spark import spark_loader

    with spark_loader(database, tally, out / SPILLED / "spark", getattr(dataset, "spark", None) or {}) as loader:
        yield loader


def prepare(dataset: Dataset, out: Path) -> Path:
    """Write `items.parquet`, `users.parquet`, `interactions.parquet` and `stats.json` of a data set. Raises
    TigerrecError if raw files are missing, damaged or changed meanwhile, too many lines are unreadable, or nothing is
    left after filtering."""
    sources, tally = dataset.sources(), Tally()
    with working_database(out) as database, _loader(dataset, database, tally, out) as loader:
        with unchanged(sources) as digests:
            dataset.load_interactions(loader)
            loader.finish()
            where = place_of(sources)
            if not tally.lines.total():
                raise DatasetError(
                    f"{where} holds no interactions: it is empty, or has a header alone; give a file with data."
                )
            loader.check_times(where, hasattr(dataset, "time_unit"))
            check_dropped(tally, sources, dataset, set())
            checked = set(tally.lines)
            check_filtered(loader, where)
            part = loader.part()
            stats = arrange(
                database,
                dataset.min_user_interactions,
                dataset.min_item_interactions,
                dataset.max_user_interactions,
                part,
                loader.create,
                dataset.equal_times,
            )
            logger.info(
                "read %s interactions from %s",
                f"{stats['raw']['interactions']:,}",
                ", ".join(map(str, sources.values())),
            )
            with without_cycle_search():
                _load_items(database, dataset, tally)
        check_dropped(tally, sources, dataset, checked)
        if tally.noted:
            has_commas = any("," in price for price in tally.noted_examples.get(NOT_A_PRICE, []))
            is_point = getattr(dataset, "decimal_comma", None) is False
            advice = "; `dataset.decimal_comma=true` reads prices like 1.299,00" if has_commas and is_point else ""
            logger.info("noted in the items: %s%s", _counted(tally.noted, tally.noted_examples), advice)
        has_items = any(not role.startswith(ROLE) for role in sources)
        stats |= (
            (judge_join(database, hasattr(dataset, "items")) if has_items else {})
            | judge_histories(database)
            | _stats_of_items(database)
            | {
                "time_kinds": dict(sorted(loader.kinds.items())),
                "filtered_by_conditions": loader.filtered.total(),
                "filtered": dict(sorted(loader.filtered.items())),
                "lines": tally.lines.total(),
                "dropped": {f"{role}: {reason}": count for (role, reason), count in sorted(tally.dropped.items())},
                "dropped_examples": {
                    f"{role}: {reason}": examples for (role, reason), examples in sorted(tally.examples.items())
                },
                "noted": dict(sorted(tally.noted.items())),
                "noted_examples": dict(sorted(tally.noted_examples.items())),
            }
        )
        _check_expected(stats, dataset.expected)
        with writing(out, "prepare", dataset, sources=digests) as files:
            files.provenance["named"] = dataset.named()
            _write(files, "items.parquet", database, ITEMS)
            _write(files, "users.parquet", database, USERS)
            _write(files, "interactions.parquet", database, loader.ordered(part, dataset.equal_times))
            files.json("stats.json", stats)
    counts = [f"{stats[key]:,}" for key in ("users", "items", "interactions")]
    logger.info("wrote %s users, %s items, %s interactions to %s", *counts, out)
    return out
