"""Histories of a finished prepare stage, and the leave-one-out split."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from tigerrec import artifacts
from tigerrec.seeds import derived_seed

SHORTEST_HISTORY = 3  # one interaction each for training, validation and test


@dataclasses.dataclass(frozen=True)
class Histories:
    """Every user's items, oldest first, as one ragged array.

    Attributes:
        offsets: int64 (n_users + 1,); user u's items are `items[offsets[u]:offsets[u + 1]]`.
        items: int32 (n_interactions,), item indices.
    """

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
    """The histories of a finished prepare stage.

    Raises:
        ArtifactError: no finished or no undamaged stage stands there.
    """
    artifacts.open_stage(prepared, "prepare")
    stats = artifacts.read_json(prepared, "stats.json")
    table = artifacts.read_table(prepared, "interactions.parquet")
    lengths = np.bincount(table["user"].to_numpy(), minlength=stats["users"])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Histories(offsets, table["item"].to_numpy(), stats["items"])


def training_part(history: np.ndarray) -> np.ndarray:
    """The items of a history that training may see: all but the last two."""
    return history[:-2]


def training_counts(histories: Histories) -> np.ndarray:
    """How often the training parts of all histories hold each item, int64 (n_items,)."""
    return np.bincount(np.concatenate([training_part(histories[user]) for user in range(len(histories))]), minlength=histories.n_items)


def split(history: np.ndarray, part: str) -> tuple[np.ndarray, int]:
    """The input and the target of a part: `validation` is h[-2] given h[:-2], `test` is h[-1] given h[:-1] (the validation item included)."""
    if part == "validation":
        return history[:-2], int(history[-2])
    if part == "test":
        return history[:-1], int(history[-1])
    raise ValueError(f"part must be 'validation' or 'test', got {part!r}")


def validation_sample(histories: Histories, n_users: int, seed: int) -> np.ndarray:
    """The fixed, seeded sample of at most `n_users` users that have something before their validation target, in ascending order."""
    eligible = np.flatnonzero(np.diff(histories.offsets) >= SHORTEST_HISTORY)
    if len(eligible) <= n_users:
        return eligible
    rng = np.random.default_rng(derived_seed(seed, "validation users"))
    return np.sort(rng.choice(eligible, n_users, replace=False))
