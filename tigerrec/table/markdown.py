"""A table in Markdown: what was measured, row by row, and what may be read from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tigerrec.markdown import NOTHING, table, written
from tigerrec.table.rows import GENERATOR, METRICS, WORK, Result
from tigerrec.table.statistics import LEAST_P, LEAST_RUNS_FOR_SD
from tigerrec.table.summary import Summary, spread

NOTES = (
    "Every row ranks the whole catalogue for every user. A hit is the item itself; hits on its codes, which other "
    "items may share, stand apart.",
    "± is the standard deviation of a single run with new seeds, given from three runs up; below that every run is "
    "shown. The runs of a row share tokenizer seeds and generator seeds, so it is estimated from the pairs of runs that "
    "share neither; with two seeds of each kind it is a rough guess. Brackets are 95 % bootstrap intervals over users "
    "of the mean over runs (10,000 resamples, the same for all rows; those in a cell's `metrics.json` are of that run, "
    "from 1,000): they say how far other users would move a figure, not how far other seeds would.",
    "p is the share of those resamples on the other side of zero, doubled, and corrected for the number of rows "
    "compared (Holm), each metric by itself; "
    "≤ where no resample was there. It knows nothing of seeds: read it beside the spread that seeds cause.",
    "Minutes are those of the run that took the fewest, by a clock on the wall, whatever else the machine did "
    "meanwhile: they do not rank methods. "
    "Ranking is for seen items masked and kept; item vectors, made once for all rows, are not counted.",
)


def _figure(value: float | None, form: str = ".4f") -> str:
    return NOTHING if value is None else f"{value:{form}}".removeprefix("0") if form == ".4f" else f"{value:{form}}"


def _with_spread(line: dict[str, Any], metric: str) -> str:
    if line["runs"] >= LEAST_RUNS_FOR_SD:
        return f"{_figure(line[metric])} ± {_figure(line[f'{metric}_sd'])}"
    return " · ".join(_figure(value) for value in line[f"{metric}_runs"])


def _name(result: Result) -> str:
    return result.row.name if result.row.kind == GENERATOR else f"*{result.row.name}*"


def _runs(result: Result) -> str:
    return (
        str(len(result.runs))
        if len(result.runs) == len(result.row.cells)
        else f"{len(result.runs)} of {len(result.row.cells)}"
    )


def metrics_table(summary: Summary, seen: str) -> str:
    """Item-level metrics of all rows, one treatment of seen items."""
    lines = {line["row"]: line for line in summary.rows if (line["hit"], line["seen"]) == ("item", seen)}
    rows = [["row", "runs", *(metric.upper() for metric in METRICS), "95 % of NDCG@10"]]
    for result in summary.results:
        line = lines[result.row.name]
        interval = f"[{_figure(line['ndcg@10_low'])}, {_figure(line['ndcg@10_high'])}]"
        rows.append([_name(result), _runs(result), *(_with_spread(line, metric) for metric in METRICS), interval])
    return table(rows)


def ids_table(summary: Summary) -> str:
    """What counting hits on codes without suffix would say, how many items share their codes, and what a row costs."""
    first, *others = WORK.values()
    rows = [
        [
            "row",
            "items sharing codes",
            "HR@10 of items",
            "HR@10 of codes",
            "inflation",
            "different items in top 10s",
            f"minutes: {first}",
            *others,
        ]
    ]
    for result in summary.results:
        item, sid = (
            result.value("hr@10"),
            result.value("hr@10", "sid") if ("sid", "masked") in result.user_gains else None,
        )
        inflation = None if sid is None or not item else sid / item - 1
        shared = result.fact("collision_rate")
        rows.append([
            _name(result), _figure(shared, ".1%"), _figure(item), _figure(sid), _figure(inflation, "+.1%"), _figure(result.fact("distinct_items"), ",.0f"),
            *(_figure(result.minutes(name), ".1f") for name in WORK),
        ])  # fmt: skip
    return table(rows)


def comparisons_table(summary: Summary) -> str:
    """The differences to the reference row."""
    rows = [["row", "metric", "difference", "95 %", "p (Holm)"]]
    for found in summary.comparisons:
        interval = f"[{found.low:+.4f}, {found.high:+.4f}]"
        rows.append(
            [
                found.row,
                found.metric.upper(),
                f"{found.difference:+.4f}",
                interval,
                f"{'≤ ' if found.p <= LEAST_P else ''}{found.p_holm:.4f}",
            ]
        )
    return table(rows)


def variance_table(summary: Summary) -> str:
    """The spread that each kind of seed causes."""
    return table(spread(summary.variance, _figure))


def tuning_table(summary: Summary) -> str:
    """How many combinations of settings were tried of each baseline, and which was chosen."""
    rows = [["baseline", "combinations tried", "longest, minutes", "NDCG@10 on validation, worst to best", "chosen"]]
    for result in summary.results:
        if result.trials:
            found = [trial["validation_ndcg@10"] for trial in result.trials]
            chosen = result.trials[found.index(max(found))]["settings"]
            longest = max(trial["seconds"] for trial in result.trials) / 60
            told = ", ".join(f"{name} {written(value)}" for name, value in chosen.items())
            rows.append(
                [
                    _name(result),
                    str(len(found)),
                    _figure(longest, ".1f"),
                    f"{_figure(min(found))} to {_figure(max(found))}",
                    told,
                ]
            )
    return table(rows)


def page(title: str, summary: Summary, facts: dict[str, Any], missing: Sequence[str]) -> str:
    """The whole of `table.md`."""
    dataset = facts["dataset"]
    about = (
        f"{dataset['users']:,} users, {dataset['items']:,} items, {dataset['interactions']:,} interactions; split: "
        f"{facts['split']}."
    )
    made = [f"`{command}`" for command in facts["commands"]]
    parts = [
        f"# {title}", about,
        f"Made by {' and '.join(made)} at commit {', '.join(facts['commits'])}, on {facts['machine']}. Baselines are "
        "in *italics*.",
        f"With a higher mean NDCG@10 than every row of the generator: {', '.join(summary.above_all_generators)}." if summary.above_all_generators else "",
        "## Seen items masked", metrics_table(summary, "masked"), "![NDCG@10 and HR@10 of all rows](table.png)" if facts["picture"] else "",
        "## Seen items kept", metrics_table(summary, "kept"),
        "## Ids, diversity and cost (seen masked)", ids_table(summary),
    ]  # fmt: skip
    if summary.comparisons:
        parts += [f"## Against {summary.comparisons[0].reference} (seen masked)", comparisons_table(summary)]
    if summary.variance:
        words = (
            "Standard deviations of a run's result by whose seed was varied: components of variance of a crossed "
            "design, in which all tokenizer seeds of a row are run with the same generator seeds. The interaction is "
            "what a pair of seeds adds to the effects of the two. .0000 also stands where an estimate is negative; "
            "those of one or two degrees of freedom, which are told of each, are rough guesses."
        )
        parts += ["## What seeds change (seen masked)", variance_table(summary), words]
    if any(result.trials for result in summary.results):
        parts += ["## How the baselines were tuned", tuning_table(summary)]
    parts += [
        "## How to read it",
        "\n".join(f"- {note}" for note in (*NOTES, *facts["notes"], *(f"Missing: {name}" for name in missing))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
