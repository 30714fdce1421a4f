"""R3-VAE: codewords are directions, subtracted at the length at which an item rates them (Wan et al. 2026, arXiv
2604.11440)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tigerrec.config import AtLeastOne, NotNegative, Positive, options
from tigerrec.embed.vectors import unit
from tigerrec.runtime.seeds import derived_seed
from tigerrec.tokenizers.base import Codes, State
from tigerrec.tokenizers.quantizer.autoencoder import Progress, Widths, build_mlps, optimise
from tigerrec.tokenizers.quantizer.codebooks import ResidualEncoder, fit_codebook
from tigerrec.tokenizers.quantizer.residual import INIT_ITERATIONS, LearnedCodebooks

if TYPE_CHECKING:
    from torch import Generator, Tensor

ROUNDING = 1e-6
"""What is left over of a vector of length 1 and shorter than this has no direction of its own."""


@options
class R3VAE(ResidualEncoder, LearnedCodebooks):
    """Residual quantisation of directions: first a learned reference direction is taken out of the item's vector of
    length 1, then one codeword a level.

    The codeword at the smallest angle to the residual is taken, and what is subtracted is the residual's projection on
    it, the codeword times its rating. Ratings have gradients, so nothing is passed straight through. A decoder of the
    sum helps training and is not kept.

    Args:
        hidden: widths of the decoder's hidden layers.
        cohesion: weight of the cosine distance between vectors and the sums after each level.
        discrimination: weight of how alike the codewords of a level are.
        temperature: how much more it counts that codewords are alike than that they are far apart.
    """

    family: ClassVar[str] = "r3vae"
    hidden: Widths = (512,)
    cohesion: NotNegative = 0.1
    discrimination: NotNegative = 0.05
    temperature: NotNegative = 2.0
    epochs: AtLeastOne = 100
    learning_rate: Positive = 1e-3

    def fit(self, vectors: np.ndarray, *, seed: int, extra: Mapping[str, np.ndarray]) -> tuple[State, Codes]:
        """Learn `reference` (D,), which begins at the mean of all vectors of length 1, and `codebook_<level>` (k, D), k
        ≤ `codebook_size`, all of length 1."""
        import torch
        from torch.nn.functional import cosine_similarity

        rows = unit(vectors.astype(np.float64)).astype(np.float32)
        mean, dim = rows.mean(axis=0, keepdims=True), rows.shape[1]
        initial = initial_codebooks(self, without(rows, unit(mean)), seed)
        data, reference, *codebooks = self.on_device(rows, mean, *initial)
        for words in (reference, *codebooks):
            words.requires_grad_()
        (decoder,) = build_mlps(derived_seed(seed, "decoder weights"), (dim, *self.hidden, dim))
        decoder.to(data.device)
        counts = [words.new_zeros(len(words), dtype=torch.int64) for words in codebooks]

        def step(items: Tensor, progress: Progress) -> Tensor:
            vectors, cohesion, alike = data[items], data.new_zeros(()), data.new_zeros(())
            summed = vectors
            for level, (summed, _, codes) in enumerate(quantize(vectors, reference, codebooks)):
                counts[level].scatter_add_(0, codes, torch.ones_like(codes))
                cohesion = cohesion + (1 - cosine_similarity(summed, vectors).mean()) / self.levels
                alike = alike + discrimination_loss(codebooks[level], self.temperature) / self.levels
            reconstruction = 1 - cosine_similarity(decoder(summed), vectors).mean()
            loss: Tensor = reconstruction + self.cohesion * cohesion + self.discrimination * alike
            return loss

        @torch.no_grad()
        def end_epoch(progress: Progress) -> None:
            if self.restarts(progress):
                restart(data - projected(data, reference)[0], codebooks, counts, progress.generator)
            for count in counts:
                count.zero_()

        groups: list[dict[str, Any]] = [{"params": [reference, *codebooks, *decoder.parameters()]}]
        optimise(self, groups, len(data), seed, step, end_epoch)
        state = {f"codebook_{level}": unit(words.detach().cpu().numpy()) for level, words in enumerate(codebooks)}
        state["reference"] = unit(reference.detach().cpu().numpy())[0]
        return state, self.encode(state, vectors)

    def _latents(self, state: State, vectors: np.ndarray) -> np.ndarray:
        return without(unit(vectors), state["reference"])

    def _distances(self, residuals: np.ndarray, codebook: np.ndarray) -> np.ndarray:
        return angular_distances(residuals, codebook)

    def _residuals(self, residuals: np.ndarray, words: np.ndarray) -> np.ndarray:
        return without(residuals, words)


def without(rows: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Rows (n, D) less their projections on directions of length 1, one (D,) for all or one (n, D) each."""
    rest: np.ndarray = rows - (rows * directions).sum(axis=1, keepdims=True) * directions
    return rest


