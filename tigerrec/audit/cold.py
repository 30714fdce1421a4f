"""Whether a trained generator recommends items that came after its training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec import artifacts
from tigerrec.audit.figures import CUTOFF, HR, chance_of_any, figure, headline, percent
from tigerrec.audit.run import SEED, AuditedRun, Finding, NotApplicableError, random
from tigerrec.audit.trained import train_on
from tigerrec.audit.variants import read_interactions, without_items, write_variant
from tigerrec.embed import FILE, EmbedsTexts, embed, load_embeddings
from tigerrec.histories import load_histories, training_counts
from tigerrec.metrics import item_ranks, metrics
from tigerrec.new_items import new_semantic_ids
from tigerrec.semantic_ids import SemanticIdError, load_semantic_ids
from tigerrec.tokenizers import tokenize
from tigerrec.vectors import unit

SHARE = 0.05


def hold_out(targets: np.ndarray, n_items: int, rng: np.random.Generator) -> np.ndarray:
    """The items to hold out, bool (n_items,): 5 % of the catalogue, each the test target of some user."""
    eligible = np.unique(targets)
    chosen = rng.choice(eligible, min(max(1, round(SHARE * n_items)), len(eligible)), replace=False)
    return np.isin(np.arange(n_items), chosen)


@dataclass(frozen=True)
class ColdStart:
    """A catalogue that some items join after training.

    Attributes:
        held_out: bool (n_items,): which items join.
        prepared: the stage of the other items' interactions.
        numbers: where each item stands in the catalogue of both, int64 (n_items,): the known ones first, in their old
            order.
        users: those whose test target is held out and who have known items, int64 (n,).
        histories: their known items, as numbers of the new catalogue.
        targets: their test targets, likewise.
    """

    held_out: np.ndarray
    prepared: Path
    numbers: np.ndarray
    users: np.ndarray
    histories: list[np.ndarray]
    targets: np.ndarray

    @property
    def n_warm(self) -> int:
        """Items that training knows."""
        return int((~self.held_out).sum())


def cold_start(run: AuditedRun) -> ColdStart:
    """The run's data without the items held out, and the users to rank for.

    Raises:
        NotApplicableError: no user is left to rank for.
    """
    held_out = hold_out(run.targets, run.histories.n_items, random("cold items"))
    changed, numbers = without_items(read_interactions(run.prepared), held_out)
    config = {"audit": "items held out of all histories", "share": SHARE, "seed": SEED}
    inputs = {"prepare": run.prepared}
    prepared = run.stage(
        "cold", "prepare", config, inputs, lambda out: write_variant(run.prepared, config, changed, ~held_out, out)
    )
    numbers = np.where(held_out, int((~held_out).sum()) + np.cumsum(held_out) - 1, numbers)
    users = [user for user in np.flatnonzero(held_out[run.targets]) if not held_out[run.known[user]].all()]
    if not users:
        raise NotApplicableError("No user with a held-out target has a known item.")
    histories = [numbers[run.known[user][~held_out[run.known[user]]]] for user in users]
    return ColdStart(held_out, prepared, numbers, np.array(users), histories, numbers[run.targets[users]])


def _tokenized(run: AuditedRun, cold: ColdStart) -> Path:
    """The run's tokenizer fitted on the vectors of the other items alone.

    Raises:
        NotApplicableError: vectors are not made of texts, so that a new item has none.
    """
    step = run.steps["tokenize"]
    folders = {}
    for name, folder in step.inputs.items():
        embedder = next(other for other in run.steps.values() if other.folder == folder).config
        if isinstance(embedder, EmbedsTexts):
            folders[name] = _rows(run, cold, f"cold-{folder.name}", folder)
        elif name == "embed" or embedder.needs:
            raise NotApplicableError(
                f"The vectors of {folder.name} are made of interactions, which a new item has none of."
            )
        else:
            folders[name] = run.stage(
                f"cold-{folder.name}",
                "embed",
                embedder,
                {"prepare": cold.prepared},
                partial(embed, cold.prepared, embedder),
            )
    further = {name: folder for name, folder in folders.items() if name != "embed"}
    return run.stage(
        "cold-tokenized",
        "tokenize",
        step.config,
        folders,
        lambda out: tokenize(folders["embed"], step.config, out, further),
    )


def _rows(run: AuditedRun, cold: ColdStart, name: str, embedded: Path) -> Path:
    """The known items' rows of an embed stage, as a stage."""
    config = {"audit": "the rows of the items that are left"}
    inputs = {"prepare": cold.prepared, "embed": embedded}

    def build(out: Path) -> Path:
        with artifacts.writing(out, "embed", config, inputs=inputs) as files:
            files.arrays(FILE, {"embeddings": load_embeddings(embedded)[~cold.held_out]})
        return out

    return run.stage(name, "embed", config, inputs, build)


