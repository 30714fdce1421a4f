"""What tokenizers trained by gradient share: standardised vectors, MLPs that a state can hold, and the training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from tqdm import tqdm

from tigerrec.config import AtLeastOne, Positive, options
from tigerrec.seeds import derived_seed
from tigerrec.tokenizers import State, TokenizeError

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
    """

    family: ClassVar[str]
    epochs: AtLeastOne = 200
    batch_size: AtLeastOne = 256
    learning_rate: Positive = 3e-3


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


def build_mlp(sizes: Sequence[int]) -> torch.nn.Sequential:
    """Linear layers of these sizes with ReLU between them."""
    from torch import nn

    layers = [layer for before, after in itertools.pairwise(sizes) for layer in (nn.Linear(before, after), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def build_networks(sizes: Sequence[int], seed: int) -> dict[str, torch.nn.Sequential]:
    """An `encoder` of these sizes and the `decoder` that mirrors it; the global generator is left alone."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, "autoencoder weights"))
        return {"encoder": build_mlp(sizes), "decoder": build_mlp(sizes[::-1])}


def networks_state(networks: Mapping[str, torch.nn.Sequential]) -> State:
    """Networks as named arrays, `<network>.<layer>.weight|bias`."""
    state: State = {}
    for name, network in networks.items():
        for layer, linear in enumerate(list(network)[::2]):
            state |= {f"{name}.{layer}.{part}": value.numpy() for part, value in linear.state_dict().items()}
    return state


def run_mlp(state: State, name: str, rows: np.ndarray) -> np.ndarray:
    """The network `encoder` or `decoder` of a state in double precision, (n, in) to (n, out)."""
    count = sum(key.startswith(f"{name}.") and key.endswith(".weight") for key in state)
    for layer in range(count):
        rows = rows @ state[f"{name}.{layer}.weight"].T.astype(np.float64) + state[f"{name}.{layer}.bias"]
        if layer < count - 1:
            rows = np.maximum(rows, 0)
    return rows


@dataclass(frozen=True)
class Progress:
    """Where training stands.

    Attributes:
        epoch: from 0.
        share: of all epochs, from 0 to below 1.
        generator: of everything random in a step.
    """

    epoch: int
    share: float
    generator: torch.Generator


def optimise(
    tokenizer: GradientTraining,
    groups: list[dict[str, Any]],
    n_items: int,
    seed: int,
    step: Callable[[torch.Tensor, Progress], torch.Tensor],
    *,
    before_epoch: Callable[[Progress], None] = lambda progress: None,
    after_epoch: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Train by AdamW in shuffled batches; the learning rate falls from epoch to epoch.

    Args:
        groups: the parameter groups of the optimizer; their weights decay only where they say so.
        step: the loss of some items, given their numbers, int64 (n,).

    Raises:
        TokenizeError: the loss is no longer finite.
    """
    import torch

    optimizer = torch.optim.AdamW(groups, lr=tokenizer.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(derived_seed(seed, "tokenizer training"))
    for epoch in tqdm(range(tokenizer.epochs), desc=tokenizer.family, unit="epoch", disable=None):
        progress = Progress(epoch, epoch / tokenizer.epochs, generator)
        before_epoch(progress)
        rate = tokenizer.learning_rate * (1 + math.cos(math.pi * progress.share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        for batch in torch.randperm(n_items, generator=generator).split(tokenizer.batch_size):
            loss = step(batch, progress)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not math.isfinite(loss.item()):
            raise TokenizeError(
                f"The loss of {tokenizer.family} became {loss.item()} in epoch {epoch + 1} at learning rate "
                f"{rate:.3g}; lower tokenizer.learning_rate."
            )
        after_epoch(progress)
