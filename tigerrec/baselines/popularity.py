"""Popularity: the items bought most often, the same for everyone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from tigerrec.baselines.base import Fitted, Validate
from tigerrec.config import options
from tigerrec.search.ranking import by_popularity, purchases


@options
class Popularity:
    """Ranks items by their number of training interactions."""

    family: ClassVar[str] = "popularity"

    is_random: ClassVar[bool] = False

    def fit(
        self, training: Sequence[np.ndarray], n_items: int, *, seed: int = 0, validate: Validate | None = None
    ) -> Fitted:
        """Count. As in `Baseline.fit`."""
        return Fitted(by_popularity(purchases(training, n_items)))
