"""Several trained runs side by side: a table of what differs between them, and their validation over time."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tigerrec import TigerrecError, text
from tigerrec.analysis.charts import new_figure
from tigerrec.storage.files import ArtifactError, atomic
from tigerrec.storage.manifests import read_manifest

PICTURES = (".png", ".svg")
HR, NDCG = "validation_hr@10", "validation_ndcg@10"


@dataclass(frozen=True)
class TrainedRun:
    """What a finished train stage says of itself."""

    name: str  # its folder, below the one that all runs share
    settings: dict[str, Any]  # every option of generator and training, by dotted name
    histories: str | None  # the fingerprint of the histories it was trained on
    validations: list[dict[str, Any]]  # the lines of `training.jsonl` with a validation on the sample of users
    validated: dict[str, Any]  # the line of the weights kept, on all users where there was a choice among them
    seconds: float  # of training, validation included


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots."""
    joined: dict[str, Any] = {}
    for key, value in values.items():
        joined |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return joined


def read_run(folder: Path, name: str) -> TrainedRun:
    """The run of a finished train stage; of its files only `manifest.json` and `training.jsonl` are needed."""
    manifest = read_manifest(folder)
    log = folder / "training.jsonl"
    if manifest is None or manifest.stage != "train" or not log.is_file():
        raise ArtifactError(
            f"{folder} is not the folder of a finished train stage; give folders that `tigerrec train` printed."
        )
    lines = [line for line in map(json.loads, log.read_text().splitlines()) if NDCG in line]
    if not lines:
        raise ArtifactError(f"{folder} was never validated; compare the run with train.holdout=true, which was.")
    kept = [line for line in lines if line["step"] == manifest.provenance["selected"]["step"]]
    histories = manifest.inputs.get("prepare", {}).get("fingerprint")
    validations = [line for line in lines if not line.get("selection")]
    seconds = manifest.provenance["training_seconds"]
    return TrainedRun(name, flat(manifest.config), histories, validations, kept[-1], seconds)


def read_runs(folders: Sequence[Path]) -> list[TrainedRun]:
    """The runs in some folders, of which there must be one; all must have been trained on the same histories."""
    if not folders:
        raise TigerrecError("There is no run to compare; give at least one folder of a train stage.")
    shared = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    runs = [read_run(folder, str(folder.resolve().relative_to(shared))) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        if run.histories != runs[0].histories:
            raise TigerrecError(f"{folder} was trained on other histories than {folders[0]}; compare them apart.")
    return runs


def training_table(runs: Sequence[TrainedRun]) -> str:
    """Runs in Markdown, best first: options in which they differ, minutes of training, metrics of the weights kept."""
    names = sorted({name for run in runs for name in run.settings if not name.endswith("family")})
    differing = [name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1]
    rows = [["run", *(name.split(".")[-1] for name in differing), "minutes", "validation HR@10", "validation NDCG@10"]]
    for run in sorted(runs, key=lambda run: -run.validated[NDCG]):
        settings = [str(run.settings.get(name, "")) for name in differing]
        metrics = [f"{run.validated[name]:.4f}" for name in (HR, NDCG)]
        rows.append([run.name, *settings, f"{run.seconds / 60:.0f}", *metrics])
    return text.table(rows)


def plot_validation(runs: Sequence[TrainedRun], path: Path) -> None:
    """Draw validation NDCG@10 over minutes of training, a line a run, as the picture that the path's ending names."""
    if path.suffix not in PICTURES:
        raise TigerrecError(f"{path} must end in {' or '.join(PICTURES)}.")
    figure = new_figure(7, 4)
    axes = figure.subplots()
    for run in runs:
        minutes = [line["seconds"] / 60 for line in run.validations]
        axes.plot(minutes, [line[NDCG] for line in run.validations], marker=".", label=run.name)
    axes.set_xlabel("minutes of training, validation included")
    axes.set_ylabel("validation NDCG@10 (item level, seen masked)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."), dpi=150)
