"""`t5_tree`: its probabilities, its losses, and its search, against plain sums over the items of a catalogue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.test_beam_search import catalogue, random_histories
from tigerrec.data.batches import NO_ITEM, Batch, padded
from tigerrec.models.dropout import Dropout
from tigerrec.models.loading import load_generator, save_generator
from tigerrec.models.t5_tree import T5Tree
from tigerrec.models.t5_tree_model import TreeT5
from tigerrec.models.tree_loss import FamilyCrossEntropy
from tigerrec.search.options import Scoring
from tigerrec.search.scoring import best, path_scores, with_cold_places
from tigerrec.search.searcher import Searcher
from tigerrec.tokenizers.ids import SemanticIds
from tigerrec.tokenizers.trie import build_trie

N_ITEMS = 60
SIZES = {"num_layers": 2, "d_model": 32, "num_heads": 2, "d_kv": 16, "d_ff": 48, "max_items": 6, "node_dropout": 0.0}
EXACT = Dropout(0.0)
SETTINGS = [
    ("item_causal", {}),
    ("item_causal", {"decoder_layers": 2, "members": 3}),
    ("bidirectional", {"decoder_layers": 1}),
    ("item_causal", {"node_embeddings": False}),
]


def model_of(ids: SemanticIds, mask: str = "item_causal", vectors: np.ndarray | None = None, **options) -> TreeT5:
    """A model whose weights all matter."""
    model = T5Tree(**SIZES | options, item_vectors=vectors is not None).new(ids, mask, 0, vectors)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def item_vectors(n: int = N_ITEMS) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(n, 5)).astype(np.float32)


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def setting(request) -> tuple[SemanticIds, TreeT5, list[np.ndarray]]:
    ids = catalogue(N_ITEMS)
    mask, options = request.param
    return ids, model_of(ids, mask, **options), random_histories(12, N_ITEMS)


def states(model: TreeT5, history: np.ndarray) -> list[torch.Tensor]:
    """Each member's encoder output at the last item of a history that is read, (d,)."""
    read = torch.from_numpy(history[-6:].astype(np.int64))[None]
    return [
        model.encode(member, read, table, torch.float32, EXACT)[0, -1]
        for member, table in zip(model.members, tables_of(model), strict=True)
    ]


def tables_of(model: TreeT5) -> list[torch.Tensor]:
    """Each member's embeddings of items."""
    return [model.item_table(member, torch.float32) for member in model.members]


def item_logits(tables: list[torch.Tensor], states: list[torch.Tensor]) -> torch.Tensor:
    """The mean over members of what each gives every item, (I,)."""
    return torch.stack([table @ state for table, state in zip(tables, states, strict=True)]).mean(0)


class Definition:
    """What the definition of the model, or of some of its members, says, a node at a time."""

    def __init__(self, model: TreeT5, members: list[int] | None = None) -> None:
        self.model, self.members = model, list(range(len(model.members))) if members is None else members
        self.rows = [tuple(row) for row in model.tokens.tolist()]
        self.children = self._children(self.rows)
        trained = self.rows[: len(model.item_embeddings()[0])]
        of_trained = self._children(trained)
        several = sorted(
            (prefix for prefix in of_trained if len(of_trained[prefix]) > 1), key=lambda prefix: (len(prefix), prefix)
        )
        own = [child for prefix in several for child in of_trained[prefix]]  # by depth and prefix: in the model's order
        self.vectors = [
            {
                node: member.shared.weight[node[-1]]
                + (member.node_embeddings.weight[own.index(node)] if member.node_embeddings and node in own else 0.0)
                for children in self.children.values()
                for node in children
            }
            for member in model.members
        ]

    @staticmethod
    def _children(rows: list[tuple[int, ...]]) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
        """The children of each prefix of some items, in order."""
        nodes = sorted({row[:depth] for row in rows for depth in range(1, len(row) + 1)})
        found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for node in nodes:
            found.setdefault(node[:-1], []).append(node)
        return found

    def log_probabilities(self, history: np.ndarray) -> list[float]:
        """Of every item after a history: the sum over levels of a log-softmax over siblings."""
        encoded, of_node = states(self.model, history), {(): 0.0}
        for prefix in sorted(self.children, key=len):
            by_member = []
            for number in self.members:
                vectors, read = self.vectors[number], encoded[number]
                before = sum((vectors[prefix[: end + 1]] for end in range(len(prefix))), torch.zeros_like(read))
                for block in self.model.members[number].prefix_blocks:
                    read = block(read, before, torch.float32, EXACT)
                by_member.append(torch.stack([read @ vectors[child] for child in self.children[prefix]]))
            scores = torch.stack(by_member).mean(0).log_softmax(0)
            for child, score in zip(self.children[prefix], scores.tolist(), strict=True):
                of_node[child] = of_node[prefix] + score
        return [of_node[row] for row in self.rows]


