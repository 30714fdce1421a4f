"""Stage folders: a manifest as the commit record, fingerprints, and the errors about them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tigerrec.runtime.provenance import provenance
from tigerrec.storage.files import (
    ASIDE,
    FULL,
    KEPT,
    PROBE,
    SPILLED,
    ArtifactError,
    atomic,
    fsync,
    not_writable,
    open_to_readers,
    remove_tree,
    replace_together,
    settle,
    sha256_file,
    system_code,
    write_failure,
    write_json,
)
from tigerrec.storage.fingerprints import SCHEMA, canonical_json, changed_keys, content_digest, describe, fingerprint
from tigerrec.storage.manifests import (
    MANIFEST,
    DamagedError,
    Manifest,
    MissingError,
    StaleError,
    read_manifest,
    rebuilding,
)

REBUILD = ".rebuild"
WORKING_FILES = ("checkpoint", "shards", "trials", ASIDE, KEPT, PROBE, SPILLED, f".{REBUILD}.tmp")

_verified: dict[tuple[str, int, int, int], str] = {}


def _verify_file(path: Path, entry: Mapping[str, Any], remedy: str) -> None:
    try:
        stat = path.stat()
        key = (str(path.resolve()), stat.st_ino, stat.st_mtime_ns, stat.st_size)
        actual = _verified.get(key) or sha256_file(path)
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing; {remedy}.") from None
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror}); {remedy}.") from None
    if actual != entry["sha256"] or stat.st_size != entry["bytes"]:
        raise DamagedError(
            f"{path} is damaged (expected sha256 {entry['sha256'][:12]}… and {entry['bytes']} bytes, found "
            f"{actual[:12]}… and {stat.st_size} bytes); {remedy}."
        )
    _verified[key] = actual


def open_stage(folder: Path | str, stage: str, *or_stages: str, overwrite: str | None = None) -> Manifest:
    """The manifest of a finished stage, or of one of `or_stages`, after every file in it was checked against its sha256
    (once a process); messages name `overwrite`, by default the stage, as the option that builds it again. Raises
    MissingError if no finished stage stands there, or another one, and DamagedError if a file is missing or changed."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise MissingError(f"No finished '{stage}' stage in {folder}; run `tigerrec {stage}` with the same options.")
    if manifest.stage not in (stage, *or_stages):
        raise MissingError(
            f"{folder} holds the stage '{manifest.stage}', not '{stage}'; give the folder of a '{stage}' stage."
        )
    if manifest.schema != SCHEMA:
        raise StaleError(
            f"{folder} was written in format {manifest.schema}, this version reads {SCHEMA}; "
            f"{rebuilding(manifest.stage, overwrite)}."
        )
    remedy = rebuilding(manifest.stage, overwrite)
    for name, entry in manifest.files.items():
        _verify_file(folder / name, entry, remedy)
    return manifest


