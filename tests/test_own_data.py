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
