"""The encoder and decoder of a stock transformers T5, driven with masks of our own.

They compute what the modules of transformers compute (Raffel et al. 2020, arXiv 1910.10683), with the weights of those
modules. What differs is cost: several targets share one encoded history, products of one input are one product, and
dropout is cheap.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tigerrec.dropout import Dropout, keep

IGNORED = -1
NO_DROPOUT = Dropout(0.0)


def linear(states: Tensor, *layers: Any, scale: float = 1.0) -> Tensor:
    """The outputs of linear layers without bias, side by side, times `scale`, in the type of `states`."""
    weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
    return functional.linear(states, (weight if scale == 1 else weight * scale).to(states.dtype))


def normalise(layer_norm: Any, states: Tensor, dtype: torch.dtype) -> Tensor:
    """T5's layer norm: scaled by the root mean square (Zhang and Sennrich 2019, arXiv 1910.07467)."""
    return functional.rms_norm(states, layer_norm.weight.shape, layer_norm.weight, layer_norm.variance_epsilon).to(
        dtype
    )


def attention_weights(queries: Tensor, keys: Tensor, bias: Tensor | None, visible: Tensor | None) -> Tensor:
    """The weights of attention without scaling, as in T5, (B, H, Q, K): softmax in float32, products in the type of the
    queries.

    Args:
        queries: (B, H, Q, width).
        keys: (B, H, K, width).
        bias: float32, broadcasts to (B, H, Q, K), or None.
        visible: bool, likewise; each query sees a key.
    """
    scores = torch.matmul(queries, keys.mT).float()
    if bias is not None:
        scores += bias
    if visible is not None:
        scores.masked_fill_(~visible, -torch.inf)
    return scores.softmax(-1).to(queries.dtype)


class Attention(torch.autograd.Function):
    """Attention with dropout of its weights, and its gradients."""

    @staticmethod
    def forward(ctx, queries, keys, values, bias, visible, dropout):  # type: ignore[no-untyped-def]
        """Attended values, (B, H, Q, width); arguments as in `attention_weights`, `bias` (1, H, Q, K) or None.

        The scale of the dropout is left to the caller.
        """
        weights = attention_weights(queries, keys, bias, visible)
        mask = dropout.mask(weights)
        ctx.save_for_backward(queries, keys, values, weights, mask)
        ctx.has_bias = bias is not None
        return torch.matmul(keep(weights, mask), values)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        """The gradients of queries, keys, values and bias."""
        queries, keys, values, weights, mask = ctx.saved_tensors
        values_gradient = torch.matmul(keep(weights, mask).mT, gradient)
        weights_gradient = keep(torch.matmul(gradient, values.mT), mask)
        weights = weights.float()
        scores_gradient = weights_gradient.float().mul_(weights)  # of the softmax: w (g - Σ w g)
        scores_gradient.addcmul_(weights, scores_gradient.sum(-1, keepdim=True), value=-1)
        bias_gradient = scores_gradient.sum(0, keepdim=True) if ctx.has_bias and ctx.needs_input_grad[3] else None
        scores_gradient = scores_gradient.to(queries.dtype)
        return (
            torch.matmul(scores_gradient, keys),
            torch.matmul(scores_gradient.mT, queries),
            values_gradient,
            bias_gradient,
            None,
            None,
        )


class DroppedRelu(torch.autograd.Function):
    """max(x, 0), then dropout; the zeros of the result say where no gradient passes."""

    @staticmethod
    def forward(ctx, values, mask):  # type: ignore[no-untyped-def]
        """The kept positive values, zero elsewhere."""
        kept = keep(values.relu(), mask)
        ctx.save_for_backward(kept)
        return kept

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        """The gradient where the result is positive."""
        (kept,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, kept, 0), None


class CrossEntropy(torch.autograd.Function):
    """Cross-entropy summed over rows, whose gradient is made with the loss: one pass over the logits instead of
    three."""

    @staticmethod
    def forward(ctx, logits, labels, label_smoothing):  # type: ignore[no-untyped-def]
        """The sum in nats, float32.

        Args:
            logits: (n, classes).
            labels: int64 (n,); rows with the label `IGNORED` count nothing.
            label_smoothing: share of the target's probability spread over all classes.
        """
        n_classes = logits.shape[1]
        there = (labels >= 0).float()
        labels = labels.clamp(min=0)[:, None]
        scores = logits.float()
        largest = scores.amax(1)
        target_scores = scores.gather(1, labels).squeeze(1)
        mean_scores = scores.mean(1) if label_smoothing else 0.0
        probabilities = scores.softmax(1)
        log_normaliser = largest - probabilities.amax(1).log()
        losses = log_normaliser - (1 - label_smoothing) * target_scores - label_smoothing * mean_scores
        if label_smoothing:
            probabilities -= label_smoothing / n_classes
        probabilities.scatter_add_(1, labels, torch.full_like(labels, label_smoothing - 1, dtype=torch.float32))
        ctx.save_for_backward((probabilities.mul_(there[:, None])).to(logits.dtype))
        return (losses * there).sum()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        """Probability less label, for each class."""
        (difference,) = ctx.saved_tensors
        return (difference * gradient).to(difference.dtype), None, None


