"""SASRec: a causal transformer over the items of a history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from tigerrec.baselines import Fitted, Validate
from tigerrec.baselines.learning import BINARY, check_learning
from tigerrec.config import options
from tigerrec.ranges import at_least_one
from tigerrec.seeds import derived_seed


@options
class SASRec:
    """Self-attentive sequential recommendation (Kang and McAuley 2018, arXiv 1808.09781), whose output embeddings are
    its input embeddings.

    With `bce`, one random negative a target, it is theirs; with `ce` over all items it ranks far better (Klenitskiy and
    Vasilev 2023, arXiv 2309.07602).

    Args:
        loss: `bce` or `ce`.
        dim: width of the states.
        layers: transformer blocks.
        heads: of attention.
        expansion: the feed-forward layers are this many times as wide as the states.
        max_items: latest items of a history that are read.

    The others are those of `learning.Learning`.
    """

    family: ClassVar[str] = "sasrec"

    is_random: ClassVar[bool] = True

    loss: str = BINARY
    dim: int = 64
    layers: int = 2
    heads: int = 2
    expansion: int = 4
    max_items: int = 50
    epochs: int = 20
    batch_targets: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    dropout: float = 0.4
    validate_every: int = 2
    precision: str = "auto"

    def __post_init__(self) -> None:
        at_least_one(self, "dim", "layers", "heads", "expansion", "max_items")
        if self.dim % self.heads:
            raise ValueError(f"dim must be a multiple of heads={self.heads}, got {self.dim}")
        check_learning(self)

    def fit(self, training: Sequence[np.ndarray], n_items: int, *, seed: int, validate: Validate) -> Fitted:
        """Train on all targets of the histories. As in `Baseline.fit`."""
        from tigerrec.baselines.next_item import learn
        from tigerrec.baselines.transformer import Transformer

        model = Transformer(
            n_items,
            self.dim,
            self.layers,
            self.heads,
            self.expansion * self.dim,
            self.max_items,
            derived_seed(seed, "weights"),
        )
        return learn(model, training, self, seed, validate)
