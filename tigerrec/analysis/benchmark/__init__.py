"""Training and search against the stock way of transformers and the arithmetic limit, on one machine in one run."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tigerrec import TigerrecError, pipeline
from tigerrec.models.t5 import T5
from tigerrec.runtime.processes import in_own_process
from tigerrec.runtime.provenance import provenance
from tigerrec.storage.files import write_json
from tigerrec.storage.fingerprints import describe
from tigerrec.text import aligned
from tigerrec.training.options import TrainConfig

logger = logging.getLogger(__name__)
SIDES, GROWTH = "tigerrec.analysis.benchmark.sides", "tigerrec.analysis.benchmark.growth"


@dataclass(frozen=True)
class Setting:
    """What both sides are given: the folders of data and Semantic IDs, the generator and its training."""

    prepared: Path
    tokenized: Path
    config: TrainConfig


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    warmup_steps: int = 2  # training steps before the clock starts
    stock_steps: int = 30  # training steps of the stock side that are timed
    stock_users: int = 256  # whom the stock side searches for
    beam_size: int = 20  # of the search
    matrix_size: int = 2048  # of the products that give the machine's rate
    catalogues: tuple[int, ...] = (10_000, 100_000, 1_000_000)  # numbers of made-up items
    beams: tuple[int, ...] = (20, 50)  # beam sizes on the made-up catalogues
    history_lengths: tuple[int, ...] = (5, 20, 50)  # items of made-up histories
    growth_users: int = 256  # made-up histories


def measure(setting: Setting, effort: Effort) -> dict[str, Any]:
    """All measurements, each in its own process; of a T5 also `ratio`, how many times faster our side is than the stock
    side, and `of_limit`, how many times longer it takes than arithmetic alone."""

    def run(label: str, function: str, *arguments: Any) -> dict[str, Any]:
        logger.info("measuring %s", label)
        return in_own_process(function, *arguments)

    machine = run("the machine", f"{SIDES}.machine", setting, effort.matrix_size)
    results: dict[str, Any] = {"machine": machine}
    is_t5 = isinstance(setting.config.generator, T5)
    limits = run("operations", f"{SIDES}.limits", setting, effort.beam_size) if is_t5 else {}
    for name, argument, stock_argument in (
        ("epoch", effort.warmup_steps, effort.stock_steps),
        ("search", effort.beam_size, effort.stock_users),
    ):
        ours = run(f"{name}, ours", f"{SIDES}.{name}", setting, argument)
        results[name] = {"seconds": ours["seconds"], "peak_mb": ours["peak_mb"]}
        if not is_t5:
            continue
        stock = run(f"{name}, stock", f"{SIDES}.stock_{name}", setting, argument, stock_argument)
        limit = limits[name] / machine["operations_per_second"]
        seconds, stock_seconds = ours["seconds"], stock["seconds"]
        results[name] |= {"stock_seconds": stock_seconds, "stock_measured": stock["measured"]}
        results[name] |= {"ratio": stock_seconds / seconds, "limit_seconds": limit, "of_limit": seconds / limit}
        results[name] |= {"stock_peak_mb": stock["peak_mb"]}
    n_users, smallest = effort.growth_users, (min(effort.catalogues), min(effort.beams))
    catalogues = [
        run(f"{n_items:,} items", f"{GROWTH}.catalogue", setting.config, n_items, effort.beams, n_users)
        for n_items in effort.catalogues
    ]
    history = run("histories", f"{GROWTH}.history", setting.config, *smallest, effort.history_lengths, n_users)
    return results | {"growth": {"catalogue": catalogues, "history": history["rows"]}}


def rounded(value: Any) -> Any:
    """A JSON value, its fractions to four digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def as_table(rows: Sequence[Mapping[str, Any]], heading: Sequence[str] | None = None) -> str:
    """Rows of equal keys as a table, its columns aligned."""

    def shown(cell: Any) -> str:
        return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}" if isinstance(cell, float) else str(cell)

    lines = [list(map(shown, row.values())) for row in rows]
    return aligned([heading or [key.replace("_", " ") for key in rows[0]], *lines])


def report(results: Mapping[str, Any]) -> str:
    """The results as tables, readable by people."""
    columns = {
        "seconds": "seconds", "stock_seconds": "stock", "ratio": "ratio", "limit_seconds": "limit",
        "of_limit": "of limit", "peak_mb": "peak MB", "stock_peak_mb": "stock peak MB",
    }  # fmt: skip
    given = [key for key in columns if key in results["epoch"]]
    sides = [{"": name, **{key: results[name][key] for key in given}} for name in ("epoch", "search")]
    growth, machine = results["growth"], results["machine"]
    stock = (
        "weights are random"
        if "ratio" not in given
        else f"""\
stock: transformers in fp32, extrapolated from {results["epoch"]["stock_measured"]:,} steps and \
{results["search"]["stock_measured"]:,} users; weights are random on both sides; limit: seconds of the matrix products \
alone, without padding, at the machine's rate"""
    )
    return f"""\
{as_table(sides, ["", *(columns[key] for key in given)])}
{stock}

made-up catalogues, histories of 5 items:
{as_table(growth["catalogue"])}

histories over {growth["catalogue"][0]["items"]:,} items:
{as_table(growth["history"])}

{machine["cpu"]}, {machine["device"]}, {machine["threads"]} threads, torch {machine["torch"]}, transformers \
{machine["transformers"]}, {machine["precision"]}, {machine["operations_per_second"] / 1e9:,.0f} billion operations a \
second"""


def benchmark(cfg: DictConfig, effort: Effort) -> Path:
    """Bring the Semantic IDs of a configuration up to date, measure, and write the results to the JSON file returned.

    Raises:
        TigerrecError: an option is wrong, a stage cannot be used, or a measurement failed.
    """
    started = time.perf_counter()
    steps = pipeline.plan(cfg)
    if steps["train"].config.generator.needs:
        raise TigerrecError(f"generator={cfg.generator.name} reads item vectors; give `generator=t5_tree`.")
    pipeline.run(cfg, "tokenize")
    prepared, tokenized, config = steps["prepare"].folder, steps["tokenize"].folder, steps["train"].config
    results = rounded(measure(Setting(prepared, tokenized, config), effort))
    circumstances = provenance(started)
    results |= {"config": describe(config), **{key: circumstances[key] for key in ("git", "finished", "seconds")}}
    name = f"{prepared.name}-{tokenized.name}-{cfg.generator.name}-{cfg.train.name}.json"
    path = prepared.parent / "benchmark" / name
    write_json(path, results)
    logger.info("%s", report(results))
    return path
