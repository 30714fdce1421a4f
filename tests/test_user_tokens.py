"""A token of the user before the history: what the encoder then sees, in training and in the search."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import BaseModelOutput

from tests.oracles import stock_logits
from tigerrec.data.histories import load_histories
from tigerrec.models.dropout import Dropout
from tigerrec.models.loading import load_generator
from tigerrec.models.t5 import T5
from tigerrec.models.t5_model import HistoryT5
from tigerrec.search.searcher import Searcher
from tigerrec.serving.model_card import OWN_ENCODING, _how_to_generate
from tigerrec.tokenizers.ids import SemanticIds, load_semantic_ids
from tigerrec.training.loop import Trainer
from tigerrec.training.options import TrainConfig, Training
from tigerrec.training.stage import train

N_TOKENS = 3
MODEL = T5(num_layers=2, d_model=16, num_heads=2, d_kv=8, d_ff=16, max_items=5, user_tokens=N_TOKENS)
TRAINING = Training(epochs=1, batch_targets=24, part_tokens=64, stride=3, validation_users=30, precision="fp32")


def sharp(ids: SemanticIds, mask: str, **options) -> HistoryT5:
    """A model of random weights that look at their input."""
    model = dataclasses.replace(MODEL, **options).new(ids, mask, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.7)
    return model


def loss_of_one(model: HistoryT5, ids: SemanticIds, history: np.ndarray, target: int, user: int) -> float:
    """The loss of a target by the stock model, which is given the user's token and those of one history; under the
    packed mask a position sees its own item and what stands before."""
    token = ids.layout.vocab_size + user % N_TOKENS
    inputs = torch.tensor([[token, *ids.tokens[history].flatten().tolist()]])
    mask = None
    if model.facts["encoder_mask"] == "item_causal":
        item = torch.tensor([-1, *np.repeat(np.arange(len(history)), ids.tokens.shape[1]).tolist()])
        mask = (item[:, None] >= item)[None, None]
    encoded = model.t5.encoder(input_ids=inputs, attention_mask=mask).last_hidden_state
    read = encoded[:, -ids.tokens.shape[1] :] if model.facts["decoder_reads"] == "last_item" else encoded
    labels = torch.from_numpy(ids.tokens[[target]])
    return cross_entropy(model.t5(encoder_outputs=BaseModelOutput(read), labels=labels).logits[0], labels[0]).item()


@pytest.mark.parametrize("reads", ["all_items", "last_item"])
@pytest.mark.parametrize(("examples", "mask"), [("prefix", "bidirectional"), ("packed", "item_causal")])
def test_training_reads_each_users_own_token_first(folders, examples, mask, reads):
    histories, ids = load_histories(folders["prepare"]), load_semantic_ids(folders["tokenize"])
    model = sharp(ids, mask, decoder_reads=reads)
    stride = TRAINING.stride if examples == "packed" else None
    trainer = Trainer(
        model, histories, TrainConfig(MODEL, dataclasses.replace(TRAINING, examples=examples, stride=stride))
    )
    pieces = trainer.examples
    parts = [histories.training_part(user) for user in range(len(histories))]
    starts = np.cumsum([0, *map(len, parts)])
    expected = []
    for user, start, first, stop in zip(pieces.users, pieces.start, pieces.first, pieces.stop, strict=True):
        assert starts[user] <= start
        assert stop < starts[user + 1]
        expected += [
            loss_of_one(model, ids, pieces.items[start:place], int(pieces.items[place]), int(user))
            for place in range(first, stop + 1)
        ]
    total, _ = trainer.losses(np.arange(len(pieces)), Dropout(0.0))
    assert total.item() / len(expected) == pytest.approx(np.mean(expected), abs=1e-5)
    assert len(set(pieces.users.tolist())) > N_TOKENS


@pytest.mark.parametrize("reads", ["all_items", "last_item"])
def test_the_search_reads_the_users_token_and_the_mean_of_all_where_nobody_is_named(folders, reads):
    ids = load_semantic_ids(folders["tokenize"])
    model = sharp(ids, "item_causal", decoder_reads=reads)
    searcher, history = Searcher.of(model, "fp32", np.ones(len(ids.codes), np.int64)), np.array([3, 8, 1])
    users = np.arange(2 * N_TOKENS)
    items, scores = searcher.rank([history] * len(users), k=20, beam_size=40, mask_seen=False, users=users)
    assert np.array_equal(items[:N_TOKENS], items[N_TOKENS:])
    assert len({tuple(row) for row in scores[:N_TOKENS].round(3).tolist()}) == N_TOKENS
    for user in range(N_TOKENS):
        losses = [loss_of_one(model, ids, history, int(item), user) for item in items[user, :5]]
        assert scores[user, :5] == pytest.approx(-np.array(losses) * ids.tokens.shape[1], abs=1e-3)
    with torch.no_grad():
        of_nobody = model.encode(torch.from_numpy(history)[None])
        model.t5.shared.weight[-N_TOKENS:] = model.t5.shared.weight[-N_TOKENS:].mean(0)
        of_the_mean = model.encode(torch.from_numpy(history)[None], users=torch.tensor([1]))
        best = stock_logits(model, torch.from_numpy(history), model.tokens).log_softmax(-1)
    assert torch.allclose(of_nobody, of_the_mean, atol=1e-5)
    _, named_nobody = Searcher.of(model, "fp32", searcher.popularity).rank(
        [history], k=1, beam_size=40, mask_seen=False
    )
    assert named_nobody.item() == pytest.approx(
        best.gather(2, model.tokens[:, :, None]).sum((1, 2)).max().item(), abs=1e-4
    )


def test_a_trained_model_with_user_tokens_is_loaded_as_it_was(folders):
    out: Path = train(folders["prepare"], folders["tokenize"], TrainConfig(MODEL, TRAINING), folders["tokenize"] / "t5")
    ids = load_semantic_ids(folders["tokenize"])
    model = load_generator(out, ids)
    assert model.facts["user_tokens"] == N_TOKENS
    assert model.t5.shared.weight.shape[0] == ids.layout.vocab_size + N_TOKENS
    other = load_generator(out, ids)
    ranked = [
        Searcher.of(of, "fp32", np.ones(len(ids.codes), np.int64)).rank(
            [np.array([3, 8, 1])], k=5, beam_size=20, mask_seen=True, users=np.array([7])
        )[1]
        for of in (model, other)
    ]
    assert np.array_equal(*ranked)
    settings = model.facts | {"encoder_mask": "bidirectional", "decoder_reads": "all_items"}
    assert _how_to_generate({"model_type": "t5", "tigerrec": settings}) == OWN_ENCODING
