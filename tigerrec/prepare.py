"""The prepare stage: raw interactions → numbered items, users and per-user histories."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tigerrec import TigerrecError, artifacts
from tigerrec.histories import SHORTEST_HISTORY

logger = logging.getLogger(__name__)


class DatasetError(TigerrecError):
    """Raw data that cannot be used: missing, damaged, too many unreadable lines, or nothing left."""


@dataclasses.dataclass(frozen=True)
class RawItem:
    """What the raw files say of an item: HTML entities decoded, white space collapsed, missing parts None or empty."""

    title: str | None
    brand: str | None
    categories: list[str]
    price: float | None


@dataclasses.dataclass
class RawData:
    """Readable interactions in file order, the metadata of their items, and what was lost.

    `timestamps` is int64. `dropped` counts unreadable lines by reason, out of `lines`; `noted` counts what was mended
    rather than dropped.
    """

    user_ids: list[str]
    item_ids: list[str]
    timestamps: np.ndarray
    items: dict[str, RawItem]
    dropped: dict[str, int]
    lines: int
    noted: dict[str, int] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Dataset(Protocol):
    """Where interactions come from: a frozen dataclass of files (not identity) and filters (identity)."""

    @property
    def min_user_interactions(self) -> int: ...
    @property
    def min_item_interactions(self) -> int: ...
    @property
    def max_dropped(self) -> float:
        """The largest share of unreadable lines that is put up with."""
        ...

    @property
    def expected(self) -> tuple[int, ...]:
        """Users, items and interactions of the known release; empty where nothing is known."""
        ...

    def present(self) -> dict[str, Path]:
        """Role → raw file, of those that are there; never downloads."""
        ...

    def sources(self) -> dict[str, Path]:
        """Role → existing raw file.

        Raises:
            TigerrecError: a file is missing and cannot be downloaded.
        """
        ...

    def read(self) -> RawData:
        """The raw files, read to their end.

        Raises:
            TigerrecError: a file is missing or damaged.
        """
        ...


def check_filters(min_user_interactions: int, min_item_interactions: int, max_dropped: float) -> None:
    """Raise ValueError for filters out of range; shared by the data set dataclasses."""
    for name, value in (
        ("min_user_interactions", min_user_interactions),
        ("min_item_interactions", min_item_interactions),
    ):
        if value < 0:
            raise ValueError(f"{name} must be 0 (no filter) or more, got {value}")
    if not 0 <= max_dropped <= 1:
        raise ValueError(f"max_dropped must be a share between 0 and 1, got {max_dropped}")


def k_core(users: np.ndarray, items: np.ndarray, min_user: int, min_item: int) -> np.ndarray:
    """Which interactions stay when users and items with too few are removed again and again until none is left to
    remove.

    Args:
        users: int (n,), user numbers from 0.
        items: int (n,), item numbers from 0.

    Returns:
        bool (n,).
    """
    keep = np.ones(len(users), dtype=bool)
    while keep.any():
        user_counts = np.bincount(users[keep], minlength=users.max() + 1)
        item_counts = np.bincount(items[keep], minlength=items.max() + 1)
        removed = keep & ((user_counts[users] < min_user) | (item_counts[items] < min_item))
        if not removed.any():
            break
        keep &= ~removed
    return keep


def first_of_duplicates(users: np.ndarray, items: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    """Bool (n,): False for an interaction that repeats the user, item and time of an earlier one."""
    order = np.lexsort((timestamps, items, users))  # stable: among equals the first in the file comes first
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for column in (users, items, timestamps):
        same &= np.diff(column[order]) == 0
    first = np.ones(len(order), dtype=bool)
    first[order[1:][same]] = False
    return first


def number_by_appearance(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers from 0 in order of first appearance, and the old value of each number."""
    old, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    new = np.empty(len(old), dtype=np.int64)
    new[order] = np.arange(len(old))
    return new[inverse], old[order]


def item_text(item_id: str, item: RawItem) -> str:
    """The text that is embedded: `Title: …; Brand: …; Categories: A > B; Price: 12.99.`, without the missing parts;
    `Item <id>.` where all are missing."""
    parts = {
        "Title": item.title,
        "Brand": item.brand,
        "Categories": " > ".join(item.categories),
        "Price": None if item.price is None else f"{item.price:.2f}",
    }
    text = "; ".join(f"{name}: {value}" for name, value in parts.items() if value)
    return f"{text or f'Item {item_id}'}."


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Numbered interactions, grouped by user, oldest first, with the old ids by number."""

    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    user_ids: list[str]
    item_ids: list[str]
    stats: dict[str, Any]

    @property
    def positions(self) -> np.ndarray:
        """int32 (n,): the place of each interaction in its user's history, from 0."""
        starts = np.searchsorted(self.users, self.users)
        return (np.arange(len(self.users)) - starts).astype(np.int32)


def _ids_to_numbers(ids: list[str]) -> tuple[np.ndarray, list[str]]:
    numbers: dict[str, int] = {}
    codes = np.fromiter((numbers.setdefault(text, len(numbers)) for text in ids), dtype=np.int64, count=len(ids))
    return codes, list(numbers)


