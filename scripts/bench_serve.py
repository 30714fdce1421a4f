"""What a server of recommendations answers on this machine: milliseconds alone, at a steady rate and at full load.

Usage: python scripts/bench_serve.py [model folder …]; without one, made-up shops of 10,000 and 1,000,000 items with
untrained generators. Each is ranked as by default and by its codes alone. Prints a table and writes
runs/bench-serve.json.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from bench_data import commit, machine

from tigerrec.data.histories import read_items
from tigerrec.models.loading import save_generator
from tigerrec.models.t5_tree import T5Tree
from tigerrec.storage.files import write_json
from tigerrec.storage.folders import upstream_folders
from tigerrec.storage.stages import open_stage, writing
from tigerrec.tokenizers.ids import SemanticIds, TokenLayout
from tigerrec.tokenizers.suffix import add_suffix

SIZES = (10_000, 1_000_000)
CODES = (256, 256, 256)
RATE, SECONDS = 40, 20
ALONE, CONNECTIONS, AT_FULL_LOAD = 200, 64, 2_000
LONGEST = 20
SEED = 0
SCORES = {"default": [], "codes": ["--scores", "codes"]}


def made_up(n_items: int, root: Path) -> Path:
    """The train folder of a shop of so many items with random Semantic IDs and an untrained t5_tree."""
    rng = np.random.default_rng(SEED)
    codes = rng.integers(0, CODES, (n_items, len(CODES))).astype(np.int32)
    suffix = add_suffix(codes)
    layout = TokenLayout(CODES, (*CODES, int(suffix.max()) + 1))
    folders = [
        root / "shop",
        root / "shop" / "random",
        root / "shop" / "random" / "ids",
        root / "shop/random/ids/t5_tree",
    ]
    prepared, _, tokenized, trained = folders
    with writing(prepared, "prepare", {}) as files:
        numbers = np.arange(n_items, dtype=np.int32)
        names = [f"i{number}" for number in numbers]
        files.parquet("items.parquet", pa.table({"item": numbers, "item_id": names, "title": names}))
        columns = {
            "user": np.zeros(3, np.int32),
            "item": np.arange(3, dtype=np.int32),
            "timestamp": np.arange(3, dtype=np.int64),
            "position": np.arange(3, dtype=np.int32),
        }
        files.parquet("interactions.parquet", pa.table(columns))
        files.json("stats.json", {"users": 1, "items": n_items, "interactions": 3})
    with writing(tokenized, "tokenize", {}) as files:
        levels = {f"code_{level}": codes[:, level] for level in range(len(CODES))}
        files.parquet("semantic_ids.parquet", pa.table({"item": numbers} | levels | {"suffix": suffix}))
        files.json("tokenizer.json", {"code_sizes": list(CODES), "level_sizes": list(layout.level_sizes)})
    ids = SemanticIds(np.column_stack([codes, suffix]).astype(np.int32), layout)
    inputs = {"prepare": prepared, "tokenize": tokenized}
    with tempfile.TemporaryDirectory() as folder, writing(trained, "train", {}, inputs) as files:
        for path in save_generator(T5Tree().new(ids, "item_causal", SEED), Path(folder)):
            files.copy(path)
        files.json("search.json", {"hybrid": 1.0, "inline": 1.0})
    return trained


class Requests:
    """Histories of random items, each another one, as whole HTTP requests."""

    def __init__(self, item_ids: list[str]) -> None:
        self.item_ids, self.rng = item_ids, np.random.default_rng(SEED)

    def __call__(self) -> bytes:
        chosen = self.rng.integers(0, len(self.item_ids), self.rng.integers(1, LONGEST + 1))
        body = json.dumps({"history": [self.item_ids[item] for item in chosen], "k": 10}).encode()
        fields = ("Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}")
        return "\r\n".join(("POST /recommend HTTP/1.1", *fields, "", "")).encode() + body


class Connection:
    """A connection that is kept between requests."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> float:
        """The milliseconds until an answer is whole; the process ends if it is none."""
        if self.streams is None or self.streams[0].at_eof():  # the server closes what idles for long
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        started = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        if b" 200 " not in head[:20]:
            sys.exit(f"Error: the server answered {head[:40]!r} {body[:200]!r}.")
        return 1_000 * (time.perf_counter() - started)


