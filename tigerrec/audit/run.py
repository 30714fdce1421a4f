"""The run that is audited: its stages, its lists, and the stages that a check builds beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerrec import TigerrecError, artifacts
from tigerrec.evaluate import EvaluateConfig
from tigerrec.files import remove_tree, sha256_text
from tigerrec.histories import Histories, load_histories, split, training_counts
from tigerrec.pipeline import Step
from tigerrec.seeds import derived_seed
from tigerrec.semantic_ids import SemanticIds, load_semantic_ids

if TYPE_CHECKING:
    from tigerrec.beam_search import Searcher

logger = logging.getLogger(__name__)
SEED = 0


class NotApplicableError(TigerrecError):
    """A check that makes no sense for this run; the message says why."""


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        summary: the result in plain words.
        rows: the figures, one flat row each; intervals are further keys that end in `_low` and `_high`.
    """

    summary: str
    rows: list[dict[str, Any]]


def random(*purpose: object) -> np.random.Generator:
    """The random numbers of one purpose of an audit."""
    return np.random.default_rng(derived_seed(SEED, "audit", *purpose))


@dataclass(frozen=True)
class AuditedRun:
    """A finished run.

    Attributes:
        steps: its plan, by key.
        work: where checks build stages of their own.
        users: how many users the checks search for that search anew.
    """

    steps: Mapping[str, Step]
    work: Path
    users: int

    @property
    def prepared(self) -> Path:
        """The folder of its prepare stage."""
        return self.steps["prepare"].folder

    @property
    def tokenized(self) -> Path:
        """The folder of its tokenize stage."""
        return self.steps["tokenize"].folder

    @property
    def trained(self) -> Path:
        """The folder of its train stage."""
        return self.steps["train"].folder

    @property
    def evaluated(self) -> Path:
        """The folder of its evaluate stage."""
        return self.steps["evaluate"].folder

    @property
    def evaluation(self) -> EvaluateConfig:
        """How it was evaluated."""
        config: EvaluateConfig = self.steps["evaluate"].config
        return config

    @cached_property
    def histories(self) -> Histories:
        """Of all users."""
        return load_histories(self.prepared)

    @cached_property
    def semantic_ids(self) -> SemanticIds:
        """Of all items."""
        return load_semantic_ids(self.tokenized)

    @cached_property
    def known(self) -> list[np.ndarray]:
        """What the test input of each user is."""
        return [split(self.histories[user], "test")[0] for user in range(len(self.histories))]

    @cached_property
    def targets(self) -> np.ndarray:
        """The test target of each user, int64 (n_users,)."""
        return np.array([split(self.histories[user], "test")[1] for user in range(len(self.histories))])

    @cached_property
    def popularity(self) -> np.ndarray:
        """How often training holds each item, int64 (n_items,)."""
        return training_counts(self.histories)

    @cached_property
    def _ranks(self) -> Any:
        return artifacts.read_table(self.evaluated, "ranks.parquet").to_pandas()

    @cached_property
    def _recommendations(self) -> Any:
        return artifacts.read_table(self.evaluated, "recommendations.parquet").to_pandas()

    def ranks(self, seen: str, hit: str = "item", model: str | None = None) -> np.ndarray:
        """The rank of each user's target by the generator or another model, int16 (n_users,), 0 = not in the list."""
        table = self._ranks
        chosen = table[
            (table["model"] == (model or self.evaluation.model)) & (table["hit"] == hit) & (table["seen"] == seen)
        ]
        ranks: np.ndarray = chosen.sort_values("user")["rank"].to_numpy()
        return ranks

    def lists(self, seen: str, model: str | None = None) -> np.ndarray:
        """The list of each user by the generator or another model, int32 (n_users, k), -1 where it is shorter."""
        table = self._recommendations
        chosen = table[(table["model"] == (model or self.evaluation.model)) & (table["seen"] == seen)]
        items = np.full((len(self.histories), self.evaluation.k), -1, np.int32)
        items[chosen["user"].to_numpy(), chosen["rank"].to_numpy() - 1] = chosen["item"].to_numpy()
        return items

    @cached_property
    def searcher(self) -> Searcher:
        """Its generator with the catalogue."""
        return self.open_searcher(self.trained, self.semantic_ids, self.popularity)

    def open_searcher(self, trained: Path, semantic_ids: SemanticIds, popularity: np.ndarray) -> Searcher:
        """The generator of a train stage with a catalogue, on the device and in the precision of the run's
        evaluation."""
        from tigerrec.beam_search import Searcher
        from tigerrec.models.loading import load_generator
        from tigerrec.precision import resolve_device

        model = load_generator(trained, semantic_ids).to(resolve_device(self.evaluation.device))
        return Searcher.of(model, self.evaluation.precision, popularity)

    def search(
        self,
        searcher: Searcher,
        histories: list[np.ndarray],
        mask_seen: bool,
        progress: str,
        seen: list[np.ndarray] | None = None,
    ) -> np.ndarray:
        """The lists of some histories, int32 (n, k), with the beam of the run's evaluation; see `Searcher.rank`."""
        config = self.evaluation
        items, _ = searcher.rank(
            histories,
            k=config.k,
            beam_size=config.beam_size,
            mask_seen=mask_seen,
            batch_tokens=config.batch_tokens,
            progress=progress,
            seen=seen,
        )
        return items

    def sample(self, purpose: str) -> np.ndarray:
        """A seeded sample of `users` users in ascending order; all of them where there are no more."""
        n = len(self.histories)
        return (
            np.arange(n) if n <= self.users else np.sort(random("users", purpose).choice(n, self.users, replace=False))
        )

    def stage(
        self, name: str, stage: str, config: Any, inputs: Mapping[str, Path], build: Callable[[Path], Path]
    ) -> Path:
        """The folder of a stage that a check needs, built unless it is there; what it is made of is part of its
        folder's name."""
        records = {role: artifacts.input_record(folder) for role, folder in inputs.items()}
        made_of = [
            stage,
            artifacts.describe(config),
            {role: [record["fingerprint"], record["content"]] for role, record in records.items()},
        ]
        folder = self.work / f"{name}-{sha256_text(artifacts.canonical_json(made_of))[:8]}"
        try:
            if artifacts.read_manifest(folder) is not None:
                artifacts.open_stage(folder, stage)
                logger.info("%s: up to date in %s", name, folder)
                return folder
        except artifacts.ArtifactError as error:
            logger.warning("built again: %s", error)
            remove_tree(folder)
        logger.info("%s: %s", name, folder)
        return build(folder)
