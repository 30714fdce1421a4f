"""A training process that gets a signal and is started again ends in the bytes of an undisturbed one; what is done in
process is in test_faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_train import run, weights
from tigerrec.storage.manifests import MANIFEST

SCRIPT = """
import sys
from pathlib import Path
from tests.test_train import CONFIG
from tigerrec import cli
from tigerrec.training import loop, stage
import time
step = loop.Trainer.step
def slow_step(self, number):
    print(number, flush=True)
    time.sleep(0.05)
    return step(self, number)
loop.Trainer.step = slow_step
prepared, tokenized, out = map(Path, sys.argv[1:])
with cli.reporting("tigerrec train"):
    stage.train(prepared, tokenized, CONFIG, out)
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)],
)
def test_signals(folders, number, code):
    """A real process: SIGKILL ends it anywhere, SIGTERM and Ctrl-C after a checkpoint; each time a second run ends in
    the same bytes."""
    undisturbed = run(folders, name="undisturbed")
    out = folders["tokenize"] / "train"
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", SCRIPT, str(folders["prepare"]), str(folders["tokenize"]), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    while process.stdout.readline().strip() != "5":
        assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    if number != signal.SIGKILL:
        assert "go on with: tigerrec train" in errors
        assert (out / "checkpoint" / "step-6.json").exists()
    assert not (out / MANIFEST).exists()
    assert weights(run(folders)) == weights(undisturbed)
