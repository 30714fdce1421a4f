"""How a stage came about: versions, commit, machine, time and memory; kept in its manifest, no part of its identity."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import tigerrec
from tigerrec.runtime.memory import peak_mb

VERSIONED_PACKAGES = (
    "tigerrec", "torch", "transformers", "sentence-transformers", "faiss-cpu", "numpy", "pandas", "pyarrow",
)  # fmt: skip


def _git_commit() -> str | None:
    root = Path(tigerrec.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None

    def git(*args: str) -> str:
        call = ["git", "-C", str(root), *args]
        return subprocess.run(call, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in VERSIONED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def provenance(started: float) -> dict[str, Any]:
    """How and when a stage came about that began at `started`, on `time.perf_counter`."""
    return {
        "versions": _versions(),
        "git": _git_commit(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started, 3),
        "peak_mb": peak_mb(),
    }


def short_commit(commit: str | None) -> str:
    """A commit as people quote it: seven digits, and `+changes` where there were some."""
    if commit is None:
        return "unknown"
    name, plus, changes = commit.partition("+")
    return f"{name[:7]}{plus}{changes}"
