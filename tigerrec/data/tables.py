"""Anyone's own data: a table of interactions and one of items, as CSV, JSON or Parquet with named columns."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tigerrec.config import Share, options
from tigerrec.data import raw
from tigerrec.data.base import Dataset, DatasetError, RawItem
from tigerrec.data.download import download_missing
from tigerrec.data.formats import SUFFIXES, WHOLE, Dialect, Table, is_table, open_table, shown
from tigerrec.data.interactions import Columns, Loader
from tigerrec.data.prepare import ITEM_FIELDS, REPAIRS
from tigerrec.data.raw_files import content_suffix, opened
from tigerrec.storage.fingerprints import added, not_identity

logger = logging.getLogger(__name__)

GIVE_BOTH = "`dataset.interactions=<file> dataset.items=<file> dataset.name=<shop>` (CSV, TSV, JSON Lines or Parquet)"


@options
class TablesDataset(Dataset):
    """A user's own interactions and, if there are any, items.

    Attributes:
        interactions: a table with one row an interaction: user, item, time; or a folder of such tables, or a pattern,
            whose files are read in the order of their names.
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
        decimal_comma: whether prices are written as 1.299,00.
        time_format: how dates are written, as `%d.%m.%Y`; None: numbers or ISO 8601.
        time_unit: of times that are numbers (s, ms, us, ns), to be kept as seconds; None: they stay as they are.
        rating_column, min_rating: interactions rated lower are left out.
        where: a condition in SQL; interactions without it are left out.
        raw_dir: the folder in which `interactions` and `items` stand; None: they are paths of their own.
        category: what stands for `{category}` in the names and addresses of files.
        interactions_url, items_url: where the files are downloaded from when they are missing; None to never download.
        expected: users, items and interactions of the known release, or nothing; other counts are warned of.
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
    decimal_comma: bool = added(False)
    time_format: str | None = added(None)
    time_unit: Literal["s", "ms", "us", "ns"] | None = added(None)
    rating_column: str | None = added(None)
    min_rating: float | None = added(None)
    where: str | None = added(None)
    raw_dir: Path | None = not_identity(default=None)
    category: str | None = not_identity(default=None)
    interactions_url: str | None = not_identity(default=None)
    items_url: str | None = not_identity(default=None)
    expected: tuple[int, ...] = not_identity(default=())

    def files(self) -> dict[str, Path]:
        """Role → file, of those that are named; of a folder or a pattern, each of its tables."""
        named = {"interactions": self.interactions, "items": self.items}
        any_name = bool(self.separator)
        parts = {role: _parts(self._path(path), any_name) for role, path in named.items() if path is not None}
        return {role: files[0] for role, files in parts.items() if len(files) == 1} | {
            f"{role}: {path.relative_to(os.path.commonpath([part.parent for part in files]))}": path
            for role, files in parts.items()
            if len(files) > 1
            for path in files
        }

    def _path(self, path: Path) -> Path:
        """A file or folder where it really is."""
        return (self.raw_dir or Path()).expanduser() / str(path.expanduser()).replace("{category}", self.category or "")

    def _tables_of(self, role: str, options: Sequence[str], any_of: Sequence[str] = ()) -> Iterator[tuple[str, Table]]:
        """The tables of a role by their own roles; of several, those that are empty are left out."""
        named = {name: path for name, path in self.sources().items() if name.partition(":")[0] == role}
        for name, path in named.items():
            table = open_table(path, self.dialect)
            if table.columns or table.fault or len(named) == 1:
                self._check_columns(table, options, any_of)
                yield name, table

    def sources(self) -> dict[str, Path]:
        """Role → existing file. Raises DatasetError if no file was named, or it does not exist, or its ending is
        unknown."""
        if self.interactions is None:
            raise DatasetError(f"dataset=tables needs your files; give {GIVE_BOTH}; `dataset.items` may be left out.")
        for path, url in ((self.interactions, self.interactions_url), (self.items, self.items_url)):
            if path is not None and (url or self.raw_dir):
                address = url and url.replace("{category}", self.category or "")
                download_missing(
                    self._path(path).parent, [self._path(path).name], address and address.rpartition("/")[0]
                )
        files = self.files()
        for name, path in files.items():
            role = name.partition(":")[0]
            if not path.is_file():
                raise DatasetError(
                    f"dataset.{role}={path} is no file, and no folder that holds tables; give {GIVE_BOTH}"
                    f"{', or, for files of text without an ending, `dataset.separator=`' if path.is_dir() else ''}."
                )
            if content_suffix(path) not in SUFFIXES and not self.separator:
                if path.suffix.lower() == ".zip":
                    with opened(path, WHOLE):  # says what is wrong with it
                        pass
                raise DatasetError(
                    f"dataset.{role}={path} is no known kind of table; it must end in {', '.join(SUFFIXES)}, all but "
                    "Parquet also packed (.gz, .bz2, .xz, .zst, .zip), or be text whose `dataset.separator=` you name."
                )
        return files

    @property
    def dialect(self) -> Dialect:
        """How the files of text are written."""
        return Dialect(self.separator, self.encoding, self.header, self.quote, self.escape)

    def load_interactions(self, loader: Loader) -> None:
        """Load the table of interactions. Raises DatasetError if a column is missing, or the file is damaged."""
        named = ["user_column", "item_column", *(["time_column"] if self.time_column else [])]
        if self.min_rating is not None and self.rating_column is None:
            raise DatasetError(
                "dataset.min_rating needs the column of ratings; name it by `dataset.rating_column=<column>`."
            )
        if self.rating_column is not None:
            named.append("rating_column")
        if self.time_column is None:
            logger.warning("no dataset.time_column: the order of the file stands for time")
        columns = Columns(
            self.user_column, self.item_column, self.time_column, self.time_format, self.time_unit,
            self.rating_column, self.min_rating, self.where,
        )  # fmt: skip
        for role, table in self._tables_of("interactions", named):
            loader.load(table, columns, role)

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
        for role, table in self._tables_of("items", ["items_item_column", *given], list(named.values())):
            columns = {field: column for field, column in named.items() if column in table.columns}
            yield from self._records(table, role, columns, needed, told, tally)

    def _check_columns(self, table: Table, options: Sequence[str], any_of: Sequence[str]) -> None:
        """Raise DatasetError if a table lacks a column named by `options`, or all of the columns `any_of`."""
        path, fault = table.path, table.fault
        if fault:
            raise DatasetError(
                f"{path} tells no columns: its line {fault.line:,} cannot be read "
                f"({': '.join(filter(None, (fault.reason, fault.text)))}); {REPAIRS.get(fault.reason, 'repair it')}."
            )
        if not table.columns:
            raise DatasetError(f"{path} is empty; give a file with data.")
        named = {option: getattr(self, option) for option in options}
        if "items_item_column" in named:
            named["items_item_column"] = self.items_item_column or self.item_column
        for option, name in named.items():
            if name not in table.columns:
                alike = [column for column in table.columns if column.strip().lower() == name.lower()]
                own = "<column>" if not alike else alike[0] if alike[0] == alike[0].strip() else repr(alike[0])
                given = f"dataset.{option}={own}"
                repair = f'`"{given}"`' if " " in own else f"`{given}`"
                advice = table.advice(list(named.values())) or f"name yours by {repair}"
                raise DatasetError(f"{path} has no column '{name}', only {shown(table.columns)}; {advice}.")
        if any_of and not set(any_of) & set(table.columns):
            raise DatasetError(
                f"{path} has none of the columns {', '.join(any_of)}, only {shown(table.columns)}; name yours, as "
                "`dataset.title_column=<column>`."
            )

    def _records(
        self, table: Table, role: str, columns: Mapping[str, str], needed: Set[str], told: set[str], tally: raw.Tally
    ) -> Iterator[tuple[str, RawItem | None]]:
        """The items of a table whose `columns` are the fields of an item → their names; those of `told` were told of
        before."""
        id_column = self.items_item_column or self.item_column
        for batch in table.batches([id_column, *columns.values()]):
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
                tally.noted["repeated items"] += item in told
                if item not in needed or item in told:
                    yield item, None
                    continue
                told.add(item)
                record = {field: row[column] for field, column in columns.items()}
                yield item, raw.make_item(record, tally, self.categories_separator, self.decimal_comma)


def _parts(path: Path, any_name: bool) -> list[Path]:
    """The tables of a folder, or, where there are none and files of `any_name` can be, all files; those of a pattern
    like `orders-*.parquet`; by name; else the file itself."""
    if path.is_dir():
        parts = [part.relative_to(path) for part in path.rglob("*") if part.is_file()]
        visible = [part for part in parts if not any(name.startswith((".", "_")) for name in part.parts)]
        shown = [part for part in visible if is_table(part)] or (visible if any_name else [])
        return [path / part for part in sorted(shown)] or [path]
    if glob.has_magic(str(path)) and not path.exists():
        return [Path(name) for name in sorted(glob.glob(str(path), recursive=True))] or [path]
    return [path]
