"""A search for options: what a trial is judged by, and a study that goes on where it was left."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from tigerrec.config import folder_of
from tigerrec.runtime import distributed
from tigerrec.storage.stages import open_stage

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)
SCORE = "validation_ndcg@10"
LEFT = "trials left unfinished"


def validation_score(trained: Path) -> float | None:
    """The validation NDCG@10 of the weights that a train stage selected; None without a holdout."""
    value = open_stage(trained, "train").provenance["selected"].get(SCORE)
    return None if value is None else float(value)


class GoOn(Callback):
    """Makes the same command go on with an Optuna study: trials that a stopped process left are tried again with their
    values, and those that are done count towards `n_trials`."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Ask for as many trials as are left; the process ends in one sentence where a search is not possible."""
        if distributed.world_size() > 1:
            sys.exit("Error: Several processes cannot share a search; run it without torchrun.")
        study = _study(config)
        sweeper = config.hydra.sweeper
        _try_again_what_was_left(study)
        n_done = sum(trial.state.is_finished() for trial in study.trials) - study.user_attrs.get(LEFT, 0)
        if n_done:
            logger.info("going on with study %s, of which %d trials are done", study.study_name, n_done)
        sweeper.n_trials = max(sweeper.n_trials - n_done, 0)
        if sweeper.sampler.get("seed") is not None:
            sweeper.sampler.seed += len(study.trials)
        Path(config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)  # where the sweeper writes at the end

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Tell the best trial."""
        study = _study(config)
        n_scored = sum(trial.value is not None for trial in study.trials)
        options = " ".join(f"{name}={value}" for name, value in study.best_params.items())
        logger.info("best of %d trials: validation NDCG@10 %.4f with %s", n_scored, study.best_value, options)


def _study(config: DictConfig) -> optuna.Study:
    """The study of a sweep, made where there is none."""
    try:
        import hydra_plugins.hydra_optuna_sweeper  # noqa: F401
        import optuna
    except ImportError:
        sys.exit('Error: hydra/sweeper=search needs packages that are missing; give `pip install "tigerrec[search]"`.')
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweeper = config.hydra.sweeper
    folder_of(config, "paths.runs").mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        study_name=sweeper.study_name, storage=sweeper.storage, direction="maximize", load_if_exists=True
    )


def _try_again_what_was_left(study: optuna.Study) -> None:
    """Queue the values of trials that a stopped process left, and note how many trials do not count for that."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.trial import TrialState

    left = [trial for trial in study.trials if trial.state == TrialState.RUNNING]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        for trial in left:
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)
    study.set_user_attr(LEFT, study.user_attrs.get(LEFT, 0) + len(left))
