"""The model card of an export: metadata that the Hugging Face Hub reads, then what people read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tigerrec import text
from tigerrec.config import shipped_folder
from tigerrec.data.histories import read_items, read_stats
from tigerrec.models.base import ALL_ITEMS, BIDIRECTIONAL, CODES, USER_TOKENS
from tigerrec.search.options import CODES_ALONE
from tigerrec.storage.contracts import read_json
from tigerrec.storage.files import sha256_file
from tigerrec.storage.manifests import MANIFEST, Manifest
from tigerrec.storage.stages import open_stage

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TAGS = ("recommendation", "generative-retrieval", "semantic-ids")
TASK = "sequential-recommendation"

FIGURES = ("hr@5", "ndcg@5", "hr@10", "ndcg@10", "ndcg@10_low", "ndcg@10_high")
METRICS = [dict.fromkeys(("model", "split", "hit", "seen"), str) | {"users": int} | dict.fromkeys(FIGURES, float)]
READERS = {
    "codes": "the Semantic IDs of the items a user chose, oldest first",
    "items": "the items a user chose, oldest first, each as one input made of its Semantic ID and of an embedding of "
    "its own",
}
STOCK_READING = {"encoder_mask": BIDIRECTIONAL, "history": CODES, "decoder_reads": ALL_ITEMS}
STOCK_ENCODING = (
    "The model reads histories as transformers does, so `generate` of transformers computes the scores that tigerrec "
    "computes."
)
OWN_ENCODING = (
    "`generate` of transformers does not read histories as this model does: rank with tigerrec, or give `generate` "
    "what `HistoryT5.read` returns: `encoder_outputs=BaseModelOutput(encoded)` and `attention_mask`."
)
SEQUENCE_ENCODING = (
    "`generate` of transformers computes the scores that tigerrec computes, given as `input_ids` token 0 and the "
    "tokens of the last {max_items} items: code c of level l is token 1 + c + the sizes of the levels before, which "
    "are {level_sizes}."
)
SAMPLE = "The data are the invented shop that comes with tigerrec, under its licence."
AMAZON = (
    "The data are in the format of the Amazon product data of 2014 (R. He and J. McAuley 2016; J. McAuley et al. "
    "2015). Where they are that release, the licence of tigerrec does not cover them: its owners' terms apply to "
    "`items.parquet`, and to the model as far as it derives from the data."
)
OWN_DATA = (
    "`items.parquet` comes from the data the model was trained on: the terms of its owners apply to it, not the "
    "licence of this software."
)
PROTOCOL = (
    "Leave-one-out by time: the last item of a user is the test target, the one before it the validation target, and "
    "neither is ever a training target. All items are ranked, none sampled. `hit` says what counts: the item itself "
    "(the result), or any item with the same codes without suffix (`sid`). `seen` says whether the items of the user's "
    "history are masked out of the ranking. Intervals: bootstrap over users."
)


def count_parameters(run: Path) -> int:
    """The number of values in the weights of a train stage."""
    from safetensors import safe_open

    count = 0
    for name in open_stage(run, "train").files:
        if name.endswith(".safetensors"):
            with safe_open(run / name, framework="np") as file:
                count += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    return count


def _settings(title: str, config: dict[str, Any]) -> str:
    indented = json.dumps(config, indent=2, ensure_ascii=False)
    return f"<details><summary>{title}</summary>\n\n```json\n{indented}\n```\n\n</details>"


def metrics_table(rows: list[dict[str, Any]]) -> str:
    """Rows of `metrics.json` in Markdown, NDCG@10 with its 95 % interval."""
    lines = [["model", "split", "hit", "seen", "users", "HR@5", "NDCG@5", "HR@10", "NDCG@10", "95 %"]]
    for row in rows:
        figures = [f"{row[name]:.4f}" for name in FIGURES[:4]]
        interval = f"{row['ndcg@10_low']:.4f}–{row['ndcg@10_high']:.4f}"
        lines.append([row["model"], row["split"], row["hit"], row["seen"], f"{row['users']:,}", *figures, interval])
    return text.table(lines, texts=4)


def _how_to_generate(config: dict[str, Any]) -> str:
    """Whether and how transformers alone generates with a model, given its `config.json`."""
    settings = config["tigerrec"]
    if config["model_type"] == "gpt2":
        level_sizes = ", ".join(map(str, settings["level_sizes"]))
        return SEQUENCE_ENCODING.format(max_items=settings["max_items"], level_sizes=level_sizes)
    if config["model_type"] != "t5":
        return "Rank with tigerrec, whose search asks the model for the codes that may follow."
    as_transformers_does = STOCK_READING.items() <= settings.items() and USER_TOKENS not in settings
    return STOCK_ENCODING if as_transformers_does else OWN_ENCODING


def _results(evaluations: list[Path]) -> str:
    if not evaluations:
        return "This run was not evaluated before the export."
    parts = [PROTOCOL]
    for folder in evaluations:
        scores = open_stage(folder, "evaluate").config.get("scores", CODES_ALONE.scores)
        rows = metrics_table(read_json(folder, "metrics.json", METRICS))
        parts.append(f"`{folder.name}`, ranked with `evaluate.scores={scores}`:\n\n{rows}")
    return "\n\n".join(parts)


def is_sample(prepared: Manifest) -> bool:
    """Whether the raw files of a data set are those that come with tigerrec."""
    shipped = {sha256_file(path) for path in shipped_folder("sample", "data/sample").iterdir()}
    read = {record["fingerprint"] for record in prepared.inputs.values()}
    return bool(read) and read <= shipped


def _eval_results(dataset: str, evaluations: list[Path]) -> list[EvalResult]:
    """The generator's figures on items, seen ones masked, as the hub reads them."""
    from huggingface_hub import EvalResult

    results = []
    for folder in evaluations:
        config = open_stage(folder, "evaluate").config
        protocol = {"evaluation": folder.name, "scores": config.get("scores", CODES_ALONE.scores)}
        measured = {"model": config["model"], "hit": "item", "seen": "masked"}
        for row in read_json(folder, "metrics.json", METRICS):
            if measured.items() <= row.items():
                args = protocol | {name: row[name] for name in ("hit", "seen", "users")}
                results += [
                    EvalResult(
                        TASK, dataset, dataset, name, row[name], metric_name=name.upper(), metric_args=args,
                        task_name=TASK.replace("-", " "), dataset_split=row["split"],
                    )
                    for name in FIGURES[:4]
                ]  # fmt: skip
    return results


