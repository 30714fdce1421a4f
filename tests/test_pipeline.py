"""The public commands on the bundled sample, made tiny: what is missing runs, what is there is skipped, what is stale
or damaged is refused."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
from omegaconf import OmegaConf

from tigerrec import pipeline
from tigerrec.cli import main
from tigerrec.config import ConfigError, compose
from tigerrec.data import amazon
from tigerrec.pipeline import STAGES, plan
from tigerrec.runtime.signals import Interrupted
from tigerrec.storage.fingerprints import content_digest
from tigerrec.storage.manifests import DamagedError, StaleError
from tigerrec.text import GROUPS, MAKE_TARGETS, make_command, same_command
from tigerrec.tokenizers.random import RandomCodes

ROOT = Path(__file__).parent.parent
TINY = shlex.split(
    "embedder=hashed embedder.dim=16 tokenizer=random tokenizer.codebook_size=8 tokenizer.levels=2 "
    "generator.num_layers=1 generator.d_model=16 generator.num_heads=2 generator.d_kv=8 generator.d_ff=16 "
    "generator.max_items=5 "
    "train.epochs=1 train.part_tokens=8192 train.validation_users=50 evaluate.batch_tokens=65536"
)
TRAINED = Path("sample/hashed/random-seed0/t5-packed-seed0")
METRICS = ["hr@1", "hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20"]


def arguments(name, runs, options) -> list[str]:
    flags = [option for option in options if option.startswith("-")]  # these must come first or last
    return [
        name,
        *flags,
        *TINY,
        f"paths.runs={runs}",
        *(option for option in options if option not in flags),
    ]


def script(runs, *options, name="evaluate", cwd=ROOT, env=None):
    """A command with the tiny options and more, in a process of its own."""
    command = [sys.executable, "-m", "tigerrec", *arguments(name, runs, options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def here(command):
    """The same in this process."""
    return lambda runs, *options, name="evaluate": command(*arguments(name, runs, options))


def succeeded(done) -> Path:
    """The folder a finished script printed as its last line."""
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


def refused(done) -> str:
    """The one sentence of a script that refused."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert not done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert done.stderr.splitlines()[-1] == errors[0]
    assert errors[0].endswith(".")
    return errors[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The whole pipeline, run once; tests read it or work on a copy."""
    cwd, runs = tmp_path_factory.mktemp("cwd"), tmp_path_factory.mktemp("runs")
    (cwd / "data").symlink_to(ROOT / "data")
    done = script(runs, cwd=cwd)
    assert succeeded(done) == runs / TRAINED / "eval-full"
    assert [path.name for path in cwd.iterdir()] == ["data"]
    return runs, done


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished runs, to damage."""
    shutil.copytree(finished[0], tmp_path / "runs")
    return tmp_path / "runs"


def manifests(runs) -> dict[str, int]:
    """When each stage was finished, by stage, in nanoseconds."""
    return {json.loads(path.read_bytes())["stage"]: path.stat().st_mtime_ns for path in runs.rglob("manifest.json")}


def test_all_stages_stand_where_the_contract_says(finished):
    runs, done = finished
    assert done.stdout == f"{runs / TRAINED / 'eval-full'}\n"
    expected = {
        "sample": {"items.parquet", "users.parquet", "interactions.parquet", "stats.json"},
        "sample/hashed": {"embeddings.safetensors"},
        "sample/hashed/random-seed0": {
            "semantic_ids.parquet",
            "tokenizer.json",
            "tokenizer.safetensors",
            "diagnostics.json",
        },
        str(TRAINED): {"config.json", "generation_config.json", "model.safetensors", "training.jsonl"},
        f"{TRAINED}/eval-full": {"metrics.json", "recommendations.parquet", "ranks.parquet"},
    }
    for folder, names in expected.items():
        found = {path.name for path in (runs / folder).iterdir() if path.is_file() and not path.name.startswith(".")}
        assert found == names | {"manifest.json"}
    assert {path.name for path in runs.iterdir()} == {"sample", ".hydra"}
    for stage in STAGES:
        assert f"\n{stage}: done in " in done.stderr
    assert f"next: tigerrec recommend {runs / TRAINED} --items " in done.stderr
    assert "dataset=beauty runs the real thing" in done.stderr


def test_the_metrics_are_flat_rows(finished):
    folder = finished[0] / TRAINED / "eval-full"
    rows = json.loads((folder / "metrics.json").read_text())
    keys = [
        "model",
        "split",
        "hit",
        "seen",
        "users",
        *METRICS,
        *(f"{name}_{end}" for name in METRICS for end in ("low", "high")),
    ]
    assert all(sorted(row) == sorted(keys) for row in rows)
    expected = {
        (model, hit, seen) for model in ("t5", "popularity") for hit in ("item", "sid") for seen in ("kept", "masked")
    }
    assert {(row["model"], row["hit"], row["seen"]) for row in rows} == expected
    assert len(rows) == len(expected)
    assert {(row["split"], row["users"]) for row in rows} == {("test", 2_000)}
    for row in rows:
        assert all(0 <= row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] <= 1 for name in METRICS)
    ranks = pyarrow.parquet.read_table(folder / "ranks.parquet").to_pandas()
    for row in rows:  # recomputed from the file beside it
        chosen = ranks[(ranks.model == row["model"]) & (ranks.hit == row["hit"]) & (ranks.seen == row["seen"])]
        assert ((chosen["rank"] >= 1) & (chosen["rank"] <= 10)).mean() == pytest.approx(row["hr@10"], abs=1e-12)


