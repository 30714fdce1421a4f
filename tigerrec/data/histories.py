"""Histories of a finished prepare stage, and their split into training, validation and test."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec.runtime.seeds import derived_seed
from tigerrec.storage.contracts import contract, read_blocks, read_json, read_table
from tigerrec.storage.stages import open_stage

SHORTEST_HISTORY = 3  # one interaction each for training, validation and test
SHORTEST_SPLIT = 2  # one for training and one to predict, where the data bring their split
PARTS = ("training", "validation", "test")
ITEMS, INTERACTIONS, STATS = "items.parquet", "interactions.parquet", "stats.json"


@dataclasses.dataclass(frozen=True)
class Histories:
    """Every user's items, oldest first, as one ragged array, and which of them are for training, validation and test.

    Attributes:
        offsets: int64 (n_users + 1,): user u's items are `items[offsets[u]:offsets[u + 1]]`.
        items: int32 (n,), item indices.
        parts: int8 (n,): the part of each, as in `PARTS`, which never falls in a history; None: leave-one-out, so that
            the last item is for test, the one before for validation.
    """

    offsets: np.ndarray
    items: np.ndarray
    n_items: int
    parts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, user: int) -> np.ndarray:
        if not 0 <= user < len(self):
            raise IndexError(f"user {user} of {len(self)}")
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    @cached_property
    def _ends(self) -> dict[str, np.ndarray]:
        """How many items of each user precede a part, int64 (n_users,): all that are there if there is none of it."""
        lengths = np.diff(self.offsets)
        if self.parts is None:
            return {"validation": np.maximum(lengths - 2, 0), "test": np.maximum(lengths - 1, 0)}
        sums = {part: np.append(0, np.cumsum(self.parts < number)) for number, part in enumerate(PARTS) if number}
        return {part: np.diff(counts[self.offsets]) for part, counts in sums.items()}

    def n_known(self, part: str) -> np.ndarray:
        """How many items of each user come before those of a part, int64 (n_users,)."""
        if part not in self._ends:
            raise ValueError(f"part must be 'validation' or 'test', got {part!r}")
        return self._ends[part]

    def users_with(self, part: str) -> np.ndarray:
        """The users that have a target in a part and an item before it, int64 (n,), ascending."""
        known = self.n_known(part)
        has_target = known < np.diff(self.offsets)
        if self.parts is not None:
            has_target[has_target] = self.parts[(self.offsets[:-1] + known)[has_target]] == PARTS.index(part)
        return np.flatnonzero(has_target & (known > 0))

    def training_part(self, user: int) -> np.ndarray:
        """The items of a user that training may see."""
        return self[user][: self.n_known("validation")[user]]

    def whole(self) -> Histories:
        """The same histories, all of them for training."""
        return dataclasses.replace(self, parts=np.zeros(len(self.items), np.int8))

    def split(self, user: int, part: str) -> tuple[np.ndarray, int]:
        """The input and the target of a part, `validation` or `test`: the user's first item in it given all before."""
        history, n_known = self[user], self.n_known(part)[user]
        return history[:n_known], int(history[n_known])


def has_holdout(trained: Mapping[str, Any]) -> bool:
    """Whether a train stage of some configuration kept the interactions for validation and test from training."""
    return bool(trained.get("training", {}).get("holdout", True))


