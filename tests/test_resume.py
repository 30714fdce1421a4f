"""A training run that is killed and started again ends in the bytes of an undisturbed one."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_train import CONFIG, TRAINING, folders, run, weights  # noqa: F401
from tigerrec import artifacts
from tigerrec.trainer import Trainer


class Killed(BaseException):
    """Stands for a process that ends at once."""


@pytest.fixture
def kill_at(monkeypatch):
    """Make training end before a given step, as a killed process does."""
    step = Trainer.step

    def arm(number: int | None) -> None:
        def killed_step(self, current):
            if current == number:
                raise Killed
            return step(self, current)

        monkeypatch.setattr(Trainer, "step", killed_step)

    return arm


@pytest.mark.parametrize("steps", [[1], [5], [3, 9]])
def test_killed_and_resumed_equals_undisturbed(folders, kill_at, steps):  # noqa: F811
    undisturbed = run(folders, name="undisturbed")
    for step in steps:
        kill_at(step)
        with pytest.raises(Killed):
            run(folders)
    kill_at(None)
    assert weights(run(folders)) == weights(undisturbed)


def test_a_torn_checkpoint_gives_way_to_the_one_before(folders, kill_at, caplog):  # noqa: F811
    undisturbed = run(folders, name="undisturbed")
    kill_at(9)
    with pytest.raises(Killed):
        run(folders)
    checkpoint = folders["tokenize"] / "train" / "checkpoint"
    newest = max(checkpoint.glob("step-*.safetensors"), key=lambda path: int(path.stem[5:]))
    newest.write_bytes(newest.read_bytes()[:-100])
    kill_at(None)
    with caplog.at_level(logging.INFO, "tigerrec"):
        assert weights(run(folders)) == weights(undisturbed)
    assert "trying the one before" in caplog.text


def test_without_a_whole_checkpoint_it_starts_over_and_says_so(folders, kill_at, caplog):  # noqa: F811
    undisturbed = run(folders, name="undisturbed")
    kill_at(9)
    with pytest.raises(Killed):
        run(folders)
    for path in (folders["tokenize"] / "train" / "checkpoint").glob("step-*.json"):
        path.write_text("{")
    kill_at(None)
    assert weights(run(folders)) == weights(undisturbed)
    assert "starting over" in caplog.text


def test_a_checkpoint_of_another_configuration_is_refused(folders, kill_at):  # noqa: F811
    kill_at(5)
    with pytest.raises(Killed):
        run(folders)
    kill_at(None)
    other = dataclasses.replace(CONFIG, training=dataclasses.replace(TRAINING, weight_decay=0.5))
    with pytest.raises(artifacts.StaleError, match=r"weight_decay: 0\.01 → 0\.5.*overwrite=train"):
        run(folders, other)


SCRIPT = """
import sys
from pathlib import Path
from tests.test_train import CONFIG
from tigerrec import pipeline, train, trainer
import time
step = trainer.Trainer.step
def slow_step(self, number):
    print(number, flush=True)
    time.sleep(0.05)
    return step(self, number)
trainer.Trainer.step = slow_step
prepared, tokenized, out = map(Path, sys.argv[1:])
with pipeline.reporting("make train"):
    train.train(prepared, tokenized, CONFIG, out)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals(folders, number, code):  # noqa: F811
    """A real process: SIGKILL ends it anywhere, SIGTERM and Ctrl-C after a checkpoint; each time a second run ends in the same bytes."""
    undisturbed = run(folders, name="undisturbed")
    out = folders["tokenize"] / "train"
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", SCRIPT, str(folders["prepare"]), str(folders["tokenize"]), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "5":
        assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    if number != signal.SIGKILL:
        assert "go on with: make train" in errors
        assert (out / "checkpoint" / "step-6.json").exists()
    assert not (out / artifacts.MANIFEST).exists()
    assert weights(run(folders)) == weights(undisturbed)
