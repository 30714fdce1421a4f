"""New items beside those of a trained run: their ids, what stays as it was, the export that holds both, and the errors
a user meets."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import tiny_shop
from tests.test_tokenizers import edit_facts
from tests.tiny_run import N_ITEMS, build_embedded_run, build_run
from tigerrec import TigerrecError
from tigerrec.embed.stage import load_embeddings
from tigerrec.serving import new_items
from tigerrec.serving.export import ITEM_OPTIONS, ItemOptions, export, item_options
from tigerrec.serving.new_items import NewItemsError, add_items, new_semantic_ids, read_new_items
from tigerrec.serving.recommender import Recommender, RecommendError
from tigerrec.storage.contracts import read_json
from tigerrec.storage.manifests import read_manifest
from tigerrec.storage.stages import StageFiles
from tigerrec.tokenizers.ids import load_semantic_ids

HISTORY = [f"{number:010d}" for number in (3, 11, 7, 20, 5)]
ROWS = [
    "item_id,title,text",
    "new-a,Like item 3,Item 3 of kind 3",
    "new-b,Another,Something else altogether",
    "new-c,,Item 3 of kind 3",
]
NEW = ["new-a", "new-b", "new-c"]


@pytest.fixture(
    scope="module",
    params=[
        ("suffix", "codes"),
        ("suffix", "items"),
        ("nearest_free", "codes"),
        ("keep", "items"),
        ("suffix", "decoder_only"),
    ],
    ids="-".join,
)
def run(request, tmp_path_factory):
    return build_embedded_run(tmp_path_factory.mktemp("runs"), *request.param)


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "new.csv"
    path.write_text("\n".join(ROWS) + "\n")
    return path


def same(one, other) -> bool:
    """The same items in the same order, with the same scores but for rounding."""
    scores = [[item.score for item in found] for found in (one, other)]
    return [item.item_id for item in one] == [item.item_id for item in other] and scores[0] == pytest.approx(
        scores[1], abs=1e-4
    )


def test_new_items_are_recommended_beside_the_old_ones(run, table, tmp_path):
    before = Recommender.from_pretrained(run["train"], device="cpu")
    folder = add_items(run["train"], table, tmp_path / "out")
    after = Recommender.from_pretrained(folder, device="cpu")
    everything = after.recommend(HISTORY, k=1000)
    assert len(everything) == N_ITEMS + 3 - len(HISTORY)
    assert same([item for item in everything if item.item_id not in NEW], before.recommend(HISTORY, k=1000))
    assert {item.item_id: item.title for item in everything if item.item_id in NEW} == {
        "new-a": "Like item 3",
        "new-b": "Another",
        "new-c": None,
    }
    assert len(after.recommend(["new-a", "new-b"], k=1000)) == N_ITEMS + 1
    assert after.recommend(["new-a"], k=3) != after.recommend(["new-b"], k=3)
    assert "3 items were added after training" in (folder / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.csv", "out"]


def test_lists_are_as_before_where_new_items_are_masked(run, table, tmp_path):
    """The model reads the last five items only, so that new items before them are masked without being read."""
    before = Recommender.from_pretrained(run["train"], device="cpu")
    after = Recommender.from_pretrained(add_items(run["train"], table, tmp_path / "out"), device="cpu")
    assert same(after.recommend([*NEW, *HISTORY]), before.recommend(HISTORY))


def test_adding_in_memory_equals_adding_on_disk(run, table, tmp_path):
    folder = add_items(run["train"], table, tmp_path / "out")
    codes = load_semantic_ids(folder).codes
    assert np.array_equal(codes[:N_ITEMS], load_semantic_ids(run["tokenize"]).codes)
    loaded = Recommender.from_pretrained(folder, device="cpu")
    added = Recommender.from_pretrained(run["train"], device="cpu").with_items(
        NEW, codes[N_ITEMS:], ["Like item 3", "Another", None]
    )
    for history in (HISTORY, [*HISTORY, "new-b"], ["new-c"]):
        assert added.recommend(history, k=20) == loaded.recommend(history, k=20)


def test_an_identical_new_item_gets_the_next_id_of_the_policy(run, table, tmp_path):
    ids = load_semantic_ids(add_items(run["train"], table, tmp_path / "out"))
    policy = read_json(run["tokenize"], "tokenizer.json")["collisions"]
    model, first, last = ids.codes[3], ids.codes[N_ITEMS], ids.codes[N_ITEMS + 2]
    if policy == "suffix":
        sharing = (ids.codes[:N_ITEMS, :-1] == model[:-1]).all(axis=1).sum()
        assert first.tolist() == [*model[:-1], sharing]
        assert last.tolist() == [*model[:-1], sharing + 1]
    elif policy == "keep":
        assert np.array_equal(first, model)
        assert np.array_equal(last, model)
    else:
        assert len(np.unique(ids.codes, axis=0)) == N_ITEMS + 3
        assert first[0] == last[0] == model[0]


def test_items_are_added_one_after_the_other_and_to_exports(run, table, tmp_path):
    one, rest = tmp_path / "one.csv", tmp_path / "rest.csv"
    one.write_text("\n".join(ROWS[:2]))
    rest.write_text("\n".join([ROWS[0], *ROWS[2:]]))
    step = add_items(export(run["train"], tmp_path / "export"), one, tmp_path / "step")
    twice, at_once = add_items(step, rest, step), add_items(run["train"], table, tmp_path / "once")
    assert np.array_equal(load_semantic_ids(twice).codes, load_semantic_ids(at_once).codes)
    found = [
        Recommender.from_pretrained(folder, device="cpu").recommend([*HISTORY, "new-c"], k=20)
        for folder in (twice, at_once)
    ]
    assert found[0] == found[1]


def test_ids_may_be_named_as_in_tables_of_training(run, table, tmp_path):
    renamed = tmp_path / "renamed.csv"
    renamed.write_text(table.read_text().replace("item_id", "item", 1))
    named = add_items(run["train"], table, tmp_path / "named")
    other = add_items(run["train"], renamed, tmp_path / "other")
    assert read_manifest(other).content == read_manifest(named).content


def test_a_full_group_of_items_takes_no_more(tmp_path):
    run = build_embedded_run(tmp_path, "suffix")
    vectors, size = load_embeddings(run["tokenize"].parent), load_semantic_ids(run["tokenize"]).layout.level_sizes[-1]
    with pytest.raises(
        TigerrecError,
        match=rf"is number {size + 1} with its codes, and the suffix level holds {size}; .*overwrite=tokenize",
    ):
        new_semantic_ids(run["tokenize"], np.tile(vectors[:1], (size, 1)))
    many = tmp_path / "many.csv"
    many.write_text("\n".join([ROWS[0], *(f"new-{number},,Item 3 of kind 3" for number in range(size))]))
    with pytest.raises(TigerrecError, match="the suffix level holds"):
        add_items(run["train"], many, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_first_items_to_share_an_id_are_new_ones(tmp_path, table):
    run = build_embedded_run(tmp_path, "keep", dim=64, codebook_size=40)
    codes = load_semantic_ids(run["tokenize"]).codes
    unique = [number for number in range(N_ITEMS) if (codes == codes[number]).all(axis=1).sum() == 1]
    assert len(unique) == N_ITEMS
    folder = add_items(run["train"], table, tmp_path / "out")
    loaded, added = (
        Recommender.from_pretrained(folder, device="cpu"),
        Recommender.from_pretrained(run["train"], device="cpu"),
    )
    assert (
        added.with_items(NEW, load_semantic_ids(folder).codes[N_ITEMS:]).recommend(HISTORY[1:], k=9)[0].score
        == loaded.recommend(HISTORY[1:], k=9)[0].score
    )
    alike = [item.item_id for item in loaded.recommend(HISTORY[1:], k=1000) if item.semantic_id == tuple(codes[3])]
    assert alike == [HISTORY[0], "new-a", "new-c"]


def test_vectors_can_stand_in_the_table(tmp_path, table):
    run = build_embedded_run(tmp_path)
    vectors = load_embeddings(run["tokenize"].parent)[[3, 8]]
    own = tmp_path / "own.parquet"
    pq.write_table(pa.table({"item_id": ["x", "y"], "vector": vectors.tolist(), "colour": ["red", None]}), own)
    codes = load_semantic_ids(add_items(run["train"], own, tmp_path / "out")).codes
    assert np.array_equal(codes[N_ITEMS:, :-1], codes[[3, 8], :-1])
    pq.write_table(pa.table({"item_id": ["x", "y"], "vector": vectors[:, :5].tolist()}), own)
    with pytest.raises(TigerrecError, match="have 5 dimensions"):
        add_items(run["train"], own, tmp_path / "other")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sku,title\nx,Tent\n", "has no column 'item_id', only sku, title; rename"),
        (
            "item_id,colour\nx,red\n",
            "has no column 'title', nor brand, categories, price, text, vector, only item_id, colour; rename",
        ),
        ("item_id,title\n", "holds no items; give a table"),
        ("item_id,title\nx,Tent\nx,Tent\n", "has more than one row for x; keep one row an item"),
        ("item_id,title\nx,Tent\n,Bag\n", r"Row 2 of .* cannot be read \(no item_id\)"),
        ("item_id,title\nx,Tent,9\n", r"Row 1 of .* cannot be read \(another number of columns"),
        (
            "item_id,vector\nx,1 2 3\n",
            "must hold lists of numbers of one length; give the vectors of the new items as a column 'vector' of a "
            "Parquet",
        ),
        (
            "item_id,title\n0000000003,Tent\n",
            r"1 items of .* are in the catalogue already \(0000000003\); leave them out",
        ),
    ],
)
def test_tables_that_cannot_be_added(content, message, tmp_path):
    run, path = build_embedded_run(tmp_path / "runs"), tmp_path / "new.csv"
    path.write_text(content)
    with pytest.raises(NewItemsError, match=message):
        add_items(run["train"], path, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.csv", "runs"]


def test_a_table_that_changes_while_it_is_read_is_refused(tmp_path, table, monkeypatch):
    run, read = build_embedded_run(tmp_path / "runs"), new_items.read_rows

    def read_then_append(path):
        columns, rows = read(path)
        rows = list(rows)
        path.write_text("\n".join([*ROWS, "new-d,Late,"]))
        return columns, iter(rows)

    monkeypatch.setattr(new_items, "read_rows", read_then_append)
    with pytest.raises(TigerrecError, match=r"new\.csv changed while it was read; run the same command again\.$"):
        add_items(run["train"], table, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_item_that_a_table_repeats_is_counted_once(tmp_path):
    path = tmp_path / "new.csv"
    ids = [f"new-{number:03d}" for number in range(500)]
    path.write_text(
        "\n".join(["item_id,title", *(f"{item_id},Tent" for item_id in [*ids, "once", *ids[:300], *ids[:100]])])
    )
    with pytest.raises(
        NewItemsError, match="has more than one row for new-000, new-001, new-002 and 297 more; keep one"
    ):
        read_new_items(path)


def test_what_is_not_used_of_a_table_is_said(tmp_path, caplog):
    path = tmp_path / "new.csv"
    path.write_text("item_id,title,colour,price\nx,Tent,red,cheap\n")
    with caplog.at_level(logging.WARNING):
        found = read_new_items(path)
    assert found.records == [
        {"item_id": "x", "title": "Tent", "brand": None, "categories": [], "price": None, "text": "Title: Tent."}
    ]
    assert "ignored the columns colour" in caplog.text
    assert "price is not a number: 1" in caplog.text
    with pytest.raises(NewItemsError, match=r"is no table; give the new items as .*--items-file"):
        read_new_items(tmp_path / "nowhere.csv")


def test_a_run_whose_embedder_cannot_be_had_asks_for_vectors(table, tmp_path):
    with pytest.raises(NewItemsError, match="does not say which embedder made its vectors; give the vectors"):
        add_items(build_run(tmp_path / "bare")["train"], table, tmp_path / "out")
    for number, (changes, message) in enumerate(
        [
            ({"sources": {"weights": "0" * 64}}, "are not those that made the vectors"),
            ({"config": {"family": "precomputed"}}, "were not made of texts here"),
            (
                {"config": {"family": "hashed", "dim": "${oc.env:HOME}"}},
                "holds no plain settings",
            ),
            ({"config": {"_target_": "os.system"}}, "family='os' is unknown"),
        ]
    ):
        folder = export(build_embedded_run(tmp_path / f"run-{number}")["train"], tmp_path / f"export-{number}")
        edit_facts(folder, "embedder.json", **changes)
        with pytest.raises(TigerrecError, match=message):
            add_items(folder, table, tmp_path / "out")


def test_new_items_of_a_recommender_are_checked(run):
    recommender = Recommender.from_pretrained(run["train"], device="cpu")
    codes = load_semantic_ids(run["tokenize"]).codes[:2]
    too_large = codes + np.int32(1000)
    for ids, rows, message in [
        (["x", HISTORY[0]], codes, "1 new items are in the catalogue already or come twice"),
        (["x", "x"], codes, "come twice"),
        ([], codes[:0], "got 0 ids"),
        (["x"], codes, "got 1 ids and codes of shape"),
        (["x", "y"], too_large, "need an id, a title and codes below"),
    ]:
        with pytest.raises(RecommendError, match=message):
            recommender.with_items(ids, rows)


@pytest.mark.parametrize("rows", [[0, 0], [0, 1]], ids=["of one another", "of a known item"])
def test_new_items_with_the_semantic_id_of_another_item_are_refused(run, rows):
    recommender = Recommender.from_pretrained(run["train"], device="cpu")
    codes = load_semantic_ids(run["tokenize"]).codes
    free = new_semantic_ids(run["tokenize"], load_embeddings(run["tokenize"].parent)[[3]])
    given = np.concatenate([free, codes[[5]]])[rows]
    if read_json(run["tokenize"], "tokenizer.json")["collisions"] == "keep":
        assert len(recommender.with_items(["x", "y"], given).recommend(["x"], k=1000)) == N_ITEMS + 1
        return
    named = r"2 new items .* \(x, y\)" if rows == [0, 0] else r"1 new items .* \(y\)"
    with pytest.raises(RecommendError, match=rf"^{named}; ") as caught:
        recommender.with_items(["x", "y"], given)
    assert len(str(caught.value).splitlines()) == 1


def test_the_command_prints_the_folder_or_one_sentence(tmp_path, table, command):
    run = build_embedded_run(tmp_path / "runs")
    asked = lambda items: command("add", run["train"], "--items-file", items, "--out", tmp_path / "out")
    failed = asked(tmp_path / "nowhere.csv")
    assert (failed.returncode, failed.stdout, len(failed.stderr.splitlines())) == (1, "", 1)
    done = asked(table)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out'}\n")
    assert "added 3 items to the 40 of the run" in done.stderr


ADDING = """
import sys
from pathlib import Path
from tigerrec import TigerrecError
from tigerrec.serving.new_items import add_items
try:
    add_items(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[1]))
    print("added")
