"""BSARec: a transformer over the items of a history that also filters them by frequency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from tigerrec.baselines.base import Fitted, Validate
from tigerrec.baselines.learning import CROSS_ENTROPY, Learning
from tigerrec.config import AtLeastOne, BelowOne, NotNegative, Positive, options


@options
class BSARec(Learning):
    """Beyond self-attention (Shin et al. 2024, arXiv 2312.10325): each block mixes attention with a filter that weighs
    the slow and the fast changes of a history apart.

    Its filter reads both sides of a place, so each target is given a history of its own.

    Args:
        dim: width of the states.
        layers: blocks.
        expansion: the feed-forward layers are this many times as wide as the states.
        max_items: latest items of a history that are read.
        filter_share: of a block's output that is the filter's, the rest is attention's; α in the paper.
        slow_frequencies: how many of the lowest frequencies besides the mean count as slow; c // 2 for the paper's c.

    The others are those of `learning.Learning`.
    """

    family: ClassVar[str] = "bsarec"

    is_random: ClassVar[bool] = True

    dim: AtLeastOne = 64
    layers: AtLeastOne = 2
    heads: AtLeastOne = 1
    expansion: AtLeastOne = 4
    max_items: AtLeastOne = 50
    filter_share: Annotated[float, Field(ge=0, le=1)] = 0.7
    slow_frequencies: Annotated[int, Field(ge=0)] = 2
    epochs: AtLeastOne = 20
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 0.0
    dropout: BelowOne = 0.5

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads={self.heads}, got {self.dim}")

    def fit(self, training: Sequence[np.ndarray], n_items: int, *, seed: int, validate: Validate) -> Fitted:
        """Train on all targets of the histories. As in `Baseline.fit`."""
        from tigerrec.baselines.filtered import FilteredTransformer
        from tigerrec.baselines.next_item import learn

        def build(weights_seed: int) -> FilteredTransformer:
            return FilteredTransformer(n_items, self, weights_seed)

        return learn(build, training, self, seed, validate, CROSS_ENTROPY)
