"""One self-contained HTML page about a run or about a table of results."""

from __future__ import annotations

import logging
from pathlib import Path

from tigerrec import TigerrecError, artifacts

logger = logging.getLogger(__name__)

NAME = "report.html"


def report_run(folder: Path, out: Path | None = None) -> Path:
    """Write the page about an evaluated run.

    Args:
        folder: an evaluate folder, or a train folder with one evaluation; the folders above it are read too.
        out: the file; `report.html` in the folder by default, where it is no part of the stage.

    Raises:
        TigerrecError: the folder is no such run, or the file cannot be written.
    """
    from tigerrec.report.evaluated import read_evaluated_run
    from tigerrec.report.run_page import run_page

    out = _free(out or folder / NAME)
    return _write(run_page(read_evaluated_run(folder)), out)


def report_table(folder: Path, out: Path | None = None) -> Path:
    """Write the page about a table of results.

    Args:
        folder: it holds `table.parquet` and `table.json`.
        out: the file; `report.html` in the folder by default.

    Raises:
        TigerrecError: the folder holds no table, or the file cannot be written.
    """
    from tigerrec.report.table_page import read_result_table, table_page

    out = _free(out or folder / NAME)
    return _write(table_page(read_result_table(folder)), out)


def _free(out: Path) -> Path:
    if out.suffix != ".html":
        raise TigerrecError(f"{out} must end in .html; give for instance `OUT={out.with_suffix('.html')}`.")
    return out


def _write(page: str, out: Path) -> Path:
    with artifacts.atomic(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    logger.info("wrote %s (%.0f kB); open it in a browser", out, out.stat().st_size / 1000)
    return out
