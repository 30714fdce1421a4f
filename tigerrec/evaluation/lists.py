"""What an evaluation leaves of every user: the rank of the target, and the lists of recommended items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec.storage.contracts import contract, read_table

RANKS, RECOMMENDATIONS = "ranks.parquet", "recommendations.parquet"


@dataclass(frozen=True)
class Lists:
    """One model's recommendations.

    Attributes:
        items: int32 (n, k), best first, -1 where a list is shorter.
        scores: float32 (n, k), NaN there.
    """

    items: np.ndarray
    scores: np.ndarray


def _groups(folder: Path, name: str, keys: tuple[str, ...], columns: Mapping[str, str]) -> dict[Any, Any]:
    """A table's rows by the values of some columns, each a data frame in the order of users."""
    rows = read_table(folder, name, columns).to_pandas().sort_values("user", kind="stable")
    return dict(list(rows.groupby(list(keys), observed=True)))


def read_ranks(folder: Path) -> tuple[dict[tuple[str, str, str], np.ndarray], np.ndarray, np.ndarray]:
    """The ranks of the targets in a folder that an evaluation left, by (model, hit, seen), each int16 (n,), 0 = not in
    the list; the targets, int32 (n,); and the users, int32 (n,), ascending.

    Raises:
        DamagedError: there is no such table, or not one rank a user.
    """
    with contract(folder, RANKS):
        groups = _groups(folder, RANKS, ("model", "hit", "seen"), {"user": "int32", "target": "int32", "rank": "int16"})
        targets, users = (next(iter(groups.values()))[column].to_numpy() for column in ("target", "user"))
        for rows in groups.values():
            if not np.array_equal(rows["user"], users) or (np.diff(users) < 1).any():
                raise ValueError("it has not one rank for each user")
    return {key: rows["rank"].to_numpy() for key, rows in groups.items()}, targets, users


def read_lists(folder: Path) -> dict[tuple[str, str], Lists]:
    """The lists in a folder that an evaluation left, by (model, seen), rows as in `read_ranks`; one place, which
    is empty, where all lists are.

    Raises:
        DamagedError: there is no such table, or it has other users than that of ranks.
    """
    ranks, _, users = read_ranks(folder)
    nothing = Lists(np.full((len(users), 1), -1, np.int32), np.full((len(users), 1), np.nan, np.float32))
    lists = {(model, seen): nothing for model, _, seen in ranks}
    with contract(folder, RECOMMENDATIONS):
        columns = {"user": "int32", "rank": "int16", "item": "int32", "score": "float"}
        for key, rows in _groups(folder, RECOMMENDATIONS, ("model", "seen"), columns).items():
            listed, places = np.searchsorted(users, rows["user"]), rows["rank"].to_numpy() - 1
            if not np.array_equal(users[listed], rows["user"]):
                raise ValueError("it has lists of other users")
            items = np.full((len(users), places.max() + 1), -1, np.int32)
            scores = np.full(items.shape, np.nan, np.float32)
            items[listed, places], scores[listed, places] = rows["item"], rows["score"]
            lists[key] = Lists(items, scores)
    return lists
