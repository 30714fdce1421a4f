"""How models of the next item learn and rank: steps over batches of targets, validation, the weights of the best
epoch."""

from __future__ import annotations

import abc
import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from tigerrec import TigerrecError
from tigerrec.baselines import Fitted, Validate
from tigerrec.baselines.learning import CROSS_ENTROPY, Learning
from tigerrec.baselines.ranking import ScoreFunction, ranks_by
from tigerrec.batches import NO_ITEM, Batch, Examples, padded
from tigerrec.dropout import Dropout
from tigerrec.memory import release_freed_memory
from tigerrec.precision import product_type
from tigerrec.seeds import derived_seed

logger = logging.getLogger(__name__)
WARMUP = 0.05
DRAWS = 100
ROWS_AT_ONCE = 64  # whose scores of 12,000 items stay in a cache of 4 MB


class NextItemModel(nn.Module, abc.ABC):
    """A model that turns the items so far into a state, whose products with the rows of a matrix score the next item.

    Attributes:
        max_items: items of a history that it reads.
        classes: (n_items, dim), a row an item.
        bias: (n_items,), added to the scores, or None.
    """

    max_items: int
    classes: nn.Parameter
    bias: nn.Parameter | None

    @abc.abstractmethod
    def states(self, items: Tensor, dtype: torch.dtype, dropout: Dropout) -> Tensor:
        """A state of type `dtype` after each item, (B, n, dim), of item indices (B, n) with `NO_ITEM` on the right
        where a row is shorter."""

    @torch.no_grad()
    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """The scores of all items as a user's next one, float32 (n, n_items)."""
        read = [history[-self.max_items :] for history in histories]
        states = self.states(padded(read), torch.float32, Dropout(0.0))
        last = states[torch.arange(len(read)), torch.tensor([len(history) - 1 for history in read])]
        return functional.linear(last, self.classes, self.bias).numpy()


