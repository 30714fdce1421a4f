"""The stages tune and baseline: a baseline's settings are chosen on validation, then it is fitted, ranks all users and
is measured like a generator."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec.baselines.base import Baseline, Fitted
from tigerrec.data.histories import Histories, evaluated_users, load_histories, training_histories, validation_sample
from tigerrec.evaluation.metrics import VALIDATION_K, format_metrics, item_ranks, validation_metrics
from tigerrec.evaluation.stage import known_and_targets, rank_all, warn_of_repeats, write_rankings
from tigerrec.search.ranking import Rank
from tigerrec.storage.contracts import contract, read_json
from tigerrec.storage.files import remove_tree, sha256_text, write_json
from tigerrec.storage.fingerprints import added, canonical_json, describe
from tigerrec.storage.stages import check_made_from, input_record, open_stage, writing

logger = logging.getLogger(__name__)
EPOCH_USERS = 5000
TRIALS, CHOSEN = "trials", "chosen.json"
SEARCHES = ("grid", "climb")
STAGE_KEYS = ("seed", "search")
Score = Callable[[dict[str, Any]], float]


@dataclass(frozen=True)
class TuneConfig:
    """Settings of a baseline to compare: it has the first value of each setting that the trials change, and the seed is
    that of all trials. All `trials` are run or, where `values` of settings are given, those that `climb` asks for."""

    baseline: Baseline
    trials: tuple[Mapping[str, Any], ...]
    seed: int = 0
    values: Mapping[str, tuple[Any, ...]] | None = added(None)


@dataclass(frozen=True)
class BaselineConfig:
    """A baseline to measure, `model` in the result rows; it has the first value of each setting that tuning chooses."""

    baseline: Baseline
    model: str
    split: str = "test"
    k: int = 20
    seed: int = 0
    users: int | None = added(None)


def combinations(values: Mapping[str, Sequence[Any]]) -> tuple[dict[str, Any], ...]:
    """All combinations of the values of each setting, the last setting changing fastest."""
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))


def climb(values: Mapping[str, Sequence[Any]], score: Score) -> dict[str, Any]:
    """The settings where a walk ends that starts at the middle value of each setting and goes, one at a time and in the
    order of their names, to the value after or before it as long as `score` rises: no neighbour has a higher one."""
    here = {name: given[len(given) // 2] for name, given in values.items()}
    best, rising = score(here), True
    while rising:
        rising = False
        for name, step in itertools.product(sorted(values), (1, -1)):
            place = values[name].index(here[name]) + step
            while 0 <= place < len(values[name]):
                there = here | {name: values[name][place]}
                if (found := score(there)) <= best:
                    break
                here, best, rising = there, found, True
                place += step
    return here


def at_an_end(trials: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[str]:
    """The names of those settings that hold the least or the greatest of several numbers tried."""
    names = []
    for name, value in settings.items():
        tried = {trial["settings"][name] for trial in trials}
        numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in tried)
        if numbers and len(tried) > 1 and value in (min(tried), max(tried)):
            names.append(name)
    return names


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


def run_trial(histories: Histories, baseline: Baseline, seed: int) -> dict[str, Any]:
    """What validation says of a baseline: the best epoch found on a sample of users, the metrics on all of them."""
    started = time.perf_counter()
    fitted = fit(histories, baseline, seed)
    scores = validate(fitted.rank, histories, histories.users_with("validation"))
    return {**scores, **fitted.facts, "seconds": round(time.perf_counter() - started, 3)}


def finished_trial(path: Path) -> dict[str, Any] | None:
    """What a trial left; None where it did not end, or its file is damaged."""
    try:
        trial = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return trial if isinstance(trial, dict) and "validation_ndcg@10" in trial else None


def tune(prepared: Path, config: TuneConfig, out: Path) -> Path:
    """Fit a baseline with settings to choose from and take those with the highest validation NDCG@10; test items are
    never looked at.

    Returns:
        `out`, with `trials.json` (settings, metrics, seconds) and `chosen.json` (the best settings, first of equals).

    Raises:
        ArtifactError: no finished prepare stage stands in `prepared`.
        TigerrecError: a trial failed; those before it are kept, and the next call goes on with it.
    """
    started = time.perf_counter()
    histories, record = load_histories(prepared), input_record(prepared)
    trials: dict[str, dict[str, Any]] = {}

    def score(settings: dict[str, Any]) -> float:
        baseline = replace(config.baseline, **settings)  # type: ignore[type-var]
        identity = [describe(baseline), config.seed, record["fingerprint"], record["content"]]
        name = sha256_text(canonical_json(identity))[:16]
        if name not in trials:
            path = out / TRIALS / f"{name}.json"
            trial = finished_trial(path)
            if trial is None:
                trial = run_trial(histories, baseline, config.seed)
                write_json(path, trial)
            trials[name] = {"settings": dict(settings), **trial}
            ndcg, seconds = trial["validation_ndcg@10"], trial["seconds"]
            number = f"{len(trials)} of {len(config.trials)}" if config.trials else len(trials)
            logger.info("trial %s: %s: NDCG@10 %.4f in %.1f s", number, settings, ndcg, seconds)
        return float(trials[name]["validation_ndcg@10"])

    chosen = max(map(dict, config.trials), key=score) if config.values is None else climb(config.values, score)
    tried = list(trials.values())
    with writing(out, "tune", config, {"prepare": prepared}, started=started) as files:
        files.json("trials.json", tried, measured=True)
        files.json(CHOSEN, chosen)
        total = round(sum(trial["seconds"] for trial in tried), 3)
        files.provenance |= {"threads": _threads(), "seconds_of_trials": total}
    remove_tree(out / TRIALS)
    logger.info("chosen of %d: %s, validation NDCG@10 %.4f", len(tried), chosen, score(chosen))
    if ends := at_an_end(tried, chosen):
        logger.warning("at an end of the values tried: %s; there may be better ones beyond.", ", ".join(ends))
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
            "threads": _threads(),
            "fitting_seconds": fitting_seconds,
            "ranking_seconds": round(time.perf_counter() - started - fitting_seconds, 3),
        }
    logger.info("wrote metrics of %s users to %s\n%s", f"{len(targets):,}", out, format_metrics(rows))
    return out


def _threads() -> int:
    import torch

    return torch.get_num_threads()
