"""What a model family gives to training and to the search: how it reads histories, and the next token's
probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tigerrec.batches import Batch
    from tigerrec.dropout import Dropout


class Decoder(Protocol):
    """A model that has read the histories of some users, fed one token a beam at each level."""

    def step(self, tokens: Tensor, ancestors: Tensor) -> Tensor:
        """Feed one token a beam; at the first level the start token, once a user.

        Args:
            tokens: int64 (B, K).
            ancestors: int64 (B, K, depth + 1): each beam's slot among the tokens fed at every depth, itself last.

        Returns:
            The log-probabilities of the next token over the whole vocabulary, float32 (B, K, vocabulary).
        """
        ...


class HistoryModel(Protocol):
    """A stock model of transformers with how it reads histories of items.

    Attributes:
        tokens: int64 (I, T), row = item index.
    """

    tokens: Tensor

    @property
    def stock(self) -> Any:
        """The model of transformers, without what else this one has."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What `config.json` says of the reading of histories, `max_items` and the sizes of all levels among it."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def dropout_rate(self) -> float:
        """The probability of dropout in training."""
        ...

    @property
    def positions_per_item(self) -> int:
        """Positions at which one item of a history is read."""
        ...

    def n_tokens(self, n_read: np.ndarray, n_targets: np.ndarray) -> np.ndarray:
        """Tokens that pass the model for training examples, int64 (n,), given the items each reads and its targets."""
        ...

    def losses(
        self,
        batch: Batch,
        dtype: torch.dtype,
        dropout: Dropout,
        *,
        label_smoothing: float = 0.0,
        known: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Summed cross-entropies of a batch's targets, in nats: the mean over a target's tokens, and of the next item
        among those `known`, else 0."""
        ...

    def decoder(self, items: Tensor, dtype: torch.dtype) -> Decoder:
        """What the search feeds after histories of item indices, int64 (B, n), padded on the right with `NO_ITEM`."""
        ...

    def stock_logits(self, history: Tensor, targets: Tensor) -> Tensor:
        """What transformers' own forward pass gives for some targets after one history, (m, T, vocabulary).

        Args:
            history: int64 (n,), item indices.
            targets: int64 (m, T), tokens.
        """
        ...

    def token_embeddings(self) -> list[Tensor]:
        """The embeddings of tokens."""
        ...

    def item_embeddings(self) -> list[Tensor]:
        """The embeddings of items, where the model has some."""
        ...

    def keep_only(self, items: Tensor) -> None:
        """Give up what the model holds of single items but some, int64 (n,)."""
        ...

    def with_items(self, tokens: np.ndarray) -> HistoryModel:
        """The same model with further items after its own, of tokens int64 (n, T)."""
        ...

    def save_pretrained(self, folder: Path) -> None:
        """Write the model as transformers does, and what else it has."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All weights by name."""
        ...

    def to(self, device: torch.device) -> Self:
        """The model on a device."""
        ...
