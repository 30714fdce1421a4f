"""Files as people have them: each is read right, or refused in a sentence that names the remedy."""

from __future__ import annotations

import gzip
import json
import logging
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.raw_data import lines, read
from tigerrec.data.amazon import AmazonReviews
from tigerrec.data.base import DatasetError
from tigerrec.data.formats import open_table, read_rows
from tigerrec.data.prepare import prepare
from tigerrec.data.tables import TablesDataset
from tigerrec.serving.new_items import NewItemsError, read_new_items
from tigerrec.storage.contracts import read_json, read_table

ORDERS = [("ann", "1", 10), ("ann", "2", 11), ("ann", "3", 12), ("bob", "3", 5), ("bob", "2", 6), ("bob", "1", 7)]
GOODS = [("1", "Soap", "Foamy", "Home > Bath", "1.5"), ("2", "Brush", "", "Home", "2"), ("3", "Towel", "", "", "")]
HEADS = {"orders": ["user", "item", "time"], "goods": ["item", "title", "brand", "categories", "price"]}


def shop(folder: Path, orders: Any = None, goods: Any = None, **options: Any) -> TablesDataset:
    """A data set of two files: bytes are written to CSV, a pair names the file too."""
    paths = []
    for role, given, rows in (("orders", orders, ORDERS), ("goods", goods, GOODS)):
        content = lines(rows, HEADS[role]) if given is None else given
        name, content = content if isinstance(content, tuple) else (f"{role}.csv", content)
        (folder / name).parent.mkdir(exist_ok=True)
        if isinstance(content, pa.Table):
            pq.write_table(content, folder / name)
        else:
            (folder / name).write_bytes(content)
        paths.append(folder / name)
    return TablesDataset(*paths, **options)


def titles(dataset: TablesDataset, out: Path) -> dict[str, str | None]:
    table = read_table(prepare(dataset, out), "items.parquet")
    return dict(zip(table["item_id"].to_pylist(), table["title"].to_pylist(), strict=True))


KNOWN = {"1": "Soap", "2": "Brush", "3": "Towel"}


# 1 The join


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda item: f"{item}.0", r"a trailing \.0"),
        (lambda item: f"00{item}", "leading zeros"),
        (lambda item: f"{item}é", "the Unicode form"),
        (lambda item: f"A{item}", "letter case"),
        (lambda item: f'"""{item}"""', "quotes around them"),
        (lambda item: f"\ufeff{item}", "invisible characters"),
        (lambda item: f'"{item},000"', "thousands separators"),
        (lambda item: f"x{item}y", None),
    ],
    ids=["float", "zeros", "unicode", "case", "quotes", "invisible", "thousands", "others"],
)
def test_ids_that_match_nothing_are_refused_with_the_likely_cause(
    tmp_path: Path, change: Any, cause: str | None
) -> None:
    import unicodedata

    form = {
        "the Unicode form": lambda text: unicodedata.normalize("NFD", text),
        "letter case": str.lower,
        "thousands separators": lambda text: text.replace(",", ""),
    }
    orders = lines([(user, change(item), time) for user, item, time in ORDERS], HEADS["orders"])
    other = form.get(cause or "", str)
    goods = lines([(other(change(row[0])) if cause in form else row[0], *row[1:]) for row in GOODS], HEADS["goods"])
    with pytest.raises(
        DatasetError, match=r"No interaction has an item of the metadata \(items of interactions: '"
    ) as error:
        prepare(shop(tmp_path, orders, goods), tmp_path / "out")
    assert (f"differ in {cause}".replace("\\", "") in str(error.value)) == (cause is not None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("space", [" ", "\t ", "\u00a0"])
def test_outer_spaces_of_ids_do_not_part_them(tmp_path: Path, space: str) -> None:
    goods = [(f'"{row[0]}{space}"', *row[1:]) for row in GOODS]
    assert titles(shop(tmp_path, None, lines(goods, HEADS["goods"])), tmp_path / "out") == KNOWN


def test_few_matches_are_warned_of_with_examples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    orders = lines([*ORDERS, *((user, "k9", 20) for user in ("ann", "bob"))], HEADS["orders"])
    goods = lines([*GOODS, ("K9", "Dog", "", "", "")], HEADS["goods"])
    with caplog.at_level(logging.WARNING):
        out = prepare(shop(tmp_path, orders, goods), tmp_path / "out")
    assert "only 75.0 % of the interactions have an item of the metadata (items of interactions: 'k9'" in caplog.text
    assert "1 of them differ in letter case alone" in caplog.text
    assert read_json(out, "stats.json")["interactions_with_metadata"] == 0.75


def test_columns_that_are_swapped_are_refused(tmp_path: Path) -> None:
    orders = lines([*ORDERS, *(("cid", item, 9) for item in "123")], HEADS["orders"])
    swapped = {"user_column": "item", "item_column": "user", "items_item_column": "item"}
    with pytest.raises(DatasetError, match="The column of users holds items: 3 of its ids"):
        prepare(shop(tmp_path, orders, **swapped), tmp_path / "out")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_numbers_as_titles_are_text(tmp_path: Path, kind: str) -> None:
    records = [{"item": number, "title": title} for number, title in enumerate([1984, 300.0, 0.5], start=1)]
    if kind == "parquet":
        content: Any = pa.table({"item": [1, 2, 3], "title": pa.array([1984.0, 300.0, 0.5])})
    else:
        content = "\n".join(map(json.dumps, records)).encode()
    assert titles(shop(tmp_path, None, (f"goods.{kind}", content)), tmp_path / "out") == {
        "1": "1984",
        "2": "300",
        "3": "0.5",
    }


def test_the_ratings_of_2018_given_to_the_reader_of_2014_are_refused(tmp_path: Path) -> None:
    rows = [(item, user, 5.0, time) for user in ("ann", "bob", "cid") for _, item, time in ORDERS]
    (tmp_path / "ratings.csv").write_bytes(lines(rows, None))
    (tmp_path / "meta.json").write_text("".join(f"{{'asin': '{row[0]}', 'title': '{row[1]}'}}\n" for row in GOODS))
    with pytest.raises(DatasetError, match=r"The column of users holds items: 3 of its ids.*`dataset=amazon2018`"):
        prepare(AmazonReviews(tmp_path, "ratings.csv", "meta.json", None, 0, 0), tmp_path / "out")


def test_categories_of_2018_are_read_and_fields_that_all_items_lack_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [{"reviewerID": user, "asin": item, "unixReviewTime": time} for user, item, time in ORDERS]
    (tmp_path / "reviews.json").write_text("\n".join(map(json.dumps, records)))
    goods = [{"asin": row[0], "title": row[1], "category": ["Home", "Bath"]} for row in GOODS]
    (tmp_path / "meta.json").write_text("\n".join(map(json.dumps, goods)))
    with caplog.at_level(logging.INFO):
        out = prepare(AmazonReviews(tmp_path, "reviews.json", "meta.json", None, 0, 0), tmp_path / "out")
    assert read_table(out, "items.parquet")["categories"].to_pylist() == [["Home", "Bath"]] * 3
    assert "of the items 3 no brand, 3 no price" in caplog.text


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([Decimal(1), Decimal(2), Decimal(3)], pa.decimal128(10, 0)),
        pa.array([Decimal("1.00"), Decimal(2), Decimal(3)], pa.decimal256(50, 2)),
        pa.array([1, 2, 3], pa.float16()),
        pa.array([b"1", b"2 ", b"3"]),
        pa.array(["1", "2", "3"]).dictionary_encode(),
    ],
    ids=["decimal", "decimal256", "float16", "bytes", "categories"],
)
def test_ids_of_every_type_meet_those_of_text(tmp_path: Path, ids: Any) -> None:
    goods = pa.table({"item": ids, "title": ["Soap", "Brush", "Towel"]})
    assert titles(shop(tmp_path, None, ("goods.parquet", goods)), tmp_path / "items") == KNOWN
    numbers = [int(item) - 1 for _, item, _ in ORDERS]
    orders = pa.table(
        {"user": [row[0] for row in ORDERS], "item": ids.take(numbers), "time": [row[2] for row in ORDERS]}
    )
    assert titles(shop(tmp_path, ("orders.parquet", orders)), tmp_path / "orders") == KNOWN


