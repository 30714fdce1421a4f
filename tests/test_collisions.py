"""Collision policies against brute force, cases worked out by hand, and what every policy promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_run import build_embedded_run
from tigerrec.config import ConfigError, compose
from tigerrec.data.histories import load_histories, training_counts
from tigerrec.evaluation.stage import EvaluateConfig, evaluate
from tigerrec.models.t5 import T5
from tigerrec.pipeline import plan
from tigerrec.serving.export import export
from tigerrec.serving.recommender import Recommender
from tigerrec.storage.contracts import read_json
from tigerrec.tokenizers.collisions import COLLISION_POLICIES, CodedItems, resolve
from tigerrec.tokenizers.diagnostics import level_usage
from tigerrec.tokenizers.ids import SemanticIdError, group_codes, load_semantic_ids
from tigerrec.tokenizers.random import RandomCodes
from tigerrec.tokenizers.rkmeans import ResidualKMeans
from tigerrec.tokenizers.stage import TokenizeConfig, fit
from tigerrec.training.options import TrainConfig, Training
from tigerrec.training.stage import train

POLICIES = list(COLLISION_POLICIES)
seeds = st.integers(0, 2**32 - 1)


def coded(vectors: np.ndarray, *codebooks: np.ndarray, size: int | None = None) -> CodedItems:
    """Items by residual codebooks (words, D); `size` codes a level where that is more than there are words."""
    tokenizer = ResidualKMeans(levels=len(codebooks), codebook_size=size or max(2, *map(len, codebooks)))
    state = {f"codebook_{level}": np.asarray(words, np.float32) for level, words in enumerate(codebooks)}
    vectors = np.asarray(vectors, np.float32)
    return CodedItems(tokenizer, state, vectors, tokenizer.encode(state, vectors))


def random_items(seed: int, n: int = 30, words: tuple[int, ...] = (3, 12), distinct: int = 25) -> CodedItems:
    """Items of which many collide and some have equal vectors."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(distinct, 2))[
        np.concatenate([np.arange(min(n, distinct)), rng.integers(0, distinct, max(n - distinct, 0))])
    ]
    return coded(
        vectors, *(rng.normal(0, 0.5**level, (count, 2)) for level, count in enumerate(words)), size=max(words)
    )


def part(items: CodedItems, rows: slice) -> CodedItems:
    return CodedItems(items.tokenizer, items.state, items.vectors[rows], items.codes[rows])


def in_groups_of_one(codes: np.ndarray) -> np.ndarray:
    groups, sizes = group_codes(codes)
    return sizes[groups] == 1


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=25, deadline=None)
@given(seeds)
def test_every_policy_gives_ids_of_existing_codes_unique_unless_kept(policy, seed):
    items = random_items(seed)
    ids, report = resolve(items, policy)
    n_codes = len(items.tokenizer.code_sizes)
    assert ids.codes.dtype == np.int32
    assert (ids.codes >= 0).all()
    assert (ids.codes < ids.layout.level_sizes).all()
    assert ids.may_share == (policy == "keep")
    assert policy == "keep" or in_groups_of_one(ids.codes).all()
    assert ids.layout.level_sizes[:n_codes] == items.tokenizer.code_sizes
    assert ids.layout.n_levels == n_codes + (policy in ("suffix", "sinkhorn"))
    for level in range(n_codes):
        there = items.distances(np.arange(len(ids.codes)), ids.codes[:, :level])
        assert np.isfinite(there[np.arange(len(there)), ids.codes[:, level]]).all()
    assert report["items_moved"] == (ids.codes[:, :n_codes] != items.codes).any(axis=1).sum()
    before, after = group_codes(items.codes)[1], group_codes(ids.codes[:, :n_codes])[1]
    assert report["largest_group"] == after.max()
    assert len(after) >= len(before)
    if (
        policy != "sinkhorn"
    ):  # where there are more items than codes, it may put several items of equal vectors together
        assert after.max() <= before.max()
    assert np.array_equal(resolve(items, policy)[0].codes, ids.codes)
    if policy in ("suffix", "keep"):
        assert report["items_moved"] == 0


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(1, 5))
def test_nearest_free_is_the_cheapest_of_all_ways_to_tell_items_apart(seed, n):
    rng = np.random.default_rng(seed)
    items = coded(rng.normal(size=(n, 2)), np.zeros((1, 2)), rng.normal(size=(5, 2)), size=6)
    ids, _ = resolve(items, "nearest_free")
    to_codes = items.distances(np.arange(n), items.codes[:, :1])
    cheapest = min(sum(to_codes[range(n), chosen]) for chosen in itertools.permutations(range(5), n))
    assert to_codes[range(n), ids.codes[:, 1]].sum() == pytest.approx(cheapest)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_nearest_free_leaves_groups_without_a_collision_alone(seed):
    items = random_items(seed)
    ids, _ = resolve(items, "nearest_free")
    prefixes, sizes = group_codes(items.codes[:, :1])
    crowded = {prefix for prefix in range(len(sizes)) if not in_groups_of_one(items.codes)[prefixes == prefix].all()}
    if max(sizes) <= 12:
        for prefix in set(range(len(sizes))) - crowded:
            assert np.array_equal(ids.codes[prefixes == prefix], items.codes[prefixes == prefix])
        assert np.array_equal(ids.codes[:, 0], items.codes[:, 0])


