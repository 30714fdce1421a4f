"""The baselines: one contract for all choices, what each computes, and the stages that tune and measure them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional

from tests.tiny_run import N_ITEMS, N_USERS, build_run
from tigerrec import TigerrecError, pipeline
from tigerrec.baselines import next_item, stage, tuning
from tigerrec.baselines.base import Baseline
from tigerrec.baselines.bilinear import Bilinear
from tigerrec.baselines.bsarec import BSARec
from tigerrec.baselines.filtered import FilteredTransformer
from tigerrec.baselines.item_knn import ItemKNN
from tigerrec.baselines.last_item import LastItem
from tigerrec.baselines.next_item import NextItemModel, binary_cross_entropy, pieces, targets_of
from tigerrec.baselines.popularity import Popularity
from tigerrec.baselines.sasrec import SASRec
from tigerrec.baselines.stage import BaselineConfig, measure
from tigerrec.baselines.transformer import Transformer
from tigerrec.baselines.tuning import TuneConfig, combinations, tune
from tigerrec.config import ConfigError, compose, config_folder
from tigerrec.data.batches import NO_ITEM, padded
from tigerrec.data.histories import load_histories
from tigerrec.evaluation.metrics import item_ranks, metrics
from tigerrec.evaluation.stage import Ranking, check_lists
from tigerrec.models.dropout import Dropout
from tigerrec.models.losses import LinearCrossEntropy
from tigerrec.pipeline import plan_baseline as plan
from tigerrec.search.ranking import best_items
from tigerrec.storage.contracts import read_json, read_table
from tigerrec.storage.fingerprints import canonical_json
from tigerrec.storage.manifests import StaleError, read_manifest
from tigerrec.storage.stages import writing

ROOT = Path(__file__).parent.parent
CHOICES = sorted(path.stem for path in (config_folder() / "baseline").glob("*.yaml"))
FILES = ("metrics.json", "recommendations.parquet", "ranks.parquet")
SMALL = {"dim": 16, "epochs": 12, "batch_targets": 32, "learning_rate": 0.02, "dropout": 0.1, "precision": "fp32"}
ITEMS = 12


def small(choice: str) -> Baseline:
    """The baseline of a choice, made small where it is trained."""
    baseline = plan(compose([f"baseline={choice}"]))["baseline"].config.baseline
    sizes = SMALL | {"members": min(getattr(baseline, "members", 1), 2)}
    return replace(baseline, **{name: value for name, value in sizes.items() if hasattr(baseline, name)})


def no_validation(rank) -> float:
    return 0.0


@pytest.fixture(scope="module")
def cycles():
    """Histories of 2 to 9 items that go round the catalogue."""
    rng = np.random.default_rng(0)
    return [
        (np.arange(length) + start).astype(np.int32) % ITEMS
        for length, start in zip(rng.integers(2, 10, 150), rng.integers(0, ITEMS, 150), strict=True)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return build_run(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("choice", CHOICES)
def test_lists_keep_the_contract_and_depend_on_the_seed_alone(choice, cycles):
    baseline = small(choice)
    assert isinstance(baseline, Baseline)
    if hasattr(baseline, "epochs"):
        baseline = replace(baseline, epochs=3)
    known = [*cycles[:40], np.arange(ITEMS, dtype=np.int32)]
    first, again = (baseline.fit(cycles, ITEMS, seed=3, validate=no_validation).rank for _ in range(2))
    for seen in ("kept", "masked"):
        items, scores = first(known, k=20, mask_seen=seen == "masked")
        assert (items.shape, items.dtype, scores.dtype) == ((41, 20), np.int32, np.float32)
        check_lists(Ranking(choice, seen, items, scores), known, ITEMS)
        assert ((items >= 0).sum(1) == [ITEMS - (len(history) if seen == "masked" else 0) for history in known]).all()
        assert (scores[items < 0] == -np.inf).all()
        assert (np.diff(np.where(items >= 0, scores, -1e9), axis=1) <= 0).all()
        alike = again(known, k=20, mask_seen=seen == "masked")
        assert (alike[0] == items).all()
        assert (alike[1] == scores).all()
        assert (first(known[5:6], k=3, mask_seen=seen == "masked")[0] == items[5:6, :3]).all()


@pytest.mark.parametrize("choice", CHOICES)
def test_what_follows_is_learned_where_popularity_cannot(choice, cycles):
    known = [history for history in cycles if len(history) < 6]
    following = np.array([(history[-1] + 1) % ITEMS for history in known])
    ranks = item_ranks(
        small(choice).fit(cycles, ITEMS, seed=0, validate=no_validation).rank(known, k=3, mask_seen=True)[0], following
    )
    share = (ranks == 1).mean()
    assert share < 0.4 if choice == "popularity" else share > {"item_knn": 0.4, "sasrec_bce": 0.7}.get(choice, 0.9)


@pytest.mark.parametrize("choice", sorted(set(CHOICES) - {"popularity", "sasrec_ce_4"}))
def test_what_is_tuned_has_twelve_combinations_or_values_on_both_sides_of_the_middle(choice):
    steps = plan(compose(["dataset=beauty", f"baseline={choice}"]))
    assert list(steps) == ["prepare", "tune", "baseline"]
    tuning = steps["tune"].config
    assert len({canonical_json(trial) for trial in tuning.trials}) == (12 if tuning.values is None else 0)
    for values in (tuning.values or {}).values():
        assert list(values) == sorted(values)
        assert len(values) >= 3


def test_the_best_items_are_those_of_a_sort():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (50, 30)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.3] = -np.inf
    scores[7] = -np.inf
    items, best = best_items(scores.copy(), 25)
    for row, chosen, values in zip(scores, items, best, strict=True):
        expected = [item for item in np.argsort(-row, kind="stable") if np.isfinite(row[item])][:25]
        assert chosen.tolist() == expected + [-1] * (25 - len(expected))
        assert values.tolist() == row[expected].tolist() + [-np.inf] * (25 - len(expected))
    assert best_items(scores, 40)[0].shape == (50, 40)


def test_item_knn_is_what_its_definition_says():
    rng = np.random.default_rng(1)
    training = [rng.permutation(9)[: rng.integers(1, 6)].astype(np.int32) for _ in range(40)]
    training.append(np.array([2, 2, 3], np.int32))  # a repeated purchase counts once
    model = ItemKNN(neighbours=3, normalisation=0.7, shrinkage=2.0, recency=0.5)
    baskets = [set(history.tolist()) for history in training]
    similar = np.zeros((9, 9))
    for i in range(9):
        for j in set(range(9)) - {i}:
            common = sum({i, j} <= basket for basket in baskets)
            buyers = [sum(item in basket for basket in baskets) for item in (i, j)]
            similar[i, j] = common / (buyers[0] ** 0.7 * buyers[1] ** 0.3 + 2.0)
        similar[i, np.argsort(-similar[i], kind="stable")[3:]] = 0
    np.testing.assert_allclose(model.similarities(training, 9).toarray(), similar, rtol=1e-12)
    history = np.array([4, 0, 7], np.int32)
    items, scores = model.fit(training, 9).rank([history], k=9, mask_seen=False)
    np.testing.assert_allclose(scores[0], (similar[7] + 0.5 * similar[0] + 0.25 * similar[4])[items[0]], atol=2e-6)


def test_items_that_no_neighbour_reaches_follow_by_popularity():
    training = [np.array(items, np.int32) for items in ([0, 1], [2, 3], [3, 4], [3])]
    items, scores = ItemKNN().fit(training, 6).rank([np.array([0])], k=6, mask_seen=False)
    assert items.tolist() == [[1, 3, 0, 2, 4, 5]]
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("max_items", [1, 2, 5, 50])
def test_every_item_but_the_first_of_a_history_is_a_target_once(max_items):
    rng = np.random.default_rng(2)
    training = [rng.integers(0, 1000, length).astype(np.int32) for length in (3, 0, 1, 14, 2, 11)]
    examples = pieces(training, max_items)
    batch = examples.batch(np.arange(len(examples)))
    assert batch.items.shape == batch.targets.shape
    assert batch.items.shape[1] <= max_items
    found = list(
        zip(
            batch.items[batch.targets != NO_ITEM].tolist(),
            batch.targets[batch.targets != NO_ITEM].tolist(),
            strict=True,
        )
    )
    assert sorted(found) == sorted(
        pair for history in training for pair in zip(history[:-1].tolist(), history[1:].tolist(), strict=True)
    )
    longest = max(training, key=len)[-max_items - 1 :]
    assert any(row[row != NO_ITEM].tolist() == longest[:-1].tolist() for row in batch.items)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_cross_entropy_and_its_gradients_are_those_of_torch(with_bias, smoothing):
    torch.manual_seed(0)
    states, classes, bias = (torch.randn(shape, dtype=torch.float64).float() for shape in ((150, 8), (30, 8), (30,)))
    targets, mine, theirs = torch.randint(0, 30, (150,)), [], []
    of_torch = partial(functional.cross_entropy, reduction="sum", label_smoothing=smoothing)
    for loss, found in (
        (lambda s, c, b: LinearCrossEntropy.apply(s, c, b, targets, smoothing), mine),
        (lambda s, c, b: of_torch(functional.linear(s, c, b), targets), theirs),
    ):
        leaves = [tensor.clone().requires_grad_() for tensor in (states, classes, *([bias] if with_bias else []))]
        value = loss(*leaves, *([] if with_bias else [None]))
        (3 * value).backward()
        found += [value.detach(), *(leaf.grad for leaf in leaves)]
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_the_last_item_scores_the_next_by_a_bilinear_form():
    model = Bilinear(30, 8, 0)
    torch.nn.init.normal_(model.matrix)
    torch.nn.init.normal_(model.bias)
    vectors, matrix, bias = (tensor.detach().numpy() for tensor in (model.classes, model.matrix, model.bias))
    expected = vectors[[5, 2]] * 8**0.5 @ matrix.T @ vectors.T + bias
    np.testing.assert_allclose(model.scores([np.array([7, 5]), np.array([2])]), expected, rtol=1e-4, atol=1e-6)


def test_the_binary_loss_is_that_of_torch():
    torch.manual_seed(0)
    model, states = Bilinear(30, 8, 0), torch.randn(20, 8)
    targets, negatives = torch.randint(0, 30, (2, 20))
    scores = states @ model.classes.T
    logits = torch.cat([scores.gather(1, targets[:, None]), scores.gather(1, negatives[:, None])])
    labels = torch.cat([torch.ones(20, 1), torch.zeros(20, 1)])
    expected = functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    torch.testing.assert_close(binary_cross_entropy(model, states, targets, negatives), expected)


def test_negatives_are_drawn_evenly_from_the_items_outside_the_users_whole_history(monkeypatch):
    """Histories are cut into pieces of two items; a user's other pieces are as forbidden as the piece at hand."""
    drawn, real = [], next_item.binary_cross_entropy

    def spied(model, states, targets, negatives):
        drawn.append(torch.stack([targets % 2, negatives]))
        return real(model, states, targets, negatives)

    monkeypatch.setattr(next_item, "binary_cross_entropy", spied)
    even, odd = np.arange(0, 20, 2, dtype=np.int32), np.arange(1, 16, 2, dtype=np.int32)
    training = [odd, np.array([], np.int32), np.append(even, even[:3])] * 5
    model = SASRec(loss="bce", dim=4, max_items=2, epochs=60, batch_targets=16)
    model.fit(training, 20, seed=0, validate=no_validation)
    parity, negatives = torch.cat(drawn, dim=1)
    assert set(negatives[parity == 0].tolist()) == set(range(1, 20, 2))
    assert set(negatives[parity == 1].tolist()) == {*range(0, 20, 2), 17, 19}
    for owner in (0, 1):
        counts = torch.bincount(negatives[parity == owner])
        counts = counts[counts > 0]
        assert ((counts - counts.float().mean()).abs() < 5 * counts.float().mean().sqrt()).all()