def pieces(training: Sequence[np.ndarray], max_items: int) -> Examples:
    """Training histories as pieces of at most `max_items` items and their next items, cut from the end, so that all
    items but a history's first are targets."""
    lengths = np.array([len(history) for history in training], np.int64)
    n_pieces = -(-np.maximum(lengths - 1, 0) // max_items)
    ends = np.repeat(np.cumsum(lengths) - 1, n_pieces)
    number = np.arange(len(ends)) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
    stop = ends - number * max_items
    start = np.maximum(stop - max_items, np.repeat(np.cumsum(lengths) - lengths, n_pieces))
    return Examples(np.concatenate([np.empty(0, np.int32), *training]), start, start + 1, stop)


class LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy over all classes of linear scores, summed over rows, whose gradient is made with the loss, in the
    place of the scores."""

    @staticmethod
    def forward(ctx, states, classes, bias, targets):  # type: ignore[no-untyped-def]
        """The sum in nats, float32; products in the type of the states.

        Args:
            states: (n, dim).
            classes: float32 (n_classes, dim).
            bias: float32 (n_classes,), or None.
            targets: int64 (n,).
        """
        weight = classes.to(states.dtype)
        scores = functional.linear(states, weight, None if bias is None else bias.to(states.dtype))
        loss = torch.zeros(())
        for rows, labels in zip(scores.split(ROWS_AT_ONCE), targets[:, None].split(ROWS_AT_ONCE), strict=True):
            probabilities = rows.float().softmax(1)
            likelihoods = probabilities.gather(1, labels)
            loss -= likelihoods.clamp_(min=torch.finfo(torch.float32).tiny).log().sum()
            rows.copy_(probabilities.scatter_(1, labels, likelihoods - 1))
        ctx.save_for_backward(scores, states, weight)
        ctx.has_bias = bias is not None
        return loss

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        """Probability less label, through the linear scores."""
        difference, states, weight = ctx.saved_tensors
        bias_gradient = difference.sum(0, dtype=torch.float32) * gradient if ctx.has_bias else None
        return (
            ((difference @ weight) * gradient).to(states.dtype),
            (difference.mT @ states).float() * gradient,
            bias_gradient,
            None,
        )


def binary_cross_entropy(model: NextItemModel, states: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """The loss of Kang and McAuley 2018 (arXiv 1808.09781, equation 6), summed over targets: the target against one
    other item.

    Args:
        states: (n, dim).
        targets: int64 (n,).
        negatives: int64 (n,).
    """
    states = states.float()
    positive = (states * functional.embedding(targets, model.classes)).sum(-1)
    negative = (states * functional.embedding(negatives, model.classes)).sum(-1)
    return (functional.softplus(-positive) + functional.softplus(negative)).sum()


def sample_negatives(batch: Batch, n_items: int, rng: np.random.Generator) -> Tensor:
    """A random item for each target, not in its row, int64 (n,); where a row holds nearly all items one of them may
    remain."""
    rows = torch.nonzero(batch.targets != NO_ITEM)[:, 0]
    own = torch.cat([batch.items[:, :1], batch.targets], dim=1)[rows]
    negatives = torch.from_numpy(rng.integers(n_items, size=len(rows)))
    for _ in range(DRAWS):
        seen = (own == negatives[:, None]).any(1)
        if not seen.any():
            break
        negatives[seen] = torch.from_numpy(rng.integers(n_items, size=int(seen.sum())))
    return negatives


class Learner:
    """A model, its examples and its optimizer; a step depends on the seed and the step's number only."""

    def __init__(self, model: NextItemModel, examples: Examples, learning: Learning, seed: int) -> None:
        if not len(examples):
            raise TigerrecError("No history is long enough to train on (4 interactions or more); give more data.")
        self.model, self.examples, self.learning, self.seed = model, examples, learning, seed
        self.dtype = product_type(torch.device("cpu"), learning.precision)
        matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
        groups = [{"params": matrices, "weight_decay": learning.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=learning.learning_rate, betas=(0.9, 0.98), fused=True)
        self.total_steps = learning.epochs * len(self._batches(0))
        self.number = 0

    def _batches(self, epoch: int) -> list[np.ndarray]:
        return self.examples.shuffled_batches(
            self.learning.batch_targets, np.random.default_rng(derived_seed(self.seed, "batches", epoch))
        )

    def learning_rate(self) -> float:
        """Of the next step: linear warm-up, then half a cosine to zero."""
        warmup = max(1, round(WARMUP * self.total_steps))
        progress = (self.number - warmup) / max(1, self.total_steps - warmup)
        return self.learning.learning_rate * min(
            (self.number + 1) / warmup, 0.5 * (1 + math.cos(math.pi * max(0.0, progress)))
        )

    def epoch(self, number: int) -> float:
        """Pass once over all targets; the mean loss in nats."""
        losses = [self._step(self.examples.batch(rows)) for rows in self._batches(number)]
        release_freed_memory()
        return float(torch.stack(losses).sum()) / int(self.examples.n_targets.sum())

    def _step(self, batch: Batch) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        there = batch.targets != NO_ITEM
        dropout = Dropout(self.learning.dropout, derived_seed(self.seed, "dropout", self.number))
        states, targets = self.model.states(batch.items, self.dtype, dropout)[there], batch.targets[there]
        if self.learning.loss == CROSS_ENTROPY:
            loss = LinearCrossEntropy.apply(states, self.model.classes, self.model.bias, targets)
        else:
            rng = np.random.default_rng(derived_seed(self.seed, "negatives", self.number))
            loss = binary_cross_entropy(
                self.model, states, targets, sample_negatives(batch, len(self.model.classes), rng)
            )
        (loss / len(targets)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.number += 1
        return loss.detach()


def learn(
    model: NextItemModel, training: Sequence[np.ndarray], learning: Learning, seed: int, validate: Validate
) -> Fitted:
    """Train a model on training histories and keep the weights of the epoch that validates best.

    Raises:
        TigerrecError: no history is long enough, or the loss is not finite.
    """
    learner = Learner(model, pieces(training, model.max_items), learning, seed)
    best: dict[str, Tensor] = {}
    best_epoch, best_score = 0, -math.inf
    for number in tqdm(range(1, learning.epochs + 1), desc="train", unit="epoch", disable=None):
        loss = learner.epoch(number - 1)
        if not math.isfinite(loss):
            raise TigerrecError(
                f"The loss is {loss} in epoch {number} at learning rate {learning.learning_rate}; "
                f"lower it with `baseline.learning_rate={learning.learning_rate / 3:.1g}`."
            )
        if number % learning.validate_every == 0 or number == learning.epochs:
            score = validate(ranks_by(model.scores))
            logger.info("epoch %d of %d: loss %.4f, validation NDCG@10 %.4f", number, learning.epochs, loss, score)
            if score > best_score:
                best_epoch, best_score = number, score
                best = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best)
    scores: ScoreFunction = model.scores
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Fitted(
        ranks_by(scores),
        {"best_epoch": best_epoch, "parameters": parameters, "targets": int(learner.examples.n_targets.sum())},
    )
