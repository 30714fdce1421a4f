"""Whatever bytes stand in an artefact or an input: a finished result or one sentence, nothing executed, no silently
wrong array."""

from __future__ import annotations

import contextlib
import csv
import datetime
import gzip
import io
import json
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tests.raw_data import read
from tests.tiny_run import build_embedded_run
from tigerrec import TigerrecError
from tigerrec.data.amazon import AmazonReviews
from tigerrec.data.histories import load_histories
from tigerrec.data.prepare import prepare
from tigerrec.data.tables import TablesDataset
from tigerrec.embed.stage import load_embeddings
from tigerrec.evaluation.stage import EvaluateConfig, evaluate
from tigerrec.serving.export import export
from tigerrec.serving.recommender import Recommender
from tigerrec.storage.contracts import read_json
from tigerrec.storage.files import ArtifactError, sha256_file
from tigerrec.storage.fingerprints import content_digest
from tigerrec.storage.manifests import MANIFEST, DamagedError, Manifest, read_manifest
from tigerrec.storage.stages import open_stage, writing
from tigerrec.tokenizers.ids import load_inputs, load_semantic_ids
from tigerrec.tokenizers.rkmeans import ResidualKMeans
from tigerrec.tokenizers.stage import TokenizeConfig, encode_items, tokenize

FUZZ = settings(derandomize=True, deadline=None, database=None, max_examples=40)
EXECUTING = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class")
executed: list[str] = []


def watch(event: str, args: tuple[Any, ...]) -> None:
    if (event in EXECUTING and "git" not in str(args)) or (event == "import" and args[0] == "canary"):
        executed.append(f"{event} {args}")


sys.addaudithook(watch)


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The canary is a file that hostile input would make; no input starts a program, unpickles or imports."""
    monkeypatch.chdir(tmp_path)
    executed.clear()
    yield
    assert not executed
    assert not list(tmp_path.rglob("canary*"))


class Evil:
    """A pickle of this makes the canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch canary",)


PICKLE = pickle.dumps(Evil())


def test_the_canary_and_the_hook_work(tmp_path: Path) -> None:
    pickle.loads(PICKLE)
    assert (tmp_path / "canary").exists()
    assert any("os.system" in event for event in executed)
    (tmp_path / "canary").unlink()
    executed.clear()


def refusal(error: TigerrecError) -> str:
    text = str(error)
    assert len(text.splitlines()) == 1, text
    assert text.endswith("."), text
    return text


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=".") as folder:
        yield Path(folder).resolve()


def mutated(valid: bytes) -> st.SearchStrategy[bytes]:
    """Valid bytes with a part cut out and other bytes in its place."""
    place = st.integers(0, len(valid))
    return st.tuples(place, place, st.binary(max_size=6)).map(
        lambda cut: valid[: min(cut[:2])] + cut[2] + valid[max(cut[:2]) :]
    )


# Raw files

