"""What a GPU does with Amazon Beauty: each stage from raw files to metrics, then an epoch and a ranking beside
transformers' own.

Usage: python scripts/bench_gpu.py [--device cuda] [--dataset beauty] [<option>=<value> …], further options as of
tigerrec. Prints seconds and writes runs/bench-gpu.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_data import commit

from tigerrec.storage.files import write_json

STAGES = ("prepare", "embed", "tokenize", "train", "evaluate")
CHOICES = ("embedder", "tokenizer", "train", "evaluate")


def tigerrec(name: str, options: list[str]) -> tuple[str, float]:
    """The last line that a command printed, and its seconds; the process ends where it fails."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "tigerrec", name, *options], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout.splitlines()[-1], time.perf_counter() - started


def card(device: str) -> str:
    """What the device calls itself."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def main(arguments: list[str]) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dataset", default="beauty")
    given, options = parser.parse_known_args(arguments)
    found: dict[str, Any] = {"commit": commit()}
    with tempfile.TemporaryDirectory() as runs:
        devices = [f"{choice}.device={given.device}" for choice in CHOICES]
        common = [f"dataset={given.dataset}", f"paths.runs={runs}", *devices]
        for stage in STAGES:
            _, seconds = tigerrec(stage, [*common, "generator=t5_tree", *options])
            found[stage] = round(seconds, 1)
            print(f"{stage}\t{seconds:.1f} s", flush=True)
        path, _ = tigerrec("benchmark", [*common, "generator=t5_paper", *options])
        found |= {"card": card(given.device), "benchmark": json.loads(Path(path).read_text(encoding="utf-8"))}
    write_json(Path("runs/bench-gpu.json"), found)


if __name__ == "__main__":
    main(sys.argv[1:])
