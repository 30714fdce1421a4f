"""What the readers of raw data share: records, checked ids, clean item fields, counts of losses."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import html
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

from tigerrec.data.base import RawItem

NOT_UTF_8 = "invalid UTF-8"
LONE_BREAK = "a line break outside quotes"
SEPARATED = "items that end in a comma or semicolon"
NOT_QUOTED = "text after a closing quote"
NOT_JSON = "neither JSON nor a Python literal"
NO_RECORD = "not a record of named values"
NOT_A_PRICE = "price is not a number"
EXAMPLES = 3
TEXT_LIMIT = 1_000  # characters of a further text of an item
SHOWN = 40  # characters of a value in a message
UTF_8_MISREAD = re.compile(r"[\xc2\xc3][\x80-\xbf]|â€")  # é or ’ in UTF-8 read as latin-1 or cp1252
CONTROLS = re.compile(r"[\x80-\x84\x86-\x9f]")  # all but the line break of C1
LITERAL = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(\s+(?=['"]))?""")
SPACES = "".join(filter(str.isspace, map(chr, range(0x3001))))  # all that str.strip takes away


class Unreadable(Exception):
    """A line that has to be dropped; the text is the reason it is counted under."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """A line that has to be dropped: its number from 1, the reason it is counted under, what it says, and how many
    lines are lost with it."""

    line: int
    reason: str
    text: str = ""
    lines: int = 1


class Tally:
    """Counts of lines read and dropped, by role and reason, with examples, and of what was mended."""

    def __init__(self) -> None:
        self.lines: Counter[str] = Counter()
        self.dropped: Counter[tuple[str, str]] = Counter()
        self.examples: dict[tuple[str, str], list[str]] = {}
        self.noted: Counter[str] = Counter()
        self.noted_examples: dict[str, list[str]] = {}

    def drop(self, role: str, fault: Fault) -> None:
        """Count a line of a role's file that has to be dropped."""
        self.dropped[role, fault.reason] += fault.lines
        examples = self.examples.setdefault((role, fault.reason), [])
        if len(examples) < EXAMPLES:
            examples.append(f"line {fault.line:,}" + (f": {fault.text}" if fault.text else ""))

    def note(self, what: str, value: Any) -> None:
        """Count a value that was left out or mended."""
        self.noted[what] += 1
        examples = self.noted_examples.setdefault(what, [])
        if len(examples) < EXAMPLES:
            examples.append(repr(value)[:SHOWN])


def text_of(line: bytes | None) -> str:
    """A line as text. Raises Unreadable if it is too long or not UTF-8."""
    if line is None:
        raise Unreadable("longer than 10 MB")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise Unreadable(NOT_UTF_8) from None


