"""The comparison of tokenizers: what it writes, that it runs only what is missing, and that one failure does not stop
the others."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tigerrec import TigerrecError
from tigerrec.analysis.tokenizers import comparison, pictures
from tigerrec.analysis.tokenizers.comparison import compare, comparison_table
from tigerrec.analysis.tokenizers.fitted import Categories, FittedTokenizer, read_categories, read_fitted
from tigerrec.analysis.tokenizers.pictures import by_size, items_by_group_size, main_category
from tigerrec.cli import main
from tigerrec.config import ConfigError
from tigerrec.storage.contracts import read_json
from tigerrec.storage.stages import writing

ROOT = Path(__file__).parent.parent
OPTIONS = ["embedder=hashed", "embedder.dim=16", "tokenizer.codebook_size=64", "tokenizer.levels=2"]
BOTH = "tokenizers=[rkmeans,random]"


@pytest.fixture(scope="module", autouse=True)
def at_the_root():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder of runs with a comparison of two tokenizers in it."""
    folder = tmp_path_factory.mktemp("runs")
    compare([*OPTIONS, BOTH, f"paths.runs={folder}"])
    return folder


@pytest.fixture
def no_new_process(monkeypatch):
    """Fail where a tokenizer would be fitted."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"not up to date: {arguments}")

    monkeypatch.setattr(comparison, "in_own_process", refuse)


@pytest.fixture
def no_pictures(monkeypatch):
    """Nothing is drawn, which saves time."""
    monkeypatch.setattr("tigerrec.analysis.tokenizers.pictures.draw", lambda *arguments: [])


def test_the_table_has_a_row_a_tokenizer_and_all_pictures_are_there(runs):
    out = runs / "sample" / "hashed" / "tokenizers"
    text = (out / "comparison.md").read_text()
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    assert lines[0][:4] == ["tokenizer", "codes", "sharing", "largest"]
    assert [line[0] for line in lines[2:]] == ["rkmeans-seed0", "random-seed0"]
    pictures = re.findall(r"!\[.*\]\((.+)\)", text)
    assert pictures == [
        f"pictures/{name}.png"
        for name in (
            "overview",
            *(f"{name}-seed0-{kind}" for name in ("rkmeans", "random") for kind in ("use", "prefixes")),
        )
    ]
    for picture in pictures:
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in out.rglob("*") if path.is_file()} == {
        "comparison.md",
        "comparison.parquet",
        *(Path(picture).name for picture in pictures),
    }


def test_the_parquet_holds_what_the_stages_and_the_codes_say(runs):
    folder = runs / "sample" / "hashed"
    rows = pq.read_table(folder / "tokenizers" / "comparison.parquet").to_pylist()
    for row in rows:
        found = read_json(folder / row["tokenizer"], "diagnostics.json")
        for name in (
            "collision_rate",
            "largest_group",
            "reconstruction_error",
            "neighbour_agreement",
            "seconds",
            "peak_mb",
        ):
            assert row[name] == found[name]
        assert row["perplexity"] == [level["perplexity"] for level in found["levels"]]
        assert row["peak_mb"] > 10
        assert len(row["neighbour_agreement"]) == len(row["purity"]) == len(row["purity_by_chance"]) == 2
    rkmeans, random = rows
    assert random["reconstruction_error"] is None
    assert rkmeans["purity"][0] > rkmeans["purity_by_chance"][0] + 0.1
    assert random["purity"][0] == pytest.approx(random["purity_by_chance"][0], abs=0.06)


def test_a_second_run_fits_nothing_and_says_so_and_the_command_prints_the_folder_last(runs, command):
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("manifest.json")}
    done = command("compare-tokenizers", *OPTIONS, BOTH, f"paths.runs={runs}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(runs / "sample" / "hashed" / "tokenizers")
    assert done.stderr.count("tokenize: up to date in") == 2
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("manifest.json")} == before


def test_one_that_fails_while_fitting_is_told_of_and_the_others_stand(tmp_path, caplog, no_pictures):
    out = compare([*OPTIONS, BOTH, f"paths.runs={tmp_path}", "tokenizer.max_collision=0.18"])
    text = (out / "comparison.md").read_text()
    assert re.search(
        r"^- rkmeans failed: .*% of the items share their codes .* tokenizer\.max_collision=0\.18 allows",
        text,
        re.MULTILINE,
    )
    assert re.search(r"^\| random-seed0 +\|", text, re.MULTILINE)
    assert "| rkmeans" not in text
    assert "rkmeans failed: " in caplog.text
    assert not (out.parent / "rkmeans-seed0" / "manifest.json").exists()


def test_one_that_lacks_an_option_is_told_of_and_if_none_is_left_nothing_is_written(runs, no_new_process):
    out = runs / "sample" / "hashed" / "tokenizers"
    before = (out / "comparison.md").read_text()
    with pytest.raises(
        TigerrecError, match=r"No tokenizer could be fitted; random failed: tokenizer\.epochs is not an option"
    ):
        compare([*OPTIONS, "tokenizers=[random]", "tokenizer.epochs=3", f"paths.runs={runs}"])
    assert (out / "comparison.md").read_text() == before


def test_pictures_of_an_older_comparison_go(runs, no_new_process, no_pictures):
    out = compare([*OPTIONS, BOTH, f"paths.runs={runs}"])
    assert "![" not in (out / "comparison.md").read_text()
    assert {path.name for path in out.iterdir()} == {"comparison.md", "comparison.parquet"}


def test_overwriting_fits_again_but_leaves_the_vectors(runs, no_pictures):
    embedded = runs / "sample" / "hashed"
    before = {folder: (folder / "manifest.json").stat().st_mtime_ns for folder in (embedded, embedded / "random-seed0")}
    compare([*OPTIONS, "tokenizers=[random]", "overwrite=tokenize", f"paths.runs={runs}"])
    after = {folder: (folder / "manifest.json").stat().st_mtime_ns for folder in before}
    assert after[embedded] == before[embedded]
    assert after[embedded / "random-seed0"] > before[embedded / "random-seed0"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("tokenizers=[random,nothing]", r"tokenizers=nothing is not a choice; allowed: .*rkmeans"),
        ("tokenizer=random", r"tokenizer=random is for one tokenizer; .*`tokenizers="),
        ("tokenizer.name=mine", r"tokenizer\.name=mine is for one tokenizer"),
        ("overwrite=train", "overwrite='train' is not among"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_any_work(option, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        compare([*OPTIONS, option, f"paths.runs={tmp_path}"])
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_in_one_sentence(tmp_path, command):
    done = command("compare-tokenizers", "tokenizers=[nothing]", f"paths.runs={tmp_path}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: tokenizers=nothing is not a choice; allowed: ")
    assert len(done.stderr.splitlines()) == 1


def test_diagnostics_of_an_older_version_are_refused_by_name(runs, tmp_path):
    folder = shutil.copytree(runs / "sample" / "hashed" / "random-seed0", tmp_path / "random-seed0")
    found = read_json(folder, "diagnostics.json")
    with writing(folder, "tokenize", {"seed": 0}) as files:
        for name in ("semantic_ids.parquet", "tokenizer.json", "tokenizer.safetensors"):
            files.adopt(folder / name, name)
        files.json(
            "diagnostics.json", {name: value for name, value in found.items() if name != "peak_mb"}, measured=True
        )
    with pytest.raises(TigerrecError, match=r"comes from an older version and lacks peak_mb; add `overwrite=tokenize`"):
        read_fitted(folder, Categories((), np.full(492, -1)), 0)


def test_a_category_is_the_second_element_of_a_path(tmp_path):
    import pyarrow as pa

    with writing(tmp_path, "prepare", {"seed": 0}) as files:
        paths = [["Beauty", "Hair", "Dye"], ["Beauty", "Skin"], ["Tents"], None, [], ["Beauty", "Skin", "Face"]]
        files.parquet("items.parquet", pa.table({"categories": pa.array(paths, pa.list_(pa.string()))}))
    found = read_categories(tmp_path)
    assert found.names == ("Skin", "Hair", "Tents")
    assert found.of_items.tolist() == [1, 0, 2, -1, -1, 0]


def test_the_table_shows_what_is_not_measured_as_a_dash():
    measures = {
        "code_sizes": [4, 3], "collision_rate": 0.25, "largest_group": 2, "used_codes": [4, 2],
        "perplexity": [3.6, 1.2], "reconstruction_error": None, "neighbour_agreement": None, "purity": [],
        "purity_by_chance": [], "seconds": 1.26, "peak_mb": 90,
    }  # fmt: skip
    row = comparison_table(
        [FittedTokenizer("a", measures, {1: 2, 2: 1}, (4, 3), np.zeros((4, 2), np.int32))]
    ).splitlines()[2]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "a",
        "4/3",
        "25.0%",
        "2",
        "4/2",
        "4/1",
        "–",
        "–",
        "–",
        "1.3",
        "90",
    ]


def test_groups_of_equal_codes_fall_into_doubling_classes():
    assert items_by_group_size({1: 5, 2: 3, 4: 1, 9: 2}) == {"1": 5, "2": 6, "3–4": 4, "5–8": 0, "9–16": 18}


def test_codes_are_ordered_by_size_and_then_by_their_main_category():
    codes, categories = np.array([7, 7, 3, 3, 5, 5, 5, 9]), np.array([1, 1, 0, 2, 0, 2, 2, 1])
    found, counts = by_size(codes, categories, 3)
    assert found.tolist() == [5, 3, 7, 9]
    assert counts.tolist() == [[1, 0, 2], [1, 0, 1], [0, 2, 0], [0, 1, 0]]
    assert main_category(counts).tolist() == [0, 0, 1, 1]  # the last stands for all others
    assert main_category(np.array([[0, 0, 2]])).tolist() == [2]


def test_the_command_prints_the_folder_last(runs, no_new_process, no_pictures, monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.getLogger("tigerrec"), "level", logging.NOTSET)
    monkeypatch.setattr(sys, "argv", ["tigerrec"])
    main(["compare-tokenizers", *OPTIONS, "tokenizers=[random]", f"paths.runs={runs}"])
    assert capsys.readouterr().out.splitlines()[-1] == str(runs / "sample" / "hashed" / "tokenizers")


def test_names_with_dollar_signs_are_drawn_as_they_are(tmp_path):
    codes = np.array([[0, 1], [0, 2], [1, 0], [1, 0]], np.int32)
    measured = {
        "perplexity": [2, 2], "collision_rate": 0.5, "reconstruction_error": None, "neighbour_agreement": None,
        "purity": [1.0, 1.0], "purity_by_chance": [0.5, 0.5],
    }  # fmt: skip
    fitted = FittedTokenizer("$a_$", measured, {1: 2, 2: 1}, (2, 3), codes)
    categories = Categories(("under $5_$", "other"), np.array([0, 0, 1, -1]))
    drawn = pictures.draw(tmp_path, [fitted], categories)
    assert len(drawn) == 3
    assert all(path.stat().st_size > 1000 for _, path in drawn)
