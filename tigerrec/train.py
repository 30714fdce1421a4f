"""The train stage: a generator learns to continue histories; the weights that validate best are kept."""

from __future__ import annotations

import json
import logging
import math
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerrec import TigerrecError, artifacts
from tigerrec.artifacts import not_identity
from tigerrec.generator import Generator
from tigerrec.histories import Histories, load_histories, split
from tigerrec.semantic_ids import SemanticIds, load_semantic_ids

if TYPE_CHECKING:
    import torch
    from transformers import T5ForConditionalGeneration

    from tigerrec.checkpoints import Checkpoints

logger = logging.getLogger(__name__)
KEPT_CANDIDATES = 3
VALIDATION_K = 10
ENCODER_MASK = "bidirectional"


@dataclass(frozen=True)
class PrefixTraining:
    """Every prefix of a training history is an example, as in the paper of TIGER.

    Attributes:
        epochs: passes over all examples.
        batch_tokens: encoder tokens a batch, padding included.
        learning_rate: its peak; it rises linearly during `warmup` and then follows a cosine to zero at the last step.
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

    epochs: int = 10
    batch_tokens: int = 8192
    learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    validate_every: int = 1
    validation_users: int = 5000
    beam_size: int = 20
    patience: int = 0
    precision: str = "auto"
    checkpoint_steps: int = not_identity(default=200)
    log_steps: int = not_identity(default=50)
    device: str = not_identity(default="auto")
    tensorboard: bool = not_identity(default=False)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_tokens", "validate_every", "validation_users", "checkpoint_steps", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("weight_decay", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("learning_rate", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.beam_size < VALIDATION_K:
            raise ValueError(f"beam_size must be at least {VALIDATION_K}, got {self.beam_size}")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision must be auto, fp32 or bf16, got {self.precision!r}")

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """The learning rate of a step, counted from 0: linear warm-up, then half a cosine to zero."""
        warmup_steps = max(1, round(self.warmup * total_steps))
        if step < warmup_steps:
            return self.learning_rate * (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class TrainConfig:
    """What identifies a train stage: the model, how it is trained, and the seed of both."""

    generator: Generator
    training: PrefixTraining
    seed: int = 0


def derived_seed(seed: int, *purpose: object) -> int:
    """A 32-bit seed for one purpose, so that no two random choices share a stream."""
    return zlib.crc32(repr((seed, *purpose)).encode())


class Trainer:
    """A model, its optimizer and its place in the run; a step depends on the seed and the step's number only.

    Args:
        model: on its device.
        histories: of all users; only their training parts are read here.
        semantic_ids: of all items.
    """

    def __init__(self, model: T5ForConditionalGeneration, histories: Histories, semantic_ids: SemanticIds, config: TrainConfig) -> None:
        import torch

        from tigerrec.batches import PrefixExamples
        from tigerrec.dropout import use_cheap_dropout

        self.model, self.config, self.training = model, config, config.training
        self.tokens = semantic_ids.tokens
        self.examples = PrefixExamples.of(histories, model.config.tigerrec["max_items"])
        if not len(self.examples):
            raise TigerrecError("No history is long enough to train on (4 interactions or more); give more data.")
        use_cheap_dropout(model)
        matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": self.training.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.training.learning_rate, fused=True)
        self.steps_per_epoch = len(self._epoch_batches(0))
        self.total_steps = self.steps_per_epoch * self.training.epochs
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def _epoch_batches(self, epoch: int) -> list[np.ndarray]:
        from tigerrec.batches import length_sorted_batches

        rng = np.random.default_rng(derived_seed(self.config.seed, "batches", epoch))
        return length_sorted_batches(self.examples.lengths * self.tokens.shape[1], self.training.batch_tokens, rng)

    def step(self, number: int) -> torch.Tensor:
        """Take step `number` (from 0) and give its mean loss over target tokens, in nats, not yet synchronised."""
        import torch

        epoch, position = divmod(number, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._epoch_batches(epoch))
        torch.manual_seed(derived_seed(self.config.seed, "dropout", number))
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.learning_rate_at(number, self.total_steps)
        loss = self.loss(self._epoch[1][position])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def loss(self, rows: np.ndarray) -> torch.Tensor:
        """Mean cross-entropy over the target tokens of some examples, over the whole vocabulary."""
        import torch

        from tigerrec.precision import autocast

        input_ids, mask, labels = (tensor.to(self.model.device) for tensor in self.examples.batch(rows, self.tokens))
        start = torch.full_like(labels[:, :1], self.model.config.decoder_start_token_id)
        with autocast(self.model.device, self.training.precision):
            logits = self.model(
                input_ids=input_ids, attention_mask=mask, decoder_input_ids=torch.cat([start, labels[:, :-1]], dim=1), use_cache=False
            ).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), label_smoothing=self.training.label_smoothing)


def validate(model: T5ForConditionalGeneration, histories: Histories, semantic_ids: SemanticIds, users: np.ndarray, training: PrefixTraining) -> dict[str, float]:
    """HR@10 and NDCG@10 of validation targets: item level, seen items masked, means over the users given."""
    from tigerrec.beam_search import Searcher
    from tigerrec.metrics import item_ranks

    pairs = [split(histories[user], "validation") for user in users]
    searcher = Searcher.of(model, semantic_ids, training.precision)
    items, _ = searcher.rank([history for history, _ in pairs], k=VALIDATION_K, beam_size=training.beam_size, mask_seen=True, progress="validate")
    ranks = item_ranks(items, np.array([target for _, target in pairs])).astype(float)
    gains = np.where(ranks > 0, 1 / np.log2(1 + np.maximum(ranks, 1)), 0.0)
    return {"validation_hr@10": float((ranks > 0).mean()), "validation_ndcg@10": float(gains.mean())}


def validation_sample(histories: Histories, training: PrefixTraining, seed: int) -> np.ndarray:
    """The fixed, seeded sample of users that have something before their validation target, in ascending order."""
    eligible = np.flatnonzero(np.diff(histories.offsets) >= 3)
    if len(eligible) <= training.validation_users:
        return eligible
    rng = np.random.default_rng(derived_seed(seed, "validation users"))
    return np.sort(rng.choice(eligible, training.validation_users, replace=False))


def fit(trainer: Trainer, checkpoints: Checkpoints, histories: Histories, semantic_ids: SemanticIds) -> None:
    """Train from the last checkpoint to the end, leaving the best candidates and the log with the checkpoints.

    Raises:
        TigerrecError: the loss is not finite.
        Interrupted: a signal asked to stop; everything is on disk.
    """
    import torch

    from tigerrec.checkpoints import stop_signals

    training = trainer.training
    state = checkpoints.restore(trainer.model, trainer.optimizer)
    users = validation_sample(histories, training, trainer.config.seed)
    progress = Progress(state.seconds)
    with stop_signals() as stop, torch.random.fork_rng(devices=[]), progress.bar(trainer.total_steps, state.step) as bar:
        losses: list[torch.Tensor] = []
        while state.step < trainer.total_steps and not state.finished:
            losses.append(trainer.step(state.step))
            state.step += 1
            bar.update(1)
            at_epoch_end = state.step % trainer.steps_per_epoch == 0
            epoch = state.step / trainer.steps_per_epoch
            due = at_epoch_end or state.step % training.checkpoint_steps == 0 or stop.received
            if state.step % training.log_steps == 0 or due:
                mean = float(torch.stack(losses).mean())
                losses = []
                rate = training.learning_rate_at(state.step - 1, trainer.total_steps)
                if not math.isfinite(mean):
                    raise TigerrecError(
                        f"The loss is {mean} near step {state.step} at learning rate {rate:.2g}; "
                        f"the checkpoint before it is kept: lower the rate with `train.learning_rate={training.learning_rate / 3:.1g}` and `overwrite=train`."
                    )
                bar.set_postfix(loss=f"{mean:.3f}")
                checkpoints.log(state, {"step": state.step, "epoch": round(epoch, 4), "loss": mean, "lr": rate, "seconds": progress.seconds()})
            if at_epoch_end and (round(epoch) % training.validate_every == 0 or state.step == trainer.total_steps):
                found = validate(trainer.model, histories, semantic_ids, users, training)
                checkpoints.log(state, {"step": state.step, "epoch": round(epoch, 4), "seconds": progress.seconds(), "users": len(users), **found})
                logger.info("epoch %g of %d: %s", epoch, training.epochs, ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
                checkpoints.consider(state, trainer.model, found["validation_ndcg@10"], KEPT_CANDIDATES)
                state.finished = bool(training.patience) and state.validations_since_best >= training.patience
            if due:
                state.seconds = progress.seconds()
                checkpoints.save(state, trainer.model, trainer.optimizer)
            stop.raise_if_received(checkpoints.folder.parent)


class Progress:
    """Seconds of training over all of a run's processes, and its progress bar."""

    def __init__(self, seconds_before: float) -> None:
        self.seconds_before, self.started = seconds_before, time.perf_counter()

    def seconds(self) -> float:
        """Seconds since the run began, pauses left out."""
        return round(self.seconds_before + time.perf_counter() - self.started, 3)

    def bar(self, total: int, done: int) -> Any:
        """A bar on stderr where that is a terminal."""
        from tqdm import tqdm

        return tqdm(total=total, initial=done, desc="train", unit="step", disable=None)


