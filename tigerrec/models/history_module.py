"""What every generator's network has in common: a stock model of transformers and the tokens of all items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tigerrec.data.batches import Batch
from tigerrec.models.base import WEIGHTS
from tigerrec.models.dropout import Dropout
from tigerrec.models.losses import IGNORED, CrossEntropy
from tigerrec.tokenizers.trie import Trie


class HistoryModule(nn.Module):
    """The part of `HistoryModel` that does not depend on the family; items have no weights of their own here.

    Args:
        tokens: int64 (I, T), row = item index.
    """

    tokens: Tensor

    def __init__(self, tokens: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.from_numpy(tokens), persistent=False)

    @property
    def stock(self) -> Any:
        """The model of transformers."""
        raise NotImplementedError

    @property
    def facts(self) -> dict[str, Any]:
        """How histories are read, as `config.json` says it."""
        facts: dict[str, Any] = self.stock.config.tigerrec
        return facts

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tokens.device

    @property
    def n_levels(self) -> int:
        """Tokens an item."""
        return self.tokens.shape[1]

    @property
    def positions_per_item(self) -> int:
        """Positions at which one item of a history is read."""
        return self.n_levels

    @property
    def scores_vocabulary(self) -> bool:
        """Its probabilities lie on the whole vocabulary."""
        return True

    @property
    def scores_items(self) -> bool:
        """No item head."""
        return False

    @property
    def reads_vectors(self) -> bool:
        """No vectors of items."""
        return False

    @property
    def reads_users(self) -> bool:
        """Nothing of users."""
        return False

    def along(self, trie: Trie) -> Any:
        """The model itself, which needs nothing else for a search along a trie."""
        return self

    def token_embeddings(self) -> list[Tensor]:
        """The embeddings of tokens, which are the output layer too."""
        return [self.stock.get_input_embeddings().weight]

    def item_embeddings(self) -> list[Tensor]:
        """The embeddings of items: none."""
        return []

    @torch.no_grad()
    def keep_only(self, items: Tensor, learned: Tensor) -> None:
        """Give up the embeddings of all items but those that training changes, int64 (m,)."""
        for weight in self.item_embeddings():
            kept = weight[learned]
            weight.zero_()[learned] = kept

    def weight_files(self) -> dict[str, nn.Module]:
        """The parts of the model by file: the stock model."""
        return {WEIGHTS: self.stock}

    def save_pretrained(self, folder: Path) -> None:
        """Write the model as transformers does."""
        self.stock.save_pretrained(folder)

    def member_parameters(self) -> list[list[nn.Parameter]]:
        """All parameters: the model is one."""
        return [list(self.parameters())]

    def losses(
        self, batch: Batch, dtype: torch.dtype, dropout: Dropout, *, label_smoothing: float = 0.0,
        known: Tensor | None = None, member: int = 0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Summed cross-entropies of a batch's targets, in nats.

        Args:
            known: int64 (n,): the items among which the next is predicted as a whole; None = it is not.

        Returns:
            Of the tokens, over the whole vocabulary, divided by the number of tokens an item; of the next item, or 0.
        """
        logits, states = self.target_logits(batch, dtype, dropout)
        labels = self.tokens[batch.targets.clamp(min=0)].masked_fill((batch.targets < 0)[:, :, None], IGNORED)
        token_loss = CrossEntropy.apply(logits.flatten(0, 2), labels.flatten(), label_smoothing)
        item_loss = torch.zeros_like(token_loss) if known is None else self.item_loss(states, batch, dtype, known)
        return token_loss / self.n_levels, item_loss

    def target_logits(self, batch: Batch, dtype: torch.dtype, dropout: Dropout) -> tuple[Tensor, Tensor]:
        """The logits of the tokens of a batch's targets, (B, M, T, vocabulary), and the states of its histories."""
        raise NotImplementedError

    def item_loss(self, states: Tensor, batch: Batch, dtype: torch.dtype, known: Tensor) -> Tensor:
        """Cross-entropy of the next items as a whole, summed over targets: none here."""
        return states.new_zeros(())
