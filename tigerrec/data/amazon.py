"""The raw format of the Amazon product data, release of 2014 (McAuley et al., SIGIR 2015)."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Set
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from tigerrec.config import Share, options, shipped_folder
from tigerrec.data.base import AtLeastThree, Dataset, DatasetError, EqualTimes, RawItem
from tigerrec.data.columns import Columns
from tigerrec.data.download import download_missing
from tigerrec.data.formats import open_table
from tigerrec.data.interactions import Loader
from tigerrec.data.raw import Fault, Tally, Unreadable, further_texts, make_item, plain_id, record_of, text_of
from tigerrec.data.raw_files import read_lines
from tigerrec.data.table import EXCERPT, Dialect
from tigerrec.storage.fingerprints import added, not_identity

ASIN = re.compile(rb"""asin["']\s*:\s*["']([^"']+)["']""")  # begins with fixed letters: searched fast
REVIEWS = Columns("reviewerID", "asin", "unixReviewTime")
RATINGS = Columns("1", "2", "4")
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
        max_user_interactions: of a user with more, the last ones are kept; None: all.
        equal_times: how interactions of a user at the same time stand, in the order of the `file` or `reversed`.
        text_columns: further fields of metadata, as `description`, that go into the text of an item.
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
    max_user_interactions: AtLeastThree | None = added(None)
    equal_times: EqualTimes = added("file")
    text_columns: tuple[str, ...] = added(())

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
        if self.raw_dir is None and not folder.is_dir():
            raise DatasetError(
                f"The sample of tigerrec is not in {folder}; install tigerrec again, or give the folder that holds "
                f"{self.interactions} and {self.metadata} by `dataset.raw_dir=<folder>`."
            )
        if not folder.is_dir() and DOWNLOADS not in folder.parents:
            raise DatasetError(
                f"dataset.raw_dir={folder} is no folder; give the one that holds {self.interactions} and "
                f"{self.metadata}, or leave the option out to download them."
            )
        download_missing(folder, [self.interactions, self.metadata], self.url)
        return self.files()

    def load_interactions(self, loader: Loader) -> None:
        """Load the reviews or ratings. Raises DatasetError if a file is missing or damaged."""
        table = open_table(
            self.folder / self.interactions, Dialect(header=False, quote=""), self._remedy(self.interactions)
        )
        self._check_release(table.columns, self.interactions)
        is_ratings = ".csv" in self.interactions
        if is_ratings and len(table.columns) != 4:
            raise DatasetError(
                f"{self.folder / self.interactions} does not begin with a line user,item,rating,time; "
                f"{self._remedy(self.interactions)}."
            )
        loader.load(table, RATINGS if is_ratings else REVIEWS)

    def read_items(self, needed: Set[str], tally: Tally) -> Iterator[tuple[str, RawItem | None]]:
        """The first readable record of each needed item; lines of other items are not parsed. Raises DatasetError if
        the file is missing or damaged, or no item has a field of `text_columns`."""
        told: set[str] = set()
        unknown = set(self.text_columns)
        for number, line in read_lines(self.folder / self.metadata, self._remedy(self.metadata)):
            tally.lines["metadata"] += 1
            named = {item.decode(errors="replace") for item in ASIN.findall(line or b"")}
            if named and needed.isdisjoint(named) and not any("\\" in item for item in named):
                yield from ((item, None) for item in named)
                continue
            try:
                record = record_of(text_of(line))
                self._check_release(record, self.metadata)
                item = plain_id(record.get("asin"), "item")
            except Unreadable as reason:
                tally.drop("metadata", Fault(number, str(reason), repr(line)[:EXCERPT]))
                continue
            if item in told:
                tally.note("repeated metadata", item)
            if item not in needed or item in told:
                yield item, None
                continue
            told.add(item)
            unknown.difference_update(record)
            texts = further_texts(record, self.text_columns, tally)
            yield item, make_item({"categories": record.get("category")} | record, tally)._replace(texts=texts)

        if unknown:
            raise DatasetError(
                f"No item of {self.folder / self.metadata} has a field '{min(unknown)}'; correct or leave out "
                f"`dataset.text_columns=[{','.join(self.text_columns)}]`."
            )

    def _remedy(self, name: str) -> str:
        replace = "run the command again to download it" if self.url else f"put a whole {name} in its place"
        return f"delete it and {replace}, or try `dataset=sample`"

    def _check_release(self, columns: Container[str], name: str) -> None:
        """Raise DatasetError if a file has the columns of the release of 2023."""
        if "parent_asin" in columns:
            raise DatasetError(
                f"{self.folder / name} is of Amazon's release of 2023, and dataset.family=amazon reads that of 2014; "
                "read it by `dataset=amazon2023`, with the names of its columns if they differ."
            )
