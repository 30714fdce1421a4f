"""Pages about runs and tables: whole and self-contained, true to the files they are made of, and safe with any
title."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests import tiny_run
from tests.tiny_run import build_embedded_run
from tigerrec import TigerrecError
from tigerrec.analysis.charts import Interval, frequency_chart, interval_chart, line_chart
from tigerrec.analysis.report import report_run, report_table
from tigerrec.analysis.report.table_page import Results, metrics
from tigerrec.analysis.report.users_part import chosen_users
from tigerrec.analysis.table.plot import draw
from tigerrec.data.histories import load_histories
from tigerrec.evaluation.stage import EvaluateConfig, evaluate
from tigerrec.models.t5 import T5
from tigerrec.storage.contracts import read_json, read_table
from tigerrec.storage.stages import open_stage
from tigerrec.tokenizers.ids import load_semantic_ids
from tigerrec.training.options import TrainConfig, Training
from tigerrec.training.stage import train

ROOT = Path(__file__).parent.parent
HOSTILE = "</td><script>alert('x')</script> & \"more\""
VOID = "meta"


class Page(HTMLParser):
    """A page read back: its tables by section, its text, and whether every tag is closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.section = ""
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.summaries: list[str] = []
        self.text = ""
        self.feed(str(source))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs
        if tag != VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"]
        if tag == "table":
            self.tables.setdefault(self.section, []).append([])
        if tag == "tr":
            self.tables[self.section][-1].append([])
        if tag in ("td", "th"):
            self.tables[self.section][-1][-1].append("")
        if tag == "small" and "td" in self.open:
            self.tables[self.section][-1][-1][-1] += " "
        if tag == "summary":
            self.summaries.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[self.section][-1][-1][-1] += data
        if "summary" in self.open:
            self.summaries[-1] += data


