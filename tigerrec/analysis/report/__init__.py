"""One self-contained HTML page about a run or about a table of results."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tigerrec import TigerrecError
from tigerrec.storage.files import atomic
from tigerrec.text import NOTHING, duration

logger = logging.getLogger(__name__)

NAME = "report.html"
METRICS = ("hr@5", "ndcg@5", "hr@10", "ndcg@10")


def report_run(folder: Path, out: Path | None = None) -> Path:
    """Write the page about the run of an evaluate folder, or of a train folder with one evaluation, and of the folders
    above it to `out`, by default to `report.html` in the folder.

    Raises:
        TigerrecError: the folder is no such run, or the file cannot be written.
    """
    from tigerrec.analysis.report.evaluated import read_evaluated_run
    from tigerrec.analysis.report.run_page import run_page

    out = _html_file(out or folder / NAME)
    return _write("run.html.j2", run_page(read_evaluated_run(folder)), out)


def report_table(folder: Path, out: Path | None = None) -> Path:
    """Write the page about the table of results in a folder to `out`, by default to `report.html` there.

    Raises:
        TigerrecError: the folder holds no table, or the file cannot be written.
    """
    from tigerrec.analysis.report.table_page import read_results, results_page

    out = _html_file(out or folder / NAME)
    return _write("results.html.j2", results_page(read_results(folder)), out)


def _html_file(out: Path) -> Path:
    if out.suffix != ".html":
        raise TigerrecError(f"{out} must end in .html; give for instance `--out {out.with_suffix('.html')}`.")
    return out


def _write(template: str, page: dict[str, Any], out: Path) -> Path:
    """Render a page whose parts are the macros of a template, called with what `page` holds for them."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters |= {shown.__name__: shown for shown in (percent, interval, duration, cell)}
    environment.filters["thousands"] = "{:,}".format
    html = environment.get_template("page.html.j2").render(page, parts=environment.get_template(template).module)
    with atomic(out) as temporary:
        temporary.write_text(html, encoding="utf-8")
    logger.info("wrote %s (%.0f kB); open it in a browser", out, out.stat().st_size / 1000)
    return out


def percent(share: float, decimals: int = 1) -> str:
    """A share as per cent, on one line."""
    return f"{100 * share:.{decimals}f}\u00a0%"


def interval(row: Mapping[str, float], metric: str) -> str:
    """The ends of the interval around a metric."""
    return f"{row[f'{metric}_low']:.4f}–{row[f'{metric}_high']:.4f}"


def cell(value: Any) -> Any:
    """A value in a table: counts with separators, metrics with four decimals, a dash for what is not there."""
    if value is None:
        return NOTHING
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else value
