"""The contract of every tokenizer found in configs/tokenizer, the tokenize stage, and what each tokenizer alone must
do."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from tigerrec import TigerrecError, config
from tigerrec.config import families
from tigerrec.storage.contracts import read_json
from tigerrec.storage.files import sha256_file, sha256_text, write_json
from tigerrec.storage.fingerprints import canonical_json
from tigerrec.storage.manifests import MANIFEST, read_manifest
from tigerrec.storage.stages import open_stage, writing
from tigerrec.tokenizers import stage
from tigerrec.tokenizers.base import MeasuresDistances, TokenizeError, Tokenizer
from tigerrec.tokenizers.ids import load_semantic_ids
from tigerrec.tokenizers.random import RandomCodes
from tigerrec.tokenizers.rkmeans import ResidualKMeans
from tigerrec.tokenizers.stage import TokenizeConfig, encode_items, fit, load_tokenizer, tokenize

RESERVED = tuple(field.name for field in dataclasses.fields(TokenizeConfig) if field.name != "tokenizer")
SMALL = {"codebook_size": 8, "hidden": [16], "latent_dim": 4, "epochs": 4, "batch_size": 64, "iterations": 5}
CHOICES = sorted(path.stem for path in (config.config_folder() / "tokenizer").glob("*.yaml"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads cost more than they give on matrices this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def composed(choice: str) -> dict[str, Any]:
    node = OmegaConf.to_container(config.compose(["dataset=beauty", f"tokenizer={choice}"]).tokenizer)
    return {key: value for key, value in node.items() if key != "inputs"}


def build(choice: str, **overrides: Any) -> TokenizeConfig:
    node = dict(composed(choice))
    node |= {key: value for key, value in SMALL.items() if key in node} | overrides
    tokenizer, taken = config.build_choice(node, "tokenizer", Tokenizer, RESERVED)
    return TokenizeConfig(tokenizer, **{key: value for key, value in taken.items() if key in RESERVED})


def make_vectors(n: int = 200, dim: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(10, dim))[rng.integers(0, 10, n)] + rng.normal(0, 0.3, (n, dim))).astype(np.float32)


def extra_of(choice: TokenizeConfig, n: int) -> dict[str, np.ndarray]:
    return {name: make_vectors(n, seed=9) for name in choice.tokenizer.needs}


def fitted(choice: TokenizeConfig, vectors: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    return choice.tokenizer.fit(vectors, seed=choice.seed, extra=extra_of(choice, len(vectors)))


def codes_to_encode(
    choice: TokenizeConfig, state: dict[str, np.ndarray], vectors: np.ndarray, codes: np.ndarray
) -> np.ndarray:
    """What `encode` must give for the vectors that `fit` gave these codes: the same, where items are not assigned
    jointly."""
    return choice.tokenizer.encode(state, vectors) if choice.tokenizer.assigns_jointly else codes


def same_bytes(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and one[key].tobytes() == other[key].tobytes() for key in one
    )


def embedded(folder: Path, vectors: np.ndarray) -> Path:
    with writing(folder, "embed", {"made": "up"}) as files:
        files.arrays("embeddings.safetensors", {"embeddings": vectors})
    return folder


def test_the_example_of_the_docs_works_as_printed():
    page = (Path(__file__).parents[1] / "docs" / "tokenizers.md").read_text(encoding="utf-8")
    space: dict[str, Any] = {"__name__": "thirds"}
    exec(compile(page.split("```python\n")[1].split("```")[0], "thirds.py", "exec", dont_inherit=True), space)
    node = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    tokenizer, vectors = space["Thirds"](levels=node["levels"]), make_vectors()
    assert isinstance(tokenizer, Tokenizer)
    result = fit(vectors, TokenizeConfig(tokenizer, node["seed"], node["collisions"], node["max_collision"]))
    codes = result.ids.codes[:, :8]
    assert [np.bincount(level).tolist() for level in codes.T] == [[67, 66, 67]] * 8
    assert np.array_equal(tokenizer.encode(result.state, vectors[:7]), codes[:7])


@pytest.mark.parametrize("choice", ["random", "lsh", "rkmeans", "hkmeans", "opq", "fsq", "rqvae", "rvq", "r3vae"])
def test_another_seed_gives_other_codes(choice):
    vectors = make_vectors()
    assert not np.array_equal(fitted(build(choice), vectors)[1], fitted(build(choice, seed=1), vectors)[1])


def test_codes_that_are_none_are_refused():
    class Wrong(RandomCodes):
        def fit(self, vectors, *, seed, extra):
            state, codes = super().fit(vectors, seed=seed, extra=extra)
            return state, codes + 1

    with pytest.raises(
        TokenizeError,
        match=r"random gave codes of shape \(200, 3\) and type int32, from \d+ to 256, for 200 items; its code_sizes "
        r"\(256, 256, 256\)",
    ):
        fit(make_vectors(), TokenizeConfig(Wrong()))


@pytest.mark.parametrize("choice", CHOICES)
class TestContract:
    def test_codes_are_in_range_and_ids_unique(self, choice):
        chosen, vectors = build(choice), make_vectors()
        result = fit(vectors, chosen, extra_of(chosen, len(vectors)))
        sizes = chosen.tokenizer.code_sizes
        codes = result.ids.codes[:, : len(sizes)]
        assert isinstance(chosen.tokenizer, Tokenizer)
        assert codes.dtype == np.int32
        assert codes.min() >= 0
        assert (codes < sizes).all()
        assert len(np.unique(result.ids.codes, axis=0)) == len(vectors)
        assert len(result.diagnostics["levels"]) == len(sizes)
        assert json.loads(json.dumps(result.diagnostics, allow_nan=False)) == result.diagnostics

    def test_a_seed_decides_every_byte(self, choice):
        vectors = make_vectors()
        state, codes = fitted(build(choice), vectors)
        again, codes_again = fitted(build(choice), vectors)
        assert same_bytes(state, again)
        assert np.array_equal(codes, codes_again)

    def test_encoding_goes_row_by_row(self, choice):
        chosen, vectors = build(choice), make_vectors(1100)
        state, codes = fitted(chosen, vectors)
        encoded = chosen.tokenizer.encode(state, vectors)
        assert chosen.tokenizer.assigns_jointly or np.array_equal(encoded, codes)
        for cut in (1, 7, 1024):
            parts = [chosen.tokenizer.encode(state, vectors[:cut]), chosen.tokenizer.encode(state, vectors[cut:])]
            assert np.array_equal(np.concatenate(parts), encoded)
        order = np.random.default_rng(1).permutation(len(vectors))
        assert np.array_equal(chosen.tokenizer.encode(state, vectors[order]), encoded[order])

    def test_a_stage_can_be_read_back(self, choice, tmp_path):
        chosen, vectors = build(choice), make_vectors()
        extra = {name: embedded(tmp_path / name, matrix) for name, matrix in extra_of(chosen, len(vectors)).items()}
        out = tokenize(embedded(tmp_path / "embed", vectors), chosen, tmp_path / "out", extra)
        tokenizer, state = load_tokenizer(out)
        assert tokenizer == chosen.tokenizer
        ids = load_semantic_ids(out)
        sizes = chosen.tokenizer.code_sizes
        assert ids.layout.code_sizes == sizes
        codes = codes_to_encode(chosen, fitted(chosen, vectors)[0], vectors, ids.codes[:, : len(sizes)])
        assert np.array_equal(tokenizer.encode(state, vectors), codes)
        assert np.array_equal(encode_items(out, vectors[5:8]), codes[5:8])
        with pytest.raises(TokenizeError, match="have 3 dimensions"):
            encode_items(out, vectors[:, :3])
        content = open_stage(out, "tokenize").content
        again = tokenize(tmp_path / "embed", chosen, tmp_path / "again", extra)
        assert open_stage(again, "tokenize").content == content

    @pytest.mark.parametrize("n", [3, 200])
    def test_the_nearest_codes_are_those_of_encode(self, choice, n):
        chosen, vectors = build(choice), make_vectors()
        tokenizer, (state, _) = chosen.tokenizer, fitted(chosen, vectors[:n])
        if not isinstance(tokenizer, MeasuresDistances):
            with pytest.raises(ValueError, match="needs distances to codes"):
                TokenizeConfig(tokenizer, collisions="nearest_free")
            return
        codes = tokenizer.encode(state, vectors)
        for level, size in enumerate(tokenizer.code_sizes):
            found = tokenizer.distances(state, vectors, codes[:, :level])
            assert (found.shape, found.dtype) == ((len(vectors), size), np.float64)
            assert (found >= 0).all()
            assert np.isfinite(found[np.arange(len(vectors)), codes[:, level]]).all()
            assert np.array_equal(found.argmin(axis=1), codes[:, level])
            elsewhere = tokenizer.distances(state, vectors[::-1], codes[:, :level])
            assert np.array_equal(np.isinf(elsewhere), np.isinf(found))

    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_fewer_items_than_codes(self, choice, n, caplog):
        chosen, vectors = build(choice), make_vectors(n)
        result = fit(vectors, chosen, extra_of(chosen, n))
        assert len(np.unique(result.ids.codes, axis=0)) == n
        assert (result.ids.codes >= 0).all()
        codes = codes_to_encode(chosen, result.state, vectors, result.ids.codes[:, :-1])
        assert np.array_equal(chosen.tokenizer.encode(result.state, vectors), codes)
        if n == 1:
            assert "uses only 1 of its" in caplog.text

    def test_equal_vectors_share_codes_and_differ_in_the_suffix(self, choice):
        chosen = build(choice)
        vectors = np.tile(make_vectors(40), (3, 1))
        result = fit(vectors, chosen, extra_of(chosen, len(vectors)))
        codes = result.ids.codes
        if not chosen.tokenizer.needs:
            assert np.array_equal(codes[:40, :-1], codes[40:80, :-1])
            assert result.diagnostics["collision_rate"] == 1
        assert len(np.unique(codes, axis=0)) == len(vectors)

    def test_constant_vectors(self, choice):
        chosen, vectors = build(choice), np.full((50, 6), 0.3, dtype=np.float32)
        result = fit(vectors, chosen, extra_of(chosen, 50))
        assert len(np.unique(result.ids.codes, axis=0)) == 50
        assert (result.ids.codes < result.ids.layout.level_sizes).all()

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_vectors_that_are_not_finite_are_refused_by_name(self, choice, value, tmp_path):
        vectors = make_vectors()
        vectors[[3, 17], 2] = value
        chosen = build(choice)
        extra = {name: embedded(tmp_path / name, matrix) for name, matrix in extra_of(chosen, len(vectors)).items()}
        with pytest.raises(TokenizeError, match=r"NaN or infinity in 2 rows \(items 3, 17\)"):
            tokenize(embedded(tmp_path / "embed", vectors), chosen, tmp_path / "out", extra)
        assert read_manifest(tmp_path / "out") is None

    def test_sizes_out_of_range_are_refused_before_any_work(self, choice):
        fields = {field.name for field in dataclasses.fields(build(choice).tokenizer)}
        for name, value in (("levels", 0), ("codebook_size", 1)):
            if name in fields:
                with pytest.raises(config.ConfigError, match=f"{name} must be"):
                    build(choice, **{name: value})

    def test_its_family_is_known(self, choice):
        tokenizer = build(choice).tokenizer
        assert families(Tokenizer)[tokenizer.family] is type(tokenizer)


def edit_facts(folder: Path, name: str = "tokenizer.json", **changes: Any) -> None:
    """Rewrite a JSON file of a stage as someone would who also mends the manifest."""
    facts = read_json(folder, name) | changes
    write_json(folder / name, facts)
    manifest = read_json(folder, MANIFEST)
    manifest["files"][name]["sha256"] = sha256_file(folder / name)
    hashes = {name: entry["sha256"] for name, entry in manifest["files"].items() if not entry.get("measured")}
    manifest["files"][name]["bytes"] = (folder / name).stat().st_size
    manifest["content"] = sha256_text(canonical_json(hashes))
    write_json(folder / MANIFEST, manifest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "os.system"}, "family='os.system' is unknown; allowed: fsq, "),
        ({"family": ["rkmeans"]}, "is unknown; allowed: "),
        ({"hyper_parameters": {"levels": 3, "command": "true"}}, "command is not an option"),
        ({"hyper_parameters": {"levels": "three"}}, "levels='three' has the wrong type"),
        (
            {"hyper_parameters": {"levels": {"family": "rqvae"}}},
            r"levels=\{.family.: .rqvae.\} has the wrong type",
        ),
        ({"hyper_parameters": {"levels": {"family": "pipeline"}}}, "has the wrong type"),
        (
            {"hyper_parameters": {"levels": {"family": "rqvae", "hidden": {"family": "os.system"}}}},
            "has the wrong type",
        ),
        ({"hyper_parameters": {"family": "rqvae"}}, "no plain hyper-parameters"),
        ({"hyper_parameters": None}, "no plain hyper-parameters"),
    ],
)
def test_an_artefact_cannot_name_code_or_unknown_settings(changes, message, tmp_path):
    out = tokenize(embedded(tmp_path / "embed", make_vectors(20)), TokenizeConfig(RandomCodes()), tmp_path / "out")
    edit_facts(out, **changes)
    with pytest.raises(TigerrecError, match=message):
        load_tokenizer(out)


def test_too_many_collisions_fail_the_stage_by_their_rate(tmp_path):
    vectors = np.tile(make_vectors(30), (2, 1))
    with pytest.raises(TokenizeError, match=r"100\.0% of the items share their codes .* tokenizer\.max_collision=0\.5"):
        tokenize(
            embedded(tmp_path / "embed", vectors), TokenizeConfig(ResidualKMeans(), max_collision=0.5), tmp_path / "out"
        )
    assert read_manifest(tmp_path / "out") is None


@pytest.mark.parametrize("choice", CHOICES)
def test_of_many_items_a_sample_is_fitted_and_all_are_encoded(choice, monkeypatch):
    monkeypatch.setattr(stage, "ENCODED_AT_ONCE", 70)
    config, vectors = build(choice, collisions="suffix", seed=3), make_vectors(400)
    extra = extra_of(config, 400)
    seen = []
    original = type(config.tokenizer).fit

    def watched(tokenizer, given, **more):
        assert all(len(matrix) == len(given) for matrix in more["extra"].values())
        seen.append(given)
        return original(tokenizer, given, **more)

    monkeypatch.setattr(type(config.tokenizer), "fit", watched)
    sampled = fit(vectors, dataclasses.replace(config, fit_items=150), extra)
    whole = fit(vectors, dataclasses.replace(config, fit_items=400), extra)
    assert [len(given) for given in seen] == [150, 400]
    assert {row.tobytes() for row in seen[0]} <= {row.tobytes() for row in vectors}
    assert same_bytes(whole.state, fitted(config, vectors)[0])
    codes = config.tokenizer.encode(sampled.state, vectors)
    np.testing.assert_array_equal(sampled.ids.codes[:, : codes.shape[1]], codes)


@pytest.mark.parametrize(("field", "value"), [("collisions", "hope"), ("max_collision", 1.5), ("seed", -1)])
def test_settings_of_the_stage_are_checked(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        TokenizeConfig(RandomCodes(), **{field: value})


def test_further_vectors_must_be_there_and_aligned():
    @dataclasses.dataclass(frozen=True)
    class Needy(RandomCodes):
        needs = ("collaborative",)

    with pytest.raises(TokenizeError, match=r"needs vectors named 'collaborative'; .*tokenizer\.inputs\.collaborative"):
        fit(make_vectors(20), TokenizeConfig(Needy()))
    with pytest.raises(TokenizeError, match="'collaborative' are of 19 items, not 20"):
        fit(make_vectors(20), TokenizeConfig(Needy()), {"collaborative": make_vectors(19)})


@pytest.mark.parametrize("init", ["kmeans", "kmeans++"])
def test_residual_kmeans_is_fifteen_lines_of_numpy(init):
    tokenizer, vectors = ResidualKMeans(codebook_size=16, init=init), make_vectors(300)
    state, codes = tokenizer.fit(vectors, seed=0, extra={})
    for row, row_codes in zip(vectors.astype(np.float64), codes, strict=True):
        residual = row
        for level, code in enumerate(row_codes):
            codebook = state[f"codebook_{level}"]
            assert codebook.shape == (16, vectors.shape[1])
            assert code == np.argmin(((codebook - residual) ** 2).sum(axis=1))
            residual = residual - codebook[code]
    assert np.allclose(
        tokenizer.decode(state, codes),
        np.sum([state[f"codebook_{level}"][codes[:, level]] for level in range(3)], axis=0),
    )


def test_residual_kmeans_learns_means():
    vectors = make_vectors(400)
    state, codes = ResidualKMeans(levels=2, codebook_size=8, iterations=100).fit(vectors, seed=0, extra={})
    residuals = vectors.astype(np.float64)
    for level in range(2):
        words = state[f"codebook_{level}"]
        assert np.allclose(words, [residuals[codes[:, level] == code].mean(axis=0) for code in range(8)], atol=1e-4)
        residuals = residuals - words[codes[:, level]]


def test_residual_kmeans_keeps_few_vectors_exactly():
    vectors = make_vectors(5)
    tokenizer = ResidualKMeans()
    state, codes = tokenizer.fit(vectors, seed=0, extra={})
    assert np.array_equal(tokenizer.decode(state, codes), vectors)
    assert codes[:, 1:].max() == 0


def test_random_codes_look_uniform():
    _, codes = RandomCodes(codebook_size=8).fit(make_vectors(4000), seed=0, extra={})
    counts = np.stack([np.bincount(codes[:, level], minlength=8) for level in range(3)])
    assert (np.abs(counts - 500) < 120).all()
    assert abs(np.corrcoef(codes[:, 0], codes[:, 1])[0, 1]) < 0.1
