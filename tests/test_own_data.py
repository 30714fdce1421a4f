"""Options of a user's own data, end to end through prepare."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
import shlex
import sqlite3
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.raw_data import lines
from tigerrec import TigerrecError, pipeline
from tigerrec.config import compose
from tigerrec.data.base import DatasetError
from tigerrec.data.prepare import prepare
from tigerrec.data.tables import TablesDataset
from tigerrec.embed.sentence_transformer import SentenceTransformerEmbedder
from tigerrec.pipeline import Step, run
from tigerrec.storage.contracts import read_json, read_table
from tigerrec.storage.manifests import StaleError, read_manifest

HEAD = ["user", "item", "time"]
ORDERS = [("ann", item, time) for time, item in enumerate("abcde")] + [("bob", item, 9) for item in "edc"]


def orders(folder: Path, rows: Any = ORDERS) -> Path:
    path = folder / "orders.csv"
    path.write_bytes(lines(rows, HEAD))
    return path


def histories(out: Path) -> dict[str, list[str]]:
    """The ids of each user's items, oldest first."""
    users, items = (read_table(out, f"{side}s.parquet")[f"{side}_id"].to_pylist() for side in ("user", "item"))
    found: dict[str, list[str]] = {user: [] for user in users}
    for row in read_table(out, "interactions.parquet").to_pylist():
        found[users[row["user"]]].append(items[row["item"]])
    return found


def texts(out: Path) -> dict[str, str]:
    table = read_table(out, "items.parquet")
    return dict(zip(table["item_id"].to_pylist(), table["text"].to_pylist(), strict=True))


def fingerprint(out: Path) -> str:
    manifest = read_manifest(out)
    assert manifest is not None
    return manifest.fingerprint


def test_the_last_interactions_of_a_user_are_kept_and_the_others_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = orders(tmp_path)
    whole = prepare(TablesDataset(path), tmp_path / "whole")
    with caplog.at_level(logging.INFO):
        out = prepare(TablesDataset(path, max_user_interactions=3), tmp_path / "out")
    assert histories(out) == {"ann": ["c", "d", "e"], "bob": ["e", "d", "c"]}
    assert read_json(out, "stats.json")["older_interactions"] == 2
    assert "kept the last 3 interactions of each user, without 2 older ones of 1 users" in caplog.text
    assert "older_interactions" not in read_json(whole, "stats.json")
    assert fingerprint(out) != fingerprint(whole)


def test_the_least_number_of_an_item_is_counted_among_what_is_kept(tmp_path: Path) -> None:
    rows = [*ORDERS, *(("cid", item, 9) for item in "aedc")]
    out = prepare(
        TablesDataset(orders(tmp_path, rows), max_user_interactions=3, min_item_interactions=2), tmp_path / "x"
    )
    assert histories(out) == {"ann": ["c", "d", "e"], "bob": ["e", "d", "c"], "cid": ["e", "d", "c"]}


def test_fewer_interactions_than_every_user_needs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_user_interactions must be at least 3, got 2"):
        TablesDataset(max_user_interactions=2)
    with pytest.raises(DatasetError, match=r"max_user_interactions=4 is less than dataset\.min_user_interactions=5"):
        prepare(TablesDataset(orders(tmp_path), max_user_interactions=4, min_user_interactions=5), tmp_path / "out")


def test_further_columns_join_the_text_of_an_item(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"item": "a", "title": "Tent", "price": 9, "care_notes": ["Dry &amp; clean.", "Fold."], "material": "Nylon"},
        {"item": "b", "title": "Bag", "care_notes": " ", "material": None},
        {"item": "c", "care_notes": "['Air', 'Brush']"},
        {"item": "d", "title": "Map", "material": "x" * 990 + " " + "y" * 20},
        {"item": "e", "title": "Cup", "material": "ä" * 2000},
    ]
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps(record) + "\n" for record in records))
    path = orders(tmp_path)
    whole = prepare(TablesDataset(path, items), tmp_path / "whole")
    out = prepare(TablesDataset(path, items, text_columns=("care_notes", "material")), tmp_path / "out")
    assert texts(out) == {
        "a": "Title: Tent; Price: 9.00; Care notes: Dry & clean. Fold; Material: Nylon.",
        "b": "Title: Bag.",
        "c": "Care notes: Air Brush.",
        "d": f"Title: Map; Material: {'x' * 990}.",
        "e": f"Title: Cup; Material: {'ä' * 1000}.",
    }
    assert texts(whole)["a"] == "Title: Tent; Price: 9.00."
    assert read_json(out, "stats.json")["noted"] == {"material cut to 1,000 characters": 2}
    assert fingerprint(out) != fingerprint(whole)


