"""The evaluate stage: full ranking of every user by the generator and by popularity, and the metrics of both."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec import artifacts, distributed, shards
from tigerrec.baselines.popularity import Popularity
from tigerrec.config import check_device, check_precision, options
from tigerrec.histories import split, training_counts, training_part
from tigerrec.identity import not_identity
from tigerrec.metrics import LARGEST_CUTOFF, format_metrics, item_ranks, metrics, semantic_id_ranks
from tigerrec.ranges import at_least_one
from tigerrec.semantic_ids import SemanticIds, group_codes
from tigerrec.train import load_inputs

logger = logging.getLogger(__name__)

POPULARITY = "popularity"
SEEN = ("kept", "masked")
SHARD_USERS = 2048

RankFunction = Callable[[Sequence[np.ndarray], bool, str], tuple[np.ndarray, np.ndarray]]
"""(histories, mask_seen, progress label) → items int32 (n, k) and scores float32 (n, k)."""


@options
class EvaluateConfig:
    """How a generator is measured.

    Args:
        model: the generator's name in the result rows.
        split: `test` or `validation`.
        beam_size: prefixes kept at each level of the search.
        k: length of the recommendation lists.
        precision: `auto`, `fp32` or `bf16`.
        device: `auto`, `cpu` or `cuda`.
        batch_tokens: encoder tokens searched at once.
    """

    model: str = "generator"
    split: str = "test"
    beam_size: int = 20
    k: int = 20
    precision: str = "fp32"
    device: str = not_identity(default="auto")
    batch_tokens: int = not_identity(default=8192)

    def __post_init__(self) -> None:
        if not self.model or self.model == POPULARITY:
            raise ValueError(f"model must be a name other than '{POPULARITY}', got {self.model!r}")
        if self.split not in ("validation", "test"):
            raise ValueError(f"split must be 'validation' or 'test', got {self.split!r}")
        if self.k < LARGEST_CUTOFF:
            raise ValueError(f"k must be at least the largest cut-off, {LARGEST_CUTOFF}, got {self.k}")
        if self.beam_size < self.k:
            raise ValueError(f"beam_size must be at least k={self.k}, got {self.beam_size}")
        check_device(self.device)
        check_precision(self.precision)
        at_least_one(self, "batch_tokens")


@dataclass(frozen=True)
class Ranking:
    """One model's lists for all users: items int32 (n, k), -1 where a list is shorter; scores float32 (n, k)."""

    model: str
    seen: str
    items: np.ndarray
    scores: np.ndarray


