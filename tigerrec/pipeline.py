"""Which stage needs which; runs what is missing, skips what is up to date, refuses what is stale or damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tigerrec.baselines.base import Baseline
from tigerrec.baselines.stage import BaselineConfig, TuneConfig, combinations, measure, tune
from tigerrec.config import FAMILY, NAME, ConfigError, build, build_choice, plain
from tigerrec.data.base import Dataset
from tigerrec.embed.base import Embedder, needed_parts
from tigerrec.evaluation.stage import EvaluateConfig
from tigerrec.models.base import Generator
from tigerrec.runtime import distributed
from tigerrec.storage.files import ArtifactError, check_writable, locked, sha256_file, sha256_text, wait_for_writer
from tigerrec.storage.fingerprints import canonical_json, describe
from tigerrec.storage.manifests import MANIFEST, StaleError, read_manifest
from tigerrec.storage.stages import (
    begin_rebuild,
    check_current,
    discard_working_files,
    end_rebuild,
    input_records,
    rebuild_of,
    working_files,
)
from tigerrec.tokenizers.base import Tokenizer
from tigerrec.tokenizers.stage import TokenizeConfig
from tigerrec.training.options import TrainConfig, Training

logger = logging.getLogger(__name__)

STAGES = ("prepare", "embed", "tokenize", "train", "evaluate")


@dataclasses.dataclass(frozen=True)
class Step:
    """One stage with everything decided: what it is made of, where it stands and how it is run.

    Attributes:
        key: its name in a plan: the stage, or `embed:<folder>` for further item vectors that another step reads.
        config: the stage's checked dataclass; its JSON form is the stage's identity.
        inputs: the folders of the steps it reads.
        present: the outside files it would read, by role, as far as they are there now.
        name_option: the option that gives the folder another name.
        run: takes the folder and builds the stage in it.
        shared: whether several processes run it together; otherwise the first runs it for all.
    """

    key: str
    stage: str
    folder: Path
    config: Any
    inputs: Mapping[str, Path]
    present: Callable[[], Mapping[str, Path]]
    name_option: str
    run: Callable[[Path], Path]
    shared: bool = False

    def input_records(self) -> dict[str, dict[str, Any]]:
        """What the stages it reads are made of now.

        Raises:
            ArtifactError: one of them is not finished.
        """
        return input_records(self.inputs)

    def identity(self) -> str:
        """What the stage would be made of now, as one sha256.

        Raises:
            ArtifactError: a stage that it reads is not finished.
        """
        return sha256_text(canonical_json([describe(self.config), self.input_records()]))

    def is_current(self) -> bool:
        """Whether the stage is finished, undamaged, made of exactly this, and not to be built again.

        Raises:
            ArtifactError: it is finished but damaged, or made of something else.
        """
        rebuild = rebuild_of(self.folder)
        if rebuild is not None and rebuild == self.identity():
            return False
        manifest = read_manifest(self.folder)
        if manifest is None:
            return False
        inputs = self.input_records()
        outside = {
            role: record
            for role, record in manifest.inputs.items()
            if role not in self.inputs and "content" not in record
        }  # those of stages have content
        outside |= {role: {"fingerprint": sha256_file(path)} for role, path in self.present().items()}
        return check_current(self.folder, self.stage, self.config, inputs | outside, self.name_option, self.key)


def _nothing() -> Mapping[str, Path]:
    return {}


def _function(path: str) -> Callable[..., Path]:
    """A stage's function, imported when it is called, so that an up-to-date stage loads no heavy library."""
    module, _, name = path.rpartition(".")

    def call(*args: Any) -> Path:
        found: Path = getattr(importlib.import_module(module), name)(*args)
        return found

    return call


def folder_name(values: Mapping[str, Any], where: str) -> str:
    """The `name` of a choice.

    Raises:
        ConfigError: it cannot name a folder.
    """
    name = values.get("name")
    if not isinstance(name, str) or not name or name.startswith(".") or "/" in name or "\\" in name:
        raise ConfigError(f"{where}.name={name!r} must be a folder name; give `{where}.name=<name>`.")
    return name


def _runs(cfg: DictConfig) -> Path:
    runs = OmegaConf.select(cfg, "paths.runs")
    if not isinstance(runs, str) or not runs:
        raise ConfigError(f"paths.runs={runs!r} must be a folder; give `paths.runs=<folder>`.")
    return Path(runs)


