"""Checks that train again: whether held-out items enter training, and what the order of equal times decides."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec.analysis.audit.figures import HR, NDCG, difference_in_words, headline, paired_difference
from tigerrec.analysis.audit.run import SEED, AuditedRun, Finding, check, seeded_rng
from tigerrec.analysis.audit.variants import from_end, in_a_tie, poisoned, ties_reversed
from tigerrec.data.histories import load_histories, training_counts
from tigerrec.embed.base import EmbedsCatalogue
from tigerrec.embed.collaborative import Collaborative
from tigerrec.embed.stage import load_embeddings
from tigerrec.evaluation.metrics import item_ranks
from tigerrec.evaluation.stage import POPULARITY, known_and_targets
from tigerrec.models.base import VECTORS
from tigerrec.search.ranking import by_popularity
from tigerrec.storage.stages import open_stage
from tigerrec.text import percent
from tigerrec.training.options import TrainConfig
from tigerrec.training.stage import train

WEIGHTS = ".safetensors"
EQUAL, DIFFERENT = "equal bytes", "different"


def weights(trained: Path) -> dict[str, str]:
    """The sha256 of the weights of a finished train stage, by file."""
    files = open_stage(trained, "train").files
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(WEIGHTS)}


def validated_once(config: TrainConfig) -> TrainConfig:
    """The same training with one validation, at its end, so that nothing can be selected."""
    every = max(config.training.epochs, config.training.validate_every)
    return dataclasses.replace(config, training=dataclasses.replace(config.training, validate_every=every))


def train_on(
    run: AuditedRun, name: str, prepared: Path, tokenized: Path, config: TrainConfig, vectors: Path | None = None
) -> Path:
    """A train stage of the audit, resumed where it was stopped; where the generator reads vectors, of those given or
    else those of the run."""
    vectors = vectors or run.vectors
    extra = {} if vectors is None else {VECTORS: vectors}
    inputs = {"prepare": prepared, "tokenize": tokenized} | extra
    return run.stage(name, "train", config, inputs, lambda out: train(prepared, tokenized, config, out, extra))


def _poisoned_data(run: AuditedRun, last: int) -> Path:
    """The prepared data with the last items of every user replaced, as a stage; see `poisoned`."""
    config = {"audit": f"the last {last} items of every user replaced by random other items", "seed": SEED}
    changed = poisoned(run.interactions, run.histories.n_items, seeded_rng("poison"), last)
    return run.changed_data(f"poisoned-{last}", config, changed)


def _compared(what: str, compared_with: str, sha256: str, expected: str | None) -> dict[str, str]:
    """A row about two sha256."""
    result = EQUAL if sha256 == expected else DIFFERENT
    return {"what": what, "compared with": compared_with, "result": result, "sha256": sha256[:16]}


def _trained_again(run: AuditedRun, last: int, config: TrainConfig, what: str) -> list[dict[str, str]]:
    """Whether training on poisoned data gives the weights of the same training on the true data, a row a file."""
    tokenized = run.folders["tokenize"]
    trained = weights(train_on(run, f"poisoned-{last}-trained", _poisoned_data(run, last), tokenized, config))
    compared_with, expected = "the audited run", weights(run.folders["train"])
    if config != run.steps["train"].config or trained != expected:  # another version or machine gives other bytes
        compared_with = "the same training on the true data"
        expected = weights(train_on(run, "reference-trained", run.folders["prepare"], tokenized, config))
    return [
        _compared(f"{name} of {what}", compared_with, sha256, expected.get(name)) for name, sha256 in trained.items()
    ]


@check("Do held-out items enter training?", trains=True)
def leakage(run: AuditedRun) -> Finding:
    """The test and the validation item of every user are replaced by random other items, and the generator is trained
    again with the same seed, options and Semantic IDs, with one validation, at its end. If the weights have the same
    bytes, no held-out item entered training. A run that validated more than once is trained again with its validations
    and other test items alone: the checkpoint it chose must be the same. Vectors that are made of interactions are
    computed again too."""
    own: TrainConfig = run.steps["train"].config
    once = validated_once(own)
    rows = _trained_again(run, 2, once, "training on poisoned data")
    if once != own:
        rows += _trained_again(run, 1, own, "training with its validations on data with poisoned test items")
    rows += _vectors(run, _poisoned_data(run, 2))
    n_replaced = int((from_end(run.interactions) <= 2).sum())
    leaking = [row["what"] for row in rows if row["result"] == DIFFERENT]
    if leaking:
        return Finding(
            f"{', '.join(leaking)}: different after held-out items were replaced. Held-out items enter, or the same "
            "training does not give the same bytes here (a GPU, another number of threads).",
            rows,
        )
    selected = "with test items alone replaced the same checkpoint was chosen"
    if once == own:
        selected = "it validated once, so nothing was selected"
    return Finding(
        f"The trained weights have the same bytes after all {n_replaced:,} test and validation items were "
        f"replaced: none of them enters training; and {selected}.",
        rows,
    )


def _vectors(run: AuditedRun, poisoned_data: Path) -> list[dict[str, str]]:
    """Whether poisoned data gives the same vectors of interactions: those of the run, or else the default ones."""
    embedders = [
        (f"vectors of {step.folder.name}", step.config, step.inputs)
        for step in run.steps.values()
        if isinstance(step.config, EmbedsCatalogue)
    ]
    rows = []
    for what, embedder, inputs in embedders or [("collaborative vectors (not of this run)", Collaborative(), {})]:
        others = {name: load_embeddings(folder) for name, folder in inputs.items() if name != "prepare"}
        again, true = (
            hashlib.sha256(embedder.vectors(prepared, others).tobytes()).hexdigest()
            for prepared in (poisoned_data, run.folders["prepare"])
        )
        rows.append(_compared(f"{what} of poisoned data", "those of the true data", again, true))
    return rows


@check("What does the order of equal times decide?", trains=True)
def ties(run: AuditedRun) -> Finding:
    """Interactions of a user with equal times stand in the order of the file. Here that order is reversed, everything
    else kept, and the generator trained again with the same seed, options and Semantic IDs. Part of the targets are
    then others: the difference is that of two test sets."""
    before, after = run.interactions, ties_reversed(run.interactions)
    data = run.changed_data("ties-reversed", {"audit": "interactions with equal times in the opposite order"}, after)
    trained = train_on(run, "ties-reversed-trained", data, run.folders["tokenize"], run.steps["train"].config)
    histories = load_histories(data)
    known, targets = known_and_targets(histories, "test")
    searcher = run.open_searcher(trained, run.semantic_ids, training_counts(histories))
    lists = run.search(
        searcher, known, mask_seen=True, progress="reversed within equal times", users=np.arange(len(known))
    )
    training, old_training = (
        [of_all.training_part(user) for user in run.numbers] for of_all in (histories, run.histories)
    )
    validated = np.intersect1d(histories.users_with("validation"), run.numbers)
    validation, old_validation = (
        known_and_targets(of_all, "validation", validated)[1] for of_all in (histories, run.histories)
    )
    popularity, _ = by_popularity(training_counts(histories))(known, k=run.evaluation.k, mask_seen=True)
    ranks = {
        model: (run.ranks[model, "item", "masked"], item_ranks(reversed_lists, targets))
        for model, reversed_lists in ((run.model, lists), (POPULARITY, popularity))
    }
    rows: list[dict[str, Any]] = [
        {"what": model, "order": order, **headline(of_order)}
        for model, orders in ranks.items()
        for order, of_order in zip(("order of the file", "reversed within equal times"), orders, strict=True)
    ]
    difference: dict[str, Any] = {"what": run.model, "order": "difference", "users": len(targets)}
    difference |= paired_difference(*ranks[run.model])
    rows.insert(2, difference)
    items = zip(old_training, training, strict=True)
    with_ties = int(np.isin(run.numbers, before["user"][in_a_tie(before)]).sum())
    other_targets = int((targets != run.targets).sum())
    counts = {
        "users with equal times in their history": with_ties,
        "users whose test target changes": other_targets,
        "users whose validation target changes": int((validation != old_validation).sum()),
        "users whose training items change": sum(set(old.tolist()) != set(new.tolist()) for old, new in items),
    }
    n_users = len(targets)
    rows += [{"what": what, "users": number, "share of users": number / n_users} for what, number in counts.items()]
    return Finding(
        f"{with_ties:,} of {n_users:,} users have equal times in their history. Reversing the order within them "
        f"changes {other_targets:,} test targets ({percent(other_targets / n_users)}); trained again on that order, "
        f"HR@10 changes by {difference_in_words(difference, HR)} and NDCG@10 by "
        f"{difference_in_words(difference, NDCG)} (one seed each).",
        rows,
    )
