"""Training and search against the stock way of transformers and the arithmetic limit, on one machine in one run."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tigerrec import TigerrecError, pipeline
from tigerrec.config import compose
from tigerrec.models.base import USER_TOKENS
from tigerrec.models.t5 import T5
from tigerrec.runtime.processes import in_own_process
from tigerrec.runtime.provenance import provenance
from tigerrec.storage.files import write_json
from tigerrec.storage.fingerprints import describe
from tigerrec.text import aligned
from tigerrec.training.options import TrainConfig

logger = logging.getLogger(__name__)
SASREC = "sasrec_ce"
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
    stock_steps: int = 10  # training steps of the stock side that are timed, a turn
    stock_users: int = 256  # whom the stock side searches for
    beam_size: int = 20  # of the search
    matrix_size: int = 2048  # of the products that give the machine's rate
    catalogues: tuple[int, ...] = (10_000, 100_000, 1_000_000)  # numbers of made-up items
    beams: tuple[int, ...] = (20, 50)  # beam sizes on the made-up catalogues
    history_lengths: tuple[int, ...] = (5, 20, 50)  # items of made-up histories
    growth_users: int = 256  # made-up histories
    profiled_users: int = 1024  # whom the profile searches for
    repetitions: int = 3  # of stock and ours by turns
    beside: tuple[str, ...] = ("t5", "t5_items", "t5_tree", SASREC)  # what else an epoch and a search are measured of


def measure(setting: Setting, effort: Effort) -> dict[str, Any]:
    """All measurements, each in its own process; of a T5 also `ratio`, how many times faster our side is than the stock
    side, and `of_limit`, how many times longer it takes than arithmetic alone. Both sides and the machine's rate are
    measured by turns, so that a busy minute does not decide: figures are medians, with the least and the most."""

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
        turns = []
        for number in range(effort.repetitions):
            of = f"{number + 1} of {effort.repetitions}"
            turn = {}
            if is_t5:
                turn["stock"] = run(f"{name}, stock, {of}", f"{SIDES}.stock_{name}", setting, argument, stock_argument)
                rate = run(f"the machine, {of}", f"{SIDES}.machine", setting, effort.matrix_size)
                turn["limit"] = {"seconds": limits[name] / rate["operations_per_second"]}
            turn["ours"] = run(f"{name}, ours, {of}", f"{SIDES}.{name}", setting, argument)
            turns.append(turn)
        results[name] = summary(turns)
    n_users, smallest = effort.growth_users, (min(effort.catalogues), min(effort.beams))
    catalogues = [
        run(f"{n_items:,} items", f"{GROWTH}.catalogue", setting.config, n_items, effort.beams, n_users)
        for n_items in effort.catalogues
    ]
    history = run("histories", f"{GROWTH}.history", setting.config, *smallest, effort.history_lengths, n_users)
    return results | {"growth": {"catalogue": catalogues, "history": history["rows"]}}


def summary(turns: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """What turns of both sides say: medians, and of what compares the sides the least and the most."""

    def median(side: str, key: str = "seconds") -> float:
        return statistics.median(turn[side][key] for turn in turns)

    found = {"seconds": median("ours"), "peak_mb": max(turn["ours"]["peak_mb"] for turn in turns)}
    if "stock" not in turns[0]:
        return found
    compared = {
        "ratio": [turn["stock"]["seconds"] / turn["ours"]["seconds"] for turn in turns],
        "of_limit": [turn["ours"]["seconds"] / turn["limit"]["seconds"] for turn in turns],
    }
    for name, values in compared.items():
        found |= {name: statistics.median(values), f"{name}_range": [min(values), max(values)]}
    return found | {
        "stock_seconds": median("stock"),
        "stock_measured": turns[0]["stock"]["measured"],
        "stock_peak_mb": max(turn["stock"]["peak_mb"] for turn in turns),
        "limit_seconds": median("limit"),
    }


def measure_beside(overrides: Sequence[str], effort: Effort) -> list[dict[str, Any]]:
    """Seconds of an epoch and of a search for all users by other generators on the same Semantic IDs, and by SASRec
    with cross-entropy; `overrides` compose the configuration that is measured."""
    rows = []
    kept = [override for override in overrides if not override.lstrip("+~").startswith("generator")]
    for name in effort.beside:
        logger.info("measuring %s", name)
        choice = f"baseline={name}" if name == SASREC else f"generator={name}"
        cfg = compose([*kept, choice])
        steps = pipeline.plan(cfg)
        if name == SASREC:
            chosen = pipeline.plan_baseline(cfg)["baseline"].config.baseline
            found = in_own_process(f"{SIDES}.baseline", steps["prepare"].folder, chosen, effort.beam_size)
        else:
            setting = Setting(steps["prepare"].folder, steps["tokenize"].folder, steps["train"].config)
            epoch = in_own_process(f"{SIDES}.epoch", setting, effort.warmup_steps)
            search = in_own_process(f"{SIDES}.search", setting, effort.beam_size)
            found = {
                "epoch_seconds": epoch["seconds"],
                "search_seconds": search["seconds"],
                "peak_mb": max(epoch["peak_mb"], search["peak_mb"]),
            }
        rows.append({"model": name, **found})
    return rows


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
    ranges = [key for key in ("ratio_range", "of_limit_range") if key in results["epoch"]]
    sides = [
        {"": name, **{key: results[name][key] for key in given}}
        | {key: " – ".join(f"{end:.3g}" for end in results[name][key]) for key in ranges}
        for name in ("epoch", "search")
    ]
    beside = f"\n{as_table(results['beside'])}\n" if results.get("beside") else ""
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
{as_table(sides, ["", *(columns[key] for key in given), *(key.replace("_", " ") for key in ranges)])}
{stock}
{beside}
made-up catalogues, histories of 5 items:
{as_table(growth["catalogue"])}

histories over {growth["catalogue"][0]["items"]:,} items:
{as_table(growth["history"])}

{machine["cpu"]}, {machine["device"]}, {machine["threads"]} threads, torch {machine["torch"]}, transformers \
{machine["transformers"]}, {machine["precision"]}, {machine["operations_per_second"] / 1e9:,.0f} billion operations a \
second"""


