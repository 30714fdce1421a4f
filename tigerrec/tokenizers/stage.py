"""The tokenize stage: item vectors become Semantic IDs, and new items get theirs."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tigerrec.config import FAMILY, AtLeastOne, ConfigError, Share, build, options
from tigerrec.runtime.memory import with_peak_mb
from tigerrec.runtime.seeds import derived_seed
from tigerrec.storage.contracts import contract, read_arrays, read_json
from tigerrec.storage.fingerprints import added, describe, with_families
from tigerrec.storage.stages import open_stage, writing
from tigerrec.tokenizers import diagnostics
from tigerrec.tokenizers.base import (
    MAX_DIM,
    Codes,
    MeasuresDistances,
    Reconstructs,
    State,
    TokenizeError,
    Tokenizer,
    check_codes,
    check_vectors,
)
from tigerrec.tokenizers.collisions import COLLISION_POLICIES, CodedItems, Policy, resolve
from tigerrec.tokenizers.ids import MAX_TOKENS, SEMANTIC_IDS, TOKENIZER, SemanticIds

logger = logging.getLogger(__name__)

LOW_USAGE = 0.5
ENCODED_AT_ONCE = 1 << 16
LEARNED = "tokenizer.safetensors"
THREAD_COUNTS = {"torch": "get_num_threads", "faiss": "omp_get_max_threads"}


@options
class TokenizeConfig:
    """What the tokenize stage does.

    Args:
        tokenizer: the tokenizer to fit.
        seed: seed of everything random in it.
        collisions: the policy for items with equal codes.
        fit_items: of more items, the size of the seeded sample that the tokenizer is fitted to; the others are encoded
            as new items are.
        max_collision: the share of items with codes that another item has too, above which the stage fails.
    """

    tokenizer: Tokenizer
    seed: int = Field(default=0, ge=0)
    collisions: Policy = "suffix"
    max_collision: Share = 1.0
    fit_items: AtLeastOne = added(1 << 18)

    def __post_init__(self) -> None:
        if COLLISION_POLICIES[self.collisions].needs_distances and not isinstance(self.tokenizer, MeasuresDistances):
            raise ValueError(
                f"collisions={self.collisions} needs distances to codes, which {self.tokenizer.family} does not "
                "measure; use collisions=suffix"
            )


@dataclass(frozen=True)
class Tokenized:
    """What fitting a tokenizer gives: its learned arrays, the items' Semantic IDs and how good they are."""

    state: State
    ids: SemanticIds
    diagnostics: dict[str, Any]


def fit(vectors: np.ndarray, config: TokenizeConfig, extra: Mapping[str, np.ndarray] | None = None) -> Tokenized:
    """Fit a tokenizer to vectors, float32 (I, D), row = item index, and give every item a Semantic ID; `extra` holds
    the matrices that the tokenizer `needs`, by name. Raises TokenizeError if vectors are not finite, a needed matrix is
    missing, or too many items share their codes."""
    tokenizer, extra = config.tokenizer, extra or {}
    missing = [name for name in tokenizer.needs if name not in extra]
    if missing:
        raise TokenizeError(
            f"The tokenizer {tokenizer.family} needs vectors named {missing[0]!r}; give their embed folder as "
            f"`tokenizer.inputs.{missing[0]}`."
        )
    vectors = check_vectors(vectors, "The vectors")
    checked = {name: check_vectors(matrix, f"The vectors {name!r}") for name, matrix in extra.items()}
    for name, matrix in checked.items():
        if len(matrix) != len(vectors):
            raise TokenizeError(
                f"The vectors {name!r} are of {len(matrix)} items, not {len(vectors)}; give the embed folder of the "
                "same data set."
            )
    started = time.perf_counter()
    (state, codes), peak = with_peak_mb(lambda: _fitted(config, vectors, checked))
    check_codes(tokenizer, codes, len(vectors))
    measured = {"seconds": round(time.perf_counter() - started, 3), "peak_mb": peak}
    quality = diagnose(tokenizer, state, codes, vectors, config.seed) | measured
    rate = quality["collision_rate"]
    if rate > config.max_collision:
        raise TokenizeError(
            f"{rate:.1%} of the items share their codes with another item, more than tokenizer.max_collision="
            f"{config.max_collision:g} allows; use more levels, larger codebooks or another tokenizer, or raise "
            "tokenizer.max_collision."
        )
    ids, report = resolve(CodedItems(tokenizer, state, vectors, codes), config.collisions)
    if report["items_moved"]:
        report |= diagnose(tokenizer, state, ids.codes[:, : codes.shape[1]], vectors, config.seed)
    return Tokenized(state, ids, quality | {"collisions": report})


