"""What a table says: means and intervals of its rows, comparisons with one of them, and components of variance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tigerrec import TigerrecError
from tigerrec.markdown import NOTHING
from tigerrec.table.rows import BASELINE, GENERATOR, METRICS, WORK, Result
from tigerrec.table.statistics import (
    holm,
    intervals,
    resampled_means,
    standard_deviation,
    two_sided_p,
    variance_components,
)

COMPARED = ("hr@10", "ndcg@10")
MASKED = ("item", "masked")
POOLED = "all, pooled"


def spread(variance: Sequence[dict[str, Any]], written: Callable[[float], str]) -> list[list[str]]:
    """The lines of a table of variance components: a row of the table of results each, behind a head.

    Args:
        variance: as `Summary.variance`.
        written: a standard deviation as text.
    """
    metrics = list(dict.fromkeys(line["metric"] for line in variance))
    seeds = list(dict.fromkeys(line["component"] for line in variance))
    lines = [
        [
            "row",
            *(f"{metric.upper()}, {seed.removesuffix(' seed')}" for metric in metrics for seed in seeds),
            "degrees of freedom",
        ]
    ]
    for row in dict.fromkeys(line["row"] for line in variance):
        own = [line for line in variance if line["row"] == row]
        deviations = {(line["metric"], line["component"]): written(line["sd"]) for line in own}
        freedom = {line["component"]: str(line["degrees_of_freedom"]) for line in own}
        cells = [deviations.get((metric, seed), NOTHING) for metric in metrics for seed in seeds]
        lines.append([row, *cells, ", ".join(freedom.get(seed, NOTHING) for seed in seeds)])
    return lines


@dataclass(frozen=True)
class Comparison:
    """A row against another one: the difference of a metric's means, with its 95 % paired bootstrap interval over
    users.

    Attributes:
        p: two-sided, of that bootstrap.
        p_holm: corrected for the number of rows compared.
    """

    row: str
    reference: str
    metric: str
    seen: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


class Summary:
    """The rows of a table, best NDCG@10 first (item level, seen masked), and what the bootstrap over users says of
    them.

    Args:
        results: of the same users.
        reference: the row that others are compared with; None = no comparison.

    Raises:
        TigerrecError: rows have other users or targets.
    """

    def __init__(self, results: Sequence[Result], reference: str | None) -> None:
        self.results = sorted(results, key=lambda result: -result.value("ndcg@10"))
        first = next(iter(self.results[0].runs.values()))
        for result in self.results:
            if any(not np.array_equal(run.targets, first.targets) for run in result.runs.values()):
                raise TigerrecError(
                    f"{self.results[0].row.name} and {result.row.name} have results of other targets; delete the "
                    "older cells and run them again."
                )
        keys = [(result.row.name, *key) for result in self.results for key in result.user_gains]
        columns = np.concatenate([gains for result in self.results for gains in result.user_gains.values()], axis=1)
        means = resampled_means(columns)
        self._resampled = {
            key: means[:, place * len(METRICS) : (place + 1) * len(METRICS)] for place, key in enumerate(keys)
        }
        self.rows = [line for result in self.results for line in self._lines(result)]
        self.comparisons = self._compare(reference)
        self.variance = self._components()

    def _lines(self, result: Result) -> list[dict[str, Any]]:
        """Flat rows of `table.parquet`, one for each kind of hit and treatment of seen items."""
        row, lines = result.row, []
        shared = {
            "collision_rate": result.fact("collision_rate"), "distinct_items": result.fact("distinct_items"),
            **{name: result.minutes(name) for name in WORK},
        }  # fmt: skip
        for hit, seen in result.user_gains:
            low, high = intervals(self._resampled[row.name, hit, seen])
            line: dict[str, Any] = {
                "row": row.name, "kind": row.kind, "model": result.model, "embedder": row.embedder, "tokenizer": row.tokenizer,
                "hit": hit, "seen": seen, "runs": len(result.runs),
            }  # fmt: skip
            for place, metric in enumerate(METRICS):
                values = result.values(metric, hit, seen)
                line |= {metric: result.value(metric, hit, seen), f"{metric}_sd": standard_deviation(values)}
                line |= {
                    f"{metric}_low": float(low[place]),
                    f"{metric}_high": float(high[place]),
                    f"{metric}_runs": list(values.values()),
                }
            lines.append(line | shared)
        return lines

    def _compare(self, reference: str | None) -> list[Comparison]:
        by_name = {result.row.name: result for result in self.results}
        if reference not in by_name:
            return []
        found = []
        for metric in COMPARED:
            place = METRICS.index(metric)
            base, others = (
                self._resampled[(reference, *MASKED)][:, place],
                [name for name in by_name if name != reference],
            )
            if not others:
                return []
            differences = np.stack([self._resampled[(name, *MASKED)][:, place] - base for name in others], axis=1)
            (lows, highs), p_values = intervals(differences), two_sided_p(differences)
            for name, low, high, p, p_holm in zip(others, lows, highs, p_values, holm(list(p_values)), strict=True):
                difference = by_name[name].value(metric) - by_name[reference].value(metric)
                found.append(
                    Comparison(
                        name, reference, metric, "masked", difference, float(low), float(high), float(p), float(p_holm)
                    )
                )
        return found

    def _components(self) -> list[dict[str, Any]]:
        """The spread by kind of seed, over all of the generator's rows and of each."""
        found = []
        for metric in COMPARED:
            rows = {result.row.name: result.values(metric) for result in self.results if result.row.kind == GENERATOR}
            for name, pooled in {
                POOLED: list(rows.values()),
                **{name: [values] for name, values in rows.items()},
            }.items():
                for component in variance_components(pooled):
                    of_seed = {
                        "component": component.name,
                        "sd": component.sd,
                        "degrees_of_freedom": component.degrees_of_freedom,
                    }
                    found.append({"metric": metric, "seen": "masked", "row": name, **of_seed})
        return found

    @property
    def above_all_generators(self) -> list[str]:
        """Baselines with a higher NDCG@10 than every row of the generator, best first."""
        first = next((place for place, result in enumerate(self.results) if result.row.kind == GENERATOR), 0)
        return [result.row.name for result in self.results[:first] if result.row.kind == BASELINE]