def planned(cfg: DictConfig) -> dict[str, pipeline.Step]:
    """The stages of a configuration whose generator can be measured with random weights. Raises TigerrecError if it
    reads item vectors or users."""
    steps = pipeline.plan(cfg)
    if steps["train"].config.generator.needs:
        raise TigerrecError(f"generator={cfg.generator.name} reads item vectors; give `generator=t5_tree`.")
    if getattr(steps["train"].config.generator, USER_TOKENS, 0):
        raise TigerrecError("The stock side reads no token of the user; leave `generator.user_tokens` out.")
    return steps


def benchmark(cfg: DictConfig, effort: Effort, overrides: Sequence[str] = ()) -> Path:
    """Bring the Semantic IDs of a configuration up to date, measure, and write the results to the JSON file returned;
    `overrides` compose the configuration.

    Raises:
        TigerrecError: an option is wrong, a stage cannot be used, or a measurement failed.
    """
    started = time.perf_counter()
    steps = planned(cfg)
    pipeline.run(cfg, "tokenize")
    prepared, tokenized, config = steps["prepare"].folder, steps["tokenize"].folder, steps["train"].config
    results = rounded(measure(Setting(prepared, tokenized, config), effort))
    results["beside"] = rounded(measure_beside(overrides, effort))
    circumstances = provenance(started)
    results |= {"config": describe(config), **{key: circumstances[key] for key in ("git", "finished", "seconds")}}
    name = f"{prepared.name}-{tokenized.name}-{cfg.generator.name}-{cfg.train.name}.json"
    path = prepared.parent / "benchmark" / name
    write_json(path, results)
    logger.info("%s", report(results))
    return path
