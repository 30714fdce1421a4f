"""Collision policies: what becomes of items to which a tokenizer gives equal codes, when it was fitted and when new
items come."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tigerrec.tokenizers import diagnostics
from tigerrec.tokenizers.ids import SemanticIdError, SemanticIds, TokenLayout, group_codes
from tigerrec.tokenizers.quantizer.sinkhorn import balanced_codes
from tigerrec.tokenizers.suffix import next_suffixes, with_suffix

if TYPE_CHECKING:
    from tigerrec.tokenizers.base import Codes, State

logger = logging.getLogger(__name__)
Policy = Literal["suffix", "sinkhorn", "nearest_free", "keep"]
SINKHORN_EPSILON, SINKHORN_ITERATIONS, SINKHORN_ROUNDS = 0.003, 50, 20


@dataclass(frozen=True)
class CodedItems:
    """Items with vectors, float32 (n, D), and the codes, int32 (n, L), that a fitted tokenizer gives them; it measures
    distances where the policy needs them."""

    tokenizer: Any
    state: State
    vectors: np.ndarray
    codes: Codes

    def distances(self, rows: np.ndarray, prefixes: Codes) -> np.ndarray:
        """Distances, float64 (m, codes), of some items, int (m,), to all codes of level l given prefixes, int (m, l);
        inf where a code does not exist."""
        return np.asarray(self.tokenizer.distances(self.state, self.vectors[rows], prefixes))


@dataclass(frozen=True)
class CollisionPolicy:
    """What becomes of items with equal codes: `resolve` gives the Semantic IDs of all fitted items, `extend` the ids,
    int32 (n, T), of new items beside known ones, which keep theirs; both raise SemanticIdError where no id is left."""

    resolve: Callable[[CodedItems], SemanticIds]
    extend: Callable[[SemanticIds, CodedItems], np.ndarray]
    needs_distances: bool = False


def _with_next_suffixes(known: SemanticIds, items: CodedItems) -> np.ndarray:
    return np.column_stack([items.codes, next_suffixes(known, items.codes)]).astype(np.int32)


def _with_sinkhorn(items: CodedItems) -> SemanticIds:
    """Items that share all codes are spread evenly over the last level; a suffix tells apart what still shares them.

    After LC-Rec (Zheng et al. 2023, arXiv 2311.09049): the items of one prefix that collide share out the codes that no
    other item there has, and again what still collides. Items that do not collide stay where they are; equal vectors
    stay together.
    """
    _, first, inverse = np.unique(
        np.column_stack([items.vectors, items.codes]), axis=0, return_index=True, return_inverse=True
    )
    codes = items.codes[first]
    for _ in range(SINKHORN_ROUNDS):
        rows = _colliding(codes)
        if not len(rows):
            break
        distances, (prefixes, _) = items.distances(first[rows], codes[rows, :-1]), group_codes(codes[:, :-1])
        alone = np.setdiff1d(np.arange(len(codes)), rows)
        taken = np.zeros((prefixes.max() + 1, distances.shape[1]), dtype=bool)
        taken[prefixes[alone], codes[alone, -1]] = True
        for members in _groups_of(prefixes[rows]):
            free = np.flatnonzero(np.isfinite(distances[members[0]]) & ~taken[prefixes[rows[members[0]]]])
            chosen = balanced_codes(distances[np.ix_(members, free)], SINKHORN_EPSILON, SINKHORN_ITERATIONS)
            codes[rows[members], -1] = free[chosen]
    return with_suffix(codes[inverse.reshape(-1)], items.tokenizer.code_sizes)


def _colliding(codes: np.ndarray) -> np.ndarray:
    """The rows of codes (n, L) that another row equals, int64 (m,)."""
    groups, sizes = group_codes(codes)
    return np.flatnonzero(sizes[groups] > 1)


def _groups_of(labels: np.ndarray) -> Iterator[np.ndarray]:
    """The places of each label in turn, in ascending order."""
    order = np.argsort(labels, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _with_nearest_free(items: CodedItems) -> SemanticIds:
    """Unique ids without a suffix: where items collide, all items with the same codes but the last share out the codes
    of the last level.

    The sum of their distances is as small as it can be (the linear assignment problem: Crouse 2016), so an item that
    does not collide moves only where the sum is smaller for it. Items beyond the codes that exist have moved to another
    code of the level before.
    """
    from scipy.optimize import linear_sum_assignment

    codes = _spilled(items)
    prefixes, _ = group_codes(codes[:, :-1])
    rows = np.flatnonzero(np.isin(prefixes, prefixes[_colliding(codes)]))
    if len(rows):
        distances = items.distances(rows, codes[rows, :-1])
        for members in _groups_of(prefixes[rows]):
            codes[rows[members], -1] = linear_sum_assignment(distances[members])[1]
    return _without_suffix(items, codes)


def _without_suffix(items: CodedItems, codes: Codes, may_share: bool = False) -> SemanticIds:
    return SemanticIds(codes, TokenLayout(items.tokenizer.code_sizes, items.tokenizer.code_sizes), may_share)


def _existing_codes(items: CodedItems, prefixes: np.ndarray) -> np.ndarray:
    """How many codes of level l exist below each prefix, int64 (m,), of prefixes (m, l)."""
    return np.isfinite(items.distances(np.zeros(len(prefixes), np.int64), prefixes)).sum(axis=1)


def _spilled(items: CodedItems) -> Codes:
    """The codes (n, L) of which no more items share all but the last than the last level has codes. From a group that
    is too large the items farthest from its code of the level before move to the nearest code of that level with room,
    and take the nearest code of the last level there. Raises SemanticIdError if there is no room."""
    codes = items.codes.copy()
    prefixes, _ = group_codes(codes[:, :-1])
    clashing = np.unique(prefixes[_colliding(codes)])
    if not len(clashing):
        return codes
    _, first, sizes = np.unique(prefixes, return_index=True, return_counts=True)
    too_many = sizes[clashing] - _existing_codes(items, codes[first[clashing], :-1])
    moved = [
        _spill(items, codes, np.flatnonzero(prefixes == group), excess)
        for group, excess in zip(clashing, too_many, strict=True)
        if excess > 0
    ]
    if moved:
        rows = np.concatenate(moved)
        codes[rows, -1] = items.distances(rows, codes[rows, :-1]).argmin(axis=1)
    return codes


def _spill(items: CodedItems, codes: np.ndarray, members: np.ndarray, excess: int) -> np.ndarray:
    """Move so many items (int64, rows of codes) of one prefix to its neighbours, in place; gives the rows moved."""
    *parent, own = codes[members[0], :-1].tolist() or [0]
    beside = (codes[:, : len(parent)] == parent).all(axis=1)
    if codes.shape[1] == 1:
        raise _no_room(parent, int(beside.sum()), len(members) - excess)
    distances = items.distances(members, codes[members, :-2])
    existing = np.flatnonzero(np.isfinite(distances[0]))
    held = np.zeros(distances.shape[1], np.int64)
    held[existing] = _existing_codes(items, np.array([[*parent, code] for code in existing]))
    room = held - np.bincount(codes[beside, -2], minlength=len(held))
    if room.sum() < 0:
        raise _no_room(parent, int(beside.sum()), int(held.sum()))
    leaving = np.lexsort((-members, -distances[:, own]))[:excess]
    for member in leaving:
        nearest = int(np.where(room > 0, distances[member], np.inf).argmin())
        codes[members[member], -2] = nearest
        room[nearest] -= 1
    return members[leaving]


def _no_room(parent: list[int], n_items: int, n_ids: int) -> SemanticIdError:
    beginning = f"{n_items} items begin with the codes {'-'.join(map(str, parent))}"
    return SemanticIdError(
        f"{beginning if parent else f'There are {n_items} items'}, and there are only {n_ids} ids for them; use larger "
        "codebooks or more levels, or `tokenizer.collisions=suffix`, which adds a level."
    )


def _next_nearest_free(known: SemanticIds, items: CodedItems) -> np.ndarray:
    """Each new item in turn gets the nearest code of the last level that no item with its other codes has."""
    codes = items.codes.astype(np.int32)
    distances = items.distances(np.arange(len(codes)), codes[:, :-1])
    taken = {tuple(row) for row in known.codes.tolist()}
    for number, (row, to_codes) in enumerate(zip(codes, distances, strict=True)):
        prefix = tuple(row[:-1].tolist())
        existing = np.argsort(to_codes, kind="stable")[: np.isfinite(to_codes).sum()].tolist()
        free = [code for code in existing if (*prefix, code) not in taken]
        if not free:
            raise SemanticIdError(
                f"New item {number} has the codes {'-'.join(map(str, row))}, and every last code after the same ones "
                "before is taken; fit the tokenizer and train again with the new items (`overwrite=tokenize`)."
            )
        row[-1] = free[0]
        taken.add((*prefix, free[0]))
    return codes


COLLISION_POLICIES: dict[Policy, CollisionPolicy] = {
    "suffix": CollisionPolicy(lambda items: with_suffix(items.codes, items.tokenizer.code_sizes), _with_next_suffixes),
    "sinkhorn": CollisionPolicy(_with_sinkhorn, _with_next_suffixes, needs_distances=True),
    "nearest_free": CollisionPolicy(_with_nearest_free, _next_nearest_free, needs_distances=True),
    "keep": CollisionPolicy(
        lambda items: _without_suffix(items, items.codes, may_share=True),
        lambda known, items: items.codes.astype(np.int32),
    ),
}


def resolve(items: CodedItems, policy: Policy) -> tuple[SemanticIds, dict[str, Any]]:
    """The Semantic IDs of coded items by one of `COLLISION_POLICIES`, and a report: how many items got other codes, and
    how often items share all codes after that, the suffix left out. Raises SemanticIdError if there are not enough
    ids."""
    started = time.perf_counter()
    ids = COLLISION_POLICIES[policy].resolve(items)
    seconds = round(time.perf_counter() - started, 3)
    codes = ids.codes[:, : len(ids.layout.code_sizes)]
    moved = int((codes != items.codes).any(axis=1).sum())
    if moved:
        logger.info("collisions=%s gave %s of %s items other codes", policy, f"{moved:,}", f"{len(codes):,}")
    return ids, {"policy": policy, "items_moved": moved, "seconds": seconds} | diagnostics.collisions(codes)
