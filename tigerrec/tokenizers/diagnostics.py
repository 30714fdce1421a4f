"""How good a set of codes is: how it is used, which items share codes, and what its prefixes say of the items."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tigerrec.embed.vectors import unit
from tigerrec.runtime.seeds import derived_seed
from tigerrec.tokenizers.ids import group_codes

NEIGHBOURS = 10
SAMPLE = 2000
PERMUTATIONS = 10
BLOCK = 1 << 16  # items decoded at once
SIMILARITIES = 1 << 25  # held at once


def collisions(codes: np.ndarray) -> dict[str, Any]:
    """How often items share their codes (I, L, without suffix): `collision_rate` is the share of items whose codes
    another item has too, `group_sizes` the number of groups of items with equal codes by their size."""
    groups, sizes = group_codes(codes)
    distinct, counts = np.unique(sizes, return_counts=True)
    return {
        "collision_rate": float(np.mean(sizes[groups] > 1)),
        "unique_ids": len(sizes),
        "largest_group": int(sizes.max()),
        "group_sizes": {str(size): int(count) for size, count in zip(distinct, counts, strict=True)},
    }


def level_usage(codes: np.ndarray, size: int) -> dict[str, Any]:
    """How one level (I,) uses its codes: `perplexity` is exp of the entropy of code frequencies, `size` when all are
    equally frequent."""
    counts = np.bincount(codes, minlength=size)
    shares = counts[counts > 0] / len(codes)
    used = len(shares)
    return {
        "codes": size,
        "used_codes": used,
        "dead_codes": size - used,
        "perplexity": float(np.exp(-np.sum(shares * np.log(shares)))),
    }


def reconstruction_error(
    vectors: np.ndarray, codes: np.ndarray, decode: Callable[[np.ndarray], np.ndarray]
) -> float | None:
    """Mean squared error, of the vectors (n, D) that `decode` makes of codes (n, L), over the variance: 0 is perfect, 1
    no better than the mean vector; None where vectors (I, D) do not vary."""
    mean, variance, error = vectors.mean(axis=0, dtype=np.float64), 0.0, 0.0
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK].astype(np.float64)
        variance += float(np.square(block - mean).sum())
        error += float(np.square(block - decode(codes[start : start + BLOCK])).sum())
    return error / variance if variance > 0 else None


def neighbour_agreement(vectors: np.ndarray, codes: np.ndarray, seed: int) -> list[float] | None:
    """Share of the ten nearest neighbours by cosine, among vectors (I, D), that begin with an item's codes (I, L), by
    prefix length 1 … L, over at most 2,000 sampled items; None for a single item."""
    count = min(NEIGHBOURS, len(vectors) - 1)
    if count < 1:
        return None
    generator = np.random.default_rng(derived_seed(seed, "neighbour agreement"))
    sample = np.sort(generator.permutation(len(vectors))[:SAMPLE])
    directions, agreements = unit(vectors), []
    for block in np.array_split(sample, -(-len(sample) // max(1, min(256, SIMILARITIES // len(vectors))))):
        similarity = directions[block] @ directions.T
        similarity[np.arange(len(block)), block] = -np.inf
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        agreements.append(np.logical_and.accumulate(codes[nearest] == codes[block, None], axis=2))
    return [float(share) for share in np.concatenate(agreements).mean(axis=(0, 1))]


def _majority_share(groups: np.ndarray, categories: np.ndarray) -> float:
    """The share of items in the majority category of their group."""
    pairs, counts = np.unique(np.column_stack([groups, categories]), axis=0, return_counts=True)
    largest = np.zeros(groups.max() + 1, dtype=np.int64)
    np.maximum.at(largest, pairs[:, 0], counts)
    return float(largest.sum() / len(groups))


def prefix_purity(codes: np.ndarray, categories: np.ndarray, seed: int) -> dict[str, list[float]]:
    """How far prefixes of codes (I, L) tell categories (I,) apart: the share of items in the majority category of their
    prefix, by prefix length 1 … L; items with a negative category are left out.

    Small groups look pure whatever is in them, so `purity_by_chance` says what the same groups reach, on average, when
    the categories are dealt out to the items at random.
    """
    codes, categories = codes[categories >= 0], categories[categories >= 0]
    generator = np.random.default_rng(derived_seed(seed, "prefix purity"))
    dealt = [generator.permutation(categories) for _ in range(PERMUTATIONS)]
    groups = [group_codes(codes[:, : length + 1])[0] for length in range(codes.shape[1] if len(codes) else 0)]
    return {
        "purity": [_majority_share(group, categories) for group in groups],
        "purity_by_chance": [float(np.mean([_majority_share(group, labels) for labels in dealt])) for group in groups],
    }
