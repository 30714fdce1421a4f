"""Data sets that the world knows by name, end to end on small files of their shapes."""

from __future__ import annotations

import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_shop
from tests.raw_data import lines, write_amazon_2014
from tigerrec import cli
from tigerrec.config import compose, config_folder
from tigerrec.data.base import DatasetError
from tigerrec.pipeline import plan, run
from tigerrec.storage.contracts import read_json, read_table

HISTORIES = [(user, item, 1_600_000_000 + 86_400 * (user + item)) for user in range(1, 8) for item in range(1, 7)]


def json_lines(records: list[dict[str, Any]], literal: bool = False) -> bytes:
    return "".join((repr(record) if literal else json.dumps(record)) + "\n" for record in records).encode()


def day(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


SHAPES: dict[str, tuple[dict[str, bytes], list[str], str]] = {
    "amazon2018": (
        {
            "All_Beauty_5.json.gz": gzip.compress(
                json_lines(
                    [
                        {"overall": 5.0, "reviewerID": f"A{u}", "asin": f"B{i}", "unixReviewTime": t, "reviewText": "x"}
                        for u, i, t in HISTORIES
                    ]
                )
            ),
            "meta_All_Beauty.json.gz": gzip.compress(
                json_lines(
                    [
                        {
                            "category": ["Beauty", "Hair"],
                            "title": f"T{i}",
                            "brand": "Foamy",
                            "price": "$1.50",
                            "asin": f"B{i}",
                        }
                        for i in range(1, 7)
                    ]
                )
            ),
        },
        [],
        "Title: T1; Brand: Foamy; Categories: Beauty > Hair; Price: 1.50.",
    ),
    "amazon2023": (
        {
            "Video_Games.csv.gz": gzip.compress(
                lines(
                    [(f"A{u}", f"B{i}", 5.0, t * 1000) for u, i, t in HISTORIES],
                    ["user_id", "parent_asin", "rating", "timestamp"],
                )
            ),
            "meta_Video_Games.jsonl.gz": gzip.compress(
                json_lines(
                    [
                        {
                            "main_category": "x",
                            "title": f"T{i}",
                            "store": "Foamy",
                            "categories": ["Games"],
                            "price": 1.5,
                            "parent_asin": f"B{i}",
                        }
                        for i in range(1, 7)
                    ]
                )
            ),
        },
        ["dataset.category=Video_Games"],
        "Title: T1; Brand: Foamy; Categories: Games; Price: 1.50.",
    ),
    "movielens_1m": (
        {
            "ratings.dat": lines([(u, i, 5, t) for u, i, t in HISTORIES], None, "::"),
            "movies.dat": "".join(f"{i}::Amélie {i} (2001)::Comedy|Romance\n" for i in range(1, 7)).encode("latin-1"),
        },
        [],
        "Title: Amélie 1 (2001); Categories: Comedy > Romance.",
    ),
    "movielens_20m": (
        {
            "ratings.csv": lines(
                [(u, i, 3.5, t) for u, i, t in HISTORIES], ["userId", "movieId", "rating", "timestamp"]
            ),
            "movies.csv": lines(
                [(i, f'"Film, The {i}"', "Comedy|Romance") for i in range(1, 7)], ["movieId", "title", "genres"]
            ),
        },
        [],
        "Title: Film, The 1; Categories: Comedy > Romance.",
    ),
    "yelp": (
        {
            "yelp_academic_dataset_review.json": json_lines(
                [
                    {
                        "review_id": "r",
                        "user_id": f"u{u}",
                        "business_id": f"b{i}",
                        "stars": 4.0,
                        "text": "é\n",
                        "date": day(t),
                    }
                    for u, i, t in HISTORIES
                ]
            ),
            "yelp_academic_dataset_business.json": json_lines(
                [
                    {"business_id": f"b{i}", "name": f"Bar {i}", "city": "Bonn", "categories": "Bars, Food"}
                    for i in range(1, 7)
                ]
            ),
        },
        [],
        "Title: Bar 1; Brand: Bonn; Categories: Bars > Food.",
    ),
    "steam": (
        {
            "steam_reviews.json.gz": gzip.compress(
                json_lines(
                    [
                        {
                            "username": f"u{u}",
                            "product_id": str(i),
                            "date": day(t)[:10],
                            "early_access": False,
                            "text": "it's ok",
                        }
                        for u, i, t in HISTORIES
                    ],
                    True,
                )
            ),
            "steam_games.json.gz": gzip.compress(
                json_lines(
                    [
                        {
                            "id": str(i),
                            "app_name": f"Game {i}",
                            "developer": "Foamy",
                            "genres": ["Indie"],
                            "price": 4.99,
                        }
                        for i in range(1, 7)
                    ],
                    True,
                )
            ),
        },
        [],
        "Title: Game 1; Brand: Foamy; Categories: Indie; Price: 4.99.",
    ),
    "recbole": (
        {
            "ml.inter": lines(
                [(u, i, 5, float(t)) for u, i, t in HISTORIES],
                ["user_id:token", "item_id:token", "rating:float", "timestamp:float"],
                "\t",
            ),
            "ml.item": lines(
                [(i, f"Film {i}", "Comedy Romance") for i in range(1, 7)],
                ["item_id:token", "movie_title:token_seq", "class:token_seq"],
                "\t",
            ),
        },
        [
            "dataset.interactions=ml.inter",
            "dataset.items=ml.item",
            "dataset.title_column=movie_title",
            "dataset.categories_column=class",
        ],
        "Title: Film 1; Categories: Comedy > Romance.",
    ),
    "sequences": (
        {
            "histories.txt": "".join(f"u{u} {' '.join(f'{i}' for i in range(1, 7))}\n" for u in range(1, 8)).encode(),
            "items.csv": lines([(i, f"Film {i}") for i in range(1, 7)], ["item", "title"]),
        },
        ["dataset.interactions=histories.txt", "dataset.items=items.csv"],
        "Title: Film 1.",
    ),
}


TINY = [option for option in tiny_shop.OPTIONS if not option.startswith("dataset")]


@pytest.mark.parametrize("name", SHAPES)
def test_a_data_set_by_name_runs_end_to_end_on_files_of_its_shape(name: str, tmp_path: Path) -> None:
    files, more, text = SHAPES[name]
    for path, content in files.items():
        (tmp_path / path).write_bytes(content)
    cfg = compose([f"dataset={name}", f"dataset.raw_dir={tmp_path}", f"paths.runs={tmp_path / 'runs'}", *TINY, *more])
    folder = plan(cfg)["prepare"].folder
    run(cfg, "evaluate")
    items, interactions = read_table(folder, "items.parquet"), read_table(folder, "interactions.parquet")
    assert items["text"].to_pylist()[0] == text
    assert (len(items), len(interactions), len(read_table(folder, "users.parquet"))) == (6, 42, 7)
    whole_days = name == "steam"
    times = {time - time % 86_400 if whole_days else time for _, _, time in HISTORIES}
    places = set(range(1, len(HISTORIES) + 1))
    assert set(interactions["timestamp"].to_pylist()) == (places if name == "sequences" else times)
    assert read_json(folder, "stats.json")["interactions_with_metadata"] == 1.0


AMAZON_2014 = {
    "sports": ("Sports_and_Outdoors", "35,598 users, 18,357 items, 296,337 interactions"),
    "toys": ("Toys_and_Games", "19,412 users, 11,924 items, 167,597 interactions"),
}


@pytest.mark.parametrize("name", AMAZON_2014)
def test_amazon_of_2014_is_prepared_by_the_command(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    category, known = AMAZON_2014[name]
    options = [f"dataset={name}", f"dataset.raw_dir={tmp_path}", f"paths.runs={tmp_path / 'runs'}"]
    rows = [(f"A{user}", f"B{item}", 86_400 * (15_000 + item // 2)) for user in range(6) for item in range(6)]
    too_few = [("A9", f"B{item}", 0) for item in range(4)] + [("A0", "B9", 0)]
    picture = {"imUrl": "http://ecx.images-amazon.com/images/I/5.jpg"}
    path = [category.replace("_and_", " &amp; "), "Balls"]
    ball = {
        "asin": "B0",
        "description": 'It\'s "round" &amp; red.',
        "title": "Kids&#39; Ball &amp; Bat",
        "price": 9.5,
        **picture,
        "related": {"also_bought": ["B1", "B3"], "buy_after_viewing": ["B4"]},
        "salesRank": {"Toys & Games": 52},
        "brand": "Wham-O",
        "categories": [path, path, ["Gifts"]],
    }
    untitled = {"asin": "B1", **picture, "categories": [path]}
    more = [{"asin": f"B{item}", "title": f"Game {item}", "brand": "", **picture} for item in (3, 4, 4, 5, 8)]
    write_amazon_2014(plan(compose(options))["prepare"].config, rows + too_few, [ball, untitled, *more])
    assert {file.name for file in tmp_path.iterdir()} == {f"reviews_{category}_5.json.gz", f"meta_{category}.json.gz"}
    cli.main(["prepare", *options])
    assert f"expected {known}, found 6, 6, 36; do not compare" in capsys.readouterr().err
    out = tmp_path / "runs" / name
    assert read_table(out, "users.parquet")["user_id"].to_pylist() == [f"A{user}" for user in range(6)]
    decoded = " > ".join(path).replace("&amp;", "&")
    assert read_table(out, "items.parquet")["text"].to_pylist() == [
        f"Title: Kids' Ball & Bat; Brand: Wham-O; Categories: {decoded}; Price: 9.50.",
        f"Categories: {decoded}.",
        "Item B2.",
        *(f"Title: Game {item}." for item in (3, 4, 5)),
    ]
    assert read_table(out, "interactions.parquet")["item"].to_pylist() == [*range(6)] * 6
    stats = read_json(out, "stats.json")
    assert (stats["items_without_metadata"], stats["noted"], stats["dropped"]) == (1, {"repeated metadata": 1}, {})


def test_every_data_set_but_a_users_own_has_a_shape() -> None:
    names = {path.stem for path in (config_folder() / "dataset").glob("*.yaml")}
    assert names == {*SHAPES, *AMAZON_2014, "tables", "sample", "beauty", "beauty_1000"}


def test_missing_files_of_a_named_data_set_are_told_of(tmp_path: Path) -> None:
    cfg = compose(["dataset=movielens_1m", f"dataset.raw_dir={tmp_path}", f"paths.runs={tmp_path / 'runs'}"])
    with pytest.raises(DatasetError, match=r"Missing in .*: ratings\.dat.*dataset\.raw_dir=<folder>"):
        run(cfg, "prepare")
