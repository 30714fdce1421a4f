"""Recommendations for many users at once, from a file or a run into a file, in shards that a stopped run leaves."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerrec.config import build, expanded
from tigerrec.data.databases import DATABASES
from tigerrec.data.given_histories import read_histories
from tigerrec.data.histories import load_histories
from tigerrec.data.tables import TablesDataset
from tigerrec.embed.base import few
from tigerrec.search.options import Scores
from tigerrec.serving.catalogue import RecommendError
from tigerrec.serving.hub import model_folder
from tigerrec.serving.recommender import Lists, Recommender, whole_number
from tigerrec.serving.rules import ALL, Rules, read_ids
from tigerrec.storage import shards
from tigerrec.storage.contracts import read_table
from tigerrec.storage.files import atomic, locked_beside, remove_tree, sha256_text
from tigerrec.storage.fingerprints import canonical_json
from tigerrec.storage.folders import upstream_folders
from tigerrec.storage.manifests import read_manifest
from tigerrec.storage.stages import open_stage

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

SHARD_USERS = 4096
ENDINGS = (".parquet", ".csv", ".jsonl")
ALL_USERS = "all"
USERS = "users.parquet"
MOST_UNREADABLE = 0.5  # of the lines of a table: more, and it is written otherwise than is said


@dataclass(frozen=True)
class Audience:
    """Users by their own ids, the item indices that each took, oldest first, the name of the users' column, and their
    numbers in the model's own data, int64 (n,), if it is of there."""

    user_ids: list[str]
    known: list[np.ndarray]
    column: str = "user"
    numbers: np.ndarray | None = None


def recommend_all(
    model: Path,
    out: Path,
    *,
    users: str | Path | None = None,
    histories: Path | None = None,
    options: dict[str, Any] | None = None,
    k: int = 10,
    mask_seen: bool = True,
    rules: Rules = ALL,
    device: str = "auto",
    scores: Scores | None = None,
) -> Path:
    """Write the k best items of many users to `out`, a row each: `user_id`, `rank` from 1, `item_id`, `score`,
    `fallback` and the fingerprint of the `model`. What a stopped run ranked is not ranked again.

    Args:
        model: a train stage or an export, also as `owner/name` on the Hugging Face Hub.
        out: a file that ends in .parquet, .csv or .jsonl.
        users: a file of user ids, or `all`; None: all.
        histories: a table of interactions; None: those that the model's data set has of its users.
        scores: as in `Recommender.from_pretrained`.
        options: of `TablesDataset`, how the table is written; None: as the model's own tables, or by default.

    Raises:
        TigerrecError: the model, a file or a rule cannot be used.
    """
    if out.suffix.lower() not in ENDINGS:
        raise RecommendError(f"{out} must end in {', '.join(ENDINGS)}; give such a file as `--out <file>`.")
    k, out = whole_number(k), expanded(out)
    if out.is_dir():
        raise RecommendError(f"{out} is a folder; give another `--out <file>`.")
    model = model_folder(model)
    recommender = Recommender.from_pretrained(model, device, scores)
    work = out.with_name(f".{out.name}.parts")
    with locked_beside(out):
        if histories is None:
            audience = _of_run(model, recommender)
        else:
            audience = _of_table(model, expanded(histories), options or {}, recommender, work)
        audience = _chosen(audience, users)
        logger.info("read %s users", f"{len(audience.user_ids):,}")
        found = _ranked(recommender, audience, k, mask_seen, rules, work)
        _write(out, recommender, audience.user_ids, found)
        remove_tree(work)
    n_fallbacks = int(found.fallback.sum())
    if n_fallbacks:
        shown = few([repr(audience.user_ids[row]) for row in np.flatnonzero(found.fallback)[:4]])
        logger.warning(
            "%s of %s users have no item of the catalogue and get what was bought most, as %s",
            f"{n_fallbacks:,}", f"{len(found.fallback):,}", shown,
        )  # fmt: skip
    n_rows, empty = int((found.items >= 0).sum()), np.flatnonzero((found.items < 0).all(axis=1))
    n_users = len(found.items)
    if len(empty):
        shown = few([repr(audience.user_ids[row]) for row in empty[:4]])
        logger.warning(
            "%s of %s users get nothing, since the rules and what they took leave no item: %s",
            f"{len(empty):,}", f"{n_users:,}", shown,
        )  # fmt: skip
    logger.info("wrote %s recommendations for %s users to %s", f"{n_rows:,}", f"{n_users - len(empty):,}", out)
    return out


def _of_run(model: Path, recommender: Recommender) -> Audience:
    """The users of a run's own data set."""
    if open_stage(model, "train", "export").stage != "train":
        raise RecommendError(
            f"{model} is an export, which holds no users; give their interactions as `--histories <file>`."
        )
    prepared = upstream_folders(model)["prepare"]
    histories = load_histories(prepared)
    names = read_table(prepared, USERS, {"user": "int32", "user_id": "string"})["user_id"].to_pylist()
    column = str(open_stage(prepared, "prepare").config.get("user_column", "user"))
    return Audience(names, [histories[user] for user in range(len(histories))], column, np.arange(len(histories)))


