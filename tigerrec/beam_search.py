"""Trie-constrained beam search for many users at once, and the exact scores of a whole catalogue."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tigerrec.batches import NO_ITEM, length_sorted_batches, padded
from tigerrec.dropout import Dropout
from tigerrec.history_t5 import HistoryT5
from tigerrec.precision import product_type
from tigerrec.semantic_ids import PAD
from tigerrec.stacks import attend, attend_to_one, feed_forward, heads, linear, normalise
from tigerrec.trie import Trie, build_trie

logger = logging.getLogger(__name__)
NO_DROPOUT = Dropout(0.0)


class BeamDecoder:
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
        """The self-attention bias of beams over all tokens fed: the relative position's where it is an ancestor, else -inf.

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
                (queries,) = heads(linear(normalise(cross_layer.layer_norm, states, self.dtype), attention.q), 1, attention.n_heads)
                states = states + attend((queries, *self.cross[index]), None, self.visible, attention, NO_DROPOUT)
            states = feed_forward(feed_forward_layer, states, self.dtype, NO_DROPOUT)
        states = normalise(self.t5.decoder.final_layer_norm, states, torch.float32)
        scale = self.t5.model_dim**-0.5 if self.t5.config.scale_decoder_outputs else 1.0
        return linear(states, self.t5.lm_head, scale=scale).log_softmax(-1)  # in float32: in bf16 items of a list would tie


