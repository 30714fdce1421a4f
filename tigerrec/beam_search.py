"""Trie-constrained beam search for many users at once, and the exact scores of a whole catalogue."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from tqdm import tqdm

from tigerrec.batches import history_tokens, length_sorted_batches
from tigerrec.precision import autocast
from tigerrec.semantic_ids import PAD, SemanticIds
from tigerrec.trie import Trie, build_trie

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration

logger = logging.getLogger(__name__)
NO_ITEM = -1


class BeamDecoder:
    """The decoder of a T5, run one level at a time for all beams of all users.

    A user's beams are query positions of one sequence: they share the user's cross-attention keys and values, which
    are computed once, and each sees, among the tokens fed so far, its own ancestors only.
    """

    def __init__(self, model: T5ForConditionalGeneration, encoded: Tensor, attention_mask: Tensor, n_levels: int) -> None:
        self.model = cast(Any, model)
        self.n_heads = model.config.num_heads
        self.blocks = [block.layer for block in self.model.decoder.block]
        self.cross = [(self._heads(layer[1].EncDecAttention.k(encoded)), self._heads(layer[1].EncDecAttention.v(encoded))) for layer in self.blocks]
        self.cross_mask = torch.where(attention_mask.bool(), 0.0, -torch.inf).to(self.cross[0][0].dtype)[:, None, None, :]
        self.position_bias = self.blocks[0][0].SelfAttention.compute_bias(n_levels, n_levels)[0]
        self.cache: list[tuple[Tensor, Tensor] | None] = [None] * len(self.blocks)
        self.fed: list[int] = []

    def _heads(self, states: Tensor) -> Tensor:
        """(B, n, heads * width) → (B, heads, n, width)."""
        return states.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def _ancestor_mask(self, ancestors: Tensor) -> Tensor:
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
            ancestors: int64 (B, K, depth + 1), see `_ancestor_mask`.

        Returns:
            The log-probabilities of the next token over the whole vocabulary, float32 (B, K, vocabulary).
        """
        self.fed.append(tokens.shape[1])
        states = self.model.decoder.embed_tokens(tokens)
        mask = self._ancestor_mask(ancestors)
        for index, (self_layer, cross_layer, feed_forward) in enumerate(self.blocks):
            attention = self_layer.SelfAttention
            normed = self_layer.layer_norm(states)
            keys, values = self._heads(attention.k(normed)), self._heads(attention.v(normed))
            if (cached := self.cache[index]) is not None:
                keys, values = torch.cat([cached[0], keys], dim=2), torch.cat([cached[1], values], dim=2)
            self.cache[index] = keys, values
            states = states + attention.o(self._attend(attention.q(normed), keys, values, mask))
            attention = cross_layer.EncDecAttention
            states = states + attention.o(self._attend(attention.q(cross_layer.layer_norm(states)), *self.cross[index], self.cross_mask))
            states = feed_forward(states)
        states = self.model.decoder.final_layer_norm(states)
        if self.model.config.scale_decoder_outputs:
            states = states * self.model.model_dim**-0.5
        with torch.autocast(states.device.type, enabled=False):  # in bf16 items of a list would tie
            return self.model.lm_head(states.float()).log_softmax(-1)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        queries = self._heads(queries)
        attended = scaled_dot_product_attention(queries, keys.to(queries.dtype), values.to(queries.dtype), attn_mask=mask.to(queries.dtype), scale=1.0)
        return attended.transpose(1, 2).flatten(2)


