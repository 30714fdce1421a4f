"""Everything that the folders of an evaluated run say, read once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec import artifacts
from tigerrec.evaluate import POPULARITY
from tigerrec.folders import upstream_folders
from tigerrec.histories import Histories, load_histories, read_items, read_stats, split, training_counts
from tigerrec.semantic_ids import SemanticIds, load_semantic_ids

STAGES = ("prepare", "embed", "tokenize", "train", "evaluate")


@dataclass(frozen=True)
class Lists:
    """One model's recommendations: items int32 (users, k), -1 where a list is shorter; scores float32 (users, k)."""

    items: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class EvaluatedRun:
    """An evaluate stage and the stages it was made from.

    Attributes:
        folders: by stage; `embed` only where the vectors still stand above the tokenize folder.
        manifests: of the same stages.
        item_ids: the data set's own ids, by item index.
        titles: of the items, None where there is none.
        categories: the path of each item from the most general category down, empty where there is none.
        log: the lines of `training.jsonl`.
        metrics: the rows of `metrics.json`.
    """

    folders: dict[str, Path]
    manifests: dict[str, artifacts.Manifest]
    item_ids: list[str]
    titles: list[str | None]
    categories: list[list[str]]
    histories: Histories
    semantic_ids: SemanticIds
    log: list[dict[str, Any]]
    metrics: list[dict[str, Any]]

    @property
    def model(self) -> str:
        """The generator's name in the rows of the results."""
        return str(self.manifests["evaluate"].config["model"])

    @property
    def split(self) -> str:
        """`test` or `validation`."""
        return str(self.manifests["evaluate"].config["split"])

    @cached_property
    def stats(self) -> dict[str, Any]:
        """`stats.json` of the data."""
        return read_stats(self.folders["prepare"])

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        """`tokenizer.json`."""
        return dict(artifacts.read_json(self.folders["tokenize"], "tokenizer.json", {}))

    @cached_property
    def training_counts(self) -> np.ndarray:
        """How often training histories hold each item, int64 (items,)."""
        return training_counts(self.histories)

    @cached_property
    def longest_input(self) -> int:
        """Items of a history that the generator reads."""
        return int(
            artifacts.read_json(self.folders["train"], "config.json", {"tigerrec": {"max_items": int}})["tigerrec"][
                "max_items"
            ]
        )

    @property
    def codes(self) -> np.ndarray:
        """The items' codes without suffix, int32 (items, levels)."""
        return self.semantic_ids.codes[:, : len(self.semantic_ids.layout.code_sizes)]

    def semantic_id(self, item: int) -> str:
        """The codes of an item, the suffix included, as people read them."""
        return "-".join(map(str, self.semantic_ids.codes[item].tolist()))

    def known(self, user: int) -> np.ndarray:
        """The history that a user's list was made from."""
        return split(self.histories[user], self.split)[0]

    def target(self, user: int) -> int:
        """The item that a user's list should hold."""
        return split(self.histories[user], self.split)[1]

    @cached_property
    def _recommendations(self) -> Any:
        return artifacts.read_table(self.folders["evaluate"], "recommendations.parquet")

    @cached_property
    def _ranks(self) -> Any:
        return artifacts.read_table(self.folders["evaluate"], "ranks.parquet")

    def lists(self, model: str, seen: str) -> Lists:
        """A model's lists of all users."""
        rows = _where(self._recommendations, model=model, seen=seen)
        users, ranks = rows["user"].to_numpy(), rows["rank"].to_numpy()
        items = np.full((len(self.histories), int(ranks.max(initial=1))), -1, np.int32)
        scores = np.full(items.shape, np.nan, np.float32)
        items[users, ranks - 1], scores[users, ranks - 1] = rows["item"].to_numpy(), rows["score"].to_numpy()
        return Lists(items, scores)

    def ranks(self, hit: str, seen: str) -> np.ndarray:
        """The rank of each user's target in the generator's list, 0 where it is not in it, int16 (users,)."""
        rows = _where(self._ranks, model=self.model, hit=hit, seen=seen)
        ranks = np.zeros(len(self.histories), np.int16)
        ranks[rows["user"].to_numpy()] = rows["rank"].to_numpy()
        return ranks

    def row(self, model: str, hit: str = "item", seen: str = "masked") -> dict[str, Any]:
        """A row of the metrics."""
        return next(row for row in self.metrics if (row["model"], row["hit"], row["seen"]) == (model, hit, seen))

    @property
    def models(self) -> tuple[str, str]:
        """The generator and what stands beside it."""
        return self.model, POPULARITY


