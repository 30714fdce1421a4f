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
    nodes = torch.zeros_like(items[:, :1])
    ancestors = torch.zeros_like(nodes)[:, :, None]
    scores = torch.zeros(items.shape, device=items.device)
    for depth in range(trie.n_levels):
        following = trie.path[depth][listed]
        place = following - trie.first_child[depth][nodes]
        log_probabilities = decoder.step(Beams.at(nodes, ancestors, trie)).expand(-1, items.shape[1], -1)
        scores += log_probabilities.gather(2, place[:, :, None]).squeeze(2)
        nodes = following
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
    decoder: Decoder,
    trie: Trie,
    n_users: int,
    beam_size: int,
    seen: tuple[Tensor, Tensor] | None,
    scoring: Scoring,
    n_places: int,
) -> tuple[Tensor, Tensor]:
    """The best items of each user and their scores, as `beam_search` gives them.

    Args:
        decoder: has read the histories of B users, and was asked nothing; it scores items where `scoring` asks it to,
            and is asked more than once there.
        seen: users and items, int64 (n,) each: pairs that may not be listed.
        n_places: how many items of a list are used, for `cold_places`.
    """
    closed = None if seen is None else trie.closed(*seen)
    if not scoring.reads_items:
        return beam_search(decoder, trie, n_users, beam_size=beam_size, closed=closed)
    scorer = cast(ScoresItems, decoder)
    item_scores = scorer.item_scores()
    allowed = item_scores if seen is None else item_scores.index_put(seen, item_scores.new_tensor(-torch.inf))
    if trie.allowed is not None:
        allowed = allowed.masked_fill(~trie.allowed, -torch.inf)
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
        is_cold = torch.zeros(len(every), dtype=torch.bool, device=every.device).index_fill_(0, cold, True)
        best_cold = best(every[cold], allowed[:, cold], scoring.cold_places)
        listed = with_cold_places(listed, best_cold, is_cold, min(PLACES, n_places), scoring.cold_places)
    return listed


def with_cold_places(
    listed: tuple[Tensor, Tensor], candidates: tuple[Tensor, Tensor], is_cold: Tensor, n_first: int, n_cold: int
) -> tuple[Tensor, Tensor]:
    """Lists that have at least `n_cold` cold items among their first `n_first`: where too few stand there, the best
    candidates that do not take the end of these places, and known items move down behind them.

    Args:
        listed: items int64 (B, m), best first, `NO_ITEM` where there is none, and their scores float32.
        candidates: the `n_cold` best cold items, or all, likewise, (B, n).
        is_cold: bool (I,).
    """
    items, scores = (torch.cat(pair, dim=1) for pair in zip(listed, candidates, strict=True))
    width = listed[0].shape[1]
    exists, is_first = items != NO_ITEM, torch.arange(width, device=items.device) < n_first
    is_first = is_first & exists[:, :width]
    is_known = is_first & ~is_cold[listed[0].clamp(min=0)]
    n_missing = n_cold - (is_first & ~is_known).sum(1, keepdim=True)
    stands_there = ((candidates[0][:, :, None] == listed[0][:, None, :]) & is_first[:, None, :]).any(2)
    is_free = exists[:, width:] & ~stands_there
    is_added = is_free & (is_free.cumsum(1) <= n_missing)
    n_moved = is_added.sum(1, keepdim=True) + is_first.sum(1, keepdim=True) - n_first
    is_moved = is_known & (is_known.flip(1).cumsum(1).flip(1) <= n_moved)
    is_repeated = (listed[0][:, :, None] == candidates[0].masked_fill(~is_added, NO_ITEM)[:, None, :]).any(2)
    stays = exists & torch.cat([~is_repeated, is_added], dim=1)
    group = torch.cat([torch.where(is_first & ~is_moved, 0, 2), torch.ones_like(candidates[0])], dim=1)
    order = torch.where(stays, group, 3).argsort(dim=1, stable=True)[:, :width]
    gone = ~stays.gather(1, order)
    return items.gather(1, order).masked_fill(gone, NO_ITEM), scores.gather(1, order).masked_fill(gone, -torch.inf)
