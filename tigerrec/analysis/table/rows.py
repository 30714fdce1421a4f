"""The rows of a table: which cells they have, and what their results say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from tigerrec.analysis.table.cells import CELL, Cell, steps_of
from tigerrec.config import ConfigError, compose, config_folder
from tigerrec.evaluation.lists import read_ranks
from tigerrec.evaluation.metrics import gains
from tigerrec.search.options import CODES, ITEMS, WEIGHED
from tigerrec.storage.contracts import read_json
from tigerrec.storage.manifests import read_manifest
from tigerrec.storage.stages import open_stage

METRICS = ("hr@5", "hr@10", "ndcg@5", "ndcg@10")
BASELINE, GENERATOR = "baseline", "generator"
WORK = {
    "minutes_tokenize": "tokenizer",
    "minutes_tune": "tuning",
    "minutes_train": "training",
    "minutes_evaluate": "ranking",
}
SECONDS = {
    "minutes_tokenize": {"tokenize": "seconds"},
    "minutes_tune": {"tune": "seconds_of_trials"},
    "minutes_train": {"train": "training_seconds", "baseline": "fitting_seconds"},
    "minutes_evaluate": {"evaluate": "seconds", "baseline": "ranking_seconds"},
}  # what is counted of which stage
Seeds = tuple[int, int]  # tokenizer seed and generator seed; the seed of a baseline and 0


@dataclass(frozen=True)
class Row:
    """A row of a table and its runs."""

    name: str  # `<tokenizer>[@<embedder>][:<scores>]`, or a baseline's name
    kind: str  # `generator` or `baseline`
    embedder: str | None
    tokenizer: str | None
    cells: dict[Seeds, Cell]  # its runs
    scores: str = ITEMS  # those by which it ranks, as in `Scoring`; a baseline scores items

    @property
    def first(self) -> Cell:
        """The run with the lowest seeds."""
        return self.cells[min(self.cells)]


def listed(values: Any) -> list[str]:
    """The values of an option that takes one or several, each once."""
    return list(dict.fromkeys([values] if isinstance(values, str) else map(str, values or [])))


def _check_choice(name: str, option: str, group: str) -> None:
    known = sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"{option}={name} is not a choice of {group}; allowed: {', '.join(known)}.")


def numbers_of_seeds(seeds: Any) -> Seeds:
    """How many tokenizer seeds and generator seeds a row has, of the option `seeds`: a number or two."""
    values = list(seeds) if OmegaConf.is_list(seeds) else [seeds] * 2
    if len(values) != 2 or any(type(value) is not int or value < 1 for value in values):
        raise ConfigError(
            f"seeds={seeds} must be a number from 1 up, or two: `seeds=[<tokenizer seeds>,<generator seeds>]`."
        )
    return values[0], values[1]


def plan_rows(overrides: Sequence[str], cfg: DictConfig, folder: Path) -> list[Row]:
    """The rows that a configuration, composed with `overrides`, asks for, checked before any work; `folder` has the
    results of all tables of one kind."""
    seeds = numbers_of_seeds(cfg.seeds)
    if cfg.replicated is not None and (type(cfg.replicated) is not int or cfg.replicated < 0):
        raise ConfigError(f"replicated={cfg.replicated} must be a number of rows, or null for all.")
    rows = [_baseline_row(name, overrides, seeds[1], folder / "baselines") for name in listed(cfg.baselines)]
    own = folder / f"{cfg.generator.name}-{cfg.train.name}"
    rows += [_generator_row(name, overrides, seeds, own, cfg.evaluate.name) for name in listed(cfg.tokenizers)]
    if not rows:
        raise ConfigError("There is no row; give `tokenizers=[<tokenizer>,…]` or `baselines=[<baseline>,…]`.")
    owners: dict[Path, str] = {}
    for row in rows:
        for place in (place for cell in row.cells.values() for place in (cell.folder, cell.last.folder)):
            if place in owners:
                raise ConfigError(
                    f"The rows {owners[place]} and {row.name} would both stand in {place}; leave one out, and give no "
                    "option that names one run."
                )
            owners[place] = row.name
    return rows


def _generator_row(name: str, overrides: Sequence[str], n_seeds: Seeds, folder: Path, evaluate_name: str) -> Row:
    ids, _, scores = name.partition(":")
    tokenizer, _, embedder = ids.partition("@")
    _check_choice(tokenizer, "tokenizers", "tokenizer")
    options = [*overrides, f"tokenizer={tokenizer}"]
    if embedder:
        _check_choice(embedder, "tokenizers", "embedder")
        options = [*(option for option in options if not option.startswith("embedder=")), f"embedder={embedder}"]
    if scores:
        options += [f"evaluate.scores={scores}", f"evaluate.name={evaluate_name}-{scores}"]
    cfg, cells = compose(options), {}
    for seed, generator_seed in np.ndindex(n_seeds):
        cfg.tokenizer.seed, cfg.generator.seed = seed, generator_seed
        of_cell = (*options, f"tokenizer.seed={seed}", f"generator.seed={generator_seed}")
        steps = steps_of(cfg, "evaluate")
        embedded, tokenized = steps["embed"].folder.name, steps["tokenize"].folder.name
        place = folder / f"{embedded}_{tokenized}_seed{generator_seed}{f'_{scores}' if scores else ''}"
        cells[seed, generator_seed] = Cell(name, steps["evaluate"].config.model, of_cell, steps, place)
    ranks_by = steps["evaluate"].config.scores
    return Row(name, GENERATOR, embedded, tokenized.removesuffix(f"-seed{seed}"), cells, ranks_by)


def _baseline_row(name: str, overrides: Sequence[str], n_seeds: int, folder: Path) -> Row:
    _check_choice(name, "baselines", BASELINE)
    cfg, cells = compose([*overrides, f"baseline={name}"]), {}
    for seed in range(n_seeds):
        cfg.baseline.seed = seed
        options = (*overrides, f"baseline={name}", f"baseline.seed={seed}")
        steps = steps_of(cfg, BASELINE)
        step = steps[BASELINE]
        cells[seed, 0] = Cell(name, step.config.model, options, steps, folder / step.folder.name)
        if not step.config.baseline.is_random:
            break
    return Row(name, BASELINE, None, None, cells)


@dataclass(frozen=True)
class CellResults:
    """The results of one cell."""

    ranks: dict[tuple[str, str], np.ndarray]  # of each user's target by (hit, seen), int16 (users,); 0 = not listed
    targets: np.ndarray  # each user's target, int32 (users,)
    metrics: dict[tuple[str, str], dict[str, Any]]  # the rows of `metrics.json` by (hit, seen)
    details: dict[str, Any]  # sizes of data, collisions of ids, different items recommended, trials of a baseline
    stages: dict[str, dict[str, Any]]  # the provenance of its stages by key


def read_cell(folder: Path) -> CellResults:
    """The results in a cell's folder."""
    provenance = open_stage(folder, CELL).provenance
    by_model, targets, _ = read_ranks(folder)
    ranks = {(hit, seen): of_users for (_, hit, seen), of_users in by_model.items()}
    rows = read_json(folder, "metrics.json", [{"hit": str, "seen": str}])
    metrics = {(row["hit"], row["seen"]): row for row in rows}
    return CellResults(ranks, targets, metrics, provenance["facts"], provenance["stages"])


