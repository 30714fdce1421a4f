"""The benchmark: what its numbers count, that both sides compute the same, and what the command leaves behind; never
how long anything takes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests import tiny_shop
from tests.raw_data import lines
from tests.tiny_run import build_run
from tigerrec import TigerrecError, pipeline
from tigerrec.analysis import benchmark
from tigerrec.analysis.benchmark import Effort, operations, operators, sides
from tigerrec.analysis.benchmark.growth import catalogue, history, made_up_items
from tigerrec.analysis.benchmark.sides import allowed_next, limits, stock_generate, stock_inputs, stock_loss
from tigerrec.cli import main
from tigerrec.config import compose
from tigerrec.data.batches import Examples, padded
from tigerrec.data.histories import Histories
from tigerrec.models.dropout import Dropout
from tigerrec.models.t5 import T5
from tigerrec.models.t5_model import HistoryT5
from tigerrec.models.t5_tree import T5Tree
from tigerrec.runtime.processes import in_own_process
from tigerrec.search.searcher import Searcher
from tigerrec.training.options import TrainConfig, Training

ROOT = Path(__file__).parent.parent
N_ITEMS = 60
IDS = made_up_items(N_ITEMS)
CODES = T5(num_layers=3, num_decoder_layers=2, d_model=16, num_heads=2, d_kv=12, d_ff=20, max_items=5)
TREE = T5Tree(num_layers=1, d_model=16, num_heads=2, d_kv=8, d_ff=16, max_items=5)
ITEMS = T5(
    num_layers=3,
    num_decoder_layers=2,
    d_model=16,
    num_heads=2,
    d_kv=12,
    d_ff=20,
    max_items=5,
    history="items",
    item_loss=1.0,
)
OPTIONS = [
    "embedder=hashed",
    "embedder.dim=16",
    "tokenizer=random",
    "tokenizer.codebook_size=8",
    "tokenizer.levels=2",
    "generator=t5_paper",
    "generator.num_layers=1",
    "generator.d_model=16",
    "generator.num_heads=2",
    "generator.d_kv=8",
    "generator.d_ff=16",
    "generator.max_items=5",
    "train.batch_targets=4096",
]
TINY = Effort(
    warmup_steps=1,
    stock_steps=1,
    stock_users=3,
    beam_size=3,
    matrix_size=64,
    catalogues=(30,),
    beams=(2, 4),
    history_lengths=(1, 7),
    growth_users=3,
    repetitions=2,
    beside=("t5_tree", "sasrec_ce"),
)


def sizes(generator: T5) -> operations.Sizes:
    return operations.Sizes(generator, IDS.layout.vocab_size, IDS.layout.n_levels)


def histories(lengths: list[int]) -> Histories:
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(N_ITEMS)[:length] for length in lengths]).astype(np.int32)
    return Histories(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), items, N_ITEMS)


def random_model(generator: T5, mask: str = "bidirectional") -> HistoryT5:
    model = generator.new(IDS, mask, 0)
    model.t5.set_attn_implementation("eager")  # the counter does not see the fused attention of a CPU
    return model


def test_an_epoch_counts_what_the_counter_of_torch_counts_forward_and_backward():
    examples = Examples.prefixes(histories([6, 6, 5, 9]), CODES.max_items)
    model = random_model(CODES)
    with FlopCounterMode(display=False) as counter:
        for row in range(len(examples)):  # one at a time: without padding
            batch = examples.batch(np.array([row]))
            labels = model.tokens[batch.targets[:, 0]]
            model.t5(input_ids=model.tokens[batch.items].flatten(1), labels=labels).loss.backward()
    assert operations.epoch(sizes(CODES), examples) == counter.get_total_flops()


@pytest.mark.parametrize("decoder_reads", ["all_items", "last_item"])
@pytest.mark.parametrize("generator", [CODES, ITEMS], ids=["codes", "items"])
def test_an_epoch_of_windows_counts_what_our_forward_pass_multiplies(generator, decoder_reads):
    generator = dataclasses.replace(generator, decoder_reads=decoder_reads)
    examples = Examples.windows(histories([8, 12]), generator.max_items + 3, 3)
    model, known = random_model(generator, "item_causal"), torch.from_numpy(np.unique(examples.items).astype(np.int64))
    per_token = (
        2 * 2 * 2 * 12 * 2
    )  # scores and sums of attention: two operations, two products, two layers, the heads' width
    unseen = 0
    with FlopCounterMode(display=False) as counter:
        for row in range(len(examples)):
            batch = examples.batch(np.array([row]))
            model.losses(batch, torch.float32, Dropout(0.0), known=known if generator.item_loss else None)
            hidden = (
                examples.lengths[row] * examples.n_targets[row] - int(batch.n_visible.sum())
                if decoder_reads == "all_items"
                else 0
            )
            unseen += per_token * hidden * model.positions_per_item * IDS.layout.n_levels
    assert operations.epoch(sizes(generator), examples) == 3 * (counter.get_total_flops() - unseen)


def test_a_search_for_the_last_item_counts_what_a_history_of_one_item_takes_and_the_longer_encoder():
    generator, lengths, beams = dataclasses.replace(CODES, decoder_reads="last_item"), np.array([1, 3, 5]), [1, 4, 4]
    one = operations.search(sizes(CODES), np.ones(3, np.int64), beams)
    encoders = [
        int(operations.encoder(sizes(CODES), IDS.layout.n_levels * n).sum()) for n in (lengths, np.ones(3, np.int64))
    ]
    assert operations.search(sizes(generator), lengths, beams) - one == encoders[0] - encoders[1]


def test_a_search_with_one_beam_counts_a_forward_pass_less_the_tokens_to_come():
    model, n_levels = random_model(CODES), IDS.layout.n_levels
    lengths = np.array([1, 3, 5])
    with FlopCounterMode(display=False) as counter:
        for length in lengths:
            model.t5(
                input_ids=torch.ones(1, length * n_levels, dtype=torch.long),
                decoder_input_ids=torch.ones(1, n_levels, dtype=torch.long),
            )
    to_come = n_levels * (n_levels - 1) // 2
    expected = (
        counter.get_total_flops() - len(lengths) * to_come * 2 * 2 * CODES.decoder_layers * CODES.num_heads * CODES.d_kv
    )
    assert operations.search(sizes(CODES), lengths, [1] * n_levels) == expected
    wide = operations.search(sizes(CODES), lengths, [1] + [20] * (n_levels - 1))
    assert expected < wide < 20 * expected


def test_the_stock_loss_is_our_prefix_loss():
    model = random_model(CODES)
    batch = Examples.prefixes(histories([6, 4, 9]), CODES.max_items).batch(np.arange(10))
    stock = stock_loss(model, batch)
    token_loss, item_loss = model.losses(batch, torch.float32, Dropout(0.0))
    assert item_loss.item() == 0
    assert stock.item() == pytest.approx(token_loss.item() / 10, rel=1e-5)


def test_the_stock_search_is_scaled_to_the_users_that_are_ranked(tmp_path, monkeypatch):
    rows = [
        (f"u{user}", f"i{(user + day) % 9}", f"2024-03-0{day}") for user in range(12) for day in range(1, 7 - user % 2)
    ]
    (tmp_path / "orders.csv").write_bytes(lines(rows, ["user", "item", "time"]))
    split = ["dataset.validation_from=2024-03-05", "dataset.test_from=2024-03-06"]
    options = tiny_shop.options(tmp_path / "orders.csv", tmp_path, *split)
    steps = pipeline.plan(compose(options))
    pipeline.run(compose(options), "tokenize")
    monkeypatch.setattr(sides, "stock_generate", lambda *arguments: None)
    monkeypatch.setattr(sides, "seconds_of", lambda device, work: 1.0)
    setting = sides.Setting(steps["prepare"].folder, steps["tokenize"].folder, steps["train"].config)
    assert sides.stock_search(setting, 4, 3) == {"seconds": 6 / 3, "measured": 3}


def test_the_stock_search_finds_what_ours_finds():
    model = random_model(CODES)
    known = [np.array([3]), np.array([1, 2, 4, 8, 16]), np.array([30, 20])]
    with torch.no_grad():
        sequences = stock_generate(model, padded(known), allowed_next(IDS.tokens), 4)
    item_of = {tuple(row): item for item, row in enumerate(IDS.tokens.tolist())}
    found = np.array([item_of[tuple(row)] for row in sequences[:, 1:].tolist()]).reshape(3, 4)
    ours, _ = Searcher.of(model, "fp32").rank(known, k=4, beam_size=4, mask_seen=False)
    assert (found == ours).all()


def test_stock_inputs_are_as_long_as_the_longest_history():
    model = random_model(CODES)
    found = stock_inputs(model, padded([np.array([7]), np.array([8, 9])]))
    assert found["input_ids"].shape == found["attention_mask"].shape == (2, CODES.max_items * IDS.layout.n_levels)
    assert found["attention_mask"].sum(1).tolist() == [4, 8]
    assert found["input_ids"][0].tolist() == IDS.tokens[7].tolist() + [0] * 16


@pytest.mark.parametrize("generator", [ITEMS, TREE], ids=["t5_items", "t5_tree"])
def test_growth_has_a_row_a_size(generator):
    config = TrainConfig(generator, Training(precision="fp32"))
    small, large = (catalogue(config, n_items, (2, 4), 3) for n_items in (30, 60))
    expected = {"items", "trie_seconds", "trie_bytes", "model_bytes", "ms_per_user_beam_2", "ms_per_user_beam_4"}
    if generator is TREE:
        expected |= {"ms_per_user_items", "ms_per_user_hybrid"}
    assert set(small) == expected
    assert (small["items"], large["items"]) == (30, 60)
    assert small["trie_bytes"] < large["trie_bytes"]
    assert small["model_bytes"] < large["model_bytes"]
    rows = history(config, 30, 2, (1, 7), 3)["rows"]
    assert [set(row) for row in rows] == [{"items", "ms_per_user"}] * 2


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    """Measurements in the process of the test, which is quicker than one of their own each."""

    def measured(function: str, *arguments) -> dict:
        module, _, name = function.rpartition(".")
        return getattr(importlib.import_module(module), name)(*arguments) | {"peak_mb": 1.0}

    monkeypatch.setattr(benchmark, "in_own_process", measured)


def test_a_generator_that_is_no_t5_is_measured_alone(tmp_path, in_this_process):
    folders = build_run(tmp_path)
    config = TrainConfig(TREE, Training(precision="fp32", batch_targets=4096))
    setting = benchmark.Setting(folders["prepare"], folders["tokenize"], config)
    results = benchmark.measure(setting, TINY)
    assert {name: set(results[name]) for name in ("epoch", "search")} == {
        key: {"seconds", "peak_mb"} for key in ("epoch", "search")
    }
    assert results["growth"]["catalogue"][0]["peak_mb"] > 0
    assert "weights are random" in benchmark.report(results)


def test_a_process_of_its_own_gives_its_result_or_says_why_not():
    assert in_own_process("tests.test_benchmark.nothing")["peak_mb"] > 0
    with pytest.raises(TigerrecError, match=r"^No such luck\.$"):
        in_own_process("tests.test_benchmark.fail", "No such luck.")
    with pytest.raises(
        TigerrecError,
        match=r"process of kill ended without a result \(exit code -9\): most likely for want of memory\.",
    ):
        in_own_process("tests.test_benchmark.kill")


def nothing() -> dict[str, float]:
    return {}


def fail(text: str) -> None:
    raise TigerrecError(text)


def kill() -> None:
    os.kill(os.getpid(), 9)


def test_the_command_measures_all_and_prints_the_path_last(tmp_path, monkeypatch, capsys, in_this_process):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.getLogger("tigerrec"), "level", logging.NOTSET)
    monkeypatch.setattr(sys, "argv", ["tigerrec"])
    monkeypatch.setattr(benchmark, "Effort", lambda: TINY)
    main(["benchmark", *OPTIONS, f"paths.runs={tmp_path}"])
    out, err = capsys.readouterr()
    path = Path(out.splitlines()[-1])
    assert "extrapolated from 1 steps and 3 users; weights are random" in err
    assert path == tmp_path / "benchmark" / "sample-random-seed0-t5_paper-packed.json"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    results = json.loads(path.read_text())
    others = {"beside", "growth", "machine", "config", "git", "finished", "seconds"}
    assert set(results) == {"epoch", "search", *others}
    assert [row["model"] for row in results["beside"]] == ["t5_tree", "sasrec_ce"]
    assert all(row["epoch_seconds"] > 0 < row["search_seconds"] for row in results["beside"])
    for name, measured in (("epoch", 1), ("search", 3)):
        keys = {
            "seconds",
            "stock_seconds",
            "stock_measured",
            "ratio",
            "ratio_range",
            "limit_seconds",
            "of_limit",
            "of_limit_range",
            "peak_mb",
            "stock_peak_mb",
        }
        assert set(results[name]) == keys
        assert all(np.min(value) > 0 for value in results[name].values())
        for compared in ("ratio", "of_limit"):
            least, most = results[name][f"{compared}_range"]
            assert least <= results[name][compared] <= most
        assert results[name]["stock_measured"] == measured
    assert set(results["growth"]) == {"catalogue", "history"}
    assert {"cpu", "threads", "torch", "precision"} <= set(results["machine"])
    assert results["config"]["generator"]["d_model"] == 16
    assert not (tmp_path / "sample" / "hashed" / "random-seed0" / "t5_paper-packed-seed0").exists()


def test_the_profile_says_where_the_time_goes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.getLogger("tigerrec"), "level", logging.NOTSET)
    monkeypatch.setattr(sys, "argv", ["tigerrec"])
    monkeypatch.setattr(benchmark, "Effort", lambda: dataclasses.replace(TINY, profiled_users=3))
    main(["profile", *OPTIONS, f"paths.runs={tmp_path}"])
    out, err = capsys.readouterr()
    path = Path(out.splitlines()[-1])
    assert path == tmp_path / "profile" / "sample-random-seed0-t5_paper-packed.json"
    results = json.loads(path.read_text())
    assert (results["train"]["steps"], results["search"]["users"]) == (1, 3)
    for name in ("train", "search"):
        assert f"{name}, " in err
        kinds = {row["kind"]: row for row in results[name]["kinds"]}
        assert sum(row["share"] for row in kinds.values()) == pytest.approx(1, abs=1e-3)
        assert {"matrix products", "copies and joins", operators.BETWEEN} <= set(kinds)
        assert sum(row["seconds"] for row in kinds.values()) == pytest.approx(results[name]["seconds"], rel=1e-2)
    assert any(row["kind"] == "optimizer" for row in results["train"]["kinds"])
    assert any(row["operator"] == "aten::mm" and row["calls"] > 0 for row in results["train"]["operators"])
    assert {"cpu", "threads", "precision"} <= set(results["machine"])


def test_the_limits_follow_the_examples_and_the_beam(tmp_path):
    folders = build_run(tmp_path)

    def found(examples: str, beam_size: int) -> dict:
        training = Training(examples=examples, stride=10 if examples == "packed" else None, precision="fp32")
        config = TrainConfig(dataclasses.replace(CODES, decoder_reads="all_items"), training)
        return limits(benchmark.Setting(folders["prepare"], folders["tokenize"], config), beam_size)

    narrow, wide, prefixes = found("packed", 2), found("packed", 3), found("prefix", 3)
    assert 0 < narrow["epoch"] == wide["epoch"] < prefixes["epoch"]
    assert 0 < narrow["search"] < wide["search"] == prefixes["search"]


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("tokenizer=nothing", "tokenizer=nothing is not a choice; allowed: "),
        ("train.epochs=0", "train.epochs must be"),
    ],
)
def test_the_command_refuses_in_one_sentence(tmp_path, option, text, command):
    done = command("benchmark", f"paths.runs={tmp_path}", option)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {text}")
    assert len(done.stderr.splitlines()) == 1


def test_another_family_than_t5_is_refused_before_any_work(tmp_path):
    with pytest.raises(TigerrecError, match=r"generator=t5_tree_vectors reads item vectors; give `generator=t5_tree`"):
        benchmark.benchmark(compose(["generator=t5_tree_vectors", f"paths.runs={tmp_path}"]), TINY)
    with pytest.raises(TigerrecError, match="generator=t5_tree_vectors reads item vectors"):
        operators.profile(compose(["generator=t5_tree_vectors", f"paths.runs={tmp_path}"]), TINY)
    assert not any(tmp_path.iterdir())
