"""Several tables of results side by side: what the same rows reach with other generators or budgets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tigerrec import TigerrecError, text
from tigerrec.analysis.report.table_page import Results, read_results
from tigerrec.analysis.table.markdown import with_spread
from tigerrec.analysis.table.rows import BASELINE

SHOWN = ("hr@10", "ndcg@10")
KEYS = ("kind", "runs", *(f"{metric}_{key}" for metric in SHOWN for key in ("sd", "runs")))


def _ranked(results: Results) -> dict[str, dict[str, Any]]:
    """The rows of a table by name, hits on items, seen items masked, best first."""
    return {row["row"]: row for row in results.ranked("item", "masked")}


def side_by_side(folders: Sequence[Path]) -> str:
    """Tables of the same data set in Markdown: the rows of the first in order of their best NDCG@10, with HR@10 and
    NDCG@10 of each table, hits on items, seen items masked; one or two runs are all shown, more as mean ± deviation.

    Raises:
        TigerrecError: a folder has no table, or one of other data or another split.
    """
    results = [read_results(folder, KEYS) for folder in folders]
    for folder, other in zip(folders, results, strict=True):
        if any(other.about.get(name) != results[0].about.get(name) for name in ("dataset", "split")):
            raise TigerrecError(
                f"{folder} is of other data than {folders[0]}; compare tables of one data set and split."
            )
    tables = [_ranked(of_table) for of_table in results]
    best = {name: max(rows[name]["ndcg@10"] for rows in tables if name in rows) for name in tables[0]}
    shared = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    names = [str(folder.resolve().relative_to(shared)) for folder in folders]
    lines = [["row", *(f"{name}: {metric.upper()}" for name in names for metric in SHOWN)]]
    for name in sorted(best, key=lambda name: (-best[name], name)):
        figures = [cell for rows in tables for cell in _figures(rows.get(name))]
        lines.append([f"*{name}*" if tables[0][name]["kind"] == BASELINE else name, *figures])
    return text.table(lines)


def _figures(row: dict[str, Any] | None) -> list[str]:
    return [with_spread(row, metric) if row else text.NOTHING for metric in SHOWN]
