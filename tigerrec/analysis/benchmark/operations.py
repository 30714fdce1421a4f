"""The arithmetic of an epoch and of a search: every matrix product, over what is really read, without any padding.

Counted are floating-point operations, two for a multiplication and its addition. Positions may be numbers or integer
arrays, one entry a history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerrec.models.base import ITEMS, LAST_ITEM
from tigerrec.models.t5 import T5

if TYPE_CHECKING:
    from tigerrec.data.batches import Examples


@dataclass(frozen=True)
class Sizes:
    """What decides how many operations a generator takes."""

    generator: T5  # its widths and depths
    vocab_size: int  # tokens that the output layer tells apart
    n_levels: int  # tokens an item

    @property
    def positions_per_item(self) -> int:
        """Encoder positions of one item."""
        return 1 if self.generator.history == ITEMS else self.n_levels

    @property
    def reads_one_position(self) -> bool:
        """Whether the decoder attends to a single position, which takes neither queries nor keys."""
        return self.generator.decoder_reads == LAST_ITEM and self.positions_per_item == 1

    @property
    def heads_width(self) -> int:
        """Width of all attention heads together."""
        return self.generator.num_heads * self.generator.d_kv


def encoder(sizes: Sizes, positions: Any) -> Any:
    """Operations by which the encoder reads a history, each position seeing each."""
    generator, width = sizes.generator, sizes.heads_width
    products = 4 * generator.d_model * width + 2 * generator.d_model * generator.d_ff
    layer = positions * products + 2 * positions**2 * width
    inputs = positions * sizes.n_levels * generator.d_model**2 if generator.history == ITEMS else 0
    return 2 * (generator.num_layers * layer + inputs)


def cross_keys(sizes: Sizes, positions: Any) -> Any:
    """Operations that make the decoder's keys and values; of a single position, values and what they add to a token."""
    return 2 * sizes.generator.decoder_layers * 2 * positions * sizes.generator.d_model * sizes.heads_width


def decoder(sizes: Sizes, tokens: Any, token_pairs: Any, cross_pairs: Any) -> Any:
    """Operations of the decoder and its output layer, for the tokens fed, the pairs of a token and a token that it
    attends to, and the pairs of a token and an encoder position that it attends to."""
    generator, width = sizes.generator, sizes.heads_width
    products, pairs = (4, token_pairs) if sizes.reads_one_position else (6, token_pairs + cross_pairs)
    layer = tokens * (products * generator.d_model * width + 2 * generator.d_model * generator.d_ff) + 2 * pairs * width
    return 2 * (generator.decoder_layers * layer + tokens * generator.d_model * sizes.vocab_size)


def epoch(sizes: Sizes, examples: Examples) -> int:
    """Operations of one epoch; each product of the forward pass takes two in the backward pass."""
    n_targets = int(examples.n_targets.sum())
    if sizes.generator.decoder_reads == LAST_ITEM:
        items_read = items_visible = n_targets
    else:
        fewest, most = examples.first - examples.start, examples.lengths
        items_read, items_visible = int(most.sum()), int((examples.n_targets * (fewest + most) // 2).sum())
    tokens, cross_pairs = n_targets * sizes.n_levels, items_visible * sizes.positions_per_item * sizes.n_levels
    forward = int(encoder(sizes, examples.lengths * sizes.positions_per_item).sum())
    forward += cross_keys(sizes, items_read * sizes.positions_per_item)
    forward += decoder(sizes, tokens, tokens * sizes.n_levels, cross_pairs)
    if sizes.generator.item_loss:
        forward += 2 * n_targets * sizes.generator.d_model * len(np.unique(examples.items))
    return 3 * forward


def search(sizes: Sizes, lengths: np.ndarray, beams: Sequence[int]) -> int:
    """Operations of ranking for histories of `lengths` (n,), with `beams` tokens fed at each level, each of which sees
    its ancestors and itself."""
    items_read = np.ones_like(lengths) if sizes.generator.decoder_reads == LAST_ITEM else lengths
    positions = items_read * sizes.positions_per_item
    token_pairs = sum(beam * (level + 1) for level, beam in enumerate(beams))
    operations = encoder(sizes, lengths * sizes.positions_per_item) + cross_keys(sizes, positions)
    return int((operations + decoder(sizes, sum(beams), token_pairs, sum(beams) * positions)).sum())