def build_evaluated(root: Path, **options) -> dict[str, Path]:
    """A tiny run, trained for two epochs and evaluated, with a title that is markup."""
    with pytest.MonkeyPatch.context() as patch:
        items = tiny_run._items()
        titles = [HOSTILE if number % 5 == 0 else title for number, title in enumerate(items["title"].to_pylist())]
        categories = [["Shop", f"Kind <{number % 3}>", "Fine"][: number % 4] or None for number in range(len(items))]
        hostile = items.set_column(items.column_names.index("title"), "title", pa.array(titles)).append_column(
            "categories", pa.array(categories)
        )
        patch.setattr(tiny_run, "_items", lambda: hostile)
        folders = build_embedded_run(root, **options)
    shutil.rmtree(folders["train"])
    model = T5(
        num_layers=1, d_model=16, num_heads=2, d_kv=8, d_ff=16, max_items=5, history=options.get("history", "codes")
    )
    training = Training(epochs=2, batch_targets=24, validation_users=20, validate_every=1, stride=3, precision="fp32")
    train(folders["prepare"], folders["tokenize"], TrainConfig(model, training), folders["train"])
    config = EvaluateConfig(model="tiny", precision="fp32", device="cpu")
    folders["evaluate"] = evaluate(
        folders["prepare"], folders["tokenize"], folders["train"], config, folders["train"] / "eval-full"
    )
    return folders


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> dict[str, Path]:
    return build_evaluated(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page(report_run(run["evaluate"]).read_text(encoding="utf-8"))


def check_self_contained(source: str) -> Page:
    """A page whose tags are balanced and that neither runs nor loads anything."""
    page = Page(source)
    assert not page.names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name != "src"
        assert not name.endswith("href") or value.startswith("#")
    assert not re.search(r"@import|url\((?!#)", source)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert len(source.encode()) < 1_500_000
    return page


@pytest.mark.parametrize(
    "options",
    [
        {"collisions": "suffix"},
        {"collisions": "keep", "history": "items"},
        {"levels": 1},
        {"collisions": "nearest_free", "codebook_size": 8},
    ],
)
def test_a_page_is_whole_self_contained_and_safe_with_any_title(options, tmp_path):
    folders = build_evaluated(tmp_path, **options)
    source = report_run(folders["evaluate"], tmp_path / "page.html").read_text(encoding="utf-8")
    page = check_self_contained(source)
    assert HOSTILE in page.text
    assert "Kind <0>" in page.text
    assert {value for name, value in page.attributes if name == "href"} == {f"#{name}" for name in page.tables} | {
        "#tree"
    }


def test_the_metrics_are_those_of_the_file(run, page):
    rows = {(row["model"], row["hit"], row["seen"]): row for row in read_json(run["evaluate"], "metrics.json")}
    shown, hit, seen = {}, "", ""
    for cells in page.tables["metrics"][0][1:]:
        if len(cells) == 1:
            hit, seen = ("item" if "on the item" in cells[0] else "sid"), ("masked" if "masked" in cells[0] else "kept")
            assert ("not item hits" in cells[0]) == (hit == "sid")
        else:
            shown[cells[0], hit, seen] = cells[1:]
    assert next(iter(shown)) == ("tiny", "item", "masked")
    assert shown.keys() == rows.keys()
    for key, cells in shown.items():
        names = ("hr@5", "ndcg@5", "hr@10", "ndcg@10")
        assert cells == [
            f"{rows[key][name]:.4f} {rows[key][f'{name}_low']:.4f}–{rows[key][f'{name}_high']:.4f}" for name in names
        ]


def test_codes_agree_with_the_diagnostics_of_the_stage(run, page):
    measured = read_json(run["tokenize"], "diagnostics.json")
    levels, groups = page.tables["codes"]
    assert [[int(cell) for cell in cells[:4]] for cells in levels[1:]] == [
        [number, level["codes"], level["used_codes"], level["dead_codes"]]
        for number, level in enumerate(measured["levels"], start=1)
    ]
    assert [cells[4] for cells in levels[1:]] == [f"{level['perplexity']:.1f}" for level in measured["levels"]]
    assert {cells[0]: int(cells[1]) for cells in groups[1:]} == measured["group_sizes"]
    assert f"{100 * measured['collision_rate']:.1f}\u00a0%" in page.text


def test_the_tree_counts_items_and_says_what_it_leaves_out(run, page):
    first = load_semantic_ids(run["tokenize"]).codes[:, 0]
    counts = np.bincount(first)
    nodes = [summary for summary in page.summaries if re.match(r"\d", summary) and "-" not in summary.split(" item")[0]]
    largest = sorted((code for code in range(len(counts)) if counts[code]), key=lambda code: (-counts[code], code))[:12]
    assert [node.split(" item")[0] for node in nodes] == [f"{code}{counts[code]}" for code in largest]
    assert f"the {min(12, len(largest))} largest of {(counts > 0).sum()} first codes" in page.text


def test_users_targets_ranks_and_lists_are_those_of_the_files(run, page):
    histories, items = (
        load_histories(run["prepare"]),
        read_table(run["prepare"], "items.parquet")["item_id"].to_pylist(),
    )
    ranks = (
        read_table(run["evaluate"], "ranks.parquet")
        .to_pandas()
        .query("model == 'tiny' and hit == 'item' and seen == 'masked'")
        .set_index("user")
    )
    lists = read_table(run["evaluate"], "recommendations.parquet").to_pandas().query("model == 'tiny'")
    shown = [
        re.fullmatch(r"User ([\d,]+)target\s(?:at rank (\d+)|not in the list)", summary) for summary in page.summaries
    ]
    users = [(int(match[1]), int(match[2] or 0)) for match in shown if match]
    assert len(users) == 6
    assert sum(1 <= rank <= 10 for _, rank in users) == 3
    tables = iter(page.tables["users"])
    for user, rank in users:
        known, target = histories.split(user, "test")
        assert (ranks.loc[user, "target"], ranks.loc[user, "rank"]) == (target, rank)
        assert [cells[1] for cells in next(tables)[1:]] == [items[item] for item in known[-5:]]
        for seen in ("masked", "kept"):
            listed = lists[(lists["seen"] == seen) & (lists["user"] == user) & (lists["rank"] <= 10)].sort_values(
                "rank"
            )
            cells = next(tables)[1:]
            assert [row[1] for row in cells] == [items[item] for item in listed["item"]]
            assert [row[3] for row in cells] == [f"{score:.2f}" for score in listed["score"]]
            assert [row[4].endswith(" target") for row in cells] == (listed["item"] == target).tolist()
            assert [row[4].endswith(" seen") for row in cells] == listed["item"].isin(known).tolist()


def test_what_is_recommended_overall_follows_from_the_lists(run, page):
    lists = (
        read_table(run["evaluate"], "recommendations.parquet")
        .to_pandas()
        .query("model == 'tiny' and seen == 'masked' and rank <= 10")
    )
    counts = lists["item"].value_counts()
    row = page.tables["recommended"][0][1]
    assert row[:2] == ["tiny", str(len(counts))]
    assert row[3] == f"{100 * counts.head(10).sum() / counts.sum():.1f}\u00a0%"
    assert [int(cells[0]) for cells in page.tables["recommended"][1][1:]] == counts.head(10).tolist()


def test_users_are_chosen_by_the_order_alone():
    ranks = np.zeros(500, np.int16)
    ranks[::7], ranks[3::11] = 4, 15
    hits, misses = chosen_users(ranks)
    assert (len(hits), len(misses)) == (3, 3)
    assert all(ranks[user] == 4 for user in hits)
    assert all(ranks[user] != 4 for user in misses)
    assert chosen_users(ranks) == (hits, misses)
    assert [len(users) for users in chosen_users(np.ones(50, np.int16))] == [6, 0]
    assert [len(users) for users in chosen_users(np.zeros(50, np.int16))] == [0, 6]
    assert [len(users) for users in chosen_users(np.array([1, 0, 0]))] == [1, 2]


def test_a_train_folder_will_do_and_the_stage_stays_valid(run):
    path = report_run(run["train"])
    assert path == run["train"] / "report.html"
    assert path.read_text(encoding="utf-8") == report_run(run["evaluate"]).read_text(encoding="utf-8")
    open_stage(run["train"], "train")
    open_stage(run["evaluate"], "evaluate")


def test_folders_that_are_no_evaluated_run_are_refused(run, tmp_path):
    with pytest.raises(
        TigerrecError, match="does not exist; give the folder that `tigerrec evaluate` or `tigerrec train` printed"
    ):
        report_run(tmp_path / "nothing")
    with pytest.raises(TigerrecError, match="holds no finished stage"):
        report_run(tmp_path)
    with pytest.raises(TigerrecError, match="holds the stage 'tokenize'"):
        report_run(run["tokenize"])
    with pytest.raises(TigerrecError, match=r"must end in \.html"):
        report_run(run["evaluate"], tmp_path / "page.txt")
    copy = tmp_path / "copy"
    shutil.copytree(run["prepare"], copy)
    trained = copy / run["train"].relative_to(run["prepare"])
    shutil.copytree(trained / "eval-full", trained / "eval-again")
    with pytest.raises(
        TigerrecError,
        match=r"has 2 evaluations \(eval-again, eval-full\); give one of them, for instance `--run .*eval-again`",
    ):
        report_run(trained)
    assert report_run(trained / "eval-again").exists()
    for name in ("eval-again", "eval-full"):
        shutil.rmtree(trained / name)
    with pytest.raises(TigerrecError, match="has not been evaluated; run `tigerrec evaluate`"):
        report_run(trained)


def build_table(folder: Path, **about) -> Path:
    """A made-up table of results: two generators, one of them on two kinds of vectors, and two baselines."""
    folder.mkdir(exist_ok=True)
    rows = []
    for name, kind, level in (
        ("rkmeans", "generator", 0.03),
        ("rkmeans@fusion", "generator", 0.04),
        ("<b>own", "generator", 0.02),
        ("sasrec_ce", "baseline", 0.05),
    ):
        for hit in ("item", "sid"):
            for seen in ("masked", "kept"):
                row = {
                    "row": name,
                    "kind": kind,
                    "model": "t5" if kind == "generator" else name,
                    "hit": hit,
                    "seen": seen,
                    "runs": 3,
                }
                row |= {
                    "embedder": "minilm" if kind == "generator" else None,
                    "tokenizer": name if kind == "generator" else None,
                }
                for metric in ("hr@5", "hr@10", "ndcg@5", "ndcg@10"):
                    value = level * (1.5 if hit == "sid" else 1) * (1 if seen == "masked" else 0.5)
                    row |= {
                        metric: value,
                        f"{metric}_sd": 0.001,
                        f"{metric}_low": value - 0.002,
                        f"{metric}_high": value + 0.002,
                    }
                    row[f"{metric}_runs"] = [value - 0.001, value, value + 0.001]
                row |= {"collision_rate": 0.25 if kind == "generator" else None}
                rows.append(
                    row
                    | {
                        "minutes_tokenize": 0.5 if kind == "generator" else None,
                        "minutes_tune": 4.0,
                        "minutes_train": 10.0,
                        "minutes_evaluate": 2.0,
                    }
                )
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / "table.parquet")
    (folder / "table.json").write_text(json.dumps({"name": "tokenizers"} | about))
    return folder


