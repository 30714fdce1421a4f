"""Filters, numbering, order, the prepare stage's files, and the split."""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Set
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.raw_data import COLUMNS, Rows, arranged
from tigerrec.data.base import Dataset, DatasetError, EqualTimes, RawItem
from tigerrec.data.histories import (
    Histories,
    evaluated_users,
    load_histories,
    training_counts,
    training_histories,
    validation_sample,
)
from tigerrec.data.interactions import Loader
from tigerrec.data.prepare import item_text, prepare
from tigerrec.data.raw import Fault, Tally
from tigerrec.storage import contracts
from tigerrec.storage.contracts import read_json, read_table
from tigerrec.storage.fingerprints import not_identity
from tigerrec.storage.manifests import DamagedError
from tigerrec.storage.stages import open_stage, writing

pairs = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=80)


@dataclasses.dataclass(frozen=True)
class Fixed(Dataset):
    """A data set of interactions given in the test: (user, item, time)."""

    path: Path = not_identity()
    rows: tuple[tuple[str, str, int], ...] = not_identity()
    min_user_interactions: int = 0
    min_item_interactions: int = 0
    max_dropped: float = 0.001
    expected: tuple[int, ...] = ()
    max_user_interactions: int | None = None
    equal_times: EqualTimes = "file"
    dropped: int = not_identity(default=0)

    def files(self) -> dict[str, Path]:
        return {"rows": self.path}

    def sources(self) -> dict[str, Path]:
        self.path.write_text(json.dumps(self.rows))
        return self.files()

    def load_interactions(self, loader: Loader) -> None:
        loader.load(Rows(self.rows), COLUMNS)
        for line in range(self.dropped):
            loader.tally.lines["interactions"] += 1
            loader.tally.drop("interactions", Fault(line + 1, "not JSON", "{"))

    def read_items(self, needed: Set[str], tally: Tally) -> Iterator[tuple[str, RawItem | None]]:
        yield "a", RawItem("Ann's soap", "Ann", ["Bath", "Soap"], 3.5)


ROWS = (
    ("u", "b", 5),
    ("v", "a", 1),
    ("u", "a", 5),
    ("v", "c", -3),
    ("u", "c", 2),
    ("w", "d", 1),
    ("v", "b", 1),
    ("u", "b", 5),
    ("w", "a", 2),
)


@settings(max_examples=40, deadline=None)
@given(pairs)
def test_k_core_is_the_largest_stable_set(interactions: list[tuple[int, int]]) -> None:
    rows = [(f"u{user}", f"i{item}", time) for time, (user, item) in enumerate(interactions)]
    kept = list(rows)
    while True:  # oracle: remove one offender at a time, in any order
        by_user, by_item = Counter(row[0] for row in kept), Counter(row[1] for row in kept)
        offenders = [row for row in kept if by_user[row[0]] < 3 or by_item[row[1]] < 2]
        if not offenders:
            break
        kept.remove(offenders[0])
    if not kept:
        with pytest.raises(DatasetError, match="Nothing is left"):
            arranged(rows, 3, 2)
        return
    found = arranged(rows, 3, 2)
    assert sorted(found.timestamps) == [time for _, _, time in kept]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcde"), st.integers(-2, 2)), min_size=1, max_size=60)
)
def test_arrange_keeps_each_users_stable_order(rows: list[tuple[str, str, int]]) -> None:
    unique = list(dict.fromkeys(rows))
    lengths = Counter(user for user, _, _ in unique)
    kept = [row for row in unique if lengths[row[0]] >= 3]
    if not kept:
        with pytest.raises(DatasetError, match="Nothing is left"):
            arranged(rows)
        return
    prepared = arranged(rows)
    assert prepared.user_ids == list(dict.fromkeys(row[0] for row in kept))
    assert prepared.item_ids == list(dict.fromkeys(row[1] for row in kept))
    expected = [
        row
        for user in prepared.user_ids
        for row in sorted((row for row in kept if row[0] == user), key=lambda row: row[2])
    ]
    found = [
        (prepared.user_ids[u], prepared.item_ids[i], int(t))
        for u, i, t in zip(prepared.users, prepared.items, prepared.timestamps, strict=True)
    ]
    assert found == expected
    assert prepared.stats["repeated_interactions"] == len(rows) - len(unique)
    assert prepared.positions == [n for user in prepared.user_ids for n in range(lengths[user])]


