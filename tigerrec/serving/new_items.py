"""New items for a trained recommender, without training again: read, embedded, given Semantic IDs, and exported."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec import TigerrecError, config
from tigerrec.data.formats import is_table, read_rows
from tigerrec.data.histories import ITEMS, read_items
from tigerrec.data.prepare import ITEM_FIELDS, item_text
from tigerrec.data.raw import Fault, Tally, Unreadable, clean, further_texts, make_item, plain_id
from tigerrec.data.table import shown
from tigerrec.embed.base import Embedder, EmbedsTexts, checked, few
from tigerrec.embed.precomputed import Precomputed
from tigerrec.models.base import CONFIG, VECTORS
from tigerrec.models.loading import NEW_VECTORS
from tigerrec.serving.catalogue import EXPORT, POPULARITY, read_popularity
from tigerrec.serving.export import (
    CARD,
    EMBEDDER,
    GENERATOR_EMBEDDER,
    ItemOptions,
    check_free,
    item_options,
    write_export,
)
from tigerrec.serving.hub import model_folder
from tigerrec.serving.recommender import check_run
from tigerrec.storage.contracts import read_arrays, read_json
from tigerrec.storage.files import locked_beside, remove_tree, unchanged
from tigerrec.storage.fingerprints import with_families
from tigerrec.storage.manifests import read_manifest
from tigerrec.storage.stages import open_stage, writing
from tigerrec.tokenizers.collisions import COLLISION_POLICIES
from tigerrec.tokenizers.ids import SEMANTIC_IDS, TOKENIZER, SemanticIds, load_semantic_ids
from tigerrec.tokenizers.stage import code_items

logger = logging.getLogger(__name__)

ID, ITEM, VECTOR, GENERATOR_VECTOR = "item_id", "item", "vector", "generator_vector"
FIELDS = (*ITEM_FIELDS, "text")
VECTOR_OF = {EMBEDDER: VECTOR, GENERATOR_EMBEDDER: GENERATOR_VECTOR}


class NewItemsError(TigerrecError):
    """New items that cannot be added."""


@dataclass(frozen=True)
class NewItems:
    """The rows of a user's table of new items: records with the columns of `items.parquet` but `item`, vectors float32
    (n, D) by column where the table has them, and the sha256 of the table."""

    records: list[dict[str, Any]]
    vectors: dict[str, np.ndarray]
    sha256: str

    @property
    def item_ids(self) -> list[str]:
        """The data set's own ids."""
        return [record[ID] for record in self.records]


def read_new_items(path: Path, options: ItemOptions | None = None) -> NewItems:
    """The items of a table: the column `item_id`, or `item`, and any of title, brand, categories, price, text, vector
    and generator_vector, where the generator reads another vector than the tokenizer; read as `options` say. Raises
    NewItemsError if the file is no such table, a row cannot be read, an item comes twice, or there is none."""
    if not path.is_file() or not is_table(path):
        raise NewItemsError(
            f"{path} is no table; give the new items as a CSV, TSV, JSON Lines or Parquet file with "
            "`--items-file <file>`."
        )
    with unchanged({"items": path}) as digests:
        records, vectors = _read(path, options or ItemOptions())
    if not records:
        raise NewItemsError(f"{path} holds no items; give a table with one row a new item.")
    repeated = sorted(item_id for item_id, count in Counter(record[ID] for record in records).items() if count > 1)
    if repeated:
        raise NewItemsError(f"{path} has more than one row for {few(repeated)}; keep one row an item.")
    matrices = {column: _matrix(values, column, path) for column, values in vectors.items()}
    return NewItems(records, matrices, digests["items"])


