"""What the baselines that are trained have in common, without torch."""

from __future__ import annotations

from typing import Final

from tigerrec.config import AtLeastOne, BelowOne, NotNegative, Positive, Precision, options

CROSS_ENTROPY: Final = "ce"
BINARY: Final = "bce"


@options
class Learning:
    """How a model of the next item is trained.

    Attributes:
        epochs: passes over all targets.
        batch_targets: targets a step, of histories of similar length.
        learning_rate: AdamW's peak; linear warm-up over the first twentieth of the steps, then a cosine to zero.
        weight_decay: AdamW's, on matrices only.
        dropout: share of the elements of states that a step drops.
        validate_every: epochs between validations, of which the best one's weights are kept.
        precision: of matrix products: `auto`, `fp32` or `bf16`; `auto` is bf16 where the hardware multiplies it.
    """

    epochs: AtLeastOne = 16
    batch_targets: AtLeastOne = 512
    learning_rate: Positive = 3e-3
    weight_decay: NotNegative = 0.01
    dropout: BelowOne = 0.5
    validate_every: AtLeastOne = 2
    precision: Precision = "auto"
