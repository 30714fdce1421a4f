"""The rows of a table: which cells they have, and what their results say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from tigerrec import artifacts
from tigerrec.config import ConfigError, compose, config_folder
from tigerrec.metrics import gains
from tigerrec.table.cells import Cell, steps_of

METRICS = ("hr@5", "hr@10", "ndcg@5", "ndcg@10")
HITS_AND_SEEN = (("item", "masked"), ("item", "kept"), ("sid", "masked"), ("sid", "kept"))
BASELINE, GENERATOR = "baseline", "generator"
SECONDS = {
    "minutes_tokenize": {"tokenize": "seconds"},
    "minutes_tune": {"tune": "seconds_of_trials"},
    "minutes_train": {"train": "training_seconds", "baseline": "fitting_seconds"},
    "minutes_evaluate": {"evaluate": "seconds", "baseline": "ranking_seconds"},
}  # what is counted of which stage
WORK = {
    "minutes_tokenize": "tokenizer",
    "minutes_tune": "tuning",
    "minutes_train": "training",
    "minutes_evaluate": "ranking",
}


@dataclass(frozen=True)
class Row:
    """A row of a table and its runs.

    Attributes:
        name: `<tokenizer>`, `<tokenizer>@<embedder>`, or a baseline's name.
        kind: `generator` or `baseline`.
        cells: its runs by (tokenizer seed, generator seed).
    """

    name: str
    kind: str
    embedder: str | None
    tokenizer: str | None
    cells: dict[tuple[int, int], Cell]


def _names(values: Any, option: str, group: str) -> list[str]:
    """A list of choices of a group, each named once.

    Raises:
        ConfigError: one is not a choice.
    """
    known = sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
    given = [values] if isinstance(values, str) else list(values or [])
    for name in given:
        if name not in known:
            raise ConfigError(f"{option}={name} is not a choice of {group}; allowed: {', '.join(known)}.")
    return list(dict.fromkeys(given))


def numbers_of_seeds(seeds: Any) -> tuple[int, int]:
    """How many tokenizer seeds and generator seeds a row has.

    Raises:
        ConfigError: it is neither a number nor two.
    """
    values = list(seeds) if OmegaConf.is_list(seeds) else [seeds] * 2
    if len(values) != 2 or any(not isinstance(value, int) or isinstance(value, bool) or value < 1 for value in values):
        raise ConfigError(
            f"seeds={seeds} must be a number from 1 up, or two: `seeds=[<tokenizer seeds>,<generator seeds>]`."
        )
    return values[0], values[1]


def plan_rows(overrides: Sequence[str], cfg: DictConfig, folder: Path) -> list[Row]:
    """The rows that a configuration asks for, checked before any work.

    Args:
        overrides: that `cfg` was composed with.
        folder: of the results of all tables of one kind.

    Raises:
        ConfigError: an option is wrong.
    """
    n_tokenizer, n_generator = numbers_of_seeds(cfg.seeds)
    rows = [
        _baseline_row(name, overrides, n_generator, folder / "baselines")
        for name in _names(cfg.baselines, "baselines", BASELINE)
    ]
    own = folder / f"{cfg.generator.name}-{cfg.train.name}"
    for name in dict.fromkeys([cfg.tokenizers] if isinstance(cfg.tokenizers, str) else list(cfg.tokenizers or [])):
        tokenizer, _, embedder = str(name).partition("@")
        _names([tokenizer], "tokenizers", "tokenizer")
        choices = [
            f"tokenizer={tokenizer}",
            *(f"embedder={choice}" for choice in _names(embedder or [], "tokenizers", "embedder")),
        ]
        shared = [option for option in overrides if not (embedder and option.startswith("embedder="))]
        cells = {}
        for tokenizer_seed in range(n_tokenizer):
            for generator_seed in range(n_generator):
                seeds = [f"tokenizer.seed={tokenizer_seed}", f"generator.seed={generator_seed}"]
                options = [*shared, *choices, *seeds]
                steps = steps_of(options, "evaluate")
                tokenized = steps["tokenize"].folder
                place = own / f"{tokenized.parent.name}_{tokenized.name}_seed{generator_seed}"
                cells[tokenizer_seed, generator_seed] = Cell(
                    str(name), steps["evaluate"].config.model, tuple(options), steps, place
                )
        rows.append(Row(str(name), GENERATOR, tokenized.parent.name, tokenized.name.rpartition("-seed")[0], cells))
    if not rows:
        raise ConfigError("There is no row; give `tokenizers=[<tokenizer>,…]` or `baselines=[<baseline>,…]`.")
    _check_apart(rows)
    return rows


def _check_apart(rows: Sequence[Row]) -> None:
    """Refuse rows whose runs or results would stand in one folder."""
    owners: dict[Path, str] = {}
    for row in rows:
        for cell in row.cells.values():
            for folder in (cell.folder, cell.last.folder):
                if folder in owners:
                    raise ConfigError(
                        f"The rows {owners[folder]} and {row.name} would both stand in {folder}; leave one out, and "
                        "give no option that names one run."
                    )
                owners[folder] = row.name


def _baseline_row(name: str, overrides: Sequence[str], n_seeds: int, folder: Path) -> Row:
    cells = {}
    for seed in range(n_seeds):
        options = [*overrides, f"baseline={name}", f"baseline.seed={seed}"]
        steps = steps_of(options, BASELINE)
        step = steps[BASELINE]
        cells[seed, 0] = Cell(name, compose(options).baseline.name, tuple(options), steps, folder / step.folder.name)
        if not step.config.baseline.is_random:
            break
    return Row(name, BASELINE, None, None, cells)


@dataclass(frozen=True)
class Run:
    """The results of one cell.

    Attributes:
        ranks: of each user's target by (hit, seen), int16 (users,); 0 = not in the list.
        targets: each user's target, int32 (users,).
        metrics: the rows of `metrics.json` by (hit, seen).
        provenance: of the cell and its stages.
    """

    ranks: dict[tuple[str, str], np.ndarray]
    targets: np.ndarray
    metrics: dict[tuple[str, str], dict[str, Any]]
    provenance: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """Sizes of the data, collisions of the ids, different items recommended, and the trials of a tuned baseline."""
        found: dict[str, Any] = self.provenance["facts"]
        return found

    def minutes(self, column: str) -> float | None:
        """Minutes of a kind of work; None where the run has none of it."""
        stages = self.provenance["stages"]
        return next(
            (stages[stage][seconds] / 60 for stage, seconds in SECONDS[column].items() if stage in stages), None
        )


def read_run(folder: Path) -> Run:
    """The results in a cell's folder.

    Raises:
        ArtifactError: there are none, or they are damaged.
    """
    manifest = artifacts.open_stage(folder, "cell")
    table = artifacts.read_table(folder, "ranks.parquet").to_pandas()
    ranks = {key: group["rank"].to_numpy() for key, group in table.groupby(["hit", "seen"], observed=True)}
    targets = table.drop_duplicates("user")["target"].to_numpy()
    metrics = {
        (row["hit"], row["seen"]): row
        for row in artifacts.read_json(folder, "metrics.json", [{"hit": str, "seen": str}])
    }
    return Run(ranks, targets, metrics, manifest.provenance)


@dataclass(frozen=True)
class Result:
    """A row with the runs that are there, and what the table says of it.

    Attributes:
        runs: by (tokenizer seed, generator seed).
        user_gains: what each user adds to the mean over runs of each metric, by (hit, seen), float64 (users, metrics).
    """

    row: Row
    runs: dict[tuple[int, int], Run]
    user_gains: dict[tuple[str, str], np.ndarray]

    @property
    def model(self) -> str:
        """What the row's runs are called in `metrics.json`."""
        return next(iter(self.row.cells.values())).model

    def value(self, metric: str, hit: str = "item", seen: str = "masked") -> float:
        """The mean of a metric over runs."""
        return float(np.mean(list(self.values(metric, hit, seen).values())))

    def values(self, metric: str, hit: str = "item", seen: str = "masked") -> dict[tuple[int, int], float]:
        """A metric of every run, by (tokenizer seed, generator seed)."""
        return {seeds: run.metrics[hit, seen][metric] for seeds, run in self.runs.items()}

    def fact(self, name: str) -> float | None:
        """The mean of a fact over runs; None where runs have none."""
        found = [run.facts[name] for run in self.runs.values() if name in run.facts]
        return float(np.mean(found)) if found else None

    @property
    def trials(self) -> list[dict[str, Any]]:
        """The settings that were compared on validation, with metrics and seconds; empty where nothing was tuned."""
        return next((run.facts["trials"] for run in self.runs.values() if "trials" in run.facts), [])

    def minutes(self, column: str) -> float | None:
        """Minutes of a kind of work in the run that took the fewest: others shared the machine."""
        return min(
            (minutes for run in self.runs.values() if (minutes := run.minutes(column)) is not None), default=None
        )


def result_of(row: Row) -> Result | None:
    """A row with the runs whose results are there; None where there are none."""
    runs = {seeds: read_run(cell.folder) for seeds, cell in row.cells.items() if artifacts.read_manifest(cell.folder)}
    if not runs:
        return None
    first = next(iter(runs.values()))
    found = {key: np.mean([gains_of(run.ranks[key]) for run in runs.values()], axis=0) for key in first.ranks}
    return Result(row, runs, found)


def gains_of(ranks: np.ndarray) -> np.ndarray:
    """What each user adds to `METRICS`, float64 (users, metrics)."""
    by_metric = gains(max(int(ranks.max()), 1))
    return np.stack([by_metric[metric][ranks] for metric in METRICS], axis=1)