HUGE = "9" * 400
WORDS = st.sampled_from(
    ["A", "B", "C", "D", "u", "v", "", " ", "é", "\0", "\ud800", "a\nb", "&#x110000;", "\u2028", HUGE]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | WORDS
    | st.sampled_from([int(HUGE), -int(HUGE), 2**63, -(2**63)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
REVIEW = b'{"reviewerID": "u", "asin": "A", "unixReviewTime": 5}'
ITEM = b"{'asin': 'A', 'title': 'Soap', 'price': 4.5, 'categories': [['Bath', 'Soap']]}"
CALL = "__import__('os').system('touch canary')"
HOSTILE_LINES = [
    b"\xef\xbb\xbf" + REVIEW,
    b"\0",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"<html>",
    b"-" * 100_000 + b"1",
    b"1+" * 100_000 + b"1",
    b"{'asin': " * 5000,
    f"{{'asin': 'A', 'title': {CALL}}}".encode(),
    CALL.encode(),
    f"f'{{{CALL}}}'".encode(),
    b"{'asin': 'A', 'title': __import__('canary')}",
    b"{'asin': 'A', 'price': 1j, 'title': b'x', 'brand': {1, 2}, 'categories': ...}",
    b"{'asin': {'A'}}",
    b"{[]: 1}",
    b"{'asin': 'A', 'price': %s}" % HUGE.encode(),
    b'{"asin": "\\u0041", "title": "escaped"}',
    b'{"reviewerID": "u", "asin": "A", "unixReviewTime": %s}' % HUGE.encode(),
    b'{"reviewerID": "u", "asin": "A", "unixReviewTime": 1e999}',
    b'{"reviewerID": "u", "asin": "A", "unixReviewTime": %s}' % (b"9" * 5000),
    b"u,A,5.0,%s" % HUGE.encode(),
    b"u,A,5.0,nan",
    b"u,,,",
    b"\x1a",
    b"\r",
]
RECORDS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("reviewerID", "asin", "unixReviewTime", "title", "brand", "price", "categories"), VALUES),
)
LINES = (
    st.sampled_from(HOSTILE_LINES)
    | st.binary(max_size=30)
    | mutated(REVIEW)
    | mutated(ITEM)
    | mutated(b"u,A,5.0,5")
    | RECORDS.map(lambda record: json.dumps(record).encode())
    | RECORDS.map(lambda record: repr(record).encode("utf-8", "surrogatepass"))
)
GOOD = [b'{"reviewerID": "u", "asin": "%s", "unixReviewTime": 1}' % item for item in (b"A", b"B", b"C")]
GOOD_RATINGS = [b"u,%s,5.0,1" % item for item in (b"A", b"B", b"C")]


def n_lines(content: bytes) -> int:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        content = content.decode("utf-16").encode()
    return sum(bool(line.strip()) for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"))


@pytest.mark.parametrize("name", ["reviews.json", "ratings.csv"])
@FUZZ
@given(interactions=st.lists(LINES, max_size=6), metadata=st.lists(LINES, max_size=6))
@example(interactions=HOSTILE_LINES[1:], metadata=HOSTILE_LINES[1:])
def test_amazon_lines_are_kept_or_counted(name: str, interactions: list[bytes], metadata: list[bytes]) -> None:
    good = GOOD if name == "reviews.json" else GOOD_RATINGS
    contents = {name: b"\n".join([*good, *interactions]), "meta.json": b"\n".join(metadata)}
    with scratch() as folder:
        for path, content in contents.items():
            (folder / path).write_bytes(content)
        dataset = AmazonReviews(
            folder, name, "meta.json", min_user_interactions=0, min_item_interactions=0, max_dropped=1.0
        )
        try:
            raw = read(dataset)
            out = prepare(dataset, folder / "out")
        except TigerrecError as error:
            refusal(error)
            return
        dropped = sum(count for reason, count in raw.dropped.items() if reason.startswith("interactions: "))
        assert len(raw.user_ids) + dropped == n_lines(contents[name])
        assert raw.lines == n_lines(contents[name]) + n_lines(contents["meta.json"])
        check_prepared(raw, out)


def check_prepared(raw: Any, out: Path) -> None:
    """The raw data hold what the tables promise, and the stage is one that the others read."""
    assert len(raw.user_ids) == len(raw.item_ids) == len(raw.timestamps)
    assert all(type(name) is str and name.strip() for name in (*raw.user_ids, *raw.item_ids, *raw.items))
    histories = load_histories(out)
    assert len(histories) >= 1
    stats = read_json(out, "stats.json")
    assert (stats["lines"], stats["dropped"], stats["raw"]["interactions"]) == (
        raw.lines,
        dict(sorted(raw.dropped.items())),
        len(raw.user_ids),
    )


def test_escaped_asins_are_those_of_the_reviews(tmp_path: Path) -> None:
    (tmp_path / "reviews.json").write_bytes(b"\n".join(GOOD))
    (tmp_path / "meta.json").write_bytes(b'{"asin": "\\u0041", "title": "escaped"}\n')
    raw = read(AmazonReviews(tmp_path, "reviews.json", "meta.json", min_user_interactions=0))
    assert raw.items["A"].title == "escaped"


ROWS = [("u", "A", 1), ("u", "B", 2), ("u", "C", "2024-03-01")]


def read_tables(folder: Path, kind: str, interactions: bytes, items: bytes | None = None) -> None:
    (folder / f"orders.{kind}").write_bytes(interactions)
    if items is not None:
        (folder / f"items.{kind}").write_bytes(items)
    dataset = TablesDataset(
        folder / f"orders.{kind}", None if items is None else folder / f"items.{kind}", max_dropped=1.0
    )
    try:
        raw = read(dataset)
        out = prepare(dataset, folder / "out")
    except TigerrecError as error:
        refusal(error)
        return
    assert raw.lines >= len(raw.user_ids) + sum(
        count for reason, count in raw.dropped.items() if reason.startswith("interactions: ")
    )
    check_prepared(raw, out)


def delimited(rows: list[tuple[Any, ...]], separator: str) -> bytes:
    return "".join(separator.join(map(str, row)) + "\n" for row in rows).encode("utf-8", "surrogatepass")


DATES = ["0001-01-01", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00+14:00", "2024-02-30"]
FIELDS = WORDS | st.integers() | st.floats() | st.sampled_from([*DATES, HUGE, '"', '"open', "a,b", "1e400"])


@pytest.mark.parametrize(("kind", "separator"), [("csv", ","), ("tsv", "\t"), ("csv.gz", ",")])
@FUZZ
@given(st.data())
def test_delimited_tables_are_read_or_refused(kind: str, separator: str, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(FIELDS, min_size=2, max_size=4).map(tuple), max_size=4))
    content = delimited([("user", "item", "time"), *ROWS, *rows], separator)
    content = data.draw(st.just(content) | mutated(content))
    items = data.draw(st.none() | mutated(delimited([("item", "title", "price"), ("A", "Soap", 4)], separator)))
    pack: Callable[[bytes], bytes] = gzip.compress if kind.endswith(".gz") else bytes
    with scratch() as folder:
        read_tables(folder, kind, pack(content), None if items is None else pack(items))


@FUZZ
@given(
    st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(("user", "item", "time"), VALUES)), max_size=4),
    st.lists(LINES, max_size=2),
    VALUES,
)
def test_json_lines_are_read_or_refused(records: list[dict[str, Any]], lines: list[bytes], title: Any) -> None:
    good = [dict(zip(("user", "item", "time"), row, strict=True)) for row in ROWS]
    content = b"\n".join([json.dumps(record).encode() for record in (*good, *records)] + lines)
    with scratch() as folder:
        read_tables(
            folder,
            "jsonl",
            content,
            json.dumps({"item": "A", "title": title, "price": title, "categories": title}).encode(),
        )


