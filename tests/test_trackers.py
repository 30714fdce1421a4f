"""Trackers: each figure of a step once, in one run, however often training is stopped; each where its package is."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_train import CONFIG, TRAINING, run, weights
from tigerrec import TigerrecError
from tigerrec.config import ConfigError, compose
from tigerrec.pipeline import plan
from tigerrec.runtime.signals import Interrupted
from tigerrec.storage.fingerprints import fingerprint
from tigerrec.storage.manifests import read_manifest
from tigerrec.training import loop, trackers
from tigerrec.training.trackers import tensorboard
from tigerrec.training.tracking import RECORD, TrackedRun

ROOT = Path(__file__).parent.parent
NAMES = ["tensorboard", "wandb", "mlflow"]
KILLED_AT_A_CHECKPOINT = """
import os, signal, sys, time
from pathlib import Path
from tests.test_train import run
from tests.test_trackers import tracked_by
from tigerrec.training.checkpoints import Checkpoints
save = Checkpoints.save
def save_or_die(self, model, optimizer):
    if self.state.step == 6:
        time.sleep(2 * (sys.argv[1] == "wandb"))  # it writes once a second
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, model, optimizer)
Checkpoints.save = save_or_die
run(dict(zip(("prepare", "tokenize"), map(Path, sys.argv[2:]))), tracked_by(sys.argv[1]))
"""


def tracked_by(name):
    return dataclasses.replace(CONFIG, training=dataclasses.replace(TRAINING, tracker=name))


def needs(name):
    missing = importlib.util.find_spec(name) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"{name} is not installed"))


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Trackers that write to the test's folder alone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)


def of_tensorboard(out):
    """All figures of the event files, as they stand there, and how many runs they are of."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = []
    for path in sorted((out / "tensorboard").iterdir()):
        for event in EventFileLoader(str(path)).Load():
            found += [(value.tag, event.step, value.tensor.float_val[0]) for value in event.summary.value]
    return found, 1


def records_of_wandb(path):
    """The records of a .wandb file: LevelDB's log format, blocks of 32 KiB with parts of records."""
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, part = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if part in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def of_wandb(out):
    from wandb.proto import wandb_internal_pb2

    found, runs = [], set()
    for path in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        for data in records_of_wandb(path):
            record = wandb_internal_pb2.Record.FromString(data)
            runs |= {record.run.run_id} - {""}
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found += [(name, items["_step"], value) for name, value in items.items() if not name.startswith("_")]
    return found, len(runs)


def of_mlflow(out):
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("tigerrec").experiment_id])
    return [
        (name.replace("_at_", "@"), metric.step, metric.value)
        for found in runs
        for name in found.data.metrics
        for metric in client.get_metric_history(found.info.run_id, name)
    ], len(runs)


READERS = {"tensorboard": of_tensorboard, "wandb": of_wandb, "mlflow": of_mlflow}


def shown(name, out):
    """The figures in a tracker by name and step, each there once and in one run."""
    found, n_runs = READERS[name](out)
    figures = {(figure, step): value for figure, step, value in found}
    assert n_runs == 1
    assert len(figures) == len(found)
    return figures


def logged(out):
    """The figures that training.jsonl and the manifest hold."""
    lines = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
    figures = {
        (name, line["step"]): value
        for line in lines
        if "selection" not in line
        for name, value in line.items()
        if name not in ("step", "epoch", "seconds", "users")
    }
    provenance = read_manifest(out).provenance
    chosen = {f"selected_{name.removeprefix('validation_')}": each for name, each in provenance["selected"].items()}
    return figures | {(name, provenance["steps"]): value for name, value in chosen.items()}


def stop_in_step(step, folders, config, monkeypatch):
    """A run that gets SIGTERM in a step."""
    take = loop.Trainer.step

    def signalled(self, number):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, number)

    with monkeypatch.context() as stopping:
        stopping.setattr(loop.Trainer, "step", signalled)
        with pytest.raises(Interrupted):
            run(folders, config)


