"""What a data set reads, as plain lists: the tables of the working database, brought back to Python."""

from __future__ import annotations

import dataclasses
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

from tigerrec.data.amazon import AmazonReviews
from tigerrec.data.arrange import arrange, ordered
from tigerrec.data.base import Dataset, RawItem
from tigerrec.data.columns import Columns
from tigerrec.data.interactions import Loader, working_database
from tigerrec.data.raw import Tally
from tigerrec.data.table import Batch, Table


@dataclasses.dataclass
class RawData:
    """The interactions that can be read, in their order, what was told of their items, and what was lost."""

    user_ids: list[str]
    item_ids: list[str]
    timestamps: list[int]
    nanos: list[int]
    items: dict[str, RawItem]
    tally: Tally

    @property
    def dropped(self) -> dict[str, int]:
        return {f"{role}: {reason}": count for (role, reason), count in self.tally.dropped.items()}

    @property
    def noted(self) -> dict[str, int]:
        return dict(+self.tally.noted)

    @property
    def lines(self) -> int:
        return self.tally.lines.total()


def read(dataset: Dataset) -> RawData:
    """Both kinds of files of a data set."""
    with tempfile.TemporaryDirectory() as folder, working_database(Path(folder) / "x") as database:
        tally = Tally()
        loader = Loader(database, tally)
        dataset.load_interactions(loader)
        loader.check_times("the test")
        rows = database.execute("SELECT user, item, seconds, nanos FROM interactions ORDER BY place").fetchall()
        users, items, times, nanos = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [], [])
        told = {item: record for item, record in dataset.read_items(set(items), tally) if record is not None}
        return RawData(users, items, times, nanos, told, tally)


def lines(rows: list[tuple[Any, ...]], head: list[str] | None, separator: str = ",") -> bytes:
    """The bytes of a table of text."""
    return "".join(separator.join(map(str, row)) + "\n" for row in ([head] if head else []) + rows).encode()


def write_amazon_2014(dataset: AmazonReviews, rows: Any, records: list[dict[str, Any]]) -> None:
    """Write both files of Amazon's release of 2014 with all its fields: reviews (user, item, time) as JSON, items as
    Python literals."""
    reviews = [
        {
            "reviewerID": user, "asin": item, "reviewerName": 'J. "Jo" O\'Neil', "helpful": [2, 3],
            "reviewText": "Fits well &amp; isn't heavy.\nÉxcellent", "overall": 5.0, "summary": "Good",
            "unixReviewTime": time, "reviewTime": "05 21, 2014",
        }
        for user, item, time in rows
    ]  # fmt: skip
    folder = dataset.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in ((dataset.interactions, map(json.dumps, reviews)), (dataset.metadata, map(repr, records))):
        (folder / name).write_bytes(gzip.compress("".join(f"{text}\n" for text in texts).encode()))


class Rows(Table):
    """A table of given rows: (user, item, time)."""

    def __init__(self, rows: Any) -> None:
        super().__init__(Path("rows"))
        self.columns, self.rows = ["user", "item", "time"], list(rows)

    def batches(self, columns: Any) -> Any:
        lists = [list(column) for column in zip(*self.rows, strict=True)]
        yield Batch(range(1, len(self.rows) + 1), dict(zip(self.columns, lists, strict=True)))


COLUMNS = Columns("user", "item", "time")


@dataclasses.dataclass
class Arranged:
    """What prepare makes of some rows."""

    users: list[int]
    items: list[int]
    timestamps: list[int]
    positions: list[int]
    user_ids: list[str]
    item_ids: list[str]
    stats: dict[str, Any]


def arranged(rows: Any, min_user: int = 0, min_item: int = 0) -> Arranged:
    """Some rows (user, item, time), numbered and in order."""
    with tempfile.TemporaryDirectory() as folder, working_database(Path(folder) / "x") as database:
        Loader(database, Tally()).load(Rows(rows), COLUMNS)
        stats = arrange(database, min_user, min_item)
        columns = [list(column) for column in zip(*database.execute(ordered(None)).fetchall(), strict=True)]
        users, items = (
            [name for (name,) in database.execute(f"SELECT name FROM {side}s ORDER BY number").fetchall()]
            for side in ("user", "item")
        )
        return Arranged(*columns, users, items, stats)