# Tables in other dialects

IDS = st.text("abAB019é;,|'\"\\ ", min_size=1, max_size=4).filter(str.strip)
TITLES = st.text("abé;,|'\"\\ \n>", max_size=8)
MOMENTS = st.integers(1_000_000_000, 2_000_000_000)
TIMES: list[tuple[dict[str, str], Callable[[int], str]]] = [
    ({}, str),
    ({"time_unit": "ms"}, lambda time: f"{time}000"),
    ({"time_unit": "s"}, lambda time: f"{time}.0"),
    (
        {"time_format": "%d.%m.%Y %H:%M:%S"},
        lambda time: datetime.datetime.fromtimestamp(time, datetime.UTC).strftime("%d.%m.%Y %H:%M:%S"),
    ),
]


def written(rows: list[tuple[Any, ...]], head: tuple[str, ...], options: dict[str, Any]) -> bytes:
    """Rows as a table of text in the dialect that options of tables describe."""
    rows = [head, *rows] if options.get("header", True) else rows
    separator, escape = options.get("separator", ","), options.get("escape")
    if len(separator) > 1:
        text = "".join(separator.join(map(str, row)) + "\n" for row in rows)
    else:
        sink = io.StringIO()
        csv.writer(
            sink, delimiter=separator, quotechar=options.get("quote", '"'), escapechar=escape,
            doublequote=escape is None, quoting=csv.QUOTE_ALL, lineterminator="\n",
        ).writerows(rows)  # fmt: skip
        text = sink.getvalue()
    return text.encode(options.get("encoding", "utf-8"))


