"""What audits compute of arrays, against oracles that count by hand, and the data that they change on purpose."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from tests.oracles import stock_logits
from tests.tiny_run import N_ITEMS, N_USERS, build_run
from tigerrec.analysis.audit.cold import hold_out, nearest_lists
from tigerrec.analysis.audit.figures import (
    buckets,
    chance_of_any,
    difference_in_words,
    exposure,
    gini,
    head_share,
    headline,
    listed_in,
    paired_difference,
    without,
)
from tigerrec.analysis.audit.open_trie import MALFORMED, UNASSIGNED, OpenTrie
from tigerrec.analysis.audit.report import rows_table
from tigerrec.analysis.audit.run import NotApplicableError
from tigerrec.analysis.audit.searched import changed_histories
from tigerrec.analysis.audit.variants import (
    from_end,
    in_a_tie,
    poisoned,
    read_interactions,
    ties_reversed,
    without_items,
    write_variant,
)
from tigerrec.data.histories import load_histories
from tigerrec.evaluation.metrics import gains, metrics
from tigerrec.models.t5 import T5
from tigerrec.search.searcher import Searcher
from tigerrec.storage.contracts import read_table
from tigerrec.storage.stages import check_made_from, open_stage
from tigerrec.tokenizers.ids import SemanticIds, TokenLayout
from tigerrec.tokenizers.trie import build_trie


@pytest.mark.parametrize("counts", [[1, 1, 1, 1], [0, 0, 0, 7], [3, 1, 0, 2, 2], [5]])
def test_gini_is_half_the_relative_mean_difference(counts):
    pairs = [abs(a - b) for a, b in itertools.product(counts, repeat=2)]
    assert gini(np.array(counts)) == pytest.approx(np.mean(pairs) / (2 * np.mean(counts)))


def test_exposure_counts_items_and_the_head():
    popularity = np.array([9, 1, 5, 5, 0, 0, 0, 0, 0, 0])
    found = exposure(np.array([[0, 2], [0, -1], [3, 0]]), popularity)
    assert (found["shown"], found["different items"], found["share of the catalogue"]) == (5, 3, 0.3)
    assert found["share on top 1 % of items"] == found["share on top 10 % of items"] == 0.6
    assert (
        head_share(np.array([3, 0, 1, 1, 0, 0, 0, 0, 0, 0]), popularity, 0.2) == 0.8
    )  # items 0 and 2: of equals the first
    assert gini(np.zeros(3)) == 0


def test_buckets_hold_every_value_once():
    values = np.array([0, 1, 4, 5, 9, 10, 1000])
    found = dict(buckets(values, (0, 1, 5, 10)))
    assert {label: values[members].tolist() for label, members in found.items()} == {
        "0": [0],
        "1–4": [1, 4],
        "5–9": [5, 9],
        "10+": [10, 1000],
    }


def test_the_headline_is_that_of_metrics():
    ranks = np.random.default_rng(0).integers(0, 21, 300)
    row, whole = headline(ranks), metrics(ranks)
    assert row == {"users": 300} | {name: whole[name] for name in row if name != "users"}
    assert headline(ranks[:0]) == {"users": 0}


def test_a_paired_difference_is_that_of_the_means_and_much_surer_than_each_mean():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 21, 2000)
    second = np.where(rng.random(2000) < 0.02, 1, first)
    found = paired_difference(first, second)
    assert found["hr@10"] == pytest.approx(headline(second)["hr@10"] - headline(first)["hr@10"])
    assert 0 < found["hr@10_low"] < found["hr@10"] < found["hr@10_high"]
    alone = headline(first)
    assert found["hr@10_high"] - found["hr@10_low"] < 0.3 * (alone["hr@10_high"] - alone["hr@10_low"])
    assert set(paired_difference(first, first).values()) == {0.0}
    drawn = [np.random.default_rng(number).integers(0, 2000, 2000) for number in range(400)]
    gain = gains(20)["ndcg@10"]
    spread = np.percentile([(gain[second[rows]] - gain[first[rows]]).mean() for rows in drawn], [2.5, 97.5])
    assert [found["ndcg@10_low"], found["ndcg@10_high"]] == pytest.approx(spread, abs=1e-3)
    with pytest.raises(ValueError, match="two ranks a user"):
        paired_difference(first, second[:-1])


def test_dropped_places_close_up():
    items = np.array([[5, 6, 7], [8, 9, 4]])
    seen = listed_in(items, [np.array([6, 1]), np.array([2])])
    assert seen.tolist() == [[False, True, False], [False, False, False]]
    assert without(items, seen | (items == 8)).tolist() == [[5, 7, -1], [9, 4, -1]]


def test_chance_of_any_equals_counting_all_draws():
    draws = [set(drawn) for drawn in itertools.combinations(range(7), 3)]
    assert chance_of_any(2, 7, 3) == pytest.approx(np.mean([bool(drawn & {0, 1}) for drawn in draws]))
    assert chance_of_any(5, 7, 3) == 1


def test_a_table_shows_intervals_signs_and_shares():
    rows = [
        {"what": "a", "users": 1200, "hr@10": 0.25, "hr@10_low": 0.2, "hr@10_high": 0.3},
        {"what": "difference", "hr@10": 0.01, "hr@10_low": -0.01, "hr@10_high": 0.03, "share of users": 0.5},
    ]
    assert [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in rows_table(rows).splitlines()
        if "---" not in line
    ] == [
        ["what", "users", "HR@10", "share of users"],
        ["a", "1,200", ".2500 (.2000 to .3000)", ""],
        ["difference", "", "+.0100 (-.0100 to +.0300)", "50.0 %"],
    ]
    assert difference_in_words(rows[1], "hr@10") == "+.0100 (-.0100 to +.0300)"


# users 0 and 1; user 0 has ties at time 1 and at time 3
SMALL = pd.DataFrame(
    {"user": [0, 0, 0, 0, 0, 1, 1, 1], "item": [4, 3, 2, 1, 0, 5, 4, 3], "timestamp": [1, 1, 2, 3, 3, 3, 4, 5]}
)


def test_reversed_ties_move_within_equal_times_alone():
    changed = ties_reversed(SMALL)
    assert changed["item"].tolist() == [3, 4, 2, 0, 1, 5, 4, 3]
    pd.testing.assert_frame_equal(changed.drop(columns="item"), SMALL.drop(columns="item"))
    pd.testing.assert_frame_equal(ties_reversed(changed), SMALL)
    assert in_a_tie(SMALL).tolist() == [True, True, False, True, True, False, False, False]


def test_reversed_ties_keep_the_multiset():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(30), 9)
    times = np.concatenate([np.sort(rng.integers(0, 5, 9)) for _ in range(30)])
    before = pd.DataFrame({"user": users, "item": rng.integers(0, 50, 270), "timestamp": times})
    after = ties_reversed(before)
    in_order = [frame.sort_values(["user", "timestamp", "item"], ignore_index=True) for frame in (before, after)]
    pd.testing.assert_frame_equal(*in_order)
    assert not after.equals(before)
    assert after[~in_a_tie(before)].equals(before[~in_a_tie(before)])


def test_poison_replaces_the_last_two_items_of_every_user_and_nothing_else():
    assert from_end(SMALL).tolist() == [5, 4, 3, 2, 1, 3, 2, 1]
    changed = poisoned(SMALL, 6, np.random.default_rng(0))
    assert (changed["item"] != SMALL["item"]).tolist() == [False, False, False, True, True, False, True, True]
    assert changed["item"].between(0, 5).all()
    assert poisoned(SMALL, 6, np.random.default_rng(0)).equals(changed)


def test_a_split_of_its_own_says_what_is_poisoned_and_which_ties_may_be_reversed():
    split = SMALL.assign(part=np.array([0, 0, 0, 0, 2, 0, 1, 1], np.int8))  # the tie at time 3 is of two parts
    assert from_end(split).tolist() == [3, 3, 3, 3, 1, 3, 2, 2]
    for last, changes in ((2, [4, 6, 7]), (1, [4])):
        changed = poisoned(split, 6, np.random.default_rng(0), last)
        assert np.flatnonzero(changed["item"] != split["item"]).tolist() == changes
    assert ties_reversed(split)["item"].tolist() == [3, 4, 2, 1, 0, 5, 4, 3]
    assert in_a_tie(split).tolist() == [True, True, *[False] * 6]
    assert without_items(split, np.isin(np.arange(6), [4, 2]))[0]["user"].tolist() == [0, 0, 0, 1, 1]


def test_items_held_out_are_in_no_history_and_short_users_go():
    held_out = np.isin(np.arange(6), [4, 2])
    left, numbers = without_items(SMALL, held_out)
    assert numbers.tolist() == [0, 1, -1, 2, -1, 3]
    assert left["user"].tolist() == [0, 0, 0]  # user 1 has two items left
    assert left["item"].tolist() == [2, 1, 0]
    assert left["timestamp"].tolist() == [1, 3, 3]


def test_hold_out_takes_a_share_of_the_catalogue_among_the_targets():
    targets = np.repeat(np.arange(0, 200, 2), 3)
    held_out = hold_out(targets, 200, np.random.default_rng(0))
    assert held_out.sum() == 10
    assert set(np.flatnonzero(held_out)) <= set(targets)
    assert hold_out(np.array([3, 3]), 400, np.random.default_rng(0)).sum() == 1


def test_a_variant_is_a_stage_made_from_another(tmp_path):
    prepared = build_run(tmp_path)["prepare"]
    held_out = np.arange(N_ITEMS) % 5 == 2
    changed, numbers = without_items(read_interactions(prepared), held_out)
    out = write_variant(prepared, {"audit": "test"}, changed, ~held_out, tmp_path / "variant")
    before, after = load_histories(prepared), load_histories(out)
    assert after.n_items == 32
    expected = [numbers[before[user]] for user in range(N_USERS)]
    expected = [items[items >= 0].tolist() for items in expected if (items >= 0).sum() >= 3]
    assert [after[user].tolist() for user in range(len(after))] == expected
    table = read_table(out, "items.parquet").to_pydict()
    assert table["item"] == list(range(32))
    assert table["item_id"] == [f"{number:010d}" for number in np.flatnonzero(~held_out)]
    manifest = open_stage(out, "prepare")
    assert manifest.config == {"audit": "test"}
    check_made_from(out, manifest, "prepare", prepared)


def test_poisoned_data_has_the_same_training_parts(tmp_path):
    prepared = build_run(tmp_path)["prepare"]
    changed = poisoned(read_interactions(prepared), N_ITEMS, np.random.default_rng(0))
    out = write_variant(prepared, {"audit": "poison"}, changed, np.ones(N_ITEMS, bool), tmp_path / "variant")
    before, after = load_histories(prepared), load_histories(out)
    for user in range(N_USERS):
        assert before.training_part(user).tolist() == after.training_part(user).tolist()
        assert before.split(user, "test")[1] != after.split(user, "test")[1]
        assert before.split(user, "validation")[1] != after.split(user, "validation")[1]


def test_changed_histories_are_what_their_names_say():
    everyone = [np.array([1, 2, 3, 4]), np.array([5, 6, 7]), np.array([8, 9])]
    users = np.array([0, 2])
    found = changed_histories([everyone[user] for user in users], everyone, users, max_items=3)
    assert list(found) == ["shuffled", "reversed", "last item alone", "last 2 alone", "last 5 alone", "of another user"]
    assert sorted(found["shuffled"][0].tolist()) == [2, 3, 4]  # only what is read is shuffled
    assert found["reversed"][0].tolist() == [4, 3, 2]
    assert [history.tolist() for history in found["last 2 alone"]] == [[3, 4], [8, 9]]
    assert found["last 5 alone"][0].tolist() == [2, 3, 4]
    for user, other in zip(users, found["of another user"], strict=True):
        assert any(other is history for number, history in enumerate(everyone) if number != user)


def test_the_nearest_vectors_leave_the_history_out():
    vectors = np.array([[1, 0], [0.9, 0.1], [0.5, 0.5], [0, 1]], np.float32)
    assert nearest_lists(vectors, [np.array([3, 0]), np.array([2])], 2).tolist() == [[1, 2], [1, 0]]


SIZES = (3, 2, 4)


@pytest.fixture(scope="module", params=[False, True], ids=["unique", "shared"])
def small_generator(request):
    """Eight items of 24 possible ids; or nine, two of which share one."""
    codes = np.array(list(itertools.product(*map(range, SIZES))), np.int32)[
        np.random.default_rng(0).permutation(24)[:8]
    ]
    if request.param:
        codes = np.concatenate([codes, codes[3:4]])
    ids = SemanticIds(codes, TokenLayout(SIZES, SIZES), may_share=request.param)
    model = T5(num_layers=1, d_model=16, num_heads=2, d_kv=8, d_ff=16, max_items=4).new(ids, "item_causal", 1)
    return ids, model


def test_without_the_trie_the_search_equals_scoring_every_sequence_of_tokens(small_generator):
    ids, model = small_generator
    vocab_size = ids.layout.vocab_size
    sequences = torch.tensor(list(itertools.product(range(vocab_size), repeat=len(SIZES))))
    histories = [np.array([0, 5]), np.array([2]), np.array([7, 1, 3])]
    popularity = np.arange(len(ids.codes))
    trie = build_trie(ids.tokens, popularity)
    searcher = Searcher(model, OpenTrie(trie, model.tokens, ids.layout), "fp32", popularity)
    items, scores = searcher.rank(histories, k=1000, beam_size=1000, mask_seen=False)
    items_of: dict[tuple[int, ...], list[int]] = {}
    for item in sorted(range(len(ids.codes)), key=lambda item: -popularity[item]):
        items_of.setdefault(tuple(ids.tokens[item].tolist()), []).append(item)
    possible = {
        tuple(row) for row in ids.layout.to_tokens(np.array(list(itertools.product(*map(range, SIZES))))).tolist()
    }
    for row, history in enumerate(histories):
        with torch.no_grad():
            logits = stock_logits(model, torch.from_numpy(history), sequences)
            every = logits.log_softmax(-1).gather(2, sequences[:, :, None]).sum((1, 2))
        expected, expected_scores = [], []
        for place in every.argsort(descending=True).tolist():
            tokens = tuple(sequences[place].tolist())
            what = items_of.get(tokens, [UNASSIGNED if tokens in possible else MALFORMED])
            expected += what
            expected_scores += [every[place].item()] * len(what)
        np.testing.assert_allclose(scores[row], expected_scores[:1000], atol=1e-4)
        assert np.bincount(items[row] + 2).tolist() == np.bincount(np.array(expected[:1000]) + 2).tolist()
        clear = np.flatnonzero(np.diff(expected_scores[:200], append=-np.inf) < -1e-3)
        for end in clear + 1:
            assert sorted(items[row, :end]) == sorted(expected[:end])
    assert (items == MALFORMED).any()
    assert (items == UNASSIGNED).any()


def test_sequences_too_long_to_number_are_refused():
    layout = TokenLayout((1000,) * 7, (1000,) * 7)
    tokens = layout.to_tokens(np.zeros((1, 7), np.int32))
    with pytest.raises(NotApplicableError, match="too many sequences of 7 of 7001 tokens"):
        OpenTrie(build_trie(tokens), torch.from_numpy(tokens), layout)
