"""What learned quantisers must do: estimators, codebooks, assignments and objectives of the RQ-VAE, FSQ's grid, and
training itself."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import numpy as np
import pytest
import torch

from tests.test_tokenizers import make_vectors
from tigerrec.tokenizers.base import TokenizeError
from tigerrec.tokenizers.fsq import FSQ, bounded, grid_codes, grid_points, scaled
from tigerrec.tokenizers.quantizer.assignments import Nearest, Sinkhorn
from tigerrec.tokenizers.quantizer.autoencoder import Progress
from tigerrec.tokenizers.quantizer.codebooks import Init
from tigerrec.tokenizers.quantizer.estimators import Gumbel, Reflection, Rotation, StraightThrough
from tigerrec.tokenizers.quantizer.learned_codebooks import Gradient, MovingAverage, SimVQ
from tigerrec.tokenizers.quantizer.objectives import (
    Contrast,
    Letter,
    Quantized,
    Reconstruction,
    diversity_loss,
    main_components,
    own_row_loss,
)
from tigerrec.tokenizers.quantizer.residual import ResidualQuantizer
from tigerrec.tokenizers.rqvae import RQVAE
from tigerrec.tokenizers.rvq import RVQ
from tigerrec.tokenizers.stage import TokenizeConfig, fit


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(**changes: Any) -> RQVAE:
    return RQVAE(**{"codebook_size": 8, "hidden": (16,), "latent_dim": 4, "epochs": 4, "batch_size": 64, **changes})


def progress(share: float = 0.0, epoch: int = 0) -> Progress:
    return Progress(epoch, share, torch.Generator().manual_seed(0))


def quantizer_with(words: list[torch.Tensor], beta: float = 0.25, **parts: Any) -> ResidualQuantizer:
    """A quantiser with these codewords."""
    options = {name: parts.pop(name) for name in ("epochs", "restart_share") if name in parts}
    settings = RVQ(levels=len(words), **options)
    parts = {"estimator": StraightThrough(), "codebooks": Gradient(), "assignment": Nearest()} | parts
    quantizer = ResidualQuantizer(settings, torch.zeros(1, words[0].shape[1]), 0, beta, **parts)
    quantizer.codebooks = parts["codebooks"].start(words)
    quantizer.counts = quantizer.no_counts()
    return quantizer


def gradient_through(
    estimator: Any, residuals: torch.Tensor, words: torch.Tensor, upstream: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The value of each residual quantised to its own codeword, and the gradient of the residuals."""
    residuals = residuals.clone().requires_grad_()
    quantized = estimator.quantize(residuals, words, torch.arange(len(words)), progress())
    (quantized * upstream).sum().backward()
    return quantized.detach(), residuals.grad


DIRECTIONS = torch.tensor(
    [
        [3.0, 0.0, 0.0],
        [0.0, 2.0, 0.0],
        [1.0, 1.0, 1.0],
        [1.0, 2.0, -1.0],
        [0.5, 0.0, 0.2],
        [0.0, 0.0, 0.0],
        [1.0, 0.0, 0.0],
    ],
    dtype=torch.float64,
)
CODEWORDS = torch.tensor(
    [
        [1.5, 0.0, 0.0],
        [0.0, -4.0, 0.0],
        [-1.0, -1.0, -1.0],
        [0.3, 0.1, 2.0],
        [0.5, 0.0, 0.2],
        [1.0, 2.0, 0.0],
        [0.0, 0.0, 0.0],
    ],
    dtype=torch.float64,
)
UPSTREAM = torch.tensor(
    [
        [0.1, 0.7, -0.3],
        [1.0, 0.5, 0.2],
        [0.2, -0.4, 1.0],
        [0.9, -0.1, 0.3],
        [0.6, 0.6, 0.6],
        [1.0, -1.0, 0.5],
        [0.3, 0.2, 0.1],
    ],
    dtype=torch.float64,
)


