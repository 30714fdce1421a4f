"""Search among allowed items alone: what is found, that lists stay full, and that probabilities stay what they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.oracles import score_catalogue
from tests.test_beam_search import catalogue, generator, random_histories
from tigerrec.data.batches import NO_ITEM, padded
from tigerrec.models.gpt2 import DecoderOnly
from tigerrec.models.t5_tree import T5Tree
from tigerrec.search.options import Scoring
from tigerrec.search.searcher import Searcher
from tigerrec.tokenizers.ids import SemanticIds, TokenLayout

N_ITEMS = 60
TREE = {"num_layers": 1, "d_model": 16, "num_heads": 2, "d_kv": 8, "d_ff": 16, "max_items": 6}
WAYS = {
    "t5": Scoring(),
    "decoder_only": Scoring(),
    **{f"t5_tree {scores}": Scoring(scores, 0.7) for scores in ("codes", "items", "hybrid", "inline")},
}


def model_of(name: str):
    ids = catalogue(N_ITEMS)
    if name == "t5":
        return generator(ids)
    if name == "decoder_only":
        return DecoderOnly(num_layers=1, d_model=16, num_heads=2, d_ff=16, max_items=6).new(ids, "item_causal", 0)
    return T5Tree(**TREE).new(ids, "item_causal", 0)


@pytest.fixture(params=WAYS)
def searcher(request) -> Searcher:
    return Searcher.of(model_of(request.param.split()[0]), "fp32", scoring=WAYS[request.param])


def allowed_items(n: int, seed: int = 3) -> np.ndarray:
    allowed = np.zeros(N_ITEMS, bool)
    allowed[np.random.default_rng(seed).choice(N_ITEMS, n, replace=False)] = True
    return allowed


@pytest.mark.parametrize("mask_seen", [False, True])
@pytest.mark.parametrize("n_allowed", [1, 7, 40, N_ITEMS])
def test_a_wide_beam_finds_what_is_allowed_of_all_that_there_is(searcher, n_allowed, mask_seen):
    histories, allowed = random_histories(8, N_ITEMS), allowed_items(n_allowed)
    every, scores = searcher.rank(histories, k=N_ITEMS, beam_size=N_ITEMS, mask_seen=mask_seen)
    found, found_scores = searcher.within(allowed).rank(histories, k=N_ITEMS, beam_size=N_ITEMS, mask_seen=mask_seen)
    for user in range(len(histories)):
        kept = (every[user] >= 0) & allowed[every[user]]
        n = int(kept.sum())
        assert found[user, :n].tolist() == every[user][kept].tolist()
        assert (found[user, n:] == NO_ITEM).all()
        np.testing.assert_allclose(found_scores[user, :n], scores[user][kept], atol=1e-5)


def test_scores_are_those_of_exhaustive_scoring():
    model, histories, allowed = model_of("t5"), random_histories(8, N_ITEMS), allowed_items(12)
    found, scores = Searcher.of(model, "fp32").within(allowed).rank(histories, k=12, beam_size=20, mask_seen=False)
    with torch.no_grad():
        expected = score_catalogue(model, padded([history[-6:] for history in histories])).numpy()
    expected[:, ~allowed] = -np.inf
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :12], atol=1e-3)
    assert allowed[found].all()


@pytest.mark.parametrize("mask_seen", [False, True])
def test_a_narrow_beam_fills_its_list_from_few_items(searcher, mask_seen):
    histories = random_histories(8, N_ITEMS)
    for seed in range(10):
        allowed = allowed_items(9, seed)
        found, _ = searcher.within(allowed).rank(histories, k=4, beam_size=4, mask_seen=mask_seen)
        for user, history in enumerate(histories):
            free = allowed.copy()
            free[history[:] if mask_seen else []] = False
            n = min(4, int(free.sum()))
            assert (found[user, :n] >= 0).all()
            assert free[found[user, :n]].all()
            assert (found[user, n:] == NO_ITEM).all()


def test_branches_of_which_a_rule_and_the_history_leave_nothing_take_no_place():
    codes = np.array([[0, 0], [0, 1], [1, 0], [2, 0], [3, 0]], np.int32)  # items 0 and 1 share a branch
    ids = SemanticIds(codes, TokenLayout((4,), (4, 2)))
    model = generator(ids)
    allowed = np.array([True, False, True, True, True])
    histories = [np.array([0])]
    found, _ = Searcher.of(model, "fp32").within(allowed).rank(histories, k=3, beam_size=3, mask_seen=True)
    assert sorted(found[0].tolist()) == [2, 3, 4]


def test_items_that_share_an_id_are_told_apart():
    codes = np.array([[0], [0], [0], [1]], np.int32)
    ids = SemanticIds(codes, TokenLayout((2,), (2,)))
    popularity = np.array([1, 9, 5, 3])
    searcher = Searcher.of(generator(ids), "fp32", popularity).within(np.array([True, False, True, False]))
    found, scores = searcher.rank([np.array([3])], k=4, beam_size=4, mask_seen=False)
    assert found[0].tolist() == [2, 0, NO_ITEM, NO_ITEM]
    assert scores[0, 0] == scores[0, 1]


def test_nothing_allowed_is_nothing_found(searcher):
    found, scores = searcher.within(np.zeros(N_ITEMS, bool)).rank(
        random_histories(3, N_ITEMS), k=5, beam_size=5, mask_seen=True
    )
    assert (found == NO_ITEM).all()
    assert (scores == -np.inf).all()
