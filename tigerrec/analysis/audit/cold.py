"""Whether a trained generator recommends items that came after its training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec.analysis.audit.figures import CUTOFF, HR, NDCG, chance_of_any, headline
from tigerrec.analysis.audit.run import SEED, AuditedRun, Finding, NotApplicableError, check, seeded_rng
from tigerrec.analysis.audit.trained import train_on
from tigerrec.analysis.audit.variants import without_items
from tigerrec.data.histories import load_histories, training_counts
from tigerrec.embed.base import EmbedsTexts
from tigerrec.embed.stage import FILE, embed, load_embeddings
from tigerrec.embed.vectors import unit
from tigerrec.evaluation.metrics import item_ranks, metrics
from tigerrec.models.base import HistoryModel
from tigerrec.search.options import LIGER, Scoring
from tigerrec.serving.new_items import new_semantic_ids
from tigerrec.storage.stages import writing
from tigerrec.text import figure, percent
from tigerrec.tokenizers.ids import SemanticIdError, load_semantic_ids
from tigerrec.tokenizers.stage import tokenize

SHARE = 0.05
OF_ALL, OF_WARM = ("hr@10 of all", "ndcg@10 of all"), ("hr@10 of warm users", "ndcg@10 of warm users")
WITH_NEW, ANY_NEW = "share of places with a new item", "share of top 10s with one"


def hold_out(targets: np.ndarray, n_items: int, rng: np.random.Generator) -> np.ndarray:
    """The items to hold out, bool (n_items,): 5 % of the catalogue, each the test target of some user."""
    eligible = np.unique(targets)
    chosen = rng.choice(eligible, min(max(1, round(SHARE * n_items)), len(eligible)), replace=False)
    return np.isin(np.arange(n_items), chosen)


@dataclass(frozen=True)
class ColdStart:
    """A catalogue that some items join after training."""

    held_out: np.ndarray  # bool (n_items,): which items join
    prepared: Path  # the stage of the other items' interactions
    numbers: np.ndarray  # of the items in the new catalogue, int64 (n_items,): known ones first, in their old order
    users: np.ndarray  # those who have known items, int64 (n,)
    histories: list[np.ndarray]  # their known items, as numbers of the new catalogue
    targets: np.ndarray  # their test targets, likewise
    n_warm: int  # how many items training knows

    @property
    def is_cold(self) -> np.ndarray:
        """Whose test target is held out, bool (n,)."""
        return self.targets >= self.n_warm


def cold_start(run: AuditedRun) -> ColdStart:
    """The run's data without the items held out, and the users to rank for."""
    held_out = hold_out(run.targets, run.histories.n_items, seeded_rng("cold items"))
    changed, numbers = without_items(run.interactions, held_out)
    config = {"audit": "items held out of all histories", "share": SHARE, "seed": SEED}
    prepared = run.changed_data("cold", config, changed, ~held_out)
    n_warm = int((~held_out).sum())
    numbers = np.where(held_out, n_warm + np.cumsum(held_out) - 1, numbers)
    users = np.array([user for user, known in enumerate(run.known) if not held_out[known].all()])
    if not held_out[run.targets[users]].any():
        raise NotApplicableError("No user with a held-out target has a known item.")
    histories = [numbers[run.known[user][~held_out[run.known[user]]]] for user in users]
    return ColdStart(held_out, prepared, numbers, users, histories, numbers[run.targets[users]], n_warm)


def _tokenized(run: AuditedRun, cold: ColdStart) -> Path:
    """The run's tokenizer fitted on the vectors of the other items alone."""
    step = run.steps["tokenize"]
    folders = {name: _vectors_of_known(run, cold, folder, name == "embed") for name, folder in step.inputs.items()}
    further = {name: folder for name, folder in folders.items() if name != "embed"}
    fit = partial(tokenize, folders["embed"], step.config, extra=further)
    return run.stage("cold-tokenized", "tokenize", step.config, folders, fit)


