"""How a generator learns: steps that depend on the seed and their number only, validation, and the choice of the best
weights."""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from tigerrec import TigerrecError
from tigerrec.data.batches import Examples, length_sorted_batches
from tigerrec.data.histories import Histories, training_counts, validation_sample
from tigerrec.evaluation.metrics import VALIDATION_K, item_ranks, validation_metrics
from tigerrec.evaluation.stage import known_and_targets
from tigerrec.models.base import HistoryModel
from tigerrec.models.dropout import Dropout
from tigerrec.runtime import distributed
from tigerrec.runtime.devices import product_type
from tigerrec.runtime.memory import release_freed_memory
from tigerrec.runtime.seeds import derived_seed
from tigerrec.runtime.signals import Interrupted, stop_signals
from tigerrec.search.options import CODES_ALONE, Scoring
from tigerrec.search.searcher import Searcher
from tigerrec.training.checkpoints import Checkpoints
from tigerrec.training.options import TrainConfig, Training
from tigerrec.training.schedules import warmup_cosine

logger = logging.getLogger(__name__)
STEPS_BETWEEN_RELEASES = 30


class Trainer:
    """A model, its optimizer and its place in the run; a step depends on the seed and its number only (on a CPU, to the
    bit).

    Args:
        model: on its device.
        histories: of all users; only their training parts are read here.
    """

    def __init__(self, model: HistoryModel, histories: Histories, config: TrainConfig) -> None:
        self.model, self.config, self.training = model, config, config.training
        max_items, stride, device = model.facts["max_items"], self.training.stride, model.device
        if stride is None:
            self.examples = Examples.prefixes(histories, max_items, device)
        else:
            self.examples = Examples.windows(histories, config.generator.window(stride), stride, device)
        if not len(self.examples):
            raise TigerrecError("No history is long enough to train on (4 interactions or more); give more data.")
        self.n_targets = int(self.examples.n_targets.sum())
        self.n_tokens = model.n_tokens(self.examples.lengths, self.examples.n_targets)
        known, read = (
            torch.from_numpy(np.unique(items).astype(np.int64)).to(device)
            for items in (self.examples.items, self.examples.items_read())
        )
        self.known = known if config.generator.item_loss else None
        model.keep_only(known, read if self.known is None else known)  # predicting items changes their embeddings too
        self.dtype = product_type(device, self.training.precision)
        self.of_members = model.member_parameters()
        self.parameters = [parameter for parameters in self.of_members for parameter in parameters]
        self.optimizer = new_optimizer(model, self.training)
        self.steps_per_epoch = len(self._epoch_batches(0, 0))
        self.total_steps = min(self.steps_per_epoch * self.training.epochs, self.training.max_steps or sys.maxsize)
        self.last_step = self.total_steps
        self._epoch: tuple[int, list[list[np.ndarray]]] = (-1, [])
        self._overlapped: list[DistributedDataParallel] = []
        if overlaps(device):
            self._overlapped = [
                DistributedDataParallel(MemberLoss(parameters), broadcast_buffers=False, find_unused_parameters=True)
                for parameters in self.of_members
            ]

    def end_after(self, epochs: float) -> None:
        """End after so many of the epochs, on the learning rates of all of them."""
        self.last_step = min(max(round(epochs * self.steps_per_epoch), 1), self.total_steps)

    def _epoch_batches(self, epoch: int, member: int) -> list[np.ndarray]:
        others = [member] if member else []  # the first draws as a model of one does
        rng = np.random.default_rng(derived_seed(self.config.seed, "batches", epoch, *others))
        return self.examples.shuffled_batches(self.training.step_targets(distributed.world_size()), rng)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return warmup_cosine(self.training.learning_rate, step, self.total_steps, self.training.warmup)

    def step(self, number: int) -> torch.Tensor:
        """Take step `number` (from 0) and give its mean loss over targets, in nats, not yet synchronised.

        All steps have about the same number of targets and divide by the same number, so that every target counts the
        same; examples that do not pass the model at once pass in parts cut by token budget, whose gradients add up.
        Where several processes share the task, each takes its part of the examples, and all end with the sum of their
        gradients: on CPUs summed in one order, on GPUs while the last part still computes. Members of a model see the
        same examples, each in an order of its own.
        """
        epoch, position = divmod(number, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            orders = [self._epoch_batches(epoch, member) for member in range(len(self.of_members))]
            self._epoch = (epoch, orders)
        others = [distributed.rank()] if distributed.rank() else []  # the first draws as a process alone does
        dropout = Dropout(self.model.dropout_rate, derived_seed(self.config.seed, "dropout", number, *others))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(number) * group["rate"]
        total, n_targets = torch.zeros((), device=self.model.device), 0
        for member, batches in enumerate(self._epoch[1]):
            rows = batches[position]
            n_targets += int(self.examples.n_targets[rows].sum())
            mine = rows[distributed.rank() :: distributed.world_size()]
            parts = [mine[part] for part in length_sorted_batches(self.n_tokens[mine], self.training.part_tokens)]
            if self._overlapped:
                total += self._backward_overlapped(member, parts or [rows[:1]], dropout, len(mine) > 0)
                continue
            for part in parts:
                loss, token_loss = self.weighted_loss(part, dropout, member)
                (loss * (self.steps_per_epoch / self.n_targets)).backward()
                total += token_loss
        total = distributed.total(total) if self._overlapped else distributed.sum_gradients(self.parameters, total)
        for parameters in self.of_members:
            torch.nn.utils.clip_grad_norm_(parameters, self.training.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if number % STEPS_BETWEEN_RELEASES == 0:
            release_freed_memory()
        return total / n_targets

    def _backward_overlapped(
        self, member: int, parts: list[np.ndarray], dropout: Dropout, counts: bool
    ) -> torch.Tensor:
        """The loss of a member's parts in this process, whose gradients are summed over processes during the last. A
        process without examples passes one that does not count, since all must take part."""
        total, shared = torch.zeros((), device=self.model.device), self._overlapped[member]
        weight = counts * distributed.world_size() * self.steps_per_epoch / self.n_targets  # the others' mean is taken
        for part in parts:
            with distributed.losing_none() if part is parts[-1] else shared.no_sync():
                loss, token_loss = shared(self, part, dropout, member)
                (loss * weight).backward()
            total += token_loss * counts
        return total

    def check_finite(self, loss: torch.Tensor, step: int, weights_too: bool) -> None:
        """Stop before numbers that are none are saved.

        Raises:
            TigerrecError: the loss of the last step or, where asked for, a weight is NaN or infinite.
        """
        if not math.isfinite(loss):
            fault = f"The loss is {loss:g}"
        elif weights_too and not all(bool(parameter.isfinite().all()) for parameter in self.parameters):
            fault = "A weight is NaN or infinite"
        else:
            return
        raise TigerrecError(
            f"{fault} at step {step}, at learning rate {self.learning_rate(step - 1):.2g}; the checkpoint before it is "
            f"kept: lower the rate with `train.learning_rate={self.training.learning_rate / 3:.1g}` and "
            "`overwrite=train`."
        )

    def losses(self, rows: np.ndarray, dropout: Dropout, member: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropies of some examples by a member, summed over their targets: of a target's tokens
        and of the next item."""
        return self.model.losses(
            self.examples.batch(rows),
            self.dtype,
            dropout,
            label_smoothing=self.training.label_smoothing,
            known=self.known,
            member=member,
        )

    def weighted_loss(self, rows: np.ndarray, dropout: Dropout, member: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What a member learns from some examples, the sum of both cross-entropies by their weight; and that of the
        tokens alone, without gradients."""
        token_loss, item_loss = self.losses(rows, dropout, member)
        return token_loss + self.config.generator.item_loss * item_loss, token_loss.detach()


def overlaps(device: torch.device) -> bool:
    """Whether processes sum their gradients while they still compute, which costs the order of the sums: on GPUs."""
    return device.type == "cuda" and distributed.world_size() > 1


class MemberLoss(torch.nn.Module):
    """The loss of one member as a module of exactly its parameters, as DistributedDataParallel wants it."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        super().__init__()
        self.learned = torch.nn.ParameterList(parameters)

    def forward(
        self, trainer: Trainer, rows: np.ndarray, dropout: Dropout, member: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Trainer.weighted_loss`; the trainer, which holds this module, is not held by it."""
        return trainer.weighted_loss(rows, dropout, member)


def new_optimizer(model: HistoryModel, training: Training) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), each parameter group with its `rate`, a multiple of the
    learning rate.

    Embeddings of T5 begin with standard deviation 1, its matrices near 0.1, so that one step of equal size would move
    embeddings relatively little; T5 itself was trained with steps relative to each parameter's size (Shazeer and Stern
    2018, arXiv 1804.04235). GPT-2's begin as small as its matrices. AdamW's decay is weight decay times learning rate:
    it is divided by the multiple, so that a row that few targets reach keeps as much as any other weight. Biases and
    the weights of layer norms do not decay.
    """
    tokens, items = model.token_embeddings(), model.item_embeddings()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    others = [parameter for parameter in learned if not any(parameter is embedding for embedding in tokens + items)]
    matrices = [parameter for parameter in others if parameter.ndim > 1]
    vectors = [parameter for parameter in others if parameter.ndim == 1]
    rates = (tokens, training.embedding_rate), (items, training.item_embedding_rate), (matrices, 1.0)
    groups = [{"params": group, "rate": rate, "weight_decay": training.weight_decay / rate} for group, rate in rates]
    groups.append({"params": vectors, "rate": 1.0, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, training.adam_beta2), fused=True)


def validate(
    model: HistoryModel, histories: Histories, users: np.ndarray, training: Training, scoring: Scoring = CODES_ALONE
) -> dict[str, float]:
    """HR@10 and NDCG@10 of validation targets: item level, seen items masked, means over the users given."""
    mine = users[distributed.rank() :: distributed.world_size()]
    known, targets = known_and_targets(histories, "validation", mine)
    searcher = Searcher.of(model, training.precision, training_counts(histories), scoring)
    items, _ = searcher.rank(
        known, k=VALIDATION_K, beam_size=training.beam_size, mask_seen=True, progress="validate", users=mine
    )
    return validation_metrics(np.concatenate(distributed.gathered(item_ranks(items, targets))))


def fit(trainer: Trainer, checkpoints: Checkpoints, histories: Histories) -> None:
    """Train from the last checkpoint to the end, leaving the best candidates and the log with the checkpoints.

    Raises:
        TigerrecError: the loss or a weight is not finite, or the tracker has refused the run.
        Interrupted: a signal asked to stop; everything is on disk.
    """
    training = trainer.training
    state = checkpoints.restore(trainer.model, trainer.optimizer)
    checkpoints.open_tracker()
    users = validation_sample(histories, training.validation_users, trainer.config.seed)
    seconds_before, started = state.seconds, time.perf_counter()

    def log(figures: dict[str, float]) -> None:
        """Add a line to the log, with the seconds since the run began, pauses left out."""
        state.seconds = round(seconds_before + time.perf_counter() - started, 3)
        epoch = round(state.step / trainer.steps_per_epoch, 4)
        checkpoints.log({"step": state.step, "epoch": epoch, **figures, "seconds": state.seconds})

    with (
        stop_signals() as stop,
        tqdm(total=trainer.last_step, initial=state.step, desc="train", unit="step", disable=None) as bar,
    ):
        losses: list[torch.Tensor] = []
        while state.step < trainer.last_step and not state.finished:
            losses.append(trainer.step(state.step))
            state.step += 1
            bar.update(1)
            stopping = distributed.anywhere(stop.received is not None)
            epoch, steps_beyond = divmod(state.step, trainer.steps_per_epoch)
            at_the_end = state.step == trainer.last_step
            at_epoch_end = steps_beyond == 0 or at_the_end
            due = at_epoch_end or state.step % training.checkpoint_steps == 0 or stopping
            if trainer.model.device.type == "cpu" or due:  # elsewhere looking at a loss means waiting for it
                trainer.check_finite(losses[-1], state.step, weights_too=due)
            if state.step % training.log_steps == 0 or due:
                loss = float(torch.stack(losses).mean())
                losses = []
                bar.set_postfix(loss=f"{loss:.3f}")
                log({"loss": loss, "lr": trainer.learning_rate(state.step - 1)})
            if not training.holdout and at_the_end:
                checkpoints.consider(trainer.model, 0.0)
            elif training.holdout and at_epoch_end and (epoch % training.validate_every == 0 or at_the_end):
                scores = validate(trainer.model, histories, users, training)
                log({"users": len(users), **scores})
                told = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
                begun = math.ceil(state.step / trainer.steps_per_epoch)
                logger.info("epoch %d of %d: %s", begun, training.epochs, told)
                checkpoints.consider(trainer.model, scores["validation_ndcg@10"])
                stopping = distributed.anywhere(stop.received is not None)
                state.finished = bool(training.patience) and state.validations_since_best >= training.patience
            if due:
                checkpoints.save(trainer.model, trainer.optimizer)
            if stopping:
                raise Interrupted(stop.received or signal.SIGTERM, checkpoints.folder.parent)


def select(trainer: Trainer, checkpoints: Checkpoints, histories: Histories) -> dict[str, Any]:
    """Load the best candidate into the model; where validation was on a smaller sample, the candidates are ranked again
    on all users, or as many as `selection_users`. Without a holdout there is one."""
    state, training = checkpoints.state, trainer.training
    if not training.holdout:
        checkpoints.load_candidate(state.candidates[0], trainer.model)
        return {"step": state.candidates[0]["step"]}
    users = validation_sample(histories, training.selection_users or len(histories), trainer.config.seed)
    scores = [{"validation_ndcg@10": state.candidates[0]["score"]}]
    if len(users) > training.validation_users:
        scores = []
        for candidate in state.candidates:
            checkpoints.load_candidate(candidate, trainer.model)
            scores.append(validate(trainer.model, histories, users, training))
            checkpoints.log({"step": candidate["step"], "selection": True, "users": len(users), **scores[-1]})
    best = max(range(len(scores)), key=lambda number: scores[number]["validation_ndcg@10"])
    checkpoints.load_candidate(state.candidates[best], trainer.model)
    return {"step": state.candidates[best]["step"], **scores[best]}
