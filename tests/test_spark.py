"""Spark in DuckDB's place: the same files to the byte, the same counts of lines, the same refusals."""

from __future__ import annotations

import datetime
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tigerrec import TigerrecError
from tigerrec.data.base import DatasetError
from tigerrec.data.prepare import prepare
from tigerrec.data.tables import TablesDataset
from tigerrec.storage.contracts import read_json
from tigerrec.storage.files import SPILLED, sha256_file
from tigerrec.storage.manifests import read_manifest

ROOT = Path(__file__).parent.parent
HAS_JAVA = shutil.which("java") is not None or "JAVA_HOME" in os.environ
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="needs PySpark"),
    pytest.mark.skipif(not HAS_JAVA, reason="needs Java"),
]
LOCAL = {"spark.master": "local[2]", "spark.ui.enabled": False, "spark.sql.shuffle.partitions": 3}
FILES = ("items.parquet", "users.parquet", "interactions.parquet")
SECOND = 1_700_000_000
MOMENT = datetime.datetime(2024, 3, 1, 10)


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[Any]:
    """A session that all tests share, as a notebook has one."""
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder
    for name, value in LOCAL.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


def random_rows(count: int, users: int, items: int, seconds: int) -> dict[str, numpy.ndarray]:
    """Interactions with repeats and with many in one second."""
    generator = numpy.random.default_rng(0)
    return {
        "user": generator.zipf(1.3, count) % users,
        "item": generator.zipf(1.2, count) % items,
        "time": SECOND + generator.integers(0, seconds, count),
    }


