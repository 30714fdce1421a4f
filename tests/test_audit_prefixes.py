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
from tigerrec.analysis.audit.run import AuditedRun, NotApplicableError
from tigerrec.analysis.tokenizers.fitted import read_categories
from tigerrec.config import compose
from tigerrec.search.options import CODES_ALONE, Scoring

N_ITEMS = tiny_shop.N_ITEMS
USERS = np.array([0, 5, 6, 17, 31, 38])  # the first of them bought an item twice
KINDS = ("Hair", "Skin", "Nails")


@pytest.fixture(scope="module", params=["t5", "decoder_only", "t5_tree"])
def run(request, tmp_path_factory) -> AuditedRun:
    """A finished run whose items have categories, but the last; one user bought an item twice."""
    folder = tmp_path_factory.mktemp("shop")
    orders = tiny_shop.write_orders(folder)
    first = orders.read_text().splitlines()[1].rpartition(",")[0]
    orders.write_text(f"{orders.read_text()}{first},0.5\n")
    lines = [f"i{item:02d},Thing {item},Beauty > {KINDS[item % 3]}" for item in range(N_ITEMS - 1)]
    (folder / "products.csv").write_text("\n".join(["item,title,categories", *lines]) + "\n")
    sizes = [f"generator.{size}" for size in ("num_layers=1", "d_model=16", "num_heads=2", "d_ff=16", "max_items=5")]
    options = tiny_shop.options(
        orders,
        folder / "runs",
        f"dataset.items={folder}/products.csv",
        f"generator={request.param}",
        "evaluate.precision=fp32",
    )
    cfg = compose([*options, *sizes, "train.stride=5"])
    pipeline.run(cfg, "evaluate")
    return AuditedRun(pipeline.plan(cfg), folder / "work", users=25)


def whole_catalogue(run: AuditedRun) -> tuple[np.ndarray, np.ndarray]:
    """All unseen items of each user, best first, and their scores."""
    return run.searcher.rank(run.known, k=N_ITEMS, beam_size=N_ITEMS, mask_seen=True)


def begins_like(run: AuditedRun, item: int, length: int) -> np.ndarray:
    codes = run.semantic_ids.codes[:, :length]
    return (codes == codes[item]).all(1)


@pytest.mark.parametrize("length", [1, 2])
def test_lists_begun_with_are_the_whole_ranking_kept_to_these_items(run, length):
    asked = run.targets[USERS[::-1]]
    lists = prefixes.lists_begun_with(run, USERS, asked, length, "")
    for found, ranking, item in zip(lists, whole_catalogue(run)[0][USERS], asked, strict=True):
        expected = [other for other in ranking[ranking >= 0] if begins_like(run, item, length)[other]]
        assert found[found >= 0].tolist() == expected[: run.evaluation.k]


def test_the_most_popular_items_begun_with_are_unseen_and_ordered(run):
    lists = prefixes.popular_begun_with(run, USERS, run.targets[USERS], 1)
    for user, found in zip(USERS, lists, strict=True):
        inside = np.flatnonzero(begins_like(run, run.targets[user], 1))
        unseen = [item for item in inside if item not in run.known[user]]
        assert found[found >= 0].tolist() == sorted(unseen, key=lambda item: (-run.popularity[item], item))


def test_what_a_code_decides_begins_with_the_evaluation_and_ends_with_certainty(run):
    free, one, two = (prefixes.decided(run, USERS, length) for length in range(3))
    evaluated = prefixes.headline(run.ranks[run.model, "item", "masked"][USERS])
    assert {key: free[key] for key in evaluated} == evaluated
    history = run.known[USERS[0]].tolist()
    assert len(history) > len(set(history))
    left = [
        [np.setdiff1d(np.flatnonzero(begins_like(run, run.targets[user], length)), run.known[user]) for user in USERS]
        for length in range(3)
    ]
    for row, unseen in zip((free, one, two), left, strict=True):
        assert row["items left"] == round(np.mean([len(items) for items in unseen]))
        assert row["HR@10 at random"] == pytest.approx(np.mean([min(1, 10 / len(items)) for items in unseen]))
        above = row["change from popularity, hr@10"]
        assert above == pytest.approx(row["hr@10"] - row["HR@10 of popularity"], abs=1e-6)
    assert max(len(items) for items in left[2]) <= 10
    assert two["hr@10"] == two["HR@10 of popularity"] == 1.0