def test_uuids_on_one_side_meet_text_on_the_other(tmp_path: Path) -> None:
    ids = [uuid.UUID(int=int(row[0])) for row in GOODS]
    goods = pa.table({"item": pa.array([value.bytes for value in ids], pa.uuid()), "title": ["Soap", "Brush", "Towel"]})
    orders = lines([(user, ids[int(item) - 1], time) for user, item, time in ORDERS], HEADS["orders"])
    known = titles(shop(tmp_path, orders, ("goods.parquet", goods)), tmp_path / "out")
    assert known == {str(ids[int(item) - 1]): title for item, title in KNOWN.items()}


def test_spaces_in_a_header_are_shown(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no columns 'item', 'time', only user, ' item', ' time'; name yours"):
        read(shop(tmp_path, lines(ORDERS, ["user", " item", " time"])))


@pytest.mark.parametrize("where", [None, "CAST(place AS INT) < 9"])
def test_columns_that_differ_in_letter_case_alone_or_have_odd_names(tmp_path: Path, where: str | None) -> None:
    head = ["ID", "id", "the line", "place", "_line", "__line"]
    content = lines([(*row, 1, 2, 3) for row in ORDERS], head)
    columns = {"user_column": "ID", "item_column": "id", "time_column": "the line"}
    raw = read(TablesDataset(shop(tmp_path, content).interactions, **columns, where=where))
    assert list(zip(raw.user_ids, raw.item_ids, raw.timestamps, strict=True)) == ORDERS
    with pytest.raises(DatasetError, match="cannot tell columns ID, id apart"):
        read(TablesDataset(shop(tmp_path, content).interactions, **columns, where="id = '1'"))


@pytest.mark.parametrize("form", ["lines", "array"])
def test_fields_of_json_that_come_late_are_read(tmp_path: Path, form: str) -> None:
    orders = [{"user": "u", "item": number} for number in range(150)]
    orders += [{"user": user, "item": item, "time": time, "event": "buy"} for user, item, time in ORDERS]
    goods = [{"item": f"x{number}", "brand": "x"} for number in range(150)]
    goods += [{"item": row[0], "title": row[1], "price": 2} for row in GOODS]
    written = {
        name: (json.dumps(rows) if form == "array" else "\n".join(map(json.dumps, rows))).encode()
        for name, rows in (("orders", orders), ("goods", goods))
    }
    dataset = shop(
        tmp_path, ("orders.json", written["orders"]), ("goods.json", written["goods"]), where="event = 'buy'"
    )
    raw = read(dataset)
    assert [raw.items[row[0]].title for row in GOODS] == [row[1] for row in GOODS]
    assert {item.price for item in raw.items.values()} == {2.0}
    assert list(zip(raw.user_ids, raw.item_ids, raw.timestamps, strict=True)) == ORDERS
    columns, rows = read_rows(tmp_path / "goods.json")
    assert (columns, len(list(rows))) == (["item", "brand", "title", "price"], 153)


# 2 Time


def times(folder: Path, values: list[Any], kind: str = "csv", **options: Any) -> list[tuple[str, int, int]]:
    """(item, seconds, nanoseconds) in the order of time; items are numbered as in the file."""
    if kind == "parquet":
        content: Any = pa.table(
            {"user": ["u"] * len(values), "item": list(map(str, range(len(values)))), "time": values}
        )
    else:
        content = lines([("u", number, f'"{value}"') for number, value in enumerate(values)], HEADS["orders"])
    raw = read(TablesDataset(shop(folder, (f"orders.{kind}", content)).interactions, **options))
    assert not raw.dropped
    found = zip(raw.item_ids, raw.timestamps, raw.nanos, strict=True)
    return sorted(found, key=lambda row: row[1:])


MARCH = 1709287200  # 2024-03-01T10:00:00Z


@pytest.mark.parametrize(
    "values",
    [
        ["2024-03-01T10:00:09.500Z", "2024-03-01T10:00:09.100Z"],
        ["2024-03-01 10:00:09,5", "2024-03-01 10:00:09,1"],
        ["1709287209.5", "1709287209.1"],
        ["2024-03-01T10:00:09.100000002Z", "2024-03-01T10:00:09.100000001Z"],
    ],
)
def test_clicks_within_a_second_keep_their_order(tmp_path: Path, values: list[str]) -> None:
    found = times(tmp_path, values)
    assert [item for item, _, _ in found] == ["1", "0"]
    assert {seconds for _, seconds, _ in found} == {MARCH + 9}


def test_equal_items_within_a_second_are_no_repeats(tmp_path: Path) -> None:
    rows = [("u", "1", f"2024-03-01T10:00:0{second}Z") for second in (1, "1.5", "1.5", 2)]
    out = prepare(shop(tmp_path, lines(rows, HEADS["orders"])), tmp_path / "out")
    stats = read_json(out, "stats.json")
    assert (stats["interactions"], stats["repeated_interactions"]) == (3, 1)


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        (["20240301", "2024-03-01", "2024-03-02"], "2 dates .*1 small numbers"),
        (["1709287209", "2024-03-01", "2024-03-02"], "2 dates .*1 seconds"),
    ],
)
def test_times_of_several_kinds_are_refused_with_counts(tmp_path: Path, values: list[str], kinds: str) -> None:
    with pytest.raises(DatasetError, match=kinds) as error:
        times(tmp_path, values)
    assert "dataset.time_unit" in str(error.value)
    assert "dataset.time_format" in str(error.value)
    with pytest.raises(DatasetError, match=r"1 milliseconds .*2 seconds .*; write them in one unit\.$"):
        times(tmp_path, ["1709287209", "1709287209000", "1709287210"])