def test_a_text_column_must_exist(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item,title\na,Tent\n")
    dataset = TablesDataset(orders(tmp_path), tmp_path / "items.csv", text_columns=("details",))
    with pytest.raises(
        DatasetError, match=r"no column 'details', only item, title; .*dataset\.text_columns=\[<column>\]"
    ):
        prepare(dataset, tmp_path / "out")


HISTORIES = {"ann": ["a", "b", "c", "a"], "bob": ["c", "b", "d"]}


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("h.jsonl", "\n".join(json.dumps({"user": user, "items": items}) for user, items in HISTORIES.items()), {}),
        ("h.csv", "user,items\n" + "".join(f"{user},{' '.join(items)}\n" for user, items in HISTORIES.items()), {}),
        ("h.csv", "user,items\n" + "".join(f'{user},"{items}"\n' for user, items in HISTORIES.items()), {}),
        ("h.tsv", "user\titems\n" + "".join(f"{user}\t{'|'.join(items)}\n" for user, items in HISTORIES.items()),
         {"sequence_separator": "|"}),
        ("h.txt", "".join(f"{user} {' '.join(items)}\n" for user, items in HISTORIES.items()), {}),
    ],
    ids=["lists", "spaces", "lists as text", "another separator", "lines"],
)  # fmt: skip
def test_histories_as_sequences_are_read_in_their_order(
    tmp_path: Path, name: str, content: str, options: dict[str, Any]
) -> None:
    (tmp_path / name).write_text(content)
    out = prepare(TablesDataset(tmp_path / name, sequence_column="items", **options), tmp_path / "out")
    assert histories(out) == HISTORIES
    assert read_table(out, "items.parquet")["item_id"].to_pylist() == ["a", "b", "c", "d"]


def test_a_user_of_several_sequences_has_them_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text("who,bought\nann,a b\nbob,x y z\nann,b a\n")
    dataset = TablesDataset(tmp_path / "h.csv", user_column="who", sequence_column="bought", where="item <> 'z'")
    assert histories(prepare(dataset, tmp_path / "out")) == {"ann": ["a", "b", "b", "a"]}


def test_what_is_no_sequence_is_counted_by_its_line(tmp_path: Path) -> None:
    records: list[Any] = [["a", "b", "c", None], "[1 2 3]", 7, None, "", [], "d e f"]
    rows = [{"user": f"u{number}", "items": items} for number, items in enumerate(records)] + [{"items": ["a"]}]
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = prepare(TablesDataset(tmp_path / "h.jsonl", sequence_column="items", max_dropped=0.5), tmp_path / "out")
    assert histories(out) == {"u0": ["a", "b", "c"], "u6": ["d", "e", "f"]}
    stats = read_json(out, "stats.json")
    assert (stats["lines"], stats["dropped_examples"]) == (
        10,
        {
            "interactions: neither a list of items nor a text of them": ["line 2: [1 2 3]", "line 3: 7"],
            "interactions: no item": ["line 1: None"],
            "interactions: no user": ["line 8: ['a']"],
        },
    )