def cosines(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(one, other)


@pytest.mark.parametrize("estimator", [StraightThrough(), Rotation(), Reflection()])
def test_the_quantised_value_is_the_codeword(estimator):
    """Also for parallel, opposite, equal and zero vectors."""
    quantized, gradient = gradient_through(estimator, DIRECTIONS, CODEWORDS, UPSTREAM)
    torch.testing.assert_close(quantized, CODEWORDS)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    "estimator", [StraightThrough(), Rotation(), Reflection(), Gumbel()], ids=lambda part: part.family
)
@pytest.mark.parametrize("codebooks", [Gradient(), MovingAverage(), SimVQ()], ids=lambda part: part.family)
def test_a_training_step_reads_nothing_back_from_its_device(estimator, codebooks):
    """On the device `meta` there are no values: anything that waits for one, or mixes devices, fails."""
    words = [torch.zeros(4, 3, device="meta") for _ in range(2)]
    quantizer = ResidualQuantizer(RVQ(levels=2), torch.zeros(1, 3), 0, 0.25, estimator, codebooks, Nearest())
    quantizer.codebooks = codebooks.start(words)
    quantizer.counts = quantizer.no_counts()
    latents = torch.zeros(5, 3, device="meta", requires_grad=True)
    quantized, codes, loss = quantizer.quantize(latents, progress())
    items = torch.zeros(5, dtype=torch.int64, device="meta")
    batch = Quantized(items, latents.detach(), latents, quantized, codes, quantizer.words(), loss)
    for objective in (Reconstruction(), Contrast()):
        objective.loss(batch, progress()).backward(retain_graph=True)
    assert latents.grad.device.type == "meta"
    assert all(parameter.grad.device.type == "meta" for parameter in quantizer.codebooks.parameters())


def test_the_straight_gradient_is_unchanged():
    assert torch.equal(gradient_through(StraightThrough(), DIRECTIONS, CODEWORDS, UPSTREAM)[1], UPSTREAM)


@pytest.mark.parametrize("estimator", [Rotation(), Reflection()])
def test_a_rotated_or_mirrored_gradient_has_the_residuals_angle_and_the_stretched_length(estimator):
    rows = slice(0, 5)  # those with a direction
    _, gradient = gradient_through(estimator, DIRECTIONS[rows], CODEWORDS[rows], UPSTREAM[rows])
    torch.testing.assert_close(cosines(gradient, DIRECTIONS[rows]), cosines(UPSTREAM[rows], CODEWORDS[rows]))
    ratio = CODEWORDS[rows].norm(dim=1) / DIRECTIONS[rows].norm(dim=1)
    torch.testing.assert_close(gradient.norm(dim=1), UPSTREAM[rows].norm(dim=1) * ratio)


def test_rotation_turns_in_the_plane_of_both_and_reflection_does_not():
    residual, word, across = (torch.eye(3, dtype=torch.float64)[[row]] for row in range(3))
    between = (residual - word) / 2**0.5
    assert torch.equal(gradient_through(Rotation(), residual, word, across)[1], across)
    torch.testing.assert_close(gradient_through(Rotation(), residual, word, between)[1], -(residual + word) / 2**0.5)
    torch.testing.assert_close(gradient_through(Reflection(), residual, word, between)[1], -between)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_gumbel_at_low_temperature_is_the_nearest_codeword(scale):
    torch.manual_seed(0)
    residuals, codebook = scale * torch.randn(50, 4), scale * torch.randn(7, 4)
    quantized = Gumbel(1e-5, 1e-5).quantize(residuals, codebook, torch.zeros(50, dtype=torch.int64), progress())
    torch.testing.assert_close(quantized, codebook[torch.cdist(residuals, codebook).argmin(1)])


def test_gumbel_at_high_temperature_chooses_by_chance():
    residuals, codebook = torch.zeros(4000, 1), torch.tensor([[0.0], [1.0]])
    quantized = Gumbel(100.0, 1.0).quantize(residuals, codebook, torch.zeros(4000, dtype=torch.int64), progress())
    assert ((quantized > 0.5).float().mean() - 0.5).abs() < 0.05


def test_gumbel_draws_sharpen_at_the_border_of_two():
    codebook, residuals = torch.tensor([[0.0], [1.0], [9.0]]), torch.full((5000, 1), 0.5)
    early, late = (
        Gumbel(0.1, 0.0001).quantize(residuals, codebook, torch.zeros(5000, dtype=torch.int64), progress(share))
        for share in (0.0, 0.999)
    )
    assert late.var() > 1.3 * early.var()
    assert (late.mean() - 0.5).abs() < 0.05


