"""What an RQ-VAE is trained for: the quantisation loss, what an objective adds to it, and the weights of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import numpy as np

from tigerrec.config import NotNegative, Positive, options
from tigerrec.runtime.seeds import derived_seed
from tigerrec.tokenizers.quantizer.balanced import fit_balanced
from tigerrec.tokenizers.quantizer.codebooks import AtLeastTwo

if TYPE_CHECKING:
    from torch import Tensor

    from tigerrec.tokenizers.quantizer.autoencoder import Progress

COLLABORATIVE = "collaborative"
CLUSTER_ITERATIONS = 10


@dataclass(frozen=True)
class Quantized:
    """A batch of items after the quantiser and the decoder.

    Attributes:
        items: int64 (n,), their numbers.
        vectors: (n, D), standardised.
        latents: (n, latent), the sum of the codewords, with gradient.
        reconstructed: (n, D).
        codes: one int64 (n,) a level.
        codebooks: one (k, latent) a level, with gradient where they learn by it.
        quantization: the quantisation loss of an item, summed over dimensions and levels, mean over items.
    """

    items: Tensor
    vectors: Tensor
    latents: Tensor
    reconstructed: Tensor
    codes: Sequence[Tensor]
    codebooks: Sequence[Tensor]
    quantization: Tensor


Loss = Callable[[Quantized, "Progress"], "Tensor"]
"""The whole loss of a batch, quantisation included: the mean over its items."""


@runtime_checkable
class Objective(Protocol):
    """A training objective: a frozen dataclass of settings."""

    family: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    """Names of further item-aligned matrices that it reads."""

    def start(self, extra: Mapping[str, np.ndarray], latent_dim: int, seed: int) -> Loss:
        """The loss of one training, given the matrices it needs, float32 (I, any)."""
        ...


def reconstruction_loss(batch: Quantized) -> Tensor:
    """Squared error of an item's reconstruction, summed over dimensions, mean over items."""
    return (batch.reconstructed - batch.vectors).square().sum(dim=1).mean()


def own_row_loss(scores: Tensor) -> Tensor:
    """Cross-entropy of each row's own column among all columns (InfoNCE: van den Oord et al. 2018, arXiv 1807.03748),
    mean over rows, of scores (n, n)."""
    return (scores.logsumexp(dim=1) - scores.diagonal()).mean()


@options
class Reconstruction:
    """The decoder shall give the vectors back (Rajput et al. 2023, arXiv 2305.05065, section 3.1)."""

    family: ClassVar[str] = "reconstruction"
    needs: ClassVar[tuple[str, ...]] = ()

    def start(self, extra: Mapping[str, np.ndarray], latent_dim: int, seed: int) -> Loss:
        return self.loss

    def loss(self, batch: Quantized, progress: Progress) -> Tensor:
        """The quantisation loss plus the squared error, both sums over dimensions."""
        return batch.quantization + reconstruction_loss(batch)


@options
class Contrast(Reconstruction):
    """A reconstruction shall be nearer, by cosine over `temperature`, to its own vector than to the others of the
    batch, instead of equal (CoST: Zhu et al. 2024, arXiv 2404.14774)."""

    family: ClassVar[str] = "contrast"
    temperature: Positive = 0.1

    def loss(self, batch: Quantized, progress: Progress) -> Tensor:
        """The quantisation loss plus the cross-entropy of the own vector among the batch's, by cosine."""
        from torch.nn.functional import normalize

        scores = normalize(batch.reconstructed) @ normalize(batch.vectors).T / self.temperature
        return batch.quantization + own_row_loss(scores)


