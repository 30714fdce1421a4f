"""The benchmark table: tokenizers and seeds beside baselines; each run is a cell that resumes and stays."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import DictConfig

from tigerrec import TigerrecError, text
from tigerrec.analysis.table.cells import Cell
from tigerrec.analysis.table.rows import GENERATOR, Row, by_seeds, listed, plan_rows, replicated, results_of
from tigerrec.analysis.table.summary import Summary
from tigerrec.config import ConfigError, compose, folder_of
from tigerrec.runtime.provenance import short_commit
from tigerrec.storage.files import BusyError, atomic, locked, write_json

logger = logging.getLogger(__name__)

ONE_RUN_A_CELL = ("tokenizer", "tokenizer.seed", "generator.seed", "baseline", "baseline.seed", "until", "overwrite")


def _folder(cfg: DictConfig) -> Path:
    """Where the results of the table's cells stand."""
    if not isinstance(cfg.table, str) or not cfg.table:
        raise ConfigError(
            f"table={cfg.table!r} must be a folder name; choose one with `experiment=beauty_table` or `table=<name>`."
        )
    return folder_of(cfg, "paths.results") / cfg.table


def _run_cells(cells: Sequence[Cell], results: Path, locks: Path) -> list[str]:
    """Run the cells that are not done, and tell what failed, a sentence a cell; cells that another process runs are
    left to it and looked at again in the end. `locks` holds the locks of the cells below `results`."""
    failures: list[str] = []
    remaining = [cell for cell in cells if not cell.is_done()]
    left, seconds = list(remaining), dict[str, list[float]]()
    logger.info("table: %d of %d runs are done", len(cells) - len(left), len(cells))
    for wait in (False, True):
        waiting, remaining = remaining, []
        for cell in waiting:
            try:
                with locked(locks / cell.folder.relative_to(results), wait=wait, announce=logger.info):
                    if not cell.is_done():
                        logger.info("table: %s → %s%s", cell.row, cell.folder, _outlook(left, seconds))
                        started = time.perf_counter()
                        cell.run(wait)
                        seconds.setdefault(cell.last.stage, []).append(time.perf_counter() - started)
                    left.remove(cell)
            except TigerrecError as error:
                if isinstance(error, BusyError) and not wait:
                    remaining.append(cell)
                    continue
                left.remove(cell)
                failures.append(f"{cell.folder.name} failed: {error}")
                logger.warning("%s", failures[-1])
    return failures


def _outlook(left: Sequence[Cell], seconds: Mapping[str, Sequence[float]]) -> str:
    """How many runs are left, and how long they take if each takes as long as those before that ended in its stage."""
    stages = [cell.last.stage for cell in left]
    if not seconds.keys() >= set(stages):
        return f" (left: {len(left)})"
    return f" (left: {len(left)}, about {text.duration(sum(fmean(seconds[stage]) for stage in stages))})"


def make_table(overrides: Sequence[str]) -> Path:
    """Run the cells that are not done and write `table.md`, `table.parquet`, `table.json` and `table.png` of all.

    A cell that fails while it is run is told of in the table and does not stop the others; results that are damaged or
    of other settings stop the table before anything is run. Several processes may make one table: each cell is run by
    one of them. The folder returned has the table and the cells of its generator; baselines stand beside it.

    Raises:
        TigerrecError: an option is wrong, a cell's results are of other settings, or no cell could be run.
    """
    for override in overrides:
        if override.lstrip("+~").partition("=")[0] in ONE_RUN_A_CELL:
            raise ConfigError(
                f"{override} is for one run; choose rows by `tokenizers=[<tokenizer>@<embedder>:<scores>,…]`, "
                "`baselines=[…]` and `seeds=`."
            )
    cfg = compose(list(overrides))
    folder = _folder(cfg)
    rows = plan_rows(overrides, cfg, folder)
    locks = folder_of(cfg, "paths.runs") / ".table" / cfg.table
    cells, failures = by_seeds(rows), []
    if cfg.replicated is not None:
        for cell in cells:
            cell.is_done()  # what is stale or damaged is told of before anything is run
        first = [row.first for row in rows]
        failures = _run_cells(first, folder, locks)
        rows = replicated(rows, cfg.replicated)
        cells = [cell for cell in by_seeds(rows) if cell not in first]
    failures += _run_cells(cells, folder, locks)
    with locked(locks / "table", wait=True):
        return write_table(rows, cfg, overrides, folder / f"{cfg.generator.name}-{cfg.train.name}", failures)


