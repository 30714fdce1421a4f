"""The page about a table of results: rows side by side, what differs for sure, its cost, and where results vary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tigerrec import TigerrecError
from tigerrec.analysis.charts import KINDS, Interval, interval_chart
from tigerrec.analysis.report import METRICS, percent
from tigerrec.analysis.table.rows import WORK
from tigerrec.analysis.table.summary import spread
from tigerrec.baselines.tuning import at_an_end
from tigerrec.storage.contracts import read_json
from tigerrec.storage.manifests import DamagedError, MissingError
from tigerrec.text import NOTHING, written

MAIN = "ndcg@10"
NEEDED = ("row", "hit", "seen", *METRICS)


@dataclass(frozen=True)
class Results:
    """The rows of `table.parquet`, and `table.json` about them."""

    rows: list[dict[str, Any]]
    about: dict[str, Any]

    def ranked(self, hit: str, seen: str) -> list[dict[str, Any]]:
        """The rows of one kind of hit and one treatment of seen items, best first."""
        rows = [row for row in self.rows if (row["hit"], row["seen"]) == (hit, seen)]
        return sorted(rows, key=lambda row: (-row[MAIN], row["row"]))


def read_results(folder: Path, further: Sequence[str] = ()) -> Results:
    """The table of results in a folder; an error where there is none, or where it lacks rows or columns, the needed
    ones and some further ones."""
    import pyarrow.parquet

    for name in ("table.parquet", "table.json"):
        if not (folder / name).is_file():
            raise MissingError(f"{folder} holds no {name}; give the folder that `tigerrec table` printed.")
    try:
        rows = pyarrow.parquet.read_table(folder / "table.parquet").to_pylist()
        about = read_json(folder, "table.json")
    except (OSError, ValueError) as error:
        raise DamagedError(
            f"The table in {folder} cannot be read ({str(error).splitlines()[0]}); run `tigerrec table` again."
        ) from None
    lacking = [name for name in (*NEEDED, *further) if rows and name not in rows[0]]
    if lacking or not any((row["hit"], row["seen"]) == ("item", "masked") for row in rows):
        fault = f"has no column '{lacking[0]}'" if lacking else "has no row of hits on items with seen items masked"
        raise TigerrecError(f"{folder / 'table.parquet'} {fault}; run `tigerrec table` again.")
    return Results(rows, about)


def results_page(results: Results) -> dict[str, Any]:
    """What `page.html.j2` shows of a table of results by the macros of `results.html.j2`."""
    about, rows = results.about, results.ranked("item", "masked")
    sections = [
        ("results", "Results", metrics(results)),
        ("comparisons", "What differs", comparisons(about.get("comparisons", []))),
        ("costs", "What it costs", costs(rows)),
        ("variance", "Where results vary", variance(about.get("variance", []))),
        ("inflation", "If a hit on codes counted", inflation(results)),
        ("tuning", "How the baselines were tuned", tuning(about.get("trials", {}))),
        ("made", "How it was made", {"about": about}),
    ]
    runs = sum(row.get("runs") or 1 for row in rows)
    heading = {"dataset": about.get("dataset", {}), "rows": rows, "runs": runs, "metric": MAIN}
    filled = [section for section in sections if section[2]]
    return {"title": about.get("name", "Results"), "heading": heading, "sections": filled}


def metrics(results: Results) -> dict[str, Any]:
    """Every row's metrics, best first, as charts and as tables."""
    rows = results.ranked("item", "masked")
    charts = {}
    for metric in ("ndcg@10", "hr@10"):
        intervals = [Interval.of_metric(row, metric) for row in sorted(rows, key=lambda row: -row[metric])]
        charts[f"{metric.upper()}, best first"] = interval_chart(intervals, metric.upper())
    kinds = [f"{kind}s" for kind in KINDS] if {row.get("kind") for row in rows} >= set(KINDS) else []
    tables = [_cells(rows), _cells(results.ranked("item", "kept"))]
    heads = ["row", *map(str.upper, METRICS), "runs", "tokenizer", "vectors"]
    return {"charts": charts, "kinds": kinds, "heads": heads, "tables": tables}