def test_gumbel_has_gradients_for_residuals_and_codewords():
    residuals, codebook = torch.randn(20, 4).requires_grad_(), torch.randn(5, 4).requires_grad_()
    Gumbel(1.0, 1.0).quantize(
        residuals, codebook, torch.zeros(20, dtype=torch.int64), progress()
    ).square().sum().backward()
    assert (residuals.grad.abs().sum(dim=1) > 0).all()
    assert (codebook.grad.abs().sum(dim=1) > 0).all()


def test_gumbel_goes_with_no_assignment_but_the_nearest():
    with pytest.raises(ValueError, match="assignment must be Nearest with the estimator Gumbel"):
        small(estimator=Gumbel(), assignment=Sinkhorn())


def test_gumbel_far_apart_takes_the_nearest_and_sharpens_on_the_way():
    codebook = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    residuals = torch.tensor([[1.0, 1.0], [99.0, 0.0], [3.0, 90.0]])
    torch.testing.assert_close(
        Gumbel(0.001, 0.001).quantize(residuals, codebook, torch.zeros(3, dtype=torch.int64), progress()), codebook
    )
    assert Gumbel(2.0, 0.5).temperature(0.0) == 2
    assert Gumbel(2.0, 0.5).temperature(0.5) == 1
    with pytest.raises(ValueError, match=r"end_temperature must be at most start_temperature \(0\.1\), got 1\.0"):
        Gumbel(0.1, 1.0)


@pytest.mark.parametrize("estimator", [StraightThrough(), Rotation(), Reflection()])
def test_quantize_gives_the_sum_of_the_codewords(estimator):
    torch.manual_seed(0)
    latents = torch.randn(10, 4, requires_grad=True)
    codebooks = [torch.randn(6, 4) for _ in range(3)]
    quantizer = quantizer_with(codebooks, estimator=estimator)
    quantized, codes, _ = quantizer.quantize(latents, progress())
    torch.testing.assert_close(quantized, sum(book[level] for book, level in zip(codebooks, codes, strict=True)))
    assert [count.tolist() for count in quantizer.counts] == [level.bincount(minlength=6).tolist() for level in codes]
    weights = torch.randn(10, 4)
    (quantized * weights).sum().backward()
    assert torch.allclose(latents.grad, weights) == isinstance(estimator, StraightThrough)
    assert all(words.grad is None for words in quantizer.words())


def test_the_quantisation_loss_of_one_item_by_hand():
    latents = torch.tensor([[3.0]], requires_grad=True)
    quantizer = quantizer_with([torch.tensor([[0.0], [2.0]]), torch.tensor([[0.5], [9.0]])], beta=0.5)
    quantized, codes, loss = quantizer.quantize(latents, progress())
    loss.backward()
    assert [level.item() for level in codes] == [1, 0]
    assert quantized.item() == 2.5
    assert loss.item() == pytest.approx((1 + 0.25) * 1.5)
    assert latents.grad.item() == pytest.approx(0.5 * (2 * 1 + 2 * 0.5))
    assert quantizer.words()[0].grad.tolist() == [[0.0], [-2.0]]
    assert quantizer.words()[1].grad.tolist() == [[-1.0], [0.0]]


@pytest.mark.parametrize("codebooks", [Gradient(), MovingAverage()])
def test_dead_codes_move_to_residuals_and_used_ones_stay(codebooks):
    quantizer = quantizer_with([torch.tensor([[1.0], [100.0], [200.0]])], codebooks=codebooks)
    quantizer.counts = [torch.tensor([3, 0, 0])]
    quantizer.end_epoch(lambda: torch.tensor([[1.0], [2.0], [10.0]]), progress())
    (words,) = (words.detach() for words in quantizer.words())
    assert words[0] == 1
    assert set(words[1:, 0].tolist()) < {1.0, 2.0, 10.0}


