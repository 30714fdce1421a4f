"""How models of the next item learn and rank: steps over batches of targets, validation, the weights of the best
epoch."""

from __future__ import annotations

import abc
import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from tigerrec import TigerrecError
from tigerrec.baselines.base import Fitted, Validate
from tigerrec.baselines.learning import BINARY, Learning
from tigerrec.data.batches import Examples, padded, rows_and_places
from tigerrec.models.dropout import Dropout
from tigerrec.models.losses import LinearCrossEntropy
from tigerrec.runtime.devices import product_type, resolve_device
from tigerrec.runtime.memory import release_freed_memory
from tigerrec.runtime.seeds import derived_seed
from tigerrec.search.ranking import ranks_by
from tigerrec.training.schedules import warmup_cosine

logger = logging.getLogger(__name__)
WARMUP = 0.05


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

    def last_states(self, histories: Sequence[np.ndarray]) -> Tensor:
        """The state after each history's last item, float32 (n, dim)."""
        states = self.states(padded(histories).to(self.classes.device), torch.float32, Dropout(0.0))
        return states[torch.arange(len(histories)), torch.tensor([len(history) - 1 for history in histories])]

    @torch.no_grad()
    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """The scores of all items as a user's next one, float32 (n, n_items)."""
        last = self.last_states([history[-self.max_items :] for history in histories])
        return functional.linear(last, self.classes, self.bias).cpu().numpy()


