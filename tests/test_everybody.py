"""Recommendations for many users, from a run or a table into a file."""

from __future__ import annotations

import json
import logging
import operator
import re
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from tests import tiny_shop
from tigerrec import TigerrecError, cli
from tigerrec.data.histories import load_histories
from tigerrec.serving import everybody
from tigerrec.serving.everybody import recommend_all
from tigerrec.serving.export import export
from tigerrec.serving.recommender import Recommender
from tigerrec.serving.rules import Rules
from tigerrec.storage.files import BusyError, locked_beside
from tigerrec.storage.manifests import read_manifest

COLUMNS = ["user_id", "rank", "item_id", "score", "fallback", "model"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> tuple[Path, Path]:
    """The orders of a shop and its train folder."""
    folder = tmp_path_factory.mktemp("shop")
    orders = tiny_shop.write_orders(folder)
    return orders, tiny_shop.run(orders, folder / "runs", until="train")


def rows_of(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_every_user_gets_what_the_recommender_gives(shop, tmp_path):
    orders, trained = shop
    rows = rows_of(recommend_all(trained, tmp_path / "recs.parquet", k=4, device="cpu"))
    recommender = Recommender.from_pretrained(trained, device="cpu")
    histories = load_histories(trained.parent.parent.parent)
    users = list(dict.fromkeys(line.split(",")[0] for line in orders.read_text().splitlines()[1:]))
    whole = [[recommender.item_ids[item] for item in histories[user]] for user in range(len(users))]
    expected = recommender.recommend_batch(whole, 4)
    found: dict[str, list] = {}
    for row in rows:
        assert list(row) == COLUMNS
        assert row["model"] == read_manifest(trained).content
        found.setdefault(row["user_id"], []).append((row["rank"], row["item_id"], round(row["score"], 4)))
    assert list(found) == users
    for user, one in zip(users, expected, strict=True):
        assert found[user] == [(rank, item.item_id, round(item.score, 4)) for rank, item in enumerate(one, 1)]


def test_users_of_a_run_are_read_with_their_own_tokens(tmp_path):
    orders = tiny_shop.write_orders(tmp_path)
    trained = tiny_shop.run(orders, tmp_path / "runs", "generator.user_tokens=7", until="train")
    recommender, histories = Recommender.from_pretrained(trained, device="cpu"), load_histories(tmp_path / "runs/shop")
    known = [histories[user] for user in range(len(histories))]
    own, mean = (recommender.lists(known, 4, users=users).scores for users in (np.arange(len(known)), None))
    assert np.abs(own - mean).max() > 1e-3
    names = list(dict.fromkeys(line.split(",")[0] for line in orders.read_text().splitlines()[1:]))
    (tmp_path / "some.csv").write_text("user_id\nu31\nnobody\nu7\n")
    for users in ("all", tmp_path / "some.csv"):
        found: dict[str, list[float]] = {}
        for row in rows_of(recommend_all(trained, tmp_path / "recs.parquet", users=users, k=4, device="cpu")):
            found.setdefault(row["user_id"], []).append(row["score"])
        found.pop("nobody", None)
        assert set(found) == (set(names) if users == "all" else {"u7", "u31"})
        assert all(scores == pytest.approx(own[names.index(user)], abs=1e-4) for user, scores in found.items())


def test_a_table_of_histories_is_read_as_the_data_were(shop, tmp_path):
    orders, trained = shop
    exported = export(trained, tmp_path / "model")
    ways = [
        recommend_all(trained, tmp_path / "a.parquet", device="cpu"),
        recommend_all(trained, tmp_path / "b.parquet", histories=orders, device="cpu"),
        recommend_all(exported, tmp_path / "c.parquet", histories=orders, device="cpu"),
    ]
    tables = [pq.read_table(path).drop(["model"]) for path in ways]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_the_table_of_a_training_with_ratings_and_repeats_gives_the_histories_of_the_training(tmp_path):
    head, *rows = tiny_shop.write_orders(tmp_path).read_text().splitlines()
    users = sorted({row.partition(",")[0] for row in rows})
    disliked = [f"{user},i{number % tiny_shop.N_ITEMS:02d},99,2" for number, user in enumerate(users)]
    table = tmp_path / "rated.csv"
    table.write_text("\n".join([f"{head},stars", *(f"{row},5" for row in rows for _ in range(3)), *disliked]) + "\n")
    with duckdb.connect(tmp_path / "shop.duckdb") as database:
        database.execute(f"CREATE TABLE orders AS FROM '{table}'")
    own = ["dataset.interactions_table=orders", "dataset.rating_column=stars", "dataset.min_rating=4"]
    trained = tiny_shop.run(tmp_path / "shop.duckdb", tmp_path / "runs", *own, until="train")
    query = tmp_path / "recent.sql"
    query.write_text(f"FROM '{table}'")
    out = [tmp_path / f"{name}.parquet" for name in "abcd"]
    expected = rows_of(recommend_all(trained, out[0], device="cpu"))
    for path, histories in zip(out[1:], (table, query, tmp_path / "shop.duckdb"), strict=True):
        found = rows_of(recommend_all(trained, path, histories=histories, device="cpu"))
        key = operator.itemgetter("user_id", "rank")
        assert sorted(found, key=key) == sorted(expected, key=key)


def test_formats_hold_the_same(shop, tmp_path):
    _, trained = shop
    parquet, csv, lines = (
        recommend_all(trained, tmp_path / f"recs.{ending}", k=3, device="cpu") for ending in ("parquet", "csv", "jsonl")
    )
    expected = rows_of(parquet)
    assert [json.loads(line) for line in lines.read_text().splitlines()] == expected
    for one, other in zip(pc.read_csv(csv).to_pylist(), expected, strict=True):
        assert one["score"] == pytest.approx(other["score"])
        assert {**one, "score": 0} == {**other, "score": 0}
    with pytest.raises(TigerrecError, match=r"must end in \.parquet, \.csv, \.jsonl"):
        recommend_all(trained, tmp_path / "recs.xlsx")


def test_users_of_a_file_unknown_ones_marked(shop, tmp_path, caplog):
    _, trained = shop
    (tmp_path / "users.csv").write_text("user\nu7\nnobody\nu3\n")
    with caplog.at_level(logging.WARNING, "tigerrec"):
        rows = rows_of(
            recommend_all(trained, tmp_path / "recs.parquet", users=tmp_path / "users.csv", k=2, device="cpu")
        )
    assert [(row["user_id"], row["fallback"]) for row in rows[::2]] == [("nobody", True), ("u3", False), ("u7", False)]
    assert "1 of 3 users have no item of the catalogue and get what was bought most, as 'nobody'" in caplog.text


def test_a_bad_row_spoils_no_other_and_unknown_items_are_counted_once(shop, tmp_path, caplog):
    _, trained = shop
    good = "".join(f"u{number},i{number % 20:02d},{number}\nu{number},gone,{number + 1}\n" for number in range(2_000))
    (tmp_path / "new.csv").write_text(f"user,item,time\n{good}stranger,nothing,5\n,i01,7\n")
    with caplog.at_level(logging.WARNING, "tigerrec"):
        rows = rows_of(
            recommend_all(trained, tmp_path / "recs.parquet", histories=tmp_path / "new.csv", k=2, device="cpu")
        )
    assert len(rows) == 2 * 2_001
    assert {row["user_id"] for row in rows if row["fallback"]} == {"stranger"}
    told = [record.message for record in caplog.records]
    assert len(told) == 3
    assert told[0].startswith("dropped 1 of 4,002 lines")
    assert told[1].startswith("ignored 2001 of 4001 item ids")
    assert told[2].startswith("1 of 2,001 users have no item of the catalogue")


def test_a_bad_row_of_a_short_table_spoils_no_other(shop, tmp_path, caplog):
    _, trained = shop
    new, out = tmp_path / "new.csv", tmp_path / "recs.parquet"
    new.write_text("user,item,time\nu1,i01,1\n,i02,2\nu3,i03,3\n")
    with caplog.at_level(logging.WARNING, "tigerrec"):
        rows = rows_of(recommend_all(trained, out, histories=new, k=2, device="cpu"))
    assert [row["user_id"] for row in rows] == ["u1", "u1", "u3", "u3"]
    assert "dropped 1 of 3 lines" in caplog.text
    with pytest.raises(TigerrecError, match="max_dropped"):
        recommend_all(trained, out, histories=new, options={"max_dropped": 0.1}, k=2, device="cpu")
    new.write_text("user,item,time\nu1,i01,1\n,i02,2\n,i03,3\n")  # no row is bad: the table is read wrongly
    with pytest.raises(TigerrecError, match="max_dropped"):
        recommend_all(trained, out, histories=new, k=2, device="cpu")


def test_rules_hold_for_everybody(shop, tmp_path):
    _, trained = shop
    allow = [f"i{number:02d}" for number in range(10)]
    path = recommend_all(trained, tmp_path / "recs.parquet", k=5, rules=Rules.of(allow), device="cpu")
    rows = rows_of(path)
    assert {row["item_id"] for row in rows} <= set(allow)
    histories = load_histories(trained.parent.parent.parent)
    names = Recommender.from_pretrained(trained, device="cpu").item_ids
    free = [len(set(allow) - {names[item] for item in histories[user]}) for user in range(len(histories))]
    users = list(dict.fromkeys(row["user_id"] for row in rows))
    counts = [sum(row["user_id"] == user for row in rows) for user in users]
    assert counts == [min(5, n) for n in free]


def test_a_stopped_run_goes_on_to_the_same_bytes(shop, tmp_path, monkeypatch, caplog):
    _, trained = shop
    monkeypatch.setattr(everybody, "SHARD_USERS", 8)
    whole = recommend_all(trained, tmp_path / "whole.parquet", device="cpu").read_bytes()
    asked, lists = [], Recommender.lists

    def dying(self, known, *rest):
        asked.append(len(known))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return lists(self, known, *rest)

    monkeypatch.setattr(Recommender, "lists", dying)
    with pytest.raises(KeyboardInterrupt):
        recommend_all(trained, tmp_path / "recs.parquet", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".recs.parquet.parts", "whole.parquet"]
    with caplog.at_level(logging.INFO, "tigerrec"):
        assert recommend_all(trained, tmp_path / "recs.parquet", device="cpu").read_bytes() == whole
    assert "took 3 of 5 shards from a stopped run" in caplog.text
    assert len(asked) == 4 + 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recs.parquet", "whole.parquet"]


def test_another_request_takes_nothing_of_a_stopped_one(shop, tmp_path, monkeypatch):
    _, trained = shop
    monkeypatch.setattr(everybody, "SHARD_USERS", 8)
    lists, n_asked = Recommender.lists, []
    monkeypatch.setattr(everybody, "_write", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        recommend_all(trained, tmp_path / "recs.parquet", device="cpu")
    monkeypatch.setattr(everybody, "_write", lambda *arguments: None)
    monkeypatch.setattr(Recommender, "lists", lambda self, known, *rest: n_asked.append(1) or lists(self, known, *rest))
    for changed in ({"k": 3}, {"mask_seen": False}, {"rules": Rules.of(deny=["i01"])}):
        n_asked.clear()
        recommend_all(trained, tmp_path / "recs.parquet", device="cpu", **changed)
        assert len(n_asked) == 5


def test_the_scores_that_are_asked_for_rank(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(everybody, "SHARD_USERS", 8)
    trained = tiny_shop.run(tiny_shop.write_orders(tmp_path), tmp_path / "runs", "generator=t5_tree", until="train")
    found = {}
    for scores in ("codes", "items", None):
        with monkeypatch.context() as stopped:  # its parts stay, and the next takes none of them
            stopped.setattr(everybody, "_write", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                recommend_all(trained, tmp_path / "recs.parquet", k=5, device="cpu", scores=scores)
    for scores in ("codes", "items", "hybrid", None):
        rows = rows_of(recommend_all(trained, tmp_path / "recs.parquet", k=5, device="cpu", scores=scores))
        recommender = Recommender.from_pretrained(trained, "cpu", scores)
        histories = load_histories(trained.parent.parent.parent)
        expected = recommender.lists([histories[user] for user in range(len(histories))], 5)
        assert [row["item_id"] for row in rows] == [recommender.item_ids[item] for item in expected.items.flatten()]
        assert [row["score"] for row in rows] == pytest.approx(expected.scores.flatten().tolist())
        found[scores] = [(row["item_id"], row["score"]) for row in rows]
    assert found[None] == found["hybrid"]
    assert len({str(found[scores]) for scores in ("codes", "items", "hybrid")}) == 3
    for scores in ("codes", "items"):
        capsys.readouterr()
        cli.main(["recommend", str(trained), "--items", "i01,i02", "--scores", scores])
        first = Recommender.from_pretrained(trained, "cpu", scores).recommend(["i01", "i02"], 1)[0]
        assert f"{first.score:.3f}" in capsys.readouterr().out


def test_an_export_needs_histories(shop, tmp_path):
    _, trained = shop
    exported = export(trained, tmp_path / "model")
    with pytest.raises(TigerrecError, match="is an export, which holds no users; give their interactions as `--hist"):
        recommend_all(exported, tmp_path / "recs.parquet")
    assert not (tmp_path / ".recs.parquet.parts").exists()


def test_the_command(shop, tmp_path, capsys, monkeypatch):
    orders, trained = shop
    (tmp_path / "kunden.csv").write_text(
        orders.read_text().replace(",", ";").replace("user;item;time", "Kunde;item;time")
    )
    (tmp_path / "deny.txt").write_text("i01\ni02\n")
    monkeypatch.chdir(tmp_path)
    common = ["recommend", str(trained), "--k", "4", "--deny", "deny.txt"]
    cli.main([*common, "--users", "all", "--out", "one.parquet"])
    cli.main([*common, "--histories", "kunden.csv", "--out", "two.parquet", "dataset.user_column=Kunde",
              "dataset.separator=';'"])  # fmt: skip
    assert capsys.readouterr().out == "one.parquet\ntwo.parquet\n"
    assert pq.read_table("one.parquet").equals(pq.read_table("two.parquet"))
    assert not {"i01", "i02"} & {row["item_id"] for row in rows_of(Path("one.parquet"))}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nobody to recommend to"),
        (["--items", "i01", "--out", "x.csv"], "--items and --item are for one history"),
        (["--histories", "no.csv", "--out", "x.csv"], "no.csv is no file"),
        (["--out", "x.csv", "train.epochs=3"], "train.epochs=3 is no option of recommend"),
        (["--out", "x.csv", "dataset.nothing=3"], "dataset.nothing is not an option"),
        (["--out", "x.csv", "--allow", "no.csv"], "no.csv does not exist"),
        (["--out", "x.csv", "--users", "no.csv"], "no.csv does not exist"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(shop, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"Error: .*{message}"):
        cli.main(["recommend", str(shop[1]), *arguments])
    assert not list(tmp_path.iterdir())


def test_histories_are_in_the_order_of_time(shop, tmp_path):
    orders, trained = shop
    lines = orders.read_text().splitlines()
    shuffled = [lines[0], *np.random.default_rng(0).permutation(lines[1:])]
    (tmp_path / "shuffled.csv").write_text("\n".join(shuffled) + "\n")
    one = rows_of(recommend_all(trained, tmp_path / "a.parquet", device="cpu"))
    two = rows_of(recommend_all(trained, tmp_path / "b.parquet", histories=tmp_path / "shuffled.csv", device="cpu"))
    assert sorted(map(repr, one)) == sorted(map(repr, two))


def test_one_file_has_one_writer(shop, tmp_path):
    _, trained = shop
    with locked_beside(tmp_path / "recs.parquet"), pytest.raises(BusyError, match="is being written by process"):
        recommend_all(trained, tmp_path / "recs.parquet", device="cpu")
    recommend_all(trained, tmp_path / "recs.parquet", device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["recs.parquet"]


def test_the_column_of_users_may_be_named_as_in_the_data_and_strangers_are_told_of(tmp_path, caplog):
    orders = tiny_shop.write_orders(tmp_path)
    orders.write_text(orders.read_text().replace("user", "Kunde", 1))
    trained = tiny_shop.run(orders, tmp_path / "runs", "dataset.user_column=Kunde", until="train")
    (tmp_path / "some.csv").write_text("Kunde\nu3\nnobody\n")
    for histories in (None, orders):
        with caplog.at_level(logging.WARNING, "tigerrec"):
            rows = rows_of(
                recommend_all(
                    trained,
                    tmp_path / "recs.parquet",
                    users=tmp_path / "some.csv",
                    histories=histories,
                    k=1,
                    device="cpu",
                )
            )
        assert [row["user_id"] for row in rows] == ["nobody", "u3"]
    assert caplog.text.count("1 of 2 users of") == 2
    assert "are not in the data: 'nobody'" in caplog.text


def test_users_whom_rules_leave_nothing_are_counted(shop, tmp_path, caplog):
    orders, trained = shop
    took = [line.split(",")[1] for line in orders.read_text().splitlines()[1:] if line.startswith("u3,")]
    with caplog.at_level(logging.INFO, "tigerrec"):
        rows = rows_of(recommend_all(trained, tmp_path / "recs.parquet", rules=Rules.of(took[:1]), device="cpu"))
    users = {row["user_id"] for row in rows}
    assert "u3" not in users
    empty = tiny_shop.N_USERS - len(users)
    assert f"{empty} of {tiny_shop.N_USERS} users get nothing, since the rules and what they took leave" in caplog.text
    assert f"wrote {len(rows)} recommendations for {len(users)} users" in caplog.text


def test_a_folder_as_output_is_refused_before_ranking(shop, tmp_path):
    (tmp_path / "recs.parquet").mkdir()
    with pytest.raises(TigerrecError, match=r"recs\.parquet is a folder; give another"):
        recommend_all(shop[1], tmp_path / "recs.parquet", device="cpu")


def test_the_repair_of_a_run_beside_newer_data_works(tmp_path):
    orders, runs = tiny_shop.write_orders(tmp_path), tmp_path / "runs"
    trained = tiny_shop.run(orders, runs, until="train")
    orders.write_text(orders.read_text() + "".join(f"new,i{item:02d},{item}\n" for item in range(5)))
    tiny_shop.run(orders, runs, "overwrite=prepare", until="prepare")
    with pytest.raises(TigerrecError, match="was made from another 'prepare' than the one in") as caught:
        recommend_all(trained, tmp_path / "recs.parquet", device="cpu")
    assert "run `tigerrec train` with its options and `overwrite=" in str(caught.value)
    repair = re.findall("`(overwrite=.*?)`", str(caught.value))
    tiny_shop.run(orders, runs, *repair, until="train")
    found = rows_of(recommend_all(trained, tmp_path / "recs.parquet", k=1, device="cpu"))
    assert found[-1]["user_id"] == "new"
