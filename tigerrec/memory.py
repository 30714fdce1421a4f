"""The memory of this process."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path


def peak_mb() -> int:
    """The largest memory of this process so far.

    On Linux `resource.getrusage` counts the memory of the process that started this one too, so that it only serves elsewhere.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peak = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if peak is None else peak) // 1024


def release_freed_memory() -> None:
    """Give memory that nothing uses back to the system, where the C library is glibc; elsewhere do nothing.

    Tensors of ever new sizes leave holes in the heap, which glibc keeps: half a gigabyte within a hundred steps of training.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
