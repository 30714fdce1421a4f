"""What the item head counts beside the tree, chosen on validation."""

from __future__ import annotations

import logging

import numpy as np

from tigerrec.data.histories import Histories
from tigerrec.models.base import HistoryModel
from tigerrec.search.options import Scores, Scoring
from tigerrec.training.checkpoints import Checkpoints
from tigerrec.training.loop import validate
from tigerrec.training.options import Training

logger = logging.getLogger(__name__)
WEIGHTS: dict[Scores, tuple[float, ...]] = {
    "hybrid": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
    "inline": (0.125, 0.25, 0.5, 1.0, 2.0),
}


def choose(
    model: HistoryModel, histories: Histories, users: np.ndarray, training: Training, checkpoints: Checkpoints
) -> dict[str, float]:
    """The weight with the highest validation NDCG@10 for each kind of scores that has one; all that were tried stand in
    the log."""
    chosen: dict[str, float] = {}
    for scores, weights in WEIGHTS.items():
        found = {}
        for weight in weights:
            figures = validate(model, histories, users, training, Scoring(scores, weight))
            step = checkpoints.state.step
            checkpoints.log({"step": step, "scores": scores, "item_weight": weight, "users": len(users), **figures})
            found[weight] = figures["validation_ndcg@10"]
        chosen[scores] = max(found, key=lambda weight: found[weight])
        logger.info("%s: item weight %g, validation NDCG@10 %.4f", scores, chosen[scores], found[chosen[scores]])
    return chosen
