"""A stock GPT-2 that reads histories of items as one sequence of tokens, and continues it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tigerrec.data.batches import NO_ITEM, Batch
from tigerrec.models import gpt2_stack
from tigerrec.models.dropout import Dropout
from tigerrec.models.history_module import HistoryModule
from tigerrec.tokenizers.ids import PAD


class HistoryGPT2(HistoryModule):
    """A stock GPT-2 with how it reads histories: the start token, then the tokens of all items.

    Each item is predicted token by token: its first token at the last token of the item before it (or at the start
    token), each other at the one before it.

    Args:
        gpt2: `config.tigerrec` says how many items are read.
        tokens: int64 (I, T), row = item index.
    """

    def __init__(self, gpt2: Any, tokens: np.ndarray) -> None:
        super().__init__(tokens)
        self.gpt2 = gpt2.eval()

    @property
    def stock(self) -> Any:
        """The GPT-2 of transformers."""
        return self.gpt2

    @property
    def dropout_rate(self) -> float:
        """The probability of dropout in training."""
        return float(self.gpt2.config.resid_pdrop)

    def with_items(self, tokens: np.ndarray, vectors: np.ndarray | None = None) -> HistoryGPT2:
        """The same model with further items after its own, of tokens int64 (n, T)."""
        return HistoryGPT2(self.gpt2, np.concatenate([self.tokens.cpu().numpy(), tokens])).to(self.device)

    def n_tokens(self, n_read: np.ndarray, n_targets: np.ndarray) -> np.ndarray:
        """Tokens that pass the model for training examples, int64 (n,); all targets but one are read too."""
        return (n_read + 1) * self.n_levels

    def sequence(self, items: Tensor) -> Tensor:
        """The start token and the tokens of histories of item indices (B, n), int64 (B, 1 + n * T), `PAD` where there
        is no item."""
        tokens = self.tokens[items.clamp(min=0)].masked_fill((items < 0)[:, :, None], PAD)
        return functional.pad(tokens.flatten(1), (1, 0), value=PAD)

    def target_logits(self, batch: Batch, dtype: torch.dtype, dropout: Dropout) -> tuple[Tensor, Tensor]:
        """The logits of a batch's targets, each given all before it: a row's items and last target pass once."""
        places = batch.n_visible.expand_as(batch.targets)
        beyond = batch.items.shape[1] + 1  # where absent targets are written
        items = functional.pad(batch.items, (0, 2), value=NO_ITEM).scatter(
            1, places.masked_fill(batch.targets < 0, beyond), batch.targets
        )[:, :-1]
        states = gpt2_stack.read_sequence(self.gpt2, self.sequence(items)[:, :-1], dtype, dropout)
        by_item = states.unflatten(1, (-1, self.n_levels)).flatten(2)  # row j: the positions that predict item j
        chosen = by_item.gather(1, places.clamp(max=beyond - 1)[:, :, None].expand(-1, -1, by_item.shape[2]))
        return gpt2_stack.next_token_logits(self.gpt2, chosen.unflatten(2, (self.n_levels, -1)), dtype), states

    def decoder(self, items: Tensor, dtype: torch.dtype) -> gpt2_stack.GPT2Decoder:
        """A decoder that has read histories of item indices (B, n)."""
        lengths = 1 + (items >= 0).sum(1) * self.positions_per_item
        return gpt2_stack.GPT2Decoder(self.gpt2, self.sequence(items), lengths, dtype)
