"""RQ-VAE: an autoencoder whose latent vector is quantised by residual codebooks (Rajput et al. 2023, arXiv 2305.05065, section 3.1)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from tqdm import tqdm

from tigerrec.seeds import derived_seed
from tigerrec.tokenizers import Codes, State, TokenizeError, check_least
from tigerrec.tokenizers.codebooks import decode_residuals, encode_residuals, fit_residual_codebooks, in_blocks

if TYPE_CHECKING:
    import torch

INIT_ITERATIONS = 20


@dataclass(frozen=True)
class RQVAE:
    """TIGER's tokenizer: MLP encoder, residual quantiser with straight-through gradients, mirrored MLP decoder.

    Args:
        levels: the number of codes an item.
        codebook_size: the number of codewords a level.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        latent_dim: dimension of the codewords.
        beta: weight of the commitment term.
        epochs: passes over all items.
        batch_size: items a step.
        learning_rate: the largest learning rate of AdamW; it decays to 0 as a cosine.
        weight_decay: decay of the encoder's and decoder's weights, not of the codebooks.
        restart_share: the share of the epochs, from the first on, after which codes that no item used are moved to random residuals.
    """

    family: ClassVar[str] = "rqvae"
    needs: ClassVar[tuple[str, ...]] = ()
    levels: int = 3
    codebook_size: int = 256
    hidden: tuple[int, ...] = (512, 256, 128)
    latent_dim: int = 32
    beta: float = 0.25
    epochs: int = 200
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    restart_share: float = 0.7

    def __post_init__(self) -> None:
        check_least(self, levels=1, codebook_size=2, latent_dim=1, beta=0, epochs=1, batch_size=1, weight_decay=0)
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must hold widths of at least 1, got {self.hidden}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 <= self.restart_share <= 0.8:
            raise ValueError(f"restart_share must be between 0 and 0.8, so that training ends without restarts, got {self.restart_share}")

    @property
    def code_sizes(self) -> tuple[int, ...]:
        """The number of codes a level."""
        return (self.codebook_size,) * self.levels

    def fit(self, vectors: np.ndarray, *, seed: int, extra: Mapping[str, np.ndarray]) -> tuple[State, Codes]:
        """Train the autoencoder and its codebooks.

        Returns:
            `mean`, `std` (D,) of the vectors, `encoder.<i>.weight|bias`, `decoder.<i>.weight|bias`, `codebook_<level>` (k, latent), k ≤ `codebook_size`;
            and the codes, int32 (I, L), under the final weights.
        """
        mean, deviation = vectors.mean(axis=0, dtype=np.float64), vectors.std(axis=0, dtype=np.float64)
        std = np.where(deviation > 0, deviation, 1)
        learned = train(self, ((vectors - mean) / std).astype(np.float32), seed)
        state = {"mean": mean.astype(np.float32), "std": std.astype(np.float32), **learned}
        return state, self.encode(state, vectors)

    def encode(self, state: State, vectors: np.ndarray) -> Codes:
        """Codes, int32 (n, L), of the latent vectors."""
        codebooks = self._codebooks(state)
        return in_blocks(lambda block: encode_residuals(run_mlp(state, "encoder", (block - state["mean"]) / state["std"]), codebooks), vectors)

    def decode(self, state: State, codes: Codes) -> np.ndarray:
        """Vectors, float64 (n, D), that the decoder makes of the codewords' sum."""
        return run_mlp(state, "decoder", decode_residuals(codes, self._codebooks(state))) * state["std"] + state["mean"]

    def _codebooks(self, state: State) -> list[np.ndarray]:
        return [state[f"codebook_{level}"] for level in range(self.levels)]


def run_mlp(state: State, name: str, rows: np.ndarray) -> np.ndarray:
    """The network `encoder` or `decoder` of a state in double precision, (n, in) to (n, out)."""
    count = sum(key.startswith(f"{name}.") and key.endswith(".weight") for key in state)
    for layer in range(count):
        rows = rows @ state[f"{name}.{layer}.weight"].T.astype(np.float64) + state[f"{name}.{layer}.bias"]
        if layer < count - 1:
            rows = np.maximum(rows, 0)
    return rows


