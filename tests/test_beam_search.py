"""The search against exhaustive scoring, against transformers' own beam search, and at the edges of the catalogue."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from tests.oracles import score_catalogue
from tigerrec.data.batches import NO_ITEM, padded
from tigerrec.models.t5 import T5
from tigerrec.models.t5_model import HistoryT5
from tigerrec.search.beam_search import beam_search
from tigerrec.search.searcher import Searcher
from tigerrec.tokenizers.ids import PAD, SemanticIds, TokenLayout
from tigerrec.tokenizers.suffix import add_suffix
from tigerrec.tokenizers.trie import build_trie

CODE_SIZES = (5, 4, 3)
SETTINGS = [
    ("bidirectional", "codes", "all_items"),
    ("bidirectional", "codes", "last_item"),
    ("item_causal", "codes", "all_items"),
    ("item_causal", "codes", "last_item"),
    ("item_causal", "items", "all_items"),
    ("item_causal", "items", "last_item"),
]


def catalogue(n_items: int, seed: int = 0) -> SemanticIds:
    codes = np.random.default_rng(seed).integers(0, CODE_SIZES, (n_items, 3)).astype(np.int32)
    return SemanticIds(
        np.column_stack([codes, add_suffix(codes)]).astype(np.int32), TokenLayout(CODE_SIZES, (*CODE_SIZES, n_items))
    )


def generator(
    ids: SemanticIds, mask: str = "item_causal", history: str = "codes", reads: str | None = None, seed: int = 0
) -> HistoryT5:
    sizes = {"num_layers": 2, "d_model": 32, "num_heads": 2, "d_kv": 16, "d_ff": 48, "max_items": 6}
    model = T5(**sizes, history=history, decoder_reads=reads).new(ids, mask, seed)
    with torch.no_grad():  # random weights hardly look at their input: sharpen them
        for parameter in model.parameters():
            parameter.mul_(1.7)
        if model.inputs is not None:
            model.inputs.item_embeddings.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return model


def stock_encoding(model: HistoryT5, history: np.ndarray) -> torch.Tensor:
    """What the decoder reads of transformers' own encoder for one history, (1, S, d): inputs and mask built position by
    position."""
    read, t5 = history[-6:], model.t5
    codes = [t5.shared.weight[model.tokens[int(item)]] for item in read]
    if model.inputs is None:
        embedded, item_of = torch.cat(codes), [place for place in range(len(read)) for _ in range(4)]
    else:
        own = model.inputs.item_embeddings.weight
        embedded = torch.stack(
            [
                model.inputs.code_projection.weight @ code.flatten() + own[int(item)]
                for code, item in zip(codes, read, strict=True)
            ]
        )
        item_of = list(range(len(read)))
    mask = torch.zeros(1, 1, len(item_of), len(item_of))
    if model.facts["encoder_mask"] == "item_causal":
        for query, key in itertools.product(range(len(item_of)), repeat=2):
            mask[0, 0, query, key] = 0.0 if item_of[key] <= item_of[query] else torch.finfo(torch.float32).min
    encoded = t5.encoder(inputs_embeds=embedded[None], attention_mask=mask).last_hidden_state
    last = [place for place, item in enumerate(item_of) if item == len(read) - 1]
    return encoded[:, last] if model.facts["decoder_reads"] == "last_item" else encoded


def random_histories(n: int, n_items: int, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(n_items)[: rng.integers(1, min(9, n_items))].astype(np.int32) for _ in range(n)]


@pytest.fixture(scope="module", params=SETTINGS, ids="-".join)
def setting(request):
    ids = catalogue(60)
    return ids, generator(ids, *request.param), random_histories(12, 60)


@torch.no_grad()
def all_scores(ids, model, histories) -> np.ndarray:
    rows = []
    for history in histories:
        encoded = stock_encoding(model, history)
        tokens = torch.from_numpy(ids.tokens)
        inputs = torch.nn.functional.pad(tokens[:, :-1], (1, 0), value=PAD)
        logits = model.t5(encoder_outputs=(encoded.expand(len(tokens), -1, -1),), decoder_input_ids=inputs).logits
        rows.append(logits.log_softmax(-1).gather(2, tokens[:, :, None]).sum((1, 2)))
    return torch.stack(rows).numpy()


def test_the_scores_of_a_catalogue_are_those_of_the_stock_model(setting):
    ids, model, histories = setting
    found = score_catalogue(model, padded([history[-6:] for history in histories]), chunk=7)
    np.testing.assert_allclose(found, all_scores(ids, model, histories), atol=1e-4)


def test_beam_as_wide_as_the_catalogue_equals_exhaustive_scoring(setting):
    ids, model, histories = setting
    items, scores = Searcher.of(model, "fp32").rank(histories, k=60, beam_size=60, mask_seen=False)
    expected = all_scores(ids, model, histories)
    assert (np.sort(items, axis=1) == np.arange(60)).all()
    np.testing.assert_allclose(scores, np.take_along_axis(expected, items, 1), atol=1e-4)
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1), atol=1e-4)


def test_masked_search_equals_exhaustive_scoring_without_the_seen_items(setting):
    ids, model, histories = setting
    items, scores = Searcher.of(model, "fp32").rank(histories, k=60, beam_size=60, mask_seen=True)
    expected = all_scores(ids, model, histories)
    for user, history in enumerate(histories):
        allowed = np.setdiff1d(np.arange(60), history)
        n = len(allowed)
        assert set(items[user, :n]) == set(allowed)
        assert (items[user, n:] == NO_ITEM).all()
        np.testing.assert_allclose(scores[user, :n], -np.sort(-expected[user, allowed]), atol=1e-4)


def test_masked_list_is_full_where_a_whole_branch_was_seen():
    codes = np.array(
        [[0, 0, 0, s] for s in range(4)] + [[1, 1, 1, 0], [2, 1, 1, 0], [3, 1, 1, 0], [4, 1, 1, 0]], np.int32
    )
    ids = SemanticIds(codes, TokenLayout(CODE_SIZES, (*CODE_SIZES, 8)))
    items, _ = Searcher.of(generator(ids), "fp32").rank([np.arange(4)], k=4, beam_size=4, mask_seen=True)
    assert set(items[0]) == {4, 5, 6, 7}


@pytest.mark.parametrize("beam_size", [3, 10])
def test_equals_generate_with_a_prefix_function(setting, beam_size):
    ids, model, histories = setting
    children: dict[tuple[int, ...], set[int]] = {}
    for row in ids.tokens.tolist():
        for level in range(len(row)):
            children.setdefault(tuple(row[:level]), set()).add(row[level])
    item_of = {tuple(row): item for item, row in enumerate(ids.tokens.tolist())}
    items, scores = Searcher.of(model, "fp32").rank(histories, k=beam_size, beam_size=beam_size, mask_seen=False)
    for user, history in enumerate(histories):
        encoded = stock_encoding(model, history)
        found = model.t5.generate(
            encoder_outputs=BaseModelOutput(encoded),
            attention_mask=torch.ones(encoded.shape[:2]).long(),
            num_beams=beam_size,
            num_return_sequences=beam_size,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            length_penalty=0.0,
            eos_token_id=None,
            pad_token_id=PAD,
            decoder_start_token_id=PAD,
            return_dict_in_generate=True,
            output_scores=True,
            prefix_allowed_tokens_fn=lambda _, prefix: sorted(children[tuple(prefix.tolist()[1:])]),
        )
        assert [item_of[tuple(row)] for row in found.sequences[:, 1:].tolist()] == items[user].tolist()
        expected = all_scores(ids, model, [history])[0, items[user]]
        np.testing.assert_allclose(scores[user], expected, atol=1e-4)


def test_a_batch_gives_what_each_user_gets_alone(setting):
    _, model, histories = setting
    searcher = Searcher.of(model, "fp32")
    together, _ = searcher.rank(histories, k=10, beam_size=10, mask_seen=True)
    alone = [searcher.rank([history], k=10, beam_size=10, mask_seen=True)[0][0] for history in histories]
    assert (together == np.stack(alone)).all()


@pytest.mark.parametrize("n_items", [1, 2, 7])
def test_beam_wider_than_the_catalogue_gives_a_shorter_list_without_ghosts(n_items):
    ids = catalogue(n_items)
    items, scores = Searcher.of(generator(ids), "fp32").rank([np.array([0])], k=20, beam_size=20, mask_seen=False)
    assert sorted(items[0, :n_items]) == list(range(n_items))
    assert (items[0, n_items:] == NO_ITEM).all()
    assert (scores[0, n_items:] == -np.inf).all()
    if n_items == 1:
        items, _ = Searcher.of(generator(ids), "fp32").rank([np.array([0])], k=20, beam_size=20, mask_seen=True)
        assert (items == NO_ITEM).all()


def test_relabelling_items_permutes_recommendations(setting):
    _, model, histories = setting
    relabel = np.random.default_rng(3).permutation(60)
    tokens = np.empty_like(model.tokens.numpy())
    tokens[relabel] = model.tokens.numpy()
    inputs = copy.deepcopy(model.inputs)
    if inputs is not None:
        inputs.item_embeddings.weight.data[relabel] = model.inputs.item_embeddings.weight.data
    before, _ = Searcher.of(model, "fp32").rank(histories, k=10, beam_size=20, mask_seen=True)
    after, _ = Searcher.of(HistoryT5(model.t5, tokens, inputs), "fp32").rank(
        [relabel[history] for history in histories], k=10, beam_size=20, mask_seen=True
    )
    assert (relabel[before] == after).all()


def test_only_the_last_items_are_read(setting):
    _, model, _ = setting
    searcher = Searcher.of(model, "fp32")
    long, short = np.arange(20), np.arange(14, 20)
    assert (
        searcher.rank([long], k=5, beam_size=10, mask_seen=False)[0]
        == searcher.rank([short], k=5, beam_size=10, mask_seen=False)[0]
    ).all()


def test_refuses_an_empty_history_and_a_beam_narrower_than_k(setting):
    _, model, _ = setting
    searcher = Searcher.of(model, "fp32")
    with pytest.raises(ValueError, match="empty"):
        searcher.rank([np.array([], int)], k=5, beam_size=5, mask_seen=False)
    with pytest.raises(ValueError, match="beam size"):
        searcher.rank([np.array([1])], k=6, beam_size=5, mask_seen=False)


def test_beam_search_is_a_function_of_tensors(setting):
    ids, model, histories = setting
    read = padded([history[-6:] for history in histories[:3]])
    items, scores = beam_search(model.decoder(read, torch.float32), build_trie(ids.tokens), 3, beam_size=4)
    assert items.shape == scores.shape == (3, 4)
    assert (scores.diff(dim=1) <= 0).all()


def shared_catalogue(n_items: int) -> tuple[SemanticIds, np.ndarray]:
    """Items that share ids, and how popular each is, with ties."""
    rng = np.random.default_rng(5)
    sizes = (3, 2, 2)
    return SemanticIds(
        rng.integers(0, sizes, (n_items, 3)).astype(np.int32), TokenLayout(sizes, sizes), True
    ), rng.integers(0, 5, n_items)


@pytest.mark.parametrize("history", ["codes", "items"])
@pytest.mark.parametrize("mask_seen", [False, True])
def test_items_that_share_ids_are_ranked_as_exhaustive_scoring_ranks_them(history, mask_seen):
    ids, popularity = shared_catalogue(30)
    model, histories = generator(ids, history=history), random_histories(12, 30)
    assert len(np.unique(ids.codes, axis=0)) < 30
    searcher = Searcher.of(model, "fp32", popularity)
    items, scores = searcher.rank(histories, k=30, beam_size=30, mask_seen=mask_seen)
    expected = score_catalogue(model, padded([read[-6:] for read in histories])).numpy()
    for user, seen in enumerate(histories):
        allowed = np.setdiff1d(np.arange(30), seen) if mask_seen else np.arange(30)
        n = len(allowed)
        assert sorted(items[user, :n]) == allowed.tolist()
        assert (items[user, n:] == NO_ITEM).all()
        np.testing.assert_allclose(scores[user, :n], -np.sort(-expected[user, allowed]), atol=1e-4)
        for one, other in itertools.pairwise(range(n)):
            if (ids.codes[items[user, one]] == ids.codes[items[user, other]]).all():
                assert scores[user, one] == scores[user, other]
                assert (-popularity[items[user, one]], items[user, one]) < (
                    -popularity[items[user, other]],
                    items[user, other],
                )
            else:
                assert scores[user, one] >= scores[user, other]
    short, _ = searcher.rank(histories, k=4, beam_size=4, mask_seen=mask_seen)
    assert (short >= 0).all()
    assert all(len(set(row)) == 4 for row in short.tolist())
    if mask_seen:
        assert not any(set(row) & set(seen.tolist()) for row, seen in zip(short, histories, strict=True))


def test_shared_ids_need_popularity():
    ids, _ = shared_catalogue(30)
    with pytest.raises(ValueError, match="same tokens"):
        Searcher.of(generator(ids))