def test_a_dead_code_of_a_later_level_moves_to_what_the_levels_before_leave_over():
    quantizer = quantizer_with([torch.tensor([[10.0], [100.0]]), torch.tensor([[1.0], [50.0]])])
    quantizer.counts = [torch.tensor([1, 2]), torch.tensor([3, 0])]
    quantizer.end_epoch(lambda: torch.tensor([[11.0], [102.0], [103.0]]), progress())
    assert quantizer.words()[1][1].item() in {1.0, 2.0, 3.0}


def test_latents_are_not_asked_for_without_a_dead_code():
    quantizer = quantizer_with([torch.tensor([[1.0], [100.0]])])
    quantizer.counts = [torch.tensor([1, 1])]
    quantizer.end_epoch(lambda: pytest.fail("asked"), progress())


def test_no_code_moves_in_the_last_part_of_training():
    quantizer = quantizer_with([torch.tensor([[1.0], [100.0]])], epochs=10, restart_share=0.3)
    quantizer.counts = [torch.tensor([3, 0])]
    quantizer.end_epoch(lambda: torch.tensor([[1.0], [2.0]]), progress(epoch=3))
    assert quantizer.words()[0].tolist() == [[1.0], [100.0]]


def test_moving_averages_by_hand():
    books = MovingAverage(decay=0.75).start([torch.tensor([[0.0], [10.0]])])
    books.observe(0, torch.tensor([[2.0], [4.0]]), torch.tensor([0, 0]))
    assert books.words(0)[0].item() == pytest.approx((0.75 * 0 + 0.25 * 6) / (0.75 * 1 + 0.25 * 2))
    for _ in range(1000):
        books.observe(0, torch.tensor([[3.0]]), torch.tensor([0]))
    assert books.words(0).flatten().tolist() == pytest.approx([3.0, 10.0])
    assert books.parameters() == []


def test_simvq_learns_through_its_map_and_never_touches_its_codewords():
    vectors = make_vectors(300)
    tokenizer = small(codebooks=SimVQ(), restart_share=0.0, epochs=8)
    frozen = [torch.randn(8, 4) for _ in range(3)]
    books = SimVQ().start(frozen)
    assert all(torch.equal(books.words(level), words) for level, words in enumerate(frozen))
    first, _ = dataclasses.replace(tokenizer, epochs=1, learning_rate=1e-12).fit(vectors, seed=0, extra={})
    last, _ = tokenizer.fit(vectors, seed=0, extra={})
    for level in range(3):
        np.testing.assert_allclose(
            last[f"codebook_{level}"], last[f"frozen_{level}"] @ last[f"map_{level}"].T, rtol=1e-5, atol=1e-6
        )
        assert not np.allclose(last[f"map_{level}"], np.eye(4))
        assert last[f"frozen_{level}"].tobytes() == first[f"frozen_{level}"].tobytes()


def test_simvq_refuses_restarts():
    with pytest.raises(ValueError, match="restart_share must be 0 with SimVQ codebooks"):
        small(codebooks=SimVQ())


def test_sinkhorn_assigns_evenly_where_told_and_nearest_elsewhere():
    torch.manual_seed(0)
    distances = torch.rand(80, 8)
    distances[:, 3] -= 2
    chosen = Sinkhorn(levels=(1,), epsilon=0.01, iterations=200)
    counts = chosen.assign(1, distances).bincount(minlength=8)
    assert counts.min() >= 8
    assert counts.max() <= 12
    assert torch.equal(chosen.assign(0, distances), Nearest().assign(0, distances))
    assert (chosen.assign(0, distances) == 3).all()


def test_sinkhorn_keeps_the_nearest_where_that_is_even():
    distances = torch.ones(6, 3)
    distances[torch.arange(6), torch.arange(6) % 3] = 0
    assert Sinkhorn(levels=(0,)).assign(0, distances).tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("n", [10, 69])
def test_sinkhorn_gives_fewer_residuals_than_codes_near_ones_and_not_by_rounding(n):
    generator = torch.Generator().manual_seed(n)
    residuals, words = torch.randn(n, 32, generator=generator), torch.randn(256, 32, generator=generator)
    distances, sinkhorn = torch.cdist(residuals, words).square(), Sinkhorn(levels=(0,))
    codes = sinkhorn.assign(0, distances)
    assert len(codes.unique()) == n
    assert distances[torch.arange(n), codes].mean() < 1.1 * distances.min(dim=1).values.mean()
    for _ in range(5):
        rounded = distances * (1 + 1e-6 * torch.randn(distances.shape, generator=generator))
        assert torch.equal(sinkhorn.assign(0, rounded), codes)