def test_sequences_are_refused_with_ratings_or_without_their_column(tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text("user,history\nann,a b c\n")
    with pytest.raises(DatasetError, match=r"no column 'items', only user, history; .*dataset\.sequence_column="):
        prepare(TablesDataset(tmp_path / "h.csv", sequence_column="items"), tmp_path / "out")
    rated = TablesDataset(tmp_path / "h.csv", sequence_column="history", rating_column="x", min_rating=3)
    with pytest.raises(DatasetError, match="needs a row an interaction"):
        prepare(rated, tmp_path / "out")


def test_many_sequences_are_numbered_on_across_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tigerrec.data.sequences.BATCH", 2)
    (tmp_path / "h.txt").write_text("ann b a c\nbob c a b d\n")
    out = prepare(TablesDataset(tmp_path / "h.txt", sequence_column="items"), tmp_path / "out")
    assert histories(out) == {"ann": ["b", "a", "c"], "bob": ["c", "a", "b", "d"]}
    assert read_table(out, "interactions.parquet")["timestamp"].to_pylist() == [1, 2, 3, 4, 5, 6, 7]


GOODS = [(item, f"Thing {item}", number * 1.5) for number, item in enumerate("abcde")]


def sqlite(path: Path) -> Path:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute('CREATE TABLE orders ("user" TEXT, item TEXT, time INTEGER)')
        database.executemany("INSERT INTO orders VALUES (?, ?, ?)", ORDERS)
        database.execute("CREATE TABLE products (item TEXT, title TEXT, price REAL)")
        database.executemany("INSERT INTO products VALUES (?, ?, ?)", GOODS)
        database.commit()
    return path


def in_duckdb(path: Path) -> Path:
    with duckdb.connect(path) as database:
        database.execute('CREATE TABLE orders ("user" TEXT, item TEXT, time BIGINT)')
        database.executemany("INSERT INTO orders VALUES (?, ?, ?)", ORDERS)
        database.execute("CREATE TABLE products (item TEXT, title TEXT, price DECIMAL(9, 2))")
        database.executemany("INSERT INTO products VALUES (?, ?, ?)", GOODS)
    return path


@pytest.mark.parametrize("make", [sqlite, in_duckdb])
def test_tables_of_a_database_are_read_as_files_are(tmp_path: Path, make: Any) -> None:
    shop = make(tmp_path / "shop.db")
    (tmp_path / "items.csv").write_bytes(lines(GOODS, ["item", "title", "price"]))
    of_files = prepare(TablesDataset(orders(tmp_path), tmp_path / "items.csv"), tmp_path / "files")
    dataset = TablesDataset(shop, shop, interactions_table="orders", items_table="main.products")
    before = shop.read_bytes()
    out = prepare(dataset, tmp_path / "out")
    for name in ("items.parquet", "users.parquet", "interactions.parquet"):
        assert (out / name).read_bytes() == (of_files / name).read_bytes()
    assert (sorted(path.name for path in tmp_path.iterdir()), shop.read_bytes()) == (
        ["files", "items.csv", "orders.csv", "out", "shop.db"],
        before,
    )


@pytest.mark.parametrize("make", [sqlite, in_duckdb])
def test_a_query_of_a_database_is_part_of_the_identity(tmp_path: Path, make: Any) -> None:
    shop = make(tmp_path / "shop.db")
    query = 'SELECT "user" AS who, item FROM orders WHERE "user" = \'ann\' ORDER BY time DESC'
    dataset = TablesDataset(shop, interactions_table=query, user_column="who", time_column=None)
    out = prepare(dataset, tmp_path / "out")
    assert histories(out) == {"ann": ["e", "d", "c", "b", "a"]}
    other = dataclasses.replace(dataset, interactions_table=query.replace("DESC", "ASC"))
    assert fingerprint(prepare(other, tmp_path / "other")) != fingerprint(out)


def test_a_file_of_sql_is_run_and_its_rows_stay_in_order(tmp_path: Path) -> None:
    query = f"""
        CREATE TEMP TABLE bought AS SELECT * FROM read_csv('{orders(tmp_path)}');  -- as text
        SELECT "user", list(item ORDER BY time) AS items FROM bought GROUP BY "user" ORDER BY "user" DESC
    """
    (tmp_path / "orders.sql").write_text(query)
    out = prepare(TablesDataset(tmp_path / "orders.sql", sequence_column="items"), tmp_path / "out")
    assert {user: sorted(items) for user, items in histories(out).items()} == {"bob": list("cde"), "ann": list("abcde")}
    assert read_table(out, "users.parquet")["user_id"].to_pylist() == ["bob", "ann"]
    (tmp_path / "orders.sql").write_text(query.replace("DESC", ""))
    other = prepare(TablesDataset(tmp_path / "orders.sql", sequence_column="items"), tmp_path / "other")
    assert fingerprint(other) != fingerprint(out)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("shop.db", {}, r"is a database; name its table, or a query, by `dataset\.interactions_table=<table>`"),
        ("shop.db", {"interactions_table": "order"}, r"no table 'order', only orders, products; name yours by `"),
        ("shop.db", {"interactions_table": "SELECT x FROM y"}, r"The query of .*shop\.db fails \(.*y.*\); correct it"),
        ("none.db", {"interactions_table": "orders"}, r"none\.db is no database of DuckDB or SQLite"),
        ("orders.csv", {"interactions_table": "orders"}, r"is no database; leave `dataset\.interactions_table=orders`"),
        ("orders.sql", {"interactions_table": "orders"}, r"is a query, not a database; leave `dataset\."),
        ("orders.sql", {}, r"The query of .*orders\.sql fails \(Parser Error"),
        ("empty.sql", {}, r"holds no query; its last statement must be a SELECT"),
        ("late.sql", {}, r"The query of .*late\.sql fails \(.*Could not convert"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("make", [sqlite, in_duckdb])
def test_queries_that_cannot_be_answered_are_refused(
    tmp_path: Path, make: Any, name: str, options: dict[str, Any], message: str
) -> None:
    make(tmp_path / "shop.db")
    orders(tmp_path)
    (tmp_path / "none.db").write_text("no database at all")
    (tmp_path / "orders.sql").write_text("SELEC 1")
    (tmp_path / "empty.sql").write_text("-- nothing")
    (tmp_path / "late.sql").write_text(
        "SELECT 'u' AS \"user\", CAST(CASE WHEN i > 900000 THEN 'x' ELSE '1' END AS INT) AS item, i AS time "
        "FROM range(1000000) AS t(i)"
    )
    with pytest.raises(DatasetError, match=message):
        prepare(TablesDataset(tmp_path / name, **options), tmp_path / "out")


def test_a_database_with_changes_beside_it_is_refused(tmp_path: Path) -> None:
    sqlite(tmp_path / "shop.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "shop.db")) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("INSERT INTO orders VALUES ('cid', 'a', 1)")
        writer.commit()
        with pytest.raises(DatasetError, match=r"shop\.db lacks the changes that shop\.db-wal holds; close the"):
            prepare(TablesDataset(tmp_path / "shop.db", interactions_table="orders"), tmp_path / "out")
    out = prepare(TablesDataset(tmp_path / "shop.db", interactions_table="orders"), tmp_path / "out")
    assert read_json(out, "stats.json")["raw"]["users"] == 3


def test_what_is_no_text_in_sqlite_is_counted(tmp_path: Path) -> None:
    path = sqlite(tmp_path / "shop.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO orders VALUES (CAST(x'ff' AS TEXT), 'a', 1), ('ann', NULL, 1), (7, 12.0, 1)")
        database.commit()
    dataset = TablesDataset(path, interactions_table="orders", max_dropped=0.5)
    stats = read_json(prepare(dataset, tmp_path / "out"), "stats.json")
    assert stats["dropped"] == {"interactions: no item": 1, "interactions: user is not valid text": 1}


class Hub:
    """Stands in for the package `datasets`: the data sets by name, configuration and split, and what was asked for."""

    def __init__(self, **tables: Any) -> None:
        self.tables = tables
        self.asked: list[tuple[str, str | None, str]] = []

    def load_dataset(self, path: str, name: str | None = None, *, split: str | None = None) -> Any:
        self.asked.append((path, name, split or ""))
        if path != "shop/data":
            raise ConnectionError("Couldn't reach the Hub\nat all")
        table = self.tables[name or "orders"]

        class Split:
            def to_parquet(self, path_or_buf: Any) -> int:
                pq.write_table(table, path_or_buf)
                return len(table)

        return Split()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    tables = [(ORDERS, HEAD), (GOODS, ["item", "title", "price"])]
    orders, goods = (pa.table(dict(zip(head, zip(*rows, strict=True), strict=True))) for rows, head in tables)
    hub = Hub(orders=orders, goods=goods)
    monkeypatch.setitem(sys.modules, "datasets", hub)  # type: ignore[arg-type]
    return hub


def test_data_sets_of_the_hub_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["dataset=tables", "dataset.interactions=hf://shop/data", "dataset.items=hf://shop/data/goods:all"]
    cfg = compose([*given, "paths.runs=runs"])
    run(cfg, "prepare")
    out = tmp_path / "runs" / "tables"
    assert histories(out)["ann"] == list("abcde")
    assert texts(out)["b"] == "Title: Thing b; Price: 1.50."
    files = ["shop--data--goods--all.parquet", "shop--data.parquet"]
    assert sorted(path.name for path in (tmp_path / "data/raw/hub").glob("*.parquet*")) == files
    assert hub.asked == [("shop/data", None, "train"), ("shop/data", "goods", "all")]
    run(compose([*given, "paths.runs=others", "dataset.raw_dir=data/raw/hub"]), "prepare")
    assert len(hub.asked) == 2


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://other/data", r"hf://other/data cannot be loaded \(Couldn't reach the Hub\); write hf://<owner>/<name>"),
        ("hf://shop", r"hf://shop is no address of the Hugging Face Hub; write hf://<owner>/<name>"),
    ],
)
def test_what_the_hub_does_not_have_is_told_of(tmp_path: Path, hub: Hub, address: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        prepare(TablesDataset(Path(address), raw_dir=tmp_path / "raw"), tmp_path / "out")
    assert not list((tmp_path / "raw").glob("*.p*"))


def test_without_the_package_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError, match=r'datasets, which is not installed: run `pip install "tigerrec\[hf\]"`'):
        prepare(TablesDataset(Path("hf://shop/data"), raw_dir=tmp_path / "raw"), tmp_path / "out")


# What a newcomer meets


@pytest.mark.parametrize(
    ("name", "content"),
    [("orders.csv", "user,item,time,Größe\n"), ("orders.jsonl", '{"user": "Jörg", "item": 1}\n' * 3)],
)
@pytest.mark.parametrize("header", [True, False])
def test_a_first_line_in_another_encoding_names_the_option(
    tmp_path: Path, name: str, content: str, header: bool
) -> None:
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    message = rf"{name} tells no columns: .* \(invalid UTF-8: .*name its encoding, as `dataset\.encoding=latin-1`"
    with pytest.raises(DatasetError, match=message):
        prepare(TablesDataset(tmp_path / name, header=header), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("orders.csv", '"user,item,time\nann,a,1\n', "a quote that is never closed"),
        ("orders.jsonl", "user,item,time\nann,a,1\n", "neither JSON nor a Python literal"),
    ],
)
def test_a_file_whose_columns_cannot_be_told_is_not_called_empty(
    tmp_path: Path, name: str, content: str, reason: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=rf"{name} tells no columns: its line 1 cannot be read \({reason}"):
        prepare(TablesDataset(tmp_path / name), tmp_path / "out")


