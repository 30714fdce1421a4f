"""Training on everything, for the model that goes live."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests import tiny_shop
from tigerrec import TigerrecError, cli
from tigerrec.analysis.training_runs import read_runs
from tigerrec.config import ConfigError
from tigerrec.data.batches import Examples
from tigerrec.data.histories import Histories, load_histories
from tigerrec.evaluation.stage import EvaluateConfig, evaluate
from tigerrec.models.loading import load_generator
from tigerrec.serving.export import export
from tigerrec.serving.recommender import Recommender
from tigerrec.storage.files import ArtifactError
from tigerrec.storage.folders import upstream_folders
from tigerrec.storage.manifests import read_manifest
from tigerrec.tokenizers.ids import load_semantic_ids

LIVE = "train.holdout=false"


@pytest.fixture(scope="module")
def orders(tmp_path_factory) -> Path:
    return tiny_shop.write_orders(tmp_path_factory.mktemp("shop"))


def log_of(trained: Path) -> list[dict]:
    return [json.loads(line) for line in (trained / "training.jsonl").read_text().splitlines()]


def test_every_item_but_a_histories_first_is_a_target():
    histories = Histories(np.array([0, 3, 7, 8]), np.arange(8, dtype=np.int32), 8).whole()
    examples = Examples.prefixes(histories, 5)
    pairs = [
        (examples.items[stop], examples.items[start:stop].tolist())
        for start, stop in zip(examples.start, examples.stop, strict=True)
    ]
    assert pairs == [(1, [0]), (2, [0, 1]), (4, [3]), (5, [3, 4]), (6, [3, 4, 5])]
    assert not len(histories.users_with("validation"))
    assert not len(histories.users_with("test"))


@pytest.mark.parametrize("generator", ["t5", "t5_tree"])
def test_it_takes_as_many_epochs_and_weights_as_a_validated_run_chose(orders, tmp_path, generator):
    more = [f"generator={generator}"] if generator != "t5" else []
    live = tiny_shop.run(orders, tmp_path, LIVE, "train.epochs=4", *more, until="train")
    name = f"{generator}-packed"
    assert live.name == f"{name}-everything-seed0"
    validated = live.with_name(f"{name}-seed0")
    chosen, manifest = read_manifest(validated).provenance, read_manifest(live)
    epochs = chosen["selected"]["step"] / -(-chosen["targets"] // 32)
    steps = -(-manifest.provenance["targets"] // 32)
    assert manifest.provenance["targets"] == chosen["targets"] + 2 * tiny_shop.N_USERS
    assert manifest.provenance["steps"] == round(epochs * steps)
    assert set(manifest.inputs) >= {"prepare", "tokenize", "validated"}
    assert all("validation_ndcg@10" not in line for line in log_of(live))
    if generator == "t5_tree":
        assert (live / "search.json").read_bytes() == (validated / "search.json").read_bytes()
    assert tiny_shop.run(orders, tmp_path, LIVE, "train.epochs=4", *more, until="train") == live  # up to date
    assert len(Recommender.from_pretrained(live, device="cpu").recommend(["i03"], 5)) == 5


def test_the_command_says_how_to_recommend_with_it(orders, tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("MAKELEVEL", raising=False)
    cli.main(["train", *tiny_shop.options(orders, tmp_path, LIVE, "train.validated=false")])
    (live,) = tmp_path.rglob("*-everything-seed0")
    assert f"next: tigerrec recommend {live} --items " in capfd.readouterr().err


def test_steps_smaller_than_a_window_are_counted_as_they_are_taken(orders, tmp_path):
    more = ["train.batch_targets=1", "train.epochs=2", "train.validate_every=2", "train.max_steps=null"]
    live = tiny_shop.run(orders, tmp_path, LIVE, *more, until="train")
    validated = read_manifest(live.with_name(live.name.replace("-everything", ""))).provenance
    assert validated["steps_per_epoch"] < validated["targets"]  # of one target each
    assert validated["selected"]["step"] == validated["steps"] == 2 * validated["steps_per_epoch"]
    provenance = read_manifest(live).provenance
    assert provenance["steps"] == 2 * provenance["steps_per_epoch"]


def test_a_fixed_number_of_epochs_needs_no_other_run(orders, tmp_path):
    live = tiny_shop.run(orders, tmp_path, LIVE, "train.validated=false", "generator=t5_tree", until="train")
    with pytest.raises(ArtifactError, match=r"was never validated; compare the run with train\.holdout=true"):
        read_runs([live])
    assert [path.name for path in live.parent.glob("*seed0")] == [live.name]
    manifest = read_manifest(live)
    assert manifest.provenance["steps"] == 2 * -(-manifest.provenance["targets"] // 32)
    assert json.loads((live / "search.json").read_bytes()) == {"hybrid": 1.0, "inline": 1.0}


def test_the_last_items_are_learned(orders, tmp_path):
    """An item that occurs as the last of histories alone has an embedding of its own only where all was read."""
    lines = orders.read_text().splitlines()
    last = {line.split(",")[0]: line for line in lines[1:]}
    more = [f"{user},new,{int(line.split(',')[2]) + 1}" for user, line in last.items()]
    path = tmp_path / "orders.csv"
    path.write_text("\n".join([*lines, *more]) + "\n")
    options = ["generator=t5_tree", "train.validated=false"]
    found = []
    for holdout in ("true", "false"):
        trained = tiny_shop.run(path, tmp_path / "runs", f"train.holdout={holdout}", *options, until="train")
        folders = upstream_folders(trained)
        model = load_generator(trained, load_semantic_ids(folders["tokenize"]))
        number = Recommender.from_pretrained(trained, device="cpu").catalogue.numbers["new"]
        found.append(number in model.unseen_items().tolist())
        counts = Recommender.from_pretrained(trained, device="cpu").catalogue.counts
        assert counts[number] == (0 if holdout == "true" else tiny_shop.N_USERS)
        exported = Recommender.from_pretrained(export(trained, tmp_path / holdout), device="cpu").catalogue
        assert exported.counts.tolist() == counts.tolist()
    assert found == [True, False]
    assert len(load_histories(folders["prepare"]).users_with("test")) == tiny_shop.N_USERS


def test_it_is_refused_by_evaluation(orders, tmp_path):
    with pytest.raises(ConfigError, match=r"With train\.holdout=false nothing is left to evaluate on"):
        tiny_shop.run(orders, tmp_path, LIVE)
    live = tiny_shop.run(orders, tmp_path, LIVE, "train.validated=false", until="train")
    folders = upstream_folders(live)
    with pytest.raises(TigerrecError, match="was trained on everything, so that nothing is left to evaluate on"):
        evaluate(*folders.values(), EvaluateConfig(model="t5"), live / "eval-full")
    assert not (live / "eval-full").exists()
    with pytest.raises(ConfigError, match=r"train\.validated='maybe' must be true or false"):
        tiny_shop.run(orders, tmp_path, LIVE, "train.validated=maybe", until="train")
