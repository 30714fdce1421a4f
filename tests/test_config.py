"""From yaml to a checked dataclass: what is wrong is named, with what is allowed, and no yaml can call anything."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tigerrec import TigerrecError, artifacts
from tigerrec.amazon import AmazonReviews
from tigerrec.config import ConfigError, build, build_choice, compose
from tigerrec.evaluate import EvaluateConfig
from tigerrec.generator import T5
from tigerrec.tokenizers import TokenizeConfig
from tigerrec.tokenizers.rkmeans import ResidualKMeans
from tigerrec.tokenizers.rqvae import RQVAE
from tigerrec.train import TrainConfig, Training

T5_NODE = {"_target_": "tigerrec.generator.T5", "num_layers": 2}
TRAINING_NODE = {"_target_": "tigerrec.train.Training"}
DATASET_NODE = {
    "_target_": "tigerrec.amazon.AmazonReviews",
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
    assert build(T5_NODE, "generator") == T5(num_layers=2)
    assert build(OmegaConf.create(T5_NODE), "generator") == T5(num_layers=2)
    assert build({"_target_": "tigerrec.train.Training", "learning_rate": 1}, "train").learning_rate == 1.0


def test_values_take_their_annotated_types():
    data = build(DATASET_NODE | {"expected": [1, 2, 3]}, "dataset")
    assert data == AmazonReviews(Path("data"), "a.json.gz", "b.json.gz", expected=(1, 2, 3))
    assert isinstance(data.raw_dir, Path)
    assert isinstance(data.expected, tuple)
    rqvae = build({"_target_": "tigerrec.tokenizers.rqvae.RQVAE", "hidden": [8, 4]}, "tokenizer")
    assert rqvae == RQVAE(hidden=(8, 4))
    hash(rqvae)


def test_none_only_where_it_is_allowed():
    assert build(DATASET_NODE | {"url": None}, "dataset").url is None
    assert "dataset.metadata=None has the wrong type" in refused(build, DATASET_NODE | {"metadata": None}, "dataset")
    assert "generator.d_model=None has the wrong type" in refused(build, T5_NODE | {"d_model": None}, "generator")


def test_a_misspelt_key_names_the_allowed_ones():
    text = refused(build, T5_NODE | {"d_modle": 3}, "generator")
    assert text.startswith("generator.d_modle is not an option; allowed: d_ff, d_kv, d_model, ")


@pytest.mark.parametrize("value", ["many", 2.5, True, [3], {"a": 1}, "???"])
def test_a_wrong_type_is_named(value):
    assert refused(build, T5_NODE | {"num_layers": value}, "generator").startswith(
        f"generator.num_layers={value!r} has the wrong type: "
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_only_finite_numbers(value):
    assert "train.learning_rate=" in refused(build, TRAINING_NODE | {"learning_rate": value}, "train")


def test_a_value_out_of_range_says_what_is_allowed():
    assert (
        refused(build, T5_NODE | {"num_layers": 0}, "generator") == "generator: num_layers must be at least 1, got 0."
    )
    assert "expected must be [users, items, interactions] or []" in refused(
        build, DATASET_NODE | {"expected": [1]}, "dataset"
    )


def test_a_missing_key_says_how_to_give_it():
    node = {key: value for key, value in DATASET_NODE.items() if key != "metadata"}
    assert refused(build, node, "dataset") == "dataset.metadata is missing; give it as `dataset.metadata=<value>`."


def test_interpolations_are_resolved_or_named():
    root = OmegaConf.create(
        {"width": 32, "generator": T5_NODE | {"d_model": "${width}"}, "broken": T5_NODE | {"d_model": "${nothing}"}}
    )
    assert build(root.generator, "generator").d_model == 32
    assert "'nothing' not found" in refused(build, root.broken, "generator")


def test_children_are_built_first():
    node = {"_target_": "tigerrec.train.TrainConfig", "generator": T5_NODE, "training": TRAINING_NODE, "seed": 3}
    assert build(node, "train") == TrainConfig(T5(num_layers=2), Training(), 3)
    assert build(node | {"generator": T5(num_layers=5)}, "train").generator.num_layers == 5
    assert "train.generator.d_modle is not an option" in refused(
        build, node | {"generator": T5_NODE | {"d_modle": 1}}, "train"
    )


def test_a_child_of_another_kind_is_refused():
    node = {"_target_": "tigerrec.tokenizers.TokenizeConfig"}
    assert build(node | {"tokenizer": ResidualKMeans()}, "tokenizer") == TokenizeConfig(ResidualKMeans())
    assert (
        refused(build, node | {"tokenizer": T5_NODE}, "tokenizer")
        == "tokenizer.tokenizer must be a Tokenizer, not a T5."
    )
    assert "tokenizer.tokenizer" in refused(build, node | {"tokenizer": 5}, "tokenizer")
    train = {"_target_": "tigerrec.train.TrainConfig", "generator": T5_NODE, "training": T5_NODE}
    assert "train.training must be a Training, not a T5" in refused(build, train, "train")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "os.system\ntigerrec.",
        "tigerrec.artifacts.remove_tree",
        "tigerrec.artifacts.StageFiles",
        "tigerrec.artifacts.os.system",
        "tigerrec.artifacts.subprocess",
        "tigerrec.nowhere.T5",
        "tigerrec.generator.T6",
        "tigerrec.generator.",
        "tigerrec",
        "tigerrec..generator.T5",
        "omegaconf.DictConfig",
        None,
        5,
        ["tigerrec.generator.T5"],
    ],
)
def test_only_dataclasses_of_tigerrec_can_be_built(tmp_path, monkeypatch, target):
    called = []
    monkeypatch.setattr("os.system", called.append)
    monkeypatch.setattr("tigerrec.artifacts.remove_tree", called.append)
    for node in ({"_target_": target, "folder": str(tmp_path)}, {"_target_": target}):
        text = refused(build, node, "tokenizer")
        assert text == f"tokenizer._target_={target!r} is not a dataclass of tigerrec; correct the yaml of this choice."
    assert refused(
        build, {"_target_": "tigerrec.train.TrainConfig", "generator": {"_target_": target}}, "train"
    ).startswith("train.generator._target_=")
    assert not called


def test_a_dataclass_of_another_package_is_refused(monkeypatch):
    import dataclasses

    monkeypatch.setattr(artifacts, "Foreign", dataclasses.make_dataclass("Foreign", ["command"]), raising=False)
    assert "is not a dataclass of tigerrec" in refused(
        build, {"_target_": "tigerrec.artifacts.Foreign", "command": "ls"}, "x"
    )


def test_reserved_keys_are_handed_to_the_stage():
    part, keys = build_choice(T5_NODE | {"name": "t5", "seed": 4}, "generator", ("seed",))
    assert part == T5(num_layers=2)
    assert keys == {"name": "t5", "seed": 4}
    assert "generator.seed is not an option" in refused(build_choice, T5_NODE | {"seed": 4}, "generator")
    assert (
        "allowed: d_ff, d_kv, d_model, decoder_reads, dropout_rate, history, item_loss, max_items, name, "
        in refused(build_choice, T5_NODE | {"nmae": "x"}, "generator")
    )
    assert (
        refused(build_choice, None, "generator")
        == "generator must be one of the choices in configs/generator/, got None."
    )


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("tokenizer=nothing", "tokenizer=nothing is not a choice; allowed: "),
        ("train.epoch=5", "train.epoch is not an option; allowed: batch_targets, beam_size, "),
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
    node = {"_target_": "tigerrec.tokenizers.rqvae.RQVAE", "estimator": "rotation"}
    with pytest.raises(
        ConfigError,
        match=r"tokenizer\.estimator='rotation' must be a part; give its class as `tokenizer\.estimator\._target_=",
    ):
        build(node, "tokenizer")