def _fitted(config: TokenizeConfig, vectors: np.ndarray, extra: Mapping[str, np.ndarray]) -> tuple[State, Codes]:
    """What the tokenizer learns of all items, or of a sample of them, and the codes of all."""
    tokenizer = config.tokenizer
    if len(vectors) <= config.fit_items:
        return tokenizer.fit(vectors, seed=config.seed, extra=extra)
    generator = np.random.default_rng(derived_seed(config.seed, "items to fit"))
    sample = np.sort(generator.choice(len(vectors), config.fit_items, replace=False))
    logger.info("fitting to a sample of %s of %s items", f"{len(sample):,}", f"{len(vectors):,}")
    of_sample = {name: matrix[sample] for name, matrix in extra.items()}
    state, _ = tokenizer.fit(vectors[sample], seed=config.seed, extra=of_sample)
    blocks = range(0, len(vectors), ENCODED_AT_ONCE)
    return state, np.concatenate([tokenizer.encode(state, vectors[at : at + ENCODED_AT_ONCE]) for at in blocks])


def diagnose(tokenizer: Tokenizer, state: State, codes: Codes, vectors: np.ndarray, seed: int) -> dict[str, Any]:
    """How good codes (I, L) are for vectors (I, D); warns of levels that use less than half of their codes."""
    levels = [diagnostics.level_usage(codes[:, level], size) for level, size in enumerate(tokenizer.code_sizes)]
    for level, usage in enumerate(levels):
        if usage["used_codes"] < LOW_USAGE * usage["codes"]:
            logger.warning(
                "Level %d uses only %d of its %d codes (perplexity %.1f, %d items): the codebook has collapsed, or it "
                "is too large for these items: `tokenizer.codebook_size=<smaller>`.",
                level, usage["used_codes"], usage["codes"], usage["perplexity"], len(codes),
            )  # fmt: skip
    error = None
    if isinstance(tokenizer, Reconstructs):
        error = diagnostics.reconstruction_error(vectors, codes, partial(tokenizer.decode, state))
    return diagnostics.collisions(codes) | {
        "levels": levels,
        "reconstruction_error": error,
        "neighbour_agreement": diagnostics.neighbour_agreement(vectors, codes, seed),
    }


def tokenize(embedded: Path, config: TokenizeConfig, out: Path, extra: Mapping[str, Path] | None = None) -> Path:
    """The tokenize stage: the vectors of the folder `embedded` to Semantic IDs in `out`; `extra` holds the embed
    folders of the vectors that the tokenizer `needs`, by name. Raises TigerrecError if an input is missing or damaged,
    vectors are not finite, or too many items share their codes."""
    from tigerrec.embed.stage import load_embeddings

    folders = dict(extra or {})
    vectors = load_embeddings(embedded)
    matrices = {name: load_embeddings(folder) for name, folder in folders.items()}
    logger.info("read %d vectors of %d dimensions from %s", *vectors.shape, embedded)
    started = time.perf_counter()
    result = fit(vectors, config, matrices)
    with writing(out, "tokenize", config, inputs={"embed": embedded, **folders}, started=started) as files:
        files.parquet(SEMANTIC_IDS, result.ids.table())
        record = {
            "family": config.tokenizer.family,
            "hyper_parameters": {key: value for key, value in describe(config.tokenizer).items() if key != FAMILY},
            "seed": config.seed,
            "dim": vectors.shape[1],
            "code_sizes": list(result.ids.layout.code_sizes),
            "level_sizes": list(result.ids.layout.level_sizes),
            "collisions": config.collisions,
        }
        files.json(TOKENIZER, record)
        files.arrays(LEARNED, result.state)
        files.json("diagnostics.json", result.diagnostics, measured=True)
        threads = [sys.modules[name].__dict__[count]() for name, count in THREAD_COUNTS.items() if name in sys.modules]
        files.provenance["threads"] = max(threads, default=1)
    rate, used = result.diagnostics["collision_rate"], [level["used_codes"] for level in result.diagnostics["levels"]]
    message = "wrote %d Semantic IDs to %s: %.1f %% of the items share their codes, codes used a level %s"
    logger.info(message, len(result.ids.codes), out, 100 * rate, used)
    return out


