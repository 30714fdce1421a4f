"""Training: its loss, its determinism, what it may read, what it leaves behind."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from tigerrec import TigerrecError
from tigerrec.data.batches import Batch, Examples
from tigerrec.data.histories import Histories, load_histories, training_histories
from tigerrec.models.dropout import Dropout
from tigerrec.models.loading import load_generator
from tigerrec.models.t5 import T5
from tigerrec.runtime import distributed
from tigerrec.search.searcher import Searcher
from tigerrec.storage.contracts import read_json, read_table
from tigerrec.storage.files import ArtifactError
from tigerrec.storage.manifests import StaleError, read_manifest
from tigerrec.storage.stages import writing
from tigerrec.tokenizers.ids import SemanticIds, TokenLayout, load_semantic_ids
from tigerrec.training.loop import Trainer
from tigerrec.training.options import TrainConfig, Training
from tigerrec.training.schedules import warmup_cosine
from tigerrec.training.stage import train

MODEL = T5(num_layers=1, d_model=16, num_heads=2, d_kv=8, d_ff=16, max_items=5)
TRAINING = Training(
    epochs=3,
    validate_every=1,
    batch_targets=24,
    part_tokens=64,
    stride=3,
    validation_users=30,
    checkpoint_steps=2,
    log_steps=2,
    precision="fp32",
)
STRIDE = {"packed": 3, "prefix": None}
CONFIG = TrainConfig(MODEL, TRAINING)


def run(folders: dict[str, Path], config: TrainConfig = CONFIG, name: str = "train") -> Path:
    return train(folders["prepare"], folders["tokenize"], config, folders["tokenize"] / name)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_one_seed_gives_the_same_bytes_twice_and_another_seed_others(folders):
    first, second = run(folders, name="a"), run(folders, name="b")
    assert weights(first) == weights(second)
    assert read_manifest(first).content == read_manifest(second).content
    assert weights(run(folders, dataclasses.replace(CONFIG, seed=1), "c")) != weights(first)


def test_test_targets_are_never_read(folders):
    """Replace every user's test target by one sentinel item: not a bit of the training may change."""
    clean = run(folders, name="clean")
    table = read_table(folders["prepare"], "interactions.parquet").to_pandas()
    last = table.groupby("user")["position"].transform("max") == table["position"]
    table.loc[last, "item"] = np.int32(0)
    manifest = read_manifest(folders["prepare"])
    with writing(folders["prepare"], "prepare", manifest.config) as files:
        files.parquet("items.parquet", read_table(folders["prepare"], "items.parquet"))
        files.parquet("interactions.parquet", pa.Table.from_pandas(table, preserve_index=False))
        files.json("stats.json", read_json(folders["prepare"], "stats.json"))
    poisoned = run(folders, name="poisoned")
    assert weights(clean) == weights(poisoned)
    losses = [
        [(line["step"], line.get("loss"), line.get("validation_ndcg@10")) for line in read_log(folder)]
        for folder in (clean, poisoned)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("scope", "n_steps"), [("all", 8), ("process", 2)])