def test_a_unit_or_a_format_says_what_times_are(tmp_path: Path) -> None:
    assert [row[1] for row in times(tmp_path, ["1709287209", "1709287209000"], time_unit="s")] == [
        MARCH + 9,
        1709287209000,
    ]
    assert times(tmp_path, ["1709287209500", "1709287209100"], time_unit="ms") == [
        ("1", MARCH + 9, 100_000_000),
        ("0", MARCH + 9, 500_000_000),
    ]
    assert [row[1] for row in times(tmp_path, ["01.03.2024 10:00"], time_format="%d.%m.%Y %H:%M")] == [MARCH]


@pytest.mark.parametrize(
    "value",
    ["2024-03-01 10:00:00 UTC", "2024-03-01 10:00:00+0000", "2024-03-01T12:00:00+02:00", "2024-03-01T10:00",
     str(MARCH), f" {MARCH} "],
)  # fmt: skip
def test_forms_of_one_moment(tmp_path: Path, value: str) -> None:
    assert times(tmp_path, [value]) == [("0", MARCH, 0)]


def test_types_of_time_in_parquet(tmp_path: Path) -> None:
    import datetime

    moment = datetime.datetime(2024, 3, 1, 10)
    for array in (
        pa.array([Decimal(f"{MARCH}.0")], pa.decimal128(18, 2)),
        pa.array([float(MARCH)]),
        pa.array([MARCH], pa.uint64()),
        pa.array([moment], pa.timestamp("ns")),
        pa.array([moment], pa.timestamp("s")),
        pa.array([moment], pa.timestamp("us", tz="UTC")),
        pa.array([str(MARCH)], pa.large_string()),
        pa.array([str(MARCH)]).dictionary_encode(),
        pa.array([str(MARCH).encode()]),
    ):
        assert times(tmp_path, array, "parquet") == [("0", MARCH, 0)], array.type
    assert times(tmp_path, pa.array([datetime.date(2024, 3, 1)]), "parquet") == [("0", MARCH - 36000, 0)]


@pytest.mark.parametrize(
    ("whole", "broken", "unit", "nanos"),
    [
        ("1393545600123", "1393545600123.0", "ms", 123_000_000),
        ("1393545600123", "1.393545600123e12", "ms", 123_000_000),
        ("1393545600123456", "1393545600123456.0", "us", 123_456_000),
        ("1393545600123456789", "1393545600123456789.0", "ns", 123_456_789),
        ("-1", "-1.00", "ms", 999_000_000),
    ],
)
def test_a_fraction_of_zero_changes_no_time(tmp_path: Path, whole: str, broken: str, unit: str, nanos: int) -> None:
    found = times(tmp_path, [whole, broken], time_unit=unit)
    seconds = -1 if whole == "-1" else 1393545600
    assert [time for _, *time in found] == [[seconds, nanos]] * 2


@pytest.mark.parametrize("unit", ["ms", "us"])
def test_numbers_of_every_type_give_equal_times(tmp_path: Path, unit: str) -> None:
    number = MARCH * 1000 + 123 if unit == "ms" else MARCH * 1_000_000 + 123_000
    for array in (
        pa.array([number]),
        pa.array([float(number)]),
        pa.array([Decimal(number)], pa.decimal128(18, 0)),
        pa.array([Decimal(number)], pa.decimal128(38, 9)),
        pa.array([Decimal(number)], pa.decimal256(60, 5)),
        pa.array([f"{number}.0"]),
    ):
        assert times(tmp_path, array, "parquet", time_unit=unit) == [("0", MARCH, 123_000_000)], array.type
    assert times(tmp_path, pa.array([1000, 2], pa.float16()), "parquet") == [("1", 2, 0), ("0", 1000, 0)]


