"""A user's own tables: formats, columns, ids, times and errors."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.raw_data import read
from tigerrec import TigerrecError
from tigerrec.data.base import DatasetError
from tigerrec.data.interactions import Loader
from tigerrec.data.parquet import ParquetTable
from tigerrec.data.prepare import prepare
from tigerrec.data.tables import TablesDataset
from tigerrec.storage.contracts import read_json, read_table
from tigerrec.storage.manifests import read_manifest

INTERACTIONS = [
    ("001", "007", "10"),
    ("001", "NA", "9"),
    ("001", "9", "10"),
    ("02", "9", "-1"),
    ("02", "007", "0"),
    ("02", "NA", "3"),
]
ITEMS = [
    ("007", "NA", "", "Home > Bath&amp;Body", "1.5"),
    ("9", 'Soap, "fine"', "Ann", "Home", "cheap"),
    ("9", "again", "", "", ""),
]
COLUMNS = ["item", "title", "brand", "categories", "price"]


def write_table(path: Path, columns: list[str], rows: list[tuple[Any, ...]]) -> Path:
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    kind = path.name.split(".", 1)[1]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif kind.startswith("jsonl"):
        text = "".join(json.dumps(record) + "\n" for record in records)
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    else:
        import csv

        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            if kind == "tsv":
                file.writelines("\t".join(row) + "\n" for row in [columns, *rows])
            else:
                csv.writer(file).writerows([columns, *rows])
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "jsonl.gz", "parquet"])
def test_every_format_gives_the_same_histories(tmp_path: Path, kind: str) -> None:
    interactions = write_table(tmp_path / f"orders.{kind}", ["user", "item", "time"], INTERACTIONS)
    dataset = TablesDataset(interactions, write_table(tmp_path / f"items.{kind}", COLUMNS, ITEMS))
    out = prepare(dataset, tmp_path / "out")
    items = read_table(out, "items.parquet").to_pylist()
    assert [item["item_id"] for item in items] == ["007", "NA", "9"]
    assert [item["text"] for item in items] == [
        "Title: NA; Categories: Home > Bath&Body; Price: 1.50.",
        "Item NA.",
        'Title: Soap, "fine"; Brand: Ann; Categories: Home.',
    ]
    assert read_table(out, "users.parquet")["user_id"].to_pylist() == ["001", "02"]
    assert read_table(out, "interactions.parquet")["item"].to_pylist() == [1, 0, 2, 2, 0, 1]
    assert read_json(out, "stats.json")["noted"] == {"price is not a number": 1, "repeated items": 1}


def test_named_columns_dates_numbers_and_no_items(tmp_path: Path) -> None:
    rows = [
        (1, "b", "2024-03-01T00:00:00Z"),
        (1, "a", "2024-02-29"),
        (1, "c", "2024-03-01T01:30:00+02:00"),
    ]
    path = write_table(tmp_path / "orders.jsonl", ["customer", "sku", "bought"], rows)
    dataset = TablesDataset(path, user_column="customer", item_column="sku", time_column="bought")
    raw = read(dataset)
    assert raw.user_ids == ["1", "1", "1"]
    assert raw.timestamps == [1709251200, 1709164800, 1709249400]
    assert raw.items["a"].title == "a"


def test_numbers_as_ids_and_times(tmp_path: Path) -> None:
    rows = [(2.0, "a", 1.9), (2, "b", -0.5), ("2", 3, 7)]
    raw = read(TablesDataset(write_table(tmp_path / "orders.jsonl", ["user", "item", "time"], rows)))
    assert (raw.user_ids, raw.item_ids) == (["2"] * 3, ["a", "b", "3"])
    assert (raw.timestamps, raw.nanos) == ([1, -1, 7], [900_000_000, 500_000_000, 0])


def test_parquet_dates_and_category_lists(tmp_path: Path) -> None:
    import datetime

    orders = pa.table(
        {
            "user": [1, 1, 1],
            "item": [5, 6, 7],
            "time": [datetime.datetime(1970, 1, 2), datetime.datetime(1970, 1, 1), None],
        }
    )
    pq.write_table(orders, tmp_path / "orders.parquet")
    items = pa.table(
        {"id": [5, 6], "name": ["Soap", None], "categories": [["Home", "Bath"], None], "price": [2.0, float("nan")]}
    )
    pq.write_table(items, tmp_path / "items.parquet")
    raw = read(
        TablesDataset(
            tmp_path / "orders.parquet", tmp_path / "items.parquet", items_item_column="id", title_column="name"
        )
    )
    assert (raw.timestamps, raw.dropped) == ([86400, 0], {"interactions: no time": 1})
    assert (raw.items["5"].title, raw.items["5"].categories, raw.items["6"].price, raw.noted) == (
        "Soap",
        ["Home", "Bath"],
        None,
        {},
    )


def test_bad_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    path.write_bytes(b"user,item,time\nu,a,1\nu,a\n,a,1\nu,,1\nu,a,soon\nu,a,\nu\xff,a,1\nu,a,inf\n\n")
    assert read(TablesDataset(path)).dropped == {
        "interactions: another number of columns than the header": 1,
        "interactions: no user": 1,
        "interactions: no item": 1,
        "interactions: time is neither a number nor an ISO date": 2,
        "interactions: no time": 1,
        "interactions: invalid UTF-8": 1,
    }


def test_filters_apply(tmp_path: Path) -> None:
    rows = [
        (user, item, time) for user in "abc" for time, item in enumerate("wxyz") if not (user == "c" and item == "z")
    ]
    dataset = TablesDataset(
        write_table(tmp_path / "orders.csv", ["user", "item", "time"], rows),
        min_user_interactions=3,
        min_item_interactions=3,
    )
    stats = read_json(prepare(dataset, tmp_path / "out"), "stats.json")
    assert (stats["users"], stats["items"], stats["interactions"], stats["items_filtered"]) == (3, 3, 9, 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "orders.csv",
            b"client,item,time\n",
            r"no column 'user', only client, item, time; name yours by `dataset\.user_column=",
        ),
        ("orders.csv", b"user,item,time\n", "orders.csv holds no interactions: it is empty, or has a header alone"),
        ("orders.csv", b"", "orders.csv is empty"),
        ("orders.csv", b'user,item,time\nu,"a,1\n', "a quote that is never closed: 1, as line 2"),
        ("orders.jsonl", b'{"user": "u", "item": "a"}\n', "no column 'time', only user, item"),
        ("orders.parquet", b"PAR1", "cannot be read as Parquet"),
        ("orders.jsonl.gz", b"{}", "is not a gzip file"),
        ("orders.xlsx", b"", "no known kind of table"),
        (None, b"", r"dataset\.interactions=<file> dataset\.items=<file> dataset\.name="),
        ("missing", None, "is no file"),
    ],
)
def test_errors_name_the_repair(tmp_path: Path, name: str | None, content: bytes | None, message: str) -> None:
    path = None if name is None else tmp_path / name
    if path is not None and content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        prepare(TablesDataset(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_table(tmp_path / "orders.csv", ["user", "item", "time"], INTERACTIONS)
    load = TablesDataset.load_interactions

    def load_then_append(dataset: TablesDataset, loader: Loader) -> None:
        load(dataset, loader)
        path.write_text(path.read_text() + "03,9,1\n")

    monkeypatch.setattr(TablesDataset, "load_interactions", load_then_append)
    with pytest.raises(TigerrecError, match=r"orders\.csv changed while it was read; run the same command again\.$"):
        prepare(TablesDataset(path), tmp_path / "out")
    assert read_manifest(tmp_path / "out") is None


def test_a_named_title_column_must_exist(tmp_path: Path) -> None:
    interactions = write_table(tmp_path / "orders.csv", ["user", "item", "time"], INTERACTIONS)
    items = write_table(tmp_path / "items.csv", ["item", "name"], [("007", "Soap")])
    with pytest.raises(DatasetError, match="no column 'label', only item, name"):
        read(TablesDataset(interactions, items, title_column="label"))
    assert read(TablesDataset(interactions, items, title_column="name")).items["007"].title == "Soap"


def test_an_items_table_without_any_known_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("user,sku,time\nu,1,1\n")
    (tmp_path / "items.csv").write_text("sku,label,maker\n1,Soap,Foamy\n")
    dataset = TablesDataset(tmp_path / "orders.csv", tmp_path / "items.csv", item_column="sku")
    with pytest.raises(
        DatasetError,
        match=r"none of the columns title, brand, categories, price, only sku, label, maker; .*dataset\.title_column=",
    ):
        read(dataset)


def test_spark_reads_parquet_alone(tmp_path: Path) -> None:
    path = write_table(tmp_path / "orders.csv", ["user", "item", "time"], INTERACTIONS)
    with pytest.raises(DatasetError, match=r"dataset\.engine=spark reads Parquet alone, not .*orders\.csv; convert it"):
        prepare(TablesDataset(path, engine="spark"), tmp_path / "out")


def test_spark_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("py4j.protocol", "pyspark.sql"):
        monkeypatch.setitem(sys.modules, name, None)
    path = write_table(tmp_path / "orders.parquet", ["user", "item", "time"], INTERACTIONS)
    with pytest.raises(DatasetError, match=r"needs PySpark; `pip install 'tigerrec\[spark\]'`"):
        prepare(TablesDataset(path, engine="spark"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_of_a_group_stand_where_they_stand_in_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": list("abcde")}), tmp_path / "users.parquet", row_group_size=2)
    table = ParquetTable(tmp_path / "users.parquet")
    assert table.group_sizes() == [2, 2, 1]
    (batch,) = table.batches(["user"], group=1)
    assert (list(batch.lines), batch.columns["user"].to_pylist()) == ([3, 4], ["c", "d"])
