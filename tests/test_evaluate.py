"""The evaluate stage: what it writes agrees with itself, with the split, and with an interrupted run."""

import dataclasses

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.tiny_run import N_USERS, build_run
from tigerrec.baselines.popularity import Popularity
from tigerrec.data.histories import load_histories
from tigerrec.evaluation import stage
from tigerrec.evaluation.metrics import item_ranks, metrics
from tigerrec.evaluation.stage import EvaluateConfig, Ranking, check_lists, evaluate
from tigerrec.search.searcher import Searcher
from tigerrec.storage.contracts import read_json, read_table
from tigerrec.storage.manifests import StaleError, read_manifest

CONFIG = EvaluateConfig(model="tiny", precision="fp32", device="cpu")
FILES = ("metrics.json", "recommendations.parquet", "ranks.parquet")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def evaluated(run):
    return evaluate(run["prepare"], run["tokenize"], run["train"], CONFIG, run["train"] / "eval-full")


def test_rows_cover_every_case(evaluated):
    rows = read_json(evaluated, "metrics.json")
    found = {(row["model"], row["hit"], row["seen"]) for row in rows}
    assert found == {
        (model, hit, seen) for model in ("tiny", "popularity") for hit in ("item", "sid") for seen in ("kept", "masked")
    }
    assert len(rows) == 8
    for row in rows:
        assert row["split"] == "test"
        assert row["users"] == N_USERS
        for name in ("hr@1", "hr@5", "hr@10", "hr@20", "ndcg@5", "ndcg@10", "ndcg@20"):
            assert 0 <= row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] <= 1


def test_metrics_follow_from_ranks_to_the_last_digit(evaluated):
    ranks = read_table(evaluated, "ranks.parquet").to_pandas()
    for row in read_json(evaluated, "metrics.json"):
        chosen = ranks[(ranks["model"] == row["model"]) & (ranks["hit"] == row["hit"]) & (ranks["seen"] == row["seen"])]
        assert {key: row[key] for key in row if "@" in key} == metrics(chosen["rank"].to_numpy())


def test_metrics_follow_from_recommendations_and_the_split(run, evaluated):
    table = read_table(evaluated, "recommendations.parquet").to_pandas()
    histories = load_histories(run["prepare"])
    targets = np.array([histories.split(user, "test")[1] for user in range(N_USERS)])
    for row in read_json(evaluated, "metrics.json"):
        if row["hit"] == "item":
            chosen = table[(table["model"] == row["model"]) & (table["seen"] == row["seen"])]
            items = np.full((N_USERS, 20), -1)
            items[chosen["user"], chosen["rank"] - 1] = chosen["item"]
            assert {key: row[key] for key in row if "@" in key} == metrics(item_ranks(items, targets))


def test_the_validation_split_has_its_own_targets(run, tmp_path):
    config = EvaluateConfig(model="tiny", split="validation", precision="fp32", device="cpu")
    out = evaluate(run["prepare"], run["tokenize"], run["train"], config, tmp_path / "out")
    histories = load_histories(run["prepare"])
    ranks = read_table(out, "ranks.parquet").to_pandas()
    assert all(histories[user][-2] == target for user, target in zip(ranks["user"], ranks["target"], strict=True))
    assert {row["split"] for row in read_json(out, "metrics.json")} == {"validation"}


def test_a_sample_of_users_has_the_ranks_that_they_have_among_all(run, evaluated, tmp_path):
    config = dataclasses.replace(CONFIG, users=17)
    out = evaluate(run["prepare"], run["tokenize"], run["train"], config, tmp_path / "out")
    sampled, whole = (read_table(folder, "ranks.parquet").to_pandas() for folder in (out, evaluated))
    users = sampled["user"].unique()
    assert len(users) == 17
    assert (np.diff(users) > 0).all()
    assert users.max() > 17  # not the first ones
    keys = ["model", "hit", "seen", "user"]
    both = sampled.merge(whole, on=keys, suffixes=("", "_whole"))
    assert len(both) == len(sampled) == 8 * 17
    assert (both["target"] == both["target_whole"]).all()
    assert (both["rank"] == both["rank_whole"]).all()
    lists, of_all = (read_table(folder, "recommendations.parquet").to_pandas() for folder in (out, evaluated))
    of_users = of_all[of_all["user"].isin(users)].reset_index(drop=True)
    pd.testing.assert_frame_equal(lists, of_users)
    assert {row["users"] for row in read_json(out, "metrics.json")} == {17}


