"""One self-contained folder of a trained run: model, Semantic IDs, items, tokenizer and a model card."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tigerrec.data.histories import ITEMS
from tigerrec.models.base import VECTORS
from tigerrec.models.loading import load_generator
from tigerrec.serving.catalogue import EXPORT, POPULARITY, counts_of_training
from tigerrec.serving.hub import check_name, upload
from tigerrec.serving.model_card import model_card
from tigerrec.serving.recommender import check_run
from tigerrec.storage.contracts import read_json
from tigerrec.storage.files import ASIDE, ArtifactError, locked_beside
from tigerrec.storage.folders import embed_folder, upstream_folders
from tigerrec.storage.manifests import MANIFEST, StaleError, read_manifest
from tigerrec.storage.stages import check_made_from, input_record, open_stage, writing
from tigerrec.tokenizers.ids import load_semantic_ids
from tigerrec.tokenizers.stage import load_tokenizer

logger = logging.getLogger(__name__)

EMBEDDER, GENERATOR_EMBEDDER, CARD = "embedder.json", "generator_embedder.json", "README.md"
ITEM_OPTIONS = "item_options.json"


@dataclass(frozen=True)
class ItemOptions:
    """How a data set's items were read, as the options of that name of `TablesDataset` have it."""

    categories_separator: str = ">"
    decimal_comma: bool = False
    text_columns: tuple[str, ...] = ()


def item_options(run: Path) -> ItemOptions:
    """How the items of a train stage or an export were read; by default of exports that do not say it. Raises
    ArtifactError if the run cannot be used."""
    if open_stage(run, "train", EXPORT).stage == "train":
        recorded = open_stage(upstream_folders(run)["prepare"], "prepare").config
    elif (run / ITEM_OPTIONS).exists():
        recorded = read_json(
            run, ITEM_OPTIONS, {"categories_separator": str, "decimal_comma": bool, "text_columns": list}
        )
    else:
        return ItemOptions()
    given = {field.name: recorded[field.name] for field in fields(ItemOptions) if field.name in recorded}
    return ItemOptions(**given | {"text_columns": tuple(given.get("text_columns", ()))})


def export(run: Path, out: Path) -> Path:
    """Write everything that recommending with a finished train stage needs into one folder, whole or not at all, or
    copy an export; `out` is new, empty, or an older export, which is replaced. Raises ArtifactError if the run or a
    folder above it cannot be used, or `out` holds something else or is being written by another process."""
    out = out.resolve()
    check_run(run)
    check_free(out)
    with locked_beside(out):
        manifest = open_stage(run, "train", EXPORT)
        if manifest.stage == "train":
            write_export(run, out)
        elif run.resolve() != out:
            with writing(out, EXPORT, {}, {"export": run}) as files:
                for name, entry in manifest.files.items():
                    files.copy(run / name, entry["sha256"])
    logger.info("wrote the run %s to %s", run, out)
    return out


def push(model: Path, name: str, private: bool = False) -> str:
    """Push an export, or that of a finished train stage, to the Hugging Face Hub as `owner/name`, and return its
    address. Raises TigerrecError if the name is none, the model cannot be used, or the hub does not take it."""
    check_name(name)
    check_run(model)
    if open_stage(model, "train", EXPORT).stage == EXPORT:
        return upload(model, name, private)
    with tempfile.TemporaryDirectory(prefix="tigerrec-") as scratch:
        folder = Path(scratch).resolve() / EXPORT
        write_export(model, folder)
        return upload(folder, name, private)


def write_export(run: Path, out: Path) -> None:
    """`export` of a train folder to an absolute path, silently; what nobody could load is refused. It holds the items,
    every content file of the tokenize and train stages, and what else recommending needs."""
    check_free(out)
    folders = upstream_folders(run)
    semantic_ids = load_semantic_ids(folders["tokenize"])
    load_generator(folders["train"], semantic_ids)
    load_tokenizer(folders["tokenize"])
    evaluations = _evaluations(folders["train"])
    with writing(out, EXPORT, {}, folders | {folder.name: folder for folder in evaluations}) as files:
        files.copy(folders["prepare"] / ITEMS)
        files.json(ITEM_OPTIONS, asdict(item_options(run)))
        for stage in ("tokenize", "train"):
            for name, entry in open_stage(folders[stage], stage).files.items():
                if not entry.get("measured"):
                    files.copy(folders[stage] / name)
        for name, folder in _embed_folders(folders).items():
            files.json(name, _embedder(folder))
        files.arrays(POPULARITY, {"training_counts": counts_of_training(folders["prepare"], open_stage(run, "train"))})
        with files.create(CARD) as temporary:
            temporary.write_text(model_card(folders, evaluations), encoding="utf-8")


def _embed_folders(folders: dict[str, Path]) -> dict[str, Path]:
    """The embed stages of the vectors that a tokenizer and a generator read, as far as they are there, by the name of
    the file that describes them."""
    found = {EMBEDDER: embed_folder(folders["tokenize"])}
    read = open_stage(folders["train"], "train").inputs.get(VECTORS)
    if read is not None:
        stages = [path.parent for path in folders["prepare"].glob(f"*/{MANIFEST}")]
        found[GENERATOR_EMBEDDER] = next((stage for stage in stages if _is_stage(stage, read)), None)
    return {name: folder for name, folder in found.items() if folder is not None}


def _is_stage(folder: Path, record: dict[str, Any]) -> bool:
    """Whether a folder holds the embed stage that another one read."""
    manifest = read_manifest(folder)
    present = manifest is not None and manifest.stage == "embed"
    return present and all(input_record(folder)[key] == record[key] for key in ("fingerprint", "content"))


def _embedder(folder: Path) -> dict[str, Any]:
    """The embedder of an embed stage and the sha256 of its files."""
    manifest = open_stage(folder, "embed")
    recorded = manifest.provenance.get("embedder")
    settings = dict(recorded) if isinstance(recorded, dict) else {}
    settings.pop("device", None)
    sources = {role: record["fingerprint"] for role, record in manifest.inputs.items() if role != "prepare"}
    return {"config": manifest.config | settings, "sources": sources}


def check_free(out: Path) -> None:
    """Refuse a path that holds anything but an older export."""
    was_killed = (out / ASIDE).is_dir()
    if not out.exists() or was_killed or (out.is_dir() and not any(out.iterdir())):
        return
    manifest = read_manifest(out)
    if manifest is None or manifest.stage != EXPORT:
        raise ArtifactError(f"{out} is not empty and is no earlier export; give a new folder with `--out <folder>`.")


def _evaluations(trained: Path) -> list[Path]:
    """The finished evaluations of this training, by name."""
    evaluations = []
    for folder in sorted(trained.glob("eval-*")):
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        try:
            check_made_from(folder, manifest, "train", trained)
        except StaleError:
            continue
        open_stage(folder, "evaluate")
        evaluations.append(folder)
    return evaluations
