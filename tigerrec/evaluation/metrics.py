"""Ranks and what is read off them: HR@K and NDCG@K."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tigerrec import text
from tigerrec.evaluation.intervals import means, means_with_intervals

HR_CUTOFFS = (1, 5, 10, 20)
NDCG_CUTOFFS = (5, 10, 20)
VALIDATION_K = 10
LARGEST_CUTOFF = max(HR_CUTOFFS + NDCG_CUTOFFS)


def item_ranks(items: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The place of each user's target in the list, int16 (n,); 0 = not in the list.

    Args:
        items: recommended items, best first, (n, k); -1 where a list is shorter.
        targets: item index of the one relevant item, (n,).
    """
    hits = items == targets[:, None]
    return np.where(hits.any(1), hits.argmax(1) + 1, 0).astype(np.int16)


def semantic_id_ranks(items: np.ndarray, targets: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The place of the target's codes among the distinct codes of the list, int16 (n,); 0 = not in the list.

    Args:
        items: as in `item_ranks`.
        targets: as in `item_ranks`.
        groups: a number for each distinct row of codes without suffix, (n_items,): `semantic_ids.group_codes`.
    """
    listed = np.where(items >= 0, groups[items], -1)
    first = np.ones(listed.shape, bool)
    for place in range(1, listed.shape[1]):
        first[:, place] = (listed[:, :place] != listed[:, place, None]).all(1)
    hits = listed == groups[targets][:, None]
    places = np.take_along_axis(np.cumsum(first, axis=1), hits.argmax(1)[:, None], axis=1)[:, 0]
    return np.where(hits.any(1), places, 0).astype(np.int16)


def gains(largest_rank: int) -> dict[str, np.ndarray]:
    """What a user with rank 0, 1, … `largest_rank` adds to each metric, by metric name.

    With one relevant item the ideal DCG is 1, so NDCG = 1 / log2(1 + rank) (Järvelin and Kekäläinen 2002).
    """
    ranks = np.arange(largest_rank + 1)
    discount = 1 / np.log2(1 + np.maximum(ranks, 1))
    within = {cutoff: (ranks >= 1) & (ranks <= cutoff) for cutoff in {*HR_CUTOFFS, *NDCG_CUTOFFS}}
    gains = {f"hr@{cutoff}": within[cutoff].astype(float) for cutoff in HR_CUTOFFS}
    return gains | {f"ndcg@{cutoff}": np.where(within[cutoff], discount, 0.0) for cutoff in NDCG_CUTOFFS}


def metrics(ranks: np.ndarray, intervals: bool = True) -> dict[str, float]:
    """Every metric of one rank a user, (n,), 0 = not in the list, with its interval where asked for; ValueError where
    there are no ranks."""
    if len(ranks) == 0:
        raise ValueError("there must be at least one rank")
    counts = np.bincount(ranks, minlength=LARGEST_CUTOFF + 1)
    return (means_with_intervals if intervals else means)(gains(len(counts) - 1), counts)


def validation_metrics(ranks: np.ndarray) -> dict[str, float]:
    """HR@10 and NDCG@10 of validation targets, by which weights and settings are chosen."""
    values = metrics(ranks, intervals=False)
    return {f"validation_{name}": values[name] for name in (f"hr@{VALIDATION_K}", f"ndcg@{VALIDATION_K}")}


def format_metrics(rows: Sequence[Mapping[str, Any]]) -> str:
    """The main figures of `metrics.json` as a table to read: HR@10 and NDCG@10 with their intervals."""
    lines = [("model", "split", "hit", "seen", "users", "HR@10", "95 %", "NDCG@10", "95 %")]
    for row in rows:
        figures = []
        for name in ("hr@10", "ndcg@10"):
            figures += [f"{row[name]:.4f}", f"{row[f'{name}_low']:.4f}–{row[f'{name}_high']:.4f}"]
        lines.append((row["model"], row["split"], row["hit"], row["seen"], f"{row['users']:,}", *figures))
    return text.aligned(lines)
