"""The raw Amazon format: what is read, what is dropped and counted, damaged files, downloads."""

from __future__ import annotations

import gzip
import http.server
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tigerrec.data.download
import tigerrec.data.raw_files
from tests.raw_data import read
from tigerrec.data.amazon import AmazonReviews
from tigerrec.data.base import DatasetError
from tigerrec.data.prepare import prepare
from tigerrec.storage.contracts import read_json, read_table


def review(user: Any, item: Any, time: Any = 0, **more: Any) -> bytes:
    return json.dumps({"reviewerID": user, "asin": item, "unixReviewTime": time, **more}).encode()


REVIEWS = [
    review("u1", "0205616461", 3),
    review("u1", "B1", 1),
    review("u1", "B2", 1),
    review("u2", "B2", 5),
    review("u2", "B1", 4),
    review("u2", "0205616461", 4),
]
METADATA = [
    b"{'asin': '0205616461', 'title': 'NA', 'price': 4.5, 'categories': [['Beauty', 'Bath &amp; Body'], ['Gifts']], "
    b"'related': {'also_bought': ['B1']}}",
    b"{'asin': 'B1', 'title': 'Men&#39;s   &quot;Caf\xc3\xa9&quot; Soap', 'brand': ''}",
    b"{'asin': 'B9', 'title': 'never bought', 'price': __import__('os')}",
    b"{'asin': 'B1', 'title': 'second row'}",
]


def write(folder: Path, reviews: list[bytes], metadata: list[bytes], **options: Any) -> AmazonReviews:
    folder.mkdir(exist_ok=True)
    (folder / "reviews.json.gz").write_bytes(gzip.compress(b"\n".join(reviews) + b"\n"))
    (folder / "meta.json.gz").write_bytes(gzip.compress(b"\n".join(metadata) + b"\n"))
    return AmazonReviews(
        folder, "reviews.json.gz", "meta.json.gz", **{"min_user_interactions": 0, "min_item_interactions": 0} | options
    )


def test_items_and_histories(tmp_path: Path) -> None:
    out = prepare(write(tmp_path / "raw", REVIEWS, METADATA), tmp_path / "out")
    items = read_table(out, "items.parquet").to_pylist()
    assert [item["item_id"] for item in items] == ["0205616461", "B1", "B2"]
    assert [item["text"] for item in items] == [
        "Title: NA; Categories: Beauty > Bath & Body; Price: 4.50.",
        'Title: Men\'s "Café" Soap.',
        "Item B2.",
    ]
    assert items[1] == {
        "item": 1,
        "item_id": "B1",
        "title": 'Men\'s "Café" Soap',
        "brand": None,
        "categories": [],
        "price": None,
        "text": items[1]["text"],
    }
    assert read_table(out, "interactions.parquet")["item"].to_pylist() == [1, 2, 0, 1, 0, 2]
    stats = read_json(out, "stats.json")
    assert (stats["dropped"], stats["noted"], stats["items_without_metadata"], stats["lines"]) == (
        {},
        {"repeated metadata": 1},
        1,
        10,
    )


def test_further_fields_join_the_text_and_must_exist(tmp_path: Path) -> None:
    metadata = [*METADATA[:1], b"{'asin': 'B1', 'title': 'Soap', 'description': 'Mild &amp; fine.'}"]
    dataset = write(tmp_path / "raw", REVIEWS, metadata, text_columns=("description",))
    out = prepare(dataset, tmp_path / "out")
    assert read_table(out, "items.parquet")["text"].to_pylist()[1] == "Title: Soap; Description: Mild & fine."
    with pytest.raises(
        DatasetError, match=r"has a field 'descr'; correct or leave out `dataset\.text_columns=\[descr\]`"
    ):
        prepare(write(tmp_path / "raw", REVIEWS, metadata, text_columns=("descr",)), tmp_path / "other")