def test_a_user_who_has_every_item_cannot_be_learned_from_by_negatives():
    with pytest.raises(TigerrecError, match="holds all 3 items"):
        SASRec(loss="bce", dim=4, epochs=1).fit([np.arange(3)], 3, seed=0, validate=no_validation)


@pytest.mark.parametrize(
    "model",
    [Transformer(9, 8, 1, 2, 16, 5, 0), FilteredTransformer(9, BSARec(dim=8, max_items=5), 0), Bilinear(9, 8, 0)],
)
def test_a_step_mixes_no_devices(model):
    """On the device `meta` there are no values: anything that waits for one, or mixes devices, fails."""
    model = model.to("meta")
    examples = pieces([np.arange(5), np.arange(2, 6)], model.max_items, "meta")
    batch = examples.batch(np.arange(len(examples)))
    places = targets_of(examples.n_targets).to("meta")
    states = model.states(batch.items, torch.bfloat16, Dropout(0.0)).flatten(0, 1)[places]
    LinearCrossEntropy.apply(states, model.classes, model.bias, batch.targets.flatten()[places], 0.0).backward()
    drawn = torch.zeros(len(places), dtype=torch.int64).to("meta")
    binary_cross_entropy(model, states.detach(), batch.targets.flatten()[places], drawn).backward()
    assert model.classes.grad.device.type == model.last_states([np.array([3]), np.array([1])]).device.type == "meta"


