"""Stopping on a signal between two steps of long work."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tigerrec.runtime import distributed

logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop by a signal and left a checkpoint; `code` is what a process exits with, 128 + the
    signal's number."""

    def __init__(self, received: int, folder: Path) -> None:
        super().__init__(f"Stopped by {signal.Signals(received).name}; a checkpoint is in {folder}")
        self.code = 128 + received


@contextlib.contextmanager
def stop_signals() -> Iterator[SimpleNamespace]:
    """Let SIGTERM and Ctrl-C set the field `received` to their number, before None, instead of ending the process at
    once; a second one ends it. Where several processes share a task, a second one does not: a scheduler signals all of
    them, and torchrun passes on its own."""
    flag = SimpleNamespace(received=None)
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def note(number: int, frame: Any) -> None:
        flag.received = number
        logger.warning("stopping: the step in hand ends, then a checkpoint is written")
        if distributed.world_size() == 1:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
