"""Tokenizers side by side on one data set: fits those that are not up to date, and writes a table and pictures of
all."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec import TigerrecError, artifacts, files, markdown, pipeline
from tigerrec.config import ConfigError, compose, config_folder
from tigerrec.diagnostics import prefix_purity
from tigerrec.markdown import NOTHING
from tigerrec.processes import in_own_process
from tigerrec.semantic_ids import load_semantic_ids

logger = logging.getLogger(__name__)

CATEGORY_DEPTH = 2
LEGEND = """\
Lists run over levels, or over prefixes of 1, 2, … codes. Codes are those of the ids: after the collision policy, without suffix.

- **codes**: how many codes a level has; – stands where there is no value.
- **sharing**: items whose codes another item has too; **largest**: the most items with equal codes.
- **used**: codes that some item has; **perplexity**: exp of the entropy of code frequencies, the number of codes when all are equally frequent.
- **error**: squared error of the vectors decoded from the codes, relative to their variance; 0 is perfect, 1 no better than the mean vector.
- **neighbours**: share of an item's ten nearest neighbours, by the cosine of the vectors, that begin with the same codes.
- **purity**: share of items in the majority category of their prefix; in parentheses what the same groups reach when categories are dealt out at random.
- **seconds**, **MB**: time to fit, and largest memory of the process meanwhile, with all that it held before.

