"""The page about one run: what was run, what it reached, and how it learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tigerrec.compare_runs import flat
from tigerrec.evaluate import POPULARITY
from tigerrec.provenance import short_commit
from tigerrec.report.charts import Interval, Series, intervals, lines
from tigerrec.report.codes_part import codes_part, tree_part
from tigerrec.report.evaluated import EvaluatedRun
from tigerrec.report.markup import (
    Html,
    disclosure,
    document,
    element,
    facts,
    figure,
    figures,
    join,
    note,
    paragraph,
    table,
)
from tigerrec.report.users_part import recommended_part, users_part

METRICS = ("hr@5", "ndcg@5", "hr@10", "ndcg@10")
HITS = {
    ("item", "masked"): "Hits on the item, seen items masked: the result",
    ("item", "kept"): "Hits on the item, seen items kept",
    ("sid", "masked"): "Hits on the Semantic ID without suffix, seen items masked: not item hits",
    ("sid", "kept"): "Hits on the Semantic ID without suffix, seen items kept: not item hits",
}


def run_page(run: EvaluatedRun) -> str:
    """The page about a run, as HTML."""
    title = f"{run.model} on {run.folders['prepare'].name}, {run.folders['tokenize'].name}"
    sections = [
        ("metrics", "Metrics", metrics_part(run)),
        ("training", "Training", training_part(run)),
        ("codes", "Codes", codes_part(run)),
        ("tree", "Prefix tree", tree_part(run)),
        ("users", "Some users", users_part(run)),
        ("recommended", "What is recommended", recommended_part(run)),
        ("settings", "Stages and settings", stages_part(run)),
    ]
    return document(title, heading(run), sections)


def heading(run: EvaluatedRun) -> list[Html]:
    """What was run, in words, and the figures that one looks for first."""
    stats, training = run.stats, run.manifests["train"].config.get("training", {})
    epochs = f" for {training['epochs']} epochs" if "epochs" in training else ""
    which = "last item" if run.split == "test" else "item before the last"
    lead = (
        f"The generator {run.model} was trained{epochs} to continue histories written in Semantic IDs, and then "
        "ranked all "
        f"{stats['items']:,} items for each of {stats['users']:,} users: a hit is the user's {which}."
    )
    row, floor = run.row(run.model), run.row(POPULARITY)
    tiles = [
        (name.upper(), f"{row[name]:.4f}", f"95 %: {row[f'{name}_low']:.4f}–{row[f'{name}_high']:.4f}")
        for name in ("ndcg@10", "hr@10")
    ]
    if floor["ndcg@10"] > 0:
        tiles.append(
            (
                "popularity's NDCG@10",
                f"{row['ndcg@10'] / floor['ndcg@10']:.1f} ×",
                f"popularity has {floor['ndcg@10']:.4f}",
            )
        )
    seconds = [
        record.provenance.get("training_seconds", record.provenance["seconds"]) for record in run.manifests.values()
    ]
    tiles.append(("time", duration(sum(seconds)), f"{len(seconds)} stages together"))
    boxes = [
        element("div", element("span", name), element("b", value), element("span", small))
        for name, value, small in tiles
    ]
    return [paragraph(lead, class_="lead"), element("div", *boxes, class_="tiles"), facts(what_was_run(run))]


def what_was_run(run: EvaluatedRun) -> list[tuple[str, str]]:
    """Name and value of what a reader must know to run it again."""
    stats, tokenizer = run.stats, run.tokenizer
    train, evaluate = run.manifests["train"], run.manifests["evaluate"]
    generator, parameters = train.config.get("generator", {}), train.provenance.get("parameters")
    history = {"codes": "reads one position a code", "items": "reads one position an item"}.get(
        generator.get("history")
    )
    described = [kind(generator), history, f"{parameters:,} parameters" if parameters else None]
    levels = " × ".join(map(str, tokenizer["code_sizes"]))
    policy = tokenizer.get("collisions")
    return [
        (
            "Data set",
            f"{run.folders['prepare'].name}: {stats['users']:,} users, {stats['items']:,} items, "
            f"{stats['interactions']:,} interactions",
        ),
        ("Item vectors", vectors(run)),
        (
            "Tokenizer",
            f"{run.folders['tokenize'].name}: {tokenizer['family']}, codes {levels}"
            + (f", equal codes: {policy}" if policy else ""),
        ),
        ("Generator", ", ".join([run.folders["train"].name, *(part for part in described if part)])),
        (
            "Evaluation",
            f"{run.split} split, {evaluate.config['beam_size']} beams, lists of {evaluate.config['k']}, "
            f"{evaluate.config['precision']}",
        ),
        (
            "Seeds",
            f"tokenizer {run.manifests['tokenize'].config.get('seed', '–')}, generator {train.config.get('seed', '–')}",
        ),
        (
            "Commit",
            ", ".join(dict.fromkeys(short_commit(record.provenance.get("git")) for record in run.manifests.values())),
        ),
        ("Machine", machine(run)),
        ("Finished", evaluate.provenance["finished"].replace("T", " ").replace("+00:00", " UTC")),
    ]


def vectors(run: EvaluatedRun) -> str:
    """What the tokenizer was fitted to."""
    recorded = run.manifests["embed"].provenance.get("embedder") if "embed" in run.manifests else None
    model = recorded.get("model") if isinstance(recorded, dict) else None
    dim = f"{run.tokenizer['dim']} dimensions" if "dim" in run.tokenizer else None
    return ", ".join([run.folders["tokenize"].parent.name, *(str(part) for part in (model, dim) if part)])


def kind(config: dict[str, Any]) -> str | None:
    """The family of the part that a config node describes."""
    return config.get("family")


def machine(run: EvaluatedRun) -> str:
    """Where the run was made: hardware, threads of training, and the libraries that numbers depend on."""
    facts_of = run.manifests["train"].provenance
    threads = (
        f", {facts_of['threads']} threads in training"
        if facts_of.get("threads", 0) > 1
        else ", 1 thread in training"
        if "threads" in facts_of
        else ""
    )
    versions = facts_of.get("versions", {})
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "numpy") if name in versions)
    return (
        f"{facts_of.get('machine', '?')}, {facts_of.get('cores', '?')} cores, "
        f"{facts_of.get('device', 'cpu')}{threads}; {libraries}"
    )


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def metric_cell(row: dict[str, Any], name: str) -> Html:
    """A metric with its interval below."""
    return join((f"{row[name]:.4f}", element("small", f"{row[f'{name}_low']:.4f}–{row[f'{name}_high']:.4f}")))


def metrics_part(run: EvaluatedRun) -> list[Html]:
    """The metrics of the generator beside popularity, as charts and as a table."""
    rows: list[Sequence[Any] | str] = []
    for (hit, seen), name in HITS.items():
        rows.append(name)
        rows += [
            [model, *(metric_cell(run.row(model, hit, seen), metric) for metric in METRICS)] for model in run.models
        ]
    charts = []
    for metric in METRICS:
        shown = []
        for series, model in enumerate(run.models):
            for seen in ("masked", "kept"):
                row = run.row(model, "item", seen)
                shown.append(
                    Interval(
                        f"{model}, {seen}", row[metric], row[f"{metric}_low"], row[f"{metric}_high"], series=series
                    )
                )
        charts.append(figure(f"{metric.upper()}, hits on the item", intervals(shown, metric.upper())))
    return [
        paragraph(
            "Dots are means over users, lines their 95 % bootstrap intervals. Masked: items of the history are left "
            "out of the ranking."
        ),
        figures(*charts),
        table("lrrrr", ["", *(name.upper() for name in METRICS)], rows),
        note(
            "The last two groups count a list as right when it holds any item with the target's codes. "
            "They show how much such a count flatters where items share codes; they are no results."
        ),
    ]


def training_part(run: EvaluatedRun) -> list[Html]:
    """Loss and validation over epochs, with the weights that were kept."""
    provenance = run.manifests["train"].provenance
    steps = [line for line in run.log if "loss" in line]
    validations = [line for line in run.log if "validation_ndcg@10" in line and not line.get("selection")]
    selections = [line for line in run.log if line.get("selection")]
    kept = provenance["selected"]
    epoch = next((line["epoch"] for line in validations if line["step"] == kept["step"]), None)
    mark = None if epoch is None else (epoch, f"kept: epoch {epoch:g}")
    charts = []
    if steps:
        drawn = [Series([line["epoch"] for line in steps], [line["loss"] for line in steps])]
        charts.append(figure("Training loss", lines(drawn, "epochs", "loss", y_from_zero=False, mark=mark)))
    for name in ("ndcg@10", "hr@10") if len(validations) > 1 else ():
        drawn = [
            Series(
                [line["epoch"] for line in validations], [line[f"validation_{name}"] for line in validations], dots=True
            )
        ]
        caption = f"Validation {name.upper()}, hits on the item, seen masked, {validations[-1]['users']:,} users"
        charts.append(figure(caption, lines(drawn, "epochs", f"validation {name.upper()}", mark=mark)))
    words = (
        f"{provenance['targets']:,} targets, {provenance['steps']:,} steps, {duration(provenance['training_seconds'])} "
        "with validation. "
    )
    words += f"The weights of step {kept['step']:,} were kept: validation NDCG@10 {kept['validation_ndcg@10']:.4f}."
    if len(validations) == 1:
        words += (
            f" There was one validation, at epoch {validations[0]['epoch']:g}: HR@10 "
            f"{validations[0]['validation_hr@10']:.4f}."
        )
    choice = [
        [f"{line['step']:,}", f"{line['validation_hr@10']:.4f}", f"{line['validation_ndcg@10']:.4f}"]
        for line in selections
    ]
    parts = [paragraph(words), figures(*charts)]
    if choice:
        parts += [
            paragraph(
                f"The best checkpoints were validated again on all {selections[0]['users']:,} users; the best of "
                "these was kept."
            ),
            table("rrr", ["step", "validation HR@10", "validation NDCG@10"], choice),
        ]
    return parts


def stages_part(run: EvaluatedRun) -> list[Html]:
    """When, where and how long each stage ran, and every option of each."""
    rows = []
    for name, record in run.manifests.items():
        known = record.provenance
        rows.append([
            name, run.folders[name].name, duration(known["seconds"]), known.get("threads", "–"), known.get("precision", "–"), f"{known.get('peak_mb', 0):,} MB",
            short_commit(known.get("git")), known["finished"].replace("T", " ").removesuffix("+00:00"),
        ])  # fmt: skip
    settings = []
    for name, record in run.manifests.items():
        options = [[key, value] for key, value in flat(record.config).items()]
        settings.append(disclosure(name, table("ml", ["option", "value"], options)))
    return [
        table(
            "lmrrlrml",
            ["stage", "folder", "time", "threads", "precision", "peak memory", "commit", "finished, UTC"],
            rows,
        ),
        element("h3", "Every option"),
        *settings,
    ]
