"""The evaluate stage: full ranking of every user by the generator and by popularity, and the metrics of both."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from tigerrec.config import AtLeastOne, Device, NotNegative, Precision, options
from tigerrec.data.histories import Histories, evaluated_users, has_holdout, training_counts
from tigerrec.evaluation.metrics import LARGEST_CUTOFF, format_metrics, item_ranks, metrics, semantic_id_ranks
from tigerrec.runtime import distributed
from tigerrec.search.options import CODES, WEIGHED, ColdPlaces, Scores, Scoring, check_scoring, item_weight
from tigerrec.search.ranking import Rank, by_popularity
from tigerrec.storage import shards
from tigerrec.storage.files import remove_tree
from tigerrec.storage.fingerprints import added, describe, not_identity
from tigerrec.storage.manifests import StaleError
from tigerrec.storage.stages import StageFiles, check_made_from, input_records, open_stage, writing
from tigerrec.tokenizers.ids import group_codes, load_inputs

if TYPE_CHECKING:
    from tigerrec.search.searcher import Searcher

logger = logging.getLogger(__name__)

POPULARITY = "popularity"
SEEN = ("kept", "masked")
SHARD_USERS = 2048
USERS_A_ROW_GROUP = 50_000


@options
class EvaluateConfig:
    """How a generator is measured.

    Args:
        model: the generator's name in the result rows.
        beam_size: prefixes kept at each level of the search.
        k: length of the recommendation lists.
        scores, item_weight, cold_places: as in `Scoring`; a weight of None is the one that training chose on
            validation.
        users: size of the seeded sample of users that are ranked, the same for all models; None: all.
        batch_tokens: encoder tokens searched at once.
    """

    model: str = Field(default="generator", min_length=1)
    split: Literal["validation", "test"] = "test"
    beam_size: int = 20
    k: int = Field(default=20, ge=LARGEST_CUTOFF)
    precision: Precision = "fp32"
    scores: Scores = added(CODES)
    item_weight: NotNegative | None = added(None)
    cold_places: ColdPlaces = added(0)
    users: AtLeastOne | None = added(None)
    device: Device = not_identity(default="auto")
    batch_tokens: AtLeastOne = not_identity(default=8192)

    def __post_init__(self) -> None:
        if self.model == POPULARITY:
            raise ValueError(f"model must be another name than '{POPULARITY}', whose rows stand beside the generator's")
        if self.beam_size < self.k:
            raise ValueError(f"beam_size must be at least k={self.k}, got {self.beam_size}")
        if self.item_weight is not None and self.scores not in WEIGHED:
            raise ValueError(f"item_weight has no effect on scores={self.scores}; leave it out")

    def scoring(self, trained: Path) -> Scoring:
        """By which scores the generator of a train stage ranks items."""
        weight = item_weight(trained, self.scores) if self.item_weight is None else self.item_weight
        return Scoring(self.scores, weight, self.cold_places)


@dataclass(frozen=True)
class Ranking:
    """One model's lists for all users: items int32 (n, k), -1 where a list is shorter; scores float32 (n, k)."""

    model: str
    seen: str
    items: np.ndarray
    scores: np.ndarray


def known_and_targets(
    histories: Histories, part: str, users: Iterable[int] | None = None
) -> tuple[list[np.ndarray], np.ndarray]:
    """What is known of each user in a part of the split, and the target, int64 (n,); of all that have one by
    default."""
    pairs = [histories.split(user, part) for user in (histories.users_with(part) if users is None else users)]
    return [known for known, _ in pairs], np.array([target for _, target in pairs], np.int64)


def check_lists(ranking: Ranking, histories: Sequence[np.ndarray], n_items: int) -> None:
    """Hold lists to what every list promises: existing items, none twice, no gap, no seen item where these are masked.

    Raises:
        RuntimeError: a list breaks the promise, which is a fault of the program.
    """
    items = ranking.items
    ordered = np.sort(items, axis=1)
    faults = {
        "an item that does not exist": (items < -1).any() or (items >= n_items).any(),
        "a gap": ((items[:, 1:] >= 0) & (items[:, :-1] < 0)).any(),
        "an item twice": ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(),
        "a score that is no number": not np.isfinite(ranking.scores[items >= 0]).all(),
    }
    if ranking.seen == "masked":
        users = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
        seen = users * n_items + np.concatenate(histories)
        listed = np.where(items >= 0, np.arange(len(items))[:, None] * n_items + items, -1)
        faults["a seen item"] = np.isin(listed, seen).any()
    for fault, occurs in faults.items():
        if occurs:
            raise RuntimeError(f"a list of {ranking.model}, seen {ranking.seen}, holds {fault}")