Few collisions and even use of codes do not make a good tokenizer: random codes have both. What counts is how well a generator learns the codes."""


@dataclass(frozen=True)
class FittedTokenizer:
    """A finished tokenize stage as the comparison shows it.

    Attributes:
        name: its folder's name.
        facts: one value a column of `comparison.parquet`.
        group_sizes: the number of groups of items with equal codes, by their size.
        code_sizes: the number of codes a level.
        codes: the items' codes without suffix, int32 (I, L).
    """

    name: str
    facts: dict[str, Any]
    group_sizes: dict[int, int]
    code_sizes: tuple[int, ...]
    codes: np.ndarray


@dataclass(frozen=True)
class Categories:
    """The items' categories: the second element of an item's path, or its only one.

    Attributes:
        names: the categories, the most frequent first.
        of_items: the index into `names` of each item, int64 (I,); -1 where an item has no category.
    """

    names: tuple[str, ...]
    of_items: np.ndarray


def read_categories(prepared: Path) -> Categories:
    """The categories of the items of a finished prepare stage.

    Raises:
        ArtifactError: no finished stage stands there, or it is damaged.
    """
    artifacts.open_stage(prepared, "prepare")
    paths = artifacts.read_table(prepared, "items.parquet", {"categories": "list<element: string>?"})[
        "categories"
    ].to_pylist()
    found = [path[:CATEGORY_DEPTH][-1] if path else None for path in paths]
    counts = Counter(name for name in found if name is not None)
    names = sorted(counts, key=lambda name: (-counts[name], name))
    index = {name: number for number, name in enumerate(names)}
    return Categories(tuple(names), np.array([index.get(name, -1) for name in found]))


def read_fitted(folder: Path, categories: Categories, seed: int) -> FittedTokenizer:
    """What a finished tokenize stage left, and the purity of its prefixes.

    Raises:
        ArtifactError: no finished stage stands there, it is damaged, or it was written before all of this was measured.
    """
    ids = load_semantic_ids(folder)
    family = artifacts.read_json(folder, "tokenizer.json", {"family": str})["family"]
    found = artifacts.read_json(folder, "diagnostics.json", {})
    missing = [name for name in ("group_sizes", "peak_mb") if name not in found]
    if missing:
        raise artifacts.ArtifactError(
            f"{folder}/diagnostics.json comes from an older version and lacks {missing[0]}; add `overwrite=tokenize` "
            "to fit it again."
        )
    found |= {name: value for name, value in found["collisions"].items() if name != "seconds"}
    sizes = ids.layout.code_sizes
    codes = ids.codes[:, : len(sizes)]
    levels = {name: [level[name] for level in found["levels"]] for name in ("used_codes", "dead_codes", "perplexity")}
    whole = (
        "collision_rate",
        "unique_ids",
        "largest_group",
        "reconstruction_error",
        "neighbour_agreement",
        "seconds",
        "peak_mb",
    )
    facts = (
        {"tokenizer": folder.name, "family": family, "items": len(codes), "code_sizes": list(sizes)}
        | levels
        | {name: found[name] for name in whole}
    )
    facts |= prefix_purity(codes, categories.of_items, seed)
    return FittedTokenizer(
        folder.name, facts, {int(size): count for size, count in found["group_sizes"].items()}, sizes, codes
    )


def chosen(tokenizers: Any) -> list[str]:
    """The choices to compare: those named, or all.

    Raises:
        ConfigError: one of them does not exist.
    """
    known = sorted(path.stem for path in (config_folder() / "tokenizer").glob("*.yaml"))
    names = [tokenizers] if isinstance(tokenizers, str) else list(tokenizers or known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"tokenizers={unknown[0]} is not a choice; allowed: {', '.join(known)}.")
    return list(dict.fromkeys(names))


def fit_in_this_process(overrides: list[str]) -> dict[str, Any]:
    """Run the pipeline up to the tokenize stage; called in a process of its own, so that the memory measured is that of
    one tokenizer."""
    pipeline.show_progress()
    pipeline.run(compose(overrides), "tokenize")
    return {}


def _up_to_date(step: pipeline.Step, overrides: list[str], rebuild: bool) -> Path:
    if not rebuild and step.is_current():
        logger.info("tokenize: up to date in %s", step.folder)
    else:
        in_own_process(f"{__name__}.fit_in_this_process", [*overrides, "overwrite=tokenize"] if rebuild else overrides)
    return step.folder


def compare(overrides: Sequence[str]) -> Path:
    """Bring tokenizers up to date, one after the other, and write `comparison.md`, `comparison.parquet` and pictures.

    A tokenizer that fails is told of in `comparison.md` and does not stop the others.

    Args:
        overrides: Hydra overrides; `tokenizers=[…]` limits the choices.

    Returns:
        The folder written, beside those of the tokenizers.

    Raises:
        TigerrecError: an option is wrong, the data or the vectors cannot be used, or no tokenizer could be fitted.
    """
    cfg = compose(list(overrides))
    for override in overrides:
        if override.startswith(("tokenizer=", "tokenizer.name=")):
            raise ConfigError(
                f"{override} is for one tokenizer; choose those to compare by `tokenizers=[<choice>,<choice>]`."
            )
    names, rebuild = chosen(cfg.tokenizers), cfg.overwrite is not None
    if cfg.overwrite == "tokenize":
        cfg.overwrite = None
    embedded = pipeline.run(cfg, "embed")
    categories = read_categories(embedded.parent)
    fitted, failures = [], []
    for name in names:
        options = [*(override for override in overrides if not override.startswith("overwrite=")), f"tokenizer={name}"]
        try:
            step = pipeline.plan(compose(options))["tokenize"]
            fitted.append(read_fitted(_up_to_date(step, options, rebuild), categories, step.config.seed))
        except TigerrecError as error:
            logger.warning("%s failed: %s", name, error)
            failures.append(f"{name} failed: {error}")
    if not fitted:
        raise TigerrecError(f"No tokenizer could be fitted; {failures[0]}")
    return write_comparison(embedded / "tokenizers", fitted, categories, failures)


def write_comparison(
    out: Path, fitted: Sequence[FittedTokenizer], categories: Categories, failures: Sequence[str]
) -> Path:
    """The tables and pictures of some tokenizers of the same items; an older comparison in the folder is replaced.

    Returns:
        `out`.
    """
    from tigerrec import tokenizer_plots

    files.remove_tree(out / "pictures")
    try:
        pictures, without = tokenizer_plots.draw(out / "pictures", fitted, categories), []
    except tokenizer_plots.NoMatplotlibError as error:
        pictures, without = [], [str(error)]
    known = int((categories.of_items >= 0).sum())
    about = (
        f"Categories are the second elements of the items' category paths: {len(categories.names)} for {known:,} of "
        f"{len(categories.of_items):,} items."
    )
    notes = [f"- {note}" for note in [about, *failures, *without]]
    shown = [f"## {title}\n\n![{title}]({path.relative_to(out)})" for title, path in pictures]
    parts = [
        "# Tokenizers of " + "/".join(out.parent.parts[-2:]),
        table(fitted),
        LEGEND,
        "Notes:\n\n" + "\n".join(notes),
        *shown,
    ]
    _write_parquet(out / "comparison.parquet", fitted)
    with artifacts.atomic(out / "comparison.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    logger.info("wrote a comparison of %d tokenizers to %s", len(fitted), out / "comparison.md")
    return out


def _each(values: Sequence[Any] | None, form: Callable[[Any], str]) -> str:
    return "/".join(map(form, values)) if values else NOTHING


def table(fitted: Sequence[FittedTokenizer]) -> str:
    """Markdown with a row a tokenizer; `LEGEND` says what the columns are."""
    share = lambda value: f"{value:.2f}"
    rows = [
        [
            "tokenizer",
            "codes",
            "sharing",
            "largest",
            "used",
            "perplexity",
            "error",
            "neighbours",
            "purity (by chance)",
            "seconds",
            "MB",
        ]
    ]
    for tokenizer in fitted:
        facts = tokenizer.facts
        error, purity = facts["reconstruction_error"], _each(facts["purity"], share)
        rows.append([
            tokenizer.name, _each(facts["code_sizes"], str), f"{facts['collision_rate']:.1%}", str(facts["largest_group"]), _each(facts["used_codes"], str),
            _each(facts["perplexity"], lambda value: f"{value:.0f}"), NOTHING if error is None else f"{error:.3f}", _each(facts["neighbour_agreement"], share),
            f"{purity} ({_each(facts['purity_by_chance'], share)})" if facts["purity"] else NOTHING, f"{facts['seconds']:.1f}", str(facts["peak_mb"]),
        ])  # fmt: skip
    return markdown.table(rows)


def _write_parquet(path: Path, fitted: Sequence[FittedTokenizer]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, wholes, numbers = (
        ("tokenizer", "family"),
        ("items", "unique_ids", "largest_group", "peak_mb"),
        ("collision_rate", "reconstruction_error", "seconds"),
    )
    of_codes, of_shares = (
        ("code_sizes", "used_codes", "dead_codes"),
        ("perplexity", "neighbour_agreement", "purity", "purity_by_chance"),
    )
    types = [
        (texts, pa.string()),
        (wholes, pa.int64()),
        (numbers, pa.float64()),
        (of_codes, pa.list_(pa.int64())),
        (of_shares, pa.list_(pa.float64())),
    ]
    kinds = {name: kind for names, kind in types for name in names}
    schema = pa.schema([(name, kinds[name]) for name in fitted[0].facts])
    with artifacts.atomic(path) as temporary:
        pq.write_table(pa.Table.from_pylist([tokenizer.facts for tokenizer in fitted], schema), temporary)


def command(overrides: Sequence[str]) -> None:
    """What the script does: compare, print the folder of the comparison as the last line; end with one sentence on a
    user's error."""
    with pipeline.reporting():
        folder = compare(overrides)
    print(folder, flush=True)
