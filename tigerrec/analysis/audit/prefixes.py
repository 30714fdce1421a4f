"""Checks that give the search the first codes of an item: what each code decides, whether codes steer, and what drawing
the first one costs and gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tigerrec.analysis.audit.figures import (
    CUTOFF,
    HR,
    NDCG,
    difference_in_words,
    headline,
    listed_in,
    paired_difference,
    without,
)
from tigerrec.analysis.audit.run import AuditedRun, Finding, NotApplicableError, check, seeded_rng
from tigerrec.analysis.tokenizers.fitted import read_categories
from tigerrec.data.batches import length_sorted_batches
from tigerrec.evaluation.metrics import item_ranks
from tigerrec.models.base import Beams
from tigerrec.search.options import ITEMS
from tigerrec.search.ranking import by_popularity
from tigerrec.text import figure, percent
from tigerrec.tokenizers.ids import group_codes

TEMPERATURES = (1.0, 1.5, 2.0)
ABOVE = "change from popularity, "
OF_POPULARITY, AT_RANDOM = "HR@10 of popularity", "HR@10 at random"
OF_LISTS = "share of the top 10 in the category asked for"
OF_ITEMS = "share of all that begin so in it"
CODES, ENTROPY = "first codes in a list", "entropy of categories"

BestOfCodes = dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]  # (row, first code) → items and scores, best first


def prefix_groups(run: AuditedRun, length: int) -> np.ndarray:
    """The group of each item, int64 (n_items,): those that begin with the same `length` codes are one."""
    return group_codes(run.semantic_ids.codes[:, :length])[0]


def lists_begun_with(run: AuditedRun, users: np.ndarray, items: np.ndarray, length: int, progress: str) -> np.ndarray:
    """The list of each user among the items that begin with the first `length` codes of an item of `items`, int64 (n,):
    int32 (n, k); seen items masked."""
    if not length:
        return run.lists[run.model, "masked"][users]
    groups = prefix_groups(run, length)
    lists = np.full((len(users), run.evaluation.k), -1, np.int32)
    for group in tqdm(np.unique(groups[items]), desc=progress, unit="prefix", leave=False):
        rows = np.flatnonzero(groups[items] == group)
        searcher, known = run.searcher.within(groups == group), [run.known[user] for user in users[rows]]
        lists[rows] = run.search(searcher, known, mask_seen=True, users=users[rows])
    return lists


def popular_begun_with(run: AuditedRun, users: np.ndarray, items: np.ndarray, length: int) -> np.ndarray:
    """As `lists_begun_with`, the items that training holds most often."""
    groups = prefix_groups(run, length)
    lists = np.full((len(users), run.evaluation.k), -1, np.int32)
    for group in np.unique(groups[items]):
        rows, inside = np.flatnonzero(groups[items] == group), np.flatnonzero(groups == group)
        rank = by_popularity(run.popularity[inside])
        known = [np.flatnonzero(np.isin(inside, run.known[user])) for user in users[rows]]
        places, _ = rank(known, k=run.evaluation.k, mask_seen=True)
        lists[rows] = np.where(places >= 0, inside[places], -1)
    return lists


def decided(run: AuditedRun, users: np.ndarray, length: int) -> dict[str, Any]:
    """How well the test targets of users are found where their first `length` codes are given."""
    targets, groups = run.targets[users], prefix_groups(run, length)
    known = [np.unique(run.known[user]) for user in users]
    lists = lists_begun_with(run, users, targets, length, f"{length} codes of the target")
    seen_below = [int((groups[items] == groups[target]).sum()) for items, target in zip(known, targets, strict=True)]
    left = np.bincount(groups)[groups[targets]] - seen_below
    ranks = item_ranks(lists, targets)
    of_popularity = item_ranks(popular_begun_with(run, users, targets, length), targets)
    can_be_found = ~listed_in(targets[:, None], known)[:, 0]
    return {
        "codes given": length,
        "items left": round(float(left.mean())),
        **headline(ranks),
        OF_POPULARITY: headline(of_popularity)[HR],
        **{f"{ABOVE}{name}": value for name, value in paired_difference(of_popularity, ranks).items()},
        AT_RANDOM: float((can_be_found * np.minimum(1, CUTOFF / np.maximum(left, 1))).mean()),
    }


def steered(
    run: AuditedRun, users: np.ndarray, asked: np.ndarray, categories: np.ndarray, length: int
) -> dict[str, float]:
    """How much of the top 10 of users is of the category of an item of `asked`, int64 (n,), whose first `length` codes
    are given, and how much of all unseen items that begin so, that item left out of both: means over users; nothing
    where no item asked for has a category. `categories` (n_items,) are negative where there is none."""
    groups = prefix_groups(run, length)
    lists = lists_begun_with(run, users, asked, length, f"{length} codes of another")
    tops, shares = without(lists, lists == asked[:, None])[:, :CUTOFF], []
    for user, item, top in zip(users, asked, tops, strict=True):
        unseen = np.setdiff1d(np.flatnonzero(groups == groups[item]), [*run.known[user], item])
        if categories[item] >= 0 and (top >= 0).any():
            is_asked_for = categories == categories[item]
            shares.append((is_asked_for[top[top >= 0]].mean(), is_asked_for[unseen].mean()))
    return dict(zip((OF_LISTS, OF_ITEMS), np.mean(shares, axis=0).tolist(), strict=True)) if shares else {}


@check("What does each code decide, and do codes steer?", samples=True)
def given_codes(run: AuditedRun) -> Finding:
    """The search is kept to the items that begin with codes given in advance. First those of the user's test target:
    what is left to decide, and how well the generator decides it beside the most popular of these items and ten of them
    at random. Then those of the test target of another user, drawn at random, which somebody might ask for: the share
    of places in the top 10 with an item of the category of that target (the second element of its path, or the only
    one), beside that of all unseen items that begin like it; the target itself is left out of both."""
    users, n_users = run.sample("given codes"), len(run.targets)
    others = (users + seeded_rng("given codes").integers(1, n_users, len(users))) % n_users if n_users > 1 else users
    categories = read_categories(run.folders["prepare"]).of_items
    lengths = range(max(2, len(run.semantic_ids.layout.code_sizes)))
    rows = [
        decided(run, users, length) | steered(run, users, run.targets[others], categories, length) for length in lengths
    ]
    free, one, *_ = rows
    summary = (
        f"With the target's first code given, HR@10 goes from {figure(free[HR])} to {figure(one[HR])}, which is "
        f"{difference_in_words(one, f'{ABOVE}{HR}')} from the most popular items that begin with it; ten at random "
        f"have {figure(one[AT_RANDOM])}."
    )
    if len(rows) > 2:
        summary += f" With the first {len(rows) - 1} it is {figure(rows[-1][HR])}."
    if OF_LISTS in free and OF_LISTS in one:
        summary += (
            f" Given the first code of another user's target, {percent(one[OF_LISTS])} of the top 10 are of that "
            f"target's category, {percent(one[OF_ITEMS])} of all items that begin so; {percent(free[OF_LISTS])} where "
            "no code is given."
        )
    return Finding(summary, rows)


def first_codes(run: AuditedRun, users: np.ndarray) -> np.ndarray:
    """The log-probability of each first code (node of depth 1 of the trie) after the history of each user, float32
    (n, nodes)."""
    searcher, trie = run.searcher, run.searcher.trie
    first = np.empty((len(users), len(trie.token[0])), np.float32)
    lengths = np.minimum([len(run.known[user]) for user in users], searcher.model.facts["max_items"])
    sizes = lengths * searcher.model.positions_per_item + run.evaluation.beam_size
    for batch in length_sorted_batches(sizes, run.evaluation.batch_tokens):
        root = torch.zeros((len(batch), 1), dtype=torch.int64, device=searcher.model.device)
        with torch.inference_mode():
            decoder = searcher.decoder([run.known[user] for user in users[batch]], run.numbers[users[batch]])
            first[batch] = decoder.step(Beams.at(root, root[:, :, None], trie))[:, 0].log_softmax(-1).cpu().numpy()
    return first


def drawn(
    log_probabilities: np.ndarray, capacities: np.ndarray, temperature: float, rng: np.random.Generator
) -> np.ndarray:
    """How often each option (n, C) is drawn for each row in ten draws, int64 (n, C): with a probability proportional to
    its own to the power of 1 / temperature, among those not yet drawn as often as their capacity (n, C)."""
    counts = np.zeros(log_probabilities.shape, np.int64)
    rows = np.arange(len(counts))
    for _ in range(CUTOFF):
        noisy = log_probabilities / temperature + rng.gumbel(size=counts.shape)
        chosen = np.where(counts < capacities, noisy, -np.inf).argmax(1)
        counts[rows, chosen] += counts[rows, chosen] < capacities[rows, chosen]
    return counts


def category_entropy(categories: np.ndarray, lists: np.ndarray) -> float | None:
    """The entropy in nats of the categories in each list (n, k), -1 where shorter, on average; items without a category
    and lists without any do not count. None where nothing counts."""
    entropies = []
    for items in lists:
        known = categories[items[items >= 0]]
        shares = np.unique(known[known >= 0], return_counts=True)[1] / max(1, (known >= 0).sum())
        if len(shares):
            entropies.append(float(-(shares * np.log(shares)).sum()))
    return float(np.mean(entropies)) if entropies else None


def best_of_codes(run: AuditedRun, users: np.ndarray, groups: np.ndarray, needed: np.ndarray) -> BestOfCodes:
    """The best unseen items of each user that begin with a first code, where they are needed, bool (n, codes)."""
    best: BestOfCodes = {}
    for code in tqdm(np.flatnonzero(needed.any(0)).tolist(), desc="by first code", unit="code", leave=False):
        rows = np.flatnonzero(needed[:, code])
        known = [run.known[user] for user in users[rows]]
        lists = run.scored(run.searcher.within(groups == code), known, mask_seen=True, users=users[rows])
        best |= {(row, code): pair for row, pair in zip(rows.tolist(), zip(*lists, strict=True), strict=True)}
    return best


def composed(best: BestOfCodes, counts: np.ndarray) -> np.ndarray:
    """Lists of so many of the best items of each first code as `counts`, int64 (n, codes), says, sorted by score: int32
    (n, 10), -1 where shorter."""
    lists = np.full((len(counts), CUTOFF), -1, np.int32)
    for row, of_codes in enumerate(counts):
        parts = [[array[: of_codes[code]] for array in best[row, code]] for code in np.flatnonzero(of_codes).tolist()]
        if parts:
            items, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            lists[row, : len(items)] = items[np.argsort(-scores, kind="stable")]
    return lists


@check("What does drawing the first code cost, and what does it give?", samples=True)
def temperature(run: AuditedRun) -> Finding:
    """For each of ten places a first code is drawn with a probability proportional to the generator's own to the power
    of 1 / temperature, as TIGER's paper proposes for diversity (Rajput et al. 2023, arXiv 2305.05065), by the codes
    alone, whatever else scores items. A code drawn m times gives the m best unseen items that begin with it, is drawn
    no more where none is left, and the list is sorted by score. Changes are from beam search; entropy is that of the
    categories of the ten items, in nats, on average over users."""
    scoring = run.searcher.scoring
    if scoring.scores == ITEMS or scoring.cold_places:
        raise NotApplicableError(
            "Codes do not order lists of `evaluate.scores=items` or with `evaluate.cold_places`; leave them out."
        )
    users = run.sample("temperature")
    known, targets = [np.unique(run.known[user]) for user in users], run.targets[users]
    groups, categories = prefix_groups(run, 1), read_categories(run.folders["prepare"]).of_items
    n_codes = int(groups.max()) + 1
    unseen = np.bincount(groups) - np.stack([np.bincount(groups[items], minlength=n_codes) for items in known])
    log_probabilities, rng = first_codes(run, users), seeded_rng("temperature")
    counts = {value: drawn(log_probabilities, unseen, value, rng) for value in TEMPERATURES}
    best = best_of_codes(run, users, groups, np.any([drawn_so > 0 for drawn_so in counts.values()], axis=0))
    lists = {"beam search": run.lists[run.model, "masked"][users]}
    for value in TEMPERATURES:
        lists[f"first code drawn, temperature {value:g}"] = composed(best, counts[value])
    rows: list[dict[str, Any]] = []
    of_beam = item_ranks(lists["beam search"], targets)
    for name, items in lists.items():
        ranks, top = item_ranks(items, targets), items[:, :CUTOFF]
        row = {"list": name, **headline(ranks)}
        if rows:
            row |= {f"change of {key}": value for key, value in paired_difference(of_beam, ranks).items()}
        row[CODES] = float(np.mean([len(set(groups[own[own >= 0]])) for own in top]))
        entropy = category_entropy(categories, top)
        row |= {} if entropy is None else {ENTROPY: entropy}
        rows.append(row | {"different items": len(np.unique(top[top >= 0]))})
    found, one, *_, last = rows
    summary = (
        f"Drawn at temperature 1 the top 10 hold {one[CODES]:.1f} first codes in the place of {found[CODES]:.1f}, and "
        f"NDCG@10 changes by {difference_in_words(one, f'change of {NDCG}')} from {figure(found[NDCG])}; at "
        f"temperature {TEMPERATURES[-1]:g}, {last[CODES]:.1f} and {difference_in_words(last, f'change of {NDCG}')}."
    )
    return Finding(summary, rows)