def _vectors_of_known(run: AuditedRun, cold: ColdStart, folder: Path, of_new_too: bool) -> Path:
    """An embed stage with the vectors of the known items alone: rows of another, or those of their interactions where
    no vectors of new items are needed."""
    embedder = next(step for step in run.steps.values() if step.folder == folder).config
    if isinstance(embedder, EmbedsTexts):
        config: Any = {"audit": "the rows of the items that are left"}
        inputs, build = {"prepare": cold.prepared, "embed": folder}, partial(_keep_rows, cold, folder, config)
    elif of_new_too or embedder.needs:
        raise NotApplicableError(
            f"The vectors of {folder.name} are made of interactions, which a new item has none of."
        )
    else:
        config, inputs, build = embedder, {"prepare": cold.prepared}, partial(embed, cold.prepared, embedder)
    return run.stage(f"cold-{folder.name}", "embed", config, inputs, build)


def _keep_rows(cold: ColdStart, embedded: Path, config: Any, out: Path) -> Path:
    """Write the known items' rows of an embed stage as a stage."""
    with writing(out, "embed", config, inputs={"prepare": cold.prepared, "embed": embedded}) as files:
        files.arrays(FILE, {"embeddings": load_embeddings(embedded)[~cold.held_out]})
    return out


def nearest_lists(vectors: np.ndarray, histories: list[np.ndarray], k: int) -> np.ndarray:
    """The items nearest to each history's last one by cosine, without the history's own, int64 (n, k)."""
    directions = unit(vectors)
    lists = []
    for history in histories:
        similarity = directions @ directions[history[-1]]
        similarity[history] = -np.inf
        lists.append(np.argsort(-similarity, kind="stable")[:k])
    return np.stack(lists)


def ways(model: HistoryModel, own: Scoring) -> dict[str, Scoring]:
    """The ways to rank new items beside known ones that a model has, by what the report calls them."""
    named = {"trained without the new items, all items ranked": own}
    if model.reads_vectors and model.scores_items:
        named |= {f"the same with {n} of ten places for new items": replace(own, cold_places=n) for n in (1, 2)}
        named["the same by LIGER's way: items of the beam and new items, by the head"] = Scoring(LIGER)
    return named


