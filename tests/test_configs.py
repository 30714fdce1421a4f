"""Every yaml in configs/: it composes, says every field of its dataclass, and plans all stages without a heavy
import."""

import dataclasses
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tigerrec.analysis.table.rows import plan_rows
from tigerrec.baselines.base import Baseline
from tigerrec.config import ConfigError, build_choice, compose, config_folder, family_class
from tigerrec.data.base import Dataset
from tigerrec.embed.base import Embedder
from tigerrec.evaluation.stage import EvaluateConfig
from tigerrec.models.base import Generator
from tigerrec.pipeline import STAGES, plan
from tigerrec.storage.fingerprints import canonical_json, describe
from tigerrec.text import GROUPS
from tigerrec.tokenizers.base import Tokenizer
from tigerrec.training.options import Training

RESERVED = {
    "tokenizer": ("seed", "collisions", "max_collision", "fit_items"),
    "generator": ("seed",),
    "train": ("validated",),
    "baseline": ("seed",),
}
OPTIONAL = ("inputs", "parts", "search")  # of the choices that read further item vectors, or have settings to choose
FILES = sorted((path for group in GROUPS for path in (config_folder() / group).glob("*.yaml")), key=str)
CHOICES = [pytest.param(path.parent.name, path.stem, id=f"{path.parent.name}={path.stem}") for path in FILES]
BY_GROUP = {group: [path.stem for path in FILES if path.parent.name == group] for group in GROUPS}
TABLES = sorted(
    path.stem for path in (config_folder() / "experiment").glob("*.yaml") if not path.stem.startswith("tune_")
)
TOGETHER = [  # every choice once, in as few compositions as possible
    [f"{group}={names[number % len(names)]}" for group, names in BY_GROUP.items()]
    for number in range(max(map(len, BY_GROUP.values())))
]
HEAVY = (
    "torch",
    "transformers",
    "faiss",
    "sentence_transformers",
    "pandas",
    "pyarrow",
    "duckdb",
    "sklearn",
    "tensorboard",
    "scipy",
)


