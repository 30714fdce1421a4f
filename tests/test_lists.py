"""What an evaluation leaves of every user, read back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tigerrec.evaluation.lists import RANKS, read_lists, read_ranks
from tigerrec.evaluation.stage import Ranking, write_recommendations
from tigerrec.storage.manifests import DamagedError
from tigerrec.storage.stages import writing

N_USERS = 5
USERS = np.array([0, 2, 3, 7, 11])  # of a sample


@pytest.fixture
def folder(tmp_path):
    """Lists of two models, one shorter than the other, and ranks whose rows are in no order."""
    rng = np.random.default_rng(0)
    lists = {name: rng.permutation(40)[: N_USERS * k].reshape(N_USERS, k) for name, k in (("long", 4), ("short", 4))}
    lists["long"][1, 2:] = lists["short"][3] = lists["short"][:, 3] = -1
    rankings = [
        Ranking(name, "masked", items.astype(np.int32), items.astype(np.float32) / 7) for name, items in lists.items()
    ]
    ranks = {("long", hit, "masked"): rng.integers(0, 5, N_USERS).astype(np.int16) for hit in ("item", "sid")}
    ranks["nothing", "item", "masked"] = np.zeros(N_USERS, np.int16)  # its lists are empty
    targets = np.arange(N_USERS, dtype=np.int32) * 3
    columns = [
        {"model": model, "hit": hit, "seen": seen, "user": int(user), "target": int(target), "rank": int(rank)}
        for (model, hit, seen), of_users in ranks.items()
        for user, target, rank in zip(USERS, targets, of_users, strict=True)
    ]
    table = pa.Table.from_pylist(columns)
    for name, kind in (("user", pa.int32()), ("target", pa.int32()), ("rank", pa.int16())):
        place = table.column_names.index(name)
        table = table.set_column(place, name, table[name].cast(kind))
    with writing(tmp_path, "evaluate", {}) as files:
        write_recommendations(files, rankings, USERS)
        files.parquet(RANKS, table.take(rng.permutation(len(ranks) * N_USERS)))
    return tmp_path, rankings, ranks, targets


def test_lists_are_read_as_they_were_written(folder):
    path, rankings, _, _ = folder
    lists = read_lists(path)
    assert set(lists) == {("long", "masked"), ("short", "masked"), ("nothing", "masked")}
    assert lists["nothing", "masked"].items.tolist() == [[-1]] * N_USERS
    for ranking in rankings:
        found, longest = lists[ranking.model, ranking.seen], 4 if ranking.model == "long" else 3
        items, scores = ranking.items[:, :longest], ranking.scores[:, :longest]
        np.testing.assert_array_equal(found.items, items)
        np.testing.assert_array_equal(found.scores, np.where(items >= 0, scores, np.nan))


def test_ranks_are_read_in_the_order_of_users(folder):
    path, _, ranks, targets = folder
    found, found_targets, users = read_ranks(path)
    assert users.tolist() == USERS.tolist()
    assert set(found) == set(ranks)
    for key, expected in ranks.items():
        assert found[key].dtype == np.int16
        assert found[key].tolist() == expected.tolist()
    assert found_targets.tolist() == targets.tolist()


def test_tables_of_other_users_are_refused(folder):
    path, *_ = folder
    ranks = pq.read_table(path / RANKS)
    pq.write_table(ranks.slice(1), path / RANKS)
    with pytest.raises(DamagedError, match=r"ranks\.parquet does not hold what it should .*overwrite=eval"):
        read_ranks(path)
    pq.write_table(ranks.filter(pc.field("user") != int(USERS[-1])), path / RANKS)
    with pytest.raises(DamagedError, match=r"recommendations\.parquet does not hold what it should"):
        read_lists(path)