def check_lists(ranking: Ranking, histories: Sequence[np.ndarray], n_items: int) -> None:
    """Hold lists to what every list promises: existing items, none twice, no gap, and no seen item where these are
    masked.

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
    for fault, found in faults.items():
        if found:
            raise RuntimeError(f"a list of {ranking.model}, seen {ranking.seen}, holds {fault}")


def rank_in_shards(
    rank: RankFunction, histories: Sequence[np.ndarray], seen: str, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """All users' lists, ranked in shards of fixed size; shards that an interrupted run left in the folder are not
    ranked again."""
    starts = range(0, len(histories), SHARD_USERS)

    def ranked(number: int) -> dict[str, np.ndarray]:
        some = histories[starts[number] : starts[number] + SHARD_USERS]
        items, scores = rank(some, seen == "masked", f"search, seen {seen}, {number + 1}/{len(starts)}")
        return {"items": items, "scores": scores}

    pieces, computed = shards.computed(folder, [f"{seen}-{number:05d}" for number in range(len(starts))], ranked)
    if computed < len(pieces):
        logger.info("took %d of %d shards, seen %s, from a stopped run", len(pieces) - computed, len(pieces), seen)
    return np.concatenate([piece["items"] for piece in pieces]), np.concatenate([piece["scores"] for piece in pieces])


def rank_all(
    model: str,
    rank: RankFunction,
    training: Sequence[np.ndarray],
    n_items: int,
    histories: Sequence[np.ndarray],
    k: int,
    folder: Path,
) -> list[Ranking]:
    """The checked lists of the generator and of popularity, seen items kept and masked."""
    rankings = []
    for seen in SEEN:
        started = time.perf_counter()
        rankings.append(Ranking(model, seen, *rank_in_shards(rank, histories, seen, folder)))
        logger.info("ranked %s users, seen %s, in %.1f s", f"{len(histories):,}", seen, time.perf_counter() - started)
    popularity = Popularity().fit(training, n_items)
    rankings += [
        Ranking(POPULARITY, seen, *popularity.rank(histories, k=k, mask_seen=seen == "masked")) for seen in SEEN
    ]
    for ranking in rankings:
        check_lists(ranking, histories, n_items)
    distinct = {(ranking.model, ranking.seen): len(np.unique(ranking.items[:, :10])) for ranking in rankings}
    logger.info(
        "%s recommends %s different items in all top 10 lists, seen masked", model, f"{distinct[model, 'masked']:,}"
    )
    if distinct[model, "masked"] <= distinct[POPULARITY, "masked"] < n_items:
        logger.warning(
            "%s recommends no more different items than popularity: it may ignore the histories; train it longer", model
        )
    return rankings


def target_ranks(
    rankings: Sequence[Ranking], targets: np.ndarray, groups: np.ndarray
) -> dict[tuple[str, str, str], np.ndarray]:
    """The rank of each user's target by (model, hit, seen), int16 (n,); 0 = not in the list."""
    ranks = {}
    for hit in ("item", "sid"):
        for ranking in rankings:
            found = (
                item_ranks(ranking.items, targets)
                if hit == "item"
                else semantic_id_ranks(ranking.items, targets, groups)
            )
            ranks[ranking.model, hit, ranking.seen] = found
    return ranks


def _labels(names: Sequence[str], repeats: Sequence[int]) -> Any:
    """A dictionary-encoded string column: each name so many times."""
    import pyarrow as pa

    values = list(dict.fromkeys(names))
    codes = np.repeat(np.array([values.index(name) for name in names], np.int8), repeats)
    return pa.DictionaryArray.from_arrays(codes, pa.array(values, pa.string()))


def recommendations_table(rankings: Sequence[Ranking]) -> Any:
    """`recommendations.parquet`: one row a recommended item, `rank` from 1."""
    import pyarrow as pa

    there = [ranking.items >= 0 for ranking in rankings]
    lengths = [int(mask.sum()) for mask in there]
    places = [np.nonzero(mask) for mask in there]
    return pa.table(
        {
            "model": _labels([ranking.model for ranking in rankings], lengths),
            "seen": _labels([ranking.seen for ranking in rankings], lengths),
            "user": np.concatenate([rows for rows, _ in places]).astype(np.int32),
            "rank": np.concatenate([columns + 1 for _, columns in places]).astype(np.int16),
            "item": np.concatenate([ranking.items[mask] for ranking, mask in zip(rankings, there, strict=True)]),
            "score": np.concatenate([ranking.scores[mask] for ranking, mask in zip(rankings, there, strict=True)]),
        }
    )


def ranks_table(ranks: dict[tuple[str, str, str], np.ndarray], targets: np.ndarray) -> Any:
    """`ranks.parquet`: one row a user for each model, kind of hit and treatment of seen items."""
    import pyarrow as pa

    repeats = [len(targets)] * len(ranks)
    labels = {
        name: _labels([key[place] for key in ranks], repeats) for place, name in enumerate(("model", "hit", "seen"))
    }
    users = np.tile(np.arange(len(targets), dtype=np.int32), len(ranks))
    return pa.table(
        {
            **labels,
            "user": users,
            "target": np.tile(targets.astype(np.int32), len(ranks)),
            "rank": np.concatenate(list(ranks.values())),
        }
    )


def metric_rows(ranks: dict[tuple[str, str, str], np.ndarray], split_name: str) -> list[dict[str, Any]]:
    """`metrics.json`: one flat row for each model, kind of hit and treatment of seen items."""
    rows = []
    for (model, hit, seen), found in ranks.items():
        rows.append(
            {"model": model, "split": split_name, "hit": hit, "seen": seen, "users": len(found), **metrics(found)}
        )
    return rows


