"""The page about a table of results: rows side by side, what differs for sure, what it costs, and where results
vary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tigerrec import TigerrecError, artifacts
from tigerrec.markdown import NOTHING, written
from tigerrec.report.charts import Interval, intervals
from tigerrec.report.markup import (
    Html,
    bar,
    disclosure,
    document,
    element,
    facts,
    figure,
    figures,
    join,
    legend,
    note,
    paragraph,
    percent,
    table,
)
from tigerrec.table.rows import WORK
from tigerrec.table.summary import spread

METRICS = ("hr@5", "ndcg@5", "hr@10", "ndcg@10")
MAIN = "ndcg@10"
KINDS = ("generator", "baseline")
NEEDED = ("row", "hit", "seen", *METRICS)


@dataclass(frozen=True)
class ResultTable:
    """The rows of `table.parquet`, and `table.json` about them."""

    rows: list[dict[str, Any]]
    about: dict[str, Any]

    def chosen(self, hit: str, seen: str) -> list[dict[str, Any]]:
        """The rows of one kind of hit and one treatment of seen items, best first."""
        rows = [row for row in self.rows if (row["hit"], row["seen"]) == (hit, seen)]
        return sorted(rows, key=lambda row: (-row[MAIN], row["row"]))


def read_result_table(folder: Path) -> ResultTable:
    """The table of results in a folder.

    Raises:
        ArtifactError: there is none, or it lacks columns.
    """
    import pyarrow.parquet

    for name in ("table.parquet", "table.json"):
        if not (folder / name).is_file():
            raise artifacts.MissingError(
                f"{folder} holds no {name}; give the folder that `make table` printed as `TABLE=<folder>`."
            )
    try:
        rows = pyarrow.parquet.read_table(folder / "table.parquet").to_pylist()
        about = artifacts.read_json(folder, "table.json")
    except (OSError, ValueError) as error:
        raise artifacts.DamagedError(
            f"The table in {folder} cannot be read ({str(error).splitlines()[0]}); run `make table` again."
        ) from None
    lacking = [name for name in NEEDED if rows and name not in rows[0]]
    if lacking or not any((row["hit"], row["seen"]) == ("item", "masked") for row in rows):
        fault = f"has no column '{lacking[0]}'" if lacking else "has no row of hits on items with seen items masked"
        raise TigerrecError(f"{folder / 'table.parquet'} {fault}; run `make table` again.")
    return ResultTable(rows, about)


def table_page(results: ResultTable) -> str:
    """The page about a table, as HTML."""
    about = results.about
    sections = [
        ("results", "Results", results_part(results)),
        ("comparisons", "What differs", comparisons_part(about.get("comparisons", []))),
        ("costs", "What it costs", costs_part(results)),
        ("variance", "Where results vary", variance_part(about.get("variance", []))),
        ("inflation", "If a hit on codes counted", inflation_part(results)),
        ("tuning", "How the baselines were tuned", tuning_part(about.get("trials", {}))),
        ("made", "How it was made", made_part(about)),
    ]
    return document(
        f"{about.get('name', 'Results')}", heading(results), [section for section in sections if section[2]]
    )


def heading(results: ResultTable) -> list[Html]:
    """What is compared, and on what."""
    rows, data = results.chosen("item", "masked"), results.about.get("dataset", {})
    runs = sum(row.get("runs") or 1 for row in rows)
    best = rows[0]
    lead = (
        f"{len(rows)} rows from {runs} runs. Best by {MAIN.upper()}, hits on the item, seen items masked: "
        f"{best['row']} with {best[MAIN]:.4f}."
    )
    counted = ", ".join(f"{data[name]:,} {name}" for name in ("users", "items", "interactions") if name in data)
    return [paragraph(lead, class_="lead"), facts([("Data set", f"{data.get('name', NOTHING)}: {counted}")])]


def _interval(row: dict[str, Any], metric: str) -> Interval:
    value, parts = row[metric], row.get(f"{metric}_runs") or ()
    low, high = (value if row.get(f"{metric}_{end}") is None else row[f"{metric}_{end}"] for end in ("low", "high"))
    series = KINDS.index(row["kind"]) if row.get("kind") in KINDS else 0
    return Interval(row["row"], value, low, high, parts if len(parts) > 1 else (), series)


def _result(row: dict[str, Any], metric: str) -> Html:
    spread = row.get(f"{metric}_sd")
    return join((f"{row[metric]:.4f}", element("small", f"± {spread:.4f}" if spread is not None else "")))


def _results_table(rows: Sequence[dict[str, Any]]) -> Html:
    shown = [
        [
            row["row"],
            *(_result(row, metric) for metric in METRICS),
            row.get("runs", NOTHING),
            row.get("tokenizer") or NOTHING,
            row.get("embedder") or NOTHING,
        ]
        for row in rows
    ]
    return table("lrrrrrll", ["row", *(name.upper() for name in METRICS), "runs", "tokenizer", "vectors"], shown)


def results_part(results: ResultTable) -> list[Html]:
    """Every row's metrics, best first, as charts and as tables."""
    rows = results.chosen("item", "masked")
    charts = [
        figure(f"{metric.upper()}, best first", intervals([_interval(row, metric) for row in rows], metric.upper()))
        for metric in ("ndcg@10", "hr@10")
    ]
    kept = results.chosen("item", "kept")
    return [
        paragraph(
            "Hits on the item, seen items masked. Strokes are means over runs, pale dots the single runs, lines the "
            "95 % bootstrap intervals over users."
        ),
        *([legend([f"{kind}s" for kind in KINDS])] if {row.get("kind") for row in rows} >= set(KINDS) else []),
        figures(*charts),
        _results_table(rows),
        note("±: standard deviation over runs, where there are three or more."),
        *([disclosure("The same with seen items kept", _results_table(kept))] if kept else []),
    ]


