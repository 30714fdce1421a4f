"""The benchmark table: which cells are run, what they leave, and what the table makes of them."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import tiny_shop
from tigerrec import TigerrecError, text
from tigerrec.analysis import table
from tigerrec.analysis.audit import CHECKS, audit
from tigerrec.analysis.report import report_run
from tigerrec.analysis.table import budgets, cells, how_it_was_made, make_table, markdown, plot
from tigerrec.analysis.table.rows import METRICS, CellResults, Row, RowResults, gains_of, plan_rows, results_of
from tigerrec.analysis.table.summary import Summary, spread
from tigerrec.config import ConfigError, compose
from tigerrec.evaluation.lists import read_lists
from tigerrec.evaluation.metrics import metrics
from tigerrec.runtime.provenance import short_commit
from tigerrec.storage.files import BusyError, locked, sha256_file
from tigerrec.storage.manifests import DamagedError, StaleError, read_manifest
from tigerrec.storage.stages import writing

ROOT = Path(__file__).parent.parent
TINY = [
    "experiment=beauty_short",
    "dataset=sample",
    "embedder=hashed",
    "embedder.dim=16",
    "tokenizer.codebook_size=16",
    "generator.num_layers=1",
    "generator.d_model=16",
    "generator.num_heads=1",
    "generator.d_ff=16",
    "train.epochs=1",
    "train.validate_every=1",
    "train.validation_users=50",
    "tokenizers=[rkmeans,hkmeans]",
    "seeds=1",
    "baselines=[popularity]",
    "tokenizer.levels=2",
]
CELLS = (
    "t5-4-epochs/hashed_rkmeans-seed0_seed0",
    "t5-4-epochs/hashed_hkmeans-seed0_seed0",
    "baselines/popularity-seed0",
)
RANKED = (
    *(f"hashed/{name}-seed0/t5-4-epochs-seed0/eval-full-bf16" for name in ("rkmeans", "hkmeans")),
    "baselines/popularity-seed0",
)


@pytest.fixture(scope="module", autouse=True)
def at_the_root():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """A table of two tokenizers and a baseline, with its runs."""
    folder = tmp_path_factory.mktemp("table")
    options = [*TINY, f"paths.runs={folder}/runs", f"paths.results={folder}/results"]
    return SimpleNamespace(options=options, runs=folder / "runs", results=folder / "results", out=make_table(options))


@pytest.fixture
def elsewhere(made, tmp_path) -> SimpleNamespace:
    """The results of that table on another machine, without its runs."""
    shutil.copytree(made.results, tmp_path / "results")
    options = [*TINY, f"paths.runs={tmp_path}/runs", f"paths.results={tmp_path}/results"]
    return SimpleNamespace(
        options=options,
        runs=tmp_path / "runs",
        results=tmp_path / "results",
        table=tmp_path / "results" / "sample_table",
    )


@pytest.fixture
def asked(monkeypatch) -> list[list[str]]:
    """The cells that would be run: what each is asked to do, instead of doing it."""
    found: list[list[str]] = []

    def note(function: str, overrides: list[str], last: str, wait: bool) -> dict:
        found.append(overrides)
        raise TigerrecError("not today.")

    monkeypatch.setattr(cells, "in_own_process", note)
    return found


def test_a_cell_leaves_three_small_files_that_agree_with_its_stages(made):
    for name, stage in zip(CELLS, RANKED, strict=True):
        cell, ranked = made.results / "sample_table" / name, made.runs / "sample" / stage
        assert sorted(path.name for path in cell.iterdir() if path.name != ".lock") == [
            "manifest.json",
            "metrics.json",
            "ranks.parquet",
        ]
        assert sum(path.stat().st_size for path in cell.iterdir()) < 150_000
        rows = json.loads((cell / "metrics.json").read_text())
        assert rows
        assert rows == [
            row for row in json.loads((ranked / "metrics.json").read_text()) if row["model"] == rows[0]["model"]
        ]
        table, whole = (
            pq.read_table(cell / "ranks.parquet").to_pandas(),
            pq.read_table(ranked / "ranks.parquet").to_pandas(),
        )
        keys = ["model", "hit", "seen", "user"]
        whole = whole[whole["model"] == rows[0]["model"]].sort_values(keys, kind="stable").reset_index(drop=True)
        table = table.sort_values(keys, kind="stable").reset_index(drop=True)
        pd.testing.assert_frame_equal(table[whole.columns], whole, check_dtype=False, check_categorical=False)


def test_the_table_holds_every_row_best_first(made):
    table = pq.read_table(made.out / "table.parquet").to_pandas()
    shown = table[(table["hit"] == "item") & (table["seen"] == "masked")]
    assert set(shown["row"]) == {"rkmeans", "hkmeans", "popularity"}
    assert shown["ndcg@10"].is_monotonic_decreasing
    for row in shown.itertuples():
        name = next(name for name in CELLS if row.row in name)
        recorded = json.loads((made.results / "sample_table" / name / "metrics.json").read_text())
        assert shown.set_index("row").loc[row.row, "hr@10"] == pytest.approx(
            next(line["hr@10"] for line in recorded if (line["hit"], line["seen"]) == ("item", "masked"))
        )
    text = (made.out / "table.md").read_text()
    listed = re.findall(r"^\| (\S+) +\| +1 ", text, re.MULTILINE)
    assert listed[:3] == [f"*{name}*" if name == "popularity" else name for name in shown["row"]]
    assert "make table EXPERIMENT=beauty_short DATASET=sample EMBEDDER=hashed" in text
    assert str(made.results) not in text
    assert (made.out / "table.png").read_bytes().startswith(b"\x89PNG")
    about = json.loads((made.out / "table.json").read_text())
    assert about["dataset"] == {"name": "sample", "users": 2000, "items": 492, "interactions": 19415}
    assert {comparison["row"] for comparison in about["comparisons"]} == {"hkmeans", "popularity"}


def test_what_was_tried_of_a_baseline_stays_with_its_cell(tmp_path):
    out = make_table([
        "experiment=beauty_short", "dataset=sample", "tokenizers=[]", "baselines=[item_knn]",
        f"paths.runs={tmp_path}/runs", f"paths.results={tmp_path}/results",
    ])  # fmt: skip
    tuned = tmp_path / "runs" / "sample" / "baselines" / "item_knn-tuning"
    tried, chosen = (json.loads((tuned / name).read_text()) for name in ("trials.json", "chosen.json"))
    assert json.loads((out / "table.json").read_text())["trials"] == {"item_knn": tried}
    best = max(trial["validation_ndcg@10"] for trial in tried)
    found = [
        line
        for line in (out / "table.md").read_text().splitlines()
        if line.startswith("| *item_knn* ") and "recency" in line
    ]
    assert len(found) == 1
    assert f"to {f'{best:.4f}'.removeprefix('0')} " in found[0]
    values = {name: {trial["settings"][name] for trial in tried} for name in chosen}
    ends = [name for name, value in chosen.items() if value in (min(values[name]), max(values[name]))]
    settings = ", ".join(f"{name} {value:g}" for name, value in chosen.items())
    assert [part.strip() for part in found[0].split("|")[-3:-1]] == [settings, ", ".join(ends) or "–"]


def test_nothing_is_run_again_even_without_the_runs(made, elsewhere, asked):
    out = make_table(elsewhere.options)
    assert asked == []
    assert not elsewhere.runs.exists() or not list(elsewhere.runs.glob("sample/*"))
    assert pq.read_table(out / "table.parquet").equals(pq.read_table(made.out / "table.parquet"))


def test_a_table_without_its_reference_says_so(elsewhere, asked):
    out = make_table([*elsewhere.options, "reference=opq"])
    assert "Nothing is compared with opq, which is not a row" in (out / "table.md").read_text()
    assert json.loads((out / "table.json").read_text())["comparisons"] == []


def test_a_table_with_several_references_compares_with_each_as_with_it_alone(elsewhere, asked):
    def compared(option: str) -> tuple[list[dict], list[str]]:
        out = make_table([*elsewhere.options, option])
        sections = re.findall(r"^## Against .*?(?=^## )", (out / "table.md").read_text(), re.DOTALL | re.MULTILINE)
        return json.loads((out / "table.json").read_text())["comparisons"], sections

    (one, (of_one,)), (other, (of_other,)) = compared("reference=rkmeans"), compared("reference=popularity")
    assert compared("reference=[rkmeans,popularity]") == (one + other, [of_one, of_other])


def test_only_a_missing_cell_is_run(elsewhere, asked):
    shutil.rmtree(elsewhere.table / CELLS[1])
    out = make_table(elsewhere.options)
    assert ["tokenizer=hkmeans" in overrides for overrides in asked] == [True]
    assert {"tokenizer.seed=0", "generator.seed=0"} <= set(asked[0])
    text = (out / "table.md").read_text()
    assert "Missing: hashed_hkmeans-seed0_seed0 failed: not today." in text
    assert re.search(r"^\| rkmeans", text, re.MULTILINE)


def test_a_cell_collected_again_is_the_same(made, tmp_path):
    shutil.copytree(made.results, tmp_path / "results")
    cell = tmp_path / "results" / "sample_table" / CELLS[0]
    before = {name: (cell / name).read_bytes() for name in ("metrics.json", "ranks.parquet")}
    shutil.rmtree(cell)
    make_table([*TINY, f"paths.runs={made.runs}", f"paths.results={tmp_path}/results"])
    assert {name: (cell / name).read_bytes() for name in before} == before


def test_more_seeds_are_more_cells(asked, tmp_path):
    with pytest.raises(TigerrecError, match=r"No cell of the table could be run; .* not today\."):
        make_table([*TINY, "seeds=[2,3]", "baselines=[]", f"paths.runs={tmp_path}", f"paths.results={tmp_path}"])
    assert ["tokenizer=rkmeans" in overrides for overrides in asked] == [
        True,
        False,
    ] * 6  # every row once before any has a second run
    seeds = [
        tuple(option for option in overrides if ".seed=" in option)
        for overrides in asked
        if "tokenizer=rkmeans" in overrides
    ]
    assert seeds == [(f"tokenizer.seed={t}", f"generator.seed={g}") for t in range(2) for g in range(3)]


def test_results_of_other_settings_are_not_taken(elsewhere, asked):
    with pytest.raises(
        StaleError,
        match=r"rkmeans-seed0_seed0 holds results of other settings \(.*training\.epochs: 1 → 2.*train\.name=<new "
        r"name>",
    ):
        make_table([*elsewhere.options, "train.epochs=2"])
    assert asked == []


def test_results_of_other_data_are_not_taken(elsewhere, asked, tmp_path):
    other = tmp_path / "raw"
    shutil.copytree("data/sample", other)
    with (other / "reviews_Sample_5.json.gz").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(StaleError, match=r"holds results of other settings \(prepare\.interactions: "):
        make_table([*elsewhere.options, f"dataset.raw_dir={other}"])


def test_a_cell_made_without_the_raw_files_knows_which_they_were(made, tmp_path):
    shutil.copytree(made.results, tmp_path / "results")
    shutil.rmtree(tmp_path / "results" / "sample_table" / CELLS[0])
    options = [*TINY, f"paths.runs={made.runs}", f"paths.results={tmp_path}/results"]
    make_table([*options, f"dataset.raw_dir={tmp_path}/nothing"])
    make_table(options)


def test_without_raw_files_the_recorded_ones_count(elsewhere, asked, tmp_path):
    make_table([*elsewhere.options, f"dataset.raw_dir={tmp_path}/nothing"])
    assert asked == []


def test_damaged_results_are_not_taken(elsewhere, asked):
    path = elsewhere.table / CELLS[0] / "ranks.parquet"
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        DamagedError,
        match=rf"ranks\.parquet is damaged .*; delete {path.parent} and run the same command again\.",
    ):
        make_table(elsewhere.options)
    shutil.rmtree(path.parent)
    make_table(elsewhere.options)
    assert len(asked) == 1


def test_a_cell_that_another_process_runs_is_left_to_it(elsewhere, made, asked, monkeypatch):
    finished = elsewhere.table / CELLS[1]
    shutil.rmtree(finished)
    real, waited = table.locked, []

    def locked(folder, wait=False, announce=None):
        if folder.name == finished.name and not wait:
            raise BusyError("another process")
        if folder.name == finished.name:
            shutil.copytree(made.results / "sample_table" / CELLS[1], finished)  # by the other process, meanwhile
            waited.append(folder.name)
        return real(folder)

    monkeypatch.setattr(table, "locked", locked)
    out = make_table(elsewhere.options)
    assert waited == [finished.name]
    assert asked == []
    assert "Missing" not in (out / "table.md").read_text()


def test_a_stage_of_a_cell_that_another_process_runs_is_waited_for(tmp_path, caplog):
    popularity = tmp_path / "runs" / "sample" / "baselines" / "popularity-seed0"
    options = [*TINY, f"paths.runs={tmp_path}/runs", f"paths.results={tmp_path}/results"]
    with caplog.at_level(logging.INFO, "tigerrec"), ThreadPoolExecutor() as pool:
        with locked(popularity):
            made = pool.submit(make_table, [*options, "tokenizers=[]", "baselines=[popularity]"])
            deadline = time.monotonic() + 120
            while sum("table: popularity" in message for message in caplog.messages) < 2:  # left, then looked at again
                assert not made.done()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        page = (made.result() / "table.md").read_text()
    assert "popularity" in page
    assert "Missing" not in page


@pytest.mark.parametrize(
    ("option", "fault"),
    [
        ("tokenizer=opq", r"tokenizer=opq is for one run; choose rows by"),
        ("++generator.seed=3", r"\+\+generator\.seed=3 is for one run; choose rows by"),
        ("tokenizer.name=own", r"The rows rkmeans and hkmeans would both stand in .*own-seed0"),
        ("tokenizers=[rkmeans,rkmeans@hashed]", r"The rows rkmeans and rkmeans@hashed would both stand in"),
        ("tokenizers=[opk]", r"tokenizers=opk is not a choice of tokenizer; allowed: .*opq"),
        ("tokenizers=[opq@nothing]", r"tokenizers=nothing is not a choice of embedder; allowed: .*fusion"),
        ("baselines=[sas]", r"baselines=sas is not a choice of baseline; allowed: .*popularity"),
        ("seeds=0", r"seeds=0 must be a number from 1 up, or two"),
        ("replicated=best", r"replicated=best must be a number of rows, or null for all"),
        ("seeds=[1]", r"seeds=\[1\] must be a number from 1 up, or two"),
        ("table=null", r"table=None must be a folder name; choose one with `experiment=beauty_table`"),
        ("train.epoch=2", r"train\.epoch is not an option"),
    ],
)
def test_a_wrong_option_is_refused_before_any_work(tmp_path, asked, option, fault):
    with pytest.raises(ConfigError, match=fault):
        make_table([*TINY, f"paths.runs={tmp_path}", f"paths.results={tmp_path}", option])
    assert asked == []


def test_the_same_generator_trained_otherwise_has_a_folder_of_its_own(tmp_path):
    options = [*TINY, f"paths.runs={tmp_path}", f"paths.results={tmp_path}"]
    folders = set()
    for further in ([], ["generator=t5_items"], ["train.name=long"]):
        rows = plan_rows([*options, *further], compose([*options, *further]), tmp_path)
        folders |= {cell.folder for row in rows for cell in row.cells.values()}
    assert len(folders) == 3 * 2 + 1  # the baseline is shared


def test_a_row_named_twice_is_one_row(tmp_path):
    options = [*TINY, "tokenizers=[rkmeans,rkmeans]", f"paths.runs={tmp_path}"]
    assert [row.name for row in plan_rows(options, compose(options), tmp_path)] == ["popularity", "rkmeans"]


def test_nothing_of_this_machine_is_told():
    told = text.told_command(
        "table",
        [
            "dataset=tables",
            "dataset.interactions=/home/me/orders.csv",
            "++train.device=cuda",
            "paths.runs=/x",
            "train.epochs=2",
        ],
    )
    assert told == 'make table DATASET=tables ARGS="dataset.interactions=orders.csv train.epochs=2"'


def test_budgets_are_told(made):
    text = (made.out / "table.md").read_text()
    assert "t5 was trained for 1 epochs in every row and ranks in bf16." in text
    options = ["experiment=beauty_short", "tokenizers=[rkmeans]"]
    rows = plan_rows(options, compose(options), Path("results"))
    tried = {"sasrec_bce": [{}] * 12, "sasrec_ce": [{}] * 9}
    results = [SimpleNamespace(row=row, item_weights=[], trials=tried.get(row.name, [])) for row in rows]
    assert "The baselines sasrec_bce (12), sasrec_ce (9) were tuned" in " ".join(
        budgets(SimpleNamespace(results=results), compose(options))
    )


def write_cell(cell, ranks: dict[str, np.ndarray], rng: np.random.Generator, validated: float = 0.0) -> None:
    """A cell whose table of ranks is in an order of its own, and whose training validated with some NDCG@10."""
    n_users = len(ranks["masked"])
    parts = [
        pd.DataFrame(
            {
                "model": "t5",
                "hit": "item",
                "seen": seen,
                "user": np.arange(n_users, dtype=np.int32),
                "target": np.arange(n_users, dtype=np.int32) % 7,
                "rank": found,
            }
        )
        for seen, found in ranks.items()
    ]
    table = pd.concat(parts).sample(frac=1, random_state=int(rng.integers(1000)))
    rows = [
        {"model": "t5", "hit": "item", "seen": seen, "users": n_users, **metrics(found)}
        for seen, found in ranks.items()
    ]
    sources = {
        f"{key}.{role}": sha256_file(path) for key, step in cell.steps.items() for role, path in step.present().items()
    }
    trained = {"machine": "abacus", "cores": 1, "training_seconds": 1, "selected": {"validation_ndcg@10": validated}}
    with writing(cell.folder, "cell", cell.chain, sources=sources) as out:
        facts = {"users": n_users, "items": 7, "interactions": n_users, "distinct_items": 3}
        out.provenance |= {"facts": facts, "stages": {"train": trained}}
        out.json("metrics.json", rows)
        with out.create("ranks.parquet") as path:
            cells.write_ranks(pa.Table.from_pandas(table, preserve_index=False), "t5", path)


def test_rows_are_paired_by_user_and_averaged_over_runs(tmp_path):
    options = [*TINY, "seeds=[1,2]", "baselines=[]", f"paths.runs={tmp_path}"]
    rows, rng = plan_rows(options, compose(options), tmp_path), np.random.default_rng(0)
    likely = rng.random(400)
    ranks = {}
    for row in rows:
        for seeds, cell in row.cells.items():
            ranks[row.name, seeds] = np.where(rng.random(400) < likely, rng.integers(1, 21, 400), 0).astype(np.int16)
            write_cell(cell, {"masked": ranks[row.name, seeds], "kept": np.zeros(400, np.int16)}, rng)
    summary = Summary([result for row in rows if (result := results_of(row))], ["rkmeans"])
    means = {row.name: np.mean([gains_of(ranks[row.name, seeds]) for seeds in row.cells], axis=0) for row in rows}
    change = means["hkmeans"] - means["rkmeans"]
    draws = np.random.default_rng(9).integers(0, 400, (4_000, 400))
    for row in summary.comparisons:
        values = change[:, METRICS.index(row["metric"])]
        resampled = values[draws].mean(1)
        low, high = np.percentile(resampled, [2.5, 97.5])
        assert row["difference"] == pytest.approx(values.mean(), abs=1e-7)
        assert [row["low"], row["high"]] == pytest.approx([low, high], abs=0.15 * (high - low))
        assert row["p"] == pytest.approx(2 * min((resampled <= 0).mean(), (resampled >= 0).mean()), abs=0.05)
    for line in summary.rows:
        if line["seen"] == "masked":
            assert line["ndcg@10"] == pytest.approx(means[line["row"]][:, METRICS.index("ndcg@10")].mean(), abs=1e-7)
            assert line["ndcg@10_low"] < line["ndcg@10"] < line["ndcg@10_high"]


def test_the_rows_that_validate_best_alone_are_run_with_all_seeds(asked, tmp_path):
    options = [*TINY, "tokenizers=[rkmeans,hkmeans,random,opq]", "seeds=2", "baselines=[]", "replicated=2"]
    options += [f"paths.runs={tmp_path}/runs", f"paths.results={tmp_path}"]
    rng, validated = np.random.default_rng(0), {"rkmeans": 0.1, "hkmeans": 0.3, "random": 0.2}
    for row in plan_rows(options, compose(options), tmp_path / "sample_table"):
        if row.name in validated:  # the better it validates, the worse on test
            found = np.where(rng.random(400) < validated[row.name], 0, 1).astype(np.int16)
            write_cell(row.first, {"masked": found, "kept": found}, rng, validated[row.name])
    out = make_table(options)
    tried = [
        tuple(option.partition("=")[2] for option in overrides if option.startswith(("tokenizer=", "tokenizer.seed")))
        for overrides in asked
    ]
    assert tried == [("opq", "0"), *(pair for seed in "011" for pair in (("hkmeans", seed), ("random", seed)))]
    text = (out / "table.md").read_text()
    assert re.findall(r"^\| (\w+) +\| +(\d.*?) \|", text.split("## Seen items kept")[0], re.MULTILINE) == [
        ("rkmeans", "1"),
        ("random", "1 of 4"),
        ("hkmeans", "1 of 4"),
    ]
    assert "random, hkmeans validated best with their first seeds and were to be run with others too" in text


def test_how_many_runs_are_left_and_how_long_they_take_is_told(tmp_path, monkeypatch, caplog):
    clock, rng = [0.0], np.random.default_rng(0)

    def run(cell, wait):
        clock[0] += {"popularity": 6, "rkmeans": 600}.get(cell.row, 1200)
        if cell.row == "hkmeans":
            raise TigerrecError("not today.")
        ranks = rng.integers(0, 3, 9).astype(np.int16)
        write_cell(cell, {"masked": ranks, "kept": ranks}, rng, 0.1)

    monkeypatch.setattr(cells.Cell, "run", run)
    monkeypatch.setattr(table, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    options = [*TINY, "tokenizers=[rkmeans,hkmeans,lsh,random]", f"paths.runs={tmp_path}", f"paths.results={tmp_path}"]
    with caplog.at_level("INFO"):
        make_table(options)
        make_table(options)
    told = [line.removeprefix("table: ") for line in caplog.messages if line.startswith("table: ")]
    assert told[0] == "0 of 5 runs are done"
    assert [re.sub(" → .*? \\(", " (", line) for line in told[1:6]] == [
        "popularity (left: 5)",
        "rkmeans (left: 4)",
        "hkmeans (left: 3, about 30 min)",
        "lsh (left: 2, about 20 min)",
        "random (left: 1, about 15 min)",
    ]
    assert told[6] == "4 of 5 runs are done"
    assert told[7].startswith("hkmeans → ")
    assert told[7].endswith("(left: 1)")


def test_a_damaged_further_run_is_told_of_before_any_work(asked, tmp_path):
    options = [*TINY, "seeds=2", "baselines=[]", "replicated=1", f"paths.runs={tmp_path}/runs"]
    options.append(f"paths.results={tmp_path}")
    row = plan_rows(options, compose(options), tmp_path / "sample_table")[0]
    write_cell(
        row.cells[1, 1], {"masked": np.ones(9, np.int16), "kept": np.ones(9, np.int16)}, np.random.default_rng(0)
    )
    (row.cells[1, 1].folder / "metrics.json").write_text("[]")
    with pytest.raises(DamagedError, match=r"seed1_seed1"):
        make_table(options)
    assert not asked


def test_beauty_table_plans_all_its_rows():
    options = ["experiment=beauty_table"]
    rows = plan_rows(options, compose(options), Path("results"))
    by_name = {row.name: row for row in rows}
    assert {
        "rkmeans",
        "rqvae",
        "opq",
        "random",
        "popularity",
        "sasrec_ce",
        "sasrec_bce",
        "item_knn",
        "last_item",
    } <= set(by_name)
    assert all(len(row.cells) == 4 for row in rows if row.kind == "generator")
    assert by_name["rkmeans@fusion"].embedder == "fusion"
    chain = next(iter(by_name["rkmeans@fusion"].cells.values())).chain
    assert chain["embed"]["inputs"] == {
        "collaborative": "embed:collaborative",
        "prepare": "prepare",
        "text": "embed:minilm",
    }


def test_the_command_prints_the_folder_last(elsewhere, command):
    done = command("table", *elsewhere.options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(elsewhere.table / "t5-4-epochs")]
    assert "popularity" in done.stderr
    done = command("table", *elsewhere.options, "seeds=none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip().startswith("Error: seeds=none must be")


def test_results_that_cannot_be_written_name_the_option_that_moves_them(made, tmp_path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(TigerrecError, match=r"Cannot write in .*results/.*`paths\.results=<folder>`"):
        make_table([*TINY, f"paths.runs={made.runs}", f"paths.results={tmp_path}/results"])
    assert (tmp_path / "results").read_text() == "a file"


@pytest.mark.long
def test_a_table_that_is_stopped_goes_on_to_the_same_bytes(tmp_path):
    options = [*TINY, "tokenizers=[rkmeans]", "train.epochs=30", "train.validate_every=30", "train.checkpoint_steps=20"]
    folders = [
        [f"paths.runs={tmp_path}/{name}/runs", f"paths.results={tmp_path}/{name}/results"]
        for name in ("stopped", "whole")
    ]
    table = subprocess.Popen([sys.executable, "-m", "tigerrec", "table", *options, *folders[0]], stderr=subprocess.PIPE)
    checkpoints = (
        tmp_path / "stopped" / "runs" / "sample" / "hashed" / "rkmeans-seed0" / "t5-4-epochs-seed0" / "checkpoint"
    )
    while not list(checkpoints.glob("step-*.json")):
        assert table.poll() is None
        time.sleep(0.1)
    table.terminate()
    table.communicate(timeout=60)
    for names in folders:
        make_table([*options, *names])
    stopped, whole = (tmp_path / name / "results" / "sample_table" / CELLS[0] for name in ("stopped", "whole"))
    stages = [read_manifest(cell).provenance["stages"] for cell in (stopped, whole)]
    assert stages[0]["train"]["content"] == stages[1]["train"]["content"]
    for name in ("metrics.json", "ranks.parquet"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def a_run(rng: np.random.Generator, share: float, n_users: int, sharing: bool = True) -> CellResults:
    """A run that hits that share of targets, at a random rank; on the level of ids a few more."""
    ranks = {}
    for seen in ("masked", "kept"):
        ranks["item", seen] = np.where(rng.random(n_users) < share, rng.integers(1, 21, n_users), 0).astype(np.int16)
        if sharing:
            more = np.where(rng.random(n_users) < 0.05, 1, ranks["item", seen]).astype(np.int16)
            ranks["sid", seen] = more
    rows = {key: {"hit": key[0], "seen": key[1], "users": n_users, **metrics(found)} for key, found in ranks.items()}
    details = {"users": n_users, "items": 100, "interactions": 1_000, "distinct_items": 50}
    details |= {"collision_rate": 0.25} if sharing else {}
    stage = {"seconds": 120.0 + 60 * rng.random(), "git": "0" * 40, "machine": "x86_64", "cores": 2, "threads": 1}
    other = stage | {"git": "1" * 40, "threads": 2}
    stages = {
        "prepare": other,
        "embed": other,
        "embed:part": other,
        "tokenize": stage,
        "train": stage | {"training_seconds": 60.0},
        "evaluate": stage,
    }
    if not sharing:
        stages = {
            "prepare": other,
            "tune": stage | {"seconds_of_trials": 90.0},
            "baseline": stage | {"fitting_seconds": 30.0, "ranking_seconds": 6.0},
        }
    return CellResults(ranks, np.arange(n_users), rows, details, stages)


def a_result(
    name: str, shares: dict[tuple[int, int], float], seed: int, kind: str = "generator", n_users: int = 1_500
) -> RowResults:
    rng = np.random.default_rng(seed)
    runs = {seeds: a_run(rng, share, n_users, kind == "generator") for seeds, share in shares.items()}
    cell = SimpleNamespace(model=name if kind == "baseline" else "t5")
    return RowResults(Row(name, kind, None, None, dict.fromkeys(shares, cell)), runs)  # type: ignore[arg-type]


FOUR = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.fixture(scope="module")
def summary() -> Summary:
    results = [
        a_result("poor", dict.fromkeys(FOUR, 0.1), 0),
        a_result("good", {(0, 0): 0.29, (0, 1): 0.3, (1, 0): 0.31, (1, 1): 0.32}, 1),
        a_result("strong", {(0, 0): 0.5, (1, 0): 0.5}, 2, kind="baseline"),
        a_result("like good", dict.fromkeys(FOUR[:2], 0.3), 3),
    ]
    return Summary(results, ["good"])


def test_rows_are_means_over_runs_with_the_spread_of_three_runs_up(summary):
    assert summary.results[0].row.name == "strong"
    assert summary.above_all_generators == ["strong"]
    for result in summary.results:
        line = next(
            line
            for line in summary.rows
            if (line["row"], line["hit"], line["seen"]) == (result.row.name, "item", "masked")
        )
        values = [run.metrics["item", "masked"]["hr@10"] for run in result.runs.values()]
        assert line["hr@10"] == pytest.approx(np.mean(values))
        assert line["hr@10_runs"] == values
        assert line["hr@10_low"] < line["hr@10"] < line["hr@10_high"]
        apart = [(values[0] - values[3]) ** 2 / 2, (values[1] - values[2]) ** 2 / 2] if len(values) > 2 else None
        assert line["hr@10_sd"] == (pytest.approx(np.mean(apart) ** 0.5) if apart else None)
        assert result.user_gains["item", "masked"][:, METRICS.index("hr@10")].mean() == pytest.approx(
            np.mean(values), abs=1e-7
        )


def test_comparisons_are_paired_and_corrected(summary):
    rows = {row["row"]: row for row in summary.comparisons if row["metric"] == "hr@10"}
    assert set(rows) == {"poor", "strong", "like good"}
    assert rows["poor"]["high"] < 0
    assert rows["strong"]["low"] > 0
    assert rows["poor"]["p_holm"] < 0.01
    assert rows["like good"]["low"] < rows["like good"]["difference"] < rows["like good"]["high"]
    for row in rows.values():
        assert row["p"] <= row["p_holm"] <= min(1, 3 * row["p"])


def test_components_leave_out_rows_without_seeds_and_baselines(summary):
    head, *lines = spread(summary.variance, "{:.3f}".format)
    kinds = ("tokenizer", "generator", "interaction")
    assert head == [
        "row", *(f"{metric}, {kind}" for metric in ("HR@10", "NDCG@10") for kind in kinds), "degrees of freedom"
    ]  # fmt: skip
    assert {line[0]: line[-1] for line in lines} == {
        "all, pooled": "2, 2, 2",
        "good": "1, 1, 1",
        "poor": "1, 1, 1",
        "like good": "–, 1, –",
    }
    by_name = {(line["row"], line["component"]): line["sd"] for line in summary.variance if line["metric"] == "hr@10"}
    unseen = by_name["like good", "generator seed"] ** 2
    first, second = (
        next(result for result in summary.results if result.row.name == "like good").values("hr@10").values()
    )
    assert unseen == pytest.approx((first - second) ** 2 / 2)


def test_minutes_are_those_of_the_fastest_run_by_kind_of_work(summary):
    by_name = {result.row.name: result for result in summary.results}
    seconds = [run.stages["evaluate"]["seconds"] for run in by_name["good"].runs.values()]
    assert len(set(seconds)) == 4
    assert by_name["good"].minutes("minutes_evaluate") == min(seconds) / 60
    assert by_name["good"].minutes("minutes_tune") is None
    line = next(line for line in summary.rows if line["row"] == "strong")
    assert [line[f"minutes_{name}"] for name in ("tokenize", "tune", "train", "evaluate")] == [None, 1.5, 0.5, 0.1]


def test_what_made_the_data_and_the_vectors_does_not_count_as_what_made_the_rows(summary):
    made = how_it_was_made(summary, compose(["experiment=beauty_short"]), ["experiment=beauty_short"])
    assert made["machine"] == "x86_64, 2 cores, 1 thread a run"
    assert made["commits"] == [short_commit("0" * 40)]


def test_the_page_says_what_a_reader_must_know(summary, tmp_path):
    made = {
        "dataset": {"name": "toy", "users": 1_500, "items": 100, "interactions": 1_000},
        "split": "test",
        "commands": ["make table"],
        "commits": ["abcdef0123"],
        "machine": "x86_64, 2 cores",
        "picture": True,
        "notes": [],
    }
    text = markdown.page("Toy", summary, made, ["a failed: b."])
    heading, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.split("## Seen items kept")[0].splitlines()
        if line.startswith("|")
    ]
    shown = {row[0]: dict(zip(heading, row, strict=True)) for row in rows}
    assert next(iter(shown)) == "*strong*"
    assert re.fullmatch(r"\.\d{4} ± \.\d{4}", shown["good"]["HR@10"])
    assert re.fullmatch(r"\.\d{4} · \.\d{4}", shown["like good"]["HR@10"])
    assert "Missing: a failed: b." in text
    assert re.search(r"^\| poor +\| +HR@10 .* ≤ 0\.0006 \|$", text, re.MULTILINE)
    assert re.search(r"^\| like good +\| +HR@10 .*\] \| +0\.\d{4} \|$", text, re.MULTILINE)
    inflation = re.search(r"^\| good .*\| +\+(\d+\.\d)% ", text, re.MULTILINE)
    good = next(result for result in summary.results if result.row.name == "good")
    assert float(inflation[1]) == pytest.approx(100 * (good.mean("hr@10", "sid") / good.mean("hr@10") - 1), abs=0.06)
    plot.draw(summary, "Toy", tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_other_targets_do_not_share_a_table():
    with pytest.raises(TigerrecError, match="have results of other targets; delete the older cells"):
        Summary([a_result("a", {(0, 0): 0.1}, 0), a_result("b", {(0, 0): 0.1}, 1, n_users=20)], [])


def test_users_who_know_the_whole_catalogue_leave_a_table_a_page_and_an_audit(tmp_path):
    orders = tmp_path / "orders.csv"
    lines = [f"u{user},i{time % 2},{time}" for user in range(3) for time in range(6)]
    orders.write_text("\n".join(["user,item,time", *lines]) + "\n")
    options = tiny_shop.options(orders, tmp_path / "runs", f"paths.results={tmp_path}/results")
    evaluated = tiny_shop.run(orders, tmp_path / "runs")
    assert (read_lists(evaluated)["t5", "masked"].items == -1).all()
    assert not re.search(r">\s*nan\b", report_run(evaluated).read_text())
    of_table = ["table=t", "seeds=1", "tokenizers=[rkmeans]", "baselines=[popularity]", "reference=null"]
    out = make_table([*(option for option in options if option != "tokenizer=rkmeans"), *of_table])
    assert {row["distinct_items"] for row in pq.read_table(out / "table.parquet").to_pylist()} == {0}
    checks = [check for check in CHECKS if check != "cold"]  # of one item no history is long enough
    audited = audit(compose([*options, "audit.users=3", f"audit.checks=[{','.join(checks)}]"]))
    assert [check["check"] for check in json.loads((audited / "audit.json").read_text())["checks"]] == checks