def pieces(training: Sequence[np.ndarray], max_items: int, device: torch.device | str = "cpu") -> Examples:
    """Training histories as pieces of at most `max_items` items and their next items, cut from the end, so that all
    items but a history's first are targets, in batches on a device."""
    lengths = np.array([len(history) for history in training], np.int64)
    rows, numbers = rows_and_places(-(-np.maximum(lengths - 1, 0) // max_items))
    ends = np.cumsum(lengths)[rows]
    stop = ends - 1 - numbers * max_items
    start = np.maximum(stop - max_items, ends - lengths[rows])
    return Examples(np.concatenate([np.empty(0, np.int32), *training]), start, start + 1, stop, device)


def targets_of(counts: np.ndarray) -> Tensor:
    """Where the targets of a batch stand, row by row, int64 (n,): a row has its first `counts` (B,) of the largest. The
    numbers are known without asking the device."""
    rows, places = rows_and_places(counts)
    return torch.from_numpy(rows * counts.max() + places)


def binary_cross_entropy(model: NextItemModel, states: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """The loss of Kang and McAuley 2018 (arXiv 1808.09781, equation 6), summed over targets (n,): each against one
    other item (n,), after states (n, dim)."""
    states = states.float()
    positive = (states * functional.embedding(targets, model.classes)).sum(-1)
    negative = (states * functional.embedding(negatives, model.classes)).sum(-1)
    return (functional.softplus(-positive) + functional.softplus(negative)).sum()


class Negatives:
    """Random items that a user's training history does not hold, each equally likely.

    Raises:
        TigerrecError: a user has every item.
    """

    def __init__(self, training: Sequence[np.ndarray], n_items: int) -> None:
        users = np.repeat(np.arange(len(training)), [len(history) for history in training])
        users, seen = np.divmod(np.unique(users * n_items + np.concatenate(training)), n_items)
        n_seen = np.bincount(users, minlength=len(training))
        if n_seen.max() == n_items:
            raise TigerrecError(
                f"A training history holds all {n_items} items, so that none is left to learn against; "
                "give `baseline=sasrec_ce`, which needs no other items."
            )
        self.n_items, self.n_unseen, self.first = n_items, n_items - n_seen, np.cumsum(n_seen) - n_seen
        n_unseen_before = seen - (np.arange(len(seen)) - self.first[users])
        self.keys = users * n_items + n_unseen_before

    def sample(self, users: np.ndarray, rng: np.random.Generator) -> Tensor:
        """A negative for each user, int64 (n,)."""
        number = rng.integers(self.n_unseen[users])  # among the items that the user has not seen
        n_seen_before = np.searchsorted(self.keys, users * self.n_items + number, side="right") - self.first[users]
        return torch.from_numpy(number + n_seen_before)


def learn(
    build: Callable[[int], NextItemModel],
    training: Sequence[np.ndarray],
    learning: Learning,
    seed: int,
    validate: Validate,
    loss: str,
) -> Fitted:
    """Train a model, or several that score as one by the mean of their scores, as in `learn_member`.

    Args:
        build: a new model, by the seed of its weights.
        loss: as in `learn_member`.
    """
    seeds = [seed, *(derived_seed(seed, "member", number) for number in range(1, learning.members))]
    device = resolve_device(learning.device)
    models = [build(derived_seed(own, "weights")).to(device) for own in seeds]
    facts = [
        learn_member(model, training, learning, own, validate, loss) for model, own in zip(models, seeds, strict=True)
    ]

    def scores(histories: Sequence[np.ndarray]) -> np.ndarray:
        total = models[0].scores(histories)
        for model in models[1:]:
            total += model.scores(histories)
        return total / np.float32(len(models))

    return Fitted(ranks_by(scores), facts[0] if len(facts) == 1 else {"members": facts})


def learn_member(
    model: NextItemModel, training: Sequence[np.ndarray], learning: Learning, seed: int, validate: Validate, loss: str
) -> dict[str, int]:
    """Train a model on training histories and keep the weights of the epoch that validates best; returns what is to be
    told of it.

    Args:
        loss: `CROSS_ENTROPY` over all items, or `BINARY` cross-entropy of the target and one negative.

    Raises:
        TigerrecError: no history is long enough, or the loss is not finite.
    """
    device = model.classes.device
    examples = pieces(training, model.max_items, device)
    if not len(examples):
        raise TigerrecError("No history is long enough to train on (4 interactions or more); give more data.")
    negatives = Negatives(training, len(model.classes)) if loss == BINARY else None
    users = np.searchsorted(np.cumsum([len(history) for history in training]), examples.start, side="right")
    dtype = product_type(device, learning.precision)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": learning.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning.learning_rate, betas=(0.9, 0.98), fused=True)

    def batches(epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng(derived_seed(seed, "batches", epoch))
        return examples.shuffled_batches(learning.batch_targets, rng)

    def step(number: int, rows: np.ndarray) -> Tensor:
        """The summed loss of a step, which depends on the seed and its number only."""
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(learning.learning_rate, number, total_steps, WARMUP)
        batch = examples.batch(rows)
        places = targets_of(examples.n_targets[rows]).to(device)
        dropout = Dropout(learning.dropout, derived_seed(seed, "dropout", number))
        states = model.states(batch.items, dtype, dropout).flatten(0, 1)[places]
        targets = batch.targets.flatten()[places]
        if negatives is None:
            total = LinearCrossEntropy.apply(states, model.classes, model.bias, targets, 0.0)
        else:
            rng = np.random.default_rng(derived_seed(seed, "negatives", number))
            drawn = negatives.sample(np.repeat(users[rows], examples.n_targets[rows]), rng)
            total = binary_cross_entropy(model, states, targets, drawn.to(device))
        (total / len(targets)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total.detach()

    n_targets, steps_per_epoch = int(examples.n_targets.sum()), len(batches(0))
    total_steps = learning.epochs * steps_per_epoch
    best_epoch, best_score, best_weights = 0, -math.inf, {}
    for epoch in tqdm(range(1, learning.epochs + 1), desc="train", unit="epoch", disable=None):
        losses = [step((epoch - 1) * steps_per_epoch + place, rows) for place, rows in enumerate(batches(epoch - 1))]
        mean_loss = float(torch.stack(losses).sum()) / n_targets
        release_freed_memory()
        if not math.isfinite(mean_loss):
            raise TigerrecError(
                f"The loss is {mean_loss} in epoch {epoch} at learning rate {learning.learning_rate}; "
                f"lower it with `baseline.learning_rate={learning.learning_rate / 3:.1g}`."
            )
        if epoch % learning.validate_every == 0 or epoch == learning.epochs:
            score = validate(ranks_by(model.scores))
            logger.info("epoch %d of %d: loss %.4f, validation NDCG@10 %.4f", epoch, learning.epochs, mean_loss, score)
            if score > best_score:
                best_epoch, best_score = epoch, score
                best_weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(best_weights)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"best_epoch": best_epoch, "parameters": parameters, "targets": n_targets}
