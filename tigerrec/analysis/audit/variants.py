"""Prepared data with one thing changed on purpose, as prepare stages of their own whose manifests name the change.

Interactions are a data frame, grouped by user and oldest first, with columns user int32 (from 0 without gaps), item
int32 and timestamp int64.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerrec.data.histories import SHORTEST_HISTORY, read_items
from tigerrec.storage.contracts import read_table
from tigerrec.storage.stages import open_stage, writing

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {"user": "int32", "item": "int32", "timestamp": "int64"}


def read_interactions(prepared: Path) -> pd.DataFrame:
    """The interactions of a finished prepare stage."""
    open_stage(prepared, "prepare")
    interactions: pd.DataFrame = read_table(prepared, "interactions.parquet", COLUMNS).to_pandas()
    return interactions[list(COLUMNS)]


def from_end(interactions: pd.DataFrame) -> np.ndarray:
    """The place of each interaction from the end of its history, int64 (n,): 1 = test item, 2 = validation item."""
    return interactions.groupby("user").cumcount(ascending=False).to_numpy() + 1


def poisoned(interactions: pd.DataFrame, n_items: int, rng: np.random.Generator, last: int = 2) -> pd.DataFrame:
    """The `last` items of every user (2: test and validation, 1: test) replaced by random other items."""
    shifts = np.where(from_end(interactions) <= last, rng.integers(1, n_items, len(interactions)), 0)
    return interactions.assign(item=((interactions["item"] + shifts) % n_items).astype(np.int32))


def ties_reversed(interactions: pd.DataFrame) -> pd.DataFrame:
    """The interactions of a user that have equal times in the opposite order."""
    return interactions[::-1].sort_values(["user", "timestamp"], kind="stable", ignore_index=True)


def in_a_tie(interactions: pd.DataFrame) -> np.ndarray:
    """Which interactions have the time of another one of their user, bool (n,)."""
    return interactions.duplicated(["user", "timestamp"], keep=False).to_numpy()


def without_items(interactions: pd.DataFrame, held_out: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """The interactions with other items alone, as if the items held out, bool (n_items,), had never been there, and the
    new number of each item, int64 (n_items,), -1 where it is held out.

    Users with fewer than three interactions left go. Users and items are numbered anew, in their old order.
    """
    numbers = np.where(held_out, -1, np.cumsum(~held_out) - 1)
    left = interactions.assign(item=numbers[interactions["item"]].astype(np.int32)).query("item >= 0")
    left = left[left.groupby("user")["item"].transform("size") >= SHORTEST_HISTORY]
    return left.assign(user=left.groupby("user").ngroup().astype(np.int32)), numbers


def write_variant(
    prepared: Path, config: dict[str, Any], interactions: pd.DataFrame, kept_items: np.ndarray, out: Path
) -> Path:
    """Write a prepare stage to `out`: that of `prepared` with other interactions.

    Args:
        config: what was changed, as its manifest names it.
        kept_items: bool (n_items,): the items that stay, numbered anew in their old order.
    """
    import pyarrow as pa

    items = read_items(prepared).filter(pa.array(kept_items))
    items = items.set_column(items.column_names.index("item"), "item", pa.array(range(len(items)), pa.int32()))
    positions = interactions.groupby("user").cumcount().astype(np.int32)
    columns = {name: column.to_numpy() for name, column in interactions.assign(position=positions).items()}
    counts = {"users": interactions["user"].nunique(), "items": len(items), "interactions": len(interactions)}
    with writing(out, "prepare", config, inputs={"prepare": prepared}) as files:
        files.parquet("items.parquet", items)
        files.parquet("interactions.parquet", pa.table(columns))
        files.json("stats.json", counts)
    return out