def test_the_second_run_skips_everything_without_heavy_imports(finished):
    runs, _ = finished
    before = manifests(runs)
    done = script(runs, env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert succeeded(done) == runs / TRAINED / "eval-full"
    for stage, folder in zip(
        STAGES, ("sample", "sample/hashed", "sample/hashed/random-seed0", TRAINED, TRAINED / "eval-full"), strict=True
    ):
        assert f"{stage}: up to date in {runs / folder}\n" in done.stderr
    assert "done in" not in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "numpy" in imported
    assert not imported & {"torch", "transformers", "faiss", "sentence_transformers", "pandas", "sklearn", "scipy"}
    assert manifests(runs) == before


@pytest.mark.parametrize(
    ("name", "folder", "following"),
    [
        ("prepare", "sample", "tigerrec embed embedder=hashed embedder.dim=16 "),
        ("embed", "sample/hashed", "tigerrec tokenize embedder=hashed "),
        ("tokenize", "sample/hashed/random-seed0", "tigerrec train embedder=hashed "),
        ("train", str(TRAINED), "tigerrec evaluate embedder=hashed "),
        ("evaluate", f"{TRAINED}/eval-full", "tigerrec recommend "),
    ],
)
def test_each_stage_is_a_command_and_names_the_next(here, finished, name, folder, following):
    done = here(finished[0], name=name)
    assert succeeded(done) == finished[0] / folder
    assert f"\nnext: {following}" in done.stderr


def test_a_changed_option_is_refused_with_the_key_and_the_remedy(here, finished):
    runs, _ = finished
    text = refused(here(runs, "train.epochs=2"))
    assert f"{runs / TRAINED} was made with other settings (training.epochs: 1 → 2)" in text
    assert "add `train.name=<new name>` to keep both, or add `overwrite=train` to build it again" in text
    assert "(dim: 16 → 8)" in refused(here(runs, "embedder.dim=8"))
    assert "(tokenizer.levels: 2 → 3)" in refused(here(runs, "tokenizer.levels=3", name="tokenize"))
    assert succeeded(here(runs, "train.log_steps=7", "evaluate.batch_tokens=100", "train.device=cpu"))


def test_overwrite_rebuilds_a_stage_and_those_below_it(here, copy):
    before = manifests(copy)
    assert succeeded(here(copy, "train.learning_rate=0.001", "overwrite=train"))
    after = manifests(copy)
    assert {stage for stage in STAGES if after[stage] != before[stage]} == {"train", "evaluate"}
    assert "overwrite='train' is not among the steps asked for; allowed: prepare, embed." in refused(
        here(copy, "overwrite=train", name="embed")
    )
    text = refused(here(copy, "overwrite=tokenize", "tokenizer.levels=1", "train.epochs=0", name="train"))
    assert text == "Error: train.epochs must be at least 1, got 0."
    assert manifests(copy) == after


def test_a_stage_under_a_rebuilt_one_is_stale(here, copy):
    assert succeeded(here(copy, "overwrite=tokenize", "tokenizer.levels=1", name="tokenize"))
    text = refused(here(copy, "tokenizer.levels=1"))
    assert "made from other tokenize (tokenizer.levels: 2 → 1)" in text
    assert "overwrite=train" in text


def test_damage_that_a_command_without_options_finds_names_what_repairs_it(command, here, copy):
    path = copy / "sample" / "items.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    asked = ["recommend", str(copy / TRAINED), "--items", "B00SP2RMPG"]
    text = refused(command(*asked))
    assert f"{path} is damaged" in text
    repair = r"run `tigerrec (\w+)` with its options and `(overwrite=\w+)` to build it again"
    named, option = re.search(repair, text).groups()
    assert succeeded(here(copy, option, name=named))
    assert path.read_bytes() == whole
    assert command(*asked).returncode == 0


def test_damage_is_refused_with_the_file(here, copy):
    path = copy / "sample" / "hashed" / "embeddings.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    text = refused(here(copy))
    assert f"{path} is damaged (expected sha256 " in text
    assert "run `tigerrec embed` with its options and `overwrite=embed` to build it again" in text
    path.write_bytes(whole)
    folder = copy / "sample" / "hashed" / "random-seed0"
    (folder / "manifest.json").write_text("{")
    assert "manifest.json is not valid JSON; delete it and run the stage again." in refused(here(copy))
    (folder / "manifest.json").unlink()
    before = (folder / "semantic_ids.parquet").read_bytes()
    done = here(copy)
    assert succeeded(done)
    assert f"tokenize: {folder}\n" in done.stderr
    assert (folder / "semantic_ids.parquet").read_bytes() == before
    assert "train: up to date" in done.stderr  # as it was made from the same bytes


FUSED = ["embedder=fusion", "embedder@embedder.parts.text=hashed", "embedder.parts.text.dim=16", "embedder.dim=8"]


@pytest.fixture(scope="module")
def fused_once(tmp_path_factory):
    runs = tmp_path_factory.mktemp("fused")
    assert (
        pipeline.run(compose([*TINY, *FUSED, f"paths.runs={runs}"]), "tokenize") == runs / "sample/fusion/random-seed0"
    )
    return runs


@pytest.fixture
def fused(fused_once, tmp_path):
    """A copy of runs in which fused vectors of hashed and collaborative ones were tokenized."""
    shutil.copytree(fused_once, tmp_path / "runs")
    return tmp_path / "runs"


def finished_at(runs) -> dict[str, int]:
    """When each step was finished, by folder in the data set's, in nanoseconds."""
    return {
        str(path.parent.relative_to(runs / "sample")): path.stat().st_mtime_ns for path in runs.rglob("manifest.json")
    }


def changed(runs, before) -> set[str]:
    after = finished_at(runs)
    return {folder for folder in after if after[folder] != before.get(folder)}


def test_fused_vectors_are_one_command_and_their_parts_are_shared(here, fused):
    before = finished_at(fused)
    assert set(before) == {".", "hashed", "collaborative", "fusion", "fusion/random-seed0"}
    inputs = json.loads((fused / "sample/fusion/manifest.json").read_bytes())["inputs"]
    assert set(inputs) == {"prepare", "text", "collaborative"}
    assert inputs["text"]["config"]["family"] == "hashed"
    assert succeeded(here(fused, *FUSED, name="tokenize")) == fused / "sample/fusion/random-seed0"
    assert succeeded(here(fused, *FUSED, name="embed")) == fused / "sample/fusion"
    assert succeeded(here(fused, name="embed")) == fused / "sample/hashed"
    done = here(fused, "embedder=collaborative", "embedder.dim=64", name="embed")
    assert succeeded(done) == fused / "sample/collaborative"
    assert f"embed: up to date in {fused}/sample/collaborative\n" in done.stderr
    assert not changed(fused, before)


def test_a_changed_part_is_refused_and_rebuilt_by_its_own_name(here, fused):
    before = finished_at(fused)
    text = refused(here(fused, *FUSED, "embedder.parts.text.dim=12", name="tokenize"))
    assert f"{fused}/sample/hashed was made with other settings (dim: 16 → 12)" in text
    assert (
        "add `embedder.parts.text.name=<new name>` to keep both, or add `overwrite=embed:hashed` to build it again"
        in text
    )
    assert not changed(fused, before)
    assert succeeded(here(fused, *FUSED, "embedder.parts.text.dim=12", "overwrite=embed:hashed", name="tokenize"))
    assert changed(fused, before) == {"hashed", "fusion", "fusion/random-seed0"}
    text = refused(here(fused, *FUSED, "embedder.parts.text.name=other", name="embed"))
    assert f"{fused}/sample/fusion was made with other settings (made from other text (dim: 12 → 16))" in text
    assert "add `embedder.name=<new name>` to keep both, or add `overwrite=embed` to build it again" in text


def test_overwriting_fused_vectors_leaves_their_parts_and_overwriting_the_data_does_not(here, fused):
    before = finished_at(fused)
    assert succeeded(here(fused, *FUSED, "overwrite=embed", name="tokenize"))
    assert changed(fused, before) == {"fusion", "fusion/random-seed0"}
    assert succeeded(here(fused, *FUSED, "overwrite=prepare", name="tokenize"))
    assert changed(fused, before) == {".", "hashed", "collaborative", "fusion", "fusion/random-seed0"}
    text = refused(here(fused, *FUSED, "overwrite=embed:minilm", name="embed"))
    assert "allowed: prepare, embed:hashed, embed:collaborative, embed." in text


def test_a_damaged_part_is_refused_with_its_own_repair(here, fused):
    path = fused / "sample/collaborative/embeddings.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    text = refused(here(fused, *FUSED, name="embed"))
    assert f"{path} is damaged" in text
    assert "run `tigerrec embed` with its options and `overwrite=embed:collaborative` to build it again" in text
    assert succeeded(here(fused, *FUSED, "overwrite=embed:collaborative", name="tokenize"))


def test_a_part_that_another_process_builds_is_waited_for(fused, monkeypatch):
    asked = {}

    @pipeline.contextlib.contextmanager
    def locked(folder, wait, announce):
        asked[folder.name] = wait
        yield

    monkeypatch.setattr(pipeline, "locked", locked)
    pipeline.run(compose([*TINY, *FUSED, f"paths.runs={fused}", "overwrite=prepare"]), "embed")
    assert asked == {"sample": True, "hashed": True, "collaborative": True, "fusion": False}


NEEDED = "+embedder@tokenizer.inputs.collaborative=collaborative"


def test_a_tokenizer_is_given_the_further_vectors_it_needs(here, fused, monkeypatch):
    given = {}
    fit = RandomCodes.fit

    def remembering(self, vectors, *, seed, extra):
        given.update(extra)
        return fit(self, vectors, seed=seed, extra=extra)

    monkeypatch.setattr(RandomCodes, "needs", ("collaborative",))
    monkeypatch.setattr(RandomCodes, "fit", remembering)
    shutil.rmtree(fused / "sample/collaborative")
    before = finished_at(fused)
    out = succeeded(here(fused, NEEDED, name="tokenize"))
    assert out == fused / "sample/hashed/random-seed0"
    assert changed(fused, before) == {"collaborative", "hashed/random-seed0"}
    assert {name: matrix.shape for name, matrix in given.items()} == {"collaborative": (492, 64)}
    inputs = json.loads((out / "manifest.json").read_bytes())["inputs"]
    recorded = json.loads((fused / "sample/collaborative/manifest.json").read_bytes())
    assert inputs["collaborative"]["fingerprint"] == recorded["fingerprint"]
    assert succeeded(here(fused, NEEDED, name="embed")) == fused / "sample/hashed"
    text = refused(here(fused, NEEDED, "tokenizer.inputs.collaborative.dim=8", name="tokenize"))
    assert (
        "add `tokenizer.inputs.collaborative.name=<new name>` to keep both, or add `overwrite=embed:collaborative` to "
        "build it again" in text
    )
    text = refused(
        here(
            fused,
            NEEDED,
            "tokenizer.inputs.collaborative.dim=8",
            "tokenizer.inputs.collaborative.name=other",
            name="tokenize",
        )
    )
    assert f"{out} was made with other settings (made from other collaborative (dim: 64 → 8))" in text
    before = finished_at(fused)
    assert succeeded(here(fused, NEEDED, "overwrite=embed", name="tokenize"))
    assert changed(fused, before) == {"hashed", "hashed/random-seed0"}


def test_raw_files_are_no_longer_needed_once_prepared(here, tmp_path):
    raw, runs = tmp_path / "raw", tmp_path / "runs"
    shutil.copytree(ROOT / "data" / "sample", raw)
    assert succeeded(here(runs, f"dataset.raw_dir={raw}", name="embed")) == runs / "sample" / "hashed"
    shutil.rmtree(raw)
    done = here(runs, f"dataset.raw_dir={raw}", name="embed")
    assert succeeded(done)
    assert "prepare: up to date" in done.stderr
    assert succeeded(here(runs, name="embed"))  # the same files elsewhere
    assert str(raw) in refused(here(runs, f"dataset.raw_dir={raw}", "overwrite=prepare", name="prepare"))
    assert succeeded(here(runs, f"dataset.raw_dir={raw}", name="embed"))


def test_other_raw_files_are_noticed(here, tmp_path):
    raw, runs = tmp_path / "raw", tmp_path / "runs"
    shutil.copytree(ROOT / "data" / "sample", raw)
    assert succeeded(here(runs, f"dataset.raw_dir={raw}", name="prepare"))
    with open(raw / "meta_Sample.json.gz", "ab") as file:
        file.write(b"\0")
    text = refused(here(runs, f"dataset.raw_dir={raw}", name="prepare"))
    assert "made from other metadata" in text
    assert "overwrite=prepare" in text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            ["overwrite=predict"],
            "overwrite='predict' is not among the steps asked for; allowed: prepare, embed, tokenize, train, evaluate.",
        ),
        (["tokenizer=nothing"], "tokenizer=nothing is not a choice; allowed: "),
        (["train.epoch=5"], "train.epoch is not an option; allowed: adam_beta2, batch_scope, batch_targets, "),
        (["train.epochs=many"], "train.epochs='many' has the wrong type: "),
        (["evaluate.beam_size=5"], "evaluate.beam_size must be at least k=20, got 5."),
        (["tokenizer.family=os.system"], "tokenizer.family='os.system' is unknown; allowed: fsq, hkmeans, "),
        (
            ["tokenizer.name=../../etc"],
            "tokenizer.name='../../etc' must be a folder name; give `tokenizer.name=<name>`.",
        ),
        (["train.epochs=${nothing}"], "train cannot be read: Interpolation key 'nothing' not found."),
        (["dataset=tables"], "dataset"),
    ],
)
def test_a_wrong_option_is_one_sentence_before_any_work(here, tmp_path, options, text):
    assert text in refused(here(tmp_path / "runs", *options))
    assert not (tmp_path / "runs" / "sample").exists()