def _read(path: Path, options: ItemOptions) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """The records of a table, and its vectors by column."""
    columns, rows = read_rows(path)
    if ID not in columns and ITEM in columns:  # as tables of training name it
        columns, rows = [ID if name == ITEM else name for name in columns], map(_with_id, rows)
    if ID not in columns or not {*FIELDS, VECTOR} & set(columns):
        lacking = f"'{ID}'" if ID not in columns else f"'{FIELDS[0]}', nor {', '.join((*FIELDS[1:], VECTOR))}"
        raise NewItemsError(f"{path} has no column {lacking}, only {shown(columns)}; rename its columns, or add one.")
    ignored = [name for name in columns if name not in (ID, *FIELDS, *VECTOR_OF.values(), ITEM, *options.text_columns)]
    if ignored:
        logger.warning("ignored the columns %s of %s", shown(ignored), path)
    tally, records = Tally(), []
    vectors: dict[str, list[Any]] = {column: [] for column in VECTOR_OF.values() if column in columns}
    for number, row in enumerate(rows, start=1):
        try:
            if isinstance(row, Fault):
                raise Unreadable(row.reason)
            records.append(_record(row, tally, options))
        except Unreadable as reason:
            raise NewItemsError(
                f"Row {number} of {path} cannot be read ({reason}); repair it, or leave it out."
            ) from None
        for column, values in vectors.items():
            values.append(row.get(column))
    if tally.noted:
        noted = ", ".join(f"{reason}: {count}" for reason, count in tally.noted.items())
        logger.warning("left out of the texts: %s", noted)
    return records, vectors


def _with_id(row: dict[str, Any] | Fault) -> dict[str, Any] | Fault:
    return row if isinstance(row, Fault) else {ID: row.get(ITEM), **row}


def _record(row: dict[str, Any], tally: Tally, options: ItemOptions) -> dict[str, Any]:
    item_id, text = plain_id(row.get(ID), ID), clean(row.get("text"), "text", tally)
    lacking = [column for column in options.text_columns if column not in row]
    if lacking and not text:
        raise Unreadable(f"no {few(lacking)}, which the texts of the other items hold, and no whole text as 'text'")
    item = make_item(row, tally, options.categories_separator, options.decimal_comma)
    text = text or item_text(item_id, item._replace(texts=further_texts(row, options.text_columns, tally)))
    return {ID: item_id, **{field: getattr(item, field) for field in ITEM_FIELDS}, "text": text}


def give(column: str) -> str:
    """How a user gives vectors that cannot be made here."""
    return f"give the vectors of the new items as a column '{column}' of a Parquet or JSON Lines table"


def _matrix(vectors: list[Any], column: str, path: Path) -> np.ndarray:
    try:
        return np.stack([np.array(vector, dtype=np.float32).reshape(len(vector)) for vector in vectors])
    except (TypeError, ValueError):
        raise NewItemsError(
            f"The column '{column}' of {path} must hold lists of numbers of one length; {give(column)}."
        ) from None


def embed_as_before(folder: Path, new: NewItems, file: str = EMBEDDER) -> np.ndarray:
    """The vectors of new items, float32 (n, D): those of their table, or by the embedder and the weights that made
    those of an export, which a file of it names. Raises TigerrecError if the export does not say which it was, or it is
    not on this machine, or with other weights."""
    column = VECTOR_OF[file]
    if column in new.vectors:
        return checked(new.vectors[column], new.item_ids)
    if not (folder / file).exists():
        raise NewItemsError(f"{folder} does not say which embedder made its vectors; {give(column)}.")
    recorded = read_json(folder, file, {"config": dict, "sources": dict})
    if "${" in str(recorded["config"]):
        raise NewItemsError(f"{folder / file} holds no plain settings; {give(column)}.")
    embedder = config.build(with_families(recorded["config"]), str(folder / file), Embedder)
    if not isinstance(embedder, EmbedsTexts) or isinstance(embedder, Precomputed):
        raise NewItemsError(f"The vectors of {folder} were not made of texts here; {give(column)}.")
    with unchanged(embedder.sources()) as digests:
        if digests != recorded["sources"]:
            raise NewItemsError(
                f"The weights of {embedder!r} on this machine are not those that made the vectors of {folder}; get "
                f"them, or {give(column)}."
            )
        vectors = embedder.open()(new.item_ids, [record["text"] for record in new.records])
    return checked(vectors, new.item_ids)


