"""How the search slows as catalogue and histories grow, on made-up items with random weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tigerrec.analysis.benchmark.sides import new_model, seconds_of
from tigerrec.search.options import HYBRID, ITEMS, Scoring
from tigerrec.search.searcher import Searcher
from tigerrec.tokenizers.ids import SemanticIds
from tigerrec.tokenizers.suffix import with_suffix
from tigerrec.tokenizers.trie import build_trie
from tigerrec.training.options import TrainConfig

CODE_SIZES = (256, 256, 256)
HISTORY = 5


def made_up_items(n_items: int) -> SemanticIds:
    """Semantic IDs of uniformly random codes."""
    codes = np.random.default_rng(0).integers(0, CODE_SIZES, (n_items, len(CODE_SIZES)), dtype=np.int32)
    return with_suffix(codes, CODE_SIZES)


def milliseconds_per_user(searcher: Searcher, n_users: int, length: int, beam_size: int) -> float:
    """Time to rank for random histories, the best of three after doing it once."""
    histories = list(np.random.default_rng(1).integers(0, len(searcher.trie.leaf_item), (n_users, length)))

    def rank() -> None:
        searcher.rank(histories, k=beam_size, beam_size=beam_size, mask_seen=False)

    rank()
    return 1000 * min(seconds_of(searcher.model.device, rank) for _ in range(3)) / n_users


def catalogue(config: TrainConfig, n_items: int, beams: Sequence[int], n_users: int) -> dict[str, Any]:
    """Building the trie of a catalogue and searching it, for histories of five items."""
    semantic_ids = made_up_items(n_items)
    tokens = semantic_ids.tokens
    started = time.perf_counter()
    trie = build_trie(tokens)
    trie_seconds = time.perf_counter() - started
    tensors = (*trie.first_child, *trie.token, *trie.n_items_below, trie.path, trie.leaf_item)
    row = {"items": n_items, "trie_seconds": trie_seconds, "trie_bytes": sum(tensor.nbytes for tensor in tensors)}
    model = new_model(config, semantic_ids)
    searcher = Searcher(model, trie.to(model.device), config.training.precision)
    row["model_bytes"] = sum(parameter.nbytes for parameter in model.parameters())
    row |= {f"ms_per_user_beam_{size}": milliseconds_per_user(searcher, n_users, HISTORY, size) for size in beams}
    if model.scores_items:
        for scores in (ITEMS, HYBRID):
            by_items = replace(searcher, scoring=Scoring(scores))
            row[f"ms_per_user_{scores}"] = milliseconds_per_user(by_items, n_users, HISTORY, min(beams))
    return row


def history(config: TrainConfig, n_items: int, beam_size: int, lengths: Sequence[int], n_users: int) -> dict[str, Any]:
    """Searching one catalogue for histories of each length."""
    model = new_model(config, made_up_items(n_items), max_items=max(lengths))
    searcher = Searcher.of(model, config.training.precision)
    times = {length: milliseconds_per_user(searcher, n_users, length, beam_size) for length in lengths}
    return {"rows": [{"items": length, "ms_per_user": time_taken} for length, time_taken in times.items()]}