@torch.no_grad()
def every_log_probability(model: TreeT5, histories: list[np.ndarray], members: list[int] | None = None) -> np.ndarray:
    definition = Definition(model, members)
    return np.array([definition.log_probabilities(history) for history in histories])


def test_probabilities_of_all_items_sum_to_one(setting):
    _ids, model, histories = setting
    searcher = Searcher.of(model, "fp32")
    items, scores = searcher.rank(histories, k=N_ITEMS, beam_size=N_ITEMS, mask_seen=False)
    assert (np.sort(items, axis=1) == np.arange(N_ITEMS)).all()
    np.testing.assert_allclose(np.exp(scores.astype(np.float64)).sum(1), 1.0, atol=1e-5)


@pytest.mark.parametrize("mask_seen", [False, True])
def test_beam_as_wide_as_the_catalogue_equals_exhaustive_scoring(setting, mask_seen):
    _ids, model, histories = setting
    items, scores = Searcher.of(model, "fp32").rank(histories, k=N_ITEMS, beam_size=N_ITEMS, mask_seen=mask_seen)
    expected = every_log_probability(model, histories)
    for user, history in enumerate(histories):
        if mask_seen:
            expected[user, history] = -np.inf
        n_listed = int((items[user] != NO_ITEM).sum())
        assert n_listed == N_ITEMS - (len(set(history.tolist())) if mask_seen else 0)
        np.testing.assert_allclose(scores[user, :n_listed], -np.sort(-expected[user])[:n_listed], atol=1e-4)
        np.testing.assert_allclose(scores[user, :n_listed], expected[user, items[user, :n_listed]], atol=1e-4)


def test_paths_have_the_scores_of_exhaustive_scoring(setting):
    ids, model, histories = setting
    trie = build_trie(ids.tokens)
    with torch.inference_mode():
        decoder = model.along(trie).decoder(padded([history[-6:] for history in histories]), torch.float32)
    wanted = torch.from_numpy(np.random.default_rng(0).integers(0, N_ITEMS, (len(histories), 7)))
    wanted[:, 3] = NO_ITEM
    found = path_scores(decoder, trie, wanted).numpy()
    assert (found[:, 3] == -np.inf).all()
    expected = np.take_along_axis(every_log_probability(model, histories), wanted.clamp(min=0).numpy(), 1)
    kept = [0, 1, 2, 4, 5, 6]
    np.testing.assert_allclose(found[:, kept], expected[:, kept], atol=1e-4)


