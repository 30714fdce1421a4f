"""The model behind `bsarec`: blocks that mix attention with a filter of frequencies (Shin et al. 2024, arXiv
2312.10325)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tigerrec.baselines.next_item import NextItemModel
from tigerrec.baselines.transformer import INITIAL_DEVIATION, linear
from tigerrec.data.batches import NO_ITEM, padded
from tigerrec.models.dropout import Dropout
from tigerrec.models.t5_stack import Attention, heads

if TYPE_CHECKING:
    from tigerrec.baselines.bsarec import BSARec


def slow_part(n: int, n_frequencies: int) -> Tensor:
    """What a sequence of n values is multiplied by to leave its mean and its lowest frequencies, float32 (n, n)."""
    spectrum = torch.fft.rfft(torch.eye(n, dtype=torch.float64), dim=0)
    spectrum[n_frequencies + 1 :] = 0
    return torch.fft.irfft(spectrum, n, dim=0).float()


class FilteredBlock(nn.Module):
    """A filter and attention side by side, then a feed-forward layer; all are added to what they read, and the sums
    normalised."""

    def __init__(self, options: BSARec) -> None:
        super().__init__()
        dim, hidden = options.dim, options.expansion * options.dim
        self.n_heads, self.filter_share = options.heads, options.filter_share
        self.root_of_fast = nn.Parameter(torch.empty(dim))
        self.projections, self.output = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.filter_norm, self.attention_norm, self.feed_forward_norm = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, states: Tensor, slow: Tensor, visible: Tensor, dtype: torch.dtype, dropout: Dropout) -> Tensor:
        """The states after the block, float32 (B, n, dim), of states that are zero where there is no item."""
        of_slow = slow @ states
        filtered = of_slow + self.root_of_fast.square() * (states - of_slow)
        filtered = self.filter_norm(states + dropout(filtered * dropout.scale))
        queries, keys, values = heads(linear(states.to(dtype), self.projections), 3, self.n_heads)
        attended = Attention.apply(queries * queries.shape[-1] ** -0.5, keys, values, None, visible, dropout)
        attended = linear(attended.transpose(1, 2).flatten(2), self.output, dropout.scale)
        attended = self.attention_norm(states + dropout(attended.float() * dropout.scale))
        mixed = self.filter_share * filtered + (1 - self.filter_share) * attended
        fed = linear(functional.gelu(linear(mixed.to(dtype), self.widen)), self.narrow)
        output: Tensor = self.feed_forward_norm(mixed + dropout(fed.float() * dropout.scale))
        return output


class FilteredTransformer(NextItemModel):
    """Embeddings of items and of places counted from the last, and blocks over them; the embeddings of items are the
    classes too."""

    slow: Tensor

    def __init__(self, n_items: int, options: BSARec, seed: int) -> None:
        super().__init__()
        self.max_items, self.bias = options.max_items, None
        self.classes = nn.Parameter(torch.empty(n_items, options.dim))
        self.positions = nn.Parameter(torch.empty(options.max_items, options.dim))
        self.norm = nn.LayerNorm(options.dim)
        self.blocks = nn.ModuleList(FilteredBlock(options) for _ in range(options.layers))
        self.register_buffer("slow", slow_part(options.max_items, options.slow_frequencies), persistent=False)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("root_of_fast"):
                nn.init.normal_(parameter, generator=generator)
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=INITIAL_DEVIATION, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def read(self, items: Tensor, dtype: torch.dtype, dropout: Dropout) -> Tensor:
        """The state at the last item of histories (B, n), `NO_ITEM` on the left where one is shorter, (B, dim)."""
        n, exists = items.shape[1], items != NO_ITEM
        embedded = functional.embedding(items.clamp(min=0), self.classes) + self.positions[-n:]
        states = dropout(self.norm(embedded) * dropout.scale) * exists[:, :, None]
        visible = torch.ones(n, n, dtype=torch.bool, device=items.device).tril() & exists[:, None, None, :]
        visible = visible | torch.eye(n, dtype=torch.bool, device=items.device)
        for block in self.blocks:
            states = block(states, self.slow[-n:, -n:], visible, dtype, dropout) * exists[:, :, None]
        return states[:, -1].to(dtype)

    def states(self, items: Tensor, dtype: torch.dtype, dropout: Dropout) -> Tensor:
        """The state after each item, read as the last of a history of its own, as in `NextItemModel.states`."""
        n = items.shape[1]
        places = torch.arange(n, device=items.device)
        place = places[:, None] - places.flip(0)  # (end, place): of an item in a row
        histories = items[:, place.clamp(min=0)].masked_fill(place < 0, NO_ITEM).flatten(0, 1)
        return self.read(histories, dtype, dropout).view(*items.shape, -1)

    def last_states(self, histories: Sequence[np.ndarray]) -> Tensor:
        """As in `NextItemModel.last_states`, at the cost of one reading of each history."""
        items = padded([history[::-1] for history in histories]).flip(1)
        return self.read(items.to(self.classes.device), torch.float32, Dropout(0.0))
