"""What the checks compute of arrays: differences between rankings, buckets, and the exposure of items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from tigerrec.evaluation.intervals import means_with_intervals
from tigerrec.evaluation.metrics import LARGEST_CUTOFF, gains, metrics
from tigerrec.text import figure

CUTOFF = 10
HR, NDCG = f"hr@{CUTOFF}", f"ndcg@{CUTOFF}"


def headline(ranks: np.ndarray) -> dict[str, float]:
    """The number of users and, if any, HR@10 and NDCG@10 with 95 % intervals, of ranks (n,), 0 = not in the list."""
    of_ranks = metrics(ranks) if len(ranks) else {}
    return {"users": len(ranks)} | {name: of_ranks[name] for name in of_ranks if name.split("_")[0] in (HR, NDCG)}


def paired_difference(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """HR@10 and NDCG@10 of the second ranks (n,) minus the first, of the same users, with 95 % percentile bootstrap
    intervals over users, who are drawn with both their ranks."""
    if not len(first) or len(first) != len(second):
        raise ValueError(f"a paired difference needs two ranks a user, got {len(first)} and {len(second)}")
    side = max(LARGEST_CUTOFF, int(first.max()), int(second.max())) + 1
    counts = np.bincount(first.astype(np.int64) * side + second, minlength=side * side)
    present = np.flatnonzero(counts)
    of_rank = gains(side - 1)
    changes = {name: of_rank[name][present % side] - of_rank[name][present // side] for name in (HR, NDCG)}
    return means_with_intervals(changes, counts[present])


def buckets(values: np.ndarray, edges: Sequence[int]) -> list[tuple[str, np.ndarray]]:
    """The label and the members, bool (n,), of each range of values (n,) between ascending edges; the last one has no
    upper end, and no value is below the first."""
    ranges = [
        (str(low) if end == low + 1 else f"{low}–{end - 1}", (values >= low) & (values < end))
        for low, end in pairwise(edges)
    ]
    return [*ranges, (f"{edges[-1]}+", values >= edges[-1])]


def gini(counts: np.ndarray) -> float:
    """The Gini index of counts (n,): 0 where all are equal or zero, towards 1 where one has everything."""
    total, n = float(counts.sum()), len(counts)
    if not total:
        return 0.0
    return float(2 * (np.arange(1, n + 1) * np.sort(counts)).sum() / (n * total) - (n + 1) / n)


def head_share(counts: np.ndarray, popularity: np.ndarray, share: float) -> float:
    """The part of the counts (n_items,) that falls on the given share of the catalogue, at least one item, with the
    most training interactions, `popularity` (n_items,); ties by item index."""
    head = np.argsort(-popularity, kind="stable")[: max(1, round(share * len(popularity)))]
    return float(counts[head].sum() / max(1, counts.sum()))


def exposure(shown: np.ndarray, popularity: np.ndarray) -> dict[str, float]:
    """How items shown (any shape, -1 = none) are spread over the catalogue of popularity (n_items,)."""
    counts = np.bincount(shown[shown >= 0].ravel(), minlength=len(popularity))
    distinct = int((counts > 0).sum())
    return {
        "shown": int(counts.sum()),
        "different items": distinct,
        "share of the catalogue": distinct / len(popularity),
        "Gini index": gini(counts),
        "share on top 1 % of items": head_share(counts, popularity, 0.01),
        "share on top 10 % of items": head_share(counts, popularity, 0.10),
    }


def without(items: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """Lists (n, k) without the places marked in `dropped`, bool (n, k): what is left moves up, -1 at the end."""
    order = np.argsort(dropped, axis=1, kind="stable")
    return np.where(np.take_along_axis(dropped, order, axis=1), -1, np.take_along_axis(items, order, axis=1))


def listed_in(items: np.ndarray, histories: Sequence[np.ndarray]) -> np.ndarray:
    """Which items of each list (n, k) the user's own history holds, bool (n, k)."""
    return np.stack([np.isin(row, history) for row, history in zip(items, histories, strict=True)])


def chance_of_any(special: int, total: int, drawn: int) -> float:
    """The probability that `drawn` different items of `total`, drawn at random, hold one of the `special` ones."""
    places = np.arange(min(drawn, total))
    return float(1 - np.prod(np.maximum(total - special - places, 0) / (total - places)))


def difference_in_words(row: Mapping[str, float], name: str = NDCG) -> str:
    """A paired difference to read: `+.0044 (+.0031 to +.0058)`."""
    value, low, high = (figure(row[key], "+.4f") for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value} ({low} to {high})"
