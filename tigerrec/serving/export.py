"""One self-contained folder of a trained run: model, Semantic IDs, items, tokenizer and a model card."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from tigerrec import text
from tigerrec.data.histories import ITEMS, read_items, read_stats
from tigerrec.models.base import ALL_ITEMS, BIDIRECTIONAL, CODES, VECTORS
from tigerrec.models.loading import load_generator
from tigerrec.search.options import CODES_ALONE
from tigerrec.serving.catalogue import POPULARITY, counts_of_training
from tigerrec.serving.recommender import EXPORT, check_run
from tigerrec.storage.contracts import read_json
from tigerrec.storage.files import ASIDE, ArtifactError
from tigerrec.storage.folders import embed_folder, upstream_folders
from tigerrec.storage.manifests import MANIFEST, StaleError, read_manifest
from tigerrec.storage.stages import check_made_from, input_record, open_stage, writing
from tigerrec.tokenizers.ids import load_semantic_ids
from tigerrec.tokenizers.stage import load_tokenizer

logger = logging.getLogger(__name__)

EMBEDDER, GENERATOR_EMBEDDER, CARD = "embedder.json", "generator_embedder.json", "README.md"
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


def export(run: Path, out: Path) -> Path:
    """Write everything that recommending with a finished train stage needs into one folder, whole or not at all; `out`
    is new, empty, or an older export, which is replaced. Raises ArtifactError if the run or a folder above it cannot be
    used, or `out` holds something else."""
    check_run(run)
    write_export(run, out.resolve())
    logger.info("wrote the run %s to %s", run, out)
    return out.resolve()


def write_export(run: Path, out: Path) -> None:
    """`export` of a train folder to an absolute path, silently; what nobody could load is refused. It holds the items,
    every content file of the tokenize and train stages, and what else recommending needs."""
    check_free(out)
    folders = upstream_folders(run)
    semantic_ids = load_semantic_ids(folders["tokenize"])
    load_generator(folders["train"], semantic_ids)
    load_tokenizer(folders["tokenize"])
    evaluations = _evaluations(folders["train"])
    with writing(out, EXPORT, {}, folders | {folder.name: folder for folder in evaluations}) as files:
        files.copy(folders["prepare"] / ITEMS)
        for stage in ("tokenize", "train"):
            for name, entry in open_stage(folders[stage], stage).files.items():
                if not entry.get("measured"):
                    files.copy(folders[stage] / name)
        for name, folder in _embed_folders(folders).items():
            files.json(name, _embedder(folder))
        files.arrays(POPULARITY, {"training_counts": counts_of_training(folders["prepare"], open_stage(run, "train"))})
        with files.create(CARD) as temporary:
            temporary.write_text(model_card(folders, evaluations), encoding="utf-8")


def _embed_folders(folders: dict[str, Path]) -> dict[str, Path]:
    """The embed stages of the vectors that a tokenizer and a generator read, as far as they are there, by the name of
    the file that describes them."""
    found = {EMBEDDER: embed_folder(folders["tokenize"])}
    read = open_stage(folders["train"], "train").inputs.get(VECTORS)
    if read is not None:
        stages = [path.parent for path in folders["prepare"].glob(f"*/{MANIFEST}")]
        found[GENERATOR_EMBEDDER] = next((stage for stage in stages if _is_stage(stage, read)), None)
    return {name: folder for name, folder in found.items() if folder is not None}


def _is_stage(folder: Path, record: dict[str, Any]) -> bool:
    """Whether a folder holds the embed stage that another one read."""
    manifest = read_manifest(folder)
    present = manifest is not None and manifest.stage == "embed"
    return present and all(input_record(folder)[key] == record[key] for key in ("fingerprint", "content"))


def _embedder(folder: Path) -> dict[str, Any]:
    """The embedder of an embed stage and the sha256 of its files."""
    manifest = open_stage(folder, "embed")
    recorded = manifest.provenance.get("embedder")
    settings = dict(recorded) if isinstance(recorded, dict) else {}
    settings.pop("device", None)
    sources = {role: record["fingerprint"] for role, record in manifest.inputs.items() if role != "prepare"}
    return {"config": manifest.config | settings, "sources": sources}


def check_free(out: Path) -> None:
    """Refuse a path that holds anything but an older export."""
    was_killed = (out / ASIDE).is_dir()
    if not out.exists() or was_killed or (out.is_dir() and not any(out.iterdir())):
        return
    manifest = read_manifest(out)
    if manifest is None or manifest.stage != EXPORT:
        raise ArtifactError(f"{out} is not empty and is no earlier export; give a new folder with `--out <folder>`.")


def _evaluations(trained: Path) -> list[Path]:
    """The finished evaluations of this training, by name."""
    evaluations = []
    for folder in sorted(trained.glob("eval-*")):
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        try:
            check_made_from(folder, manifest, "train", trained)
        except StaleError:
            continue
        open_stage(folder, "evaluate")
        evaluations.append(folder)
    return evaluations


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
    return STOCK_ENCODING if STOCK_READING.items() <= settings.items() else OWN_ENCODING


def _results(evaluations: list[Path]) -> str:
    if not evaluations:
        return "This run was not evaluated before the export."
    parts = [PROTOCOL]
    for folder in evaluations:
        scores = open_stage(folder, "evaluate").config.get("scores", CODES_ALONE.scores)
        rows = metrics_table(read_json(folder, "metrics.json", METRICS))
        parts.append(f"`{folder.name}`, ranked with `evaluate.scores={scores}`:\n\n{rows}")
    return "\n\n".join(parts)


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
    licence = SAMPLE if dataset == "sample" else AMAZON if data.get("family") == "amazon" else OWN_DATA
    versions = read_json(folders["train"], MANIFEST, {"provenance": {"versions": dict}})["provenance"]["versions"]
    embed = manifests["tokenize"].inputs.get("embed", {}).get("config", {})
    reads = READERS.get(settings["history"], "the items a user chose, oldest first")
    return f"""---
library_name: tigerrec
tags: [recommendation, generative-retrieval, semantic-ids, {config["model_type"]}]
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

recommender = Recommender.from_pretrained("<this folder>")
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
