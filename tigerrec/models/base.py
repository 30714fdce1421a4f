"""What a generator is: its options, and what its model gives to training and to the search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Protocol, Self, runtime_checkable

import numpy as np
from pydantic import Field

from tigerrec.tokenizers.ids import PAD, SemanticIds

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tigerrec.data.batches import Batch
    from tigerrec.models.dropout import Dropout
    from tigerrec.tokenizers.trie import Trie

EncoderMask = Literal["bidirectional", "item_causal"]
BIDIRECTIONAL: Final = "bidirectional"
ITEM_CAUSAL: Final = "item_causal"
CODES: Final = "codes"
ITEMS: Final = "items"
ALL_ITEMS: Final = "all_items"
LAST_ITEM: Final = "last_item"
VECTORS: Final = "vectors"
USER_TOKENS: Final = "user_tokens"
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
    def needs(self) -> tuple[str, ...]:
        """Further vectors of items that it reads: `vectors`, or nothing."""

    @property
    def scores_items(self) -> bool:
        """Whether its models score items as a whole beside their codes."""

    @property
    def item_loss(self) -> float:
        """Weight of a further training loss, which predicts items as a whole."""

    def window(self, stride: int) -> int:
        """Items of a packed training window, one every `stride` items; ValueError where the family has no such."""

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> Self:
        """The sizes in a `config.json`; KeyError, TypeError or ValueError where this family did not write it."""

    def new(
        self, semantic_ids: SemanticIds, encoder_mask: EncoderMask, seed: int, vectors: np.ndarray | None = None
    ) -> HistoryModel:
        """A model with random weights for these items; `encoder_mask` is for a family with an encoder, vectors of the
        items, float32 (I, D), for one that needs them."""


@dataclass(frozen=True)
class Beams:
    """The prefixes of B users that the search follows at one level, and what may come after each.

    Attributes:
        depth: tokens of a prefix.
        nodes: int64 (B, K): each prefix's node in the trie.
        tokens: int64 (B, K): its last token; the start token at depth 0, where K is 1.
        ancestors: int64 (B, K, depth + 1): its slot among the prefixes of every depth, itself last.
        children: int64 (B, K, C): the nodes one level deeper, in any order where they do not exist.
        child_tokens: int64 (B, K, C): their tokens.
        exists: bool (B, K, C): which of them exist.
    """

    depth: int
    nodes: Tensor
    tokens: Tensor
    ancestors: Tensor
    children: Tensor
    child_tokens: Tensor
    exists: Tensor

    @classmethod
    def at(cls, nodes: Tensor, ancestors: Tensor, trie: Trie) -> Beams:
        """The prefixes that end at nodes of a trie, int64 (B, K), all of the depth that their ancestors say."""
        depth = ancestors.shape[2] - 1
        tokens = trie.token[depth - 1][nodes] if depth else nodes.new_full(nodes.shape, PAD)
        children, exists = trie.children(depth, nodes)
        return cls(depth, nodes, tokens, ancestors, children, trie.token[depth][children], exists)


class Decoder(Protocol):
    """A model that has read the histories of some users, asked level by level what follows their prefixes."""

    def step(self, beams: Beams) -> Tensor:
        """The log-probability of each child given its prefix, float32 (B, K, C), any number where it does not exist;
        called once a level, from the root down."""


class ScoresItems(Decoder, Protocol):
    """A decoder of a model that scores items as a whole too."""

    def item_scores(self) -> Tensor:
        """The log-probability of each item of the model, float32 (B, I); -inf of those it knows nothing of."""

    def unseen_items(self) -> Tensor:
        """The items that training never saw, int64 (n,)."""


class Reader(Protocol):
    """A model with all that it needs for searches along one trie."""

    def decoder(self, items: Tensor, dtype: torch.dtype) -> Decoder:
        """What the search asks after histories of item indices, int64 (B, n), padded on the right with `NO_ITEM`."""


class ReadsUsers(Protocol):
    """A reader that may be told whose histories it reads."""

    def of_users(self, users: Tensor) -> Reader:
        """The reader of the histories of some users, int64 (B,), their numbers in the prepared data."""


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

    @property
    def scores_vocabulary(self) -> bool:
        """Whether the probabilities of tokens lie on the whole vocabulary, not on the children of a node alone."""

    @property
    def scores_items(self) -> bool:
        """Whether its decoders score items as a whole too."""

    @property
    def reads_vectors(self) -> bool:
        """Whether it reads a vector of each item."""

    @property
    def reads_users(self) -> bool:
        """Whether it reads whose history it is; then it is a `ReadsUsers`."""

    def n_tokens(self, n_read: np.ndarray, n_targets: np.ndarray) -> np.ndarray:
        """Tokens that pass the model for training examples, int64 (n,), given the items each reads and its targets."""

    def member_parameters(self) -> list[list[nn.Parameter]]:
        """What is learned, by member: the networks that are trained apart and scored as one; most models are one."""

    def losses(
        self, batch: Batch, dtype: torch.dtype, dropout: Dropout, *, label_smoothing: float = 0.0,
        known: Tensor | None = None, member: int = 0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Cross-entropies of a batch's targets by a member, summed, in nats: the mean over a target's tokens, or their
        sum, as the family has it, and of the next item among those `known`, else 0."""

    def along(self, trie: Trie) -> Reader:
        """The model, ready to search along a trie of items of its own."""

    def token_embeddings(self) -> list[Tensor]:
        """The embeddings of tokens."""

    def item_embeddings(self) -> list[Tensor]:
        """The embeddings of items, where the model has some."""

    def keep_only(self, items: Tensor, learned: Tensor) -> None:
        """Give up what the model holds of single items but those of training, int64 (n,), and their embeddings but
        those that training changes, int64 (m,)."""

    def with_items(self, tokens: np.ndarray, vectors: np.ndarray | None = None) -> HistoryModel:
        """The same model with further items after its own, of tokens int64 (n, T), and vectors float32 (n, D) where it
        needs them."""

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