@FUZZ
@given(st.data())
def test_a_table_in_any_dialect_gives_what_plain_csv_gives(data: st.DataObject) -> None:
    options = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "separator": st.sampled_from([";", "|", "\t", "::"]),
                "encoding": st.sampled_from(["latin-1", "cp1252", "utf-16", "utf-16-be", "utf-8-sig"]),
                "header": st.booleans(),
                "quote": st.just("'"),
                "escape": st.just("\\"),
                "decimal_comma": st.booleans(),
            },
        )
    )
    options |= {"quote": '"'} if options.get("separator") == "\t" and "quote" not in options else {}
    how, as_text = data.draw(st.sampled_from(TIMES))
    is_bare = options.get("separator") == "::"
    users = data.draw(st.lists(IDS, min_size=1, max_size=3, unique_by=str.strip))
    row = st.tuples(st.sampled_from(users), IDS, MOMENTS, st.integers(1, 5), st.sampled_from(["buy", "it's"]))
    rows = data.draw(st.lists(row, max_size=6)) + [(users[0], f"{n}", 1_500_000_000 + n, 5, "buy") for n in range(3)]
    prices = st.sampled_from([None, 0.5, 12.0, 1299.25])
    goods = [(item, data.draw(TITLES), data.draw(prices)) for item in dict.fromkeys(row[1] for row in rows)]
    if is_bare:
        goods = [(item, title.replace("\n", " "), price) for item, title, price in goods]
    columns = "user", "item", "time", "stars", "event"
    names = dict(zip(columns, map(str, range(1, 6)) if options.get("header") is False else columns, strict=True))
    named = {f"{column}_column": names[column] for column in columns[:3]}
    filters, kept = data.draw(
        st.sampled_from(
            [
                ({}, rows),
                ({"rating_column": names["stars"], "min_rating": 3}, [row for row in rows if row[3] >= 3]),
                ({"where": f"\"{names['event']}\" = 'it''s'"}, [row for row in rows if row[4] == "it's"]),
            ]
        )
    )
    if options.get("header") is False:
        named |= {"items_item_column": "1", "title_column": "2", "price_column": "3"}

    def price(value: float | None) -> str:
        text = "" if value is None else f"{value:,.2f}"
        return text.translate(str.maketrans(",.", ".,")) if options.get("decimal_comma") else text

    with scratch() as folder:
        head, other = ("item", "title", "price"), [(item, title, price(cost)) for item, title, cost in goods]
        plain = [(item, title, "" if cost is None else cost) for item, title, cost in goods]
        (folder / "plain.csv").write_bytes(written([row[:3] for row in kept], columns[:3], {}))
        (folder / "goods.csv").write_bytes(written(plain, head, {}))
        (folder / "orders.csv").write_bytes(
            written([(user, item, as_text(time), *rest) for user, item, time, *rest in rows], columns, options)
        )
        (folder / "items.csv").write_bytes(written(other, head, options))
        try:
            expected = prepare(TablesDataset(folder / "plain.csv", folder / "goods.csv"), folder / "expected")
        except TigerrecError:
            expected = None
        dataset = TablesDataset(
            folder / "orders.csv", folder / "items.csv", max_dropped=0.0, **options, **how, **filters, **named
        )
        if expected is None:
            with pytest.raises(TigerrecError, match="Nothing is left"):
                prepare(dataset, folder / "found")
            return
        found = prepare(dataset, folder / "found")
        for name in ("items.parquet", "users.parquet", "interactions.parquet"):
            assert pq.read_table(found / name).equals(pq.read_table(expected / name)), name


CONDITIONS = ["1 =", "time > 5", "item LIKE '%'", "nothing", "true) OR (true", "1; DROP TABLE lines", "(SELECT 1)"]


@FUZZ
@given(st.data())
def test_any_bytes_under_any_options_are_read_or_refused(data: st.DataObject) -> None:
    options = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "separator": st.text(max_size=2),
                "encoding": st.sampled_from(["latin-1", "utf-16", "utf-7", "hex", "idna", "punycode", "nosuch", "\0"]),
                "header": st.booleans(),
                "quote": st.text(max_size=1),
                "escape": st.text(min_size=1, max_size=1),
                "decimal_comma": st.booleans(),
                "time_format": st.sampled_from(["%d.%m.%Y", "%", "%Q", "", "%Y%", "'", "%s"]),
                "time_unit": st.sampled_from(["s", "ms", "us", "ns"]),
                "where": st.sampled_from(CONDITIONS) | WORDS,
                "rating_column": st.just("item"),
                "min_rating": st.floats(-5, 5),
            },
        )
    )
    rows = delimited([("user", "item", "time"), *ROWS], data.draw(st.sampled_from([",", ";", "\t"])))
    content = data.draw(st.binary(max_size=60) | mutated(rows) | st.sampled_from(HOSTILE_LINES))
    kind = data.draw(st.sampled_from(["csv", "tsv", "jsonl", "json", "dat", "csv.zst", "csv.bz2", "zip"]))
    names = {"user_column": "1", "item_column": "2", "time_column": "3"} if options.get("header") is False else {}
    with scratch() as folder:
        (folder / f"orders.{kind}").write_bytes(content)
        dataset = TablesDataset(folder / f"orders.{kind}", max_dropped=1.0, **options, **names)
        try:
            check_prepared(read(dataset), prepare(dataset, folder / "out"))
        except TigerrecError as error:
            refusal(error)