@options
class Letter:
    """Reconstruction, latents that agree with collaborative vectors, and diverse codewords (LETTER: Wang et al. 2024,
    arXiv 2405.07314, section 3.2).

    The weights go with the losses of its authors' code, which are means over dimensions and levels, not sums.

    Args:
        alignment: weight of the agreement with the collaborative vectors.
        diversity: weight of the codewords' diversity.
        clusters: groups of a level's codewords, of equal size; those of one group may be alike.
    """

    family: ClassVar[str] = "letter"
    needs: ClassVar[tuple[str, ...]] = (COLLABORATIVE,)
    alignment: NotNegative = 0.02
    diversity: NotNegative = 0.0001
    clusters: AtLeastTwo = 10

    def start(self, extra: Mapping[str, np.ndarray], latent_dim: int, seed: int) -> Loss:
        return LetterLoss(self, main_components(extra[COLLABORATIVE], latent_dim), seed)


class LetterLoss:
    """The loss of LETTER in one training."""

    def __init__(self, objective: Letter, collaborative: np.ndarray, seed: int) -> None:
        import torch

        self.objective, self.seed = objective, seed
        self.collaborative = torch.from_numpy(collaborative)
        self.epoch = -1
        self.groups: list[Tensor] = []

    def grouped(self, codebooks: Sequence[Tensor], epoch: int) -> list[Tensor]:
        """The group of each codeword, int64 (k,), by balanced k-means on each level."""
        import torch

        groups = []
        for level, words in enumerate(codebooks):
            seed = derived_seed(self.seed, "clusters", level, epoch)
            codes = fit_balanced(words.detach().cpu().numpy(), self.objective.clusters, CLUSTER_ITERATIONS, seed)[1]
            groups.append(torch.from_numpy(codes).to(words.device))
        return groups

    def __call__(self, batch: Quantized, progress: Progress) -> Tensor:
        """Squared errors per dimension, of the quantisation also per level, plus the weighted terms; codewords are
        grouped as an epoch begins."""
        if progress.epoch != self.epoch:
            self.epoch, self.groups = progress.epoch, self.grouped(batch.codebooks, progress.epoch)
        levels = list(zip(batch.codebooks, batch.codes, self.groups, strict=True))
        diversity = sum(diversity_loss(words, codes, groups, progress) for words, codes, groups in levels) / len(levels)
        return (
            reconstruction_loss(batch) / batch.vectors.shape[1]
            + batch.quantization / (batch.latents.shape[1] * len(levels))
            + self.objective.alignment * self.alignment(batch)
            + self.objective.diversity * diversity
        )

    def alignment(self, batch: Quantized) -> Tensor:
        """Cross-entropy of an item's collaborative vector among those of the batch, by inner product with its latent
        vector."""
        self.collaborative = self.collaborative.to(batch.latents.device)
        return own_row_loss(batch.latents @ self.collaborative[batch.items].T)


def diversity_loss(words: Tensor, codes: Tensor, groups: Tensor, progress: Progress) -> Tensor:
    """Cross-entropy by which a chosen codeword, of codes int64 (n,), picks a random other one of its group among all
    others, mean over items; words are (k, latent), groups int64 (k,). A codeword that is alone in its group counts
    nothing."""
    import torch

    scores = (words[codes] @ words.T).scatter(1, codes[:, None], -torch.inf)
    alike = (groups[codes, None] == groups).scatter(1, codes[:, None], False)
    has_other = alike.any(dim=1)
    if not has_other.any():
        return words.new_zeros(())
    chance = torch.rand(alike.shape, generator=progress.generator).to(alike.device).masked_fill(~alike, -1.0)
    others = chance.argmax(dim=1, keepdim=True)
    losses = scores.logsumexp(dim=1) - scores.gather(1, others).squeeze(1)
    return losses.where(has_other, 0.0).mean()


def main_components(vectors: np.ndarray, dim: int) -> np.ndarray:
    """The principal components of vectors (I, any), each of variance 1, float32 (I, dim), with zeros where there are
    fewer; so their inner products with latent vectors are of one scale, whatever made them."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    rank = int((values > values.max(initial=0) * 1e-6).sum())
    components = np.zeros((len(vectors), dim), np.float32)
    components[:, : min(dim, rank)] = left[:, : min(dim, rank)] * np.sqrt(len(vectors))
    return components
