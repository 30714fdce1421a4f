"""The decoder-only generator: its logits and lists against transformers' own, its losses, and the whole pipeline with
it."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import GPT2LMHeadModel

from tests.oracles import score_catalogue
from tests.test_beam_search import catalogue, random_histories
from tests.test_train import STRIDE, TRAINING, made_of, weights
from tests.tiny_run import build_run
from tigerrec.analysis.benchmark.sides import allowed_next
from tigerrec.config import ConfigError, compose
from tigerrec.data.batches import NO_ITEM, Batch, padded
from tigerrec.data.histories import load_histories
from tigerrec.evaluation.stage import EvaluateConfig, evaluate
from tigerrec.models import gpt2_stack
from tigerrec.models.dropout import Dropout
from tigerrec.models.gpt2 import DecoderOnly
from tigerrec.models.gpt2_model import HistoryGPT2
from tigerrec.models.loading import load_generator, save_generator
from tigerrec.pipeline import plan
from tigerrec.search.searcher import Searcher
from tigerrec.storage.contracts import read_json
from tigerrec.storage.files import ArtifactError
from tigerrec.tokenizers.ids import PAD, SemanticIds, TokenLayout, load_semantic_ids
from tigerrec.training.loop import Trainer, new_optimizer
from tigerrec.training.options import TrainConfig, Training
from tigerrec.training.stage import train

SIZES = DecoderOnly(num_layers=2, d_model=32, num_heads=2, d_ff=48, dropout_rate=0.0, max_items=6)
IDS = catalogue(60)
EXACT = Dropout(0.0)


def generator(ids: SemanticIds = IDS, sizes: DecoderOnly = SIZES, seed: int = 0) -> HistoryGPT2:
    """Random weights, large enough for the output to depend on all of the input."""
    model = sizes.new(ids, "item_causal", seed)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise))
    return model


def trainer_of(
    histories: list[np.ndarray], examples: str = "packed", sizes: DecoderOnly = SIZES, model: HistoryGPT2 | None = None
) -> Trainer:
    training = dataclasses.replace(TRAINING, examples=examples, stride=STRIDE[examples], embedding_rate=1.0)
    return Trainer(model or generator(sizes=sizes), made_of(histories), TrainConfig(sizes, training))


def alone(model: HistoryGPT2, history: np.ndarray, target: int) -> float:
    """The stock model's loss of one target after one history: start token, all tokens, and each next token by the one
    before it."""
    sequence = torch.from_numpy(np.concatenate([[PAD], model.tokens.numpy()[[*history, target]].flatten()]))
    logits = model.gpt2(input_ids=sequence[None, :-1], attention_mask=torch.ones(1, len(sequence) - 1)).logits[0]
    n_levels = model.tokens.shape[1]
    return functional.cross_entropy(logits[-n_levels:], sequence[-n_levels:]).item()


def test_logits_and_all_gradients_are_those_of_the_stock_model():
    model = generator()
    tokens = model.sequence(torch.tensor([[3, 4, 5], [9, 2, 0]]))
    expected = model.gpt2(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    expected.square().mean().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    found = gpt2_stack.next_token_logits(
        model.gpt2, gpt2_stack.read_sequence(model.gpt2, tokens, torch.float32, EXACT), torch.float32
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-4)


def test_bf16_products_stay_near_the_exact_logits():
    model, tokens = generator(), torch.arange(1, 25).view(2, 12)
    exact, rough = (
        gpt2_stack.next_token_logits(model.gpt2, gpt2_stack.read_sequence(model.gpt2, tokens, dtype, EXACT), dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_under_dropout_logits_are_distributed_as_those_of_the_stock_model():
    """The same sequence many times over in one batch: each row has masks of its own."""
    rows = 4000
    model = generator(sizes=dataclasses.replace(SIZES, dropout_rate=0.3))
    tokens = torch.arange(1, 9).expand(rows, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        stock = model.gpt2.train()(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        states = gpt2_stack.read_sequence(model.gpt2, tokens, torch.float32, Dropout(0.3, seed=1))
        driven = gpt2_stack.next_token_logits(model.gpt2, states, torch.float32)
    error = (stock.var(0) / rows + driven.var(0) / rows).sqrt()
    assert ((stock.mean(0) - driven.mean(0)).abs() / error).max() < 5
    ratio = driven.std(0) / stock.std(0)
    assert 0.9 < ratio.min() < ratio.max() < 1.1
    assert abs(ratio.mean() - 1) < 0.01


@pytest.mark.parametrize("examples", ["packed", "prefix"])
def test_losses_are_those_of_the_stock_model_given_one_target_at_a_time(examples):
    rng = np.random.default_rng(0)
    trainer = trainer_of([rng.permutation(60)[: rng.integers(4, 30)] for _ in range(12)], examples)
    found = trainer.examples
    singles = [
        alone(trainer.model, found.items[start:place], found.items[place])
        for start, first, stop in zip(found.start, found.first, found.stop, strict=True)
        for place in range(first, stop + 1)
    ]
    assert len(singles) == trainer.n_targets
    assert len({first - start for start, first in zip(found.start, found.first, strict=True)}) > 1
    total, of_items = trainer.losses(np.arange(len(found)), EXACT)
    assert total.item() / trainer.n_targets == pytest.approx(np.mean(singles), abs=1e-5)
    assert of_items == 0


def test_packed_and_prefix_losses_are_equal_where_a_window_holds_a_history():
    rng = np.random.default_rng(0)
    histories = [rng.permutation(60)[: rng.integers(4, 9)] for _ in range(12)]
    packed, prefix = (trainer_of(histories, examples) for examples in ("packed", "prefix"))
    assert packed.n_targets == prefix.n_targets
    losses = [trainer.losses(np.arange(len(trainer.examples)), EXACT)[0].item() for trainer in (packed, prefix)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_no_history_outgrows_the_positions():
    long = np.arange(60)
    for examples in ("packed", "prefix"):
        trainer = trainer_of([long], examples)
        assert trainer.examples.lengths.max() == SIZES.max_items
        assert trainer.n_targets == len(long) - 3
    Searcher.of(trainer.model, "fp32").rank([long], k=1, beam_size=1, mask_seen=False)
    assert trainer.model.gpt2.config.n_positions == 7 * 4


def test_a_target_knows_nothing_of_later_items_or_of_other_rows():
    model = generator()

    def loss(items: list[list[int]], targets: list[list[int]]) -> float:
        batch = Batch(torch.tensor(items), torch.tensor(targets), torch.arange(1, len(targets[0]) + 1)[None])
        return model.losses(batch, torch.float32, EXACT)[0].item()

    only_first = [[4, NO_ITEM, NO_ITEM]]
    expected = loss([[3, 4, 5]], only_first)
    assert expected == pytest.approx(alone(model, np.array([3]), 4), abs=1e-5)
    assert loss([[3, 4, 9]], only_first) == expected
    assert loss([[3, NO_ITEM, NO_ITEM]], only_first) == pytest.approx(expected, abs=1e-6)
    for other in ([7, 8, 9], [1, 0, NO_ITEM]):
        assert loss([[3, 4, 5], other], [*only_first, [NO_ITEM] * 3]) == pytest.approx(expected, abs=1e-6)


def test_training_shifts_by_token_as_the_search_does():
    """Training that shifts by item predicts a token from the same level of the item before, which the search never
    does.

    So the losses of training must be, token by token, the steps of the search along an item.
    """
    model, history, target = generator(), torch.tensor([[3, 4, 5]]), 9
    decoder, token, score = model.decoder(history, torch.float32), torch.tensor([[PAD]]), 0.0
    for level, following in enumerate(model.tokens[target].tolist()):
        score += decoder.next_token(token, torch.zeros(1, 1, level + 1, dtype=torch.long))[0, 0, following].item()
        token = torch.tensor([[following]])
    loss, _ = model.losses(Batch(history, torch.tensor([[target]]), torch.tensor([[3]])), torch.float32, EXACT)
    assert -loss.item() * 4 == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("mask_seen", [False, True])
def test_beam_as_wide_as_the_catalogue_equals_exhaustive_scoring(mask_seen):
    model, histories = generator(), random_histories(12, 60)
    items, scores = Searcher.of(model, "fp32").rank(histories, k=60, beam_size=60, mask_seen=mask_seen)
    expected = score_catalogue(model, padded([history[-6:] for history in histories]), chunk=50).numpy()
    for user, history in enumerate(histories):
        allowed = np.setdiff1d(np.arange(60), history) if mask_seen else np.arange(60)
        n = len(allowed)
        assert set(items[user, :n]) == set(allowed)
        assert (items[user, n:] == NO_ITEM).all()
        np.testing.assert_allclose(scores[user, :n], expected[user, items[user, :n]], atol=1e-4)
        np.testing.assert_allclose(scores[user, :n], -np.sort(-expected[user, allowed]), atol=1e-4)


@pytest.mark.parametrize("beam_size", [3, 10])
def test_equals_generate_with_a_prefix_function(beam_size):
    model, histories, allowed = generator(), random_histories(12, 60), allowed_next(IDS.tokens)
    item_of = {tuple(row): item for item, row in enumerate(IDS.tokens.tolist())}
    items, scores = Searcher.of(model, "fp32").rank(histories, k=beam_size, beam_size=beam_size, mask_seen=False)
    for user, history in enumerate(histories):
        read = model.sequence(torch.from_numpy(history[None, -6:].astype(np.int64)))
        found = model.gpt2.generate(
            input_ids=read,
            attention_mask=torch.ones_like(read),
            num_beams=beam_size,
            num_return_sequences=beam_size,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            length_penalty=0.0,
            eos_token_id=None,
            pad_token_id=PAD,
            return_dict_in_generate=True,
            output_scores=True,
            prefix_allowed_tokens_fn=lambda _, ids, n=read.shape[1]: allowed[tuple(ids[n:].tolist())],
        )
        assert [item_of[tuple(row)] for row in found.sequences[:, read.shape[1] :].tolist()] == items[user].tolist()
        np.testing.assert_allclose(scores[user], found.sequences_scores, atol=1e-4)


def test_beams_keep_to_their_user():
    """A parent's number counts within its user: among many users each gets what it gets alone, whatever beams the
    others keep."""
    searcher = Searcher.of(generator(), "fp32")
    histories = random_histories(12, 60)
    items, scores = searcher.rank(histories, k=10, beam_size=10, mask_seen=True)
    for user, history in enumerate(histories):
        single, single_scores = searcher.rank([history], k=10, beam_size=10, mask_seen=True)
        assert (items[user] == single[0]).all()
        np.testing.assert_allclose(scores[user], single_scores[0], atol=1e-4)
    assert len(np.unique(items, axis=0)) > 6
    order = np.random.default_rng(0).permutation(12)
    assert (
        searcher.rank([histories[user] for user in order], k=10, beam_size=10, mask_seen=True)[0] == items[order]
    ).all()


@pytest.mark.parametrize("n_items", [1, 2, 7])
def test_beam_wider_than_the_catalogue_gives_a_shorter_list_without_ghosts(n_items):
    items, scores = Searcher.of(generator(catalogue(n_items)), "fp32").rank(
        [np.array([0])], k=20, beam_size=20, mask_seen=False
    )
    assert sorted(items[0, :n_items]) == list(range(n_items))
    assert (items[0, n_items:] == NO_ITEM).all()
    assert (scores[0, n_items:] == -np.inf).all()


def test_the_order_of_a_history_matters_and_only_its_last_items_do():
    searcher, rng = Searcher.of(generator(), "fp32"), np.random.default_rng(0)
    history = rng.permutation(60)[:6]
    scores = lambda items: searcher.rank([np.asarray(items)], k=60, beam_size=60, mask_seen=False)[1]
    assert np.abs(scores(history) - scores(history[::-1])).max() > 0.01
    assert (scores(history) == scores([7, 8, 9, *history])).all()


def test_a_deterministic_next_item_is_learned_to_the_first_rank():
    n_items = 12
    codes = np.array([[item // 4, item % 4, 0] for item in range(n_items)], np.int32)
    rng = np.random.default_rng(0)
    walks = [(rng.integers(n_items) + np.arange(rng.integers(5, 10))) % n_items for _ in range(60)]
    sizes = dataclasses.replace(SIZES, max_items=4)
    model = sizes.new(SemanticIds(codes, TokenLayout((3, 4), (3, 4, 8))), "item_causal", 0)
    training = Training(epochs=40, batch_targets=48, stride=3, learning_rate=5e-3, embedding_rate=1.0, precision="fp32")
    trainer = Trainer(model, made_of(walks), TrainConfig(sizes, training))
    for step in range(trainer.total_steps):
        loss = trainer.step(step)
    assert loss.item() < 0.05
    items, _ = Searcher.of(model, "fp32").rank([walk[:-1] for walk in walks], k=1, beam_size=5, mask_seen=False)
    assert (items[:, 0] == [walk[-1] for walk in walks]).all()


def test_biases_and_layer_norms_do_not_decay():
    model = generator()
    decaying = {
        id(parameter)
        for group in new_optimizer(model, TRAINING).param_groups
        if group["weight_decay"]
        for parameter in group["params"]
    }
    assert {name for name, parameter in model.named_parameters() if id(parameter) not in decaying} == {
        name for name, _ in model.named_parameters() if name.endswith("bias") or "ln_" in name
    }


def test_saved_and_loaded_it_ranks_the_same_and_is_a_plain_model_of_transformers(tmp_path):
    model, histories = generator(), random_histories(5, 60)
    assert sorted(path.name for path in save_generator(model, tmp_path)) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    loaded = load_generator(tmp_path, IDS)
    assert (
        loaded.facts
        == model.facts
        == {"history": "codes", "max_items": 6, "code_sizes": [5, 4, 3], "level_sizes": [5, 4, 3, 60]}
    )
    for one, other in zip(
        *(Searcher.of(each, "fp32").rank(histories, k=10, beam_size=10, mask_seen=True) for each in (model, loaded)),
        strict=True,
    ):
        assert np.array_equal(one, other)
    stock = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(stock.parameters(), model.gpt2.parameters(), strict=True))


def test_a_gpt2_that_is_not_ours_is_refused(tmp_path):
    list(save_generator(generator(), tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    del config["tigerrec"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="how the model reads histories"):
        load_generator(tmp_path, IDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["generator.d_model=30"], "d_model must be a multiple of num_heads=4, got 30"),
        (["generator.d_kv=8"], "d_kv must be d_model / num_heads, 16, or null, got 8"),
        (["generator.dropout_rate=1.5"], "dropout_rate must be at most 0.99, got 1.5"),
        (["generator.num_layers=0"], "num_layers must be at least 1"),
        (["generator.max_items=5"], "stride must be at most the generator's max_items=5, got 10"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_any_work(options, message):
    with pytest.raises(ConfigError, match=message):
        plan(compose(["generator=decoder_only", *options]))


def test_its_own_options_of_training_stand_below_those_of_the_sample():
    full, small = (
        plan(compose([f"dataset={name}", "generator=decoder_only"]))["train"].config for name in ("beauty", "sample")
    )
    assert full.generator == DecoderOnly()
    assert (
        full.training.learning_rate,
        full.training.weight_decay,
        full.training.embedding_rate,
        full.training.batch_targets,
    ) == (1e-3, 0.1, 1.0, 512)
    assert (small.generator.num_layers, small.generator.d_model, small.training.embedding_rate) == (2, 64, 1.0)


def test_a_killed_run_ends_in_the_bytes_of_an_undisturbed_one_and_is_evaluated(tmp_path, monkeypatch):
    folders = build_run(tmp_path, history="decoder_only")
    shutil.rmtree(folders["train"])
    config = TrainConfig(
        DecoderOnly(num_layers=1, d_model=16, num_heads=2, d_ff=16, max_items=5),
        dataclasses.replace(TRAINING, embedding_rate=1.0),
    )
    run = lambda name: train(folders["prepare"], folders["tokenize"], config, folders["tokenize"] / name)
    undisturbed = run("undisturbed")
    step = Trainer.step

    def killed(self, number):
        if number == 5:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        run("resumed")
    monkeypatch.setattr(Trainer, "step", step)
    assert weights(run("resumed")) == weights(undisturbed)
    out = evaluate(
        folders["prepare"],
        folders["tokenize"],
        undisturbed,
        EvaluateConfig(model="decoder_only"),
        undisturbed / "eval-full",
    )
    n_users = len(load_histories(folders["prepare"]))
    assert {(row["model"], row["users"]) for row in read_json(out, "metrics.json")} == {
        ("decoder_only", n_users),
        ("popularity", n_users),
    }
    assert load_generator(undisturbed, load_semantic_ids(folders["tokenize"])).facts["max_items"] == 5
