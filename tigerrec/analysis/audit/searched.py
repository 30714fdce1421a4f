"""Checks that search again with the trained generator: without the trie, and with other histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np

from tigerrec.analysis.audit.figures import (
    CUTOFF,
    NDCG,
    difference_in_words,
    headline,
    listed_in,
    paired_difference,
    without,
)
from tigerrec.analysis.audit.open_trie import MALFORMED, OpenTrie
from tigerrec.analysis.audit.run import AuditedRun, Finding, NotApplicableError, check, seeded_rng
from tigerrec.evaluation.metrics import item_ranks
from tigerrec.text import figure, percent
from tigerrec.tokenizers.trie import Trie

TRUNCATED = (1, 2, 5)


def unconstrained_lists(run: AuditedRun, users: np.ndarray) -> np.ndarray:
    """Lists of a beam search without a trie, int32 (n, k): items, `UNASSIGNED` or `MALFORMED`; seen items kept."""
    open_trie = cast(Trie, OpenTrie(run.searcher.trie, run.searcher.model.tokens, run.semantic_ids.layout))
    searcher = replace(run.searcher, trie=open_trie)
    known = [run.known[user] for user in users]
    return run.search(searcher, known, mask_seen=False, progress="without the trie", users=users)


@check("What does the trie do?", samples=True)
def unconstrained(run: AuditedRun) -> Finding:
    """The same beam search without the trie: any token of the vocabulary may follow. Ids that no item has are counted,
    then dropped."""
    if not run.searcher.model.scores_vocabulary:
        raise NotApplicableError("This generator scores the children of a node of the trie alone.")
    users = run.sample("unconstrained")
    known, targets = [run.known[user] for user in users], run.targets[users]
    lists = unconstrained_lists(run, users)
    invalid = lists < 0
    rows: list[dict[str, Any]] = [
        {
            "what": f"without the trie, {name}",
            "users": len(users),
            "share of invalid ids": float(invalid[:, :depth].mean()),
            "share with tokens of a wrong level": float((lists[:, :depth] == MALFORMED).mean()),
            "users with any": float(invalid[:, :depth].any(1).mean()),
        }
        for name, depth in (("first place", 1), ("top 10", CUTOFF), (f"top {lists.shape[1]}", lists.shape[1]))
    ]
    kept = "with the trie, seen kept", "without it, invalid ids dropped, seen kept"
    masked = "with the trie, seen masked inside the search", "without it, invalid ids and seen items dropped afterwards"
    or_seen = invalid | listed_in(lists, known)
    for seen, dropped, (with_trie, without_trie) in (("kept", invalid, kept), ("masked", or_seen, masked)):
        constrained, ranks = run.ranks[run.model, "item", seen][users], item_ranks(without(lists, dropped), targets)
        difference = {"what": f"difference, seen {seen}", "users": len(users)}
        rows += [{"what": with_trie, **headline(constrained)}, {"what": without_trie, **headline(ranks)}]
        rows.append(difference | paired_difference(constrained, ranks))
    first, top = (percent(row["share of invalid ids"]) for row in rows[:2])
    return Finding(
        f"Without the trie {first} of the first places and {top} of the top 10 are ids that no item has. Dropping them "
        f"changes NDCG@10 by {difference_in_words(rows[5])} with seen items kept, and by "
        f"{difference_in_words(rows[8])} where seen items are dropped afterwards too instead of inside the search.",
        rows,
    )


def changed_histories(
    known: list[np.ndarray], everyone: list[np.ndarray], users: np.ndarray, max_items: int
) -> dict[str, list[np.ndarray]]:
    """What the generator, which reads `max_items` items, is given instead of each history, by name; `known` are the
    histories of the sample, which is `users` (n,) of `everyone`."""
    rng = seeded_rng("changed histories")
    read = [history[-max_items:] for history in known]
    others = (users + rng.integers(1, len(everyone), len(users))) % len(everyone) if len(everyone) > 1 else users
    return {
        "shuffled": [rng.permutation(history) for history in read],
        "reversed": [history[::-1] for history in read],
        **{f"last {n} alone" if n > 1 else "last item alone": [history[-n:] for history in read] for n in TRUNCATED},
        "of another user": [everyone[other] for other in others],
    }


@check("Does the generator read the history?", samples=True)
def reads_input(run: AuditedRun) -> Finding:
    """The same generator is given other histories for the same users; masked is always the user's own. Of another user:
    of one drawn at random, which is chance level."""
    users = run.sample("changed histories")
    known, targets = [run.known[user] for user in users], run.targets[users]
    own, top = run.ranks[run.model, "item", "masked"][users], run.lists[run.model, "masked"][users, :CUTOFF]
    rows: dict[str, dict[str, Any]] = {"as it is": headline(own)}
    for name, histories in changed_histories(known, run.known, users, run.searcher.model.facts["max_items"]).items():
        lists = run.search(run.searcher, histories, mask_seen=True, progress=name, seen=known, users=users)
        ranks = item_ranks(lists, targets)
        pairs = [(a[a >= 0], b[b >= 0]) for a, b in zip(top, lists[:, :CUTOFF], strict=True)]
        stays = float(np.mean([len(np.intersect1d(before, after)) / max(1, len(before)) for before, after in pairs]))
        difference = {f"change of {key}": value for key, value in paired_difference(own, ranks).items()}
        rows[name] = headline(ranks) | {"share of the top 10 that stays": stays} | difference
    whole, chance = rows["as it is"][NDCG], rows["of another user"]
    left = {name: percent(row[NDCG] / whole) if whole else "nothing" for name, row in rows.items()}
    return Finding(
        f"NDCG@10 is {figure(whole)} with the user's history and {figure(chance[NDCG])} with another user's: the input "
        f"is {'read' if chance[f'change of {NDCG}_high'] < 0 else 'not shown to be read'}. {left['last item alone']} "
        f"of it is left with the last item alone, {left['shuffled']} with the items shuffled.",
        [{"history": name, **row} for name, row in rows.items()],
    )
