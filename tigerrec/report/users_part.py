"""What a page says of recommendations: some users with their lists, and what all lists together hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tigerrec.evaluate import POPULARITY
from tigerrec.report.charts import Series, lines
from tigerrec.report.codes_part import item_title
from tigerrec.report.evaluated import EvaluatedRun, Lists
from tigerrec.report.markup import (
    Html,
    badge,
    disclosure,
    element,
    facts,
    figure,
    figures,
    join,
    legend,
    note,
    paragraph,
    percent,
    table,
)
from tigerrec.seeds import derived_seed

CUTOFF = 10
USERS = 6
SEED = 0
MOST_RECOMMENDED = 10


def chosen_users(ranks: np.ndarray) -> tuple[list[int], list[int]]:
    """Users with a hit in the top 10 and users without, three each where there are as many: the first of a seeded order
    of all users.

    Args:
        ranks: of the users' targets, 0 = not in the list, (users,).
    """
    order = np.random.default_rng(derived_seed(SEED, "users of a report")).permutation(len(ranks))
    hit = (ranks[order] >= 1) & (ranks[order] <= CUTOFF)
    hits, misses = order[hit].tolist(), order[~hit].tolist()
    n_hits = min(len(hits), max(USERS // 2, USERS - len(misses)))
    return hits[:n_hits], misses[: USERS - n_hits]


def users_part(run: EvaluatedRun) -> list[Html]:
    """Some users: history, target, and their lists with seen items masked and kept."""
    ranks = {(hit, seen): run.ranks(hit, seen) for hit in ("item", "sid") for seen in ("masked", "kept")}
    lists = {seen: run.lists(run.model, seen) for seen in ("masked", "kept")}
    main = ranks["item", "masked"]
    hits, misses = chosen_users(main)
    share = float(np.mean((main >= 1) & (main <= CUTOFF)))
    words = (
        f"How they were chosen: all users were put in a random order (seed {SEED}); these are its first {len(hits)} "
        f"with the target in the top {CUTOFF} "
        f"and its first {len(misses)} without. Of all users {percent(share)} have such a hit, of these "
        f"{percent(len(hits) / (len(hits) + len(misses)), 0)}."
    )
    blocks = [_user(run, user, ranks, lists, opened=number == 0) for number, user in enumerate([*hits, *misses])]
    return [paragraph(words), *blocks]


def _user(
    run: EvaluatedRun, user: int, ranks: dict[tuple[str, str], np.ndarray], lists: dict[str, Lists], opened: bool
) -> Html:
    known, target = run.known(user), run.target(user)
    rank = int(ranks["item", "masked"][user])
    shown = known[-run.longest_input :].tolist()
    earlier = len(known) - len(shown)
    placed = [_place(ranks[hit, seen][user]) for hit in ("item", "sid") for seen in ("masked", "kept")]
    history = [
        [number, run.item_ids[item], run.semantic_id(item), item_title(run, item)]
        for number, item in enumerate(shown, start=earlier + 1)
    ]
    pairs = [
        (
            "Target",
            join(
                (item_title(run, target), " ", element("code", f"{run.item_ids[target]} · {run.semantic_id(target)}"))
            ),
        ),
        ("Its rank", f"{placed[0]} with seen items masked, {placed[1]} with seen items kept"),
        ("Rank of its codes", f"{placed[2]} and {placed[3]}; not an item hit"),
    ]
    summary = join(
        (
            f"User {user:,}",
            element(
                "small", "target at rank " if rank else "target ", badge(str(rank), "target") if rank else placed[0]
            ),
        )
    )
    before = [note(f"The generator does not read the {earlier:,} items before these.")] if earlier else []
    return disclosure(
        summary,
        facts(pairs),
        element("h3", f"History, oldest first: {len(known):,} items"),
        *before,
        table("rmml", ["", "item", "Semantic ID", "title"], history, class_="titles"),
        element("h3", "Recommended, seen items masked"),
        _list(run, lists["masked"], user, known, target),
        disclosure("The same with seen items kept", _list(run, lists["kept"], user, known, target)),
        opened=opened,
    )


def _place(rank: Any) -> str:
    return f"{int(rank)}" if rank else "not in the list"


def _list(run: EvaluatedRun, lists: Lists, user: int, known: np.ndarray, target: int) -> Html:
    """The first ten of a user's list, the target and the seen items marked."""
    seen, rows = set(known.tolist()), []
    for rank, (item, score) in enumerate(
        zip(lists.items[user, :CUTOFF].tolist(), lists.scores[user, :CUTOFF].tolist(), strict=True), start=1
    ):
        if item >= 0:
            marks = [badge("target", "target")] * (item == target) + [badge("seen", "seen")] * (item in seen)
            title = element("span", item_title(run, item), class_="target" if item == target else None)
            rows.append(
                [
                    rank,
                    run.item_ids[item],
                    run.semantic_id(item),
                    f"{score:.2f}",
                    join((title, *(join((" ", mark)) for mark in marks))),
                ]
            )
    return table("rmmrl", ["rank", "item", "Semantic ID", "score", "title"], rows, class_="titles")


