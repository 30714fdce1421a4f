"""What the stages cost on made-up shops of some sizes: seconds and peak memory, each stage in a process of its own.

Usage: python scripts/bench_data.py [interactions …]; prints a table and writes each shop's figures to
runs/bench-data/<interactions>.json.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tigerrec.storage.files import write_json

SIZES = (1_000_000, 10_000_000)
FOLDER = Path("runs/bench-data")
SEED = 0
USER_LENGTH, ITEM_BUYERS, MOST_ITEMS = 10, 20, 1_000_000
AT_ONCE = 1 << 22
TRAIN_STEPS, VALIDATION_USERS, RANKED_USERS = 1_000, 1_000, 20_000
FIRST_SECOND, SECONDS = 1_600_000_000, 100_000_000
OPTIONS = (
    "embedder=hashed",
    "tokenizer=rkmeans",
    f"train.max_steps={TRAIN_STEPS}",
    f"train.validation_users={VALIDATION_USERS}",
    f"train.selection_users={VALIDATION_USERS}",
    f"evaluate.users={RANKED_USERS}",
)
STAGES = ("prepare", "embed", "tokenize", "train", "evaluate")


def n_items(n: int) -> int:
    """How many items a shop of n interactions has."""
    return min(n // ITEM_BUYERS, MOST_ITEMS)


def write_shop(n: int, folder: Path) -> None:
    """Write tables of n interactions in the order of time, by n / 10 users, half of them with items that few others
    take, and of the items."""
    generator = np.random.default_rng(SEED)
    interactions, items = folder / "interactions.parquet", folder / "items.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    writer = None
    for start in range(0, n, AT_ONCE):
        count = min(AT_ONCE, n - start)
        popular = generator.zipf(1.2, count) % n_items(n)
        chosen = np.where(generator.random(count) < 0.5, generator.integers(0, n_items(n), count), popular)
        table = pa.table(
            {
                "user": pa.array(generator.integers(0, n // USER_LENGTH, count)).cast(pa.string()),
                "item": pa.array(chosen).cast(pa.string()),
                "time": FIRST_SECOND + np.arange(start, start + count) * SECONDS // n,
            }
        )
        writer = writer or pq.ParquetWriter(interactions, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()
    numbers = range(n_items(n))
    columns = {
        "item": [str(number) for number in numbers],
        "title": [f"Product {number} of the kind {number % 977} in size {number % 13}" for number in numbers],
        "brand": [f"Brand {number % 5000}" for number in numbers],
        "categories": [[f"Department {number % 20}", f"Shelf {number % 300}"] for number in numbers],
        "price": [number % 997 + 0.5 for number in numbers],
    }
    pq.write_table(pa.table(columns), items)


def run(stage: str, options: list[str]) -> dict[str, Any]:
    """The seconds of a stage, start and imports included, and the most memory that its process held, in GB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "tigerrec", stage, *options], stdout=subprocess.PIPE, text=True)
    folder = (process.stdout.read() if process.stdout else "").strip().splitlines()[-1:]
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"Error: {stage} failed; its message stands above.")
    unit = 1 if platform.system() == "Darwin" else 1024
    measured = {"seconds": round(time.perf_counter() - started, 1), "gb": round(usage.ru_maxrss * unit / 1e9, 2)}
    provenance = json.loads((Path(folder[0]) / "manifest.json").read_bytes())["provenance"]
    return measured | {name: provenance[name] for name in ("targets", "training_seconds") if name in provenance}


def measure(n: int) -> dict[str, Any]:
    """What all stages cost on a shop of n interactions."""
    shop = FOLDER / str(n)
    shutil.rmtree(shop, ignore_errors=True)
    raw = shop / "raw"
    writer = multiprocessing.get_context("spawn").Process(target=write_shop, args=(n, raw))
    writer.start()  # apart: the system counts the memory of this process as that of those which it starts
    writer.join()
    interactions, items = raw / "interactions.parquet", raw / "items.parquet"
    paths = [f"dataset.interactions={interactions}", f"dataset.items={items}", f"paths.runs={shop / 'runs'}"]
    options = ["dataset=tables", "dataset.name=shop", *paths, *OPTIONS]
    figures = {
        "interactions": n,
        "users": n // USER_LENGTH,
        "items": n_items(n),
        "machine": machine(),
        "commit": commit(),
    }
    figures |= {stage: run(stage, options) for stage in STAGES}
    write_json(FOLDER / f"{n}.json", figures)
    return figures


def machine() -> str:
    """The processor and the number of cores."""
    names = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    return f"{next(iter(names), platform.processor() or platform.machine())}, {os.cpu_count()} cores"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def commit() -> str:
    """The commit that is checked out, empty where that cannot be told."""
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip()


def row(figures: dict[str, Any]) -> str:
    """A shop's line of the table."""
    sizes = [f"{figures[name]:,}" for name in ("interactions", "items")]
    stages = [f"{figures[stage]['seconds']:.0f} s, {figures[stage]['gb']:.1f} GB" for stage in STAGES]
    return f"| {' | '.join(sizes + stages)} |"


def main(sizes: list[str]) -> None:
    """Measure shops of the given numbers of interactions."""
    print(f"| interactions | items | {' | '.join(STAGES)} |\n|{'---|' * (len(STAGES) + 2)}", flush=True)
    for size in sizes or SIZES:
        print(row(measure(int(size))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
