"""Committed results can be recomputed from their ranks, and a run's from its lists and the split, by the lines in
docs/results.md."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.tiny_run import build_run
from tigerrec.analysis import table
from tigerrec.analysis.audit.report import page
from tigerrec.evaluation.stage import EvaluateConfig, evaluate
from tigerrec.storage.manifests import read_manifest
from tigerrec.storage.stages import open_stage
from tigerrec.tools import arguments_of, result_of

ROOT = Path(__file__).parent.parent
CELLS = sorted(path.parent for path in (ROOT / "results").glob("*/*/*/ranks.parquet"))
PARTS = {
    "masked": "Seen items masked",
    "kept": "Seen items kept",
    "ids": "Ids, diversity and cost",
    "against": "Against",
    "seeds": "What seeds change",
    "tuning": "How the baselines were tuned",
}
SHOWN = ("hr@5", "hr@10", "ndcg@5", "ndcg@10")


@pytest.fixture(scope="module")
def told() -> dict:
    """What the code in docs/reproducing.md defines."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "reproducing.md").read_text(), re.DOTALL)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 21
    names: dict = {}
    exec(code, names)
    return names


def assert_same(table: pd.DataFrame, rows: list[dict]) -> None:
    assert len(rows) == len(table) > 0
    for row in rows:
        computed = table.loc[row["model"], row["hit"], row["seen"]]
        assert {name: computed[name] for name in SHOWN} == pytest.approx({name: row[name] for name in SHOWN}, abs=1e-8)


@pytest.mark.parametrize("cell", [pytest.param(cell, id="/".join(cell.parts[-3:])) for cell in CELLS])
def test_a_committed_cell_is_whole_and_its_metrics_are_those_of_its_ranks(told, cell):
    open_stage(cell, "cell")
    assert sum(path.stat().st_size for path in cell.iterdir()) <= 150_000
    assert_same(
        told["metrics"](pd.read_parquet(cell / "ranks.parquet")), json.loads((cell / "metrics.json").read_text())
    )


def table_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize(
    ("document", "shown"), [("README.md", {"compared"}), ("docs/results.md", {"compared", *PARTS} - {"against"})]
)
def test_quoted_tables_are_those_of_the_tables(document, shown, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / document).read_text()
    quoted = re.findall(r"<!-- ([^>]+) (\w+) -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert {part for _, part, _ in quoted} - {"made"} == shown
    for folder, part, lines in quoted:
        if part == "compared":
            assert f"`tigerrec compare-tables {folder}`" in page
            options = arguments_of("compare-tables", shlex.split(folder))
            assert lines.strip() == result_of("compare-tables", options)
            continue
        made = (ROOT / "results" / folder / "table.md").read_text()
        if part == "made":
            assert lines.startswith("Made by `make table ")
            assert lines.strip() in made
            continue
        sections = made.split("\n## ")
        (section,) = [section for section in sections if section.startswith(PARTS[part])]
        assert table_lines(lines) == table_lines(section) != []


def test_audits_are_what_their_checks_left_and_one_stands_in_the_docs():
    paths = sorted((ROOT / "results" / "audit").rglob("audit.json"))
    pages = [path.with_suffix(".md").read_text() for path in paths]
    assert pages == [page(json.loads(path.read_text())) for path in paths]
    assert (ROOT / "docs" / "audit.md").read_text() in pages


def test_a_runs_metrics_are_those_of_its_lists_and_the_split(told, tmp_path):
    folders = build_run(tmp_path)
    out = evaluate(
        folders["prepare"], folders["tokenize"], folders["train"], EvaluateConfig(model="t5"), tmp_path / "evaluated"
    )
    rows = json.loads((out / "metrics.json").read_text())
    assert max(row["hr@10"] for row in rows) > 0
    assert_same(
        told["metrics"](told["item_ranks"](out, folders["prepare"])), [row for row in rows if row["hit"] == "item"]
    )
    assert_same(told["metrics"](pd.read_parquet(out / "ranks.parquet")), rows)


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(path.parent, id="/".join(path.parts[-3:-1]))
        for path in sorted((ROOT / "results").glob("*/*/table.json"))
    ],
)
def test_a_committed_table_follows_from_its_cells_and_these_from_todays_options(made, tmp_path, monkeypatch):
    (command,) = json.loads((made / "table.json").read_text())["commands"]
    told = dict(word.split("=", 1) for word in shlex.split(command)[2:])
    options = [*shlex.split(told.pop("ARGS", "")), *(f"{name.lower()}={value}" for name, value in told.items())]
    monkeypatch.setattr(
        table,
        "_run_cells",
        lambda cells, results, locks: [cell.row for cell in cells if read_manifest(cell.folder) and not cell.is_done()],
    )
    shutil.copytree(made.parent, tmp_path / "results" / made.parent.name)
    again = table.make_table([*options, f"paths.runs={tmp_path}/runs", f"paths.results={tmp_path}/results"])
    for name in ("table.md", "table.json"):
        assert (again / name).read_text() == (made / name).read_text()