def test_ratings_give_the_same_histories(tmp_path: Path) -> None:
    records = [json.loads(line) for line in REVIEWS]
    dataset = write(tmp_path / "raw", REVIEWS, METADATA)
    (tmp_path / "raw" / "ratings.csv").write_text(
        "".join(f"{r['reviewerID']},{r['asin']},5.0,{r['unixReviewTime']}\n" for r in records)
    )
    ratings = AmazonReviews(
        tmp_path / "raw", "ratings.csv", "meta.json.gz", min_user_interactions=0, min_item_interactions=0
    )
    first, second = prepare(dataset, tmp_path / "first"), prepare(ratings, tmp_path / "second")
    for name in ("items.parquet", "users.parquet", "interactions.parquet"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_every_bad_line_is_counted_by_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tigerrec.data.raw_files, "LINE_LIMIT", 1000)
    bad = {
        b'{"reviewerID": "u1", ': "neither JSON nor a Python literal",
        b"[1, 2]": "not a record of named values",
        b'{"reviewerID": "u1", "unixReviewTime": 1}': "no item",
        review("", "B1"): "no user",
        review("u1", True): "item is not valid text",
        review("u\0", "B1"): "user is not valid text",
        review("u\ud800", "B1"): "user is not valid text",
        review("u1", "B1", None): "no time",
        review("u1", "B1", "soon"): "time is neither a number nor an ISO date",
        review("u1", "B1", float("nan")): "time is neither a number nor an ISO date",
        review("u1", "B1", 2**63): "time is neither a number nor an ISO date",
        review("u1", "B1", True): "time is neither a number nor an ISO date",
        b'{"reviewerID": "\xff"}': "invalid UTF-8",
        review("u1", "B1", text="x" * 3000): "longer than 10 MB",
        b"[" * 900: "neither JSON nor a Python literal",
    }
    bad_metadata = {
        b"{'asin': 'B2', 'title': __import__('os').system('touch executed')}": "neither JSON nor a Python literal",
        b"{'asin': 'B2'": "neither JSON nor a Python literal",
        b"{'title': 'whose?'}": "no item",
        b"'B2'": "not a record of named values",
    }
    monkeypatch.chdir(tmp_path)
    reviews = [b"\xef\xbb\xbf" + REVIEWS[0], *bad, b"", *REVIEWS[1:]]
    dataset = write(
        tmp_path / "raw",
        reviews,
        [*bad_metadata, *METADATA, b'{"asin": "B2", "title": 12, "price": "$1,299.00", "categories": "Soap"}'],
    )
    raw = read(dataset)
    expected: dict[str, int] = {}
    for role, reasons in (("interactions", bad), ("metadata", bad_metadata)):
        for reason in reasons.values():
            expected[f"{role}: {reason}"] = expected.get(f"{role}: {reason}", 0) + 1
    assert raw.dropped == expected
    assert raw.user_ids == ["u1"] * 3 + ["u2"] * 3
    assert (raw.items["B2"].title, raw.items["B2"].price, raw.items["B2"].categories) == ("12", 1299.0, ["Soap"])
    assert raw.noted == {"repeated metadata": 1}
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("reviews", "metadata"),
    [
        ([b'{"user_id": "u", "parent_asin": "B1", "timestamp": 1588687728923}'], METADATA),
        (REVIEWS, [b'{"parent_asin": "B1", "title": "Soap"}']),
    ],
    ids=["reviews", "metadata"],
)
def test_files_of_the_release_of_2023_are_named(tmp_path: Path, reviews: list[bytes], metadata: list[bytes]) -> None:
    with pytest.raises(DatasetError, match=r"is of Amazon's release of 2023.*dataset=amazon2023"):
        prepare(write(tmp_path / "raw", reviews, metadata), tmp_path / "out")


@pytest.mark.parametrize("line", ["u;B1;5.0;1\n", "u,B1,1\n"])
def test_ratings_of_other_columns_are_refused(tmp_path: Path, line: str) -> None:
    write(tmp_path / "raw", REVIEWS, METADATA)
    (tmp_path / "raw" / "ratings.csv").write_text(line * 5)
    with pytest.raises(DatasetError, match="does not begin with a line user,item,rating,time"):
        prepare(AmazonReviews(tmp_path / "raw", "ratings.csv", "meta.json.gz"), tmp_path / "out")