@torch.inference_mode()
def beam_search(
    t5: Any, trie: Trie, encoded: Tensor, attention_mask: Tensor, *, beam_size: int, dtype: torch.dtype, closed: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The most probable items of each user, found level by level along the trie.

    Scores are sums of log-probabilities over the whole vocabulary; the trie masks after the softmax. Closed nodes
    (see `Trie.closed`, rows = users) are left out inside the search, so that a list is as full without them.

    Args:
        t5: a stock T5.
        encoded: (B, S, d), what the decoder attends to for each user.
        attention_mask: (B, S), 1 where there is a position to attend to.
        beam_size: how many prefixes a user keeps at each level.
        dtype: of the matrix products, the last one apart, which is always float32.

    Returns:
        Items, int64 (B, K) best first, K at most `beam_size`, `NO_ITEM` where nothing is left; scores, float32 (B, K), -inf there.
        Items that share an id have its score and come in the order of the trie.
    """
    decoder = BeamDecoder(t5, encoded, attention_mask, trie.n_levels, dtype)
    users = torch.arange(len(encoded), device=encoded.device)[:, None]
    nodes = torch.zeros_like(users)
    tokens = torch.full_like(users, PAD)
    ancestors = torch.zeros_like(users)[:, :, None]
    scores = torch.zeros(users.shape, device=encoded.device)
    for depth in range(trie.n_levels):
        log_probabilities = decoder.step(tokens, ancestors)
        children, exists = trie.children(depth, nodes)
        child_tokens = trie.token[depth][children]
        candidates = scores[:, :, None] + log_probabilities.gather(2, child_tokens)
        if closed is not None:
            exists = exists & ~trie.is_closed(depth + 1, closed, users[:, :, None], children)
        candidates = candidates.masked_fill(~exists, -torch.inf).flatten(1)
        scores, chosen = candidates.topk(min(beam_size, candidates.shape[1]), dim=1)
        parents = chosen // children.shape[-1]
        nodes, tokens = children.flatten(1).gather(1, chosen), child_tokens.flatten(1).gather(1, chosen)
        slots = torch.arange(nodes.shape[1], device=nodes.device).expand_as(nodes)
        ancestors = torch.cat([ancestors.gather(1, parents[:, :, None].expand(-1, -1, depth + 1)), slots[:, :, None]], dim=2)
    items, exists = trie.children(trie.n_levels, nodes)
    if closed is not None:
        exists = exists & ~trie.is_closed(trie.n_levels + 1, closed, users[:, :, None], items)
    scores = scores[:, :, None].masked_fill(~exists, -torch.inf).flatten(1)
    listed = scores.argsort(dim=1, descending=True, stable=True)[:, :beam_size]
    scores = scores.gather(1, listed)
    return trie.leaf_item[items].flatten(1).gather(1, listed).masked_fill(scores == -torch.inf, NO_ITEM), scores


@torch.inference_mode()
def score_catalogue(t5: Any, tokens: Tensor, encoded: Tensor, attention_mask: Tensor, chunk: int = 4096) -> Tensor:
    """The log-probability of every item for every user, one user at a time through the stock decoder: the search's oracle.

    Args:
        t5: a stock T5.
        tokens: int64 (I, T).
        encoded: (B, S, d), what the decoder attends to for each user.
        attention_mask: (B, S), 1 where there is a position to attend to.
        chunk: items decoded at once.

    Returns:
        float32 (B, I).
    """
    start = torch.full_like(tokens[:, :1], t5.config.decoder_start_token_id)
    decoder_inputs = torch.cat([start, tokens[:, :-1]], dim=1)
    rows = []
    for states, mask in zip(encoded, attention_mask, strict=True):
        row = []
        for inputs, targets in zip(decoder_inputs.split(chunk), tokens.split(chunk), strict=True):
            n = len(inputs)
            logits = t5(encoder_outputs=(states.expand(n, -1, -1),), attention_mask=mask.expand(n, -1), decoder_input_ids=inputs).logits
            row.append(logits.float().log_softmax(-1).gather(2, targets[:, :, None]).sum((1, 2)))
        rows.append(torch.cat(row))
    return torch.stack(rows)


@dataclass(frozen=True)
class Searcher:
    """A generator with its catalogue, ready to rank items for histories.

    Attributes:
        model: reads histories.
        trie: of the catalogue's tokens.
        precision: `auto`, `fp32` or `bf16`.
        popularity: int (I,), how often training histories hold each item; it orders items that share an id; None: none may.
    """

    model: HistoryT5
    trie: Trie
    precision: str = "auto"
    popularity: np.ndarray | None = None

    @staticmethod
    def of(model: HistoryT5, precision: str = "auto", popularity: np.ndarray | None = None) -> Searcher:
        """A searcher over all items of a model, on its device."""
        return Searcher(model, build_trie(model.tokens.cpu().numpy(), popularity).to(model.device), precision, popularity)

    def with_items(self, tokens: np.ndarray) -> Searcher:
        """A searcher over these and further items, of tokens int64 (n, T), that training never saw."""
        popularity = None if self.popularity is None else np.append(self.popularity, np.zeros(len(tokens), self.popularity.dtype))
        return Searcher.of(self.model.with_items(tokens), self.precision, popularity)

    def rank(
        self,
        histories: Sequence[np.ndarray],
        *,
        k: int,
        beam_size: int,
        mask_seen: bool,
        batch_tokens: int = 8192,
        progress: str = "",
        seen: Sequence[np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items for each history of item indices (oldest first; none may be empty).

        The last items that the model reads are read; with `mask_seen` no item of the whole history is recommended.

        Args:
            batch_tokens: encoder positions and beams searched at once.
            progress: the label of a progress bar on stderr; none where empty.
            seen: the items of each user that `mask_seen` masks; those of the history by default.

        Returns:
            Items, int32 (n, k), `NO_ITEM` where a list is shorter; scores (log-probabilities), float32 (n, k), -inf there.

        Raises:
            ValueError: k is larger than the beam, or a history is empty.
        """
        if not 1 <= k <= beam_size:
            raise ValueError(f"k must be between 1 and the beam size {beam_size}, got {k}")
        if any(len(history) == 0 for history in histories):
            raise ValueError("a history is empty; give at least one item")
        items = np.full((len(histories), k), NO_ITEM, np.int32)
        scores = np.full((len(histories), k), -np.inf, np.float32)
        max_items = self.model.facts["max_items"]
        lengths = np.array([min(len(history), max_items) for history in histories], np.int64)
        with tqdm(total=len(histories), desc=progress, unit="user", leave=False, disable=None if progress else True) as bar:
            for batch in length_sorted_batches(lengths * self.model.positions_per_item + beam_size, batch_tokens):
                masked = [(histories if seen is None else seen)[row] for row in batch] if mask_seen else None
                found, found_scores = self._rank_batch([histories[row] for row in batch], beam_size, masked)
                width = min(k, found.shape[1])
                items[batch, :width], scores[batch, :width] = found[:, :width], found_scores[:, :width]
                bar.update(len(batch))
        return items, scores

    def _rank_batch(self, histories: list[np.ndarray], beam_size: int, masked: list[np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
        device = self.model.device
        recent = padded([history[-self.model.facts["max_items"] :] for history in histories]).to(device)
        closed = None
        if masked is not None:
            rows = torch.from_numpy(np.repeat(np.arange(len(masked)), [len(items) for items in masked])).to(device)
            closed = self.trie.closed(rows, torch.from_numpy(np.concatenate(masked).astype(np.int64)).to(device))
        dtype = product_type(device, self.precision)
        with torch.inference_mode():
            encoded, mask = self.model.read(recent, dtype)
            items, scores = beam_search(self.model.t5, self.trie, encoded, mask, beam_size=beam_size, dtype=dtype, closed=closed)
        return items.cpu().numpy(), scores.cpu().numpy()
