"""What tokenizers trained by gradient share: standardised vectors, MLPs that a state can hold, and the training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from tqdm import tqdm

from tigerrec.config import AtLeastOne, Device, Positive, options
from tigerrec.runtime.seeds import derived_seed
from tigerrec.storage.fingerprints import not_identity
from tigerrec.tokenizers.base import State, TokenizeError

if TYPE_CHECKING:
    import torch

Widths = Annotated[tuple[AtLeastOne, ...], Field(min_length=1)]


@options
class GradientTraining:
    """A tokenizer trained by gradient.

    Args:
        epochs: passes over all items.
        batch_size: items a step.
        learning_rate: the largest learning rate of AdamW; it decays to 0 as a cosine.
        device: where it trains: `auto`, the GPU where there is one, `cpu` or `cuda`. What is random is drawn on the
            CPU, so that the device changes the result by rounding alone.
    """

    family: ClassVar[str]
    epochs: AtLeastOne = 200
    batch_size: AtLeastOne = 256
    learning_rate: Positive = 3e-3
    device: Device = not_identity(default="auto")

    def on_device(self, *rows: np.ndarray) -> list[torch.Tensor]:
        """Arrays as tensors where it trains. Raises TigerrecError if there is no such device."""
        import torch

        from tigerrec.runtime.devices import resolve_device

        return [torch.from_numpy(each).to(resolve_device(self.device)) for each in rows]


def standardisation(vectors: np.ndarray) -> State:
    """The `mean` and `std` of each column of vectors (I, D), float32 (D,); `std` is 1 where a column is constant."""
    deviation = vectors.std(axis=0, dtype=np.float64)
    return {
        "mean": vectors.mean(axis=0, dtype=np.float64).astype(np.float32),
        "std": np.where(deviation > 0, deviation, 1).astype(np.float32),
    }


def standardised(state: State, vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, D) less `mean`, divided by `std`."""
    return (vectors - state["mean"]) / state["std"]


def restored(state: State, rows: np.ndarray) -> np.ndarray:
    """The vectors (n, D) whose standardised form is given."""
    return rows * state["std"] + state["mean"]


def build_mlps(seed: int, *sizes: Sequence[int]) -> list[torch.nn.Sequential]:
    """Networks of linear layers of these sizes with ReLU between them; the global generator is left alone."""
    import torch
    from torch import nn

    networks = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for widths in sizes:
            layers = [(nn.Linear(before, after), nn.ReLU()) for before, after in itertools.pairwise(widths)]
            networks.append(nn.Sequential(*list(itertools.chain(*layers))[:-1]))
    return networks


def build_autoencoder(sizes: Sequence[int], seed: int) -> tuple[torch.nn.Sequential, torch.nn.Sequential]:
    """An encoder of these sizes and the decoder that mirrors it."""
    encoder, decoder = build_mlps(derived_seed(seed, "autoencoder weights"), sizes, sizes[::-1])
    return encoder, decoder


def networks_state(**networks: torch.nn.Sequential) -> State:
    """Networks as named arrays, `<network>.<layer>.weight|bias`."""
    return {
        f"{name}.{layer}.{part}": value.cpu().numpy()
        for name, network in networks.items()
        for layer, linear in enumerate(list(network)[::2])
        for part, value in linear.state_dict().items()
    }


def run_mlp(state: State, name: str, rows: np.ndarray) -> np.ndarray:
    """The network `encoder` or `decoder` of a state in double precision, (n, in) to (n, out)."""
    count = sum(key.startswith(f"{name}.") and key.endswith(".weight") for key in state)
    for layer in range(count):
        rows = rows @ state[f"{name}.{layer}.weight"].T.astype(np.float64) + state[f"{name}.{layer}.bias"]
        if layer < count - 1:
            rows = np.maximum(rows, 0)
    return rows


def encoded(state: State, vectors: np.ndarray) -> np.ndarray:
    """The latent vectors, float64 (n, latent), of a float64 block (n, D)."""
    return run_mlp(state, "encoder", standardised(state, vectors))


def decoded(state: State, latents: np.ndarray) -> np.ndarray:
    """The vectors, float64 (n, D), of latent vectors (n, latent)."""
    return restored(state, run_mlp(state, "decoder", latents))


@dataclass(frozen=True)
class Progress:
    """Where training stands: the epoch from 0, the share of all epochs before it, and the generator of everything
    random in a step."""

    epoch: int
    share: float
    generator: torch.Generator


def optimise(
    tokenizer: GradientTraining,
    groups: list[dict[str, Any]],
    n_items: int,
    seed: int,
    step: Callable[[torch.Tensor, Progress], torch.Tensor],
    end_epoch: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train by AdamW in shuffled batches; the learning rate falls from epoch to epoch. Parameters decay only where
    their group says so; `step` gives the loss of some items by their numbers, int64 (n,). Raises TokenizeError if the
    loss is no longer finite."""
    import torch

    optimizer = torch.optim.AdamW(groups, lr=tokenizer.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(derived_seed(seed, "tokenizer training"))
    for epoch in tqdm(range(tokenizer.epochs), desc=tokenizer.family, unit="epoch", disable=None):
        progress = Progress(epoch, epoch / tokenizer.epochs, generator)
        rate = tokenizer.learning_rate * (1 + math.cos(math.pi * progress.share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        order = torch.randperm(n_items, generator=generator).to(groups[0]["params"][0].device)
        for batch in order.split(tokenizer.batch_size):
            loss = step(batch, progress)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not math.isfinite(loss.item()):
            raise TokenizeError(
                f"The loss of {tokenizer.family} became {loss.item()} in epoch {epoch + 1} at learning rate "
                f"{rate:.3g}; lower tokenizer.learning_rate."
            )
        end_epoch(progress)