def check_equal(folder: Path, tables: list[pa.Table], **options: Any) -> dict[str, Any]:
    """Prepare parts with both engines; the counts, once both are sure to agree."""
    (folder / "parts").mkdir()
    for number, table in enumerate(tables):
        pq.write_table(table, folder / "parts" / f"part {number}.parquet", row_group_size=1 + len(table) // 2)
    found = []
    for engine in ("duckdb", "spark"):
        out = prepare(TablesDataset(folder / "parts", engine=engine, **options), folder / engine)
        manifest = read_manifest(out)
        assert manifest is not None
        assert not (out / SPILLED).exists()
        found.append(({name: sha256_file(out / name) for name in FILES}, read_json(out, "stats.json"), manifest))
    (files, stats, by_duckdb), (files_of_spark, stats_of_spark, by_spark) = found
    assert files_of_spark == files
    assert stats_of_spark == stats
    assert by_spark.fingerprint == by_duckdb.fingerprint
    return stats


def test_repeats_ties_and_cores_of_several_parts(tmp_path: Path) -> None:
    tables = [pa.table(random_rows(400, 30, 40, 50)) for _ in range(2)]
    tables.append(pa.table({"user": ["3", "x", "x"], "item": ["y", "y", "3"], "time": [str(SECOND)] * 3}))
    stats = check_equal(tmp_path, tables, min_user_interactions=5, min_item_interactions=4)
    assert stats["repeated_interactions"] >= 400
    assert min(stats["users_filtered"], stats["items_filtered"], stats["users_with_fewer_than_3"]) > 0


TEXTS = ["1700000000", " 1700000001.5", "\u00a01700000002\u3000", "soon", "", None, "1e9", "inf", "-3", "1700000000"]
TIMES: dict[str, tuple[list[pa.Array], dict[str, Any]]] = {
    "numbers": (
        [
            pa.array([-1.5, -1.25, -1e300, float("nan"), 7.0, 8.0]),
            pa.array([Decimal("1.25"), Decimal("-1.25"), Decimal("7.50"), None]),
            pa.array([2**64 - 1, SECOND, SECOND], pa.uint64()),
            pa.array(TEXTS),
        ],
        {"time_unit": "s"},
    ),
    "nanoseconds": ([pa.array([SECOND * 10**9 - number for number in range(6)])], {"time_unit": "ns"}),
    "dates": (
        [
            pa.array([SECOND * 10**9 + 5 - number for number in range(6)], pa.timestamp("ns", "UTC")),
            pa.array([MOMENT, None, MOMENT], pa.timestamp("ms")),
            pa.array([datetime.date(1960, 1, number) for number in (2, 1)]),
            pa.array([b"2024-03-01T10:00:09,123456789Z", b"2024-03-01 12:00:09.1+02", b"2024-03-01", b"2024-13-01"]),
        ],
        {},
    ),
    "formatted": ([pa.array(["01.03.2024", "1.3.2024", "31.02.2024", "02.03.2024"])], {"time_format": "%d.%m.%Y"}),
    "none": ([pa.nulls(3), pa.nulls(2)], {"time_column": None}),
}


@pytest.mark.parametrize("kind", TIMES)
def test_every_kind_of_time(tmp_path: Path, kind: str) -> None:
    columns, options = TIMES[kind]
    tables = [
        pa.table({"user": ["u"] * len(times), "item": [f"{part}-{row}" for row in range(len(times))], "time": times})
        for part, times in enumerate(columns)
    ]
    check_equal(tmp_path, tables, max_dropped=1, **options)


def test_ids_of_every_type_and_lines_that_are_dropped(tmp_path: Path) -> None:
    ids = [
        pa.array([1.0, 2.0, 2.5, float("nan"), None, 1e30, 1.0, -0.0] * 3),
        pa.array([1, 2, 2, None, 3, 1, 1, 1] * 3, pa.int8()),
        pa.array([Decimal("1.0"), Decimal("2.5"), None, *[Decimal("2.0")] * 5] * 3),
        pa.array(["1", " 2", "\u2003", "a\u00a0", "007", "", None, "Ünï"] * 3),
        pa.array([b"1", b"\xff", None, *[b"2"] * 5] * 3),
        pa.array(["1", "2", None, "a\0b"] * 6).dictionary_encode(),
        pa.array([True, None] * 12),
    ]
    tables = [
        pa.table({"user": user, "item": ids[number - 1], "time": [None, *range(23)]}) for number, user in enumerate(ids)
    ]
    stats = check_equal(tmp_path, tables, max_dropped=1)
    assert {reason.rpartition(": ")[2] for reason in stats["dropped"]} == {
        "no user", "no item", "no time", "user is not valid text", "item is not valid text",
    }  # fmt: skip
    assert stats["dropped_examples"]["interactions: part 0.parquet: no user"] == ["line 4", "line 5", "line 12"]


def test_conditions_and_ratings(tmp_path: Path) -> None:
    rows = random_rows(300, 20, 20, 1000)
    stars = pa.array([None if n % 11 == 0 else float("nan") if n % 7 == 0 else n % 5 + 0.5 for n in range(300)])
    table = pa.table(rows | {"stars": stars, "kind of event": ["buy", "view", "it's"] * 100})
    stats = check_equal(
        tmp_path, [table], rating_column="stars", min_rating=2.5,
        where="\"kind of event\" IN ('buy', 'it''s') AND regexp_matches(CAST(user AS VARCHAR), '^[1-9]')",
    )  # fmt: skip
    assert 0 < stats["filtered_by_conditions"] < 300


@pytest.mark.parametrize("equal_times", ["file", "reversed"])
def test_splits_and_the_latest_interactions(tmp_path: Path, equal_times: Any) -> None:
    (tmp_path / "time").mkdir()
    later = {"validation_from": SECOND + 30, "test_from": SECOND + 40, "equal_times": equal_times}
    stats = check_equal(tmp_path / "time", [pa.table(random_rows(900, 30, 40, 50))], max_user_interactions=12, **later)
    assert min(stats["split"].values()) > 0
    assert stats["older_interactions"] > 0
    files, rows = [], random_rows(900, 30, 40, 50)
    for number, place in enumerate(numpy.split(numpy.argsort(rows["time"], kind="stable"), [500, 700])):
        files.append(tmp_path / f"{number}.parquet")
        pq.write_table(pa.table({name: column[place] for name, column in rows.items()}), files[-1])
    found = []
    for engine in ("duckdb", "spark"):
        data = TablesDataset(
            files[0],
            validation_interactions=files[1],
            test_interactions=files[2],
            engine=engine,
            equal_times=equal_times,
        )
        out = prepare(data, tmp_path / engine)
        found.append(([sha256_file(out / name) for name in FILES], read_json(out, "stats.json")))
    assert found[0] == found[1]
    assert "split" in found[0][1]


def test_a_million_interactions(tmp_path: Path) -> None:
    rows = random_rows(1_200_000, 40_000, 9_000, 10_000_000)
    parts = [
        {name: column[start : start + 400_000] for name, column in rows.items()}
        for start in range(0, 1_200_000, 400_000)
    ]
    stats = check_equal(tmp_path, [pa.table(part) for part in parts])
    assert stats["interactions"] > 1 << 20  # more than one row group is written


def test_refusals_are_those_of_duckdb(tmp_path: Path) -> None:
    rows = {"user": ["u"] * 4, "item": list("abcd"), "time": [1, 2, 3, 4]}
    for name, change, options, message in (
        ("condition", {}, {"where": "no_such = 1"}, r"The interactions cannot be read \(.*look at `dataset\.where=`"),
        ("kinds", {"time": ["2024-03-01", "2", "3", "4"]}, {}, "3 small numbers"),
        ("losses", {"item": ["a", "b", None, "c"]}, {}, "1 of 4 lines of .*no item: 1, as line 3"),
        ("rows", {"user": list("uvwx")}, {}, "Nothing is left of 4 interactions"),
        ("nothing", {"user": pa.array([], pa.string()), "item": [], "time": []}, {}, "holds no interactions"),
    ):
        pq.write_table(pa.table(rows | change), tmp_path / f"{name}.parquet")
        told = []
        for engine in ("duckdb", "spark"):
            with pytest.raises(DatasetError, match=message) as error:
                prepare(TablesDataset(tmp_path / f"{name}.parquet", engine=engine, **options), tmp_path / "out")
            told.append(str(error.value))
            assert not (tmp_path / "out").exists()
        assert name == "condition" or told[0] == told[1]  # DuckDB's own words differ


def test_tables_of_a_session_that_runs_already_are_left_alone(tmp_path: Path, session: Any) -> None:
    session.range(7).createOrReplaceTempView("users")
    check_equal(tmp_path, [pa.table({"user": ["u"] * 3, "item": list("abc"), "time": [1, 2, 3]})])
    assert session.table("users").count() == 7


def command(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Prepare a small table with Spark by the command, in a session of its own."""
    pq.write_table(pa.table(random_rows(100, 5, 9, 99)), folder / "orders.parquet")
    options = [f"dataset.interactions={folder / 'orders.parquet'}", f"paths.runs={folder / 'runs'}"]
    options += ["dataset.engine=spark", "dataset.spark={spark.master: 'local[1]', spark.sql.shuffle.partitions: 1}"]
    return subprocess.run(
        [sys.executable, "-m", "tigerrec", "prepare", "dataset=tables", *options],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_command_has_a_session_of_its_own(tmp_path: Path) -> None:
    done = command(tmp_path)
    assert done.returncode == 0, done.stderr
    by_duckdb = prepare(TablesDataset(tmp_path / "orders.parquet"), tmp_path / "duckdb")
    out = Path(done.stdout.splitlines()[-1])
    assert [sha256_file(out / name) for name in FILES] == [sha256_file(by_duckdb / name) for name in FILES]


def test_without_java_the_repair_is_named(tmp_path: Path) -> None:
    done = command(tmp_path, JAVA_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "Spark did not start (" in done.stderr
    assert "; it needs Java 17 (as `apt-get install openjdk-17-jre-headless` and JAVA_HOME give it)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "orders.parquet"
    pq.write_table(pa.table({name: column.astype(str) for name, column in random_rows(5000, 9, 9, 9).items()}), path)
    content = bytearray(path.read_bytes())
    content[4:400] = b"\xff" * 396
    path.write_bytes(content)
    with pytest.raises(TigerrecError, match=r"orders\.parquet cannot be read as Parquet \(.*\); write it again\.$"):
        prepare(TablesDataset(path, engine="spark"), tmp_path / "out")
