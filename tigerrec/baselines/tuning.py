"""The stage tune: which settings of a baseline to compare, and the choice of the best of them on validation."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tigerrec.baselines.base import Baseline
from tigerrec.baselines.stage import CHOSEN, fit, torch_threads, validate
from tigerrec.config import FAMILY, NAME, ConfigError, build_choice, plain
from tigerrec.data.histories import Histories, load_histories
from tigerrec.storage.files import remove_tree, sha256_text, write_json
from tigerrec.storage.fingerprints import added, canonical_json, describe
from tigerrec.storage.stages import input_record, writing

logger = logging.getLogger(__name__)
TRIALS = "trials"
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


def plan_tuning(node: Any) -> tuple[Baseline, dict[str, Any], TuneConfig | None]:
    """A baseline with the first value of each setting, the keys that the stages read, and what to tune; None where no
    setting has several values.

    Raises:
        ConfigError: a setting has no value or a wrong one, values do not go together, or the search is unknown.
    """
    values = plain(node, "baseline")
    search = values.get("search", SEARCHES[0])
    if search not in SEARCHES:
        raise ConfigError(f"baseline.search={search} must be one of {', '.join(SEARCHES)}.")
    settings = values.keys() - {NAME, FAMILY, *STAGE_KEYS}
    lists = {name: given for name, given in values.items() if name in settings and isinstance(given, list)}
    for name, given in lists.items():
        if not given:
            repair = f"give `baseline.{name}=<value>`, or several to choose from: `baseline.{name}=[<value>,…]`"
            raise ConfigError(f"baseline.{name}=[] holds no value; {repair}.")
    first = {name: given[0] for name, given in lists.items()}
    alone = [first, *(first | {name: value} for name, given in lists.items() for value in given)]
    built = [build_choice(values | trial, "baseline", Baseline, STAGE_KEYS) for trial in alone]
    distinct = {name: tuple(dict.fromkeys(getattr(one, name) for one, _ in built)) for name in lists}
    several = {name: given for name, given in distinct.items() if len(given) > 1}
    baseline, keys = built[0]
    trials = combinations(several)
    for trial in trials:
        try:
            dataclasses.replace(baseline, **trial)  # type: ignore[type-var]
        except ValueError as error:
            together = ", ".join(f"baseline.{name}={value}" for name, value in trial.items())
            raise ConfigError(f"{error}, with {together}; these values do not go together.") from None
    if not several:
        return baseline, keys, None
    if search == "climb":
        return baseline, keys, TuneConfig(baseline, (), values={name: in_order(several[name]) for name in several})
    return baseline, keys, TuneConfig(baseline, trials)


def in_order(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Numbers from the least to the greatest; other values as they stand."""
    numbers = all(isinstance(value, (int, float)) for value in values)
    return tuple(sorted(values)) if numbers else values


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
        files.provenance |= {"threads": torch_threads(), "seconds_of_trials": total}
    remove_tree(out / TRIALS)
    logger.info("chosen of %d: %s, validation NDCG@10 %.4f", len(tried), chosen, score(chosen))
    if ends := at_an_end(tried, chosen):
        logger.warning("at an end of the values tried: %s; there may be better ones beyond.", ", ".join(ends))
    return out
