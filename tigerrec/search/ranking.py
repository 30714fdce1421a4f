"""Recommenders that score all items: from scores to lists, and popularity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

USERS_AT_ONCE = 512

ScoreFunction = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Histories → scores of all items, float32 (n, n_items), which the caller may change."""


class Rank(Protocol):
    """A fitted recommender."""

    def __call__(self, histories: Sequence[np.ndarray], *, k: int, mask_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        """The k best items for each history of item indices (oldest first, at least one), with `mask_seen` none that it
        holds: items int32 (n, k), -1 where a list is shorter, and scores float32 (n, k), -inf there; equal scores by
        item index."""


def best_items(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The items with the highest scores, best first; equal scores by item index.

    Args:
        scores: float32 (n, n_items); -inf where an item may not be listed.

    Returns:
        Items int32 (n, k), -1 where too few may be listed, and scores float32 (n, k), -inf there.
    """
    n_listed = min(k, scores.shape[1])
    chosen = np.sort(np.argpartition(scores, scores.shape[1] - n_listed, axis=1)[:, -n_listed:], axis=1)
    lowest = np.take_along_axis(scores, chosen, axis=1).min(1)
    for row in np.flatnonzero((scores >= lowest[:, None]).sum(1) > n_listed):
        candidates = np.flatnonzero(scores[row] >= lowest[row])
        chosen[row] = np.sort(candidates[np.argsort(-scores[row, candidates], kind="stable")[:n_listed]])
    order = np.argsort(-np.take_along_axis(scores, chosen, axis=1), axis=1, kind="stable")
    chosen = np.take_along_axis(chosen, order, axis=1)
    best = np.take_along_axis(scores, chosen, axis=1)
    missing = ((0, 0), (0, k - n_listed))
    items = np.pad(np.where(np.isfinite(best), chosen, -1).astype(np.int32), missing, constant_values=-1)
    return items, np.pad(best, missing, constant_values=-np.inf)


def ranks_by(score: ScoreFunction) -> Rank:
    """The recommender that lists the items with the highest scores; users of similar history length are scored
    together."""

    def rank(histories: Sequence[np.ndarray], *, k: int, mask_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        items, best = np.empty((len(histories), k), np.int32), np.empty((len(histories), k), np.float32)
        order = np.argsort([len(history) for history in histories], kind="stable")
        for start in range(0, len(order), USERS_AT_ONCE):
            users = order[start : start + USERS_AT_ONCE]
            known = [histories[user] for user in users]
            scores = score(known)
            if mask_seen:
                rows = np.repeat(np.arange(len(known)), [len(history) for history in known])
                scores[rows, np.concatenate(known)] = -np.inf
            items[users], best[users] = best_items(scores, k)
        return items, best

    return rank


def purchases(training: Sequence[np.ndarray], n_items: int) -> np.ndarray:
    """How often the training histories hold each item, int64 (n_items,)."""
    return np.bincount(np.concatenate([np.empty(0, np.int64), *training]), minlength=n_items)


def by_popularity(counts: np.ndarray) -> Rank:
    """The recommender that lists the items that training histories hold most often, int (n_items,), by the log of
    (count + 1) over its sum, which is finite for every item."""
    best_first = np.argsort(-counts, kind="stable").astype(np.int32)
    log_shares = np.log((counts + 1) / (counts + 1).sum()).astype(np.float32)

    def rank(histories: Sequence[np.ndarray], *, k: int, mask_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        items = np.full((len(histories), k), -1, np.int32)
        for row, history in zip(items, histories, strict=True):
            top = best_first[: k + len(history)]
            chosen = top[~np.isin(top, history)][:k] if mask_seen else top[:k]
            row[: len(chosen)] = chosen
        return items, np.where(items >= 0, log_shares[items], np.float32(-np.inf))

    return rank