def nearest_lists(vectors: np.ndarray, histories: list[np.ndarray], k: int) -> np.ndarray:
    """The items nearest to each history's last one by the cosine of their vectors (n_items, D), without the history's
    own: int64 (n, k)."""
    directions = unit(vectors)
    lists = []
    for history in histories:
        similarity = directions @ directions[history[-1]]
        similarity[history] = -np.inf
        lists.append(np.argsort(-similarity, kind="stable")[:k])
    return np.stack(lists)


def _row(what: str, ranks: np.ndarray) -> dict[str, Any]:
    return {"what": what, **headline(ranks), "hr@20": metrics(ranks)["hr@20"]}


def cold_items(run: AuditedRun) -> Finding:
    """HR and NDCG on items that neither the tokenizer nor the generator was fitted on, given ids by the frozen
    tokenizer."""
    from tigerrec.beam_search import Searcher
    from tigerrec.trie import build_trie

    cold = cold_start(run)
    tokenized = _tokenized(run, cold)
    trained = train_on(run, "cold-trained", cold.prepared, tokenized, run.steps["train"].config)
    vectors = load_embeddings(run.steps["embed"].folder)
    try:
        codes = new_semantic_ids(tokenized, vectors[cold.held_out])
    except SemanticIdError as error:
        raise NotApplicableError(f"The tokenizer has no ids left for the new items: {error}") from None
    ids, warm = load_semantic_ids(tokenized), load_histories(cold.prepared)
    n_cold, n_items = len(codes), run.histories.n_items
    searcher = run.open_searcher(trained, ids, training_counts(warm)).with_items(ids.layout.to_tokens(codes))
    lists = run.search(searcher, cold.histories, mask_seen=True, progress="all items")
    trie = build_trie(ids.layout.to_tokens(codes), np.zeros(n_cold, np.int64)).to(searcher.model.device)
    alone = run.search(
        Searcher(searcher.model, trie, searcher.precision), cold.histories, mask_seen=False, progress="new items alone"
    )
    known_of = float(np.mean([len(history) for history in cold.histories]))
    in_order = np.empty_like(vectors)
    in_order[cold.numbers] = vectors
    top = lists[:, :CUTOFF]
    places, with_any = float((top >= cold.n_warm).mean()), float((top >= cold.n_warm).any(1).mean())
    chance: dict[str, Any] = {
        "what": "ten items at random",
        HR: CUTOFF / (n_items - known_of),
        "hr@20": 2 * CUTOFF / (n_items - known_of),
    }
    random_lists = {
        "share of places with a new item": n_cold / n_items,
        "share of top 10s with one": chance_of_any(n_cold, n_items, CUTOFF),
    }
    ranks = item_ranks(lists, cold.targets)
    rows: list[dict[str, Any]] = [
        _row("trained without the new items, all items ranked", ranks)
        | {"share of places with a new item": places, "share of top 10s with one": with_any},
        chance | random_lists,
        _row(
            "nearest vectors to the last item, all items ranked",
            item_ranks(nearest_lists(in_order, cold.histories, run.evaluation.k), cold.targets),
        ),
        _row("the audited run on the same users, whose targets it knows", run.ranks("masked")[cold.users]),
        _row("trained without the new items, new items alone ranked", item_ranks(alone, cold.targets - cold.n_warm)),
        {
            "what": "ten of the new items at random",
            HR: min(1.0, CUTOFF / n_cold),
            "hr@20": min(1.0, 2 * CUTOFF / n_cold),
        },
    ]
    found = int(((ranks > 0) & (ranks <= CUTOFF)).sum())
    return Finding(
        f"{n_cold:,} items were held out of training and of the tokenizer's fit; {len(ranks):,} users have one as "
        "their target. The generator puts it in the "
        f"top 10 of {found:,} of them (HR@10 {figure(rows[0][HR])}; ten items at random {figure(chance[HR])}; nearest "
        f"vectors {figure(rows[2][HR])}; the run "
        f"that knows the items {figure(rows[3][HR])}). {percent(with_any)} of the top 10s hold a new item; at random "
        "it would be "
        f"{percent(random_lists['share of top 10s with one'])}. Among the new items alone HR@10 is "
        f"{figure(rows[4][HR])}, at random {figure(rows[5][HR])}.",
        rows,
    )
