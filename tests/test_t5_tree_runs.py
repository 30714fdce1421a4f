"""`t5_tree` from training to new items: what every family promises, and what its item head adds."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.crashes import dies
from tests.tiny_run import GENERATORS, N_ITEMS, build_embedded_run, write_train
from tigerrec import TigerrecError, pipeline
from tigerrec.analysis.report import report_run
from tigerrec.analysis.training_runs import plot_validation, read_runs
from tigerrec.config import ConfigError, compose
from tigerrec.data.histories import load_histories, training_counts
from tigerrec.embed.hashed import Hashed
from tigerrec.embed.stage import embed, load_embeddings
from tigerrec.evaluation.stage import EvaluateConfig, evaluate
from tigerrec.models.base import VECTORS
from tigerrec.models.loading import load_generator
from tigerrec.search.options import item_weight
from tigerrec.serving.export import export
from tigerrec.serving.new_items import NewItemsError, add_items
from tigerrec.serving.recommender import Recommender, RecommendError
from tigerrec.storage.contracts import read_json, read_table
from tigerrec.storage.manifests import read_manifest
from tigerrec.storage.stages import writing
from tigerrec.tokenizers.ids import load_semantic_ids
from tigerrec.training.options import TrainConfig, Training
from tigerrec.training.stage import train

TRAINING = Training(
    epochs=3, validate_every=1, batch_targets=24, part_tokens=64, stride=3, validation_users=30, checkpoint_steps=4,
    log_steps=4, precision="fp32", embedding_rate=1.0, item_embedding_rate=1.0,
)  # fmt: skip
CONFIG = TrainConfig(replace(GENERATORS["t5_tree"], members=2), TRAINING)
WITH_VECTORS = TrainConfig(replace(GENERATORS["t5_tree"], item_vectors=True), TRAINING)
HISTORY = [f"{number:010d}" for number in (3, 11, 7, 20, 5)]
TABLE = "item_id,title,text\nnew-a,Like item 3,Item 3 of kind 3\nnew-b,Another,Something else altogether\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Two of the items are in no history."""
    made = build_embedded_run(tmp_path_factory.mktemp("runs"))
    table = read_table(made["prepare"], "interactions.parquet").to_pandas()
    table["item"] = table["item"].where(table["item"] < N_ITEMS - 2, table["item"] - 20).astype(np.int32)
    rewrite(made["prepare"], table, made["prepare"])
    write_train(made, load_semantic_ids(made["tokenize"]), 0)
    made[VECTORS] = embed(made["prepare"], Hashed(dim=6), made["prepare"] / "vectors")
    return made


@pytest.fixture(scope="module")
def trained(folders) -> Path:
    return run(folders, CONFIG, "tree")


@pytest.fixture(scope="module")
def with_vectors(folders) -> Path:
    return run(folders, WITH_VECTORS, "tree_vectors")


def rewrite(prepared: Path, interactions: pd.DataFrame, out: Path) -> None:
    """A prepare stage with other interactions."""
    tables = {name: read_table(prepared, f"{name}.parquet") for name in ("items", "interactions")}
    stats, config = read_json(prepared, "stats.json"), read_manifest(prepared).config
    tables["interactions"] = pa.Table.from_pandas(interactions, preserve_index=False)
    with writing(out, "prepare", config) as files:
        for name, table in tables.items():
            files.parquet(f"{name}.parquet", table)
        files.json("stats.json", stats)


def run(folders: dict[str, Path], config: TrainConfig, name: str, prepared: Path | None = None) -> Path:
    extra = {VECTORS: folders[VECTORS]} if config.generator.item_vectors else {}
    return train(prepared or folders["prepare"], folders["tokenize"], config, folders["tokenize"] / name, extra)


def content(folder: Path) -> dict[str, str]:
    files = read_manifest(folder).files.items()
    return {name: entry["sha256"] for name, entry in files if not entry.get("measured")}


@pytest.mark.parametrize("number", [3, 40, 90])
def test_a_killed_training_goes_on_to_the_same_bytes(folders, trained, number):
    name = f"killed-{number}"
    out = folders["tokenize"] / name
    assert dies(out, partial(run, folders, CONFIG, name), number, "SIGKILL")
    assert content(run(folders, CONFIG, name)) == content(trained)


