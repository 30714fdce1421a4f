"""The items that a recommender ranks: their ids, Semantic IDs, titles and categories."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerrec import TigerrecError
from tigerrec.data.histories import ITEMS, has_holdout, load_histories, read_items, training_counts
from tigerrec.data.raw import Unreadable, plain_id
from tigerrec.embed.base import few
from tigerrec.storage.contracts import contract, read_arrays
from tigerrec.storage.manifests import Manifest, StaleError
from tigerrec.text import shortened
from tigerrec.tokenizers.ids import load_semantic_ids

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

EXPORT = "export"
POPULARITY = "popularity.safetensors"
SHOWN_IDS = 10


class RecommendError(TigerrecError):
    """A request that cannot be answered, or new items that do not fit to the others."""


@dataclass(frozen=True, repr=False)
class Catalogue:
    """Items by their index.

    Attributes:
        item_ids: the data set's own ids.
        codes: Semantic IDs, int32 (I, n_levels).
        titles: None where an item has none.
        categories: a list of names an item.
        counts: how often training histories hold each, int64 (I,).
        may_share: whether several items may have one Semantic ID.
    """

    item_ids: list[str]
    codes: np.ndarray
    titles: list[str | None]
    categories: pa.ChunkedArray
    counts: np.ndarray
    may_share: bool = False

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The item index of each id."""
        return {item_id: number for number, item_id in enumerate(self.item_ids)}

    def indices(self, item_ids: Iterable[str]) -> np.ndarray:
        """The item index of each id that is known, int32 (n,)."""
        numbers = self.numbers
        return np.array([numbers[item_id] for item_id in item_ids if item_id in numbers], np.int32)

    def known(self, histories: Iterable[Any]) -> list[np.ndarray]:
        """The item indices of each history without its unknown ids, int32 (n,); what is unknown is counted in a
        warning."""
        ids = [ids_of(history) for history in histories]
        known = [self.indices(history) for history in ids]
        n_unknown = sum(map(len, ids)) - sum(map(len, known))
        if n_unknown:
            unknown = [item_id for history in ids for item_id in history if item_id not in self.numbers]
            shown = few([shortened(repr(item_id)) for item_id in unknown], SHOWN_IDS)
            total = sum(map(len, ids))
            logger.warning("ignored %d of %d item ids that are not in the catalogue: %s", n_unknown, total, shown)
        return known

    def with_items(
        self, item_ids: Sequence[str], codes: np.ndarray, titles: Sequence[str | None], categories: Sequence[list[str]]
    ) -> Catalogue:
        """These and new items, whose ids are none of these and come once. Raises RecommendError if one is known, or
        comes twice."""
        import pyarrow as pa

        repeated = [item_id for item_id, count in Counter([*self.numbers, *item_ids]).items() if count > 1]
        if repeated:
            raise RecommendError(
                f"{len(repeated)} new items are in the catalogue already or come twice "
                f"({few(repeated, SHOWN_IDS)}); leave them out."
            )
        return Catalogue(
            self.item_ids + list(item_ids),
            np.concatenate([self.codes, codes]).astype(np.int32),
            self.titles + list(titles),
            pa.chunked_array([*self.categories.chunks, pa.array(list(categories), self.categories.type)]),
            np.pad(self.counts, (0, len(item_ids))),
            self.may_share,
        )


def ids_of(history: Any) -> list[str]:
    """The ids of a history as the data set's reader takes them, what is none as it prints; no ids of what is no
    history."""
    given = [history] if isinstance(history, str) or not isinstance(history, Iterable) else history

    def id_of(value: Any) -> str:
        try:
            return plain_id(value.item() if isinstance(value, np.generic) else value, "item id")
        except Unreadable:
            return str(value)

    return [] if history is None or isinstance(history, float) else [id_of(value) for value in given]


def read_popularity(exported: Path, n_items: int) -> np.ndarray:
    """How often training histories hold each item of an export, int64 (n_items,). Raises DamagedError if the file holds
    anything else."""
    arrays = read_arrays(exported, POPULARITY, {"training_counts": ("int64", (n_items,))})
    counts: np.ndarray = arrays["training_counts"]
    with contract(exported, POPULARITY):
        if (counts < 0).any():
            raise ValueError("it has negative counts")
    return counts


def counts_of_training(prepared: Path, trained: Manifest) -> np.ndarray:
    """How often the histories that a train stage read hold each item of its prepare stage, int64 (n_items,)."""
    histories = load_histories(prepared)
    return training_counts(histories if has_holdout(trained.config) else histories.whole())


def read_catalogue(prepared: Path, tokenized: Path, run: Path, manifest: Manifest) -> Catalogue:
    """The items of a prepare stage with the Semantic IDs of a tokenize stage, for a train stage; or all of an export.
    Raises ArtifactError if a file is damaged or the two have other items."""
    semantic_ids = load_semantic_ids(tokenized)
    items = read_items(prepared, {"title": "string?"})
    if len(items) != len(semantic_ids.codes):
        raise StaleError(
            f"{prepared} has {len(items)} items and Semantic IDs for {len(semantic_ids.codes)}; export it again, or "
            "add `overwrite=embed`."
        )
    if manifest.stage == "train":
        counts = counts_of_training(prepared, manifest)
    elif semantic_ids.may_share or POPULARITY in manifest.files:
        counts = read_popularity(run, len(items))
    else:  # an export of an earlier version
        counts = np.zeros(len(items), np.int64)
    return Catalogue(
        items["item_id"].to_pylist(),
        semantic_ids.codes,
        items["title"].to_pylist(),
        _categories(items, prepared),
        counts,
        semantic_ids.may_share,
    )


def _categories(items: Any, folder: Path) -> pa.ChunkedArray:
    """The categories of items, lists of names; none of items without such a column. Raises DamagedError if it holds
    anything else."""
    import pyarrow as pa

    kind = pa.list_(pa.string())
    if "categories" not in items.column_names:
        return pa.chunked_array([pa.array([[]] * len(items), kind)])
    with contract(folder, ITEMS):
        return pa.chunked_array(items["categories"].combine_chunks().fill_null([]).cast(kind))
