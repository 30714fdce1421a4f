"""Lines that cannot be read are counted for each file and told of with an option that exists; files are recognised by
what they hold, or refused with what would read them."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import json
import lzma
import re
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.raw_data import lines, read
from tests.test_real_inputs import GOODS, HEADS, KNOWN, ORDERS, RECORDS, shop, titles
from tigerrec.config import ConfigError, compose
from tigerrec.data.amazon import AmazonReviews
from tigerrec.data.base import DatasetError
from tigerrec.data.formats import read_rows
from tigerrec.data.prepare import prepare
from tigerrec.data.tables import TablesDataset
from tigerrec.pipeline import plan
from tigerrec.storage.contracts import read_json

CSV, GOODS_CSV = lines(ORDERS, HEADS["orders"]), lines(GOODS, HEADS["goods"])
JSON_LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def zipped(**files: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, given in files.items():
            archive.writestr(name, given)
    return content.getvalue()


def zstd(content: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(content)
    return bytes(packed.getvalue().to_pybytes())


def rows_of(dataset: TablesDataset) -> list[tuple[str, str, int]]:
    raw = read(dataset)
    assert not raw.dropped
    return list(zip(raw.user_ids, raw.item_ids, raw.timestamps, strict=True))


def parts(folder: Path, **contents: bytes) -> Path:
    for name, content in contents.items():
        path = folder / "parts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / "parts"


# Lines lost


def test_the_limit_holds_for_each_part_and_names_it(tmp_path: Path) -> None:
    many = lines([("x", number, number) for number in range(3000)], HEADS["orders"])
    folder = parts(tmp_path, **{"1.csv": CSV + b"cid,1,soon\n", "2.csv": many})
    with pytest.raises(DatasetError, match=r"1 of 7 lines of .*parts/1\.csv .*as line 8: 'soon'"):
        prepare(TablesDataset(folder), tmp_path / "out")
    stats = read_json(prepare(TablesDataset(folder, max_dropped=0.2), tmp_path / "out"), "stats.json")
    assert list(stats["dropped"]) == ["interactions: 1.csv: time is neither a number nor an ISO date"]


def test_the_limit_holds_for_each_part_of_the_items(tmp_path: Path) -> None:
    many = lines([(f"g{number}", "x", "", "", "") for number in range(3000)], HEADS["goods"])
    folder = parts(tmp_path, **{"1.csv": GOODS_CSV + b"short,line\n", "2.csv": many})
    with pytest.raises(DatasetError, match=r"1 of 4 lines of .*parts/1\.csv .*as line 5: \['short', 'line'\]"):
        prepare(TablesDataset(shop(tmp_path).interactions, folder), tmp_path / "out")


@pytest.mark.parametrize("empty", [b"", b"\n\n", b"user,item,time\n"])
def test_empty_parts_hold_nothing_and_spoil_nothing(tmp_path: Path, empty: bytes) -> None:
    folder = parts(tmp_path, **{"part-0.csv": empty, "part-1.csv": CSV, "part-2.csv": empty})
    assert rows_of(TablesDataset(folder)) == ORDERS


def test_parts_that_are_all_empty_are_told_of_by_their_folder(tmp_path: Path) -> None:
    folder = parts(tmp_path, **{"part-0.csv": b"", "part-1.csv": b"user,item,time\n"})
    with pytest.raises(DatasetError, match=rf"^{re.escape(str(folder))} holds no interactions: it is empty"):
        prepare(TablesDataset(folder), tmp_path / "out")


def test_times_of_several_kinds_are_told_of_by_the_folder_of_the_parts(tmp_path: Path) -> None:
    later = lines([(user, item, 1709287209000 + time) for user, item, time in ORDERS], HEADS["orders"])
    sooner = lines([(user, item, 1709287209 + time) for user, item, time in ORDERS], HEADS["orders"])
    folder = parts(tmp_path, **{"1.csv": sooner, "2.csv": later})
    with pytest.raises(DatasetError, match=rf"The times of {re.escape(str(folder))} are of several kinds"):
        prepare(TablesDataset(folder), tmp_path / "out")


LATIN_HEAD = "user,item,time,größe\n".encode("latin-1") + lines([(*row, 1) for row in ORDERS], None)
PRETTY = "\n".join(json.dumps(record, indent=1) for record in RECORDS).encode()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("orders.csv", LATIN_HEAD, r"line 1 cannot be read \(invalid UTF-8: .*dataset\.encoding=latin-1`\.$"),
        ("orders.csv", CSV.replace(b"\n", b"\r"), r"\(a line break outside quotes\); end its lines as Unix or Windows"),
        ("orders.jsonl", b"hello\nworld\n", r"line 1 .*\(neither JSON nor a Python literal: .*write one record a line"),
        ("orders.json", b"12", r"line 1 cannot be read \(not a record of named values: "),
        ("orders.json", b'[["ann", "1", 10]]', r"line 1 cannot be read \(not a record of named values: "),
        ("orders.jsonl", b"".join(line + b",\n" for line in JSON_LINES.splitlines()), "write one record a line, or"),
        ("orders.json", PRETTY, "write one record a line, or one array of records"),
        ("orders.csv", b'"user,item,time\n' + CSV, r"\(a quote that is never closed\)"),
    ],
)
def test_a_file_of_which_no_line_can_be_read_is_not_called_empty(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(DatasetError, match=message) as error:
        read(shop(tmp_path, (name, content)))
    assert "empty" not in str(error.value)
    assert name in str(error.value)


def test_without_a_header_a_first_line_that_cannot_be_read_is_counted(tmp_path: Path) -> None:
    content = b"\xff,1,2\n" + lines(ORDERS, None)
    dataset = shop(tmp_path, content, header=False, user_column="1", item_column="2", time_column="3")
    raw = read(TablesDataset(dataset.interactions, header=False, user_column="1", item_column="2", time_column="3"))
    assert (len(raw.user_ids), raw.dropped) == (6, {"interactions: invalid UTF-8": 1})


def test_records_after_many_lines_that_cannot_be_read_are_found(tmp_path: Path) -> None:
    raw = read(shop(tmp_path, ("orders.jsonl", b"# a remark\n" * 150 + JSON_LINES)))
    assert (len(raw.user_ids), raw.dropped) == (6, {"interactions: neither JSON nor a Python literal": 150})


def test_an_element_in_another_encoding_is_counted(tmp_path: Path) -> None:
    records = [*RECORDS, {"user": "jürgen", "item": "1", "time": 3}]
    content = json.dumps(records, ensure_ascii=False).encode("latin-1")
    raw = read(shop(tmp_path, ("orders.json", content)))
    assert (len(raw.user_ids), raw.dropped) == (6, {"interactions: invalid UTF-8": 1})
    (tmp_path / "latin").mkdir()
    dataset = shop(tmp_path / "latin", ("orders.json", content), encoding="latin-1")
    assert rows_of(dataset)[-1] == ("jürgen", "1", 3)


def test_a_header_that_is_repeated_where_files_were_joined_is_counted(tmp_path: Path) -> None:
    raw = read(shop(tmp_path, CSV + CSV))
    assert (len(raw.user_ids), raw.dropped) == (12, {"interactions: time is neither a number nor an ISO date": 1})


def test_a_zero_byte_costs_its_line_alone(tmp_path: Path) -> None:
    raw = read(shop(tmp_path, CSV.replace(b"bob,3", b"b\0b,3")))
    assert (len(raw.user_ids), raw.dropped) == (5, {"interactions: user is not valid text": 1})


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_quote_that_escapes_itself_is_doubled(tmp_path: Path, quote: str) -> None:
    goods = GOODS_CSV.replace(b"1,Soap", b'"1","A ""fine"" soap"')
    options = {"escape": '"'} | ({"quote": quote} if quote else {})
    assert titles(shop(tmp_path, None, goods, **options), tmp_path / "out")["1"] == 'A "fine" soap'


def test_a_last_line_without_an_end_and_breaks_inside_quotes_are_read(tmp_path: Path) -> None:
    goods = GOODS_CSV.replace(b"1,Soap", b'1,"Soap,\r\nthe mild one"').replace(b"\n2", b"\r\n2").rstrip(b"\n")
    found = titles(shop(tmp_path, CSV.rstrip(b"\n"), goods), tmp_path / "out")
    assert found == KNOWN | {"1": "Soap, the mild one"}


# Files not recognised

PACK: dict[str, Any] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
    "zip": lambda content: zipped(**{"orders.csv": content}),
}


@pytest.mark.parametrize("kind", PACK)
def test_packed_files_are_read_by_what_they_begin_with(tmp_path: Path, kind: str) -> None:
    for name in (f"orders.csv.{kind}", "orders.csv", f"ORDERS.CSV.{kind.upper()}"):
        assert rows_of(shop(tmp_path, (name, PACK[kind](CSV)))) == ORDERS, name


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_files_that_were_packed_and_joined_are_read_to_their_end(tmp_path: Path, kind: str) -> None:
    packed = PACK[kind](CSV[:30]) + PACK[kind](CSV[30:])
    assert rows_of(shop(tmp_path, (f"orders.csv.{kind}", packed))) == ORDERS


@pytest.mark.parametrize(
    ("kind", "packing"), [("gz", "gzip"), ("bz2", "bzip2"), ("xz", "xz"), ("zst", "zstd"), ("zip", "zip")]
)
def test_a_file_that_is_not_packed_as_its_name_says_is_told_of_so(tmp_path: Path, kind: str, packing: str) -> None:
    with pytest.raises(DatasetError, match=rf"orders\.csv\.{kind} is not a {packing} file; "):
        read(shop(tmp_path, (f"orders.csv.{kind}", CSV)))
    with pytest.raises(DatasetError, match=r"is cut short|cannot be read|is damaged inside|is not a zip file"):
        read(shop(tmp_path, (f"orders.csv.{kind}", PACK[kind](CSV * 50)[:-9])))


def test_a_zip_is_read_beside_what_a_system_adds_and_by_the_name_inside(tmp_path: Path) -> None:
    system = {"__MACOSX/._orders.csv": b"\0\5\x16\7", ".DS_Store": b"\0"}
    assert rows_of(shop(tmp_path, ("orders.csv.zip", zipped(**{"orders.csv": CSV}, **system)))) == ORDERS
    assert rows_of(shop(tmp_path, ("archive.zip", zipped(**{"shop/orders.jsonl": JSON_LINES}, **system)))) == ORDERS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.zip", zipped(**{"a.csv": CSV, "b.csv": GOODS_CSV}), r"holds 2 files \(a\.csv, b\.csv\), not one"),
        ("data.csv.zip", zipped(**{"a.csv": CSV, "b.csv": GOODS_CSV}), r"holds 2 files \(a\.csv, b\.csv\), not one"),
        ("data.csv.zip", zipped(), "holds 0 files, not one"),
        ("data.zip", zipped(**{"readme.md": b"x"}), "no known kind of table"),
        ("data.zip", CSV, "is not a zip file"),
        ("data.csv", zipped(**{"[Content_Types].xml": b"", "xl/workbook.xml": b""}), "is a workbook; save its table"),
    ],
    ids=["two", "two named", "none", "no table", "no zip", "workbook"],
)
def test_a_zip_without_one_table_names_what_it_holds(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read(shop(tmp_path, (name, content)))


def test_a_zip_beside_the_tables_of_a_folder_is_left_alone(tmp_path: Path) -> None:
    folder = parts(tmp_path, **{"orders.csv": CSV, "orders.zip": zipped(**{"orders.csv": CSV})})
    assert rows_of(TablesDataset(folder)) == ORDERS


def test_a_parquet_file_under_another_name_is_told_of(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "orders.csv")
    with pytest.raises(DatasetError, match=r"is a Parquet file; give it a name that ends in \.parquet"):
        read(TablesDataset(tmp_path / "orders.csv"))


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_the_line_that_tells_excel_the_separator_is_understood(tmp_path: Path, separator: str) -> None:
    content = f"sep={separator}\r\n".encode() + lines(ORDERS, HEADS["orders"], separator)
    path = shop(tmp_path, content).interactions
    assert rows_of(TablesDataset(path)) == ORDERS
    assert rows_of(TablesDataset(path, separator=separator)) == ORDERS


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark_names_the_option(tmp_path: Path, encoding: str) -> None:
    path = shop(tmp_path, CSV.decode().encode(encoding)).interactions
    with pytest.raises(DatasetError, match=rf"it seems to be in UTF-16: add `dataset\.encoding={encoding}`"):
        read(TablesDataset(path))
    assert rows_of(TablesDataset(path, encoding=encoding)) == ORDERS


def test_utf_32_is_known_by_its_mark_and_unicode_text_of_excel_by_its_tabs(tmp_path: Path) -> None:
    assert rows_of(shop(tmp_path, CSV.decode().encode("utf-32"))) == ORDERS
    tabs = lines(ORDERS, HEADS["orders"], "\t").decode().encode("utf-16")
    path = shop(tmp_path, tabs).interactions
    with pytest.raises(DatasetError, match=r"dataset\.separator='\\t'"):
        read(TablesDataset(path))
    assert rows_of(TablesDataset(path, separator=r"\t")) == ORDERS


def test_an_index_column_without_a_name_is_no_matter(tmp_path: Path) -> None:
    content = lines([(number, *row) for number, row in enumerate(ORDERS)], ["", *HEADS["orders"]])
    assert rows_of(shop(tmp_path, content)) == ORDERS


@pytest.mark.parametrize(
    ("head", "option"),
    [("User,item,time", "dataset.user_column=User"), ("user, item,time", "\"dataset.item_column=' item'\"")],
)
def test_a_column_that_is_nearly_named_so_is_shown_as_the_option_takes_it(
    tmp_path: Path, head: str, option: str
) -> None:
    content = CSV.replace(b"user,item,time", head.encode())
    with pytest.raises(DatasetError, match=re.escape(f"name yours by `{option}`")):
        read(shop(tmp_path, content))
    key, _, value = option.strip('"').removeprefix("dataset.").partition("=")
    assert rows_of(TablesDataset(tmp_path / "orders.csv", **{key: value.strip("'")})) == ORDERS


def test_records_inside_an_object_are_told_of(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="its records seem to stand in 'data': write that array alone"):
        read(shop(tmp_path, ("orders.json", json.dumps({"data": RECORDS}).encode())))


def test_a_separator_is_for_text_alone(tmp_path: Path) -> None:
    goods = "".join(json.dumps({"item": row[0], "title": row[1]}) + "\n" for row in GOODS).encode()
    orders = lines(ORDERS, HEADS["orders"], ";")
    assert titles(shop(tmp_path, orders, ("goods.jsonl", goods), separator=";"), tmp_path / "out") == KNOWN


def test_parts_without_an_ending_are_read_where_the_separator_is_named(tmp_path: Path) -> None:
    halves = {f"part-0000{half}": lines(ORDERS[3 * half : 3 * half + 3], HEADS["orders"], "\t") for half in (0, 1)}
    folder = parts(tmp_path, **halves, _SUCCESS=b"")
    with pytest.raises(DatasetError, match=r"no folder that holds tables.*dataset\.separator="):
        read(TablesDataset(folder))
    assert rows_of(TablesDataset(folder, separator=r"\t")) == ORDERS


# Options that cannot be meant


@pytest.mark.parametrize("encoding", ["hex", "rot13", "base64", "zlib", "undefined", "punycode", "nosuch", "\0", ""])
def test_an_encoding_that_is_none_of_text_is_refused(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(DatasetError, match=r"cannot be read in the encoding .*dataset\.encoding=<name>"):
        read(shop(tmp_path, encoding=encoding))


@pytest.mark.parametrize("option", ["quote=\"''\"", "escape=ab", 'escape=""'])
def test_marks_are_one_character(tmp_path: Path, option: str) -> None:
    name = option.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^dataset\.{name} must be at (most|least) 1 long, got "):
        plan(compose(["dataset=tables", f"dataset.{option}"]))


def test_an_empty_separator_is_none(tmp_path: Path) -> None:
    assert rows_of(shop(tmp_path, separator="")) == ORDERS
    with pytest.raises(DatasetError, match="no known kind of table"):
        read(shop(tmp_path, ("orders.dat", CSV), separator=""))


# Messages name options that exist

REVIEW = '{{"reviewerID": "{}", "asin": "{}", "unixReviewTime": {}}}\n'
REVIEWS = "".join(REVIEW.format(*row) for row in ORDERS).encode()
META = b"".join(b"{'asin': '%d', 'title': 'x'}\n" % number for number in (1, 2, 3))
SECONDS_AND_MORE = REVIEWS.replace(b": 10}", b": 1709287209}").replace(b": 11}", b": 1709287209000}")


@pytest.mark.parametrize(
    ("interactions", "metadata"),
    [
        (SECONDS_AND_MORE, META),
        (REVIEWS, META.replace(b"'asin': '", b"'asin': 'x")),
        (b"\xff\n" * 9, META),
        (REVIEWS, b"\xff\n" * 9),
        (b"[1, \xff", META),
        (b"[1, 2", META),
        (b"\xff\xfea", META),
        (b"hello\n", META),
        (b"", META),
        (REVIEWS[:200], META),
        (b"<html>", META),
        (REVIEWS.replace(b"asin", b"parent_asin"), META),
    ],
)
def test_messages_about_amazon_name_no_option_that_it_lacks(
    tmp_path: Path, interactions: bytes, metadata: bytes
) -> None:
    (tmp_path / "reviews.json").write_bytes(interactions)
    (tmp_path / "meta.json").write_bytes(metadata)
    dataset = AmazonReviews(tmp_path, "reviews.json", "meta.json", min_user_interactions=0, min_item_interactions=0)
    with pytest.raises(DatasetError) as error:
        prepare(dataset, tmp_path / "out")
    fields = {field.name for field in dataclasses.fields(AmazonReviews)} | {"family"}
    assert set(re.findall(r"dataset\.(\w+)", str(error.value))) <= fields, str(error.value)


@pytest.mark.parametrize(
    "content", [b"item_id,title\n1,\xff\n", b'item_id,title\n1,"a\\"b"\n', b"\xff\xfea", b"\xff\n"]
)
def test_messages_about_a_table_of_new_items_name_no_option_of_data_sets(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "items.csv").write_bytes(content)
    try:
        columns, rows = read_rows(tmp_path / "items.csv")
        told = str([columns, *rows])
    except DatasetError as error:
        told = str(error)
    assert "dataset." not in told


def test_a_column_of_ratings_must_exist_with_and_without_a_threshold(tmp_path: Path) -> None:
    for options in ({}, {"min_rating": 3}):
        with pytest.raises(DatasetError, match=r"no column 'stars', only user, item, time; name yours by"):
            read(TablesDataset(shop(tmp_path).interactions, rating_column="stars", **options))


def test_a_refusal_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        prepare(shop(tmp_path, b"user,item,time\n"), tmp_path / "runs" / "shops" / "mine")
    assert not (tmp_path / "runs").exists()


def test_what_stood_before_a_refusal_stays(tmp_path: Path) -> None:
    (tmp_path / "runs" / "other").mkdir(parents=True)
    with pytest.raises(DatasetError):
        prepare(shop(tmp_path, b"user,item,time\n"), tmp_path / "runs" / "mine")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]
