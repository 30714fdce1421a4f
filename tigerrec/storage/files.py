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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tigerrec import TigerrecError

LOCK = ".lock"
PROBE = ".probe.tmp"
ASIDE, KEPT, CURRENT = ".new", ".old", ".current"
SPILLED = ".spilled"
ELSEWHERE = (
    "choose another place: `paths.runs=<folder>`, for tables `paths.results=<folder>`, for downloads "
    "`dataset.raw_dir=<folder>`, for exports and pages `--out <path>`"
)
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
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
    """The number of the system's error behind an exception, 0 where an OSError has none; None where there is none.
    Libraries in other languages report it in the text of an exception of their own: those in Rust (safetensors) by
    number, those in C++ (faiss) in the system's words."""
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
    """Make sure that a folder can be made or written in, without making it. Raises ArtifactError if it cannot."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        _probe(existing)
    except OSError as error:
        raise not_writable(folder, error) from None


def wait_for_writer(folder: Path) -> None:
    """Wait while another process holds the lock of a folder."""
    with contextlib.suppress(OSError), open(folder / LOCK, encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)


def _acquire(folder: Path, wait: bool, announce: Callable[[str], None]) -> tuple[TextIO, bool]:
    """The lock of a folder, and whether the folder was made for it."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    _probe(folder)
    lock = (folder / LOCK).open("a+", encoding="utf-8")
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
    if not _is_in_place(lock, folder / LOCK):  # its holder found nothing to keep
        lock.close()
        return _acquire(folder, wait, announce)
    lock.seek(0)
    lock.truncate()
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()
    return lock, is_new


def _is_in_place(file: TextIO, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def unchanged(paths: Mapping[str, Path]) -> Iterator[dict[str, str]]:
    """The sha256 of some files by role, true of what the body reads of them. Raises ArtifactError if a file has other
    bytes after the body than before."""
    digests = {role: sha256_file(path) for role, path in paths.items()}
    yield digests
    for role, path in paths.items():
        if not path.is_file() or sha256_file(path) != digests[role]:
            raise ArtifactError(f"{path} changed while it was read; run the same command again.")


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False, announce: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold the folder's lock; the operating system frees it when the process ends, however it ends. Raises BusyError if
    another process holds it and `wait` is False. Raises ArtifactError if the folder cannot be made or written. Where
    nothing else stands in the folder afterwards, nothing is left of what was made."""
    try:
        lock, is_new = _acquire(folder, wait, announce)
    except OSError as error:
        raise not_writable(folder, error) from None
    with lock:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if os.listdir(folder) == [LOCK]:
                    (folder / LOCK).unlink()
                    if is_new:
                        folder.rmdir()


def locked_beside(path: Path) -> contextlib.AbstractContextManager[None]:
    """Hold a lock on a file or folder that is written; the lock stands beside it, or in a folder beside which nothing
    can be written, and leaves nothing. Raises as `locked`."""
    if path.is_dir() and not os.access(path.parent, os.W_OK):
        return locked(path / ".writing")
    return locked(path.with_name(f".{path.name}.writing"))


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
    """A temporary sibling to write to; it takes the name `path` once it is whole and on disk, or disappears. Raises
    ArtifactError if the disk is full or the folder cannot be written."""
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
    """Delete the temporary files that a killed process left in a folder."""
    for pattern in TEMPORARY:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Delete a working folder, or what stands in its place, if anything is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _link(path: Path, target: str) -> None:
    """Put a symbolic link in the place of a file in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.symlink_to(target)
    os.replace(temporary, path)


def _keep(folder: Path, names: Sequence[str]) -> bool:
    """Hard-link files into `.old` and let `.current` lead there; False where the file system has no links."""
    try:
        (folder / KEPT).mkdir()
        for name in names:
            if (folder / name).is_file():
                os.link(folder / name, folder / KEPT / name)
        fsync(folder / KEPT)
        (folder / CURRENT).symlink_to(KEPT)
    except OSError as error:
        if error.errno in NO_LINKS:
            return False
        raise
    return True


def replace_together(folder: Path, names: Sequence[str], older: Sequence[str]) -> None:
    """Let the files `names` of `folder/.new` take the place of the files `older` of the folder, all at one moment.

    Every name becomes a symbolic link through `.current` to the older file in `.old`; one renaming turns `.current` to
    `.new`; then `settle` puts the files in the place of the links. Wherever the process ends, readers find all of the
    older files until that renaming and all of the newer ones after it. Where nothing stands yet, or the file system has
    no links, the last of `names` is missing until the others are in their place.
    """
    for name in {*names, *older}:
        if (folder / name).is_dir():
            remove_tree(folder / name)
    if older and _keep(folder, older):
        for name in {*names, *older}:
            _link(folder / name, f"{CURRENT}/{name}")
        fsync(folder)
        _link(folder / CURRENT, ASIDE)
        fsync(folder)
        settle(folder)
        return
    (folder / names[-1]).unlink(missing_ok=True)
    fsync(folder)
    for name in {*older} - {*names}:
        remove_tree(folder / name)
    for name in names[:-1]:
        os.replace(folder / ASIDE / name, folder / name)
    fsync(folder)
    os.replace(folder / ASIDE / names[-1], folder / names[-1])
    fsync(folder)


def settle(folder: Path) -> None:
    """Remove what a process left that wrote aside; the files stay those that a reader finds. A `replace_together` that
    was cut short is taken back before its moment, and brought to its end after it."""
    current = folder / CURRENT
    if current.is_symlink():
        remove_temporaries(folder)
        version = folder / current.readlink()
        for path in list(folder.iterdir()):
            if path.is_symlink() and path.readlink().parent.name == CURRENT:
                if (version / path.name).exists():
                    os.replace(version / path.name, path)
                else:
                    path.unlink()
        fsync(folder)
        current.unlink()
    remove_tree(folder / KEPT)
    remove_tree(folder / ASIDE)
