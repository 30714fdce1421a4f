"""The train stage: a generator learns to continue histories; the weights that validate best are kept."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from tigerrec.data.histories import Histories, load_histories
from tigerrec.storage.manifests import StaleError
from tigerrec.storage.stages import open_stage
from tigerrec.tokenizers.ids import SemanticIds, load_semantic_ids

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)


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
