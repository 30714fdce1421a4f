"""The blocks of a stock GPT-2 (Radford et al. 2019), driven with attention of our own.

They compute what the modules of transformers compute, with their weights. What differs is cost: dropout is cheap, and
all beams of a user share the keys and values of the history.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tigerrec.models.base import Beams
from tigerrec.models.dropout import Dropout
from tigerrec.models.t5_stack import NO_DROPOUT, Attention, Cache, heads, is_ancestor, with_earlier

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries, keys, values), each (B, H, n, width) → attended values, (B, H, n, width); the queries are scaled."""


def affine(states: Tensor, layer: Any, scale: float = 1.0, bias_scale: float = 1.0) -> Tensor:
    """The output of a linear layer with bias, its weight (in, out) times `scale` and its bias times `bias_scale`, in
    the type of `states`."""
    weight = layer.weight if scale == 1 else layer.weight * scale
    bias = layer.bias if bias_scale == 1 else layer.bias * bias_scale
    return functional.linear(states, weight.to(states.dtype).t(), bias.to(states.dtype))


def pass_blocks(gpt2: Any, states: Tensor, attend: Attend, dtype: torch.dtype, dropout: Dropout) -> Tensor:
    """The states after all blocks, not yet normalised, float32 (B, n, d).

    Args:
        states: float32 (B, n, d).
        attend: leaves the scale of the dropout to the next product.
        dtype: of the matrix products.
    """
    for index, block in enumerate(gpt2.transformer.h):
        attention = block.attn
        queries, keys, values = heads(affine(block.ln_1(states).to(dtype), attention.c_attn), 3, attention.num_heads)
        attended = attend(index, queries * attention.scaling, keys, values).transpose(1, 2).flatten(2)
        states = states + dropout(affine(attended, attention.c_proj, dropout.scale**2, dropout.scale))
        hidden = functional.gelu(affine(block.ln_2(states).to(dtype), block.mlp.c_fc), approximate="tanh")
        states = states + dropout(affine(hidden, block.mlp.c_proj, dropout.scale, dropout.scale))
    return states


def embed(gpt2: Any, tokens: Tensor, positions: Tensor) -> Tensor:
    """The embeddings of tokens (B, n) at their positions (n,) or (B, n), float32 (B, n, d)."""
    embedded: Tensor = gpt2.transformer.wte(tokens) + gpt2.transformer.wpe(positions)
    return embedded


def read_sequence(
    gpt2: Any, tokens: Tensor, dtype: torch.dtype, dropout: Dropout, cache: list[tuple[Tensor, Tensor]] | None = None
) -> Tensor:
    """The states after sequences of tokens (B, n) padded on the right, each position seeing itself and those before:
    float32 (B, n, d).

    Args:
        cache: takes the keys and values of every layer, (B, H, n, width).
    """
    causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device).tril()

    def attend(index: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if cache is not None:
            cache.append((keys, values))
        attended: Tensor = Attention.apply(queries, keys, values, None, causal, dropout)
        return attended

    positions = torch.arange(tokens.shape[1], device=tokens.device)
    return pass_blocks(gpt2, dropout(embed(gpt2, tokens, positions) * dropout.scale), attend, dtype, dropout)


def next_token_logits(gpt2: Any, states: Tensor, dtype: torch.dtype) -> Tensor:
    """The logits of the next token after states (..., d), of type `dtype`."""
    return functional.linear(gpt2.transformer.ln_f(states).to(dtype), gpt2.lm_head.weight.to(dtype))


class GPT2Decoder:
    """A GPT-2 that has read the histories of some users, run one level at a time for all beams of all users.

    A user's beams are query positions beside each other: they share the keys and values of the history, which are
    computed once, and each sees, among the tokens fed so far, its own ancestors only.

    Args:
        tokens: int64 (B, n): the start token and those of each history, padded on the right.
        lengths: int64 (B,): how many of these tokens are no padding.
        dtype: of the matrix products, the last one apart, which is always float32.
    """

    def __init__(self, gpt2: Any, tokens: Tensor, lengths: Tensor, dtype: torch.dtype) -> None:
        self.gpt2, self.lengths, self.dtype = gpt2, lengths, dtype
        self.history: list[tuple[Tensor, Tensor]] = []
        states = read_sequence(gpt2, tokens, dtype, NO_DROPOUT, self.history)
        self.last = states.gather(1, (lengths - 1)[:, None, None].expand(-1, -1, states.shape[2]))
        self.hidden = (torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None])[:, None, None, :]
        self.cache: Cache = [[] for _ in self.history]
        self.fed: list[int] = []

    def step(self, beams: Beams) -> Tensor:
        """The log-probabilities of children, as in `Decoder.step`, over the whole vocabulary."""
        return self.next_token(beams.tokens, beams.ancestors).gather(2, beams.child_tokens)

    def next_token(self, tokens: Tensor, ancestors: Tensor) -> Tensor:
        """Feed one token a beam and give the log-probabilities of the next, float32 (B, K, vocabulary); the start
        token was read before the history."""
        states = self.last if ancestors.shape[2] == 1 else self._feed(tokens, ancestors[:, :, 1:])
        logits = next_token_logits(self.gpt2, states, torch.float32)  # in bf16 items of a list would tie
        return logits.log_softmax(-1)

    def _feed(self, tokens: Tensor, ancestors: Tensor) -> Tensor:
        """The states of tokens (B, K) that follow the history, by their ancestors after it (B, K, depth)."""
        self.fed.append(tokens.shape[1])
        visible, n_read = is_ancestor(ancestors, self.fed), self.hidden.shape[-1]

        def attend(index: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            keys, values = with_earlier(self.cache[index], keys, values)
            history_keys, history_values = self.history[index]
            of_history = torch.matmul(queries, history_keys.mT).float().masked_fill_(self.hidden, -torch.inf)
            of_fed = torch.matmul(queries, keys.mT).float().masked_fill_(~visible, -torch.inf)
            weights = torch.cat([of_history, of_fed], dim=-1).softmax(-1).to(queries.dtype)
            return torch.matmul(weights[..., :n_read], history_values) + torch.matmul(weights[..., n_read:], values)

        positions = (self.lengths + len(self.fed) - 1)[:, None]
        return pass_blocks(self.gpt2, embed(self.gpt2, tokens, positions), attend, self.dtype, NO_DROPOUT)