def parquet(columns: dict[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def unpickling_parquet(table: pa.Table) -> bytes:
    """The table with a column of the extension type whose metadata pyarrow once unpickled (CVE-2023-47248)."""
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": PICKLE}
    field = pa.field(table.schema[0].name, table.schema[0].type, metadata=metadata)
    return parquet(table.set_column(0, field, table[0]))


ODD_COLUMNS = [
    pa.array(["u", "v", "w"]),
    pa.array([1, 2, 3]),
    pa.array([1.5, float("nan"), None]),
    pa.array([None, None, None]),
    pa.array([True, False, None]),
    pa.array([b"\xff", b"u", b"v"]),
    pa.array([[1], None, [2, 3]]),
    pa.array([{"a": 1}, {"a": 2}, None]),
    pa.array([2**60] * 3, pa.timestamp("us")),
    pa.array([10**8] * 3, pa.date32()),
    pa.array([1, 2, 3], pa.timestamp("us", tz="Mars/Olympus")),
    pa.array([-(2**62)] * 3, pa.duration("s")),
    pa.array(["u", "u", "v"]).dictionary_encode(),
    pa.array([1, 2, 3], pa.decimal128(5, 2)),
    pa.array([1, 2, 3], pa.time32("s")),
    pa.nulls(3, pa.large_string()),
    pa.StringArray.from_buffers(
        3, pa.py_buffer(np.array([0, 1, 2, 3], np.int32).tobytes()), pa.py_buffer(b"\xff\xfe\xfd")
    ),
]


@FUZZ
@given(st.data())
def test_parquet_tables_are_read_or_refused(data: st.DataObject) -> None:
    good = {"user": ["u", "u", "u"], "item": ["A", "B", "C"], "time": [1, 2, 3]}
    name, column = data.draw(st.sampled_from(list(good))), data.draw(st.sampled_from(ODD_COLUMNS))
    content = data.draw(st.sampled_from([parquet(good | {name: column}), unpickling_parquet(pa.table(good))]))
    content = data.draw(st.just(content) | mutated(content))
    items = parquet(
        {"item": ["A", "B", "C"]}
        | dict.fromkeys(("title", "price", "categories"), data.draw(st.sampled_from(ODD_COLUMNS)))
    )
    with scratch() as folder:
        read_tables(folder, "parquet", content, items)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, kind: str) -> None:
    table = pa.Table.from_arrays(
        [pa.array(["u"]), pa.array(["v"]), pa.array(["A"]), pa.array([1])], ["user", "user", "item", "time"]
    )
    path = tmp_path / f"orders.{kind}"
    path.write_bytes(parquet(table) if kind == "parquet" else b"user,user,item,time\nu,v,A,1\n")
    with pytest.raises(TigerrecError, match="more than one column user"):
        read(TablesDataset(path))


ZIPPED = gzip.compress(b"\n".join(GOOD) + b"\n", mtime=0)


@FUZZ
@given(mutated(ZIPPED) | st.binary(max_size=40) | st.binary(max_size=20).map(lambda more: ZIPPED + more))
def test_gzip_containers_are_read_whole_or_refused(content: bytes) -> None:
    with scratch() as folder:
        (folder / "reviews.json.gz").write_bytes(content)
        (folder / "meta.json").write_bytes(ITEM)
        dataset = AmazonReviews(
            folder, "reviews.json.gz", "meta.json", min_user_interactions=0, min_item_interactions=0
        )
        try:
            assert read(dataset).item_ids == ["A", "B", "C"]
        except TigerrecError as error:
            refusal(error)


# Manifests

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | WORDS
JSON_VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=5
)
ENTRIES = st.dictionaries(st.sampled_from(["sha256", "bytes"]), JSON_VALUES)
FILE_NAMES = st.sampled_from(["../x", "/x", "a\nb", ".", "x" * 300, "\udcff", "facts.json"])


def some_manifest(folder: Path) -> dict[str, Any]:
    with writing(folder, "embed", {"seed": 0}) as files:
        files.json("facts.json", {})
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    return manifest | {"provenance": {"seconds": 1.0}}