def test_a_fraction_of_a_second_is_what_was_written(tmp_path: Path) -> None:
    seconds = f"{MARCH}.1"
    expected = [("0", MARCH, 100_000_000)]
    assert times(tmp_path, [seconds]) == expected
    assert times(tmp_path, pa.array([float(seconds)]), "parquet") == expected
    assert times(tmp_path, ["2024-03-01T10:00:00.1Z"]) == expected
    assert times(tmp_path, [f"{MARCH}000.5"], time_unit="ms") == [("0", MARCH, 500_000)]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2024-03-01T10", 0),
        ("2024-03-01 10", 0),
        ("2024-03-01T12+02", 0),
        ("20240301T100000", 0),
        ("20240301T1000Z", 0),
        ("20240301T101112.5Z", 672),
        ("20240301T121112+0200", 672),
        ("2024-03-01t10:00:00z", 0),
        ("2024-03-01T10:11:12+02:00:30", 672 - 7230),
        ("2024-03-01 12:00:00 +02:00", 0),
        ("2024-03-01 10:00:00.9999999Z", 0),
        ("2024-03-01T24:00", 50400),
    ],
)
def test_further_forms_of_iso_dates(tmp_path: Path, value: str, seconds: int) -> None:
    assert [row[1] for row in times(tmp_path, [value])] == [MARCH + seconds]


