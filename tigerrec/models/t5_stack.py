"""The encoder and decoder of a stock T5 (Raffel et al. 2020, arXiv 1910.10683), driven with masks of our own.

They compute what the modules of transformers compute, with their weights. What differs is cost: several targets
share one encoded history, products of one input are one product, and dropout is cheap.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tigerrec.models.base import Beams
from tigerrec.models.dropout import Dropout, keep

NO_DROPOUT = Dropout(0.0)


def linear(states: Tensor, *layers: Any, scale: float = 1.0) -> Tensor:
    """The outputs of linear layers without bias, side by side, times `scale`, in the type of `states`."""
    weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
    return functional.linear(states, (weight if scale == 1 else weight * scale).to(states.dtype))


def normalise(layer_norm: Any, states: Tensor, dtype: torch.dtype) -> Tensor:
    """T5's layer norm: scaled by the root mean square (Zhang and Sennrich 2019, arXiv 1910.07467)."""
    weight, epsilon = layer_norm.weight, layer_norm.variance_epsilon
    return functional.rms_norm(states, weight.shape, weight, epsilon).to(dtype)


class Attention(torch.autograd.Function):
    """Attention without scaling, (B, H, Q, width): softmax in float32, products in the type of the queries; the scale
    of the dropout of its weights is left to the caller.

    Args:
        queries: (B, H, Q, width).
        keys, values: (B, H, K, width).
        bias: float32, (1, H, Q or 1, K), or None.
        visible: bool, broadcasts to (B, H, Q, K), or None; each query sees a key.
    """

    @staticmethod
    def forward(ctx, queries, keys, values, bias, visible, dropout):  # type: ignore[no-untyped-def]
        scores = torch.matmul(queries, keys.mT).float()
        if bias is not None:
            scores += bias
        if visible is not None:
            scores.masked_fill_(~visible, -torch.inf)
        weights = scores.softmax(-1).to(queries.dtype)
        mask = dropout.mask(weights)
        ctx.save_for_backward(queries, keys, values, weights, mask)
        return torch.matmul(keep(weights, mask), values)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        queries, keys, values, weights, mask = ctx.saved_tensors
        values_gradient = torch.matmul(keep(weights, mask).mT, gradient)
        weights_gradient = keep(torch.matmul(gradient, values.mT), mask)
        weights = weights.float()
        scores_gradient = weights_gradient.float().mul_(weights)  # of the softmax: w (g - Σ w g)
        scores_gradient.addcmul_(weights, scores_gradient.sum(-1, keepdim=True), value=-1)
        bias_gradient = scores_gradient.sum(0, keepdim=True) if ctx.needs_input_grad[3] else None
        scores_gradient = scores_gradient.to(queries.dtype)
        queries_gradient, keys_gradient = scores_gradient @ keys, scores_gradient.mT @ queries
        return queries_gradient, keys_gradient, values_gradient, bias_gradient, None, None


class DroppedRelu(torch.autograd.Function):
    """max(x, 0), then dropout; the zeros of the result say where no gradient passes."""

    @staticmethod
    def forward(ctx, values, mask):  # type: ignore[no-untyped-def]
        kept = keep(values.relu(), mask)
        ctx.save_for_backward(kept)
        return kept

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (kept,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, kept, 0), None


def heads(states: Tensor, n_parts: int, n_heads: int, *, copy: bool = True) -> tuple[Tensor, ...]:
    """Projections side by side, (B, n, parts * heads * width), one by one, each (B, heads, n, width): contiguous, or
    views for a kernel that reads them as they lie."""
    parts = states.unflatten(-1, (n_parts, n_heads, -1)).permute(2, 0, 3, 1, 4)
    return (parts.contiguous() if copy else parts).unbind(0)


def joined_mask(bias: Tensor, visible: Tensor | None) -> Tensor:
    """The bias of attention, -inf where a query does not see a key."""
    return bias if visible is None else bias.masked_fill(~visible, -torch.inf)


def fused_attention(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, visible: Tensor | None
) -> Tensor:
    """What `Attention` gives without dropout, by one kernel of torch, which keeps no weights: not for training, whose
    biases need gradients. Elsewhere than on the CPU the bias is rounded to the type of the queries."""
    mask = visible
    if bias is not None:
        mask = joined_mask(bias, visible)
        mask = mask if queries.device.type == "cpu" else mask.to(queries.dtype)
    return functional.scaled_dot_product_attention(queries, keys, values, mask, scale=1.0)


def attend(
    projections: tuple[Tensor, ...], bias: Tensor | None, visible: Tensor | None, attention: Any, dropout: Dropout
) -> Tensor:
    """The output of an attention layer, (B, Q, d), for its queries, keys and values, with the residual's dropout."""
    if torch.is_grad_enabled() or dropout.p:
        attended = Attention.apply(*projections, bias, visible, dropout)
    else:
        queries, keys, values = projections
        attended = fused_attention(queries, keys, values, bias, visible)
    return dropout(linear(attended.transpose(1, 2).flatten(2), attention.o, scale=dropout.scale**2))


