"""The train stage: a generator learns to continue histories; the weights that validate best are kept."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from tigerrec import artifacts, distributed
from tigerrec.config import AtLeastOne, BelowOne, Device, NotNegative, Positive, Precision, options
from tigerrec.histories import Histories, load_histories
from tigerrec.identity import not_identity
from tigerrec.models.base import BIDIRECTIONAL, ITEM_CAUSAL, EncoderMask, Generator
from tigerrec.seeds import derived_seed
from tigerrec.semantic_ids import SemanticIds, load_semantic_ids

logger = logging.getLogger(__name__)
VALIDATION_K = 10
PACKED: Final = "packed"
PREFIX: Final = "prefix"
ENCODER_MASK: dict[str, EncoderMask] = {PACKED: ITEM_CAUSAL, PREFIX: BIDIRECTIONAL}


@options
class Training:
    """How a generator learns to continue training histories: every item but a history's first is a target once an
    epoch.

    Attributes:
        examples: `packed`: a window of a history passes the encoder once, each item seeing itself and the items before
            it, and all targets of
            the window pass the decoder together; or `prefix`: each target has a pass of its own and the encoder no
            mask, as in the paper of TIGER.
        stride: items between the windows of long histories, which hold `stride` items more than the generator reads;
            None with prefix.
        epochs: passes over all targets.
        batch_targets: targets a step, of examples of similar length.
        part_tokens: about how many encoder and decoder tokens pass the model at once; longer steps pass in parts whose
            gradients add up.
        learning_rate: its peak; it rises linearly during `warmup` and then follows a cosine to zero at the last step.
        embedding_rate: the embeddings of tokens learn at this multiple of the learning rate.
        item_embedding_rate: likewise those of items, each of which few targets reach.
        warmup: share of all steps.
        weight_decay: AdamW's, on matrices only.
        max_grad_norm: gradients are scaled down to this norm.
        label_smoothing: share of the target's probability spread over the vocabulary.
        validate_every: epochs between validations.
        validation_users: size of the seeded sample of users that validation ranks.
        beam_size: of the search in validation.
        patience: validations without a new best before training stops; 0 = never.
        precision: `auto`, `fp32` or `bf16`; `auto` is bf16 where the hardware multiplies it.
        checkpoint_steps: steps between checkpoints.
        log_steps: steps between lines of `training.jsonl`.
        device: `auto`, `cpu` or `cuda`.
        tensorboard: also write TensorBoard event files beside `training.jsonl`.
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
    checkpoint_steps: AtLeastOne = not_identity(default=200)
    log_steps: AtLeastOne = not_identity(default=50)
    device: Device = not_identity(default="auto")
    tensorboard: bool = not_identity(default=False)

    def __post_init__(self) -> None:
        if self.examples == PACKED and self.stride is None:
            raise ValueError(f"stride must be at least 1 with examples={PACKED}, got None")
        if self.examples == PREFIX and self.stride is not None:
            raise ValueError(f"stride has no effect with examples={PREFIX}; leave it null, got {self.stride}")

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """The learning rate of a step, counted from 0: linear warm-up, then half a cosine to zero."""
        warmup_steps = max(1, round(self.warmup * total_steps))
        if step < warmup_steps:
            return self.learning_rate * (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@options
class TrainConfig:
    """What identifies a train stage: the model, how it is trained, and the seed of both."""

    generator: Generator
    training: Training
    seed: int = 0

    def __post_init__(self) -> None:
        if self.training.stride is not None:
            self.generator.window(self.training.stride)


def load_inputs(prepared: Path, tokenized: Path) -> tuple[Histories, SemanticIds]:
    """Histories and Semantic IDs of one catalogue.

    Raises:
        StaleError: the two were made from different items.
    """
    artifacts.open_stage(prepared, "prepare")
    artifacts.open_stage(tokenized, "tokenize")
    histories, semantic_ids = load_histories(prepared), load_semantic_ids(tokenized)
    if histories.n_items != len(semantic_ids.codes):
        raise artifacts.StaleError(
            f"{tokenized} has Semantic IDs for {len(semantic_ids.codes)} items, {prepared} has {histories.n_items}; "
            "add `overwrite=embed` to build them again."
        )
    return histories, semantic_ids


def train(prepared: Path, tokenized: Path, config: TrainConfig, out: Path) -> Path:
    """Train a generator on the training parts of all histories; a killed run continues from its last checkpoint.

    Returns:
        `out`, with config.json, generation_config.json, model.safetensors, training.jsonl and, where it reads items,
        input_module.safetensors.

    Raises:
        ArtifactError: an input is missing or damaged, or `out` holds a run of another configuration.
        TigerrecError: the loss is not finite.
    """
    import torch
    import transformers

    from tigerrec.checkpoints import Checkpoints
    from tigerrec.models.loading import save_generator
    from tigerrec.precision import resolve_device, resolve_precision
    from tigerrec.trainer import Trainer, fit, select

    started = time.perf_counter()
    histories, semantic_ids = load_inputs(prepared, tokenized)
    training = config.training
    device = resolve_device(training.device)
    model = config.generator.new(
        semantic_ids, ENCODER_MASK[training.examples], derived_seed(config.seed, "weights")
    ).to(device)
    trainer = Trainer(model, histories, config)
    precision = resolve_precision(device, training.precision)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = (
        f"{trainer.n_targets:,} targets in {len(trainer.examples):,} examples, {trainer.total_steps:,} steps, "
        f"{n_parameters / 1e6:.1f} M parameters"
    )
    logger.info("training on %s, %s, %s", sizes, device, precision)
    inputs = {"prepare": prepared, "tokenize": tokenized}
    identity = {"config": artifacts.describe(config), "inputs": artifacts.input_records(inputs)}
    environment = {
        "threads": torch.get_num_threads(), "torch": torch.__version__, "transformers": transformers.__version__, "device": device.type,
        "precision": precision, "processes": distributed.world_size(),
    }  # fmt: skip
    checkpoints = Checkpoints(
        out / "checkpoint",
        json.loads(artifacts.canonical_json(identity)),
        environment,
        tensorboard=training.tensorboard,
    )
    fit(trainer, checkpoints, histories)
    best = select(trainer, checkpoints, histories)

    def write() -> None:
        with artifacts.writing(out, "train", config, inputs, started=started) as files:
            final = out / "checkpoint" / "final"
            artifacts.remove_tree(final)
            for path in save_generator(model, final):
                files.adopt(path, path.name)
            with files.create("training.jsonl", measured=True) as path:
                path.write_text("".join(json.dumps(line) + "\n" for line in checkpoints.state.log))
            files.provenance = environment | {
                "parameters": n_parameters, "examples": len(trainer.examples), "targets": trainer.n_targets, "steps": checkpoints.state.step,
                "training_seconds": checkpoints.state.seconds, "selected": best, "environments": checkpoints.state.environments,
            }  # fmt: skip
        artifacts.remove_tree(out / "checkpoint")

    distributed.agreed(write)
    return out