@torch.inference_mode()
def beam_search(
    model: T5ForConditionalGeneration, trie: Trie, input_ids: Tensor, attention_mask: Tensor, *, beam_size: int, closed: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The most probable items of each user, found level by level along the trie.

    Scores are sums of log-probabilities over the whole vocabulary; the trie masks after the softmax. Closed nodes
    (see `Trie.closed`, rows = users) are left out inside the search, so that a list is as full without them.

    Args:
        input_ids: int64 (B, S).
        attention_mask: (B, S), 1 where there is a token.
        beam_size: how many prefixes a user keeps at each level.

    Returns:
        Items, int64 (B, K) best first, K at most `beam_size`, `NO_ITEM` where nothing is left; scores, float32 (B, K), -inf there.
    """
    encoded = model.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    decoder = BeamDecoder(model, encoded, attention_mask, trie.n_levels)
    users = torch.arange(len(input_ids), device=input_ids.device)[:, None]
    nodes = torch.zeros_like(users)
    tokens = torch.full_like(users, PAD)
    ancestors = torch.zeros_like(users)[:, :, None]
    scores = torch.zeros(users.shape, device=input_ids.device)
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
    return trie.leaf_item[nodes].masked_fill(scores == -torch.inf, NO_ITEM), scores


@torch.inference_mode()
def score_catalogue(model: T5ForConditionalGeneration, tokens: Tensor, input_ids: Tensor, attention_mask: Tensor, chunk: int = 4096) -> Tensor:
    """The log-probability of every item for every user, one user at a time through the stock decoder: the search's oracle.

    Args:
        tokens: int64 (I, T).
        chunk: items decoded at once.

    Returns:
        float32 (B, I).
    """
    start = torch.full_like(tokens[:, :1], model.config.decoder_start_token_id)
    decoder_inputs = torch.cat([start, tokens[:, :-1]], dim=1)
    rows = []
    for ids, mask in zip(input_ids, attention_mask, strict=True):
        encoded = model.encoder(input_ids=ids[None], attention_mask=mask[None]).last_hidden_state
        row = []
        for inputs, targets in zip(decoder_inputs.split(chunk), tokens.split(chunk), strict=True):
            n = len(inputs)
            logits = model(encoder_outputs=(encoded.expand(n, -1, -1),), attention_mask=mask.expand(n, -1), decoder_input_ids=inputs).logits
            row.append(logits.float().log_softmax(-1).gather(2, targets[:, :, None]).sum((1, 2)))
        rows.append(torch.cat(row))
    return torch.stack(rows)


@dataclass(frozen=True)
class Searcher:
    """A generator with its catalogue, ready to rank items for histories.

    Attributes:
        model: in evaluation mode.
        trie: of the catalogue's tokens.
        tokens: int64 (I, T), row = item index.
        max_items: how many of a history's last items the model reads.
        precision: `auto`, `fp32` or `bf16`.
    """

    model: T5ForConditionalGeneration
    trie: Trie
    tokens: np.ndarray
    max_items: int
    precision: str = "auto"

    @staticmethod
    def of(model: T5ForConditionalGeneration, semantic_ids: SemanticIds, precision: str = "auto") -> Searcher:
        """A searcher on the model's device."""
        tokens = semantic_ids.tokens
        return Searcher(model, build_trie(tokens).to(model.device), tokens, model.config.tigerrec["max_items"], precision)

    def rank(
        self, histories: Sequence[np.ndarray], *, k: int, beam_size: int, mask_seen: bool, batch_tokens: int = 8192, progress: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items for each history of item indices (oldest first; none may be empty).

        The last `max_items` items are read; with `mask_seen` no item of the whole history is recommended.

        Args:
            batch_tokens: encoder tokens searched at once.
            progress: the label of a progress bar on stderr; none where empty.

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
        lengths = np.array([min(len(history), self.max_items) for history in histories], np.int64)
        was_training = self.model.training
        self.model.eval()
        with tqdm(total=len(histories), desc=progress, unit="user", leave=False, disable=None if progress else True) as bar:
            for batch in length_sorted_batches(lengths * self.tokens.shape[1], batch_tokens):
                found, found_scores = self._rank_batch([histories[row] for row in batch], beam_size, mask_seen)
                width = min(k, found.shape[1])
                items[batch, :width], scores[batch, :width] = found[:, :width], found_scores[:, :width]
                bar.update(len(batch))
        self.model.train(was_training)
        return items, scores

    def _rank_batch(self, histories: list[np.ndarray], beam_size: int, mask_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        device = self.model.device
        input_ids, mask = history_tokens([history[-self.max_items :] for history in histories], self.tokens)
        closed = None
        if mask_seen:
            rows = torch.from_numpy(np.repeat(np.arange(len(histories)), [len(history) for history in histories])).to(device)
            closed = self.trie.closed(rows, torch.from_numpy(np.concatenate(histories).astype(np.int64)).to(device))
        with autocast(device, self.precision):
            items, scores = beam_search(self.model, self.trie, input_ids.to(device), mask.to(device), beam_size=beam_size, closed=closed)
        return items.cpu().numpy(), scores.cpu().numpy()
