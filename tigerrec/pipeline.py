"""Which stage needs which; runs what is missing, skips what is up to date, refuses what is stale or damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tigerrec.baselines.stage import BaselineConfig, measure
from tigerrec.baselines.tuning import plan_tuning, tune
from tigerrec.config import ConfigError, build, build_choice, folder_of, plain
from tigerrec.data.base import Dataset
from tigerrec.embed.base import Embedder, needed_parts
from tigerrec.evaluation.stage import EvaluateConfig
from tigerrec.models.base import VECTORS, Generator
from tigerrec.runtime import distributed
from tigerrec.search.options import check_scoring
from tigerrec.storage import stages
from tigerrec.storage.files import ArtifactError, check_writable, locked, sha256_file, sha256_text, wait_for_writer
from tigerrec.storage.fingerprints import canonical_json, describe
from tigerrec.storage.manifests import MANIFEST, StaleError, read_manifest
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
        name_option: the option that gives the folder another name.
        run: takes the folder and builds the stage in it.
        present: the outside files it would read, by role, as far as they are there now.
        named: what the options call these files, by role, whether they are there or not.
        shared: whether several processes run it together; otherwise the first runs it for all.
    """

    key: str
    stage: str
    folder: Path
    config: Any
    inputs: Mapping[str, Path]
    name_option: str
    run: Callable[[Path], Path]
    present: Callable[[], Mapping[str, Path]] = dict
    named: Callable[[], Mapping[str, str]] = dict
    shared: bool = False

    def input_records(self) -> dict[str, dict[str, Any]]:
        """What the stages it reads are made of now; ArtifactError where one of them is not finished."""
        return stages.input_records(self.inputs)

    def identity(self) -> str:
        """What the stage would be made of now, as one sha256; ArtifactError where a stage it reads is not finished."""
        return sha256_text(canonical_json([describe(self.config), self.input_records()]))

    def outside(
        self, recorded: Mapping[str, str], called: Mapping[str, str], digest: Callable[[Path], str] = sha256_file
    ) -> dict[str, str]:
        """The sha256 of the outside files that it is made of now, by role: of those that are there, and of those that
        are not as they were `recorded`, unless others are named than they were `called` then."""
        present, named = self.present(), self.named()
        there, wanted = ({_kind(role) for role in roles} for roles in (present, named or recorded))
        renamed = {role for role, name in named.items() if called.get(role, name) != name}
        kept = {role: value for role, value in recorded.items() if _kind(role) in wanted - there - renamed}
        return kept | {role: digest(path) for role, path in present.items()}

    def is_current(self) -> bool:
        """Whether the stage is finished and made of exactly this, and is not to be built again; ArtifactError where it
        is damaged or made of something else."""
        rebuild = stages.rebuild_of(self.folder)
        if rebuild is not None and rebuild == self.identity():
            return False
        manifest = read_manifest(self.folder)
        if manifest is None:
            return False
        recorded = {
            role: record["fingerprint"]
            for role, record in manifest.inputs.items()
            if role not in self.inputs and "content" not in record  # that of a stage has content
        }
        outside = self.outside(recorded, manifest.provenance.get("named", {}))
        inputs = self.input_records() | {role: {"fingerprint": value} for role, value in outside.items()}
        return stages.check_current(self.folder, self.stage, self.config, inputs, self.name_option, self.key)


def _kind(role: str) -> str:
    """The role of which a file is one of several."""
    return re.split("[:/]", role)[0]


def _function(path: str, *arguments: Any, **options: Any) -> Callable[[Path], Path]:
    """A stage's function given all but its folder; imported when it runs, so that an up-to-date stage loads little."""
    module, _, name = path.rpartition(".")

    def run(out: Path) -> Path:
        stage: Callable[..., Path] = getattr(importlib.import_module(module), name)
        return stage(*arguments, out=out, **options)

    return run


