"""What tokenizers by clustering and hashing must do beyond the contract: nearest centroids, nesting, balance,
rotations, hyperplanes."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
import torch

from tests.test_tokenizers import make_vectors
from tigerrec import TigerrecError
from tigerrec.tokenizers.diagnostics import reconstruction_error
from tigerrec.tokenizers.hkmeans import HierarchicalKMeans
from tigerrec.tokenizers.lsh import LSH
from tigerrec.tokenizers.pq import ProductQuantizer
from tigerrec.tokenizers.quantizer.balanced import assign_balanced
from tigerrec.tokenizers.quantizer.codebooks import fit_codebook, fit_residual_codebooks, lloyd
from tigerrec.tokenizers.rkmeans import ResidualKMeans
from tigerrec.tokenizers.rkmeans_balanced import BalancedResidualKMeans


def blobs(centres: np.ndarray, items: int, deviation: float) -> np.ndarray:
    """The items around each centre, one centre after the other, float32 (len(centres) · items, D)."""
    noise = np.random.default_rng(0).normal(0, deviation, (len(centres) * items, centres.shape[1]))
    return (np.repeat(centres, items, axis=0) + noise).astype(np.float32)


def cost(rows: np.ndarray, codebook: np.ndarray) -> float:
    return float(np.square(rows[:, None] - codebook).sum(axis=2).min(axis=1).sum())


def test_kmeans_that_starts_far_apart_finds_blobs_that_a_random_start_misses():
    rows = blobs(np.eye(16) * 100, 20, 0.1)
    for seed in range(5):
        spread, random = (fit_codebook(rows, 16, 50, seed, init) for init in ("kmeans++", "kmeans"))
        assert cost(rows, spread) < cost(rows, random) / 100
        assert set(spread.argmax(axis=1)) == set(range(16))


def test_a_codebook_of_items_holds_different_rows_as_they_are():
    rows = np.tile(make_vectors(50), (5, 1))
    codebook = fit_codebook(rows, 20, 50, 0, "random")
    assert len(np.unique(codebook, axis=0)) == 20
    assert {row.tobytes() for row in codebook} <= {row.tobytes() for row in rows}
    assert not np.array_equal(codebook, fit_codebook(rows, 20, 50, 1, "random"))
    first, second = fit_residual_codebooks(rows, 2, 20, 50, 0, init="random")
    gaps = np.square(rows[:, None].astype(np.float64) - first).sum(axis=2)
    left = (rows.astype(np.float64) - first[gaps.argmin(axis=1)]).astype(np.float32)
    assert {row.tobytes() for row in second} <= {row.tobytes() for row in left}


def test_residual_kmeans_refuses_a_start_that_it_does_not_know():
    with pytest.raises(ValueError, match=r"init must be 'kmeans' or 'kmeans\+\+', got 'random'"):
        ResidualKMeans(init="random")


@pytest.mark.parametrize(
    "tokenizer",
    [ResidualKMeans(codebook_size=8), BalancedResidualKMeans(codebook_size=8), ProductQuantizer(codebook_size=8)],
)
@pytest.mark.parametrize("n", [3, 100])
def test_only_codes_without_a_codeword_are_infinitely_far(tokenizer, n):
    vectors = make_vectors(n)
    state, codes = tokenizer.fit(vectors, seed=0, extra={})
    for level in range(tokenizer.levels):
        exists = np.arange(8) < len(state[f"codebook_{level}"])
        assert exists.sum() == (8 if n == 100 else 3 if level == 0 or tokenizer.family == "pq" else 1)
        assert (np.isfinite(tokenizer.distances(state, vectors, codes[:, :level])) == exists).all()


def test_balanced_assignment_is_one_refusal_after_the_other():
    distances = np.random.default_rng(0).random((50, 7))
    held: dict[int, list[int]] = {code: [] for code in range(7)}
    waiting, refusals = list(range(50)), [0] * 50
    while waiting:
        row = waiting.pop()
        code = int(np.argsort(distances[row])[refusals[row]])
        held[code] = sorted([*held[code], row], key=lambda other, code=code: distances[other, code])
        for refused in held[code][8:]:
            refusals[refused] += 1
            waiting.append(refused)
        held[code] = held[code][:8]
    codes = assign_balanced(distances)
    assert {code: sorted(rows) for code, rows in held.items()} == {
        code: np.flatnonzero(codes == code).tolist() for code in range(7)
    }


def test_no_code_is_given_more_often_than_its_share_and_codewords_are_means_of_their_items():
    vectors = make_vectors(300)
    state, codes = BalancedResidualKMeans(codebook_size=8).fit(vectors, seed=0, extra={})
    _, unbalanced = ResidualKMeans(codebook_size=8).fit(vectors, seed=0, extra={})
    largest = [[int(np.bincount(level).max()) for level in fitted.T] for fitted in (codes, unbalanced)]
    assert max(largest[0]) <= 38 < min(largest[1])
    residuals = vectors.astype(np.float64)
    for level in range(3):
        used = codes[:, level]
        assert np.allclose(
            state[f"codebook_{level}"], [residuals[used == code].mean(axis=0) for code in range(8)], atol=1e-5
        )
        residuals = residuals - state[f"codebook_{level}"][used]


def test_balanced_kmeans_finds_equal_blobs():
    vectors = blobs(np.array([[0.0, 0.0], [9.0, 0.0]]), 40, 1.0)
    tokenizer = BalancedResidualKMeans(levels=1, codebook_size=2)
    state, codes = tokenizer.fit(vectors, seed=0, extra={})
    assert np.array_equal(codes[:, 0] == codes[0, 0], np.arange(80) < 40)
    assert np.allclose(
        state["codebook_0"][codes[:, 0]], np.repeat(vectors.reshape(2, 40, 2).mean(axis=1), 40, axis=0), atol=1e-5
    )
    assert np.array_equal(tokenizer.encode(state, vectors), codes)


def test_balanced_kmeans_parts_one_blob_in_equal_halves():
    vectors = np.concatenate([blobs(np.zeros((1, 2)), 60, 0.1), blobs(np.array([[9.0, 0.0]]), 20, 0.1)])
    _, codes = BalancedResidualKMeans(levels=1, codebook_size=2).fit(vectors, seed=0, extra={})
    assert np.bincount(codes[:, 0]).tolist() == [40, 40]
    assert len(set(codes[60:, 0])) == 1


def test_paths_in_the_tree_nest_and_centroids_are_means_of_their_items():
    vectors = make_vectors(400)
    state, codes = HierarchicalKMeans(codebook_size=4, iterations=100).fit(vectors, seed=0, extra={})
    for level in range(3):
        paths, nodes, children = np.unique(codes[:, : level + 1], axis=0, return_inverse=True, return_counts=True)
        means = [vectors[nodes.reshape(-1) == node].mean(axis=0) for node in range(len(paths))]
        assert np.allclose(state[f"centroids_{level}"], means, atol=1e-5)
        _, children = np.unique(paths[:, :level], axis=0, return_counts=True)
        assert np.diff(state[f"offsets_{level}"]).tolist() == children.tolist()


def test_the_tree_finds_blobs_within_blobs():
    far = np.eye(4)[:3] * 100
    near = np.eye(4)[:3] * 10
    vectors = blobs((far[:, None] + near).reshape(9, 4), 20, 0.1)
    _, codes = HierarchicalKMeans(levels=2, codebook_size=3).fit(vectors, seed=0, extra={})
    blocks = codes.reshape(3, 3, 20, 2)
    assert (blocks == blocks[:, :, :1]).all()
    assert sorted(blocks[:, 0, 0, 0]) == [0, 1, 2]
    assert (blocks[..., 0] == blocks[:, :1, :, 0]).all()
    assert (np.sort(blocks[:, :, 0, 1], axis=1) == [0, 1, 2]).all()


def test_children_of_a_node_are_all_that_can_follow_it():
    vectors = make_vectors(60)
    tokenizer = HierarchicalKMeans(codebook_size=5)
    state, codes = tokenizer.fit(vectors, seed=0, extra={})
    paths = {tuple(row[:length]) for row in codes.tolist() for length in range(4)}
    for level in range(3):
        exists = [[(*row[:level], code) in paths for code in range(5)] for row in codes.tolist()]
        assert np.array_equal(np.isfinite(tokenizer.distances(state, vectors, codes[:, :level])), exists)
    assert not all(map(all, exists))


def test_a_node_with_few_vectors_gives_each_its_own_code():
    vectors = make_vectors(60)
    tokenizer = HierarchicalKMeans(codebook_size=32)
    state, codes = tokenizer.fit(vectors, seed=0, extra={})
    assert len(np.unique(codes[:, :2], axis=0)) == 60
    assert (codes[:, 2] == 0).all()
    assert np.array_equal(tokenizer.decode(state, codes), vectors)


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("dim", [10, 12])
def test_product_codes_are_the_nearest_codewords_of_each_slice(rotate, dim):
    vectors = make_vectors(300, dim)
    tokenizer = ProductQuantizer(codebook_size=16, rotate=rotate)
    state, codes = tokenizer.fit(vectors, seed=0, extra={})
    rows = np.concatenate([vectors, np.zeros((300, 12 - dim))], axis=1)
    if rotate:
        rows = rows @ state["rotation"].T.astype(np.float64)
    words = np.stack([state[f"codebook_{level}"] for level in range(4)])
    gaps = np.square(rows.reshape(300, 4, 1, 3) - words).sum(axis=3)
    assert words.shape == (4, 16, 3)
    assert np.array_equal(gaps.argmin(axis=2), codes)
    decoded = words[np.arange(4), codes].reshape(300, 12) @ (state["rotation"] if rotate else np.eye(12))
    assert np.allclose(tokenizer.decode(state, codes), decoded[:, :dim], atol=1e-6)
    assert np.square(vectors - tokenizer.decode(state, codes)).sum() <= gaps.min(axis=2).sum() * (1 + 1e-5)


def test_a_learned_rotation_is_orthogonal_and_loses_less_where_slices_depend_on_each_other():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(1000, 4)) @ rng.normal(size=(4, 16)) + rng.normal(0, 0.05, (1000, 16))).astype(
        np.float32
    )
    losses = {}
    for rotate in (False, True):
        tokenizer = ProductQuantizer(codebook_size=16, rotate=rotate)
        state, codes = tokenizer.fit(vectors, seed=0, extra={})
        losses[rotate] = reconstruction_error(vectors, codes, partial(tokenizer.decode, state))
    assert np.allclose(state["rotation"] @ state["rotation"].T, np.eye(16), atol=1e-5)
    assert not np.allclose(state["rotation"], np.eye(16), atol=0.1)
    assert losses[True] < 0.7 * losses[False]


@pytest.mark.parametrize("rotate", [False, True])
def test_few_vectors_lose_nothing_by_product_quantisation(rotate):
    vectors = make_vectors(5, dim=10)
    tokenizer = ProductQuantizer(rotate=rotate)
    state, codes = tokenizer.fit(np.tile(vectors, (100, 1)), seed=0, extra={})
    assert np.array_equal(tokenizer.decode(state, codes)[:5], vectors)


def test_hyperplanes_tell_directions_apart_and_nothing_else():
    vectors = make_vectors(300)
    tokenizer = LSH(levels=2, codebook_size=16)
    state, codes = tokenizer.fit(vectors, seed=0, extra={})
    for scale in (1e-3, 0.5, 7.0):
        assert np.array_equal(tokenizer.encode(state, vectors * np.float32(scale)), codes)
    assert np.array_equal(tokenizer.encode(state, -vectors), 15 - codes)
    normals = state["hyperplanes"].astype(np.float64).reshape(2, 4, -1)
    for row, (first, second) in zip(vectors, codes, strict=True):
        assert [first, second] == [
            sum(2**bit for bit in range(4) if normals[level, bit] @ row > 0) for level in range(2)
        ]


def test_hyperplanes_give_a_power_of_two_codes():
    with pytest.raises(ValueError, match="codebook_size must be a power of two, got 12"):
        LSH(codebook_size=12)


def test_a_rotation_is_learned_of_fewer_items_than_dimensions():
    vectors = np.random.default_rng(0).normal(size=(20, 48)).astype(np.float32)
    state, codes = ProductQuantizer(codebook_size=8, rotate=True).fit(vectors, seed=0, extra={})
    assert codes.shape == (20, 4)
    assert np.allclose(state["rotation"] @ state["rotation"].T, np.eye(48), atol=1e-5)


def test_k_means_elsewhere_takes_the_steps_of_faiss():
    """Also where a codeword loses all its rows: here ten of forty begin far from all of them."""
    rng = np.random.default_rng(0)
    dense = np.repeat(rng.normal(size=(4, 8)), 80, axis=0) + 0.05 * rng.normal(size=(320, 8))
    rows = np.concatenate([dense, rng.normal(size=(80, 8))]).astype(np.float32)
    start = rows[rng.permutation(len(rows))[:40]]
    start[30:] = 100 + np.arange(10)[:, None]
    for iterations in (1, 2, 10):
        limits = {"min_points_per_centroid": 1, "max_points_per_centroid": len(rows)}
        kmeans = faiss.Kmeans(8, 40, niter=iterations, **limits)
        kmeans.train(rows, init_centroids=start)
        assert kmeans.iteration_stats[0]["nsplit"] == 10
        found = lloyd(torch.from_numpy(rows), torch.from_numpy(start), iterations).numpy()
        np.testing.assert_allclose(found, kmeans.centroids, atol=1e-5)


@pytest.fixture
def elsewhere(monkeypatch) -> list[int]:
    """A device beside the CPU, in the place of `cuda`; counts how often k-means runs on it."""
    iterations: list[int] = []

    def counted(rows, words, n_iterations):
        iterations.append(n_iterations)
        return lloyd(rows, words, n_iterations)

    monkeypatch.setattr("tigerrec.runtime.devices.resolve_device", lambda device: SimpleNamespace(type=device))
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *to: self if isinstance(to[0], SimpleNamespace) else self.type(*to)
    )
    monkeypatch.setattr("tigerrec.tokenizers.quantizer.codebooks.lloyd", counted)
    return iterations


@pytest.mark.parametrize("init", ["kmeans", "kmeans++"])
def test_a_codebook_is_that_of_the_cpu_on_any_device(init, elsewhere):
    rows = np.random.default_rng(0).normal(size=(2_000, 16)).astype(np.float32)
    expected = fit_codebook(rows, 32, 20, 3, init)
    assert elsewhere == []
    np.testing.assert_allclose(fit_codebook(rows, 32, 20, 3, init, "cuda"), expected, atol=1e-5)
    assert elsewhere == [20]


@pytest.mark.parametrize("tokenizer", [ResidualKMeans, ProductQuantizer])
def test_tokenizers_by_k_means_have_a_device(tokenizer, elsewhere):
    vectors = make_vectors()
    on_cpu, _ = tokenizer(levels=2, codebook_size=8).fit(vectors, seed=0, extra={})
    assert elsewhere == []
    found, _ = tokenizer(levels=2, codebook_size=8, device="cuda").fit(vectors, seed=0, extra={})
    assert len(elsewhere) == 2
    np.testing.assert_allclose(found["codebook_0"], on_cpu["codebook_0"], atol=1e-4)


def test_a_device_that_is_not_there_is_one_sentence():
    with pytest.raises(TigerrecError, match="no device 'nowhere' on this machine"):
        fit_codebook(np.eye(4, dtype=np.float32), 2, 3, 0, device="nowhere")
