"""R3-VAE: what it takes out of a vector, which codes it gives, and what its terms do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tests.test_tokenizers import make_vectors
from tigerrec.embed.vectors import unit
from tigerrec.tokenizers.r3vae import R3VAE, discrimination_loss, quantize, restart


def parts(n: int = 50, dim: int = 6) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Vectors of length 1, a reference and three codebooks, all random."""
    generator = torch.Generator().manual_seed(0)
    vectors, reference, *codebooks = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(n, dim), (1, dim), *[(9, dim)] * 3]
    )
    return normalize(vectors), reference, codebooks


def test_each_level_takes_out_the_projection_on_the_codeword_of_the_smallest_angle():
    vectors, reference, codebooks = parts()
    before = vectors - vectors @ normalize(reference).T * normalize(reference)
    for (summed, left, codes), words in zip(quantize(vectors, reference, codebooks), codebooks, strict=True):
        cosines = normalize(before) @ normalize(words).T
        assert torch.equal(codes, cosines.argmax(dim=1))
        torch.testing.assert_close(summed + left, vectors)
        torch.testing.assert_close((left * words[codes]).sum(dim=1), torch.zeros(50, dtype=torch.float64))
        torch.testing.assert_close(
            left.norm(dim=1), before.norm(dim=1) * (1 - cosines.max(dim=1).values.square()).sqrt()
        )
        before = left


def test_gradients_are_those_of_the_value():
    vectors, reference, codebooks = parts(n=3, dim=4)
    inputs = [vector.clone().requires_grad_() for vector in (vectors, reference, *codebooks)]
    assert torch.autograd.gradcheck(
        lambda vectors, reference, *codebooks: list(quantize(vectors, reference, codebooks))[-1][0], inputs
    )


def test_codes_are_those_of_a_search_by_hand():
    vectors, tokenizer = make_vectors(200), R3VAE(codebook_size=16, epochs=2)
    state, codes = tokenizer.fit(vectors, seed=0, extra={})
    for vector, row in zip(vectors.astype(np.float64), codes, strict=True):
        rest = vector / np.linalg.norm(vector)
        rest = rest - rest @ state["reference"] * state["reference"]
        for level, code in enumerate(row):
            words = state[f"codebook_{level}"].astype(np.float64)
            assert np.argmax(words @ rest) == code
            rest = rest - rest @ words[code] * words[code]


def test_dead_codewords_move_to_directions_of_what_the_levels_before_leave_over():
    residuals = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
    first, second = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    restart(residuals, [first, second], [torch.tensor([1, 1]), torch.tensor([1, 0])], torch.Generator().manual_seed(0))
    assert first.tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert second.tolist() in ([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert not residuals.equal(torch.zeros(2, 3))


def test_no_codeword_moves_to_where_nothing_is_left_over():
    residuals = torch.tensor([[0.0, 0.0, 0.0], [1e-8, 0.0, 0.0], [0.0, 0.0, 2.0]])
    codebook = torch.full((3, 3), 5.0)
    restart(residuals, [codebook], [torch.tensor([0, 0, 1])], torch.Generator().manual_seed(0))
    assert codebook.tolist() == [[0.0, 0.0, 1.0], [5.0, 5.0, 5.0], [5.0, 5.0, 5.0]]


@pytest.mark.parametrize("vectors", [make_vectors(1), make_vectors(5), np.eye(6, dtype=np.float32), -np.ones((9, 4))])
@pytest.mark.parametrize("init", ["kmeans++", "random"])
def test_all_codewords_have_length_one_also_where_levels_leave_nothing_over(vectors, init):
    rows = np.concatenate([vectors, np.zeros_like(vectors[:1])]).astype(np.float32)
    state, _ = R3VAE(codebook_size=4, epochs=3, init=init).fit(rows, seed=0, extra={})
    for level in range(3):
        np.testing.assert_allclose(np.linalg.norm(state[f"codebook_{level}"], axis=1), 1, rtol=1e-6)


def test_vectors_of_any_length_become_directions():
    lengths = np.array([[1e-30], [1.0], [3e19]])
    assert np.allclose(unit(lengths * np.full((3, 4), 1.0)), 0.5)


def test_distances_are_never_negative():
    vectors, tokenizer = make_vectors(8), R3VAE(codebook_size=16, epochs=1)
    state, codes = tokenizer.fit(vectors, seed=0, extra={})
    for level in range(3):
        assert tokenizer.distances(state, vectors, codes[:, :level]).min() >= 0


def test_discrimination_by_hand():
    words = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])
    assert discrimination_loss(words[:2], 2.0).item() == pytest.approx(-2)
    assert discrimination_loss(words, 1.0).item() == pytest.approx(np.log((2 * np.exp(-1) + np.exp(-2)) / 3))
    assert discrimination_loss(words[[0, 0]], 2.0).item() == pytest.approx(0)
    assert discrimination_loss(words[:1], 2.0).item() == 0


def test_its_terms_are_lowered_by_their_weights():
    vectors = make_vectors(300)
    unit = torch.from_numpy(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    found = {}
    for name, weights in {"neither": (0.0, 0.0), "cohesion": (5.0, 0.0), "discrimination": (0.0, 5.0)}.items():
        tokenizer = R3VAE(codebook_size=16, epochs=60, cohesion=weights[0], discrimination=weights[1], init="normal")
        state, _ = tokenizer.fit(vectors, seed=0, extra={})
        learned = [torch.from_numpy(state[f"codebook_{level}"]) for level in range(3)]
        sums = [summed for summed, _, _ in quantize(unit, torch.from_numpy(state["reference"])[None], learned)]
        distance = sum(1 - torch.cosine_similarity(summed, unit).mean().item() for summed in sums)
        found[name] = distance, sum(discrimination_loss(words, 2.0).item() for words in learned)
    assert found["cohesion"][0] < found["neither"][0] - 0.05
    assert found["discrimination"][1] < found["neither"][1] - 0.05


def test_the_length_of_vectors_does_not_count():
    vectors = make_vectors(100)
    scaled = vectors * np.random.default_rng(0).uniform(0.5, 2, size=(100, 1)).astype(np.float32)
    tokenizer = R3VAE(codebook_size=8, epochs=2)
    state, codes = tokenizer.fit(vectors, seed=0, extra={})
    assert np.array_equal(tokenizer.encode(state, scaled), codes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cohesion", -1.0),
        ("temperature", -1.0),
        ("init", "zeros"),
        ("restart_share", 0.9),
        ("hidden", ()),
        ("learning_rate", 0.0),
    ],
)
def test_it_refuses_settings_that_make_no_sense(field, value):
    with pytest.raises(ValueError, match=f"{field} must"):
        R3VAE(**{field: value})
