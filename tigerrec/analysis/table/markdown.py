"""A benchmark table in Markdown: what was measured, row by row, and what may be read from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tigerrec.analysis.table.rows import GENERATOR, METRICS, WORK, RowResults
from tigerrec.analysis.table.statistics import LEAST_P, LEAST_RUNS_FOR_SD
from tigerrec.analysis.table.summary import Summary, spread
from tigerrec.baselines.tuning import at_an_end
from tigerrec.text import NOTHING, figure, table, written

NOTES = (
    "Every row ranks the whole catalogue for every user. A hit is the item itself; hits on its codes, which other "
    "items may share, stand apart.",
    "± is the standard deviation of a single run with new seeds, given from three runs up; below that every run is "
    "shown. The runs of a row share tokenizer seeds and generator seeds, so it is estimated from the pairs of runs "
    "that share neither; with two seeds of each kind it is a rough guess. Brackets are 95 % bootstrap intervals over "
    "users of the mean over runs (10,000 resamples, the same for all rows; those in a cell's `metrics.json` are of "
    "that run, from 1,000): they say how far other users would move a figure, not how far other seeds would.",
    "p is the share of those resamples on the other side of zero, doubled, and corrected for the number of rows "
    "compared (Holm), each metric by itself; ≤ where no resample was there. It knows nothing of seeds: read it beside "
    "the spread that seeds cause.",
    "Minutes are those of the run that took the fewest, by a clock on the wall, whatever else the machine did "
    "meanwhile: they do not rank methods. Ranking is for seen items masked and kept; item vectors, made once for all "
    "rows, are not counted.",
)
VARIANCE = (
    "Standard deviations of a run's result by whose seed was varied: components of variance of a crossed design, in "
    "which all tokenizer seeds of a row are run with the same generator seeds. The interaction is what a pair of seeds "
    "adds to the effects of the two. .0000 also stands where an estimate is negative; those of one or two degrees of "
    "freedom, which are told of each, are rough guesses."
)


def with_spread(line: dict[str, Any], metric: str) -> str:
    """A metric of a row: its mean and standard deviation from three runs up, every run below that."""
    if line["runs"] >= LEAST_RUNS_FOR_SD:
        return f"{figure(line[metric])} ± {figure(line[f'{metric}_sd'])}"
    return " · ".join(figure(value) for value in line[f"{metric}_runs"])


def _name(result: RowResults) -> str:
    return result.row.name if result.row.kind == GENERATOR else f"*{result.row.name}*"


def metrics_table(summary: Summary, seen: str) -> str:
    """Item-level metrics of all rows, one treatment of seen items."""
    lines = {line["row"]: line for line in summary.rows if (line["hit"], line["seen"]) == ("item", seen)}
    rows = [["row", "runs", *(metric.upper() for metric in METRICS), "95 % of NDCG@10"]]
    for result in summary.results:
        line, done, planned = lines[result.row.name], len(result.runs), len(result.row.cells)
        runs = str(done) if done == planned else f"{done} of {planned}"
        interval = f"[{figure(line['ndcg@10_low'])}, {figure(line['ndcg@10_high'])}]"
        rows.append([_name(result), runs, *(with_spread(line, metric) for metric in METRICS), interval])
    return table(rows)


def ids_table(summary: Summary) -> str:
    """What counting hits on codes without suffix would say, how many items share their codes, and what a row costs."""
    first, *others = WORK.values()
    joined = any(result.item_weights for result in summary.results)
    of_hits = [
        *(["scores every item"] if joined else []),
        "items sharing codes",
        "HR@10 of items",
        "HR@10 of codes",
        "inflation",
        "different items in top 10s",
    ]
    rows = [["row", *of_hits, f"minutes: {first}", *others]]
    for result in summary.results:
        item = result.mean("hr@10")
        sid = result.mean("hr@10", "sid") if ("sid", "masked") in result.user_gains else None
        inflation = figure(None if sid is None or not item else sid / item - 1, "+.1%")
        sharing = figure(result.mean_detail("collision_rate"), ".1%")
        distinct = figure(result.mean_detail("distinct_items"), ",.0f")
        minutes = [figure(result.minutes(name), ".1f") for name in WORK]
        scored = [("no", "yes")[result.scores_every_item]] if joined else []
        rows.append([_name(result), *scored, sharing, figure(item), figure(sid), inflation, distinct, *minutes])
    return table(rows)


def comparisons_table(summary: Summary, reference: str) -> str:
    """The differences to a reference row."""
    rows = [["row", "metric", "difference", "95 %", "p (Holm)"]]
    for row in (row for row in summary.comparisons if row["reference"] == reference):
        interval = f"[{row['low']:+.4f}, {row['high']:+.4f}]"
        p = f"{'≤ ' if row['p'] <= LEAST_P else ''}{row['p_holm']:.4f}"
        rows.append([row["row"], row["metric"].upper(), f"{row['difference']:+.4f}", interval, p])
    return table(rows)


def tuning_table(summary: Summary) -> str:
    """How many combinations of settings were tried of each baseline, which was chosen, and which of its values are the
    least or the greatest tried."""
    validation = "NDCG@10 on validation, worst to best"
    rows = [["baseline", "combinations tried", "longest, minutes", validation, "chosen", "at an end of its values"]]
    for result in summary.results:
        if result.trials:
            by_ndcg = sorted(result.trials, key=lambda trial: trial["validation_ndcg@10"])
            worst, best = (by_ndcg[place]["validation_ndcg@10"] for place in (0, -1))
            longest = max(trial["seconds"] for trial in result.trials) / 60
            chosen = next(trial for trial in result.trials if trial["validation_ndcg@10"] == best)["settings"]
            settings = ", ".join(f"{name} {written(value)}" for name, value in chosen.items())
            figures = [f"{longest:.1f}", f"{figure(worst)} to {figure(best)}"]
            ends = ", ".join(at_an_end(result.trials, chosen)) or NOTHING
            rows.append([_name(result), str(len(result.trials)), *figures, settings, ends])
    return table(rows)


def page(title: str, summary: Summary, made: dict[str, Any], missing: Sequence[str]) -> str:
    """The whole of `table.md`; `made` is how it was made, as in `table.json`, `missing` what could not be run."""
    data, above = made["dataset"], ", ".join(summary.above_all_generators)
    blocks = [
        f"# {title}",
        f"{data['users']:,} users, {data['items']:,} items, {data['interactions']:,} interactions; split: "
        f"{made['split']}.",
        f"Made by {' and '.join(f'`{command}`' for command in made['commands'])} at commit "
        f"{', '.join(made['commits'])}, on {made['machine']}. Baselines are in *italics*.",
        f"With a higher mean NDCG@10 than every row of the generator: {above}." if above else "",
        "## Seen items masked",
        metrics_table(summary, "masked"),
        "![NDCG@10 and HR@10 of all rows](table.png)" if made["picture"] else "",
        "## Seen items kept",
        metrics_table(summary, "kept"),
        "## Ids, diversity and cost (seen masked)",
        ids_table(summary),
    ]
    for reference in dict.fromkeys(line["reference"] for line in summary.comparisons):
        blocks += [f"## Against {reference} (seen masked)", comparisons_table(summary, reference)]
    if summary.variance:
        blocks += ["## What seeds change (seen masked)", table(spread(summary.variance, figure)), VARIANCE]
    if any(result.trials for result in summary.results):
        blocks += ["## How the baselines were tuned", tuning_table(summary)]
    notes = (*NOTES, *made["notes"], *(f"Missing: {name}" for name in missing))
    blocks += ["## How to read it", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(block for block in blocks if block) + "\n"
