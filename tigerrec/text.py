"""Figures, settings and tables as text to read."""

from __future__ import annotations

import re
from collections.abc import Sequence

NOTHING = "–"  # stands for a value that is not there


def written(value: object) -> str:
    """A setting as people write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def figure(value: float | None, form: str = ".4f") -> str:
    """A number in a format; with four decimals, as metrics have them, without the zero before the point."""
    if value is None:
        return NOTHING
    text = f"{value:{form}}"
    return re.sub(r"^([+-]?)0\.", r"\1.", text) if form.endswith(".4f") else text


def percent(share: float) -> str:
    """A share as a percentage: `12.5 %`."""
    return f"{100 * share:.1f} %"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as plain text, their columns two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def table(rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Rows of cells in Markdown, their heading first, with columns of equal width.

    Args:
        texts: how many columns, from the left, are aligned on the left; the others, numbers, on the right.
    """
    widths = [max(2, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width if place < texts else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    lines = [
        [
            cell.ljust(width) if place < texts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
