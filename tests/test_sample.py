"""The bundled sample: reproducible, well formed, 5-core, and predictable from the order of a history but not from
popularity."""

import ast
import gzip
import json
import os
import subprocess
import sys
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from scripts.make_sample import META_FILE, REVIEWS_FILE

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data" / "sample"


def lines(name: str) -> list[str]:
    return gzip.decompress((SAMPLE / name).read_bytes()).decode().splitlines()


@pytest.fixture(scope="module")
def reviews() -> list[dict]:
    return [json.loads(line) for line in lines(REVIEWS_FILE)]


@pytest.fixture(scope="module")
def meta() -> list[dict]:
    return [ast.literal_eval(line) for line in lines(META_FILE)]


@pytest.fixture(scope="module")
def histories(reviews) -> list[list[str]]:
    found = defaultdict(list)
    for row, review in enumerate(reviews):
        found[review["reviewerID"]].append((review["unixReviewTime"], row, review["asin"]))
    return [[asin for _, _, asin in sorted(history)] for history in found.values()]


def test_the_script_writes_the_committed_files_and_prints_the_folder_last(tmp_path):
    out = tmp_path / "new"
    command = [sys.executable, ROOT / "scripts" / "make_sample.py", out]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == str(out)
    assert sorted(path.name for path in out.iterdir()) == [META_FILE, REVIEWS_FILE]
    for name in (META_FILE, REVIEWS_FILE):
        written, committed = (out / name).read_bytes(), (SAMPLE / name).read_bytes()
        assert gzip.decompress(written) == gzip.decompress(committed)
        if "ng" not in zlib.ZLIB_RUNTIME_VERSION:  # zlib-ng packs the same lines into other bytes
            assert written == committed


def test_it_is_small():
    assert sum((SAMPLE / name).stat().st_size for name in (META_FILE, REVIEWS_FILE)) < 300_000


def test_counts_and_5_core(reviews):
    users, items = Counter(r["reviewerID"] for r in reviews), Counter(r["asin"] for r in reviews)
    assert (len(users), len(items), len(reviews)) == (2000, 492, 19_415)
    assert min(users.values()) >= 5
    assert max(users.values()) <= 25
    assert min(items.values()) >= 5
    assert len({(r["reviewerID"], r["asin"]) for r in reviews}) == len(reviews)


def test_review_lines(reviews):
    assert [(r["asin"], r["reviewerID"]) for r in reviews] == sorted((r["asin"], r["reviewerID"]) for r in reviews)
    assert all(len(r["asin"]) == 10 and 1 <= r["overall"] <= 5 and r["unixReviewTime"] % 86_400 == 0 for r in reviews)
    days = defaultdict(list)
    for r in reviews:
        days[r["reviewerID"]].append(r["unixReviewTime"])
    assert sum(len(set(times)) < len(times) for times in days.values()) > 500
    assert any(r["asin"].startswith("00") for r in reviews)


def test_metadata_has_only_the_intended_gaps(reviews, meta):
    reviewed = {r["asin"] for r in reviews}
    assert len(meta) == len({record["asin"] for record in meta}) == 491
    assert len(reviewed - {record["asin"] for record in meta}) == 1
    assert {record["asin"] for record in meta} <= reviewed
    assert all(len(record["categories"][0]) == 3 for record in meta)
    missing = {key: sum(key not in record for record in meta) for key in ("title", "brand", "price")}
    assert missing["title"] == 1
    assert 0 < missing["brand"] < 20
    assert 0 < missing["price"] < 40
    titles = [record["title"] for record in meta if "title" in record]
    assert len(set(titles)) == len(titles)
    assert any("&amp;" in title for title in titles)
    assert any("&#39;" in title for title in titles)


def hit_rate(histories: list[np.ndarray], scores) -> float:
    """HR@10 on the last items, the items of the history masked; ties count against the target."""
    hits = 0
    for history in histories:
        score = scores(history[:-1]).astype(float)
        score[history[:-1]] = -np.inf
        hits += (score >= score[history[-1]]).sum() <= 10
    return hits / len(histories)


def test_order_and_meaning_predict_and_popularity_does_not(histories, meta):
    index = {asin: i for i, asin in enumerate(sorted({asin for history in histories for asin in history}))}
    paths = {record["asin"]: tuple(record["categories"][0]) for record in meta}
    numbers = {path: n for n, path in enumerate(sorted(set(paths.values())))}
    category = np.array([numbers.get(paths.get(asin, ()), len(numbers)) for asin in index])
    rows = [np.array([index[asin] for asin in history]) for history in histories]

    popularity = np.bincount(np.concatenate([row[:-2] for row in rows]), minlength=len(index))
    transitions = np.zeros((len(numbers) + 1, len(numbers) + 1))
    for row in rows:
        np.add.at(transitions, (category[row[:-3]], category[row[1:-2]]), 1)

    def after(item):
        return transitions[category[item]][category] * popularity

    floor = hit_rate(rows, lambda history: popularity)
    by_last = hit_rate(rows, lambda history: after(history[-1]))
    by_first = hit_rate(rows, lambda history: after(history[0]))
    assert 0 < floor < 0.08
    assert by_last > 0.4
    assert by_last > 3 * floor
    assert by_last > 3 * by_first
