"""Popularity: the items bought most often, the same for everyone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from tigerrec.baselines import Fitted, Validate
from tigerrec.config import options


def purchases(training: Sequence[np.ndarray], n_items: int) -> np.ndarray:
    """How often the training histories hold each item, int64 (n_items,)."""
    return np.bincount(np.concatenate([np.empty(0, np.int64), *training]), minlength=n_items)


@options
class Popularity:
    """Ranks items by their number of training interactions."""

    family: ClassVar[str] = "popularity"

    is_random: ClassVar[bool] = False

    def fit(
        self, training: Sequence[np.ndarray], n_items: int, *, seed: int = 0, validate: Validate | None = None
    ) -> Fitted:
        """Count; the score is the log of (count + 1) over its sum, so that it is finite for every item. As in
        `Baseline.fit`."""
        counts = purchases(training, n_items)
        best_first = np.argsort(-counts, kind="stable").astype(np.int32)
        log_shares = np.log((counts + 1) / (counts + 1).sum()).astype(np.float32)

        def rank(histories: Sequence[np.ndarray], *, k: int, mask_seen: bool) -> tuple[np.ndarray, np.ndarray]:
            items = np.full((len(histories), k), -1, np.int32)
            for row, history in zip(items, histories, strict=True):
                top = best_first[: k + len(history)]
                chosen = top[~np.isin(top, history)][:k] if mask_seen else top[:k]
                row[: len(chosen)] = chosen
            return items, np.where(items >= 0, log_shares[items], np.float32(-np.inf))

        return Fitted(rank)
