"""How a generator learns: steps that depend on the seed and their number only, validation, and the choice of the best weights."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import T5ForConditionalGeneration

from tigerrec import TigerrecError
from tigerrec.batches import PrefixExamples, equal_batches, length_sorted_batches
from tigerrec.beam_search import Searcher
from tigerrec.checkpoints import Checkpoints, stop_signals
from tigerrec.dropout import use_cheap_dropout
from tigerrec.histories import Histories, split
from tigerrec.metrics import item_ranks
from tigerrec.precision import autocast
from tigerrec.seeds import derived_seed
from tigerrec.semantic_ids import SemanticIds
from tigerrec.train import VALIDATION_K, PrefixTraining, TrainConfig

logger = logging.getLogger(__name__)
KEPT_CANDIDATES = 3


class Trainer:
    """A model, its optimizer and its place in the run; a step depends on the seed and the step's number only.

    Args:
        model: on its device.
        histories: of all users; only their training parts are read here.
        semantic_ids: of all items.
    """

    def __init__(self, model: T5ForConditionalGeneration, histories: Histories, semantic_ids: SemanticIds, config: TrainConfig) -> None:
        self.model, self.config, self.training = model, config, config.training
        self.tokens = semantic_ids.tokens
        self.examples = PrefixExamples.of(histories, model.config.tigerrec["max_items"])
        if not len(self.examples):
            raise TigerrecError("No history is long enough to train on (4 interactions or more); give more data.")
        self.lengths = self.examples.lengths * self.tokens.shape[1]
        use_cheap_dropout(model)
        matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": self.training.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.training.learning_rate, fused=True)
        self.steps_per_epoch = len(self._epoch_batches(0))
        self.total_steps = self.steps_per_epoch * self.training.epochs
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def _epoch_batches(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng(derived_seed(self.config.seed, "batches", epoch))
        return equal_batches(self.lengths, self.training.batch_size, rng)

    def step(self, number: int) -> torch.Tensor:
        """Take step `number` (from 0) and give its mean loss over target tokens, in nats, not yet synchronised.

        All steps have the same number of examples, so that every example counts the same; those of one step are of similar
        length, and pass the model in parts cut by token budget, whose gradients add up.
        """
        epoch, position = divmod(number, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._epoch_batches(epoch))
        torch.manual_seed(derived_seed(self.config.seed, "dropout", number))
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.learning_rate_at(number, self.total_steps)
        rows = self._epoch[1][position]
        total = torch.zeros((), device=self.model.device)
        for part in length_sorted_batches(self.lengths[rows], self.training.batch_tokens):
            loss = self.loss(rows[part]) * (len(part) * self.steps_per_epoch / len(self.examples))
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def loss(self, rows: np.ndarray) -> torch.Tensor:
        """Mean cross-entropy over the target tokens of some examples, over the whole vocabulary."""
        input_ids, mask, labels = (tensor.to(self.model.device) for tensor in self.examples.batch(rows, self.tokens))
        start = torch.full_like(labels[:, :1], self.model.config.decoder_start_token_id)
        with autocast(self.model.device, self.training.precision):
            logits = self.model(input_ids=input_ids, attention_mask=mask, decoder_input_ids=torch.cat([start, labels[:, :-1]], dim=1), use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), label_smoothing=self.training.label_smoothing)


def validate(
    model: T5ForConditionalGeneration, histories: Histories, semantic_ids: SemanticIds, users: np.ndarray, training: PrefixTraining
) -> dict[str, float]:
    """HR@10 and NDCG@10 of validation targets: item level, seen items masked, means over the users given."""
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
