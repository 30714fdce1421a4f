"""Searches: the number that a command gives to Hydra's sweeper, and a study that goes on."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import sys

import pytest
from hydra.experimental.callback import Callback

from tests.test_pipeline import TINY
from tests.test_train import CONFIG, run
from tigerrec import TigerrecError, pipeline, tuning
from tigerrec.cli import main
from tigerrec.config import compose
from tigerrec.pipeline import plan
from tigerrec.storage.manifests import read_manifest

with_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="optuna is not installed")


class Probe(Callback):
    """Keeps what the jobs of Hydra return."""

    returned: list = []  # noqa: RUF012

    def on_job_end(self, config, job_return, **kwargs):
        self.returned.append(job_return.return_value)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """The process as it was: arguments, loggers, and what a probe has kept."""
    monkeypatch.setattr(sys, "argv", ["tigerrec"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    before = logging.root.handlers[:]
    Probe.returned.clear()
    yield
    logging.root.handlers[:] = before
    logging.getLogger("tigerrec").setLevel(logging.NOTSET)


def test_the_score_is_the_validation_of_the_selected_weights(folders):
    selected = read_manifest(run(folders)).provenance["selected"]
    assert tuning.validation_score(folders["tokenize"] / "train") == selected["validation_ndcg@10"]
    everything = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, holdout=False))
    assert tuning.validation_score(run(folders, everything, "everything")) is None


def test_train_and_evaluate_give_the_validation_and_the_stages_before_nothing(tmp_path):
    probe = "+hydra.callbacks.probe._target_=tests.test_tuning.Probe"
    for name in ("tokenize", "train", "evaluate"):
        main([name, *TINY, f"paths.runs={tmp_path}", probe])
    trained = plan(compose([*TINY, f"paths.runs={tmp_path}"]))["train"].folder
    score = read_manifest(trained).provenance["selected"]["validation_ndcg@10"]
    assert Probe.returned == [None, score, score]


def test_missing_packages_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit, match=r"search needs packages that are missing; give `pip install \"tigerrec\[sear"):
        main(["train", "-m", "hydra/sweeper=search", f"paths.runs={tmp_path}"])


def test_several_processes_share_no_search(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning.distributed, "world_size", lambda: 2)
    with pytest.raises(SystemExit, match="Several processes cannot share a search; run it without torchrun"):
        tuning.GoOn().on_multirun_start(config=None)


class Trials:
    """Stands for training: a trial's score is its learning rate; some trials stop the process, some fail."""

    def __init__(self, monkeypatch):
        self.tried, self.stop_at, self.fail_at = [], None, ()
        monkeypatch.setattr(pipeline, "run", self.run)
        monkeypatch.setattr(tuning, "validation_score", lambda folder: float(folder.name))

    def run(self, cfg, until):
        self.tried.append(cfg.train.learning_rate)
        if len(self.tried) == self.stop_at:
            raise KeyboardInterrupt
        if len(self.tried) in self.fail_at:
            raise TigerrecError("The loss is nan; lower the rate.")
        return plan(cfg)["train"].folder.with_name(str(cfg.train.learning_rate))


def search(runs, n_trials):
    rate = "train.learning_rate=tag(log,interval(0.0005,0.01))"
    main(
        ["train", "-m", "hydra/sweeper=search", *TINY, f"paths.runs={runs}", f"hydra.sweeper.n_trials={n_trials}", rate]
    )


@with_optuna
def test_a_stopped_search_goes_on_with_the_trial_that_was_stopped_and_ends_after_as_many(tmp_path, monkeypatch, capsys):
    trials = Trials(monkeypatch)
    trials.stop_at = 3
    with pytest.raises(SystemExit) as stop:
        search(tmp_path, 5)
    assert stop.value.code == 130
    search(tmp_path, 5)
    assert trials.tried[3] == trials.tried[2]
    assert len(trials.tried) == 6
    assert len(set(trials.tried)) == 5
    search(tmp_path, 5)
    assert len(trials.tried) == 6
    told = capsys.readouterr().err
    assert "going on with study sample-t5, of which 2 trials are done" in told
    assert f"best of 5 trials: validation NDCG@10 {max(trials.tried):.4f} with train.learning_rate=" in told
    search(tmp_path, 6)
    assert len(trials.tried) == 7


@with_optuna
def test_a_trial_that_fails_ends_no_search(tmp_path, monkeypatch):
    trials = Trials(monkeypatch)
    trials.fail_at = (1, 3)
    listed = r"Error: 2 of 4 runs of the sweep failed:(\n  .*The loss is nan; lower the rate\.){2}"
    with pytest.raises(SystemExit, match=listed):
        search(tmp_path, 4)
    assert len(trials.tried) == 4


@with_optuna
def test_a_search_in_which_all_trials_fail_lists_them(tmp_path, monkeypatch):
    Trials(monkeypatch).fail_at = (1, 2)
    with pytest.raises(SystemExit, match="Error: 2 of 2 runs of the sweep failed:"):
        search(tmp_path, 2)


@with_optuna
def test_the_search_of_t5_tree_names_folders_by_values(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(pipeline, "run", lambda cfg, until: names.append(cfg.train.name) or plan(cfg)["train"].folder)
    monkeypatch.setattr(tuning, "validation_score", lambda folder: 0.5)
    main(["train", "-m", "experiment=tune_t5_tree", "hydra.sweeper.n_trials=3", f"paths.runs={tmp_path}"])
    assert len(set(names)) == 3
    assert all(name.startswith("lr0.00") and "-dropout0." in name and "-width" in name for name in names)
