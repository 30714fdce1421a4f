"""Charts by matplotlib: PNG files, and SVG that takes the colours and the typeface of the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from tigerrec.storage.files import atomic

# Eight colours that colour-blind people tell apart (Okabe and Ito 2008).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
SERIES = (COLOURS[0], COLOURS[5], COLOURS[2])
GREY, DARK_GREY = "#BBBBBB", "#555555"
PAGE_COLOURS = {COLOURS[7]: "var(--text)", DARK_GREY: "var(--quiet)", GREY.lower(): "var(--rule)"} | {
    colour.lower(): f"var(--series-{number})" for number, colour in enumerate(SERIES)
}
KINDS = {"generator": SERIES[0], "baseline": SERIES[1]}  # of rows, with their colours
DOTS_PER_INCH = 130
PAGE_WIDTH = 4.7  # inches; a page scales it to the width of its column
LONGEST_LABEL = 24
REFERENCE = {"color": "black", "linewidth": 1, "linestyle": "--"}
MOST_POINTS = 400


def shorten(text: str, length: int) -> str:
    """A text of at most so many characters, its end left out where it is longer."""
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, file: Any, **options: Any) -> None:
    """Save a figure with every text as it stands: matplotlib reads what is between two dollar signs as a formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    figure.savefig(file, **options)


def save_png(figure: Any, path: Path) -> None:
    """Write a figure as a PNG file."""
    with atomic(path) as temporary:
        _save(figure, temporary, format="png", dpi=DOTS_PER_INCH)


def to_svg(figure: Any, description: str) -> Markup:
    """A figure as `<svg>`, the same bytes each time; `description`, for screen readers, is unique on a page."""
    import matplotlib

    file, no_metadata = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        _save(figure, file, format="svg", metadata=no_metadata)
    source = file.getvalue()
    source = re.sub("<[^>]*>", _restyled, source[source.index("<svg") :]).removeprefix("<svg")
    return Markup('<svg role="img" aria-label="{}"{}').format(description, Markup(source))


def _restyled(tag: re.Match[str]) -> str:
    """A tag of matplotlib's SVG with the typeface and the colours of the page, and without ids that charts share."""
    text = re.sub(r' id="[\w.]+_\d+"', "", tag[0])
    text = re.sub("font-family: [^;]*", "font-family: inherit", text)
    return re.sub("(?<=: )#[0-9a-f]{6}", lambda colour: PAGE_COLOURS.get(colour[0], colour[0]), text)


def _page_chart(height: float, x_label: str, grid: str, y_label: str = "") -> tuple[Any, Any]:
    """A figure for a page and its axes, without frame."""
    figure = new_figure(PAGE_WIDTH, height)
    axes = figure.subplots()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=DARK_GREY)
    axes.grid(axis=grid, color=GREY, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel(x_label, color=DARK_GREY)
    axes.set_ylabel(y_label, color=DARK_GREY)
    return figure, axes


@dataclass(frozen=True)
class Interval:
    """A value with the interval around it and, where there are several, the values of the runs it is the mean of."""

    label: str
    value: float
    low: float | None
    high: float | None
    runs: Sequence[float] = ()
    kind: str = ""

    @classmethod
    def of_metric(cls, row: Mapping[str, Any], metric: str) -> Interval:
        """A metric in a row of `table.parquet`, whose columns of intervals and of runs may be missing."""
        low, high, runs = (row.get(f"{metric}_{name}") for name in ("low", "high", "runs"))
        return cls(row["row"], row[metric], low, high, runs if runs and len(runs) > 1 else (), row.get("kind") or "")


def draw_intervals(axes: Any, rows: Sequence[Interval], number: str = ".4f") -> None:
    """A line a row, from the top: the interval, a dot at the value, or a stroke among the pale dots of single runs."""
    for place, row in enumerate(rows):
        style = {"color": KINDS.get(row.kind, SERIES[0]), "clip_on": False}
        axes.plot([row.low, row.high], [place, place], **style)
        if row.runs:
            axes.plot(row.runs, [place] * len(row.runs), "o", markersize=5, alpha=0.45, markeredgewidth=0, **style)
            axes.plot(row.value, place, "|", markersize=12, markeredgewidth=1.8, **style)
        else:
            axes.plot(row.value, place, "o", **style)
        axes.text(1.03, place, f"{row.value:{number}}", va="center_baseline", transform=axes.get_yaxis_transform())
    axes.set_yticks(range(len(rows)), [shorten(row.label, LONGEST_LABEL) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)


def interval_chart(rows: Sequence[Interval], x_label: str, *, differences: bool = False) -> Markup:
    """A chart of values with intervals; of differences, zero is marked and values have a sign."""
    number = "+.4f" if differences else ".4f"
    figure, axes = _page_chart(0.6 + 0.28 * len(rows), x_label, "x")
    draw_intervals(axes, rows, number)
    axes.tick_params(axis="y", labelcolor="black")
    if differences:
        axes.axvline(0, **REFERENCE)
    else:
        axes.set_xlim(left=0)
    return to_svg(figure, f"{x_label}: {', '.join(f'{row.label} {row.value:{number}}' for row in rows)}")


def line_chart(
    lines: Sequence[tuple[Any, Any]],
    x_label: str,
    y_label: str,
    *,
    y_from_zero: bool = True,
    log_x: bool = False,
    dots: bool = False,
    mark: tuple[float, str] | None = None,
) -> Markup:
    """A chart of lines, each given as its values x and y; `mark` is a place on the x axis and what is there."""
    figure, axes = _page_chart(2.7, x_label, "both", y_label)
    for (x, y), colour in zip(lines, SERIES, strict=False):
        drawn = np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).round().astype(int)
        marker = "o" if dots or len(x) == 1 else None
        axes.plot(np.take(x, drawn), np.take(y, drawn), color=colour, marker=marker, markersize=5, clip_on=False)
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.minorticks_off()
    else:
        axes.set_xlim(left=0)
    if y_from_zero:
        axes.set_ylim(bottom=0)
    if mark:
        axes.axvline(mark[0], **REFERENCE)
        axes.text(mark[0], 1.03, mark[1], ha="center", transform=axes.get_xaxis_transform())
    return to_svg(figure, f"{y_label} over {x_label}")


def frequency_chart(counts: np.ndarray, x_label: str, y_label: str) -> Markup:
    """Counts side by side, largest first; the dashed line is their mean."""
    figure, axes = _page_chart(2.3, x_label, "y", y_label)
    sizes, repeats = np.unique(counts, return_counts=True)
    axes.stairs(sizes[::-1], np.append(0, np.cumsum(repeats[::-1])), fill=True, color=SERIES[0], alpha=0.5)
    axes.axhline(counts.mean(), **REFERENCE)
    axes.set_xlim(0, len(counts))
    axes.set_ylim(bottom=0)
    return to_svg(figure, f"{y_label} over {x_label}, from {counts.max():,} to {counts.min():,}")