def test_items_beyond_the_last_codebook_move_to_the_nearest_prefix_with_room():
    first, last = [[0.0], [10.0], [25.0]], [[-1.0], [1.0]]
    items = coded([[0.9], [-1.0], [2.0], [3.0], [10.5], [12.0]], first, last)
    assert items.codes.tolist() == [[0, 1], [0, 0], [0, 1], [0, 1], [1, 1], [1, 1]]
    ids, report = resolve(items, "nearest_free")
    assert ids.codes.tolist() == [[0, 1], [0, 0], [2, 0], [2, 1], [1, 0], [1, 1]]
    assert (report["items_moved"], report["largest_group"]) == (3, 1)


@pytest.mark.parametrize(("at_0", "at_10", "expected"), [(3, 3, [2, 2, 2]), (4, 1, [2, 2, 1]), (4, 2, [2, 2, 2])])
def test_a_neighbour_takes_no_more_than_it_has_room_for(at_0, at_10, expected):
    items = coded([[0.0]] * at_0 + [[10.0]] * at_10, [[0.0], [10.0], [40.0]], [[-1.0], [1.0]])
    ids, _ = resolve(items, "nearest_free")
    assert np.bincount(ids.codes[:, 0]).tolist() == expected
    assert in_groups_of_one(ids.codes).all()


@pytest.mark.parametrize(
    ("codebooks", "n", "message"),
    [
        ([[[0.0], [9.0]]], 3, "There are 3 items, and there are only 2 ids"),
        ([[[0.0], [9.0]], [[1.0]]], 3, "There are 3 items, and there are only 2 ids for them; use larger codebooks"),
        ([[[0.0], [9.0]], [[1.0]], [[1.0], [2.0]]], 3, "3 items begin with the codes 0, and there are only 2 ids"),
    ],
)
def test_more_items_than_ids_are_refused(codebooks, n, message):
    with pytest.raises(SemanticIdError, match=message):
        resolve(coded(np.zeros((n, 1)), *codebooks, size=2), "nearest_free")


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_sinkhorn_moves_only_what_collides_and_keeps_equal_vectors_together(seed):
    items = random_items(seed, words=(2, 40))
    ids, _ = resolve(items, "sinkhorn")
    codes, alone = ids.codes[:, :-1], in_groups_of_one(items.codes)
    assert np.array_equal(codes[alone], items.codes[alone])
    assert np.array_equal(codes[:, 0], items.codes[:, 0])
    by_vector, by_codes = group_codes(items.vectors)[0], group_codes(codes)[0]
    assert len(set(zip(by_vector, by_codes, strict=True))) == len(set(by_vector)) == len(set(by_codes))


@pytest.mark.parametrize("policy", ["sinkhorn", "nearest_free"])
def test_diagnostics_tell_of_the_codes_before_and_after_a_policy(policy):
    vectors = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    result = fit(vectors, TokenizeConfig(ResidualKMeans(levels=2, codebook_size=32), collisions=policy))
    before, after = result.diagnostics, result.diagnostics["collisions"]
    assert after["collision_rate"] < before["collision_rate"]
    assert after["reconstruction_error"] > before["reconstruction_error"]
    assert after["levels"] == [level_usage(result.ids.codes[:, level], 32) for level in range(2)] != before["levels"]


@pytest.mark.parametrize("policy", ["sinkhorn", "nearest_free"])
def test_a_tokenizer_without_distances_is_refused_before_any_work(policy):
    with pytest.raises(
        ValueError,
        match=f"collisions={policy} needs distances to codes, which random does not measure; use collisions=suffix",
    ):
        TokenizeConfig(RandomCodes(), collisions=policy)
    with pytest.raises(ConfigError, match="needs distances"):
        plan(compose(["tokenizer=random", f"tokenizer.collisions={policy}"]))


