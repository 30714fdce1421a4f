"""Stage folders: whole or not there, damage and staleness refused, one writer at a time, and the same bytes after any
crash."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest

from tests import crashes
from tigerrec import TigerrecError
from tigerrec.runtime import provenance
from tigerrec.storage.contracts import read_arrays, read_json, read_table
from tigerrec.storage.files import ASIDE, CURRENT, KEPT, ArtifactError, BusyError, atomic, locked, settle, write_json
from tigerrec.storage.fingerprints import SCHEMA, fingerprint, not_identity
from tigerrec.storage.manifests import MANIFEST, MANIFEST_LIMIT, DamagedError, MissingError, StaleError, read_manifest
from tigerrec.storage.stages import check_current, check_made_from, input_record, open_stage, writing


@dataclasses.dataclass(frozen=True)
class Part:
    family: ClassVar[str] = "part"
    width: int = 4


@dataclasses.dataclass(frozen=True)
class Config:
    part: Part = Part()
    levels: tuple[int, ...] = (2, 3)
    seed: int = 0
    device: str = not_identity(default="cpu")


def write(
    folder: Path, seed: int = 0, *, stage: str = "embed", seconds: float = 0.0, inputs: dict[str, Path] | None = None
) -> Path:
    """A small stage; `seed` decides its content."""
    with writing(folder, stage, Config(seed=seed), inputs=inputs) as out:
        out.json("facts.json", {"seed": seed, "name": "näme"})
        out.arrays("arrays.safetensors", {"values": np.arange(seed, seed + 5, dtype=np.float32)})
        out.json("timing.json", {"seconds": seconds}, measured=True)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a stage by name without what may differ between two runs: provenance and measurements."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    del manifest["provenance"], manifest["files"]["timing.json"]
    found = {name: (folder / name).read_bytes() for name in manifest["files"]}
    return found | {MANIFEST: json.dumps(manifest, sort_keys=True).encode()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert isinstance(error, TigerrecError)
    assert "\n" not in text
    assert text.endswith(".")
    return text


# Writing


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    for fault in (ValueError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(fault)), atomic(path) as temporary:  # noqa: PT012
            temporary.write_text("half")
            raise fault
        assert names(path.parent) == set()
    with atomic(path) as temporary:
        temporary.write_text("whole")
    with pytest.raises(ValueError, match="mine"), atomic(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise ValueError("mine")
    assert path.read_text() == "whole"
    assert names(path.parent) == {"file.txt"}


def test_a_stage_is_there_once_all_of_it_is(tmp_path):
    with pytest.raises(ValueError, match="mine"), writing(tmp_path / "new", "embed", Config()) as out:  # noqa: PT012
        out.json("facts.json", {})
        assert read_manifest(tmp_path / "new") is None
        raise ValueError("mine")
    assert not (tmp_path / "new").exists()
    with pytest.raises(MissingError, match=r"No finished 'embed' stage in .*; run `tigerrec embed`"):
        open_stage(tmp_path / "new", "embed")


def test_a_stage_stays_until_the_whole_of_a_newer_one_is_on_disk(tmp_path):
    older = contents(write(tmp_path))
    with pytest.raises(ValueError, match="mine"), writing(tmp_path, "embed", Config(seed=1)) as out:  # noqa: PT012
        out.json("facts.json", {"seed": 1})
        open_stage(tmp_path, "embed")
        raise ValueError("mine")
    assert contents(tmp_path) == older
    with writing(tmp_path, "embed", Config(seed=1)) as out:
        out.json("other.json", {})
    assert names(tmp_path) == {"other.json", MANIFEST}


def test_a_manifest_says_what_the_stage_is(tmp_path):
    upstream = write(tmp_path / "up", stage="prepare")
    folder = write(tmp_path / "down", 3, inputs={"prepare": upstream})
    manifest = open_stage(folder, "embed")
    assert manifest.config == {
        "part": {"family": "part", "width": 4},
        "levels": [2, 3],
        "seed": 3,
    }
    assert set(manifest.files) == {"facts.json", "arrays.safetensors", "timing.json"}
    assert manifest.inputs["prepare"]["fingerprint"] == read_manifest(upstream).fingerprint
    assert manifest.fingerprint == fingerprint(
        "embed", Config(seed=3), {"prepare": manifest.inputs["prepare"]["fingerprint"]}
    )
    assert {"versions", "seconds", "finished", "machine"} <= set(manifest.provenance)
    assert read_json(folder, "facts.json") == {"seed": 3, "name": "näme"}
    assert read_arrays(folder, "arrays.safetensors")["values"].tolist() == [3, 4, 5, 6, 7]


def test_tables_and_adopted_files(tmp_path):
    table = pa.table({"item": pa.array([0, 1], pa.int32()), "title": ["a", None]})
    (tmp_path / "elsewhere").write_text("made by another library")
    with writing(tmp_path / "out", "prepare", Config()) as out:
        out.parquet("items.parquet", table)
        out.adopt(tmp_path / "elsewhere", "config.json")
    open_stage(tmp_path / "out", "prepare")
    assert read_table(tmp_path / "out", "items.parquet").equals(table)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o755, 0o775, 0o700])
def test_files_can_be_read_by_those_who_may_read_their_folder(tmp_path, mode):
    before = os.umask(0o777 & ~mode)
    try:
        folder = write(tmp_path / "stage")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {mode & 0o666}


def test_files_in_a_folder_of_all_are_no_more_open_than_the_user_wants(tmp_path):
    tmp_path.chmod(0o1777)
    before = os.umask(0o077)
    try:
        write_json(tmp_path / "page.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "page.json").stat().st_mode & 0o777 == 0o600


def test_an_input_must_be_finished(tmp_path):
    (tmp_path / "up").mkdir()
    with pytest.raises(MissingError, match="No finished stage in"):
        write(tmp_path / "down", inputs={"prepare": tmp_path / "up"})
    assert not (tmp_path / "down").exists()


@pytest.mark.parametrize("below", ["stage", "stage/deeper"])
def test_a_file_in_the_place_of_the_folder(tmp_path, below):
    (tmp_path / "stage").write_text("")
    with pytest.raises(
        ArtifactError, match=r"Cannot write in .*; choose another place: `paths.runs=<folder>`, "
    ) as caught:
        write(tmp_path / below)
    one_sentence(caught.value)
    with pytest.raises(ArtifactError, match="Cannot write in"), locked(tmp_path / below):
        pass
    assert read_manifest(tmp_path / below) is None


# Reading what is damaged


def test_any_flipped_bit_is_found(tmp_path):
    folder = write(tmp_path / "stage")
    for name in sorted(names(folder) - {MANIFEST}):
        path, whole = folder / name, (folder / name).read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(
                DamagedError,
                match=rf"{name} is damaged \(expected sha256 .* found .*\); run `tigerrec embed` .*`overwrite=embed`",
            ) as caught:
                open_stage(folder, "embed")
            one_sentence(caught.value)
        path.write_bytes(whole)
        open_stage(folder, "embed")


def test_a_flipped_bit_in_the_manifest_is_found_or_harmless(tmp_path):
    folder = write(tmp_path / "stage", inputs={"prepare": write(tmp_path / "up", stage="prepare")})
    path = folder / MANIFEST
    whole, before = path.read_bytes(), read_manifest(folder)
    refused = 0
    for place in range(0, whole.index(b'"provenance"'), 2):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            after = open_stage(folder, "embed")
        except ArtifactError as error:
            refused += 1
            one_sentence(error)
        else:  # white space, or what is kept of an input, which is held against the input itself
            assert dataclasses.replace(after, inputs={}, provenance={}) == dataclasses.replace(
                before, inputs={}, provenance={}
            )
            assert after.inputs["prepare"]["fingerprint"] == before.inputs["prepare"]["fingerprint"]
    assert refused > 100


@pytest.mark.parametrize("fault", ["truncated", "emptied", "deleted", "a folder"])
@pytest.mark.parametrize("name", ["facts.json", "arrays.safetensors"])
def test_a_file_that_is_not_whole_is_refused(tmp_path, name, fault):
    path = write(tmp_path / "stage") / name
    whole = path.read_bytes()
    path.unlink()
    if fault == "a folder":
        path.mkdir()
    elif fault != "deleted":
        path.write_bytes(whole[: len(whole) // 2] if fault == "truncated" else b"")
    with pytest.raises(
        DamagedError,
        match=rf"{name} .*; run `tigerrec embed` with its options and `overwrite=embed` to build it again\.$",
    ) as caught:
        open_stage(tmp_path / "stage", "embed")
    one_sentence(caught.value)


def edited(**changes):
    return lambda manifest: json.dumps(manifest | changes).encode()


def naming(name):
    return lambda manifest: json.dumps(manifest | {"files": {name: {"sha256": "0" * 64, "bytes": 1}}}).encode()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda manifest: b"", "is not valid JSON"),
        (lambda manifest: b"\xff\xfe{", "is not valid JSON"),
        (lambda manifest: b"[" * 100_000, "is not valid JSON"),
        (lambda manifest: b'{"stage": ' + b"9" * 10_000 + b"}", "is not valid JSON"),
        (lambda manifest: b"[]", "is not a JSON object"),
        (lambda manifest: b"{}", "has no valid 'stage'"),
        (edited(files=[]), "has no valid 'files'"),
        (edited(schema="1"), "has no valid 'schema'"),
        (edited(files={"a": {"sha256": 5, "bytes": 1}}), "has no valid sha256 and size for 'a'"),
        (edited(files={"a": {"sha256": int("1" * 64), "bytes": 1}}), "has no valid sha256 and size for 'a'"),
        (edited(files={"a": None}), "has no valid sha256 and size for 'a'"),
        (edited(inputs={"prepare": {}}), "has no valid fingerprint for its input 'prepare'"),
        (edited(config={"seed": float("nan")}), "is not valid JSON"),
        (edited(config={"seed": 1}), "does not agree with its own fingerprint"),
        (edited(files={}), "does not agree with its own fingerprint"),
        (naming("../../x"), "names a file outside its folder"),
        (naming("a/../../x"), "names a file outside its folder"),
        (naming("/etc/passwd"), "names a file outside its folder"),
        (naming("a\0"), "names a file outside its folder"),
        (naming(""), "names a file outside its folder"),
        (naming("\ud800"), "is not valid JSON"),
        (lambda manifest: b" " * (MANIFEST_LIMIT + 1), "is larger than any manifest"),
    ],
)
def test_a_manifest_that_cannot_be_one(tmp_path, make, complaint):
    path = write(tmp_path / "stage") / MANIFEST
    path.write_bytes(make(json.loads(path.read_bytes())))
    for read in (lambda: open_stage(path.parent, "embed"), lambda: input_record(path.parent)):
        with pytest.raises(DamagedError, match=complaint) as caught:
            read()
        assert one_sentence(caught.value).endswith("; delete it and run the stage again.")


def test_a_folder_in_the_place_of_the_manifest(tmp_path):
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(DamagedError, match=r"cannot be read \(Is a directory\)"):
        open_stage(tmp_path, "embed")


def test_another_stage_or_format(tmp_path):
    folder = write(tmp_path / "stage")
    with pytest.raises(MissingError, match="holds the stage 'embed', not 'train'"):
        open_stage(folder, "train")
    assert open_stage(folder, "train", "embed").stage == "embed"
    path = folder / MANIFEST
    path.write_bytes(edited(schema=SCHEMA + 1)(json.loads(path.read_bytes())))
    with pytest.raises(
        StaleError, match=r"was written in format 2, this version reads 1; run `tigerrec embed` .*`overwrite=embed`"
    ):
        open_stage(folder, "embed")


def test_a_moved_folder_is_still_valid(tmp_path):
    upstream = write(tmp_path / "a" / "up", stage="prepare")
    folder = write(tmp_path / "a" / "up" / "down", inputs={"prepare": upstream})
    shutil.move(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b" / "up" / "facts.json", (0, 0))
    moved = tmp_path / "b" / "up" / folder.name
    assert check_current(moved, "embed", Config(), {"prepare": input_record(moved.parent)}, "embedder.name")
    check_made_from(moved, open_stage(moved, "embed"), "prepare", moved.parent)


# Identity


def test_the_fingerprint_knows_what_counts():
    same = fingerprint("embed", Config(), {"prepare": "1"})
    assert fingerprint("embed", Config(device="cuda"), {"prepare": "1"}) == same
    others = [
        fingerprint("train", Config(), {"prepare": "1"}),
        fingerprint("embed", Config(seed=1), {"prepare": "1"}),
        fingerprint("embed", Config(part=Part(5)), {"prepare": "1"}),
        fingerprint("embed", Config(levels=(2, 3, 4)), {"prepare": "1"}),
        fingerprint("embed", Config(), {"prepare": "2"}),
        fingerprint("embed", Config(), {"tokenize": "1"}),
        fingerprint("embed", Part(), {"prepare": "1"}),
    ]
    assert len({same, *others}) == len(others) + 1


def test_measurements_are_no_content(tmp_path):
    first, again, other = write(tmp_path / "1"), write(tmp_path / "2", seconds=5.0), write(tmp_path / "3", 1)
    digests = [read_manifest(folder).content for folder in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]


def test_current_or_stale(tmp_path):
    upstream = write(tmp_path / "up", stage="prepare")
    folder = tmp_path / "down"

    def current(config=Config()):
        return check_current(folder, "embed", config, {"prepare": input_record(upstream)}, "embedder.name")

    assert not current()
    write(folder, inputs={"prepare": upstream})
    assert current()
    assert current(Config(device="cuda"))
    with pytest.raises(
        StaleError,
        match=r"\(part.width: 4 → 5; seed: 0 → 7\); add `embedder.name=<new name>` to keep both, or add "
        r"`overwrite=embed`",
    ) as caught:
        current(Config(part=Part(5), seed=7))
    one_sentence(caught.value)
    write(upstream, 1, stage="prepare")
    with pytest.raises(StaleError, match=r"made from other prepare \(seed: 0 → 1\)"):
        current()


def test_other_content_under_one_fingerprint_is_stale(tmp_path):
    upstream = tmp_path / "up"
    for values in ([0.5], [0.25]):
        with writing(upstream, "embed", Config()) as out:
            out.arrays("a.safetensors", {"a": np.array(values)})
        if not (tmp_path / "down").exists():
            write(tmp_path / "down", stage="tokenize", inputs={"embed": upstream})
    folder = tmp_path / "down"
    with pytest.raises(StaleError, match="made from other embed"):
        check_current(folder, "tokenize", Config(), {"embed": input_record(upstream)}, "tokenizer")
    with pytest.raises(
        StaleError,
        match=r"was made from another 'embed' than the one in .*; run `tigerrec tokenize` .*`overwrite=tokenize`",
    ):
        check_made_from(folder, open_stage(folder, "tokenize"), "embed", upstream)


# One writer at a time

HOLD = (
    "import sys, pathlib; from tigerrec.storage.files import locked\n"
    "with locked(pathlib.Path(sys.argv[1])): print('held', "
    "flush=True); sys.stdin.read()"
)


@contextlib.contextmanager
def held_elsewhere(folder):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


def test_the_second_is_refused_and_told_who_is_first(tmp_path):
    with held_elsewhere(tmp_path) as process:
        with (
            pytest.raises(
                BusyError, match=f"is being written by process {process.pid} on .*; wait for it to end"
            ) as caught,
            locked(tmp_path),
        ):
            pass
        one_sentence(caught.value)
    with locked(tmp_path):
        pass


def test_waiting_for_the_first(tmp_path):
    with held_elsewhere(tmp_path) as process:
        announced = []

        def announce(text):
            announced.append(text)
            process.stdin.close()

        with locked(tmp_path, wait=True, announce=announce):
            assert f"waiting for process {process.pid}" in announced[0]


def test_a_lock_leaves_no_folder_that_it_made(tmp_path):
    with locked(tmp_path / "empty"):
        pass
    with locked(tmp_path / "full"):
        (tmp_path / "full" / "result").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_who_waited_for_a_lock_that_went_with_its_folder_holds_the_next(tmp_path):
    folder = tmp_path / "run"
    with held_elsewhere(folder) as process:

        def announce(text):
            process.stdin.close()

        with locked(folder, wait=True, announce=announce):
            process.wait()
            with pytest.raises(BusyError), locked(folder):
                pass
    assert not folder.exists()


def test_a_killed_process_leaves_no_lock(tmp_path):
    with held_elsewhere(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with locked(tmp_path):
            pass


# Crashes and a full disk


@pytest.fixture
def quiet(monkeypatch):
    """No child processes, no look into installed packages and no waiting for the disk, which a crash test has no use
    for."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(provenance, "_git_commit", lambda: None)
    monkeypatch.setattr(provenance, "_versions", dict)