def self_projections(layer: Any, states: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Queries, keys and values of a self-attention layer, each (B, H, n, width)."""
    attention = layer.SelfAttention
    normed = normalise(layer.layer_norm, states, dtype)
    return heads(
        linear(normed, attention.q, attention.k, attention.v), 3, attention.n_heads, copy=torch.is_grad_enabled()
    )


def feed_forward(layer: Any, states: Tensor, dtype: torch.dtype, dropout: Dropout) -> Tensor:
    """The states (..., d) after a feed-forward layer."""
    hidden = linear(normalise(layer.layer_norm, states, dtype), layer.DenseReluDense.wi)
    hidden = DroppedRelu.apply(hidden, dropout.mask(hidden))
    return states + dropout(linear(hidden, layer.DenseReluDense.wo, scale=dropout.scale**2))


def encode(t5: Any, embedded: Tensor, visible: Tensor | None, dtype: torch.dtype, dropout: Dropout) -> Tensor:
    """The encoder's output, float32 (B, S, d), with T5's dropout of it; see `encoded_states`."""
    return dropout(encoded_states(t5, embedded, visible, dtype, dropout) * dropout.scale)


def encoded_states(t5: Any, embedded: Tensor, visible: Tensor | None, dtype: torch.dtype, dropout: Dropout) -> Tensor:
    """The encoder's output without dropout of it, float32 (B, S, d).

    Args:
        embedded: float32 (B, S, d).
        visible: bool, broadcasts to (B, 1, S, S): which positions (last) a position sees; None = all.
        dtype: of the matrix products.
    """
    blocks = [block.layer for block in t5.encoder.block]
    bias = blocks[0][0].SelfAttention.compute_bias(embedded.shape[1], embedded.shape[1])
    if not torch.is_grad_enabled():  # once for all layers
        bias, visible = joined_mask(bias, visible), None
    states = dropout(embedded * dropout.scale)
    for layer, feed_forward_layer in blocks:
        projections = self_projections(layer, states, dtype)
        states = states + attend(projections, bias, visible, layer.SelfAttention, dropout)
        states = feed_forward(feed_forward_layer, states, dtype, dropout)
    return normalise(t5.encoder.final_layer_norm, states, torch.float32)


def read_history(t5: Any, encoded: Tensor, dropout: Dropout) -> list[tuple[Tensor, ...]]:
    """What each decoder layer's attention to the encoder needs of its output (B, S, d): keys and values, (B, H, S,
    width); of a single position, whose weight is always 1, the layer's output (B, 1, d) alone."""
    layers = [block.layer[1].EncDecAttention for block in t5.decoder.block]
    if encoded.shape[1] == 1:
        return [(linear(linear(encoded, layer.v), layer.o, scale=dropout.scale),) for layer in layers]
    copy = torch.is_grad_enabled()
    return [heads(linear(encoded, layer.k, layer.v), 2, layer.n_heads, copy=copy) for layer in layers]


Cache = list[list[tuple[Tensor, Tensor]]]
"""For each layer the keys and values of all tokens fed, a pair a level, each (B, H, K, width)."""


