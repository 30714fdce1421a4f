"""Histories as training batches: every prefix an example, rows of similar length together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tigerrec.histories import Histories, training_part
from tigerrec.semantic_ids import PAD


def length_sorted_batches(lengths: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Rows grouped so that a batch, padded to its longest row, holds at most `token_budget` tokens (or one row), in order of length.

    Args:
        lengths: int64 (n,): tokens of each row.

    Returns:
        Arrays of row numbers; each row is in exactly one.
    """
    if not len(lengths):
        return []
    order = np.argsort(lengths, kind="stable")
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or lengths[order[end]] * (end + 1 - start) > token_budget:
            batches.append(order[start:end])
            start = end
    return batches


def equal_batches(lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows in batches of one size (to within one row, at most `batch_size`), each of rows of similar length, shuffled.

    Args:
        lengths: int64 (n,).
    """
    order = rng.permutation(len(lengths))
    order = order[np.argsort(lengths[order], kind="stable")]
    batches = np.array_split(order, -(-len(order) // batch_size))
    return [batches[index] for index in rng.permutation(len(batches))]


def history_tokens(histories: Sequence[np.ndarray], tokens: np.ndarray) -> tuple[Tensor, Tensor]:
    """Encoder inputs of histories: the tokens of their items one after the other, padded on the right.

    Args:
        histories: arrays of item indices, oldest first.
        tokens: int64 (I, T).

    Returns:
        `input_ids` int64 (n, longest * T) and `attention_mask` of the same shape.
    """
    lengths = np.array([len(history) for history in histories])
    there = np.arange(lengths.max()) < lengths[:, None]
    items = np.zeros(there.shape, np.int64)
    items[there] = np.concatenate(histories)
    input_ids = np.where(there[:, :, None], tokens[items], PAD).reshape(len(histories), -1)
    mask = np.repeat(there, tokens.shape[1], axis=1).astype(np.int64)
    return torch.from_numpy(input_ids), torch.from_numpy(mask)


@dataclass(frozen=True)
class PrefixExamples:
    """Every item of a training history but the first as a target, given the items before it.

    Attributes:
        items: int32 (n,): all training parts one after the other.
        start: int64 (m,): where in `items` the input of an example begins.
        target: int64 (m,): where its target stands; the input ends before it.
    """

    items: np.ndarray
    start: np.ndarray
    target: np.ndarray

    @staticmethod
    def of(histories: Histories, max_items: int) -> PrefixExamples:
        """The examples of all users; inputs are cut to their last `max_items` items."""
        parts = [training_part(histories[user]) for user in range(len(histories))]
        lengths = np.array([len(part) for part in parts], np.int64)
        first = np.repeat(np.cumsum(lengths) - lengths, lengths)
        position = np.arange(lengths.sum()) - first
        target = np.flatnonzero(position > 0)
        start = np.maximum(first[target], target - max_items)
        return PrefixExamples(np.concatenate(parts) if parts else np.zeros(0, np.int32), start, target)

    def __len__(self) -> int:
        return len(self.target)

    @property
    def lengths(self) -> np.ndarray:
        """Input items of each example, int64 (m,)."""
        return self.target - self.start

    def batch(self, rows: np.ndarray, tokens: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """`input_ids` and `attention_mask` (n, S) and `labels` (n, T) of some examples."""
        inputs = [self.items[start:target] for start, target in zip(self.start[rows], self.target[rows], strict=True)]
        return *history_tokens(inputs, tokens), torch.from_numpy(tokens[self.items[self.target[rows]]])
