"""Collaborative vectors: what they are made of, against a dense computation; that nothing but training is read; and
small catalogues."""

import numpy as np
import pyarrow
import pytest

from tigerrec.config import ConfigError, build_choice, compose
from tigerrec.data.tables import TablesDataset
from tigerrec.embed import collaborative
from tigerrec.embed.base import Embedder
from tigerrec.embed.collaborative import Collaborative, count_pairs, shifted_ppmi, symmetric_factors
from tigerrec.embed.stage import embed, load_embeddings
from tigerrec.storage.stages import writing

RANDOM = [np.random.default_rng(user).integers(0, 12, size=4 + user % 7) for user in range(40)]


def prepared(folder, users, n_items):
    """A prepare stage with these histories."""
    lengths = [len(items) for items in users]
    interactions = {
        "user": np.repeat(np.arange(len(users), dtype=np.int32), lengths),
        "item": np.concatenate(users).astype(np.int32),
        "timestamp": np.arange(sum(lengths)),
        "position": np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
    }
    names = [f"item {item}" for item in range(n_items)]
    with writing(folder, "prepare", TablesDataset("x.csv")) as files:
        files.parquet(
            "items.parquet",
            pyarrow.table({"item": np.arange(n_items, dtype=np.int32), "item_id": names, "text": names}),
        )
        files.parquet("interactions.parquet", pyarrow.table(interactions))
        files.json("stats.json", {"users": len(users), "items": n_items, "interactions": sum(lengths)})
    return folder


def vectors_of(folder, users, n_items, **settings):
    """The vectors that an embed stage gives for histories whose last two items are for validation and test."""
    prepared(folder / "prepared", users, n_items)
    return load_embeddings(embed(folder / "prepared", Collaborative(**settings), folder / "out"))


def with_targets(training, targets=(0, 0)):
    return [np.array([*items, *targets]) for items in training]


def dense_ppmi(training, n_items, window, shift):
    counts = np.zeros((n_items, n_items))
    for items in training:
        for first in range(len(items)):
            for second in range(first + 1, len(items)):
                if items[first] != items[second] and (window is None or second - first <= window):
                    counts[items[first], items[second]] += 1
                    counts[items[second], items[first]] += 1
    joint, single = counts / counts.sum(), counts.sum(axis=1) / counts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.maximum(np.log(joint / np.outer(single, single)) - shift, 0), posinf=0)


@pytest.mark.parametrize("shift", [0.0, 0.4])
@pytest.mark.parametrize("window", [None, 1, 3])
def test_the_matrix_is_that_of_the_definition(window, shift):
    found = shifted_ppmi(count_pairs(RANDOM, 14, window), shift).toarray()
    np.testing.assert_allclose(found, dense_ppmi(RANDOM, 14, window, shift), atol=1e-12)
    assert found.any()


@pytest.mark.parametrize("dim", [2, 5, 14, 30])
@pytest.mark.parametrize("dense", [0, 1000])
def test_inner_products_are_those_of_word_and_context_vectors_of_the_svd(dim, dense, monkeypatch):
    monkeypatch.setattr(collaborative, "DENSE", dense)
    matrix = dense_ppmi(RANDOM, 14, 3, 0.0)
    left, sizes, right = np.linalg.svd(matrix)
    both = (left * np.sqrt(sizes) + right.T * np.sqrt(sizes)) / 2
    left, sizes, _ = np.linalg.svd(both @ both.T)
    best = left[:, :dim] * sizes[:dim] @ left[:, :dim].T
    found = symmetric_factors(shifted_ppmi(count_pairs(RANDOM, 14, 3), 0.0), dim)
    assert found.shape == (14, dim)
    np.testing.assert_allclose(found @ found.T, best, atol=1e-8)


def test_the_sparse_solver_gives_the_same_as_the_dense_one(monkeypatch):
    users = [np.random.default_rng(user).integers(0, 60, size=8) for user in range(80)]
    matrix = shifted_ppmi(count_pairs(users, 60, None), 0.0)
    dense = symmetric_factors(matrix, 7)
    monkeypatch.setattr(collaborative, "DENSE", 0)
    np.testing.assert_allclose(symmetric_factors(matrix, 7), dense, atol=1e-8)
    assert (dense.max(axis=0) == np.abs(dense).max(axis=0)).all()  # the signs
    assert symmetric_factors(matrix, 7).tobytes() == symmetric_factors(matrix, 7).tobytes()


def test_validation_and_test_items_change_nothing_and_training_items_do(tmp_path):
    base = vectors_of(tmp_path / "base", with_targets(RANDOM), 14)
    other = [np.array([*items, user % 14, 13 - user % 14]) for user, items in enumerate(RANDOM)]
    assert vectors_of(tmp_path / "targets", other, 14).tobytes() == base.tobytes()
    changed = [np.array([13, *items[1:]]) if user < 3 else items for user, items in enumerate(RANDOM)]
    assert vectors_of(tmp_path / "training", with_targets(changed), 14).tobytes() != base.tobytes()
    assert other[0][:-2].tolist() == RANDOM[0].tolist()


