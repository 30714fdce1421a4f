"""A function in a process of its own, so that its memory is its own."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from tigerrec import TigerrecError
from tigerrec.runtime.memory import peak_mb
from tigerrec.runtime.signals import Interrupted


def _end_with_parent() -> None:
    """Send this process SIGTERM once the process that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _work(results: Connection, function: str, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, _, name = function.rpartition(".")
    try:
        result = getattr(importlib.import_module(module), name)(*arguments)
        results.send(result | {"peak_mb": peak_mb()})
    except TigerrecError as error:
        results.send(error)
    except KeyboardInterrupt as stopped:
        print(str(stopped) or "Stopped", file=sys.stderr)
        sys.exit(stopped.code if isinstance(stopped, Interrupted) else 128 + signal.SIGINT)


def in_own_process(function: str, *arguments: Any) -> dict[str, Any]:
    """The dict that a function, given by its dotted path, returns in a new process, with the largest memory of that
    process as `peak_mb`. That process is sent SIGTERM when this one ends, however it ends. Raises TigerrecError if the
    function raised it, or the process ended without a result."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sending, function, arguments), daemon=True)
    process.start()
    sending.close()
    try:
        result = receiving.recv()
    except EOFError:
        result = None
    process.join()
    if result is None:
        was_killed = process.exitcode == -signal.SIGKILL
        reason = "most likely for want of memory" if was_killed else "what it printed last says why"
        name = function.rpartition(".")[2]
        raise TigerrecError(f"The process of {name} ended without a result (exit code {process.exitcode}): {reason}.")
    if isinstance(result, TigerrecError):
        raise result
    return dict(result)