def input_record(folder: Path) -> dict[str, Any]:
    """What a manifest keeps of an input stage: fingerprint, content and configuration."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise MissingError(f"No finished stage in {folder}; run the stage that makes it first.")
    return {"fingerprint": manifest.fingerprint, "content": manifest.content, "config": manifest.config}


def input_records(folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """What a manifest keeps of several input stages, by name."""
    return {name: input_record(folder) for name, folder in folders.items()}


def check_current(
    folder: Path,
    stage: str,
    config: Any,
    inputs: Mapping[str, Mapping[str, Any]],
    name_option: str,
    overwrite: str | None = None,
) -> bool:
    """Whether a finished, undamaged stage made of exactly this stands in the folder; False where none stands.

    `inputs` holds an `input_record` (or at least a fingerprint) a name; messages name `name_option`, which would keep
    both versions, and `overwrite` as in `open_stage`. Raises StaleError, which names what changed, if a finished stage
    stands there but was made of something else, and DamagedError if a file is missing or changed.
    """
    if read_manifest(folder) is None:
        return False
    manifest = open_stage(folder, stage, overwrite=overwrite)
    differences = changed_keys(manifest.config, json.loads(canonical_json(describe(config))))
    for name in sorted(set(inputs) | set(manifest.inputs)):
        old, new = manifest.inputs.get(name, {}), inputs.get(name, {})
        if any(old.get(key) != new.get(key) for key in ("fingerprint", "content")):
            keys = changed_keys(old.get("config"), new.get("config"))
            differences.append(f"made from other {name}" + (f" ({', '.join(keys)})" if keys else ""))
    if differences:
        raise StaleError(
            f"{folder} was made with other settings ({'; '.join(differences)}); add `{name_option}=<new name>` to keep "
            f"both, or add `overwrite={overwrite or stage}` to build it again."
        )
    return True


FOLLOWING = {"prepare": "embed", "embed": "tokenize", "tokenize": "train", "train": "evaluate"}
"""Stage → the first that has to be built again when it was."""


def check_made_from(folder: Path, manifest: Manifest, name: str, upstream: Path) -> None:
    """Refuse a finished stage beside an input stage that it was not made from. Raises StaleError if the stage in
    `upstream` is not the `name` that the manifest of `folder` records."""
    recorded, present = manifest.inputs.get(name, {}), input_record(upstream)
    if any(recorded.get(key) != present[key] for key in ("fingerprint", "content")):
        raise StaleError(
            f"{folder} was made from another '{name}' than the one in {upstream}; "
            f"{rebuilding(manifest.stage, FOLLOWING.get(name))}."
        )


class StageFiles:
    """The files of a stage that is being written to `folder`, but until all of them are whole in the folder `aside`;
    `entries` is what the manifest will say of each file, `provenance` of how they came about."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.aside = folder, folder / ASIDE
        self.entries: dict[str, dict[str, Any]] = {}
        self.provenance: dict[str, Any] = {}

    def _record(self, name: str, measured: bool) -> None:
        path = self.aside / name
        self.entries[name] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        if measured:
            self.entries[name]["measured"] = True

    @contextlib.contextmanager
    def create(self, name: str, measured: bool = False) -> Iterator[Path]:
        """A temporary path to write the file `name` to; `measured` files hold timings and do not count as content."""
        with atomic(self.aside / name) as temporary:
            yield temporary
        self._record(name, measured)

    def adopt(self, path: Path, name: str, measured: bool = False) -> None:
        """Take a finished file from elsewhere on the same disk."""
        open_to_readers(path)
        fsync(path)
        os.replace(path, self.aside / name)
        self._record(name, measured)

    def copy(self, path: Path, sha256: str | None = None) -> None:
        """Write a copy of a file under its own name. Raises ArtifactError if its bytes are not those of a sha256."""
        with self.create(path.name) as temporary:
            shutil.copyfile(path, temporary)
        if sha256 not in (None, self.entries[path.name]["sha256"]):
            raise ArtifactError(f"{path} changed while it was copied; run the same command again.")

    def json(self, name: str, value: Any, measured: bool = False) -> None:
        """Write a JSON file."""
        write_json(self.aside / name, value)
        self._record(name, measured)

    def parquet(self, name: str, table: Any) -> None:
        """Write a `pyarrow.Table`."""
        import pyarrow.parquet

        with self.create(name) as temporary:
            pyarrow.parquet.write_table(table, temporary)

    def arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Write numpy arrays by name as safetensors."""
        import numpy
        from safetensors.numpy import save_file

        with self.create(name) as temporary:
            save_file({key: numpy.ascontiguousarray(value) for key, value in arrays.items()}, temporary)

    def commit(self, manifest: Mapping[str, Any]) -> None:
        """Take the place of an older version of the stage, which stays whole until that moment."""
        write_json(self.aside / MANIFEST, manifest)
        try:
            older = read_manifest(self.folder)
        except DamagedError:
            older = None
        replace_together(self.folder, [*self.entries, MANIFEST], [*older.files, MANIFEST] if older else [])


@contextlib.contextmanager
def writing(
    out: Path,
    stage: str,
    config: Any,
    inputs: Mapping[str, Path] | None = None,
    sources: Mapping[str, str] | None = None,
    started: float | None = None,
) -> Iterator[StageFiles]:
    """Write a stage: yields its files, which take the place of an older version of the stage at once, if the body ended
    well. `inputs` are the stage folders read, by stage name; `sources` the sha256 of files read from outside, by role;
    `started` is when the work began, on `time.perf_counter`, now by default. Raises ArtifactError if the folder cannot
    be written or an input is no finished stage."""
    records = input_records(inputs or {})
    records |= {name: {"fingerprint": digest} for name, digest in (sources or {}).items()}
    started = time.perf_counter() if started is None else started
    files = StageFiles(out)
    try:
        settle(out)
        files.aside.mkdir(parents=True)
    except OSError as error:
        raise not_writable(out, error) from None
    try:
        yield files
        manifest = {
            "stage": stage,
            "schema": SCHEMA,
            "config": json.loads(canonical_json(describe(config))),
            "inputs": records,
            "fingerprint": fingerprint(stage, config, {name: made["fingerprint"] for name, made in records.items()}),
            "content": content_digest(files.entries),
            "files": files.entries,
            "provenance": provenance(started) | files.provenance,
        }
        files.commit(manifest)
    except Exception as error:
        if system_code(error) in FULL:
            raise write_failure(out, error) from error
        raise
    finally:
        settle(out)
        with contextlib.suppress(OSError):  # it holds something, or is not there
            out.rmdir()


def working_files(folder: Path) -> list[Path]:
    """What an unfinished run left in a stage's folder."""
    return [folder / name for name in WORKING_FILES if (folder / name).exists()]


def begin_rebuild(folder: Path, identity: str) -> None:
    """Note that a finished stage is to be built again of what `identity` says, and forget what an unfinished run left,
    unless it was building the same again. The older version stays until the newer one takes its place; until then
    `rebuild_of` says so, in later processes too."""
    if rebuild_of(folder) != identity:
        discard_working_files(folder)
        with atomic(folder / REBUILD) as temporary:
            temporary.write_text(identity, encoding="utf-8")


def rebuild_of(folder: Path) -> str | None:
    """The identity of a rebuild that was begun and has not come to its end, or None."""
    path = folder / REBUILD
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def end_rebuild(folder: Path) -> None:
    """Note that a stage is built, or that its rebuild came to nothing."""
    (folder / REBUILD).unlink(missing_ok=True)


def discard_working_files(folder: Path) -> None:
    """Forget what an unfinished run left in a stage's folder to go on from."""
    settle(folder)
    for path in working_files(folder):
        remove_tree(path)
