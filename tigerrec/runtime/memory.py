"""The memory of this process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")
_earlier_peak = 0  # MB, before the system's count was last started again


def peak_mb() -> int:
    """The largest memory of this process so far, in MB."""
    return max(_earlier_peak, _counted_peak())


def with_peak_mb(function: Callable[[], Result]) -> tuple[Result, int]:
    """What a function gives, and the largest memory of this process while it ran, in MB, with what it held before.
    Where the system cannot start its count again (only Linux can), it is the largest memory so far."""
    global _earlier_peak
    _earlier_peak = peak_mb()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return function(), _counted_peak()


def _counted_peak() -> int:
    """The largest memory that the system has counted, in MB. On Linux `resource.getrusage` counts that of the process
    that started this one too, so it only serves elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peak = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if peak is None else peak) // 1024


def release_freed_memory() -> None:
    """Give memory that nothing uses back to the system, where the C library is glibc; elsewhere do nothing. Tensors of
    ever new sizes leave holes in the heap, which glibc keeps: half a gigabyte within a hundred steps of training."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


@contextlib.contextmanager
def without_cycle_search() -> Iterator[None]:
    """Let Python free what nothing refers to, but not look for cycles: where many objects live and none is part of one,
    the search takes a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