def test_losses_are_those_of_the_definition(setting):
    _ids, model, _histories = setting
    pairs = [([3], 17), ([3, 17], 5), ([3, 17, 5], 40), ([3, 17, 5, 40], 9), ([8], 2), ([8, 2], 11)]
    if model.facts["encoder_mask"] == "item_causal":  # all targets of a row share one pass
        items = torch.tensor([[3, 17, 5, 40], [8, 2, NO_ITEM, NO_ITEM]])
        targets = torch.tensor([[17, 5, 40, 9], [2, 11, NO_ITEM, NO_ITEM]])
        batch = Batch(items, targets, torch.tensor([[1, 2, 3, 4]]))
    else:
        items = padded([np.array(history) for history, _ in pairs])
        targets = torch.tensor([[target] for _, target in pairs])
        batch = Batch(items, targets, (items >= 0).sum(1, keepdim=True))
    known = torch.tensor(sorted(set(range(N_ITEMS)) - {30, 31}))
    for number, table in enumerate(tables_of(model)):  # each member by itself
        with torch.no_grad():
            tokens, whole = model.losses(batch, torch.float32, EXACT, known=known, member=number)
        scores = every_log_probability(model, [np.array(history) for history, _ in pairs], [number])
        of_tokens = -sum(row[target] for row, (_, target) in zip(scores, pairs, strict=True))
        of_items = 0.0
        for history, target in pairs:
            logits, label = table[known] @ states(model, np.array(history))[number], known.tolist().index(target)
            of_items += functional.cross_entropy(logits, torch.tensor(label)).item()
        assert tokens.item() == pytest.approx(of_tokens, abs=1e-3)
        assert whole.item() == pytest.approx(of_items, abs=1e-3)


FAMILIES = {  # rows of each family and how often a choice is made there
    "few choices in small families": ([4, 2, 3], [3, 1, 2]),
    "many choices": ([4, 2], [9, 12]),
    "few choices in a large family": ([20], [3]),
    "all kinds": ([20, 3, 2, 5], [2, 9, 1, 3]),
}


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_loss_of_families_and_its_gradients_are_those_of_torch(kind, label_smoothing):
    sizes, n_choices = FAMILIES[kind]
    generator = torch.Generator().manual_seed(0)
    start = torch.tensor([0, *np.cumsum(sizes)])
    families = torch.repeat_interleave(torch.tensor(n_choices))
    possible = torch.ones(int(start[-1]), dtype=torch.bool)
    possible[start[1:] - 1] = torch.tensor([size == 2 for size in sizes])  # of larger families the last is none
    offsets = torch.rand(len(families), generator=generator) * (start.diff() - 1)[families]
    chosen = start[families] + offsets.long()
    shapes = (len(families), 8), (len(possible), 8)
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    found = FamilyCrossEntropy.apply(*leaves, start, possible, families, chosen, label_smoothing)
    gradients = torch.autograd.grad(2.5 * found, leaves)
    expected = torch.zeros(())
    for one, family, row in zip(leaves[0], families, chosen, strict=True):
        low, high = start[family], start[family + 1]
        scores = (leaves[1][low:high] @ one)[possible[low:high]]
        expected = expected + functional.cross_entropy(scores, row - low, label_smoothing=label_smoothing)
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients, torch.autograd.grad(2.5 * expected, leaves), strict=True):
        torch.testing.assert_close(one, other)


def test_relabelled_items_are_ranked_the_same():
    ids, histories = catalogue(N_ITEMS), random_histories(6, N_ITEMS)
    numbers = np.random.default_rng(1).permutation(N_ITEMS)
    shuffled = replace(ids, codes=ids.codes[np.argsort(numbers)])  # item i is called numbers[i] there
    options = {"decoder_layers": 1, "members": 2}
    model, other = model_of(ids, **options), T5Tree(**SIZES, **options).new(shuffled, "item_causal", 0)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(weights[name])
        for table, same in zip(other.item_embeddings(), model.item_embeddings(), strict=True):
            table.copy_(same[np.argsort(numbers)])
    for scores in ("codes", "items", "hybrid", "inline"):
        lists = [
            Searcher.of(each, "fp32", scoring=Scoring(scores)).rank(read, k=10, beam_size=20, mask_seen=True)
            for each, read in ((model, histories), (other, [numbers[history] for history in histories]))
        ]
        assert np.array_equal(numbers[lists[0][0]], lists[1][0])
        np.testing.assert_allclose(lists[0][1], lists[1][1], atol=1e-5)


