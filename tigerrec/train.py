"""The train stage: a generator learns to continue histories; the weights that validate best are kept."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field

from tigerrec import artifacts, distributed
from tigerrec.config import AtLeastOne, BelowOne, Device, NotNegative, Positive, Precision, options
from tigerrec.histories import Histories, load_histories
from tigerrec.identity import not_identity
from tigerrec.metrics import VALIDATION_K
from tigerrec.models.base import BIDIRECTIONAL, ITEM_CAUSAL, EncoderMask, Generator
from tigerrec.seeds import derived_seed
from tigerrec.semantic_ids import SemanticIds, load_semantic_ids

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
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
        batch_targets: targets a step, of examples of similar length.
        part_tokens: about how many encoder and decoder tokens pass the model at once; longer steps pass in parts whose
            gradients add up.
        learning_rate: its peak; it rises linearly during `warmup` and then follows a cosine to zero at the last step.
        embedding_rate: the embeddings of tokens learn at this multiple of the learning rate, which their decay ignores.
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


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """What the last bits of a result depend on beside configuration and inputs."""
    import torch
    import transformers

    from tigerrec.precision import resolve_precision

    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device.type,
        "precision": resolve_precision(device, precision),
    }


def train(prepared: Path, tokenized: Path, config: TrainConfig, out: Path) -> Path:
    """Train a generator on the training parts of all histories.

    A killed run continues from its last checkpoint; on a CPU it ends in the same bytes as an undisturbed one.

    Returns:
        `out`, with config.json, generation_config.json, model.safetensors, training.jsonl and, where it reads items,
        input_module.safetensors.

    Raises:
        ArtifactError: an input is missing or damaged, or `out` holds a run of another configuration.
        TigerrecError: the loss is not finite.
    """
    from tigerrec.checkpoints import Checkpoints
    from tigerrec.models.loading import save_generator
    from tigerrec.precision import resolve_device
    from tigerrec.trainer import Trainer, fit, select

    started = time.perf_counter()
    histories, semantic_ids = load_inputs(prepared, tokenized)
    training, seed = config.training, derived_seed(config.seed, "weights")
    device = resolve_device(training.device)
    model = config.generator.new(semantic_ids, ENCODER_MASK[training.examples], seed).to(device)
    trainer = Trainer(model, histories, config)
    runs_under = environment(device, training.precision) | {"processes": distributed.world_size()}
    counts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "examples": len(trainer.examples),
        "targets": trainer.n_targets,
    }
    sizes = (
        f"{trainer.n_targets:,} targets in {len(trainer.examples):,} examples, {trainer.total_steps:,} steps, "
        f"{counts['parameters'] / 1e6:.1f} M parameters"
    )
    logger.info("training on %s, %s, %s", sizes, device, runs_under["precision"])
    inputs = {"prepare": prepared, "tokenize": tokenized}
    identity = {"config": artifacts.describe(config), "inputs": artifacts.input_records(inputs)}
    plain_identity = json.loads(artifacts.canonical_json(identity))
    checkpoints = Checkpoints(out / "checkpoint", plain_identity, runs_under, training.tensorboard)
    fit(trainer, checkpoints, histories)
    selected = select(trainer, checkpoints, histories)
    state = checkpoints.state

    def write() -> None:
        with artifacts.writing(out, "train", config, inputs, started=started) as files:
            final = out / "checkpoint" / "final"
            artifacts.remove_tree(final)
            for path in save_generator(model, final):
                files.adopt(path, path.name)
            with files.create("training.jsonl", measured=True) as path:
                path.write_text("".join(json.dumps(line) + "\n" for line in state.log))
            run = {"steps": state.step, "training_seconds": state.seconds, "environments": state.environments}
            files.provenance = runs_under | counts | run | {"selected": selected}
        artifacts.remove_tree(out / "checkpoint")

    distributed.agreed(write)
    return out
