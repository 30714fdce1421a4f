"""The benchmark table: tokenizers, tokenizer seeds and generator seeds beside baselines; each run is a cell that
resumes and stays."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tigerrec import TigerrecError, artifacts, files, pipeline
from tigerrec.config import ConfigError, compose
from tigerrec.provenance import short_commit
from tigerrec.table.cells import Cell
from tigerrec.table.rows import Row, plan_rows, result_of
from tigerrec.table.summary import Summary

logger = logging.getLogger(__name__)

ONE_RUN_A_CELL = ("tokenizer", "tokenizer.seed", "generator.seed", "baseline", "baseline.seed", "until", "overwrite")


def _folder(cfg: DictConfig) -> Path:
    """Where the results of the table's cells stand."""
    for name, value in (("table", cfg.table), ("paths.results", cfg.paths.results)):
        if not isinstance(value, str) or not value:
            raise ConfigError(
                f"{name}={value!r} must be a folder name; choose one with `experiment=beauty_table` or `{name}=<name>`."
            )
    return Path(cfg.paths.results) / cfg.table


def _run_cells(cells: Sequence[Cell], locks: Path) -> list[str]:
    """Run the cells that are not done; those that another process runs are left to it and looked at again in the end.

    Returns:
        What failed, a sentence a cell.
    """
    failures: list[str] = []
    busy = []
    for cell in [cell for cell in cells if not cell.is_done()]:
        try:
            with files.locked(_lock(cell, locks)):
                _run_one(cell, failures)
        except files.BusyError:
            busy.append(cell)
    for cell in busy:
        with files.locked(_lock(cell, locks), wait=True, announce=logger.info):
            _run_one(cell, failures)
    return failures


def _lock(cell: Cell, locks: Path) -> Path:
    return locks / cell.folder.parent.name / cell.folder.name


def _run_one(cell: Cell, failures: list[str]) -> None:
    try:
        if cell.is_done():
            return
        logger.info("table: %s → %s", cell.row, cell.folder)
        cell.run()
    except TigerrecError as error:
        logger.warning("%s failed: %s", cell.folder.name, error)
        failures.append(f"{cell.folder.name} failed: {error}")


def make_table(overrides: Sequence[str]) -> Path:
    """Run the cells that are not done and write `table.md`, `table.parquet`, `table.json` and `table.png` of all.

    A cell that fails while it is run is told of in the table and does not stop the others; results that are damaged or
    of other settings stop the
    table before anything is run. Several processes may make one table: each cell is run by one of them.

    Args:
        overrides: Hydra overrides; `experiment=…` names a table.

    Returns:
        The folder of the table, with the cells of its generator; baselines stand beside it.

    Raises:
        TigerrecError: an option is wrong, a cell's results are of other settings, or no cell could be run.
    """
    for override in overrides:
        if override.lstrip("+~").partition("=")[0] in ONE_RUN_A_CELL:
            raise ConfigError(
                f"{override} is for one run; choose rows by `tokenizers=[<tokenizer>,<tokenizer>@<embedder>]`, "
                "`baselines=[…]` and `seeds=`."
            )
    cfg = compose(list(overrides))
    folder = _folder(cfg)
    rows = plan_rows(overrides, cfg, folder)
    every_row_once_first = sorted(
        ((seeds, cell) for row in rows for seeds, cell in row.cells.items()), key=lambda pair: pair[0]
    )
    locks = Path(cfg.paths.runs) / ".table" / cfg.table
    failures = _run_cells([cell for _, cell in every_row_once_first], locks)
    with files.locked(locks / "table", wait=True):
        return write_table(rows, cfg, overrides, folder / f"{cfg.generator.name}-{cfg.train.name}", failures)


def write_table(
    rows: Sequence[Row], cfg: DictConfig, overrides: Sequence[str], out: Path, failures: Sequence[str]
) -> Path:
    """The table of the cells that are there, in the folder `out`.

    Raises:
        TigerrecError: there are none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tigerrec import tokenizer_plots
    from tigerrec.table import markdown, plot

    found = [result for row in rows if (result := result_of(row))]
    if not found:
        raise TigerrecError(f"No cell of the table could be run; {failures[0]}")
    summary = Summary(found, cfg.reference)
    title = f"{cfg.dataset.name}: tokenizers for {cfg.generator.name} ({cfg.train.name}) and baselines"
    notes = budgets(summary, cfg)
    if not summary.comparisons:
        notes.append(
            f"Nothing is compared: reference={cfg.reference} is not a row with others beside it; give "
            "`reference=<row>`."
        )
    picture = out / "table.png"
    picture.unlink(missing_ok=True)
    try:
        plot.draw(summary, title, picture)
    except tokenizer_plots.NoMatplotlibError as error:
        notes.append(str(error))
    facts = facts_of(summary, cfg, overrides) | {"picture": picture.exists(), "notes": notes}
    with artifacts.atomic(out / "table.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(summary.rows), temporary)
    told = {
        "name": title,
        **facts,
        "variance": summary.variance,
        "comparisons": [vars(comparison) for comparison in summary.comparisons],
        "trials": {result.row.name: result.trials for result in found if result.trials},
    }
    files.write_json(out / "table.json", told)
    with artifacts.atomic(out / "table.md") as temporary:
        temporary.write_text(markdown.page(title, summary, facts, failures), encoding="utf-8")
    logger.info(
        "wrote the table of %d rows to %s\n%s", len(found), out / "table.md", markdown.metrics_table(summary, "masked")
    )
    return out


def budgets(summary: Summary, cfg: DictConfig) -> list[str]:
    """What each row was given, so that nobody takes a difference of budgets for one of methods."""
    notes = [
        f"{cfg.generator.name} was trained for {cfg.train.epochs} epochs in every row and ranks in "
        f"{cfg.evaluate.precision}."
    ]
    tuned = []
    for result in summary.results:
        cell = next(iter(result.row.cells.values()))
        if "tune" in cell.steps:
            tuned.append(f"{result.row.name} ({len(cell.steps['tune'].config.trials)})")
    if tuned:
        notes.append(
            f"The baselines {', '.join(sorted(tuned))} were tuned on validation, in parentheses over how many "
            "settings; the generator was not tuned for this "
            "table. So where they differ, budgets and tuning differ too."
        )
    return notes


def facts_of(summary: Summary, cfg: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Data, commands, commits and machines behind a table."""
    runs = [run for result in summary.results for run in result.runs.values()]
    stages = [
        stage
        for run in runs
        for name, stage in run.provenance["stages"].items()
        if name.partition(":")[0] not in ("prepare", "embed")
    ]
    machines = sorted({f"{stage['machine']}, {stage['cores']} cores" for stage in stages})
    threads = sorted({str(stage["threads"]) for stage in stages if "threads" in stage})
    return {
        "dataset": {
            "name": cfg.dataset.name,
            **{name: runs[0].facts[name] for name in ("users", "items", "interactions")},
        },
        "split": cfg.evaluate.split,
        "commands": [pipeline.told_command("table", overrides)],
        "commits": sorted({short_commit(stage["git"]) for stage in stages if stage.get("git")}),
        "machine": f"{' and '.join(machines)}, {'/'.join(threads)} thread{'s' if threads != ['1'] else ''} a run",
    }


def command(overrides: Sequence[str]) -> None:
    """What the script does: bring a table up to date, print its folder as the last line; end with one sentence on a
    user's error."""
    with pipeline.reporting():
        folder = make_table(overrides)
    print(folder, flush=True)
