"""A stock GPT-2 that reads histories of items as one sequence of tokens, and continues it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tigerrec.data.batches import NO_ITEM, Batch
from tigerrec.models import gpt2_stack
from tigerrec.models.base import WEIGHTS
from tigerrec.models.dropout import Dropout
from tigerrec.models.t5_stack import IGNORED, CrossEntropy
from tigerrec.tokenizers.ids import PAD


class HistoryGPT2(nn.Module):
    """A stock GPT-2 with how it reads histories: the start token, then the tokens of all items.

    Each item is predicted token by token: its first token at the last token of the item before it (or at the start
    token), each other at the one before it.

    Args:
        gpt2: `config.tigerrec` says how many items are read.
        tokens: int64 (I, T), row = item index.
    """

    tokens: Tensor

    def __init__(self, gpt2: Any, tokens: np.ndarray) -> None:
        super().__init__()
        self.gpt2 = gpt2.eval()
        self.register_buffer("tokens", torch.from_numpy(tokens), persistent=False)

    def with_items(self, tokens: np.ndarray) -> HistoryGPT2:
        """The same model with further items after its own, of tokens int64 (n, T)."""
        return HistoryGPT2(self.gpt2, np.concatenate([self.tokens.cpu().numpy(), tokens])).to(self.device)

    @property
    def stock(self) -> Any:
        """The model of transformers."""
        return self.gpt2

    @property
    def facts(self) -> dict[str, Any]:
        """How histories are read: `history`, `max_items` and the sizes of all levels."""
        facts: dict[str, Any] = self.gpt2.config.tigerrec
        return facts

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tokens.device

    @property
    def dropout_rate(self) -> float:
        """The probability of dropout in training."""
        rate: float = self.gpt2.config.resid_pdrop
        return rate

    @property
    def positions_per_item(self) -> int:
        """Positions at which one item of a history is read."""
        return self.tokens.shape[1]

    def n_tokens(self, n_read: np.ndarray, n_targets: np.ndarray) -> np.ndarray:
        """Tokens that pass the model for training examples, int64 (n,); targets but the last are among the items
        read."""
        return (n_read + 1) * self.tokens.shape[1]

    def token_embeddings(self) -> list[Tensor]:
        """The embeddings of tokens, which are the output layer too."""
        return [self.gpt2.transformer.wte.weight]

    def item_embeddings(self) -> list[Tensor]:
        """None: items are read by their tokens alone."""
        return []

    def keep_only(self, items: Tensor) -> None:
        """Nothing is held of single items."""

    def weight_files(self) -> dict[str, nn.Module]:
        """The GPT-2."""
        return {WEIGHTS: self.gpt2}

    def save_pretrained(self, folder: Path) -> None:
        """Write the model as transformers does."""
        self.gpt2.save_pretrained(folder)

    def sequence(self, items: Tensor) -> Tensor:
        """The start token and the tokens of histories of item indices (B, n), int64 (B, 1 + n * T), `PAD` where there
        is no item."""
        tokens = self.tokens[items.clamp(min=0)].masked_fill((items < 0)[:, :, None], PAD)
        return functional.pad(tokens.flatten(1), (1, 0), value=PAD)

    def losses(
        self,
        batch: Batch,
        dtype: torch.dtype,
        dropout: Dropout,
        *,
        label_smoothing: float = 0.0,
        known: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Summed cross-entropies of a batch's targets, in nats.

        A row's items and last target pass once; each target is given all that is before it.

        Args:
            known: without meaning here: no item is predicted as a whole.

        Returns:
            Of the tokens, over the whole vocabulary, divided by the number of tokens an item; 0.
        """
        n_levels = self.tokens.shape[1]
        is_target = batch.targets >= 0
        places = batch.n_visible.expand_as(batch.targets)
        beyond = batch.items.shape[1] + 1  # where absent targets are written
        items = functional.pad(batch.items, (0, 2), value=NO_ITEM).scatter(
            1, places.masked_fill(~is_target, beyond), batch.targets
        )[:, :-1]
        states = gpt2_stack.read_sequence(self.gpt2, self.sequence(items)[:, :-1], dtype, dropout)
        by_item = states.unflatten(1, (-1, n_levels)).flatten(2)  # row j: the positions that predict item j
        chosen = by_item.gather(1, places.clamp(max=beyond - 1)[:, :, None].expand(-1, -1, by_item.shape[2]))
        logits = gpt2_stack.next_token_logits(self.gpt2, chosen.unflatten(2, (n_levels, -1)), dtype)
        labels = self.tokens[batch.targets.clamp(min=0)].masked_fill(~is_target[:, :, None], IGNORED)
        token_loss = CrossEntropy.apply(logits.flatten(0, 2), labels.flatten(), label_smoothing)
        return token_loss / n_levels, torch.zeros_like(token_loss)

    def decoder(self, items: Tensor, dtype: torch.dtype) -> gpt2_stack.GPT2Decoder:
        """What the search feeds after histories of item indices, int64 (B, n), padded on the right with `NO_ITEM`."""
        lengths = 1 + (items >= 0).sum(1) * self.positions_per_item
        return gpt2_stack.GPT2Decoder(self.gpt2, self.sequence(items), lengths, dtype)

    def stock_logits(self, history: Tensor, targets: Tensor) -> Tensor:
        """What transformers' own forward pass gives for some targets after one history, (m, T, vocabulary).

        Args:
            history: int64 (n,), item indices.
            targets: int64 (m, T), tokens.
        """
        input_ids = torch.cat([self.sequence(history[None]).expand(len(targets), -1), targets[:, :-1]], dim=1)
        logits: Tensor = self.gpt2(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits
        return logits[:, -targets.shape[1] :]
