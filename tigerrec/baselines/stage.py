"""The stage baseline: a baseline is fitted, with the settings that tuning chose where it was tuned, ranks all users and
is measured like a generator."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tigerrec.baselines.base import Baseline, Fitted
from tigerrec.data.histories import Histories, evaluated_users, load_histories, training_histories, validation_sample
from tigerrec.evaluation.metrics import VALIDATION_K, format_metrics, item_ranks, validation_metrics
from tigerrec.evaluation.stage import known_and_targets, rank_all, warn_of_repeats, write_rankings
from tigerrec.search.ranking import Rank
from tigerrec.storage.contracts import contract, read_json
from tigerrec.storage.fingerprints import added, describe
from tigerrec.storage.stages import check_made_from, open_stage, writing

logger = logging.getLogger(__name__)
EPOCH_USERS = 5000
CHOSEN = "chosen.json"


@dataclass(frozen=True)
class BaselineConfig:
    """A baseline to measure, `model` in the result rows; it has the first value of each setting that tuning chooses."""

    baseline: Baseline
    model: str
    split: str = "test"
    k: int = 20
    seed: int = 0
    users: int | None = added(None)


def validate(rank: Rank, histories: Histories, users: np.ndarray) -> dict[str, float]:
    """HR@10 and NDCG@10 of validation targets: item level, seen items masked, means over the users given."""
    known, targets = known_and_targets(histories, "validation", users)
    items, _ = rank(known, k=VALIDATION_K, mask_seen=True)
    return validation_metrics(item_ranks(items, targets))


def fit(histories: Histories, baseline: Baseline, seed: int) -> Fitted:
    """A baseline fitted to all training parts, validated on a fixed, seeded sample of users on the way."""
    users = validation_sample(histories, EPOCH_USERS, seed)

    def ndcg(rank: Rank) -> float:
        return validate(rank, histories, users)["validation_ndcg@10"]

    return baseline.fit(training_histories(histories), histories.n_items, seed=seed, validate=ndcg)


def measure(prepared: Path, tuned: Path | None, config: BaselineConfig, out: Path) -> Path:
    """Fit a baseline, with the settings that tuning chose where it was tuned, and rank all users.

    Returns:
        `out`, with `metrics.json`, `recommendations.parquet` and `ranks.parquet` as the evaluate stage writes them.

    Raises:
        ArtifactError: an input is missing, damaged, or was not made from the others.
        TigerrecError: fitting failed.
    """
    started = time.perf_counter()
    histories = load_histories(prepared)
    inputs, baseline = {"prepare": prepared}, config.baseline
    if tuned is not None:
        check_made_from(tuned, open_stage(tuned, "tune"), "prepare", prepared)
        inputs, settings = inputs | {"tune": tuned}, read_json(tuned, CHOSEN, {})
        with contract(tuned, CHOSEN):
            baseline = replace(baseline, **settings)  # type: ignore[type-var]
    fitted = fit(histories, baseline, config.seed)
    fitting_seconds = round(time.perf_counter() - started, 3)
    users = evaluated_users(histories, config.split, config.users)
    known, targets = known_and_targets(histories, config.split, users)
    warn_of_repeats(known, targets)
    rankings = rank_all(config.model, fitted.rank, known, config.k, histories.n_items)
    with writing(out, "baseline", config, inputs, started=started) as files:
        rows = write_rankings(files, rankings, users, targets, config.split)
        files.provenance |= fitted.facts | {
            "settings": describe(baseline),
            "threads": torch_threads(),
            "fitting_seconds": fitting_seconds,
            "ranking_seconds": round(time.perf_counter() - started - fitting_seconds, 3),
        }
    logger.info("wrote metrics of %s users to %s\n%s", f"{len(targets):,}", out, format_metrics(rows))
    return out


def torch_threads() -> int:
    """How many threads torch computes with."""
    import torch

    return torch.get_num_threads()