def vectors_of_all(folder: Path, new: NewItems, vectors: np.ndarray) -> np.ndarray | None:
    """The vectors that the generator of an export reads of the items that joined it and of new ones, float32 (n, D);
    None where it reads none. `vectors` are those of the new items that the tokenizer reads."""
    size = read_json(folder, CONFIG, {"tigerrec": dict})["tigerrec"].get("vector_size")
    if not size:
        return None
    records = [read_json(folder, file) if (folder / file).exists() else None for file in (EMBEDDER, GENERATOR_EMBEDDER)]
    if GENERATOR_VECTOR in new.vectors or records[0] != records[1] or records[0] is None:
        vectors = embed_as_before(folder, new, GENERATOR_EMBEDDER)
    if vectors.shape[1] != size:
        raise NewItemsError(f"The generator of {folder} reads vectors of {size} numbers, not {vectors.shape[1]}.")
    if not (folder / NEW_VECTORS).exists():
        return vectors
    return np.concatenate([read_arrays(folder, NEW_VECTORS, {VECTORS: ("float32", (None, None))})[VECTORS], vectors])


def new_semantic_ids(folder: Path | str, vectors: np.ndarray) -> np.ndarray:
    """The Semantic IDs, int32 (n, T), of new items beside the known ones, by the frozen tokenizer of a tokenize stage
    or an export and its collision policy; the vectors, float32 (n, D), come from the same embedder. Raises
    TigerrecError if the folder or the vectors cannot be used, or there is no id left for an item."""
    policy = read_json(Path(folder), TOKENIZER, {"collisions": str})["collisions"]
    if policy not in COLLISION_POLICIES:
        raise NewItemsError(
            f"{folder}/tokenizer.json names the collision policy {policy!r}, and this version knows "
            f"{', '.join(COLLISION_POLICIES)}."
        )
    return COLLISION_POLICIES[policy].extend(load_semantic_ids(folder), code_items(folder, vectors))


def add_items(run: Path, items_file: Path, out: Path) -> Path:
    """Write an export that holds the items of a train stage or an export and those of a table (see `read_new_items`),
    without training; `out` is new, empty, or an older export, which is replaced. Raises TigerrecError if the run, the
    table or `out` cannot be used, an item is known already, or there is no Semantic ID left for one."""
    out = out.resolve()
    check_free(out)
    run = model_folder(run)
    check_run(run)
    new = read_new_items(items_file, item_options(run))
    with locked_beside(out):
        manifest = read_manifest(run)
        if manifest is not None and manifest.stage == EXPORT:
            return _write(run.resolve(), new, out, items_file)
        base = out.with_name(f".{out.name}.base")
        try:
            write_export(run, base)
            return _write(base, new, out, items_file)
        finally:
            remove_tree(base)


def _write(base: Path, new: NewItems, out: Path, items_file: Path) -> Path:
    """The export with the items of the export `base` and the new ones."""
    import pyarrow as pa

    manifest = open_stage(base, EXPORT)
    items = read_items(base)
    known = set(items["item_id"].to_pylist()) & set(new.item_ids)
    if known:
        raise NewItemsError(
            f"{len(known)} items of {items_file} are in the catalogue already ({few(sorted(known))}); leave them out."
        )
    vectors = embed_as_before(base, new)
    old, codes = load_semantic_ids(base), new_semantic_ids(base, vectors)
    semantic_ids = SemanticIds(np.concatenate([old.codes, codes]), old.layout)
    records = [{"item": number} | record for number, record in enumerate(new.records, start=len(items))]
    card = (base / CARD).read_text(encoding="utf-8")
    of_generator = vectors_of_all(base, new, vectors)
    with writing(out, EXPORT, {}, {"export": base}, {"items": new.sha256}) as files:
        if of_generator is not None:
            files.arrays(NEW_VECTORS, {VECTORS: of_generator})
        files.parquet(ITEMS, pa.concat_tables([items, pa.Table.from_pylist(records, schema=items.schema)]))
        files.parquet(SEMANTIC_IDS, semantic_ids.table())
        if POPULARITY in manifest.files:
            counts = read_popularity(base, len(items))
            files.arrays(POPULARITY, {"training_counts": np.append(counts, np.zeros(len(records), counts.dtype))})
        with files.create(CARD) as temporary:
            temporary.write_text(
                f"{card}\n## Added items\n\n{len(records):,} items were added after training, by the frozen tokenizer; "
                "the results above are of the items before.\n",
                encoding="utf-8",
            )
        for name in manifest.files.keys() - files.entries.keys():
            files.copy(base / name, manifest.files[name]["sha256"])
    logger.info("added %d items to the %d of the run and wrote %s", len(records), len(items), out)
    return out
