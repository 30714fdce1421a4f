"""Checks that read what evaluation left: nothing is searched or trained again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from tigerrec.audit.figures import (
    CUTOFF,
    HR,
    NDCG,
    buckets,
    difference_in_words,
    exposure,
    figure,
    headline,
    listed_in,
    paired_difference,
    percent,
)
from tigerrec.audit.run import AuditedRun, Finding
from tigerrec.evaluate import POPULARITY, SEEN
from tigerrec.histories import read_items
from tigerrec.semantic_ids import group_codes

POPULARITY_EDGES = (0, 1, 5, 10, 20, 50)
LENGTH_EDGES = (1, 5, 10, 20, 50)


def facts(run: AuditedRun) -> Finding:
    """What the data itself makes impossible or ambiguous."""
    items = read_items(run.prepared, {"title": "string?", "text": "string"}).to_pydict()
    titles = Counter(title for title in items["title"] if title)
    texts = Counter(items["text"])
    never = run.popularity == 0
    repeats = sum(int(target in history) for history, target in zip(run.known, run.targets, strict=True))
    groups, sizes = group_codes(run.semantic_ids.codes[:, : len(run.semantic_ids.layout.code_sizes)])
    n_items, n_users = len(never), len(run.targets)
    named = {
        "items that never occur in training": (int(never.sum()), n_items),
        "users whose target never occurs in training": (int(never[run.targets].sum()), n_users),
        "users whose target is in their own history": (repeats, n_users),
        "items whose title another item has too": (sum(count for count in titles.values() if count > 1), n_items),
        "items whose text another item has too": (sum(count for count in texts.values() if count > 1), n_items),
        "items whose codes another item has too": (int((sizes[groups] > 1).sum()), n_items),
    }
    rows = [
        {"what": what, "number": number, "of": total, "share": number / total}
        for what, (number, total) in named.items()
    ]
    unreachable, repeated = named["users whose target never occurs in training"][0], repeats
    return Finding(
        f"{int(never.sum()):,} of {n_items:,} items never occur in training; they are the target of {unreachable:,} "
        "users, whom a model of training "
        f"interactions can hardly serve. {repeated:,} targets are in the user's own history, where masking makes a "
        "hit impossible.",
        rows,
    )


def seen(run: AuditedRun) -> Finding:
    """Seen items masked against kept, for the generator and for popularity."""
    rows: list[dict[str, Any]] = []
    for model in (run.evaluation.model, POPULARITY):
        ranks = {treatment: run.ranks(treatment, model=model) for treatment in SEEN}
        rows += [{"model": model, "seen items": treatment, **headline(found)} for treatment, found in ranks.items()]
        rows.append(
            {
                "model": model,
                "seen items": "masked − kept",
                "users": len(run.targets),
                **paired_difference(ranks["kept"], ranks["masked"]),
            }
        )
    top = run.lists("kept")[:, :CUTOFF]
    share = float(listed_in(top, run.known).sum() / (top >= 0).sum())
    return Finding(
        f"Masking what a user has adds {difference_in_words(rows[2], HR)} to HR@10 and {difference_in_words(rows[2])} "
        "to NDCG@10. "
        f"Where seen items are kept, {percent(share)} of the places in the top 10 hold one.",
        rows,
    )


def hits(run: AuditedRun) -> Finding:
    """Hits on Semantic IDs without suffix against hits on items, for all users and by whether the target shares its
    codes."""
    groups, sizes = group_codes(run.semantic_ids.codes[:, : len(run.semantic_ids.layout.code_sizes)])
    shared = sizes[groups][run.targets] > 1
    chosen = {
        "all users": np.ones(len(shared), bool),
        "target alone with its codes": ~shared,
        "target shares its codes": shared,
    }
    rows: list[dict[str, Any]] = []
    for treatment in SEEN:
        for whose, members in chosen.items():
            if members.any():
                item, code = (headline(run.ranks(treatment, hit)[members]) for hit in ("item", "sid"))
                row: dict[str, Any] = {"seen items": treatment, "whose": whose, "users": item["users"]}
                for name in (HR, NDCG):
                    row |= {f"{name} of items": item[name], f"{name} of codes": code[name]}
                    row[f"{name} inflation"] = code[name] / item[name] - 1 if item[name] else None
                rows.append(row)
    masked = {row["whose"]: row for row in rows if row["seen items"] == "masked"}
    whole = masked["all users"]
    inflation = (
        "not defined" if whole[f"{HR} inflation"] is None else f"{whole[f'{HR} inflation']:+.1%}".replace("%", " %")
    )
    return Finding(
        f"Counting hits on codes without suffix instead of hits on items changes HR@10 by {inflation} (seen masked). "
        f"{percent(float(shared.mean()))} of the users have a target that shares its codes.",
        rows,
    )


def diversity(run: AuditedRun) -> Finding:
    """How many items the top 10 lists show, and how unevenly, beside popularity's lists and the test targets
    themselves."""
    model = run.evaluation.model
    rows: list[dict[str, Any]] = [
        {"what": f"{model}, seen {treatment}", **exposure(run.lists(treatment)[:, :CUTOFF], run.popularity)}
        for treatment in reversed(SEEN)
    ]
    rows.append(
        {"what": f"{POPULARITY}, seen masked", **exposure(run.lists("masked", POPULARITY)[:, :CUTOFF], run.popularity)}
    )
    rows.append({"what": "test targets", **exposure(run.targets, run.popularity)})
    own, targets = rows[0], rows[-1]
    head = "share on top 1 % of items"
    return Finding(
        f"All top 10 lists together show {own['different items']:,} of {len(run.popularity):,} items "
        f"({percent(own['share of the catalogue'])}), Gini index "
        f"{own['Gini index']:.2f}; {percent(own[head])} of the places go to the most popular 1 % of items, to which "
        f"{percent(targets[head])} of the test "
        "targets belong.",
        rows,
    )


def by_bucket(run: AuditedRun) -> Finding:
    """HR@10 and NDCG@10 by how often training holds the target and by how much is known of the user."""
    ranks = run.ranks("masked")
    lengths = np.array([len(history) for history in run.known])
    rows: list[dict[str, Any]] = []
    for what, values, edges in (
        ("target in training", run.popularity[run.targets], POPULARITY_EDGES),
        ("items known", lengths, LENGTH_EDGES),
    ):
        for label, members in buckets(values, edges):
            rows.append(
                {"by": what, "range": label, **headline(ranks[members]), "share of users": float(members.mean())}
            )
    filled = [row for row in rows if row["by"] == "target in training" and row["users"]]
    return Finding(
        f"HR@10 goes from {figure(filled[0][HR])} for targets that training holds {filled[0]['range']} times "
        f"({filled[0]['users']:,} users) "
        f"to {figure(filled[-1][HR])} for those it holds {filled[-1]['range']} times ({filled[-1]['users']:,} users); "
        f"over all, {figure(headline(ranks)[HR])}.",
        rows,
    )
