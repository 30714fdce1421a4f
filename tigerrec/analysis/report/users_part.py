"""What a page says of recommendations: some users with their lists, and what all lists together hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from tigerrec.analysis.charts import line_chart
from tigerrec.analysis.report import percent
from tigerrec.analysis.report.evaluated import EvaluatedRun
from tigerrec.data.histories import training_counts
from tigerrec.evaluation.stage import POPULARITY
from tigerrec.runtime.seeds import derived_seed
from tigerrec.storage.contracts import read_json

CUTOFF = 10
USERS = 6
SEED = 0
MOST_RECOMMENDED = 10
DRAWN_PLACES = 120


def chosen_users(ranks: np.ndarray) -> tuple[list[int], list[int]]:
    """The places of users with a hit in the top 10 and of users without, three each where there are as many: the first
    of a seeded order of all users. `ranks` (users,) are those of their targets, 0 = not in the list."""
    order = np.random.default_rng(derived_seed(SEED, "users of a report")).permutation(len(ranks))
    hit = (ranks[order] >= 1) & (ranks[order] <= CUTOFF)
    hits, misses = order[hit].tolist(), order[~hit].tolist()
    n_hits = min(len(hits), max(USERS // 2, USERS - len(misses)))
    return hits[:n_hits], misses[: USERS - n_hits]


def users(run: EvaluatedRun) -> dict[str, Any]:
    """Some users: history, target, and their lists with seen items masked and kept."""
    ranks = [run.ranks[run.model, hit, seen] for hit in ("item", "sid") for seen in ("masked", "kept")]
    hits, misses = chosen_users(ranks[0])
    config = read_json(run.folders["train"], "config.json", {"tigerrec": {"max_items": int}})
    shown = []
    for place in (*hits, *misses):
        history, target = run.history_and_target(place)
        own_ranks = [int(rank[place]) for rank in ranks]
        of_user = {"number": int(run.users[place]), "history": history.tolist(), "target": target, "ranks": own_ranks}
        for seen in ("masked", "kept"):
            lists = run.lists[run.model, seen]
            ranked = zip(lists.items[place, :CUTOFF].tolist(), lists.scores[place, :CUTOFF].tolist(), strict=True)
            of_user[seen] = [(item, score) for item, score in ranked if item >= 0]
        shown.append(of_user)
    counted = {"hits": len(hits), "misses": len(misses), "share": np.mean((ranks[0] >= 1) & (ranks[0] <= CUTOFF))}
    constants = {"run": run, "max_items": config["tigerrec"]["max_items"], "seed": SEED, "cutoff": CUTOFF}
    return {"users": shown} | counted | constants


def recommended(run: EvaluatedRun) -> dict[str, Any]:
    """How many different items all top 10 lists hold, and how much of them which most recommended items take."""
    n_items, n_users = run.histories.n_items, len(run.users)
    chosen = {model: run.lists[model, "masked"].items[:, :CUTOFF] for model in (run.model, POPULARITY)}
    chosen["the users' targets"] = np.array([run.history_and_target(place)[1] for place in range(n_users)])
    counts = {name: np.bincount(items[items >= 0], minlength=n_items) for name, items in chosen.items()}
    rows, lines = [], []
    places = np.unique(np.geomspace(1, n_items, DRAWN_PLACES).round().astype(int))
    for name, count in counts.items():
        shares = np.cumsum(np.sort(count)[::-1]) / max(1, count.sum())
        used, tops = int((count > 0).sum()), [percent(shares[:top][-1]) for top in (10, 100)]
        rows.append([name, used, percent(used / n_items), *tops])
        lines.append((places, shares[places - 1]))
    most, in_training = counts[run.model], training_counts(run.histories)
    listed = [
        [int(most[item]), percent(most[item] / n_users), int(in_training[item]), run.title(item)]
        for item in np.argsort(-most, kind="stable")[:MOST_RECOMMENDED].tolist()
        if most[item]
    ]
    chart = line_chart(lines, "items, most recommended first", "share of all places in the lists", log_x=True)
    return {"cutoff": CUTOFF, "rows": rows, "names": list(counts), "chart": chart, "listed": listed}
