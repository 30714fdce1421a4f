"""The next item from the last one alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from tigerrec.baselines import Fitted, Validate
from tigerrec.baselines.learning import CROSS_ENTROPY, check_learning
from tigerrec.config import options
from tigerrec.ranges import at_least_one
from tigerrec.seeds import derived_seed


@options
class LastItem:
    """Scores an item as v_last W v_next + b_next, a Markov chain of low rank, learned by cross-entropy over all items.

    It is the item part of Rendle et al. 2010 (Factorizing personalized Markov chains), with one vector an item instead
    of two.

    Args:
        dim: width of the vectors.

    The others are those of `learning.Learning`.
    """

    family: ClassVar[str] = "last_item"

    is_random: ClassVar[bool] = True

    dim: int = 128
    epochs: int = 16
    batch_targets: int = 512
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    dropout: float = 0.5
    validate_every: int = 2
    precision: str = "auto"

    def __post_init__(self) -> None:
        at_least_one(self, "dim")
        check_learning(self)

    @property
    def loss(self) -> str:
        """Cross-entropy over all items."""
        return CROSS_ENTROPY

    def fit(self, training: Sequence[np.ndarray], n_items: int, *, seed: int, validate: Validate) -> Fitted:
        """Train on all pairs of consecutive items. As in `Baseline.fit`."""
        from tigerrec.baselines.bilinear import Bilinear
        from tigerrec.baselines.next_item import learn

        return learn(Bilinear(n_items, self.dim, derived_seed(seed, "weights")), training, self, seed, validate)
