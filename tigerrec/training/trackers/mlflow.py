"""MLflow, by its own environment variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tigerrec.training.trackers.base import PROJECT, About, flat

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

LONGEST = 500


class MLflow:
    """A run in MLflow."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self.run_id = client, run_id

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Send the figures of a step; names may not hold `@` there."""
        for name, value in figures.items():
            self._client.log_metric(self.run_id, name.replace("@", "_at_"), value, step=step)

    def close(self, finished: bool) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")


def open_run(about: About, run_id: str | None) -> MLflow:
    """Go on with the run of an id, or begin one in an experiment."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    if run_id is not None:
        client.update_run(run_id, status="RUNNING")
        return MLflow(client, run_id)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else client.create_experiment(name)
    begun: str = client.create_run(number, run_name=about.name).info.run_id
    for option, value in flat(about.config).items():
        client.log_param(begun, option, str(value)[:LONGEST])
    return MLflow(client, begun)
