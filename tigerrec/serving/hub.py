"""Exports on the Hugging Face Hub, by `owner/name`: what a manifest names is downloaded or pushed, nothing else."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tigerrec import TigerrecError
from tigerrec.config import expanded
from tigerrec.serving.catalogue import EXPORT
from tigerrec.storage.files import FULL, ArtifactError
from tigerrec.storage.manifests import MANIFEST, DamagedError, Manifest, read_manifest
from tigerrec.storage.stages import open_stage
from tigerrec.text import first_line, shortened

logger = logging.getLogger(__name__)

PART = r"\w(?:[\w.-]*\w)?"
NAME = re.compile(rf"(?!.*(?:--|\.\.))(?=.{{3,96}}$){PART}/{PART}(?<!\.git)", re.ASCII)
KINDS = (".json", ".safetensors", ".parquet", ".md")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may do this"
NO_EXPORT = "it holds no export of tigerrec; put one there with `tigerrec push <train folder> <owner>/<name>`"
REASONS: dict[str | int, str] = {
    "RevisionNotFound": "it has no such revision; give another after the @, or none",
    401: f"it is not there, or closed to you; check the name, or {LOG_IN}",
    403: f"it is closed to you; ask its owner for access, or {LOG_IN}",
    404: f"there is none of that name; check it, or, if it is private, {LOG_IN}",
}
"""The hub's code of an error, or the status of its answer → what is wrong and what helps."""


class HubError(TigerrecError):
    """A model that cannot be downloaded from the Hugging Face Hub, or pushed to it."""


def check_name(name: str) -> None:
    """Refuse what is no name of a model on the hub. Raises HubError."""
    if not NAME.fullmatch(name):
        raise HubError(
            f"{name} is no name of a model on the Hugging Face Hub; write <owner>/<name>, in letters, digits, "
            "underscores and single dots and dashes."
        )


def model_folder(model: Path | str) -> Path:
    """The folder of a model: the path that was given, or, where nothing is there and it reads `owner/name` or
    `owner/name@revision`, that of the export of this name on the hub, downloaded. Raises HubError if it cannot be
    downloaded, is no export or is damaged, or if what is given is
    no name."""
    if not isinstance(model, str | Path):
        raise HubError(f"{shortened(repr(model))} names no model; give the folder that `tigerrec train` printed.")
    name, _, revision = str(model).partition("@")
    folder = expanded(model)
    if folder.exists() or not NAME.fullmatch(name):
        return folder
    return _downloaded(str(model), name, revision or None)


def _downloaded(address: str, name: str, revision: str | None) -> Path:
    """The folder in the hub's cache of an export, of which every file is whole."""
    from huggingface_hub import snapshot_download

    what = f"There is no folder {address}, and the model {address} of the hub cannot be downloaded"
    with _told(what, ", or give a local folder"):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[MANIFEST]))
        manifest = _manifest_of_export(folder, address)
        logger.info("downloading %s to %s", address, folder)
        snapshot_download(name, revision=folder.name, allow_patterns=list(manifest.files))
    try:
        open_stage(folder, EXPORT)
    except ArtifactError as error:
        fault = str(error).rpartition("; ")[0]
        raise HubError(
            f"The model {address} of the hub cannot be used: {fault}; delete {folder.parents[1]} to download it again, "
            "or have it exported and pushed again."
        ) from error
    return folder


def _manifest_of_export(folder: Path, address: str) -> Manifest:
    """The manifest of an export that names no file which could hold code."""
    try:
        manifest = read_manifest(folder)
    except DamagedError:
        manifest = None
    if manifest is None or manifest.stage != EXPORT:
        raise HubError(f"The model {address} of the hub cannot be used: {NO_EXPORT}.")
    foreign = [name for name in manifest.files if not name.endswith(KINDS)]
    if foreign:
        raise HubError(
            f"The model {address} of the hub cannot be used: it names {foreign[0]!r}, and only {', '.join(KINDS)} are "
            "downloaded; have it pushed again with `tigerrec push`."
        )
    return manifest


def upload(folder: Path, name: str, private: bool = False) -> str:
    """Push the files of an export to the hub in one commit, and return the address. Raises ArtifactError if the export
    is damaged, HubError if the name is none, the hub refuses or cannot be reached, or it should be `private` and is
    there for all to see."""
    from huggingface_hub import CommitOperationAdd, HfApi

    check_name(name)
    manifest = open_stage(folder, EXPORT)
    files = [*manifest.files, MANIFEST]
    with _told(f"The model cannot be pushed to {name}"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
        api = HfApi()
        address = api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.model_info(name).private:
            raise HubError(
                f"{name} is there already, for all to see; make it private in its settings on {address}, or push to "
                "another name."
            )
        additions = [CommitOperationAdd(file, folder / file) for file in files]
        api.create_commit(name, additions, commit_message=f"Export {manifest.content[:12]}")
    logger.info("pushed %d files to %s", len(files), name)
    return str(address)


@contextmanager
def _told(what: str, instead: str = "") -> Iterator[None]:
    """Whatever the hub's library raises inside, as one sentence: `what` went wrong, why, and what helps; `instead` is
    what else there is to do where the hub does not answer."""
    try:
        yield
    except TigerrecError:
        raise
    except Exception as error:  # libraries raise many kinds
        raise HubError(f"{what}: {_reason(error, instead)}.") from error


def _reason(error: Exception, instead: str) -> str:
    """What is wrong, and what helps."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE

    origin: BaseException = error
    while origin.__cause__ is not None:
        origin = origin.__cause__
    if isinstance(origin, OSError) and (origin.filename or origin.errno in FULL):
        return f"{first_line(origin)}; free space in {HF_HUB_CACHE}, or set HF_HOME to a folder to write in"
    response = getattr(origin, "response", None)
    if response is None:
        return f"{ENDPOINT} cannot be reached ({first_line(origin)}); connect to the network{instead}"
    known = REASONS.get(response.headers.get("X-Error-Code")) or REASONS.get(response.status_code)
    return known or f"{ENDPOINT} refuses ({first_line(error)}); try again later{instead}"