@pytest.mark.parametrize(
    "value", ["2024/03/01", "2024-02-30", "2024-03-01T25", "0000-00-00 00:00:00", "20240301T1", "2024-W09-5", "NaT"]
)
def test_what_is_no_date_is_refused_with_the_option_that_reads_others(tmp_path: Path, value: str) -> None:
    orders = lines([(user, item, value) for user, item, _ in ORDERS], HEADS["orders"])
    with pytest.raises(DatasetError, match=rf"ISO date: 6, as line 2: '{value}'.*dataset\.time_format="):
        prepare(shop(tmp_path, orders), tmp_path / "out")


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (pa.array([19783], pa.date32()), (MARCH - 36000, 0)),
        (pa.array([19783 * 86_400_000], pa.date64()), (MARCH - 36000, 0)),
        (pa.array([MARCH * 1000 + 5], pa.timestamp("ms", "Europe/Berlin")), (MARCH, 5_000_000)),
        (pa.array([MARCH], pa.timestamp("s", "+02:00")), (MARCH, 0)),
        (pa.array([-1], pa.timestamp("us")), (-1, 999_999_000)),
        (pa.array([2**50], pa.timestamp("ms")), (2**50 // 1000, 2**50 % 1000 * 1_000_000)),
        (pa.array([-(2**31)], pa.date32()), (-(2**31) * 86400, 0)),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
@pytest.mark.parametrize("unit", [None, "ms"])
def test_dates_of_every_type_in_parquet(tmp_path: Path, array: Any, found: tuple[int, int], unit: str | None) -> None:
    assert times(tmp_path, array, "parquet", time_unit=unit) == [("0", *found)]
    assert times(tmp_path, array.dictionary_encode(), "parquet", time_unit=unit) == [("0", *found)]


@pytest.mark.parametrize(
    "array",
    [pa.array([5], pa.time64("us")), pa.array([5], pa.time64("ns")), pa.array([5], pa.time32("s")),
     pa.array([5], pa.duration("s")), pa.array([True]), pa.array([[5]]), pa.array([{"date": 5}])],
    ids=lambda array: str(array.type),
)  # fmt: skip
def test_types_that_are_no_time_are_refused(tmp_path: Path, array: Any) -> None:
    orders = pa.table({"user": ["u"], "item": ["a"], "time": array})
    with pytest.raises(DatasetError, match=r"None of the 1 lines .* a time must be a number or a date"):
        prepare(shop(tmp_path, ("orders.parquet", orders)), tmp_path / "out")


@pytest.mark.parametrize(
    "junk", [2**63 - 1, -(2**63), "9" * 19, "9" * 30, "1e300", "-1e18", 1e300, float("inf"), "1e-400"]
)
def test_junk_beside_times_breaks_nothing(tmp_path: Path, junk: Any) -> None:
    times = {"a": MARCH, "b": junk, "c": MARCH + 1}
    content = "\n".join(json.dumps({"user": "u", "item": item, "time": time}) for item, time in times.items()).encode()
    for unit in ("s", "ms", "us", "ns"):
        raw = read(shop(tmp_path, ("orders.jsonl", content), time_unit=unit))
        assert [item for item in raw.item_ids if item != "b"] == ["a", "c"]
        assert len(raw.item_ids) + sum(raw.dropped.values()) == 3


@pytest.mark.parametrize("option", [{"time_unit": "s"}, {"time_format": "%Y-%m-%d"}])
def test_the_advice_for_times_of_several_kinds_leads_to_a_result(tmp_path: Path, option: dict[str, str]) -> None:
    values = [str(MARCH + 5), "2024-03-01", str(MARCH + 9), "2024-03-02"]
    orders = lines([("u", number, value) for number, value in enumerate(values)], HEADS["orders"])
    path = shop(tmp_path, orders).interactions
    with pytest.raises(DatasetError, match=rf"2 dates .*2 seconds.*`dataset\.{next(iter(option))}="):
        prepare(TablesDataset(path), tmp_path / "out")
    raw = read(TablesDataset(path, **option))
    day = MARCH - 36000
    if "time_unit" in option:
        assert raw.timestamps == [MARCH + 5, day, MARCH + 9, day + 86400]
    else:
        assert (raw.timestamps, raw.dropped) == (
            [day, day + 86400],
            {"interactions: time is not written as dataset.time_format says": 2},
        )


def test_formats_of_times_take_numbers_and_nanoseconds_and_are_checked(tmp_path: Path) -> None:
    for array in (pa.array([20240301.0]), pa.array([Decimal(20240301)], pa.decimal128(10, 2)), pa.array(["20240301"])):
        assert times(tmp_path, array, "parquet", time_format="%Y%m%d") == [("0", MARCH - 36000, 0)]
    values = ["01.03.2024 10:00:00.000000009", "01.03.2024 10:00:00.000000001"]
    found = times(tmp_path, values, time_format="%d.%m.%Y %H:%M:%S.%n")
    assert found == [("1", MARCH, 1), ("0", MARCH, 9)]
    assert times(tmp_path, ["03/01/2024 12:00 PM +0200"], time_format="%m/%d/%Y %I:%M %p %z") == [("0", MARCH, 0)]
    with pytest.raises(DatasetError, match=r"dataset\.time_format=%Q is no format of times"):
        times(tmp_path, values, time_format="%Q")


def test_without_a_time_the_file_says_the_order(tmp_path: Path) -> None:
    rows = [("u", "b"), ("u", "a"), ("u", "b"), ("u", "c")]
    orders = shop(tmp_path, lines(rows, ["user", "item"])).interactions
    out = prepare(TablesDataset(orders, time_column=None), tmp_path / "out")
    assert read_table(out, "interactions.parquet")["item"].to_pylist() == [0, 1, 0, 2]


# 3 Text


def test_latin_1_is_counted_and_its_option_reads_it(tmp_path: Path) -> None:
    goods = lines([("1", "Café Crème", "", "", ""), *GOODS[1:]], HEADS["goods"]).decode().encode("latin-1")
    with pytest.raises(DatasetError, match=r"invalid UTF-8: 1, as line 2.*dataset\.items_encoding=latin-1"):
        prepare(shop(tmp_path, None, goods), tmp_path / "out")
    for option in ("items_encoding", "encoding"):
        found = titles(shop(tmp_path, None, goods, **{option: "latin-1"}), tmp_path / option)
        assert found["1"] == "Café Crème"
    all_lines = lines([(row[0], "Größe", "", "", "") for row in GOODS], HEADS["goods"]).decode().encode("latin-1")
    with pytest.raises(
        DatasetError, match=r"None of the 3 lines .*; name its encoding, as `dataset\.items_encoding=latin-1`"
    ):
        prepare(shop(tmp_path, None, all_lines), tmp_path / "all")


@pytest.mark.parametrize(
    ("text", "plain", "comma"),
    [("12,50", None, 12.5), ("1.299,00", None, 1299.0), ("$1,299.00", 1299.0, None),
     ("1299", 1299.0, 1299.0), ("9,99 €", None, 9.99)],
)  # fmt: skip
def test_prices_with_a_comma(tmp_path: Path, text: str, plain: float | None, comma: float | None) -> None:
    goods = lines([("1", "Soap", "", "", f'"{text}"'), *GOODS[1:]], HEADS["goods"])
    for decimal_comma, price in ((False, plain), (True, comma)):
        raw = read(shop(tmp_path, None, goods, decimal_comma=decimal_comma))
        assert raw.items["1"].price == price
        assert raw.noted.get("price is not a number", 0) == (price is None)


@pytest.mark.parametrize(
    "text", ["\"['Home', 'Bath']\"", '"[""Home"", ""Bath""]"', "Home > Bath", "\"[['Home', 'Bath'], ['Gifts']]\""]
)
def test_categories_written_as_a_list(tmp_path: Path, text: str) -> None:
    goods = lines([("1", "Soap", "", text, "1"), *GOODS[1:]], HEADS["goods"])
    assert read(shop(tmp_path, None, goods)).items["1"].categories == ["Home", "Bath"]


def test_numbers_as_texts_are_printed_whole(tmp_path: Path) -> None:
    for array, told in (
        (pa.array([1234567.0, 123456.75, 1e16]), ["1234567", "123456.75", "10000000000000000"]),
        (
            pa.array([Decimal("1984.00"), Decimal("0.50"), Decimal("1E+3")], pa.decimal128(20, 2)),
            ["1984", "0.50", "1000"],
        ),
        (pa.array([Decimal(1), Decimal(2), Decimal(10**40)], pa.decimal256(50, 0)), ["1", "2", "1" + "0" * 40]),
        (pa.array([1.5, 2.0, 3.0], pa.float16()), ["1.5", "2", "3"]),
        (pa.array([b"Soap", "Br\u00fcsh".encode(), b"T&amp;C"]), ["Soap", "Br\u00fcsh", "T&C"]),
    ):
        goods = pa.table({"item": ["1", "2", "3"], "title": array})
        out = tmp_path / str(array.type)
        assert list(titles(shop(tmp_path, None, ("goods.parquet", goods)), out).values()) == told


def test_what_is_left_out_of_items_is_told_with_examples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    goods = [
        {"item": "1", "title": {"en": "Soap"}, "price": "12,50"},
        {"item": "2", "title": "Brush", "price": "ask us"},
        {"item": "2", "title": "Again"},
        {"item": "3", "title": "Towel", "price": -1},
    ]
    content = ("goods.jsonl", "\n".join(map(json.dumps, goods)).encode())
    with caplog.at_level(logging.INFO):
        out = prepare(shop(tmp_path, None, content), tmp_path / "out")
    assert (
        "noted in the items: price is not a number: 3, as '12,50', 'ask us', -1; repeated items: 1, as '2'; "
        "title is not text: 1, as {'en': 'Soap'}; `dataset.decimal_comma=true` reads prices like 1.299,00"
    ) in caplog.text
    stats = read_json(out, "stats.json")
    assert stats["noted"] == {"price is not a number": 3, "repeated items": 1, "title is not text": 1}
    assert stats["noted_examples"]["price is not a number"] == ["'12,50'", "'ask us'", "-1"]


def test_windows_quotes_read_as_latin_1_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    goods = lines([("1", "Ann\u2019s Soap", "", "", ""), *GOODS[1:]], HEADS["goods"]).decode().encode("cp1252")
    with caplog.at_level(logging.INFO):
        prepare(shop(tmp_path, None, goods, encoding="latin-1"), tmp_path / "latin")
    assert "title holds control characters, as texts in cp1252 do that are read as latin-1: 1, as" in caplog.text
    assert titles(shop(tmp_path, None, goods, encoding="cp1252"), tmp_path / "out")["1"] == "Ann\u2019s Soap"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("['Home' 'Bath']", ["Home", "Bath"]),
        ("['Home'\n 'Bath'\n 'Soap']", ["Home", "Bath", "Soap"]),
        ("""["Men's" 'Bath "n" Bed']""", ["Men's", 'Bath "n" Bed']),
        ("[\"Rock 'n' 'roll'\", null, \"B\u00fccher\"]", ["Rock 'n' 'roll'", "B\u00fccher"]),
        ('["Home\\/Garden"]', ["Home/Garden"]),
        ("[Home]", ["[Home]"]),
        ("[]", []),
    ],
)
def test_categories_as_programs_write_lists(tmp_path: Path, text: str, names: list[str]) -> None:
    quoted = text.replace('"', '""')
    goods = lines([("1", "Soap", "", f'"{quoted}"', "1"), *GOODS[1:]], HEADS["goods"])
    assert read(shop(tmp_path, None, goods)).items["1"].categories == names