def _of_table(model: Path, histories: Path, options: dict[str, Any], recommender: Recommender, work: Path) -> Audience:
    """The users of a table of interactions, written as the model's own tables are, but for some options."""
    given = {
        **_own_options(model, histories),
        "max_dropped": MOST_UNREADABLE,
        **options,
        "interactions": str(histories),
    }
    dataset = build(given, "dataset", TablesDataset)
    pairs = list(read_histories(dataset, work))
    known = recommender.catalogue.known([items for _, items in pairs])
    return Audience([user for user, _ in pairs], known, dataset.user_column)


def _own_options(model: Path, histories: Path) -> dict[str, Any]:
    """How the tables of a train stage's data set were written, as far as it holds for a table of histories; nothing of
    other data sets or of an export."""
    manifest = read_manifest(model)
    if manifest is None or manifest.stage != "train":
        return {}
    config = open_stage(upstream_folders(model)["prepare"], "prepare").config
    if config.get("family") != TablesDataset.family:
        return {}
    of_training = ("family", "min_user", "min_item", "max_user", "validation_from", "test_from", "items_table")
    left_out = of_training if histories.suffix.lower() in DATABASES else (*of_training, "interactions_table")
    return {name: value for name, value in config.items() if not name.startswith(left_out)}


def _chosen(audience: Audience, users: str | Path | None) -> Audience:
    """Some of the users, in the order of their ids in a file; ids of none have an empty history, and are counted in a
    warning."""
    if users is None or str(users) == ALL_USERS:
        return audience
    wanted = sorted(read_ids(expanded(users), ("user_id", "user", audience.column)))
    places = {user: place for place, user in enumerate(audience.user_ids)}
    unknown = [repr(user) for user in wanted if user not in places]
    if unknown:
        logger.warning(
            "%s of %s users of %s are not in the data: %s",
            f"{len(unknown):,}", f"{len(wanted):,}", users, few(unknown[:4]),
        )  # fmt: skip
    nothing = np.empty(0, np.int32)
    known = [audience.known[places[user]] if user in places else nothing for user in wanted]
    if audience.numbers is None:
        return Audience(wanted, known)
    return Audience(wanted, known, audience.column, audience.numbers[[places.get(user, 0) for user in wanted]])


def _ranked(recommender: Recommender, audience: Audience, k: int, mask_seen: bool, rules: Rules, work: Path) -> Lists:
    """The lists of all users, shard by shard."""
    from tigerrec.runtime.devices import environment

    ruled = [sorted(rules.allow) if rules.allow is not None else None, sorted(rules.deny), rules.category]
    content = sha256_text(canonical_json([audience.user_ids, [known.tolist() for known in audience.known]]))
    runs_under = environment(recommender.searcher.model.device, recommender.searcher.precision)
    identity = [
        recommender.fingerprint,
        recommender.searcher.scoring.scores,
        content,
        k,
        mask_seen,
        ruled,
        SHARD_USERS,
        runs_under,
    ]
    folder = shards.prepare_folder(work, identity)
    starts = range(0, len(audience.known), SHARD_USERS)

    def ranked(number: int) -> dict[str, np.ndarray]:
        shard = slice(starts[number], starts[number] + SHARD_USERS)
        told, numbers = f"users, part {number + 1} of {len(starts)}", audience.numbers
        of_shard = None if numbers is None else numbers[shard]
        found = recommender.lists(audience.known[shard], k, mask_seen, rules, told, of_shard)
        return {"items": found.items, "scores": found.scores, "fallback": found.fallback}

    pieces, computed = shards.computed(folder, [f"{number:06d}" for number in range(len(starts))], ranked)
    if computed < len(starts):
        logger.info("took %d of %d shards from a stopped run", len(starts) - computed, len(starts))
    columns = zip(*((piece["items"], piece["scores"], piece["fallback"]) for piece in pieces), strict=True)
    return Lists(*map(np.concatenate, columns))


def _tables(recommender: Recommender, user_ids: Sequence[str], found: Lists) -> Iterator[pa.Table]:
    """The rows of the file, some users at a time."""
    import pyarrow as pa

    item_ids = pa.array(recommender.item_ids, pa.string())
    names = pa.array(user_ids, pa.string())
    for start in range(0, len(user_ids), SHARD_USERS):
        items = found.items[start : start + SHARD_USERS]
        rows, places = np.nonzero(items >= 0)
        yield pa.table(
            {
                "user_id": names.take(pa.array(start + rows)),
                "rank": pa.array(places + 1, pa.int32()),
                "item_id": item_ids.take(pa.array(items[rows, places])),
                "score": found.scores[start + rows, places],
                "fallback": found.fallback[start + rows],
                "model": pa.array([recommender.fingerprint] * len(rows), pa.string()),
            }
        )


def _write(out: Path, recommender: Recommender, user_ids: Sequence[str], found: Lists) -> None:
    """Write the file, whole or not at all."""
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    tables = _tables(recommender, user_ids, found)
    first = next(tables)
    with atomic(out) as temporary:
        if out.suffix.lower() == ".jsonl":
            with temporary.open("w", encoding="utf-8") as file:
                for table in (first, *tables):
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
            return
        kind: Any = pq.ParquetWriter if out.suffix.lower() == ".parquet" else pc.CSVWriter
        with pa.OSFile(str(temporary), "wb") as sink, kind(sink, first.schema) as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)