def _folder_name(values: Mapping[str, Any], where: str) -> str:
    """The `name` of a choice; ConfigError where it cannot name a folder."""
    name = values.get("name")
    if not isinstance(name, str) or not name or name.startswith(".") or "/" in name or "\\" in name:
        if isinstance(name, int | float):
            raise ConfigError(
                f"{where}.name={name!r} was read as a number and must be a folder name; give it in quotes of its own, "
                f"as `\"{where}.name='{name}'\"`."
            )
        raise ConfigError(f"{where}.name={name!r} must be a folder name; give `{where}.name=<name>`.")
    return name


def _seed(values: Mapping[str, Any], where: str) -> int:
    """The `seed` of a choice; ConfigError where it is no whole number from 0 up."""
    seed = values.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"{where}.seed={seed!r} must be a whole number from 0 up; give `{where}.seed=<number>`.")
    return seed


def _plan_embed(node: Any, where: str, prepared: Path, steps: dict[str, Step], key: str | None = None) -> Path:
    """Plan an embed step behind those of its parts, once for all that read it; returns its folder."""
    embedder, keys = build_choice(node, where, Embedder, ("parts",))
    folder = prepared / _folder_name(keys, where)
    others = _plan_further(keys.get("parts"), f"{where}.parts", needed_parts(embedder), prepared, steps)
    step = Step(
        key or f"embed:{folder.name}", "embed", folder, embedder, {"prepare": prepared, **others}, f"{where}.name",
        _function("tigerrec.embed.stage.embed", prepared, embedder, parts=others),
        embedder.present, embedder.named, shared=True,
    )  # fmt: skip
    known = next((other for other in steps.values() if other.folder == folder), step)
    if (known.config, known.inputs) != (step.config, step.inputs):
        both = f"{known.name_option} and {where}.name are both {folder.name!r}"
        raise ConfigError(f"{both}, with different settings; give `{where}.name=<new name>`.")
    steps.setdefault(known.key, known)
    return folder


def _plan_further(
    nodes: Any, where: str, needs: Sequence[str], prepared: Path, steps: dict[str, Step]
) -> dict[str, Path]:
    """Plan the embed steps of further item vectors, exactly those that are needed; returns their folders by name."""
    given = {} if nodes is None else nodes
    choose = f"embedder@{where}"
    if not isinstance(given, Mapping):
        repair = f"choose each with `+{choose}.<name>=<embedder>`"
        raise ConfigError(f"{where}={nodes!r} must hold an embedder a name; {repair}.")
    for name in needs:
        if name not in given:
            repair = f"choose its embedder with `+{choose}.{name}=<embedder>`"
            raise ConfigError(f"{where}.{name} is needed and missing; {repair}.")
    for name, node in given.items():
        if name not in needs:
            raise ConfigError(f"{where}.{name} is given, but only [{', '.join(needs)}] can be used; leave it out.")
        if not isinstance(node, Mapping):
            repair = f"choose one with `{choose}.{name}=<embedder>`"
            raise ConfigError(f"{where}.{name}={node!r} is no embedder; {repair}.")
    return {name: _plan_embed(node, f"{where}.{name}", prepared, steps) for name, node in given.items()}


def _plan_prepare(cfg: DictConfig) -> Step:
    dataset, keys = build_choice(cfg.get("dataset"), "dataset", Dataset)
    return Step(
        "prepare", "prepare", folder_of(cfg, "paths.runs") / _folder_name(keys, "dataset"), dataset, {}, "dataset.name",
        _function("tigerrec.data.prepare.prepare", dataset), dataset.present, dataset.named,
    )  # fmt: skip