def test_prepare_writes_the_contract(tmp_path: Path) -> None:
    out = prepare(Fixed(tmp_path / "raw.json", ROWS), tmp_path / "out")
    open_stage(out, "prepare")
    items = read_table(out, "items.parquet")
    assert items.schema.names == ["item", "item_id", "title", "brand", "categories", "price", "text"]
    assert [str(kind) for kind in items.schema.types] == [
        "int32",
        "string",
        "string",
        "string",
        "list<element: string>",
        "double",
        "string",
    ]
    assert items["item_id"].to_pylist() == ["b", "a", "c"]
    assert items["text"].to_pylist() == [
        "Item b.",
        "Title: Ann's soap; Brand: Ann; Categories: Bath > Soap; Price: 3.50.",
        "Item c.",
    ]
    assert items["title"].to_pylist() == [None, "Ann's soap", None]
    interactions = read_table(out, "interactions.parquet")
    assert [f"{field.name} {field.type}" for field in interactions.schema] == [
        "user int32",
        "item int32",
        "timestamp int64",
        "position int32",
    ]
    assert read_table(out, "users.parquet").to_pylist() == [
        {"user": 0, "user_id": "u"},
        {"user": 1, "user_id": "v"},
    ]
    stats = read_json(out, "stats.json")
    assert (stats["users"], stats["items"], stats["interactions"]) == (2, 3, 6)
    assert (stats["users_with_fewer_than_3"], stats["repeated_interactions"], stats["items_without_metadata"]) == (
        1,
        1,
        2,
    )
    histories = load_histories(out)
    assert (len(histories), histories.n_items, histories.items.dtype, histories.offsets.dtype) == (
        2,
        3,
        np.int32,
        np.int64,
    )
    assert [history.tolist() for history in histories] == [[2, 0, 1], [2, 1, 0]]


@settings(max_examples=40, deadline=None)
@given(pairs, st.integers(1, 5))
def test_histories_are_the_same_however_many_rows_are_read_at_once(
    interactions: list[tuple[int, int]], n_rows: int
) -> None:
    rows = tuple((f"u{user}", f"i{item}", time) for time, (user, item) in enumerate(interactions))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        try:
            out = prepare(Fixed(Path(folder) / "rows.json", rows), Path(folder) / "out")
        except DatasetError:
            return
        whole = load_histories(out)
        patch.setattr(contracts, "ROWS_AT_ONCE", n_rows)
        in_blocks = load_histories(out)
        np.testing.assert_array_equal(whole.items, in_blocks.items)
        np.testing.assert_array_equal(whole.offsets, in_blocks.offsets)
        own = read_table(out, "interactions.parquet").to_pandas().groupby("user")["item"].apply(list)
        assert [history.tolist() for history in in_blocks] == own.tolist()


@pytest.mark.parametrize("n_rows", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("column", "values", "fault"),
    [
        ("user", [0, 0, 0, 2, 2, 2], "not numbered"),
        ("user", [1, 1, 1, 2, 2, 2], "not numbered"),
        ("user", [0, 0, 0, 1, 1, 0], "not numbered"),
        ("user", [0, 0, 0, 0, 1, 1], "positions of a user"),
        ("position", [0, 1, 2, 1, 2, 3], "positions of a user"),
        ("position", [0, 2, 1, 0, 1, 2], "positions of a user"),
        ("timestamp", [2, 5, 4, -3, 1, 1], "order of time"),
        ("item", [0, 1, 3, 0, 1, 2], "not below 3"),
        ("item", [0, 1, -1, 0, 1, 2], "not below 3"),
    ],
)
def test_histories_that_break_the_contract_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_rows: int, column: str, values: list[int], fault: str
) -> None:
    out = prepare(Fixed(tmp_path / "rows.json", ROWS), tmp_path / "out")
    table = read_table(out, "interactions.parquet")
    place = table.column_names.index(column)
    damaged = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
    with writing(out, "prepare", {}) as files:
        for name in ("items.parquet", "users.parquet", "stats.json"):
            files.copy(out / name)
        files.parquet("interactions.parquet", damaged)
    monkeypatch.setattr(contracts, "ROWS_AT_ONCE", n_rows)
    with pytest.raises(DamagedError, match=rf"interactions\.parquet does not hold what it should .*{fault}"):
        load_histories(out)


def test_identity_is_content_and_filters_not_paths(tmp_path: Path) -> None:
    def fingerprint(name: str, rows: tuple[tuple[str, str, int], ...] = ROWS, minimum: int = 0) -> str:
        out = prepare(Fixed(tmp_path / f"{name}.json", rows, min_item_interactions=minimum), tmp_path / name)
        return open_stage(out, "prepare").fingerprint

    first = fingerprint("first")
    assert fingerprint("second") == first
    assert fingerprint("filtered", minimum=1) != first
    assert fingerprint("other", rows=ROWS[::-1]) != first
    assert (tmp_path / "first" / "interactions.parquet").read_bytes() == (
        tmp_path / "second" / "interactions.parquet"
    ).read_bytes()


