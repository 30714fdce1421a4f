"""Recommendations for histories of item ids, from a trained run or an exported folder."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerrec.config import ConfigError
from tigerrec.embed.base import few
from tigerrec.search.options import CODES, HYBRID, Scores, Scoring, check_scoring, item_weight
from tigerrec.search.ranking import by_popularity
from tigerrec.serving.catalogue import EXPORT, SHOWN_IDS, Catalogue, RecommendError, ids_of, read_catalogue
from tigerrec.serving.hub import model_folder
from tigerrec.serving.rules import ALL, RuleError, Rules, allowed_items
from tigerrec.storage.folders import upstream_folders
from tigerrec.storage.manifests import read_manifest
from tigerrec.storage.stages import open_stage
from tigerrec.text import shortened
from tigerrec.tokenizers.ids import TokenLayout, group_codes, load_semantic_ids

if TYPE_CHECKING:
    from tigerrec.search.searcher import Searcher

logger = logging.getLogger(__name__)

SMALLEST_BEAM = 20
KEPT_RULES = 16  # whose searchers are kept


@dataclass(frozen=True)
class Recommendation:
    """One recommended item; `score` is what it was ranked by: the log-probability of its Semantic ID, or what
    `Scoring` says; of a `fallback`, given where no item of a history is known, the log of its share in what was
    bought."""

    item_id: str
    title: str | None
    score: float
    semantic_id: tuple[int, ...]
    fallback: bool = False


@dataclass(frozen=True)
class Lists:
    """Recommendations for some histories, before items are named: item indices int32 (n, k), -1 where a list is
    shorter; scores float32 (n, k); and which are fallbacks, bool (n,)."""

    items: np.ndarray
    scores: np.ndarray
    fallback: np.ndarray


def check_run(folder: Path) -> None:
    """Refuse a folder in which no stage was finished, or another than a user means. Raises RecommendError, which says
    which folder to give."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.stage not in ("train", EXPORT):
        holds = "holds no finished stage" if manifest is None else f"holds the stage '{manifest.stage}'"
        raise RecommendError(
            f"{folder} {holds if folder.is_dir() else 'does not exist'}; give the folder that `tigerrec train` "
            "printed, or an export."
        )