def plan(cfg: DictConfig) -> dict[str, Step]:
    """The five stages of a configuration and the embed steps of further vectors, each behind those it reads, by key;
    ConfigError where an option is unknown, has the wrong type or is out of range."""
    prepare = _plan_prepare(cfg)
    defaults = plain(cfg.dataset_defaults, "dataset_defaults")

    def choice(name: str, kind: type, *reserved: str) -> tuple[Any, dict[str, Any]]:
        return build_choice(cfg.get(name), name, kind, reserved, defaults.get(name))

    tokenize_keys = ("seed", "collisions", "max_collision", "fit_items")
    tokenizer, token_keys = choice("tokenizer", Tokenizer, *tokenize_keys, "inputs")
    generator, generator_keys = choice("generator", Generator, "seed", "inputs")
    training, train_keys = choice("train", Training, "validated")
    evaluation, evaluate_keys = choice("evaluate", EvaluateConfig)
    check_scoring(
        evaluation.scores, evaluation.cold_places,
        scores_items=generator.scores_items, reads_vectors=VECTORS in generator.needs,
    )  # fmt: skip
    tokenize_options = {key: token_keys[key] for key in tokenize_keys if key in token_keys}
    tokenize_config = build({"tokenizer": tokenizer} | tokenize_options, "tokenizer", TokenizeConfig)
    seed = _seed(generator_keys, "generator")
    train_config = build({"generator": generator, "training": training, "seed": seed}, "train", TrainConfig)
    prepared, steps = prepare.folder, {"prepare": prepare}
    embedded = _plan_embed(cfg.get("embedder"), "embedder", prepared, steps, "embed")
    extra = _plan_further(token_keys.get("inputs"), "tokenizer.inputs", tokenizer.needs, prepared, steps)
    tokenized = embedded / f"{_folder_name(token_keys, 'tokenizer')}-seed{_seed(token_keys, 'tokenizer')}"
    vectors = _plan_further(generator_keys.get("inputs"), "generator.inputs", generator.needs, prepared, steps)
    run_name = f"{_folder_name(generator_keys, 'generator')}-{_folder_name(train_keys, 'train')}"
    trained = tokenized / f"{run_name}{'' if training.holdout else '-everything'}-seed{seed}"
    evaluated = trained / f"eval-{_folder_name(evaluate_keys, 'evaluate')}"
    of_training = {"prepare": prepared, "tokenize": tokenized}

    def train_step(key: str, folder: Path, config: TrainConfig, validated: Path | None = None) -> Step:
        of_validated = {} if validated is None else {"validated": validated}
        return Step(
            key, "train", folder, config, of_training | vectors | of_validated, "train.name",
            _function("tigerrec.training.stage.train", prepared, tokenized, config, extra=vectors, **of_validated),
            shared=True,
        )  # fmt: skip

    validated = tokenized / f"{run_name}-seed{seed}" if _takes_epochs(training, train_keys.get("validated")) else None
    before = []
    if validated is not None:
        with_holdout = dataclasses.replace(train_config, training=dataclasses.replace(training, holdout=True))
        before = [train_step("train:validated", validated, with_holdout)]
    following = [
        Step("tokenize", "tokenize", tokenized, tokenize_config, {"embed": embedded, **extra}, "tokenizer.name",
             _function("tigerrec.tokenizers.stage.tokenize", embedded, tokenize_config, extra=extra)),
        *before,
        train_step("train", trained, train_config, validated),
        Step("evaluate", "evaluate", evaluated, evaluation, of_training | {"train": trained}, "evaluate.name",
             _function("tigerrec.evaluation.stage.evaluate", prepared, tokenized, trained, evaluation), shared=True),
    ]  # fmt: skip
    return steps | {step.key: step for step in following}


def _takes_epochs(training: Training, validated: Any) -> bool:
    """Whether training on everything takes its epochs from a validated run."""
    if not isinstance(validated, bool):
        raise ConfigError(f"train.validated={validated!r} must be true or false.")
    return validated and not training.holdout


