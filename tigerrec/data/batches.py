"""Histories as training batches: pieces of training histories with their targets, those of similar length together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tigerrec.data.histories import Histories, training_items

NO_ITEM = -1


def length_sorted_batches(lengths: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Rows of some lengths in tokens, int64 (n,), in order of length, grouped so that a batch, padded to its longest
    row, holds at most `token_budget` tokens or one row."""
    if not len(lengths):
        return []
    order = np.argsort(lengths, kind="stable")
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or lengths[order[end]] * (end + 1 - start) > token_budget:
            batches.append(order[start:end])
            start = end
    return batches


def padded(histories: Sequence[np.ndarray]) -> Tensor:
    """Histories of item indices as rows, int64 (n, longest), padded on the right with `NO_ITEM`."""
    rows, places = rows_and_places(np.array([len(history) for history in histories], np.int64))
    items = np.full((len(histories), places.max() + 1), NO_ITEM, np.int64)
    items[rows, places] = np.concatenate(histories)
    return torch.from_numpy(items)


def rows_and_places(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each element of ragged rows, one after the other, its row and its place in the row, int64 (n,)."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, np.arange(len(rows)) - (np.cumsum(lengths) - lengths)[rows]


@dataclass(frozen=True)
class Batch:
    """Examples as rows.

    Attributes:
        items: int64 (B, n): what the encoder reads, `NO_ITEM` where a row is shorter.
        targets: int64 (B, m), `NO_ITEM` where a row has fewer.
        n_visible: int64 (B, m) or (1, m): how many of the row's items precede a target.
        users: int64 (B,): whose row it is.
    """

    items: Tensor
    targets: Tensor
    n_visible: Tensor
    users: Tensor | None = None


class Examples:
    """Pieces of training histories: the encoder reads a piece, each target is given the items of the piece before it.

    Attributes:
        items: int32 (n,): all training parts one after the other.
        start: int64 (m,): where in `items` a piece begins.
        first: int64 (m,): where its first target stands; all items from there on are targets.
        stop: int64 (m,): where its last target stands, which the encoder does not read.
        lengths: int64 (m,): items that the encoder reads.
        n_targets: int64 (m,).
        users: int64 (m,): whose pieces they are; None where nobody asks.
        device: where batches are made.
    """

    def __init__(
        self,
        items: np.ndarray,
        start: np.ndarray,
        first: np.ndarray,
        stop: np.ndarray,
        device: torch.device | str = "cpu",
        users: np.ndarray | None = None,
    ) -> None:
        self.items, self.start, self.first, self.stop, self.users = items, start, first, stop, users
        self.lengths, self.n_targets = stop - start, stop - first + 1
        self.device = torch.device(device)
        self._items = torch.from_numpy(items.astype(np.int64)).to(device)
        self._bounds = torch.from_numpy(np.stack([start, first, stop])).to(device)

    @staticmethod
    def prefixes(histories: Histories, max_items: int, device: torch.device | str = "cpu") -> Examples:
        """Every item but a history's first as the only target of a piece, which is the at most `max_items` items before
        it."""
        items, lengths = training_items(histories)
        users, places = rows_and_places(lengths)
        target = np.flatnonzero(places > 0)
        start = target - np.minimum(places[target], max_items)
        return Examples(items, start, target, target, device, users[target])

    @staticmethod
    def windows(histories: Histories, window: int, stride: int, device: torch.device | str = "cpu") -> Examples:
        """Windows of at most `window` items, one every `stride` items, which are fewer; a target belongs to the first
        window that holds it. So a target is given all its earlier items up to `window - stride`, and between that many
        and `window - 1` beyond."""
        items, lengths = training_items(histories)
        n_windows = np.where(lengths > 1, 1 + -(-np.maximum(lengths - window, 0) // stride), 0)
        rows, numbers = rows_and_places(n_windows)
        ends = np.cumsum(lengths)[rows]
        start = ends - lengths[rows] + numbers * stride
        first = np.where(numbers == 0, start + 1, start + window - stride)
        return Examples(items, start, first, np.minimum(start + window, ends) - 1, device, rows)

    def __len__(self) -> int:
        return len(self.start)

    def items_read(self) -> np.ndarray:
        """The items that the encoder reads, int32 (n,): all but those that are targets alone, or in no piece."""
        ends = np.zeros(len(self.items) + 1, np.int64)
        np.add.at(ends, self.start, 1)
        np.add.at(ends, self.stop, -1)
        return self.items[np.cumsum(ends)[:-1] > 0]

    def shuffled_batches(self, batch_targets: int, rng: np.random.Generator) -> list[np.ndarray]:
        """All pieces in batches of similar length and of nearly equal numbers of targets, at most about
        `batch_targets`, shuffled."""
        order = np.lexsort((rng.random(len(self)), self.lengths, self.first - self.start))
        before = np.cumsum(self.n_targets[order]) - self.n_targets[order]
        n_batches = -(-int(self.n_targets.sum()) // batch_targets)
        cuts = np.searchsorted(before, np.arange(1, n_batches) * (self.n_targets.sum() / n_batches))
        batches = [batch for batch in np.split(order, cuts) if len(batch)]
        return [batches[number] for number in rng.permutation(len(batches))]

    def batch(self, rows: np.ndarray) -> Batch:
        """Some examples as rows of tensors on the device."""
        width, height = int(self.lengths[rows].max()), int(self.n_targets[rows].max())
        start, first, stop = self._bounds[:, torch.from_numpy(rows).to(self.device, non_blocking=True)].unsqueeze(-1)
        read = start + torch.arange(width, device=self.device)
        target = first + torch.arange(height, device=self.device)
        n_visible = target - start
        alike = len(np.unique(self.first[rows] - self.start[rows])) == 1
        return Batch(
            self._items_at(read, read < stop),
            self._items_at(target, target <= stop),
            n_visible[:1] if alike else n_visible,
            None if self.users is None else torch.from_numpy(self.users[rows]).to(self.device, non_blocking=True),
        )

    def _items_at(self, places: Tensor, exists: Tensor) -> Tensor:
        return torch.where(exists, self._items[places.clamp(max=len(self._items) - 1)], NO_ITEM)
