"""Nearest neighbours of items: what was bought by the buyers of a user's items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from tigerrec.baselines.base import Fitted, Validate
from tigerrec.config import AtLeastOne, NotNegative, Share, options
from tigerrec.search.ranking import purchases, ranks_by

POPULARITY_WEIGHT = 1e-6


@options
class ItemKNN:
    """Sums the similarities of an item to the items of a history (Sarwar et al. 2001; shrunk as by Deshpande and
    Karypis 2004).

    Items i and j with c common buyers of n_i and n_j are c / (n_i^normalisation n_j^(1 - normalisation) + shrinkage)
    similar, where i is the item of the history. Items that none of its neighbours reaches follow by popularity.

    Args:
        neighbours: most similar items kept of each item.
        normalisation: 0.5 is the cosine; 1 the share of i's buyers who bought j.
        shrinkage: takes more from similarities of rare items.
        recency: the similarities of an item of the history count this factor less with every later item.
    """

    family: ClassVar[str] = "item_knn"

    is_random: ClassVar[bool] = False

    neighbours: AtLeastOne = 100
    normalisation: Share = 0.5
    shrinkage: NotNegative = 0.0
    recency: float = Field(default=0.8, gt=0, le=1)

    def fit(
        self, training: Sequence[np.ndarray], n_items: int, *, seed: int = 0, validate: Validate | None = None
    ) -> Fitted:
        """Find the neighbours of each item. As in `Baseline.fit`."""
        from scipy import sparse

        similarities = self.similarities(training, n_items)
        most_bought_first = np.argsort(-purchases(training, n_items), kind="stable")
        popularity = np.empty(n_items, np.float32)
        popularity[most_bought_first] = np.linspace(POPULARITY_WEIGHT, 0, n_items)

        def score(histories: Sequence[np.ndarray]) -> np.ndarray:
            ages = np.concatenate([np.arange(len(history))[::-1] for history in histories])
            offsets = np.cumsum([0, *(len(history) for history in histories)])
            entries = np.power(self.recency, ages), np.concatenate(histories), offsets
            weights = sparse.csr_array(entries, shape=(len(histories), n_items))
            return (weights @ similarities).toarray().astype(np.float32) + popularity

        return Fitted(ranks_by(score))

    def similarities(self, training: Sequence[np.ndarray], n_items: int) -> Any:
        """The similarities of each item (row) to its most similar others, float64 CSR (n_items, n_items); equal ones by
        item index."""
        from scipy import sparse

        users = np.repeat(np.arange(len(training)), [len(history) for history in training])
        pairs = np.unique(np.stack([users, np.concatenate(training)]), axis=1)
        bought = sparse.csr_array((np.ones(pairs.shape[1]), pairs), shape=(len(training), n_items))
        buyers = bought.sum(0)
        common = (bought.T @ bought).tocoo()
        other = common.row != common.col
        rows, columns = common.row[other], common.col[other]
        expected = buyers[rows] ** self.normalisation * buyers[columns] ** (1 - self.normalisation)
        values = common.data[other] / (expected + self.shrinkage)
        order = np.lexsort((columns, -values, rows))
        rows, columns, values = rows[order], columns[order], values[order]
        kept = np.arange(len(rows)) - np.searchsorted(rows, rows) < self.neighbours
        return sparse.csr_array((values[kept], (rows[kept], columns[kept])), shape=(n_items, n_items))