def further(ids: SemanticIds, n: int) -> np.ndarray:
    """The tokens of items beside those of a catalogue: some below nodes that it has, some below none."""
    taken = {tuple(row) for row in ids.codes.tolist()}
    rng, rows = np.random.default_rng(9), []
    while len(rows) < n:
        row = tuple(int(rng.integers(0, size)) for size in ids.layout.level_sizes)
        if row not in taken:
            taken.add(row)
            rows.append(row)
    return ids.layout.to_tokens(np.array(rows))


def test_new_items_are_scored_by_their_codes_and_old_nodes_keep_their_embeddings():
    """Nodes are known by their prefix: new items give nodes of the trie other numbers."""
    ids, histories = catalogue(N_ITEMS), random_histories(5, N_ITEMS)
    model = model_of(ids, decoder_layers=1, members=2)
    new = further(ids, 8)
    searcher = Searcher.of(model, "fp32").with_items(new)
    items, scores = searcher.rank(histories, k=68, beam_size=68, mask_seen=False)
    assert (np.sort(items, axis=1) == np.arange(68)).all()
    np.testing.assert_allclose(np.exp(scores.astype(np.float64)).sum(1), 1.0, atol=1e-5)
    expected = every_log_probability(searcher.model, histories)
    np.testing.assert_allclose(scores, np.take_along_axis(expected, items, 1), atol=1e-4)


def test_embeddings_of_prefixes_that_training_never_saw_do_not_exist():
    """However large the embeddings of nodes are, below a prefix that is new only codes count."""
    ids = catalogue(N_ITEMS)
    model = model_of(ids)
    new = further(ids, 200)
    rows = model.with_items(new).row_of_item[N_ITEMS:].numpy()
    known = {tuple(row[: depth + 1]) for row in ids.tokens.tolist() for depth in range(4)}
    for tokens, of_item in zip(new.tolist(), rows.tolist(), strict=True):
        for depth in range(4):
            if tuple(tokens[: depth + 1]) not in known:
                assert of_item[depth] == -1
    assert (rows >= 0).any()
    assert (rows < 0).any()


def test_nodes_without_siblings_cost_nothing():
    model = model_of(catalogue(N_ITEMS))
    tokens = [tuple(row) for row in model.tokens.tolist()]
    with_siblings = set()
    for depth in range(4):
        for parent in {row[:depth] for row in tokens}:
            children = {row[: depth + 1] for row in tokens if row[:depth] == parent}
            with_siblings |= children if len(children) > 1 else set()
    assert len(model.members[0].node_embeddings.weight) == len(with_siblings)


@pytest.mark.parametrize("node_embeddings", [True, False])
def test_a_saved_model_is_the_same_and_its_files_are_its_own(node_embeddings, tmp_path: Path):
    ids, histories, vectors = catalogue(N_ITEMS), random_histories(5, N_ITEMS), item_vectors()
    model = model_of(ids, vectors=vectors, decoder_layers=1, members=2, node_embeddings=node_embeddings)
    assert {path.name for path in save_generator(model, tmp_path)} == {"config.json", "model.safetensors"}
    loaded = load_generator(tmp_path, ids)
    for scores in ("codes", "hybrid"):
        first, second = (
            Searcher.of(each, "fp32", scoring=Scoring(scores)).rank(histories, k=10, beam_size=20, mask_seen=True)
            for each in (model, loaded)
        )
        assert np.array_equal(first[0], second[0])
        assert np.array_equal(first[1], second[1])


def dense_scores(model: TreeT5, histories: list[np.ndarray], weight: float) -> np.ndarray:
    """log p(codes) + weight * log p(item) of every item."""
    by_codes = every_log_probability(model, histories)
    with torch.no_grad():
        tables = tables_of(model)
        by_items = torch.stack([item_logits(tables, states(model, history)).log_softmax(0) for history in histories])
    return by_codes + weight * by_items.numpy()