def test_all_columns_that_are_missing_are_told_of_at_once(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("Kunde,item,Datum\n")
    with pytest.raises(
        DatasetError,
        match=r"no columns 'user', 'time', only Kunde, item, Datum; name yours by "
        r"`dataset\.user_column=<column> dataset\.time_column=<column>`\.$",
    ):
        prepare(TablesDataset(tmp_path / "orders.csv"), tmp_path / "out")


@pytest.mark.parametrize(
    ("time_format", "message"),
    [
        (None, r"a date like 16\.11\.2023 18:05 needs `\"dataset\.time_format='%d\.%m\.%Y %H:%M'\"`\.$"),
        ("%d.%m.%Y", r"time is not written as dataset\.time_format says: 1, as line 2: '31\.12\.2000 22:24'"),
    ],
)
def test_dates_of_another_form_name_the_option(tmp_path: Path, time_format: str | None, message: str) -> None:
    path = orders(tmp_path, [("ann", "a", "31.12.2000 22:24")])
    with pytest.raises(DatasetError, match=message):
        prepare(TablesDataset(path, time_format=time_format), tmp_path / "out")


def test_columns_of_items_that_are_not_read_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "items.csv").write_text("item,title,Marke,material,Farbe\n" + "".join(f"{i},T,,,\n" for i in "abcde"))
    dataset = TablesDataset(orders(tmp_path), tmp_path / "items.csv", text_columns=("material",))
    with caplog.at_level(logging.INFO):
        prepare(dataset, tmp_path / "out")
    assert "columns of " + str(tmp_path / "items.csv") + " that are not read: Marke, Farbe" in caplog.text