ABOUT = {
    "dataset": {"name": "toy", "users": 50, "items": 40, "interactions": 300},
    "commands": ["make table TABLE=<x>"],
    "commits": ["abc1234"],
    "machine": "2 cores",
    "variance": [
        {
            "metric": "ndcg@10",
            "seen": "masked",
            "row": "all, pooled",
            "component": "generator seed",
            "sd": 0.0006,
            "degrees_of_freedom": 8,
        }
    ],
    "comparisons": [
        {
            "row": "rkmeans@fusion",
            "reference": "rkmeans",
            "metric": "ndcg@10",
            "seen": "masked",
            "difference": 0.01,
            "low": 0.008,
            "high": 0.012,
            "p": 1e-5,
            "p_holm": 0.02,
        },
        {
            "row": "<b>own",
            "reference": "rkmeans",
            "metric": "ndcg@10",
            "seen": "masked",
            "difference": -0.01,
            "low": -0.012,
            "high": -0.008,
            "p": None,
            "p_holm": None,
        },
    ],
    "trials": {
        "sasrec_ce": [
            {
                "settings": {"dim": 64, "dropout": dropout, "loss": "ce"},
                "validation_hr@10": 0.1,
                "validation_ndcg@10": ndcg,
                "seconds": 90.0,
            }
            for dropout, ndcg in ((0.2, 0.04), (0.5, 0.06))
        ]
    },
    "notes": ["A note & more."],
}