def test_the_places_of_targets_are_those_of_a_mask():
    examples = pieces([np.arange(7), np.arange(3), np.arange(2, 10)], 4)
    rows = np.array([2, 0, 3])
    targets = examples.batch(rows).targets
    assert torch.equal(targets.flatten()[targets_of(examples.n_targets[rows])], targets[targets != NO_ITEM])


def test_a_state_sees_the_items_before_it_only_and_no_padding():
    model = Transformer(n_items=20, dim=8, n_layers=2, n_heads=2, hidden=16, max_items=6, seed=0)
    states = lambda histories: model.states(padded(histories), torch.float32, Dropout(0.0))
    long, short = np.array([3, 1, 4, 1, 5]), np.array([3, 1, 4])
    together = states([long, short])
    torch.testing.assert_close(together[0, :3], together[1, :3])
    torch.testing.assert_close(states([short])[0], together[1, :3])
    assert not torch.allclose(states([np.array([1, 3, 4])])[0, 2], together[1, 2])
    np.testing.assert_allclose(model.scores([np.arange(9)]), model.scores([np.arange(3, 9)]), rtol=1e-6)


def test_bsarec_is_what_its_definition_says():
    """Its filter is a Fourier transform of a whole history of `max_items` places, zeros before its first item."""
    options = BSARec(dim=8, heads=2, max_items=7, slow_frequencies=1, filter_share=0.6, layers=2)
    model = FilteredTransformer(20, options, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)

    def by_definition(history: np.ndarray) -> torch.Tensor:
        n = len(history)
        states = model.norm(model.classes[torch.from_numpy(history)] + model.positions[-n:])
        for block in model.blocks:
            whole = torch.cat([torch.zeros(7 - n, 8), states])
            spectrum = torch.fft.rfft(whole, dim=0, norm="ortho")
            spectrum[2:] = 0
            slow = torch.fft.irfft(spectrum, 7, dim=0, norm="ortho")[-n:]
            filtered = block.filter_norm(states + slow + block.root_of_fast**2 * (states - slow))
            queries, keys, values = block.projections(states).view(n, 3, 2, 4).permute(1, 2, 0, 3)
            attended = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
            attended = block.attention_norm(states + block.output(attended.transpose(0, 1).flatten(1)))
            mixed = 0.6 * filtered + 0.4 * attended
            states = block.feed_forward_norm(mixed + block.narrow(functional.gelu(block.widen(mixed))))
        return states[-1]

    histories = [np.array([3, 1, 4, 1, 5]), np.array([9]), np.arange(7)]
    with torch.no_grad():
        expected = torch.stack([by_definition(history) for history in histories])
        torch.testing.assert_close(model.last_states(histories), expected)
        states = model.states(padded(histories), torch.float32, Dropout(0.0))
        torch.testing.assert_close(states[0, 2], by_definition(histories[0][:3]))
        torch.testing.assert_close(states[2, 6], expected[2])
        scores = model.scores([np.append([8, 8], histories[2])])
    np.testing.assert_allclose(scores[0], (model.classes @ expected[2]).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_the_epoch_that_validates_best_is_kept(cycles):
    shown, lists = iter([0.1, 0.3, 0.2]), []

    def validate(rank) -> float:
        lists.append(rank(cycles[:5], k=5, mask_seen=False))
        return next(shown)

    fitted = replace(small("sasrec_ce"), epochs=3, validate_every=1).fit(cycles, ITEMS, seed=0, validate=validate)
    assert fitted.facts["best_epoch"] == 2
    assert (fitted.rank(cycles[:5], k=5, mask_seen=False)[1] == lists[1][1]).all()
    assert (lists[1][1] != lists[2][1]).any()


def test_members_score_as_one_by_their_mean_and_the_first_is_a_model_of_one(cycles, monkeypatch):
    asked, scores = [], NextItemModel.scores
    monkeypatch.setattr(
        NextItemModel, "scores", lambda model, histories: asked.append(model) or scores(model, histories)
    )
    alone, two = (
        replace(small("sasrec_ce"), epochs=2, members=n).fit(cycles, ITEMS, seed=0, validate=no_validation)
        for n in (1, 2)
    )
    alone.rank(cycles[:7], k=ITEMS, mask_seen=False)
    items, values = two.rank(cycles[:7], k=ITEMS, mask_seen=False)
    single, first, second = (scores(model, cycles[:7]) for model in dict.fromkeys(asked))
    np.testing.assert_array_equal(single, first)
    assert np.abs(first - second).max() > 0.01
    expected = np.take_along_axis((first + second) / 2, items, axis=1)
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)
    assert two.facts["members"][0] == alone.facts


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (ItemKNN, {"neighbours": 0}, "neighbours must be at least 1"),
        (ItemKNN, {"recency": 0.0}, "recency must be above 0"),
        (LastItem, {"dim": 0}, "dim must be at least 1"),
        (LastItem, {"dropout": 1.0}, "dropout must be below 1"),
        (SASRec, {"loss": "hinge"}, "loss must be 'ce' or 'bce', got 'hinge'"),
        (SASRec, {"dim": 10, "heads": 4}, "dim must be a multiple of heads=4, got 10"),
        (SASRec, {"precision": "fp8"}, "precision must be 'auto', 'fp32' or 'bf16'"),
    ],
)
def test_settings_out_of_range(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


def test_histories_too_short_to_learn_from_are_refused():
    with pytest.raises(TigerrecError, match="No history is long enough"):
        small("last_item").fit([np.array([1])] * 3, 5, seed=0, validate=no_validation)


TUNING = TuneConfig(replace(small("last_item"), epochs=2), combinations({"dim": [4, 8], "dropout": [0.0, 0.5]}))


def without_seconds(folder: Path) -> list[dict]:
    return [
        {key: value for key, value in trial.items() if key != "seconds"} for trial in read_json(folder, "trials.json")
    ]


@pytest.fixture(scope="module")
def tuned(run):
    return tune(run["prepare"], TUNING, run["prepare"] / "baselines" / "last_item-tuning")


def test_a_tuning_holds_all_trials_and_chooses_the_best(run, tuned):
    trials = read_json(tuned, "trials.json")
    assert [trial["settings"] for trial in trials] == list(TUNING.trials)
    best = max(trials, key=lambda trial: trial["validation_ndcg@10"])
    assert read_json(tuned, "chosen.json") == best["settings"]
    for trial in trials:
        assert 0 < trial["validation_ndcg@10"] <= trial["validation_hr@10"] <= 1
        assert trial["best_epoch"] in (1, 2)
        assert trial["seconds"] > 0
    assert not (tuned / "trials").exists()


def test_a_climb_goes_from_the_middle_up_and_down_until_no_neighbour_is_better():
    values, asked = {"b": (0, 1, 2, 3, 4), "a": (0, 1, 2, 3, 4)}, []
    heights = {(1, 2): 2, (0, 2): 1, (1, 1): 3, (1, 0): 2, (2, 1): 4, (2, 0): 5, (3, 0): 1, (1, 3): 1}  # a, b

    def score(settings):
        asked.append((settings["a"], settings["b"]))
        return heights.get(asked[-1], 0)

    assert tuning.climb(values, score) == {"a": 2, "b": 0}
    once = list(dict.fromkeys(asked))
    down = [(2, 2), (3, 2), (1, 2), (0, 2), (1, 3), (1, 1), (1, 0)]
    assert once == [*down, (2, 1), (3, 1), (2, 0), (3, 0)]
    assert tuning.climb({"a": (1, 2, 3)}, lambda _: 0.0) == {"a": 2}


def test_a_climb_tries_every_neighbour_of_what_it_chooses_and_fits_nothing_twice(run, tuned, tmp_path, monkeypatch):
    values = {"dim": (4, 8, 12), "dropout": (0.0, 0.25, 0.5, 0.75)}
    real, ran = tuning.run_trial, []
    monkeypatch.setattr(tuning, "run_trial", lambda *given: ran.append(given[1]) or real(*given))
    tune(run["prepare"], TuneConfig(TUNING.baseline, (), values=values), tmp_path)
    assert len(ran) == len(set(ran))
    trials = {tuple(trial["settings"].values()): trial for trial in read_json(tmp_path, "trials.json")}
    chosen = tuple(read_json(tmp_path, "chosen.json").values())
    neighbours = {
        tuple(given[place] if name == changed else now for name, now in zip(values, chosen, strict=True))
        for changed, given in values.items()
        for place in range(len(given))
        if abs(place - given.index(chosen[list(values).index(changed)])) == 1
    }
    assert neighbours <= trials.keys()
    best = trials[chosen]["validation_ndcg@10"]
    assert all(trials[neighbour]["validation_ndcg@10"] <= best for neighbour in neighbours)
    of_grid = {
        tuple(trial["settings"].values()): trial["validation_ndcg@10"] for trial in read_json(tuned, "trials.json")
    }
    assert all(trials[place]["validation_ndcg@10"] == of_grid[place] for place in trials.keys() & of_grid.keys())


@pytest.mark.parametrize(("chosen", "ends"), [((1, 0.1, "a"), ["x"]), ((2, 0.0, "b"), ["y"]), ((2, 0.1, "a"), [])])
def test_what_was_chosen_at_an_end_of_the_values_tried_is_named(chosen, ends):
    trials = [
        {"settings": {"x": x, "y": y, "z": z, "one": 5}} for x in (1, 2, 3) for y in (0.0, 0.1, 0.2) for z in "ab"
    ]
    assert tuning.at_an_end(trials, dict(zip("xyz", chosen, strict=True)) | {"one": 5}) == ends


def stopping_at_trial(number: int, monkeypatch) -> list:
    """The baselines of trials as they run; that of a number is stopped once."""
    real, ran, asked = tuning.run_trial, [], itertools.count(1)

    def counted(histories, baseline, seed):
        if next(asked) == number:
            raise KeyboardInterrupt
        ran.append(baseline)
        return real(histories, baseline, seed)

    monkeypatch.setattr(tuning, "run_trial", counted)
    return ran


def test_a_stopped_climb_goes_on_without_repeating_trials(run, tmp_path, monkeypatch):
    config = TuneConfig(TUNING.baseline, (), values={"dim": (4, 8, 12), "dropout": (0.0, 0.25, 0.5)})
    whole = tune(run["prepare"], config, tmp_path / "whole")
    ran = stopping_at_trial(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        tune(run["prepare"], config, tmp_path / "stopped")
    tune(run["prepare"], config, tmp_path / "stopped")
    assert len(ran) == len(set(ran)) > 2
    assert without_seconds(tmp_path / "stopped") == without_seconds(whole)


def test_a_stopped_tuning_goes_on_without_repeating_trials(run, tuned, tmp_path, monkeypatch):
    ran = stopping_at_trial(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        tune(run["prepare"], TUNING, tmp_path)
    assert read_manifest(tmp_path) is None
    ran.clear()
    finished = sorted((tmp_path / "trials").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    finished[0].write_text("{damaged")
    tune(run["prepare"], TUNING, tmp_path)
    assert ran == [replace(TUNING.baseline, **settings) for settings in (TUNING.trials[0], TUNING.trials[3])]
    assert without_seconds(tmp_path) == without_seconds(tuned)


def test_validation_asks_for_the_item_before_the_last_given_all_before_it_with_those_masked(run):
    histories = load_histories(run["prepare"])
    users, asked = np.array([3, 11, 7]), {}

    def rank(known, *, k, mask_seen):
        asked.update(known=known, mask_seen=mask_seen)
        items = np.full((len(known), k), -1, np.int32)
        items[0, 0], items[1, 2] = histories[3][-2], histories[11][-2]  # found at ranks 1 and 3; the third user's not
        items[2, 0] = histories[7][-1]
        return items, np.zeros(items.shape, np.float32)

    found = stage.validate(rank, histories, users)
    assert [known.tolist() for known in asked["known"]] == [histories[user][:-2].tolist() for user in users]
    assert asked["mask_seen"] is True
    assert found == {"validation_hr@10": pytest.approx(2 / 3), "validation_ndcg@10": pytest.approx((1 + 1 / 2) / 3)}


def test_tuning_never_looks_at_test_items(run, tuned, tmp_path):
    table = read_table(run["prepare"], "interactions.parquet")
    last = np.flatnonzero(np.diff(table["user"].to_numpy(), append=-1))
    items = table["item"].to_numpy().copy()
    items[last] = (items[last] + 1 + np.arange(len(last))) % N_ITEMS
    with writing(tmp_path / "poisoned", "prepare", {"seed": 0}) as files:
        files.parquet("items.parquet", read_table(run["prepare"], "items.parquet"))
        files.parquet(
            "interactions.parquet",
            table.set_column(table.schema.get_field_index("item"), "item", pa.array(items, pa.int32())),
        )
        files.json("stats.json", read_json(run["prepare"], "stats.json"))
    poisoned = tune(tmp_path / "poisoned", TUNING, tmp_path / "tuning")
    assert without_seconds(poisoned) == without_seconds(tuned)


@pytest.mark.parametrize("split_name", ["test", "validation"])
def test_a_measured_baseline_is_written_as_a_generator_is(run, tuned, tmp_path, split_name):
    config = BaselineConfig(TUNING.baseline, "mine", split=split_name)
    out = measure(run["prepare"], tuned, config, tmp_path)
    assert {name: read_manifest(out).provenance["settings"][name] for name in ("dim", "dropout")} == read_json(
        tuned, "chosen.json"
    )
    histories = load_histories(run["prepare"])
    targets = np.array([histories.split(user, split_name)[1] for user in range(N_USERS)])
    lists = read_table(out, "recommendations.parquet").to_pandas()
    ranks = read_table(out, "ranks.parquet").to_pandas()
    rows = read_json(out, "metrics.json")
    assert [(row["model"], row["split"], row["hit"], row["seen"], row["users"]) for row in rows] == [
        ("mine", split_name, "item", seen, N_USERS) for seen in ("kept", "masked")
    ]
    for row in rows:
        chosen = lists[lists["seen"] == row["seen"]]
        items = np.full((N_USERS, 20), -1)
        items[chosen["user"], chosen["rank"] - 1] = chosen["item"]
        found = item_ranks(items, targets)
        assert {key: row[key] for key in row if "@" in key} == metrics(found)
        assert ranks[ranks["seen"] == row["seen"]]["rank"].tolist() == found.tolist()
    again = measure(run["prepare"], tuned, config, tmp_path / "again")
    for name in FILES:
        assert (out / name).read_bytes() == (again / name).read_bytes()


def test_popularity_measured_alone_is_popularity_beside_a_generator(run, tmp_path):
    from tigerrec.evaluation.stage import EvaluateConfig, evaluate

    alone = measure(run["prepare"], None, BaselineConfig(Popularity(), "popularity"), tmp_path / "alone")
    beside = evaluate(
        run["prepare"], run["tokenize"], run["train"], EvaluateConfig(model="tiny", device="cpu"), tmp_path / "beside"
    )
    rows = [row for row in read_json(beside, "metrics.json") if (row["model"], row["hit"]) == ("popularity", "item")]
    assert read_json(alone, "metrics.json") == rows


def test_a_tuning_on_other_interactions_is_refused(tuned, tmp_path):
    other = build_run(tmp_path, seed=1)
    with pytest.raises(StaleError, match="made from another 'prepare'"):
        measure(other["prepare"], tuned, BaselineConfig(TUNING.baseline, "mine"), tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["baseline=item_knn", "baseline.neighbors=[3]"],
            r"baseline\.neighbors is not an option; allowed: .*neighbours",
        ),
        (
            ["baseline=item_knn", "+baseline.neighbors=[3,4]"],
            r"baseline\.neighbors is not an option; allowed: family, name, neighbours, ",
        ),
        (["baseline=item_knn", "baseline.recency=[0.5,2.0]"], r"baseline.recency must be at most 1"),
        (["baseline=item_knn", "baseline.recency=[0.5,much]"], r"baseline\.recency='much' has the wrong type"),
        (["baseline=item_knn", "baseline.family=[item_knn]"], r"baseline\.family="),
        (["baseline=item_knn", "baseline.recency=[]"], r"baseline\.recency=\[\] holds no value"),
        (["baseline=item_knn", "baseline.search=random"], r"baseline\.search=random must be one of grid, climb"),
        (["baseline=item_knn", "baseline.seed=-1"], r"baseline\.seed=-1 must be a whole number"),
        (["+baseline.dim=3"], r"baseline\.dim is not an option"),
    ],
)
def test_a_wrong_option_is_named_before_any_work(options, message):
    with pytest.raises(ConfigError, match=message):
        plan(compose(options))


def test_a_setting_that_is_given_is_not_tuned():
    tuned = plan(compose(["baseline=bsarec", "baseline.dropout=0.25"]))["tune"].config
    assert set(tuned.values) == {"dim", "learning_rate", "epochs", "filter_share"}
    wider = plan(compose(["baseline=bsarec", "baseline.layers=[1,2]", "baseline.dropout=0.25"]))["tune"].config
    assert wider.values == tuned.values | {"layers": (1, 2)}
    assert wider.baseline.dropout == 0.25


def test_a_grid_has_all_combinations():
    options = ["baseline=item_knn", "baseline.search=grid", "baseline.neighbours=50", "baseline.recency=[0.4,0.6]"]
    config = plan(compose([*options, "baseline.shrinkage=[1,2]", "baseline.normalisation=[0.5]"]))["tune"].config
    assert config.trials == combinations({"shrinkage": (1.0, 2.0), "recency": (0.4, 0.6)})
    assert config.values is None


@pytest.mark.parametrize("search", ["grid", "climb"])
def test_settings_that_do_not_go_together_are_named_before_any_work(search):
    options = ["baseline=sasrec_ce", f"baseline.search={search}", "baseline.dim=[6,8,64]", "baseline.heads=[1,2,3]"]
    with pytest.raises(ConfigError, match=r"multiple of heads=3, got 8, with .*baseline\.dim=8, .*do not go together"):
        plan(compose(options))


def test_a_climb_takes_numbers_in_their_order_and_equal_ones_once():
    alone = ["baseline=item_knn", "baseline.neighbours=50", "baseline.normalisation=0.5", "baseline.shrinkage=10"]
    shuffled = plan(compose([*alone, "baseline.recency=[0.9,0.4,0.6,0.9]"]))["tune"].config
    assert shuffled.values == {"recency": (0.4, 0.6, 0.9)}
    assert "tune" not in plan(compose([*alone, "baseline.recency=[0.4,0.4]"]))


def test_a_list_of_one_value_is_that_value():
    given, listed = (plan(compose(["baseline=sasrec_ce", f"baseline.dropout={value}"])) for value in ("0.25", "[0.25]"))
    assert [step.config for step in given.values()] == [step.config for step in listed.values()]


def test_what_tuning_chose_does_not_stand_for_what_is_given(tmp_path):
    options = [
        "baseline=item_knn",
        "baseline.shrinkage=10",
        "baseline.normalisation=0.5",
        "baseline.neighbours=100",
        f"paths.runs={tmp_path}",
    ]
    pipeline.bring_up_to_date(plan(compose(options)), "baseline", None)
    with pytest.raises(StaleError, match="item_knn-seed0"):
        pipeline.bring_up_to_date(plan(compose([*options, "baseline.recency=0.4"])), "baseline", None)
    with pytest.raises(StaleError) as stale:
        pipeline.bring_up_to_date(plan(compose([*options, "baseline.neighbours=50"])), "baseline", None)
    assert len(str(stale.value)) < 400


def test_without_settings_to_choose_from_nothing_is_tuned():
    assert list(plan(compose([]))) == ["prepare", "baseline"]
    given = ["baseline.dim=128", "baseline.learning_rate=[0.002]", "baseline.dropout=0.4", "baseline.epochs=3"]
    steps = plan(compose(["baseline=sasrec_ce", *given, "baseline.seed=3", "evaluate.split=validation"]))
    assert steps["baseline"].config.baseline.dropout == 0.4
    assert list(steps) == ["prepare", "baseline"]
    assert steps["baseline"].folder == Path("runs/sample/baselines/sasrec_ce-seed3")
    assert (steps["baseline"].config.split, steps["baseline"].config.seed) == ("validation", 3)


def test_the_command_tunes_once_and_prints_the_folder_last(tmp_path, command):
    settings = [f"baseline.{setting}" for setting in ("epochs=1", "dim=[4,8]", "dropout=0.5", "learning_rate=0.01")]
    told = ["baseline", "baseline=last_item", *settings, f"paths.runs={tmp_path}"]
    done = command(*told)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "sample" / "baselines" / "last_item-seed0")
    assert all((Path(done.stdout.splitlines()[-1]) / name).exists() for name in FILES)
    again = command(*told, "baseline.seed=1")
    assert "tune: up to date" in again.stderr
    assert again.stdout.splitlines()[-1].endswith("last_item-seed1")
    stale = command(*told, "baseline.epochs=2")
    assert stale.returncode == 1
    assert stale.stderr.splitlines()[-1].startswith("Error: ")
    assert "epochs: 1 → 2" in stale.stderr
    assert "overwrite=tune" in stale.stderr