def _cells(rows: list[dict[str, Any]]) -> list[list[Any]]:
    cells = []
    for row in rows:
        values = [(row[metric], _deviation(row.get(f"{metric}_sd"))) for metric in METRICS]
        cells.append([row["row"], *values, row.get("runs"), row.get("tokenizer"), row.get("embedder")])
    return cells


def comparisons(compared: list[dict[str, Any]]) -> dict[str, Any]:
    """Differences between rows with their intervals, grouped by metric and treatment of seen items."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in compared:
        group = f"{row['metric'].upper()}, seen {row['seen']}, against {row['reference']}"
        groups.setdefault(group, []).append(row)
    shown = {}
    for group, rows in groups.items():
        rows.sort(key=lambda row: -row["difference"])
        intervals, cells = [], []
        for row in rows:
            intervals.append(Interval(row["row"], row["difference"], row["low"], row["high"]))
            difference, low, high = (f"{row[name]:+.4f}" for name in ("difference", "low", "high"))
            p_values = [_probability(row.get(name)) for name in ("p", "p_holm")]
            cells.append([row["row"], difference, f"{low} to {high}", *p_values])
        shown[group] = interval_chart(intervals, f"difference to {rows[0]['reference']}", differences=True), cells
    return {"groups": shown} if shown else {}


def _deviation(value: float | None) -> str:
    return "" if value is None else f"± {value:.4f}"


def _probability(value: float | None) -> str:
    return NOTHING if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _minutes(value: float | None) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:.1f}"


def costs(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Minutes of each kind of work, a run."""
    minutes = {row["row"]: [row.get(name) for name in WORK] for row in rows}
    totals = {name: sum(filter(None, spent)) for name, spent in minutes.items() if set(spent) != {None}}
    longest = max(totals.values(), default=0) or 1
    cells = [[name, *map(_minutes, minutes[name]), _minutes(total), total / longest] for name, total in totals.items()]
    return {"heads": ["row", *WORK.values(), "together", ""], "rows": cells} if cells else {}


def variance(components: list[dict[str, Any]]) -> dict[str, Any]:
    """How far results vary, by what was varied."""
    heads, *rows = spread(components, "{:.4f}".format)
    return {"heads": heads, "rows": rows} if rows else {}


def inflation(results: Results) -> dict[str, Any]:
    """How much counting hits on Semantic IDs without suffix flatters, beside the share of items that share codes."""
    of_codes = {row["row"]: row["hr@10"] for row in results.ranked("sid", "masked")}
    rows = []
    for row in results.ranked("item", "masked"):
        if row["row"] in of_codes and row.get("kind") != "baseline":
            of_items, shared = row["hr@10"], row.get("collision_rate")
            more = f"+{percent(of_codes[row['row']] / of_items - 1, 0)}" if of_items > 0 else None
            rows.append([row["row"], None if shared is None else percent(shared), of_items, of_codes[row["row"]], more])
    return {"rows": rows} if rows else {}


def tuning(trials: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The combinations of settings that were tried of each baseline, with what validation said of them, best first, and
    which of the best settings are at an end of the values tried."""
    baselines = {}
    for name, tried in trials.items():
        ordered = sorted(tried, key=lambda trial: -trial["validation_ndcg@10"])
        best = {setting.replace("_", " "): written(value) for setting, value in ordered[0]["settings"].items()}
        rows = []
        for trial in ordered:
            validation = [trial["validation_ndcg@10"], trial["validation_hr@10"]]
            rows.append([*validation, *map(written, trial["settings"].values()), _minutes(trial["seconds"] / 60)])
        chosen = ", ".join(f"{setting} {value}" for setting, value in best.items())
        ends = at_an_end(tried, ordered[0]["settings"])
        at_ends = f"; at an end: {', '.join(end.replace('_', ' ') for end in ends)}" if ends else ""
        baselines[f"{name}: {chosen}, of {len(rows)} combinations tried{at_ends}"] = (
            ["NDCG@10", "HR@10", *best, "minutes"],
            rows,
        )
    return {"baselines": baselines} if baselines else {}