def test_a_batch_is_of_all_processes_or_of_each(folders, monkeypatch, scope, n_steps):
    histories, ids = load_histories(folders["prepare"]), load_semantic_ids(folders["tokenize"])
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    n_targets = int(Examples.prefixes(histories, MODEL.max_items).n_targets.sum())
    training = dataclasses.replace(TRAINING, batch_targets=-(-n_targets // 8), batch_scope=scope)
    trainer = Trainer(MODEL.new(ids, "item_causal", 3), histories, TrainConfig(MODEL, training))
    assert trainer.steps_per_epoch == n_steps


def read_log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("decoder_reads", ["all_items", "last_item"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_prefix_loss_is_that_of_the_stock_model_given_one_unpadded_example_at_a_time(
    folders, label_smoothing, decoder_reads
):
    histories, ids = load_histories(folders["prepare"]), load_semantic_ids(folders["tokenize"])
    model = dataclasses.replace(MODEL, decoder_reads=decoder_reads).new(ids, "bidirectional", 3)
    training = dataclasses.replace(TRAINING, examples="prefix", stride=None, label_smoothing=label_smoothing)
    trainer = Trainer(model, histories, TrainConfig(MODEL, training))
    examples = trainer.examples
    rows = np.arange(0, len(examples), 3)
    single = []
    for row in rows:
        inputs = torch.from_numpy(ids.tokens[examples.items[examples.start[row] : examples.stop[row]]].reshape(1, -1))
        labels = torch.from_numpy(ids.tokens[[examples.items[examples.stop[row]]]])
        encoded = model.t5.encoder(input_ids=inputs).last_hidden_state
        read = encoded[:, -ids.tokens.shape[1] :] if decoder_reads == "last_item" else encoded
        logits = model.t5(encoder_outputs=BaseModelOutput(read), labels=labels).logits
        single.append(torch.nn.functional.cross_entropy(logits[0], labels[0], label_smoothing=label_smoothing).item())
    total, _ = trainer.losses(rows, Dropout(0.0))
    assert total.item() / len(rows) == pytest.approx(np.mean(single), abs=1e-5)


@pytest.mark.parametrize("decoder_reads", ["all_items", "last_item"])
@pytest.mark.parametrize("item_loss", [None, 0.0, 1.0], ids=["codes", "items", "items with item loss"])
def test_packed_losses_are_those_of_the_same_model_given_one_target_and_the_items_of_its_window(
    item_loss, decoder_reads
):
    ids = catalogue(60)
    rng = np.random.default_rng(0)
    histories = made_of([rng.permutation(60)[: rng.integers(4, 50)] for _ in range(20)])
    history = "codes" if item_loss is None else "items"
    generator = dataclasses.replace(
        MODEL, num_layers=2, history=history, decoder_reads=decoder_reads, item_loss=item_loss or 0.0
    )
    model = generator.new(ids, "item_causal", 0)
    if model.inputs is not None:
        torch.nn.init.normal_(model.inputs.item_embeddings.weight, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(model, histories, TrainConfig(generator, TRAINING))
    examples, none = trainer.examples, Dropout(0.0)
    assert (examples.first > examples.start + 1).any()
    singles = []
    for start, first, stop in zip(examples.start, examples.first, examples.stop, strict=True):
        for place in range(first, stop + 1):
            history, target = (
                torch.from_numpy(examples.items[start:place].astype(np.int64)),
                torch.tensor([[int(examples.items[place])]]),
            )
            alone = Batch(history[None], target, torch.tensor([[place - start]]))
            singles.append([loss.item() for loss in model.losses(alone, torch.float32, none, known=trainer.known)])
    packed = [loss.item() / trainer.n_targets for loss in trainer.losses(np.arange(len(examples)), none)]
    assert len(singles) == trainer.n_targets
    assert packed == pytest.approx(np.mean(singles, axis=0), abs=1e-5)


@pytest.mark.parametrize("examples", ["packed", "prefix"])
def test_every_target_of_an_epoch_counts_the_same(folders, examples):
    """The gradients of one epoch, at fixed weights, add up to a multiple of the gradient of the mean loss over all its
    targets."""
    histories, ids = load_histories(folders["prepare"]), load_semantic_ids(folders["tokenize"])
    generator = dataclasses.replace(MODEL, dropout_rate=0.0)
    model = generator.new(ids, "item_causal", 3)
    trainer = Trainer(
        model,
        histories,
        TrainConfig(
            generator, dataclasses.replace(TRAINING, max_grad_norm=1e9, examples=examples, stride=STRIDE[examples])
        ),
    )
    assert trainer.steps_per_epoch > 2
    total = {}

    def collect():
        for name, parameter in model.named_parameters():
            total[name] = total.get(name, 0) + parameter.grad

    trainer.optimizer.step = collect
    for step in range(trainer.steps_per_epoch):
        trainer.step(step)
    (trainer.losses(np.arange(len(trainer.examples)), Dropout(0.0))[0] / trainer.n_targets).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(total[name] / trainer.steps_per_epoch, parameter.grad, atol=1e-6, rtol=1e-3)


def catalogue(n_items: int) -> SemanticIds:
    codes = np.array([[item // 4, item % 4, 0] for item in range(n_items)], np.int32)
    return SemanticIds(codes, TokenLayout((n_items // 4, 4), (n_items // 4, 4, 8)))


def made_of(lists: list[np.ndarray]) -> Histories:
    n_items = int(max(map(max, lists))) + 1
    return Histories(np.cumsum([0, *map(len, lists)]).astype(np.int64), np.concatenate(lists).astype(np.int32), n_items)


@pytest.mark.parametrize(
    ("examples", "mask", "item_loss", "reads"),
    [
        ("prefix", "bidirectional", None, "all_items"),
        ("packed", "item_causal", None, "all_items"),
        ("packed", "item_causal", None, "last_item"),
        ("packed", "item_causal", 1.0, "last_item"),
    ],
)
def test_a_deterministic_next_item_is_learned_to_the_first_rank(examples, mask, item_loss, reads):
    n_items = 12
    ids = catalogue(n_items)
    rng = np.random.default_rng(0)
    walks = [(rng.integers(n_items) + np.arange(rng.integers(5, 10))) % n_items for _ in range(60)]
    history = "codes" if item_loss is None else "items"
    generator = T5(
        num_layers=2, d_model=32, num_heads=2, d_kv=16, d_ff=64, dropout_rate=0.0, max_items=4,
        history=history, decoder_reads=reads, item_loss=item_loss or 0.0,
    )  # fmt: skip
    model = generator.new(ids, mask, 0)
    training = Training(
        examples=examples, epochs=80, batch_targets=48, stride=STRIDE[examples], learning_rate=3e-3, precision="fp32"
    )
    trainer = Trainer(model, made_of(walks), TrainConfig(generator, training))
    for step in range(trainer.total_steps):
        loss = trainer.step(step)
    assert loss.item() < 0.05
    items, _ = Searcher.of(model, "fp32").rank([walk[:-1] for walk in walks], k=1, beam_size=5, mask_seen=False)
    assert (items[:, 0] == [walk[-1] for walk in walks]).all()


def test_items_unseen_in_training_are_read_by_their_codes_and_can_be_recommended(folders):
    generator = dataclasses.replace(MODEL, history="items", item_loss=1.0)
    ids = load_semantic_ids(folders["tokenize"])
    out = run(folders, TrainConfig(generator, TRAINING))
    seen = np.unique(np.concatenate(training_histories(load_histories(folders["prepare"]))))
    wider = SemanticIds(np.concatenate([ids.codes, [[3, 2, 39], [3, 1, 39]]]).astype(np.int32), ids.layout)
    model = load_generator(out, wider)
    embeddings = model.inputs.item_embeddings.weight
    unseen = np.setdiff1d(np.arange(len(wider.codes)), seen)
    assert (embeddings[unseen] == 0).all()
    assert (embeddings[seen].abs().sum(1) > 0).all()
    items, _ = Searcher.of(model, "fp32").rank([np.array([40]), np.array([41])], k=42, beam_size=42, mask_seen=True)
    assert set(items[0]) == {*range(42), -1} - {40}
    assert (items[0] != items[1]).any()


@pytest.mark.parametrize("examples", ["packed", "prefix"])
@pytest.mark.parametrize("item_loss", [0.0, 1.0])
def test_items_that_no_history_of_training_is_read_with_have_no_embedding(examples, item_loss):
    histories = Histories(np.array([0, 6, 11, 14]), np.array([0, 1, 2, 3, 0, 1, 2, 1, 4, 0, 2, 5, 0, 1], np.int32), 7)
    ids = SemanticIds(np.arange(7, dtype=np.int32)[:, None], TokenLayout((7,), (7,)))
    generator = dataclasses.replace(MODEL, history="items", item_loss=item_loss)
    model = generator.new(ids, "item_causal", 0)
    Trainer(
        model,
        histories,
        TrainConfig(generator, dataclasses.replace(TRAINING, examples=examples, stride=STRIDE[examples])),
    )
    has_one = (model.inputs.item_embeddings.weight != 0).any(1).tolist()
    # 3 and 4 end the training parts of two users, 5 is all of a third's, and 6 is nowhere
    assert has_one == [True, True, True, *[item_loss > 0] * 3, False]


def test_leaves_a_model_that_plain_transformers_loads_and_a_log(folders):
    from transformers import T5ForConditionalGeneration

    out = run(folders)
    stock = T5ForConditionalGeneration.from_pretrained(out)
    assert stock.config.tigerrec["encoder_mask"] == "item_causal"
    assert stock.config.tigerrec["max_items"] == 5
    ours = load_generator(out, load_semantic_ids(folders["tokenize"]))
    assert all(torch.equal(one, other) for one, other in zip(stock.parameters(), ours.t5.parameters(), strict=True))
    lines = read_log(out)
    assert {"step", "epoch", "loss", "lr", "seconds"} <= set(lines[0])
    validations = [line for line in lines if "validation_ndcg@10" in line and not line.get("selection")]
    assert [line["epoch"] for line in validations] == [1, 2, 3]
    selected = read_manifest(out).provenance["selected"]
    candidates = {line["step"]: line["validation_ndcg@10"] for line in lines if line.get("selection")}
    assert selected["validation_ndcg@10"] == max(candidates.values())
    assert candidates[selected["step"]] == max(candidates.values())
    assert not (out / "checkpoint").exists()


def test_embeddings_learn_at_a_rate_of_their_own(folders):
    """AdamW's first step moves each weight by its rate, whatever the gradient's size."""
    histories, ids = load_histories(folders["prepare"]), load_semantic_ids(folders["tokenize"])
    training = dataclasses.replace(
        TRAINING, embedding_rate=4.0, item_embedding_rate=7.0, weight_decay=0.0, learning_rate=0.01
    )
    generator = dataclasses.replace(MODEL, history="items", decoder_reads="all_items")
    model = generator.new(ids, "item_causal", 0)
    trainer = Trainer(model, histories, TrainConfig(generator, training))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer.step(0)
    rate = trainer.learning_rate(0)
    moved = {
        name: (parameter.detach() - before[name]).abs().max().item() for name, parameter in model.named_parameters()
    }
    rates = {"t5.shared.weight": 4, "inputs.item_embeddings.weight": 7}
    for name, distance in moved.items():
        assert distance == pytest.approx(rate * rates.get(name, 1), rel=0.01), name


def test_weights_decay_alike_whatever_the_multiple_of_their_learning_rate(folders):
    """A weight without a gradient shrinks by decay alone: an item row that few targets reach as much as a matrix."""
    ids = load_semantic_ids(folders["tokenize"])
    generator = dataclasses.replace(MODEL, history="items", decoder_reads="all_items")
    training = dataclasses.replace(TRAINING, embedding_rate=15.0, item_embedding_rate=50.0, weight_decay=0.1)
    model = generator.new(ids, "item_causal", 0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = Trainer(model, load_histories(folders["prepare"]), TrainConfig(generator, training))
    before["inputs.item_embeddings.weight"] = model.inputs.item_embeddings.weight.detach().clone()
    rates = [0.01, 0.02]
    for rate in rates:
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trainer.optimizer.step()
    kept = np.prod([1 - rate * 0.1 for rate in rates])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.detach(), before[name] * (kept if parameter.ndim > 1 else 1), rtol=1e-5, atol=0, msg=name
        )


def test_patience_stops_early(folders):
    config = dataclasses.replace(
        CONFIG, training=dataclasses.replace(TRAINING, epochs=30, learning_rate=1e-12, patience=2)
    )
    epochs = [
        line["epoch"]
        for line in read_log(run(folders, config))
        if "validation_ndcg@10" in line and not line.get("selection")
    ]
    assert 3 <= len(epochs) < 30


def test_training_ends_at_the_last_step_that_is_allowed_and_validates_there(folders):
    longest = read_manifest(run(folders)).provenance["steps"]
    for max_steps, last in ((7, 7), (10_000, longest)):
        training = dataclasses.replace(TRAINING, max_steps=max_steps)
        out = run(folders, TrainConfig(MODEL, training), f"train-{max_steps}")
        steps = [line["step"] for line in read_log(out) if "validation_ndcg@10" in line and not line.get("selection")]
        assert steps[-1] == read_manifest(out).provenance["steps"] == last
    assert weights(folders["tokenize"] / "train-10000") == weights(folders["tokenize"] / "train")


def test_the_choice_among_candidates_may_be_made_on_a_larger_sample(folders):
    for number, users in (None, 50), (40, 40), (30, 30), (10, 30):
        training = dataclasses.replace(TRAINING, selection_users=number)
        log = read_log(run(folders, TrainConfig(MODEL, training), f"train-{number}"))
        chosen_on = [line["users"] for line in log if line.get("selection")]
        assert set(chosen_on or [line["users"] for line in log if "validation_ndcg@10" in line]) == {users}


def test_schedule_rises_linearly_and_ends_at_zero():
    rates = [warmup_cosine(1.0, step, 100, warmup=0.1) for step in range(101)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert max(rates) == 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)
    assert warmup_cosine(1.0, 0, 3, warmup=0.1) == warmup_cosine(1.0, 0, 3) == 1.0
    assert [warmup_cosine(1.0, step, 3) for step in (1, 2)] == pytest.approx([0.75, 0.25])


def test_a_loss_that_is_no_number_stops_at_once_and_keeps_the_checkpoint_before(folders, monkeypatch):
    step = Trainer.step
    monkeypatch.setattr(
        Trainer, "step", lambda self, number: step(self, number) * (float("nan") if number == 7 else 1.0)
    )
    with pytest.raises(
        TigerrecError, match=r"loss is nan at step 8, at learning rate 0\.00061; .* `train\.learning_rate=0\.0003`"
    ):
        run(folders)
    assert not (folders["tokenize"] / "train" / "manifest.json").exists()
    steps = sorted(path.name for path in (folders["tokenize"] / "train" / "checkpoint").glob("step-*.json"))
    assert steps == ["step-5.json", "step-6.json"]  # 5: the end of an epoch


def test_weights_that_are_no_numbers_are_never_saved(folders, monkeypatch):
    """A step whose gradients overflow leaves a finite loss and weights that are NaN."""
    step = Trainer.step

    def overflowing(self, number):
        loss = step(self, number)
        if number == 7:
            with torch.no_grad():
                self.parameters[-1][0] = float("nan")
        return loss

    monkeypatch.setattr(Trainer, "step", overflowing)
    with pytest.raises(TigerrecError, match=r"A weight is NaN or infinite at step 8"):
        run(folders)
    assert not (folders["tokenize"] / "train" / "checkpoint" / "step-8.json").exists()


def test_semantic_ids_of_another_catalogue_are_refused(folders):
    manifest = read_manifest(folders["prepare"])
    with writing(folders["prepare"], "prepare", manifest.config) as files:
        files.parquet("items.parquet", read_table(folders["prepare"], "items.parquet").slice(0, 39))
        table = read_table(folders["prepare"], "interactions.parquet")
        items = pa.array(np.minimum(table["item"].to_numpy(), 38))
        files.parquet("interactions.parquet", table.set_column(table.column_names.index("item"), "item", items))
        files.json("stats.json", read_json(folders["prepare"], "stats.json") | {"items": 39})
    with pytest.raises(StaleError, match="40 items"):
        run(folders)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"warmup": 1.0},
        {"beam_size": 5},
        {"precision": "fp8"},
        {"stride": None},
        {"examples": "prefix"},
    ],
)
def test_values_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(TRAINING, **change)


def test_a_model_that_does_not_say_what_its_decoder_reads_is_refused(folders):
    out = run(folders)
    config = json.loads((out / "config.json").read_text())
    del config["tigerrec"]["decoder_reads"]
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="how the model reads histories"):
        load_generator(out, load_semantic_ids(folders["tokenize"]))


@pytest.mark.parametrize(("mask", "reads"), [("item_causal", "last_item"), ("bidirectional", "all_items")])
def test_what_the_decoder_reads_follows_the_mask_unless_told(folders, mask, reads):
    ids = load_semantic_ids(folders["tokenize"])
    assert MODEL.new(ids, mask, 0).facts["decoder_reads"] == reads
    for told in ("all_items", "last_item"):
        assert dataclasses.replace(MODEL, decoder_reads=told).new(ids, mask, 0).facts["decoder_reads"] == told


def test_an_unknown_reading_of_the_decoder_is_refused():
    with pytest.raises(ValueError, match="decoder_reads must be 'all_items' or 'last_item', got 'first_item'"):
        dataclasses.replace(MODEL, decoder_reads="first_item")