@pytest.mark.parametrize("name", list(map(needs, NAMES)))
def test_a_run_that_is_killed_and_stopped_is_one_run_with_each_step_once(folders, name, monkeypatch):
    """One process is killed after lines that no checkpoint holds, one stops by a signal, one finishes. wandb keeps the
    figures of a step to itself until the next one, and loses those of the step of the kill."""
    undisturbed = run(folders, name="undisturbed")
    out = folders["tokenize"] / "train"
    command = [sys.executable, "-c", KILLED_AT_A_CHECKPOINT, name, str(folders["prepare"]), str(folders["tokenize"])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert json.loads((out / "checkpoint" / RECORD).read_text())["last_steps"]["loss"] == 6
    assert not (out / "checkpoint" / "step-6.json").exists()
    stop_in_step(8, folders, tracked_by(name), monkeypatch)
    assert weights(run(folders, tracked_by(name))) == weights(undisturbed)
    figures = {key: value for key, value in logged(out).items() if not (name == "wandb" and key[1] == 6)}
    assert shown(name, out) == pytest.approx(figures, rel=1e-6)
    assert read_manifest(out).fingerprint == read_manifest(undisturbed).fingerprint


def test_a_run_built_again_begins_anew(folders):
    out = run(folders, tracked_by("tensorboard"))
    (out / "manifest.json").unlink()
    run(folders, tracked_by("tensorboard"))
    assert shown("tensorboard", out) == pytest.approx(logged(out), rel=1e-6)


def test_a_tracker_chosen_late_is_shown_what_it_missed(folders, monkeypatch):
    stop_in_step(5, folders, CONFIG, monkeypatch)
    out = run(folders, tracked_by("tensorboard"))
    assert shown("tensorboard", out) == pytest.approx(logged(out), rel=1e-6)


class Broken:
    """A tracker that fails from its third line on."""

    run_id = "broken"

    def __init__(self):
        self.n_lines = 0

    def log(self, step, figures):
        self.n_lines += 1
        if self.n_lines == 3:
            raise RuntimeError("The server is gone.")

    def close(self, finished):
        raise AssertionError("it was left")


def test_training_goes_on_without_a_tracker_that_fails(folders, monkeypatch, caplog):
    monkeypatch.setattr(tensorboard, "open_run", lambda about, run_id: Broken())
    out = run(folders, tracked_by("tensorboard"))
    assert weights(out) == weights(run(folders, name="without"))
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("train.tracker=tensorboard failed (The server is gone); training goes on without it")


def test_a_tracker_that_refuses_the_run_is_told_of_before_the_first_step(folders, monkeypatch):
    def refuse(about, run_id):
        raise RuntimeError("No API key configured.\nUse a key.")

    monkeypatch.setattr(tensorboard, "open_run", refuse)
    monkeypatch.setattr(loop.Trainer, "step", lambda self, number: pytest.fail("a step was taken"))
    with pytest.raises(TigerrecError, match=r"tracker=tensorboard could not open a run \(RuntimeError: No API key"):
        run(folders, tracked_by("tensorboard"))


@pytest.mark.parametrize("text", ["", "[]", '{"tracker": "wandb", "run_id": "x"}'])
def test_a_record_that_is_damaged_or_of_another_tracker_begins_a_new_run(tmp_path, text, monkeypatch):
    (tmp_path / RECORD).write_text(text)
    opened = []
    monkeypatch.setattr(tensorboard, "open_run", lambda about, run_id: opened.append(run_id) or Broken())
    TrackedRun("tensorboard", None, tmp_path).open()
    assert opened == [None]
    assert json.loads((tmp_path / RECORD).read_text())["run_id"] == "broken"


def test_a_missing_package_is_one_sentence_before_any_work(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    text = (
        r"train.tracker needs a package that is missing: give `pip install \"tigerrec\[wandb\]\"`, or leave it out, "
        r"got 'wandb'\."
    )
    with pytest.raises(ConfigError, match=text):
        plan(compose(["train.tracker=wandb"]))


def test_an_unknown_tracker_is_refused():
    with pytest.raises(ConfigError, match=r"train.tracker must be one of none, mlflow, tensorboard, wandb, got 'x'"):
        plan(compose(["train.tracker=x"]))


def test_runs_of_the_version_with_train_tensorboard_stay_up_to_date():
    before = "6df7b804424fa0efd25ac234666927a819f830c0cbeb01fb133f7b4198e94658"
    assert {fingerprint("train", config, {}) for config in (CONFIG, tracked_by("tensorboard"))} == {before}