def warn_of_repeats(histories: Sequence[np.ndarray], targets: np.ndarray) -> None:
    """Warn of users whose target is in their history: where seen items are masked it cannot be hit."""
    repeats = sum(int(target in history) for history, target in zip(histories, targets, strict=True))
    if repeats:
        logger.warning(
            "%s of %s targets are in their user's history: rows with seen=masked cannot hit them",
            f"{repeats:,}",
            f"{len(targets):,}",
        )


def _generator(
    trained: Path, semantic_ids: SemanticIds, popularity: np.ndarray, config: EvaluateConfig
) -> tuple[RankFunction, dict[str, Any]]:
    """The trained generator as a function that ranks, and the facts of the machine it runs on."""
    import torch
    import transformers

    from tigerrec.beam_search import Searcher
    from tigerrec.models.loading import load_generator
    from tigerrec.precision import resolve_device, resolve_precision

    device = resolve_device(config.device)
    searcher = Searcher.of(load_generator(trained, semantic_ids).to(device), config.precision, popularity)

    def rank(histories: Sequence[np.ndarray], mask_seen: bool, progress: str) -> tuple[np.ndarray, np.ndarray]:
        return searcher.rank(
            histories, k=config.k, beam_size=config.beam_size, mask_seen=mask_seen, batch_tokens=config.batch_tokens, progress=progress
        )  # fmt: skip

    facts = {
        "device": device.type, "precision": resolve_precision(device, config.precision), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "transformers": transformers.__version__,
    }  # fmt: skip
    return rank, facts


def evaluate(prepared: Path, tokenized: Path, trained: Path, config: EvaluateConfig, out: Path) -> Path:
    """Rank every user and write `metrics.json`, `recommendations.parquet` and `ranks.parquet`.

    Raises:
        ArtifactError: an input is missing, damaged, or was not made from the others.
    """
    inputs = {"prepare": prepared, "tokenize": tokenized, "train": trained}
    manifest = artifacts.open_stage(trained, "train")
    histories, semantic_ids = load_inputs(prepared, tokenized)
    for name in ("prepare", "tokenize"):
        artifacts.check_made_from(trained, manifest, name, inputs[name])
    parts = [split(histories[user], config.split) for user in range(len(histories))]
    known, targets = [history for history, _ in parts], np.array([target for _, target in parts])
    training = [training_part(histories[user]) for user in range(len(histories))]
    logger.info(
        "read %s users, %s items and the generator in %s", f"{len(histories):,}", f"{histories.n_items:,}", trained
    )
    warn_of_repeats(known, targets)
    started = time.perf_counter()
    rank, facts = _generator(trained, semantic_ids, training_counts(histories), config)
    contents = {
        name: [record["fingerprint"], record["content"]] for name, record in artifacts.input_records(inputs).items()
    }
    folder = distributed.agreed(
        lambda: shards.prepare_folder(out / "shards", [artifacts.describe(config), SHARD_USERS, contents, facts])
    )
    rankings = rank_all(config.model, rank, training, histories.n_items, known, config.k, folder)
    groups, _ = group_codes(semantic_ids.codes[:, : len(semantic_ids.layout.code_sizes)])
    ranks = target_ranks(rankings, targets, groups)
    rows = metric_rows(ranks, config.split)

    def write() -> None:
        with artifacts.writing(out, "evaluate", config, inputs=inputs, started=started) as files:
            files.provenance |= facts | {"processes": distributed.world_size()}
            files.parquet("recommendations.parquet", recommendations_table(rankings))
            files.parquet("ranks.parquet", ranks_table(ranks, targets))
            files.json("metrics.json", rows)
        artifacts.remove_tree(out / "shards")

    distributed.agreed(write)
    logger.info("wrote metrics of %s users to %s\n%s", f"{len(targets):,}", out, format_metrics(rows))
    return out
