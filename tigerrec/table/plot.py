"""The picture of a table: every row's NDCG@10 and HR@10, their intervals and their single runs."""

from __future__ import annotations

from pathlib import Path

from tigerrec import artifacts
from tigerrec.table.rows import GENERATOR
from tigerrec.table.summary import Summary
from tigerrec.tokenizer_plots import COLOURS, DOTS_PER_INCH, new_figure

SHOWN = ("ndcg@10", "hr@10")


def draw(summary: Summary, title: str, path: Path) -> None:
    """Draw the item-level metrics of all rows, seen items masked, as a PNG file.

    Raises:
        NoMatplotlibError: matplotlib is not installed; nothing is written.
    """
    results = summary.results[::-1]
    lines = {line["row"]: line for line in summary.rows if (line["hit"], line["seen"]) == ("item", "masked")}
    figure = new_figure(10, 1.6 + 0.36 * len(results))
    for axes, metric in zip(figure.subplots(1, len(SHOWN), sharey=True), SHOWN, strict=True):
        for place, result in enumerate(results):
            line = lines[result.row.name]
            colour = COLOURS[0] if result.row.kind == GENERATOR else COLOURS[5]
            axes.hlines(place, line[f"{metric}_low"], line[f"{metric}_high"], color=colour, linewidth=5, alpha=0.3)
            axes.plot(line[metric], place, "|", color=colour, markersize=14, markeredgewidth=2)
            axes.plot(line[f"{metric}_runs"], [place] * line["runs"], "o", color=colour, markersize=3.5)
        axes.set_yticks(range(len(results)), [result.row.name for result in results])
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{metric.upper()} (item level, seen items masked)")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [
        figure.axes[0].plot([], [], "|", color=colour, markersize=14, markeredgewidth=2, label=label)[0]
        for colour, label in ((COLOURS[0], "generator"), (COLOURS[5], "baseline"))
    ]
    handles.append(figure.axes[0].plot([], [], "o", color="#555555", markersize=3.5, label="a run")[0])
    handles.append(figure.axes[0].plot([], [], color="#555555", linewidth=5, alpha=0.3, label="95 % over users")[0])
    figure.suptitle(title)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    with artifacts.atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
