"""What a process holds of the machine's memory."""

import ctypes
from pathlib import Path

import pytest

from tigerrec.benchmark.processes import in_own_process
from tigerrec.memory import release_freed_memory


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
