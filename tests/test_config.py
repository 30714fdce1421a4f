"""From yaml to a checked dataclass: what is wrong is named, with what is allowed, and no yaml can call anything."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tigerrec import TigerrecError
from tigerrec.baselines.base import Baseline
from tigerrec.config import ConfigError, build, build_choice, compose, families, family_class
from tigerrec.data.amazon import AmazonReviews
from tigerrec.data.base import Dataset
from tigerrec.embed.base import Embedder
from tigerrec.evaluation.stage import EvaluateConfig
from tigerrec.models.base import Generator
from tigerrec.models.t5 import T5
from tigerrec.tokenizers.base import Tokenizer
from tigerrec.tokenizers.rkmeans import ResidualKMeans
from tigerrec.tokenizers.rqvae import RQVAE
from tigerrec.tokenizers.stage import TokenizeConfig
from tigerrec.training.options import TrainConfig, Training

T5_NODE = {"family": "t5", "num_layers": 2}
DATASET_NODE = {
    "family": "amazon",
    "raw_dir": "data",
    "interactions": "a.json.gz",
    "metadata": "b.json.gz",
}


def refused(call, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_a_node_becomes_its_dataclass():
    assert build(T5_NODE, "generator", Generator) == T5(num_layers=2)
    assert build(OmegaConf.create(T5_NODE), "generator", Generator) == T5(num_layers=2)
    assert build({"learning_rate": 1}, "train", Training).learning_rate == 1.0


def test_values_take_their_annotated_types():
    data = build(DATASET_NODE | {"expected": [1, 2, 3]}, "dataset", Dataset)
    assert data == AmazonReviews(Path("data"), "a.json.gz", "b.json.gz", expected=(1, 2, 3))
    assert isinstance(data.raw_dir, Path)
    assert isinstance(data.expected, tuple)
    rqvae = build({"family": "rqvae", "hidden": [8, 4]}, "tokenizer", Tokenizer)
    assert rqvae == RQVAE(hidden=(8, 4))
    hash(rqvae)


def test_none_only_where_it_is_allowed():
    assert build(DATASET_NODE | {"url": None}, "dataset", Dataset).url is None
    assert "dataset.metadata=None has the wrong type" in refused(
        build, DATASET_NODE | {"metadata": None}, "dataset", Dataset
    )
    assert "generator.d_model=None has the wrong type" in refused(
        build, T5_NODE | {"d_model": None}, "generator", Generator
    )


def test_a_misspelt_key_names_the_allowed_ones():
    text = refused(build, T5_NODE | {"d_modle": 3}, "generator", Generator)
    assert text.startswith("generator.d_modle is not an option; allowed: d_ff, d_kv, d_model, ")


@pytest.mark.parametrize("value", ["many", 2.5, True, [3], {"a": 1}, "???"])
def test_a_wrong_type_is_named(value):
    assert refused(build, T5_NODE | {"num_layers": value}, "generator", Generator).startswith(
        f"generator.num_layers={value!r} has the wrong type: "
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_only_finite_numbers(value):
    assert "train.learning_rate must be a finite number, got" in refused(
        build, {"learning_rate": value}, "train", Training
    )


def test_a_value_out_of_range_says_what_is_allowed():
    assert (
        refused(build, T5_NODE | {"num_layers": 0}, "generator", Generator)
        == "generator.num_layers must be at least 1, got 0."
    )
    assert "expected must be [users, items, interactions] or []" in refused(
        build, DATASET_NODE | {"expected": [1]}, "dataset", Dataset
    )


def test_a_missing_key_says_how_to_give_it():
    node = {key: value for key, value in DATASET_NODE.items() if key != "metadata"}
    assert (
        refused(build, node, "dataset", Dataset)
        == "dataset.metadata is missing; give it as `dataset.metadata=<value>`."
    )


def test_interpolations_are_resolved_or_named():
    root = OmegaConf.create(
        {"width": 32, "generator": T5_NODE | {"d_model": "${width}"}, "broken": T5_NODE | {"d_model": "${nothing}"}}
    )
    assert build(root.generator, "generator", Generator).d_model == 32
    assert "'nothing' not found" in refused(build, root.broken, "generator", Generator)


def test_children_are_built_first():
    node = {"generator": T5_NODE, "training": {}, "seed": 3}
    assert build(node, "train", TrainConfig) == TrainConfig(T5(num_layers=2), Training(), 3)
    assert build(node | {"generator": T5(num_layers=5)}, "train", TrainConfig).generator.num_layers == 5
    assert "train.generator.d_modle is not an option" in refused(
        build, node | {"generator": T5_NODE | {"d_modle": 1}}, "train", TrainConfig
    )


def test_a_child_of_another_kind_is_refused():
    assert build({"tokenizer": ResidualKMeans()}, "tokenizer", TokenizeConfig) == TokenizeConfig(ResidualKMeans())
    assert (
        refused(build, {"tokenizer": T5()}, "tokenizer", TokenizeConfig)
        == "tokenizer.tokenizer must be a Tokenizer, not a T5."
    )
    assert "tokenizer.tokenizer.family='t5' is unknown" in refused(
        build, {"tokenizer": T5_NODE}, "tokenizer", TokenizeConfig
    )
    assert "tokenizer.tokenizer" in refused(build, {"tokenizer": 5}, "tokenizer", TokenizeConfig)
    train = {"generator": T5_NODE, "training": T5()}
    assert "train.training" in refused(build, train, "train", TrainConfig)


@pytest.mark.parametrize(
    "family",
    [
        "os.system",
        "os",
        "..artifacts",
        "artifacts",
        "base",
        "t6",
        "",
        "tigerrec.tokenizers.rqvae",
        None,
        5,
        ["rqvae"],
        {},
    ],
)
def test_only_families_of_a_room_can_be_built(tmp_path, monkeypatch, family):
    called = []
    monkeypatch.setattr("os.system", called.append)
    monkeypatch.setattr("tigerrec.storage.files.remove_tree", called.append)
    for node in ({"family": family, "folder": str(tmp_path)}, {"family": family}):
        text = refused(build, node, "tokenizer", Tokenizer)
        assert text.startswith(f"tokenizer.family={family!r} is unknown; allowed: fsq, hkmeans, ")
    assert "train.generator.family=" in refused(build, {"generator": {"family": family}}, "train", TrainConfig)
    assert not called


def test_an_import_path_is_no_option():
    node = {"family": "rqvae", "_target_": "os.system"}
    assert refused(build_choice, node, "tokenizer", Tokenizer).startswith("tokenizer._target_ is not an option; ")
    assert refused(build, {"_target_": "tigerrec.tokenizers.rqvae.RQVAE"}, "tokenizer", Tokenizer).startswith(
        "tokenizer.family=None is unknown; allowed: "
    )


def test_every_family_stands_in_the_module_of_its_name():
    for protocol in (Dataset, Embedder, Tokenizer, Generator, Baseline):
        for family, kind in families(protocol).items():
            assert family_class(protocol, family, "x") is kind


def test_reserved_keys_are_handed_to_the_stage():
    part, keys = build_choice(T5_NODE | {"name": "t5", "seed": 4}, "generator", Generator, ("seed",))
    assert part == T5(num_layers=2)
    assert keys == {"name": "t5", "seed": 4}
    assert "generator.seed is not an option" in refused(build_choice, T5_NODE | {"seed": 4}, "generator", Generator)
    assert (
        "allowed: d_ff, d_kv, d_model, decoder_reads, dropout_rate, family, history, item_loss, max_items, name, "
        in refused(build_choice, T5_NODE | {"nmae": "x"}, "generator", Generator)
    )
    assert (
        refused(build_choice, None, "generator", Generator)
        == "generator must be one of the choices in configs/generator/, got None."
    )


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("tokenizer=nothing", "tokenizer=nothing is not a choice; allowed: "),
        ("train.epoch=5", "train.epoch is not an option; allowed: adam_beta2, batch_scope, batch_targets, "),
        ("nothing=5", "nothing is not an option; allowed: audit, baseline, "),
        ("train.epochs=[5", "The configuration cannot be read: "),
        ("train", "The configuration cannot be read: "),
        ("train=null", "The configuration cannot be read: "),
    ],
)
def test_what_hydra_refuses_is_one_sentence_too(override, text):
    assert refused(compose, [override]).startswith(text)


def test_configuration_errors_are_user_errors():
    assert issubclass(ConfigError, TigerrecError)
    with pytest.raises(ValueError, match="beam_size must be at least k=20"):
        EvaluateConfig(beam_size=10)


def test_a_part_given_as_a_word_is_refused_with_the_option_to_give():
    node = {"family": "rqvae", "estimator": "rotation"}
    assert (
        refused(build, node, "tokenizer", Tokenizer)
        == "tokenizer.estimator='rotation' must be a part; give `tokenizer.estimator.family=<name>`."
    )
