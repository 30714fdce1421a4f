"""What a table says: means and intervals of its rows, comparisons with one of them, and components of variance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tigerrec import TigerrecError
from tigerrec.analysis.table import statistics
from tigerrec.analysis.table.rows import BASELINE, GENERATOR, METRICS, WORK, RowResults
from tigerrec.text import NOTHING

COMPARED = ("hr@10", "ndcg@10")
MASKED = ("item", "masked")
POOLED = "all, pooled"


def spread(variance: Sequence[dict[str, Any]], written: Callable[[float], str]) -> list[list[str]]:
    """`Summary.variance` as lines of a table: a head and a line a row; `written` gives a standard deviation as text."""
    metrics, components, rows = (
        list(dict.fromkeys(line[key] for line in variance)) for key in ("metric", "component", "row")
    )
    heads = [f"{metric.upper()}, {name.removesuffix(' seed')}" for metric in metrics for name in components]
    lines = [["row", *heads, "degrees of freedom"]]
    for row in rows:
        own = {(line["metric"], line["component"]): line for line in variance if line["row"] == row}
        sds = [
            written(own[metric, name]["sd"]) if (metric, name) in own else NOTHING
            for metric in metrics
            for name in components
        ]
        freedom = {name: str(line["degrees_of_freedom"]) for (_, name), line in own.items()}
        lines.append([row, *sds, ", ".join(freedom.get(name, NOTHING) for name in components)])
    return lines


class Summary:
    """The rows of a table, best NDCG@10 first (item level, seen masked), and what the bootstrap over users says.

    Args:
        results: of the same users.
        references: the rows that all others are compared with, each on its own.

    Attributes:
        rows: of `table.parquet`: one for each row, kind of hit and treatment of seen items.
        comparisons: the difference of a row's mean to that of a reference, with its 95 % paired bootstrap interval
            over users, the two-sided p of that bootstrap, and p corrected for the number of rows compared.
        variance: the standard deviations that `variance_components` estimates, over all generator rows and of each.

    Raises:
        TigerrecError: rows have other users or targets.
    """

    def __init__(self, results: Sequence[RowResults], references: Sequence[str]) -> None:
        self.results = sorted(results, key=lambda result: -result.mean("ndcg@10"))
        first = next(iter(self.results[0].runs.values()))
        for result in self.results:
            if any(not np.array_equal(run.targets, first.targets) for run in result.runs.values()):
                raise TigerrecError(
                    f"{self.results[0].row.name} and {result.row.name} have results of other targets; delete the "
                    "older cells and run them again."
                )
        keys = [(result.row.name, *key) for result in self.results for key in result.user_gains]
        means = statistics.resampled_means(
            np.concatenate([gains for result in self.results for gains in result.user_gains.values()], axis=1)
        )
        self._resampled = dict(zip(keys, np.split(means, len(keys), axis=1), strict=True))
        self.rows = [line for result in self.results for line in self._lines(result)]
        self.comparisons = [line for reference in references for line in self._compare(reference)]
        self.variance = self._components()

    def _lines(self, result: RowResults) -> list[dict[str, Any]]:
        row, lines = result.row, []
        for hit, seen in result.user_gains:
            line: dict[str, Any] = {"row": row.name, "kind": row.kind, "model": result.model}
            line |= {"embedder": row.embedder, "tokenizer": row.tokenizer}
            line |= {"hit": hit, "seen": seen, "runs": len(result.runs)}
            ends = statistics.intervals(self._resampled[row.name, hit, seen])
            for metric, low, high in zip(METRICS, *ends, strict=True):
                values = result.values(metric, hit, seen)
                line |= {metric: result.mean(metric, hit, seen), f"{metric}_sd": statistics.standard_deviation(values)}
                line |= {f"{metric}_low": float(low), f"{metric}_high": float(high)}
                line[f"{metric}_runs"] = list(values.values())
            details = {name: result.mean_detail(name) for name in ("collision_rate", "distinct_items")}
            lines.append(line | details | {name: result.minutes(name) for name in WORK})
        return lines

    def _compare(self, reference: str) -> list[dict[str, Any]]:
        others = [result for result in self.results if result.row.name != reference]
        base = next((result for result in self.results if result.row.name == reference), None)
        if base is None or not others:
            return []
        comparisons = []
        for metric in COMPARED:
            place = METRICS.index(metric)
            base_means, *means = (self._resampled[(result.row.name, *MASKED)][:, place] for result in (base, *others))
            differences = np.stack([of_other - base_means for of_other in means], axis=1)
            p = statistics.two_sided_p(differences)
            columns = (*statistics.intervals(differences), p, statistics.holm(list(p)))
            for other, *figures in zip(others, *columns, strict=True):
                row = {"row": other.row.name, "reference": base.row.name, "metric": metric, "seen": "masked"}
                row["difference"] = other.mean(metric) - base.mean(metric)
                comparisons.append(row | dict(zip(("low", "high", "p", "p_holm"), map(float, figures), strict=True)))
        return comparisons

    def _components(self) -> list[dict[str, Any]]:
        lines = []
        for metric in COMPARED:
            rows = {result.row.name: [result.values(metric)] for result in self.results if result.row.kind == GENERATOR}
            for name, runs in {POOLED: [of_row for (of_row,) in rows.values()], **rows}.items():
                for component in statistics.variance_components(runs):
                    line = {"metric": metric, "seen": "masked", "row": name, "component": component.name}
                    lines.append(line | {"sd": component.sd, "degrees_of_freedom": component.degrees_of_freedom})
        return lines

    @property
    def above_all_generators(self) -> list[str]:
        """Baselines with a higher NDCG@10 than every row of the generator, best first."""
        first = next((place for place, result in enumerate(self.results) if result.row.kind == GENERATOR), 0)
        return [result.row.name for result in self.results[:first] if result.row.kind == BASELINE]
