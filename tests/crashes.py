"""A process that ends before its n-th change of the disk, as one that is killed there."""

from __future__ import annotations

import os
import stat
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED, UNSYNCED, FAILED = 9, 3, 1
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def in_a_process_of_its_own(function: Callable[[], Any]) -> int:
    """The exit code of a forked process that calls a function: what it gives (0 for None), or `FAILED` where it
    raises."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(function() or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(FAILED)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dies(folder: Path, function: Callable[[], Any], number: int, by: str) -> bool:
    """Call a function in a process of its own that ends before its change number `number` (from 0) of what is below a
    folder.

    A change is opening a file to write, fsync, rename, remove, a link, making and removing a folder.

    Args:
        by: `SIGKILL`; `Ctrl-C`, after which Python cleans up; or `power cut`, in which half of a file is lost that was
            about to be synced.

    Returns:
        Whether it came to that change.

    Raises:
        AssertionError: the function failed, or a file took another name before it was on disk.
    """
    code = in_a_process_of_its_own(lambda: _watched(str(folder), function, number, by))
    assert code in (0, KILLED), {UNSYNCED: "a file took its name before it was on disk"}.get(
        code, "see what it printed"
    )
    return code == KILLED


def _watched(folder: str, function: Callable[[], Any], number: int, by: str) -> int:
    count = 0
    synced: set[int] = set()
    too_early: list[str] = []
    real_fsync = os.fsync

    def change() -> None:
        nonlocal count
        count += 1
        if count == number + 1:
            if by == "Ctrl-C":
                raise KeyboardInterrupt
            os._exit(KILLED)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if (
            event == "open"
            and isinstance(args[0], (str, bytes))
            and os.fsdecode(args[0]).startswith(folder)
            and args[2] & WRITING
        ):
            change()
        elif event in CHANGES and (args[-1] != -1 or any(str(path).startswith(folder) for path in args[:2])):
            if event == "os.rename":
                facts = os.lstat(args[0])
                if stat.S_ISREG(facts.st_mode) and facts.st_ino not in synced:
                    too_early.append(str(args[0]))
            change()

    def fsync(descriptor: int) -> None:
        facts = os.fstat(descriptor)
        if by == "power cut" and count == number and stat.S_ISREG(facts.st_mode):
            os.truncate(f"/proc/self/fd/{descriptor}", facts.st_size // 2)
        change()
        real_fsync(descriptor)
        synced.add(facts.st_ino)

    os.fsync = fsync
    sys.addaudithook(hook)
    try:
        function()
    except KeyboardInterrupt:
        return KILLED
    if too_early:
        print(too_early, file=sys.stderr)
    return UNSYNCED if too_early else 0
