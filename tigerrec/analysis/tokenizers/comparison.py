"""Tokenizers side by side on one data set: fits those that are not up to date, writes a table and pictures of all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tigerrec import TigerrecError, pipeline, text
from tigerrec.analysis.tokenizers import pictures
from tigerrec.analysis.tokenizers.fitted import Categories, FittedTokenizer, read_categories, read_fitted
from tigerrec.config import ConfigError, compose, config_folder
from tigerrec.runtime.processes import in_own_process
from tigerrec.storage.files import atomic, remove_tree
from tigerrec.text import NOTHING

logger = logging.getLogger(__name__)

LEGEND = """\
Lists run over levels, or over prefixes of 1, 2, … codes. Codes are those of the ids: after the collision policy, without suffix.

- **codes**: how many codes a level has; – stands where there is no value.
- **sharing**: items whose codes another item has too; **largest**: the most items with equal codes.
- **used**: codes that some item has; **perplexity**: exp of the entropy of code frequencies, the number of codes when all are equally frequent.
- **error**: squared error of the vectors decoded from the codes, relative to their variance; 0 is perfect, 1 no better than the mean vector.
- **neighbours**: share of an item's ten nearest neighbours, by the cosine of the vectors, that begin with the same codes.
- **purity**: share of items in the majority category of their prefix; in parentheses what the same groups reach when categories are dealt out at random.
- **seconds**, **MB**: time to fit, and largest memory of the process meanwhile, with all that it held before.

Few collisions and even use of codes do not make a good tokenizer: random codes have both. What counts is how well a generator learns the codes."""  # noqa: E501


def chosen(tokenizers: Any) -> list[str]:
    """The choices to compare: those named, which must exist, or all."""
    known = sorted(path.stem for path in (config_folder() / "tokenizer").glob("*.yaml"))
    names = [tokenizers] if isinstance(tokenizers, str) else list(tokenizers or known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"tokenizers={unknown[0]} is not a choice; allowed: {', '.join(known)}.")
    return list(dict.fromkeys(names))


def fit_in_this_process(overrides: list[str]) -> dict[str, Any]:
    """Run the pipeline up to the tokenize stage; in a process of its own it measures the memory of one tokenizer."""
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

    A tokenizer that fails is told of in `comparison.md` and does not stop the others. The folder written, which is
    returned, stands beside those of the tokenizers.

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
    """Write the tables and pictures of some tokenizers of the same items to `out` instead of an older comparison."""
    remove_tree(out / "pictures")
    known, n_items = int((categories.of_items >= 0).sum()), len(categories.of_items)
    coverage = f"{len(categories.names)} for {known:,} of {n_items:,} items"
    notes = [f"Categories are the second elements of the items' category paths: {coverage}.", *failures]
    drawn = pictures.draw(out / "pictures", fitted, categories)
    blocks = [
        "# Tokenizers of " + "/".join(out.parent.parts[-2:]),
        comparison_table(fitted),
        LEGEND,
        "Notes:\n\n" + "\n".join(f"- {note}" for note in notes),
        *(f"## {title}\n\n![{title}]({path.relative_to(out)})" for title, path in drawn),
    ]
    _write_parquet(out / "comparison.parquet", fitted)
    with atomic(out / "comparison.md") as temporary:
        temporary.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    logger.info("wrote a comparison of %d tokenizers to %s", len(fitted), out / "comparison.md")
    return out


def _listed(values: Sequence[Any] | None, form: str = "") -> str:
    return "/".join(f"{value:{form}}" for value in values) if values else NOTHING


def comparison_table(fitted: Sequence[FittedTokenizer]) -> str:
    """Markdown with a row a tokenizer; `LEGEND` says what the columns are."""
    rows = []
    for tokenizer in fitted:
        measures = tokenizer.measures
        by_chance = f" ({_listed(measures['purity_by_chance'], '.2f')})" if measures["purity"] else ""
        row = {
            "tokenizer": tokenizer.name,
            "codes": _listed(measures["code_sizes"]),
            "sharing": f"{measures['collision_rate']:.1%}",
            "largest": f"{measures['largest_group']}",
            "used": _listed(measures["used_codes"]),
            "perplexity": _listed(measures["perplexity"], ".0f"),
            "error": text.figure(measures["reconstruction_error"], ".3f"),
            "neighbours": _listed(measures["neighbour_agreement"], ".2f"),
            "purity (by chance)": _listed(measures["purity"], ".2f") + by_chance,
            "seconds": f"{measures['seconds']:.1f}",
            "MB": f"{measures['peak_mb']}",
        }
        rows.append(row)
    return text.table([list(rows[0]), *(list(row.values()) for row in rows)])


def _write_parquet(path: Path, fitted: Sequence[FittedTokenizer]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names_by_type = {
        pa.string(): ("tokenizer", "family"),
        pa.int64(): ("items", "unique_ids", "largest_group", "peak_mb"),
        pa.float64(): ("collision_rate", "reconstruction_error", "seconds"),
        pa.list_(pa.int64()): ("code_sizes", "used_codes", "dead_codes"),
        pa.list_(pa.float64()): ("perplexity", "neighbour_agreement", "purity", "purity_by_chance"),
    }
    types = {name: kind for kind, names in names_by_type.items() for name in names}
    schema = pa.schema([(name, types[name]) for name in fitted[0].measures])
    with atomic(path) as temporary:
        pq.write_table(pa.Table.from_pylist([tokenizer.measures for tokenizer in fitted], schema), temporary)