def with_earlier(cached: list[tuple[Tensor, Tensor]], keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a level after those of all levels before, which it joins."""
    cached.append((keys, values))
    return torch.cat([pair[0] for pair in cached], dim=2), torch.cat([pair[1] for pair in cached], dim=2)


def is_ancestor(ancestors: Tensor, fed: list[int]) -> Tensor:
    """Which of all tokens fed so far a beam continues, bool (B, 1, K, tokens fed).

    Args:
        ancestors: int64 (B, K, depth + 1): each beam's slot among the tokens fed at every depth, itself last.
        fed: how many tokens a user were fed at each depth.
    """
    slots = [torch.arange(n_slots, device=ancestors.device) for n_slots in fed]
    return torch.cat([ancestors[:, :, level, None] == slot for level, slot in enumerate(slots)], dim=2)[:, None]


def pass_decoder(
    t5: Any, states: Tensor, history: list[tuple[Tensor, ...]], history_visible: Tensor | None, bias: Tensor,
    visible: Tensor, dtype: torch.dtype, dropout: Dropout, cache: Cache | None = None,
) -> Tensor:  # fmt: skip
    """The decoder's states, not yet normalised, float32 (N, n, d).

    Args:
        states: float32 (N, n, d): N is B, or a multiple where several rows in turn share a history.
        history: from `read_history`, of B users.
        history_visible: bool, broadcasts to (B, 1, N / B * n, S): which encoder positions a token sees; None = all.
        bias, visible: of self-attention, as in `Attention`.
        cache: of the tokens before, which these tokens join.
    """
    seen: Tensor | None = visible
    if not torch.is_grad_enabled():  # once for all layers
        bias, seen = joined_mask(bias, visible), None
    for number, (self_layer, cross_layer, feed_forward_layer) in enumerate(block.layer for block in t5.decoder.block):
        queries, keys, values = self_projections(self_layer, states, dtype)
        if cache is not None:
            keys, values = with_earlier(cache[number], keys, values)
        states = states + attend((queries, keys, values), bias, seen, self_layer.SelfAttention, dropout)
        n_users, cross = len(history[number][0]), cross_layer.EncDecAttention
        if len(history[number]) == 1:
            read = dropout(history[number][0].expand(-1, states.shape[0] * states.shape[1] // n_users, -1))
        else:
            normed = normalise(cross_layer.layer_norm, states, dtype)
            queries = linear(normed, cross.q).view(n_users, -1, cross.inner_dim)
            (queries,) = heads(queries, 1, cross.n_heads, copy=torch.is_grad_enabled())
            read = attend((queries, *history[number]), None, history_visible, cross, dropout)
        states = feed_forward(feed_forward_layer, states + read.reshape(states.shape), dtype, dropout)
    return states


def output_scale(t5: Any) -> float:
    """What T5 multiplies its decoder's output by before the output layer."""
    return float(t5.model_dim**-0.5) if t5.config.scale_decoder_outputs else 1.0


def decode(
    t5: Any, encoded: Tensor, inputs: Tensor, visible: Tensor | None, dtype: torch.dtype, dropout: Dropout
) -> Tensor:
    """The logits of many targets a history, (B, M, T, vocabulary) of type `dtype`.

    A target's tokens see its own earlier tokens and the part of the history that is visible to it. Where that is a
    single position, dropout leaves its weight alone: it would hide the whole history.

    Args:
        encoded: (B, S, d).
        inputs: int64 (B, M, T): decoder inputs of M targets.
        visible: bool, broadcasts to (B, 1, M * T, S): which encoder positions a token sees; None = all.
    """
    n_tokens = inputs.shape[2]
    bias = t5.decoder.block[0].layer[0].SelfAttention.compute_bias(n_tokens, n_tokens)
    causal = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=inputs.device).tril()
    states = dropout(t5.shared(inputs.flatten(0, 1)) * dropout.scale)
    history = read_history(t5, encoded.to(dtype), dropout)
    states = pass_decoder(t5, states, history, visible, bias, causal, dtype, dropout)
    states = dropout(normalise(t5.decoder.final_layer_norm, states, dtype))
    return linear(states, t5.lm_head, scale=dropout.scale * output_scale(t5)).view(*inputs.shape, -1)


class T5Decoder:
    """The decoder of a T5, run one level at a time for all beams of all users.

    A user's beams are query positions of one sequence: they share the user's cross-attention keys and values, which are
    computed once, and each sees, among the tokens fed so far, its own ancestors only.
    """

    def __init__(self, t5: Any, encoded: Tensor, attention_mask: Tensor, n_levels: int, dtype: torch.dtype) -> None:
        self.t5, self.dtype = t5, dtype
        self.history = read_history(t5, encoded.to(dtype), NO_DROPOUT)
        self.history_visible = attention_mask.bool()[:, None, None, :]
        self.bias = t5.decoder.block[0].layer[0].SelfAttention.compute_bias(n_levels, n_levels)
        self.cache: Cache = [[] for _ in t5.decoder.block]
        self.fed: list[int] = []

    def step(self, beams: Beams) -> Tensor:
        """The log-probabilities of children, as in `Decoder.step`, over the whole vocabulary."""
        return self.next_token(beams.tokens, beams.ancestors).gather(2, beams.child_tokens)

    def next_token(self, tokens: Tensor, ancestors: Tensor) -> Tensor:
        """Feed one token a beam and give the log-probabilities of the next, float32 (B, K, vocabulary)."""
        self.fed.append(tokens.shape[1])
        own_bias = self.bias[:, :, len(self.fed) - 1, None]
        bias = torch.cat([own_bias[..., level, None].expand(-1, -1, -1, n) for level, n in enumerate(self.fed)], dim=3)
        states = pass_decoder(
            self.t5, self.t5.shared(tokens), self.history, self.history_visible, bias, is_ancestor(ancestors, self.fed),
            self.dtype, NO_DROPOUT, self.cache,
        )  # fmt: skip
        states = normalise(self.t5.decoder.final_layer_norm, states, torch.float32)  # in bf16 items of a list would tie
        return linear(states, self.t5.lm_head, scale=output_scale(self.t5)).log_softmax(-1)
