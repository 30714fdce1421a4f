"""A trie in which every token may follow every prefix, for a beam search that nothing keeps to the catalogue."""

from __future__ import annotations

import torch
from torch import Tensor

from tigerrec.analysis.audit.run import NotApplicableError
from tigerrec.tokenizers.ids import TokenLayout
from tigerrec.tokenizers.trie import Trie

UNASSIGNED = -1  # a Semantic ID that no item has
MALFORMED = -2  # tokens that are no Semantic ID: one of them belongs to another level, or is padding


class LastTokens:
    """The last token of each prefix; a prefix's number is its tokens as digits."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __getitem__(self, nodes: Tensor) -> Tensor:
        return nodes % self.vocab_size


class OpenTrie:
    """All sequences of tokens, in the form in which the search walks a `Trie`; what is no Semantic ID of an item leads
    to `UNASSIGNED` or `MALFORMED`. `trie` and `tokens` (n_items, T) are those of the catalogue.

    Raises:
        NotApplicableError: there are too many sequences to number.
    """

    allowed = None  # all may be found

    def __init__(self, trie: Trie, tokens: Tensor, layout: TokenLayout) -> None:
        self.trie, self.vocab_size, self.n_levels = trie, layout.vocab_size, trie.n_levels
        if self.vocab_size**self.n_levels >= 2**63:
            raise NotApplicableError(
                f"There are too many sequences of {self.n_levels} of {self.vocab_size} tokens to number them."
            )
        device = trie.leaf_item.device
        self.first = torch.from_numpy(layout.offsets).to(device)
        self.sizes = torch.tensor(layout.level_sizes, device=device)
        self.powers = self.vocab_size ** torch.arange(self.n_levels - 1, -1, -1, device=device)
        self.token = (LastTokens(self.vocab_size),) * self.n_levels
        self.leaves = torch.unique((tokens.to(device) * self.powers).sum(1))  # in the order of the trie's leaves
        self.leaf_item = torch.cat([trie.leaf_item, torch.tensor([UNASSIGNED, MALFORMED], device=device)])

    def children(self, depth: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """As `Trie.children`: every token may follow; below a whole sequence are its items, or what it is instead."""
        if depth == self.n_levels:
            return self._items(nodes)
        children = nodes.unsqueeze(-1) * self.vocab_size + torch.arange(self.vocab_size, device=nodes.device)
        return children, torch.ones_like(children, dtype=torch.bool)

    def _items(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        place = torch.searchsorted(self.leaves, nodes).clamp(max=len(self.leaves) - 1)
        known = (self.leaves[place] == nodes).unsqueeze(-1)
        items, exists = self.trie.children(self.n_levels, torch.where(known[..., 0], place, 0))
        codes = nodes.unsqueeze(-1) // self.powers % self.vocab_size - self.first
        well_formed = ((codes >= 0) & (codes < self.sizes)).all(-1, keepdim=True)
        instead = len(self.trie.leaf_item) + (~well_formed).long()
        first = torch.arange(items.shape[-1], device=nodes.device) == 0
        return torch.where(first & ~known, instead, items), torch.where(known, exists, first)
