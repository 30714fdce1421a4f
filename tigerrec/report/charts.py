"""Small charts as inline SVG; their colours and typeface come from the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tigerrec.report.markup import Html, element

WIDTH = 400
MOST_POINTS = 400
CHARACTER = 6.5  # pixels a character of a label takes, at most on average
LONGEST_LABEL = 24


@dataclass(frozen=True)
class Interval:
    """A value with the interval around it and, where there are several, the values it is the mean of."""

    label: str
    value: float
    low: float
    high: float
    parts: Sequence[float] = ()
    series: int = 0


@dataclass(frozen=True)
class Series:
    """A line of a chart, or single dots where `dots` is set."""

    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    """Values laid out between two places of the picture, in pixels; `log` takes positive values."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, in pixels."""
        low, high, value = (math.log(number) if self.log else number for number in (self.low, self.high, value))
        return round(self.start + (value - low) / ((high - low) or 1) * (self.end - self.start), 2)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the axis, about as many as asked for."""
        if self.log:
            return [
                10.0**power
                for power in range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            ]
        rough = ((self.high - self.low) or 1) / count
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6)
        return [step * number for number in range(first, last + 1)]


def tick_label(value: float) -> str:
    """A tick's value, as short as it can be read."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _text(x: float, y: float, text: str, anchor: str = "start", class_: str | None = None) -> Html:
    return element("text", text, x=round(x, 2), y=round(y, 2), text_anchor=anchor, class_=class_)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def _dot(x: float, y: float, radius: float, class_: str) -> Html:
    return element("circle", cx=x, cy=y, r=radius, class_=class_)


def _svg(height: float, description: str, *parts: Html) -> Html:
    return element("svg", *parts, viewBox=f"0 0 {WIDTH} {round(height)}", role="img", aria_label=description)


def _x_axis(axis: Axis, top: float, bottom: float, label: str) -> list[Html]:
    parts = []
    for tick in axis.ticks():
        place = axis.place(tick)
        parts += [
            _line(place, top, place, bottom, "grid"),
            _text(min(place, WIDTH - 8), bottom + 16, tick_label(tick), "middle"),
        ]
    return [*parts, _text((axis.start + axis.end) / 2, bottom + 34, label, "middle")]