def test_files_of_recbole_are_tables(tmp_path: Path) -> None:
    (tmp_path / "shop.inter").write_bytes(lines(ORDERS, ["user:token", "item:token", "time:float"], "\t"))
    assert histories(prepare(TablesDataset(tmp_path / "shop.inter"), tmp_path / "out"))["bob"] == list("edc")


def test_a_stage_is_up_to_date_with_the_files_that_are_named_alone(tmp_path: Path) -> None:
    rows = [(f"u{user}", f"i{(user + time) % 9}", time) for user in range(9) for time in range(6)]
    late = [(f"u{number % 9}", f"i{number % 9}", 10 + number // 9) for number in range(18)]
    parts, single = tmp_path / "parts", tmp_path / "one"
    parts.mkdir()
    single.mkdir()
    for name, some in (
        ("all", rows),
        ("parts/a", rows[:20]),
        ("parts/b", rows[20:]),
        ("one/a", rows),
        ("next", late[:9]),
        ("last", late[9:]),
    ):
        (tmp_path / f"{name}.csv").write_bytes(lines(some, HEAD))
    (tmp_path / "items.csv").write_bytes(lines([(f"i{item}", f"Thing {item}") for item in range(9)], ["item", "title"]))
    np.save(tmp_path / "vectors.npy", np.eye(9, dtype=np.float32))
    (tmp_path / "ids.txt").write_text("".join(f"i{item}\n" for item in range(9)))

    def options(name: str, **files: str) -> list[str]:
        named = [f"{option.replace('__', '.')}={tmp_path / file}" for option, file in files.items()]
        return ["dataset=tables", f"dataset.name={name}", f"paths.runs={tmp_path}/runs", *named]

    def is_current(stage: str, given: list[str]) -> bool:
        return pipeline.plan(compose(given))[stage].is_current()

    orders, items = {"dataset__interactions": "all.csv"}, {"dataset__items": "items.csv"}
    split = {"dataset__validation_interactions": "next.csv", "dataset__test_interactions": "last.csv"}
    folder, one, pattern = ({"dataset__interactions": name} for name in ("parts", "one", "on*/*.csv"))
    vectors = {"embedder__vectors": "vectors.npy", "embedder__ids": "ids.txt"}
    for name, files in (("plain", orders | items), ("split", orders | split), ("parts", folder), ("one", one),
                        ("pattern", pattern)):  # fmt: skip
        pipeline.run(compose(options(name, **files)), "prepare")
        assert is_current("prepare", options(name, **files))
    embedded = ["embedder=precomputed", *options("plain", **orders, **items, **vectors)]
    pipeline.run(compose(embedded), "embed")
    for name, files in (
        ("plain", orders),
        ("plain", orders | {"dataset__items": "itmes.csv"}),
        ("plain", {"dataset__interactions": "orders_2025.csv"} | items),
        ("split", orders),
    ):
        with pytest.raises(StaleError, match="made from other"):
            is_current("prepare", options(name, **files))
    with pytest.raises(StaleError, match="made from other vectors"):
        is_current("embed", ["embedder=precomputed", *options("plain", **orders, **items, **vectors),
                             f"embedder.vectors={tmp_path}/others.npy"])  # fmt: skip
    (parts / "b.csv").unlink()
    with pytest.raises(StaleError, match="made from other interactions"):
        is_current("prepare", options("parts", **folder))
    for path in (*parts.iterdir(), parts, *single.iterdir(), single, *tmp_path.glob("*.*")):
        path.rmdir() if path.is_dir() else path.unlink()
    for name, files in (("plain", orders | items), ("split", orders | split), ("parts", folder), ("one", one),
                        ("pattern", pattern), ("plain", {})):  # fmt: skip
        assert is_current("prepare", options(name, **files))
    for name, others in (("parts", "other"), ("parts", "x/*.csv"), ("one", "other")):
        with pytest.raises(StaleError, match="made from other interactions"):
            is_current("prepare", options(name, dataset__interactions=others))
    assert is_current("embed", embedded)


def test_another_encoder_that_is_not_here_is_another() -> None:
    first, second = (SentenceTransformerEmbedder(model=name) for name in ("nobody/one", "nobody/two"))
    steps = [Step("embed", "embed", Path("x"), None, {}, "", Path, one.present, one.named) for one in (first, second)]
    recorded = {"weights": "1" * 64, "weights/2_Dense/model.safetensors": "2" * 64}
    assert steps[0].outside(recorded, first.named()) == recorded
    assert steps[1].outside(recorded, first.named()) == {}
    assert steps[1].outside(recorded, {}) == recorded  # of before names were kept


def test_items_may_be_written_otherwise_than_interactions(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    path.write_bytes(lines(ORDERS, HEAD).replace(b",", b";").replace(b"ann", "jürgen".encode("latin-1")))
    goods = tmp_path / "goods.txt"
    goods.write_bytes("".join(f"{item}|Café {item}\n" for item in "abcde").encode())
    dataset = TablesDataset(
        path, goods, separator=";", encoding="latin-1", items_separator="|", items_encoding="utf-8",
        items_header=False, items_item_column="1", title_column="2",
    )  # fmt: skip
    out = prepare(dataset, tmp_path / "out")
    assert texts(out)["a"] == "Title: Café a."
    assert list(histories(out)) == ["jürgen", "bob"]
    assert read_json(out, "stats.json")["noted"] == {}


def test_the_options_of_items_are_named_where_items_are_at_fault(tmp_path: Path) -> None:
    semicolons, commas = tmp_path / "semi.csv", tmp_path / "goods.csv"
    semicolons.write_bytes(lines(ORDERS, HEAD).replace(b",", b";"))
    commas.write_text("item,title\na,Tent\n")
    with pytest.raises(DatasetError, match=r"add `\"dataset\.items_separator=','\"`"):
        prepare(TablesDataset(semicolons, commas, separator=";"), tmp_path / "out")
    commas.write_text("1,Tent\n2,Bag\n")
    with pytest.raises(DatasetError, match=r"add `dataset\.items_header=false` .*`dataset\.items_item_column=1 "):
        prepare(TablesDataset(orders(tmp_path), commas), tmp_path / "out")
    commas.write_bytes("item,größe\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"name its encoding, as `dataset\.items_encoding=latin-1`"):
        prepare(TablesDataset(orders(tmp_path), commas), tmp_path / "out")
    commas.write_bytes("item,title\na,größe\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"name its encoding, as `dataset\.items_encoding=latin-1`, or repair"):
        prepare(TablesDataset(orders(tmp_path), commas), tmp_path / "out")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_texts_in_utf_8_that_are_read_otherwise_are_noted(tmp_path: Path, encoding: str) -> None:
    goods = tmp_path / "goods.csv"
    goods.write_text("item,title\na,Café\nb,Müller’s\nc,Tent\nd,à la carte\ne,Cup\n", encoding="utf-8")
    path = orders(tmp_path)
    out = prepare(TablesDataset(path, goods, encoding=encoding), tmp_path / "out")
    noted = read_json(out, "stats.json")["noted"]
    assert noted["texts in UTF-8 that are read otherwise (`dataset.items_encoding=utf-8`)"] == 3
    goods.write_text("item,title\na,Café\nb,Müllers\nc,ÃLAND\nd,à la carte\ne,Â\n", encoding=encoding)
    assert (
        read_json(prepare(TablesDataset(path, goods, encoding=encoding), tmp_path / "right"), "stats.json")["noted"]
        == {}
    )


def test_what_seems_to_stand_between_items_is_named(tmp_path: Path) -> None:
    path = tmp_path / "histories.csv"
    path.write_text('user,items\nann,"1, 2, 3, 4"\nbob,"2, 3, 1"\n')
    dataset = TablesDataset(path, sequence_column="items")
    with pytest.raises(DatasetError, match=r"items that end in a comma .*`\"dataset\.sequence_separator=','\"`"):
        prepare(dataset, tmp_path / "out")
    out = prepare(dataclasses.replace(dataset, sequence_separator=","), tmp_path / "out")
    assert histories(out) == {"ann": ["1", "2", "3", "4"], "bob": ["2", "3", "1"]}


def test_the_options_that_a_message_names_mend_it(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    path.write_bytes(lines(ORDERS, [" user ", "item", "time "]))
    given = [f"dataset.interactions={path}", f"paths.runs={tmp_path / 'runs'}", "dataset=tables", "dataset.name=shop"]
    with pytest.raises(DatasetError) as caught:
        run(compose(given), "prepare")
    named = shlex.split(re.search("`(.*)`", str(caught.value))[1])  # type: ignore[index]
    assert run(compose([*given, *named]), "prepare").is_dir()


def test_a_name_that_is_read_as_a_number_is_asked_for_in_quotes(tmp_path: Path) -> None:
    given = [f"dataset.interactions={orders(tmp_path)}", f"paths.runs={tmp_path / 'runs'}", "dataset=tables"]
    with pytest.raises(TigerrecError, match=r"give it in quotes of its own, as `\"dataset\.name='2024'\"`") as caught:
        run(compose([*given, "dataset.name=2024"]), "prepare")
    named = shlex.split(re.search("`(.*)`", str(caught.value))[1])  # type: ignore[index]
    assert run(compose([*given, *named]), "prepare").name == "2024"