def checked_seed(values: Mapping[str, Any], where: str) -> int:
    """The `seed` of a choice.

    Raises:
        ConfigError: it is no whole number from 0 up.
    """
    seed = values.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"{where}.seed={seed!r} must be a whole number from 0 up; give `{where}.seed=<number>`.")
    return seed


def _plan_embed(node: Any, where: str, prepared: Path, steps: dict[str, Step], key: str | None = None) -> Path:
    """Plan an embed step behind those of its parts, once for all that read it; returns its folder."""
    embedder, keys = build_choice(node, where, Embedder, ("parts",))
    folder = prepared / folder_name(keys, where)
    parts = _plan_further(keys.get("parts"), f"{where}.parts", needed_parts(embedder), prepared, steps)
    step = Step(
        key or f"embed:{folder.name}",
        "embed",
        folder,
        embedder,
        {"prepare": prepared, **parts},
        embedder.present,
        f"{where}.name",
        lambda out: _function("tigerrec.embed.stage.embed")(prepared, embedder, out, parts),
        shared=True,
    )
    known = next((other for other in steps.values() if other.folder == folder), step)
    if (known.config, known.inputs) != (step.config, step.inputs):
        raise ConfigError(
            f"{known.name_option} and {where}.name are both {folder.name!r}, with different settings; give "
            f"`{where}.name=<new name>`."
        )
    steps.setdefault(known.key, known)
    return folder


def _plan_further(
    nodes: Any, where: str, needs: Sequence[str], prepared: Path, steps: dict[str, Step]
) -> dict[str, Path]:
    """Plan the embed steps of further item vectors by name; returns their folders.

    Raises:
        ConfigError: one that is needed is missing, or one that is given is not needed.
    """
    given = {} if nodes is None else nodes
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{where}={nodes!r} must hold an embedder a name; choose each with `+embedder@{where}.<name>=<embedder>`."
        )
    for name in needs:
        if name not in given:
            raise ConfigError(
                f"{where}.{name} is needed and missing; choose its embedder with `+embedder@{where}.{name}=<embedder>`."
            )
    for name, node in given.items():
        if name not in needs:
            raise ConfigError(f"{where}.{name} is given, but only [{', '.join(needs)}] can be used; leave it out.")
        if not isinstance(node, Mapping):
            raise ConfigError(
                f"{where}.{name}={node!r} is no embedder; choose one with `embedder@{where}.{name}=<embedder>`."
            )
    return {name: _plan_embed(node, f"{where}.{name}", prepared, steps) for name, node in given.items()}


def plan_prepare(cfg: DictConfig) -> Step:
    """The prepare stage of a configuration.

    Raises:
        ConfigError: an option is unknown, has the wrong type or is out of range.
    """
    dataset, keys = build_choice(cfg.get("dataset"), "dataset", Dataset)
    return Step(
        "prepare", "prepare", _runs(cfg) / folder_name(keys, "dataset"), dataset, {}, dataset.present, "dataset.name",
        lambda out: _function("tigerrec.data.prepare.prepare")(dataset, out),
    )  # fmt: skip