def in_shards(searcher: Searcher, config: EvaluateConfig, folder: Path, numbers: np.ndarray) -> Rank:
    """The search in shards of fixed size for users of some numbers; those that an interrupted run left in the folder
    are not ranked again."""

    def rank(histories: Sequence[np.ndarray], *, k: int, mask_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        seen, starts = SEEN[mask_seen], range(0, len(histories), SHARD_USERS)

        def ranked(number: int) -> dict[str, np.ndarray]:
            shard = slice(starts[number], starts[number] + SHARD_USERS)
            items, scores = searcher.rank(
                histories[shard], k=k, beam_size=config.beam_size, mask_seen=mask_seen,
                batch_tokens=config.batch_tokens, progress=f"search, seen {seen}, {number + 1}/{len(starts)}",
                users=numbers[shard],
            )  # fmt: skip
            return {"items": items, "scores": scores}

        pieces, computed = shards.computed(folder, [f"{seen}-{number:05d}" for number in range(len(starts))], ranked)
        if computed < len(starts):
            logger.info("took %d of %d shards, seen %s, from a stopped run", len(starts) - computed, len(starts), seen)
        items, scores = zip(*((piece["items"], piece["scores"]) for piece in pieces), strict=True)
        return np.concatenate(items), np.concatenate(scores)

    return rank


def rank_all(model: str, rank: Rank, histories: Sequence[np.ndarray], k: int, n_items: int) -> list[Ranking]:
    """The checked lists of a recommender for all users, seen items kept and masked."""
    rankings = []
    for seen in SEEN:
        started = time.perf_counter()
        rankings.append(Ranking(model, seen, *rank(histories, k=k, mask_seen=seen == "masked")))
        check_lists(rankings[-1], histories, n_items)
        seconds = time.perf_counter() - started
        logger.info("%s ranked for %s users, seen %s, in %.1f s", model, f"{len(histories):,}", seen, seconds)
    return rankings


def check_diversity(generator: Ranking, popularity: Ranking, n_items: int) -> None:
    """Warn of a generator that recommends the same to everyone."""
    n_distinct, n_popular = (len(np.unique(ranking.items[:, :10])) for ranking in (generator, popularity))
    logger.info("%s recommends %s different items in all top 10 lists, seen masked", generator.model, f"{n_distinct:,}")
    if n_distinct <= n_popular < n_items:
        warning = "%s recommends no more different items than popularity: it may ignore the histories; train it longer"
        logger.warning(warning, generator.model)


def _labels(names: Sequence[str], numbers: np.ndarray) -> Any:
    """A dictionary-encoded string column: the names with the numbers given."""
    import pyarrow as pa

    values = list(dict.fromkeys(names))
    codes = np.array([values.index(name) for name in names], np.int8)
    return pa.DictionaryArray.from_arrays(codes[numbers], pa.array(values, pa.string()))


def _recommendations(rankings: Sequence[Ranking], users: np.ndarray) -> Iterator[Any]:
    """The rows of `recommendations.parquet`, some users of a model at a time."""
    import pyarrow as pa

    names = {name: [getattr(ranking, name) for ranking in rankings] for name in ("model", "seen")}
    for number, ranking in enumerate(rankings):
        for start in range(0, len(users), USERS_A_ROW_GROUP):
            block = slice(start, start + USERS_A_ROW_GROUP)
            items, scores = ranking.items[block], ranking.scores[block]
            rows, places = np.nonzero(items >= 0)
            columns = {name: _labels(values, np.full(len(rows), number)) for name, values in names.items()}
            columns |= {"user": users[block][rows].astype(np.int32), "rank": (places + 1).astype(np.int16)}
            yield pa.table(columns | {"item": items[rows, places], "score": scores[rows, places]})


def write_recommendations(files: StageFiles, rankings: Sequence[Ranking], users: np.ndarray) -> None:
    """Write `recommendations.parquet`: one row a recommended item, `rank` from 1."""
    import pyarrow.parquet as pq

    tables = _recommendations(rankings, users)
    first = next(tables)
    with files.create("recommendations.parquet") as path, pq.ParquetWriter(path, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)


def write_rankings(
    files: StageFiles,
    rankings: Sequence[Ranking],
    users: np.ndarray,
    targets: np.ndarray,
    part: str,
    groups: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Write `recommendations.parquet`, `ranks.parquet` (one row a user for each model, kind of hit and treatment of
    seen items) and `metrics.json` (one flat row for each of these), whose rows it returns.

    Args:
        users, targets: the number of each ranked user, and the target, int64 (n,).
        part: of the split.
        groups: a number for each distinct row of codes, (n_items,), where hits on codes count too.
    """
    import pyarrow as pa

    cases = [(ranking.model, "item", ranking.seen, item_ranks(ranking.items, targets)) for ranking in rankings]
    if groups is not None:
        cases += [(each.model, "sid", each.seen, semantic_id_ranks(each.items, targets, groups)) for each in rankings]
    numbers = np.repeat(np.arange(len(cases)), len(targets))
    models, hits, seen, ranks = zip(*cases, strict=True)
    columns = {
        "model": _labels(models, numbers),
        "hit": _labels(hits, numbers),
        "seen": _labels(seen, numbers),
        "user": np.tile(users.astype(np.int32), len(cases)),
        "target": np.tile(targets.astype(np.int32), len(cases)),
        "rank": np.concatenate(ranks),
    }
    rows = [
        {"model": model, "split": part, "hit": hit, "seen": seen, "users": len(ranks), **metrics(ranks)}
        for model, hit, seen, ranks in cases
    ]
    write_recommendations(files, rankings, users)
    files.parquet("ranks.parquet", pa.table(columns))
    files.json("metrics.json", rows)
    return rows


def warn_of_repeats(histories: Sequence[np.ndarray], targets: np.ndarray) -> None:
    """Warn of users whose target is in their history: where seen items are masked it cannot be hit."""
    repeats = sum(int(target in history) for history, target in zip(histories, targets, strict=True))
    if repeats:
        share = f"{repeats:,} of {len(targets):,}"
        logger.warning("%s targets are in their user's history: rows with seen=masked cannot hit them", share)


def evaluate(prepared: Path, tokenized: Path, trained: Path, config: EvaluateConfig, out: Path) -> Path:
    """Rank every user and write `metrics.json`, `recommendations.parquet` and `ranks.parquet`; on a CPU the same bytes
    each time, also after an interruption.

    Raises:
        ArtifactError: an input is missing, damaged, or was not made from the others.
    """
    from tigerrec.models.loading import load_generator
    from tigerrec.runtime.devices import environment, resolve_device
    from tigerrec.search.searcher import Searcher

    inputs = {"prepare": prepared, "tokenize": tokenized, "train": trained}
    manifest = open_stage(trained, "train")
    if not has_holdout(manifest.config):
        raise StaleError(
            f"{trained} was trained on everything, so that nothing is left to evaluate on; evaluate a run with "
            "`train.holdout=true`."
        )
    histories, semantic_ids = load_inputs(prepared, tokenized)
    for name in ("prepare", "tokenize"):
        check_made_from(trained, manifest, name, inputs[name])
    users = evaluated_users(histories, config.split, config.users)
    known, targets = known_and_targets(histories, config.split, users)
    n_items = histories.n_items
    logger.info("read %s users, %s items and the generator in %s", f"{len(histories):,}", f"{n_items:,}", trained)
    warn_of_repeats(known, targets)
    started = time.perf_counter()
    device = resolve_device(config.device)
    model = load_generator(trained, semantic_ids).to(device)
    check_scoring(config.scores, config.cold_places, scores_items=model.scores_items, reads_vectors=model.reads_vectors)
    scoring = config.scoring(trained)
    popularity = training_counts(histories)
    searcher = Searcher.of(model, config.precision, popularity, scoring)
    runs_under = environment(device, config.precision)
    records = input_records(inputs)
    contents = {name: [record["fingerprint"], record["content"]] for name, record in records.items()}
    identity = [describe(config), SHARD_USERS, contents, runs_under]
    folder = distributed.agreed(lambda: shards.prepare_folder(out / "shards", identity))
    rankings = rank_all(config.model, in_shards(searcher, config, folder, users), known, config.k, n_items)
    rankings += rank_all(POPULARITY, by_popularity(popularity), known, config.k, n_items)
    check_diversity(rankings[1], rankings[3], n_items)
    groups, _ = group_codes(semantic_ids.codes[:, : len(semantic_ids.layout.code_sizes)])

    def write() -> list[dict[str, Any]]:
        with writing(out, "evaluate", config, inputs=inputs, started=started) as files:
            files.provenance |= runs_under | {"processes": distributed.world_size(), "item_weight": scoring.item_weight}
            rows = write_rankings(files, rankings, users, targets, config.split, groups)
        remove_tree(out / "shards")
        return rows

    rows = distributed.agreed(write)
    logger.info("wrote metrics of %s users to %s\n%s", f"{len(targets):,}", out, format_metrics(rows))
    return out
