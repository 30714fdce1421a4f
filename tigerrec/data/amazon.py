"""The raw format of the Amazon product data, release of 2014 (McAuley et al., SIGIR 2015)."""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from tqdm import tqdm

from tigerrec.config import Share, options, shipped_folder
from tigerrec.data import raw
from tigerrec.data.base import Dataset, DatasetError, RawData, RawItem
from tigerrec.data.download import download_missing
from tigerrec.data.histories import SHORTEST_HISTORY
from tigerrec.storage.fingerprints import not_identity

ASIN = re.compile(rb"""asin["']\s*:\s*["']([^"']+)["']""")  # begins with fixed letters: searched fast


def parse_review(text: str) -> tuple[str, str, int]:
    """User, item and time of a review, one JSON record a line."""
    record = raw.json_record(text)
    return (
        raw.checked_id(record.get("reviewerID"), "user"),
        raw.checked_id(record.get("asin"), "item"),
        raw.checked_time(record.get("unixReviewTime")),
    )


def parse_rating(text: str) -> tuple[str, str, int]:
    """User, item and time of a rating, one line `user,item,rating,time`."""
    fields = text.rstrip("\r\n").split(",")
    if len(fields) != 4:
        raise raw.Unreadable("not user,item,rating,time")
    try:
        time: int | str = int(fields[3])
    except ValueError:
        time = fields[3]
    return raw.checked_id(fields[0], "user"), raw.checked_id(fields[1], "item"), raw.checked_time(time)


def parse_metadata(text: str) -> dict[str, Any]:
    """A record of the metadata: a Python literal (the 2014 release) or JSON (some mirrors); never executed."""
    try:
        record = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        try:
            record = raw.json_record(text)
        except raw.Unreadable:
            raise raw.Unreadable("neither a Python literal nor JSON") from None
    if not isinstance(record, dict):
        raise raw.Unreadable("not a record of named values")
    return record


DOWNLOADS = Path("data/raw")


@options
class AmazonReviews(Dataset):
    """A category of the 2014 release: interactions and item records.

    Attributes:
        raw_dir: the folder of the raw files; None for the sample that comes with tigerrec.
        interactions: the file of reviews (`.json.gz`, one JSON record a line) or ratings (`.csv`:
            user,item,rating,time).
        metadata: the file of item records.
        url: where the files are downloaded from when they are missing; None to never download.
        min_user_interactions: users with fewer are left out (0: no filter); repeated together with the item filter
            until nothing changes.
        min_item_interactions: items with fewer are left out (0: no filter).
        max_dropped: the largest share of unreadable lines that is put up with.
        expected: users, items and interactions of the known release; other counts are warned of.
    """

    family: ClassVar[str] = "amazon"

    raw_dir: Path | None = not_identity()
    interactions: str = not_identity()
    metadata: str = not_identity()
    url: str | None = not_identity(default=None)
    min_user_interactions: int = Field(default=5, ge=0)
    min_item_interactions: int = Field(default=5, ge=0)
    max_dropped: Share = not_identity(default=0.001)
    expected: tuple[int, ...] = not_identity(default=())

    def __post_init__(self) -> None:
        if len(self.expected) not in (0, 3):
            raise ValueError(f"expected must be [users, items, interactions] or [], got {list(self.expected)}")
        if not self.interactions.endswith((".json.gz", ".json", ".csv", ".csv.gz")):
            raise ValueError(f"interactions must end in .json.gz (reviews) or .csv (ratings), got {self.interactions}")

    def files(self) -> dict[str, Path]:
        """Role → raw file."""
        folder = self.folder
        return {"interactions": folder / self.interactions, "metadata": folder / self.metadata}

    @property
    def folder(self) -> Path:
        """The folder of the raw files."""
        return shipped_folder("sample", "data/sample") if self.raw_dir is None else self.raw_dir.expanduser()

    def sources(self) -> dict[str, Path]:
        """Role → existing raw file, downloaded where it was missing. Raises TigerrecError if a file is missing and
        cannot be downloaded."""
        folder = self.folder
        if not folder.is_dir() and DOWNLOADS not in folder.parents:
            raise DatasetError(
                f"dataset.raw_dir={folder} is no folder; give the one that holds {self.interactions} and "
                f"{self.metadata}, or leave the option out to download them."
            )
        download_missing(folder, [self.interactions, self.metadata], self.url)
        return self.files()

    def read(self) -> RawData:
        """The raw files, read to their end; metadata only of items that a user with enough interactions has. Raises
        DatasetError if a file is missing or damaged."""
        tally = raw.Tally()
        parse = parse_rating if ".csv" in self.interactions else parse_review
        lines = self._lines(self.interactions)
        users, items, times = raw.read_interactions(lines, lambda line: parse(raw.text_of(line)), tally)
        lengths, shortest = Counter(users), max(self.min_user_interactions, SHORTEST_HISTORY)
        needed = {item for user, item in zip(users, items, strict=True) if lengths[user] >= shortest}
        metadata = self._read_metadata(needed, tally)
        return RawData(users, items, times, metadata, dict(tally.dropped), tally.lines, dict(tally.noted))

    def _lines(self, name: str) -> Iterator[bytes | None]:
        replace = "run the command again to download it" if self.url else f"put a whole {name} in its place"
        lines = raw.read_lines(self.folder / name, f"delete it and {replace}, or try `dataset=sample`")
        yield from tqdm(lines, desc=name, unit=" lines", disable=None, leave=False)

    def _read_metadata(self, needed: set[str], tally: raw.Tally) -> dict[str, RawItem]:
        """The first readable record of each needed item; lines of other items are skipped unparsed."""
        by_id: dict[str, RawItem] = {}
        needed_bytes = {item.encode() for item in needed}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of odd backslashes in literals
            warnings.simplefilter("ignore", DeprecationWarning)
            for line in self._lines(self.metadata):
                with tally.line("metadata"):
                    named = ASIN.findall(line or b"")
                    if named and needed_bytes.isdisjoint(named) and not any(b"\\" in name for name in named):
                        continue
                    record = parse_metadata(raw.text_of(line))
                    item = raw.checked_id(record.get("asin"), "item")
                    if item in by_id:
                        tally.noted["repeated metadata"] += 1
                    elif item in needed:
                        by_id[item] = raw.make_item(record, tally)
        return by_id
