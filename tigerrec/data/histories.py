"""Histories of a finished prepare stage, and the leave-one-out split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec.runtime.seeds import derived_seed
from tigerrec.storage.contracts import contract, read_json, read_table
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
    table = read_table(prepared, INTERACTIONS, columns)
    users, items, times, positions = (table[name].to_numpy() for name in columns)
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    lengths = np.diff(starts, append=len(users))
    with contract(prepared, INTERACTIONS):
        if not np.array_equal(users, np.repeat(np.arange(len(starts)), lengths)):
            raise ValueError("its users are not numbered 0, 1, 2, … in this order")
        if not np.array_equal(positions, np.arange(len(users)) - np.repeat(starts, lengths)):
            raise ValueError("the positions of a user are not 0, 1, 2, … in this order")
        if (times[1:] < times[:-1])[positions[1:] > 0].any():
            raise ValueError("the interactions of a user are not in the order of time")
        if lengths.min(initial=SHORTEST_HISTORY) < SHORTEST_HISTORY:
            raise ValueError(f"a user has fewer than {SHORTEST_HISTORY} interactions")
        if ((items < 0) | (items >= n_items)).any():
            raise ValueError(f"it holds items that are not below {n_items}")
    stats = read_stats(prepared)
    with contract(prepared, STATS):
        counts = {"users": len(starts), "items": n_items, "interactions": len(users)}
        if any(stats[name] != count for name, count in counts.items()):
            raise ValueError(f"its counts are not those of the tables, {counts}")
    return Histories(np.append(starts, len(users)).astype(np.int64), items, n_items)


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


def training_counts(histories: Histories) -> np.ndarray:
    """How often the training parts of all histories hold each item, int64 (n_items,)."""
    seen = np.concatenate([training_part(histories[user]) for user in range(len(histories))])
    return np.bincount(seen, minlength=histories.n_items)


def split(history: np.ndarray, part: str) -> tuple[np.ndarray, int]:
    """The input and the target of a part: `validation` is h[-2] given h[:-2], `test` is h[-1] given h[:-1]."""
    if part == "validation":
        return history[:-2], int(history[-2])
    if part == "test":
        return history[:-1], int(history[-1])
    raise ValueError(f"part must be 'validation' or 'test', got {part!r}")


def validation_sample(histories: Histories, n_users: int, seed: int) -> np.ndarray:
    """A seeded sample of at most `n_users` users that have an item before their validation target, ascending."""
    eligible = np.flatnonzero(np.diff(histories.offsets) >= SHORTEST_HISTORY)
    if len(eligible) <= n_users:
        return eligible
    rng = np.random.default_rng(derived_seed(seed, "validation users"))
    return np.sort(rng.choice(eligible, n_users, replace=False))
