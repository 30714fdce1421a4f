"""Weights & Biases, by its own environment variables (WANDB_PROJECT, WANDB_MODE, …)."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tigerrec.training.trackers.base import PROJECT, About

SECONDS_BETWEEN_WRITES = 1.0


class WeightsAndBiases:
    """A run in Weights & Biases; without the network (WANDB_MODE=offline), parts of one that `wandb sync --append`
    joins. What a killed process logged last is lost there."""

    def __init__(self, about: About, run_id: str | None) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=os.environ.get("WANDB_DIR", about.folder),
            name=about.name,
            config=dict(about.config),
            id=run_id,
            resume="allow",
            settings=wandb.Settings(
                console="off", silent=True, x_transaction_log_flush_interval=SECONDS_BETWEEN_WRITES
            ),
        )
        self.run_id: str = self._run.id

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Send the figures of a step."""
        self._run.log(dict(figures), step=step)

    def close(self, finished: bool) -> None:
        """Send what is left."""
        self._run.finish(exit_code=0 if finished else 1)


def open_run(about: About, run_id: str | None) -> WeightsAndBiases:
    """Go on with the run of an id, or begin one."""
    return WeightsAndBiases(about, run_id)
