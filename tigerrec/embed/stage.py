"""The embed stage: every item becomes a vector."""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import numpy as np

from tigerrec.data.histories import read_items
from tigerrec.embed.base import Embedder, EmbedError, EmbedsCatalogue, EmbedsTexts, Encode, checked, few, needed_parts
from tigerrec.runtime import distributed
from tigerrec.storage import shards
from tigerrec.storage.contracts import read_arrays
from tigerrec.storage.files import remove_tree, unchanged
from tigerrec.storage.stages import check_made_from, open_stage, writing

logger = logging.getLogger(__name__)

FILE = "embeddings.safetensors"


def embed(
    prepared: Path, embedder: EmbedsTexts | EmbedsCatalogue, out: Path, parts: Mapping[str, Path] | None = None
) -> Path:
    """Write the vectors of a prepared data set's items: `embeddings`, finite float32 (items, dim), row = item index.
    `parts` are the embed folders of the vectors that the embedder needs, by name.

    A run that was stopped goes on from the shards it left in `out/shards`. Raises EmbedError if there is no encoder, an
    item has no vector, or a vector is not finite, and ArtifactError if the input is not finished, damaged or changed
    meanwhile, or `out` cannot be written.
    """
    open_stage(prepared, "prepare")
    table = read_items(prepared, {"text": "string"})
    item_ids, texts = table.column("item_id").to_pylist(), table.column("text").to_pylist()
    if not item_ids:
        raise EmbedError(
            "There are no items to embed; loosen the filters of the data set and run `tigerrec prepare` again."
        )
    logger.info("read %d items from %s", len(item_ids), prepared)
    folders = dict(parts or {})
    _check_parts(folders, embedder)
    started = time.perf_counter()
    if isinstance(embedder, EmbedsTexts):
        with unchanged(embedder.sources()) as sources:
            encoded = _encoded(embedder, sources, item_ids, texts, out / "shards")

    def write() -> tuple[int, ...]:
        if isinstance(embedder, EmbedsTexts):
            digests, vectors = sources, _merged(encoded, len(item_ids))
        else:
            with unchanged(embedder.sources()) as digests:
                vectors = checked(embedder.vectors(prepared, _load_parts(folders, prepared)), item_ids)
        warn_degenerate(vectors, item_ids)
        inputs = {"prepare": prepared, **folders}
        with writing(out, "embed", embedder, inputs, digests, started) as files:
            files.arrays(FILE, {"embeddings": vectors})
            files.provenance |= {
                "embedder": dataclasses.asdict(embedder),  # type: ignore[call-overload]
                "named": embedder.named(),
                "processes": distributed.world_size(),
                "threads": sys.modules["torch"].get_num_threads() if "torch" in sys.modules else 1,
            } | embedder.environment()
        remove_tree(out / "shards")
        return vectors.shape

    logger.info("wrote %d vectors of %d dimensions to %s", *distributed.agreed(write), out)
    return out


def load_embeddings(folder: Path) -> np.ndarray:
    """The vectors of a finished embed stage, float32 (items, dim), row = item index. Raises ArtifactError if no
    finished embed stage stands there, or it is damaged."""
    open_stage(folder, "embed")
    vectors: np.ndarray = read_arrays(folder, FILE, {"embeddings": ("float32", (None, None))})["embeddings"]
    return vectors


def _check_parts(folders: Mapping[str, Path], embedder: Embedder) -> None:
    """Refuse other parts than those that an embedder needs. Raises EmbedError."""
    needed = needed_parts(embedder)
    if set(folders) != set(needed):
        raise EmbedError(
            f"The embedder needs the parts [{', '.join(needed)}], not [{', '.join(folders)}]; give an embed folder "
            "for each that it needs."
        )


def _load_parts(folders: Mapping[str, Path], prepared: Path) -> dict[str, np.ndarray]:
    """The vectors that an embedder needs, by name, all of the items of one prepared data set."""
    for folder in folders.values():
        check_made_from(folder, open_stage(folder, "embed"), "prepare", prepared)
    return {name: load_embeddings(folder) for name, folder in folders.items()}


def _encoded(
    embedder: EmbedsTexts, sources: dict[str, str], item_ids: list[str], texts: list[str], folder: Path
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The items' rows and vectors, encoded in shards of texts of similar length; each process encodes some of them."""
    from tqdm import tqdm

    size = embedder.shard_items or len(item_ids)
    order = np.argsort([len(text) for text in texts], kind="stable")
    rows_of = np.split(order, range(size, len(order), size))
    identity = [repr(embedder), embedder.environment(), size, sources, item_ids, texts]
    encoders: list[Encode] = []

    def encode(number: int) -> dict[str, np.ndarray]:
        encoders[:] = encoders or [embedder.open()]
        ids = [item_ids[row] for row in rows_of[number]]
        vectors = checked(encoders[0](ids, [texts[row] for row in rows_of[number]]), ids)
        progress.update(len(ids))
        return {"embeddings": vectors}

    with tqdm(total=len(item_ids), unit="item", desc="embed", disable=None) as progress:
        mine = distributed.agreed(lambda: shards.prepare_folder(folder, identity))
        pieces, computed = shards.computed(mine, [f"{number:05d}" for number in range(len(rows_of))], encode)
    if computed < len(rows_of):
        logger.info("took %d of %d shards from a stopped run", len(rows_of) - computed, len(rows_of))
    return zip(rows_of, (piece["embeddings"] for piece in pieces), strict=True)


def _merged(pieces: Iterator[tuple[np.ndarray, np.ndarray]], n_items: int) -> np.ndarray:
    """One matrix of all shards, which never lie in memory together."""
    first_rows, first = next(pieces)
    vectors = np.empty((n_items, first.shape[1]), np.float32)
    for rows, part in chain([(first_rows, first)], pieces):
        vectors[rows] = part
    return vectors


def warn_degenerate(vectors: np.ndarray, item_ids: list[str]) -> None:
    """Warn of vectors that say nothing (all components equal) and of items that share one vector."""
    constant = [item_ids[row] for row in np.flatnonzero((vectors == vectors[:, :1]).all(axis=1))]
    if constant and vectors.shape[1] > 1:
        logger.warning("%d items have a constant vector (all components equal): %s", len(constant), few(constant))
    shared = [count for count in Counter(hash(row.tobytes()) for row in vectors).values() if count > 1]
    if shared:
        logger.warning(
            "%d of %d items share their vector with another item (%d groups, the largest of %d); tokenizers give them "
            "the same codes",
            sum(shared), len(item_ids), len(shared), max(shared),
        )  # fmt: skip
