"""Prepared data with one thing changed on purpose, as prepare stages of their own whose manifests name the change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec import artifacts
from tigerrec.histories import SHORTEST_HISTORY, read_items


@dataclass(frozen=True)
class Interactions:
    """Interactions grouped by user, oldest first: users int32 (n,) from 0 without gaps, items int32 (n,), timestamps
    int64 (n,)."""

    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """Where each user's history begins, int64 (n_users,)."""
        return np.flatnonzero(np.diff(self.users, prepend=-1))

    @property
    def from_end(self) -> np.ndarray:
        """The place of each interaction counted from the end of its history, int64 (n,): 1 = the test item, 2 = the
        validation item."""
        ends = np.append(self.starts[1:], len(self.users))
        return ends[self.users] - np.arange(len(self.users))


def read_interactions(prepared: Path) -> Interactions:
    """The interactions of a finished prepare stage.

    Raises:
        ArtifactError: no finished or no undamaged stage stands there.
    """
    artifacts.open_stage(prepared, "prepare")
    table = artifacts.read_table(
        prepared, "interactions.parquet", {"user": "int32", "item": "int32", "timestamp": "int64"}
    )
    return Interactions(*(table[name].to_numpy() for name in ("user", "item", "timestamp")))


def poisoned(interactions: Interactions, n_items: int, rng: np.random.Generator, last: int = 2) -> Interactions:
    """The `last` items of every user (2: test and validation, 1: test) replaced by random other items of the catalogue;
    all else as it was."""
    held_out = interactions.from_end <= last
    shifts = rng.integers(1, n_items, len(held_out))
    items = np.where(held_out, (interactions.items + shifts) % n_items, interactions.items).astype(
        interactions.items.dtype
    )
    return Interactions(interactions.users, items, interactions.timestamps)


def ties_reversed(interactions: Interactions) -> Interactions:
    """The interactions of a user that have equal times in the opposite order; all else as it was."""
    order = np.lexsort((-np.arange(len(interactions.users)), interactions.timestamps, interactions.users))
    return Interactions(interactions.users[order], interactions.items[order], interactions.timestamps[order])


def in_a_tie(interactions: Interactions) -> np.ndarray:
    """Which interactions have the time of another one of their user, bool (n,)."""
    same = (np.diff(interactions.users) == 0) & (np.diff(interactions.timestamps) == 0)
    return np.append(same, False) | np.append(False, same)


def without_items(interactions: Interactions, held_out: np.ndarray) -> tuple[Interactions, np.ndarray]:
    """The interactions with other items alone, as if the items held out had never been there.

    Users with fewer than three interactions left go. Users and items are numbered anew, in their old order.

    Args:
        held_out: bool (n_items,).

    Returns:
        The interactions, and the new number of each item, int64 (n_items,), -1 where it is held out.
    """
    numbers = np.where(held_out, -1, np.cumsum(~held_out) - 1)
    left = numbers[interactions.items] >= 0
    enough = np.bincount(interactions.users[left], minlength=len(interactions.starts)) >= SHORTEST_HISTORY
    left &= enough[interactions.users]
    users = (np.cumsum(enough) - 1)[interactions.users[left]]
    return Interactions(
        users.astype(np.int32), numbers[interactions.items[left]].astype(np.int32), interactions.timestamps[left]
    ), numbers


def write_variant(
    prepared: Path, config: dict[str, Any], interactions: Interactions, kept_items: np.ndarray, out: Path
) -> Path:
    """A prepare stage with other interactions.

    Args:
        prepared: the stage that it is made from.
        config: what was changed, as its manifest names it.
        kept_items: bool (n_items,): the items that stay, numbered anew in their old order.
        out: the folder to write.

    Returns:
        `out`.
    """
    import pyarrow as pa

    items = read_items(prepared).filter(pa.array(kept_items))
    place = items.column_names.index("item")
    items = items.set_column(place, "item", pa.array(range(len(items)), pa.int32()))
    positions = np.arange(len(interactions.users)) - np.repeat(
        interactions.starts, np.diff(np.append(interactions.starts, len(interactions.users)))
    )
    columns = {
        "user": interactions.users,
        "item": interactions.items,
        "timestamp": interactions.timestamps,
        "position": positions.astype(np.int32),
    }
    with artifacts.writing(out, "prepare", config, inputs={"prepare": prepared}) as files:
        files.parquet("items.parquet", items)
        files.parquet("interactions.parquet", pa.table(columns))
        files.json(
            "stats.json",
            {"users": len(interactions.starts), "items": len(items), "interactions": len(interactions.users)},
        )
    return out
