"""How a generator is trained: the options of the train stage."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from tigerrec.config import AtLeastOne, BelowOne, Device, NotNegative, Positive, Precision, options
from tigerrec.evaluation.metrics import VALIDATION_K
from tigerrec.models.base import BIDIRECTIONAL, ITEM_CAUSAL, EncoderMask, Generator
from tigerrec.storage.fingerprints import added, not_identity
from tigerrec.training.trackers import NONE, checked_tracker

PACKED: Final = "packed"
PREFIX: Final = "prefix"
ENCODER_MASK: dict[str, EncoderMask] = {PACKED: ITEM_CAUSAL, PREFIX: BIDIRECTIONAL}


@options
class Training:
    """How a generator learns to continue histories; every item but a history's first is a target once an epoch.

    Attributes:
        examples: `packed`: a window of a history passes the encoder once, each item seeing itself and the items before
            it, and all its targets pass the decoder together; or `prefix`: each target has a pass of its own and the
            encoder no mask, as in the paper of TIGER.
        stride: items between the windows of long histories; None with prefix.
        epochs: passes over all targets.
        max_steps: where training ends before that; None: nowhere.
        batch_targets: targets a step, of examples of similar length.
        batch_scope: whether `batch_targets` counts those of `all` processes together, so that any number of them takes
            the same steps, or of each `process`, so that more of them take fewer and larger steps. The learning rate is
            used as it is given in both cases; with Adam it should grow with the square root of a step's targets
            (Malladi et al. 2022, arXiv 2205.10330).
        part_tokens: about how many encoder and decoder tokens pass the model at once; longer steps pass in parts whose
            gradients add up.
        learning_rate: its peak; it rises linearly during `warmup` and then follows a cosine to zero at the last step.
        embedding_rate: the embeddings of tokens learn at this multiple of the learning rate, which their decay ignores.
        item_embedding_rate: likewise those of items, each of which few targets reach.
        warmup: share of all steps.
        weight_decay: AdamW's, on matrices only.
        adam_beta2: AdamW's memory of squared gradients. Of a row that few targets reach it keeps the last one: the more
            of it is forgotten until the next, the larger that step.
        max_grad_norm: gradients are scaled down to this norm.
        label_smoothing: share of the target's probability spread over the vocabulary.
        validate_every: epochs between validations.
        validation_users: size of the seeded sample of users that validation ranks.
        selection_users: likewise of the sample that chooses among the best candidates; None: all users.
        beam_size: of the search in validation.
        patience: validations without a new best before training stops; 0 = never.
        holdout: whether validation and test interactions are kept from training; without them, weights are neither
            validated nor chosen, and cannot be evaluated.
        precision: `auto`, `fp32` or `bf16`; `auto` is bf16 where the hardware gains by it.
        checkpoint_steps: steps between checkpoints.
        log_steps: steps between lines of `training.jsonl`.
        device: `auto`, `cpu` or `cuda`.
        tracker: what shows the figures of `training.jsonl` while they come: `none`, or a module of `trackers`.
    """

    examples: Literal["packed", "prefix"] = PACKED
    stride: AtLeastOne | None = 10
    epochs: AtLeastOne = 20
    batch_targets: AtLeastOne = 512
    part_tokens: AtLeastOne = 8192
    learning_rate: Positive = 1e-3
    embedding_rate: Positive = 15.0
    item_embedding_rate: Positive = 50.0
    warmup: BelowOne = 0.05
    weight_decay: NotNegative = 0.01
    max_grad_norm: Positive = 1.0
    label_smoothing: BelowOne = 0.0
    validate_every: AtLeastOne = 5
    validation_users: AtLeastOne = 5000
    beam_size: int = Field(default=20, ge=VALIDATION_K)
    patience: int = Field(default=0, ge=0)
    precision: Precision = "auto"
    adam_beta2: BelowOne = added(0.999)
    max_steps: AtLeastOne | None = added(None)
    selection_users: AtLeastOne | None = added(None)
    holdout: bool = added(True)
    batch_scope: Literal["all", "process"] = added("all")
    checkpoint_steps: AtLeastOne = not_identity(default=200)
    log_steps: AtLeastOne = not_identity(default=50)
    device: Device = not_identity(default="auto")
    tracker: Annotated[str, AfterValidator(checked_tracker)] = not_identity(default=NONE)

    def __post_init__(self) -> None:
        if self.examples == PACKED and self.stride is None:
            raise ValueError(f"stride must be at least 1 with examples={PACKED}, got None")
        if self.examples == PREFIX and self.stride is not None:
            raise ValueError(f"stride has no effect with examples={PREFIX}; leave it null, got {self.stride}")

    def step_targets(self, processes: int) -> int:
        """Targets a step of so many processes."""
        return self.batch_targets * (processes if self.batch_scope == "process" else 1)


@options
class TrainConfig:
    """What identifies a train stage: the model, how it is trained, and the seed of both."""

    generator: Generator
    training: Training
    seed: int = 0

    def __post_init__(self) -> None:
        if self.training.stride is not None:
            self.generator.window(self.training.stride)