def plan_baseline(cfg: DictConfig) -> dict[str, Step]:
    """The steps `prepare`, `tune` (of a baseline with settings to choose from) and `baseline` of a configuration,
    checked as in `plan`."""
    prepare = _plan_prepare(cfg)
    baseline, keys, tuning = plan_tuning(cfg.get("baseline"))
    evaluation, _ = build_choice(cfg.get("evaluate"), "evaluate", EvaluateConfig)
    name, seed = _folder_name(keys, "baseline"), _seed(keys, "baseline")
    prepared, folder, steps = prepare.folder, prepare.folder / "baselines", {"prepare": prepare}
    inputs, tuned = {"prepare": prepared}, None
    if tuning:
        tuned = folder / f"{name}-tuning"
        steps["tune"] = Step(
            "tune", "tune", tuned, tuning, inputs, "baseline.name", lambda out: tune(prepared, tuning, out)
        )
        inputs = inputs | {"tune": tuned}
    config = BaselineConfig(baseline, name, evaluation.split, evaluation.k, seed, evaluation.users)
    steps["baseline"] = Step(
        "baseline", "baseline", folder / f"{name}-seed{seed}", config, inputs, "baseline.name",
        lambda out: measure(prepared, tuned, config, out),
    )  # fmt: skip
    return steps


def run(cfg: DictConfig, until: str) -> Path:
    """Bring a stage and everything it needs up to date; returns its folder.

    What `overwrite` names is built again, with every step that reads it; what it reads itself (such as the parts of
    fused vectors) is not. Every error is a TigerrecError.
    """
    steps = plan(cfg)
    if until == "evaluate" and not steps["train"].config.training.holdout:
        raise ConfigError(
            "With train.holdout=false nothing is left to evaluate on; leave it out to measure the same options."
        )
    return bring_up_to_date(steps, until, cfg.overwrite)


def bring_up_to_date(steps: Mapping[str, Step], until: str, overwrite: str | None, wait: bool = False) -> Path:
    """Run the steps of a plan up to `until`, as `run` does; returns the folder of the last. Raises BusyError if another
    process writes that one, unless it is to `wait` for it as for the others."""
    wanted = list(steps)[: list(steps).index(until) + 1]
    if overwrite and overwrite not in wanted:
        raise ConfigError(f"overwrite={overwrite!r} is not among the steps asked for; allowed: {', '.join(wanted)}.")
    rebuilt: set[Path] = set()
    for number, key in enumerate(wanted, start=1):
        step = steps[key]
        rebuild = key == overwrite or not rebuilt.isdisjoint(step.inputs.values())
        _bring_up_to_date(step, rebuild, key == until and not wait, [steps[later].folder for later in wanted[number:]])
        if rebuild:
            rebuilt.add(step.folder)
    return steps[until].folder


def _bring_up_to_date(step: Step, rebuild: bool, asked: bool, later: Sequence[Path]) -> None:
    """Run a step that is not up to date, one `asked` for or only needed, with the folders of those `later`."""
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
        distributed.agreed(lambda: stages.end_rebuild(step.folder))
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
        stages.begin_rebuild(step.folder, step.identity())
    return True


def _is_up_to_date(step: Step, written_by_others: Sequence[Path]) -> bool:
    """Whether a step is finished, saying so; looked at again after a writer where something is wrong."""
    try:
        current = step.is_current()
    except ArtifactError:
        for folder in written_by_others:
            wait_for_writer(folder)
        current = step.is_current()
    if current:
        logger.info("%s: up to date in %s", step.stage, step.folder)
        # working files without a rebuild are those of a process that was killed after its last word
        if stages.working_files(step.folder) and stages.rebuild_of(step.folder) is None:
            with contextlib.suppress(ArtifactError), locked(step.folder):
                stages.discard_working_files(step.folder)
    return current


def _give_up_vain_rebuild(folder: Path) -> None:
    """Let the older version of a stage stand where its rebuild failed and left nothing to go on from."""
    if distributed.is_first() and not stages.working_files(folder):
        stages.end_rebuild(folder)


def _check_inputs_stayed(step: Step, read: Mapping[str, Any]) -> None:
    """Give up a stage whose inputs changed while it was built."""
    if step.input_records() != read:
        (step.folder / MANIFEST).unlink()
        raise StaleError(
            f"What {step.folder} is made from was built again by another process meanwhile; run the same command again."
        )


def show_progress() -> None:
    """Show progress of the package on stderr, that of the first process where several share a task."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("tigerrec").setLevel(logging.INFO if distributed.is_first() else logging.ERROR)
