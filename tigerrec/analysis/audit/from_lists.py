"""Checks that read what evaluation left: nothing is searched or trained again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from tigerrec.analysis.audit.figures import (
    CUTOFF,
    HR,
    NDCG,
    buckets,
    difference_in_words,
    exposure,
    headline,
    listed_in,
    paired_difference,
)
from tigerrec.analysis.audit.run import AuditedRun, Finding, check
from tigerrec.data.histories import read_items
from tigerrec.evaluation.stage import POPULARITY, SEEN
from tigerrec.text import figure, percent
from tigerrec.tokenizers.ids import group_codes

POPULARITY_EDGES = (0, 1, 5, 10, 20, 50)
LENGTH_EDGES = (1, 5, 10, 20, 50)


def _shares_codes(run: AuditedRun) -> np.ndarray:
    """Which items have the codes, without suffix, of another one, bool (n_items,)."""
    groups, sizes = group_codes(run.semantic_ids.codes[:, : len(run.semantic_ids.layout.code_sizes)])
    return sizes[groups] > 1


@check("What does the data make impossible or ambiguous?")
def limits_of_data(run: AuditedRun) -> Finding:
    """Counted in the prepared data and in the Semantic IDs."""
    items = read_items(run.folders["prepare"], {"title": "string?", "text": "string"}).to_pydict()
    titles, texts = Counter(filter(None, items["title"])), Counter(items["text"])
    never = run.popularity == 0
    in_history = sum(int(target in history) for history, target in zip(run.known, run.targets, strict=True))
    n_items, n_users = len(never), len(run.targets)
    n_never, unreachable = int(never.sum()), int(never[run.targets].sum())
    counts = {
        "items that never occur in training": (n_never, n_items),
        "users whose target never occurs in training": (unreachable, n_users),
        "users whose target is in their own history": (in_history, n_users),
        "items whose title another item has too": (sum(count for count in titles.values() if count > 1), n_items),
        "items whose text another item has too": (sum(count for count in texts.values() if count > 1), n_items),
        "items whose codes another item has too": (int(_shares_codes(run).sum()), n_items),
    }
    return Finding(
        f"{n_never:,} of {n_items:,} items never occur in training; they are the target of {unreachable:,} "
        f"users, whom a model of training interactions can hardly serve. {in_history:,} targets are in the user's own "
        "history, where masking makes a hit impossible.",
        [{"what": what, "number": n, "of": total, "share": n / total} for what, (n, total) in counts.items()],
    )


@check("Seen items masked or kept?")
def seen(run: AuditedRun) -> Finding:
    """The same generator, once with the items of the user's history left out inside the search, once with them."""
    rows: list[dict[str, Any]] = []
    for model in (run.model, POPULARITY):
        ranks = {treatment: run.ranks[model, "item", treatment] for treatment in SEEN}
        rows += [{"model": model, "seen items": name, **headline(of_users)} for name, of_users in ranks.items()]
        difference = {"model": model, "seen items": "masked − kept", "users": len(run.targets)}
        rows.append(difference | paired_difference(ranks["kept"], ranks["masked"]))
    top = run.lists[run.model, "kept"][:, :CUTOFF]
    share = float(listed_in(top, run.known).sum() / (top >= 0).sum())
    return Finding(
        f"Masking what a user has adds {difference_in_words(rows[2], HR)} to HR@10 and {difference_in_words(rows[2])} "
        f"to NDCG@10. Where seen items are kept, {percent(share)} of the places in the top 10 hold one.",
        rows,
    )


@check("Hits on items or on codes?")
def hits(run: AuditedRun) -> Finding:
    """A hit on codes without suffix counts every item that has them; of a list, equal codes count once. Inflation is
    what that adds to a metric of items."""
    shared = _shares_codes(run)[run.targets]
    everyone = np.ones(len(shared), bool)
    groups = {"all users": everyone, "target alone with its codes": ~shared, "target shares its codes": shared}
    rows: list[dict[str, Any]] = []
    for treatment in SEEN:
        for whose, members in groups.items():
            if members.any():
                item, code = (headline(run.ranks[run.model, hit, treatment][members]) for hit in ("item", "sid"))
                row: dict[str, Any] = {"seen items": treatment, "whose": whose, "users": item["users"]}
                for name in (HR, NDCG):
                    row |= {f"{name} of items": item[name], f"{name} of codes": code[name]}
                    row[f"{name} inflation"] = code[name] / item[name] - 1 if item[name] else None
                rows.append(row)
    whole = next(row for row in rows if (row["seen items"], row["whose"]) == ("masked", "all users"))[f"{HR} inflation"]
    inflation = "not defined" if whole is None else f"{whole:+.1%}".replace("%", " %")
    return Finding(
        f"Counting hits on codes without suffix instead of hits on items changes HR@10 by {inflation} (seen masked). "
        f"{percent(float(shared.mean()))} of the users have a target that shares its codes.",
        rows,
    )


@check("How many items are ever recommended?")
def diversity(run: AuditedRun) -> Finding:
    """Items in all top 10 lists, beside those of popularity and beside the test targets (one a user, so fewer in all).
    The Gini index is 0 where all items are shown equally often and near 1 where few are shown. Most popular: by
    training interactions."""
    chosen = ((run.model, "masked"), (run.model, "kept"), (POPULARITY, "masked"))
    shown = {f"{model}, seen {treatment}": run.lists[model, treatment][:, :CUTOFF] for model, treatment in chosen}
    shown["test targets"] = run.targets[:, None]
    rows: list[dict[str, Any]] = [{"what": what, **exposure(items, run.popularity)} for what, items in shown.items()]
    own, head = rows[0], "share on top 1 % of items"
    return Finding(
        f"All top 10 lists together show {own['different items']:,} of {len(run.popularity):,} items "
        f"({percent(own['share of the catalogue'])}), Gini index {own['Gini index']:.2f}; {percent(own[head])} of the "
        f"places go to the most popular 1 % of items, to which {percent(rows[-1][head])} of the test targets belong.",
        rows,
    )


@check("For which targets and users does it work?")
def by_bucket(run: AuditedRun) -> Finding:
    """Users by how often training holds their target, and by how many items are known of them."""
    ranks = run.ranks[run.model, "item", "masked"]
    ranges = {
        "target in training": buckets(run.popularity[run.targets], POPULARITY_EDGES),
        "items known": buckets(np.array([len(history) for history in run.known]), LENGTH_EDGES),
    }
    rows: list[dict[str, Any]] = [
        {"by": what, "range": label, **headline(ranks[members]), "share of users": float(members.mean())}
        for what, labelled in ranges.items()
        for label, members in labelled
    ]
    filled = [row for row in rows if row["by"] == "target in training" and row["users"]]
    rarest, commonest = filled[0], filled[-1]
    return Finding(
        f"HR@10 goes from {figure(rarest[HR])} for targets that training holds {rarest['range']} times "
        f"({rarest['users']:,} users) to {figure(commonest[HR])} for those it holds {commonest['range']} times "
        f"({commonest['users']:,} users); over all, {figure(headline(ranks)[HR])}.",
        rows,
    )