@pytest.mark.parametrize("scores", ["items", "hybrid", "inline"])
def test_lists_as_long_as_the_catalogue_are_ordered_by_the_scores_asked_for(scores):
    ids, histories = catalogue(N_ITEMS), random_histories(6, N_ITEMS)
    model = model_of(ids)
    items, found = Searcher.of(model, "fp32", scoring=Scoring(scores, 2.0)).rank(
        histories, k=N_ITEMS, beam_size=N_ITEMS, mask_seen=True
    )
    if scores == "items":
        expected = dense_scores(model, histories, 1.0) - dense_scores(model, histories, 0.0)
    elif scores == "hybrid":
        expected = dense_scores(model, histories, 2.0)
    else:
        expected = inline_scores(model, histories, 2.0)
    for user, history in enumerate(histories):
        n_listed = N_ITEMS - len(set(history.tolist()))
        listed = items[user, :n_listed]
        assert (items[user, n_listed:] == NO_ITEM).all()
        assert not set(listed) & set(history.tolist())
        np.testing.assert_allclose(found[user, :n_listed], expected[user, listed], atol=1e-3)
        assert (np.diff(found[user, :n_listed]) <= 0).all()


def inline_scores(model: TreeT5, histories: list[np.ndarray], weight: float) -> np.ndarray:
    masses = np.exp(dense_scores(model, histories, 1.0) - dense_scores(model, histories, 0.0))
    return steered(model, every_log_probability(model, histories), masses, weight)


def steered(model: TreeT5, by_codes: np.ndarray, masses: np.ndarray, weight: float) -> np.ndarray:
    """The definition, a node at a time: the children of a node share its probability by the tree's times the mass of
    the items below, to the power of the weight."""
    rows = [tuple(row) for row in model.tokens.tolist()]
    found = np.zeros(by_codes.shape)
    probabilities = np.exp(by_codes)
    for user in range(len(by_codes)):
        for item, own in enumerate(rows):
            for depth in range(len(own)):
                children = sorted({row[: depth + 1] for row in rows if row[:depth] == own[:depth]})
                below = [[n for n, row in enumerate(rows) if row[: depth + 1] == child] for child in children]
                logits = np.array(
                    [np.log(probabilities[user, at].sum()) + weight * np.log(masses[user, at].sum()) for at in below]
                )
                logits -= np.log(np.exp(logits).sum())
                found[user, item] += logits[children.index(own[: depth + 1])]
    return found


def test_the_best_of_equal_scores_keep_the_order_given():
    random = np.random.default_rng(0)
    for n_items in [0, 1, 7, 40] * 10:
        scores = random.choice([-np.inf, 0.0, 1.0, 2.0], (3, n_items)).astype(np.float32)
        for k in (1, 5, 60):
            items, found = best(torch.arange(n_items), torch.from_numpy(scores), k)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            expected = np.take_along_axis(scores, order, 1)
            assert np.array_equal(found, expected)
            assert np.array_equal(items, np.where(expected == -np.inf, NO_ITEM, order))


def test_a_silent_tree_steered_by_the_head_is_the_full_softmax():
    ids, histories = catalogue(N_ITEMS), random_histories(6, N_ITEMS)
    model = model_of(ids)
    with torch.no_grad():
        model.members[0].node_embeddings.weight.zero_()
        tree = Searcher.of(model, "fp32", scoring=Scoring("inline", 1.0))
        tree.reader.nodes = [torch.zeros_like(nodes) for nodes in tree.reader.nodes]
    of_items = Searcher.of(model, "fp32", scoring=Scoring("items"))
    steered, whole = (each.rank(histories, k=N_ITEMS, beam_size=N_ITEMS, mask_seen=False) for each in (tree, of_items))
    np.testing.assert_allclose(steered[1], whole[1], atol=1e-4)
    np.testing.assert_allclose(np.exp(steered[1]).sum(1), 1.0, atol=1e-5)


def test_nodes_are_dropped_whatever_the_dropout_of_states():
    """What is kept makes up for what is dropped: the mean over many dropouts is what is learned."""
    model = model_of(catalogue(N_ITEMS))
    member = model.members[0]
    whole = member.rows(model.token_of_row, EXACT)
    for rate in (0.0, 0.4):
        dropout = Dropout(rate, 5)
        drawn = torch.stack([member.rows(model.token_of_row, dropout.at(0.3)) for _ in range(2000)])
        torch.testing.assert_close(drawn.mean(0), whole, atol=0.03, rtol=0)
        codes = functional.embedding(model.token_of_row, member.shared.weight)
        assert (drawn == codes).float().mean() == pytest.approx(0.3, abs=0.01)


