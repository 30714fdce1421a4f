"""Everything that the folders of an evaluated run say."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec.analysis.charts import shorten
from tigerrec.data.histories import Histories, load_histories, read_items
from tigerrec.evaluation.lists import Lists, read_lists, read_ranks
from tigerrec.storage.contracts import read_json
from tigerrec.storage.files import ArtifactError
from tigerrec.storage.folders import upstream_folders
from tigerrec.storage.manifests import Manifest, MissingError, read_manifest
from tigerrec.storage.stages import check_made_from, open_stage
from tigerrec.tokenizers.ids import SemanticIds, load_semantic_ids

STAGES = ("prepare", "embed", "tokenize", "train", "evaluate")
TITLE_LENGTH = 140


@dataclass(frozen=True)
class EvaluatedRun:
    """An evaluate stage and the stages it was made from."""

    folders: dict[str, Path]  # by stage; `embed` only where the vectors still stand above the tokenize folder
    manifests: dict[str, Manifest]  # of the same stages

    @property
    def model(self) -> str:
        """The generator's name in the rows of the results."""
        return str(self.manifests["evaluate"].config["model"])

    @cached_property
    def items(self) -> list[dict[str, Any]]:
        """The rows of `items.parquet`: `item_id`, `title` and, where the data have them, `categories`."""
        rows: list[dict[str, Any]] = read_items(self.folders["prepare"], {"title": "string?"}).to_pylist()
        return rows

    @cached_property
    def histories(self) -> Histories:
        """The users' histories."""
        return load_histories(self.folders["prepare"])

    @cached_property
    def semantic_ids(self) -> SemanticIds:
        """The items' Semantic IDs."""
        return load_semantic_ids(self.folders["tokenize"])

    @cached_property
    def metrics(self) -> dict[tuple[str, str, str], dict[str, Any]]:
        """The rows of `metrics.json` by model, kind of hit and treatment of seen items."""
        rows = read_json(self.folders["evaluate"], "metrics.json", [{"model": str, "hit": str, "seen": str}])
        return {(row["model"], row["hit"], row["seen"]): row for row in rows}

    @property
    def codes(self) -> np.ndarray:
        """The items' codes without suffix, int32 (items, levels)."""
        return self.semantic_ids.codes[:, : len(self.semantic_ids.layout.code_sizes)]

    def semantic_id(self, item: int) -> str:
        """The codes of an item, the suffix included, as people read them."""
        return "-".join(map(str, self.semantic_ids.codes[item].tolist()))

    def title(self, item: int) -> str:
        """An item's title, cut where it is long."""
        return shorten(self.items[item]["title"] or "(no title)", TITLE_LENGTH)

    def history_and_target(self, place: int) -> tuple[np.ndarray, int]:
        """What the list of an evaluated user was made from, and the item that it should hold."""
        return self.histories.split(int(self.users[place]), self.manifests["evaluate"].config["split"])

    @cached_property
    def users(self) -> np.ndarray:
        """The number of each evaluated user, ascending."""
        return read_ranks(self.folders["evaluate"])[2]

    @cached_property
    def ranks(self) -> dict[tuple[str, str, str], np.ndarray]:
        """The rank of each user's target by model, kind of hit and treatment of seen items, 0 = not in the list."""
        return read_ranks(self.folders["evaluate"])[0]

    @cached_property
    def lists(self) -> dict[tuple[str, str], Lists]:
        """All users' lists by model and treatment of seen items."""
        return read_lists(self.folders["evaluate"])


def evaluation_of(folder: Path) -> Path:
    """The evaluate folder that is meant: the folder itself, or the only one in a train folder."""
    manifest = read_manifest(folder)
    if manifest is not None and manifest.stage == "evaluate":
        return folder
    if manifest is None or manifest.stage != "train":
        fault = f"holds the stage '{manifest.stage}'" if manifest else "holds no finished stage"
        raise ArtifactError(
            f"{folder} {fault if folder.is_dir() else 'does not exist'}; give the folder that `tigerrec evaluate` or "
            "`tigerrec train` printed as `--run <folder>`."
        )
    manifests = {child: read_manifest(child) for child in sorted(folder.iterdir()) if child.is_dir()}
    evaluations = [child for child, record in manifests.items() if record and record.stage == "evaluate"]
    if not evaluations:
        raise MissingError(
            f"{folder} has not been evaluated; run `tigerrec evaluate` with the options of its training."
        )
    if len(evaluations) > 1:
        names = ", ".join(child.name for child in evaluations)
        raise ArtifactError(
            f"{folder} has {len(evaluations)} evaluations ({names}); give one of them, for instance "
            f"`--run {shlex.quote(str(evaluations[0]))}`."
        )
    return evaluations[0]


def read_evaluated_run(folder: Path) -> EvaluatedRun:
    """The run of an evaluate folder, or of a train folder with one evaluation.

    Raises:
        ArtifactError: the folder is neither, a stage above it is missing or damaged, or it was not made from them.
    """
    evaluated = evaluation_of(folder).resolve()
    folders = upstream_folders(evaluated.parent) | {"evaluate": evaluated}
    manifests = {name: open_stage(path, name) for name, path in folders.items()}
    for name in ("prepare", "tokenize", "train"):
        check_made_from(evaluated, manifests["evaluate"], name, folders[name])
    vectors, embedded = manifests["tokenize"].inputs.get("embed", {}), folders["tokenize"].parent
    manifest = read_manifest(embedded)
    if manifest is not None and manifest.stage == "embed" and manifest.fingerprint == vectors.get("fingerprint"):
        folders["embed"], manifests["embed"] = embedded, open_stage(embedded, "embed")
    return EvaluatedRun(folders, {name: manifests[name] for name in STAGES if name in manifests})
