"""Options of a user's own data, end to end through prepare."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.raw_data import lines
from tigerrec.data.base import DatasetError
from tigerrec.data.prepare import prepare
from tigerrec.data.tables import TablesDataset
from tigerrec.storage.contracts import read_json, read_table
from tigerrec.storage.manifests import read_manifest

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