@dataclass(frozen=True, repr=False)
class Recommender:
    """A trained generator with the catalogue that it ranks, and the fingerprint of both."""

    searcher: Searcher
    catalogue: Catalogue
    fingerprint: str = ""
    _searchers: OrderedDict[Rules, tuple[np.ndarray, Searcher]] = field(default_factory=OrderedDict)

    @staticmethod
    def from_pretrained(
        folder: Path | str, device: str = "auto", scores: Scores | None = None, cold_places: int = 0
    ) -> Recommender:
        """The recommender of a train stage (with its pipeline folders above it) or of an exported folder.

        Args:
            folder: its path; or, where nothing is there, `owner/name` or `owner/name@revision` on the Hugging Face Hub,
                downloaded once.
            device: `cpu`, `cuda`, or `auto`: the GPU where there is one.
            scores: as in `Scoring`; None = `hybrid` of a generator with an item head, else `codes`.
            cold_places: as in `Scoring`, for a generator that reads item vectors.

        Raises:
            ArtifactError: the folder is neither, or something in it is damaged.
            HubError: the model cannot be downloaded, or what the hub has is no export or damaged.
            ConfigError: there are no such scores, the generator does not give them, or it has no vectors by which to
                know new items.
        """
        from tigerrec.models.loading import load_generator
        from tigerrec.runtime.devices import resolve_device
        from tigerrec.search.searcher import Searcher

        folder = model_folder(folder)
        check_run(folder)
        manifest = open_stage(folder, "train", EXPORT)
        own = {"prepare": folder, "tokenize": folder}
        folders = own if manifest.stage == EXPORT else upstream_folders(folder)
        catalogue = read_catalogue(folders["prepare"], folders["tokenize"], folder, manifest)
        model = load_generator(folder, load_semantic_ids(folders["tokenize"])).to(resolve_device(device))
        logger.info("read the generator and %s items from %s", f"{len(catalogue):,}", folder)
        scores = scores or (HYBRID if model.scores_items else CODES)
        check_scoring(scores, cold_places, scores_items=model.scores_items, reads_vectors=model.reads_vectors)
        try:
            scoring = Scoring(scores, item_weight(folder, scores), cold_places)
        except ValueError as error:
            raise ConfigError(f"{error}.") from None
        popularity = catalogue.counts if catalogue.may_share else None
        searcher = Searcher.of(model, "fp32", popularity, scoring)
        return Recommender(searcher, catalogue, manifest.content)

    @property
    def item_ids(self) -> list[str]:
        """The data set's own ids by item index."""
        return self.catalogue.item_ids

    def with_items(
        self,
        item_ids: Sequence[str],
        codes: np.ndarray,
        titles: Sequence[str | None] | None = None,
        vectors: np.ndarray | None = None,
        categories: Sequence[list[str]] | None = None,
    ) -> Recommender:
        """A recommender of these and of new items with codes from `new_semantic_ids`, int (n, n_levels), and vectors,
        float32 (n, D), where the generator reads vectors, without training; the ids of these stay. Raises
        TigerrecError if there is no new item, one is known already or comes twice, its codes are those of another
        where items may not share them, or ids, codes, titles and categories do not fit together."""
        n_items = len(item_ids)
        titles = [None] * n_items if titles is None else titles
        categories = [[]] * n_items if categories is None else categories
        layout = TokenLayout(*(tuple(self.searcher.model.facts[name]) for name in ("code_sizes", "level_sizes")))
        fits = len(titles) == len(categories) == n_items > 0 and codes.shape == (n_items, layout.n_levels)
        if not fits or (codes < 0).any() or (codes >= layout.level_sizes).any():
            raise RecommendError(
                f"New items need an id, a title and codes below {layout.level_sizes} each; got {n_items} ids and "
                f"codes of shape {codes.shape}."
            )
        size = self.searcher.model.facts.get("vector_size", 0)
        if size and (vectors is None or vectors.shape != (n_items, size)):
            raise RecommendError(
                f"The generator reads a vector of {size} numbers of each item; give those of the new items, float32 "
                f"({n_items}, {size}), as `vectors`."
            )
        catalogue = self.catalogue.with_items(item_ids, codes, titles, categories)
        if not catalogue.may_share:
            groups, sizes = group_codes(catalogue.codes)
            n_sharing = sizes[groups[len(self.catalogue) :]]
            shared = [item_id for item_id, count in zip(item_ids, n_sharing, strict=True) if count > 1]
            if shared:
                raise RecommendError(
                    f"{len(shared)} new items have the Semantic ID of another item ({few(shared, SHOWN_IDS)}); get "
                    "their codes from `new_semantic_ids`, all at once."
                )
        return Recommender(self.searcher.with_items(layout.to_tokens(codes), vectors), catalogue, self.fingerprint)

    def recommend(
        self, item_ids: Sequence[str], k: int = 10, mask_seen: bool = True, rules: Rules = ALL
    ) -> list[Recommendation]:
        """The k best items to follow a history that the rules allow, best first; fewer where there are fewer. The
        history begins with the oldest item; ids are taken as the data set's reader takes them (a whole number as text,
        no outer spaces), unknown ones are ignored with a warning, and with `mask_seen` none of its items is
        recommended. Where no item is known, the list is a fallback: what was bought most. Raises RecommendError if k is
        no whole number from 1 up, RuleError if the rules leave no item."""
        return self.recommend_batch([item_ids], k, mask_seen, rules)[0]

    def recommend_batch(
        self, histories: Sequence[Sequence[str]], k: int = 10, mask_seen: bool = True, rules: Rules = ALL
    ) -> list[list[Recommendation]]:
        """`recommend` for many histories at once; a warning names those without a known item. Raises RecommendError if
        k is no whole number from 1 up, or `histories` is no collection, RuleError if the rules leave no item."""
        if isinstance(histories, str) or not isinstance(histories, Iterable):
            told = "one text" if isinstance(histories, str) else shortened(repr(histories))
            raise RecommendError(f"The histories are {told}; give a list of lists of item ids.")
        found = self.lists(self.catalogue.known(histories), k, mask_seen, rules)
        if found.fallback.any():
            rows = list(map(str, np.flatnonzero(found.fallback)))
            logger.warning(
                "%d of %d histories have no item of the catalogue and get what was bought most: rows %s",
                len(rows), len(found.fallback), few(rows, SHOWN_IDS),
            )  # fmt: skip
        return self.named(found)

    def named(self, found: Lists) -> list[list[Recommendation]]:
        """Lists with their items by name."""
        return [
            [self._recommendation(*pair, fallback) for pair in zip(items, scores, strict=True) if pair[0] >= 0]
            for items, scores, fallback in zip(
                found.items.tolist(), found.scores.tolist(), found.fallback.tolist(), strict=True
            )
        ]

    def lists(
        self,
        known: Sequence[np.ndarray],
        k: int,
        mask_seen: bool = True,
        rules: Rules = ALL,
        progress: str = "",
        users: np.ndarray | None = None,
    ) -> Lists:
        """`recommend_batch` for histories of item indices.

        Args:
            progress: the label of a bar on stderr, none where empty.
            users: whose they are, numbers in the model's own data, int64 (n,), where that is known.
        """
        k = min(whole_number(k), len(self.catalogue))
        allowed, searcher = self.within(rules)
        items = np.full((len(known), k), -1, np.int32)
        scores = np.full((len(known), k), -np.inf, np.float32)
        fallback = np.array([not len(history) for history in known], bool)
        rows = np.flatnonzero(~fallback)
        if len(rows):
            items[rows], scores[rows] = searcher.rank(
                [known[int(row)] for row in rows], k=k, beam_size=max(k, SMALLEST_BEAM), mask_seen=mask_seen,
                progress=progress, users=None if users is None else users[rows],
            )  # fmt: skip
        if fallback.any():
            items[fallback], scores[fallback] = self._most_popular(k, allowed)
        return Lists(items, scores, fallback)

    def within(self, rules: Rules) -> tuple[np.ndarray | None, Searcher]:
        """The items that rules allow, None for all, and a searcher of these; those of the newest rules are kept. Raises
        RuleError if they are no rules, or leave no item."""
        if not isinstance(rules, Rules):
            raise RuleError(f"{shortened(repr(rules))} are no rules; make them by `tigerrec.Rules.of(allow=[<id>])`.")
        if not rules:
            return None, self.searcher
        found = self._searchers.get(rules)
        if found is None:
            allowed = allowed_items(rules, self.catalogue)
            found = self._searchers[rules] = allowed, self.searcher.within(allowed)
            if len(self._searchers) > KEPT_RULES:
                self._searchers.popitem(last=False)
        return found

    def _most_popular(self, k: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """What was bought most of the items allowed, int32 (k,), -1 where there are fewer, and scores float32 (k,)."""
        counts = self.catalogue.counts
        forbidden = np.empty(0, np.int64) if allowed is None else np.flatnonzero(~allowed)
        items, scores = by_popularity(counts)([forbidden], k=k, mask_seen=True)
        return items[0], scores[0]

    def report(self, item_ids: Sequence[str], k: int = 10, mask_seen: bool = True, rules: Rules = ALL) -> str:
        """A history and its recommendations as text to read: item id, score, Semantic ID and title."""
        recommended = self.recommend(item_ids, k, mask_seen, rules)
        numbers = self.catalogue.numbers
        known = [numbers[item_id] for item_id in ids_of(item_ids) if item_id in numbers]
        history = [self._recommendation(item, float("nan")) for item in known]

        def line(rank: int | str, item: Recommendation, score: str) -> str:
            semantic_id = "-".join(map(str, item.semantic_id))
            return f"{rank:>3}  {item.item_id}  {score:>8}  {semantic_id:<16}  {shortened(item.title or '(no title)')}"

        scores = self.searcher.scoring.scores
        of_generator = f"recommended, with {'log-probabilities' if scores == CODES else f'scores ({scores})'}:"
        is_fallback = any(item.fallback for item in recommended)
        heading = "no item of the history is known; bought most, with the log of its share:"
        lines = ["history:", *(line("", item, "") for item in history), heading if is_fallback else of_generator]
        lines += [line(rank, item, f"{item.score:.3f}") for rank, item in enumerate(recommended, start=1)]
        return "\n".join(lines)

    def _recommendation(self, item: int, score: float, fallback: bool = False) -> Recommendation:
        of = self.catalogue
        return Recommendation(of.item_ids[item], of.titles[item], score, tuple(of.codes[item].tolist()), fallback)


def whole_number(k: Any) -> int:
    """How many items are asked for. Raises RecommendError if that is no whole number from 1 up."""
    count = int(k) if isinstance(k, float) and k.is_integer() else k
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise RecommendError(f"k must be a whole number from 1 up, got {k!r}; give for instance 10.")
    return int(count)
