"""Training: its loss, its determinism, what it may read, what it leaves behind."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.tiny_run import build_run
from tigerrec import TigerrecError, artifacts
from tigerrec.beam_search import Searcher
from tigerrec.generator import T5, load_generator
from tigerrec.histories import Histories, load_histories
from tigerrec.semantic_ids import SemanticIds, TokenLayout, load_semantic_ids
from tigerrec.train import PrefixTraining, TrainConfig, train
from tigerrec.trainer import Trainer, validation_sample

MODEL = T5(num_layers=1, d_model=16, num_heads=2, d_kv=8, d_ff=16, max_items=5)
TRAINING = PrefixTraining(epochs=3, batch_size=24, batch_tokens=64, validation_users=30, checkpoint_steps=2, log_steps=2, precision="fp32")
CONFIG = TrainConfig(MODEL, TRAINING)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    found = build_run(tmp_path)
    shutil.rmtree(found["train"])
    return found


def run(folders: dict[str, Path], config: TrainConfig = CONFIG, name: str = "train") -> Path:
    return train(folders["prepare"], folders["tokenize"], config, folders["tokenize"] / name)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_one_seed_gives_the_same_bytes_twice_and_another_seed_others(folders):
    first, second = run(folders, name="a"), run(folders, name="b")
    assert weights(first) == weights(second)
    assert artifacts.read_manifest(first).content == artifacts.read_manifest(second).content
    assert weights(run(folders, dataclasses.replace(CONFIG, seed=1), "c")) != weights(first)


def test_test_targets_are_never_read(folders):
    """Replace every user's test target by one sentinel item: not a bit of the training may change."""
    clean = run(folders, name="clean")
    table = artifacts.read_table(folders["prepare"], "interactions.parquet").to_pandas()
    last = table.groupby("user")["position"].transform("max") == table["position"]
    table.loc[last, "item"] = np.int32(0)
    manifest = artifacts.read_manifest(folders["prepare"])
    with artifacts.writing(folders["prepare"], "prepare", manifest.config) as files:
        files.parquet("items.parquet", artifacts.read_table(folders["prepare"], "items.parquet"))
        files.parquet("interactions.parquet", pa.Table.from_pandas(table, preserve_index=False))
        files.json("stats.json", artifacts.read_json(folders["prepare"], "stats.json"))
    poisoned = run(folders, name="poisoned")
    assert weights(clean) == weights(poisoned)
    losses = [[(line["step"], line.get("loss"), line.get("validation_ndcg@10")) for line in read_log(folder)] for folder in (clean, poisoned)]
    assert losses[0] == losses[1]


def read_log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


def test_loss_is_that_of_the_stock_model_given_one_unpadded_example_at_a_time(folders):
    histories, ids = load_histories(folders["prepare"]), load_semantic_ids(folders["tokenize"])
    model = dataclasses.replace(MODEL, dropout_rate=0.0).new(ids.layout, "bidirectional", 3)
    trainer = Trainer(model, histories, ids, CONFIG)
    rows = np.arange(0, len(trainer.examples), 3)
    single = []
    for row in rows:
        items = trainer.examples.items[trainer.examples.start[row] : trainer.examples.target[row]]
        target = trainer.examples.items[trainer.examples.target[row]]
        single.append(model(input_ids=torch.from_numpy(ids.tokens[items].reshape(1, -1)), labels=torch.from_numpy(ids.tokens[[target]])).loss.item())
    assert trainer.loss(rows).item() == pytest.approx(np.mean(single), abs=1e-5)


def test_every_example_of_an_epoch_counts_the_same(folders):
    """The gradients of one epoch, at fixed weights, add up to a multiple of the gradient of the mean loss over all its examples."""
    histories, ids = load_histories(folders["prepare"]), load_semantic_ids(folders["tokenize"])
    model = dataclasses.replace(MODEL, dropout_rate=0.0).new(ids.layout, "bidirectional", 3)
    trainer = Trainer(model, histories, ids, dataclasses.replace(CONFIG, training=dataclasses.replace(TRAINING, max_grad_norm=1e9)))
    assert trainer.steps_per_epoch > 2
    total = {}

    def collect():
        for name, parameter in model.named_parameters():
            total[name] = total.get(name, 0) + parameter.grad

    trainer.optimizer.step = collect
    for step in range(trainer.steps_per_epoch):
        trainer.step(step)
    trainer.loss(np.arange(len(trainer.examples))).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(total[name] / trainer.steps_per_epoch, parameter.grad, atol=1e-6, rtol=1e-3)