def test_the_head_learns_nothing_of_items_held_out_and_does_not_rank_them():
    """Their embeddings are zeros, and no gradient ever reaches them or the nodes above nothing else."""
    ids = catalogue(N_ITEMS)
    model = model_of(ids, members=2)
    known = torch.arange(10, N_ITEMS)
    model.keep_only(known, known)
    batch = Batch(torch.tensor([[30, 12]]), torch.tensor([[12, 55]]), torch.tensor([[1, 2]]))
    for member in range(2):
        sum(model.losses(batch, torch.float32, EXACT, known=known, member=member)).backward()
    for weight in model.item_embeddings():
        assert not weight.grad[:10].any()
        assert weight.grad[10:].any(1).all()
    rows = model.row_of_item
    of_held_out_alone = np.setdiff1d(rows[:10], rows[10:])
    assert len(of_held_out_alone)
    for member in model.members:
        assert not member.node_embeddings.weight.grad[of_held_out_alone].any()
        assert member.node_embeddings.weight.grad.any()
    assert model.unseen_items().tolist() == list(range(10))
    items, _ = Searcher.of(model, "fp32", scoring=Scoring("items")).rank(
        [np.array([30, 12])], k=N_ITEMS, beam_size=N_ITEMS, mask_seen=False
    )
    assert not set(items[0]) & set(range(10))


@pytest.mark.parametrize("scores", ["hybrid", "inline"])
def test_an_item_that_the_head_knows_nothing_of_counts_as_one_of_equally_probable_items(scores):
    model, histories = model_of(catalogue(N_ITEMS)), random_histories(4, N_ITEMS)
    model.keep_only(*2 * [torch.arange(10, N_ITEMS)])
    items, found = Searcher.of(model, "fp32", scoring=Scoring(scores, 0.5)).rank(
        histories, k=N_ITEMS, beam_size=N_ITEMS, mask_seen=False
    )
    with torch.no_grad():
        tables = [table[10:] for table in tables_of(model)]
        known = torch.stack([item_logits(tables, states(model, history)).log_softmax(0) for history in histories])
        of_items = torch.cat([torch.full((4, 10), -np.log(N_ITEMS)), known], dim=1).numpy()
    by_codes = every_log_probability(model, histories)
    hybrid, inline = by_codes + 0.5 * of_items, steered(model, by_codes, np.exp(of_items), 0.5)
    expected = {"hybrid": hybrid, "inline": inline}[scores]
    assert (np.sort(items, axis=1) == np.arange(N_ITEMS)).all()
    np.testing.assert_allclose(found, np.take_along_axis(expected, items, 1), atol=1e-3)


def test_a_head_with_vectors_ranks_items_that_training_never_saw():
    ids, vectors, histories = catalogue(N_ITEMS), item_vectors(68), random_histories(4, N_ITEMS)
    model = model_of(ids, vectors=vectors[:N_ITEMS], members=2)
    searcher = Searcher.of(model, "fp32", scoring=Scoring("items")).with_items(further(ids, 8), vectors[N_ITEMS:])
    items, scores = searcher.rank(histories, k=68, beam_size=68, mask_seen=False)
    assert (np.sort(items, axis=1) == np.arange(68)).all()
    with torch.no_grad():
        of_new = [torch.from_numpy(vectors[N_ITEMS:]) @ each.vector_projection.weight.T for each in model.members]
        tables = [torch.cat(pair) for pair in zip(tables_of(model), of_new, strict=True)]
        logits = [item_logits(tables, states(model, history)) for history in histories]
        expected = torch.stack([each.log_softmax(0) for each in logits]).numpy()
    np.testing.assert_allclose(scores, np.take_along_axis(expected, items, 1), atol=1e-4)
    with pytest.raises(ValueError, match="item vectors of 5 numbers"):
        model.with_items(further(ids, 8))


