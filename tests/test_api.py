"""From tables to recommendations in Python: what is picked, that it is what the command makes, and that it goes on."""

from __future__ import annotations

import ast
import logging
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import tigerrec
from tests import tiny_shop
from tigerrec import TigerrecError, api, cli
from tigerrec.api import _picks
from tigerrec.config import compose
from tigerrec.pipeline import plan
from tigerrec.serving.recommender import Recommender
from tigerrec.storage.manifests import read_manifest

TINY = [
    option
    for option in tiny_shop.OPTIONS
    if not option.startswith(("dataset", "train.precision")) and option != "embedder=hashed"
]
QUICK = [*TINY, "generator=t5", "embedder=hashed", "train.epochs=1"]


@pytest.fixture
def orders(tmp_path) -> Path:
    return tiny_shop.write_orders(tmp_path)


def test_five_lines(orders, tmp_path):
    items = tmp_path / "products.csv"
    items.write_text("item,title\n" + "".join(f"i{number:02d},Tent {number}\n" for number in range(30)))
    model = tigerrec.fit(str(orders), items=str(items), folder=tmp_path / "runs", overrides=QUICK)
    found = model.recommend(["i03", "i07"], k=5)
    assert len({item.item_id for item in found} - {"i03", "i07"}) == 5
    assert all(item.title.startswith("Tent") for item in found)
    again = tigerrec.load(model.save(tmp_path / "my_model"))
    assert again.recommend(["i03", "i07"], k=5) == found
    assert tigerrec.load(again.save(tmp_path / "copy")).recommend(["i03", "i07"], k=5) == found
    assert model.recommend_batch([["i03", "i07"]], 5) == [found]
    rules = tigerrec.Rules.of(["i01", "i02"])
    assert sorted(item.item_id for item in model.recommend(["i03"], rules=rules)) == ["i01", "i02"]


def test_a_tilde_is_the_users_folder_for_python_and_for_commands(orders, tmp_path, monkeypatch, capsys):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    model = tigerrec.fit(orders, folder="~/runs", overrides=QUICK)
    assert model.folder.is_relative_to(home / "runs")
    assert model.save("~/saved") == (home / "saved").resolve()
    found = tigerrec.load("~/saved").recommend(["i03"], k=2)
    assert found == model.recommend(["i03"], k=2)
    (home / "users.txt").write_text("u1\n")
    cli.main(["recommend", str(model.folder), "--users=~/users.txt", "--out=~/recs.csv", "--k=2"])
    assert len((home / "recs.csv").read_text().splitlines()) == 3
    cli.main(["recommend", "~/saved", "--items=i03", "--k=2"])
    assert found[0].item_id in capsys.readouterr().out
    overrides = ["dataset=tables", f"dataset.interactions={orders}", "dataset.name=orders", *QUICK]
    cli.main(["table", *overrides[:3], "paths.runs='~/runs'", "paths.results='~/results'", "table=small", "seeds=1",
              "tokenizers=[]", "baselines=[popularity]", "reference=null"])  # fmt: skip
    assert (home / "results" / "small").is_dir()
    cli.main(["prepare", *overrides, "paths.runs='~/more'"])
    assert (home / "more" / "orders" / "manifest.json").is_file()
    assert not list(here.iterdir())


def test_it_is_the_run_that_the_command_makes(orders, tmp_path):
    model = tigerrec.fit(orders, folder=tmp_path / "python", name="shop", overrides=QUICK)
    overrides = ["dataset=tables", f"dataset.interactions={orders}", "dataset.name=shop", *QUICK]
    steps = plan(compose([*overrides, f"paths.runs={tmp_path / 'python'}"]))
    assert steps["prepare"].is_current()
    assert model.folder.parent.parent.parent == steps["prepare"].folder
    assert isinstance(model.recommender, Recommender)


def test_the_same_call_trains_nothing_again(orders, tmp_path, monkeypatch, caplog):
    first = tigerrec.fit(orders, folder=tmp_path / "runs", overrides=QUICK)
    monkeypatch.setattr("tigerrec.training.stage.train", lambda *arguments, **options: pytest.fail("trained again"))
    with caplog.at_level(logging.INFO, "tigerrec"):
        again = tigerrec.fit(orders, folder=tmp_path / "runs", overrides=QUICK)
    assert again.folder == first.folder
    assert "train: up to date" in caplog.text
    assert "picked for 30 items" in caplog.text


def test_grown_tables_are_trained_on_where_it_is_said(orders, tmp_path):
    tigerrec.fit(orders, folder=tmp_path / "runs", overrides=QUICK)
    orders.write_text(orders.read_text() + "u1,brand-new,99\n")
    with pytest.raises(TigerrecError, match=r"overrides=\['overwrite=prepare'\]"):
        tigerrec.fit(orders, folder=tmp_path / "runs", overrides=QUICK)
    grown = tigerrec.fit(orders, folder=tmp_path / "runs", overrides=[*QUICK, "overwrite=prepare"])
    assert "brand-new" in grown.recommender.item_ids


def test_a_frame_is_as_good_as_a_file(orders, tmp_path):
    frame = pd.read_csv(orders)
    of_frame = tigerrec.fit(frame, folder=tmp_path / "a", name="shop", overrides=QUICK)
    tigerrec.fit(orders, folder=tmp_path / "b", name="shop", overrides=QUICK)
    for stage in (of_frame.folder, of_frame.folder.parent, of_frame.folder.parent.parent.parent):
        other = tmp_path / "b" / stage.relative_to(tmp_path / "a")
        assert read_manifest(stage).content == read_manifest(other).content
    assert tigerrec.fit(frame.copy(), folder=tmp_path / "a", name="shop", overrides=QUICK).folder == of_frame.folder
    assert len(list((tmp_path / "a" / "tables").iterdir())) == 1
    assert len(pd.read_csv(orders)) == len(frame)


