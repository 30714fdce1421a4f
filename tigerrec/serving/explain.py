"""How a list came about: the branches of the trie that the beam kept, and the path of each item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tigerrec.data.batches import padded
from tigerrec.models.base import Beams, Decoder
from tigerrec.runtime.devices import product_type
from tigerrec.search.beam_search import beam_search
from tigerrec.serving.recommender import SMALLEST_BEAM, Recommender
from tigerrec.serving.rules import ALL, Rules


@dataclass(frozen=True)
class Branch:
    """A prefix that the beam kept: its codes, its probability, and how many items lie below it."""

    codes: tuple[int, ...]
    probability: float
    n_items: int


class Recorder:
    """A decoder that keeps what the search asked it and what it answered."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.asked: list[tuple[Beams, Tensor]] = []

    def step(self, beams: Beams) -> Tensor:
        """As in `Decoder.step`."""
        found = self.decoder.step(beams)
        self.asked.append((beams, found))
        return found


def branches(
    recommender: Recommender, history: Any, k: int = 10, mask_seen: bool = True, rules: Rules = ALL
) -> list[list[Branch]]:
    """For each level the prefixes that the beam kept for a history, the most probable first; none where no item of it
    is known. Raises RuleError if the rules leave no item."""
    known = recommender.catalogue.known([history])[0]
    if not len(known):
        return []
    _, searcher = recommender.within(rules)
    model, trie = searcher.model, searcher.trie
    seen = None
    if mask_seen:
        items = torch.from_numpy(known.astype("int64")).to(model.device)
        seen = trie.closed(torch.zeros_like(items), items)
    with torch.inference_mode():
        read = padded([known[-model.facts["max_items"] :]]).to(model.device)
        recorder = Recorder(searcher.reader.decoder(read, product_type(model.device, searcher.precision)))
        found, scores = beam_search(recorder, trie, 1, beam_size=max(k, SMALLEST_BEAM), closed=seen)
    levels, log_probabilities = [], torch.zeros(1, device=model.device)
    for depth in range(1, trie.n_levels):
        (before, answers), beams = recorder.asked[depth - 1], recorder.asked[depth][0]
        parents, nodes = beams.ancestors[0, :, depth - 1], beams.nodes[0]
        is_child = before.exists[0, parents] & (before.children[0, parents] == nodes[:, None])  # of dead beams none is
        of_children = answers[0, parents].masked_fill(~is_child, -torch.inf)
        log_probabilities = log_probabilities[parents] + of_children.max(dim=1).values
        alive = trie.n_items_below[depth - 1][nodes] > 0
        if seen is not None:
            alive &= ~trie.is_closed(depth, seen, torch.zeros_like(nodes), nodes)
        levels.append(_kept(recommender, trie, depth, nodes, log_probabilities.masked_fill(~alive, -torch.inf)))
    last = trie.path[trie.n_levels - 1][found[0].clamp(min=0)]
    levels.append(_kept(recommender, trie, trie.n_levels, last[found[0] >= 0], scores[0][found[0] >= 0]))
    return levels


def _kept(recommender: Recommender, trie: Any, depth: int, nodes: Tensor, log_probabilities: Tensor) -> list[Branch]:
    """The branches of some nodes of a depth, each once, without those of probability 0."""
    item_of_node = torch.zeros(len(trie.token[depth - 1]), dtype=torch.int64, device=nodes.device)
    item_of_node[trie.path[depth - 1]] = torch.arange(trie.path.shape[1], device=nodes.device)
    below = trie.n_items_below[depth - 1]
    found = {}
    for node, score in zip(nodes.tolist(), log_probabilities.exp().tolist(), strict=True):
        if score > 0:
            codes = tuple(recommender.catalogue.codes[int(item_of_node[node]), :depth].tolist())
            found[codes] = Branch(codes, score, int(below[node]))
    return sorted(found.values(), key=lambda branch: -branch.probability)
