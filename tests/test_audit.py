"""The audit of a whole run made of a small shop: what the checks find, that a leak is caught, and that a stopped audit
goes on."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from tigerrec import TigerrecError, pipeline
from tigerrec.analysis import audit
from tigerrec.analysis.audit import CHECKS, AuditOptions
from tigerrec.analysis.audit.cold import cold_items, cold_start
from tigerrec.analysis.audit.run import AuditedRun, NotApplicableError
from tigerrec.analysis.audit.trained import leakage, ties
from tigerrec.config import ConfigError, compose
from tigerrec.data import batches
from tigerrec.data.histories import Histories, load_histories
from tigerrec.embed import collaborative
from tigerrec.evaluation.metrics import metrics
from tigerrec.storage.contracts import read_json, read_table

ROOT = Path(__file__).parent.parent
N_USERS, N_ITEMS = 80, 40
TINY = [
    "dataset=tables",
    "dataset.name=shop",
    "embedder=hashed",
    "embedder.dim=16",
    "tokenizer=rkmeans",
    "tokenizer.codebook_size=6",
    "tokenizer.levels=2",
    "generator.num_layers=1",
    "generator.d_model=16",
    "generator.num_heads=2",
    "generator.d_kv=8",
    "generator.d_ff=16",
    "generator.max_items=5",
    "train.epochs=2",
    "train.validate_every=2",
    "train.batch_targets=64",
    "train.precision=fp32",
]
CHEAP = [name for name, check in CHECKS.items() if not check.trains]


def write_shop(folder: Path) -> list[str]:
    """Tables of a shop where many purchases have equal times; returns the options that name them."""
    rng = np.random.default_rng(0)
    lines = ["user,item,time"]
    for user in range(N_USERS):
        items = rng.permutation(N_ITEMS)[: rng.integers(4, 10)]
        lines += [
            f"u{user},i{item},{time}" for item, time in zip(items, np.sort(rng.integers(0, 6, len(items))), strict=True)
        ]
    (folder / "orders.csv").write_text("\n".join(lines) + "\n")
    (folder / "products.csv").write_text(
        "\n".join(["item,title", *(f"i{item},Thing {item % 7} of kind {item % 5}" for item in range(N_ITEMS))]) + "\n"
    )
    return [f"dataset.interactions={folder}/orders.csv", f"dataset.items={folder}/products.csv"]


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("shop")
    return [*TINY, *write_shop(folder), f"paths.runs={folder}/runs", f"audit.folder={folder}/out"]


def opened(options: list[str], *more: str, work: Path) -> AuditedRun:
    """The finished run of some options, as the checks get it."""
    cfg = compose([*options, *more])
    pipeline.run(cfg, "evaluate")
    return AuditedRun(pipeline.plan(cfg), work, users=30)


@pytest.fixture(scope="module")
def run(options, tmp_path_factory) -> AuditedRun:
    return opened(options, work=tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def audited(options) -> Path:
    """The report of all checks that train nothing."""
    return audit.audit(compose([*options, f"audit.checks=[{','.join(CHEAP)}]", "audit.users=30"]))


def results(folder: Path) -> dict[str, dict]:
    return {check["check"]: check for check in json.loads((folder / "audit.json").read_text())["checks"]}


def test_an_honest_training_passes_the_poison(run):
    finding = leakage(run)
    assert {row["result"] for row in finding.rows} == {"equal bytes"}
    assert finding.rows[0]["compared with"] == "the audited run"
    assert "none of them enters training" in finding.summary


@pytest.mark.parametrize("kept", [-1, None], ids=["validation", "test"])
def test_a_training_that_reads_held_out_items_is_caught(options, kept, tmp_path, monkeypatch):
    def leaking(histories):
        seen = [history[:kept] for history in histories]
        return np.concatenate(seen), np.array([len(items) for items in seen])

    monkeypatch.setattr(batches, "training_items", leaking)
    run = opened(options, f"paths.runs={tmp_path}", work=tmp_path / "work")
    finding = leakage(run)
    assert finding.rows[0]["result"] == "different"
    assert finding.rows[0]["compared with"] == "the same training on the true data"
    assert finding.rows[1]["result"] == "equal bytes"  # the collaborative vectors
    assert "none of them enters" not in finding.summary


def test_vectors_that_read_held_out_items_are_caught(run, monkeypatch):
    monkeypatch.setattr(collaborative, "training_histories", lambda histories: [history[:-1] for history in histories])
    finding = leakage(run)
    assert [row["result"] for row in finding.rows] == ["equal bytes", "different"]
    assert finding.summary.startswith("collaborative vectors")


def test_a_run_that_validated_more_often_is_compared_with_one_that_did_not(options, tmp_path):
    run = opened(
        options, "train.validate_every=1", "train.name=often", f"paths.runs={tmp_path}", work=tmp_path / "work"
    )
    finding = leakage(run)
    assert {row["result"] for row in finding.rows} == {"equal bytes"}
    assert [row["compared with"] for row in finding.rows[:2]] == [
        "the same training on the true data",
        "the audited run",
    ]
    assert "the same checkpoint was chosen" in finding.summary


def test_a_checkpoint_chosen_on_test_items_is_caught(options, tmp_path, monkeypatch):
    split = Histories.split
    monkeypatch.setattr(Histories, "split", lambda histories, user, part: split(histories, user, "test"))
    choosing = [
        "train.validate_every=1",
        "train.epochs=6",
        "train.learning_rate=0.01",
        "train.name=often",
        f"paths.runs={tmp_path}",
    ]
    finding = leakage(opened(options, *choosing, work=tmp_path / "work"))
    assert [row["result"] for row in finding.rows] == ["equal bytes", "different", "equal bytes"]
    assert finding.summary.startswith(
        "model.safetensors of training with its validations on data with poisoned test items: different"
    )


def test_collaborative_vectors_of_the_run_itself_are_checked(options, tmp_path):
    chosen = [option for option in options if not option.startswith("embedder")]
    run = opened(chosen, "embedder=collaborative", "embedder.dim=8", f"paths.runs={tmp_path}", work=tmp_path / "work")
    assert [row["what"] for row in leakage(run).rows] == [
        "model.safetensors of training on poisoned data",
        "vectors of collaborative of poisoned data",
    ]
    with pytest.raises(NotApplicableError, match="vectors of collaborative are made of interactions"):
        cold_items(run)


def test_ties_are_counted_as_the_histories_say(run):
    finding = ties(run)
    rows = {row["what"]: row for row in finding.rows}
    changed = load_histories(next(run.work.glob("ties-reversed-????????")))
    targets = [changed.split(user, "test")[1] for user in range(N_USERS)]
    assert rows["users whose test target changes"]["users"] == (run.targets != targets).sum() > 0
    assert rows["users with equal times in their history"]["users"] > rows["users whose test target changes"]["users"]
    assert [sorted(changed[user]) for user in range(N_USERS)] == [
        sorted(run.histories[user]) for user in range(N_USERS)
    ]
    generator = [row for row in finding.rows if row["what"] == run.model]
    assert generator[0]["hr@10"] == metrics(run.ranks[run.model, "item", "masked"])["hr@10"]
    assert generator[2]["hr@10"] == pytest.approx(generator[1]["hr@10"] - generator[0]["hr@10"])


def test_data_with_a_split_of_their_own_keep_it_in_every_check(options, tmp_path):
    orders = Path(next(option for option in options if "interactions=" in option).partition("=")[2])
    head, *rows = orders.read_text().splitlines()
    for name, times in (("training", "0123"), ("validation", "4"), ("test", "5")):
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *(row for row in rows if row[-1] in times)]) + "\n")
    own = [f"dataset.{part}_interactions={tmp_path}/{part}.csv" for part in ("validation", "test")]
    own += [f"dataset.interactions={tmp_path}/training.csv", "generator.user_tokens=4", f"paths.runs={tmp_path}/runs"]
    run = opened(options, *own, work=tmp_path / "work")
    assert 0 < len(run.targets) < len(run.histories)
    assert run.numbers.tolist() == run.histories.users_with("test").tolist()
    lists = run.search(run.searcher, run.known, mask_seen=True, users=np.arange(len(run.known)))
    assert (lists == run.lists[run.model, "masked"]).all()
    assert {row["result"] for row in leakage(run).rows} == {"equal bytes"}
    reversed_in_parts = ties(run).rows
    changed = load_histories(next(run.work.glob("ties-reversed-????????")))
    assert changed.parts.tolist() == run.histories.parts.tolist()
    before, after = ([h.split(user, "test")[1] for user in run.numbers] for h in (run.histories, changed))
    counts = {row["what"]: row["users"] for row in reversed_in_parts}
    assert counts["users whose test target changes"] == sum(np.array(before) != after) > 0
    assert counts["users with equal times in their history"] <= len(run.targets)
    done = audit.audit(compose([*options, *own, "audit.users=20", f"audit.folder={tmp_path}/out"]))
    assert results(done).keys() == CHECKS.keys()


def test_cold_items_are_known_to_neither_training_nor_tokenizer_and_are_ranked_for(run):
    cold = cold_start(run)
    histories = load_histories(cold.prepared)
    cold_ids = {run_id for run_id, out in zip(item_ids(run.folders["prepare"]), cold.held_out, strict=True) if out}
    assert len(cold_ids) == 2
    assert not cold_ids & set(item_ids(cold.prepared))
    assert histories.n_items == cold.n_warm == N_ITEMS - 2
    assert (np.concatenate(cold.histories) < cold.n_warm).all()
    assert cold.is_cold.any()
    assert not cold.is_cold.all()
    assert np.array_equal(cold.is_cold, cold.held_out[run.targets[cold.users]])
    assert np.array_equal(cold.targets, cold.numbers[run.targets[cold.users]])
    order = np.argsort(cold.numbers)
    assert [item_ids(run.folders["prepare"])[item] for item in order[: cold.n_warm]] == item_ids(cold.prepared)
    for user, history in zip(cold.users, cold.histories, strict=True):
        kept = [item for item in run.known[user] if not cold.held_out[item]]
        assert order[history].tolist() == kept
    finding = cold_items(run)
    assert read_table(next(run.work.glob("cold-tokenized-*")), "semantic_ids.parquet").num_rows == cold.n_warm
    own = finding.rows[0]
    assert own["users"] == cold.is_cold.sum()
    n_cold, n_all = own["users"], len(cold.users)
    warm_hits = own["hr@10 of warm users"] * (n_all - n_cold)
    assert own["hr@10"] * n_cold + warm_hits == pytest.approx(own["hr@10 of all"] * n_all, abs=1e-4)
    assert finding.rows[-1]["hr@10"] == 1.0  # two new items: any list of ten holds both
    assert finding.rows[-2]["hr@10"] == 1.0


def test_ways_to_rank_new_items_stand_side_by_side_where_the_generator_reads_vectors(options, tmp_path):
    vectors = [
        "embedder@generator.inputs.vectors=hashed",
        "generator.inputs.vectors.dim=8",
        "generator.inputs.vectors.name=hashed-8",
    ]
    finding = cold_items(opened(options, "generator=t5_tree_vectors", *vectors, work=tmp_path))
    own, one, two, liger = finding.rows[:4]
    for row, words in ((own, "all items ranked"), (one, "1 of ten"), (two, "2 of ten"), (liger, "LIGER")):
        assert words in row["what"]
    places = [row["share of places with a new item"] for row in (one, two)]
    assert places == pytest.approx([0.1, 0.2], abs=0.02)  # there are two new items, and the beam may hold them too
    assert two["hr@10"] == 1.0
    assert one["hr@10"] >= own["hr@10"]


def item_ids(prepared: Path) -> list[str]:
    return read_table(prepared, "items.parquet")["item_id"].to_pylist()


def test_the_report_agrees_with_the_evaluation(run, audited):
    checks = results(audited)
    assert list(checks) == CHEAP
    evaluated = {
        (row["model"], row["hit"], row["seen"]): row for row in read_json(run.folders["evaluate"], "metrics.json")
    }
    for row in checks["seen"]["rows"]:
        if row["seen items"] in ("kept", "masked"):
            expected = evaluated[row["model"], "item", row["seen items"]]
            assert {key: value for key, value in row.items() if "@" in key} == {
                key: expected[key] for key in row if "@" in key
            }
    whole = next(row for row in checks["hits"]["rows"] if row["seen items"] == "masked" and row["whose"] == "all users")
    assert whole["hr@10 of codes"] == evaluated["t5", "sid", "masked"]["hr@10"]
    assert whole["hr@10 inflation"] == pytest.approx(whole["hr@10 of codes"] / whole["hr@10 of items"] - 1)
    for by in ("target in training", "items known"):
        rows = [row for row in checks["buckets"]["rows"] if row["by"] == by]
        assert sum(row["users"] for row in rows) == N_USERS
        mean = sum(row["users"] * row.get("ndcg@10", 0) for row in rows) / N_USERS
        assert mean == pytest.approx(evaluated["t5", "item", "masked"]["ndcg@10"], abs=1e-6)
    numbers = {row["what"]: row["number"] for row in checks["facts"]["rows"]}
    assert numbers["items whose title another item has too"] == 10  # items 35 to 39 are called like 0 to 4
    assert numbers["users whose target is in their own history"] == 0


def test_the_same_history_gives_the_lists_of_the_evaluation(run):
    lists = run.search(run.searcher, run.known, mask_seen=True, progress="", seen=run.known)
    assert (lists == run.lists[run.model, "masked"]).all()
    others = run.search(
        run.searcher, [history[-1:] for history in run.known], mask_seen=True, progress="", seen=run.known
    )
    assert not any(set(found) & set(history) for found, history in zip(others.tolist(), run.known, strict=True))


def test_a_finished_check_is_not_run_again_and_a_stopped_audit_goes_on(options, tmp_path, monkeypatch):
    chosen = [
        *options,
        "audit.checks=[seen,hits,buckets]",
        f"audit.folder={tmp_path}/out",
        f"paths.runs={tmp_path}/runs",
    ]
    done: list[str] = []

    def counting(name, stop_at=None):
        real = CHECKS[name].function

        def check(run):
            if len(done) == stop_at:
                raise KeyboardInterrupt
            done.append(name)
            return real(run)

        return dataclasses.replace(CHECKS[name], function=check)

    with monkeypatch.context() as patch:
        for name in ("seen", "hits", "buckets"):
            patch.setitem(CHECKS, name, counting(name, stop_at=2))
        with pytest.raises(KeyboardInterrupt):
            audit.audit(compose(chosen))
    assert done == ["seen", "hits"]
    assert list(results(tmp_path / "out")) == ["seen", "hits"]
    for name in ("seen", "hits", "buckets"):
        monkeypatch.setitem(CHECKS, name, counting(name))
    audit.audit(compose(chosen))
    assert done == ["seen", "hits", "buckets"]
    audit.audit(compose(chosen))
    assert done == ["seen", "hits", "buckets"]
    assert list(results(tmp_path / "out")) == ["seen", "hits", "buckets"]
    audit.audit(compose([*chosen, "overwrite=evaluate", "evaluate.beam_size=30"]))
    assert done[3:] == ["seen", "hits", "buckets"]


def test_a_check_that_fails_is_named_and_stops_no_other(options, tmp_path, monkeypatch):
    def fails(run):
        raise TigerrecError("The disk is full.")

    monkeypatch.setitem(CHECKS, "hits", dataclasses.replace(CHECKS["hits"], function=fails))
    with pytest.raises(
        TigerrecError, match=r"^hits failed: The disk is full\. What is finished stands in .*audit\.md\.$"
    ):
        audit.audit(
            compose(
                [
                    *options,
                    "audit.checks=[seen,hits,buckets]",
                    f"audit.folder={tmp_path}/out",
                    f"paths.runs={tmp_path}/runs",
                ]
            )
        )
    assert list(results(tmp_path / "out")) == ["seen", "buckets"]
    assert "**Not finished:** hits failed: The disk is full." in (tmp_path / "out" / "audit.md").read_text()


def test_a_training_of_the_audit_that_was_done_is_taken_up(run, monkeypatch):
    leakage(run)
    monkeypatch.setattr("tigerrec.analysis.audit.trained.train", lambda *arguments: pytest.fail("trained again"))
    assert {row["result"] for row in leakage(run).rows} == {"equal bytes"}


def test_the_command_writes_a_report_that_names_no_places_and_prints_its_folder_last(options, audited, command):
    done = command("audit", *options, "audit.checks=[seen]", "audit.users=30")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(audited)
    assert "seen: up to date" in done.stderr
    text = (audited / "audit.md").read_text()
    assert text.startswith(
        "# Audit of `shop/hashed/rkmeans-seed0/t5-packed-seed0`\n\n```\nmake audit DATASET=tables EMBEDDER=hashed "
        "TOKENIZER=rkmeans ARGS="
    )
    for name in CHEAP:
        assert f"\n## {CHECKS[name].title}\n" in text
    assert "paths.runs" not in text
    assert "audit.folder" not in text


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("audit.checks=[seen,nothing]", r"audit\.checks\.1 must be one of leakage, ties, .*, facts, got 'nothing'\."),
        ("audit.users=0", r"audit\.users must be at least 1, got 0\."),
        ("audit.users=many", r"audit\.users='many' has the wrong type"),
        ("+audit.more=1", r"audit\.more is not an option; allowed: checks, folder, users"),
        ("evaluate.split=validation", r"evaluate\.split must be test"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_any_work(option, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        audit.audit(compose([option, f"paths.runs={tmp_path}"]))
    assert not list(tmp_path.iterdir())


def test_the_options_and_their_comment_say_what_there_is():
    assert set(compose([]).audit) == {field.name for field in AuditOptions.__dataclass_fields__.values()}
    line = next(line for line in (ROOT / "configs" / "config.yaml").read_text().splitlines() if "checks: []" in line)
    assert line.partition("to run: ")[2].partition(";")[0].split() == list(CHECKS)


def test_a_check_that_makes_no_sense_says_why(options, tmp_path, caplog):
    chosen = [option for option in options if not option.startswith("embedder")]
    with caplog.at_level(logging.INFO, "tigerrec"):
        out = audit.audit(
            compose(
                [*chosen, "embedder=collaborative", "embedder.dim=8", "audit.checks=[cold]", f"audit.folder={tmp_path}"]
            )
        )
    assert results(out)["cold"]["summary"].startswith("Not run: The vectors of collaborative are made of interactions")
    assert "Not run: " in (out / "audit.md").read_text()
