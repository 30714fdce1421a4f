"""Fused vectors: how parts are standardised, weighted and projected; and how the configuration puts parts together."""

import numpy as np
import pytest

from tests.test_collaborative import RANDOM, prepared, with_targets
from tigerrec.config import ConfigError, build_choice, compose
from tigerrec.embed.base import Embedder, EmbedError
from tigerrec.embed.collaborative import Collaborative
from tigerrec.embed.fusion import Fusion, principal_components, standardized
from tigerrec.embed.hashed import Hashed
from tigerrec.embed.stage import embed, load_embeddings
from tigerrec.pipeline import plan
from tigerrec.storage.manifests import StaleError
from tigerrec.storage.stages import open_stage


def matrix(n=20, dim=6, seed=0):
    return np.random.default_rng(seed).normal(loc=3.0, scale=np.arange(1, dim + 1), size=(n, dim)).astype(np.float32)


def distances(vectors):
    return np.linalg.norm(vectors[:, None] - vectors[None], axis=2)


def test_a_part_has_mean_0_and_mean_squared_length_1_and_keeps_its_proportions():
    found = standardized(matrix())
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-9)
    assert np.square(found).sum(axis=1).mean() == pytest.approx(1)
    ratio = distances(found) / np.maximum(distances(matrix()), 1e-9)
    np.testing.assert_allclose(ratio[~np.eye(20, dtype=bool)], ratio[0, 1], rtol=1e-6)


def test_items_without_a_vector_stay_at_the_mean_of_the_others():
    vectors = matrix()
    vectors[[4, 9]] = 0
    found = standardized(vectors)
    assert not found[[4, 9]].any()
    np.testing.assert_array_equal(np.delete(found, [4, 9], axis=0), standardized(np.delete(vectors, [4, 9], axis=0)))


CONSTANT = np.full((5, 3), 0.1, dtype=np.float32)
NEARLY = np.where(np.arange(5)[:, None] < 2, np.nextafter(CONSTANT, np.float32(1)), CONSTANT)


@pytest.mark.parametrize(
    "vectors",
    [np.zeros((5, 3)), CONSTANT, NEARLY, np.ones((1, 3))],
    ids=["zero", "constant", "constant but for the last bit", "one item"],
)
def test_a_part_that_says_nothing_becomes_zero(vectors):
    found = standardized(vectors.astype(np.float32))
    assert found.shape == vectors.shape
    assert not found.any()


def test_scale_and_place_of_a_part_are_nothing():
    one, two = matrix(), matrix(dim=3, seed=1)
    fusion = Fusion({"text": 1.0, "collaborative": 2.0})
    base = fusion.vectors(None, {"text": one, "collaborative": two})
    moved = fusion.vectors(None, {"text": 1000 * one + 7, "collaborative": two / 1000})
    assert base.dtype == np.float32
    np.testing.assert_allclose(moved, base, atol=1e-4)


def test_parts_stand_side_by_side_by_name_with_their_share_of_the_variance():
    parts = {"text": matrix(), "image": matrix(dim=3, seed=1)}
    fused = Fusion({"text": 1.0, "image": 3.0}).vectors(None, parts)
    np.testing.assert_allclose(
        fused, np.concatenate([3 * standardized(parts["image"]), standardized(parts["text"])], axis=1), rtol=1e-6
    )
    variance = fused.var(axis=0)
    assert variance[:3].sum() == pytest.approx(9 * variance[3:].sum(), rel=1e-4)
    turned = Fusion({"image": 3.0, "text": 1.0}).vectors(None, dict(reversed(parts.items())))
    assert turned.tobytes() == fused.tobytes()  # as an identity does not know the order either


def test_the_projection_keeps_the_largest_variance():
    vectors = matrix()
    centred = vectors - vectors.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    for dim in (1, 3, 6):
        found = principal_components(vectors.astype(np.float64), dim)
        assert found.shape == (20, dim)
        np.testing.assert_allclose(
            found @ found.T, (left[:, :dim] * sizes[:dim] ** 2) @ left[:, :dim].T, rtol=1e-5, atol=1e-3
        )
        assert (np.diff(found.var(axis=0)) <= 0).all()
    fused = Fusion({"text": 1.0}, dim=2).vectors(None, {"text": vectors})
    np.testing.assert_allclose(fused, principal_components(standardized(vectors), 2), rtol=1e-5, atol=1e-6)