def test_every_group_has_choices():
    assert {path.parent.name for path in FILES} == set(GROUPS)
    folders = {path.name for path in config_folder().iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert folders <= {*GROUPS, "dataset_defaults", "train_defaults", "evaluate_defaults", "experiment", "hydra"}


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_a_choice_composes_and_plans(group, name):
    cfg = compose([f"{group}={name}"])
    assert cfg[group].name == name
    steps = plan(cfg)
    assert [key for key in steps if key in STAGES] == list(STAGES)
    for step in steps.values():
        canonical_json(describe(step.config))


PROTOCOLS = {
    "dataset": Dataset,
    "embedder": Embedder,
    "tokenizer": Tokenizer,
    "generator": Generator,
    "baseline": Baseline,
    "train": Training,
    "evaluate": EvaluateConfig,
}


def unsaid(node, where, kind):
    """Fields of dataclasses that their nodes do not say, and keys that are no fields, by dotted name."""
    chosen = family_class(kind, node["family"], where) if "family" in node else kind
    types = typing.get_type_hints(chosen)
    fields = {field.name for field in dataclasses.fields(chosen) if field.init}
    parts = {
        key: value for key, value in node.items() if isinstance(value, dict) and "family" in value and key in types
    }
    return {f"{where}.{key}" for key in (set(node) - {"family"}) ^ fields}.union(
        *(unsaid(part, f"{where}.{key}", types[key]) for key, part in parts.items())
    )


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_a_yaml_says_every_field_of_its_dataclass(group, name):
    node = OmegaConf.to_container(
        compose([f"{group}={name}"] if group == "dataset" else ["dataset=beauty", f"{group}={name}"])[group]
    )
    assert unsaid(node, group, PROTOCOLS[group]) - {f"{group}.{key}" for key in OPTIONAL} == {
        f"{group}.{key}" for key in ("name", *RESERVED.get(group, ()))
    }
    assert node["name"] == name


def test_the_sample_of_dataset_defaults_only_names_options():
    for path in (config_folder() / "dataset_defaults").glob("*.yaml"):
        assert (config_folder() / "dataset" / path.name).exists()
        cfg = compose([f"dataset={path.stem}"])
        for group, values in OmegaConf.load(path).items():
            assert {key: cfg[group][key] for key in values} == dict(values)


def options_of(path: Path) -> dict:
    """The options of a yaml and of those that it begins with."""
    values = dict(OmegaConf.load(path))
    for other in values.pop("defaults", []):
        if other != "_self_":
            values = options_of(path.with_name(f"{other.removesuffix('@_here_')}.yaml")) | values
    return values


def test_train_defaults_name_a_generator_a_way_of_training_and_options():
    paths = list((config_folder() / "train_defaults").glob("*.yaml"))
    assert paths
    for path in paths:
        generator, _, train = path.stem.partition("-")
        chosen, values = [f"generator={generator}", f"train={train}"], options_of(path)
        assert values
        cfg = compose(["dataset=beauty", *chosen])
        assert {key: cfg.train[key] for key in values} == values
        told = compose(["dataset=beauty", *chosen, *(f"train.{key}=0.25" for key in values)])
        assert {told.train[key] for key in values} == {0.25}
        assert compose(chosen).train.learning_rate == compose([]).train.learning_rate  # those of the sample stand above


def test_evaluate_defaults_name_a_generator_and_options():
    paths = list((config_folder() / "evaluate_defaults").glob("*.yaml"))
    assert paths
    for path in paths:
        values = options_of(path)
        assert {key: compose([f"generator={path.stem}"]).evaluate[key] for key in values} == values
        assert compose([f"generator={path.stem}", "evaluate.scores=codes"]).evaluate.scores == "codes"
        assert compose([]).evaluate.scores == "codes"


@pytest.mark.parametrize("name", TABLES)
def test_an_experiment_plans_all_its_rows_and_the_command_line_wins(name):
    options = [f"experiment={name}"]
    cfg = compose(options)
    rows = plan_rows(options, cfg, Path("results"))
    assert [row.name for row in rows] == [*cfg.baselines, *cfg.tokenizers]
    assert cfg.reference in [*cfg.tokenizers, *cfg.baselines]
    assert cfg.table.startswith(f"{cfg.dataset.name}_")
    told = compose([*options, "dataset=sample", "embedder=hashed", "generator=t5_items", "train.epochs=3"])
    assert told.table == cfg.table.replace(cfg.dataset.name, "sample")
    assert (told.dataset.name, told.embedder.name, told.generator.name, told.train.epochs) == (
        "sample",
        "hashed",
        "t5_items",
        3,
    )


def test_the_sample_is_small_and_the_command_line_wins():
    small, full = plan(compose([])), plan(compose(["dataset=beauty"]))
    assert plan(compose(["dataset=sample"]))["train"].config == small["train"].config
    assert small["train"].config.generator.d_model < full["train"].config.generator.d_model
    assert small["tokenize"].config.tokenizer.codebook_size < full["tokenize"].config.tokenizer.codebook_size == 256
    yaml = OmegaConf.load(config_folder() / "generator" / "t5.yaml")
    assert full["train"].config.generator == build_choice(yaml, "generator", Generator, ("seed",))[0]
    chosen = plan(compose(["generator.d_model=32", "train.epochs=3", "tokenizer.codebook_size=5"]))
    assert chosen["train"].config.generator.d_model == 32
    assert chosen["train"].config.training.epochs == 3
    assert chosen["tokenize"].config.tokenizer.codebook_size == 5
    assert chosen["train"].config.generator.num_layers == small["train"].config.generator.num_layers


def test_an_option_that_a_choice_lacks_is_refused_before_any_work():
    with pytest.raises(
        ConfigError, match=r"train.foo is not an option; allowed: adam_beta2, batch_scope, batch_targets, "
    ):
        plan(compose(["+train.foo=1"]))


def test_no_path_is_part_of_an_identity():
    for choices in TOGETHER:
        for step in plan(compose(choices)).values():
            for field in dataclasses.fields(step.config):
                if isinstance(getattr(step.config, field.name), Path):
                    assert not field.metadata.get("identity", True), f"{choices}: {field.name}"


def test_planning_imports_nothing_heavy():
    script = f"""
import sys
from tigerrec import config, pipeline
for choices in {TOGETHER!r}:
    pipeline.plan(config.compose(choices))
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
