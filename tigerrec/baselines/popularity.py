"""Popularity: the items bought most often, the same for everyone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Popularity:
    """Ranks items by their number of training interactions; ties by item index."""

    def rank(self, training: Sequence[np.ndarray], n_items: int, histories: Sequence[np.ndarray], *, k: int, mask_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        """The best items of each user, as in `Baseline.rank`; the score is the log of (count + 1) over its sum, so that it is finite for every item."""
        counts = np.bincount(np.concatenate([np.empty(0, np.int64), *training]), minlength=n_items)
        best_first = np.argsort(-counts, kind="stable").astype(np.int32)
        log_shares = np.log((counts + 1) / (counts + 1).sum()).astype(np.float32)
        items = np.full((len(histories), k), -1, np.int32)
        for row, history in zip(items, histories, strict=True):
            top = best_first[: k + len(history)]
            chosen = top[~np.isin(top, history)][:k] if mask_seen else top[:k]
            row[: len(chosen)] = chosen
        return items, np.where(items >= 0, log_shares[items], np.float32(-np.inf))
