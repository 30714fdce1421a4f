"""Lists by the probabilities of codes along the trie, by those of items as a whole, and by both."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from tigerrec.data.batches import NO_ITEM
from tigerrec.models.base import Beams, Decoder, ScoresItems
from tigerrec.search.beam_search import beam_search
from tigerrec.search.options import HYBRID, INLINE, ITEMS, LIGER, PLACES, Scoring
from tigerrec.tokenizers.ids import PAD
from tigerrec.tokenizers.trie import Trie

SMALLEST_PROBABILITY = 1e-30


@torch.inference_mode()
def path_scores(decoder: Decoder, trie: Trie, items: Tensor) -> Tensor:
    """The sum of the log-probabilities of each item's tokens, exactly, float32 (B, m); -inf for `NO_ITEM`.

    Args:
        decoder: has read the histories of B users, and was asked nothing.
        items: int64 (B, m), indices of the trie's items.
    """
    slots = torch.arange(items.shape[1], device=items.device).expand_as(items)
    listed = items.clamp(min=0)
    nodes, tokens = torch.zeros_like(items[:, :1]), torch.full_like(items[:, :1], PAD)
    ancestors = torch.zeros_like(nodes)[:, :, None]
    scores = torch.zeros(items.shape, device=items.device)
    for depth in range(trie.n_levels):
        children, exists = trie.children(depth, nodes)
        beams = Beams(depth, nodes, tokens, ancestors, children, trie.token[depth][children], exists)
        following = trie.path[depth][listed]
        place = following - trie.first_child[depth][nodes]
        log_probabilities = decoder.step(beams).expand(-1, items.shape[1], -1)
        scores += log_probabilities.gather(2, place[:, :, None]).squeeze(2)
        nodes, tokens = following, trie.token[depth][following]
        ancestors = torch.cat([ancestors.expand(-1, items.shape[1], -1), slots[:, :, None]], dim=2)
    return scores.masked_fill(items == NO_ITEM, -torch.inf)


def log_masses(item_scores: Tensor, trie: Trie) -> list[Tensor]:
    """The log of the probability that lies on the items below each node, for each depth 1..T float32 (B, nodes).

    Args:
        item_scores: log-probabilities, float32 (B, I).
    """
    probabilities = item_scores.exp()
    masses = [
        probabilities.new_zeros(len(probabilities), len(token)).index_add_(1, path, probabilities)
        for token, path in zip(trie.token, trie.path, strict=False)
    ]
    return [mass.clamp_(min=SMALLEST_PROBABILITY).log_() for mass in masses]


def best(items: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k items with the highest scores, best first, and their scores; equal scores in the order given.

    Args:
        items: int64 (B, m) or (m,).
        scores: float32 (B, m); -inf where an item may not be listed.

    Returns:
        Items int64 (B, k'), k' = min(k, m), `NO_ITEM` where the score is -inf; and scores float32 (B, k').
    """
    k = min(k, scores.shape[1])
    enough = scores >= scores.topk(k, dim=1).values[:, -1:]
    kept = enough.float().topk(int(enough.sum(1).max()), dim=1).indices.sort(dim=1).values
    scores, order = scores.gather(1, kept).sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :k], kept.gather(1, order[:, :k])
    return items.expand(len(scores), -1).gather(1, order).masked_fill(scores == -torch.inf, NO_ITEM), scores


def united(first: Tensor, second: Tensor) -> Tensor:
    """The items of two lists of each user, int64 (B, m + n), `NO_ITEM` where one of the second is in the first."""
    repeated = (second[:, :, None] == first[:, None, :]).any(2)
    return torch.cat([first, second.masked_fill(repeated, NO_ITEM)], dim=1)


def lists(
    decoder: Decoder, trie: Trie, n_users: int, beam_size: int, seen: tuple[Tensor, Tensor] | None, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """The best items of each user and their scores, as `beam_search` gives them.

    Args:
        decoder: has read the histories of B users, and was asked nothing; it scores items where `scoring` asks it to,
            and is asked more than once there.
        seen: users and items, int64 (n,) each: pairs that may not be listed.
    """
    closed = None if seen is None else trie.closed(*seen)
    if not scoring.reads_items:
        return beam_search(decoder, trie, n_users, beam_size=beam_size, closed=closed)
    scorer = cast(ScoresItems, decoder)
    item_scores = scorer.item_scores()
    allowed = item_scores if seen is None else item_scores.index_put(seen, torch.tensor(-torch.inf).to(item_scores))
    every = torch.arange(item_scores.shape[1], device=item_scores.device)
    cold = scorer.unseen_items()
    informed = item_scores.masked_fill(item_scores == -torch.inf, -math.log(len(every)))
    if scoring.scores == ITEMS:
        listed = best(every, allowed, beam_size)
    elif scoring.scores == INLINE:
        steering = [scoring.item_weight * mass for mass in log_masses(informed, trie)]
        listed = beam_search(decoder, trie, n_users, beam_size=beam_size, closed=closed, steering=steering)
    else:
        listed = beam_search(decoder, trie, n_users, beam_size=beam_size, closed=closed)
        if scoring.scores == HYBRID:
            candidates = united(listed[0], best(every, allowed, beam_size)[0])
            by_codes = path_scores(decoder, trie, candidates)
            joined = by_codes + scoring.item_weight * informed.gather(1, candidates.clamp(min=0))
            listed = best(candidates, joined, beam_size)
        elif scoring.scores == LIGER:
            candidates = united(listed[0], best(every[cold], allowed[:, cold], len(every))[0])
            by_items = allowed.gather(1, candidates.clamp(min=0)).masked_fill(candidates == NO_ITEM, -torch.inf)
            listed = best(candidates, by_items, beam_size)
    if scoring.cold_places:
        listed = with_cold_places(listed, best(every[cold], allowed[:, cold], scoring.cold_places))
    return listed


def with_cold_places(listed: tuple[Tensor, Tensor], cold: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Lists whose first ten places end with the cold items, those behind them moved down; each item stays once."""
    items, scores = listed
    items = items.masked_fill((items[:, :, None] == cold[0][:, None, :]).any(2), NO_ITEM)
    n_cold = cold[0].shape[1]
    kept = max(PLACES - n_cold, 0)
    gaps = (items == NO_ITEM).long().argsort(dim=1, stable=True)
    items, scores = items.gather(1, gaps), scores.gather(1, gaps)
    items = torch.cat([items[:, :kept], cold[0], items[:, kept:]], dim=1)
    scores = torch.cat([scores[:, :kept], cold[1], scores[:, kept:]], dim=1)
    gaps = (items == NO_ITEM).long().argsort(dim=1, stable=True)[:, : listed[0].shape[1]]
    items = items.gather(1, gaps)
    return items, scores.gather(1, gaps).masked_fill(items == NO_ITEM, -torch.inf)
