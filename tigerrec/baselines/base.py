"""What a user would pick instead of a generator; each learns from the training interactions alone and ranks the whole
catalogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from tigerrec.search.ranking import Rank

Validate = Callable[[Rank], float]
"""NDCG@10 of validation targets: item level, seen items masked."""


@dataclass(frozen=True)
class Fitted:
    """A recommender and what is to be told of its fitting, such as its best epoch."""

    rank: Rank
    facts: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Baseline(Protocol):
    """A recommender to be: a frozen dataclass of hyper-parameters; `is_random` where a seed changes what it learns."""

    is_random: ClassVar[bool]

    def fit(self, training: Sequence[np.ndarray], n_items: int, *, seed: int, validate: Validate) -> Fitted:
        """Learn from the training part of every user's history, item indices below `n_items`, oldest first; `validate`
        is asked of recommenders on the way, so that the best can be kept."""
        ...