def test_an_interrupted_rebuild_goes_on_without_overwrite(folders, monkeypatch):
    """From its first checkpoint on a rebuild has given up the older stage, so that the stage reads as unfinished."""
    out = run(folders)
    step = Trainer.step

    def stopped(self, number):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(Trainer, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(folders)
    assert not (out / artifacts.MANIFEST).exists()


def test_a_deterministic_next_item_is_learned_to_the_first_rank():
    n_items = 12
    codes = np.array([[item // 4, item % 4, 0] for item in range(n_items)], np.int32)
    ids = SemanticIds(codes, TokenLayout((3, 4), (3, 4, 8)))
    rng = np.random.default_rng(0)
    walks = [(rng.integers(n_items) + np.arange(rng.integers(5, 10))) % n_items for _ in range(60)]
    histories = Histories(np.cumsum([0, *map(len, walks)]).astype(np.int64), np.concatenate(walks).astype(np.int32), n_items)
    model = T5(num_layers=2, d_model=32, num_heads=2, d_kv=16, d_ff=64, dropout_rate=0.0, max_items=4).new(ids.layout, "bidirectional", 0)
    trainer = Trainer(model, histories, ids, TrainConfig(MODEL, PrefixTraining(epochs=80, batch_size=48, learning_rate=3e-3, precision="fp32")))
    for step in range(trainer.total_steps):
        loss = trainer.step(step)
    assert loss.item() < 0.05
    items, _ = Searcher.of(model, ids, "fp32").rank([walk[:-1] for walk in walks], k=1, beam_size=5, mask_seen=False)
    assert (items[:, 0] == [walk[-1] for walk in walks]).all()


def test_leaves_a_model_that_plain_transformers_loads_and_a_log(folders):
    from transformers import T5ForConditionalGeneration

    out = run(folders)
    stock = T5ForConditionalGeneration.from_pretrained(out)
    assert stock.config.tigerrec["encoder_mask"] == "bidirectional"
    assert stock.config.tigerrec["max_items"] == 5
    ours = load_generator(out)
    assert all(torch.equal(one, other) for one, other in zip(stock.parameters(), ours.parameters(), strict=True))
    lines = read_log(out)
    assert {"step", "epoch", "loss", "lr", "seconds"} <= set(lines[0])
    validations = [line for line in lines if "validation_ndcg@10" in line and not line.get("selection")]
    assert [line["epoch"] for line in validations] == [1, 2, 3]
    selected = artifacts.read_manifest(out).provenance["selected"]
    candidates = {line["step"]: line["validation_ndcg@10"] for line in lines if line.get("selection")}
    assert selected["validation_ndcg@10"] == max(candidates.values())
    assert candidates[selected["step"]] == max(candidates.values())
    assert not (out / "checkpoint").exists()


def test_patience_stops_early(folders):
    config = dataclasses.replace(CONFIG, training=dataclasses.replace(TRAINING, epochs=30, learning_rate=1e-12, patience=2))
    epochs = [line["epoch"] for line in read_log(run(folders, config)) if "validation_ndcg@10" in line and not line.get("selection")]
    assert 3 <= len(epochs) < 30


def test_schedule_rises_linearly_and_ends_at_zero():
    training = PrefixTraining(learning_rate=1.0, warmup=0.1)
    rates = [training.learning_rate_at(step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert max(rates) == 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0)


def test_validation_sample_is_fixed_by_the_seed(folders):
    histories = load_histories(folders["prepare"])
    training = dataclasses.replace(TRAINING, validation_users=10)
    sample = validation_sample(histories, training, 0)
    assert len(set(sample.tolist())) == 10
    assert (sample == validation_sample(histories, training, 0)).all()
    assert (sample != validation_sample(histories, training, 1)).any()
    assert len(validation_sample(histories, dataclasses.replace(TRAINING, validation_users=10_000), 0)) == len(histories)


def test_a_loss_that_is_no_number_stops_at_once_and_keeps_the_checkpoint_before(folders, monkeypatch):
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, number: step(self, number) * (float("nan") if number == 7 else 1.0))
    with pytest.raises(TigerrecError, match=r"loss is nan near step 8 at learning rate"):
        run(folders)
    assert not (folders["tokenize"] / "train" / "manifest.json").exists()
    steps = sorted(path.name for path in (folders["tokenize"] / "train" / "checkpoint").glob("step-*.json"))
    assert steps == ["step-5.json", "step-6.json"]  # 5: the end of an epoch


def test_semantic_ids_of_another_catalogue_are_refused(folders):
    manifest = artifacts.read_manifest(folders["prepare"])
    with artifacts.writing(folders["prepare"], "prepare", manifest.config) as files:
        files.parquet("items.parquet", artifacts.read_table(folders["prepare"], "items.parquet").slice(0, 39))
        files.parquet("interactions.parquet", artifacts.read_table(folders["prepare"], "interactions.parquet"))
        files.json("stats.json", artifacts.read_json(folders["prepare"], "stats.json") | {"items": 39})
    with pytest.raises(artifacts.StaleError, match="40 items"):
        run(folders)


@pytest.mark.parametrize("change", [{"epochs": 0}, {"learning_rate": 0.0}, {"warmup": 1.0}, {"beam_size": 5}, {"precision": "fp8"}])
def test_values_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(TRAINING, **change)
