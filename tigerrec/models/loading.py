"""A generator's folder: `config.json` names its family, the family builds the model, the model reads its weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerrec import TigerrecError
from tigerrec.config import ConfigError, family_class
from tigerrec.models.base import CONFIG, GENERATION_CONFIG, ITEM_CAUSAL, VECTORS, Generator, HistoryModel
from tigerrec.storage.contracts import contract, read_arrays, read_json
from tigerrec.tokenizers.ids import SemanticIds

if TYPE_CHECKING:
    from torch import nn

NEW_VECTORS = "new_item_vectors.safetensors"
FOREIGN = ("auto_map", "quantization_config")
NOT_THE_MODEL = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")


def load_generator(folder: Path, semantic_ids: SemanticIds) -> HistoryModel:
    """The trained generator of a train stage or an exported folder, in evaluation mode.

    Built from the sizes in `config.json` alone, it takes its weights from the folder and nothing else. Items beyond
    those it was trained with have no item embedding.

    Raises:
        ArtifactError: the config was not written by tigerrec or does not fit the Semantic IDs or the weights.
    """
    import torch

    config = read_json(folder, CONFIG, {"model_type": str})
    with contract(folder, CONFIG):
        if not isinstance(config.get("tigerrec"), dict):
            raise ValueError("it does not say how the model reads histories")
        try:
            generator = family_class(Generator, config["model_type"], "its model").of_config(config)
        except KeyError as error:
            raise ValueError(f"it lacks {error}: it does not say how the model reads histories") from None
        except ConfigError:
            raise ValueError(f"its model_type {config['model_type']!r} is no family of generators here") from None
        mask = config["tigerrec"].get("encoder_mask", ITEM_CAUSAL)
        n_items = config["tigerrec"].get("n_items", len(semantic_ids.codes))
        if not isinstance(n_items, int) or not 0 < n_items <= len(semantic_ids.codes):
            raise ValueError(f"it is a model of {n_items} items, and there are {len(semantic_ids.codes)}")
        trained = replace(semantic_ids, codes=semantic_ids.codes[:n_items])
        size = config["tigerrec"].get("vector_size", 0)
        vectors = np.zeros((n_items, size), np.float32) if size else None
        with torch.device("meta"):
            empty = generator.new(trained, mask, seed=0, vectors=vectors)
    for file, settings in _settings(empty).items():
        _check_settings(folder, file, settings)
    weights = {
        file: read_arrays(folder, file, _shapes(empty, module), finite=True)
        for file, module in empty.weight_files().items()
    }
    model = generator.new(trained, mask, seed=0, vectors=vectors)
    for file, module in model.weight_files().items():
        with contract(folder, file), torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.zero_()[: len(weights[file][name])] = torch.from_numpy(weights[file][name])
    further = semantic_ids.tokens[n_items:]
    if not len(further):
        return model
    shapes = {VECTORS: ("float32", (len(further), size))}
    return model.with_items(further, read_arrays(folder, NEW_VECTORS, shapes, finite=True)[VECTORS] if size else None)


def _settings(model: HistoryModel) -> dict[str, Any]:
    """The files of settings that a stock model writes: its sizes, and how it generates where it does."""
    generation = getattr(model.stock, "generation_config", None)
    return {CONFIG: model.stock.config} | ({} if generation is None else {GENERATION_CONFIG: generation})


def _shapes(model: HistoryModel, module: nn.Module) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """Type and shape of each parameter of a module; of the rows of items the file may hold the first only."""
    of_items = {id(parameter) for parameter in model.item_embeddings()}
    return {
        name: ("float32", (None, *parameter.shape[1:]) if id(parameter) in of_items else tuple(parameter.shape))
        for name, parameter in module.named_parameters()
    }


def _check_settings(folder: Path, file: str, settings: Any) -> None:
    """Refuse a file of transformers' settings that differ from those of the model built here, or that name code or a
    format of weights."""
    saved, expected = read_json(folder, file, {}), json.loads(settings.to_json_string(use_diff=False))
    with contract(folder, file):
        for name, value in saved.items():
            if name in FOREIGN:
                raise ValueError(f"it has the key '{name}'")
            if name in NOT_THE_MODEL or name not in expected:
                continue
            if value != expected[name] or type(value) is not type(expected[name]):
                raise ValueError(
                    f"its '{name}' is not {expected[name]!r}, as the Semantic IDs and the other sizes ask for"
                )


def save_generator(model: HistoryModel, folder: Path) -> Iterator[Path]:
    """Write a generator as transformers does, and what else it has; gives the files written.

    Raises:
        TigerrecError: the model's class saves weights that it would not load, or none at all of some.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model.save_pretrained(folder)
    files = model.weight_files()
    loaded = {id(parameter) for module in files.values() for parameter in module.parameters()}
    saved = {path.name for path in folder.glob("*.safetensors")}
    missing = {*_settings(model), *files} - {path.name for path in folder.iterdir()}
    if missing or saved != set(files) or loaded != {id(parameter) for parameter in model.parameters()}:
        names = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise TigerrecError(
            f"{type(model).__name__} must save {', '.join(_settings(model))} and all its parameters in the files that "
            f"its weight_files() names, {', '.join(files)}; it saved {names}."
        )
    yield from sorted(folder.iterdir())