@pytest.mark.parametrize(
    ("written", "title"),
    [
        ('"Soap\r\n  fine"', "Soap fine"),
        ("Soap\u00a0\u2003fine", "Soap fine"),
        ("Soap &lt;fine&gt; &#8364;5", "Soap <fine> \u20ac5"),
        ("\U0001f9fc Soap", "\U0001f9fc Soap"),
        ("N/A", "N/A"),
        ("null", "null"),
        ("1e5", "1e5"),
        ("007", "007"),
        ("  ", None),
    ],
)
def test_titles_as_people_write_them(tmp_path: Path, written: str, title: str | None) -> None:
    goods = lines([("1", written, "", "", ""), *GOODS[1:]], HEADS["goods"])
    raw = read(shop(tmp_path, None, goods))
    assert (raw.items["1"].title, raw.dropped) == (title, {})


def test_long_json_arrays_are_read_across_parts(tmp_path: Path) -> None:
    records = [{"item": str(number), "title": "x" * 90_000, "price": number} for number in range(30)]
    content = json.dumps([*records, 12345], indent=2).encode()
    table = open_table(shop(tmp_path, None, ("goods.json", content)).items)
    (batch,) = table.batches(["item", "price"])
    assert (batch.columns["price"], [fault.line for fault in batch.faults]) == (list(range(30)), [31])


# 4 Lines lost


def test_the_limit_holds_for_each_file(tmp_path: Path) -> None:
    orders = lines([*ORDERS, ("cid", "1", "16.11.2023")], HEADS["orders"])
    goods = lines([*GOODS, *((f"g{number}", "x", "", "", "") for number in range(5000))], HEADS["goods"])
    with pytest.raises(DatasetError, match=r"1 of 7 lines of .*orders\.csv .*as line 8: '16\.11\.2023'"):
        prepare(shop(tmp_path, orders, goods), tmp_path / "out")


def test_tsv_has_no_quotes_unless_asked(tmp_path: Path) -> None:
    goods = lines([("1", '"Weird lamp', "", "", ""), *GOODS[1:]], HEADS["goods"], "\t")
    assert titles(shop(tmp_path, None, ("goods.tsv", goods)), tmp_path / "out") == KNOWN | {"1": '"Weird lamp'}


def test_a_line_with_escaped_quotes_is_counted_and_the_option_named(tmp_path: Path) -> None:
    goods = lines([("1", r'"5\" brush"', "", "", ""), *GOODS[1:]], HEADS["goods"])
    with pytest.raises(DatasetError, match=r"1 of 3 lines .*dataset\.escape="):
        prepare(shop(tmp_path, None, goods), tmp_path / "out")
    assert titles(shop(tmp_path, None, goods, max_dropped=0.5), tmp_path / "out") == KNOWN | {"1": None}
    assert titles(shop(tmp_path, None, goods, escape="\\"), tmp_path / "escaped")["1"] == '5" brush'


def test_a_quote_that_is_never_closed_loses_no_line_uncounted(tmp_path: Path) -> None:
    orders = lines([*ORDERS[:2], ("ann", '"3', 12), *ORDERS[3:]], HEADS["orders"])
    raw = read(shop(tmp_path, orders))
    assert (len(raw.user_ids), raw.dropped) == (2, {"interactions: a quote that is never closed": 4})


# 5 Files not recognised

NUMBERED = {"user_column": "1", "item_column": "2", "time_column": "3"}


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("orders.csv", lines(ORDERS, HEADS["orders"], ";"), {"separator": ";"}),
        ("orders.csv", lines(ORDERS, HEADS["orders"], "\t"), {"separator": "\t"}),
        ("orders.csv", lines(ORDERS, HEADS["orders"], "::"), {"separator": "::"}),
        ("orders.csv", lines(ORDERS, None), {"header": False} | NUMBERED),
    ],
)  # fmt: skip
def test_other_separators_and_no_header_are_named_and_read(
    tmp_path: Path, name: str, content: bytes, options: dict[str, Any]
) -> None:
    with pytest.raises(DatasetError, match=rf"dataset\.{next(iter(options))}="):
        read(shop(tmp_path, (name, content)))
    path = shop(tmp_path, (name, content)).interactions
    assert read(TablesDataset(path, **options)).user_ids == [row[0] for row in ORDERS]


RECORDS = [dict(zip(HEADS["orders"], row, strict=True)) for row in ORDERS]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("orders.csv", lines(ORDERS, HEADS["orders"]).decode().encode("utf-16")),
        ("orders.csv", gzip.compress(lines(ORDERS, HEADS["orders"]))),
        ("orders.CSV.GZ", gzip.compress(lines(ORDERS, HEADS["orders"]))),
        ("orders.json", json.dumps(RECORDS, indent=1).encode()),
        ("orders.json", json.dumps(RECORDS).encode()),
        ("orders.json", "".join(f"{record!r}\n" for record in RECORDS).encode()),
        ("orders.csv", lines(ORDERS, HEADS["orders"]).replace(b"\n", b"\r\n")),
        ("orders.tsv", lines(ORDERS, ["user:token", "item:token", "time:float"], "\t")),
    ],
    ids=["utf-16", "gzip without its ending", "capitals", "array", "array of one line", "literals", "crlf", "recbole"],
)
def test_files_that_say_what_they_are_are_read(tmp_path: Path, name: str, content: bytes) -> None:
    raw = read(shop(tmp_path, (name, content)))
    assert list(zip(raw.user_ids, raw.item_ids, raw.timestamps, strict=True)) == ORDERS
    assert not raw.dropped