def _named(row: dict[str, Any]) -> str:
    return f"{row['metric'].upper()}, seen {row['seen']}"


def comparisons_part(comparisons: Sequence[dict[str, Any]]) -> list[Html]:
    """Differences between rows with their intervals, grouped by metric and treatment of seen items."""
    if not comparisons:
        return []
    parts = [
        paragraph(
            "Differences are row minus reference, users paired; lines are 95 % intervals. p (Holm) allows for the "
            "number of comparisons."
        )
    ]
    for group in dict.fromkeys((_named(row), row["reference"]) for row in comparisons):
        rows = sorted(
            (row for row in comparisons if (_named(row), row["reference"]) == group), key=lambda row: -row["difference"]
        )
        shown = [Interval(row["row"], row["difference"], row["low"], row["high"], series=0) for row in rows]
        cells = [
            [
                row["row"],
                f"{row['difference']:+.4f}",
                f"{row['low']:+.4f} to {row['high']:+.4f}",
                _probability(row.get("p")),
                _probability(row.get("p_holm")),
            ]
            for row in rows
        ]
        parts += [
            element("h3", f"{group[0]}, against {group[1]}"),
            figures(figure("Difference", intervals(shown, f"difference to {group[1]}", differences=True))),
            table("lrrrr", ["row", "difference", "95 %", "p", "p (Holm)"], cells),
        ]
    return parts


def _probability(value: float | None) -> str:
    return NOTHING if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _minutes(value: float | None) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:.1f}"


def costs_part(results: ResultTable) -> list[Html]:
    """Minutes of each kind of work, a run."""
    spent = {row["row"]: [row.get(name) for name in WORK] for row in results.chosen("item", "masked")}
    totals = {
        name: sum(minutes for minutes in parts if minutes is not None)
        for name, parts in spent.items()
        if any(minutes is not None for minutes in parts)
    }
    if not totals:
        return []
    longest = max(totals.values()) or 1
    rows = [
        [name, *(_minutes(minutes) for minutes in spent[name]), _minutes(total), bar(total / longest)]
        for name, total in totals.items()
    ]
    words = (
        "Minutes by a clock on the wall, for each kind of work those of the run that took the fewest, in the order of "
        "the results."
    )
    return [paragraph(words), table("lrrrrrb", ["row", *WORK.values(), "together", ""], rows)]


def variance_part(variance: Sequence[dict[str, Any]]) -> list[Html]:
    """How far results vary, by what was varied."""
    if not variance:
        return []
    head, *rows = spread(variance, lambda value: f"{value:.4f}")
    words = (
        "Standard deviations of a run's result by whose seed was varied, seen items masked; those of one or two "
        "degrees of freedom are rough guesses."
    )
    return [paragraph(words), table("l" + "r" * (len(head) - 1), head, rows)]


def inflation_part(results: ResultTable) -> list[Html]:
    """How much counting hits on Semantic IDs without suffix flatters, beside the share of items that share codes."""
    flattered = {row["row"]: row for row in results.chosen("sid", "masked")}
    rows = []
    for row in results.chosen("item", "masked"):
        if row["row"] in flattered and row.get("kind") != "baseline":
            counted, rate = flattered[row["row"]]["hr@10"], row.get("collision_rate")
            more = f"+{percent(counted / row['hr@10'] - 1, 0)}" if row["hr@10"] > 0 else NOTHING
            rows.append(
                [row["row"], NOTHING if rate is None else percent(rate), f"{row['hr@10']:.4f}", f"{counted:.4f}", more]
            )
    words = (
        "Items may share their codes; counting a list as right when it holds any item with the target's codes is no "
        "item hit. This is what it would add."
    )
    heads = ["row", "items that share codes", "HR@10 on items", "HR@10 on codes: no result", "more"]
    return [paragraph(words), table("lrrrr", heads, rows)] if rows else []


def tuning_part(trials: Mapping[str, Sequence[dict[str, Any]]]) -> list[Html]:
    """Every combination of settings that was tried of a baseline, with what validation said of it, best first."""
    if not trials:
        return []
    parts = [
        paragraph(
            "Each was fitted with every combination of these settings and measured on validation, as shown here; the "
            "best is the one above."
        )
    ]
    for name, tried in trials.items():
        ordered = sorted(tried, key=lambda trial: -trial["validation_ndcg@10"])
        settings = [[written(value) for value in trial["settings"].values()] for trial in ordered]
        rows = [
            [
                f"{trial['validation_ndcg@10']:.4f}",
                f"{trial['validation_hr@10']:.4f}",
                *values,
                _minutes(trial["seconds"] / 60),
            ]
            for trial, values in zip(ordered, settings, strict=True)
        ]
        names = [setting.replace("_", " ") for setting in ordered[0]["settings"]]
        best = ", ".join(f"{label} {value}" for label, value in zip(names, settings[0], strict=True))
        heads = ["NDCG@10", "HR@10", *names, "minutes"]
        parts.append(disclosure(f"{name}: {best}, of {len(rows)} combinations", table("r" * len(heads), heads, rows)))
    return parts


def made_part(about: dict[str, Any]) -> list[Html]:
    """Commands, commits, machine and remarks."""
    pairs = [("Commits", ", ".join(about.get("commits", [])) or NOTHING), ("Machine", about.get("machine") or NOTHING)]
    commands = [element("pre", "\n".join(about["commands"]))] if about.get("commands") else []
    return [facts(pairs), *commands, *(paragraph(remark) for remark in about.get("notes", []))]
