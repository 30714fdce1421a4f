"""Several tables of results side by side: what the same rows reach with other generators or budgets."""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tigerrec import TigerrecError, text
from tigerrec.analysis.report import METRICS
from tigerrec.analysis.report.table_page import Results, read_results
from tigerrec.analysis.table.markdown import with_spread
from tigerrec.analysis.table.rows import BASELINE
from tigerrec.search.options import SCORES

KEYS = ("kind", "runs", *(f"{metric}_{key}" for metric in METRICS for key in ("sd", "runs")))
SHOWN = ("hr@10", "ndcg@10")
PARTS = tuple(f":{name}" for name in SCORES)


def _ranked(results: Results) -> dict[str, dict[str, Any]]:
    """The rows of a table by name, hits on items, seen items masked, best first."""
    return {row["row"]: row for row in results.ranked("item", "masked")}


def side_by_side(columns: Sequence[Sequence[Path]], metrics: Sequence[str] = SHOWN, whole: bool = False) -> str:
    """Tables of the same data set in Markdown: the rows of the first column in order of their best NDCG@10, with some
    metrics of each column, hits on items, seen items masked; one or two runs are all shown, more as mean ± deviation.

    Args:
        columns: folders of tables; where a column has several, a row is that of the first table that has it.
        metrics: those shown, of HR and NDCG at 5 and 10.
        whole: leave out rows that rank by another score than that of their row without a colon (`rkmeans:codes`).

    Raises:
        TigerrecError: a folder has no table, or one of other data or another split.
    """
    folders = [folder for column in columns for folder in column]
    results = {folder: read_results(folder, KEYS) for folder in folders}
    first = results[folders[0]]
    for folder, other in results.items():
        if any(other.about.get(name) != first.about.get(name) for name in ("dataset", "split")):
            raise TigerrecError(
                f"{folder} is of other data than {folders[0]}; compare tables of one data set and split."
            )
    tables = [dict(ChainMap(*(_ranked(results[folder]) for folder in column))) for column in columns]
    rows = {name: row for name, row in tables[0].items() if not (whole and name.endswith(PARTS))}
    best = {name: max(table[name]["ndcg@10"] for table in tables if name in table) for name in rows}
    lines = [["row", *(f"{name}: {metric.upper()}" for name in _names(columns) for metric in metrics)]]
    for name in sorted(best, key=lambda name: (-best[name], name)):
        figures = [_figure(table.get(name), metric) for table in tables for metric in metrics]
        lines.append([f"*{name}*" if rows[name]["kind"] == BASELINE else name, *figures])
    return text.table(lines)


def _names(columns: Sequence[Sequence[Path]]) -> list[str]:
    """What columns are called: the names of their folders, with those above them where these are equal."""
    paths = [[folder.resolve() for folder in column] for column in columns]
    names = [", ".join(path.name for path in column) for column in paths]
    if len(set(names)) == len(names):
        return names
    shared = Path(os.path.commonpath([path.parent for column in paths for path in column]))
    return [", ".join(str(path.relative_to(shared)) for path in column) for column in paths]


def _figure(row: dict[str, Any] | None, metric: str) -> str:
    return with_spread(row, metric) if row else text.NOTHING
