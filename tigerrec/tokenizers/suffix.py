"""The suffix: one more level that numbers the items whose codes are equal (Rajput et al. 2023, arXiv 2305.05065,
section 3.1)."""

from __future__ import annotations

import numpy as np

from tigerrec.tokenizers.ids import SemanticIdError, SemanticIds, TokenLayout, group_codes

MIN_SUFFIX_SIZE = 8


def add_suffix(codes: np.ndarray) -> np.ndarray:
    """The number, int32 (I,), of each item among those that share its codes, 0, 1, 2, … by item index."""
    groups, sizes = group_codes(codes)
    order = np.argsort(groups, kind="stable")
    starts = np.cumsum(sizes) - sizes
    suffix = np.empty(len(codes), dtype=np.int32)
    suffix[order] = np.arange(len(codes)) - np.repeat(starts, sizes)
    return suffix


def suffix_size(codes: np.ndarray) -> int:
    """Size of the suffix level: twice the largest group, so that new items fit, and at least 8."""
    return max(2 * int(group_codes(codes)[1].max()), MIN_SUFFIX_SIZE)


def with_suffix(codes: np.ndarray, code_sizes: tuple[int, ...]) -> SemanticIds:
    """The Semantic IDs of TIGER: one more level tells items with equal codes apart. After Rajput et al. 2023 (arXiv
    2305.05065), section 3.1."""
    layout = TokenLayout(code_sizes, (*code_sizes, suffix_size(codes)))
    return SemanticIds(np.column_stack([codes, add_suffix(codes)]).astype(np.int32), layout)


def next_suffixes(known: SemanticIds, codes: np.ndarray) -> np.ndarray:
    """The suffixes, int32 (n,), of new items with codes (n, L), continuing those of the known items. Raises
    SemanticIdError if more items share one tuple of codes than the suffix level holds."""
    suffixes = add_suffix(np.concatenate([known.codes[:, :-1], codes]))[len(known.codes) :]
    size = known.layout.level_sizes[-1]
    if len(suffixes) and suffixes.max() >= size:
        raise SemanticIdError(
            f"New item {int(np.argmax(suffixes >= size))} is number {int(suffixes.max()) + 1} with its codes, and the "
            f"suffix level holds {size}; fit the tokenizer and train again with the new items (`overwrite=tokenize`)."
        )
    return suffixes
