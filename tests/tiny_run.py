"""A made-up run with an untrained tiny generator: prepare, tokenize and train folders as the stages write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from tigerrec.embed.hashed import Hashed
from tigerrec.embed.stage import embed
from tigerrec.models.gpt2 import DecoderOnly
from tigerrec.models.loading import save_generator
from tigerrec.models.t5 import T5
from tigerrec.models.t5_tree import T5Tree
from tigerrec.search.options import CHOSEN
from tigerrec.storage.stages import writing
from tigerrec.tokenizers.ids import SemanticIds, TokenLayout, load_semantic_ids
from tigerrec.tokenizers.rkmeans import ResidualKMeans
from tigerrec.tokenizers.stage import TokenizeConfig, tokenize
from tigerrec.tokenizers.suffix import add_suffix

N_USERS = 50
N_ITEMS = 40
CODE_SIZES = (4, 4)
T5S = {
    history: T5(num_layers=1, d_model=16, num_heads=2, d_kv=8, d_ff=16, max_items=5, history=history)
    for history in ("codes", "items")
}
GENERATORS = T5S | {
    "decoder_only": DecoderOnly(num_layers=1, d_model=16, num_heads=2, d_ff=16, max_items=5),
    "t5_tree": T5Tree(num_layers=1, d_model=16, num_heads=2, d_kv=8, d_ff=16, max_items=5),
}


def build_run(root: Path, seed: int = 0, history: str = "codes") -> dict[str, Path]:
    """The folders `prepare`, `tokenize` and `train` below `root`, laid out as the pipeline does."""
    rng = np.random.default_rng(seed)
    folders = {
        "prepare": root / "toy",
        "tokenize": root / "toy" / "hashed" / "random-seed0",
        "train": root / "toy" / "hashed" / "random-seed0" / "t5-packed-seed0",
    }
    _write_prepare(folders["prepare"], rng, seed)
    codes = rng.integers(0, CODE_SIZES, (N_ITEMS, len(CODE_SIZES))).astype(np.int32)
    layout = TokenLayout(CODE_SIZES, (*CODE_SIZES, 40))
    with writing(folders["tokenize"], "tokenize", {"seed": seed}) as files:
        columns = {
            "item": np.arange(N_ITEMS, dtype=np.int32),
            "code_0": codes[:, 0],
            "code_1": codes[:, 1],
            "suffix": add_suffix(codes),
        }
        files.parquet("semantic_ids.parquet", pa.table(columns))
        facts = {
            "family": "random",
            "hyper_parameters": {"levels": 2, "codebook_size": 4},
            "dim": 8,
            "collisions": "suffix",
        }
        files.json("tokenizer.json", facts | {"code_sizes": CODE_SIZES, "level_sizes": layout.level_sizes})
        files.arrays("tokenizer.safetensors", {"seed": np.array([seed])})
    write_train(
        folders, SemanticIds(np.column_stack([codes, add_suffix(codes)]).astype(np.int32), layout), seed, history
    )
    return folders


def build_embedded_run(
    root: Path,
    collisions: str = "suffix",
    history: str = "codes",
    dim: int = 8,
    codebook_size: int = 12,
    levels: int = 2,
) -> dict[str, Path]:
    """The same with real embed and tokenize stages: hashed vectors, and residual k-means whose few codes make items
    collide."""
    embedded = root / "toy" / "hashed"
    folders = {"prepare": root / "toy", "tokenize": embedded / f"rkmeans-{collisions}-seed0"}
    folders["train"] = folders["tokenize"] / "t5-packed-seed0"
    _write_prepare(folders["prepare"], np.random.default_rng(0), 0)
    embed(folders["prepare"], Hashed(dim=dim), embedded)
    tokenize(
        embedded,
        TokenizeConfig(
            ResidualKMeans(levels=levels, codebook_size=codebook_size, init="kmeans"), collisions=collisions
        ),
        folders["tokenize"],
    )
    write_train(folders, load_semantic_ids(folders["tokenize"]), 0, history)
    return folders


def _write_prepare(folder: Path, rng: np.random.Generator, seed: int) -> None:
    lengths = rng.integers(3, 9, N_USERS)
    histories = [rng.permutation(N_ITEMS)[:length].astype(np.int32) for length in lengths]
    with writing(folder, "prepare", {"seed": seed}) as files:
        files.parquet("items.parquet", _items())
        users = np.repeat(np.arange(N_USERS, dtype=np.int32), lengths)
        positions = np.concatenate([np.arange(length) for length in lengths])
        columns = {
            "user": users,
            "item": np.concatenate(histories),
            "timestamp": positions.astype(np.int64),
            "position": positions.astype(np.int32),
        }
        files.parquet("interactions.parquet", pa.table(columns))
        files.json("stats.json", {"users": N_USERS, "items": N_ITEMS, "interactions": int(lengths.sum())})


def write_train(
    folders: dict[str, Path], semantic_ids: SemanticIds, seed: int, history: str = "codes", mask: str = "item_causal"
) -> None:
    """An untrained generator as a train stage: a T5 by what it reads, or `decoder_only`."""
    model = GENERATORS[history].new(semantic_ids, mask, seed)
    inputs = {name: folders[name] for name in ("prepare", "tokenize")}
    with writing(folders["train"], "train", {"seed": seed}, inputs=inputs) as files:
        scratch = folders["train"] / "scratch"
        for path in save_generator(model, scratch):
            files.adopt(path, path.name)
        scratch.rmdir()
        if model.scores_items:
            files.json(CHOSEN, {"hybrid": 1.0, "inline": 1.0})


def _items() -> pa.Table:
    numbers = range(N_ITEMS)
    return pa.table(
        {
            "item": pa.array(numbers, pa.int32()),
            "item_id": [f"{number:010d}" for number in numbers],
            "title": [None if number == 7 else f"Item {number}" for number in numbers],
            "text": [f"Item {number} of kind {number % 7}" for number in numbers],
        }
    )