def test_errors_come_from_a_real_process_too(tmp_path):
    refused(script(tmp_path / "runs", "tokenizer=nothing"))
    refused(script(tmp_path / "runs", name="predict"))


@pytest.mark.parametrize(
    ("end", "code", "stderr"),
    [
        (OSError(28, "No space left on device", "runs/x"), 1, "Error: [Errno 28] No space left on device: 'runs/x'.\n"),
        (DamagedError("It is broken; mend it."), 1, "Error: It is broken; mend it.\n"),
        (
            Interrupted(15, Path("runs")),
            143,
            "Stopped by SIGTERM; a checkpoint is in runs; go on with: tigerrec evaluate embedder=hashed",
        ),
        (KeyboardInterrupt(), 130, "Stopped; go on with: tigerrec evaluate embedder=hashed"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_how_a_script_ends(here, tmp_path, monkeypatch, flags, end, code, stderr):
    def run(cfg, until):
        raise end

    monkeypatch.setattr(pipeline, "run", run)
    done = here(tmp_path, *flags)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(stderr)
    assert done.stderr.count("\n") == 1


def test_runs_that_cannot_be_written(here, tmp_path):
    (tmp_path / "runs").write_text("a file")
    assert f"Not a directory: '{tmp_path}/runs/" in refused(here(tmp_path / "runs", name="prepare"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sample").write_text("a file")
    text = refused(here(tmp_path / "other", name="prepare"))
    assert (
        f"Cannot write in {tmp_path}/other/sample (File exists); choose another place: `paths.runs=<folder>`, " in text
    )


def test_a_sweep_runs_every_cell(tmp_path):
    cwd, runs = tmp_path / "cwd", tmp_path / "runs"
    cwd.mkdir()
    (cwd / "data").symlink_to(ROOT / "data")
    done = script(runs, "-m", "tokenizer=random,rkmeans", "tokenizer.seed=0,1", cwd=cwd, name="tokenize")
    folders = [runs / f"sample/hashed/{name}-seed{seed}" for name in ("random", "rkmeans") for seed in (0, 1)]
    assert succeeded(done) == folders[-1]
    assert done.stdout.splitlines() == [str(folder) for folder in folders]
    assert all((folder / "manifest.json").exists() for folder in folders)
    assert [path.name for path in cwd.iterdir()] == ["data"]


def test_a_sweep_goes_on_after_a_run_that_fails(here, tmp_path):
    done = here(
        tmp_path / "runs",
        "-m",
        "tokenizer.max_collision=0,1",
        "tokenizer.name=r${tokenizer.max_collision}",
        name="tokenize",
    )
    assert done.returncode == 1
    header, failed = done.stderr.splitlines()[-2:]
    assert header == "Error: 1 of 2 runs of the sweep failed:"
    assert "tokenizer.max_collision=0 " in failed
    assert "of the items share their codes with another item, more than tokenizer.max_collision=0 allows" in failed
    made = {path.parent.name for path in (tmp_path / "runs/sample/hashed").glob("*/manifest.json")}
    assert made == {"r1-seed0"}


def test_a_sweep_goes_on_after_a_run_that_cannot_be_composed(here, tmp_path):
    done = here(tmp_path / "runs", "-m", "tokenizer=nosuch,random,rkmean", name="tokenize")
    assert done.returncode == 1
    header, *failed = done.stderr.splitlines()[-3:]
    assert header == "Error: 2 of 3 runs of the sweep failed:"
    for name, line in zip(("nosuch", "rkmean"), failed, strict=True):
        assert f"tokenizer={name} is not a choice; allowed: " in line
    made = {path.parent.name for path in (tmp_path / "runs/sample/hashed").glob("*/manifest.json")}
    assert made == {"random-seed0"}


def test_a_sweep_of_which_nothing_can_be_composed_fails(here, tmp_path):
    done = here(tmp_path / "runs", "-m", "tokenizer.no_such=1,2", name="tokenize")
    assert done.returncode == 1
    assert "Error: 2 of 2 runs of the sweep failed:" in done.stderr
    assert done.stderr.count("tokenizer.no_such is not an option; allowed: ") == 2
    assert not done.stdout


def test_an_option_that_no_run_of_a_sweep_has_is_one_sentence(here, tmp_path):
    done = here(tmp_path / "runs", "-m", "tokenizer.seed=0", "train.no_such=1", name="tokenize")
    assert "train.no_such is not an option; allowed: " in refused(done)


def test_the_sample_is_there_from_any_folder(here, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = here(tmp_path / "runs", name="prepare")
    assert succeeded(done) == tmp_path / "runs/sample"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_sample_that_is_gone_names_no_option_that_was_not_given(here, tmp_path, monkeypatch):
    monkeypatch.setattr(amazon, "shipped_folder", lambda installed, checkout: tmp_path / "gone")
    text = refused(here(tmp_path / "runs", name="prepare"))
    assert f"The sample of tigerrec is not in {tmp_path}/gone; install tigerrec again" in text


@pytest.mark.parametrize("train", ["packed", "prefix"])
def test_users_with_three_interactions_alone_can_be_prepared_and_training_says_what_it_needs(here, tmp_path, train):
    (tmp_path / "o.csv").write_text("user,item,time\n" + "".join(f"{u},{i},{i}\n" for u in "ab" for i in range(3)))
    options = ["dataset=tables", f"dataset.interactions='{tmp_path}/o.csv'", f"train={train}"]
    succeeded(here(tmp_path / "runs", *options, name="tokenize"))
    text = refused(here(tmp_path / "runs", *options, name="train"))
    assert text == "Error: No history is long enough to train on (4 interactions or more); give more data."


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dataset.interactions=/home/jürgen/o.csv", "/home/jürgen/o.csv"),
        ("dataset.interactions=~/my shop (new)/a=b,c.csv", "~/my shop (new)/a=b,c.csv"),
        ("dataset.where=event = 'buy' AND price > 5", "event = 'buy' AND price > 5"),
        ("dataset.separator=;", ";"),
    ],
)
def test_an_option_that_needs_quotes_is_shown_with_them(option, value, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["prepare", "dataset=tables", option])
    (quoted,) = shlex.split(str(stop.value.code).partition(": give ")[2].removesuffix("."))
    assert OmegaConf.select(compose(["dataset=tables", quoted]), option.partition("=")[0]) == value


# Without a process of their own


def tiny_plan(runs, *options):
    return plan(compose([*TINY, f"paths.runs={runs}", *options]))


def test_folders_mirror_the_pipeline():
    steps = tiny_plan(
        "runs",
        "tokenizer.seed=3",
        "generator.seed=4",
        "train.name='packed-lr${train.learning_rate}'",
        "evaluate.name=wide",
    )
    trained = "runs/sample/hashed/random-seed3/t5-packed-lr0.003-seed4"
    folders = ["runs/sample", "runs/sample/hashed", "runs/sample/hashed/random-seed3", trained, f"{trained}/eval-wide"]
    assert [str(step.folder) for step in steps.values()] == folders
    prepared, embedded, tokenized, *_ = (step.folder for step in steps.values())
    inputs = [dict(step.inputs) for step in steps.values()]
    assert inputs == [
        {},
        {"prepare": prepared},
        {"embed": embedded},
        {"prepare": prepared, "tokenize": tokenized},
        {"prepare": prepared, "tokenize": tokenized, "train": Path(trained)},
    ]


def test_seeds_belong_to_their_stages():
    first, other = tiny_plan("runs"), tiny_plan("runs", "generator.seed=1")
    assert [name for name in STAGES if first[name].config != other[name].config] == ["train"]
    assert other["train"].config.seed == 1
    other = tiny_plan("runs", "tokenizer.seed=1")
    assert [name for name in STAGES if first[name].config != other[name].config] == ["tokenize"]


@pytest.mark.parametrize(
    "option", ["generator.seed=-1", "generator.seed=x", "generator.seed=true", "~generator.seed", "tokenizer.seed=1.5"]
)
def test_seeds_are_whole_numbers(option):
    with pytest.raises(ConfigError, match="seed"):
        tiny_plan("runs", option)


@pytest.mark.parametrize("name", ["null", "''", "a/b", "..", ".hidden", "'a\\\\b'"])
def test_names_are_folder_names(name):
    with pytest.raises(ConfigError, match=r"dataset.name=.* must be a folder name; give `dataset.name=<name>`"):
        tiny_plan("runs", f"dataset.name={name}")


def test_runs_must_be_a_folder_name():
    for option in ("paths.runs=null", "paths=null", "paths.runs=5"):
        with pytest.raises(ConfigError, match=r"paths.runs=.* must be a folder; give `paths.runs=<folder>`"):
            tiny_plan("runs", option)


def test_further_vectors_stand_behind_what_they_are_made_of_and_once(monkeypatch):
    monkeypatch.setattr(RandomCodes, "needs", ("bought", "text"))
    inputs = [
        "+embedder@tokenizer.inputs.bought=collaborative",
        "+embedder@tokenizer.inputs.text=hashed",
        "tokenizer.inputs.text.dim=16",
    ]
    steps = tiny_plan("runs", *FUSED, *inputs, "tokenizer.inputs.text.name=words")
    assert list(steps) == [
        "prepare",
        "embed:hashed",
        "embed:collaborative",
        "embed",
        "embed:words",
        "tokenize",
        "train",
        "evaluate",
    ]
    assert dict(steps["tokenize"].inputs) == {
        "embed": Path("runs/sample/fusion"),
        "bought": Path("runs/sample/collaborative"),
        "text": Path("runs/sample/words"),
    }
    steps = tiny_plan("runs", *inputs)
    assert list(steps) == ["prepare", "embed", "embed:collaborative", "tokenize", "train", "evaluate"]
    assert steps["tokenize"].inputs["text"] == steps["embed"].folder


def test_inputs_of_a_tokenizer_are_those_it_needs(monkeypatch):
    with pytest.raises(
        ConfigError, match=r"tokenizer.inputs.collaborative is given, but only \[\] can be used; leave it out"
    ):
        tiny_plan("runs", NEEDED)
    monkeypatch.setattr(RandomCodes, "needs", ("collaborative",))
    missing = (
        r"tokenizer.inputs.collaborative is needed and missing; choose its embedder with "
        r"`\+embedder@tokenizer.inputs.collaborative=<embedder>`"
    )
    with pytest.raises(ConfigError, match=missing):
        tiny_plan("runs")
    with pytest.raises(ConfigError, match=missing):
        tiny_plan("runs", "+embedder@tokenizer.inputs.text=hashed")
    with pytest.raises(
        ConfigError,
        match=r"embedder.name and tokenizer.inputs.collaborative.name are both 'hashed', with different settings",
    ):
        tiny_plan("runs", "+embedder@tokenizer.inputs.collaborative=hashed")


def test_an_input_rebuilt_while_a_stage_ran_is_noticed(copy, monkeypatch):
    cfg = compose([*TINY, f"paths.runs={copy}", "overwrite=tokenize"])
    steps = plan(cfg)
    tokenize = steps["tokenize"].run

    def meanwhile(folder):
        manifest = steps["embed"].folder / "manifest.json"
        found = tokenize(folder)
        changed = json.loads(manifest.read_bytes())
        changed["provenance"], changed["content"], changed["files"] = {}, content_digest({}), {}
        manifest.write_text(json.dumps(changed))
        return found

    step = pipeline.dataclasses.replace(steps["tokenize"], run=meanwhile)
    monkeypatch.setattr(pipeline, "plan", lambda cfg: steps | {"tokenize": step})
    with pytest.raises(StaleError, match="was built again by another process meanwhile; run the same command again"):
        pipeline.run(cfg, "tokenize")
    assert not (step.folder / "manifest.json").exists()


@pytest.mark.parametrize(
    ("overrides", "command"),
    [
        ([], "make train"),
        (["dataset=beauty", "tokenizer=rkmeans"], "make train DATASET=beauty TOKENIZER=rkmeans"),
        (
            ["train.epochs=5", "dataset=beauty", "overwrite=embed"],
            "make train DATASET=beauty ARGS=train.epochs=5",
        ),
        (["train.epochs=5", "generator.seed=1"], 'make train ARGS="train.epochs=5 generator.seed=1"'),
        (["tokenizers=[pq,opq]", "seeds=1"], "make train ARGS=\"'tokenizers=[pq,opq]' seeds=1\""),
    ],
)
def test_the_next_command_keeps_the_options(overrides, command):
    assert make_command("train", overrides) == command


def test_the_next_command_of_make_keeps_interpolations_as_written(here, finished, monkeypatch):
    monkeypatch.setenv("MAKELEVEL", "1")
    done = here(finished[0], "train.name='packed${train.learning_rate}'", name="tokenize")
    assert "next: make train" in done.stderr
    assert "packed$${train.learning_rate}" in done.stderr


def test_the_next_command_keeps_a_folder_of_configurations(here, finished, tmp_path, monkeypatch):
    folder = tmp_path / "my conf"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "mine.yaml").write_text("defaults: [random@_here_]\nname: mine\n")
    done = here(finished[0], f"--config-dir={folder}", "tokenizer=mine", name="tokenize")
    assert succeeded(done) == finished[0] / "sample/hashed/mine-seed0"
    (following,) = (line for line in done.stderr.splitlines() if line.startswith("next: tigerrec train "))
    assert shlex.split(following)[3] == f"--config-dir={folder}"
    monkeypatch.setattr(sys, "argv", ["tigerrec train", "-cd", str(folder)])
    assert shlex.split(same_command("train", ["seed=1"])) == ["tigerrec", "train", f"--config-dir={folder}", "seed=1"]


def test_the_next_command_keeps_interpolations_as_written(here, finished):
    done = here(finished[0], "train.name='packed${train.learning_rate}'", name="tokenize")
    assert "\nnext: tigerrec train " in done.stderr
    assert shlex.quote("train.name='packed${train.learning_rate}'") in done.stderr


def test_every_choice_has_its_make_variable():
    text = (ROOT / "Makefile").read_text()
    for group in GROUPS:
        assert f"{group}:$({group.upper()})" in text
    for target in MAKE_TARGETS.values():
        assert f"\n{target}: " in text


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    "overrides",
    [
        [
            "tokenizer=rkmeans",
            "train.name='a b'",
            "train.name='lr${train.learning_rate}'",
            "dataset.expected=[1,2,3]",
            'dataset.url="x y"',
        ],
        ["tokenizer=rkmeans", "train.name='a b'", "dataset.expected=[1,2,3]"],
    ],
)
def test_the_next_command_says_the_same_through_make(overrides, tmp_path):
    """The words that a script would get from make and the shell are the overrides it was made from."""
    (tmp_path / "Makefile").write_text("train:\n\t@printf '%s\\n' $(if $(TOKENIZER),tokenizer=$(TOKENIZER)) $(ARGS)\n")
    outside = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")
    }
    done = subprocess.run(
        make_command("train", overrides), shell=True, cwd=tmp_path, capture_output=True, text=True, env=outside
    )
    assert done.stdout.splitlines() == overrides