def heads(states: Tensor, n_parts: int, n_heads: int) -> tuple[Tensor, ...]:
    """Projections side by side, (B, n, parts * heads * width), one by one, each contiguous (B, heads, n, width)."""
    return states.unflatten(-1, (n_parts, n_heads, -1)).permute(2, 0, 3, 1, 4).contiguous().unbind(0)


def attend(
    projections: tuple[Tensor, ...], bias: Tensor | None, visible: Tensor | None, attention: Any, dropout: Dropout
) -> Tensor:
    """The output of an attention layer, (B, Q, d), for its queries, keys and values, with the residual's dropout."""
    attended = Attention.apply(*projections, bias, visible, dropout)
    return dropout(linear(attended.transpose(1, 2).flatten(2), attention.o, scale=dropout.scale**2))


def self_attention(
    layer: Any, states: Tensor, bias: Tensor, visible: Tensor | None, dtype: torch.dtype, dropout: Dropout
) -> Tensor:
    """The states (B, n, d) after a self-attention layer."""
    attention = layer.SelfAttention
    projections = heads(
        linear(normalise(layer.layer_norm, states, dtype), attention.q, attention.k, attention.v), 3, attention.n_heads
    )
    return states + attend(projections, bias, visible, attention, dropout)


def attend_to_one(cross: Any, encoded: Tensor, scale: float = 1.0) -> Tensor:
    """The output of a decoder's attention to a single encoder position, (B, 1, d): its weight is 1, whatever is asked.

    Args:
        encoded: (B, 1, d).
        scale: of the result.
    """
    return linear(linear(encoded, cross.v), cross.o, scale=scale)


def feed_forward(layer: Any, states: Tensor, dtype: torch.dtype, dropout: Dropout) -> Tensor:
    """The states (..., d) after a feed-forward layer."""
    hidden = linear(normalise(layer.layer_norm, states, dtype), layer.DenseReluDense.wi)
    hidden = DroppedRelu.apply(hidden, dropout.mask(hidden))
    return states + dropout(linear(hidden, layer.DenseReluDense.wo, scale=dropout.scale**2))


def encode(t5: Any, embedded: Tensor, visible: Tensor | None, dtype: torch.dtype, dropout: Dropout) -> Tensor:
    """The encoder's output.

    Args:
        embedded: float32 (B, S, d).
        visible: bool, broadcasts to (B, 1, S, S): which positions (last) a position sees; None = all.
        dtype: of the matrix products.

    Returns:
        float32 (B, S, d).
    """
    blocks = [block.layer for block in t5.encoder.block]
    bias = blocks[0][0].SelfAttention.compute_bias(embedded.shape[1], embedded.shape[1])
    states = dropout(embedded * dropout.scale)
    for attention_layer, feed_forward_layer in blocks:
        states = self_attention(attention_layer, states, bias, visible, dtype, dropout)
        states = feed_forward(feed_forward_layer, states, dtype, dropout)
    return dropout(normalise(t5.encoder.final_layer_norm, states, torch.float32) * dropout.scale)