def with_places(listed: list[int], by_head: list[int], new: set[int], n: int, n_first: int) -> list[int]:
    """Where fewer than n of the first items are new, known ones make room for the new ones that the head likes best."""
    first, rest = listed[:n_first], listed[n_first:]
    n_missing = n - sum(item in new for item in first)
    added = [item for item in by_head if item in new and item not in first][: max(n_missing, 0)]
    n_moved = max(len(first) + len(added) - n_first, 0)
    moved = [item for item in first if item not in new][::-1][:n_moved][::-1]
    ordered = [item for item in first if item not in moved] + added + moved
    return (ordered + [item for item in rest if item not in added])[: len(listed)]


@pytest.mark.parametrize(("n", "k"), [(1, 20), (2, 20), (3, 20), (8, 20), (1, 5), (3, 2)])
def test_cold_places_are_given_to_the_best_new_items_where_too_few_stand_there(n, k):
    ids, vectors, histories = catalogue(N_ITEMS), item_vectors(68), random_histories(12, N_ITEMS)
    model = model_of(ids, vectors=vectors[:N_ITEMS])
    plain = Searcher.of(model, "fp32", scoring=Scoring("hybrid")).with_items(further(ids, 8), vectors[N_ITEMS:])
    usual, _ = plain.rank(histories, k=20, beam_size=20, mask_seen=True)
    items, scores = replace(plain, scoring=Scoring("hybrid", cold_places=n)).rank(
        histories, k=k, beam_size=20, mask_seen=True
    )
    by_head, _ = replace(plain, scoring=Scoring("items")).rank(histories, k=68, beam_size=68, mask_seen=True)
    new = set(range(N_ITEMS, 68))
    numbers = {sum(item in new for item in listed[:10]) for listed in usual.tolist()}
    assert min(numbers) < 2 <= max(numbers)
    for before, after, ranked in zip(usual.tolist(), items.tolist(), by_head.tolist(), strict=True):
        assert after == with_places(before, ranked, new, n, min(10, k))[:k]
    assert np.isfinite(scores).all()


def test_places_of_lists_that_are_short_leave_no_gap():
    items, scores = torch.tensor([[4, 1, NO_ITEM]]), torch.tensor([[-1.0, -2.0, -torch.inf]])
    is_cold = torch.arange(6) == 1
    listed, found = with_cold_places((items, scores), (torch.tensor([[1]]), torch.tensor([[-0.5]])), is_cold, 10, 1)
    assert (listed.tolist(), found.tolist()) == (items.tolist(), scores.tolist())
    listed, found = with_cold_places((items, scores), (torch.tensor([[1]]), torch.tensor([[-0.5]])), is_cold, 1, 1)
    assert listed.tolist() == [[1, 4, NO_ITEM]]
    assert found.tolist() == [[-0.5, -1.0, -float("inf")]]


def test_liger_ranks_the_beam_and_new_items_by_the_head():
    ids, vectors, histories = catalogue(N_ITEMS), item_vectors(68), random_histories(6, N_ITEMS)
    model = model_of(ids, vectors=vectors[:N_ITEMS])
    searcher = Searcher.of(model, "fp32", scoring=Scoring("liger")).with_items(further(ids, 8), vectors[N_ITEMS:])
    items, _ = searcher.rank(histories, k=10, beam_size=10, mask_seen=True)
    beam, _ = replace(searcher, scoring=Scoring()).rank(histories, k=10, beam_size=10, mask_seen=True)
    by_head, _ = replace(searcher, scoring=Scoring("items")).rank(histories, k=68, beam_size=68, mask_seen=True)
    for listed, candidates, ranked in zip(items.tolist(), beam.tolist(), by_head.tolist(), strict=True):
        allowed = set(candidates) | set(range(N_ITEMS, 68))
        assert listed == [item for item in ranked if item in allowed][:10]
