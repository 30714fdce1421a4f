"""Requests as people and scripts really make them, at a recommender and at the command line."""

import dataclasses
import json
import logging
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tests.tiny_run import N_ITEMS, build_run
from tigerrec import cli
from tigerrec.serving.recommender import Recommender, RecommendError

HISTORY = ["0000000003", "0000000011", "0000000007"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def recommender(run):
    return Recommender.from_pretrained(run["train"], device="cpu")


def command(run, *arguments, stdout=subprocess.PIPE):
    """`tigerrec recommend` in a process of its own."""
    called = [sys.executable, "-m", "tigerrec", "recommend", str(run["train"]), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(called, env=environment, stdout=stdout, stderr=subprocess.PIPE, timeout=120)


@pytest.mark.parametrize(
    "history",
    [
        np.array(HISTORY),
        pd.Series(HISTORY, index=[7, 8, 9]),
        (item_id for item_id in HISTORY),
        [f" {item_id}\t" for item_id in HISTORY],
        [item_id.encode() for item_id in HISTORY],
    ],
    ids=["array", "series", "generator", "outer spaces", "bytes"],
)
def test_any_sequence_of_ids_is_a_history(recommender, history):
    assert recommender.recommend(history) == recommender.recommend(HISTORY)


@pytest.mark.parametrize("kind", [int, float, np.int64, np.float32])
def test_whole_numbers_are_ids_of_digits(recommender, kind):
    names = [str(number) for number in range(N_ITEMS)]
    numbered = dataclasses.replace(recommender, catalogue=dataclasses.replace(recommender.catalogue, item_ids=names))
    assert numbered.recommend([kind(3), kind(11)]) == numbered.recommend(["3", "11"])


@pytest.mark.parametrize("row", [None, float("nan"), 5, [None], [["nested"]], [{"id": "x"}], [b"\xff"], [""]])
def test_a_row_that_is_no_history_spoils_no_other_and_is_named(recommender, caplog, row):
    with caplog.at_level(logging.WARNING, "tigerrec"):
        lists = recommender.recommend_batch([HISTORY, row, HISTORY])
    first, last = recommender.recommend_batch([HISTORY, HISTORY])
    assert lists == [first, recommender.recommend([]), last]
    assert "1 of 3 histories have no item of the catalogue and get what was bought most: rows 1" in caplog.text


def test_one_text_is_no_batch(recommender):
    with pytest.raises(RecommendError, match="give a list of lists of item ids"):
        recommender.recommend_batch(HISTORY[0])


def test_a_history_that_holds_the_catalogue_leaves_what_it_lacks(recommender):
    assert recommender.recommend(recommender.item_ids) == []
    assert [item.item_id for item in recommender.recommend(recommender.item_ids[:-1])] == recommender.item_ids[-1:]
    assert len(recommender.recommend(HISTORY * 10_000, k=5)) == 5


def test_k_beyond_every_catalogue_is_the_catalogue(recommender):
    assert recommender.recommend(HISTORY, k=10**30) == recommender.recommend(HISTORY, k=N_ITEMS)


def test_titles_take_one_line_of_a_terminal_whatever_they_hold(recommender):
    titles = ["Nougat " * 20_000, "red \x1b[31m and\x07 bell", "two\nlines\r", *recommender.catalogue.titles[3:]]
    catalogue = dataclasses.replace(recommender.catalogue, titles=titles)
    text = dataclasses.replace(recommender, catalogue=catalogue).report(HISTORY, k=N_ITEMS)
    assert len(text.split("\n")) == 2 + N_ITEMS
    assert max(map(len, text.split("\n"))) < 180
    assert all(char.isprintable() or char == "\n" for char in text)


def test_unknown_ids_of_any_length_are_told_of_briefly(recommender, caplog):
    with caplog.at_level(logging.WARNING, "tigerrec"):
        recommender.recommend(["x" * 150_000, *HISTORY])
        recommender.recommend(["x" * 150_000] * 1_000)
    assert len(caplog.text) < 4_000


def test_a_terminal_that_lacks_the_letters_of_a_title_shows_others(run):
    code = (
        "import sys; from tigerrec.cli import main; import tigerrec.cli as cli\n"
        "cli.result_of = lambda name, options: 'Zelt 帐篷 für Café'\n"
        f"main(['recommend', {str(run['train'])!r}, '--item', 'x'])"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60)
    assert (shown.returncode, shown.stdout) == (0, b"Zelt ?? f?r Caf?\n")


def test_ids_with_commas_and_spaces_come_by_an_option_of_their_own(recommender, run, monkeypatch, capsys):
    given = []
    monkeypatch.setattr(Recommender, "from_pretrained", staticmethod(lambda folder, scores: recommender))
    monkeypatch.setattr(Recommender, "report", lambda self, history, k, *rules: given.append((history, k)) or "")
    cli.main(["recommend", str(run["train"]), "--items", "a, b ,,c", "--k", "3"])
    cli.main(["recommend", str(run["train"]), "--item", "1,5", "--item", " a ", "--item=-x"])
    assert given == [(["a", "b", "c"], 3), (["1,5", " a ", "-x"], 10)]
    assert capsys.readouterr().out == "\n\n"


def test_a_reader_that_goes_away_and_a_full_disk_leave_no_stack_trace(run):
    read, write = os.pipe()
    os.close(read)
    gone = command(run, "--item", HISTORY[0], stdout=write)
    os.close(write)
    with open("/dev/full", "wb") as full:
        refused = command(run, "--item", HISTORY[0], stdout=full)
    for done in (gone, refused):
        assert "Traceback" not in done.stderr.decode()
        assert done.returncode != 0


def test_scores_are_numbers_that_json_takes(recommender):
    lines = [json.dumps(dataclasses.asdict(item)) for item in recommender.recommend(HISTORY)]
    assert [json.loads(line)["semantic_id"] for line in lines] == [
        list(item.semantic_id) for item in recommender.recommend(HISTORY)
    ]