except TigerrecError as error:
    print(type(error).__name__)
"""


def test_two_processes_that_add_to_one_export_leave_it_whole(tmp_path):
    run = build_embedded_run(tmp_path / "runs")
    exported = export(run["train"], tmp_path / "export")
    writers = []
    for number in range(4):
        table = tmp_path / f"new{number}.jsonl"
        table.write_text(json.dumps({"item_id": f"new{number}", "title": f"Item {number}"}) + "\n")
        command = [sys.executable, "-c", ADDING, str(exported), str(table)]
        writers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    ends = [writer.communicate(timeout=120)[0].strip() for writer in writers]
    assert set(ends) <= {"added", "BusyError"}
    known = Recommender.from_pretrained(exported, device="cpu").catalogue.numbers
    assert [f"new{number}" in known for number in range(4)] == [end == "added" for end in ends]
    assert "added" in ends
    assert not list(tmp_path.glob(".*"))


def test_new_items_are_read_as_those_of_the_data(tmp_path):
    orders = tiny_shop.write_orders(tmp_path)
    goods = tmp_path / "goods.csv"
    rows = [f'i{item:02d},Zelt {item},Outdoor|Zelte,"1.{item + 100},50",Nylon' for item in range(tiny_shop.N_ITEMS)]
    head = "item,title,categories,price,material"
    goods.write_text("\n".join([head, *rows]) + "\n")
    trained = tiny_shop.run(
        orders, tmp_path / "runs", f"dataset.items={goods}", "dataset.categories_separator='|'",
        "dataset.decimal_comma=true", "dataset.text_columns=[material]", until="train",
    )  # fmt: skip
    exported = export(trained, tmp_path / "model")
    new = tmp_path / "new.csv"
    new.write_text("\n".join([head, rows[3].replace("i03", "new")]) + "\n")
    for base in (trained, exported, add_items(exported, _other(tmp_path, head, rows[5]), tmp_path / "one")):
        items = {
            row["item_id"]: row
            for row in pq.read_table(add_items(base, new, tmp_path / "out") / "items.parquet").to_pylist()
        }
        assert {**items["new"], "item": 0, "item_id": ""} == {**items["i03"], "item": 0, "item_id": ""}
        assert items["new"]["price"] == 1103.5
        assert items["new"]["categories"] == ["Outdoor", "Zelte"]
    without = tmp_path / "without.csv"
    without.write_text("item,title\nnew,Zelt\n")
    with pytest.raises(NewItemsError, match=r"Row 1 .* \(no material, which the texts of the other items hold, and no"):
        add_items(exported, without, tmp_path / "never")
    without.write_text("item,text\nnew,Zelt aus Nylon\n")
    assert add_items(exported, without, tmp_path / "whole").is_dir()


def test_exports_that_do_not_say_how_items_were_read_take_new_ones_by_default(run, table, tmp_path, monkeypatch):
    written = StageFiles.json
    monkeypatch.setattr(
        StageFiles, "json", lambda self, name, *value: None if name == ITEM_OPTIONS else written(self, name, *value)
    )
    older = export(run["train"], tmp_path / "older")
    assert not (older / ITEM_OPTIONS).exists()
    assert item_options(older) == ItemOptions()
    assert {"new-a", "new-b"} < set(Recommender.from_pretrained(add_items(older, table, older), "cpu").item_ids)


def _other(folder: Path, head: str, row: str) -> Path:
    path = folder / "other.csv"
    path.write_text(f"{head}\n{row.replace('i05', 'other')}\n")
    return path