def test_poisoned_test_targets_change_nothing(folders, trained, tmp_path):
    table = read_table(folders["prepare"], "interactions.parquet").to_pandas()
    last = table.groupby("user")["position"].transform("max") == table["position"]
    table.loc[last, "item"] = np.int32(0)
    rewrite(folders["prepare"], table, tmp_path / "toy")
    poisoned = run(folders, CONFIG, "poisoned", tmp_path / "toy")
    assert content(poisoned) == content(trained)


def test_items_that_training_does_not_hold_have_no_embedding_and_no_node_of_theirs_is_needed(folders, trained):
    model = load_generator(trained, load_semantic_ids(folders["tokenize"]))
    counts = training_counts(load_histories(folders["prepare"]))
    assert model.unseen_items().tolist() == np.flatnonzero(counts == 0).tolist()
    assert len(model.unseen_items())


def test_the_weights_of_the_head_are_those_that_validate_best(trained):
    log = [json.loads(line) for line in (trained / "training.jsonl").read_text().splitlines()]
    for scores in ("hybrid", "inline"):
        (line,) = [line for line in log if line.get("scores") == scores]
        tried = {each["item_weight"]: each["ndcg@10"] for each in line["tried"]}
        assert len(tried) >= 5
        assert tried[item_weight(trained, scores)] == max(tried.values())


@pytest.mark.parametrize("scores", ["codes", "items", "hybrid", "inline"])
def test_every_kind_of_scores_is_evaluated_and_its_weight_recorded(folders, trained, scores):
    config = EvaluateConfig(model="tree", scores=scores, precision="fp32")
    out = evaluate(folders["prepare"], folders["tokenize"], trained, config, trained / f"eval-{scores}")
    manifest = read_manifest(out)
    assert manifest.provenance["item_weight"] == item_weight(trained, scores)
    assert manifest.config.get("scores", "codes") == scores
    assert {row["model"] for row in read_json(out, "metrics.json")} == {"tree", "popularity"}


def test_a_trained_tree_is_reported_and_compared_by_its_validations_alone(folders, trained, tmp_path):
    lines = [json.loads(line) for line in (trained / "training.jsonl").read_text().splitlines()]
    (compared,) = read_runs([trained])
    assert [line["epoch"] for line in compared.validations] == [1, 2, 3]
    assert compared.validated in [line for line in lines if line.get("selection")]
    plot_validation([compared], tmp_path / "validation.png")
    config = EvaluateConfig(model="tree", scores="hybrid")
    page = report_run(evaluate(folders["prepare"], folders["tokenize"], trained, config, trained / "eval-reported"))
    (line,) = [line for line in lines if line.get("scores") == "hybrid"]
    for tried in line["tried"]:
        assert f"{tried['ndcg@10']:.4f}" in page.read_text()


def test_a_model_with_vectors_keeps_places_for_new_items(folders, with_vectors):
    counts = training_counts(load_histories(folders["prepare"]))
    unseen = set(np.flatnonzero(counts == 0).tolist())
    config = EvaluateConfig(model="tree", scores="hybrid", cold_places=1, precision="fp32")
    out = evaluate(folders["prepare"], folders["tokenize"], with_vectors, config, with_vectors / "eval-cold")
    rows = read_table(out, "recommendations.parquet").to_pandas()
    first = rows[(rows["model"] == "tree") & (rows["seen"] == "kept") & (rows["rank"] <= 10)]
    n_unseen = first["item"].isin(unseen).groupby(first["user"]).sum()
    assert len(n_unseen) == 50
    assert (n_unseen >= 1).all()


