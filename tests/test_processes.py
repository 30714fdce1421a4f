"""A function in a process of its own: what it gives, what it raises, and that it does not outlive the process that
asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tigerrec import TigerrecError
from tigerrec.runtime.processes import in_own_process
from tigerrec.runtime.signals import Interrupted

SLEEPER = """
import multiprocessing, sys
from tigerrec.runtime.processes import in_own_process
if __name__ == "__main__":
    in_own_process("tests.test_processes.sleep", sys.argv[1])
"""


def who() -> dict:
    return {"pid": os.getpid()}


def refuse(text: str) -> dict:
    raise TigerrecError(text)


def stop(folder: str) -> dict:
    raise Interrupted(signal.SIGTERM, Path(folder))


def end_at_once() -> dict:
    os._exit(3)


def sleep(path: str) -> dict:
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(60)
    return {}


def test_it_runs_in_another_process_and_measures_its_memory():
    found = in_own_process(f"{__name__}.who")
    assert found["pid"] != os.getpid()
    assert found["peak_mb"] > 5


def test_its_errors_are_raised_here():
    with pytest.raises(TigerrecError, match="no such thing"):
        in_own_process(f"{__name__}.refuse", "no such thing")
    with pytest.raises(TigerrecError, match=r"ended without a result \(exit code 3\)"):
        in_own_process(f"{__name__}.end_at_once")


def test_one_that_was_stopped_says_where_its_checkpoint_is_and_no_traceback(capfd):
    with pytest.raises(TigerrecError, match=r"ended without a result \(exit code 143\)"):
        in_own_process(f"{__name__}.stop", "runs/mine")
    printed = capfd.readouterr().err
    assert "a checkpoint is in runs/mine" in printed
    assert "Traceback" not in printed


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, what: str) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(what)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads /proc")
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_process_that_asked(tmp_path, ending):
    script, told = tmp_path / "asks.py", tmp_path / "pid"
    script.write_text(SLEEPER)
    asking = subprocess.Popen([sys.executable, str(script), str(told)], env={**os.environ, "PYTHONPATH": "."})
    wait_until(lambda: told.exists() and told.read_text(), "it never began")
    worker = int(told.read_text())
    assert is_running(worker)
    asking.send_signal(ending)
    asking.wait(20)
    wait_until(lambda: not is_running(worker), "it outlived the process that asked")
