"""A `TreeT5` along a trie: the probability of each child among its siblings, and of each item among all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from tigerrec.models.base import Beams
from tigerrec.models.dropout import Dropout
from tigerrec.tokenizers.trie import Trie

if TYPE_CHECKING:
    from tigerrec.models.t5_tree_model import TreeT5

BEAMS_A_PRODUCT = 4  # from so many beams a node on, one matrix product a node is faster than a dot product a child


class TreeReader:
    """A model with the embedding of each node of a trie; the d of its members stand side by side, M * d.

    Attributes:
        table: float32 (I, M * d): each member's embedding of every item, by which it reads and scores them.
        unseen_items: int64 (n,): those that training never saw.
        nodes: for each depth 1..T float32 (nodes, M * d): what a state is multiplied by to score a node.
        prefixes: for each depth 0..T - 1 float32 (nodes, M * d): what the decoder's blocks read of a prefix, where it
            has some.
    """

    def __init__(self, model: TreeT5, trie: Trie) -> None:
        self.model = model
        self.table = torch.cat([model.item_table(member, torch.float32) for member in model.members], dim=1)
        self.unseen_items = model.unseen_items()
        self.nodes: list[Tensor] = []
        self.prefixes = [torch.zeros(1, self.table.shape[1], device=model.device)]
        for depth, token in enumerate(trie.token):
            an_item = torch.empty_like(token)
            an_item[trie.path[depth]] = torch.arange(trie.path.shape[1], device=token.device)
            rows = model.row_of_item[an_item, depth]
            self.nodes.append(torch.cat([member.nodes(token, rows) for member in model.members], dim=1))
            if model.facts["decoder_layers"]:
                parents = torch.repeat_interleave(trie.first_child[depth].diff())
                self.prefixes.append(self.prefixes[-1][parents] + self.nodes[-1])

    def decoder(self, items: Tensor, dtype: torch.dtype) -> TreeDecoder:
        """A decoder that has read histories of item indices (B, n)."""
        members = self.model.members
        users, last = torch.arange(len(items), device=items.device), (items >= 0).sum(1) - 1
        states = [
            self.model.encode(member, items, table, dtype, Dropout(0.0))[users, last]
            for member, table in zip(members, self.table.chunk(len(members), dim=1), strict=True)
        ]
        return TreeDecoder(self, states, dtype)


class TreeDecoder:
    """A model that has read the histories of some users: their states, of each member float32 (B, d)."""

    def __init__(self, reader: TreeReader, states: list[Tensor], dtype: torch.dtype) -> None:
        self.reader, self.states, self.dtype = reader, states, dtype

    def step(self, beams: Beams) -> Tensor:
        """The log-probabilities of children among their siblings, as in `Decoder.step`."""
        members = self.reader.model.members
        by_member = [states[:, None].expand(-1, beams.nodes.shape[1], -1) for states in self.states]
        if self.reader.model.facts["decoder_layers"]:
            prefixes = self.reader.prefixes[beams.depth][beams.nodes].chunk(len(members), dim=-1)
            for number, member in enumerate(members):
                for block in member.prefix_blocks:
                    by_member[number] = block(by_member[number], prefixes[number], self.dtype, Dropout(0.0))
        states = torch.cat(by_member, dim=-1).flatten(0, 1) / len(members)
        scores = child_scores(states, self.reader.nodes[beams.depth], beams)
        return scores.view(beams.children.shape).masked_fill(~beams.exists, -torch.inf).log_softmax(-1)

    def item_scores(self) -> Tensor:
        """The log-probabilities of items, as in `ScoresItems.item_scores`."""
        logits = functional.linear(torch.cat(self.states, dim=1) / len(self.states), self.reader.table)
        if not self.reader.model.reads_vectors:
            logits[:, self.reader.unseen_items] = -torch.inf
        return logits.log_softmax(-1)

    def unseen_items(self) -> Tensor:
        """The items that training never saw, as in `ScoresItems.unseen_items`."""
        return self.reader.unseen_items


def child_scores(states: Tensor, nodes: Tensor, beams: Beams) -> Tensor:
    """The product of each beam's state and each of its children, float32 (B * K, C), any number where there is none.

    Args:
        states: float32 (B * K, d).
        nodes: float32 (nodes, d), of all children's depth.
    """
    parents, children, exists = beams.nodes.flatten(), beams.children.flatten(0, 1), beams.exists.flatten(0, 1)
    scores = states.new_zeros(children.shape)
    order = parents.argsort(stable=True)
    present, counts = torch.unique_consecutive(parents[order], return_counts=True)
    if len(present) * BEAMS_A_PRODUCT > len(parents):
        beam, place = exists.nonzero(as_tuple=True)
        scores[beam, place] = (states[beam] * nodes[children[beam, place]]).sum(1)
        return scores
    ends = counts.cumsum(0)
    leaders = order[ends - 1]
    first, sizes = children[leaders, 0], exists[leaders].sum(1)
    for start, end, low, size in zip(*(x.tolist() for x in (ends - counts, ends, first, sizes)), strict=True):
        of_node = order[start:end]
        scores[of_node, :size] = states[of_node] @ nodes[low : low + size].T
    return scores