def _where(table: Any, **wanted: str) -> Any:
    """The rows of a table whose columns hold these values."""
    import pyarrow.compute as pc

    for name, value in wanted.items():
        table = table.filter(pc.equal(table[name].cast("string"), value))
    return table


def evaluation_of(folder: Path) -> Path:
    """The evaluate folder that is meant: the folder itself, or the only one in a train folder.

    Raises:
        ArtifactError: the folder is neither, or the choice is not clear.
    """
    manifest = artifacts.read_manifest(folder)
    if manifest is not None and manifest.stage == "evaluate":
        return folder
    if manifest is None or manifest.stage != "train":
        found = (
            "does not exist"
            if not folder.is_dir()
            else "holds no finished stage"
            if manifest is None
            else f"holds the stage '{manifest.stage}'"
        )
        raise artifacts.ArtifactError(
            f"{folder} {found}; give the folder that `make eval` or `make train` printed as `RUN=<folder>`."
        )
    made = [(child, artifacts.read_manifest(child)) for child in sorted(folder.iterdir()) if child.is_dir()]
    evaluations = [child for child, record in made if record is not None and record.stage == "evaluate"]
    if not evaluations:
        raise artifacts.MissingError(
            f"{folder} has not been evaluated; run `make eval` with the options of its training."
        )
    if len(evaluations) > 1:
        names = ", ".join(child.name for child in evaluations)
        raise artifacts.ArtifactError(
            f"{folder} has {len(evaluations)} evaluations ({names}); give one of them, for instance "
            f"`RUN={evaluations[0]}`."
        )
    return evaluations[0]


def read_evaluated_run(folder: Path) -> EvaluatedRun:
    """The run of an evaluate folder, or of a train folder with one evaluation.

    Raises:
        ArtifactError: the folder is neither, a stage above it is missing or damaged, or it was not made from them.
    """
    evaluated = evaluation_of(folder).resolve()
    folders = upstream_folders(evaluated.parent) | {"evaluate": evaluated}
    manifest = artifacts.open_stage(evaluated, "evaluate")
    for name in ("prepare", "tokenize", "train"):
        artifacts.check_made_from(evaluated, manifest, name, folders[name])
    made_from = artifacts.open_stage(folders["tokenize"], "tokenize").inputs.get("embed", {})
    embedded = artifacts.read_manifest(folders["tokenize"].parent)
    if embedded is not None and embedded.stage == "embed" and embedded.fingerprint == made_from.get("fingerprint"):
        folders["embed"] = folders["tokenize"].parent
    manifests = {name: artifacts.open_stage(folders[name], name) for name in STAGES if name in folders}
    items = read_items(folders["prepare"], {"title": "string?"})
    nothing: list[Any] = [None] * len(items)
    return EvaluatedRun(
        folders={name: folders[name] for name in manifests},
        manifests=manifests,
        item_ids=items["item_id"].to_pylist(),
        titles=items["title"].to_pylist(),
        categories=[
            path or [] for path in (items["categories"].to_pylist() if "categories" in items.column_names else nothing)
        ],
        histories=load_histories(folders["prepare"]),
        semantic_ids=load_semantic_ids(folders["tokenize"]),
        log=[
            json.loads(line) for line in (folders["train"] / "training.jsonl").read_text(encoding="utf-8").splitlines()
        ],
        metrics=artifacts.read_json(
            evaluated, "metrics.json", [{"model": str, "split": str, "hit": str, "seen": str, "users": int}]
        ),
    )
