"""Splits that data bring along, from the raw files to training, evaluation and baselines."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny_shop
from tests.raw_data import lines
from tigerrec import pipeline
from tigerrec.baselines.item_knn import ItemKNN
from tigerrec.baselines.stage import BaselineConfig, measure
from tigerrec.config import compose
from tigerrec.data.base import DatasetError
from tigerrec.data.histories import Histories, load_histories, training_counts
from tigerrec.data.prepare import prepare
from tigerrec.data.tables import TablesDataset
from tigerrec.storage.contracts import read_json, read_table

HEAD = ["user", "item", "time"]
DAY = "2024-03-{:02d}"
ROWS = [
    *(("ann", item, day) for item, day in zip("abcdef", (1, 3, 9, 11, 20, 25), strict=True)),
    *(("bob", item, day) for item, day in zip("abc", (2, 21, 22), strict=True)),
    *(("cy", item, day) for item, day in zip("cba", (4, 5, 12), strict=True)),
    *(("di", item, day) for item, day in zip("ab", (10, 20), strict=True)),
    ("eve", "a", 28),
]
PARTS = {"ann": [0, 0, 0, 1, 2, 2], "bob": [0, 2, 2], "cy": [0, 0, 1], "di": [1, 2]}


def table(path: Path, rows: Any) -> Path:
    path.write_bytes(lines([(user, item, DAY.format(day)) for user, item, day in rows], HEAD))
    return path


def by_time(folder: Path, **more: Any) -> TablesDataset:
    options = {"validation_from": "2024-03-10", "test_from": "2024-03-20"} | more
    return TablesDataset(table(folder / "orders.csv", ROWS), **options)


def by_files(folder: Path, **more: Any) -> TablesDataset:
    def part(day: int) -> int:
        return 2 if day >= 20 else 1 if day >= 10 else 0

    paths = [table(folder / f"{number}.csv", [row for row in ROWS if part(row[2]) == number]) for number in range(3)]
    return TablesDataset(paths[0], validation_interactions=paths[1], test_interactions=paths[2], **more)


def parts(out: Path) -> dict[str, list[int]]:
    names = read_table(out, "users.parquet")["user_id"].to_pylist()
    found: dict[str, list[int]] = {}
    for row in read_table(out, "interactions.parquet").to_pylist():
        found.setdefault(names[row["user"]], []).append(row["part"])
    return found


@pytest.mark.parametrize("split", [by_time, by_files])
def test_every_interaction_has_the_part_that_the_data_give_it(
    split: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tigerrec"):
        out = prepare(split(tmp_path), tmp_path / "out")
    assert parts(out) == PARTS  # eve, with one interaction, has nothing before it
    stats = read_json(out, "stats.json")
    assert stats["split"] == {
        "training": 6,
        "validation": 3,
        "test": 5,
        "users_with_validation_target": 2,
        "users_with_test_target": 3,
    }
    assert stats["users_with_fewer_than_2"] == 1
    assert "the split of the data: training 6, validation 3, test 5" in caplog.text
    histories = load_histories(out)
    names = read_table(out, "users.parquet")["user_id"].to_pylist()
    assert [names[user] for user in histories.users_with("validation")] == ["ann", "cy"]
    assert [names[user] for user in histories.users_with("test")] == ["ann", "bob", "di"]
    counts: np.ndarray = training_counts(histories)
    assert counts.sum() == 6


def test_without_a_split_the_files_are_those_of_leave_one_out(tmp_path: Path) -> None:
    out = prepare(TablesDataset(table(tmp_path / "orders.csv", ROWS)), tmp_path / "out")
    assert read_table(out, "interactions.parquet").column_names == ["user", "item", "timestamp", "position"]
    assert "split" not in read_json(out, "stats.json")
    assert load_histories(out).parts is None


@pytest.mark.parametrize(
    ("unit", "factor", "given"),
    [(None, 1, "1709942400"), ("ms", 1000, "2024-03-09"), (None, 1, "2024-03-09"), ("ms", 1000, "1709942400000")],
)
def test_the_time_of_a_split_may_be_a_number_or_a_date(unit: Any, factor: int, given: str, tmp_path: Path) -> None:
    second = 1709942400
    rows = [("u", item, (second + step) * factor) for item, step in zip("abcde", (-9, -1, 0, 4, 9), strict=True)]
    path = tmp_path / "orders.csv"
    path.write_bytes(lines(rows, HEAD))
    end = str((second + 9) * factor)
    data = TablesDataset(path, time_unit=unit, validation_from=given, test_from=end)
    assert parts(prepare(data, tmp_path / "out")) == {"u": [0, 0, 1, 1, 2]}


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"test_from": None}, r"validation_from and dataset\.test_from belong together"),
        ({"test_from": "2024-03-10"}, r"validation_from=2024-03-10 is not before dataset\.test_from=2024-03-10"),
        ({"test_from": "soon"}, r"test_from=soon is not to be compared with the times of the data, dates"),
        ({"test_from": "1709942400"}, r"test_from=1709942400 is not to be compared with the times of the data, dates"),
        ({"test_from": "2025-01-01"}, r"No user has an interaction of test and one before it \(0 interactions"),
        ({"validation_from": "2024-03-19"}, r"No user has an interaction of validation and one before it \(0 inter"),
        ({"validation_from": "2020-01-01"}, r"No user has an interaction of validation and one before it \(9 inter"),
        ({"time_column": None}, r"splits by time; name the times by `dataset\.time_column="),
        ({"test_interactions": Path("x"), "validation_interactions": Path("y")}, "are two splits; leave one"),
    ],
)
def test_a_split_that_is_none_is_refused(options: dict[str, Any], fault: str, tmp_path: Path) -> None:
    for name in ("x", "y"):
        if name in str(options):
            table(tmp_path / f"{name}.csv", ROWS)
    given = {key: tmp_path / f"{value}.csv" if isinstance(value, Path) else value for key, value in options.items()}
    with pytest.raises(DatasetError, match=fault):
        prepare(by_time(tmp_path, **given), tmp_path / "out")


def test_files_of_a_split_are_checked(tmp_path: Path) -> None:
    data = by_files(tmp_path)
    with pytest.raises(DatasetError, match=r"test_interactions belong together"):
        prepare(TablesDataset(data.interactions, test_interactions=data.test_interactions), tmp_path / "out")
    gone = dataclasses.replace(data, test_interactions=tmp_path / "gone.csv")
    with pytest.raises(DatasetError, match=r"dataset\.test_interactions=.*gone\.csv is no file"):
        prepare(gone, tmp_path / "out")
    turned = dataclasses.replace(data, interactions=data.test_interactions, test_interactions=data.interactions)
    with pytest.raises(DatasetError, match=r"4 users have interactions of a later part before .* as user 'ann'"):
        prepare(turned, tmp_path / "out")


def test_a_split_changes_the_identity_of_the_data(tmp_path: Path) -> None:
    plans = [
        pipeline.plan(compose(tiny_shop.options(tiny_shop.write_orders(tmp_path), tmp_path / "runs", *more)))
        for more in ((), ("dataset.validation_from=3", "dataset.test_from=4"))
    ]
    assert plans[0]["prepare"].config != plans[1]["prepare"].config


def test_training_evaluation_and_baselines_keep_to_a_split_by_time(tmp_path: Path) -> None:
    orders = tiny_shop.write_orders(tmp_path)
    split = ("dataset.validation_from=4", "dataset.test_from=5")
    folders = {stage: tmp_path / "runs" / folder for stage, folder in tiny_shop.FOLDERS.items()}
    tiny_shop.run(orders, tmp_path / "runs", *split)
    histories = load_histories(folders["prepare"])
    longest = np.diff(histories.offsets)
    by_hand = Histories(histories.offsets, histories.items, histories.n_items)
    ranks = read_table(folders["evaluate"], "ranks.parquet").to_pandas()
    users = np.flatnonzero(longest > 5)
    assert 0 < len(users) < len(histories)
    assert sorted(ranks["user"].unique()) == users.tolist()
    targets = ranks.drop_duplicates("user").set_index("user")["target"]
    assert all(targets[user] == by_hand[user][5] for user in users)
    lists = read_table(folders["evaluate"], "recommendations.parquet").to_pandas().query("seen == 'masked'")
    assert not any(row.item in by_hand[row.user][:5] for row in lists.itertuples())
    out = measure(folders["prepare"], None, BaselineConfig(ItemKNN(), "knn"), tmp_path / "knn")
    baseline = read_table(out, "ranks.parquet").to_pandas()
    assert sorted(baseline["user"].unique()) == users.tolist()
    log = (folders["train"] / "training.jsonl").read_text()
    n_validated = int((longest > 4).sum())
    assert f'"users": {min(n_validated, 20)}' in log


def test_training_sees_nothing_of_later_parts(tmp_path: Path) -> None:
    weights = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        orders = tiny_shop.write_orders(folder)
        rows = [line.split(",") for line in orders.read_text().splitlines()[1:]]
        if number:  # what comes after training is turned round among the users
            later = [row for row in rows if int(row[2]) >= 4]
            for row, item in zip(later, [row[1] for row in later][::-1], strict=True):
                row[1] = item
        catalogue = [["z", f"i{item:02d}", "0"] for item in range(tiny_shop.N_ITEMS)]
        orders.write_bytes(lines([tuple(row) for row in catalogue + rows], HEAD))
        split = ("dataset.validation_from=4", "dataset.test_from=5", "train.epochs=1", "train.validate_every=1")
        tiny_shop.run(orders, folder / "runs", *split)
        weights.append((folder / "runs" / tiny_shop.FOLDERS["train"] / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
