"""What the readers of raw data share: lines of files, checked ids and times, clean item fields, counts of losses."""

from __future__ import annotations

import contextlib
import gzip
import html
import json
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np

from tigerrec.data.base import DatasetError, RawItem

LINE_LIMIT = 10_000_000  # bytes
BOM = b"\xef\xbb\xbf"
Record = TypeVar("Record")


class Unreadable(Exception):
    """A line that has to be dropped; the text is the reason it is counted under."""


class Tally:
    """Counts of lines read, lines dropped by reason, and what was mended."""

    def __init__(self) -> None:
        self.lines = 0
        self.dropped: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()

    @contextlib.contextmanager
    def line(self, role: str) -> Iterator[None]:
        """Count one line of a role's file; an `Unreadable` raised inside drops it."""
        self.lines += 1
        try:
            yield
        except Unreadable as reason:
            self.dropped[f"{role}: {reason}"] += 1


def read_interactions(
    records: Iterable[Record], parse: Callable[[Record], tuple[str, str, int]], tally: Tally
) -> tuple[list[str], list[str], np.ndarray]:
    """The user ids, item ids and times (int64) of the records that can be parsed, in their order."""
    users, items, times = [], [], []
    for record in records:
        with tally.line("interactions"):
            user, item, time = parse(record)
            users.append(user)
            items.append(item)
            times.append(time)
    return users, items, np.array(times, dtype=np.int64)


def _read_lines(file: BinaryIO) -> Iterator[bytes | None]:
    mark = BOM
    while line := file.readline(LINE_LIMIT + 1):
        if len(line) > LINE_LIMIT and not line.endswith(b"\n"):
            while (rest := file.readline(LINE_LIMIT)) and not rest.endswith(b"\n"):
                pass
            yield None
        elif (text := line.removeprefix(mark)).strip():
            yield text
        mark = b""


def read_lines(path: Path, remedy: str, packed: bool | None = None) -> Iterator[bytes | None]:
    """The lines of a plain or gzip file to its very end, without empty ones and a byte order mark; one beyond 10 MB
    comes as None. `packed` says whether it is gzip; None: its name tells.

    Raises DatasetError, which ends in the `remedy`, if the file cannot be read, is a web page, no gzip file, cut short,
    or fails its checksum.
    """
    packed = path.suffix == ".gz" if packed is None else packed
    try:
        with open(path, "rb") as file:
            start = file.read(64).removeprefix(BOM).lstrip().lower()
            file.seek(0)
            if start.startswith((b"<!doctype", b"<html", b"<?xml")):
                raise DatasetError(f"{path} is a web page, not a data file; {remedy}.")
            if packed and not os.fstat(file.fileno()).st_size:
                raise EOFError
            with gzip.open(file) if packed else contextlib.nullcontext(file) as unpacked:
                yield from _read_lines(cast(BinaryIO, unpacked))
            return
    except gzip.BadGzipFile as error:
        fault = "fails its checksum" if "CRC" in str(error) or "length" in str(error) else "is not a gzip file"
    except EOFError:
        fault = "is cut short"
    except zlib.error:
        fault = "is damaged inside its gzip stream"
    except OSError as error:
        fault = f"cannot be read ({error.strerror or error})"
    raise DatasetError(f"{path} {fault}; {remedy}.")


def text_of(line: bytes | None) -> str:
    """A line as text. Raises Unreadable if it is too long or not UTF-8."""
    if line is None:
        raise Unreadable("longer than 10 MB")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise Unreadable("invalid UTF-8") from None


def json_record(text: str) -> dict[str, Any]:
    """A line of JSON as a dict. Raises Unreadable if it is not JSON, or no object."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable("not JSON") from None
    if not isinstance(record, dict):
        raise Unreadable("not a record of named values")
    return record


def checked_id(value: Any, name: str) -> str:
    """An id as text, exactly as given (leading zeros stay). Raises Unreadable if it is missing, empty, of another type,
    or has characters that no table can hold."""
    if value is None or value == "":
        raise Unreadable(f"no {name}")
    if not isinstance(value, str):
        raise Unreadable(f"{name} is not text")
    if "\0" in value or (not value.isascii() and value != value.encode("utf-8", "ignore").decode()):
        raise Unreadable(f"{name} holds invalid characters")
    if not value.strip():
        raise Unreadable(f"no {name}")
    return value


def checked_time(value: Any) -> int:
    """A number as int64; fractions are cut off downwards. Raises Unreadable if it is missing, no finite number, or
    beyond int64."""
    if value is None or value == "":
        raise Unreadable("no time")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not -(2**63) <= value < 2**63:  # neither NaN nor infinity is between the two
        raise Unreadable("time is not a number")
    return math.floor(value)


def clean(value: Any, name: str, tally: Tally) -> str | None:
    """A text field with HTML entities decoded and white space collapsed; None where nothing is left."""
    if value is None or value != value:  # NaN stands for "missing" in many tables
        return None
    if not isinstance(value, str):
        tally.noted[f"{name} is not text"] += 1
        return None
    text = html.unescape(value).replace("\0", " ").encode("utf-8", "ignore").decode()
    return " ".join(text.split()) or None


def parse_price(value: Any, tally: Tally) -> float | None:
    """A price as a finite number, from a number or a text like "$1,299.00"; None (noted) where it is neither."""
    if value is None or value == "" or value != value:
        return None
    try:
        text = re.sub(r"[$,\s]", "", value) if isinstance(value, str) else value
        price = math.nan if isinstance(value, bool) else float(text)
    except (TypeError, ValueError, OverflowError):
        price = math.nan
    if math.isfinite(price) and price >= 0:
        return price
    tally.noted["price is not a number"] += 1
    return None


def first_path(value: Any, separator: str | None) -> list[Any]:
    """The first category path of a list of paths, of a path, or of a text (split where a separator is given)."""
    if isinstance(value, str):
        return list(value.split(separator)) if separator else [value]
    if isinstance(value, (list, tuple)):
        nested = next((path for path in value if isinstance(path, (list, tuple))), None)
        return list(value if nested is None else nested)
    return []


def make_item(record: Mapping[str, Any], tally: Tally, separator: str | None = None) -> RawItem:
    """An item of a record's title, brand, categories and price; what is missing or of a wrong type is None or empty."""
    path = [clean(name, "category", tally) for name in first_path(record.get("categories"), separator)]
    return RawItem(
        clean(record.get("title"), "title", tally),
        clean(record.get("brand"), "brand", tally),
        [name for name in path if name],
        parse_price(record.get("price"), tally),
    )
