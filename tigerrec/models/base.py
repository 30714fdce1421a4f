"""What a generator is: its options, and what its model gives to training and to the search."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Protocol, Self, runtime_checkable

import numpy as np
from pydantic import Field

from tigerrec.tokenizers.ids import SemanticIds

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tigerrec.data.batches import Batch
    from tigerrec.models.dropout import Dropout

EncoderMask = Literal["bidirectional", "item_causal"]
BIDIRECTIONAL: Final = "bidirectional"
ITEM_CAUSAL: Final = "item_causal"
CODES: Final = "codes"
ITEMS: Final = "items"
ALL_ITEMS: Final = "all_items"
LAST_ITEM: Final = "last_item"
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
Size = Annotated[int, Field(ge=1, le=2**16)]
Layers = Annotated[int, Field(ge=1, le=2**8)]
DropoutRate = Annotated[float, Field(ge=0, le=0.99)]


@runtime_checkable
class Generator(Protocol):
    """A model family that generates the next item's tokens from a history: a frozen dataclass of sizes."""

    family: ClassVar[str]
    """The `model_type` in `config.json`, unique in this room."""

    @property
    def max_items(self) -> int:
        """How many of a history's last items are read."""

    @property
    def item_loss(self) -> float:
        """Weight of a further training loss, which predicts items as a whole."""

    def window(self, stride: int) -> int:
        """Items of a packed training window, one every `stride` items; ValueError where the family has no such."""

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> Self:
        """The sizes in a `config.json`; KeyError, TypeError or ValueError where this family did not write it."""

    def new(self, semantic_ids: SemanticIds, encoder_mask: EncoderMask, seed: int) -> HistoryModel:
        """A model with random weights for these items; `encoder_mask` is for a family with an encoder."""


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


class HistoryModel(Protocol):
    """A stock model of transformers with how it reads histories of items.

    Attributes:
        tokens: int64 (I, T), row = item index.
    """

    tokens: Tensor

    @property
    def stock(self) -> Any:
        """The model of transformers, without what else this one has."""

    @property
    def facts(self) -> dict[str, Any]:
        """How histories are read, as `config.json` says: `max_items`, the sizes of all levels and more."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def dropout_rate(self) -> float:
        """The probability of dropout in training."""

    @property
    def positions_per_item(self) -> int:
        """Positions at which one item of a history is read."""

    def n_tokens(self, n_read: np.ndarray, n_targets: np.ndarray) -> np.ndarray:
        """Tokens that pass the model for training examples, int64 (n,), given the items each reads and its targets."""

    def losses(
        self, batch: Batch, dtype: torch.dtype, dropout: Dropout, *, label_smoothing: float = 0.0,
        known: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Cross-entropies of a batch's targets, summed, in nats: the mean over a target's tokens, and of the next item
        among those `known`, else 0."""

    def decoder(self, items: Tensor, dtype: torch.dtype) -> Decoder:
        """What the search feeds after histories of item indices, int64 (B, n), padded on the right with `NO_ITEM`."""

    def stock_logits(self, history: Tensor, targets: Tensor) -> Tensor:
        """What transformers' own forward pass gives for targets of tokens (m, T) after one history of item indices
        (n,): float32 (m, T, vocabulary)."""

    def token_embeddings(self) -> list[Tensor]:
        """The embeddings of tokens."""

    def item_embeddings(self) -> list[Tensor]:
        """The embeddings of items, where the model has some."""

    def keep_only(self, items: Tensor) -> None:
        """Give up what the model holds of single items but some, int64 (n,)."""

    def with_items(self, tokens: np.ndarray) -> HistoryModel:
        """The same model with further items after its own, of tokens int64 (n, T)."""

    def weight_files(self) -> dict[str, nn.Module]:
        """The parts of the model by the names of the files that hold their weights."""

    def save_pretrained(self, folder: Path) -> None:
        """Write the model as transformers does, and what else it has."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All weights by name."""

    def to(self, device: torch.device) -> Self:
        """The model on a device."""