def test_sinkhorn_refuses_a_level_that_is_not_there():
    with pytest.raises(ValueError, match=r"assignment.levels must name levels from 0 to 2, got \(3,\)"):
        small(assignment=Sinkhorn(levels=(3,)))


def batch_of(**changes: Any) -> Quantized:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "items": torch.arange(6),
        "vectors": torch.randn(6, 5),
        "latents": torch.randn(6, 4),
        "reconstructed": torch.randn(6, 5),
        "codes": [torch.arange(6)],
        "codebooks": [torch.randn(6, 4)],
        "quantization": torch.tensor(0.0),
    }
    return Quantized(**(values | changes))


def test_the_own_row_loss_by_hand():
    scores = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    expected = (-np.log(np.exp(2) / (np.exp(2) + 1)) - np.log(0.5)) / 2
    assert own_row_loss(scores).item() == pytest.approx(expected)


def test_the_contrast_asks_for_the_direction_of_the_own_vector():
    objective, batch = Contrast(temperature=0.01), batch_of()
    right = dataclasses.replace(batch, reconstructed=3 * batch.vectors)
    turned = dataclasses.replace(batch, reconstructed=batch.vectors.roll(1, 0))
    assert objective.loss(right, progress()) < 0.01 < 10 < objective.loss(turned, progress())
    assert Reconstruction().loss(dataclasses.replace(batch, reconstructed=batch.vectors), progress()) == 0


def test_the_diversity_loss_of_two_groups_by_hand():
    words = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    groups = torch.tensor([0, 0, 1, 2])
    losses = [np.log(np.exp(2) + np.exp(0) + np.exp(5)) - 2, np.log(np.exp(2) + np.exp(0) + np.exp(10)) - 2]
    assert diversity_loss(words, torch.tensor([0, 1]), groups, progress()).item() == pytest.approx(
        np.mean(losses), rel=1e-5
    )
    assert diversity_loss(words, torch.tensor([2, 3]), groups, progress()).item() == 0
    assert diversity_loss(words[:1], torch.tensor([0]), groups[:1], progress()).item() == 0


def term(
    state: dict[str, np.ndarray], tokenizer: RQVAE, vectors: np.ndarray, collaborative: np.ndarray
) -> tuple[float, float]:
    """The alignment and the diversity that a fitted LETTER has on its items."""
    codes = tokenizer.encode(state, vectors)
    books = [torch.from_numpy(state[f"codebook_{level}"]) for level in range(3)]
    latents = sum(book[level] for book, level in zip(books, torch.from_numpy(codes.T).long(), strict=True))
    running = Letter(clusters=4).start({"collaborative": collaborative}, 4, seed=0)
    batch = batch_of(items=torch.arange(len(vectors)), latents=latents)
    spread = sum(
        diversity_loss(book, torch.from_numpy(codes[:, level]).long(), group, progress())
        for level, (book, group) in enumerate(zip(books, running.grouped(books, 0), strict=True))
    )
    return running.alignment(batch).item(), float(spread)


def test_the_diversity_loss_picks_any_other_codeword_of_the_group():
    words, groups = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), torch.tensor([0, 0, 0])
    expected = np.log(2)  # both others are equally near
    assert diversity_loss(words, torch.tensor([0]), groups, progress()).item() == pytest.approx(expected)
    words, generator = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]), torch.Generator().manual_seed(0)
    losses = {
        round(diversity_loss(words, torch.tensor([0]), groups, Progress(0, 0.0, generator)).item(), 4)
        for _ in range(50)
    }
    assert losses == {round(float(np.log(1 + np.exp(-2))), 4), round(float(np.log(1 + np.exp(2))), 4)}


