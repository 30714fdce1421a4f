"""Files that are whole or not there, folders that one process writes at a time, and the errors about both."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from tigerrec import TigerrecError

LOCK = ".lock"
PROBE = ".probe.tmp"
ELSEWHERE = (
    "choose another place: `paths.runs=<folder>`, for tables `paths.results=<folder>`, for downloads "
    "`dataset.raw_dir=<folder>`, "
    "for exports and pages `OUT=<path>`"
)
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
TEMPORARY = (".*.tmp", ".tmp*")  # ours, and those of safetensors


class ArtifactError(TigerrecError):
    """A stage folder that cannot be used: missing, damaged, stale, busy or not writable."""


class BusyError(ArtifactError):
    """Another process is writing this stage."""


def sha256_text(text: str) -> str:
    """The sha256 of a text in UTF-8, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """The sha256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def system_code(error: BaseException) -> int | None:
    """The number of the system's error behind an exception (0 where an OSError has none); None where the system refused
    nothing.

    Libraries in other languages report it in the text of an exception of their own: those in Rust (safetensors) by
    number,
    those in C++ (faiss) in the system's words.
    """
    if isinstance(error, OSError):
        return error.errno or 0
    native = re.search(r"\(os error (\d+)\)", str(error))
    return int(native[1]) if native else next((code for code in FULL if os.strerror(code) in str(error)), None)


def write_failure(path: Path, error: BaseException) -> ArtifactError:
    """What to tell of a file or folder that the system did not let us write."""
    code = system_code(error)
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    reason = "the disk is full or the file too large" if code in FULL else os.strerror(code) if code else first_line
    return ArtifactError(
        f"Could not write {path} ({reason}); nothing half-written was left; free space or {ELSEWHERE} and run again."
    )


def not_writable(folder: Path, error: OSError) -> ArtifactError:
    """What to tell of a folder that cannot be made or written in."""
    return ArtifactError(f"Cannot write in {folder} ({error.strerror}); {ELSEWHERE}.")


def _probe(folder: Path) -> None:
    """Write something in a folder and take it away again."""
    probe = folder / PROBE
    probe.touch()
    probe.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make sure that a folder can be made or written in, without making it.

    Raises:
        ArtifactError: it cannot.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        _probe(existing)
    except OSError as error:
        raise not_writable(folder, error) from None


def wait_for_writer(folder: Path) -> None:
    """Wait while another process holds the lock of a folder."""
    with contextlib.suppress(OSError), open(folder / LOCK, encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)


def _acquire(folder: Path, wait: bool, announce: Callable[[str], None]) -> TextIO:
    folder.mkdir(parents=True, exist_ok=True)
    _probe(folder)
    lock = open(folder / LOCK, "a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        if not wait:
            lock.close()
            raise BusyError(
                f"{folder} is being written by {holder}; wait for it to end, or stop it, and run this again."
            ) from None
        announce(f"waiting for {holder}, which is writing {folder}")
        fcntl.flock(lock, fcntl.LOCK_EX)
    lock.seek(0)
    lock.truncate()
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()
    return lock


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False, announce: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold the folder's lock; the operating system frees it when the process ends, however it ends.

    Raises:
        BusyError: another process holds it and `wait` is False.
        ArtifactError: the folder cannot be made or written.
    """
    try:
        lock = _acquire(folder, wait, announce)
    except OSError as error:
        raise not_writable(folder, error) from None
    with lock:
        yield


def fsync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """What the user takes from the mode of new files."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def open_to_readers(path: Path) -> None:
    """Let those read a file who may read its folder; safetensors leaves its files to their owner alone."""
    with contextlib.suppress(OSError):  # not every file system has modes
        path.chmod(path.parent.stat().st_mode & 0o666 & ~_umask())


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to; it takes the name `path` once it is whole and on disk, or disappears.

    Raises:
        ArtifactError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        open_to_readers(temporary)
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if system_code(error) is None:
            raise
        raise write_failure(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Write a small JSON file atomically, readable by people."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def remove_temporaries(folder: Path) -> None:
    """Delete the temporary files that a killed process left in a folder, where it is there."""
    for pattern in TEMPORARY:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Delete a working folder, or what stands in its place, if anything is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
