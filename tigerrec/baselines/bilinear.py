"""The model behind `last_item`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tigerrec.baselines.next_item import NextItemModel
from tigerrec.models.dropout import Dropout

INITIAL_DEVIATION = 0.02


class Bilinear(NextItemModel):
    """A vector and a bias of each item, and a matrix between the vector of the last item and that of the next, which
    begins as the identity."""

    max_items = 1

    def __init__(self, n_items: int, dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.classes = nn.Parameter(torch.randn(n_items, dim, generator=generator) * INITIAL_DEVIATION)
        self.matrix = nn.Parameter(torch.eye(dim))
        self.bias = nn.Parameter(torch.zeros(n_items))

    def states(self, items: Tensor, dtype: torch.dtype, dropout: Dropout) -> Tensor:
        """The items' vectors times the matrix, (B, n, dim), as in `NextItemModel.states`."""
        vectors = functional.embedding(items.clamp(min=0), self.classes)
        return functional.linear(dropout(vectors * (dropout.scale * vectors.shape[-1] ** 0.5)), self.matrix).to(dtype)
