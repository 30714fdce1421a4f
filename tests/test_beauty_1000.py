"""The data set `beauty_1000` end to end, on made-up ratings of its shape at a twentieth of its size: users with ten or
more, most items rated once."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from tigerrec.config import compose
from tigerrec.pipeline import plan, run
from tigerrec.storage.contracts import read_json, read_table

USERS, ITEMS, INTERACTIONS = 630, 3760, 11_140
OPTIONS = [
    "dataset=beauty_1000",
    "embedder=hashed",
    "tokenizer=rkmeans",
    "tokenizer.codebook_size=32",
    "generator=decoder_only",
    "generator.num_layers=2",
    "generator.d_model=32",
    "generator.num_heads=2",
    "generator.d_ff=64",
    "train.epochs=1",
    "train.validate_every=1",
    "train.validation_users=100",
    "evaluate.batch_tokens=65536",
]


def ratings(rng: np.random.Generator) -> list[tuple[str, str, int]]:
    """Ratings (user, item, time) in the order of a file sorted by item, of users with ten or more and as many casual
    users with fewer."""
    lengths = 10 + np.bincount(
        rng.choice(USERS, INTERACTIONS - 10 * USERS, p=rng.dirichlet(np.full(USERS, 0.5))), minlength=USERS
    )
    once = ITEMS * 6 // 10
    popular = 1 / np.arange(1, ITEMS - once + 1) ** 0.7
    items = np.concatenate(
        [np.arange(ITEMS), once + rng.choice(ITEMS - once, INTERACTIONS - ITEMS, p=popular / popular.sum())]
    )
    users = rng.permutation(np.repeat(np.arange(USERS), lengths))
    rows = [
        (f"A{user:013d}", f"B{item:09d}", int(day) * 86_400)
        for user, item, day in zip(users, items, rng.permutation(INTERACTIONS), strict=True)
    ]
    rows += [
        (f"C{user:013d}", f"B{item:09d}", 0)
        for user in range(USERS)
        for item in rng.choice(ITEMS + 50, rng.integers(1, 10), replace=False)
    ]
    return sorted(rows, key=lambda row: row[1])


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("raw"), np.random.default_rng(0)
    lines = [f"{user},{item},5.0,{time}" for user, item, time in ratings(rng)]
    (folder / "ratings_Beauty.csv").write_text("\n".join(lines) + "\n")
    words = ["rose", "mint", "clay", "soap", "balm", "oil", "brush", "scrub", "serum", "mask"]
    records = [
        {
            "asin": f"B{item:09d}",
            "title": " ".join(rng.choice(words, 4)),
            "brand": str(rng.choice(words)),
            "categories": [["Beauty", str(rng.choice(words))]],
        }
        for item in range(ITEMS + 50)
        if item % 100
    ]
    (folder / "meta_Beauty.json.gz").write_bytes(gzip.compress("\n".join(map(repr, records)).encode()))
    return folder


def test_the_known_counts_stand_in_the_yaml():
    dataset = plan(compose(["dataset=beauty_1000"]))["prepare"].config
    assert dataset.expected == (12_595, 75_253, 222_897)
    assert (dataset.min_user_interactions, dataset.min_item_interactions) == (10, 0)


def test_all_stages_run_with_the_decoder_only_generator(raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    cfg = compose(
        [
            *OPTIONS,
            f"dataset.raw_dir={raw}",
            f"dataset.expected=[{USERS},{ITEMS},{INTERACTIONS}]",
            f"paths.runs={tmp_path}",
        ]
    )
    run(cfg, "evaluate")
    folders = {stage: step.folder for stage, step in plan(cfg).items()}
    assert "known release" not in caplog.text
    stats = read_json(folders["prepare"], "stats.json")
    assert [stats[name] for name in ("users", "items", "interactions")] == [USERS, ITEMS, INTERACTIONS]
    assert stats["history_length"]["min"] == 10
    assert stats["items_without_metadata"] == -(-ITEMS // 100)
    counts = read_table(folders["prepare"], "interactions.parquet").to_pandas()["item"].value_counts()
    assert (counts == 1).mean() > 0.4
    assert read_json(folders["train"], "config.json")["tigerrec"]["max_items"] == 50
    rows = read_json(folders["evaluate"], "metrics.json")
    assert {row["users"] for row in rows} == {USERS}
    assert {row["model"] for row in rows} >= {"decoder_only", "popularity"}
    lists = read_table(folders["evaluate"], "recommendations.parquet").to_pandas()
    sizes = lists[lists["model"] == "decoder_only"].groupby(["seen", "user"]).size()
    assert len(sizes) == 2 * USERS
    assert (sizes == 20).all()