def test_too_many_dropped_lines_stop_the_stage(tmp_path: Path) -> None:
    dataset = Fixed(tmp_path / "raw.json", ROWS, dropped=1)
    with pytest.raises(
        DatasetError, match=r"1 of 10 lines .* \(not JSON: 1, as line 1: {\).*`dataset\.max_dropped=0\.1`"
    ):
        prepare(dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    out = prepare(dataclasses.replace(dataset, max_dropped=0.1), tmp_path / "out")
    assert read_json(out, "stats.json")["dropped"] == {"interactions: not JSON": 1}


def test_unexpected_counts_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        prepare(Fixed(tmp_path / "raw.json", ROWS, expected=(2, 3, 6)), tmp_path / "out")
        assert "expected" not in caplog.text
        prepare(Fixed(tmp_path / "raw.json", ROWS, expected=(2, 3, 7)), tmp_path / "out2")
    assert "expected 2 users, 3 items, 7 interactions, found 2, 3, 6" in caplog.text


def test_nothing_left_names_the_counts(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"9 interactions of 3 users .* 4 items .*min_item_interactions=4"):
        prepare(Fixed(tmp_path / "raw.json", ROWS, min_item_interactions=4), tmp_path / "out")


def test_item_text_leaves_missing_parts_out() -> None:
    assert item_text("007", RawItem(None, None, [], None)) == "Item 007."
    assert item_text("007", RawItem("NA", None, [], 0.0)) == "Title: NA; Price: 0.00."
    assert item_text("007", RawItem("💄", None, ["A"], None)) == "Title: 💄; Categories: A."


def test_split_is_leave_one_out() -> None:
    histories = Histories(np.array([0, 4, 7]), np.array([7, 3, 9, 4, 1, 2, 0], dtype=np.int32), 10)
    assert histories.training_part(0).tolist() == [7, 3]
    validation, test = histories.split(0, "validation"), histories.split(0, "test")
    assert (validation[0].tolist(), validation[1]) == ([7, 3], 9)
    assert (test[0].tolist(), test[1]) == ([7, 3, 9], 4)
    assert [part.tolist() for part in training_histories(histories)] == [[7, 3], [1]]
    assert training_counts(histories).tolist() == [0, 1, 0, 1, 0, 0, 0, 1, 0, 0]
    with pytest.raises(ValueError, match="validation"):
        histories.split(0, "train")


def test_a_given_split_has_the_first_item_of_each_part_as_target() -> None:
    lists = [[7, 3, 9, 4, 5], [1, 2], [8, 6], [0, 5, 1], [4], [2, 3]]
    parts = [[0, 0, 1, 2, 2], [0, 2], [0, 1], [0, 0, 0], [2], [1, 1]]
    histories = Histories(
        np.cumsum([0, *map(len, lists)]),
        np.concatenate(lists).astype(np.int32),
        10,
        np.concatenate(parts).astype(np.int8),
    )
    assert [histories.training_part(user).tolist() for user in range(6)] == [[7, 3], [1], [8], [0, 5, 1], [], []]
    assert [part.tolist() for part in training_histories(histories)] == [[7, 3], [1], [8], [0, 5, 1]]
    assert training_counts(histories).tolist() == [1, 2, 0, 1, 0, 1, 0, 1, 1, 0]
    assert histories.users_with("validation").tolist() == [0, 2]
    assert histories.users_with("test").tolist() == [0, 1]
    assert [histories.split(user, "validation")[1] for user in (0, 2)] == [9, 6]
    known, target = histories.split(0, "test")
    assert (known.tolist(), target) == ([7, 3, 9], 4)
    assert evaluated_users(histories, "test", None).tolist() == [0, 1]
    assert validation_sample(histories, 1, 0).tolist() in ([0], [2])


def test_histories_end_where_users_end() -> None:
    histories = Histories(np.array([0, 2, 5]), np.arange(5, dtype=np.int32), 5)
    assert [history.tolist() for history in histories] == [[0, 1], [2, 3, 4]]
    with pytest.raises(IndexError):
        histories[-1]


def test_validation_sample_is_fixed_by_the_seed():
    histories = Histories(np.arange(0, 121, 4), np.zeros(120, np.int32), 1)
    sample = validation_sample(histories, 10, 0)
    assert len(set(sample.tolist())) == 10
    assert (sample == validation_sample(histories, 10, 0)).all()
    assert (sample != validation_sample(histories, 10, 1)).any()
    assert len(validation_sample(histories, 10_000, 0)) == len(histories)
