"""What the script of the baselines does: plans the stages of one from the configuration and runs what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from tigerrec import artifacts, pipeline
from tigerrec.baselines import Baseline
from tigerrec.baselines.stage import BaselineConfig, TuneConfig, grid_trials, measure, tune
from tigerrec.config import ConfigError, build, build_choice

KEYS = ("seed", "grid")


def plan(cfg: DictConfig) -> dict[str, pipeline.Step]:
    """The steps `prepare`, `tune` (of a baseline with a grid) and `baseline` of a configuration, checked before any work.

    Raises:
        ConfigError: an option is unknown, has the wrong type or is out of range.
    """
    prepare = pipeline.plan_prepare(cfg)
    baseline, keys = build_choice(cfg.get("baseline"), "baseline", KEYS)
    evaluation, _ = build_choice(cfg.get("evaluate"), "evaluate")
    name, seed = pipeline.folder_name(keys, "baseline"), pipeline.checked_seed(keys, "baseline")
    folder, steps = prepare.folder / "baselines", {"prepare": prepare}
    inputs, tuned = {"prepare": prepare.folder}, None
    if keys.get("grid") is not None:
        tuning = TuneConfig(baseline, _checked_trials(baseline, keys["grid"]))
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


def _checked_trials(baseline: Baseline, grid: Any) -> tuple[dict[str, Any], ...]:
    """All combinations of a grid's values, of the types of the settings they change."""
    if not isinstance(grid, Mapping) or not grid or not all(isinstance(values, list) and values for values in grid.values()):
        raise ConfigError(f"baseline.grid={grid!r} must hold a list of values a setting; correct it, or give `baseline.grid=null` to tune nothing.")
    settings = artifacts.describe(baseline)
    built = [build({**settings, **trial}, "baseline.grid") for trial in grid_trials(grid)]
    return tuple({name: getattr(trial, name) for name in grid} for trial in built)


def command(cfg: DictConfig) -> None:
    """Tune and measure the baseline, print its folder as the last line; end with one sentence on a user's error."""
    with pipeline.reporting():
        folder = pipeline.bring_up_to_date(plan(cfg), "baseline", cfg.overwrite)
    print(folder, flush=True)
