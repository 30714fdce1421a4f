"""Recommendations for histories of item ids, from a trained run or an exported folder."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerrec import TigerrecError
from tigerrec.config import ConfigError
from tigerrec.data.histories import load_histories, read_items, training_counts
from tigerrec.data.raw import Unreadable, plain_id
from tigerrec.embed.base import few
from tigerrec.search.options import CODES, HYBRID, Scores, Scoring, check_scoring, item_weight
from tigerrec.storage.contracts import contract, read_arrays
from tigerrec.storage.folders import upstream_folders
from tigerrec.storage.manifests import StaleError, read_manifest
from tigerrec.storage.stages import open_stage
from tigerrec.text import shortened
from tigerrec.tokenizers.ids import TokenLayout, group_codes, load_semantic_ids

if TYPE_CHECKING:
    from tigerrec.search.searcher import Searcher

logger = logging.getLogger(__name__)

EXPORT = "export"
POPULARITY = "popularity.safetensors"
SMALLEST_BEAM = 20
SHOWN_IDS = 10


class RecommendError(TigerrecError):
    """A request that cannot be answered: no known item, or no items asked for."""


@dataclass(frozen=True)
class Recommendation:
    """One recommended item; `score` is what it was ranked by: the log-probability of its Semantic ID, or what
    `Scoring` says."""

    item_id: str
    title: str | None
    score: float
    semantic_id: tuple[int, ...]


def check_run(folder: Path) -> None:
    """Refuse a folder in which no stage was finished, or another than a user means. Raises RecommendError, which says
    which folder to give."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.stage not in ("train", EXPORT):
        holds = "holds no finished stage" if manifest is None else f"holds the stage '{manifest.stage}'"
        raise RecommendError(
            f"{folder} {holds if folder.is_dir() else 'does not exist'}; give the folder that `tigerrec train` "
            "printed, or an export, as `--run <folder>`."
        )


def read_popularity(exported: Path, n_items: int) -> np.ndarray:
    """How often training histories hold each item of an export whose items may share Semantic IDs, int64 (n_items,).
    Raises DamagedError if the file holds anything else."""
    arrays = read_arrays(exported, POPULARITY, {"training_counts": ("int64", (n_items,))})
    counts: np.ndarray = arrays["training_counts"]
    with contract(exported, POPULARITY):
        if (counts < 0).any():
            raise ValueError("it has negative counts")
    return counts


def _ids_of(history: Any) -> list[str]:
    """The ids of a history as the data set's reader takes them, what is none as it prints; no ids of what is no
    history."""
    given = [history] if isinstance(history, str) or not isinstance(history, Iterable) else history

    def id_of(value: Any) -> str:
        try:
            return plain_id(value.item() if isinstance(value, np.generic) else value, "item id")
        except Unreadable:
            return str(value)

    return [] if history is None or isinstance(history, float) else [id_of(value) for value in given]


