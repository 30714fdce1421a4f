"""How and when a stage came about: versions, commit, machine, time and memory; kept in the manifest, no part of what a
stage is."""

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

from tigerrec.memory import peak_mb

VERSIONED_PACKAGES = (
    "tigerrec",
    "torch",
    "transformers",
    "sentence-transformers",
    "faiss-cpu",
    "numpy",
    "pandas",
    "pyarrow",
)


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        run = lambda *args: subprocess.run(
            ["git", *args], cwd=root, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        return run("rev-parse", "HEAD") + ("+changes" if run("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in VERSIONED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def provenance(started: float) -> dict[str, Any]:
    """How and when a stage came about, `started` seconds on the performance counter; no part of what it is."""
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
    """A commit as people quote it."""
    if commit is None:
        return "unknown"
    name, plus, changes = commit.partition("+")
    return f"{name[:7]}{plus}{changes}"