def test_frames_with_numbers_lists_and_dates(tmp_path):
    rows = [
        (user, item, f"2024-01-{1 + place:02d}")
        for user in range(12)
        for place, item in enumerate(range(user, user + 6))
    ]
    frame = pd.DataFrame(rows, columns=["user", "item", "time"]).astype({"time": "datetime64[ns]"})
    items = pd.DataFrame({"item": range(20), "title": [f"T{n}" for n in range(20)], "categories": [["A", "B"]] * 20})
    model = tigerrec.fit(frame, items, folder=tmp_path, name="shop", overrides=QUICK)
    assert model.recommend([3, 4], k=2)[0].title.startswith("T")
    assert len(model.recommend([3], k=3, rules=tigerrec.Rules.of(category="B"))) == 3


@pytest.mark.parametrize("name", ["my orders.csv", "it's.csv", "a$b,{c}=[d].csv", "öffnung.csv"])
def test_paths_and_separators_need_no_quotes(orders, tmp_path, name):
    path = tmp_path / name
    path.write_text(orders.read_text().replace(",", ";").replace("user;", "Kunde Nr;"))
    options = {"separator": ";", "user_column": "Kunde Nr"}
    assert len(tigerrec.fit(path, folder=tmp_path / "runs", overrides=QUICK, **options).recommend(["i03"], k=3)) == 3


def test_what_is_wrong_is_one_sentence(orders, tmp_path):
    runs = tmp_path / "runs"
    with pytest.raises(TigerrecError, match=r"dataset\.user_colum is not an option; allowed: "):
        tigerrec.fit(orders, folder=runs, user_colum="x")
    with pytest.raises(TigerrecError, match="is no file"):
        tigerrec.fit("nowhere.csv", folder=runs)
    with pytest.raises(TigerrecError, match="epoch is not an option"):
        tigerrec.fit(orders, folder=runs, overrides=["train.epoch=3"])
    with pytest.raises(TigerrecError, match="A frame cannot be written as Parquet"):
        tigerrec.fit(pd.DataFrame({"user": ["a", 1], "item": ["b", {}], "time": [1, 2]}), folder=runs)
    with pytest.raises(TigerrecError, match=r"one text; give a list of them, as \['train.epochs=3'\]"):
        tigerrec.fit(orders, folder=runs, overrides="train.epochs=3")
    for none in ([("u", "i", 1)], None):
        with pytest.raises(TigerrecError, match="is no table; give the path of a file, or a frame"):
            tigerrec.fit(none, folder=runs)
    frame = pd.read_csv(orders)
    with pytest.raises(TigerrecError, match="several columns 'user'; give each a name of its own"):
        tigerrec.fit(pd.concat([frame, frame[["user"]]], axis=1), folder=runs)
    with pytest.raises(TigerrecError, match="None names no model; give the folder"):
        tigerrec.load(None)
    with pytest.raises(TigerrecError, match="does not exist"):
        tigerrec.load(tmp_path / "nowhere")
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        _ = tigerrec.fitt


def test_what_a_message_tells_to_do_works_in_python(orders, tmp_path):
    frame = pd.read_csv(orders).rename(columns={"user": "Kunde", "time": "Datum und Zeit"})
    with pytest.raises(TigerrecError) as caught:
        tigerrec.fit(frame, folder=tmp_path, name="shop", overrides=QUICK)
    told = re.search(r"Options are given to fit as `overrides=(\[.*\])`\.$", str(caught.value)).group(1)
    names = iter(["Kunde", "Datum und Zeit"])
    overrides = [option.replace("<column>", next(names)) for option in ast.literal_eval(told)]
    assert tigerrec.fit(frame, folder=tmp_path, name="shop", overrides=[*QUICK, *overrides]).recommend(["i03"], k=3)


def test_everything_is_trained_on_where_asked(orders, tmp_path):
    model = tigerrec.fit(orders, folder=tmp_path, everything=True, overrides=[*QUICK, "train.validated=false"])
    assert model.folder.name == "t5-packed-everything-seed0"


@pytest.mark.parametrize(
    ("n_items", "codebook"), [(2, 8), (12, 8), (40, 16), (500, 64), (3_000, 128), (12_000, 256), (1_000_000, 256)]
)
def test_sizes_follow_the_counts(n_items, codebook, monkeypatch):
    monkeypatch.setattr(api, "find_local", lambda model: Path("here"))
    picks = _picks(n_items, 10 * n_items, True)
    assert f"tokenizer.codebook_size={codebook}" in picks
    assert ("generator.d_model=64" in picks) == (n_items < 2_000)
    assert "embedder=minilm" in picks
    assert "embedder=collaborative" in _picks(n_items, 10 * n_items, False)
    plan(compose(["dataset=tables", "dataset.name=x", *picks]))


def test_importing_the_package_is_cheap():
    heavy = "{'torch', 'numpy', 'pandas', 'hydra'}"
    code = f"import sys, tigerrec; print(sorted(set(sys.modules) & {heavy}), 'fit' in dir(tigerrec))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] True\n"