@FUZZ
@given(st.data())
def test_a_manifest_is_one_or_is_refused(data: st.DataObject) -> None:
    with scratch() as folder:
        manifest = some_manifest(folder)
        entry = manifest["files"]["facts.json"]
        changed = data.draw(
            st.binary(max_size=40)
            | st.sampled_from(
                [b"", b"null", b"[" * 100_000, b'{"files":' * 50_000, b"9" * 10_000, b'{"a": NaN}', PICKLE]
            )
            | mutated(json.dumps(manifest).encode())
            | JSON_VALUES.map(lambda value: json.dumps(value).encode())
            | st.tuples(st.sampled_from(sorted(manifest)), JSON_VALUES).map(
                lambda pair: json.dumps(manifest | {pair[0]: pair[1]}).encode()
            )
            | st.tuples(
                st.sampled_from(["../x", "/x", "a\nb", ".", "x" * 300, "\udcff", "facts.json"]),
                st.dictionaries(st.sampled_from(["sha256", "bytes"]), JSON_VALUES),
            ).map(lambda pair: json.dumps(sealed(manifest | {"files": {pair[0]: entry | pair[1]}})).encode())
        )
        (folder / MANIFEST).write_bytes(changed)
        for read in (read_manifest, lambda folder: open_stage(folder, "embed")):
            try:
                assert isinstance(read(folder), Manifest)
            except ArtifactError as error:
                refusal(error)


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest that agrees with its own content digest, where that can be made."""
    with contextlib.suppress(ValueError):
        return manifest | {"content": content_digest(manifest["files"])}
    return manifest


# Artefacts of finished stages

CONFIG = EvaluateConfig(device="cpu")
TOKENIZE = TokenizeConfig(ResidualKMeans(levels=2, codebook_size=12, init="kmeans"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that reads items, and an export of one whose items share ids."""
    root = tmp_path_factory.mktemp("finished")
    folders = build_embedded_run(root / "run", history="items")
    keeping = build_embedded_run(root / "keeping", collisions="keep")
    return {
        "root": root,
        "embed": folders["tokenize"].parent,
        **folders,
        "export": export(keeping["train"], root / "exported"),
    }


def recommended(folder: Path) -> Any:
    return Recommender.from_pretrained(folder, "cpu").recommend([f"{number:010d}" for number in (3, 7, 1)], k=5)


def exported(run: dict[str, Path]) -> dict[str, bytes]:
    out = export(run["train"], run["root"] / "out")
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != MANIFEST}


def evaluated(run: dict[str, Path]) -> bytes:
    out = evaluate(run["prepare"], run["tokenize"], run["train"], CONFIG, run["root"] / "evaluated")
    return (out / "recommendations.parquet").read_bytes() + (out / "metrics.json").read_bytes()


def arrays_of(*values: Any) -> list[Any]:
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]


CONSUMERS: dict[str, Callable[[dict[str, Path]], Any]] = {
    "load_histories": lambda run: arrays_of(*vars(load_histories(run["prepare"])).values()),
    "load_embeddings": lambda run: load_embeddings(run["embed"]).tolist(),
    "tokenize": lambda run: (
        tokenize(run["embed"], TOKENIZE, run["root"] / "tokenized") / "semantic_ids.parquet"
    ).read_bytes(),
    "load_semantic_ids": lambda run: arrays_of(*vars(load_semantic_ids(run["tokenize"])).values()),
    "load_tokenizer": lambda run: encode_items(run["tokenize"], np.eye(8, dtype=np.float32)).tolist(),
    "load_inputs": lambda run: [
        arrays_of(*vars(part).values()) for part in load_inputs(run["prepare"], run["tokenize"])
    ],
    "from_pretrained": lambda run: recommended(run["train"]),
    "from_pretrained export": lambda run: recommended(run["export"]),
    "export": exported,
    "evaluate": evaluated,
}
READ_BY = {
    ("embed", "embeddings.safetensors"): ["tokenize"],
    ("prepare", "interactions.parquet"): ["load_histories", "load_inputs", "evaluate"],
    ("prepare", "items.parquet"): ["load_histories", "from_pretrained", "export"],
    ("prepare", "stats.json"): ["load_histories", "export"],
    ("tokenize", "semantic_ids.parquet"): ["load_inputs", "from_pretrained", "export", "evaluate"],
    ("tokenize", "tokenizer.json"): ["load_semantic_ids", "load_tokenizer"],
    ("tokenize", "tokenizer.safetensors"): ["load_tokenizer", "export"],
    ("train", "config.json"): ["from_pretrained"],
    ("train", "generation_config.json"): ["from_pretrained"],
    ("train", "model.safetensors"): ["from_pretrained", "export", "evaluate"],
    ("train", "input_module.safetensors"): ["from_pretrained", "export"],
    ("export", "popularity.safetensors"): ["from_pretrained export"],
    ("export", "items.parquet"): ["from_pretrained export"],
    ("export", "model.safetensors"): ["from_pretrained export"],
}
VALID = {"items.parquet": ("title", "text")}  # columns whose values are free
UNREADABLE = {
    "random": bytes(range(256)) * 4,
    "empty": b"",
    "pickle": PICKLE,
    "json null": b"null",
    "deep": b"[" * 100_000,
    "gzip": ZIPPED,
}