def write_version(folder: Path, seed: int) -> None:
    """A stage that also has a file which no other version has."""
    with writing(folder, "embed", Config(seed=seed)) as out:
        out.json("facts.json", {"seed": seed})
        out.json(f"only-{seed}.json", {})
        out.json("timing.json", {"seconds": 0.0}, measured=True)


@pytest.mark.parametrize("by", ["SIGKILL", "Ctrl-C", "power cut"])
@pytest.mark.parametrize("older", [False, True])
def test_crash_anywhere_then_run_again(tmp_path, quiet, by, older):
    """A reader, who changes nothing, finds the older version or the newer one; nothing only where nothing was."""
    for seed in (0, 1):
        write_version(tmp_path / f"expected-{seed}", seed)
    expected = {seed: contents(tmp_path / f"expected-{seed}") for seed in (0, 1)}
    seen = set()
    for number in range(1_000):
        folder = tmp_path / f"crash-{number}"
        if older:
            write_version(folder, 0)
        if not crashes.dies(folder, lambda folder=folder: write_version(folder, 1), number, by):
            break
        for _ in range(2):  # as the crash left it, and settled
            if read_manifest(folder) is None:
                seen.add("none")
            else:
                open_stage(folder, "embed")
                seen.add({0: "old", 1: "new"}[list(expected.values()).index(contents(folder))])
            settle(folder)
            assert not {ASIDE, KEPT, CURRENT} & (names(folder) if folder.exists() else set())
        write_version(folder, 1)
        assert contents(folder) == expected[1]
        assert names(folder) == {*expected[1], "timing.json"}
        shutil.rmtree(folder)
    assert number > 15
    assert seen == ({"old", "new"} if older else {"none", "new"})