def write_table(
    rows: Sequence[Row], cfg: DictConfig, overrides: Sequence[str], out: Path, failures: Sequence[str]
) -> Path:
    """Write the table of the cells that are there, of which there must be one, to the folder `out`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tigerrec.analysis.table import markdown, plot

    results = [result for row in rows if (result := results_of(row))]
    if not results:
        raise TigerrecError(f"No cell of the table could be run; {failures[0]}")
    references = listed(cfg.reference)
    summary = Summary(results, references)
    title = f"{cfg.dataset.name}: tokenizers for {cfg.generator.name} ({cfg.train.name}) and baselines"
    notes = budgets(summary, cfg)
    compared = {line["reference"] for line in summary.comparisons}
    notes += [
        f"Nothing is compared with {name}, which is not a row with others beside it; give `reference=<row>`."
        for name in references
        if name not in compared
    ]
    plot.draw(summary, title, out / "table.png")
    made = how_it_was_made(summary, cfg, overrides) | {"picture": True, "notes": notes}
    with atomic(out / "table.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(summary.rows), temporary)
    trials = {result.row.name: result.trials for result in results if result.trials}
    figures = {"variance": summary.variance, "comparisons": summary.comparisons, "trials": trials}
    write_json(out / "table.json", {"name": title, **made, **figures})
    with atomic(out / "table.md") as temporary:
        temporary.write_text(markdown.page(title, summary, made, failures), encoding="utf-8")
    masked = markdown.metrics_table(summary, "masked")
    logger.info("wrote the table of %d rows to %s\n%s", len(results), out / "table.md", masked)
    return out


def budgets(summary: Summary, cfg: DictConfig) -> list[str]:
    """What each row was given, so that nobody takes a difference of budgets for one of methods."""
    of_generator = f"{cfg.generator.name} was trained for {cfg.train.epochs} epochs in every row"
    notes = [f"{of_generator} and ranks in {cfg.evaluate.precision}."]
    rows = [result.row for result in summary.results if result.row.kind == GENERATOR]
    several = [row.name for row in rows if len(row.cells) > 1]
    if 0 < len(several) < len(rows):
        notes.append(
            f"{', '.join(several)} validated best with their first "
            "seeds and were to be run with others too; other rows of the generator have one run."
        )
    tuned = sorted(f"{result.row.name} ({len(result.trials)})" for result in summary.results if result.trials)
    weighed = {result.row.name: result.item_weights for result in summary.results if result.item_weights}
    notes += [
        f"In {name} the item head counts {', '.join(f'{weight:g}' for weight in weights)} times the tree, as training "
        "chose on validation."
        for name, weights in weighed.items()
    ]
    if tuned:
        notes.append(
            f"The baselines {', '.join(tuned)} were tuned on validation, in parentheses over how many settings; the "
            "generator was not tuned for this table. So where they differ, budgets and tuning differ too."
        )
    return notes


def how_it_was_made(summary: Summary, cfg: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Data, commands, commits and machines behind a table."""
    runs = [run for result in summary.results for run in result.runs.values()]
    by_name = [(name.partition(":")[0], stage) for run in runs for name, stage in run.stages.items()]
    stages = [stage for name, stage in by_name if name not in ("prepare", "embed")]
    machines = sorted({f"{stage['machine']}, {stage['cores']} cores" for stage in stages})
    threads = sorted({str(stage["threads"]) for stage in stages if "threads" in stage})
    sizes = {name: runs[0].details[name] for name in ("users", "items", "interactions")}
    return {
        "dataset": {"name": cfg.dataset.name, **sizes},
        "split": cfg.evaluate.split,
        "commands": [text.told_command("table", overrides)],
        "commits": sorted({short_commit(stage["git"]) for stage in stages if stage.get("git")}),
        "machine": f"{' and '.join(machines)}, {'/'.join(threads)} thread{'s' if threads != ['1'] else ''} a run",
    }
