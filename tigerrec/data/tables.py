"""Anyone's own data: a table of interactions and one of items, as CSV, JSON or Parquet with named columns."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tigerrec.config import Share, options
from tigerrec.data import raw
from tigerrec.data.base import AtLeastThree, Dataset, DatasetError, EqualTimes, RawItem
from tigerrec.data.columns import Columns
from tigerrec.data.databases import DATABASES, SQL, is_database, open_database
from tigerrec.data.download import download_from_hub, download_missing, hub_file, is_hub_address
from tigerrec.data.formats import SUFFIXES, is_table, open_table, parts_of
from tigerrec.data.interactions import Loader
from tigerrec.data.named_columns import check_columns
from tigerrec.data.parts import parts_by_place, parts_by_time
from tigerrec.data.prepare import ITEM_FIELDS
from tigerrec.data.raw_files import content_suffix, opened
from tigerrec.data.sequences import LineTable, SequenceTable
from tigerrec.data.table import WHOLE, Dialect, Table, shown
from tigerrec.storage.fingerprints import added, not_identity

logger = logging.getLogger(__name__)

VALIDATION, TEST = "interactions for validation", "interactions for test"  # roles of files
OPTIONS_OF = {VALIDATION: "validation_interactions", TEST: "test_interactions"}

HUB_FILES = Path("data/raw/hub")
GIVE_BOTH = (
    "`dataset.interactions=<file> dataset.items=<file> dataset.name=<shop>` (CSV, TSV, JSON Lines, Parquet, or "
    "RecBole's .inter and .item)"
)


@options
class TablesDataset(Dataset):
    """A user's own interactions and, if there are any, items.

    Attributes:
        interactions: a table with one row an interaction: user, item, time; or a folder of such tables, or a pattern,
            whose files are read in the order of their names; or a database of DuckDB or SQLite, or SQL (`.sql`) that
            DuckDB runs; or a data set of the Hugging Face Hub, `hf://owner/name`, downloaded once.
        items: a table with one row an item; None: item ids stand for titles.
        user_column, item_column, time_column: columns of `interactions`; without a time, the order of the file stands
            for it.
        items_item_column: the column of item ids in `items`; None: as `item_column`.
        title_column, brand_column, categories_column, price_column: columns of `items`; None: `title`, `brand`,
            `categories`, `price` where the file has them.
        categories_separator: between the levels of a category written as one text.
        min_user_interactions: users with fewer are left out (0: no filter, but three are always needed); repeated with
            the item filter until nothing changes.
        min_item_interactions: items with fewer are left out (0: no filter).
        max_dropped: the largest share of unreadable lines of a file that is put up with.
        separator: between the columns of a file of text, as `;` or `::`; None: as the file's ending tells.
        encoding: of files of text, as `latin-1`; UTF-16 is known by its mark.
        header: whether the first line names the columns; if not, they are numbered from 1.
        quote, escape: the marks of texts that hold the separator; None: `"` in CSV, none in TSV.
        items_separator, items_encoding, items_header: likewise of `items`; None: as of `interactions`.
        decimal_comma: whether prices are written as 1.299,00, ratings as 4,5.
        time_format: how dates are written, as `%d.%m.%Y`; None: numbers or ISO 8601.
        time_unit: of times that are numbers (s, ms, us, ns), to be kept as seconds; None: they stay as they are.
        rating_column, min_rating: interactions rated lower are left out.
        where: a condition in SQL; interactions without it are left out.
        interactions_table, items_table: the table of a database file, or a query of it.
        sequence_column: of `interactions` with one row a user, the list or text of the items, oldest first, instead of
            item and time; a file whose ending is of no table has lines `user item item …`.
        sequence_separator: between the items of a text; None: spaces.
        validation_interactions, test_interactions: tables like `interactions` with those for validation and test,
            which are none of training's; None: the last two of each user.
        validation_from, test_from: likewise, of one table, the time at which each begins, written as the table's.
        max_user_interactions: of a user with more, the last ones are kept; None: all.
        equal_times: how interactions of a user at the same time stand, in the order of the `file` or `reversed`.
        text_columns: further columns of `items`, as `description`, that go into the text of an item.
        raw_dir: the folder in which `interactions` and `items` stand; None: they are paths of their own.
        category: what stands for `{category}` in the names and addresses of files.
        interactions_url, items_url: where the files are downloaded from when they are missing; None to never download.
        expected: users, items and interactions of the known release, or nothing; other counts are warned of.
        engine: what reads and arranges the interactions, with the same result: DuckDB, or Spark, from Parquet alone.
        spark: properties of Spark's session by name, `spark.master` among them; None: as its `spark-defaults.conf`
            says.
    """

    family: ClassVar[str] = "tables"

    interactions: Path | None = not_identity(default=None)
    items: Path | None = not_identity(default=None)
    user_column: str = "user"
    item_column: str = "item"
    time_column: str | None = "time"
    items_item_column: str | None = None
    title_column: str | None = None
    brand_column: str | None = None
    categories_column: str | None = None
    price_column: str | None = None
    categories_separator: str = Field(default=">", min_length=1)
    min_user_interactions: int = Field(default=0, ge=0)
    min_item_interactions: int = Field(default=0, ge=0)
    max_dropped: Share = not_identity(default=0.001)
    separator: str | None = added(None)
    encoding: str = added("utf-8")
    header: bool = added(True)
    quote: Annotated[str, Field(max_length=1)] | None = added(None)
    escape: Annotated[str, Field(min_length=1, max_length=1)] | None = added(None)
    items_separator: str | None = added(None)
    items_encoding: str | None = added(None)
    items_header: bool | None = added(None)
    decimal_comma: bool = added(False)
    time_format: str | None = added(None)
    time_unit: Literal["s", "ms", "us", "ns"] | None = added(None)
    rating_column: str | None = added(None)
    min_rating: float | None = added(None)
    where: str | None = added(None)
    interactions_table: str | None = added(None)
    items_table: str | None = added(None)
    sequence_column: str | None = added(None)
    sequence_separator: str | None = added(None)
    validation_interactions: Path | None = not_identity(default=None)
    test_interactions: Path | None = not_identity(default=None)
    validation_from: str | int | None = added(None)
    test_from: str | int | None = added(None)
    max_user_interactions: AtLeastThree | None = added(None)
    equal_times: EqualTimes = added("file")
    text_columns: tuple[str, ...] = added(())
    raw_dir: Path | None = not_identity(default=None)
    category: str | None = not_identity(default=None)
    interactions_url: str | None = not_identity(default=None)
    items_url: str | None = not_identity(default=None)
    expected: tuple[int, ...] = not_identity(default=())
    engine: Literal["duckdb", "spark"] = not_identity(default="duckdb")
    spark: dict[str, str | int | float | bool] | None = not_identity(default=None)

    def files(self) -> dict[str, Path]:
        """Role → file, of those that are named; of a folder or a pattern, each of its tables."""
        parts = {
            role: parts_of(path, any_name=bool(self._dialect(role).separator)) for role, path in self._paths().items()
        }
        return {role: files[0] for role, files in parts.items() if len(files) == 1} | {
            f"{role}: {path.relative_to(os.path.commonpath([part.parent for part in files]))}": path
            for role, files in parts.items()
            if len(files) > 1
            for path in files
        }

    def named(self) -> dict[str, str]:
        """Role → the name of its file, folder or pattern."""
        return {role: path.name for role, path in self._paths().items()}

    def _paths(self) -> dict[str, Path]:
        """Role → the file, folder or pattern that is given."""
        given = {
            "interactions": self.interactions,
            VALIDATION: self.validation_interactions,
            TEST: self.test_interactions,
            "items": self.items,
        }
        return {role: self._path(path) for role, path in given.items() if path is not None}

    def _path(self, path: Path) -> Path:
        """A file or folder where it really is."""
        name = self._named(path.expanduser())
        if is_hub_address(name):
            return (self.raw_dir or HUB_FILES).expanduser() / hub_file(name)
        return (self.raw_dir or Path()).expanduser() / name

    def _named(self, path: Path | str) -> str:
        """A name or address with the category in its place."""
        return str(path).replace("{category}", self.category or "")

    def _tables_of(self, role: str, options: Sequence[str], any_of: Sequence[str] = ()) -> Iterator[tuple[str, Table]]:
        """The tables of a role by their own roles; of several, those that are empty are left out."""
        named = {name: path for name, path in self.sources().items() if name.partition(":")[0] == role}
        for name, path in named.items():
            table = self._open(path, "items" if role == "items" else "interactions")
            if table.columns or table.fault or len(named) == 1:
                columns = {option: getattr(self, option) for option in options}
                if "items_item_column" in columns:
                    columns["items_item_column"] = self.items_item_column or self.item_column
                check_columns(table, columns, any_of)
                yield name, table

    def sources(self) -> dict[str, Path]:
        """Role → existing file. Raises DatasetError if no file was named, or it does not exist, or its ending is
        unknown."""
        if self.interactions is None:
            raise DatasetError(f"No file of interactions was named; give {GIVE_BOTH}; `dataset.items` may be left out.")
        for path, url in ((self.interactions, self.interactions_url), (self.items, self.items_url)):
            if path is not None and is_hub_address(str(path)):
                download_from_hub(self._named(path), self._path(path))
            elif path is not None and (url or self.raw_dir):
                address = url and self._named(url)
                download_missing(
                    self._path(path).parent, [self._path(path).name], address and address.rpartition("/")[0]
                )
        files = self.files()
        for name, path in files.items():
            role = name.partition(":")[0]
            option = OPTIONS_OF.get(role, role)
            if not path.is_file():
                raise DatasetError(
                    f"dataset.{option}={path} is no file, and no folder that holds tables; give {GIVE_BOTH}"
                    f"{', or, for files of text without an ending, `dataset.separator=`' if path.is_dir() else ''}."
                )
            has_lines = role != "items" and self.sequence_column is not None
            is_known = content_suffix(path) in SUFFIXES or is_database(path) or has_lines
            if not is_known and not self._dialect(role).separator:
                if path.suffix.lower() == ".zip":
                    with opened(path, WHOLE):  # says what is wrong with it
                        pass
                raise DatasetError(
                    f"dataset.{option}={path} is no known kind of table; it must end in {', '.join(SUFFIXES)}, all but "
                    "Parquet also packed (.gz, .bz2, .xz, .zst, .zip), or "
                    f"{', '.join((*DATABASES, SQL))}, or be text whose `dataset.separator=` you name."
                )
            if self.engine == "spark" and role == "interactions" and path.suffix.lower() != ".parquet":
                raise DatasetError(
                    f"dataset.engine=spark reads Parquet alone, not {path}; convert it, or leave `dataset.engine=` out."
                )
        return files

    def _dialect(self, role: str) -> Dialect:
        """How the files of text of a role are written."""
        separator, encoding, header = self.separator, self.encoding, self.header
        if role == "items":
            separator, encoding = self.items_separator or separator, self.items_encoding or encoding
            header = header if self.items_header is None else self.items_header
        return Dialect(separator, encoding, header, self.quote, self.escape, "items_" if role == "items" else "")

    def load_interactions(self, loader: Loader) -> None:
        """Load the table of interactions. Raises DatasetError if a column is missing, or the file is damaged."""
        named = ["user_column", "item_column", *(["time_column"] if self.time_column else [])]
        if self.min_rating is not None and self.rating_column is None:
            raise DatasetError(
                "dataset.min_rating needs the column of ratings; name it by `dataset.rating_column=<column>`."
            )
        if self.equal_times == "reversed" and (self.sequence_column is not None or self.time_column is None):
            raise DatasetError(
                "dataset.equal_times=reversed needs times, and these data have none, only an order; take "
                "`dataset.equal_times=file`."
            )
        if self.sequence_column is not None:
            if self.test_interactions is not None or self.test_from is not None:
                raise DatasetError(
                    "dataset.sequence_column names histories without times, of which the last two items are for "
                    "validation and test; leave the split out."
                )
            self._load_sequences(loader)
            return
        if self.rating_column is not None:
            named.append("rating_column")
        if self.time_column is None:
            logger.warning("no dataset.time_column: the order of the file stands for time")
        columns = Columns(
            self.user_column, self.item_column, self.time_column, self.time_format, self.time_unit,
            self.rating_column, self.min_rating, self.where, self.decimal_comma,
        )  # fmt: skip
        self._check_split()
        before = []
        for role in ("interactions", VALIDATION, TEST):
            before.append(loader.before)
            for name, table in self._tables_of(role, named):
                unread = set(table.columns) - {getattr(self, option) for option in named}
                if role == "interactions" and unread and not self.where:
                    logger.info(
                        "columns of %s that are not read: %s (`dataset.rating_column=` with `dataset.min_rating=` "
                        "leaves low ratings out, `dataset.where=` whatever a condition says)",
                        table.path, shown([column for column in table.columns if column in unread]),
                    )  # fmt: skip
                loader.load(table, columns, name)
        if self.test_interactions is not None:
            loader.split = lambda _: parts_by_place(*before[1:])
        elif self.test_from is not None:
            loader.split = partial(
                parts_by_time, columns=columns, validation_from=str(self.validation_from), test_from=str(self.test_from)
            )

    def _check_split(self) -> None:
        """Raise DatasetError for half a split, two splits, or one by a time that the data do not have."""
        by_file = (self.validation_interactions is not None, self.test_interactions is not None)
        by_time = (self.validation_from is not None, self.test_from is not None)
        for given, pair in ((by_file, "validation_interactions and dataset.test_interactions"),
                            (by_time, "validation_from and dataset.test_from")):  # fmt: skip
            if any(given) and not all(given):
                raise DatasetError(
                    f"dataset.{pair} belong together, the one to choose by, the other to measure: give both."
                )
        if any(by_file) and any(by_time):
            raise DatasetError("dataset.test_interactions and dataset.test_from are two splits; leave one of them out.")
        if any(by_time) and self.time_column is None:
            raise DatasetError("dataset.test_from splits by time; name the times by `dataset.time_column=<column>`.")

    def _load_sequences(self, loader: Loader) -> None:
        if self.min_rating is not None:
            raise DatasetError(
                "dataset.min_rating needs a row an interaction, and dataset.sequence_column names one a user; leave "
                "one of them out."
            )
        user, sequence, item = self.user_column, str(self.sequence_column), self.item_column
        columns = Columns(user, item, None, where=self.where)
        for name, table in self._tables_of("interactions", ["user_column", "sequence_column"]):
            loader.load(SequenceTable(table, user, sequence, item, self.sequence_separator), columns, name)

    def read_items(self, needed: Set[str], tally: raw.Tally) -> Iterator[tuple[str, RawItem | None]]:
        """The table of items, if there is one; else ids stand for titles. Raises DatasetError as
        `load_interactions`."""
        if self.items is None:
            logger.warning("no dataset.items: item ids stand for titles, so text embeddings know little of the items")
            for item in needed:
                yield item, RawItem(item, None, [], None)
            return
        given = [f"{field}_column" for field in ITEM_FIELDS if getattr(self, f"{field}_column")]
        named = {field: getattr(self, f"{field}_column") or field for field in ITEM_FIELDS}
        told: set[str] = set()
        any_of = [*named.values(), *self.text_columns]
        for role, table in self._tables_of("items", ["items_item_column", *given], any_of):
            for column in self.text_columns:
                if column not in table.columns and column not in table.all_columns():
                    raise DatasetError(
                        f"{table.path} has no column '{column}', only {shown(table.columns)}; name yours by "
                        "`dataset.text_columns=[<column>]`."
                    )
            columns = {field: column for field, column in named.items() if column in table.columns or table.is_open}
            known = {self.items_item_column or self.item_column, *columns.values(), *self.text_columns}
            if unread := [name for name in table.columns if name not in known]:
                logger.info(
                    "columns of %s that are not read: %s (`dataset.text_columns=[<column>]` takes texts)",
                    table.path, shown(unread),
                )  # fmt: skip
            yield from self._records(table, role, columns, needed, told, tally)

    def _open(self, path: Path, role: str) -> Table:
        """The table in a file of a role, or in the database that it is."""
        option, name = f"dataset.{role}_table", getattr(self, f"{role}_table")
        if is_database(path):
            return open_database(path, name, option)
        if name is not None:
            raise DatasetError(f"{path} is no database; leave `{option}={name}` out, or give {', '.join(DATABASES)}.")
        if role == "interactions" and self.sequence_column is not None and not self.separator and not is_table(path):
            return LineTable(path, [self.user_column, self.sequence_column], self._dialect(role))
        return open_table(path, self._dialect(role))

    def _records(
        self, table: Table, role: str, columns: Mapping[str, str], needed: Set[str], told: set[str], tally: raw.Tally
    ) -> Iterator[tuple[str, RawItem | None]]:
        """The items of a table whose `columns` are the fields of an item → their names; those of `told` were told of
        before."""
        id_column = self.items_item_column or self.item_column
        is_utf_8 = self._dialect("items").encoding.lower().replace("-", "") == "utf8"
        for batch in table.batches([id_column, *columns.values(), *self.text_columns]):
            for fault in batch.faults:
                tally.lines[role] += fault.lines
                tally.drop(role, fault)
            for line, row in zip(batch.lines, batch.rows(), strict=True):
                tally.lines[role] += 1
                try:
                    item = raw.plain_id(row[id_column], "item")
                except raw.Unreadable as reason:
                    tally.drop(role, raw.Fault(line, str(reason)))
                    continue
                if item in told:
                    tally.note("repeated items", item)
                if item not in needed or item in told:
                    yield item, None
                    continue
                told.add(item)
                record = {field: row[column] for field, column in columns.items()}
                if not is_utf_8 and raw.UTF_8_MISREAD.search(" ".join(map(str, record.values()))):
                    tally.note("texts in UTF-8 that are read otherwise (`dataset.items_encoding=utf-8`)", item)
                told_of = raw.make_item(record, tally, self.categories_separator, self.decimal_comma)
                if self.text_columns:
                    told_of = told_of._replace(texts=raw.further_texts(row, self.text_columns, tally))
                yield item, told_of