def test_at_most_ten_names_of_columns_are_told(tmp_path: Path) -> None:
    head = [f"column{number}" for number in range(300)]
    with pytest.raises(DatasetError, match=r"only column0, .*column9 and 290 more;") as error:
        read(shop(tmp_path, lines([tuple(range(300))], head)))
    assert len(str(error.value)) < 600


def test_a_user_with_nearly_everything_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [("robot", number % 3 + 1, number) for number in range(500)]
    rows += [(f"u{user}", item, item) for user in range(30) for item in (1, 2, 3)]
    with caplog.at_level(logging.WARNING):
        out = prepare(shop(tmp_path, lines(rows, HEADS["orders"])), tmp_path / "out")
    assert "the user 'robot' has 84.7 % of all interactions (500)" in caplog.text
    assert read_json(out, "stats.json")["longest_history"]["user"] == "robot"


def test_low_ratings_and_other_events_are_left_out(tmp_path: Path) -> None:
    head = ["user", "item", "time", "stars", "event"]
    rows = [
        (*row, stars, event) for row, stars, event in zip(ORDERS, "555145", ["buy", "buy", "view"] * 2, strict=True)
    ]
    content = lines(rows, head)
    rated = read(TablesDataset(shop(tmp_path, content).interactions, rating_column="stars", min_rating=4))
    assert [*zip(rated.user_ids, rated.item_ids, strict=True)] == [
        ("ann", "1"),
        ("ann", "2"),
        ("ann", "3"),
        ("bob", "2"),
        ("bob", "1"),
    ]
    bought = read(TablesDataset(shop(tmp_path, content).interactions, where="event = 'buy'"))
    assert len(bought.user_ids) == 4
    for condition in ("no_such = 1", "seconds > 0", "number = 0"):
        with pytest.raises(DatasetError, match=r"look at `dataset\.where=`"):
            read(TablesDataset(shop(tmp_path, content).interactions, where=condition))


RATED = [
    ("a", "5"),
    ("b", "2"),
    ("c", "five"),
    ("d", ""),
    ("e", "nan"),
    ("f", "4,5"),
    ("g", "\u2605\u2605"),
    ("h", " 4 "),
]


def rated(folder: Path, **options: Any) -> TablesDataset:
    rows = [("u", item, number, f'"{stars}"') for number, (item, stars) in enumerate(RATED)]
    path = shop(folder, lines(rows, [*HEADS["orders"], "stars"])).interactions
    return TablesDataset(path, rating_column="stars", **options)


def test_ratings_that_cannot_be_read_are_told_apart_from_low_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = read(rated(tmp_path, min_rating=4))
    assert raw.item_ids == ["a", "h"]
    assert raw.dropped == {"interactions: rating is not a number": 3}
    assert raw.tally.examples["interactions", "rating is not a number"] == [
        "line 4: 'five'",
        "line 7: '4,5'",
        "line 8: '\u2605\u2605'",
    ]
    assert read(rated(tmp_path, min_rating=4, decimal_comma=True)).item_ids == ["a", "f", "h"]
    with pytest.raises(
        DatasetError, match=r"3 of 8 lines .*not a number: 3, as line 4: 'five'.* 4,5 by `dataset.decimal"
    ):
        prepare(rated(tmp_path, min_rating=4), tmp_path / "out")


def test_what_conditions_leave_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"min_rating": 2, "decimal_comma": True, "max_dropped": 0.5, "where": "item <> 'a'"}
    with caplog.at_level(logging.INFO):
        out = prepare(rated(tmp_path, **options), tmp_path / "out")
    assert "left out 3 of 8 interactions by condition (no rating: 2; dataset.where: 1)" in caplog.text
    stats = read_json(out, "stats.json")
    assert (stats["filtered"], stats["interactions"]) == ({"dataset.where": 1, "no rating": 2}, 3)


def test_conditions_that_leave_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"None of the 6 lines of .*orders\.csv is left \(dataset\.where: 6\); change"
    ):
        prepare(shop(tmp_path, where="item = 'x'"), tmp_path / "out")
    with pytest.raises(DatasetError, match=r"is left \(dataset\.min_rating: 4; no rating: 2\); change"):
        prepare(rated(tmp_path, min_rating=9, max_dropped=0.9, decimal_comma=True), tmp_path / "out")
    orders = lines([(*row[:2], "soon") for row in ORDERS], HEADS["orders"])
    with pytest.raises(DatasetError, match=r"is left \(none can be read\)"):
        prepare(shop(tmp_path, orders, max_dropped=1), tmp_path / "out")


@pytest.mark.parametrize("given", ["parts", "parts/*.parquet", "parts/p-?.parquet"])
def test_folders_and_patterns_are_read_in_the_order_of_names(tmp_path: Path, given: str) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "_SUCCESS").touch()
    for number, rows in enumerate((ORDERS[:2], ORDERS[2:3], ORDERS[3:])):
        columns = dict(zip(HEADS["orders"], map(list, zip(*rows, strict=True)), strict=True))
        pq.write_table(pa.table(columns), tmp_path / "parts" / f"p-{number}.parquet")
    raw = read(TablesDataset(tmp_path / given))
    assert list(zip(raw.user_ids, raw.item_ids, raw.timestamps, strict=True)) == ORDERS
    out = prepare(TablesDataset(tmp_path / given), tmp_path / "out")
    assert read_table(out, "users.parquet")["user_id"].to_pylist() == ["ann", "bob"]


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    with pytest.raises(DatasetError, match="is no file, and no folder that holds tables"):
        read(TablesDataset(tmp_path / "parts"))


