"""A stock T5 that reads histories of items: what its encoder is given and what each position sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from tigerrec.data.batches import Batch
from tigerrec.models import masks, t5_stack
from tigerrec.models.base import ITEM_CAUSAL, LAST_ITEM, USER_TOKENS
from tigerrec.models.dropout import Dropout
from tigerrec.models.history_module import HistoryModule
from tigerrec.models.losses import IGNORED, CrossEntropy
from tigerrec.tokenizers.ids import PAD

INPUT_MODULE = "input_module.safetensors"


class ItemInputs(nn.Module):
    """One encoder position an item: a projection of the embeddings of its tokens plus an embedding of its own.

    An item that training never reads has an embedding of zeros: it is read by its tokens alone.

    Args:
        n_items: rows of the item embeddings.
        n_levels: tokens an item.
        d_model: width of the hidden states.
    """

    def __init__(self, n_items: int, n_levels: int, d_model: int) -> None:
        super().__init__()
        self.code_projection = nn.Linear(n_levels * d_model, d_model, bias=False)
        nn.init.normal_(self.code_projection.weight, std=(n_levels * d_model) ** -0.5)
        self.item_embeddings = nn.Embedding(n_items, d_model)

    @staticmethod
    def of(arrays: dict[str, Tensor], n_items: int) -> ItemInputs:
        """The module of saved arrays; items beyond those it was saved with have no embedding."""
        known, d_model = arrays["item_embeddings.weight"].shape
        module = ItemInputs(n_items, arrays["code_projection.weight"].shape[1] // d_model, d_model)
        with torch.no_grad():
            module.code_projection.weight.copy_(arrays["code_projection.weight"])
            module.item_embeddings.weight.zero_()[:known] = arrays["item_embeddings.weight"]
        return module

    def forward(self, items: Tensor, token_embeddings: Tensor, dtype: torch.dtype, dropout: Dropout) -> Tensor:
        """Encoder inputs, float32 (B, n, d).

        Args:
            items: int64 (B, n).
            token_embeddings: float32 (B, n, T, d).
            dropout: of the item embeddings.
        """
        projected = t5_stack.linear(token_embeddings.flatten(2).to(dtype), self.code_projection).float()
        return projected + dropout(self.item_embeddings(items) * dropout.scale)


class HistoryT5(HistoryModule):
    """A stock T5 with how it reads histories.

    Args:
        t5: `config.tigerrec` says what the encoder reads and under which mask.
        tokens: int64 (I, T), row = item index.
        inputs: of the encoder, where it reads one position an item.
    """

    def __init__(self, t5: Any, tokens: np.ndarray, inputs: ItemInputs | None = None) -> None:
        super().__init__(tokens)
        self.t5, self.inputs = t5.eval(), inputs

    @property
    def stock(self) -> Any:
        """The T5 of transformers."""
        return self.t5

    @property
    def dropout_rate(self) -> float:
        """The probability of dropout in training."""
        return float(self.t5.config.dropout_rate)

    @property
    def positions_per_item(self) -> int:
        """Encoder positions of one item."""
        return self.n_levels if self.inputs is None else 1

    def with_items(self, tokens: np.ndarray, vectors: np.ndarray | None = None) -> HistoryT5:
        """The same model with further items after its own, of tokens int64 (n, T), without item embeddings."""
        tokens = np.concatenate([self.tokens.cpu().numpy(), tokens])
        inputs = None if self.inputs is None else ItemInputs.of(self.inputs.state_dict(), len(tokens))
        return HistoryT5(self.t5, tokens, inputs).to(self.device)

    def n_tokens(self, n_read: np.ndarray, n_targets: np.ndarray) -> np.ndarray:
        """Encoder and decoder tokens that pass the model for training examples, int64 (n,)."""
        return self.reads_users + n_read * self.positions_per_item + n_targets * self.n_levels

    @property
    def reads_users(self) -> bool:
        """Whether a token of the user stands before a history."""
        return USER_TOKENS in self.facts

    def of_users(self, users: Tensor) -> OfUsers:
        """The model as the reader of the histories of some users, int64 (B,)."""
        return OfUsers(self, users)

    def _of_users(self, users: Tensor | None, n_rows: int) -> Tensor:
        """The embeddings of users' tokens, the last of the vocabulary, or their mean, float32 (n_rows, 1, d)."""
        embeddings = self.t5.shared.weight[-self.facts[USER_TOKENS] :]
        of_rows = embeddings.mean(0).expand(n_rows, -1) if users is None else embeddings[users % len(embeddings)]
        return of_rows[:, None]

    def item_embeddings(self) -> list[Tensor]:
        """The embeddings of items, where the encoder reads them."""
        return [] if self.inputs is None else [self.inputs.item_embeddings.weight]

    def weight_files(self) -> dict[str, nn.Module]:
        """The T5, and its input module where it has one."""
        return super().weight_files() | ({} if self.inputs is None else {INPUT_MODULE: self.inputs})

    def save_pretrained(self, folder: Path) -> None:
        """Write the model as transformers does, and its input module where it has one."""
        super().save_pretrained(folder)
        if self.inputs is not None:
            arrays = {name: tensor.detach().cpu().contiguous() for name, tensor in self.inputs.state_dict().items()}
            save_file(arrays, folder / INPUT_MODULE)

    def _encoder_visible(self, items: Tensor) -> Tensor | None:
        """Which encoder positions (last) a position sees, bool; None = all."""
        if self.facts["encoder_mask"] == ITEM_CAUSAL:  # padding stands on the right, where no item sees it
            mask = masks.item_causal(items.shape[1], self.positions_per_item, items.device)
            return masks.after_the_user(mask) if self.reads_users else mask
        return self._encoder_mask(items).bool()[:, None, None, :]

    def _encoder_mask(self, items: Tensor) -> Tensor:
        """Which encoder positions have something to read, int64 (B, S)."""
        return functional.pad(self.attention_mask(items), (int(self.reads_users), 0), value=1)

    def attention_mask(self, items: Tensor) -> Tensor:
        """The two-dimensional mask of transformers, int64 (B, S): 1 where a history (B, n) has an item."""
        return masks.of_items(items, self.positions_per_item)

    def encode(
        self,
        items: Tensor,
        dtype: torch.dtype = torch.float32,
        dropout: Dropout | None = None,
        users: Tensor | None = None,
    ) -> Tensor:
        """The encoder's output for histories of item indices, float32 (B, S, d).

        Args:
            items: int64 (B, n), oldest first, padded on the right with `NO_ITEM`.
            dtype: of the matrix products.
            users: whose histories they are, int64 (B,), where the model reads users.
        """
        dropout = dropout or Dropout(0.0)
        items_or_any = items.clamp(min=0)
        tokens = self.t5.shared(self.tokens[items_or_any])
        read = tokens.flatten(1, 2) if self.inputs is None else self.inputs(items_or_any, tokens, dtype, dropout)
        if self.reads_users:
            read = torch.cat([self._of_users(users, len(items)), read], dim=1)
        return t5_stack.encode(self.t5, read, self._encoder_visible(items), dtype, dropout)

    def read(
        self, items: Tensor, dtype: torch.dtype = torch.float32, users: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the decoder attends to for histories of item indices (B, n): the encoder's output, float32 (B, S, d),
        and its mask, int64 (B, S)."""
        encoded, mask = self.encode(items, dtype, users=users), self._encoder_mask(items)
        if self.facts["decoder_reads"] != LAST_ITEM:
            return encoded, mask
        last = self._at_items(encoded, (items >= 0).sum(1, keepdim=True) - 1)
        return last, torch.ones_like(mask[:, : last.shape[1]])

    def decoder(self, items: Tensor, dtype: torch.dtype, users: Tensor | None = None) -> t5_stack.T5Decoder:
        """A decoder that has read histories of item indices (B, n)."""
        return t5_stack.T5Decoder(self.t5, *self.read(items, dtype, users), self.n_levels, dtype)

    def _at_items(self, encoded: Tensor, places: Tensor) -> Tensor:
        """The encoder's output (B, S, d) at items (B, m) of each history, (B * m, positions of an item, d)."""
        by_item = encoded[:, int(self.reads_users) :].unflatten(1, (-1, self.positions_per_item)).flatten(2)
        chosen = by_item.gather(1, places[:, :, None].expand(-1, -1, by_item.shape[2]))
        return chosen.view(-1, self.positions_per_item, encoded.shape[2])

    def target_logits(self, batch: Batch, dtype: torch.dtype, dropout: Dropout) -> tuple[Tensor, Tensor]:
        """The logits of a batch's targets, and the encoder's output, which all targets of a row share."""
        encoded = self.encode(batch.items, dtype, dropout, batch.users)
        inputs = functional.pad(self.tokens[batch.targets.clamp(min=0)][:, :, :-1], (1, 0), value=PAD)
        if self.facts["decoder_reads"] == LAST_ITEM:
            last = self._at_items(encoded, self._before(batch))
            return t5_stack.decode(self.t5, last, inputs.flatten(0, 1)[:, None], None, dtype, dropout), encoded
        n_items = batch.items.shape[1]
        visible = masks.before_targets(batch.n_visible, n_items, self.positions_per_item, self.n_levels)
        visible = functional.pad(visible, (int(self.reads_users), 0), value=True)
        return t5_stack.decode(self.t5, encoded, inputs, visible, dtype, dropout), encoded

    @staticmethod
    def _before(batch: Batch) -> Tensor:
        """Where in its row the item before each target stands, int64 (B, m); any place for an absent target."""
        return (batch.n_visible - 1).expand_as(batch.targets).clamp(max=batch.items.shape[1] - 1)

    def item_loss(self, states: Tensor, batch: Batch, dtype: torch.dtype, known: Tensor) -> Tensor:
        """Cross-entropy of the next item given the encoder's output at the item before it, summed over targets."""
        assert self.inputs is not None
        weight = self.inputs.item_embeddings.weight[known] * self.t5.model_dim**-0.5
        before = self._at_items(states, self._before(batch)).flatten(0, 1)
        logits = functional.linear(before.to(dtype), weight.to(dtype))
        labels = torch.searchsorted(known, batch.targets.clamp(min=0)).masked_fill(batch.targets < 0, IGNORED)
        return CrossEntropy.apply(logits, labels.flatten(), 0.0)


@dataclass(frozen=True)
class OfUsers:
    """A T5 that knows whose histories it reads.

    Attributes:
        users: int64 (B,), their numbers in the prepared data.
    """

    model: HistoryT5
    users: Tensor

    def decoder(self, items: Tensor, dtype: torch.dtype) -> t5_stack.T5Decoder:
        """A decoder that has read the users' histories of item indices (B, n)."""
        return self.model.decoder(items, dtype, self.users)
