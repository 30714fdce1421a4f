"""Tables of results side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tigerrec import TigerrecError
from tigerrec.analysis.side_by_side import side_by_side

DATA = {"name": "shop", "users": 9, "items": 7, "interactions": 80}


def a_row(name: str, runs: list[float], kind: str = "generator") -> dict:
    mean = sum(runs) / len(runs)
    line = {"row": name, "kind": kind, "runs": len(runs), "hit": "item", "seen": "masked"}
    for metric in ("hr@5", "hr@10", "ndcg@5", "ndcg@10"):
        line |= {metric: mean, f"{metric}_sd": 0.001, f"{metric}_runs": runs}
        line |= {f"{metric}_low": mean - 0.01, f"{metric}_high": mean + 0.01}
    return line


def write(folder: Path, rows: list[dict], data: dict = DATA) -> Path:
    folder.mkdir()
    kept = [row | {"seen": "kept", "ndcg@10": 0.9} for row in rows]
    pq.write_table(pa.Table.from_pylist([*kept, *rows]), folder / "table.parquet")
    (folder / "table.json").write_text(json.dumps({"dataset": data, "split": "test"}))
    return folder


def test_every_row_of_the_first_table_stands_there_with_the_figures_of_each_best_first(tmp_path):
    popularity = a_row("popularity", [0.005], "baseline")
    first = write(tmp_path / "t5-short", [a_row("opq", [0.03, 0.04]), a_row("lsh", [0.02]), popularity])
    second = write(tmp_path / "t5_tree-long", [a_row("lsh", [0.05] * 4), a_row("fsq", [0.9]), popularity])
    command = [sys.executable, "-m", "tigerrec", "compare-tables", str(first), str(second)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == side_by_side([[first], [second]])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.strip().splitlines()]
    assert lines[0] == ["row", "t5-short: HR@10", "t5-short: NDCG@10", "t5_tree-long: HR@10", "t5_tree-long: NDCG@10"]
    assert lines[2:] == [
        ["lsh", ".0200", ".0200", ".0500 ± .0010", ".0500 ± .0010"],
        ["opq", ".0300 · .0400", ".0300 · .0400", "–", "–"],
        ["*popularity*", ".0050", ".0050", ".0050", ".0050"],
    ]


def test_tables_share_a_column_and_rows_by_one_score_alone_are_left_out(tmp_path):
    tree = [a_row(name, [figure]) for name, figure in (("opq", 0.03), ("lsh", 0.02), ("fsq", 0.01), ("opq:codes", 0.9))]
    first = write(tmp_path / "t5_tree-long", tree)
    (tmp_path / "new").mkdir()
    second = write(tmp_path / "new" / "t5-long", [a_row("lsh", [0.04])])
    older = write(tmp_path / "t5-older", [a_row("lsh", [0.05]), a_row("fsq", [0.015]), a_row("rqvae", [0.06])])
    command = [sys.executable, "-m", "tigerrec", "compare-tables", "--whole", "--metric", "ndcg@10"]
    done = subprocess.run([*command, str(first), f"{second},{older}"], capture_output=True, text=True, check=True)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.strip().splitlines()]
    assert lines[0] == ["row", "t5_tree-long: NDCG@10", "t5-long, t5-older: NDCG@10"]
    assert lines[2:] == [["lsh", ".0200", ".0400"], ["opq", ".0300", "–"], ["fsq", ".0100", ".0150"]]


def test_columns_of_equal_names_are_told_apart_by_the_folders_above(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    tables = [write(tmp_path / name / "t5-short", [a_row("opq", [0.03])]) for name in ("one", "other")]
    head = side_by_side([[table] for table in tables], ["hr@5"]).splitlines()[0]
    assert head.replace("|", " ").split() == ["row", "one/t5-short:", "HR@5", "other/t5-short:", "HR@5"]


def test_tables_of_other_data_are_refused(tmp_path):
    first = write(tmp_path / "one", [a_row("opq", [0.03])])
    second = write(tmp_path / "other", [a_row("opq", [0.03])], DATA | {"users": 8})
    with pytest.raises(TigerrecError, match=r"other is of other data than .*one; compare tables of one data set"):
        side_by_side([[first], [second]])
    with pytest.raises(TigerrecError, match=r"none holds no table\.parquet"):
        side_by_side([[first, tmp_path / "none"]])
