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
        tried = []
        for weight in weights:
            figures = validate(model, histories, users, training, Scoring(scores, weight))
            metrics = {name.removeprefix("validation_"): value for name, value in figures.items()}
            tried.append({"item_weight": weight, **metrics})
        checkpoints.log({"step": checkpoints.state.step, "scores": scores, "users": len(users), "tried": tried})
        best = max(tried, key=lambda each: each["ndcg@10"])
        chosen[scores] = best["item_weight"]
        logger.info("%s: item weight %g, validation NDCG@10 %.4f", scores, chosen[scores], best["ndcg@10"])
    return chosen
