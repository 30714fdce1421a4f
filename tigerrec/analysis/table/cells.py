"""The cells of a table: one run each, whose results are small files that count as done wherever they are."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from tigerrec import pipeline
from tigerrec.config import compose
from tigerrec.data.histories import read_stats
from tigerrec.evaluation.lists import RANKS, read_lists
from tigerrec.runtime.processes import in_own_process
from tigerrec.storage.contracts import read_json, read_table
from tigerrec.storage.files import ArtifactError, sha256_file
from tigerrec.storage.fingerprints import canonical_json, changed_keys, describe
from tigerrec.storage.manifests import DamagedError, StaleError, read_manifest
from tigerrec.storage.stages import open_stage, writing

logger = logging.getLogger(__name__)

CELL = "cell"
LISTED = 10


@dataclass(frozen=True)
class Cell:
    """One run of a table."""

    row: str  # the table's row it belongs to
    model: str  # what it is called in the rows of `metrics.json`
    overrides: tuple[str, ...]  # the Hydra overrides that make it
    steps: Mapping[str, pipeline.Step]  # its stages, each behind those it reads; the last one ranks
    folder: Path  # of its results

    @property
    def last(self) -> pipeline.Step:
        """The stage that ranks all users."""
        return list(self.steps.values())[-1]

    @functools.cached_property
    def chain(self) -> dict[str, Any]:
        """The configuration of every stage of the cell and the stages it reads; known before any of them ran."""
        keys = {step.folder: key for key, step in self.steps.items()}
        chain: dict[str, Any] = {"model": self.model}
        for key, step in self.steps.items():
            inputs = {name: keys[folder] for name, folder in step.inputs.items()}
            chain[key] = {"stage": step.stage, "config": describe(step.config), "inputs": inputs}
        return chain

    def is_done(self) -> bool:
        """Whether the results of exactly this cell are there, undamaged; the folders of its stages are not needed.

        Raises:
            StaleError: results are there, of other settings or of other files.
            DamagedError: a file of the results is missing or changed.
        """
        if read_manifest(self.folder) is None:
            return False
        try:
            manifest = open_stage(self.folder, CELL)
        except ArtifactError as error:
            fault = str(error).partition(";")[0]
            raise DamagedError(f"{fault}; delete {self.folder} and run the same command again.") from None
        recorded = {name: record["fingerprint"] for name, record in manifest.inputs.items()}
        outside: dict[str, str] = {}
        for key, step in self.steps.items():
            start, called = f"{key}.", manifest.provenance["stages"].get(key, {}).get("named", {})
            own = {name.removeprefix(start): value for name, value in recorded.items() if name.startswith(start)}
            outside |= {f"{start}{role}": value for role, value in step.outside(own, called, _sha256).items()}
        chain = json.loads(canonical_json(self.chain))
        differences = changed_keys(manifest.config | recorded, chain | outside)
        if differences:
            raise StaleError(
                f"{self.folder} holds results of other settings ({'; '.join(differences)}); "
                "add `train.name=<new name>` (or `baseline.name=`) to keep both, or delete that folder to run it again."
            )
        return True

    def run(self, wait: bool) -> None:
        """Run the stages that are missing, in a process of their own, and leave the results in the cell's folder.
        Raises BusyError if another process runs the last of them, unless it is to `wait` for it."""
        in_own_process(f"{__name__}.run_in_this_process", list(self.overrides), self.last.key, wait)
        collect(self)


_sha256 = functools.cache(sha256_file)


def steps_of(cfg: DictConfig, last: str) -> dict[str, pipeline.Step]:
    """The stages up to the one that ranks: `evaluate` of a generator, or `baseline`."""
    return (pipeline.plan_baseline if last == "baseline" else pipeline.plan)(cfg)


def run_in_this_process(overrides: list[str], last: str, wait: bool) -> dict[str, Any]:
    """Bring the stages of a cell up to date."""
    pipeline.show_progress()
    pipeline.bring_up_to_date(steps_of(compose(overrides), last), last, None, wait)
    return {}


def collect(cell: Cell) -> None:
    """Write `metrics.json`, `ranks.parquet` and `manifest.json` of a cell from its finished stages."""
    manifests = {key: open_stage(step.folder, step.stage) for key, step in cell.steps.items()}
    sources = {
        f"{key}.{role}": record["fingerprint"]
        for key, step in cell.steps.items()
        for role, record in manifests[key].inputs.items()
        if role not in step.inputs
    }
    metrics = read_json(cell.last.folder, "metrics.json", [{"model": str}])
    with writing(cell.folder, CELL, cell.chain, sources=sources) as files:
        files.provenance["facts"] = _details(cell)
        files.provenance["stages"] = {
            key: {"content": manifest.content, **manifest.provenance} for key, manifest in manifests.items()
        }
        files.json("metrics.json", [row for row in metrics if row["model"] == cell.model])
        with files.create(RANKS) as path:
            write_ranks(read_table(cell.last.folder, RANKS), cell.model, path)
    logger.info("wrote the results of %s to %s", cell.row, cell.folder)


def _details(cell: Cell) -> dict[str, Any]:
    """Sizes of the data, collisions of the ids, number of different items recommended, trials of a tuned baseline."""
    stats = read_stats(cell.steps["prepare"].folder)
    listed = read_lists(cell.last.folder)[cell.model, "masked"].items[:, :LISTED]
    details = {name: stats[name] for name in ("users", "items", "interactions")}
    details["distinct_items"] = len(np.unique(listed[listed >= 0]))
    if "tokenize" in cell.steps:
        diagnostics = read_json(cell.steps["tokenize"].folder, "diagnostics.json", {"collisions": dict})
        of_ids = ("collision_rate", "unique_ids", "largest_group")
        details |= {name: diagnostics["collisions"][name] for name in of_ids}
    if "tune" in cell.steps:
        details["trials"] = read_json(cell.steps["tune"].folder, "trials.json")
    return details


def write_ranks(ranks: Any, model: str, path: Path) -> None:
    """One model's ranks in the columns of `ranks.parquet`, ordered by user and packed tightly."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    own = ranks.filter(pc.field("model") == model)
    ordered = own.take(np.argsort(own["user"].to_numpy(), kind="stable"))
    ordered = ordered.set_column(ordered.schema.get_field_index("rank"), "rank", ordered["rank"].cast(pa.int16()))
    encodings = {"user": "DELTA_BINARY_PACKED", "target": "BYTE_STREAM_SPLIT", "rank": "BYTE_STREAM_SPLIT"}
    packed = {"compression": "zstd", "compression_level": 19, "column_encoding": encodings}
    pq.write_table(ordered, path, use_dictionary=["model", "hit", "seen"], **packed)
