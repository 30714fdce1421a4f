"""Several runs side by side: what differs, what was kept, and the picture."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_run import build_run
from tigerrec import TigerrecError
from tigerrec.analysis.training_runs import plot_validation, read_runs, training_table
from tigerrec.models.t5 import T5
from tigerrec.storage.manifests import read_manifest
from tigerrec.training.options import TrainConfig, Training
from tigerrec.training.stage import train

ROOT = Path(__file__).parent.parent
MODEL = T5(num_layers=1, d_model=16, num_heads=2, d_kv=8, d_ff=16, max_items=5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    made = build_run(tmp_path_factory.mktemp("runs"))
    trained = []
    for rate in (0.001, 0.01):
        training = Training(
            epochs=2, batch_targets=24, learning_rate=rate, validation_users=20, stride=3, precision="fp32"
        )
        trained.append(
            train(made["prepare"], made["tokenize"], TrainConfig(MODEL, training), made["tokenize"] / f"rate{rate}")
        )
    return trained


def test_the_table_names_what_differs_and_what_all_validation_users_gave_best_first(folders):
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in training_table(read_runs(folders)).splitlines()
    ]
    assert lines[0] == ["run", "learning_rate", "minutes", "validation HR@10", "validation NDCG@10"]
    assert {line[0]: line[1] for line in lines[2:]} == {"rate0.001": "0.001", "rate0.01": "0.01"}
    for line in lines[2:]:
        folder = next(folder for folder in folders if folder.name == line[0])
        assert line[-1] == f"{read_manifest(folder).provenance['selected']['validation_ndcg@10']:.4f}"
    assert lines[2][-1] >= lines[3][-1]


def test_two_small_files_are_enough_and_the_script_draws(folders, tmp_path):
    copies = []
    for folder in folders:
        copies.append(tmp_path / folder.name)
        copies[-1].mkdir()
        for name in ("manifest.json", "training.jsonl"):
            shutil.copy(folder / name, copies[-1])
    picture = tmp_path / "picture.png"
    command = [sys.executable, "-m", "tigerrec", "compare-runs", *map(str, copies), "--plot", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == training_table(read_runs(folders))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_runs_of_one_name_are_told_apart_by_their_folders(folders, tmp_path):
    for tokenizer, folder in zip(("one", "other"), folders, strict=True):
        shutil.copytree(folder, tmp_path / tokenizer / "t5")
    assert {run.name for run in read_runs([tmp_path / "one" / "t5", tmp_path / "other" / "t5"])} == {
        "one/t5",
        "other/t5",
    }


def test_a_picture_of_another_kind_is_refused(folders, tmp_path):
    with pytest.raises(TigerrecError, match=r"must end in \.png or \.svg"):
        plot_validation(read_runs(folders), tmp_path / "picture.foo")


def test_folders_that_are_no_runs_or_of_other_histories_are_refused(folders, tmp_path):
    with pytest.raises(TigerrecError, match="is not the folder of a finished train stage"):
        read_runs([tmp_path])
    with pytest.raises(TigerrecError, match="no run to compare"):
        read_runs([])
    other = build_run(tmp_path, seed=1)
    shutil.rmtree(other["train"])
    training = Training(epochs=1, batch_targets=24, stride=3, precision="fp32")
    trained = train(other["prepare"], other["tokenize"], TrainConfig(MODEL, training), other["train"])
    with pytest.raises(TigerrecError, match="trained on other histories"):
        read_runs([folders[0], trained])
