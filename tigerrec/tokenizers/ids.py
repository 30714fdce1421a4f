"""Semantic IDs: code and token arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec import TigerrecError
from tigerrec.data.histories import Histories, load_histories
from tigerrec.storage.contracts import contract, read_json, read_table
from tigerrec.storage.manifests import StaleError
from tigerrec.storage.stages import open_stage

PAD = 0
KEEP = "keep"
MAX_TOKENS = 2**24
TOKENIZER, SEMANTIC_IDS = "tokenizer.json", "semantic_ids.parquet"


class SemanticIdError(TigerrecError):
    """Codes that cannot become Semantic IDs."""


@dataclass(frozen=True)
class TokenLayout:
    """How codes become tokens: 0 is padding and decoder start, then one block of tokens a level. `level_sizes` are
    `code_sizes`, those of the tokenizer, plus the size of the suffix level where there is one."""

    code_sizes: tuple[int, ...]
    level_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("code_sizes", "level_sizes"):
            object.__setattr__(self, name, tuple(int(size) for size in getattr(self, name)))
        n_codes, n_levels = len(self.code_sizes), len(self.level_sizes)
        if min(self.level_sizes, default=0) < 1:
            raise ValueError(f"level_sizes must hold at least one positive size, got {self.level_sizes}")
        if not self.code_sizes or self.level_sizes[:n_codes] != self.code_sizes or n_levels > n_codes + 1:
            raise ValueError(
                f"level_sizes must be code_sizes {self.code_sizes} and at most one more size, got {self.level_sizes}"
            )
        if self.vocab_size > MAX_TOKENS:
            raise ValueError(f"level_sizes must add up to less than {MAX_TOKENS}, got {self.level_sizes}")

    @property
    def n_levels(self) -> int:
        """Tokens an item, the suffix included."""
        return len(self.level_sizes)

    @property
    def offsets(self) -> np.ndarray:
        """The token of code 0 at each level, int64 [T]."""
        return 1 + np.concatenate([[0], np.cumsum(self.level_sizes[:-1])]).astype(np.int64)

    @property
    def vocab_size(self) -> int:
        """Tokens in all, padding included."""
        return 1 + sum(self.level_sizes)

    @property
    def column_names(self) -> list[str]:
        """What the levels are called in `semantic_ids.parquet`."""
        n_codes = len(self.code_sizes)
        return [f"code_{level}" for level in range(n_codes)] + ["suffix"] * (self.n_levels - n_codes)

    def to_tokens(self, codes: np.ndarray) -> np.ndarray:
        """Tokens (int64) of codes (..., T)."""
        return np.asarray(codes).astype(np.int64) + self.offsets

    def to_codes(self, tokens: np.ndarray) -> np.ndarray:
        """Codes (int32) of tokens (..., T)."""
        return (np.asarray(tokens).astype(np.int64) - self.offsets).astype(np.int32)


@dataclass(frozen=True)
class SemanticIds:
    """The codes of every item, int32 [I, T], the suffix included where there is one; row = item index. They are unique,
    unless several items `may_share` one id."""

    codes: np.ndarray
    layout: TokenLayout
    may_share: bool = False

    @property
    def tokens(self) -> np.ndarray:
        """The tokens of every item, int64 [I, T]."""
        return self.layout.to_tokens(self.codes)

    def table(self) -> Any:
        """`semantic_ids.parquet`: the item and its codes, one column a level."""
        import pyarrow as pa

        columns = dict(zip(self.layout.column_names, self.codes.T, strict=True))
        return pa.table({"item": np.arange(len(self.codes), dtype=np.int32)} | columns)


def load_semantic_ids(folder: Path | str) -> SemanticIds:
    """The Semantic IDs that a tokenize stage wrote. Raises ArtifactError if no finished tokenize stage stands there, or
    it is damaged."""
    folder = Path(folder)
    open_stage(folder, "tokenize", "export")
    record = read_json(folder, TOKENIZER, {"code_sizes": [int], "level_sizes": [int]})
    with contract(folder, TOKENIZER):
        layout = TokenLayout(record["code_sizes"], record["level_sizes"])
    table = read_table(folder, SEMANTIC_IDS, dict.fromkeys(["item", *layout.column_names], "int32"))
    codes = np.stack([table[name].to_numpy() for name in layout.column_names], axis=1)
    may_share = record.get("collisions") == KEEP
    with contract(folder, SEMANTIC_IDS):
        if not np.array_equal(table["item"].to_numpy(), np.arange(len(table))):
            raise ValueError("its items are not numbered 0, 1, 2, … in this order")
        if not len(codes) or (codes < 0).any() or (codes >= layout.level_sizes).any():
            raise ValueError(f"it has no items, or codes that are not below {layout.level_sizes}")
        if not may_share and len(group_codes(codes)[1]) < len(codes):
            raise ValueError("two items have one Semantic ID")
    return SemanticIds(codes, layout, may_share)


def group_codes(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The group of each item, int64 [I], items with equal codes being one group, and the size of each group, int64
    [G]."""
    _, groups, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return groups.reshape(-1), sizes


def load_inputs(prepared: Path, tokenized: Path) -> tuple[Histories, SemanticIds]:
    """Histories and Semantic IDs of one catalogue.

    Raises:
        StaleError: the two were made from different items.
    """
    open_stage(prepared, "prepare")
    open_stage(tokenized, "tokenize")
    histories, semantic_ids = load_histories(prepared), load_semantic_ids(tokenized)
    if histories.n_items != len(semantic_ids.codes):
        raise StaleError(
            f"{tokenized} has Semantic IDs for {len(semantic_ids.codes)} items, {prepared} has {histories.n_items}; "
            "add `overwrite=embed` to build them again."
        )
    return histories, semantic_ids
