"""A made-up shop whose whole pipeline takes a second, run by options as a user gives them."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

import numpy as np

from tigerrec import pipeline
from tigerrec.config import compose
from tigerrec.storage.manifests import MANIFEST

N_USERS, N_ITEMS = 40, 30
OPTIONS = shlex.split(
    "dataset=tables dataset.name=shop embedder=hashed embedder.dim=8 tokenizer=rkmeans tokenizer.codebook_size=4 "
    "tokenizer.levels=2 "
    "generator.num_layers=1 generator.d_model=16 generator.num_heads=2 generator.d_kv=8 generator.d_ff=16 "
    "generator.max_items=5 "
    "train.epochs=2 train.validate_every=1 train.batch_targets=32 train.checkpoint_steps=2 train.log_steps=1 "
    "train.validation_users=20 train.precision=fp32"
)
TOKENIZED = Path("shop/hashed/rkmeans-seed0")
TRAINED = TOKENIZED / "t5-packed-seed0"
FOLDERS = {
    "prepare": Path("shop"),
    "embed": Path("shop/hashed"),
    "tokenize": TOKENIZED,
    "train": TRAINED,
    "evaluate": TRAINED / "eval-full",
}


def write_orders(folder: Path) -> Path:
    """The interactions of the shop."""
    rng = np.random.default_rng(0)
    lines = ["user,item,time"]
    for user in range(N_USERS):
        items = rng.permutation(N_ITEMS)[: rng.integers(4, 9)]
        lines += [f"u{user},i{item:02d},{time}" for time, item in enumerate(items)]
    path = folder / "orders.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def options(orders: Path, runs: Path, *more: str) -> list[str]:
    """The options of the shop and more; those of a choice that is changed are left out."""
    changed = {option.partition("=")[0] for option in more}
    given = [
        option
        for option in (*OPTIONS, f"dataset.interactions='{orders}'")
        if not {option.partition("=")[0], option.partition(".")[0]} & changed
    ]
    return [*given, f"paths.runs={runs}", *more]


def steps(orders: Path, runs: Path, *more: str) -> dict[str, pipeline.Step]:
    return pipeline.plan(compose(options(orders, runs, *more)))


def run(orders: Path, runs: Path, *more: str, until: str = "evaluate") -> Path:
    return pipeline.run(compose(options(orders, runs, *more)), until)


def contents(runs: Path) -> dict[str, str]:
    """The sha256 of every file of every finished stage, of the manifest's identity too; without timings and
    provenance."""
    found = {}
    for path in runs.rglob(MANIFEST):
        manifest = json.loads(path.read_bytes())
        for name, entry in manifest["files"].items():
            if not entry.get("measured"):
                found[str((path.parent / name).relative_to(runs))] = hashlib.sha256(
                    (path.parent / name).read_bytes()
                ).hexdigest()
        found[str(path.relative_to(runs))] = manifest["fingerprint"] + manifest["content"]
    return found
