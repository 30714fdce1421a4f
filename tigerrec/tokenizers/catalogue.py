"""A catalogue as the stages after the tokenizer read it: histories and Semantic IDs of the same items."""

from __future__ import annotations

from pathlib import Path

from tigerrec.data.histories import Histories, load_histories
from tigerrec.storage.manifests import StaleError
from tigerrec.storage.stages import open_stage
from tigerrec.tokenizers.ids import SemanticIds, load_semantic_ids


def load_inputs(prepared: Path, tokenized: Path) -> tuple[Histories, SemanticIds]:
    """Histories and Semantic IDs of one catalogue. Raises StaleError if the two were made from different items."""
    open_stage(prepared, "prepare")
    open_stage(tokenized, "tokenize")
    histories, semantic_ids = load_histories(prepared), load_semantic_ids(tokenized)
    if histories.n_items != len(semantic_ids.codes):
        raise StaleError(
            f"{tokenized} has Semantic IDs for {len(semantic_ids.codes)} items, {prepared} has {histories.n_items}; "
            "add `overwrite=embed` to build them again."
        )
    return histories, semantic_ids