def test_the_page_of_a_table_has_its_rows_best_first_and_everything_about_them(tmp_path):
    path = report_table(build_table(tmp_path / "table", **ABOUT))
    assert path == tmp_path / "table" / "report.html"
    page = check_self_contained(path.read_text(encoding="utf-8"))
    masked, kept = page.tables["results"]
    assert [cells[0] for cells in masked[1:]] == ["sasrec_ce", "rkmeans@fusion", "rkmeans", "<b>own"]
    assert masked[2][1:] == [*["0.0400 ± 0.0010"] * 4, "3", "rkmeans@fusion", "minilm"]
    assert kept[1][4] == "0.0250 ± 0.0010"
    assert page.tables["comparisons"][0][1:] == [
        ["rkmeans@fusion", "+0.0100", "+0.0080 to +0.0120", "< 0.001", "0.020"],
        ["<b>own", "-0.0100", "-0.0120 to -0.0080", "–", "–"],
    ]
    assert page.tables["costs"][0][1][:6] == ["sasrec_ce", "–", "4.0", "10.0", "2.0", "16.0"]
    assert page.tables["variance"][0] == [
        ["row", "NDCG@10, generator", "degrees of freedom"],
        ["all, pooled", "0.0006", "8"],
    ]
    assert page.tables["inflation"][0][1] == ["rkmeans@fusion", "25.0\u00a0%", "0.0400", "0.0600", "+50\u00a0%"]
    assert page.tables["tuning"][0][1:] == [
        ["0.0600", "0.1000", "64", "0.5", "ce", "1.5"],
        ["0.0400", "0.1000", "64", "0.2", "ce", "1.5"],
    ]
    assert "sasrec_ce: dim 64, dropout 0.5, loss ce, of 2 combinations tried; at an end: dropout" in page.text
    assert all(
        text in page.text
        for text in ("make table TABLE=<x>", "abc1234", "A note & more.", "50 users, 40 items, 300 interactions")
    )


def test_each_chart_of_a_table_has_the_best_by_its_own_metric_first():
    row = {"hit": "item", "seen": "masked", "runs": 1}
    rows = [
        row | {"row": "precise", "ndcg@10": 0.5, "hr@10": 0.6},
        row | {"row": "broad", "ndcg@10": 0.4, "hr@10": 0.7},
    ]
    rows = [dict.fromkeys(("hr@5", "ndcg@5"), 0.3) | row for row in rows]
    charts = metrics(Results(rows, {}))["charts"]
    for name, first, second in (("NDCG@10", "precise", "broad"), ("HR@10", "broad", "precise")):
        chart = str(charts[f"{name}, best first"])
        assert 0 < chart.index(f">{first}<") < chart.index(f">{second}<")


def test_a_table_without_the_optional_parts_has_a_page_too(tmp_path):
    folder = build_table(tmp_path / "table")
    table = pyarrow.parquet.read_table(folder / "table.parquet")
    optional = [
        name
        for name in table.column_names
        if name.startswith("minutes") or name.endswith(("_sd", "_runs", "_low", "_high"))
    ]
    pyarrow.parquet.write_table(table.drop_columns(optional), folder / "table.parquet")
    page = check_self_contained(report_table(folder).read_text(encoding="utf-8"))
    assert page.tables.keys() == {"results", "inflation"}