def test_distances_of_residual_kmeans_are_those_to_what_is_left_over():
    items = coded(
        np.random.default_rng(0).normal(size=(1100, 3)), *np.random.default_rng(1).normal(size=(2, 5, 3)), size=7
    )
    left = items.vectors - items.state["codebook_0"][items.codes[:, 0]]
    expected = np.square(left[:, None].astype(np.float64) - items.state["codebook_1"]).sum(axis=2)
    rows = np.arange(1100)
    found = items.distances(rows, items.codes[:, :1])
    np.testing.assert_allclose(found[:, :5], expected, atol=1e-6)
    assert np.isinf(found[:, 5:]).all()
    for level in (0, 1):
        assert np.array_equal(items.distances(rows, items.codes[:, :level]).argmin(axis=1), items.codes[:, level])


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=20, deadline=None)
@given(seeds)
def test_new_items_get_ids_beside_the_known_ones(policy, seed):
    items = random_items(seed, n=26, words=(3, 40))
    old, new = part(items, slice(0, 20)), part(items, slice(20, 26))
    known, _ = resolve(old, policy)
    codes = COLLISION_POLICIES[policy].extend(known, new)
    assert codes.dtype == np.int32
    assert (codes < known.layout.level_sizes).all()
    if policy != "keep":
        assert len(np.unique(np.concatenate([known.codes, codes]), axis=0)) == 26
    if policy != "nearest_free":
        assert np.array_equal(codes[:, :2], new.codes)
    first = COLLISION_POLICIES[policy].extend(known, part(new, slice(0, 3)))
    assert np.array_equal(first, codes[:3])


def test_a_new_item_gets_the_nearest_free_code_until_none_is_left():
    items = coded([[0.0], [0.1], [0.2], [0.3]], [[0.0]], [[-2.0], [0.0], [1.0]], size=3)
    known, _ = resolve(part(items, slice(0, 1)), "nearest_free")
    extend = COLLISION_POLICIES["nearest_free"].extend
    assert extend(known, part(items, slice(1, 3))).tolist() == [[0, 2], [0, 0]]
    with pytest.raises(
        SemanticIdError, match="New item 2 has the codes 0-1, and every last code after the same ones before is taken"
    ):
        extend(known, part(items, slice(1, 4)))


SMALL = TrainConfig(
    T5(num_layers=1, d_model=16, num_heads=2, d_kv=8, d_ff=16, max_items=5),
    Training(epochs=1, validate_every=1, precision="fp32", device="cpu"),
)


@pytest.mark.parametrize("policy", ["sinkhorn", "nearest_free", "keep"])
def test_a_policy_goes_from_the_tokenizer_to_recommendations(policy, tmp_path):
    folders = build_embedded_run(tmp_path, policy)
    ids = load_semantic_ids(folders["tokenize"])
    diagnostics = read_json(folders["tokenize"], "diagnostics.json")
    assert diagnostics["largest_group"] > 1
    assert diagnostics["collisions"]["policy"] == policy
    assert ids.may_share == (not in_groups_of_one(ids.codes).all()) == (policy == "keep")
    trained = train(
        folders["prepare"],
        folders["tokenize"],
        SMALL,
        tmp_path / "toy" / "hashed" / folders["tokenize"].name / "trained",
    )
    evaluated = evaluate(
        folders["prepare"], folders["tokenize"], trained, EvaluateConfig(device="cpu"), tmp_path / "eval"
    )
    rows = {(row["model"], row["hit"], row["seen"]): row for row in read_json(evaluated, "metrics.json")}
    by_item, by_codes = (rows["generator", hit, "masked"] for hit in ("item", "sid"))
    assert by_codes["hr@20"] >= by_item["hr@20"] > 0
    if policy == "nearest_free":
        assert {key: value for key, value in by_codes.items() if key != "hit"} == {
            key: value for key, value in by_item.items() if key != "hit"
        }
    history = ["0000000003", "0000000011"]
    found = Recommender.from_pretrained(trained, device="cpu").recommend(history, k=40)
    assert len(found) == 38
    assert (
        Recommender.from_pretrained(export(trained, tmp_path / "export"), device="cpu").recommend(history, k=40)
        == found
    )
    if policy == "keep":
        counts = training_counts(load_histories(folders["prepare"]))
        for one, other in itertools.pairwise(found):
            if one.semantic_id == other.semantic_id:
                assert one.score == other.score
                assert (-counts[int(one.item_id)], int(one.item_id)) < (-counts[int(other.item_id)], int(other.item_id))
