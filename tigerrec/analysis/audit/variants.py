"""Prepared data with one thing changed on purpose, as prepare stages of their own whose manifests name the change.

Interactions are a data frame, grouped by user and oldest first, with columns user int32 (from 0 without gaps), item
int32 and timestamp int64; also part int8, as in `Histories`, where the data bring a split of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerrec.data.histories import PARTS, SHORTEST_HISTORY, SHORTEST_SPLIT, read_items, read_stats
from tigerrec.storage.contracts import read_table
from tigerrec.storage.stages import open_stage, writing

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {"user": "int32", "item": "int32", "timestamp": "int64"}
PART = "part"


def read_interactions(prepared: Path) -> pd.DataFrame:
    """The interactions of a finished prepare stage."""
    open_stage(prepared, "prepare")
    columns = COLUMNS | ({PART: "int8"} if "split" in read_stats(prepared) else {})
    interactions: pd.DataFrame = read_table(prepared, "interactions.parquet", columns).to_pandas()
    return interactions[list(columns)]


def order_of(interactions: pd.DataFrame) -> list[str]:
    """The columns by which interactions are ordered, but for those of equal times."""
    return [name for name in ("user", PART, "timestamp") if name in interactions]


def from_end(interactions: pd.DataFrame) -> np.ndarray:
    """The part of each interaction from the end, int64 (n,): 1 = for test, 2 = for validation, more = for training."""
    if PART in interactions:
        return len(PARTS) - interactions[PART].to_numpy().astype(np.int64)
    return interactions.groupby("user").cumcount(ascending=False).to_numpy() + 1


def poisoned(interactions: pd.DataFrame, n_items: int, rng: np.random.Generator, last: int = 2) -> pd.DataFrame:
    """The items of the `last` parts of the split (2: test and validation, 1: test) replaced by random other items."""
    shifts = np.where(from_end(interactions) <= last, rng.integers(1, n_items, len(interactions)), 0)
    return interactions.assign(item=((interactions["item"] + shifts) % n_items).astype(np.int32))


def ties_reversed(interactions: pd.DataFrame) -> pd.DataFrame:
    """The interactions of a user that have equal times in the opposite order."""
    return interactions[::-1].sort_values(order_of(interactions), kind="stable", ignore_index=True)


def in_a_tie(interactions: pd.DataFrame) -> np.ndarray:
    """Which interactions have the time of another one of their user, bool (n,)."""
    return interactions.duplicated(order_of(interactions), keep=False).to_numpy()


def without_items(interactions: pd.DataFrame, held_out: np.ndarray) -> tuple[pd.DataFrame, np.ndarray]:
    """The interactions with other items alone, as if the items held out, bool (n_items,), had never been there, and the
    new number of each item, int64 (n_items,), -1 where it is held out.

    Users with too few interactions left for a history go. Users and items are numbered anew, in their old order.
    """
    numbers = np.where(held_out, -1, np.cumsum(~held_out) - 1)
    left = interactions.assign(item=numbers[interactions["item"]].astype(np.int32)).query("item >= 0")
    shortest = SHORTEST_SPLIT if PART in left else SHORTEST_HISTORY
    left = left[left.groupby("user")["item"].transform("size") >= shortest]
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
    counts: dict[str, Any] = {
        "users": interactions["user"].nunique(), "items": len(items), "interactions": len(interactions),
    }  # fmt: skip
    if PART in interactions:
        counts["split"] = dict(zip(PARTS, np.bincount(interactions[PART], minlength=len(PARTS)).tolist(), strict=True))
    with writing(out, "prepare", config, inputs={"prepare": prepared}) as files:
        files.parquet("items.parquet", items)
        files.parquet("interactions.parquet", pa.table(columns))
        files.json("stats.json", counts)
    return out