@dataclass(frozen=True)
class RowResults:
    """A row with the results of its cells that are done, by seeds."""

    row: Row
    runs: dict[Seeds, CellResults]

    @cached_property
    def user_gains(self) -> dict[tuple[str, str], np.ndarray]:
        """What each user adds to the mean over runs of each of `METRICS`, by (hit, seen), float64 (users, metrics)."""
        first = next(iter(self.runs.values()))
        return {key: np.mean([gains_of(run.ranks[key]) for run in self.runs.values()], axis=0) for key in first.ranks}

    @property
    def model(self) -> str:
        """What the row's runs are called in `metrics.json`."""
        return next(iter(self.row.cells.values())).model

    def values(self, metric: str, hit: str = "item", seen: str = "masked") -> dict[Seeds, float]:
        """A metric of every run."""
        return {seeds: run.metrics[hit, seen][metric] for seeds, run in self.runs.items()}

    def mean(self, metric: str, hit: str = "item", seen: str = "masked") -> float:
        """The mean of a metric over runs."""
        return float(np.mean(list(self.values(metric, hit, seen).values())))

    def mean_detail(self, name: str) -> float | None:
        """The mean of a detail over runs; None where runs have none."""
        values = [run.details[name] for run in self.runs.values() if name in run.details]
        return float(np.mean(values)) if values else None

    @property
    def scores_every_item(self) -> bool:
        """Whether every item of the catalogue was scored for a list."""
        return self.row.scores != CODES

    @property
    def item_weights(self) -> list[float]:
        """What the item head counted beside the tree in each run; empty where nothing was weighed."""
        if self.row.scores not in WEIGHED:
            return []
        return [run.stages["evaluate"]["item_weight"] for run in self.runs.values()]

    @property
    def trials(self) -> list[dict[str, Any]]:
        """The settings that were compared on validation, with metrics and seconds; empty where nothing was tuned."""
        return next((run.details["trials"] for run in self.runs.values() if "trials" in run.details), [])

    def minutes(self, column: str) -> float | None:
        """Minutes of a kind of work in the run that took the fewest: others shared the machine."""
        counted = SECONDS[column].items()
        spent = [run.stages[key][name] / 60 for run in self.runs.values() for key, name in counted if key in run.stages]
        return min(spent, default=None)


def by_seeds(rows: Sequence[Row]) -> list[Cell]:
    """The cells of all rows, those with the lowest seeds first: every row once before any has a second run."""
    pairs = [(seeds, cell) for row in rows for seeds, cell in row.cells.items()]
    return [cell for _, cell in sorted(pairs, key=lambda pair: pair[0])]


def _validation_score(row: Row) -> float:
    """NDCG@10 on validation of a row's first run, by the scores that chose among checkpoints; -inf where it is not
    done."""
    if not read_manifest(row.first.folder):
        return -math.inf
    return float(open_stage(row.first.folder, CELL).provenance["stages"]["train"]["selected"]["validation_ndcg@10"])


def replicated(rows: Sequence[Row], n_best: int) -> list[Row]:
    """Rows with the runs that they get: the `n_best` rows of the generator whose first run validates best keep all
    seeds, the others that run alone. Test items are not looked at."""
    of_generator = sorted((row for row in rows if row.kind == GENERATOR), key=_validation_score, reverse=True)
    others = {row.name for row in of_generator[n_best:]}
    return [replace(row, cells={min(row.cells): row.first}) if row.name in others else row for row in rows]


def results_of(row: Row) -> RowResults | None:
    """A row with the results of its cells that are done; None where there are none."""
    runs = {seeds: read_cell(cell.folder) for seeds, cell in row.cells.items() if read_manifest(cell.folder)}
    return RowResults(row, runs) if runs else None


def gains_of(ranks: np.ndarray) -> np.ndarray:
    """What each user adds to `METRICS`, float64 (users, metrics)."""
    by_metric = gains(max(int(ranks.max()), 1))
    return np.stack([by_metric[metric][ranks] for metric in METRICS], axis=1)