def select(trainer: Trainer, checkpoints: Checkpoints, histories: Histories, semantic_ids: SemanticIds) -> dict[str, Any]:
    """Load the best candidate into the model; where validation was on a sample, the candidates are ranked again on all users."""
    state = checkpoints.state
    users = np.flatnonzero(np.diff(histories.offsets) >= 3)
    best: dict[str, Any] = {}
    sampled = len(users) > trainer.training.validation_users
    for candidate in state.candidates if sampled else state.candidates[:1]:
        checkpoints.load_candidate(candidate, trainer.model)
        found = validate(trainer.model, histories, semantic_ids, users, trainer.training) if sampled else {"validation_ndcg@10": candidate["score"]}
        if sampled:
            checkpoints.log(state, {"step": candidate["step"], "selection": True, "users": len(users), **found})
        if not best or found["validation_ndcg@10"] > best["validation_ndcg@10"]:
            best = {"step": candidate["step"], **found}
    checkpoints.load_candidate(next(candidate for candidate in state.candidates if candidate["step"] == best["step"]), trainer.model)
    return best


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
            f"{tokenized} has Semantic IDs for {len(semantic_ids.codes)} items, {prepared} has {histories.n_items}; add `overwrite=embed` to build them again."
        )
    return histories, semantic_ids


