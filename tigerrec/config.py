"""From a yaml node to a checked, frozen dataclass."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tigerrec import TigerrecError

NAME = "name"
TARGET = "_target_"


class ConfigError(TigerrecError):
    """A configuration that cannot be built: unknown key, wrong type, value out of range."""


def config_folder() -> Path:
    """The folder of the yaml files: inside an installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


def compose(overrides: list[str] | None = None) -> DictConfig:
    """The composed configuration, as the scripts see it; for notebooks and tests.

    Args:
        overrides: Hydra overrides, for instance `["dataset=beauty", "tokenizer=rkmeans"]`.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(config_folder().resolve()), version_base="1.3"):
        return hydra_compose("config", overrides=overrides or [])


def target_class(path: Any, where: str) -> type:
    """The tigerrec dataclass that a `_target_` names.

    Raises:
        ConfigError: the path names anything but a dataclass of this package.
    """
    if isinstance(path, str) and path.startswith("tigerrec."):
        module, _, name = path.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            found = None
        if isinstance(found, type) and dataclasses.is_dataclass(found):
            return found
    raise ConfigError(f"{where}._target_={path!r} is not a dataclass of tigerrec; correct the yaml of this choice.")


def _check_keys(node: Mapping[str, Any], allowed: list[str], where: str) -> None:
    unknown = [key for key in node if key not in allowed]
    if unknown:
        raise ConfigError(f"{where}.{unknown[0]} is not an option; allowed: {', '.join(sorted(allowed))}.")


def _check_flat(values: dict[str, Any], types: dict[str, Any], where: str) -> dict[str, Any]:
    """The values converted to their annotated types by OmegaConf."""
    schema = dataclasses.make_dataclass("Schema", [(name, types[name]) for name in values])
    checked = {}
    for name, value in values.items():
        try:
            merged = OmegaConf.merge(OmegaConf.structured(schema), {name: value})
            item = OmegaConf.to_container(merged, throw_on_missing=False)[name]  # type: ignore[index, call-overload]
        except OmegaConfBaseException as error:
            raise ConfigError(f"{where}.{name}={value!r} has the wrong type: {str(error).splitlines()[0]}.") from None
        is_tuple = typing.get_origin(types[name]) is tuple
        checked[name] = tuple(item) if is_tuple and item is not None else item
    return checked


def _check_part(value: Any, expected: Any, where: str) -> None:
    """A built child node against the field's annotation (a dataclass or a runtime-checkable protocol)."""
    if isinstance(expected, type) and not isinstance(value, expected):
        raise ConfigError(f"{where} must be a {expected.__name__}, not a {type(value).__name__}.")


def build(node: Any, where: str) -> Any:
    """The dataclass that a yaml node describes: children first, then keys, types and values.

    Args:
        node: a mapping with a `_target_` inside `tigerrec.` and that dataclass's fields; a field that is itself built may come as a node or as a dataclass.
        where: what to call the node in errors, for instance `tokenizer`.

    Raises:
        ConfigError: names the key, what is wrong with it and what is allowed.
    """
    values = dict(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node)  # type: ignore[arg-type]
    kind = target_class(values.pop(TARGET, None), where)
    types = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    _check_keys(values, list(fields), where)
    parts = {}
    for name, value in list(values.items()):
        if (isinstance(value, Mapping) and TARGET in value) or dataclasses.is_dataclass(value):
            del values[name]
            parts[name] = build(value, f"{where}.{name}") if isinstance(value, Mapping) else value
            _check_part(parts[name], types[name], f"{where}.{name}")
    arguments = _check_flat(values, types, where) | parts
    missing = [
        name for name, field in fields.items()
        if name not in arguments and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise ConfigError(f"{where}.{missing[0]} is missing; give it as `{where}.{missing[0]}=<value>`.")
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}.") from None


def build_choice(node: Any, where: str, reserved: tuple[str, ...] = ()) -> tuple[Any, dict[str, Any]]:
    """A config group's part and the keys that the stage itself reads.

    Returns:
        The dataclass built of the node without its reserved keys, and those keys (`name` is always one).
    """
    values = dict(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node)  # type: ignore[arg-type]
    taken = {key: values.pop(key) for key in (NAME, *reserved) if key in values}
    kind = target_class(values.get(TARGET), where)
    allowed = [field.name for field in dataclasses.fields(kind) if field.init]
    _check_keys({key: value for key, value in values.items() if key != TARGET}, [*allowed, NAME, *reserved], where)
    return build(values, where), taken