def test_folders_without_a_table_are_refused(tmp_path):
    with pytest.raises(TigerrecError, match=r"holds no table\.parquet; give the folder that `tigerrec table` printed"):
        report_table(tmp_path)
    folder = build_table(tmp_path / "table")
    table = pyarrow.parquet.read_table(folder / "table.parquet")
    pyarrow.parquet.write_table(table.drop_columns(["ndcg@5"]), folder / "table.parquet")
    with pytest.raises(TigerrecError, match=r"has no column 'ndcg@5'; run `tigerrec table` again"):
        report_table(folder)
    pyarrow.parquet.write_table(table.slice(0, 0), folder / "table.parquet")
    with pytest.raises(TigerrecError, match="has no row of hits on items"):
        report_table(folder)
    (folder / "table.parquet").write_bytes(b"nothing")
    with pytest.raises(TigerrecError, match="cannot be read"):
        report_table(folder)


def test_the_command_prints_the_file_it_wrote_last(run, tmp_path, command):
    out = tmp_path / "run.html"
    done = command("report", "--run", run["train"], "--out", out)
    assert done.stdout.splitlines()[-1] == str(out)
    folder = build_table(tmp_path / "table", **ABOUT)
    done = command("report", "--table", folder)
    assert done.stdout.splitlines()[-1] == str(folder / "report.html")
    done = command("report", "--run", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {tmp_path} holds no finished stage")


CHARTS = {
    "a value": lambda: interval_chart([Interval("a <name> that is much too long for its place", 0.0, 0.0, 0.0)], "HR"),
    "a negative difference": lambda: interval_chart(
        [Interval("a", -0.1, -0.2, 0.0, [-0.1, -0.1])], "difference", differences=True
    ),
    "no interval": lambda: interval_chart([Interval("a", 0.3, None, None)], "HR"),
    "names with dollar signs": lambda: interval_chart([Interval("$x_$", 0.3, 0.2, 0.4)], "$HR$"),
    "a single point": lambda: line_chart([([1.0], [0.5])], "x", "y", mark=(1.0, "kept")),
    "many equal values": lambda: line_chart([(range(1, 20_001), [0.0] * 20_000)], "x", "y", log_x=True),
    "no item": lambda: frequency_chart(np.array([0, 0, 0]), "codes", "items"),
    "many codes": lambda: frequency_chart(np.arange(10_000) // 100, "codes", "items"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CHARTS)
def test_charts_stay_within_their_picture_and_small(name):
    chart = CHARTS[name]()
    width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', chart).groups())
    places = re.findall(r'<(?:use|text) [^>]*\bx="(\S+)" y="(\S+)"', chart)
    assert places
    assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in places)
    assert len(chart) < 40_000
    assert chart == CHARTS[name]()
    Page(chart)


@pytest.mark.filterwarnings("error")
def test_the_picture_of_a_table_has_room_for_rows_of_one_run_and_of_several(tmp_path):
    rows = pyarrow.parquet.read_table(build_table(tmp_path / "table") / "table.parquet").to_pylist()
    rows[0] |= {"ndcg@10_runs": [0.03], "hr@10_runs": [0.03]}
    draw(SimpleNamespace(rows=rows), "a $title_$", tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def test_charts_show_names_as_they_are():
    chart = interval_chart([Interval('<b id="a_1">$x_$', 0.3, 0.2, 0.4)], "HR")
    assert "<b" not in chart
    assert Page(chart).text.count('<b id="a_1">$x_$') == 1


def test_a_chart_takes_its_colours_from_the_page():
    chart = line_chart([([1, 2], [3, 4])] * 3, "x", "y", mark=(1, "kept"))
    assert set(re.findall(r"var\(--([\w-]+)\)", chart)) == {"text", "quiet", "rule", "series-0", "series-1", "series-2"}
    assert not re.search(r": #[0-9a-f]{6}", chart)


def luminance(colour: str) -> float:
    """Relative luminance of a colour (WCAG 2.2)."""
    shares = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(scheme):
    style = (ROOT / "tigerrec" / "analysis" / "report" / "style.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part)) for part in style.split("prefers-color-scheme: dark")
    )
    assert light.keys() == dark.keys()
    colours = light if scheme == "light" else dark
    for name in ("text", "quiet", "series-0", "series-1", "series-2"):
        for ground in ("ground", "raised"):
            brighter, darker = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
            assert (brighter + 0.05) / (darker + 0.05) >= 4.5
