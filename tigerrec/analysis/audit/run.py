"""The run that is audited: its stages, its lists, and the stages that a check builds beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerrec import TigerrecError
from tigerrec.analysis.audit.variants import read_interactions, write_variant
from tigerrec.data.histories import load_histories, training_counts
from tigerrec.evaluation.lists import read_lists, read_ranks
from tigerrec.evaluation.stage import EvaluateConfig, known_and_targets
from tigerrec.models.base import VECTORS
from tigerrec.models.loading import load_generator
from tigerrec.pipeline import Step
from tigerrec.runtime.devices import resolve_device
from tigerrec.runtime.seeds import derived_seed
from tigerrec.search.searcher import Searcher
from tigerrec.storage.files import ArtifactError, remove_tree, sha256_text
from tigerrec.storage.fingerprints import canonical_json, describe
from tigerrec.storage.manifests import read_manifest
from tigerrec.storage.stages import input_records, open_stage
from tigerrec.tokenizers.ids import SemanticIds, load_semantic_ids

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)
SEED = 0


Build = Callable[[Path], Path]  # writes a stage to a folder and returns it


class NotApplicableError(TigerrecError):
    """A check that makes no sense for this run; the message says why."""


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    summary: str  # the result in plain words
    rows: list[dict[str, Any]]  # the figures; intervals are further keys that end in `_low` and `_high`


CheckFunction = Callable[["AuditedRun"], Finding]


@dataclass(frozen=True)
class Check:
    """One check."""

    title: str  # what it is called in the report
    method: str  # what is done, in plain words
    function: CheckFunction  # what it finds in an audited run
    samples: bool  # whether it reads a sample of users
    trains: bool  # whether it trains again; such checks run last

    def __call__(self, run: AuditedRun) -> Finding:
        return self.function(run)


def check(title: str, samples: bool = False, trains: bool = False) -> Callable[[CheckFunction], Check]:
    """Make a function a check; its docstring is the method that the report tells."""
    return lambda function: Check(title, " ".join((function.__doc__ or "").split()), function, samples, trains)


def seeded_rng(*purpose: object) -> np.random.Generator:
    """The random numbers of one purpose of an audit."""
    return np.random.default_rng(derived_seed(SEED, "audit", *purpose))


def identities(folders: Mapping[str, Path]) -> dict[str, list[str]]:
    """Fingerprint and content of finished stages, by name."""
    return {name: [record["fingerprint"], record["content"]] for name, record in input_records(folders).items()}


class AuditedRun:
    """A finished run.

    Args:
        steps: its plan, by key.
        work: where checks build stages of their own.
        users: how many users the checks search for that search anew.

    Attributes:
        interactions: the histories with their times.
        known, targets: what the test input of each user with a test target is, and the target, int64 (n_users,).
        numbers: of these users in the prepared data, int32 (n_users,); the checks call them 0, 1, 2, ….
        popularity: how often training holds each item, int64 (n_items,).
        ranks: the rank of each user's target by (model, hit, seen), int16 (n_users,); 0 = not in the list.
        lists: the list of each user by (model, seen), int32 (n_users, k); -1 where it is shorter.
    """

    def __init__(self, steps: Mapping[str, Step], work: Path, users: int) -> None:
        self.steps, self.work, self.users = steps, work, users
        self.folders = {key: step.folder for key, step in steps.items()}
        self.evaluation: EvaluateConfig = steps["evaluate"].config
        self.model = self.evaluation.model
        self.histories = load_histories(self.folders["prepare"])
        self.interactions = read_interactions(self.folders["prepare"])
        self.semantic_ids = load_semantic_ids(self.folders["tokenize"])
        self.known, self.targets = known_and_targets(self.histories, "test")
        self.popularity = training_counts(self.histories)
        self.ranks, _, self.numbers = read_ranks(self.folders["evaluate"])
        if len(self.numbers) < len(self.targets):
            raise TigerrecError("The audit needs the lists of all users; evaluate without `evaluate.users`.")
        lists = read_lists(self.folders["evaluate"])
        self.lists = {key: of_model.items for key, of_model in lists.items()}

    @cached_property
    def searcher(self) -> Searcher:
        """Its generator with the catalogue."""
        return self.open_searcher(self.folders["train"], self.semantic_ids, self.popularity)

    def open_searcher(self, trained: Path, semantic_ids: SemanticIds, popularity: np.ndarray) -> Searcher:
        """The generator of a train stage with a catalogue, on the device and in the precision of the evaluation."""
        model = load_generator(trained, semantic_ids).to(resolve_device(self.evaluation.device))
        return Searcher.of(model, self.evaluation.precision, popularity, self.evaluation.scoring(trained))

    @property
    def vectors(self) -> Path | None:
        """The embed stage of the vectors that the generator reads."""
        return self.steps["train"].inputs.get(VECTORS)

    def search(self, searcher: Searcher, histories: list[np.ndarray], **how: Any) -> np.ndarray:
        """The lists of some histories, int32 (n, k), with the beam of the evaluation; `how` as in `Searcher.rank`."""
        return self.scored(searcher, histories, **how)[0]

    def scored(
        self, searcher: Searcher, histories: list[np.ndarray], *, users: np.ndarray | None = None, **how: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """The lists of some histories, of some users, as in `search`, and the scores of their items, float32 (n, k)."""
        sizes = {name: getattr(self.evaluation, name) for name in ("k", "beam_size", "batch_tokens")}
        return searcher.rank(histories, users=None if users is None else self.numbers[users], **sizes, **how)

    def sample(self, purpose: str) -> np.ndarray:
        """A seeded sample of `users` users in ascending order; all of them where there are no more."""
        n = len(self.targets)
        rng = seeded_rng("users", purpose)
        return np.arange(n) if n <= self.users else np.sort(rng.choice(n, self.users, replace=False))

    def stage(self, name: str, stage: str, config: Any, inputs: Mapping[str, Path], build: Build) -> Path:
        """The folder of a stage that a check needs, built unless it is there; its name says what it is made of."""
        made_of = [stage, describe(config), identities(inputs)]
        folder = self.work / f"{name}-{sha256_text(canonical_json(made_of))[:8]}"
        try:
            if read_manifest(folder) is not None:
                open_stage(folder, stage)
                logger.info("%s: up to date in %s", name, folder)
                return folder
        except ArtifactError as error:
            logger.warning("built again: %s", error)
            remove_tree(folder)
        logger.info("%s: %s", name, folder)
        return build(folder)

    def changed_data(
        self, name: str, config: dict[str, Any], interactions: pd.DataFrame, kept_items: np.ndarray | None = None
    ) -> Path:
        """The prepared data with other interactions, as a stage; see `write_variant`."""
        prepared = self.folders["prepare"]
        config = config | ({} if self.histories.parts is None else {"split": "of the data"})
        kept = np.ones(self.histories.n_items, bool) if kept_items is None else kept_items
        build = partial(write_variant, prepared, config, interactions, kept)
        return self.stage(name, "prepare", config, {"prepare": prepared}, build)
