"""Where the stages of a run stand: each in the folder of the one before, `<data set>/<embedder>/<tokenizer>/<run>`."""

from __future__ import annotations

from pathlib import Path

from tigerrec.storage.manifests import MissingError, StaleError
from tigerrec.storage.stages import check_made_from, open_stage


def upstream_folders(trained: Path) -> dict[str, Path]:
    """The finished prepare, tokenize and train folders of a run, given its train folder, in the order of the pipeline.
    Raises ArtifactError if one is missing or damaged, or the run was not made from the folders above it."""
    trained = trained.resolve()
    folders = {"prepare": trained.parent.parent.parent, "tokenize": trained.parent, "train": trained}
    manifest = open_stage(trained, "train")
    for name in ("prepare", "tokenize"):
        open_stage(folders[name], name)
        check_made_from(trained, manifest, name, folders[name])
    return folders


def embed_folder(tokenized: Path) -> Path | None:
    """The folder of the vectors that a tokenize stage was made from; None where they are gone or were made again.
    Raises ArtifactError if the tokenize stage is missing or damaged."""
    folder = tokenized.resolve().parent
    manifest = open_stage(tokenized, "tokenize")
    try:
        check_made_from(tokenized, manifest, "embed", folder)
    except (MissingError, StaleError):
        return None
    return folder