def _shortened(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"


def intervals(rows: Sequence[Interval], label: str, differences: bool = False) -> Html:
    """A row for each value: a dot, or a stroke among the pale dots that it is the mean of; its interval as a line; and
    the number itself.

    Args:
        label: of the axis.
        differences: whether values have a sign and zero means none.
    """
    numbers = [number for row in rows for number in (row.low, row.high, row.value, *row.parts)]
    low, high = min(0.0, *numbers), max(0.0, *numbers)
    margin = (high - low) * 0.04 or 1.0
    gutter = min(max(len(_shortened(row.label)) for row in rows) * CHARACTER + 10, 165)
    axis = Axis(low - margin if differences else low, high + margin, gutter, WIDTH - 58)
    spacing, top, shape = 24, 6, "+.4f" if differences else ".4f"
    bottom = top + spacing * len(rows)
    parts = _x_axis(axis, top, bottom, label)
    if differences:
        parts.append(_line(axis.place(0), top, axis.place(0), bottom, "reference"))
    for number, row in enumerate(rows):
        y, series = top + spacing * (number + 0.5), f"series-{row.series}"
        parts += [
            _text(0, y + 4, _shortened(row.label), class_="name"),
            _line(axis.place(row.low), y, axis.place(row.high), y, f"line {series}"),
        ]
        parts += [_dot(axis.place(part), y, 3, f"dot run {series}") for part in row.parts]
        place = axis.place(row.value)
        parts.append(
            _line(place, y - 7, place, y + 7, f"line {series}") if row.parts else _dot(place, y, 4.5, f"dot {series}")
        )
        parts.append(_text(WIDTH, y + 4, f"{row.value:{shape}}", "end", "name"))
    described = "; ".join(f"{row.label} {row.value:{shape}} ({row.low:{shape}} to {row.high:{shape}})" for row in rows)
    return _svg(bottom + 40, f"{label}: {described}", *parts)


def _thinned(series: Series) -> tuple[Sequence[float], Sequence[float]]:
    if len(series.x) <= MOST_POINTS:
        return series.x, series.y
    kept = np.unique(np.linspace(0, len(series.x) - 1, MOST_POINTS).round().astype(int)).tolist()
    return [series.x[number] for number in kept], [series.y[number] for number in kept]


def lines(
    drawn: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    y_from_zero: bool = True,
    log_x: bool = False,
    mark: tuple[float, str] | None = None,
) -> Html:
    """Lines over a common axis, coloured in their order.

    Args:
        mark: a place on the x axis and what is there.
    """
    x_values, y_values = ([float(value) for series in drawn for value in getattr(series, name)] for name in ("x", "y"))
    top, bottom = 42 if mark else 26, 190
    low_y, high_y = (0.0 if y_from_zero else min(y_values)), max(y_values)
    margin = (high_y - low_y) * 0.06 or 1.0
    y_axis = Axis(low_y if y_from_zero else low_y - margin, high_y + margin, bottom, top)
    left = max(len(tick_label(tick)) for tick in y_axis.ticks()) * 7 + 8
    low_x = min(x_values) if log_x else min(0.0, *x_values)
    x_axis = Axis(low_x, max(x_values) if max(x_values) > low_x else low_x + 1, left, WIDTH - 14, log_x)
    parts = _x_axis(x_axis, top, bottom, x_label)
    for tick in y_axis.ticks():
        place = y_axis.place(tick)
        parts += [_line(left, place, WIDTH - 14, place, "grid"), _text(left - 6, place + 4, tick_label(tick), "end")]
    parts.append(_text(0, 12, y_label))
    if mark:
        place = x_axis.place(mark[0])
        anchor = "start" if place < WIDTH * 0.3 else "end" if place > WIDTH * 0.7 else "middle"
        parts += [_line(place, top - 4, place, bottom, "reference"), _text(place, top - 10, mark[1], anchor, "name")]
    for number, series in enumerate(drawn):
        points = [(x_axis.place(x), y_axis.place(y)) for x, y in zip(*_thinned(series), strict=True)]
        if len(points) > 1:
            parts.append(
                element("polyline", points=" ".join(f"{x:g},{y:g}" for x, y in points), class_=f"line series-{number}")
            )
        if series.dots or len(points) == 1:
            parts += [_dot(x, y, 3.5, f"dot series-{number}") for x, y in points]
    return _svg(bottom + 40, f"{y_label} over {x_label}", *parts)


def sorted_bars(counts: Sequence[int], x_label: str, y_label: str) -> Html:
    """Counts side by side, largest first, without gaps; the dashed line is their mean."""
    ordered = sorted((int(count) for count in counts), reverse=True)
    shown = (
        ordered
        if len(ordered) <= MOST_POINTS
        else [ordered[number * len(ordered) // MOST_POINTS] for number in range(MOST_POINTS)]
    )
    top, bottom = 26, 170
    y_axis = Axis(0, ordered[0] * 1.06 or 1, bottom, top)
    left = max(len(tick_label(tick)) for tick in y_axis.ticks(4)) * 7 + 8
    x_axis = Axis(0, len(ordered), left, WIDTH - 14)
    parts = _x_axis(x_axis, bottom, bottom + 4, x_label)
    for tick in y_axis.ticks(4):
        place = y_axis.place(tick)
        parts += [_line(left, place, WIDTH - 14, place, "grid"), _text(left - 6, place + 4, tick_label(tick), "end")]
    width = (x_axis.end - x_axis.start) / len(shown)
    steps = "".join(f"V{y_axis.place(count):g}H{left + width * (number + 1):.1f}" for number, count in enumerate(shown))
    parts.append(element("path", d=f"M{left},{bottom}{steps}V{bottom}Z", class_="area series-0"))
    mean = y_axis.place(sum(ordered) / len(ordered))
    parts += [_line(left, mean, WIDTH - 14, mean, "reference"), _text(0, 12, y_label)]
    return _svg(bottom + 44, f"{y_label} over {x_label}, from {ordered[0]:,} to {ordered[-1]:,}", *parts)