def load_histories(prepared: Path) -> Histories:
    """The histories of a finished prepare stage. Raises ArtifactError if no finished or no undamaged stage stands
    there."""
    open_stage(prepared, "prepare")
    n_items = len(read_items(prepared))
    stats = read_stats(prepared)
    columns = {"user": "int32", "item": "int32", "timestamp": "int64", "position": "int32"}
    if "split" in stats:
        columns["part"] = "int8"
    blocks: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    parts: list[np.ndarray] = []
    n_read, last = 0, (-1, -1, 0, 0)  # user, position, time and part before a block
    for block in read_blocks(prepared, INTERACTIONS, columns):
        users, items, times, positions = (block[name].to_numpy() for name in list(columns)[:4])
        part = block["part"].to_numpy() if "split" in stats else np.zeros(len(items), np.int8)
        with contract(prepared, INTERACTIONS):
            before = [
                np.concatenate([[value], of_block[:-1]])
                for value, of_block in zip(last, (users, positions, times, part), strict=True)
            ]
            last = int(users[-1]), int(positions[-1]), int(times[-1]), int(part[-1])
            is_next, is_same = users == before[0] + 1, users == before[0]
            if not (is_next | is_same).all():
                raise ValueError("its users are not numbered 0, 1, 2, … in this order")
            if not np.where(is_same, positions == before[1] + 1, positions == 0).all():
                raise ValueError("the positions of a user are not 0, 1, 2, … in this order")
            if (is_same & (times < before[2])).any():
                raise ValueError("the interactions of a user are not in the order of time")
            if ((items < 0) | (items >= n_items)).any():
                raise ValueError(f"it holds items that are not below {n_items}")
            if ((part < 0) | (part >= len(PARTS)) | (is_same & (part < before[3]))).any():
                raise ValueError(f"its parts are not numbers below {len(PARTS)} that never fall in a history")
        blocks.append(items)
        parts.append(part)
        starts.append(n_read + np.flatnonzero(is_next))
        n_read += len(items)
    offsets = np.concatenate([*starts, [n_read]]).astype(np.int64)
    with contract(prepared, INTERACTIONS):
        if "split" not in stats and np.diff(offsets).min(initial=SHORTEST_HISTORY) < SHORTEST_HISTORY:
            raise ValueError(f"a user has fewer than {SHORTEST_HISTORY} interactions")
    with contract(prepared, STATS):
        counts = {"users": len(offsets) - 1, "items": n_items, "interactions": n_read}
        if any(stats[name] != count for name, count in counts.items()):
            raise ValueError(f"its counts are not those of the tables, {counts}")
    given = np.concatenate(parts) if "split" in stats else None
    return Histories(offsets, np.concatenate([np.empty(0, np.int32), *blocks]), n_items, given)


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


def training_items(histories: Histories) -> tuple[np.ndarray, np.ndarray]:
    """The training parts of all histories, one after the other, int32 (n,), and the length of each, int64
    (n_users,)."""
    lengths = histories.n_known("validation")
    places = np.arange(len(histories.items)) - np.repeat(histories.offsets[:-1], np.diff(histories.offsets))
    return histories.items[places < np.repeat(lengths, np.diff(histories.offsets))], lengths


def training_histories(histories: Histories) -> list[np.ndarray]:
    """The training parts that are not empty."""
    items, lengths = training_items(histories)
    return np.split(items, np.cumsum(lengths[lengths > 0])[:-1])


def training_counts(histories: Histories) -> np.ndarray:
    """How often the training parts of all histories hold each item, int64 (n_items,)."""
    return np.bincount(training_items(histories)[0], minlength=histories.n_items)


def validation_sample(histories: Histories, n_users: int, seed: int) -> np.ndarray:
    """A seeded sample of at most `n_users` users that have an item before their validation target, ascending."""
    return _sample(histories.users_with("validation"), n_users, seed, "validation users")


def evaluated_users(histories: Histories, part: str, n_users: int | None) -> np.ndarray:
    """The users whose lists are measured in a part, ascending: all, or of more than `n_users` a sample, the same for
    all models."""
    users = histories.users_with(part)
    return users if n_users is None else _sample(users, n_users, 0, "evaluated users")


def _sample(users: np.ndarray, n_users: int, seed: int, purpose: str) -> np.ndarray:
    if len(users) <= n_users:
        return users
    return np.sort(np.random.default_rng(derived_seed(seed, purpose)).choice(users, n_users, replace=False))