def record_of(text: str) -> dict[str, Any]:
    """A line of JSON, or a Python literal, as a dict; nothing is executed. Raises Unreadable if it is neither, or no
    record of named values."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd backslashes in literals
                record = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise Unreadable(NOT_JSON) from None
    if not isinstance(record, dict):
        raise Unreadable(NO_RECORD)
    return record


def _plain(value: Any) -> Any:
    """Whole numbers, bytes in UTF-8 and UUIDs as text; other values as they are."""
    if isinstance(value, str):
        return value
    if isinstance(value, (float, Decimal)) and math.isfinite(value) and value == int(value):
        return str(int(value))
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode("utf-8")
    return str(value) if type(value) in (int, UUID) else value


def plain_id(value: Any, name: str) -> str:
    """An id as text without outer spaces (leading zeros stay); whole numbers are taken too (12 and 12.0 become "12").
    Raises Unreadable if it is missing, empty, of another type, or has characters that no table can hold."""
    if type(value) is str and value.isascii() and "\0" not in value and (text := value.strip()):
        return text  # as nearly all are
    value = _plain(value)
    if value is None or value == "":
        raise Unreadable(f"no {name}")
    if not isinstance(value, str):
        raise Unreadable(f"{name} is not text")
    if "\0" in value or (not value.isascii() and value != value.encode("utf-8", "ignore").decode()):
        raise Unreadable(f"{name} holds invalid characters")
    if not value.strip():
        raise Unreadable(f"no {name}")
    return value.strip()


def clean(value: Any, name: str, tally: Tally) -> str | None:
    """A text field with HTML entities decoded and white space collapsed, a number as text; None where nothing is
    left."""
    if type(value) is str and value.isascii() and "&" not in value and "\0" not in value:
        return " ".join(value.split()) or None  # as for nearly all
    if value is None or value != value:  # NaN stands for "missing" in many tables
        return None
    text = _plain(value)
    if isinstance(text, (float, Decimal)):
        text = f"{text:f}" if isinstance(text, Decimal) else str(text)
    if not isinstance(text, str):
        tally.note(f"{name} is not text", value)
        return None
    text = html.unescape(text).replace("\0", " ")  # both return plain text as it is
    if not text.isascii():
        text = text.encode("utf-8", "ignore").decode()
        if CONTROLS.search(text):
            tally.note(f"{name} holds control characters, as texts in cp1252 do that are read as latin-1", text)
    return " ".join(text.split()) or None


def number_of(text: str, decimal_comma: bool) -> float:
    """The number in a text like `$1,299.00` (with `decimal_comma`, `1.299,00 €`); NaN where it is none."""
    point, thousands = (",", r"\.") if decimal_comma else (r"\.", ",")
    text = re.sub(r"^[$€£¥\s]+|[$€£¥\s]+$", "", text)
    if (
        re.fullmatch(rf"[+-]?(\d{{1,3}}({thousands}\d{{3}})+|\d*)({point}\d*)?(e[+-]?\d+)?", text, re.IGNORECASE)
        is None
    ):
        return math.nan
    plain = re.sub(thousands, "", text).replace(",", ".")
    return float(plain) if any(map(str.isdigit, plain)) else math.nan


def parse_price(value: Any, tally: Tally, decimal_comma: bool = False) -> float | None:
    """A price as a finite number, from a number or a text (see `number_of`); None (noted) where it is neither."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    try:
        price = (
            number_of(value, decimal_comma)
            if isinstance(value, str)
            else math.nan
            if isinstance(value, bool)
            else float(value)
        )
    except (TypeError, ValueError, OverflowError):
        price = math.nan
    if math.isfinite(price) and price >= 0:
        return price
    tally.note(NOT_A_PRICE, value)
    return None


def listed(text: str) -> Any:
    """A list that was written as text, as `['A', 'B']` or NumPy's `['A' 'B']`, or else the text."""
    if text.lstrip().startswith("[") and text.rstrip().endswith("]"):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
        text_with_commas = LITERAL.sub(lambda match: match[1] + ("," if match[2] else ""), text.strip())
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return ast.literal_eval(text_with_commas)
    return text


def first_path(value: Any, separator: str | None) -> list[Any]:
    """The first category path of a list of paths, of a path, or of a text (split where a separator is given)."""
    if isinstance(value, str):
        value = listed(value)
    if isinstance(value, str):
        return list(value.split(separator)) if separator else [value]
    if isinstance(value, (list, tuple)):
        nested = [path for path in value if isinstance(path, (list, tuple))]
        return list(nested[0] if nested else value)
    return []


def further_texts(record: Mapping[str, Any], columns: Sequence[str], tally: Tally) -> tuple[tuple[str, str], ...]:
    """The texts of some columns, by their names as a person writes them; a list is joined, a text beyond `TEXT_LIMIT`
    is cut after a word (noted), and a last full stop goes."""
    texts = []
    for column in columns:
        value = record.get(column)
        value = listed(value) if isinstance(value, str) else value
        parts = value if isinstance(value, (list, tuple)) else [value]
        text = " ".join(filter(None, (clean(part, column, tally) for part in parts)))
        if len(text) > TEXT_LIMIT:
            tally.noted[f"{column} cut to {TEXT_LIMIT:,} characters"] += 1
            text = re.sub(r"\s\S{0,30}$", "", text[: TEXT_LIMIT + 1]).rstrip()[:TEXT_LIMIT]
        if text:
            texts.append((f"{column[:1].upper()}{column[1:]}".replace("_", " "), text.removesuffix(".")))
    return tuple(texts)


def make_item(
    record: Mapping[str, Any], tally: Tally, separator: str | None = None, decimal_comma: bool = False
) -> RawItem:
    """An item of a record's title, brand, categories and price; what is missing or of a wrong type is None or empty."""
    path = [clean(name, "category", tally) for name in first_path(record.get("categories"), separator)]
    return RawItem(
        clean(record.get("title"), "title", tally),
        clean(record.get("brand"), "brand", tally),
        [name for name in path if name],
        parse_price(record.get("price"), tally, decimal_comma),
    )