@pytest.mark.parametrize("length", [0, 1, 2])
def test_a_steered_list_is_measured_by_the_category_asked_for_without_the_item_itself(run, length):
    asked = np.roll(run.targets[USERS], 1)
    asked[0] = N_ITEMS - 1  # which has no category
    categories = read_categories(run.folders["prepare"]).of_items
    assert sorted(set(categories)) == [-1, 0, 1, 2]
    places, of_items = [], []
    for user, item in zip(USERS, asked, strict=True):
        ranking = whole_catalogue(run)[0][user]
        begun = [other for other in ranking[ranking >= 0] if begins_like(run, item, length)[other] and other != item]
        if categories[item] >= 0 and begun:
            places.append(np.mean([categories[other] == categories[item] for other in begun[:10]]))
            of_items.append(np.mean([categories[other] == categories[item] for other in begun]))
    expected = {prefixes.OF_LISTS: np.mean(places), prefixes.OF_ITEMS: np.mean(of_items)}
    assert prefixes.steered(run, USERS, asked, categories, length) == pytest.approx(expected)
    assert prefixes.steered(run, USERS, asked, np.full(N_ITEMS, -1), length) == {}


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
    groups = prefixes.prefix_groups(run, 1)
    unseen = np.stack([np.bincount(np.delete(groups, run.known[user]), minlength=4) for user in USERS])
    counts = prefixes.drawn(np.log(np.full(unseen.shape, 0.25)), unseen, 1.0, np.random.default_rng(0))
    assert (counts.sum(1) == 10).all()
    lists = prefixes.composed(prefixes.best_of_codes(run, USERS, groups, counts > 0), counts)
    for found, ranking, of_codes in zip(lists, whole_catalogue(run)[0][USERS], counts, strict=True):
        assert found.tolist() == drawn_from(ranking, groups, of_codes)
    assert (prefixes.composed({}, np.zeros((2, 4), int)) == -1).all()


def drawn_from(ranking: np.ndarray, groups: np.ndarray, counts: np.ndarray) -> list[int]:
    """The items of a ranking that are among the best `counts[code]` of their first code."""
    ranked = ranking[ranking >= 0]
    best = {item for code, count in enumerate(counts) for item in ranked[groups[ranked] == code][:count].tolist()}
    return [item for item in ranked.tolist() if item in best]


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


def test_what_codes_decide_is_found_of_a_sample_of_users(run):
    given = prefixes.given_codes(run)
    assert [(row["codes given"], row["users"]) for row in given.rows] == [(0, 25), (1, 25)]
    users = run.sample("given codes")
    assert given.rows[1].items() >= prefixes.decided(run, users, 1).items()
    assert "of that target's category" in given.summary


def test_drawn_lists_stand_beside_those_of_beam_search(run):
    found = prefixes.temperature(run).rows
    users, groups = run.sample("temperature"), prefixes.prefix_groups(run, 1)
    assert len(users) == 25 < tiny_shop.N_USERS
    assert [row["list"] for row in found] == [
        "beam search", *(f"first code drawn, temperature {value}" for value in ("1", "1.5", "2"))
    ]  # fmt: skip
    evaluated = prefixes.headline(run.ranks[run.model, "item", "masked"][users])
    assert found[0].items() >= evaluated.items()
    unseen = np.stack([np.bincount(np.delete(groups, run.known[user]), minlength=4) for user in users])
    rng, log_probabilities = prefixes.seeded_rng("temperature"), prefixes.first_codes(run, users)
    for row, temperature in zip(found[1:], prefixes.TEMPERATURES, strict=True):
        counts = prefixes.drawn(log_probabilities, unseen, temperature, rng)
        rankings = whole_catalogue(run)[0][users]
        lists = [drawn_from(*of_user) for of_user in zip(rankings, [groups] * 25, counts, strict=True)]
        ranks = prefixes.item_ranks(np.array(lists), run.targets[users])
        assert row.items() >= prefixes.headline(ranks).items()
        assert row["change of hr@10"] == pytest.approx(row["hr@10"] - found[0]["hr@10"], abs=1e-6)
        assert row["first codes in a list"] == np.mean((counts > 0).sum(1))
        assert 0 < row["entropy of categories"] <= np.log(3)


@pytest.mark.parametrize("scoring", [Scoring(scores="items"), Scoring(scores="hybrid", cold_places=1)])
def test_lists_not_in_the_order_of_codes_are_not_drawn(run, scoring, monkeypatch):
    monkeypatch.setitem(vars(run), "searcher", replace(run.searcher, scoring=scoring))
    with pytest.raises(NotApplicableError):
        prefixes.temperature(run)
