"""Interactions of a user at the same time, in the order of the file or reversed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.raw_data import lines, write_amazon_2014
from tests.test_own_data import HEAD, fingerprint, histories, orders
from tigerrec.analysis.audit.variants import in_a_tie, read_interactions, ties_reversed
from tigerrec.data.amazon import AmazonReviews
from tigerrec.data.base import Dataset, DatasetError
from tigerrec.data.given_histories import read_histories
from tigerrec.data.prepare import prepare
from tigerrec.data.tables import TablesDataset
from tigerrec.storage.contracts import read_json
from tigerrec.storage.fingerprints import describe

DAY = 86_400
TIED = [("u", "a", 5), ("u", "b", 7), ("u", "c", 7), ("u", "d", 7)]


def random_rows() -> list[tuple[str, str, int]]:
    """Interactions on few days, with repeats."""
    rng = np.random.default_rng(0)
    rows = zip(rng.integers(0, 30, 900), rng.integers(0, 40, 900), rng.integers(0, 12, 900), strict=True)
    return [(f"u{user}", f"i{item}", int(day) * DAY) for user, item, day in rows]


def amazon(folder: Path, **options: Any) -> AmazonReviews:
    dataset = AmazonReviews(folder, "reviews.json.gz", "meta.json.gz", **options)
    write_amazon_2014(dataset, random_rows(), [{"asin": f"i{item}", "title": "Ball"} for item in range(40)])
    return dataset


def tables(folder: Path, **options: Any) -> TablesDataset:
    return TablesDataset(orders(folder, random_rows()), **options)


def as_reversed(dataset: Dataset) -> Any:
    return dataclasses.replace(dataset, equal_times="reversed")  # type: ignore[type-var]


@pytest.mark.parametrize("source", [amazon, tables])
@pytest.mark.parametrize("options", [{}, {"min_user_interactions": 6, "min_item_interactions": 20}])
def test_reversed_is_what_the_audit_makes_of_prepared_data(source: Any, options: Any, tmp_path: Path) -> None:
    dataset = source(tmp_path, **options)
    by_file, changed = prepare(dataset, tmp_path / "file"), prepare(as_reversed(dataset), tmp_path / "reversed")
    before = read_interactions(by_file)
    assert in_a_tie(before).mean() > 0.5
    pd.testing.assert_frame_equal(read_interactions(changed), ties_reversed(before))
    for name in ("items.parquet", "users.parquet", "stats.json"):
        assert (by_file / name).read_bytes() == (changed / name).read_bytes()


@pytest.mark.parametrize("source", [amazon, tables])
def test_the_last_interactions_are_those_of_the_reversed_order(source: Any, tmp_path: Path) -> None:
    whole = source(tmp_path, min_user_interactions=0, min_item_interactions=0)
    expected = histories(prepare(as_reversed(whole), tmp_path / "whole"))
    last = dataclasses.replace(whole, max_user_interactions=5)
    found, by_file = (histories(prepare(data, tmp_path / "last")) for data in (as_reversed(last), last))
    assert found == {user: items[-5:] for user, items in expected.items()}
    assert any(set(found[user]) != set(by_file[user]) for user in found)


def test_times_within_a_second_are_not_equal(tmp_path: Path) -> None:
    rows = [("u", "a", "7.5"), ("u", "b", "7.25"), ("u", "c", "7.25")]
    out = prepare(TablesDataset(orders(tmp_path, rows), equal_times="reversed"), tmp_path / "out")
    assert histories(out) == {"u": ["c", "b", "a"]}


@pytest.mark.parametrize("by_file", [True, False])
def test_a_given_split_keeps_its_parts_in_order(by_file: bool, tmp_path: Path) -> None:
    parts = [[("u", "a", 1), ("u", "b", 1)], [("u", "c", 1 if by_file else 2)], [("u", "d", 3), ("u", "e", 3)]]
    paths = [tmp_path / f"{number}.csv" for number in range(3)]
    for path, rows in zip(paths, parts, strict=True):
        path.write_bytes(lines(rows, HEAD))
    split: dict[str, Any] = {"validation_from": 2, "test_from": 3}
    if by_file:
        split = {"validation_interactions": paths[1], "test_interactions": paths[2]}
    path = paths[0] if by_file else orders(tmp_path, [row for rows in parts for row in rows])
    out = prepare(TablesDataset(path, equal_times="reversed", **split), tmp_path / "out")
    assert histories(out) == {"u": ["b", "a", "c", "e", "d"]}
    assert read_json(out, "stats.json")["split"]["users_with_test_target"] == 1


def test_histories_to_recommend_for_have_the_order_of_the_data(tmp_path: Path) -> None:
    dataset = TablesDataset(orders(tmp_path, TIED))
    assert list(read_histories(dataset, tmp_path / "work")) == [("u", ["a", "b", "c", "d"])]
    assert list(read_histories(as_reversed(dataset), tmp_path / "work")) == [("u", ["a", "d", "c", "b"])]


@pytest.mark.parametrize("options", [{"time_column": None}, {"sequence_column": "item"}])
def test_data_without_times_have_nothing_to_reverse(options: Any, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"equal_times=reversed needs times.*take `dataset\.equal_times=file`"):
        prepare(TablesDataset(orders(tmp_path, TIED), equal_times="reversed", **options), tmp_path / "out")


def test_the_order_is_part_of_the_identity_where_it_is_not_that_of_the_file(tmp_path: Path) -> None:
    dataset = TablesDataset(orders(tmp_path, TIED))
    assert "equal_times" not in describe(dataset)
    changed = prepare(as_reversed(dataset), tmp_path / "reversed")
    assert fingerprint(changed) != fingerprint(prepare(dataset, tmp_path / "file"))
    with pytest.raises(ValueError, match="equal_times"):
        TablesDataset(equal_times="random")  # type: ignore[arg-type]
