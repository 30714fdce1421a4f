"""What a finished tokenize stage left, and the categories of the items it was fitted to, as a comparison shows them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec.storage.contracts import read_json, read_table
from tigerrec.storage.files import ArtifactError
from tigerrec.storage.stages import open_stage
from tigerrec.tokenizers.diagnostics import prefix_purity
from tigerrec.tokenizers.ids import load_semantic_ids

CATEGORY_DEPTH = 2
OF_LEVELS = ("used_codes", "dead_codes", "perplexity")
OF_ALL_CODES = (
    "collision_rate", "unique_ids", "largest_group", "reconstruction_error", "neighbour_agreement", "seconds", "peak_mb"
)  # fmt: skip


@dataclass(frozen=True)
class Categories:
    """The items' categories: the second element of an item's path, or its only one."""

    names: tuple[str, ...]  # the most frequent first
    of_items: np.ndarray  # the index into `names` of each item, int64 (I,); -1 where an item has no category


def read_categories(prepared: Path) -> Categories:
    """The categories of the items of a finished prepare stage."""
    open_stage(prepared, "prepare")
    items = read_table(prepared, "items.parquet", {"categories": "list<element: string>?"})
    of_items = [path[:CATEGORY_DEPTH][-1] if path else None for path in items["categories"].to_pylist()]
    counts = Counter(name for name in of_items if name is not None)
    names = sorted(counts, key=lambda name: (-counts[name], name))
    numbers = {name: number for number, name in enumerate(names)}
    return Categories(tuple(names), np.array([numbers.get(name, -1) for name in of_items]))


@dataclass(frozen=True)
class FittedTokenizer:
    """A finished tokenize stage."""

    name: str  # of its folder
    measures: dict[str, Any]  # one value a column of `comparison.parquet`
    group_sizes: dict[int, int]  # the number of groups of items with equal codes, by their size
    code_sizes: tuple[int, ...]  # the number of codes a level
    codes: np.ndarray  # the items' codes without suffix, int32 (I, L)


def read_fitted(folder: Path, categories: Categories, seed: int) -> FittedTokenizer:
    """What a finished tokenize stage left, and the purity of its prefixes.

    Raises:
        ArtifactError: the stage is unfinished, damaged, or was written before all of this was measured.
    """
    ids = load_semantic_ids(folder)
    family = read_json(folder, "tokenizer.json", {"family": str})["family"]
    diagnostics = read_json(folder, "diagnostics.json", {})
    for name in ("group_sizes", "peak_mb"):
        if name not in diagnostics:
            raise ArtifactError(
                f"{folder}/diagnostics.json comes from an older version and lacks {name}; add `overwrite=tokenize` to "
                "fit it again."
            )
    diagnostics |= {name: value for name, value in diagnostics["collisions"].items() if name != "seconds"}
    sizes = ids.layout.code_sizes
    codes = ids.codes[:, : len(sizes)]
    measures = {"tokenizer": folder.name, "family": family, "items": len(codes), "code_sizes": list(sizes)}
    measures |= {name: [level[name] for level in diagnostics["levels"]] for name in OF_LEVELS}
    measures |= {name: diagnostics[name] for name in OF_ALL_CODES}
    measures |= prefix_purity(codes, categories.of_items, seed)
    group_sizes = {int(size): count for size, count in diagnostics["group_sizes"].items()}
    return FittedTokenizer(folder.name, measures, group_sizes, sizes, codes)
