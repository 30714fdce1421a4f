"""SASRec: a causal transformer over the items of a history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from tigerrec.baselines.base import Fitted, Validate
from tigerrec.baselines.learning import BINARY, Learning
from tigerrec.config import AtLeastOne, BelowOne, Positive, options


@options
class SASRec(Learning):
    """Self-attentive sequential recommendation (Kang and McAuley 2018, arXiv 1808.09781), whose output embeddings are
    its input embeddings.

    With `bce`, one random negative a target, it is theirs; with `ce` over all items it ranks far better (Klenitskiy and
    Vasilev 2023, arXiv 2309.07602).

    Args:
        loss: `ce`, cross-entropy over all items, or `bce`, binary cross-entropy of the target and one random item that
            is not in the user's training history.
        dim: width of the states.
        layers: transformer blocks.
        expansion: the feed-forward layers are this many times as wide as the states.
        max_items: latest items of a history that are read.

    The others are those of `learning.Learning`.
    """

    family: ClassVar[str] = "sasrec"

    is_random: ClassVar[bool] = True

    loss: Literal["ce", "bce"] = BINARY
    dim: AtLeastOne = 64
    layers: AtLeastOne = 2
    heads: AtLeastOne = 2
    expansion: AtLeastOne = 4
    max_items: AtLeastOne = 50
    epochs: AtLeastOne = 20
    learning_rate: Positive = 2e-3
    dropout: BelowOne = 0.4

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads={self.heads}, got {self.dim}")

    def fit(self, training: Sequence[np.ndarray], n_items: int, *, seed: int, validate: Validate) -> Fitted:
        """Train on all targets of the histories. As in `Baseline.fit`."""
        from tigerrec.baselines.next_item import learn
        from tigerrec.baselines.transformer import Transformer

        def build(weights_seed: int) -> Transformer:
            hidden = self.expansion * self.dim
            return Transformer(n_items, self.dim, self.layers, self.heads, hidden, self.max_items, weights_seed)

        return learn(build, training, self, seed, validate, self.loss)