def _metadata(run: str, model_type: str, ours: bool, results: list[EvalResult]) -> str:
    """The YAML at the head of the card; data that are `ours` have the licence of the software."""
    from huggingface_hub import ModelCardData

    return ModelCardData(
        license="mit" if ours else "other", license_name=None if ours else "terms-of-the-data",
        library_name="tigerrec", tags=[*TAGS, model_type], model_name=run, eval_results=results or None,
    ).to_yaml()  # fmt: skip


def model_card(folders: dict[str, Path], evaluations: list[Path]) -> str:
    """The README.md of an export, filled from manifests and results."""
    manifests = {name: open_stage(folder, name) for name, folder in folders.items()}
    stats = read_stats(folders["prepare"])
    config = read_json(folders["train"], "config.json")
    settings = config["tigerrec"]
    dataset, tokenizer, run = (folder.name for folder in folders.values())
    embedder, code_sizes = folders["tokenize"].parent.name, " × ".join(map(str, settings["code_sizes"]))
    example = read_items(folders["prepare"])["item_id"].slice(0, 2).to_pylist()
    data = manifests["prepare"].config
    ours = is_sample(manifests["prepare"])
    licence = SAMPLE if ours else AMAZON if data.get("family") == "amazon" else OWN_DATA
    versions = read_json(folders["train"], MANIFEST, {"provenance": {"versions": dict}})["provenance"]["versions"]
    embed = manifests["tokenize"].inputs.get("embed", {}).get("config", {})
    reads = READERS.get(settings["history"], "the items a user chose, oldest first")
    return f"""---
{_metadata(run, config["model_type"], ours, _eval_results(dataset, evaluations))}
---

# {run} on {dataset}

A generative recommender (TIGER: Rajput et al. 2023, arXiv 2305.05065):
it reads {reads}, and generates the Semantic ID of the next one.

| | |
|---|---|
| data set | `{dataset}`: {stats["users"]:,} users, {stats["items"]:,} items, {stats["interactions"]:,} interactions |
| embedder | `{embedder}` |
| tokenizer | `{tokenizer}`: {code_sizes} codes, {len(settings["level_sizes"])} tokens an item |
| generator | `{run}`: {count_parameters(folders["train"]):,} parameters, reads the last {settings["max_items"]} items |
| made with | {", ".join(f"{name} {version}" for name, version in versions.items())} |

## Use

```python
from tigerrec.serving.recommender import Recommender

recommender = Recommender.from_pretrained("<this folder>")  # or "<owner>/<name>", if it is on the Hugging Face Hub
for item in recommender.recommend({example!r}, k=10):
    print(item.item_id, item.title, item.score, item.semantic_id)
```

Only items of this data set can be given and are recommended. {_how_to_generate(config)}

## Results

{_results(evaluations)}

## Intended use and limits

Made for research on generative recommendation and for comparing tokenizers. It repeats the tastes, gaps and biases of
its data, knows nothing of users but the items given, and was not tested on people; do not base decisions about persons
on it.

## Data and licence

{licence}

## Settings

{_settings("data set", data)}

{_settings("embedder", embed)}

{_settings("tokenizer", manifests["tokenize"].config)}

{_settings("training", manifests["train"].config)}
"""