def test_the_alignment_of_letter_by_hand():
    collaborative = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    running = Letter().start({"collaborative": collaborative}, 2, seed=0)
    found = running.collaborative.double().numpy()
    latents = np.array([[2.0, 1.0], [0.0, 3.0]])
    scores = latents @ found[[2, 1]].T
    expected = np.mean([np.log(np.exp(row).sum()) - row[place] for place, row in enumerate(scores)])
    batch = batch_of(items=torch.tensor([2, 1]), latents=torch.tensor(latents, dtype=torch.float32))
    assert running.alignment(batch).item() == pytest.approx(expected, rel=1e-5)


def test_the_terms_of_letter_weigh_what_its_authors_gave_them():
    """Means over dimensions and levels, summed with the default weights as in github.com/HonghuiBao2000/LETTER."""
    torch.manual_seed(0)
    vectors, reconstructed, latents = torch.randn(6, 5), torch.randn(6, 5), torch.randn(6, 4)
    words, collaborative = [torch.randn(20, 4) for _ in range(3)], make_vectors(6)
    quantized, codes, quantization = quantizer_with(words).quantize(latents, progress())
    running = Letter().start({"collaborative": collaborative}, 4, seed=0)
    groups = running.grouped(words, 0)
    batch = Quantized(torch.arange(6), vectors, quantized, reconstructed, codes, words, quantization)
    expected, rest = torch.nn.functional.mse_loss(reconstructed, vectors) + 0.02 * running.alignment(batch), latents
    drawing = progress()
    for level, (book, used) in enumerate(zip(words, codes, strict=True)):
        error = torch.nn.functional.mse_loss(book[used], rest)
        diversity = diversity_loss(book, used, groups[level], drawing)
        expected = expected + (error + 0.25 * error + 0.0001 * diversity) / 3
        rest = rest - book[used]
    assert running(batch, progress()).item() == pytest.approx(expected.item(), rel=1e-5)


def test_letter_agrees_more_with_collaborative_vectors_than_rqvae():
    vectors, collaborative = make_vectors(300, dim=100), make_vectors(300, seed=7)
    alignments = {}
    for objective in (Reconstruction(), Letter()):
        tokenizer = small(codebook_size=16, objective=objective, epochs=60)
        fits = [tokenizer.fit(vectors, seed=seed, extra={"collaborative": collaborative})[0] for seed in range(2)]
        alignments[objective] = [term(state, tokenizer, vectors, collaborative)[0] for state in fits]
    assert max(alignments[Letter()]) < min(alignments[Reconstruction()]) - 1


def test_letter_groups_codewords_evenly():
    running = Letter(clusters=4).start({"collaborative": make_vectors(30)}, 4, seed=0)
    words = torch.cat([0.01 * torch.randn(25, 4), 10 + torch.randn(5, 4)])
    assert running.grouped([words], 0)[0].bincount(minlength=4).max() <= 8


def test_letter_lowers_its_own_terms():
    vectors, collaborative = make_vectors(300), make_vectors(300, seed=7)
    means = {}
    for name, weights in {"none": (0.0, 0.0), "alignment": (5.0, 0.0), "diversity": (0.0, 5.0)}.items():
        tokenizer, terms = small(codebook_size=16, objective=Letter(*weights, clusters=4), epochs=30), []
        for seed in range(3):
            state, _ = tokenizer.fit(vectors, seed=seed, extra={"collaborative": collaborative})
            terms.append(term(state, tokenizer, vectors, collaborative))
        means[name] = np.mean(terms, axis=0)
    assert means["alignment"][0] < means["none"][0] - 0.5
    assert means["diversity"][1] < means["none"][1] - 0.5


def test_cost_lowers_its_own_term():
    vectors = make_vectors(300)
    rows = (vectors - vectors.mean(0)) / vectors.std(0)
    losses = {}
    for objective in (Reconstruction(), Contrast()):
        tokenizer = small(objective=objective, epochs=30)
        state, codes = tokenizer.fit(vectors, seed=0, extra={})
        decoded = (tokenizer.decode(state, codes) - state["mean"]) / state["std"]
        batch = batch_of(vectors=torch.from_numpy(rows), reconstructed=torch.from_numpy(decoded.astype(np.float32)))
        losses[objective] = Contrast().loss(batch, progress()).item()
    assert losses[Contrast()] < losses[Reconstruction()] - 0.1


