"""What sees what: the mask under which one pass serves all targets of a packed window, and that of a padded history."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def _item_of_position(n_items: int, positions_per_item: int, device: torch.device) -> Tensor:
    """The number of the item that each position belongs to, int64 (S,)."""
    return torch.arange(n_items, device=device).repeat_interleave(positions_per_item)


def item_causal(n_items: int, positions_per_item: int, device: torch.device) -> Tensor:
    """The encoder's packed mask, bool (S, S): a position sees its own item and those before it."""
    item = _item_of_position(n_items, positions_per_item, device)
    return item[:, None] >= item


def after_the_user(mask: Tensor) -> Tensor:
    """An encoder's mask (S, S) with a first position that all see and that sees itself alone, bool (S + 1, S + 1)."""
    with_user = functional.pad(mask, (1, 0, 1, 0), value=True)
    with_user[0, 1:] = False
    return with_user


def before_targets(n_visible: Tensor, n_items: int, positions_per_item: int, n_levels: int) -> Tensor:
    """The decoder's packed mask, bool (B, 1, m * T, S): a target's tokens see the positions of the items before it.

    Args:
        n_visible: int64 (B, m): how many of a row's items precede each target.
        n_levels: tokens a target, T.
    """
    item = _item_of_position(n_items, positions_per_item, n_visible.device)
    return (item < n_visible[:, :, None]).repeat_interleave(n_levels, dim=1)[:, None]


def of_items(items: Tensor, positions_per_item: int) -> Tensor:
    """The two-dimensional mask of transformers, int64 (B, S): 1 where a history (B, n) has an item."""
    return (items >= 0).repeat_interleave(positions_per_item, dim=1).long()