def test_metadata_of_2018_and_ratings_of_2018(tmp_path: Path) -> None:
    metadata = [b'{"asin": "B1", "title": "Soap", "category": ["Beauty", "Bath"]}']
    assert read(write(tmp_path / "raw", REVIEWS, metadata)).items["B1"].categories == ["Beauty", "Bath"]
    (tmp_path / "raw" / "ratings.csv").write_text(
        "".join(f"B{item},u{user},5.0,{item}\n" for item in range(1, 5) for user in range(5))
    )
    metadata = b"".join(b"{'asin': 'B%d', 'title': 'Soap'}\n" % item for item in range(1, 5))
    (tmp_path / "raw" / "meta.json.gz").write_bytes(gzip.compress(metadata))
    dataset = AmazonReviews(
        tmp_path / "raw", "ratings.csv", "meta.json.gz", min_user_interactions=0, min_item_interactions=0
    )
    with pytest.raises(DatasetError, match=r"The column of users holds items: 4 of its ids.*dataset=amazon2018"):
        prepare(dataset, tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-20], "is cut short"),
        (lambda content: content[:-6] + bytes([content[-6] ^ 1]) + content[-5:], "fails its checksum"),
        (lambda content: content[:12] + b"\xff" * 30 + content[42:], "is damaged inside"),
        (lambda content: b"not found", "is not a gzip file"),
        (lambda content: b"\n<!DOCTYPE html><html></html>", "is a web page"),
    ],
)
def test_damaged_files_leave_nothing(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    dataset = write(tmp_path / "raw", REVIEWS * 50, METADATA)
    path = tmp_path / "raw" / "reviews.json.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DatasetError, match=rf"reviews\.json\.gz {message}.*dataset=sample"):
        prepare(dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_files_are_named_with_the_remedies(tmp_path: Path) -> None:
    dataset = AmazonReviews(tmp_path / "raw", "reviews_Beauty_5.json.gz", "meta_Beauty.json.gz")
    with pytest.raises(
        DatasetError,
        match=r"dataset\.raw_dir=.* is no folder; give the one that holds reviews_Beauty_5\.json\.gz and "
        r"meta_Beauty\.json\.gz",
    ):
        dataset.sources()
    dataset.raw_dir.mkdir()
    with pytest.raises(
        DatasetError, match=r"reviews_Beauty_5\.json\.gz and meta_Beauty\.json\.gz.*dataset\.raw_dir=.*dataset=sample"
    ):
        dataset.sources()


@pytest.mark.parametrize("options", [{"min_user_interactions": -1}, {"max_dropped": 2.0}, {"expected": (1,)}])
def test_values_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        AmazonReviews(tmp_path, "reviews.json.gz", "meta.json.gz", **options)


class Shop(http.server.BaseHTTPRequestHandler):
    """Serves `content` by name; `faults` (statuses, or "cut") are used up first; `ranges` records what was asked
    for."""

    content: dict[str, bytes]
    faults: list[int | str]
    ranges: list[str | None]

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.ranges.append(self.headers["Range"])
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, int) or name not in self.content:
            self.send_error(fault if isinstance(fault, int) else 404)
            return
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        body = self.content[name][start:]
        if start and not body:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.content[name])}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

    def log_message(self, *args: Any) -> None:
        pass


def test_download_survives_faults_and_resumes(shop: tuple[AmazonReviews, type[Shop]]) -> None:
    dataset, handler = shop
    handler.faults[:] = ["cut", 500]
    for role, path in dataset.sources().items():
        assert path.read_bytes() == handler.content[path.name], role
    half = len(handler.content["reviews.json.gz"]) // 2
    assert handler.ranges == [None, f"bytes={half}-", f"bytes={half}-", None]
    assert not list(dataset.raw_dir.glob("*.part"))
    dataset.sources()
    assert len(handler.ranges) == 4


def test_interrupted_download_keeps_the_part_and_ends_later(shop: tuple[AmazonReviews, type[Shop]]) -> None:
    dataset, handler = shop
    handler.faults[:] = ["cut", 503, 503]
    with pytest.raises(
        DatasetError, match=r"reviews\.json\.gz and meta\.json\.gz.*cannot be downloaded.*503.*dataset=sample"
    ):
        dataset.sources()
    assert [path.name for path in dataset.raw_dir.iterdir() if not path.name.startswith(".")] == [
        "reviews.json.gz.part"
    ]
    dataset.sources()
    assert len(read(dataset).user_ids) == 6


def test_a_whole_part_is_not_fetched_again(shop: tuple[AmazonReviews, type[Shop]]) -> None:
    dataset, handler = shop
    content = handler.content["reviews.json.gz"]
    (dataset.raw_dir / "reviews.json.gz.part").write_bytes(content)
    dataset.sources()
    assert (dataset.raw_dir / "reviews.json.gz").read_bytes() == content
    assert handler.ranges == [f"bytes={len(content)}-", None]


def test_a_part_of_another_file_is_started_anew(shop: tuple[AmazonReviews, type[Shop]]) -> None:
    dataset, _ = shop
    (dataset.raw_dir / "reviews.json.gz.part").write_bytes(b"something else")
    dataset.sources()
    assert len(read(dataset).user_ids) == 6


@pytest.mark.parametrize(
    "content",
    [b"<html>come back later</html>", gzip.compress(b"x" * 99, mtime=0)[:-4], None],
    ids=["html", "torn", "missing"],
)
def test_a_bad_download_never_takes_the_final_name(
    shop: tuple[AmazonReviews, type[Shop]], content: bytes | None
) -> None:
    dataset, handler = shop
    if content is None:
        del handler.content["reviews.json.gz"]
    else:
        handler.content["reviews.json.gz"] = content
    with pytest.raises(DatasetError, match="cannot be downloaded"):
        dataset.sources()
    assert not list(dataset.raw_dir.glob("*"))
