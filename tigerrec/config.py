"""From a yaml node to a checked, frozen dataclass."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tigerrec import TigerrecError

NAME = "name"
TARGET = "_target_"
PRECISIONS = ("auto", "fp32", "bf16")


class ConfigError(TigerrecError):
    """A configuration that cannot be built: unknown key, wrong type, value out of range."""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def config_folder() -> Path:
    """The folder of the yaml files: inside an installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


def compose(overrides: list[str] | None = None) -> DictConfig:
    """The composed configuration, as the scripts see it; for notebooks and tests.

    Args:
        overrides: Hydra overrides, for instance `["dataset=beauty", "tokenizer=rkmeans"]`.

    Raises:
        ConfigError: an override names no choice or no option.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    try:
        with initialize_config_dir(str(config_folder().resolve()), version_base="1.3"):
            return hydra_compose("config", overrides=overrides or [])
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(composition_fault(error)) from None


def composition_fault(error: Exception) -> str:
    """One sentence for what Hydra or OmegaConf says of a configuration: what is wrong, and what is allowed where that
    is known."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    choices = getattr(error, "options", None)
    if choices:
        group, _, choice = str(getattr(error, "missing_cfg_file", "")).rpartition("/")
        return f"{group}={choice} is not a choice; allowed: {', '.join(choices)}."
    parent = getattr(cause, "parent_node", None)
    if isinstance(parent, DictConfig) and getattr(cause, "key", None) not in parent:
        allowed = sorted(str(key) for key in parent if key != TARGET)
        return f"{getattr(cause, 'full_key', '')} is not an option; allowed: {', '.join(allowed)}."
    return f"The configuration cannot be read: {_first_line(error)}."


def target_class(path: Any, where: str) -> type:
    """The tigerrec dataclass that a `_target_` names.

    Raises:
        ConfigError: the path names anything but a dataclass of this package.
    """
    if isinstance(path, str) and path.startswith("tigerrec."):
        module, _, name = path.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise ConfigError(
                    f"{module}, which {where}._target_ names, imports {error.name}, which is not installed."
                ) from error
            found = None
        except ImportError as error:
            raise ConfigError(f"{module}, which {where}._target_ names, cannot be imported: {error}.") from error
        except AttributeError:
            found = None
        if isinstance(found, type) and dataclasses.is_dataclass(found) and found.__module__.startswith("tigerrec."):
            return found
    raise ConfigError(f"{where}._target_={path!r} is not a dataclass of tigerrec; correct the yaml of this choice.")


def _check_keys(node: Mapping[str, Any], allowed: list[str], where: str) -> None:
    unknown = [key for key in node if key not in allowed]
    if unknown:
        raise ConfigError(f"{where}.{unknown[0]} is not an option; allowed: {', '.join(sorted(allowed))}.")


def plain(node: Any, where: str) -> dict[str, Any]:
    """A node as a dict of plain values and dataclasses, its interpolations resolved."""
    try:
        values = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where} cannot be read: {_first_line(error)}.") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be one of the choices in configs/{where}/, got {values!r}.")
    return {str(key): value for key, value in values.items()}


def _check_flat(values: dict[str, Any], types: dict[str, Any], where: str) -> dict[str, Any]:
    """The values converted to their annotated types by OmegaConf."""
    checked = {}
    for name, value in values.items():
        schema = dataclasses.make_dataclass("Schema", [(name, types[name])])
        try:
            merged = OmegaConf.merge(OmegaConf.structured(schema), {name: value})
            item = OmegaConf.to_container(merged, throw_on_missing=True)[name]  # type: ignore[index, call-overload]
        except OmegaConfBaseException as error:
            raise ConfigError(f"{where}.{name}={value!r} has the wrong type: {_first_line(error)}.") from None
        if isinstance(item, float) and not math.isfinite(item):
            raise ConfigError(f"{where}.{name}={value!r} must be a finite number.")
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
        node: a mapping with a `_target_` inside `tigerrec.` and that dataclass's fields; a field that is itself built
            may come as a node or as a dataclass.
        where: what to call the node in errors, for instance `tokenizer`.

    Raises:
        ConfigError: names the key, what is wrong with it and what is allowed.
    """
    values = plain(node, where)
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
        elif getattr(types[name], "_is_protocol", False):
            raise ConfigError(
                f"{where}.{name}={value!r} must be a part; give its class as "
                f"`{where}.{name}._target_=tigerrec.<module>.<class>`."
            )
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
    values = plain(node, where)
    taken = {key: values.pop(key) for key in (NAME, *reserved) if key in values}
    kind = target_class(values.get(TARGET), where)
    allowed = [field.name for field in dataclasses.fields(kind) if field.init]
    _check_keys({key: value for key, value in values.items() if key != TARGET}, [*allowed, NAME, *reserved], where)
    return build(values, where), taken


def check_precision(precision: str) -> None:
    """Raise ValueError for a precision that is none."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")


def check_device(device: str) -> None:
    """Raise ValueError for a device that torch could not have."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ValueError(f"device must be auto, cpu, mps, cuda or cuda:<number>, got {device!r}")