def decode(
    t5: Any, encoded: Tensor, inputs: Tensor, visible: Tensor | None, dtype: torch.dtype, dropout: Dropout
) -> Tensor:
    """The logits of many targets a history.

    A target's tokens see its own earlier tokens and the part of the history that is visible to it. Where that is a
    single
    position, dropout leaves its weight alone: it would hide the whole history.

    Args:
        encoded: (B, S, d).
        inputs: int64 (B, M, T): decoder inputs of M targets.
        visible: bool, broadcasts to (B, 1, M * T, S): which encoder positions a token sees; None = all.

    Returns:
        (B, M, T, vocabulary) of type `dtype`.
    """
    n_tokens = inputs.shape[2]
    blocks = [block.layer for block in t5.decoder.block]
    encoded = encoded.to(dtype)
    states = dropout(t5.shared(inputs.flatten(0, 1)) * dropout.scale)
    bias = blocks[0][0].SelfAttention.compute_bias(n_tokens, n_tokens)
    causal = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=inputs.device).tril()
    for attention_layer, cross_layer, feed_forward_layer in blocks:
        states = self_attention(attention_layer, states, bias, causal, dtype, dropout)
        cross = cross_layer.EncDecAttention
        if encoded.shape[1] == 1:
            read = dropout(
                attend_to_one(cross, encoded, dropout.scale).expand(-1, states.shape[0] // len(encoded) * n_tokens, -1)
            )
        else:
            queries = linear(normalise(cross_layer.layer_norm, states, dtype), cross.q).view(
                len(encoded), -1, cross.inner_dim
            )
            projections = (
                *heads(queries, 1, cross.n_heads),
                *heads(linear(encoded, cross.k, cross.v), 2, cross.n_heads),
            )
            read = attend(projections, None, visible, cross, dropout)
        states = states + read.reshape(states.shape)
        states = feed_forward(feed_forward_layer, states, dtype, dropout)
    states = dropout(normalise(t5.decoder.final_layer_norm, states, dtype))
    scale = dropout.scale * (t5.model_dim**-0.5 if t5.config.scale_decoder_outputs else 1.0)
    return linear(states, t5.lm_head, scale=scale).view(*inputs.shape, -1)


class T5Decoder:
    """The decoder of a T5, run one level at a time for all beams of all users.

    A user's beams are query positions of one sequence: they share the user's cross-attention keys and values, which
    are computed once, and each sees, among the tokens fed so far, its own ancestors only.
    """

    def __init__(self, t5: Any, encoded: Tensor, attention_mask: Tensor, n_levels: int, dtype: torch.dtype) -> None:
        self.t5, self.dtype = t5, dtype
        self.blocks = [block.layer for block in t5.decoder.block]
        encoded = encoded.to(dtype)
        cross = [layer[1].EncDecAttention for layer in self.blocks]
        self.has_one_position = encoded.shape[1] == 1
        if self.has_one_position:
            self.read = [attend_to_one(attention, encoded) for attention in cross]
        else:
            self.cross = [heads(linear(encoded, attention.k, attention.v), 2, attention.n_heads) for attention in cross]
        self.visible = attention_mask.bool()[:, None, None, :]
        self.position_bias = self.blocks[0][0].SelfAttention.compute_bias(n_levels, n_levels)[0]
        self.cache: list[tuple[Tensor, Tensor] | None] = [None] * len(self.blocks)
        self.fed: list[int] = []

    def _ancestor_bias(self, ancestors: Tensor) -> Tensor:
        """The self-attention bias of beams over all tokens fed: the relative position's where it is an ancestor, else
        -inf.

        Args:
            ancestors: int64 (B, K, depth + 1): each beam's slot among the tokens fed at every depth, itself last.
        """
        depth = ancestors.shape[-1] - 1
        parts = []
        for level, n_slots in enumerate(self.fed):
            is_ancestor = ancestors[:, None, :, level, None] == torch.arange(n_slots, device=ancestors.device)
            parts.append(torch.where(is_ancestor, self.position_bias[:, depth, level, None, None], -torch.inf))
        return torch.cat(parts, dim=-1)

    def step(self, tokens: Tensor, ancestors: Tensor) -> Tensor:
        """Feed one token a beam.

        Args:
            tokens: int64 (B, K).
            ancestors: int64 (B, K, depth + 1), see `_ancestor_bias`.

        Returns:
            The log-probabilities of the next token over the whole vocabulary, float32 (B, K, vocabulary).
        """
        self.fed.append(tokens.shape[1])
        states = self.t5.shared(tokens)
        bias = self._ancestor_bias(ancestors)
        for index, (self_layer, cross_layer, feed_forward_layer) in enumerate(self.blocks):
            attention = self_layer.SelfAttention
            normed = normalise(self_layer.layer_norm, states, self.dtype)
            queries, keys, values = heads(linear(normed, attention.q, attention.k, attention.v), 3, attention.n_heads)
            if (cached := self.cache[index]) is not None:
                keys, values = torch.cat([cached[0], keys], dim=2), torch.cat([cached[1], values], dim=2)
            self.cache[index] = keys, values
            states = states + attend((queries, keys, values), bias, None, attention, NO_DROPOUT)
            if self.has_one_position:
                states = states + self.read[index]
            else:
                attention = cross_layer.EncDecAttention
                (queries,) = heads(
                    linear(normalise(cross_layer.layer_norm, states, self.dtype), attention.q), 1, attention.n_heads
                )
                states = states + attend((queries, *self.cross[index]), None, self.visible, attention, NO_DROPOUT)
            states = feed_forward(feed_forward_layer, states, self.dtype, NO_DROPOUT)
        states = normalise(self.t5.decoder.final_layer_norm, states, torch.float32)
        scale = self.t5.model_dim**-0.5 if self.t5.config.scale_decoder_outputs else 1.0
        return linear(states, self.t5.lm_head, scale=scale).log_softmax(
            -1
        )  # in float32: in bf16 items of a list would tie
