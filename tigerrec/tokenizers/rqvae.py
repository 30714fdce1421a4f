"""RQ-VAE: an autoencoder whose latent vector is quantised by residual codebooks (Rajput et al. 2023, arXiv 2305.05065,
section 3.1).

Its variations are parts: how gradients pass the quantiser, how codewords learn, how training assigns them, and what
else is learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tigerrec.config import options
from tigerrec.tokenizers import Codes, State, check_least
from tigerrec.tokenizers.assignments import Assignment, Nearest
from tigerrec.tokenizers.autoencoder import (
    Progress,
    build_networks,
    networks_state,
    optimise,
    restored,
    run_mlp,
    standardisation,
    standardised,
)
from tigerrec.tokenizers.codebooks import INITS, decode_residuals, encode_residuals, in_blocks, residual_distances
from tigerrec.tokenizers.estimators import Estimator, StraightThrough
from tigerrec.tokenizers.learned_codebooks import Codebooks, Gradient, MovingAverage
from tigerrec.tokenizers.objectives import Letter, Objective, Quantized, Reconstruction
from tigerrec.tokenizers.residual import ResidualQuantizer, check_learning

if TYPE_CHECKING:
    import torch


@options
class RQVAE:
    """TIGER's tokenizer: MLP encoder, residual quantiser, mirrored MLP decoder.

    Args:
        levels: the number of codes an item.
        codebook_size: the number of codewords a level.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        latent_dim: dimension of the codewords.
        beta: weight of the commitment term.
        init: where codewords begin, as in `fit_codebook`.
        epochs: passes over all items.
        batch_size: items a step.
        learning_rate: the largest learning rate of AdamW; it decays to 0 as a cosine.
        weight_decay: decay of the encoder's and decoder's weights, not of the codebooks.
        restart_share: the share of the epochs, from the first on, after which codes that no item used are moved to
            random residuals.
        estimator: how gradients pass the quantiser.
        codebooks: how codewords learn.
        assignment: how training gives residuals to codewords.
        objective: what is learned beside the quantisation.
    """

    family: ClassVar[str] = "rqvae"
    assigns_jointly: ClassVar[bool] = False
    levels: int = 3
    codebook_size: int = 256
    hidden: tuple[int, ...] = (512, 256, 128)
    latent_dim: int = 32
    beta: float = 0.25
    init: str = "kmeans++"
    epochs: int = 200
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    restart_share: float = 0.7
    estimator: Estimator = field(default_factory=StraightThrough)
    codebooks: Codebooks = field(default_factory=Gradient)
    assignment: Assignment = field(default_factory=Nearest)
    objective: Objective = field(default_factory=Reconstruction)

    def __post_init__(self) -> None:
        check_least(self, levels=1, codebook_size=2, latent_dim=1, beta=0, epochs=1, batch_size=1, weight_decay=0)
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must hold widths of at least 1, got {self.hidden}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        check_learning(self, INITS)
        if (
            isinstance(self.codebooks, MovingAverage)
            and isinstance(self.objective, Letter)
            and self.objective.diversity
        ):
            raise ValueError(
                "objective.diversity must be 0 with MovingAverage codebooks, whose codewords have no gradient, got "
                f"{self.objective.diversity}"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """What the objective reads."""
        return self.objective.needs

    @property
    def code_sizes(self) -> tuple[int, ...]:
        """The number of codes a level."""
        return (self.codebook_size,) * self.levels

    def fit(self, vectors: np.ndarray, *, seed: int, extra: Mapping[str, np.ndarray]) -> tuple[State, Codes]:
        """Train the autoencoder and its codebooks.

        Returns:
            `mean`, `std` (D,) of the vectors, `encoder.<i>.weight|bias`, `decoder.<i>.weight|bias`, `codebook_<level>`
            (k, latent), k ≤ `codebook_size`,
            and what the codebooks are made of; and the codes, int32 (I, L), under the final weights.
        """
        scale = standardisation(vectors)
        state = {**scale, **train(self, standardised(scale, vectors), extra, seed)}
        return state, self.encode(state, vectors)

    def encode(self, state: State, vectors: np.ndarray) -> Codes:
        """Codes, int32 (n, L), of the latent vectors."""
        codebooks = self._codebooks(state)
        return in_blocks(lambda block: encode_residuals(_latents(state, block), codebooks), vectors)

    def decode(self, state: State, codes: Codes) -> np.ndarray:
        """Vectors, float64 (n, D), that the decoder makes of the codewords' sum."""
        return restored(state, run_mlp(state, "decoder", decode_residuals(codes, self._codebooks(state))))

    def distances(self, state: State, vectors: np.ndarray, codes: Codes) -> np.ndarray:
        """Squared distances, float64 (n, `codebook_size`), of what the codes before leave over to the codewords of the
        next level; inf where there is none."""
        latents = in_blocks(lambda block: _latents(state, block), vectors)
        return residual_distances(latents, codes, self._codebooks(state), self.codebook_size)

    def _codebooks(self, state: State) -> list[np.ndarray]:
        return [state[f"codebook_{level}"] for level in range(self.levels)]


def _latents(state: State, vectors: np.ndarray) -> np.ndarray:
    return run_mlp(state, "encoder", standardised(state, vectors))


def train(tokenizer: RQVAE, rows: np.ndarray, extra: Mapping[str, np.ndarray], seed: int) -> State:
    """The weights and codebooks learned from standardised rows, float32 (I, D).

    Raises:
        TokenizeError: the loss is no longer finite.
    """
    import torch

    data = torch.from_numpy(rows)
    networks = build_networks((rows.shape[1], *tokenizer.hidden, tokenizer.latent_dim), seed)
    encoder, decoder = networks.values()
    with torch.no_grad():
        quantizer = ResidualQuantizer(tokenizer, encoder(data).numpy(), tokenizer.beta, seed)
    objective = tokenizer.objective.start(extra, tokenizer.latent_dim, seed)
    weights = [weight for network in networks.values() for weight in network.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": tokenizer.weight_decay},
        {"params": quantizer.codebooks.parameters()},
    ]

    def begin_epoch(progress: Progress) -> None:
        quantizer.begin_epoch()
        objective.begin_epoch(quantizer.words(), progress)

    def step(items: torch.Tensor, progress: Progress) -> torch.Tensor:
        vectors = data[items]
        words = quantizer.words()
        latents, codes, quantization = quantizer.quantize(encoder(vectors), progress)
        batch = Quantized(items, vectors, latents, decoder(latents), codes, words, quantization)
        return objective.loss(batch, progress)

    @torch.no_grad()
    def end_epoch(progress: Progress) -> None:
        quantizer.end_epoch(lambda: encoder(data), progress)

    optimise(tokenizer, groups, len(data), seed, step, before_epoch=begin_epoch, after_epoch=end_epoch)
    return networks_state(networks) | quantizer.state()
