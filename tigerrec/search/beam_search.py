"""Trie-constrained beam search for many users at once."""

from __future__ import annotations

import torch
from torch import Tensor

from tigerrec.data.batches import NO_ITEM
from tigerrec.models.base import Beams, Decoder
from tigerrec.tokenizers.trie import Trie


@torch.inference_mode()
def beam_search(
    decoder: Decoder,
    trie: Trie,
    n_users: int,
    *,
    beam_size: int,
    closed: list[Tensor] | None = None,
    steering: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The most probable items of each user, found level by level along the trie.

    Scores are sums of the log-probabilities that the decoder gives. Closed nodes (see `Trie.closed`, rows = users), and
    those without an item that may be found, are left out inside the search, so that a list is as full without them.

    Args:
        decoder: has read the histories of B users, and was fed nothing.
        beam_size: how many prefixes a user keeps at each level.
        steering: for each depth 1..T float32 (B, nodes): what is added to the log-probability of a node before the
            children of its parent share all probability again.

    Returns:
        Items, int64 (B, K) best first, K at most `beam_size`, `NO_ITEM` where nothing is left; scores, float32 (B, K),
        -inf there. Items that share an id have its score and come in the order of the trie.
    """
    users = torch.arange(n_users, device=trie.leaf_item.device)[:, None]
    nodes = torch.zeros_like(users)
    ancestors = torch.zeros_like(users)[:, :, None]
    scores = torch.zeros(users.shape, device=users.device)
    for depth in range(trie.n_levels):
        beams = Beams.at(nodes, ancestors, trie)
        children, exists = beams.children, beams.exists
        log_probabilities = decoder.step(beams)
        if steering is not None:
            own = steering[depth].gather(1, children.flatten(1)).view(children.shape)
            log_probabilities = (log_probabilities + own).masked_fill(~exists, -torch.inf).log_softmax(-1)
        candidates = scores[:, :, None] + log_probabilities
        if trie.allowed is not None:
            exists = exists & (trie.n_items_below[depth][children] > 0)
        if closed is not None:
            exists = exists & ~trie.is_closed(depth + 1, closed, users[:, :, None], children)
        candidates = candidates.masked_fill(~exists, -torch.inf).flatten(1)
        scores, chosen = candidates.topk(min(beam_size, candidates.shape[1]), dim=1)
        parents = chosen // children.shape[-1]
        nodes = children.flatten(1).gather(1, chosen)
        slots = torch.arange(nodes.shape[1], device=nodes.device).expand_as(nodes)
        of_parents = ancestors.gather(1, parents[:, :, None].expand(-1, -1, depth + 1))
        ancestors = torch.cat([of_parents, slots[:, :, None]], dim=2)
    items, exists = trie.children(trie.n_levels, nodes)
    if trie.allowed is not None:
        exists = exists & (trie.n_items_below[-1][items] > 0)
    if closed is not None:
        exists = exists & ~trie.is_closed(trie.n_levels + 1, closed, users[:, :, None], items)
    scores = scores[:, :, None].masked_fill(~exists, -torch.inf).flatten(1)
    listed = scores.argsort(dim=1, descending=True, stable=True)[:, :beam_size]
    scores = scores.gather(1, listed)
    return trie.leaf_item[items].flatten(1).gather(1, listed).masked_fill(scores == -torch.inf, NO_ITEM), scores
