"""Whether a trained generator recommends items that came after its training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec.analysis.audit.figures import CUTOFF, HR, chance_of_any, headline
from tigerrec.analysis.audit.run import SEED, AuditedRun, Finding, NotApplicableError, check, seeded_rng
from tigerrec.analysis.audit.trained import train_on
from tigerrec.analysis.audit.variants import without_items
from tigerrec.data.histories import load_histories, training_counts
from tigerrec.embed.base import EmbedsTexts
from tigerrec.embed.stage import FILE, embed, load_embeddings
from tigerrec.embed.vectors import unit
from tigerrec.evaluation.metrics import item_ranks, metrics
from tigerrec.search.beam_search import Searcher
from tigerrec.search.trie import build_trie
from tigerrec.serving.new_items import new_semantic_ids
from tigerrec.storage.stages import writing
from tigerrec.text import figure, percent
from tigerrec.tokenizers.ids import SemanticIdError, load_semantic_ids
from tigerrec.tokenizers.stage import tokenize

SHARE = 0.05
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
    users: np.ndarray  # those whose test target is held out and who have known items, int64 (n,)
    histories: list[np.ndarray]  # their known items, as numbers of the new catalogue
    targets: np.ndarray  # their test targets, likewise
    n_warm: int  # how many items training knows


def cold_start(run: AuditedRun) -> ColdStart:
    """The run's data without the items held out, and the users to rank for."""
    held_out = hold_out(run.targets, run.histories.n_items, seeded_rng("cold items"))
    changed, numbers = without_items(run.interactions, held_out)
    config = {"audit": "items held out of all histories", "share": SHARE, "seed": SEED}
    prepared = run.changed_data("cold", config, changed, ~held_out)
    n_warm = int((~held_out).sum())
    numbers = np.where(held_out, n_warm + np.cumsum(held_out) - 1, numbers)
    users = [user for user in np.flatnonzero(held_out[run.targets]) if not held_out[run.known[user]].all()]
    if not users:
        raise NotApplicableError("No user with a held-out target has a known item.")
    histories = [numbers[run.known[user][~held_out[run.known[user]]]] for user in users]
    return ColdStart(held_out, prepared, numbers, np.array(users), histories, numbers[run.targets[users]], n_warm)


def _tokenized(run: AuditedRun, cold: ColdStart) -> Path:
    """The run's tokenizer fitted on the vectors of the other items alone."""
    step = run.steps["tokenize"]
    folders = {}
    for name, folder in step.inputs.items():
        embedder = next(other for other in run.steps.values() if other.folder == folder).config
        if isinstance(embedder, EmbedsTexts):
            config: Any = {"audit": "the rows of the items that are left"}
            inputs, build = {"prepare": cold.prepared, "embed": folder}, partial(_keep_rows, cold, folder, config)
        elif name == "embed" or embedder.needs:
            raise NotApplicableError(
                f"The vectors of {folder.name} are made of interactions, which a new item has none of."
            )
        else:
            config, inputs, build = embedder, {"prepare": cold.prepared}, partial(embed, cold.prepared, embedder)
        folders[name] = run.stage(f"cold-{folder.name}", "embed", config, inputs, build)
    further = {name: folder for name, folder in folders.items() if name != "embed"}
    fit = partial(tokenize, folders["embed"], step.config, extra=further)
    return run.stage("cold-tokenized", "tokenize", step.config, folders, fit)


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


@check("Does it recommend new items?", trains=True)
def cold_items(run: AuditedRun) -> Finding:
    """5 % of the items, each the target of some user, are taken out of all histories and of the tokenizer's vectors, as
    if they had never been there; tokenizer and generator are fitted again with the same seeds and options. Then the
    frozen tokenizer gives these items ids, they join the trie, and users whose target is one of them are ranked for; of
    their histories the new items are missing."""
    cold = cold_start(run)
    tokenized = _tokenized(run, cold)
    trained = train_on(run, "cold-trained", cold.prepared, tokenized, run.steps["train"].config)
    vectors = load_embeddings(run.folders["embed"])
    ids, warm = load_semantic_ids(tokenized), load_histories(cold.prepared)
    try:
        tokens = ids.layout.to_tokens(new_semantic_ids(tokenized, vectors[cold.held_out]))
    except SemanticIdError as error:
        raise NotApplicableError(f"The tokenizer has no ids left for the new items: {error}") from None
    n_cold, n_items = len(tokens), run.histories.n_items
    searcher = run.open_searcher(trained, ids, training_counts(warm)).with_items(tokens)
    lists = run.search(searcher, cold.histories, mask_seen=True, progress="all items")
    trie = build_trie(tokens, np.zeros(n_cold, np.int64)).to(searcher.model.device)
    among_new = Searcher(searcher.model, trie, searcher.precision)
    alone = run.search(among_new, cold.histories, mask_seen=False, progress="new items alone")
    nearest = nearest_lists(vectors[np.argsort(cold.numbers)], cold.histories, run.evaluation.k)
    is_new = lists[:, :CUTOFF] >= cold.n_warm
    n_unknown = n_items - float(np.mean([len(history) for history in cold.histories]))
    ranks, informed = item_ranks(lists, cold.targets), run.ranks[run.model, "item", "masked"][cold.users]
    rows: list[dict[str, Any]] = [
        {"what": what, **headline(of_users), "hr@20": metrics(of_users)["hr@20"]}
        for what, of_users in (
            ("trained without the new items, all items ranked", ranks),
            ("nearest vectors to the last item, all items ranked", item_ranks(nearest, cold.targets)),
            ("the audited run on the same users, whose targets it knows", informed),
            ("trained without the new items, new items alone ranked", item_ranks(alone, cold.targets - cold.n_warm)),
        )
    ]
    rows[0] |= {WITH_NEW: float(is_new.mean()), ANY_NEW: float(is_new.any(1).mean())}
    chance: dict[str, Any] = {"what": "ten items at random", HR: CUTOFF / n_unknown, "hr@20": 2 * CUTOFF / n_unknown}
    chance |= {WITH_NEW: n_cold / n_items, ANY_NEW: chance_of_any(n_cold, n_items, CUTOFF)}
    chance_alone: dict[str, Any] = {"what": "ten of the new items at random"}
    chance_alone |= {HR: min(1.0, CUTOFF / n_cold), "hr@20": min(1.0, 2 * CUTOFF / n_cold)}
    own, by_vectors, known, own_alone = rows
    return Finding(
        f"{n_cold:,} items were held out of training and of the tokenizer's fit; {len(ranks):,} users have one as "
        f"their target. The generator puts it in the top 10 of {((ranks > 0) & (ranks <= CUTOFF)).sum():,} of them "
        f"(HR@10 {figure(own[HR])}; ten items at random {figure(chance[HR])}; nearest vectors "
        f"{figure(by_vectors[HR])}; the run that knows the items {figure(known[HR])}). {percent(own[ANY_NEW])} of the "
        f"top 10s hold a new item; at random it would be {percent(chance[ANY_NEW])}. Among the new items alone HR@10 "
        f"is {figure(own_alone[HR])}, at random {figure(chance_alone[HR])}.",
        [own, chance, by_vectors, known, own_alone, chance_alone],
    )