@check("Does it recommend new items?", trains=True)
def cold_items(run: AuditedRun) -> Finding:
    """5 % of the items, each the target of some user, are taken out of all histories and of the tokenizer's vectors, as
    if they had never been there; tokenizer and generator are fitted again with the same seeds and options. Then the
    frozen tokenizer gives these items ids, they join the trie, and users are ranked for; of their histories the new
    items are missing. Cold users are those whose target is a new item; warm ones are all others."""
    if run.searcher.model.reads_users:
        raise NotApplicableError("Without the new items users have other numbers, and so other tokens.")
    cold = cold_start(run)
    tokenized = _tokenized(run, cold)
    read = None if run.vectors is None else _vectors_of_known(run, cold, run.vectors, True)
    trained = train_on(run, "cold-trained", cold.prepared, tokenized, run.steps["train"].config, read)
    vectors = load_embeddings(run.folders["embed"])
    ids, warm = load_semantic_ids(tokenized), load_histories(cold.prepared)
    try:
        tokens = ids.layout.to_tokens(new_semantic_ids(tokenized, vectors[cold.held_out]))
    except SemanticIdError as error:
        raise NotApplicableError(f"The tokenizer has no ids left for the new items: {error}") from None
    n_cold, n_items = len(tokens), run.histories.n_items
    of_new = None if run.vectors is None else load_embeddings(run.vectors)[cold.held_out]
    searcher = run.open_searcher(trained, ids, training_counts(warm)).with_items(tokens, of_new)
    searcher = replace(searcher, scoring=replace(searcher.scoring, cold_places=0))
    is_cold, cold_users = cold.is_cold, np.flatnonzero(cold.is_cold)
    histories, targets = [cold.histories[user] for user in cold_users], cold.targets[cold_users]
    rows: list[dict[str, Any]] = []
    for what, scoring in ways(searcher.model, searcher.scoring).items():
        lists = run.search(replace(searcher, scoring=scoring), cold.histories, mask_seen=True, progress=what)
        is_new = lists[cold_users, :CUTOFF] >= cold.n_warm
        row = _of_users(what, item_ranks(lists, cold.targets), is_cold)
        rows.append(row | {WITH_NEW: float(is_new.mean()), ANY_NEW: float(is_new.any(1).mean())})
    own, *others = rows
    every_known = np.arange(cold.n_warm)
    alone = run.search(searcher, histories, mask_seen=True, progress="new alone", seen=[every_known] * len(histories))
    nearest = nearest_lists(vectors[np.argsort(cold.numbers)], cold.histories, run.evaluation.k)
    informed = run.ranks[run.model, "item", "masked"][cold.users]
    by_vectors = _of_users(
        "nearest vectors to the last item, all items ranked", item_ranks(nearest, cold.targets), is_cold
    )
    known = _of_users("the audited run on the same users, whose targets it knows", informed, is_cold)
    own_alone: dict[str, Any] = {"what": "trained without the new items, new items alone ranked"}
    own_alone |= _cold(item_ranks(alone, targets))
    n_unknown = n_items - float(np.mean([len(history) for history in histories]))
    chance: dict[str, Any] = {"what": "ten items at random", HR: CUTOFF / n_unknown, "hr@20": 2 * CUTOFF / n_unknown}
    chance |= {WITH_NEW: n_cold / n_items, ANY_NEW: chance_of_any(n_cold, n_items, CUTOFF)}
    chance_alone: dict[str, Any] = {"what": "ten of the new items at random"}
    chance_alone |= {HR: min(1.0, CUTOFF / n_cold), "hr@20": min(1.0, 2 * CUTOFF / n_cold)}
    n_hits = round(own[HR] * len(cold_users))
    best = max(others, key=lambda row: row[HR], default=None)
    places = ""
    if best is not None:
        places = (
            f" Best on these users of the ways that look for new items: {best['what']}, HR@10 {figure(best[HR])} for "
            f"cold users and {figure(best[OF_ALL[1]])} NDCG@10 for all, which is {figure(own[OF_ALL[1]])} without."
        )
    return Finding(
        f"{n_cold:,} items were held out of training and of the tokenizer's fit; {len(cold_users):,} users have one as "
        f"their target. The generator puts it in the top 10 of {n_hits:,} of them "
        f"(HR@10 {figure(own[HR])}; ten items at random {figure(chance[HR])}; nearest vectors "
        f"{figure(by_vectors[HR])}; the run that knows the items {figure(known[HR])}). {percent(own[ANY_NEW])} of the "
        f"top 10s hold a new item; at random it would be {percent(chance[ANY_NEW])}. Among the new items alone HR@10 "
        f"is {figure(own_alone[HR])}, at random {figure(chance_alone[HR])}.{places}",
        [own, *others, chance, by_vectors, known, own_alone, chance_alone],
    )


def _cold(ranks: np.ndarray) -> dict[str, float]:
    """The figures of cold users."""
    return headline(ranks) | {"hr@20": metrics(ranks)["hr@20"]}


def _of_users(what: str, ranks: np.ndarray, is_cold: np.ndarray) -> dict[str, Any]:
    """A row of the report: the figures of cold users, then those of all and of warm ones."""
    row: dict[str, Any] = {"what": what, **_cold(ranks[is_cold])}
    for names, of_users in ((OF_ALL, ranks), (OF_WARM, ranks[~is_cold])):
        values = metrics(of_users, intervals=False)
        row |= {names[0]: values[HR], names[1]: values[NDCG]}
    return row
