"""Which items may be recommended: what is in stock, what is not wanted, one category."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tigerrec import TigerrecError
from tigerrec.data.delimited import DELIMITED, SEPARATORS
from tigerrec.data.formats import is_table, read_rows
from tigerrec.data.raw import Fault, Unreadable, plain_id, text_of
from tigerrec.data.raw_files import content_suffix, read_lines
from tigerrec.data.table import WHOLE
from tigerrec.embed.base import few
from tigerrec.text import shortened

if TYPE_CHECKING:
    import pyarrow as pa

    from tigerrec.serving.catalogue import Catalogue

logger = logging.getLogger(__name__)

ITEM_IDS = ("item_id", "item")
MOST_COMPARED = 500  # names of categories, of which those alike are shown


class RuleError(TigerrecError):
    """A rule that cannot be read, or that leaves nothing to recommend."""


@dataclass(frozen=True)
class Rules:
    """Which items may be recommended; without any, all.

    Attributes:
        allow: none but these item ids; None: all.
        deny: none of these item ids.
        category: none but items that have this name among their categories.
    """

    allow: frozenset[str] | None = None
    deny: frozenset[str] = frozenset()
    category: str | None = None

    @staticmethod
    def of(allow: Iterable[str] | None = None, deny: Iterable[str] | None = (), category: str | None = None) -> Rules:
        """Rules of any collections of ids, which are taken as the data set's reader takes them. Raises RuleError if
        `allow` or `deny` is no collection of ids, or `category` no text."""
        if category is not None and not isinstance(category, str):
            raise RuleError(f"A rule takes one category by its name, not {shortened(repr(category))}.")
        return Rules(None if allow is None else _ids(allow), _ids(() if deny is None else deny), category)

    def n_unknown(self, known: Container[str]) -> int:
        """How many ids of the rules are none of the known ones."""
        return sum(item_id not in known for item_id in (*(self.allow or ()), *self.deny))

    def __bool__(self) -> bool:
        return self != Rules()


ALL = Rules()


def _ids(values: Iterable[str]) -> frozenset[str]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        told = f"the text {shortened(values)!r}" if isinstance(values, str) else shortened(repr(values))
        raise RuleError(f"A rule takes a list of item ids, not {told}.")
    try:
        return frozenset(plain_id(value.item() if isinstance(value, np.generic) else value, "id") for value in values)
    except Unreadable as reason:
        raise RuleError(f"A rule takes item ids, and one is none ({reason}); leave it out.") from None


def allowed_items(rules: Rules, catalogue: Catalogue) -> np.ndarray:
    """Which items of a catalogue some rules allow, bool (I,); ids that it does not have are counted in a warning.
    Raises RuleError if no item is left, or there is no such category."""
    numbers, n_items = catalogue.numbers, len(catalogue)
    allowed = np.ones(n_items, bool) if rules.allow is None else np.zeros(n_items, bool)
    for name, ids, value in (("allowed", rules.allow or (), True), ("denied", rules.deny, False)):
        known = [numbers[item_id] for item_id in ids if item_id in numbers]
        allowed[known] = value
        unknown = sorted(item_id for item_id in ids if item_id not in numbers) if len(known) < len(ids) else []
        if unknown:
            shown = few([shortened(repr(item_id)) for item_id in unknown])
            logger.warning("%d of %d %s item ids are not in the catalogue: %s", len(unknown), len(ids), name, shown)
    if rules.category is not None:
        allowed &= in_category(rules.category, catalogue.categories)
    if not allowed.any():
        told = [
            None if rules.allow is None else f"{len(rules.allow):,} allowed",
            f"{len(rules.deny):,} denied" if rules.deny else None,
            None if rules.category is None else f"category {shortened(rules.category)!r}",
        ]
        raise RuleError(
            f"The rules leave no item of the {n_items:,} ({', '.join(filter(None, told))}); give ids from the column "
            "item_id of items.parquet, or loosen a rule."
        )
    return allowed


def in_category(name: str, categories: pa.ChunkedArray) -> np.ndarray:
    """Which items have a name among their categories, bool (I,). Raises RuleError, which shows names alike, if none
    has."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = pa.concat_arrays(categories.chunks) if categories.num_chunks != 1 else categories.chunk(0)
    parents, names = pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists)
    found = np.zeros(len(lists), bool)
    found[parents[pc.equal(names, name).fill_null(False).to_numpy(zero_copy_only=False)]] = True
    if not found.any():
        known = [each for each in names.unique().to_pylist() if each][:MOST_COMPARED]
        alike = difflib.get_close_matches(name, known) or [each for each in known if each.lower() == name.lower()]
        shown = few([repr(each) for each in alike or sorted(known)])
        raise RuleError(
            f"No item has the category {shortened(name)!r}; "
            + (f"{'names alike' if alike else 'there are'}: {shown}." if known else "no item of the model has any.")
        )
    return found


def read_ids(path: Path, names: Sequence[str] = ITEM_IDS, may_be_empty: bool = False) -> frozenset[str]:
    """The ids of a file: of a table its column of one of some names or its only one, of other files a line each, but
    for a first one that is such a name. Raises TigerrecError if the file cannot be read, holds no id, unless it
    `may_be_empty`, or several columns of which none has such a name, also where they are separated otherwise than its
    ending says."""
    if not path.is_file():
        raise RuleError(f"{path} does not exist; give a file of ids.")
    ids = _of_table(path, names) if is_table(path) else _of_lines(path, names)
    if not ids and not may_be_empty:
        raise RuleError(f"{path} holds no id.")
    return frozenset(ids)


def _of_lines(path: Path, names: Sequence[str]) -> set[str]:
    """The lines of a file of text, but for a header."""
    try:
        texts = [text_of(line).strip() for _, line in read_lines(path, WHOLE)]
    except Unreadable as reason:
        raise RuleError(f"{path} cannot be read ({reason}); write it in UTF-8, an id a line.") from None
    return set(filter(None, texts[1:] if texts[:1] and texts[0] in names else texts))


def _of_table(path: Path, names: Sequence[str]) -> set[str]:
    """The ids in a table."""
    columns, rows = read_rows(path)
    if not columns:
        return set()
    column = next((name for name in names if name in columns), columns[0] if len(columns) == 1 else None)
    if column is None:
        raise RuleError(f"{path} has the columns {few(columns)}; name that of the ids `{names[0]}`.")
    ids = {column} if column not in names else set()  # a file without a header
    own = DELIMITED.get(content_suffix(path), "")
    found = next((written for mark, written in SEPARATORS.items() if ids and own and mark in column), None)
    if found:
        raise RuleError(
            f"The columns of {path} seem to be separated by '{found}'; separate them by '{SEPARATORS[own]}', as its "
            f"ending says, or, if these are ids, name their column `{names[0]}`."
        )
    n_lost = 0
    for row in rows:
        try:
            if isinstance(row, Fault):
                raise Unreadable(row.reason)
            ids.add(plain_id(row[column], "id"))
        except Unreadable:
            n_lost += 1
    if n_lost:
        raise RuleError(f"{n_lost:,} lines of {path} cannot be read; repair them, or leave them out.")
    return ids