def plan(cfg: DictConfig) -> dict[str, Step]:
    """The five stages of a configuration and the embed steps of further vectors, each behind those it reads, by key;
    checked before any work.

    Raises:
        ConfigError: an option is unknown, has the wrong type or is out of range.
    """
    prepare = plan_prepare(cfg)
    defaults = plain(cfg.dataset_defaults, "dataset_defaults")
    tokenize_keys = ("seed", "collisions", "max_collision")
    tokenizer, token_keys = build_choice(
        cfg.get("tokenizer"), "tokenizer", Tokenizer, (*tokenize_keys, "inputs"), defaults.get("tokenizer")
    )
    generator, generator_keys = build_choice(
        cfg.get("generator"), "generator", Generator, ("seed",), defaults.get("generator")
    )
    training, train_keys = build_choice(cfg.get("train"), "train", Training, (), defaults.get("train"))
    evaluation, evaluate_keys = build_choice(cfg.get("evaluate"), "evaluate", EvaluateConfig)
    tokenize_options = {key: token_keys[key] for key in tokenize_keys if key in token_keys}
    tokenize_config = build({"tokenizer": tokenizer} | tokenize_options, "tokenizer", TokenizeConfig)
    train_options = {"generator": generator, "training": training, "seed": checked_seed(generator_keys, "generator")}
    train_config = build(train_options, "train", TrainConfig)
    prepared, steps = prepare.folder, {"prepare": prepare}
    embedded = _plan_embed(cfg.get("embedder"), "embedder", prepared, steps, "embed")
    inputs = _plan_further(token_keys.get("inputs"), "tokenizer.inputs", tokenizer.needs, prepared, steps)
    tokenized = embedded / f"{folder_name(token_keys, 'tokenizer')}-seed{checked_seed(token_keys, 'tokenizer')}"
    trained = (
        tokenized
        / f"{folder_name(generator_keys, 'generator')}-{folder_name(train_keys, 'train')}-seed{train_config.seed}"
    )
    evaluated = trained / f"eval-{folder_name(evaluate_keys, 'evaluate')}"
    following = [
        Step(
            "tokenize",
            "tokenize",
            tokenized,
            tokenize_config,
            {"embed": embedded, **inputs},
            _nothing,
            "tokenizer.name",
            lambda out: _function("tigerrec.tokenizers.stage.tokenize")(embedded, tokenize_config, out, inputs),
        ),
        Step(
            "train",
            "train",
            trained,
            train_config,
            {"prepare": prepared, "tokenize": tokenized},
            _nothing,
            "train.name",
            lambda out: _function("tigerrec.training.stage.train")(prepared, tokenized, train_config, out),
            shared=True,
        ),
        Step(
            "evaluate",
            "evaluate",
            evaluated,
            evaluation,
            {"prepare": prepared, "tokenize": tokenized, "train": trained},
            _nothing,
            "evaluate.name",
            lambda out: _function("tigerrec.evaluation.stage.evaluate")(prepared, tokenized, trained, evaluation, out),
            shared=True,
        ),
    ]
    return steps | {step.key: step for step in following}


def plan_baseline(cfg: DictConfig) -> dict[str, Step]:
    """The steps `prepare`, `tune` (of a baseline with settings to choose from) and `baseline` of a configuration,
    checked before any work.

    Raises:
        ConfigError: an option is unknown, has the wrong type or is out of range.
    """
    prepare = plan_prepare(cfg)
    baseline, keys, trials = _trials(cfg.get("baseline"))
    evaluation, _ = build_choice(cfg.get("evaluate"), "evaluate", EvaluateConfig)
    name, seed = folder_name(keys, "baseline"), checked_seed(keys, "baseline")
    folder, steps = prepare.folder / "baselines", {"prepare": prepare}
    inputs, tuned = {"prepare": prepare.folder}, None
    if len(trials) > 1:
        tuning = TuneConfig(baseline, trials)
        tuned = inputs["tune"] = folder / f"{name}-tuning"
        steps["tune"] = Step(
            "tune", "tune", tuned, tuning, {"prepare": prepare.folder}, _nothing, "baseline.name",
            lambda out: tune(prepare.folder, tuning, out),
        )  # fmt: skip
    config = BaselineConfig(baseline, name, evaluation.split, evaluation.k, seed)
    steps["baseline"] = Step(
        "baseline", "baseline", folder / f"{name}-seed{seed}", config, inputs, _nothing, "baseline.name",
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
        key: value for key, value in values.items() if isinstance(value, list) and key not in (NAME, FAMILY, "seed")
    }
    for name, given in lists.items():
        if not given:
            raise ConfigError(
                f"baseline.{name}=[] holds no value; give `baseline.{name}=<value>`, or several to choose from: "
                f"`baseline.{name}=[<value>,…]`."
            )
    built = [build_choice(values | trial, "baseline", Baseline, ("seed",)) for trial in combinations(lists)]
    several = [name for name, given in lists.items() if len(given) > 1]
    return *built[0], tuple({name: getattr(trial, name) for name in several} for trial, _ in built)


