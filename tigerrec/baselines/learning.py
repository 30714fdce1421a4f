"""What the baselines that are trained have in common, without torch."""

from __future__ import annotations

from typing import Final

from tigerrec.config import AtLeastOne, BelowOne, Device, NotNegative, Positive, Precision, options
from tigerrec.storage.fingerprints import added, not_identity

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
        members: models trained apart, each from a beginning and on batches of its own, and scored as one by the mean of
            their scores (Lakshminarayanan et al. 2017, arXiv 1612.01474).
        precision: of matrix products: `auto`, `fp32` or `bf16`; `auto` is bf16 where the hardware gains by it.
        device: `auto`, the GPU where there is one, `cpu` or `cuda`.
    """

    epochs: AtLeastOne = 16
    batch_targets: AtLeastOne = 512
    learning_rate: Positive = 3e-3
    weight_decay: NotNegative = 0.01
    dropout: BelowOne = 0.5
    validate_every: AtLeastOne = 2
    members: AtLeastOne = added(1)
    precision: Precision = "auto"
    device: Device = not_identity(default="auto")
