"""By which scores items are ranked: options, and what training chose of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from pydantic import Field

from tigerrec.config import ConfigError, NotNegative, options
from tigerrec.storage.contracts import read_json

CODES: Final = "codes"
ITEMS: Final = "items"
HYBRID: Final = "hybrid"
INLINE: Final = "inline"
LIGER: Final = "liger"
Scores = Literal["codes", "items", "hybrid", "inline", "liger"]
SCORES: tuple[Scores, ...] = get_args(Scores)
WEIGHED = (HYBRID, INLINE)
PLACES = 10
CHOSEN = "search.json"
ColdPlaces = Annotated[int, Field(ge=0, le=PLACES)]


@options
class Scoring:
    """By which scores items are ranked.

    Attributes:
        scores: `codes`: the beam along the trie alone. `items`: the item head alone, over all items. `hybrid`: the
            items of the beam and the best of the head, each scored log p(codes) + `item_weight` * log p(item).
            `inline`: a beam whose log-probability of each node is steered by `item_weight` times the log of the head's
            probability of the items below it. `liger`: the items of the beam and those that training never saw, scored
            by the head alone (Yang et al. 2024, arXiv 2411.18814).
        item_weight: what the head counts beside the tree.
        cold_places: at least so many of the first ten places (of all, of a shorter list) are for items that training
            never saw: where fewer stand there, the last are given to those of them that the head scores best.
    """

    scores: Scores = CODES
    item_weight: NotNegative = 1.0
    cold_places: ColdPlaces = 0

    @property
    def reads_items(self) -> bool:
        """Whether the item head is asked."""
        return self.scores != CODES or self.cold_places > 0


CODES_ALONE = Scoring()


def item_weight(folder: Path, scores: Scores) -> float:
    """What the item head counts beside the tree, as training chose it on validation for a train stage or an export; 1
    where nothing is weighed."""
    if scores not in WEIGHED:
        return 1.0
    return float(read_json(folder, CHOSEN, {scores: float})[scores])


def check_scoring(scores: Scores, cold_places: int, *, scores_items: bool, reads_vectors: bool) -> None:
    """Refuse scores that a generator does not give.

    Args:
        scores, cold_places: as in `Scoring`.
        scores_items: whether it has an item head.
        reads_vectors: whether that knows items by a vector.

    Raises:
        ConfigError: it has no item head, or the head knows nothing of items that training never saw.
    """
    if not scores_items and (scores != CODES or cold_places):
        asked = f"scores={scores}" if scores != CODES else f"cold_places={cold_places}"
        raise ConfigError(
            f"evaluate.{asked} needs a generator with an item head; give `generator=t5_tree` with "
            "generator.item_loss above 0, or `evaluate.scores=codes evaluate.cold_places=0`."
        )
    if not reads_vectors and (scores == LIGER or cold_places):
        asked = f"cold_places={cold_places}" if cold_places else f"scores={scores}"
        raise ConfigError(
            f"evaluate.{asked} needs a generator that reads item vectors, by which it knows new items; give "
            "`generator=t5_tree_vectors`."
        )