def test_scores_that_a_generator_does_not_give_are_refused_with_what_to_choose(folders, trained):
    prepared, tokenized, out = folders["prepare"], folders["tokenize"], trained / "eval-refused"
    with pytest.raises(ConfigError, match=re.escape("give `generator=t5_tree_vectors`")):
        evaluate(prepared, tokenized, trained, EvaluateConfig(cold_places=1), out)
    with pytest.raises(ConfigError, match=re.escape("evaluate.scores=hybrid needs a generator with an item head")):
        evaluate(prepared, tokenized, folders["train"], EvaluateConfig(scores="hybrid"), out)
    with pytest.raises(ConfigError, match="scores must be 'codes', 'items', 'hybrid', 'inline' or 'liger'"):
        pipeline.plan(compose(["evaluate.scores=beam"]))
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["generator=t5", "evaluate.scores=hybrid"], "evaluate.scores=hybrid needs a generator with an item head"),
        (["generator=t5_tree", "generator.item_loss=0"], "generator.item_loss above 0, or `evaluate.scores=codes"),
        (["generator=t5_tree", "evaluate.cold_places=1"], "give `generator=t5_tree_vectors`"),
        (["generator=t5_tree", "evaluate.scores=items", "evaluate.item_weight=3"], "item_weight has no effect"),
    ],
)
def test_scores_that_a_choice_cannot_give_are_refused_before_any_work(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        pipeline.plan(compose(options))


def test_a_training_without_the_vectors_that_it_reads_is_refused(folders, tmp_path):
    out = tmp_path / "tree"
    with pytest.raises(TigerrecError, match="reads item vectors"):
        train(folders["prepare"], folders["tokenize"], WITH_VECTORS, out)
    fewer = tmp_path / "fewer"
    with writing(fewer, "embed", Hashed(dim=6), {"prepare": folders["prepare"]}) as files:
        files.arrays("embeddings.safetensors", {"embeddings": np.ones((1, 6), np.float32)})
    with pytest.raises(TigerrecError, match="1 vectors for 40 items"):
        train(folders["prepare"], folders["tokenize"], WITH_VECTORS, out, {VECTORS: fewer})
    assert not out.exists()


def test_vectors_of_items_are_planned_as_an_input_of_training():
    steps = pipeline.plan(compose(["generator=t5_tree_vectors", "embedder=hashed"]))
    assert steps["train"].inputs[VECTORS] == steps["prepare"].folder / "minilm"
    with pytest.raises(ConfigError, match=re.escape("embedder@generator.inputs.vectors=<embedder>")):
        pipeline.plan(compose(["generator=t5_tree", "generator.item_vectors=true"]))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"scores": "hybird"}, "scores must be 'codes', 'items', 'hybrid', 'inline' or 'liger', got 'hybird'"),
        ({"cold_places": 11}, "cold_places must be at most 10, got 11"),
        ({"cold_places": -1}, "cold_places must be at least 0, got -1"),
    ],
)
def test_a_recommender_refuses_what_no_list_can_be_made_by(with_vectors, asked, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Recommender.from_pretrained(with_vectors, device="cpu", **asked)


def test_an_export_recommends_as_its_run_by_the_joined_scores(trained, tmp_path):
    own = Recommender.from_pretrained(trained, device="cpu")
    exported = Recommender.from_pretrained(export(trained, tmp_path / "export"), device="cpu")
    assert own.searcher.scoring.scores == "hybrid"
    assert own.searcher.scoring.item_weight == item_weight(trained, "hybrid") == exported.searcher.scoring.item_weight
    assert own.recommend(HISTORY) == exported.recommend(HISTORY)
    by_codes = Recommender.from_pretrained(trained, device="cpu", scores="codes").recommend(HISTORY, k=N_ITEMS)
    total = sum(np.exp(item.score) for item in by_codes)
    assert 0 < total < 1
    assert "scores (hybrid)" in own.report(HISTORY)


def test_new_items_join_a_tree_without_vectors_and_are_reached_by_their_codes(trained, tmp_path):
    table = tmp_path / "new.csv"
    table.write_text(TABLE)
    folder = add_items(trained, table, tmp_path / "out")
    codes = load_semantic_ids(folder).codes
    loaded = Recommender.from_pretrained(folder, device="cpu")
    added = Recommender.from_pretrained(trained, device="cpu").with_items(
        ["new-a", "new-b"], codes[N_ITEMS:], ["Like item 3", "Another"]
    )
    for history in (HISTORY, ["new-a", HISTORY[0]]):
        found = loaded.recommend(history, k=100)
        assert found == added.recommend(history, k=100)
        assert len(found) == N_ITEMS + 2 - len(history)


def test_new_items_join_a_tree_with_vectors_one_after_the_other(folders, with_vectors, tmp_path):
    """The vectors that the generator reads are another embedder's than those of the tokenizer."""
    one, two, both = (tmp_path / f"{name}.csv" for name in ("one", "two", "both"))
    head, first, second = TABLE.splitlines()
    one.write_text(f"{head}\n{first}\n")
    two.write_text(f"{head}\n{second}\n")
    both.write_text(TABLE)
    step = add_items(add_items(with_vectors, one, tmp_path / "step"), two, tmp_path / "twice")
    at_once = add_items(with_vectors, both, tmp_path / "once")
    lists = [Recommender.from_pretrained(folder, device="cpu").recommend(HISTORY, k=100) for folder in (step, at_once)]
    assert lists[0] == lists[1]
    texts = ["Item 3 of kind 3", "Something else altogether"]
    expected = Hashed(dim=6).open()(["new-a", "new-b"], texts)
    model = Recommender.from_pretrained(at_once, device="cpu").searcher.model
    np.testing.assert_array_equal(model.further_vectors.numpy(), expected)
    np.testing.assert_array_equal(model.network.vectors.detach().numpy(), load_embeddings(folders[VECTORS]))
    assert {item.item_id for item in lists[0]} >= {"new-a", "new-b"}


def test_a_recommender_keeps_places_for_items_that_training_never_saw(trained, with_vectors, tmp_path):
    table = tmp_path / "new.csv"
    table.write_text(TABLE)
    added = add_items(with_vectors, table, tmp_path / "added")
    usual, kept = (Recommender.from_pretrained(added, device="cpu", cold_places=n) for n in (0, 9))
    unseen = {usual.item_ids[item] for item in usual.searcher.model.unseen_items().tolist()}
    assert unseen >= {"new-a", "new-b"}
    for k in (3, 20):
        listed = {item.item_id for item in kept.recommend(HISTORY, k=k)[:10]}
        assert len(listed & unseen) == min(k, len(unseen))
    assert len({item.item_id for item in usual.recommend(HISTORY, k=3)} & unseen) < 3
    with pytest.raises(ConfigError, match="by which it knows new items"):
        Recommender.from_pretrained(trained, device="cpu", cold_places=2)


def test_new_items_whose_vectors_the_generator_cannot_get_are_refused(folders, with_vectors, tmp_path):
    shutil.copytree(folders["prepare"], tmp_path / "toy")
    shutil.rmtree(tmp_path / "toy" / "vectors")
    moved, table = tmp_path / "toy" / with_vectors.relative_to(folders["prepare"]), tmp_path / "new.csv"
    table.write_text(TABLE)
    with pytest.raises(NewItemsError, match=r"does not say which embedder made .* as a column 'generator_vector'"):
        add_items(moved, table, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    given = tmp_path / "new.jsonl"
    row = {"item_id": "new", "text": "Item 3 of kind 3", "generator_vector": [1.0] * 6}
    given.write_text(json.dumps(row) + "\n")
    added = Recommender.from_pretrained(add_items(moved, given, tmp_path / "out"), device="cpu")
    assert added.searcher.model.further_vectors.tolist() == [[1.0] * 6]
    given.write_text(json.dumps(row | {"generator_vector": [1.0] * 5}) + "\n")
    with pytest.raises(NewItemsError, match="reads vectors of 6 numbers, not 5"):
        add_items(moved, given, tmp_path / "other")


def test_new_items_in_memory_need_the_vectors_that_the_generator_reads(with_vectors):
    recommender = Recommender.from_pretrained(with_vectors, device="cpu")
    codes = recommender.catalogue.codes[:1].copy()
    codes[0, -1] = 7
    with pytest.raises(RecommendError, match="reads a vector of 6 numbers"):
        recommender.with_items(["new"], codes)
    added = recommender.with_items(["new"], codes, vectors=np.ones((1, 6), np.float32))
    assert "new" in {item.item_id for item in added.recommend(HISTORY, k=100)}
