"""The manifest of a stage folder: its commit record, how it is read, and the errors about finished stages."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from tigerrec.storage.files import ArtifactError
from tigerrec.storage.fingerprints import SCHEMA, content_digest, fingerprint, with_families

MANIFEST = "manifest.json"
MANIFEST_LIMIT = 4 * 1024 * 1024
SHA256 = re.compile(r"[0-9a-f]{64}")


class MissingError(ArtifactError):
    """No finished stage stands in this folder."""


class DamagedError(ArtifactError):
    """A file of a finished stage is not the one that was committed."""


class StaleError(ArtifactError):
    """The stage was made with another configuration or from other inputs."""


def rebuilding(stage: str, overwrite: str | None = None) -> str:
    """What builds a finished stage again, or an earlier one named by `overwrite`, whichever command found the fault."""
    if stage == "export":
        return "export it again"
    command = "baseline" if stage == "tune" else stage
    return f"run `tigerrec {command}` with its options and `overwrite={overwrite or stage}` to build it again"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The commit record of a stage folder."""

    stage: str
    schema: int
    config: dict[str, Any]
    inputs: dict[str, dict[str, Any]]
    fingerprint: str
    content: str
    files: dict[str, dict[str, Any]]
    provenance: dict[str, Any]


def _valid_name(name: str) -> bool:
    steps = PurePosixPath(name).parts
    is_inside = bool(steps) and not name.startswith("/") and ".." not in steps
    return is_inside and not {"\\", "\0"} & set(name) and len(name.splitlines()) == 1


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and SHA256.fullmatch(value) is not None


def _manifest_fault(data: Any) -> str | None:
    """What is wrong with a parsed manifest, or None. Raises ValueError if it holds what no manifest of ours can hold,
    such as NaN."""
    if not isinstance(data, dict):
        return "is not a JSON object"
    types = {
        "stage": str, "schema": int, "config": dict, "inputs": dict,
        "fingerprint": str, "content": str, "files": dict, "provenance": dict,
    }  # fmt: skip
    for key, kind in types.items():
        if not isinstance(data.get(key), kind):
            return f"has no valid '{key}'"
    if len(data["stage"].splitlines()) != 1:
        return "has no valid 'stage'"
    for name, entry in data["files"].items():
        if not _valid_name(name):
            return f"names a file outside its folder: {name!r}"
        record = entry if isinstance(entry, dict) else {}
        if not _is_sha256(record.get("sha256")) or not isinstance(record.get("bytes"), int):
            return f"has no valid sha256 and size for {name!r}"
    for name, entry in data["inputs"].items():
        if not isinstance(entry, dict) or not isinstance(entry.get("fingerprint"), str):
            return f"has no valid fingerprint for its input {name!r}"
    made_of = {name: entry["fingerprint"] for name, entry in data["inputs"].items()}
    digests = fingerprint(data["stage"], data["config"], made_of), content_digest(data["files"])
    if data["schema"] == SCHEMA and (data["fingerprint"], data["content"]) != digests:
        return "does not agree with its own fingerprint"
    return None


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, or None where no finished stage stands. Raises DamagedError if the manifest is there
    but cannot be a manifest."""
    path = folder / MANIFEST
    data: Any = None
    try:
        if path.stat().st_size > MANIFEST_LIMIT:
            fault: str | None = "is larger than any manifest"
        else:
            data = json.loads(path.read_bytes())
            fault = _manifest_fault(data)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        fault = "is not valid JSON"
    if fault:
        raise DamagedError(f"{path} {fault}; delete it and run the stage again.")
    named = data | {"config": with_families(data["config"]), "inputs": with_families(data["inputs"])}
    return Manifest(**{field.name: named[field.name] for field in dataclasses.fields(Manifest)})
