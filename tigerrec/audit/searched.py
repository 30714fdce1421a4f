"""Checks that search again with the trained generator: without the trie, and with other histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np

from tigerrec.audit.figures import (
    CUTOFF,
    HR,
    NDCG,
    difference_in_words,
    figure,
    headline,
    listed_in,
    paired_difference,
    percent,
    without,
)
from tigerrec.audit.open_trie import MALFORMED, OpenTrie
from tigerrec.audit.run import AuditedRun, Finding, random
from tigerrec.metrics import item_ranks
from tigerrec.trie import Trie

TRUNCATED = (1, 2, 5)


def unconstrained_lists(run: AuditedRun, histories: list[np.ndarray]) -> np.ndarray:
    """Lists of a beam search over the whole vocabulary, int32 (n, k): items, or `UNASSIGNED`, or `MALFORMED`; seen
    items kept."""
    searcher = run.searcher
    open_trie = OpenTrie(searcher.trie, searcher.model.tokens, run.semantic_ids.layout)
    return run.search(
        replace(searcher, trie=cast(Trie, open_trie)), histories, mask_seen=False, progress="without the trie"
    )


def unconstrained(run: AuditedRun) -> Finding:
    """How often an unconstrained beam search gives ids that no item has, and what is left when these are dropped."""
    users = run.sample("unconstrained")
    known, targets = [run.known[user] for user in users], run.targets[users]
    lists = unconstrained_lists(run, known)
    invalid = lists < 0
    kept = item_ranks(without(lists, invalid), targets)
    masked = item_ranks(without(lists, invalid | listed_in(lists, known)), targets)
    rows: list[dict[str, Any]] = []
    for name, depth in (("first place", 1), ("top 10", CUTOFF), (f"top {lists.shape[1]}", lists.shape[1])):
        part = invalid[:, :depth]
        malformed = float((lists[:, :depth] == MALFORMED).mean())
        shares = {
            "share of invalid ids": float(part.mean()),
            "share with tokens of a wrong level": malformed,
            "users with any": float(part.any(1).mean()),
        }
        rows.append({"what": f"without the trie, {name}", "users": len(users), **shares})
    constrained = {seen: run.ranks(seen)[users] for seen in ("kept", "masked")}
    rows += [
        {"what": "with the trie, seen kept", **headline(constrained["kept"])},
        {"what": "without it, invalid ids dropped, seen kept", **headline(kept)},
        {"what": "difference, seen kept", "users": len(users), **paired_difference(constrained["kept"], kept)},
        {"what": "with the trie, seen masked inside the search", **headline(constrained["masked"])},
        {"what": "without it, invalid ids and seen items dropped afterwards", **headline(masked)},
        {"what": "difference, seen masked", "users": len(users), **paired_difference(constrained["masked"], masked)},
    ]
    return Finding(
        f"Without the trie {percent(rows[0]['share of invalid ids'])} of the first places and "
        f"{percent(rows[1]['share of invalid ids'])} of the top 10 are ids "
        f"that no item has. Dropping them changes NDCG@10 by {difference_in_words(rows[5])} with seen items kept, and "
        f"by {difference_in_words(rows[8])} "
        "where seen items are dropped afterwards too instead of inside the search.",
        rows,
    )


def changed_histories(
    known: list[np.ndarray], everyone: list[np.ndarray], users: np.ndarray, max_items: int
) -> dict[str, list[np.ndarray]]:
    """What the generator is given instead of each history, by name; histories are first cut to the items that it reads.

    Args:
        known: of the users of the sample.
        everyone: of all users.
        users: which of these the sample is, (n,).
        max_items: how many items the generator reads.
    """
    rng = random("changed histories")
    read = [history[-max_items:] for history in known]
    others = (users + rng.integers(1, len(everyone), len(users))) % len(everyone) if len(everyone) > 1 else users
    return {
        "shuffled": [rng.permutation(history) for history in read],
        "reversed": [history[::-1] for history in read],
        **{f"last {n} alone" if n > 1 else "last item alone": [history[-n:] for history in read] for n in TRUNCATED},
        "of another user": [everyone[other] for other in others],
    }


def reads_input(run: AuditedRun) -> Finding:
    """What becomes of the lists when the generator is given other histories; what is masked stays the user's own
    history."""
    users = run.sample("changed histories")
    known, targets = [run.known[user] for user in users], run.targets[users]
    own = run.ranks("masked")[users]
    rows: list[dict[str, Any]] = [{"history": "as it is", **headline(own)}]
    top = run.lists("masked")[users, :CUTOFF]
    for name, histories in changed_histories(known, run.known, users, run.searcher.model.facts["max_items"]).items():
        lists = run.search(run.searcher, histories, mask_seen=True, progress=name, seen=known)
        ranks = item_ranks(lists, targets)
        difference = paired_difference(own, ranks)
        same = float(
            np.mean(
                [
                    len(np.intersect1d(a[a >= 0], b[b >= 0])) / max(1, (a >= 0).sum())
                    for a, b in zip(top, lists[:, :CUTOFF], strict=True)
                ]
            )
        )
        row = {"history": name, **headline(ranks), "share of the top 10 that stays": same}
        rows.append(
            row
            | {
                key.replace(metric, f"change of {metric}"): value
                for metric in (HR, NDCG)
                for key, value in difference.items()
                if metric in key
            }
        )
    chance, shuffled, last = rows[-1], rows[1], rows[3]
    kept = {row["history"]: left_of(row, rows[0]) for row in (chance, shuffled, last)}
    return Finding(
        f"NDCG@10 is {figure(rows[0][NDCG])} with the user's history and {figure(chance[NDCG])} with another user's: "
        "the input is "
        f"{'read' if chance[f'change of {NDCG}_high'] < 0 else 'not shown to be read'}. {kept['last item alone']} of "
        "it is left with the last item alone, "
        f"{kept['shuffled']} with the items shuffled.",
        rows,
    )


def left_of(row: dict[str, Any], whole: dict[str, Any]) -> str:
    """How much of the NDCG@10 of a row another row has, to read."""
    return percent(row[NDCG] / whole[NDCG]) if whole[NDCG] else "nothing"