async def alone(port: int, requests: Requests) -> np.ndarray:
    """Milliseconds of requests one after the other."""
    connection = Connection(port)
    return np.array([await connection.ask(requests()) for _ in range(ALONE)])


async def at_rate(port: int, requests: Requests) -> np.ndarray:
    """Milliseconds of requests that come at random times, so many a second on average, whoever waits."""
    free: list[Connection] = []
    due = np.cumsum(np.random.default_rng(SEED).exponential(1 / RATE, RATE * SECONDS))
    started = time.perf_counter()

    async def one(when: float, request: bytes) -> float:
        await asyncio.sleep(max(0.0, when - (time.perf_counter() - started)))
        connection = free.pop() if free else Connection(port)
        taken = await connection.ask(request)
        free.append(connection)
        return taken

    return np.array(await asyncio.gather(*(one(when, requests()) for when in due)))


async def at_full_load(port: int, requests: Requests) -> float:
    """Requests a second of connections that ask again at once."""
    waiting = [requests() for _ in range(AT_FULL_LOAD)]

    async def one() -> None:
        connection = Connection(port)
        while waiting:
            await connection.ask(waiting.pop())

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return AT_FULL_LOAD / (time.perf_counter() - started)


def measure(model: Path, scores: list[str]) -> dict[str, Any]:
    """The figures of a model's server, a process of its own, that ranks by some scores."""
    is_run = open_stage(model, "train", "export").stage == "train"
    prepared = upstream_folders(model)["prepare"] if is_run else model
    item_ids = read_items(prepared)["item_id"].to_pylist()
    command = [sys.executable, "-m", "tigerrec", "serve", str(model), "--port", "0", *scores]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline() if process.stdout else ""
            if not address:
                sys.exit("Error: the server did not start; its message stands above.")
            port, requests = int(address.rpartition(":")[2]), Requests(item_ids)
            asyncio.run(alone(port, requests))  # warm
            single, steady = asyncio.run(alone(port, requests)), asyncio.run(at_rate(port, requests))
            most = asyncio.run(at_full_load(port, requests))
        finally:
            process.terminate()
    return {
        "items": len(item_ids),
        "alone_ms": percentiles(single),
        f"at_{RATE}_a_second_ms": percentiles(steady),
        "requests_a_second": round(most, 1),
    }


def percentiles(milliseconds: np.ndarray) -> dict[str, float]:
    """The median and the ends of some times."""
    return {f"p{share}": round(float(np.percentile(milliseconds, share)), 1) for share in (50, 95, 99)}


def row(name: str, scores: str, figures: dict[str, Any]) -> str:
    """A model's line of the table."""
    times = [
        " / ".join(f"{value:.1f}" for value in figures[key].values()) for key in ("alone_ms", f"at_{RATE}_a_second_ms")
    ]
    return f"| {name} | {scores} | {figures['items']:,} | {' | '.join(times)} | {figures['requests_a_second']:.0f} |"


def main(models: list[str]) -> None:
    """Measure models, or made-up shops."""
    times = f"alone, p50 / p95 / p99 ms | {RATE} a second | requests a second, {CONNECTIONS} at once"
    print(f"| model | scores | items | {times} |")
    print("|---|---|---|---|---|---|", flush=True)
    found = []
    with tempfile.TemporaryDirectory() as root:
        for name in models or SIZES:
            model = Path(name) if isinstance(name, str) else made_up(name, Path(root) / str(name))
            for scores, arguments in SCORES.items():
                figures = measure(model, arguments)
                made = {"model": model.name, "scores": scores, "machine": machine(), "commit": commit()}
                found.append(made | figures)
                print(row(model.name if models else "made up, t5_tree", scores, figures), flush=True)
    write_json(Path("runs/bench-serve.json"), found)


if __name__ == "__main__":
    main(sys.argv[1:])
