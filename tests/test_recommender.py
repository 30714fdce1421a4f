"""Recommendations from a run folder and from an export, and the errors a user meets."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_run import N_ITEMS, build_run, write_train
from tigerrec import TigerrecError
from tigerrec.evaluation.stage import EvaluateConfig, evaluate
from tigerrec.serving.export import export
from tigerrec.serving.recommender import Recommender, RecommendError
from tigerrec.storage.contracts import read_json
from tigerrec.storage.files import ArtifactError, BusyError, locked_beside
from tigerrec.storage.manifests import MANIFEST, DamagedError, StaleError, read_manifest
from tigerrec.storage.stages import StageFiles, open_stage, writing
from tigerrec.tokenizers.ids import load_semantic_ids

HISTORY = ["0000000003", "0000000011", "0000000007"]


@pytest.fixture(scope="module", params=["codes", "items", "decoder_only", "t5_tree"])
def run(request, tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("runs"), history=request.param)


@pytest.fixture(scope="module")
def recommender(run):
    return Recommender.from_pretrained(run["train"], device="cpu")


def test_recommendations_are_items_with_titles_and_semantic_ids(run, recommender):
    found = recommender.recommend(HISTORY, k=10)
    codes = load_semantic_ids(run["tokenize"]).codes
    assert len(found) == len({item.item_id for item in found}) == 10
    assert not {item.item_id for item in found} & set(HISTORY)
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    for item in found:
        assert item.semantic_id == tuple(codes[int(item.item_id)])
        assert item.title == (None if item.item_id == "0000000007" else f"Item {int(item.item_id)}")


def test_the_whole_catalogue_at_most(recommender):
    assert len(recommender.recommend(HISTORY, k=1_000)) == N_ITEMS - len(HISTORY)
    kept = recommender.recommend(HISTORY, k=1_000, mask_seen=False)
    assert sorted(int(item.item_id) for item in kept) == list(range(N_ITEMS))


def test_a_batch_equals_one_by_one(recommender):
    histories = [HISTORY, HISTORY[:1], [f"{number:010d}" for number in range(12)]]
    for history, together in zip(histories, recommender.recommend_batch(histories, k=5), strict=True):
        alone = recommender.recommend(history, k=5)
        assert [item.item_id for item in alone] == [item.item_id for item in together]
        assert [item.score for item in alone] == pytest.approx([item.score for item in together], abs=1e-4)


def test_unknown_items_are_ignored_and_named(recommender, caplog):
    with caplog.at_level(logging.WARNING, "tigerrec"):
        found = recommender.recommend(["B000NOWHERE", *HISTORY])
    assert found == recommender.recommend(HISTORY)
    assert "ignored 1 of 4 item ids" in caplog.text
    assert "'B000NOWHERE'" in caplog.text


def test_a_batch_goes_on_where_a_history_is_unknown(recommender, caplog):
    histories = [HISTORY, ["gone"], [], *([f"gone{number}", HISTORY[0]] for number in range(50))]
    with caplog.at_level(logging.WARNING, "tigerrec"):
        found = recommender.recommend_batch(histories, k=5.0)
    assert [len(row) for row in found] == [5] * 53
    assert [{item.fallback for item in row} for row in found] == [{False}, {True}, {True}, *[{False}] * 50]
    assert [item.item_id for item in found[0]] == [item.item_id for item in recommender.recommend(HISTORY, k=5)]
    assert [record.message for record in caplog.records] == [
        "ignored 51 of 104 item ids that are not in the catalogue: 'gone', 'gone0', 'gone1', 'gone2', "
        "'gone3', 'gone4', 'gone5', 'gone6', 'gone7', 'gone8' and 41 more",
        "2 of 53 histories have no item of the catalogue and get what was bought most: rows 1, 2",
    ]
    assert len(recommender.recommend(HISTORY, k=np.int64(2))) == 2


@pytest.mark.parametrize("k", ["5", 2.5, None, True, float("nan"), float("inf")])
def test_k_is_a_whole_number(recommender, k):
    with pytest.raises(RecommendError, match="k must be a whole number from 1 up"):
        recommender.recommend(HISTORY, k=k)


@pytest.mark.parametrize(
    ("history", "k", "message"),
    [
        (HISTORY, 0, "k must be a whole number from 1 up, got 0"),
    ],
)
def test_requests_without_an_answer(recommender, history, k, message):
    with pytest.raises(TigerrecError, match=message):
        recommender.recommend(history, k=k)


def test_a_folder_that_is_no_run(run, tmp_path):
    with pytest.raises(RecommendError, match="holds no finished stage; give the folder that `tigerrec train` printed"):
        Recommender.from_pretrained(tmp_path)
    with pytest.raises(RecommendError, match="does not exist; give the folder"):
        Recommender.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(RecommendError, match="holds the stage 'tokenize'; give the folder"):
        Recommender.from_pretrained(run["tokenize"])


def test_semantic_ids_of_another_run_are_refused(tmp_path):
    folders, other = build_run(tmp_path / "one"), build_run(tmp_path / "two", seed=1)
    for path in other["tokenize"].iterdir():
        if path.is_file():
            shutil.copyfile(path, folders["tokenize"] / path.name)
    with pytest.raises(StaleError, match="made from another 'tokenize'"):
        Recommender.from_pretrained(folders["train"])


def test_an_export_recommends_the_same_anywhere(run, recommender, tmp_path):
    folder = export(run["train"], tmp_path / "export")
    moved = shutil.move(folder, tmp_path / "moved")
    assert Recommender.from_pretrained(moved, device="cpu").recommend(HISTORY) == recommender.recommend(HISTORY)
    assert "was not evaluated" in (Path(moved) / "README.md").read_text()


def test_an_export_holds_every_file_of_the_model(tmp_path):
    """Also one of a family that this test makes up; timings and user data stay behind."""
    run = build_run(tmp_path / "runs")
    record = open_stage(run["train"], "train")
    inputs = {name: run[name] for name in ("prepare", "tokenize")}
    whole = {name: (run["train"] / name).read_bytes() for name in record.files}
    with writing(run["train"], "train", {"seed": 0}, inputs) as files:
        for name, content in whole.items():
            with files.create(name) as path:
                path.write_bytes(content)
        files.arrays("adapter.safetensors", {"weights": np.arange(3.0)})
        files.json("training.jsonl", {"seconds": 1.0}, measured=True)
    folder = export(run["train"], tmp_path / "export")
    assert (folder / "adapter.safetensors").read_bytes() == (run["train"] / "adapter.safetensors").read_bytes()
    assert set(read_manifest(folder).files) == {
        *whole,
        "adapter.safetensors",
        "semantic_ids.parquet",
        "tokenizer.json",
        "tokenizer.safetensors",
        "items.parquet",
        "item_options.json",
        "popularity.safetensors",
        "README.md",
    }


def test_a_damaged_export_is_refused(run, tmp_path):
    folder = export(run["train"], tmp_path / "export")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(DamagedError, match=r"model\.safetensors is damaged"):
        Recommender.from_pretrained(folder)


def test_an_export_is_copied(run, recommender, tmp_path):
    first = export(run["train"], tmp_path / "first")
    (first / "mine.txt").write_text("a note of the user's")
    second = export(first, tmp_path / "second")
    assert {*os.listdir(second)} == {*read_manifest(first).files, MANIFEST}
    assert read_manifest(second).content == read_manifest(first).content
    copied = Recommender.from_pretrained(second, device="cpu")
    assert copied.recommend(["0042"], 5) == Recommender.from_pretrained(first, device="cpu").recommend(["0042"], 5)
    assert export(first, first) == first
    assert (first / "mine.txt").exists()
    (tmp_path / "letter.txt").write_text("keep me")
    with pytest.raises(ArtifactError, match="not empty and is no earlier export"):
        export(first, tmp_path)


def test_an_export_that_is_replaced_while_it_is_copied_is_not_copied_by_halves(run, tmp_path, monkeypatch):
    first, real = export(run["train"], tmp_path / "first"), StageFiles.copy

    def copy(files, path, *more):
        if path.name == "README.md":
            path.write_text("of another version")
        real(files, path, *more)

    monkeypatch.setattr(StageFiles, "copy", copy)
    with pytest.raises(ArtifactError, match=r"README\.md changed while it was copied; run the same command again"):
        export(first, tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_an_export_replaces_an_export_and_nothing_else(run, tmp_path):
    folder = export(run["train"], tmp_path / "export")
    (folder / "mine.txt").write_text("a note of the user's")
    assert {*os.listdir(export(run["train"], folder))} == {
        *read_manifest(folder).files,
        MANIFEST,
        "mine.txt",
    }
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("keep me")
    with pytest.raises(ArtifactError, match="not empty and is no earlier export"):
        export(run["train"], mine)
    with pytest.raises(ArtifactError, match="not empty and is no earlier export"):
        export(run["train"], run["train"])
    assert (mine / "letter.txt").read_text() == "keep me"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "mine"]


@pytest.mark.parametrize("of_an_export", [False, True])
def test_an_export_that_another_process_writes_is_left_to_it(run, tmp_path, of_an_export):
    folder, source = export(run["train"], tmp_path / "export"), run["train"]
    if of_an_export:
        source = export(folder, tmp_path / "second")
    with locked_beside(folder), pytest.raises(BusyError, match="is being written by process"):
        export(source, folder)
    assert export(source, folder) == folder


def test_the_model_card_tells_what_was_measured(tmp_path):
    run = build_run(tmp_path / "runs")
    config = EvaluateConfig(model="tiny", precision="fp32", device="cpu")
    evaluate(run["prepare"], run["tokenize"], run["train"], config, run["train"] / "eval-full")
    card = (export(run["train"], tmp_path / "export") / "README.md").read_text()
    row = next(
        row
        for row in read_json(run["train"] / "eval-full", "metrics.json")
        if row["model"] == "popularity" and row["seen"] == "masked"
    )
    for text in (
        "50 users, 40 items",
        "4 × 4 codes, 3 tokens an item",
        "`hashed`",
        "0000000001",
        f"{row['ndcg@10']:.4f}",
    ):
        assert text in card
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines()]
    assert ["popularity", "test", "item", "masked", "50", f"{row['hr@5']:.4f}"] in [line[:6] for line in cells]
    write_train(run, load_semantic_ids(run["tokenize"]), seed=9)
    assert "was not evaluated" in (export(run["train"], tmp_path / "export") / "README.md").read_text()


@pytest.mark.parametrize(
    ("history", "mask", "as_stock"),
    [("codes", "bidirectional", True), ("codes", "item_causal", False), ("items", "bidirectional", False)],
)
def test_the_model_card_says_whether_transformers_reads_histories_as_the_model_does(tmp_path, history, mask, as_stock):
    run = build_run(tmp_path / "runs")
    write_train(run, load_semantic_ids(run["tokenize"]), seed=0, history=history, mask=mask)
    card = (export(run["train"], tmp_path / "export") / "README.md").read_text()
    assert ("The model reads histories as transformers does" in card) == as_stock
    assert ("`generate` of transformers does not read histories as this model does" in card) != as_stock


def test_the_model_card_of_a_decoder_alone_says_how_transformers_generates_with_it(tmp_path):
    run = build_run(tmp_path / "runs", history="decoder_only")
    card = (export(run["train"], tmp_path / "export") / "README.md").read_text()
    assert "- semantic-ids\n- gpt2\n" in card
    assert "token 0 and the tokens of the last 5 items" in card
    assert "which are 4, 4, 40." in card
    assert "T5" not in card


def test_the_command_says_one_sentence_and_fails(tmp_path, command):
    asked = command("recommend", tmp_path, "--items", "x")
    assert asked.returncode == 1
    assert asked.stdout == ""
    assert asked.stderr.startswith(f"Error: {tmp_path} holds no finished stage")
    assert len(asked.stderr.splitlines()) == 1


@pytest.mark.parametrize("histories", ["i01", None, 5])
def test_what_is_no_collection_of_histories_is_refused(recommender, histories):
    with pytest.raises(RecommendError, match=r"The histories are (one text|None|5); give a list of lists of item ids"):
        recommender.recommend_batch(histories)
