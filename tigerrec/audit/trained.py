"""Checks that train again on changed data: whether held-out items enter training, and what the order of equal times
decides."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec import artifacts
from tigerrec.audit.figures import HR, NDCG, difference_in_words, headline, paired_difference, percent
from tigerrec.audit.run import SEED, AuditedRun, Finding, random
from tigerrec.audit.variants import in_a_tie, poisoned, read_interactions, ties_reversed, write_variant
from tigerrec.baselines.popularity import Popularity
from tigerrec.embed import EmbedsCatalogue, load_embeddings
from tigerrec.embed.collaborative import Collaborative
from tigerrec.histories import load_histories, split, training_counts, training_part
from tigerrec.metrics import item_ranks
from tigerrec.train import TrainConfig, train

WEIGHTS = ".safetensors"
EQUAL, DIFFERENT = "equal bytes", "different"


def weights(trained: Path) -> dict[str, str]:
    """The sha256 of the weights of a finished train stage, by file."""
    return {
        name: entry["sha256"]
        for name, entry in artifacts.open_stage(trained, "train").files.items()
        if name.endswith(WEIGHTS)
    }


def validated_once(config: TrainConfig) -> TrainConfig:
    """The same training with one validation, at its end, so that nothing can be selected."""
    training = config.training
    return dataclasses.replace(
        config, training=dataclasses.replace(training, validate_every=max(training.epochs, training.validate_every))
    )


def train_on(run: AuditedRun, name: str, prepared: Path, tokenized: Path, config: TrainConfig) -> Path:
    """A train stage of the audit, resumed where it was stopped."""
    inputs = {"prepare": prepared, "tokenize": tokenized}
    return run.stage(name, "train", config, inputs, lambda out: train(prepared, tokenized, config, out))


def poisoned_data(run: AuditedRun, last: int) -> Path:
    """The prepared data with the last items of every user replaced, as a stage; see `poisoned`."""
    n_items = run.histories.n_items
    config = {"audit": f"the last {last} items of every user replaced by random other items", "seed": SEED}
    changed = poisoned(read_interactions(run.prepared), n_items, random("poison"), last)
    inputs = {"prepare": run.prepared}
    return run.stage(
        f"poisoned-{last}",
        "prepare",
        config,
        inputs,
        lambda out: write_variant(run.prepared, config, changed, np.ones(n_items, bool), out),
    )


def _compared(what: str, compared_with: str, found: str, expected: str | None) -> dict[str, str]:
    """A row of two sha256."""
    return {
        "what": what,
        "compared with": compared_with,
        "result": EQUAL if found == expected else DIFFERENT,
        "sha256": found[:16],
    }


def _trained_again(run: AuditedRun, data: Path, config: TrainConfig, what: str) -> list[dict[str, str]]:
    """Whether training on poisoned data gives the weights of the same training on the true data, a row a file."""
    found = weights(train_on(run, f"{data.name.rpartition('-')[0]}-trained", data, run.tokenized, config))
    compared, expected = "the audited run", weights(run.trained)
    if (
        config != run.steps["train"].config or found != expected
    ):  # another version or machine gives other bytes: train on the true data here and now
        compared, expected = (
            "the same training on the true data",
            weights(train_on(run, "reference-trained", run.prepared, run.tokenized, config)),
        )
    return [_compared(f"{name} of {what}", compared, digest, expected.get(name)) for name, digest in found.items()]


def leakage(run: AuditedRun) -> Finding:
    """Whether held-out items enter training, or test items the choice of a checkpoint, by training on data in which all
    of them are others."""
    data = poisoned_data(run, last=2)
    own: TrainConfig = run.steps["train"].config
    once = validated_once(own)
    rows = _trained_again(run, data, once, "training on poisoned data")
    if once != own:
        rows += _trained_again(
            run, poisoned_data(run, last=1), own, "training with its validations on data with poisoned test items"
        )
    rows += _vectors(run, data)
    replaced = 2 * len(run.targets)
    leaking = [row["what"] for row in rows if row["result"] == DIFFERENT]
    if leaking:
        return Finding(
            f"{', '.join(leaking)}: different after held-out items were replaced. Held-out items enter, or the same "
            "training does not give "
            "the same bytes here (a GPU, another number of threads).",
            rows,
        )
    selected = (
        "it validated once, so nothing was selected"
        if once == own
        else "with test items alone replaced the same checkpoint was chosen"
    )
    return Finding(
        f"The trained weights have the same bytes after all {replaced:,} test and validation items were replaced: "
        "none of them enters training; "
        f"and {selected}.",
        rows,
    )


def _vectors(run: AuditedRun, data: Path) -> list[dict[str, str]]:
    """Whether item vectors that are made of interactions are the same on poisoned data: those of the run, or else the
    collaborative ones of the defaults."""
    made = [step for step in run.steps.values() if step.stage == "embed" and isinstance(step.config, EmbedsCatalogue)]
    computed = {
        f"vectors of {step.folder.name}": (
            step.config,
            {name: folder for name, folder in step.inputs.items() if name != "prepare"},
        )
        for step in made
    }
    rows = []
    for what, (embedder, folders) in (
        computed or {"collaborative vectors (not of this run)": (Collaborative(), {})}
    ).items():
        parts = {name: load_embeddings(folder) for name, folder in folders.items()}
        again, true = (
            hashlib.sha256(embedder.vectors(prepared, parts).tobytes()).hexdigest() for prepared in (data, run.prepared)
        )
        rows.append(_compared(f"{what} of poisoned data", "those of the true data", again, true))
    return rows


def ties(run: AuditedRun) -> Finding:
    """How much the order of interactions with equal times decides: histories, targets and metrics with the opposite
    order."""
    n_items = run.histories.n_items
    before = read_interactions(run.prepared)
    after = ties_reversed(before)
    config = {"audit": "interactions with equal times in the opposite order"}
    inputs = {"prepare": run.prepared}
    data = run.stage(
        "ties-reversed",
        "prepare",
        config,
        inputs,
        lambda out: write_variant(run.prepared, config, after, np.ones(n_items, bool), out),
    )
    trained = train_on(run, "ties-reversed-trained", data, run.tokenized, run.steps["train"].config)
    histories = load_histories(data)
    pairs = [split(histories[user], "test") for user in range(len(histories))]
    known, targets = [history for history, _ in pairs], np.array([target for _, target in pairs])
    searcher = run.open_searcher(trained, run.semantic_ids, training_counts(histories))
    lists = run.search(searcher, known, mask_seen=True, progress="reversed within equal times")
    training = [training_part(histories[user]) for user in range(len(histories))]
    popularity, _ = Popularity().fit(training, n_items).rank(known, k=run.evaluation.k, mask_seen=True)
    orders = {"order of the file": run.ranks("masked"), "reversed within equal times": item_ranks(lists, targets)}
    rows: list[dict[str, Any]] = [
        {"what": run.evaluation.model, "order": order, **headline(ranks)} for order, ranks in orders.items()
    ]
    rows.append(
        {
            "what": run.evaluation.model,
            "order": "difference",
            "users": len(targets),
            **paired_difference(*orders.values()),
        }
    )
    rows += [
        {"what": "popularity", "order": order, **headline(ranks)}
        for order, ranks in zip(
            orders, (run.ranks("masked", model="popularity"), item_ranks(popularity, targets)), strict=True
        )
    ]
    changed = {
        "users with equal times in their history": len(np.unique(before.users[in_a_tie(before)])),
        "users whose test target changes": int((targets != run.targets).sum()),
        "users whose validation target changes": int((before.items != after.items)[before.from_end == 2].sum()),
        "users whose training items change": sum(
            set(training_part(run.histories[user]).tolist()) != set(training_part(histories[user]).tolist())
            for user in range(len(histories))
        ),
    }
    rows += [
        {"what": what, "users": number, "share of users": number / len(targets)} for what, number in changed.items()
    ]
    with_ties, other_targets, n_users = (
        changed["users with equal times in their history"],
        changed["users whose test target changes"],
        len(targets),
    )
    return Finding(
        f"{with_ties:,} of {n_users:,} users have equal times in their history. Reversing the order within them "
        f"changes {other_targets:,} test targets "
        f"({percent(other_targets / n_users)}); trained again on that order, HR@10 changes by "
        f"{difference_in_words(rows[2], HR)} and NDCG@10 by "
        f"{difference_in_words(rows[2], NDCG)} (one seed each).",
        rows,
    )
