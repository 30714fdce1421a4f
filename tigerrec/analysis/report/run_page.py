"""The page about one run: what was run, what it reached, and how it learned."""

from __future__ import annotations

import json
from typing import Any

from tigerrec.analysis.charts import KINDS, Interval, interval_chart, line_chart
from tigerrec.analysis.report import METRICS, interval
from tigerrec.analysis.report.codes_part import code_use, prefix_tree
from tigerrec.analysis.report.evaluated import EvaluatedRun
from tigerrec.analysis.report.users_part import recommended, users
from tigerrec.analysis.training_runs import flat
from tigerrec.data.histories import read_stats
from tigerrec.evaluation.stage import POPULARITY
from tigerrec.runtime.provenance import short_commit
from tigerrec.storage.contracts import read_json
from tigerrec.text import duration

HITS = {
    ("item", "masked"): "Hits on the item, seen items masked: the result",
    ("item", "kept"): "Hits on the item, seen items kept",
    ("sid", "masked"): "Hits on the Semantic ID without suffix, seen items masked: not item hits",
    ("sid", "kept"): "Hits on the Semantic ID without suffix, seen items kept: not item hits",
}


def run_page(run: EvaluatedRun) -> dict[str, Any]:
    """What `page.html.j2` shows of a run by the macros of `run.html.j2`."""
    title = f"{run.model} on {run.folders['prepare'].name}, {run.folders['tokenize'].name}"
    sections = [
        ("metrics", "Metrics", metrics(run)),
        ("training", "Training", training(run)),
        ("codes", "Codes", code_use(run)),
        ("tree", "Prefix tree", prefix_tree(run)),
        ("users", "Some users", users(run)),
        ("recommended", "What is recommended", recommended(run)),
        ("settings", "Stages and settings", settings(run)),
    ]
    return {"title": title, "heading": heading(run), "sections": sections}


def heading(run: EvaluatedRun) -> dict[str, Any]:
    """What was run, and the figures that one looks for first."""
    configs = {name: manifest.config for name, manifest in run.manifests.items()}
    provenance = {name: manifest.provenance for name, manifest in run.manifests.items()}
    embedder = provenance.get("embed", {}).get("embedder")
    return {
        "run": run,
        "configs": configs,
        "stats": read_stats(run.folders["prepare"]),
        "tokenizer": read_json(run.folders["tokenize"], "tokenizer.json", {"family": str}),
        "embedding_model": embedder.get("model") if isinstance(embedder, dict) else None,
        "results": [run.metrics[model, "item", "masked"] for model in (run.model, POPULARITY)],
        "provenance": provenance,
        "seconds": sum(stage.get("training_seconds", stage["seconds"]) for stage in provenance.values()),
        "commits": dict.fromkeys(short_commit(stage.get("git")) for stage in provenance.values()),
    }


def metrics(run: EvaluatedRun) -> dict[str, Any]:
    """The metrics of the generator beside popularity, as charts and as a table."""
    models = (run.model, POPULARITY)
    charts = {}
    for metric in METRICS:
        shown = [
            Interval.of_metric(run.metrics[model, "item", seen] | {"row": f"{model}, {seen}", "kind": kind}, metric)
            for model, kind in zip(models, KINDS, strict=True)
            for seen in ("masked", "kept")
        ]
        charts[f"{metric.upper()}, hits on the item"] = interval_chart(shown, metric.upper())
    rows: list[Any] = []
    for (hit, seen), title in HITS.items():
        rows.append(title)
        for model in models:
            row = run.metrics[model, hit, seen]
            rows.append([model, *((row[metric], interval(row, metric)) for metric in METRICS)])
    return {"charts": charts, "heads": ["", *map(str.upper, METRICS)], "rows": rows}


def training(run: EvaluatedRun) -> dict[str, Any]:
    """Loss and validation over epochs, with the weights that were kept."""
    provenance = run.manifests["train"].provenance
    lines = (run.folders["train"] / "training.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    steps = [line for line in log if "loss" in line]
    selections = [line for line in log if line.get("selection")]
    validations = [line for line in log if "validation_ndcg@10" in line and not line.get("selection")]
    epoch = next((line["epoch"] for line in validations if line["step"] == provenance["selected"]["step"]), None)
    mark = None if epoch is None else (epoch, f"kept: epoch {epoch:g}")
    charts = {}
    if steps:
        loss = [line["epoch"] for line in steps], [line["loss"] for line in steps]
        charts["Training loss"] = line_chart([loss], "epochs", "loss", y_from_zero=False, mark=mark)
    for metric in ("ndcg@10", "hr@10") if len(validations) > 1 else ():
        points = [line["epoch"] for line in validations], [line[f"validation_{metric}"] for line in validations]
        caption = f"Validation {metric.upper()}, hits on the item, seen masked, {validations[-1]['users']:,} users"
        charts[caption] = line_chart([points], "epochs", f"validation {metric.upper()}", dots=True, mark=mark)
    selected = [[line["step"], line["validation_hr@10"], line["validation_ndcg@10"]] for line in selections]
    selected_by = selections[0]["users"] if selections else 0
    weights = [
        [line["scores"], each["item_weight"], each["hr@10"], each["ndcg@10"]]
        for line in log
        for each in line.get("tried", ())
    ]
    told = {"provenance": provenance, "validations": validations, "selected": selected, "selected_by": selected_by}
    return told | {"charts": charts, "weights": weights}


def settings(run: EvaluatedRun) -> dict[str, Any]:
    """When, where and how long each stage ran, and every option of each."""
    rows, options = [], {}
    for name, manifest in run.manifests.items():
        known = manifest.provenance
        finished = known["finished"].replace("T", " ").removesuffix("+00:00")
        hardware = known.get("threads"), known.get("precision"), f"{known.get('peak_mb', 0):,} MB"
        commit = short_commit(known.get("git"))
        rows.append([name, run.folders[name].name, duration(known["seconds"]), *hardware, commit, finished])
        options[name] = [[option, str(value)] for option, value in flat(manifest.config).items()]
    return {"rows": rows, "options": options}
