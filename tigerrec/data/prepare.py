"""The prepare stage: raw interactions → numbered items, users and per-user histories."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec.data.base import Dataset, DatasetError, RawData, RawItem
from tigerrec.data.histories import SHORTEST_HISTORY
from tigerrec.storage.files import unchanged
from tigerrec.storage.stages import writing

logger = logging.getLogger(__name__)

ITEM_FIELDS = ("title", "brand", "categories", "price")


def k_core(users: np.ndarray, items: np.ndarray, min_user: int, min_item: int) -> np.ndarray:
    """Which interactions stay, bool (n,), when users and items with too few are removed until none is left to remove;
    users and items are numbers from 0, int (n,)."""
    keep = np.ones(len(users), dtype=bool)
    while keep.any():
        user_counts = np.bincount(users[keep], minlength=users.max() + 1)
        item_counts = np.bincount(items[keep], minlength=items.max() + 1)
        removed = keep & ((user_counts[users] < min_user) | (item_counts[items] < min_item))
        if not removed.any():
            break
        keep &= ~removed
    return keep


def item_text(item_id: str, item: RawItem) -> str:
    """The text that is embedded: `Title: …; Brand: …; Categories: A > B; Price: 12.99.`, without what is missing; `Item
    <id>.` where all is missing."""
    fields = {
        "Title": item.title,
        "Brand": item.brand,
        "Categories": " > ".join(item.categories),
        "Price": None if item.price is None else f"{item.price:.2f}",
    }
    text = "; ".join(f"{name}: {value}" for name, value in fields.items() if value)
    return f"{text or f'Item {item_id}'}."


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Numbered interactions, grouped by user, oldest first, with the old ids by number; `positions` are places in the
    user's history, from 0."""

    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    positions: np.ndarray
    user_ids: list[str]
    item_ids: list[str]
    stats: dict[str, Any]


def arrange(raw: RawData, min_user: int, min_item: int) -> Prepared:
    """Drop repeated interactions, filter, number by first appearance, order by (user, time, place in the file). Users
    with fewer than three interactions are always left out: leave-one-out needs three. Raises DatasetError if nothing is
    left."""
    import pandas as pd

    users, user_ids = pd.factorize(np.array(raw.user_ids, dtype=object))
    items, item_ids = pd.factorize(np.array(raw.item_ids, dtype=object))
    is_repeated = pd.DataFrame({"user": users, "item": items, "time": raw.timestamps}).duplicated().to_numpy()
    users, items, times = users[~is_repeated], items[~is_repeated], raw.timestamps[~is_repeated]
    short = int((np.bincount(users, minlength=len(user_ids)) < SHORTEST_HISTORY).sum())
    keep = k_core(users, items, max(min_user, SHORTEST_HISTORY), min_item)
    if not keep.any():
        raise DatasetError(
            f"Nothing is left of {len(raw.user_ids):,} interactions of {len(user_ids):,} users ({short:,} with fewer "
            f"than {SHORTEST_HISTORY}) and {len(item_ids):,} items after the filters; lower "
            f"`dataset.min_user_interactions={min_user}` and `dataset.min_item_interactions={min_item}` or give more "
            "data."
        )
    (users, kept_users), (items, kept_items) = pd.factorize(users[keep]), pd.factorize(items[keep])
    times = times[keep]
    order = np.lexsort((times, users))
    lengths = np.bincount(users)
    positions = np.arange(len(users)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    stats = {
        "users": len(kept_users),
        "items": len(kept_items),
        "interactions": len(users),
        "history_length": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": float(lengths.mean()),
            "max": int(lengths.max()),
        },
        "raw": {"users": len(user_ids), "items": len(item_ids), "interactions": len(raw.user_ids)},
        "repeated_interactions": int(is_repeated.sum()),
        "users_with_fewer_than_3": short,
        "users_filtered": len(user_ids) - short - len(kept_users),
        "items_filtered": len(item_ids) - len(kept_items),
    }
    return Prepared(
        users[order].astype(np.int32),
        items[order].astype(np.int32),
        times[order],
        positions.astype(np.int32),
        user_ids[kept_users].tolist(),
        item_ids[kept_items].tolist(),
        stats,
    )