@pytest.mark.parametrize("refused", ["link", "symlink"])
def test_a_file_system_without_links(tmp_path, monkeypatch, refused):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, refused, refuse)
    for seed in (0, 1):
        write_version(tmp_path, seed)
        open_stage(tmp_path, "embed")
        assert names(tmp_path) == {MANIFEST, "facts.json", "timing.json", f"only-{seed}.json"}


FULL_DISK = """
import pathlib, resource, sys
import numpy as np, pyarrow as pa
from tigerrec import TigerrecError
from tigerrec.storage.stages import writing
folder, kind, limit = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
values = np.random.default_rng(0).random(5_000)
try:
    with writing(folder, "embed", {}) as out:
        if kind == "json": out.json("file", values.tolist())
        if kind == "arrays": out.arrays("file", {"values": values})
        if kind == "parquet": out.parquet("file", pa.table({"values": values}))
        if kind == "library":
            from safetensors.numpy import save_file
            save_file({"values": values}, folder / "scratch")
        if kind == "faiss":
            import faiss
            index = faiss.IndexFlatL2(8)
            index.add(np.zeros((2_000, 8), "float32"))
            with out.create("file") as temporary:
                faiss.write_index(index, str(temporary))
except TigerrecError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("kind", ["json", "arrays", "parquet", "library", "faiss"])
@pytest.mark.parametrize("limit", [0, 4_096])
def test_a_full_disk_is_one_sentence_and_nothing_torn(tmp_path, kind, limit):
    folder = tmp_path / "stage"
    folder.mkdir()
    (folder / "file").write_text("older")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder), kind, str(limit)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "Could not write" in done.stderr
    assert "the disk is full or the file too large" in done.stderr
    assert names(folder) == {"file"}
    assert (folder / "file").read_text() == "older"


def test_a_fault_of_the_program_is_not_called_a_full_disk(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    with pytest.raises(RuntimeError, match="cannot write this"), atomic(tmp_path / "a.json"):
        raise RuntimeError("cannot write this")
    with (
        pytest.raises(ArtifactError, match=r"Could not write .* \(No such file or directory\)"),
        atomic(tmp_path / "a.json") as temporary,
    ):
        (temporary / "no folder").write_text("")
    assert names(tmp_path) == set()


def test_left_over_temporaries_go_with_the_next_run(tmp_path):
    (tmp_path / ASIDE).mkdir()
    for name in (f"{ASIDE}/.facts.json.tmp", f"{ASIDE}/.tmpAbCdEf", ".lock", "mine.tmp"):
        (tmp_path / name).write_text("")
    write(tmp_path)
    assert names(tmp_path) == {
        ".lock",
        "mine.tmp",
        "facts.json",
        "arrays.safetensors",
        "timing.json",
        MANIFEST,
    }
