"""What a stage is: its configuration and inputs as one fingerprint, its files as one digest, and what differs between
two of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tigerrec.config import FAMILY
from tigerrec.storage.files import sha256_text

SCHEMA = 1
LONG = 100
OLD_KEY = "_target_"


def not_identity(**kwargs: Any) -> Any:
    """A dataclass field that may change without changing what a stage produces (paths, devices, batch sizes)."""
    return dataclasses.field(metadata={"identity": False}, **kwargs)


def added(default: Any) -> Any:
    """A dataclass field that earlier versions did not have: no part of the identity while it has its default, so that
    what they made stays up to date."""
    return dataclasses.field(default=default, metadata={"added": True})


OLD_NAMES: dict[str, str | None] = {
    "AmazonReviews": "amazon", "TablesDataset": "tables", "SentenceTransformerEmbedder": "sentence_transformer",
    "T5": "t5", "DecoderOnly": "gpt2", "Gradient": "gradient", "MovingAverage": "moving_average", "SimVQ": "simvq",
    "StraightThrough": "straight_through", "Rotation": "rotation", "Reflection": "reflection", "Gumbel": "gumbel",
    "Nearest": "nearest", "Sinkhorn": "sinkhorn", "Contrast": "contrast", "Reconstruction": "reconstruction",
    "Letter": "letter", "TokenizeConfig": None, "TrainConfig": None, "Training": None, "EvaluateConfig": None,
    "TuneConfig": None, "BaselineConfig": None,
}  # fmt: skip
"""The family of a class of version 0.1, which recorded its import path; None for what has none. Of others the family is
the name of the module."""


def describe(value: Any) -> Any:
    """The JSON form of a configuration: dataclasses with their family's name, without the fields outside identity."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        family = {FAMILY: getattr(value, FAMILY)} if hasattr(value, FAMILY) else {}
        return family | {
            field.name: describe(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if _is_identity(field, getattr(value, field.name))
        }
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _is_identity(field: dataclasses.Field[Any], value: Any) -> bool:
    return field.metadata.get("identity", True) and not (field.metadata.get("added") and value == field.default)


def with_families(recorded: Any) -> Any:
    """A recorded configuration with the import paths of version 0.1 replaced by the names of families."""
    if isinstance(recorded, dict):
        named = {key: with_families(value) for key, value in recorded.items() if key != OLD_KEY}
        module, _, name = str(recorded.get(OLD_KEY, "")).rpartition(".")
        family = OLD_NAMES.get(name, module.rpartition(".")[2] or None)
        return ({FAMILY: family} if OLD_KEY in recorded and family else {}) | named
    return [with_families(value) for value in recorded] if isinstance(recorded, list) else recorded


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(stage: str, config: Any, inputs: Mapping[str, str]) -> str:
    """What a stage is made of: the sha256 over its name, the schema, its configuration (seed included) and its inputs'
    fingerprints."""
    return sha256_text(canonical_json([stage, SCHEMA, describe(config), dict(inputs)]))


def content_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """What a stage holds: the sha256 over its files' sha256 by name, without the measured ones."""
    digests = {name: entry["sha256"] for name, entry in files.items() if not entry.get("measured")}
    return sha256_text(canonical_json(digests))


def changed_keys(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The leaves in which two configurations differ, as `key: old → new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = {key: f"{prefix}.{key}" if prefix else key for key in sorted(set(old) | set(new))}
        return [change for key, name in names.items() for change in changed_keys(old.get(key), new.get(key), name)]
    return [] if old == new else [f"{prefix}: {_brief(old)} → {_brief(new)}"]


def _brief(value: Any) -> str:
    """A value to read in a message; of long lists and mappings, how long they are."""
    text = repr(value)
    return f"{len(value)} values" if isinstance(value, (list, dict)) and len(text) > LONG else text
