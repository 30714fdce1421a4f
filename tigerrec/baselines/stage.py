"""The stages tune and baseline: a baseline's settings are chosen on validation, then it is fitted, ranks all users and
is measured like a generator."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec import artifacts, evaluate
from tigerrec.baselines import Baseline, Rank, Validate
from tigerrec.files import sha256_text
from tigerrec.histories import Histories, load_histories, split, training_part, validation_sample
from tigerrec.metrics import format_metrics, item_ranks, metrics

logger = logging.getLogger(__name__)

EPOCH_USERS = 5000
VALIDATION_K = 10
TRIALS = "trials"
CHOSEN = "chosen.json"


@dataclass(frozen=True)
class TuneConfig:
    """Settings of a baseline to compare.

    Args:
        baseline: with the first value of each setting that trials change.
        trials: what each trial changes.
        seed: of all trials.
    """

    baseline: Baseline
    trials: tuple[Mapping[str, Any], ...]
    seed: int = 0


@dataclass(frozen=True)
class BaselineConfig:
    """A baseline to measure.

    Args:
        baseline: with the first value of each setting that tuning chooses.
        model: its name in the result rows.
        split: `test` or `validation`.
        k: length of the recommendation lists.
        seed: of its fitting.
    """

    baseline: Baseline
    model: str
    split: str = "test"
    k: int = 20
    seed: int = 0


def combinations(values: Mapping[str, Sequence[Any]]) -> tuple[dict[str, Any], ...]:
    """All combinations of the values of each setting, the last setting changing fastest."""
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))


def training_parts(histories: Histories) -> list[np.ndarray]:
    """The training part of every user's history."""
    return [training_part(histories[user]) for user in range(len(histories))]


def validation_metrics(rank: Rank, histories: Histories, users: np.ndarray) -> dict[str, float]:
    """HR@10 and NDCG@10 of validation targets: item level, seen items masked, means over the users given."""
    pairs = [split(histories[user], "validation") for user in users]
    items, _ = rank([history for history, _ in pairs], k=VALIDATION_K, mask_seen=True)
    found = metrics(item_ranks(items, np.array([target for _, target in pairs])))
    return {name: found[name] for name in ("hr@10", "ndcg@10")}


def on_sample(histories: Histories, seed: int) -> Validate:
    """NDCG@10 on a fixed, seeded sample of validation users."""
    users = validation_sample(histories, EPOCH_USERS, seed)
    return lambda rank: validation_metrics(rank, histories, users)["ndcg@10"]


def run_trial(histories: Histories, baseline: Baseline, seed: int) -> dict[str, Any]:
    """What validation says of a baseline: the best epoch found on a sample of users, the metrics on all of them."""
    started = time.perf_counter()
    fitted = baseline.fit(training_parts(histories), histories.n_items, seed=seed, validate=on_sample(histories, seed))
    found = validation_metrics(fitted.rank, histories, np.arange(len(histories)))
    return {
        **{f"validation_{name}": value for name, value in found.items()},
        **fitted.facts,
        "seconds": round(time.perf_counter() - started, 3),
    }


def finished_trial(path: Path) -> dict[str, Any] | None:
    """What a trial left; None where it did not end, or its file is damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "validation_ndcg@10" in found else None


def tune(prepared: Path, config: TuneConfig, out: Path) -> Path:
    """Fit a baseline with all settings to choose from and take those with the highest validation NDCG@10; test items
    are never looked at.

    Returns:
        `out`, with `trials.json` (settings, metrics and seconds of each trial) and `chosen.json` (the settings of the
        best, the first of equals).

    Raises:
        ArtifactError: no finished prepare stage stands in `prepared`.
        TigerrecError: a trial failed; those before it are kept, and the next call goes on with it.
    """
    started = time.perf_counter()
    histories = load_histories(prepared)
    record = artifacts.input_record(prepared)
    trials = []
    for number, settings in enumerate(config.trials, 1):
        baseline = replace(config.baseline, **settings)  # type: ignore[type-var]
        identity = [artifacts.describe(baseline), config.seed, record["fingerprint"], record["content"]]
        path = out / TRIALS / f"{sha256_text(artifacts.canonical_json(identity))[:16]}.json"
        found = finished_trial(path)
        if found is None:
            found = run_trial(histories, baseline, config.seed)
            artifacts.write_json(path, found)
        trials.append({"settings": dict(settings), **found})
        logger.info(
            "trial %d of %d: %s: NDCG@10 %.4f in %.1f s",
            number,
            len(config.trials),
            settings,
            found["validation_ndcg@10"],
            found["seconds"],
        )
    best = max(trials, key=lambda trial: trial["validation_ndcg@10"])
    with artifacts.writing(out, "tune", config, {"prepare": prepared}, started=started) as files:
        files.json("trials.json", trials, measured=True)
        files.json(CHOSEN, best["settings"])
        files.provenance |= {
            "threads": _threads(),
            "seconds_of_trials": round(sum(trial["seconds"] for trial in trials), 3),
        }
    artifacts.remove_tree(out / TRIALS)
    logger.info(
        "chosen of %d trials: %s, validation NDCG@10 %.4f", len(trials), best["settings"], best["validation_ndcg@10"]
    )
    return out


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
    inputs, settings, baseline = {"prepare": prepared}, {}, config.baseline
    if tuned is not None:
        artifacts.check_made_from(tuned, artifacts.open_stage(tuned, "tune"), "prepare", prepared)
        inputs, settings = inputs | {"tune": tuned}, artifacts.read_json(tuned, CHOSEN, {})
        with artifacts.contract(tuned, CHOSEN):
            baseline = replace(baseline, **settings)  # type: ignore[type-var]
    fitted = baseline.fit(
        training_parts(histories), histories.n_items, seed=config.seed, validate=on_sample(histories, config.seed)
    )
    fitting_seconds = round(time.perf_counter() - started, 3)
    parts = [split(histories[user], config.split) for user in range(len(histories))]
    known, targets = [history for history, _ in parts], np.array([target for _, target in parts])
    evaluate.warn_of_repeats(known, targets)
    rankings = [
        evaluate.Ranking(config.model, seen, *fitted.rank(known, k=config.k, mask_seen=seen == "masked"))
        for seen in evaluate.SEEN
    ]
    for ranking in rankings:
        evaluate.check_lists(ranking, known, histories.n_items)
    ranks = {(config.model, "item", ranking.seen): item_ranks(ranking.items, targets) for ranking in rankings}
    rows = evaluate.metric_rows(ranks, config.split)
    with artifacts.writing(out, "baseline", config, inputs, started=started) as files:
        files.parquet("recommendations.parquet", evaluate.recommendations_table(rankings))
        files.parquet("ranks.parquet", evaluate.ranks_table(ranks, targets))
        files.json("metrics.json", rows)
        ranking_seconds = round(time.perf_counter() - started - fitting_seconds, 3)
        facts = {
            "settings": artifacts.describe(baseline),
            "threads": _threads(),
            "fitting_seconds": fitting_seconds,
            "ranking_seconds": ranking_seconds,
        }
        files.provenance |= facts | fitted.facts
    logger.info("wrote metrics of %s users to %s\n%s", f"{len(targets):,}", out, format_metrics(rows))
    return out


def _threads() -> int:
    import torch

    return torch.get_num_threads()
