"""Rules of what may be recommended, for one history and for many."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pyarrow as pa
import pytest

from tests.tiny_run import N_ITEMS, build_run
from tigerrec.serving.catalogue import Catalogue
from tigerrec.serving.recommender import KEPT_RULES, Recommender
from tigerrec.serving.rules import RuleError, Rules, in_category, read_ids

HISTORY = ["0000000003", "0000000011", "0000000007"]
IDS = [f"{number:010d}" for number in range(N_ITEMS)]


@pytest.fixture(scope="module", params=["codes", "t5_tree"])
def recommender(request, tmp_path_factory) -> Recommender:
    plain = Recommender.from_pretrained(
        build_run(tmp_path_factory.mktemp("runs"), history=request.param)["train"], device="cpu"
    )
    names = pa.chunked_array([pa.array([["Camp", "Tents" if number % 3 else "Stoves"] for number in range(N_ITEMS)])])
    return dataclasses.replace(plain, catalogue=dataclasses.replace(plain.catalogue, categories=names))


def listed(recommender: Recommender, rules: Rules, k: int = 10, **options) -> list[str]:
    return [item.item_id for item in recommender.recommend(HISTORY, k, rules=rules, **options)]


def test_a_list_under_rules_is_the_whole_list_without_what_they_forbid(recommender):
    every = listed(recommender, Rules(), N_ITEMS)
    rng = np.random.default_rng(0)
    for _ in range(10):
        allow, deny = (set(rng.choice(IDS, size, replace=False).tolist()) for size in (20, 8))
        rules = Rules.of(allow, deny, "Tents")
        expected = [item for item in every if item in allow - deny and int(item) % 3]
        assert listed(recommender, rules, N_ITEMS) == expected
        assert len(listed(recommender, rules, 3)) == min(3, len(expected))


def test_few_allowed_items_fill_a_list(recommender):
    allow = [IDS[number] for number in (1, 9, 17, 25, 33)]
    found = listed(recommender, Rules.of(allow), 5)
    assert sorted(found) == allow
    assert listed(recommender, Rules.of(HISTORY), 5) == []
    assert sorted(listed(recommender, Rules.of(HISTORY), 5, mask_seen=False)) == sorted(HISTORY)


def test_a_fallback_keeps_to_the_rules(recommender):
    counts = np.arange(N_ITEMS)
    recommender = dataclasses.replace(recommender, catalogue=dataclasses.replace(recommender.catalogue, counts=counts))
    found = recommender.recommend([], 3, rules=Rules.of(deny=IDS[-1:], category="Tents"))
    assert [item.item_id for item in found] == [IDS[38], IDS[37], IDS[35]]
    assert all(item.fallback for item in found)
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)


def test_ids_of_rules_are_taken_as_those_of_histories(recommender, caplog):
    with caplog.at_level(logging.WARNING, "tigerrec"):
        found = listed(recommender, Rules.of([f" {IDS[5]} ", IDS[6].encode(), "gone"]))
    assert sorted(found) == [IDS[5], IDS[6]]
    assert "1 of 3 allowed item ids are not in the catalogue: 'gone'" in caplog.text
    with pytest.raises(RuleError, match="takes a list of item ids, not the text"):
        Rules.of(IDS[0])


@pytest.mark.parametrize(
    "rules", [{"allow": 17}, {"deny": 1.5}, {"category": 5}, {"category": ["Tents"]}, {"category": float("nan")}]
)
def test_what_is_no_rule_is_refused(rules):
    with pytest.raises(RuleError, match=r"A rule takes (a list of item ids|one category by its name), not .*\.$"):
        Rules.of(**rules)


def test_no_ids_to_deny_may_be_given_as_none(recommender):
    assert Rules.of(deny=None) == Rules()
    for rules in ({"allow": IDS[:3]}, None, IDS[:3]):
        with pytest.raises(RuleError, match=r"are no rules; make them by `tigerrec\.Rules\.of"):
            recommender.recommend(HISTORY, rules=rules)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (Rules.of([]), r"The rules leave no item of the 40 \(0 allowed\)"),
        (Rules.of(["gone"]), r"\(1 allowed\)"),
        (Rules.of(deny=IDS), r"\(40 denied\)"),
        (Rules.of(IDS[:1], category="Tents"), r"\(1 allowed, category 'Tents'\)"),
        (Rules(category="tents"), "No item has the category 'tents'; names alike: 'Tents'"),
        (Rules(category="Shoes"), "No item has the category 'Shoes'; "),
    ],
)
def test_rules_that_leave_nothing_are_refused(recommender, rules, message):
    with pytest.raises(RuleError, match=message):
        recommender.recommend(HISTORY, rules=rules)
    with pytest.raises(RuleError, match=message):
        recommender.recommend([], rules=rules)


def test_items_without_categories(recommender):
    none = pa.chunked_array([pa.array([[]] * N_ITEMS, pa.list_(pa.string()))])
    with pytest.raises(RuleError, match="no item of the model has any"):
        in_category("Tents", none)
    mixed = pa.chunked_array([pa.array([["a", "b"], [], None, ["b", None]], pa.list_(pa.string()))])
    assert in_category("b", mixed).tolist() == [True, False, False, True]


def test_the_searchers_of_many_rules_are_not_all_kept(recommender):
    for number in range(3 * KEPT_RULES):
        found = listed(recommender, Rules.of(IDS[: 20 + number % 20]))
    assert len(recommender._searchers) == KEPT_RULES
    assert found == listed(recommender, Rules.of(IDS[: 20 + (3 * KEPT_RULES - 1) % 20]))


def test_new_items_are_under_the_same_rules(recommender):
    codes = np.array([[0, 0, 39], [3, 3, 38]], np.int32)
    more = recommender.with_items(["new1", "new2"], codes, categories=[["Tents"], ["Stoves"]])
    assert isinstance(more.catalogue, Catalogue)
    assert listed(more, Rules.of(["new1", "new2"], category="Stoves")) == ["new2"]
    assert listed(more, Rules.of(["new1", "new2"])) != []


@pytest.mark.parametrize(
    ("name", "content", "ids"),
    [
        ("stock.txt", "\ufeffa\r\nb\r\n\r\n c \r\n", {"a", "b", "c"}),
        ("stock", "a,1\nb\n", {"a,1", "b"}),
        ("stock.txt", "item_id\na\nb\n", {"a", "b"}),
        ("stock.csv", "item,left\na,3\nb,0\n", {"a", "b"}),
        ("stock.csv", "left,item_id\n3,007\n", {"007"}),
        ("stock.csv", "a\nb\n", {"a", "b"}),
        ("stock.csv", "item_id\na;1\nb|2\n", {"a;1", "b|2"}),
        ("stock.jsonl", '{"item_id": 12}\n{"item_id": "x"}\n', {"12", "x"}),
    ],
)
def test_ids_are_read_from_files_of_any_kind(tmp_path, name, content, ids):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_ids(tmp_path / name) == ids


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("stock.csv", "sku,left\na,3\n", "has the columns sku, left; name that of the ids `item_id`"),
        ("stock.csv", "item\n", "holds no id"),
        ("deny.csv", "item_id;reason\ni15;broken\n", "separated by ';'; separate them by ',', as its ending says"),
        ("deny.tsv", "item_id,reason\ni15,broken\n", r"separated by ','; separate them by '\\t', as its ending says"),
        ("deny.csv", "i15;broken\ni9;broken\n", "seem to be separated by ';'"),
        ("deny.csv", "item_id\treason\ni15\tbroken\n", r"seem to be separated by '\\t'"),
        ("stock.txt", "\n \n", "holds no id"),
        ("stock.csv", "", "holds no id"),
        ("stock.csv", "item,left\na,3\n,4\n", "1 lines of .* cannot be read"),
    ],
)
def test_files_without_ids_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(RuleError, match=message):
        read_ids(tmp_path / name)
    with pytest.raises(RuleError, match="does not exist"):
        read_ids(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(("name", "content"), [("a.txt", ""), ("a.txt", "\n"), ("a.csv", ""), ("a.csv", "item_id\n")])
def test_a_list_may_be_empty_where_nothing_is_denied(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_ids(tmp_path / name, may_be_empty=True) == frozenset()


def test_lines_in_another_encoding_are_refused(tmp_path):
    (tmp_path / "deny.txt").write_bytes("Zelt\nKüche\n".encode("latin-1"))
    with pytest.raises(RuleError, match=r"deny\.txt cannot be read \(invalid UTF-8\); write it in UTF-8"):
        read_ids(tmp_path / "deny.txt")
    (tmp_path / "deny.txt").write_text("Zelt\nKüche\n", encoding="utf-16")
    assert read_ids(tmp_path / "deny.txt") == {"Zelt", "Küche"}