def test_the_stage_repeats_to_the_byte_and_the_order_of_users_is_nothing(tmp_path):
    users = with_targets(RANDOM)
    for name in ("one", "two"):
        vectors_of(tmp_path / name, users, 14)
    files = [(tmp_path / name / "out" / "embeddings.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    shuffled = [users[user] for user in np.random.default_rng(5).permutation(len(users))]
    np.testing.assert_allclose(
        vectors_of(tmp_path / "other", shuffled, 14), load_embeddings(tmp_path / "one" / "out"), atol=1e-6
    )


@pytest.mark.parametrize("window", [None, 1, 5])
def test_items_bought_together_are_nearer_than_items_of_other_baskets(tmp_path, window):
    pairs = [[0, 1], [2, 3], [4, 5]]
    rng = np.random.default_rng(0)
    training = [rng.permutation(pairs[user % 3]) for user in range(30)] + [np.array([1, 2]), np.array([5, 0])]
    vectors = vectors_of(tmp_path, with_targets(training), 6, dim=6, window=window)
    near = vectors @ vectors.T
    np.testing.assert_allclose(np.diag(near), 1, atol=1e-6)
    for first, second in pairs:
        others = [item for item in range(6) if item not in (first, second)]
        assert near[first, second] > near[first, others].max()
        assert near[first, second] > near[second, others].max()


def test_the_window_counts_places(tmp_path):
    training = [np.array([0, 1, 2, 3])] * 3
    assert count_pairs(training, 4, 1).toarray().tolist() == [[0, 3, 0, 0], [3, 0, 3, 0], [0, 3, 0, 3], [0, 0, 3, 0]]
    assert count_pairs(training, 4, 2).toarray()[0].tolist() == [0, 3, 3, 0]
    assert (count_pairs(training, 4, None).toarray() == 3 * (1 - np.eye(4))).all()
    assert (count_pairs(training, 4, 99).toarray() == 3 * (1 - np.eye(4))).all()


def test_items_without_a_training_interaction_are_zero_and_counted(tmp_path, caplog):
    training = [np.array([0, 1, 2]), np.array([1, 2, 0]), np.array([3])]
    vectors = vectors_of(tmp_path, with_targets(training, (4, 5)), 7, dim=3)
    assert np.flatnonzero(~vectors.any(axis=1)).tolist() == [3, 4, 5, 6]
    assert (
        "4 of 7 items have a zero vector: 3 never occur in training, 1 occur there without another item that the 3 "
        "dimensions can show" in caplog.text
    )


@pytest.mark.parametrize("dense", [0, 1000])
def test_an_item_outside_the_dimensions_is_zero_and_not_rounding_error(tmp_path, caplog, monkeypatch, dense):
    monkeypatch.setattr(collaborative, "DENSE", dense)
    training = [np.array([0, 1])] * 9 + [np.array([2, 3])] * 2 + [np.array([4, 5])] * 7
    vectors = vectors_of(tmp_path, with_targets(training), 6, dim=1)
    np.testing.assert_allclose(vectors[[2, 3]], 1, rtol=1e-6)  # the rarest pair has the largest PMI
    assert not vectors[[0, 1, 4, 5]].any()
    assert "0 never occur in training, 4 occur there without another item" in caplog.text


@pytest.mark.parametrize(
    ("training", "n_items"),
    [
        ([np.array([0])] * 4, 1),
        ([np.array([0]), np.array([1])], 2),
        ([np.array([0, 0, 0])], 1),
        ([np.array([0, 1])], 2),
        ([np.array([0, 1, 2])], 3),
    ],
    ids=["one item", "one training item a user", "one item again and again", "two items", "three items"],
)
@pytest.mark.parametrize("window", [None, 2])
def test_small_catalogues_have_finite_vectors_of_the_asked_dimension(tmp_path, training, n_items, window):
    vectors = vectors_of(tmp_path, with_targets(training), n_items, dim=8, window=window)
    assert vectors.shape == (n_items, 8)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert vectors.any() == (len(training[0]) > 1 and n_items > 1)


def test_many_items_without_any_pair_are_zero():
    assert not symmetric_factors(shifted_ppmi(count_pairs([np.array([0])], 1500, None), 0.0), 4).any()


@pytest.mark.parametrize("values", [{"dim": 0}, {"window": 0}, {"shift": -1.0}])
def test_settings_out_of_range_are_refused(values):
    node = compose(["embedder=collaborative"]).embedder
    with pytest.raises(ConfigError, match=f"{next(iter(values))} must be at least"):
        build_choice({**node, **values}, "embedder", Embedder)