def arrange(raw: RawData, min_user: int, min_item: int) -> Prepared:
    """Drop repeated interactions, filter, number by first appearance, and order by (user, time, place in the file),
    stable.

    Users with fewer than three interactions are always left out: leave-one-out needs three.

    Raises:
        DatasetError: nothing is left.
    """
    users, user_ids = _ids_to_numbers(raw.user_ids)
    items, item_ids = _ids_to_numbers(raw.item_ids)
    unique = first_of_duplicates(users, items, raw.timestamps)
    short = int((np.bincount(users[unique], minlength=len(user_ids)) < SHORTEST_HISTORY).sum())
    users, items, times = users[unique], items[unique], raw.timestamps[unique]
    keep = k_core(users, items, max(min_user, SHORTEST_HISTORY), min_item)
    if not keep.any():
        raise DatasetError(
            f"Nothing is left of {len(raw.user_ids):,} interactions of {len(user_ids):,} users ({short:,} with fewer "
            f"than {SHORTEST_HISTORY}) "
            f"and {len(item_ids):,} items after the filters; lower `dataset.min_user_interactions={min_user}` and "
            f"`dataset.min_item_interactions={min_item}` or give more data."
        )
    users, old_users = number_by_appearance(users[keep])
    items, old_items = number_by_appearance(items[keep])
    order = np.lexsort((times[keep], users))
    lengths = np.bincount(users)
    stats = {
        "users": len(old_users),
        "items": len(old_items),
        "interactions": len(users),
        "history_length": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": float(lengths.mean()),
            "max": int(lengths.max()),
        },
        "raw": {"users": len(user_ids), "items": len(item_ids), "interactions": len(raw.user_ids)},
        "repeated_interactions": int((~unique).sum()),
        "users_with_fewer_than_3": short,
        "users_filtered": len(user_ids) - short - len(old_users),
        "items_filtered": len(item_ids) - len(old_items),
    }
    return Prepared(
        users[order].astype(np.int32),
        items[order].astype(np.int32),
        times[keep][order],
        [user_ids[u] for u in old_users],
        [item_ids[i] for i in old_items],
        stats,
    )


def _check_dropped(raw: RawData, sources: Mapping[str, Path], max_dropped: float) -> None:
    dropped = sum(raw.dropped.values())
    reasons = "; ".join(
        f"{reason}: {count:,}" for reason, count in sorted(raw.dropped.items(), key=lambda pair: (-pair[1], pair[0]))
    )
    files = " and ".join(str(path) for path in sources.values())
    if dropped > max_dropped * raw.lines:
        if dropped == raw.lines:
            raise DatasetError(
                f"None of the {raw.lines:,} lines of {files} can be read ({reasons}); a time must be a number or a "
                "date like 2024-03-01."
            )
        raise DatasetError(
            f"{dropped:,} of {raw.lines:,} lines of {files} cannot be read ({reasons}), more than "
            f"max_dropped={max_dropped} allows; "
            "repair or download the files again, or put up with it by "
            f"`dataset.max_dropped={-(-dropped * 1000 // raw.lines) / 1000}`."
        )
    if dropped:
        logger.warning("dropped %s of %s lines (%s)", f"{dropped:,}", f"{raw.lines:,}", reasons)


def _check_expected(stats: Mapping[str, Any], expected: tuple[int, ...]) -> None:
    found = (stats["users"], stats["items"], stats["interactions"])
    if expected and found != expected:
        logger.warning(
            "not the files of the known release: expected %s users, %s items, %s interactions, found %s, %s, %s; do "
            "not compare results with published ones",
            *(f"{number:,}" for number in (*expected, *found)),
        )


def prepare(dataset: Dataset, out: Path) -> Path:
    """Write `items.parquet`, `users.parquet`, `interactions.parquet` and `stats.json` of a data set.

    Raises:
        TigerrecError: raw files missing or damaged, too many unreadable lines, or nothing left after filtering.
    """
    import pyarrow as pa

    sources = dataset.sources()
    raw = dataset.read()
    _check_dropped(raw, sources, dataset.max_dropped)
    logger.info(
        "read %s interactions from %s", f"{len(raw.user_ids):,}", ", ".join(str(path) for path in sources.values())
    )
    prepared = arrange(raw, dataset.min_user_interactions, dataset.min_item_interactions)
    unknown = RawItem(None, None, [], None)
    items = [raw.items.get(item_id, unknown) for item_id in prepared.item_ids]
    stats = prepared.stats | {
        "items_without_metadata": sum(item_id not in raw.items for item_id in prepared.item_ids),
        "items_without": dict(
            Counter(
                name
                for item in items
                for name in ("title", "brand", "categories", "price")
                if getattr(item, name) in (None, [])
            )
        ),
        "lines": raw.lines,
        "dropped": dict(sorted(raw.dropped.items())),
        "noted": dict(sorted(raw.noted.items())),
    }
    _check_expected(stats, dataset.expected)
    tables = {
        "items.parquet": {
            "item": pa.array(range(len(items)), pa.int32()),
            "item_id": pa.array(prepared.item_ids, pa.string()),
            "title": pa.array([item.title for item in items], pa.string()),
            "brand": pa.array([item.brand for item in items], pa.string()),
            "categories": pa.array([item.categories for item in items], pa.list_(pa.string())),
            "price": pa.array([item.price for item in items], pa.float64()),
            "text": pa.array(
                [item_text(item_id, item) for item_id, item in zip(prepared.item_ids, items, strict=True)], pa.string()
            ),
        },
        "users.parquet": {
            "user": pa.array(range(len(prepared.user_ids)), pa.int32()),
            "user_id": pa.array(prepared.user_ids, pa.string()),
        },
        "interactions.parquet": {
            "user": prepared.users,
            "item": prepared.items,
            "timestamp": prepared.timestamps,
            "position": prepared.positions,
        },
    }
    hashes = {role: artifacts.sha256_file(path) for role, path in sources.items()}
    with artifacts.writing(out, "prepare", dataset, sources=hashes) as files:
        for name, columns in tables.items():
            files.parquet(name, pa.table(columns))
        files.json("stats.json", stats)
    logger.info(
        "wrote %s users, %s items, %s interactions to %s",
        *(f"{stats[key]:,}" for key in ("users", "items", "interactions")),
        out,
    )
    return out