def train(prepared: Path, tokenized: Path, config: TrainConfig, out: Path) -> Path:
    """Train a generator on the training parts of all histories; a killed run continues from its last checkpoint.

    Returns:
        `out`, with config.json, generation_config.json, model.safetensors and training.jsonl.

    Raises:
        ArtifactError: an input is missing or damaged, or `out` holds a run of another configuration.
        TigerrecError: the loss is not finite.
    """
    import torch

    from tigerrec.checkpoints import Checkpoints
    from tigerrec.precision import resolve_device, resolve_precision

    histories, semantic_ids = load_inputs(prepared, tokenized)
    training = config.training
    device = resolve_device(training.device)
    model = config.generator.new(semantic_ids.layout, ENCODER_MASK, derived_seed(config.seed, "weights")).to(device)  # type: ignore[arg-type]
    trainer = Trainer(model, histories, semantic_ids, config)
    precision = resolve_precision(device, training.precision)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info("training on %s examples, %s steps, %.1f M parameters, %s, %s", f"{len(trainer.examples):,}", f"{trainer.total_steps:,}", n_parameters / 1e6, device, precision)
    identity = {"config": artifacts.describe(config), "inputs": {name: artifacts.input_record(folder) for name, folder in (("prepare", prepared), ("tokenize", tokenized))}}
    environment = {"threads": torch.get_num_threads(), "torch": torch.__version__, "device": device.type}
    checkpoints = Checkpoints(out / "checkpoint", json.loads(artifacts.canonical_json(identity)), environment, tensorboard=training.tensorboard)
    fit(trainer, checkpoints, histories, semantic_ids)
    best = select(trainer, checkpoints, histories, semantic_ids)
    with artifacts.writing(out, "train", config, {"prepare": prepared, "tokenize": tokenized}) as files:
        for name, path in saved_files(model, out / "checkpoint" / "final"):
            files.adopt(path, name)
        with files.create("training.jsonl", measured=True) as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in checkpoints.state.log))
        files.provenance = environment | {
            "precision": precision, "parameters": n_parameters, "examples": len(trainer.examples), "steps": checkpoints.state.step,
            "training_seconds": checkpoints.state.seconds, "selected": best,
        }  # fmt: skip
    artifacts.remove_tree(out / "checkpoint")
    return out


def saved_files(model: T5ForConditionalGeneration, folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of `save_pretrained`, by name."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    artifacts.remove_tree(folder)
    model.save_pretrained(folder)
    for name in sorted(os.listdir(folder)):
        yield name, folder / name