def test_lists_are_written_some_users_at_a_time(run, evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "USERS_A_ROW_GROUP", 7)
    out = evaluate(run["prepare"], run["tokenize"], run["train"], CONFIG, tmp_path / "out")
    with pq.ParquetFile(out / "recommendations.parquet") as file:
        assert file.num_row_groups == 4 * 8
    pd.testing.assert_frame_equal(
        *(read_table(folder, "recommendations.parquet").to_pandas() for folder in (out, evaluated))
    )


def test_masked_lists_are_full_and_hold_nothing_seen(run, evaluated):
    table = read_table(evaluated, "recommendations.parquet").to_pandas()
    histories = load_histories(run["prepare"])
    masked = table[table["seen"] == "masked"]
    assert (masked.groupby(["model", "user"], observed=True).size() == 20).all()
    for user, items in masked.groupby("user")["item"]:
        assert not set(items) & set(histories.split(user, "test")[0].tolist())
    assert str(table.dtypes["user"]) == str(table.dtypes["item"]) == "int32"
    assert str(table.dtypes["score"]) == "float32"


def test_an_interrupted_run_ends_with_the_same_bytes(run, evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr("tigerrec.evaluation.stage.SHARD_USERS", 20)
    folders = [run[name] for name in ("prepare", "tokenize", "train")]
    whole = evaluate(*folders, CONFIG, tmp_path / "whole")
    ranked, real = [], Searcher.rank

    def dying(self, histories, *, mask_seen, **options):
        if len(ranked) == 4:
            raise KeyboardInterrupt
        ranked.append(mask_seen)
        return real(self, histories, mask_seen=mask_seen, **options)

    out = tmp_path / "out"
    monkeypatch.setattr(Searcher, "rank", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate(*folders, CONFIG, out)
    assert read_manifest(out) is None
    ranked[:] = [None, None]
    evaluate(*folders, CONFIG, out)
    assert len(ranked) == 4
    assert ranked[2:] == [True, True]
    for name in FILES:
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not (out / "shards").exists()


def test_a_generator_of_other_semantic_ids_is_refused(run, tmp_path):
    other = build_run(tmp_path / "other", seed=1)
    with pytest.raises(StaleError, match="made from another 'tokenize'"):
        evaluate(run["prepare"], other["tokenize"], run["train"], CONFIG, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beam_size": 10}, "beam_size must be at least k=20, got 10"),
        ({"k": 10}, "k must be at least 20, got 10"),
        ({"split": "train"}, "split must be 'validation' or 'test', got 'train'"),
        ({"model": "popularity"}, "model must be"),
    ],
)
def test_config_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**values)


@pytest.mark.parametrize(
    ("items", "seen", "fault"),
    [
        ([[1, -1, 2]], "kept", "a gap"),
        ([[1, 2, 1]], "kept", "an item twice"),
        ([[1, 9, 2]], "kept", "does not exist"),
        ([[1, 3, -1]], "masked", "a seen item"),
    ],
)
def test_broken_lists_are_caught(items, seen, fault):
    ranking = Ranking("tiny", seen, np.array(items, np.int32), np.zeros((1, 3), np.float32))
    with pytest.raises(RuntimeError, match=fault):
        check_lists(ranking, [np.array([3, 4])], n_items=5)


def test_short_lists_are_no_fault():
    ranking = Ranking(
        "tiny", "masked", np.array([[1, -1, -1]], np.int32), np.array([[0, -np.inf, -np.inf]], np.float32)
    )
    check_lists(ranking, [np.array([3, 4])], n_items=5)


def test_popularity_counts_training_only_and_breaks_ties_by_index():
    training = [np.array([2, 1]), np.array([2, 3]), np.array([], np.int32)]
    histories = [np.array([2, 1]), np.array([0, 0]), np.array([3])]
    rank = Popularity().fit(training, 4).rank
    items, scores = rank(histories, k=3, mask_seen=False)
    assert items.tolist() == [[2, 1, 3]] * 3
    assert np.isfinite(scores).all()
    assert (np.diff(scores) <= 0).all()
    items, scores = rank(histories, k=3, mask_seen=True)
    assert items.tolist() == [[3, 0, -1], [2, 1, 3], [2, 1, 0]]
    assert scores[0, 2] == -np.inf