def build_mlp(sizes: Sequence[int]) -> torch.nn.Sequential:
    """Linear layers of these sizes with ReLU between them."""
    from torch import nn

    layers = [layer for before, after in itertools.pairwise(sizes) for layer in (nn.Linear(before, after), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def nearest_codes(residuals: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The nearest codeword's index, int64 (n,), of residuals (n, latent)."""
    return (codebook.square().sum(dim=1) - 2 * residuals @ codebook.T).argmin(dim=1)


def quantize(latents: torch.Tensor, codebooks: Sequence[torch.Tensor], beta: float) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Residual quantisation with the straight-through estimator.

    Args:
        latents: (n, latent).
        codebooks: one (k, latent) a level.
        beta: weight of the commitment term.

    Returns:
        The sum of the codewords (n, latent), whose gradient passes to `latents` unchanged; the codes a level; and the quantisation loss of an item
        summed over levels, |sg[r] - e|² + beta |r - sg[e]|² (Rajput et al. 2023, arXiv 2305.05065, section 3.1).
    """
    residuals, codes, loss = latents, [], latents.new_zeros(())
    for codebook in codebooks:
        codes.append(nearest_codes(residuals.detach(), codebook.detach()))
        words = codebook[codes[-1]]
        loss = loss + (residuals.detach() - words).square().sum(dim=1).mean() + beta * (residuals - words.detach()).square().sum(dim=1).mean()
        residuals = residuals - words.detach()
    return latents - residuals.detach(), codes, loss


def restart_dead_codes(latents: torch.Tensor, codebooks: Sequence[torch.Tensor], counts: Sequence[torch.Tensor], generator: torch.Generator) -> None:
    """Move each code that no item used to the residual of a random item."""
    import torch

    residuals = latents
    for codebook, count in zip(codebooks, counts, strict=True):
        dead = torch.nonzero(count == 0)[:, 0][: len(latents)]
        codebook[dead] = residuals[torch.randperm(len(latents), generator=generator)[: len(dead)]]
        residuals = residuals - codebook[nearest_codes(residuals, codebook)]


def train(tokenizer: RQVAE, rows: np.ndarray, seed: int) -> State:
    """The weights and codebooks learned from standardised rows, float32 (I, D).

    Raises:
        TokenizeError: the loss is no longer finite.
    """
    import torch

    data = torch.from_numpy(rows)
    sizes = (rows.shape[1], *tokenizer.hidden, tokenizer.latent_dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "rqvae weights"))
        networks = {"encoder": build_mlp(sizes), "decoder": build_mlp(sizes[::-1])}
    encoder, decoder = networks.values()
    with torch.no_grad():
        initial = fit_residual_codebooks(encoder(data).numpy(), tokenizer.levels, tokenizer.codebook_size, INIT_ITERATIONS, seed)
    codebooks = [torch.from_numpy(codebook).requires_grad_() for codebook in initial]
    weights = [weight for network in networks.values() for weight in network.parameters()]
    groups = [{"params": weights, "weight_decay": tokenizer.weight_decay}, {"params": codebooks, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=tokenizer.learning_rate)
    generator = torch.Generator().manual_seed(derived_seed(seed, "rqvae batches"))
    for epoch in tqdm(range(tokenizer.epochs), desc="rqvae", unit="epoch", disable=None):
        for group in optimizer.param_groups:
            group["lr"] = tokenizer.learning_rate * (1 + math.cos(math.pi * epoch / tokenizer.epochs)) / 2
        counts = [torch.zeros(len(codebook), dtype=torch.int64) for codebook in codebooks]
        for batch in torch.randperm(len(data), generator=generator).split(tokenizer.batch_size):
            quantized, codes, loss = quantize(encoder(data[batch]), codebooks, tokenizer.beta)
            loss = loss + (decoder(quantized) - data[batch]).square().sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for count, used in zip(counts, codes, strict=True):
                count += torch.bincount(used, minlength=len(count))
        if not math.isfinite(loss.item()):
            raise TokenizeError(
                f"The RQ-VAE's loss became {loss.item()} in epoch {epoch + 1} at learning rate {group['lr']:.3g}; lower tokenizer.learning_rate."
            )
        if epoch < tokenizer.restart_share * tokenizer.epochs:
            with torch.no_grad():
                restart_dead_codes(encoder(data), codebooks, counts, generator)
    return to_state(networks, codebooks)


def to_state(networks: Mapping[str, torch.nn.Sequential], codebooks: Sequence[torch.Tensor]) -> State:
    """Networks and codebooks as named numpy arrays."""
    state = {f"codebook_{level}": words.detach().numpy() for level, words in enumerate(codebooks)}
    for name, network in networks.items():
        for layer, linear in enumerate(list(network)[::2]):
            state |= {f"{name}.{layer}.{part}": value.numpy() for part, value in linear.state_dict().items()}
    return state
