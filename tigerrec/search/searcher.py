"""A generator and its catalogue, ready to rank items for histories."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch
from tqdm import tqdm

from tigerrec.data.batches import NO_ITEM, length_sorted_batches, padded
from tigerrec.models.base import Decoder, HistoryModel, Reader, ReadsUsers
from tigerrec.runtime.devices import product_type
from tigerrec.search.options import CODES_ALONE, Scoring
from tigerrec.search.scoring import lists
from tigerrec.tokenizers.trie import Trie, build_trie

ITEM_SCORES_AT_ONCE = 2**25


@dataclass(frozen=True)
class Searcher:
    """A generator with its catalogue, ready to rank items for histories.

    Attributes:
        model: reads histories.
        trie: of the catalogue's tokens.
        precision: `auto`, `fp32` or `bf16`.
        popularity: int (I,), how often training histories hold each item, which orders items that share an id; without
            it none may.
    """

    model: HistoryModel
    trie: Trie
    precision: str = "auto"
    popularity: np.ndarray | None = None
    scoring: Scoring = CODES_ALONE

    @cached_property
    def reader(self) -> Reader:
        """The model with what it holds of the trie's nodes."""
        with torch.inference_mode():
            return self.model.along(self.trie)

    @staticmethod
    def of(
        model: HistoryModel,
        precision: str = "auto",
        popularity: np.ndarray | None = None,
        scoring: Scoring = CODES_ALONE,
    ) -> Searcher:
        """A searcher over all items of a model, on its device."""
        trie = build_trie(model.tokens.cpu().numpy(), popularity).to(model.device)
        return Searcher(model, trie, precision, popularity, scoring)

    def with_items(self, tokens: np.ndarray, vectors: np.ndarray | None = None) -> Searcher:
        """A searcher over these and further items, of tokens int64 (n, T), that training never saw."""
        popularity = None if self.popularity is None else np.pad(self.popularity, (0, len(tokens)))
        return Searcher.of(self.model.with_items(tokens, vectors), self.precision, popularity, self.scoring)

    def within(self, allowed: np.ndarray) -> Searcher:
        """A searcher that finds no items but those allowed, bool (I,), by the same probabilities."""
        found = dataclasses.replace(self, trie=self.trie.within(torch.from_numpy(allowed).to(self.model.device)))
        found.__dict__["reader"] = self.reader  # its nodes are the same
        return found

    def decoder(self, histories: Sequence[np.ndarray], users: np.ndarray | None = None) -> Decoder:
        """What a search asks after some histories, `users` as in `rank`; a new one is needed for each search."""
        device = self.model.device
        recent = padded([history[-self.model.facts["max_items"] :] for history in histories]).to(device)
        reader = self.reader
        if users is not None and self.model.reads_users:
            reader = cast(ReadsUsers, reader).of_users(torch.from_numpy(users.astype(np.int64)).to(device))
        return reader.decoder(recent, product_type(device, self.precision))

    def rank(
        self,
        histories: Sequence[np.ndarray],
        *,
        k: int,
        beam_size: int,
        mask_seen: bool,
        batch_tokens: int = 8192,
        progress: str = "",
        seen: Sequence[np.ndarray] | None = None,
        users: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items for each history, as in `ranking.Rank`, scored as `scoring` says.

        Args:
            mask_seen: recommend no item of the whole history, of which the model may read the last items only.
            batch_tokens: positions of histories and beams searched at once.
            progress: the label of a progress bar on stderr; none where empty.
            seen: the items of each user that `mask_seen` masks; those of the history by default.
            users: whose histories they are, int64 (n,), numbers in the prepared data; models that read users take them
                for nobody's where it is left out.

        Raises:
            ValueError: k is larger than the beam, or a history is empty.
        """
        if not 1 <= k <= beam_size:
            raise ValueError(f"k must be between 1 and the beam size {beam_size}, got {k}")
        if any(len(history) == 0 for history in histories):
            raise ValueError("a history is empty; give at least one item")
        items = np.full((len(histories), k), NO_ITEM, np.int32)
        scores = np.full((len(histories), k), -np.inf, np.float32)
        max_items = self.model.facts["max_items"]
        lengths = np.array([min(len(history), max_items) for history in histories], np.int64)
        hidden = None if progress else True
        with tqdm(total=len(histories), desc=progress, unit="user", leave=False, disable=hidden) as bar:
            sizes = lengths * self.model.positions_per_item + beam_size
            if self.scoring.reads_items:  # each user has a score of every item
                sizes = np.maximum(sizes, batch_tokens * len(self.model.tokens) // ITEM_SCORES_AT_ONCE)
            for batch in length_sorted_batches(sizes, batch_tokens):
                masked = [(histories if seen is None else seen)[row] for row in batch] if mask_seen else None
                of_batch = None if users is None else users[batch]
                listed, listed_scores = self._rank_batch(
                    [histories[row] for row in batch], k, beam_size, masked, of_batch
                )
                width = min(k, listed.shape[1])
                items[batch, :width], scores[batch, :width] = listed[:, :width], listed_scores[:, :width]
                bar.update(len(batch))
        return items, scores

    def _rank_batch(
        self,
        histories: list[np.ndarray],
        k: int,
        beam_size: int,
        masked: list[np.ndarray] | None,
        users: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        device = self.model.device
        if masked is None:
            seen = None
        else:
            rows = np.repeat(np.arange(len(masked)), [len(items) for items in masked])
            items = np.concatenate(masked).astype(np.int64)
            seen = torch.from_numpy(rows).to(device), torch.from_numpy(items).to(device)
        with torch.inference_mode():
            decoder = self.decoder(histories, users)
            listed, scores = lists(decoder, self.trie, len(histories), beam_size, seen, self.scoring, k)
        return listed.cpu().numpy(), scores.cpu().numpy()
