"""Trie-constrained beam search for many users at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tigerrec.data.batches import NO_ITEM, length_sorted_batches, padded
from tigerrec.models.base import Decoder, HistoryModel
from tigerrec.runtime.devices import product_type
from tigerrec.search.trie import Trie, build_trie
from tigerrec.tokenizers.ids import PAD


@torch.inference_mode()
def beam_search(
    decoder: Decoder, trie: Trie, n_users: int, *, beam_size: int, closed: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The most probable items of each user, found level by level along the trie.

    Scores are sums of log-probabilities over the whole vocabulary; the trie masks after the softmax. Closed nodes (see
    `Trie.closed`, rows = users) are left out inside the search, so that a list is as full without them.

    Args:
        decoder: has read the histories of B users, and was fed nothing.
        beam_size: how many prefixes a user keeps at each level.

    Returns:
        Items, int64 (B, K) best first, K at most `beam_size`, `NO_ITEM` where nothing is left; scores, float32 (B, K),
        -inf there. Items that share an id have its score and come in the order of the trie.
    """
    users = torch.arange(n_users, device=trie.leaf_item.device)[:, None]
    nodes = torch.zeros_like(users)
    tokens = torch.full_like(users, PAD)
    ancestors = torch.zeros_like(users)[:, :, None]
    scores = torch.zeros(users.shape, device=users.device)
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
        of_parents = ancestors.gather(1, parents[:, :, None].expand(-1, -1, depth + 1))
        ancestors = torch.cat([of_parents, slots[:, :, None]], dim=2)
    items, exists = trie.children(trie.n_levels, nodes)
    if closed is not None:
        exists = exists & ~trie.is_closed(trie.n_levels + 1, closed, users[:, :, None], items)
    scores = scores[:, :, None].masked_fill(~exists, -torch.inf).flatten(1)
    listed = scores.argsort(dim=1, descending=True, stable=True)[:, :beam_size]
    scores = scores.gather(1, listed)
    return trie.leaf_item[items].flatten(1).gather(1, listed).masked_fill(scores == -torch.inf, NO_ITEM), scores


@dataclass(frozen=True)
class Searcher:
    """A generator with its catalogue, ready to rank items for histories.

    Attributes:
        model: reads histories.
        trie: of the catalogue's tokens.
        precision: `auto`, `fp32` or `bf16`.
        popularity: int (I,), how often training histories hold each item, which orders items that share an id; without
            it none may.
    """

    model: HistoryModel
    trie: Trie
    precision: str = "auto"
    popularity: np.ndarray | None = None

    @staticmethod
    def of(model: HistoryModel, precision: str = "auto", popularity: np.ndarray | None = None) -> Searcher:
        """A searcher over all items of a model, on its device."""
        trie = build_trie(model.tokens.cpu().numpy(), popularity).to(model.device)
        return Searcher(model, trie, precision, popularity)

    def with_items(self, tokens: np.ndarray) -> Searcher:
        """A searcher over these and further items, of tokens int64 (n, T), that training never saw."""
        popularity = None if self.popularity is None else np.pad(self.popularity, (0, len(tokens)))
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
        """The k best items for each history, as in `ranking.Rank`, scored by their log-probabilities.

        Args:
            mask_seen: recommend no item of the whole history, of which the model may read the last items only.
            batch_tokens: positions of histories and beams searched at once.
            progress: the label of a progress bar on stderr; none where empty.
            seen: the items of each user that `mask_seen` masks; those of the history by default.

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
        hidden = None if progress else True
        with tqdm(total=len(histories), desc=progress, unit="user", leave=False, disable=hidden) as bar:
            for batch in length_sorted_batches(lengths * self.model.positions_per_item + beam_size, batch_tokens):
                masked = [(histories if seen is None else seen)[row] for row in batch] if mask_seen else None
                listed, listed_scores = self._rank_batch([histories[row] for row in batch], beam_size, masked)
                width = min(k, listed.shape[1])
                items[batch, :width], scores[batch, :width] = listed[:, :width], listed_scores[:, :width]
                bar.update(len(batch))
        return items, scores

    def _rank_batch(
        self, histories: list[np.ndarray], beam_size: int, masked: list[np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        device = self.model.device
        recent = padded([history[-self.model.facts["max_items"] :] for history in histories]).to(device)
        closed = None
        if masked is not None:
            rows = np.repeat(np.arange(len(masked)), [len(items) for items in masked])
            items = np.concatenate(masked).astype(np.int64)
            closed = self.trie.closed(torch.from_numpy(rows).to(device), torch.from_numpy(items).to(device))
        with torch.inference_mode():
            decoder = self.model.decoder(recent, product_type(device, self.precision))
            listed, scores = beam_search(decoder, self.trie, len(histories), beam_size=beam_size, closed=closed)
        return listed.cpu().numpy(), scores.cpu().numpy()
