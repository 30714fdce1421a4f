"""The checks of an audit that give the search the first codes, against rankings of the whole catalogue and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax

from tests import tiny_shop
from tests.oracles import stock_logits
from tigerrec import pipeline
from tigerrec.analysis.audit import prefixes
from tigerrec.analysis.audit.run import AuditedRun
from tigerrec.analysis.tokenizers.fitted import read_categories
from tigerrec.config import compose
from tigerrec.search.options import CODES_ALONE

N_ITEMS = tiny_shop.N_ITEMS
KINDS = ("Hair", "Skin", "Nails")


@pytest.fixture(scope="module", params=["t5", "decoder_only", "t5_tree"])
def run(request, tmp_path_factory) -> AuditedRun:
    """A finished run whose items have categories, but the last."""
    folder = tmp_path_factory.mktemp("shop")
    lines = [f"i{item:02d},Thing {item},Beauty > {KINDS[item % 3]}" for item in range(N_ITEMS - 1)]
    (folder / "products.csv").write_text("\n".join(["item,title,categories", *lines]) + "\n")
    sizes = [f"generator.{size}" for size in ("num_layers=1", "d_model=16", "num_heads=2", "d_ff=16", "max_items=5")]
    options = tiny_shop.options(
        tiny_shop.write_orders(folder),
        folder / "runs",
        f"dataset.items={folder}/products.csv",
        f"generator={request.param}",
        "evaluate.precision=fp32",
    )
    cfg = compose([*options, *sizes, "train.stride=5"])
    pipeline.run(cfg, "evaluate")
    return AuditedRun(pipeline.plan(cfg), folder / "work", users=tiny_shop.N_USERS)


def whole_catalogue(run: AuditedRun) -> tuple[np.ndarray, np.ndarray]:
    """All unseen items of each user, best first, and their scores."""
    return run.searcher.rank(run.known, k=N_ITEMS, beam_size=N_ITEMS, mask_seen=True)


def begins_like(run: AuditedRun, item: int, length: int) -> np.ndarray:
    codes = run.semantic_ids.codes[:, :length]
    return (codes == codes[item]).all(1)


@pytest.mark.parametrize("length", [1, 2])
def test_lists_begun_with_are_the_whole_ranking_kept_to_these_items(run, length):
    users, asked = np.arange(tiny_shop.N_USERS), run.targets[::-1].copy()
    lists = prefixes.lists_begun_with(run, users, asked, length, "")
    for found, ranking, item in zip(lists, whole_catalogue(run)[0], asked, strict=True):
        expected = [other for other in ranking[ranking >= 0] if begins_like(run, item, length)[other]]
        assert found[found >= 0].tolist() == expected[: run.evaluation.k]


def test_the_most_popular_items_begun_with_are_unseen_and_ordered(run):
    users = np.arange(tiny_shop.N_USERS)
    for user, found in zip(users, prefixes.popular_begun_with(run, users, run.targets, 1), strict=True):
        inside = np.flatnonzero(begins_like(run, run.targets[user], 1))
        unseen = [item for item in inside if item not in run.known[user]]
        assert found[found >= 0].tolist() == sorted(unseen, key=lambda item: (-run.popularity[item], item))


def test_what_a_code_decides_begins_with_the_evaluation_and_ends_with_certainty(run):
    users = np.arange(tiny_shop.N_USERS)
    free, one, two = (prefixes.decided(run, users, length) for length in range(3))
    evaluated = prefixes.headline(run.ranks[run.model, "item", "masked"])
    assert {key: free[key] for key in evaluated} == evaluated
    assert free["items left"] == round(np.mean([N_ITEMS - len(history) for history in run.known]))
    assert free["items left"] > one["items left"] > two["items left"]
    largest = max(begins_like(run, item, 2).sum() for item in range(N_ITEMS))
    assert largest <= 10
    assert two["hr@10"] == two["HR@10 of popularity"] == two["HR@10 at random"] == 1.0
    left = [
        sum(begins_like(run, target, 1)) - sum(begins_like(run, target, 1)[history])
        for target, history in zip(run.targets, run.known, strict=True)
    ]
    for row in (free, one):
        assert row["change from popularity, hr@10"] == pytest.approx(
            row["hr@10"] - row["HR@10 of popularity"], abs=1e-6
        )
    assert one["HR@10 at random"] == pytest.approx(np.mean([min(1, 10 / n) for n in left]))


def test_a_steered_list_is_measured_by_the_category_asked_for(run):
    users, asked = np.arange(tiny_shop.N_USERS), np.roll(run.targets, 1)
    categories = read_categories(run.folders["prepare"]).of_items
    assert sorted(set(categories)) == [-1, 0, 1, 2]
    found = prefixes.steered(run, users, asked, categories, 1)
    places, of_items = [], []
    for item, ranking in zip(asked, whole_catalogue(run)[0], strict=True):
        if categories[item] < 0:
            continue
        inside = begins_like(run, item, 1)
        top = [other for other in ranking[ranking >= 0] if inside[other]][:10]
        places += [categories[other] == categories[item] for other in top]
        of_items.append(np.mean(categories[inside] == categories[item]))
    assert found == pytest.approx({prefixes.OF_LISTS: np.mean(places), prefixes.OF_ITEMS: np.mean(of_items)})
    assert prefixes.steered(run, users, asked, np.full(N_ITEMS, -1), 1) == {}


def test_first_codes_have_the_probability_that_the_generator_gives_them(run):
    users, groups = np.array([5, 0, 17]), prefixes.prefix_groups(run, 1)
    known = [run.known[user] for user in users]
    if run.model == "t5_tree":  # by its codes alone, an item's score is a log-probability among all items
        searcher = replace(run.searcher, scoring=CODES_ALONE)
        items, scores = searcher.rank(known, k=N_ITEMS, beam_size=N_ITEMS, mask_seen=False)
        of_items = np.empty(items.shape)
        np.put_along_axis(of_items, items, np.exp(scores), axis=1)
        expected = np.stack([np.bincount(groups, row) for row in of_items])
    else:
        model = run.searcher.model.eval()  # the stock stacks drop out otherwise
        with torch.inference_mode():
            logits = [
                stock_logits(model, torch.from_numpy(items[-5:].astype(np.int64)), model.tokens[:1]) for items in known
            ]
        first_tokens = run.semantic_ids.layout.offsets[0] + np.arange(4)
        expected = softmax(np.stack([of_user[0, 0, first_tokens] for of_user in logits]), axis=1)
    assert np.exp(prefixes.first_codes(run, users)) == pytest.approx(expected, abs=1e-4)


def test_lists_of_drawn_codes_hold_the_best_of_each_code_in_the_order_of_the_whole_ranking(run):
    users, groups = np.arange(tiny_shop.N_USERS), prefixes.prefix_groups(run, 1)
    unseen = np.stack([np.bincount(np.delete(groups, run.known[user])) for user in users])
    counts = prefixes.drawn(np.log(np.full(unseen.shape, 0.25)), unseen, 1.0, np.random.default_rng(0))
    assert (counts.sum(1) == 10).all()
    lists = prefixes.composed(prefixes.best_of_codes(run, users, groups, counts > 0), counts)
    for found, ranking, of_codes in zip(lists, whole_catalogue(run)[0], counts, strict=True):
        ranked = ranking[ranking >= 0]
        best = [item for code in range(4) for item in ranked[groups[ranked] == code][: of_codes[code]]]
        assert found.tolist() == [item for item in ranked if item in best]


def test_draws_follow_the_probabilities_and_their_temperature():
    logits = np.log([[0.7, 0.2, 0.1]])
    many, roomy = np.repeat(logits, 20000, axis=0), np.full((20000, 3), 10)
    for temperature in (0.5, 1.0, 2.0):
        counts = prefixes.drawn(many, roomy, temperature, np.random.default_rng(0))
        assert (counts.sum(1) == 10).all()
        assert counts.mean(0) / 10 == pytest.approx(softmax(logits[0] / temperature), abs=0.005)
        assert counts[:, 0].var() == pytest.approx(
            10 * (share := softmax(logits[0] / temperature)[0]) * (1 - share), rel=0.05
        )
    full = prefixes.drawn(many[:100], np.array([[3, 2, 0]] * 100), 1.0, np.random.default_rng(0))
    assert (full == [3, 2, 0]).all()


def test_entropy_of_categories_by_hand():
    categories = np.array([0, 0, 1, -1])
    assert prefixes.category_entropy(categories, np.array([[0, 2, -1]])) == pytest.approx(np.log(2))
    assert prefixes.category_entropy(categories, np.array([[0, 1, 3]])) == 0.0
    assert prefixes.category_entropy(categories, np.array([[0, 2, -1], [0, 1, -1]])) == pytest.approx(np.log(2) / 2)
    assert prefixes.category_entropy(categories, np.array([[3, -1, -1]])) is None


def test_the_findings_say_what_their_rows_hold(run):
    given = prefixes.given_codes(run)
    assert [row["codes given"] for row in given.rows] == [0, 1]
    assert "of that target's category" in given.summary
    drawn = prefixes.temperature(run)
    assert [row["list"] for row in drawn.rows] == [
        "beam search", *(f"first code drawn, temperature {value}" for value in ("1", "1.5", "2"))
    ]  # fmt: skip
    evaluated = prefixes.headline(run.ranks[run.model, "item", "masked"])
    assert {key: drawn.rows[0][key] for key in evaluated} == evaluated
    assert all(1 <= row["first codes in a list"] <= 4 for row in drawn.rows)
    assert all(0 < row["entropy of categories"] <= np.log(3) for row in drawn.rows)
