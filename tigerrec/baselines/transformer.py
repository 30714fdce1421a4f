"""The model behind `sasrec`: a causal transformer with normalised inputs of its layers, and learned positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tigerrec.baselines.next_item import NextItemModel
from tigerrec.models.dropout import Dropout
from tigerrec.models.t5_stack import Attention, DroppedRelu, heads

INITIAL_DEVIATION = 0.02


def linear(states: Tensor, layer: nn.Linear, scale: float = 1.0) -> Tensor:
    """The output of a linear layer for inputs that stand for `scale` times as much, in the type of `states`."""
    weight = layer.weight if scale == 1 else layer.weight * scale
    return functional.linear(states, weight.to(states.dtype), layer.bias.to(states.dtype))


class Block(nn.Module):
    """Attention of each position to itself and those before it, then a feed-forward layer; both add to the states."""

    def __init__(self, dim: int, n_heads: int, hidden: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.projections, self.output = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, states: Tensor, visible: Tensor, dtype: torch.dtype, dropout: Dropout) -> Tensor:
        """The states after the block, float32 (B, n, dim)."""
        projections = linear(self.attention_norm(states).to(dtype), self.projections)
        queries, keys, values = heads(projections, 3, self.n_heads)
        attended = Attention.apply(queries * queries.shape[-1] ** -0.5, keys, values, None, visible, dropout)
        output = linear(attended.transpose(1, 2).flatten(2), self.output, dropout.scale)
        states = states + dropout(output.float() * dropout.scale)
        hidden = linear(self.feed_forward_norm(states).to(dtype), self.widen)
        hidden = DroppedRelu.apply(hidden, dropout.mask(hidden))
        return states + dropout(linear(hidden, self.narrow, dropout.scale).float() * dropout.scale)


class Transformer(NextItemModel):
    """Embeddings of items and positions, and blocks over them; the embeddings of items are the classes too."""

    def __init__(
        self, n_items: int, dim: int, n_layers: int, n_heads: int, hidden: int, max_items: int, seed: int
    ) -> None:
        super().__init__()
        self.max_items, self.bias = max_items, None
        self.classes = nn.Parameter(torch.empty(n_items, dim))
        self.positions = nn.Parameter(torch.empty(max_items, dim))
        self.blocks = nn.ModuleList(Block(dim, n_heads, hidden) for _ in range(n_layers))
        self.norm = nn.LayerNorm(dim)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=INITIAL_DEVIATION, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def states(self, items: Tensor, dtype: torch.dtype, dropout: Dropout) -> Tensor:
        """The last block's normalised states, (B, n, dim), as in `NextItemModel.states`."""
        n, dim = items.shape[1], self.classes.shape[1]
        embedded = functional.embedding(items.clamp(min=0), self.classes) * dim**0.5 + self.positions[:n]
        states = dropout(embedded * dropout.scale)
        visible = torch.ones(n, n, dtype=torch.bool, device=items.device).tril()
        for block in self.blocks:
            states = block(states, visible, dtype, dropout)
        normalised: Tensor = self.norm(states).to(dtype)
        return normalised
