"""How a model of the next item learns: what the baselines that are trained have in common, without torch."""

from __future__ import annotations

from typing import Protocol

from tigerrec.config import check_precision
from tigerrec.ranges import at_least_one, below_one, not_negative, positive

CROSS_ENTROPY, BINARY = "ce", "bce"


class Learning(Protocol):
    """The settings of training.

    Attributes:
        loss: `ce`: cross-entropy over all items; or `bce`: binary cross-entropy of the target and one random other
            item.
        epochs: passes over all targets.
        batch_targets: targets a step, of histories of similar length.
        learning_rate: AdamW's peak; linear warm-up over the first twentieth of the steps, then a cosine to zero.
        weight_decay: AdamW's, on matrices only.
        dropout: share of the elements of states that a step drops.
        validate_every: epochs between validations, of which the best one's weights are kept.
        precision: of matrix products: `auto`, `fp32` or `bf16`; `auto` is bf16 where the hardware multiplies it.
    """

    @property
    def loss(self) -> str: ...
    @property
    def epochs(self) -> int: ...
    @property
    def batch_targets(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def validate_every(self) -> int: ...
    @property
    def precision(self) -> str: ...


def check_learning(learning: Learning) -> None:
    """Raise ValueError for settings out of range."""
    at_least_one(learning, "epochs", "batch_targets", "validate_every")
    positive(learning, "learning_rate")
    not_negative(learning, "weight_decay")
    below_one(learning, "dropout")
    if learning.loss not in (CROSS_ENTROPY, BINARY):
        raise ValueError(f"loss must be {CROSS_ENTROPY} or {BINARY}, got {learning.loss!r}")
    check_precision(learning.precision)