@dataclass(frozen=True, repr=False)
class Recommender:
    """A trained generator with the catalogue that it ranks: Semantic IDs, int32 (n_items, n_levels), the data set's own
    ids and titles by item index, and the item index (`numbers`) of each id."""

    searcher: Searcher
    codes: np.ndarray
    item_ids: list[str]
    titles: list[str | None]
    numbers: dict[str, int]

    @staticmethod
    def from_pretrained(
        folder: Path | str, device: str = "auto", scores: Scores | None = None, cold_places: int = 0
    ) -> Recommender:
        """The recommender of a train stage (with its pipeline folders above it) or of an exported folder.

        Args:
            device: `cpu`, `cuda`, or `auto`: the GPU where there is one.
            scores: as in `Scoring`; None = `hybrid` of a generator with an item head, else `codes`.
            cold_places: as in `Scoring`, for a generator that reads item vectors.

        Raises:
            ArtifactError: the folder is neither, or something in it is damaged.
            ConfigError: there are no such scores, the generator does not give them, or it has no vectors by which to
                know new items.
        """
        from tigerrec.models.loading import load_generator
        from tigerrec.runtime.devices import resolve_device
        from tigerrec.search.searcher import Searcher

        folder = Path(folder)
        check_run(folder)
        exported = open_stage(folder, "train", EXPORT).stage == EXPORT
        folders = {"prepare": folder, "tokenize": folder} if exported else upstream_folders(folder)
        semantic_ids = load_semantic_ids(folders["tokenize"])
        items = read_items(folders["prepare"], {"title": "string?"})
        item_ids, titles, n_items = items["item_id"].to_pylist(), items["title"].to_pylist(), len(items)
        if n_items != len(semantic_ids.codes):
            raise StaleError(
                f"{folder} has {n_items} items and Semantic IDs for {len(semantic_ids.codes)}; export it again, or add "
                "`overwrite=embed`."
            )
        model = load_generator(folder, semantic_ids).to(resolve_device(device))
        logger.info("read the generator and %s items from %s", f"{n_items:,}", folder)
        popularity = None
        if semantic_ids.may_share:
            prepared = folders["prepare"]
            popularity = read_popularity(folder, n_items) if exported else training_counts(load_histories(prepared))
        scores = scores or (HYBRID if model.scores_items else CODES)
        check_scoring(scores, cold_places, scores_items=model.scores_items, reads_vectors=model.reads_vectors)
        try:
            scoring = Scoring(scores, item_weight(folder, scores), cold_places)
        except ValueError as error:
            raise ConfigError(f"{error}.") from None
        return Recommender(
            Searcher.of(model, "fp32", popularity, scoring),
            semantic_ids.codes,
            item_ids,
            titles,
            {item_id: number for number, item_id in enumerate(item_ids)},
        )

    def with_items(
        self,
        item_ids: Sequence[str],
        codes: np.ndarray,
        titles: Sequence[str | None] | None = None,
        vectors: np.ndarray | None = None,
    ) -> Recommender:
        """A recommender of these and of new items with codes from `new_semantic_ids`, int (n, n_levels), and vectors,
        float32 (n, D), where the generator reads vectors, without training; the ids of these stay. Raises
        RecommendError if there is no new item, one is known already or comes twice, its codes are those of another
        where items may not share them, or ids, codes and titles do not fit together."""
        ids, titles = list(item_ids), [None] * len(item_ids) if titles is None else list(titles)
        repeated = [item_id for item_id, count in Counter([*self.numbers, *ids]).items() if count > 1]
        layout = TokenLayout(*(tuple(self.searcher.model.facts[name]) for name in ("code_sizes", "level_sizes")))
        if repeated:
            raise RecommendError(
                f"{len(repeated)} new items are in the catalogue already or come twice "
                f"({few(repeated, SHOWN_IDS)}); leave them out."
            )
        fits = len(titles) == len(ids) > 0 and codes.shape == (len(ids), layout.n_levels)
        if not fits or (codes < 0).any() or (codes >= layout.level_sizes).any():
            raise RecommendError(
                f"New items need an id, a title and codes below {layout.level_sizes} each; got {len(ids)} ids and "
                f"codes of shape {codes.shape}."
            )
        size = self.searcher.model.facts.get("vector_size", 0)
        if size and (vectors is None or vectors.shape != (len(ids), size)):
            raise RecommendError(
                f"The generator reads a vector of {size} numbers of each item; give those of the new items, float32 "
                f"({len(ids)}, {size}), as `vectors`."
            )
        all_codes = np.concatenate([self.codes, codes]).astype(np.int32)
        if self.searcher.popularity is None:
            groups, sizes = group_codes(all_codes)
            n_sharing = sizes[groups[len(self.codes) :]]
            shared = [item_id for item_id, count in zip(ids, n_sharing, strict=True) if count > 1]
            if shared:
                raise RecommendError(
                    f"{len(shared)} new items have the Semantic ID of another item ({few(shared, SHOWN_IDS)}); get "
                    "their codes from `new_semantic_ids`, all at once."
                )
        all_ids = self.item_ids + ids
        return Recommender(
            self.searcher.with_items(layout.to_tokens(codes), vectors),
            all_codes,
            all_ids,
            self.titles + titles,
            {item_id: number for number, item_id in enumerate(all_ids)},
        )

    def recommend(self, item_ids: Sequence[str], k: int = 10, mask_seen: bool = True) -> list[Recommendation]:
        """The k best items to follow a history, best first; fewer where the catalogue is smaller. The
        history begins with the oldest item; ids are taken as the data set's reader takes them (a whole number as text,
        no outer spaces), unknown ones are ignored with a warning, and with `mask_seen` none of its items is
        recommended. Raises RecommendError if k is no whole number from 1 up, or no item is known."""
        ids = _ids_of(item_ids)
        example = ", ".join(map(repr, self.item_ids[:2]))
        if not ids:
            raise RecommendError(f"The history is empty; give at least one item id, for instance of {example}.")
        if not any(item_id in self.numbers for item_id in ids):
            shown = few([shortened(repr(item_id)) for item_id in ids], SHOWN_IDS)
            raise RecommendError(
                f"None of the item ids is in the catalogue ({shown}); give ids from the column item_id of "
                f"items.parquet, for instance {example}."
            )
        return self.recommend_batch([ids], k, mask_seen)[0]

    def recommend_batch(
        self, histories: Sequence[Sequence[str]], k: int = 10, mask_seen: bool = True
    ) -> list[list[Recommendation]]:
        """`recommend` for many histories at once; one of which no item is known, or which is none, gets an empty list,
        and a warning names these. Raises RecommendError if k is no whole number from 1 up, or `histories` is a text."""
        if isinstance(histories, str):
            raise RecommendError("The histories are one text; give a list of lists of item ids.")
        count = int(k) if isinstance(k, float) and k.is_integer() else k
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            raise RecommendError(f"k must be a whole number from 1 up, got {k!r}; give for instance 10.")
        known = self._known(histories)
        k = min(int(count), len(self.item_ids))
        rows = [row for row, history in enumerate(known) if len(history)]
        lists: list[list[Recommendation]] = [[] for _ in known]
        if rows:
            items, scores = self.searcher.rank(
                [known[row] for row in rows], k=k, beam_size=max(k, SMALLEST_BEAM), mask_seen=mask_seen
            )
            for row, *pair in zip(rows, items.tolist(), scores.tolist(), strict=True):
                lists[row] = [self._recommendation(item, score) for item, score in zip(*pair, strict=True) if item >= 0]
        return lists

    def report(self, item_ids: Sequence[str], k: int = 10) -> str:
        """A history and its recommendations as text to read: item id, score, Semantic ID and title."""
        recommended = self.recommend(item_ids, k)
        known = [self.numbers[item_id] for item_id in _ids_of(item_ids) if item_id in self.numbers]
        history = [self._recommendation(item, float("nan")) for item in known]

        def line(rank: int | str, item: Recommendation, score: str) -> str:
            semantic_id = "-".join(map(str, item.semantic_id))
            return f"{rank:>3}  {item.item_id}  {score:>8}  {semantic_id:<16}  {shortened(item.title or '(no title)')}"

        scores = self.searcher.scoring.scores
        heading = f"recommended, with {'log-probabilities' if scores == CODES else f'scores ({scores})'}:"
        lines = ["history:", *(line("", item, "") for item in history), heading]
        lines += [line(rank, item, f"{item.score:.3f}") for rank, item in enumerate(recommended, start=1)]
        return "\n".join(lines)

    def _recommendation(self, item: int, score: float) -> Recommendation:
        return Recommendation(self.item_ids[item], self.titles[item], score, tuple(self.codes[item].tolist()))

    def _known(self, histories: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """The item indices of each history without its unknown ids, int32 (n,)."""
        ids = [_ids_of(history) for history in histories]
        unknown = [item_id for history in ids for item_id in history if item_id not in self.numbers]
        known = [
            np.array([self.numbers[item_id] for item_id in history if item_id in self.numbers], np.int32)
            for history in ids
        ]
        if unknown:
            shown = few([shortened(repr(item_id)) for item_id in unknown], SHOWN_IDS)
            total = sum(map(len, ids))
            logger.warning("ignored %d of %d item ids that are not in the catalogue: %s", len(unknown), total, shown)
        nothing = [str(row) for row, history in enumerate(known) if not len(history)]
        if nothing:
            logger.warning(
                "nothing is recommended to %d of %d histories, which have no item of the catalogue: rows %s",
                len(nothing), len(known), few(nothing, SHOWN_IDS),
            )  # fmt: skip
        return known
