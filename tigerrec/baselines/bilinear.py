"""The model behind `last_item`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tigerrec.baselines.next_item import NextItemModel
from tigerrec.dropout import Dropout

INITIAL_DEVIATION = 0.02


class Bilinear(NextItemModel):
    """A vector of each item as the last one, and one of each item as the next one with a bias."""

    max_items = 1

    def __init__(self, n_items: int, dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.last = nn.Parameter(torch.randn(n_items, dim, generator=generator) * INITIAL_DEVIATION)
        self.classes = nn.Parameter(torch.randn(n_items, dim, generator=generator) * INITIAL_DEVIATION)
        self.bias = nn.Parameter(torch.zeros(n_items))

    def states(self, items: Tensor, dtype: torch.dtype, dropout: Dropout) -> Tensor:
        """The vectors of the items, (B, n, dim), as in `NextItemModel.states`."""
        return dropout(functional.embedding(items.clamp(min=0), self.last) * dropout.scale).to(dtype)