def wrong_tables(path: Path) -> Iterator[tuple[str, bytes]]:
    table = pq.read_table(path)
    yield "unpickling", unpickling_parquet(table)
    for what, other in (
        ("reversed", table[::-1]),
        ("shorter", table[:-1]),
        ("empty", table[:0]),
        ("doubled", pa.concat_tables([table, table])),
    ):
        yield what, parquet(other)
    swapped = table.take([1, 0, *range(2, len(table))])
    yield "swapped", parquet(swapped)
    if "timestamp" in table.column_names:
        yield (
            "swapped at one time",
            parquet(
                swapped.set_column(
                    table.column_names.index("timestamp"), "timestamp", pa.array(np.zeros(len(table), np.int64))
                )
            ),
        )
    twice = table.take([0, 0, *range(2, len(table))])
    yield "first row twice, under two numbers", parquet(twice.set_column(0, table.column_names[0], table[0]))
    for place, name in enumerate(table.column_names):
        if pa.types.is_string(table[name].type):
            content = pa.array(
                [b"\xff" if row == 2 else str(value).encode() for row, value in enumerate(table[name].to_pylist())]
            )
            invalid = pa.StringArray.from_buffers(len(table), *content.buffers()[1:])
            yield f"{name} not UTF-8", parquet(table.set_column(place, name, invalid))
        if name == "text":
            continue
        if name not in VALID.get(path.name, ()):
            values = table[name].to_pylist()
            for at in (0, len(table) // 2):
                holey = pa.array([*values[:at], None, *values[at + 1 :]], table[name].type)
                yield f"{name} null at {at}", parquet(table.set_column(place, name, holey))
        yield f"no {name}", parquet(table.drop_columns([name]))
        yield (
            f"{name} lists",
            parquet(table.set_column(place, name, pa.array([[value] for value in table[name].to_pylist()]))),
        )
        yield f"two {name}", parquet(table.append_column(name, table[name]))
        if pa.types.is_integer(table[name].type):
            values = table[name].to_numpy()
            for kind in ("int64" if values.dtype == np.int32 else "int32", "float64", "string"):
                yield f"{name} {kind}", parquet(table.set_column(place, name, table[name].cast(kind)))
            for value in (-1, 2**31 - 1):
                changed = values.copy()
                changed[len(changed) // 2] = value
                yield f"{name} {value}", parquet(table.set_column(place, name, pa.array(changed)))


def wrong_arrays(path: Path) -> Iterator[tuple[str, bytes]]:
    arrays = load_file(path)

    def packed(changed: dict[str, np.ndarray]) -> bytes:
        with scratch() as folder:
            save_file({name: np.ascontiguousarray(array) for name, array in changed.items()}, folder / "x")
            return (folder / "x").read_bytes()

    yield "surplus", packed(arrays | {"surplus": np.zeros(3)})
    for name in sorted(arrays)[:4]:
        array = arrays[name]
        yield f"no {name}", packed({key: value for key, value in arrays.items() if key != name})
        yield f"{name} flat", packed(arrays | {name: array.reshape(1, -1) if array.ndim == 1 else array.ravel()})
        if path.name != "tokenizer.safetensors":  # whose types and values are a tokenizer's own affair
            yield f"{name} int32", packed(arrays | {name: array.astype(np.int32)})
        yield f"{name} longer", packed(arrays | {name: np.concatenate([array, array], axis=-1)})
        yield f"{name} negative", packed(arrays | {name: array - 1000} if array.dtype.kind == "i" else arrays)
        if array.dtype.kind == "f":
            for value in (np.nan, np.inf):
                changed = array.copy()
                changed.flat[-1] = value
                yield f"{name} {value}", packed(arrays | {name: changed})


ODD_JSON = [
    None,
    "x",
    "os.system",
    -1,
    0,
    1.5,
    10**12,
    int("9" * 40),
    True,
    [],
    [1, "x"],
    {},
    {"_target_": "os.system"},
    "${oc.env:HOME}",
    [10**9] * 3,
]


def wrong_json(path: Path) -> Iterator[tuple[str, bytes]]:
    facts = json.loads(path.read_bytes())
    yield (
        "auto_map",
        json.dumps(facts | {"auto_map": {"AutoModel": "canary.Canary"}, "trust_remote_code": True}).encode(),
    )
    yield "quantization_config", json.dumps(facts | {"quantization_config": {"quant_method": "canary"}}).encode()
    yield "NaN", json.dumps(facts | {"dim": float("nan"), "seed": float("inf")}).encode()
    for number, (name, value) in enumerate(facts.items()):
        for where, inner in [((), name)] + [((name,), key) for key in (value if isinstance(value, dict) else ())]:
            changed = json.loads(json.dumps(facts))
            holder = changed[where[0]] if where else changed
            for odd in ODD_JSON if len(facts) < 10 or where else ODD_JSON[number % 3 :: 3]:
                holder[inner] = odd
                yield f"{'.'.join((*where, inner))}={str(odd)[:20]}", json.dumps(changed).encode()
            del holder[inner]
            yield f"no {'.'.join((*where, inner))}", json.dumps(changed).encode()


def wrong_files(path: Path) -> Iterator[tuple[str, bytes]]:
    yield from UNREADABLE.items()
    whole = path.read_bytes()
    yield "cut", whole[: len(whole) // 2]
    yield from {".parquet": wrong_tables, ".safetensors": wrong_arrays, ".json": wrong_json}[path.suffix](path)


def replace_file(run: dict[str, Path], stage: str, name: str, content: bytes) -> None:
    """Put other bytes in the place of a file, in a way that all manifests agree."""
    path = run[stage] / name
    path.write_bytes(content)
    manifest = json.loads((run[stage] / MANIFEST).read_bytes())
    manifest["files"][name] |= {"sha256": sha256_file(path), "bytes": len(content)}
    manifest = sealed(manifest)
    (run[stage] / MANIFEST).write_text(json.dumps(manifest))
    for folder in {run[key] for key in ("embed", "tokenize", "train")} - {run[stage]}:
        other = json.loads((folder / MANIFEST).read_bytes())
        if stage in other["inputs"]:
            other["inputs"][stage]["content"] = manifest["content"]
            (folder / MANIFEST).write_text(json.dumps(other))


@pytest.fixture
def run(finished: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """A copy of the finished run to damage."""
    shutil.copytree(finished["root"], tmp_path / "copy")
    return {name: tmp_path / "copy" / folder.relative_to(finished["root"]) for name, folder in finished.items()}


@pytest.mark.parametrize(("stage", "name"), READ_BY, ids=["/".join(key) for key in READ_BY])
def test_a_file_that_all_manifests_vouch_for_is_what_it_should_be_or_is_refused(
    run: dict[str, Path], stage: str, name: str
) -> None:
    expected = {consumer: CONSUMERS[consumer](run) for consumer in READ_BY[stage, name]}
    refused, faults = 0, []
    for what, content in dict(wrong_files(run[stage] / name)).items():
        if stage == "embed" and "longer" in what:
            continue  # vectors of any length are vectors
        replace_file(run, stage, name, content)
        for consumer in READ_BY[stage, name]:
            try:
                found = CONSUMERS[consumer](run)
            except TigerrecError as error:
                refusal(error)
                refused += 1
                continue
            except Exception as error:
                faults.append(f"{consumer} of {name}, {what}: {error!r}")
                continue
            if consumer == "export":
                found, wanted = (
                    {key: value for key, value in files.items() if key not in (name, "README.md")}
                    for files in (found, expected[consumer])
                )
            else:
                wanted = expected[consumer]
            if found != wanted:
                faults.append(f"{consumer} of {name}, {what}: a silently wrong result")
    assert not faults, "\n".join(faults)
    assert refused > len(UNREADABLE)


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoModel": "canary.Canary"}},
        {"quantization_config": {}},
        {"model_type": "bert"},
        {"vocab_size": 99},
        {"is_encoder_decoder": False},
        {"d_model": 32},
        {"num_layers": 10**6},
        {"d_ff": 10**12},
        {"num_heads": 2.0},
        {"d_kv": True},
        {"feed_forward_proj": "gated-gelu"},
        {"tigerrec": {"level_sizes": [12, 12, 9999]}},
        {"tigerrec": {"code_sizes": [12, 13]}},
        {"tigerrec": {"max_items": "5"}},
        {"tigerrec": {"max_items": 10**9}},
    ],
    ids=str,
)
def test_a_config_of_another_model_is_refused(run: dict[str, Path], changes: dict[str, Any]) -> None:
    config = json.loads((run["train"] / "config.json").read_bytes())
    inner = {key: config[key] | value for key, value in changes.items() if key == "tigerrec"}
    replace_file(run, "train", "config.json", json.dumps(config | changes | inner).encode())
    with pytest.raises(ArtifactError, match=r"(config\.json|model\.safetensors) does not ") as caught:
        CONSUMERS["from_pretrained"](run)
    refusal(caught.value)


@pytest.mark.parametrize("consumer", ["load_embeddings", "tokenize"])
@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_vectors_that_are_none_are_refused(run: dict[str, Path], content: bytes, consumer: str) -> None:
    replace_file(run, "embed", "embeddings.safetensors", content)
    with pytest.raises(
        DamagedError,
        match=r"embeddings.* does not hold .*; run `tigerrec embed` .*`overwrite=embed` to build it again\.$",
    ):
        CONSUMERS[consumer](run)
