"""The next item from the last one alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from tigerrec.baselines.base import Fitted, Validate
from tigerrec.baselines.learning import CROSS_ENTROPY, Learning
from tigerrec.config import AtLeastOne, options


@options
class LastItem(Learning):
    """Scores an item as v_last W v_next + b_next, a Markov chain of low rank, learned by cross-entropy over all items.

    It is the item part of Rendle et al. 2010 (Factorizing personalized Markov chains), with one vector an item instead
    of two.

    Args:
        dim: width of the vectors.

    The others are those of `learning.Learning`.
    """

    family: ClassVar[str] = "last_item"

    is_random: ClassVar[bool] = True

    dim: AtLeastOne = 128

    def fit(self, training: Sequence[np.ndarray], n_items: int, *, seed: int, validate: Validate) -> Fitted:
        """Train on all pairs of consecutive items. As in `Baseline.fit`."""
        from tigerrec.baselines.bilinear import Bilinear
        from tigerrec.baselines.next_item import learn

        def build(weights_seed: int) -> Bilinear:
            return Bilinear(n_items, self.dim, weights_seed)

        return learn(build, training, self, seed, validate, CROSS_ENTROPY)
