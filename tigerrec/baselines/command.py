"""What the script of the baselines does: plans the stages of one from the configuration and runs what is missing."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from tigerrec import pipeline
from tigerrec.baselines import Baseline
from tigerrec.baselines.stage import BaselineConfig, TuneConfig, combinations, measure, tune
from tigerrec.config import FAMILY, NAME, ConfigError, build_choice, plain
from tigerrec.evaluate import EvaluateConfig

KEYS = ("seed",)


def plan(cfg: DictConfig) -> dict[str, pipeline.Step]:
    """The steps `prepare`, `tune` (of a baseline with settings to choose from) and `baseline` of a configuration,
    checked before any work.

    Raises:
        ConfigError: an option is unknown, has the wrong type or is out of range.
    """
    prepare = pipeline.plan_prepare(cfg)
    baseline, keys, trials = _trials(cfg.get("baseline"))
    evaluation, _ = build_choice(cfg.get("evaluate"), "evaluate", EvaluateConfig)
    name, seed = pipeline.folder_name(keys, "baseline"), pipeline.checked_seed(keys, "baseline")
    folder, steps = prepare.folder / "baselines", {"prepare": prepare}
    inputs, tuned = {"prepare": prepare.folder}, None
    if len(trials) > 1:
        tuning = TuneConfig(baseline, trials)
        tuned = inputs["tune"] = folder / f"{name}-tuning"
        steps["tune"] = pipeline.Step(
            "tune", "tune", tuned, tuning, {"prepare": prepare.folder}, dict, "baseline.name", lambda out: tune(prepare.folder, tuning, out)
        )  # fmt: skip
    config = BaselineConfig(baseline, name, evaluation.split, evaluation.k, seed)
    steps["baseline"] = pipeline.Step(
        "baseline", "baseline", folder / f"{name}-seed{seed}", config, inputs, dict, "baseline.name",
        lambda out: measure(prepare.folder, tuned, config, out),
    )  # fmt: skip
    return steps


def _trials(node: Any) -> tuple[Baseline, dict[str, Any], tuple[dict[str, Any], ...]]:
    """A baseline with the first value of every setting, the keys that the stages read, and all combinations of the
    settings that are lists of values.

    Raises:
        ConfigError: a setting is unknown, of the wrong type, out of range or an empty list.
    """
    values = plain(node, "baseline")
    lists = {
        name: found for name, found in values.items() if isinstance(found, list) and name not in (NAME, FAMILY, *KEYS)
    }
    for name, found in lists.items():
        if not found:
            raise ConfigError(
                f"baseline.{name}=[] holds no value; give `baseline.{name}=<value>`, or several to choose from: "
                f"`baseline.{name}=[<value>,…]`."
            )
    built = [build_choice(values | trial, "baseline", Baseline, KEYS) for trial in combinations(lists)]
    baseline, keys = built[0]
    return (
        baseline,
        keys,
        tuple({name: getattr(trial, name) for name, found in lists.items() if len(found) > 1} for trial, _ in built),
    )


def command(cfg: DictConfig) -> None:
    """Tune and measure the baseline, print its folder as the last line; end with one sentence on a user's error."""
    with pipeline.reporting():
        folder = pipeline.bring_up_to_date(plan(cfg), "baseline", cfg.overwrite)
    print(folder, flush=True)
