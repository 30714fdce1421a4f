"""The picture of a table: every row's NDCG@10 and HR@10, their intervals and their single runs."""

from __future__ import annotations

from pathlib import Path

from tigerrec.analysis.charts import DARK_GREY, KINDS, Interval, draw_intervals, new_figure, save_png
from tigerrec.analysis.table.summary import Summary

SHOWN = ("ndcg@10", "hr@10")


def draw(summary: Summary, title: str, path: Path) -> None:
    """Draw the item-level metrics of all rows, seen items masked, as a PNG file."""
    rows = [row for row in summary.rows if (row["hit"], row["seen"]) == ("item", "masked")]
    figure = new_figure(10, 1.4 + 0.36 * len(rows))
    for axes, metric in zip(figure.subplots(1, len(SHOWN), sharey=True), SHOWN, strict=True):
        draw_intervals(axes, [Interval.of_metric(row, metric) for row in rows])
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{metric.upper()} (item level, seen items masked)")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for kind, colour in KINDS.items():
        axes.plot([], [], "|", color=colour, markersize=12, markeredgewidth=1.8, label=kind)
    axes.plot([], [], "o", color=DARK_GREY, markersize=5, alpha=0.45, markeredgewidth=0, label="a run of several")
    axes.plot([], [], color=DARK_GREY, label="95 % over users")
    figure.suptitle(title)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    save_png(figure, path)
