"""What a user would pick instead of a generator; each ranks items from the training interactions alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Baseline(Protocol):
    """A recommender that is fitted when it ranks."""

    def rank(self, training: Sequence[np.ndarray], n_items: int, histories: Sequence[np.ndarray], *, k: int, mask_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        """The best items of each user.

        Args:
            training: the training part of every user's history, item indices.
            n_items: size of the catalogue; items are 0 … n_items - 1.
            histories: the users to rank for: what is known of each, item indices.
            k: length of the lists.
            mask_seen: leave out the items of the user's own history.

        Returns:
            Items int32 (n, k), -1 where a list is shorter, and scores float32 (n, k), -inf there.
        """
        ...
