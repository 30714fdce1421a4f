"""Histories of a finished prepare stage, and the leave-one-out split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec.runtime.seeds import derived_seed
from tigerrec.storage.contracts import contract, read_blocks, read_json, read_table
from tigerrec.storage.stages import open_stage

SHORTEST_HISTORY = 3  # one interaction each for training, validation and test
ITEMS, INTERACTIONS, STATS = "items.parquet", "interactions.parquet", "stats.json"


@dataclasses.dataclass(frozen=True)
class Histories:
    """Every user's items, oldest first, as one ragged array: user u's are `items[offsets[u]:offsets[u + 1]]`, int32
    item indices; `offsets` is int64 (n_users + 1,)."""

    offsets: np.ndarray
    items: np.ndarray
    n_items: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, user: int) -> np.ndarray:
        if not 0 <= user < len(self):
            raise IndexError(f"user {user} of {len(self)}")
        return self.items[self.offsets[user] : self.offsets[user + 1]]


def load_histories(prepared: Path) -> Histories:
    """The histories of a finished prepare stage. Raises ArtifactError if no finished or no undamaged stage stands
    there."""
    open_stage(prepared, "prepare")
    n_items = len(read_items(prepared))
    columns = {"user": "int32", "item": "int32", "timestamp": "int64", "position": "int32"}
    blocks: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    n_read, last = 0, (-1, -1, 0)  # user, position and time before a block
    for block in read_blocks(prepared, INTERACTIONS, columns):
        users, items, times, positions = (block[name].to_numpy() for name in columns)
        with contract(prepared, INTERACTIONS):
            before = [
                np.concatenate([[value], of_block[:-1]])
                for value, of_block in zip(last, (users, positions, times), strict=True)
            ]
            last = int(users[-1]), int(positions[-1]), int(times[-1])
            is_next, is_same = users == before[0] + 1, users == before[0]
            if not (is_next | is_same).all():
                raise ValueError("its users are not numbered 0, 1, 2, … in this order")
            if not np.where(is_same, positions == before[1] + 1, positions == 0).all():
                raise ValueError("the positions of a user are not 0, 1, 2, … in this order")
            if (is_same & (times < before[2])).any():
                raise ValueError("the interactions of a user are not in the order of time")
            if ((items < 0) | (items >= n_items)).any():
                raise ValueError(f"it holds items that are not below {n_items}")
        blocks.append(items)
        starts.append(n_read + np.flatnonzero(is_next))
        n_read += len(items)
    offsets = np.concatenate([*starts, [n_read]]).astype(np.int64)
    with contract(prepared, INTERACTIONS):
        if np.diff(offsets).min(initial=SHORTEST_HISTORY) < SHORTEST_HISTORY:
            raise ValueError(f"a user has fewer than {SHORTEST_HISTORY} interactions")
    stats = read_stats(prepared)
    with contract(prepared, STATS):
        counts = {"users": len(offsets) - 1, "items": n_items, "interactions": n_read}
        if any(stats[name] != count for name, count in counts.items()):
            raise ValueError(f"its counts are not those of the tables, {counts}")
    return Histories(offsets, np.concatenate([np.empty(0, np.int32), *blocks]), n_items)


def read_items(folder: Path, columns: Mapping[str, str] | None = None) -> Any:
    """`items.parquet` of a prepare stage or an export as a `pyarrow.Table`, row = item index, with further columns of
    the given types (see `read_table`). Raises DamagedError if the file is another table."""
    table = read_table(folder, ITEMS, {"item": "int32", "item_id": "string", **(columns or {})})
    with contract(folder, ITEMS):
        if not np.array_equal(table["item"].to_numpy(), np.arange(len(table))):
            raise ValueError("its items are not numbered 0, 1, 2, … in this order")
        if len(table["item_id"].unique()) != len(table):
            raise ValueError("it has two items of one id")
    return table


def read_stats(prepared: Path) -> dict[str, Any]:
    """`stats.json` of a prepare stage. Raises DamagedError if the file holds no counts of users, items and
    interactions."""
    stats: dict[str, Any] = read_json(prepared, STATS, {"users": int, "items": int, "interactions": int})
    return stats


def training_part(history: np.ndarray) -> np.ndarray:
    """The items of a history that training may see: all but the last two."""
    return history[:-2]


def training_items(histories: Histories) -> tuple[np.ndarray, np.ndarray]:
    """The training parts of all histories, one after the other, int32 (n,), and the length of each, int64
    (n_users,)."""
    is_training = np.ones(len(histories.items), bool)
    for place in (1, 2):
        is_training[histories.offsets[1:] - place] = False
    return histories.items[is_training], np.maximum(np.diff(histories.offsets) - 2, 0)


def training_counts(histories: Histories) -> np.ndarray:
    """How often the training parts of all histories hold each item, int64 (n_items,)."""
    return np.bincount(training_items(histories)[0], minlength=histories.n_items)


def split(history: np.ndarray, part: str) -> tuple[np.ndarray, int]:
    """The input and the target of a part: `validation` is h[-2] given h[:-2], `test` is h[-1] given h[:-1]."""
    if part == "validation":
        return history[:-2], int(history[-2])
    if part == "test":
        return history[:-1], int(history[-1])
    raise ValueError(f"part must be 'validation' or 'test', got {part!r}")


def validation_sample(histories: Histories, n_users: int, seed: int) -> np.ndarray:
    """A seeded sample of at most `n_users` users that have an item before their validation target, ascending."""
    return _sample(np.flatnonzero(np.diff(histories.offsets) >= SHORTEST_HISTORY), n_users, seed, "validation users")


def evaluated_users(histories: Histories, n_users: int | None) -> np.ndarray:
    """The users whose lists are measured, ascending: all, or of more than `n_users` a sample, the same for all
    models."""
    users = np.arange(len(histories))
    return users if n_users is None else _sample(users, n_users, 0, "evaluated users")


def _sample(users: np.ndarray, n_users: int, seed: int, purpose: str) -> np.ndarray:
    if len(users) <= n_users:
        return users
    return np.sort(np.random.default_rng(derived_seed(seed, purpose)).choice(users, n_users, replace=False))