def test_letter_refuses_a_diversity_without_a_gradient():
    with pytest.raises(
        ValueError, match=r"objective\.diversity must be 0 with MovingAverage codebooks, whose codewords have no"
    ):
        small(codebooks=MovingAverage(), objective=Letter())
    assert small(codebooks=MovingAverage(), objective=Letter(diversity=0.0)).needs == ("collaborative",)


def test_main_components_are_white_and_padded():
    components = main_components(make_vectors(200, dim=3), 5)
    np.testing.assert_allclose(components.T @ components / 200, np.diag([1, 1, 1, 0, 0]), atol=1e-5)
    assert main_components(np.ones((4, 3), np.float32), 2).tolist() == [[0, 0]] * 4


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 17, 32, 1001, 1002, 4096])
def test_codes_of_fsq_and_grid_points_are_one_to_one(size):
    codes = np.arange(size)
    points = grid_points(codes, size)
    assert np.array_equal(grid_codes(points, size), codes)
    assert np.abs(scaled(points, size)).max() <= 1
    reached = grid_codes(np.rint(bounded(np.linspace(-20, 20, 400_001), size, np.tanh)), size)
    assert np.array_equal(np.unique(reached), codes)
    assert bounded(np.zeros(1), size, np.tanh)[0] == pytest.approx(0, abs=1e-9)
    assert np.array_equal(np.sort(reached), reached)


def test_fsq_decodes_each_item_from_its_grid_point():
    vectors, tokenizer = (
        make_vectors(300),
        FSQ(levels=3, codebook_size=8, hidden=(32,), epochs=40, batch_size=64, learning_rate=3e-3),
    )
    state, codes = tokenizer.fit(vectors, seed=0, extra={})
    error = np.square(tokenizer.decode(state, codes) - vectors).sum() / np.square(vectors - vectors.mean(0)).sum()
    assert error < 0.5
    for level in range(3):
        assert np.array_equal(tokenizer.distances(state, vectors, codes[:, :level]).argmin(1), codes[:, level])


def test_rvq_learns_from_any_start():
    vectors = make_vectors(400)
    errors = {}
    for init in get_args(Init):
        tokenizer = RVQ(codebook_size=8, epochs=30, batch_size=64, init=init)
        errors[init] = fit(vectors, TokenizeConfig(tokenizer)).diagnostics["reconstruction_error"]
        untrained = fit(
            vectors, TokenizeConfig(dataclasses.replace(tokenizer, epochs=1, learning_rate=1e-9, restart_share=0))
        ).diagnostics["reconstruction_error"]
        assert errors[init] < untrained * (0.9 if init == "random" else 1.01)
    with pytest.raises(ValueError, match=r"init must be 'random', 'normal', 'kmeans' or 'kmeans\+\+', got 'zeros'"):
        RVQ(init="zeros")


def test_rqvae_learns_and_keeps_its_codes():
    vectors = make_vectors(600)
    short, long = (
        fit(vectors, TokenizeConfig(RQVAE(codebook_size=16, hidden=(32,), latent_dim=8, epochs=epochs, batch_size=128)))
        for epochs in (1, 40)
    )
    assert long.diagnostics["reconstruction_error"] < min(0.3, short.diagnostics["reconstruction_error"] / 2)
    assert all(level["used_codes"] >= 15 for level in long.diagnostics["levels"])


def test_rqvae_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    small().fit(make_vectors(30), seed=0, extra={})
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("field", ["levels", "latent_dim", "epochs", "batch_size"])
def test_rqvae_refuses_sizes_below_one(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        RQVAE(**{field: 0})


def test_rqvae_that_diverges_stops_and_says_how_to_go_on():
    with pytest.raises(
        TokenizeError, match=r"loss of rqvae became (nan|inf) in epoch 1 .* lower tokenizer\.learning_rate"
    ):
        fit(make_vectors(), TokenizeConfig(RQVAE(codebook_size=8, batch_size=20, learning_rate=1e15)))


def test_rqvae_must_end_without_restarts():
    with pytest.raises(ValueError, match=r"restart_share must be at most 0\.8, got 0\.9"):
        RQVAE(restart_share=0.9)
