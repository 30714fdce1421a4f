"""A generator's folder: `config.json` names its family, the family builds the model, the model reads its weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tigerrec import TigerrecError
from tigerrec.config import ConfigError, family_class
from tigerrec.models.base import CONFIG, GENERATION_CONFIG, ITEM_CAUSAL, Generator, HistoryModel
from tigerrec.storage.contracts import contract, read_arrays, read_json
from tigerrec.tokenizers.ids import SemanticIds

if TYPE_CHECKING:
    from torch import nn

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
        with torch.device("meta"):
            empty = generator.new(semantic_ids, mask, seed=0)
    _check_settings(folder, CONFIG, empty.stock.config)
    _check_settings(folder, GENERATION_CONFIG, empty.stock.generation_config)
    weights = {
        file: read_arrays(folder, file, _shapes(empty, module), finite=True)
        for file, module in empty.weight_files().items()
    }
    model = generator.new(semantic_ids, mask, seed=0)
    for file, module in model.weight_files().items():
        with contract(folder, file), torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.zero_()[: len(weights[file][name])] = torch.from_numpy(weights[file][name])
    return model


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
    missing = {CONFIG, GENERATION_CONFIG, *files} - {path.name for path in folder.iterdir()}
    if missing or saved != set(files) or loaded != {id(parameter) for parameter in model.parameters()}:
        names = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise TigerrecError(
            f"{type(model).__name__} must save {CONFIG}, {GENERATION_CONFIG} and all its parameters in the files that "
            f"its weight_files() names, {', '.join(files)}; it saved {names}."
        )
    yield from sorted(folder.iterdir())
