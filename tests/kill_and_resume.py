"""Kill every stage of a pipeline with SIGKILL, give the same command again, and compare each file with an undisturbed
run's.

    python -m tests.kill_and_resume <folder> [options, as `tigerrec evaluate` takes them]

Runs of minutes. `<folder>` must be new; it keeps both runs, `undisturbed` and `killed`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tigerrec.pipeline import STAGES
from tigerrec.storage.files import ASIDE, KEPT
from tigerrec.storage.manifests import MANIFEST

ROOT = Path(__file__).parent.parent
KILLS = {"train": (0.3, 0.3)}
"""After which share of its undisturbed time a stage is killed, each number by a process of its own."""
ONCE = (0.5,)
TOLD = ("going on from step", "took ")


def start(stage: str, options: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "tigerrec", stage, *options]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def listen(process: subprocess.Popen[str], until: str = "") -> list[str]:
    """The lines of stderr up to one that begins with `until`, or to the end; prints what they say of going on."""
    assert process.stderr is not None
    heard = []
    for line in process.stderr:
        heard.append(line.rstrip())
        if line.startswith(TOLD):
            print(f"    {line.rstrip()}", flush=True)
        if until and line.startswith(until):
            break
    return heard


def finish(stage: str, options: Sequence[str]) -> float:
    """Run a stage to its end; gives the seconds that it took from where it said to begin."""
    process = start(stage, options)
    heard = listen(process, f"{stage}: ")
    began = time.monotonic()
    heard += listen(process)
    if process.wait():
        sys.exit("\n".join(heard))
    return time.monotonic() - began


def kill(stage: str, options: Sequence[str], after: float) -> None:
    """Start a stage and kill it some seconds after it said to begin."""
    process = start(stage, options)
    listen(process, f"{stage}: ")
    time.sleep(after)
    os.killpg(process.pid, signal.SIGKILL)
    heard = listen(process)
    if process.wait() != -signal.SIGKILL:
        sys.exit(
            "\n".join(
                [*heard, f"{stage} ended with {process.returncode} before it was killed; run again, in a new folder"]
            )
        )
    print(f"  kill -9 {after:.1f} s after it began", flush=True)


def manifests(runs: Path) -> list[Path]:
    """Of every finished stage, the first of the pipeline first."""
    finished = (path for path in runs.rglob(MANIFEST) if path.parent.name not in (ASIDE, KEPT))
    return sorted(finished, key=lambda path: len(path.parts))


def committed(runs: Path) -> dict[str, tuple[str, bool]]:
    """Of every file of every finished stage by path: its sha256, and whether it holds timings."""
    found = {}
    for manifest in manifests(runs):
        for name, entry in json.loads(manifest.read_bytes())["files"].items():
            found[str((manifest.parent / name).relative_to(runs))] = (entry["sha256"], bool(entry.get("measured")))
    return found


def compare(one: Path, other: Path) -> bool:
    """Print the files of both with their sha256; whether all but timings are the same."""
    first, second = committed(one), committed(other)
    same = list(first) == list(second)
    for name, (digest, measured) in first.items():
        equal = second.get(name, ("", False))[0] == digest
        same &= equal or measured
        verdict = "same" if equal else "timings" if measured else "OTHER"
        print(f"  {digest[:16]}  {verdict:7}  {name}")
    return same


def main(folder: Path, options: Sequence[str]) -> int:
    whole, disturbed = ([*options, f"paths.runs={folder / name}"] for name in ("undisturbed", "killed"))
    for stage in STAGES:
        seconds = finish(stage, whole)
        print(f"{stage}: {seconds:.1f} s undisturbed", flush=True)
        for share in KILLS.get(stage, ONCE):
            kill(stage, disturbed, share * seconds)
            there = stage in [json.loads(path.read_bytes())["stage"] for path in manifests(folder / "killed")]
            print(f"  {'the stage is there' if there else 'no manifest'}; the same command again", flush=True)
        print(f"  done in {finish(stage, disturbed):.1f} s", flush=True)
    print("sha256 of every file, the first 16 digits:")
    same = compare(folder / "undisturbed", folder / "killed")
    print("all the same" if same else "NOT all the same")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
