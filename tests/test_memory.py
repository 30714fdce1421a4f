"""What a process holds of the machine's memory."""

import ctypes
from pathlib import Path

import pytest

from tigerrec.runtime.memory import peak_mb, release_freed_memory, with_peak_mb
from tigerrec.runtime.processes import in_own_process


def resident_mb() -> int:
    """Memory of this process at this moment."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) // 1024


def held_and_released() -> dict[str, float]:
    """Memory with blocks allocated, all but every hundredth freed, and released."""
    blocks: list[bytearray | None] = [bytearray(100_000) for _ in range(4000)]
    allocated = resident_mb()
    for number in range(len(blocks)):
        if number % 100:
            blocks[number] = None
    release_freed_memory()
    return {"allocated": allocated, "released": resident_mb(), "kept": sum(block is not None for block in blocks)}


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc keeps freed memory")
def test_freed_memory_between_blocks_in_use_goes_back_to_the_system() -> None:
    found = in_own_process("tests.test_memory.held_and_released")
    assert found["kept"] == 40
    assert found["allocated"] - found["released"] > 300


def peaks() -> dict[str, float]:
    """Peaks of a process that takes 300 MB, and later 100 MB while a function runs."""
    taken = len(b"x" * 300_000_000)
    before = peak_mb()
    result, small = with_peak_mb(lambda: len(b"x" * 1000))
    _, large = with_peak_mb(lambda: len(b"x" * 100_000_000))
    return {"taken": taken, "result": result, "before": before, "small": small, "large": large, "after": peak_mb()}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux starts its count again")
def test_the_peak_of_a_function_is_not_that_of_the_process() -> None:
    found = in_own_process("tests.test_memory.peaks")
    assert found["result"] == 1000
    assert found["before"] - found["small"] > 200
    assert 50 < found["large"] - found["small"] < 150
    assert found["after"] == found["before"] == found["peak_mb"]