def load_tokenizer(folder: Path | str) -> tuple[Tokenizer, State]:
    """The tokenizer of a finished tokenize stage and what it learned. Raises TigerrecError if no finished stage stands
    there, it is damaged, or its tokenizer is unknown to this version."""
    folder = Path(folder)
    open_stage(folder, "tokenize", "export")
    record = read_json(folder, TOKENIZER, {"dim": int, "code_sizes": [int]})
    tokenizer = tokenizer_of(record, folder)
    with contract(folder, TOKENIZER):
        if list(tokenizer.code_sizes) != record["code_sizes"]:
            raise ValueError("its hyper_parameters ask for other code_sizes")
        if not 1 <= record["dim"] <= MAX_DIM:
            raise ValueError(f"its dim is {record['dim']}")
    state = read_arrays(folder, LEARNED, finite=True)
    with contract(folder, LEARNED):
        check_codes(tokenizer, tokenizer.encode(state, np.ones((1, record["dim"]), np.float32)), 1)
    return tokenizer, state


def tokenizer_of(record: Any, folder: Path) -> Tokenizer:
    """The tokenizer that a `tokenizer.json` describes; its family is looked up by name, so the file cannot name code.
    Raises TigerrecError if the family or a hyper-parameter is unknown, or a value has the wrong type."""
    with contract(folder, TOKENIZER):
        values = with_families(record["hyper_parameters"])
        if not isinstance(values, dict) or FAMILY in values or not _is_plain(values):
            raise ValueError("it holds no plain hyper-parameters")
        try:
            return build({FAMILY: record.get("family"), **values}, "the tokenizer", Tokenizer)
        except ConfigError as error:
            raise ValueError(str(error)) from None


def _is_plain(value: Any) -> bool:
    """Whether a hyper-parameter is a value of sane size, or a part with such values, and holds no interpolation."""
    if isinstance(value, dict):
        return all(str(name).isidentifier() and _is_plain(part) for name, part in value.items())
    if isinstance(value, list):
        return all(_is_plain(part) for part in value)
    return abs(value) <= MAX_TOKENS if isinstance(value, int) else "${" not in str(value)


def code_items(folder: Path | str, vectors: np.ndarray) -> CodedItems:
    """New items of vectors, float32 (n, D), with their codes by the tokenizer of a tokenize stage or an export. Raises
    TigerrecError if the folder cannot be used, or the vectors have another dimension or are not finite."""
    tokenizer, state = load_tokenizer(folder)
    vectors = check_vectors(vectors, "The new items' vectors")
    dim = read_json(Path(folder), TOKENIZER, {"dim": int})["dim"]
    if vectors.shape[1] != dim:
        raise TokenizeError(
            f"The new items' vectors have {vectors.shape[1]} dimensions, the tokenizer in {folder} was fitted on "
            f"{dim}; use the same embedder."
        )
    codes = tokenizer.encode(state, vectors)
    check_codes(tokenizer, codes, len(vectors))
    return CodedItems(tokenizer, state, vectors, codes)


def encode_items(folder: Path | str, vectors: np.ndarray) -> Codes:
    """Codes without suffix, int32 (n, L), of new items: those of `code_items`."""
    return code_items(folder, vectors).codes