def recommended_part(run: EvaluatedRun) -> list[Html]:
    """How many different items all top 10 lists hold, how much of them the most recommended take, and which these
    are."""
    n_items = run.histories.n_items
    counts = {model: _counts(run.lists(model, "masked").items[:, :CUTOFF], n_items) for model in run.models}
    targets = np.bincount([run.target(user) for user in range(len(run.histories))], minlength=n_items)
    rows = [_concentration(name, count, n_items) for name, count in {**counts, "the users' targets": targets}.items()]
    heads = ["", "different items", "of the catalogue", "share of the top 10", "share of the top 100"]
    names = [run.model, POPULARITY, "the users' targets"]
    drawn = [_cumulative(count) for count in (counts[run.model], counts[POPULARITY], targets)]
    chart = lines(drawn, "items, most recommended first", "share of all places in the lists", log_x=True)
    most = np.argsort(-counts[run.model], kind="stable")[:MOST_RECOMMENDED]
    places = len(run.histories)
    listed = [
        [
            f"{counts[run.model][item]:,}",
            percent(counts[run.model][item] / places),
            f"{run.training_counts[item]:,}",
            item_title(run, item),
        ]
        for item in most.tolist()
        if counts[run.model][item]
    ]
    return [
        paragraph(f"All top {CUTOFF} lists together, seen items masked; the targets are what the users chose instead."),
        table("lrrrr", heads, rows),
        figures(figure(join((legend(names), "Share that the most recommended items take")), chart)),
        element("h3", f"The {len(listed)} items recommended most often"),
        table("rrrl", ["lists", "of users", "in training", "title"], listed, class_="titles"),
        note("In training: how often the training histories hold the item."),
    ]


def _counts(items: np.ndarray, n_items: int) -> np.ndarray:
    return np.bincount(items[items >= 0], minlength=n_items)


def _concentration(name: str, counts: np.ndarray, n_items: int) -> list[str]:
    ordered = np.sort(counts)[::-1]
    used = int((counts > 0).sum())
    return [
        name,
        f"{used:,}",
        percent(used / n_items),
        *(percent(ordered[:top].sum() / ordered.sum()) for top in (10, 100)),
    ]


def _cumulative(counts: np.ndarray) -> Series:
    """The share of the most frequent 1, 2, … items, at places evenly spread over a logarithmic axis."""
    shares = np.cumsum(np.sort(counts)[::-1]) / counts.sum()
    places = _spread(len(counts))
    return Series([float(place) for place in places], [float(shares[place - 1]) for place in places])


def _spread(count: int) -> Sequence[int]:
    return sorted({round(float(place)) for place in np.geomspace(1, count, 120)})