def run(cfg: DictConfig, until: str) -> Path:
    """Bring a stage and everything it needs up to date.

    What `overwrite` names is built again, with every step that reads it; what it reads itself (such as the parts of
    fused vectors) is not.

    Args:
        cfg: a composed configuration.
        until: the stage asked for.

    Returns:
        The folder of the stage asked for.

    Raises:
        TigerrecError: an option is wrong, something on the way is stale or damaged, or a stage failed.
    """
    return bring_up_to_date(plan(cfg), until, cfg.overwrite)


def bring_up_to_date(steps: Mapping[str, Step], until: str, overwrite: str | None) -> Path:
    """Run the steps of a plan up to `until`, as `run` does; returns the folder of the last.

    Raises:
        TigerrecError: as in `run`.
    """
    wanted = list(steps)[: list(steps).index(until) + 1]
    if overwrite and overwrite not in wanted:
        raise ConfigError(f"overwrite={overwrite!r} is not among the steps asked for; allowed: {', '.join(wanted)}.")
    rebuilt: set[Path] = set()
    for number, key in enumerate(wanted, start=1):
        step = steps[key]
        rebuild = key == overwrite or not rebuilt.isdisjoint(step.inputs.values())
        _bring_up_to_date(step, rebuild, key == until, [steps[later].folder for later in wanted[number:]])
        if rebuild:
            rebuilt.add(step.folder)
    return steps[until].folder


def _bring_up_to_date(step: Step, rebuild: bool, asked: bool, later: Sequence[Path]) -> None:
    """Run a step that is not up to date.

    Args:
        asked: whether it is the one that was asked for, not only needed.
        later: the folders of the steps that come behind it.
    """
    with contextlib.ExitStack() as held:
        if not distributed.agreed(lambda: _has_to_run(step, rebuild, asked, held)):
            return
        for folder in later if distributed.is_first() else ():
            check_writable(folder)
        logger.info("%s: %s", step.stage, step.folder)
        started = time.perf_counter()
        read = step.input_records()
        held.callback(_give_up_vain_rebuild, step.folder)
        if step.shared:
            step.run(step.folder)
        else:
            distributed.agreed(lambda: step.run(step.folder))
        distributed.agreed(lambda: _check_inputs_stayed(step, read))
        distributed.agreed(lambda: end_rebuild(step.folder))
        logger.info("%s: done in %.1f s", step.stage, time.perf_counter() - started)


def _has_to_run(step: Step, rebuild: bool, asked: bool, held: contextlib.ExitStack) -> bool:
    """Whether a step is not up to date; if so, its folder stays locked until what is `held` is let go."""
    written_by_others = list(step.inputs.values())
    if not rebuild and _is_up_to_date(step, written_by_others if asked else [*written_by_others, step.folder]):
        return False
    held.enter_context(locked(step.folder, wait=not asked, announce=logger.info))
    if not rebuild and _is_up_to_date(step, written_by_others):
        return False
    if rebuild:
        begin_rebuild(step.folder, step.identity())
    return True


def _is_up_to_date(step: Step, written_by_others: Sequence[Path]) -> bool:
    """Whether a step is finished, saying so; looked at again where something is wrong that another process may be
    writing."""
    try:
        current = step.is_current()
    except ArtifactError:
        for folder in written_by_others:
            wait_for_writer(folder)
        current = step.is_current()
    if current:
        logger.info("%s: up to date in %s", step.stage, step.folder)
        if (
            working_files(step.folder) and rebuild_of(step.folder) is None
        ):  # of a process that was killed after its last word
            with contextlib.suppress(ArtifactError), locked(step.folder):
                discard_working_files(step.folder)
    return current


def _give_up_vain_rebuild(folder: Path) -> None:
    """Let the older version of a stage stand where its rebuild failed and left nothing to go on from."""
    if distributed.is_first() and not working_files(folder):
        end_rebuild(folder)


def _check_inputs_stayed(step: Step, read: Mapping[str, Any]) -> None:
    """Give up a stage whose inputs changed while it was built.

    Raises:
        StaleError: they did.
    """
    if step.input_records() != read:
        (step.folder / MANIFEST).unlink()
        raise StaleError(
            f"What {step.folder} is made from was built again by another process meanwhile; run the same command again."
        )


def show_progress() -> None:
    """Show progress of the package on stderr, that of the first process where several share a task."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("tigerrec").setLevel(logging.INFO if distributed.is_first() else logging.ERROR)
