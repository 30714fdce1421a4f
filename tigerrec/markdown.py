"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "–"  # stands for a value that is not there


def written(value: object) -> str:
    """A setting as people write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Rows of cells, their heading first, with columns of equal width.

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