def angular_distances(rows: np.ndarray, words: np.ndarray) -> np.ndarray:
    """One less the cosines, float64 (n, k), of what is left over of vectors of length 1, rows (n, D), and codewords (k,
    D) of length 1."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.maximum(1 - unit(np.where(lengths > ROUNDING, rows, 0)) @ words.T.astype(np.float64), 0)


def projected(residuals: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The projections (n, D) of residuals (n, D) on their codewords at the smallest angle, and the codes, int64 (n,);
    codewords (k, D) of any length."""
    from torch.nn.functional import normalize

    words = normalize(codebook)
    codes = (residuals.detach() @ words.detach().T).argmax(dim=1)
    ratings = (residuals * words[codes]).sum(dim=1, keepdim=True)
    return ratings * words[codes], codes


def quantize(
    vectors: Tensor, reference: Tensor, codebooks: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """After each level: the sum of the parts so far and what is left over, (n, D), and the codes, int64 (n,), for
    vectors (n, D) of length 1 and a reference (1, D) and codebooks (k, D) of any length."""
    summed, _ = projected(vectors, reference)
    for codebook in codebooks:
        part, codes = projected(vectors - summed, codebook)
        summed = summed + part
        yield summed, vectors - summed, codes


def discrimination_loss(codebook: Tensor, temperature: float) -> Tensor:
    """How alike codewords (k, D) are: the logarithm of the mean of exp(-temperature (1 - cosine)) over all pairs."""
    from torch.nn.functional import normalize

    words = normalize(codebook)
    cosines = (words @ words.T)[~words.new_ones(len(words), len(words)).bool().tril()]
    return (temperature * (cosines - 1)).exp().mean().log() if len(cosines) else codebook.new_zeros(())


def restart(residuals: Tensor, codebooks: Sequence[Tensor], counts: Sequence[Tensor], generator: Generator) -> None:
    """Move the codewords of each level with count 0, in place, to the directions of what the levels before leave over
    of random items, where something is left over; `residuals` (I, D) are those of all items before the first level."""
    import torch
    from torch.nn.functional import normalize

    for codebook, count in zip(codebooks, counts, strict=True):
        directed = residuals[residuals.norm(dim=1) > ROUNDING]
        dead = torch.nonzero(count == 0)[:, 0][: len(directed)]
        chosen = torch.randperm(len(directed), generator=generator)[: len(dead)].to(directed.device)
        codebook[dead] = normalize(directed[chosen])
        residuals = residuals - projected(residuals, codebook)[0]


def directions(rows: np.ndarray) -> np.ndarray:
    """The rows (n, D) that are not almost 0, at length 1; the first axis where all are."""
    directed = rows[np.linalg.norm(rows, axis=1) > ROUNDING]
    return unit(directed) if len(directed) else np.eye(1, rows.shape[1], dtype=rows.dtype)


def initial_codebooks(tokenizer: R3VAE, residuals: np.ndarray, seed: int) -> list[np.ndarray]:
    """One codebook a level, each fitted to the directions of what the levels before left over of rows (n, D)."""
    codebooks = []
    for level in range(tokenizer.levels):
        level_seed = derived_seed(seed, "codebook", level)
        words = directions(
            fit_codebook(directions(residuals), tokenizer.codebook_size, INIT_ITERATIONS, level_seed, tokenizer.init)
        )
        residuals = without(residuals, words[angular_distances(residuals, words).argmin(axis=1)])
        codebooks.append(words)
    return codebooks
