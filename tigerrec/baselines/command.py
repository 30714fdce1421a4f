"""What the script of the baselines does: plans the stages of one from the configuration and runs what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tigerrec import pipeline
from tigerrec.baselines import Baseline
from tigerrec.baselines.stage import BaselineConfig, TuneConfig, combinations, measure, tune
from tigerrec.config import NAME, TARGET, ConfigError, build_choice, plain

KEYS = ("seed",)


def plan(cfg: DictConfig) -> dict[str, pipeline.Step]:
    """The steps `prepare`, `tune` (of a baseline with settings to choose from) and `baseline` of a configuration,
    checked before any work.

    Raises:
        ConfigError: an option is unknown, has the wrong type or is out of range.
    """
    prepare = pipeline.plan_prepare(cfg)
    baseline, keys, trials = _trials(cfg.get("baseline"))
    evaluation, _ = build_choice(cfg.get("evaluate"), "evaluate")
    name, seed = pipeline.folder_name(keys, "baseline"), pipeline.checked_seed(keys, "baseline")
    folder, steps = prepare.folder / "baselines", {"prepare": prepare}
    inputs, tuned = {"prepare": prepare.folder}, None

    def step(stage: str, out: Path, config: Any, run: Callable[[Path], Path]) -> None:
        steps[stage] = pipeline.Step(stage, stage, out, config, dict(inputs), dict, "baseline.name", run)

    if len(trials) > 1:
        tuning, tuned = TuneConfig(baseline, trials), folder / f"{name}-tuning"
        step("tune", tuned, tuning, lambda out: tune(prepare.folder, tuning, out))
        inputs["tune"] = tuned
    config = BaselineConfig(baseline, name, evaluation.split, evaluation.k, seed)
    step("baseline", folder / f"{name}-seed{seed}", config, lambda out: measure(prepare.folder, tuned, config, out))
    return steps


def _trials(node: Any) -> tuple[Baseline, dict[str, Any], tuple[dict[str, Any], ...]]:
    """A baseline with the first value of every setting, the keys that the stages read, and all combinations of the
    settings that are lists of values.

    Raises:
        ConfigError: a setting is unknown, of the wrong type, out of range or an empty list.
    """
    values = plain(node, "baseline")
    lists = {
        name: value for name, value in values.items() if isinstance(value, list) and name not in (NAME, TARGET, *KEYS)
    }
    for name, choices in lists.items():
        if not choices:
            raise ConfigError(
                f"baseline.{name}=[] holds no value; give `baseline.{name}=<value>`, or several to choose from: "
                f"`baseline.{name}=[<value>,…]`."
            )
    built = [build_choice(values | trial, "baseline", KEYS) for trial in combinations(lists)]
    tuned = [name for name, choices in lists.items() if len(choices) > 1]
    return (*built[0], tuple({name: getattr(trial, name) for name in tuned} for trial, _ in built))


def command(cfg: DictConfig) -> None:
    """Tune and measure the baseline, print its folder as the last line; end with one sentence on a user's error."""
    with pipeline.reporting():
        folder = pipeline.bring_up_to_date(plan(cfg), "baseline", cfg.overwrite)
    print(folder, flush=True)