def test_more_components_than_columns_are_refused():
    with pytest.raises(EmbedError, match=r"embedder.dim=7 is more than the 6 dimensions of the parts together"):
        Fusion({"text": 1.0}, dim=7).vectors(None, {"text": matrix()})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": {"text": -1.0, "collaborative": 1.0}}, r"embedder\.weights\.text must be at least 0, got -1\.0"),
        ({"weights": {"text": float("inf"), "collaborative": 1.0}}, r"weights\.text must be a finite number, got inf"),
        ({"weights": {"text": 0.0, "collaborative": 0.0}}, "weights must hold one above 0"),
        ({"weights": {}}, "weights must hold one above 0"),
        ({"weights": {"prepare": 1.0}}, "no part the name prepare"),
        ({"weights": {"text": "much"}}, "has the wrong type"),
        ({"dim": 0}, "dim must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    node = {key: value for key, value in compose(["embedder=fusion"]).embedder.items() if key != "parts"}
    with pytest.raises(ConfigError, match=message):
        build_choice({**node, **values}, "embedder", Embedder)


def test_the_stage_reads_its_parts_and_records_them(tmp_path):
    data = prepared(tmp_path / "data", with_targets(RANDOM), 14)
    text, bought = embed(data, Hashed(dim=8), tmp_path / "text"), embed(data, Collaborative(dim=4), tmp_path / "bought")
    fusion = Fusion({"text": 1.0, "bought": 0.5})
    out = embed(data, fusion, tmp_path / "out", {"text": text, "bought": bought})
    expected = fusion.vectors(data, {"text": load_embeddings(text), "bought": load_embeddings(bought)})
    np.testing.assert_array_equal(load_embeddings(out), expected)
    inputs = open_stage(out, "embed").inputs
    assert {name: record["fingerprint"] for name, record in inputs.items()} == {
        name: open_stage(folder, stage).fingerprint
        for name, folder, stage in (("prepare", data, "prepare"), ("text", text, "embed"), ("bought", bought, "embed"))
    }
    again = embed(data, fusion, tmp_path / "again", {"bought": bought, "text": text})
    assert (again / "embeddings.safetensors").read_bytes() == (out / "embeddings.safetensors").read_bytes()


def test_parts_of_other_data_or_other_names_are_refused(tmp_path):
    data = prepared(tmp_path / "data", with_targets(RANDOM), 14)
    other = prepared(tmp_path / "other", with_targets(RANDOM[1:]), 14)
    text, foreign = embed(data, Hashed(dim=8), tmp_path / "text"), embed(other, Hashed(dim=8), tmp_path / "foreign")
    fusion = Fusion({"text": 1.0})
    with pytest.raises(StaleError, match=r"foreign was made from another 'prepare'"):
        embed(data, fusion, tmp_path / "out", {"text": foreign})
    with pytest.raises(EmbedError, match=r"needs the parts \[text\], not \[words\]"):
        embed(data, fusion, tmp_path / "out", {"words": text})
    with pytest.raises(EmbedError, match=r"needs the parts \[\], not \[text\]"):
        embed(data, Hashed(), tmp_path / "out", {"text": text})


def parts_of(*overrides):
    """The embedders of a fusion and their folders, by part, as planned."""
    steps = plan(compose(["dataset=beauty", "embedder=fusion", *overrides]))
    by_folder = {step.folder: step for step in steps.values()}
    inputs = {name: folder for name, folder in steps["embed"].inputs.items() if name != "prepare"}
    return {name: (by_folder[folder].config, folder.name) for name, folder in inputs.items()}


def test_each_way_to_say_other_parts_that_the_yaml_names():
    base = parts_of()
    assert {name: folder for name, (_, folder) in base.items()} == {"text": "minilm", "collaborative": "collaborative"}
    assert base["collaborative"][0] == Collaborative()
    assert parts_of("embedder@embedder.parts.text=sentence_t5")["text"][0].model.endswith("sentence-t5-base")
    assert parts_of("embedder@embedder.parts.text=sentence_t5", "embedder.parts.text.model=x")["text"][0].model == "x"
    changed = parts_of("embedder.parts.collaborative.dim=128", "embedder.parts.collaborative.name=collaborative-128")
    assert changed["collaborative"] == (Collaborative(dim=128), "collaborative-128")
    more = parts_of(
        "+embedder@embedder.parts.image=precomputed",
        "+embedder.weights.image=1",
        "embedder.parts.image.vectors=image.parquet",
    )
    assert more["image"][0].vectors == "image.parquet"
    assert list(more) == ["text", "collaborative", "image"]
    assert list(parts_of("~embedder@embedder.parts.text", "~embedder.weights.text")) == ["collaborative"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["+embedder.weights.image=1"],
            r"parts.image is needed and missing; choose its embedder with `\+embedder@embedder.parts.image=<embedder>`",
        ),
        (
            ["+embedder@embedder.parts.image=hashed"],
            r"embedder.parts.image is given, but only \[collaborative, text\] can be used",
        ),
        (
            ["embedder.parts.text=hashed"],
            r"parts.text='hashed' is no embedder; choose one with `embedder@embedder.parts.text=<embedder>`",
        ),
        (["embedder.parts=hashed"], r"embedder.parts='hashed' must hold an embedder a name"),
        (
            ["embedder.parts.text.name=fusion"],
            r"embedder.parts.text.name and embedder.name are both 'fusion', with different settings",
        ),
        (
            ["embedder@embedder.parts.collaborative=minilm", "embedder.parts.collaborative.max_length=9"],
            r"are both 'minilm', with different settings",
        ),
        (["embedder.parts.text.max_length=0"], r"embedder.parts.text.max_length must be at least 1, got 0"),
        (
            ["embedder.parts.text.name=a/b"],
            r"embedder.parts.text.name='a/b' must be a folder name; give `embedder.parts.text.name=<name>`",
        ),
        (
            ["embedder=hashed", "+embedder@embedder.parts.text=minilm"],
            r"embedder.parts.text is given, but only \[\] can be used; leave it out",
        ),
    ],
)
def test_wrong_parts_are_refused_by_the_plan(overrides, message):
    with pytest.raises(ConfigError, match=message):
        plan(compose(["embedder=fusion", *overrides] if "embedder=hashed" not in overrides else overrides))
