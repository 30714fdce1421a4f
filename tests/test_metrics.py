"""Ranks and metrics against hand-written cases and scikit-learn."""

import math

import numpy as np
import pytest

from tigerrec.evaluation.metrics import format_metrics, item_ranks, metrics, semantic_id_ranks
from tigerrec.tokenizers.ids import group_codes


def test_item_ranks_by_hand():
    items = np.array([[4, 2, 7], [1, 0, -1], [5, 6, 7]], np.int32)
    assert item_ranks(items, np.array([7, 1, 3])).tolist() == [3, 1, 0]


def test_semantic_id_ranks_count_distinct_codes():
    codes = np.array([[0, 0], [0, 0], [0, 1], [2, 2], [3, 3], [0, 1]])
    groups = group_codes(codes)[0]
    items = np.array([[0, 1, 3, 2], [4, 0, 1, -1], [5, 2, 0, 3], [2, -1, -1, -1]], np.int32)
    targets = np.array([2, 5, 1, 5])
    assert item_ranks(items, targets).tolist() == [4, 0, 0, 0]
    assert semantic_id_ranks(items, targets, groups).tolist() == [3, 0, 2, 1]


def test_semantic_id_ranks_against_a_plain_loop():
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 3, (40, 3))
    items = np.stack([rng.permutation(40)[:10] for _ in range(50)]).astype(np.int32)
    items[::7, 6:] = -1
    targets = rng.integers(0, 40, 50)
    expected = []
    for row, target in zip(items, targets, strict=True):
        distinct = list(dict.fromkeys(tuple(codes[item]) for item in row if item >= 0))
        wanted = tuple(codes[target])
        expected.append(distinct.index(wanted) + 1 if wanted in distinct else 0)
    assert semantic_id_ranks(items, targets, group_codes(codes)[0]).tolist() == expected


def test_an_item_hit_is_never_lower_than_a_semantic_id_hit():
    rng = np.random.default_rng(5)
    groups = group_codes(rng.integers(0, 4, (60, 2)))[0]
    items = np.stack([rng.permutation(60)[:20] for _ in range(80)])
    targets = rng.integers(0, 60, 80)
    by_item, by_id = item_ranks(items, targets), semantic_id_ranks(items, targets, groups)
    assert ((by_id > 0) & (by_id <= by_item))[by_item > 0].all()


def test_metrics_by_hand():
    row = metrics(np.array([1, 2, 5, 6, 0, 11, 20, 21], np.int16))
    assert row["hr@1"] == 1 / 8
    assert row["hr@5"] == 3 / 8
    assert row["hr@10"] == 4 / 8
    assert row["hr@20"] == 6 / 8
    gains = {rank: 1 / math.log2(1 + rank) for rank in (1, 2, 5, 6, 11, 20)}
    assert row["ndcg@5"] == pytest.approx((gains[1] + gains[2] + gains[5]) / 8, abs=1e-8)
    assert row["ndcg@10"] == pytest.approx((gains[1] + gains[2] + gains[5] + gains[6]) / 8, abs=1e-8)
    assert row["ndcg@20"] == pytest.approx(sum(gains.values()) / 8, abs=1e-8)


def test_ndcg_equals_scikit_learn():
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(0)
    scores = rng.random((200, 40))
    targets = rng.integers(0, 40, 200)
    relevance = np.eye(40)[targets]
    items = np.argsort(-scores, axis=1)[:, :20]
    row = metrics(item_ranks(items, targets))
    for cutoff in (5, 10, 20):
        assert row[f"ndcg@{cutoff}"] == pytest.approx(ndcg_score(relevance, scores, k=cutoff), abs=1e-8)


def test_interval_is_that_of_resampled_users():
    ranks = np.random.default_rng(1).choice([0, 0, 0, 0, 1, 3, 10, 15], 500)
    row = metrics(ranks)
    values = (ranks > 0) & (ranks <= 10)
    resampled = np.random.default_rng(2).choice(values, (2_000, 500)).mean(1)
    assert row["hr@10_low"] == pytest.approx(np.percentile(resampled, 2.5), abs=0.006)
    assert row["hr@10_high"] == pytest.approx(np.percentile(resampled, 97.5), abs=0.006)
    assert row["hr@10_low"] < row["hr@10"] < row["hr@10_high"]


@pytest.mark.parametrize(("rank", "value"), [(0, 0.0), (1, 1.0)])
def test_equal_users_have_no_interval(rank, value):
    row = metrics(np.full(30, rank))
    assert row["ndcg@10"] == row["ndcg@10_low"] == row["ndcg@10_high"] == value


def test_order_of_users_does_not_matter():
    ranks = np.random.default_rng(4).integers(0, 21, 300)
    assert metrics(ranks) == metrics(ranks[::-1])


def test_no_users_is_an_error():
    with pytest.raises(ValueError, match="at least one rank"):
        metrics(np.array([], np.int16))


def test_table_shows_every_row():
    row = {"model": "popularity", "split": "test", "hit": "item", "seen": "kept", "users": 1234} | metrics(
        np.array([0, 1])
    )
    lines = format_metrics([row, row | {"seen": "masked"}]).splitlines()
    assert len(lines) == 3
    assert "1,234" in lines[1]
    assert "0.5000" in lines[1]
    assert "masked" in lines[2]