def _check_dropped(raw: RawData, sources: Mapping[str, Path], max_dropped: float) -> None:
    dropped = sum(raw.dropped.values())
    by_count = sorted(raw.dropped.items(), key=lambda pair: (-pair[1], pair[0]))
    reasons = "; ".join(f"{reason}: {count:,}" for reason, count in by_count)
    files = " and ".join(map(str, sources.values()))
    if dropped > max_dropped * raw.lines and dropped == raw.lines:
        raise DatasetError(
            f"None of the {raw.lines:,} lines of {files} can be read ({reasons}); a time must be a number or a date "
            "like 2024-03-01."
        )
    if dropped > max_dropped * raw.lines:
        raise DatasetError(
            f"{dropped:,} of {raw.lines:,} lines of {files} cannot be read ({reasons}), more than "
            f"max_dropped={max_dropped} allows; repair or download the files again, or put up with it by "
            f"`dataset.max_dropped={-(-dropped * 1000 // raw.lines) / 1000}`."
        )
    if dropped:
        logger.warning("dropped %s of %s lines (%s)", f"{dropped:,}", f"{raw.lines:,}", reasons)


def _check_expected(stats: Mapping[str, Any], expected: tuple[int, ...]) -> None:
    counts = (stats["users"], stats["items"], stats["interactions"])
    if expected and counts != expected:
        logger.warning(
            "not the files of the known release: expected %s users, %s items, %s interactions, found %s, %s, %s; do "
            "not compare results with published ones",
            *(f"{number:,}" for number in (*expected, *counts)),
        )


def prepare(dataset: Dataset, out: Path) -> Path:
    """Write `items.parquet`, `users.parquet`, `interactions.parquet` and `stats.json` of a data set. Raises
    TigerrecError if raw files are missing, damaged or changed meanwhile, too many lines are unreadable, or nothing is
    left after filtering."""
    import pyarrow as pa

    sources = dataset.sources()
    with unchanged(sources) as digests:
        raw = dataset.read()
    _check_dropped(raw, sources, dataset.max_dropped)
    logger.info("read %s interactions from %s", f"{len(raw.user_ids):,}", ", ".join(map(str, sources.values())))
    prepared = arrange(raw, dataset.min_user_interactions, dataset.min_item_interactions)
    unknown = RawItem(None, None, [], None)
    items = [raw.items.get(item_id, unknown) for item_id in prepared.item_ids]
    stats = prepared.stats | {
        "items_without_metadata": sum(item_id not in raw.items for item_id in prepared.item_ids),
        "items_without": Counter(name for item in items for name in ITEM_FIELDS if getattr(item, name) in (None, [])),
        "lines": raw.lines,
        "dropped": dict(sorted(raw.dropped.items())),
        "noted": dict(sorted(raw.noted.items())),
    }
    _check_expected(stats, dataset.expected)
    texts = [item_text(item_id, item) for item_id, item in zip(prepared.item_ids, items, strict=True)]
    tables = {
        "items.parquet": {
            "item": pa.array(range(len(items)), pa.int32()),
            "item_id": pa.array(prepared.item_ids, pa.string()),
            "title": pa.array([item.title for item in items], pa.string()),
            "brand": pa.array([item.brand for item in items], pa.string()),
            "categories": pa.array([item.categories for item in items], pa.list_(pa.string())),
            "price": pa.array([item.price for item in items], pa.float64()),
            "text": pa.array(texts, pa.string()),
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
    with writing(out, "prepare", dataset, sources=digests) as files:
        for name, columns in tables.items():
            files.parquet(name, pa.table(columns))
        files.json("stats.json", stats)
    counts = [f"{stats[key]:,}" for key in ("users", "items", "interactions")]
    logger.info("wrote %s users, %s items, %s interactions to %s", *counts, out)
    return out