def test_parts_of_one_name_in_several_folders_are_all_read(tmp_path: Path) -> None:
    for number, name in enumerate(("2024-01/part.csv", "2024-02/part.csv", "_delta_log/x.csv", ".hidden/part.csv")):
        (tmp_path / "parts" / name).parent.mkdir(parents=True)
        (tmp_path / "parts" / name).write_bytes(lines(ORDERS[3 * number : 3 * number + 3] or ORDERS, HEADS["orders"]))
    dataset = TablesDataset(tmp_path / "parts")
    assert list(dataset.files()) == ["interactions: 2024-01/part.csv", "interactions: 2024-02/part.csv"]
    assert len(read(dataset).user_ids) == len(ORDERS)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_nanoseconds_as_whole_numbers_keep_their_order(tmp_path: Path, kind: str) -> None:
    values = [1_700_000_000_123_456_789 - number for number in range(5)]
    content: Any = pa.table({"user": ["u"] * 5, "item": list("01234"), "time": values})
    if kind == "csv":
        content = lines([("u", number, value) for number, value in enumerate(values)], HEADS["orders"])
    elif kind == "jsonl":
        content = "\n".join(json.dumps({"user": "u", "item": str(n), "time": t}) for n, t in enumerate(values)).encode()
    raw = read(TablesDataset(shop(tmp_path, (f"orders.{kind}", content)).interactions))
    assert raw.timestamps == values


def test_a_fraction_near_one_does_not_wrap(tmp_path: Path) -> None:
    assert [item for item, _, _ in times(tmp_path, ["1.9999999999", "1.5", "1.1"])] == ["2", "1", "0"]


def test_a_missing_rating_is_no_high_one_and_ratings_need_a_column(tmp_path: Path) -> None:
    columns = {"user": ["u"] * 4, "item": list("abcd"), "time": [1, 2, 3, 4], "stars": [float("nan"), 5.0, 1.0, None]}
    dataset = shop(tmp_path, ("orders.parquet", pa.table(columns)))
    raw = read(TablesDataset(dataset.interactions, rating_column="stars", min_rating=4))
    assert raw.item_ids == ["b"]
    with pytest.raises(DatasetError, match=r"dataset\.rating_column=<column>"):
        read(TablesDataset(dataset.interactions, min_rating=4))


@pytest.mark.parametrize("space", ["\u3000", "\u2003", "\x1c", "\x85"])
def test_every_space_around_an_id_goes_on_both_sides(tmp_path: Path, space: str) -> None:
    orders = lines([(user, f"{space}{item}{space}", time) for user, item, time in ORDERS], HEADS["orders"])
    assert titles(shop(tmp_path, orders), tmp_path / "out") == KNOWN


def test_bytes_as_ids_are_text(tmp_path: Path) -> None:
    columns = {"user": [b" u ", b"u", b"", b"\xff"], "item": list("abcd"), "time": [1, 2, 3, 4]}
    raw = read(TablesDataset(shop(tmp_path, ("orders.parquet", pa.table(columns))).interactions))
    assert raw.user_ids == ["u", "u"]
    assert raw.dropped == {"interactions: no user": 1, "interactions: user is not valid text": 1}


def test_what_is_no_id_is_none_whatever_stands_beside_it(tmp_path: Path) -> None:
    records = [{"user": user, "item": "a", "time": 1} for user in (float("nan"), "b", 1.5, 2.0)]
    content = "\n".join(map(json.dumps, records)).encode()
    assert read(TablesDataset(shop(tmp_path, ("orders.jsonl", content)).interactions)).user_ids == ["b", "2"]


def test_a_format_of_time_holds_for_numbers_too(tmp_path: Path) -> None:
    found = times(tmp_path, pa.array([20240301]), "parquet", time_format="%Y%m%d")
    assert found == [("0", MARCH - 36000, 0)]


def test_nanoseconds_with_a_zone_are_read(tmp_path: Path) -> None:
    moment = pa.array([MARCH * 1_000_000_000 + 5], pa.timestamp("ns", tz="UTC"))
    assert times(tmp_path, moment, "parquet") == [("0", MARCH, 5)]


def test_a_bad_record_of_many_lines_counts_them_all(tmp_path: Path) -> None:
    content = b"user,item,time\n" + b'a,"1,1\n' + b"x,y,1\n" * 50 + b'c,2",5,extra,3\n' + b"d,3,1\n"
    raw = read(TablesDataset(shop(tmp_path, content).interactions))
    assert (raw.user_ids, raw.dropped) == (["d"], {"interactions: another number of columns than the header": 52})


def test_several_arrays_in_a_file_are_all_read_and_other_endings_refused(tmp_path: Path) -> None:
    content = f"{json.dumps(RECORDS[:2])}\n{json.dumps(RECORDS[2:])}\n".encode()
    assert len(read(shop(tmp_path, ("orders.json", content))).user_ids) == len(RECORDS)
    with pytest.raises(DatasetError, match="goes on after its array"):
        read(shop(tmp_path, ("orders.json", content + b"more")))


def test_new_items_in_latin_1_or_with_late_fields_are_no_silent_loss(tmp_path: Path) -> None:
    latin = "item_id,title\nn1,Café\n".encode("latin-1")
    (tmp_path / "new.csv").write_bytes(latin)
    with pytest.raises(NewItemsError, match=r"Row 1 of .*new\.csv cannot be read \(invalid UTF-8\)"):
        read_new_items(tmp_path / "new.csv")
    rows = [{"item_id": str(number), "brand": "x"} for number in range(150)] + [{"item_id": "last", "title": "Soap"}]
    (tmp_path / "new.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_new_items(tmp_path / "new.jsonl").records[-1]["title"] == "Soap"
