"""From a yaml node to a checked, frozen dataclass."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import pkgutil
import re
import shlex
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic import dataclasses as pydantic_dataclasses

from tigerrec import TigerrecError

NAME = "name"
FAMILY = "family"

AtLeastOne = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Precision = typing.Literal["auto", "fp32", "bf16"]


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError("must be auto, cpu, mps, cuda or cuda:<number>")
    return name


Device = Annotated[str, AfterValidator(_device)]

OPTIONS = ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True, allow_inf_nan=False, extra="forbid")
RANGES = {
    "greater_than_equal": "at least {ge:,.10g}",
    "greater_than": "above {gt:,.10g}",
    "less_than_equal": "at most {le:,.10g}",
    "less_than": "below {lt:,.10g}",
    "too_short": "at least {min_length} long",
    "string_too_short": "at least {min_length} long",
    "string_too_long": "at most {max_length} long",
    "literal_error": "{expected}",
    "finite_number": "a finite number",
}
"""What an option must be, by pydantic's name of the mistake."""
Kind = TypeVar("Kind")


class ConfigError(TigerrecError):
    """A configuration that cannot be built: unknown key, wrong type, value out of range."""


def _sentence(error: ValidationError, names: list[str]) -> str:
    """What is wrong with the first wrong option of those with the names, beginning with its name."""
    fault = error.errors(include_url=False)[0]
    first, *inner = fault["loc"] or ("",)
    place = [names[first] if isinstance(first, int) else first, *inner]
    name, value, context = ".".join(map(str, place)), fault["input"], fault.get("ctx", {})
    if "error" in context:  # raised by a class of ours
        return f"{name} {context['error']}, got {value!r}" if name else str(context["error"])
    if fault["type"] in RANGES:
        return f"{name} must be {RANGES[fault['type']].format(**context)}, got {value!r}"
    if fault["type"] == "is_instance_of":
        return f"{name} must be a {context['class']}, not a {type(value).__name__}"
    return f"{name}={value!r} has the wrong type: {fault['msg'][0].lower()}{fault['msg'][1:]}"


@typing.dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def options(kind: type[Kind]) -> type[Kind]:
    """A frozen dataclass that checks the types and ranges of its fields.

    Raises:
        ValueError: when an object with a wrong value is made; one sentence, which begins with the field's name.
    """
    checked: Any = pydantic_dataclasses.dataclass(frozen=True, config=OPTIONS)(kind)
    fields = {field.name: field for field in dataclasses.fields(checked)}
    make = checked.__init__

    @functools.wraps(make)
    def check(self: Any, *args: Any, **kwargs: Any) -> None:
        for name, value in (dict(zip(fields, args, strict=False)) | kwargs).items():
            if isinstance(value, bool) and name in fields and "bool" not in str(fields[name].type):
                raise ValueError(f"{name}={value} has the wrong type: input should not be true or false")
        try:
            make(self, *args, **kwargs)
        except ValidationError as error:
            raise ValueError(_sentence(error, list(fields))) from None

    checked.__init__ = check
    return typing.cast("type[Kind]", checked)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def shipped_folder(installed: str, checkout: str) -> Path:
    """A folder that comes with tigerrec: inside an installed package, or at its place in a checkout."""
    inside = Path(__file__).parent / installed
    return inside if inside.is_dir() else Path(__file__).parent.parent / checkout


def config_folder() -> Path:
    """The folder of the yaml files."""
    return shipped_folder("configs", "configs")


def expanded(path: str | Path) -> Path:
    """A path in which `~` is the user's folder; that of a user who is not here stays as it is."""
    with contextlib.suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


OmegaConf.register_new_resolver("expanded", lambda path: str(expanded(str(path))), replace=True)


def folder_of(cfg: DictConfig, option: str) -> Path:
    """The folder that an option names; ConfigError where it names none."""
    value = OmegaConf.select(cfg, option)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{option}={value!r} must be a folder; give `{option}=<folder>`.")
    return expanded(value)


def compose(overrides: list[str] | None = None) -> DictConfig:
    """The composed configuration, as the scripts see it; for notebooks and tests.

    Args:
        overrides: Hydra overrides, for instance `["dataset=beauty", "tokenizer=rkmeans"]`.

    Raises:
        ConfigError: an override names no choice or no option, or the overrides are one text.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    try:
        with initialize_config_dir(str(config_folder().resolve()), version_base="1.3"):
            return hydra_compose("config", overrides=listed_overrides(overrides or []))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(composition_fault(error)) from None


def listed_overrides(overrides: Sequence[str]) -> list[str]:
    """Overrides as a list. Raises ConfigError if they are one text, which would be taken letter by letter."""
    if isinstance(overrides, str):
        raise ConfigError(f"The overrides are one text; give a list of them, as {overrides.split()}.")
    return [*overrides]


def composition_fault(error: Exception) -> str:
    """One sentence for what Hydra or OmegaConf says of a configuration: what is wrong, and what is allowed where that
    is known."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    choices = getattr(error, "options", None)
    if choices:
        group, _, choice = str(getattr(error, "missing_cfg_file", "")).rpartition("/")
        return f"{group}={choice} is not a choice; allowed: {', '.join(choices)}."
    key, equals, value = str(getattr(error, "override", "")).partition("=")
    if equals and value[:1] not in ("[", "{"):
        option = f"{key}='" + value.replace("'", "\\'") + "'"
        quoted = shlex.quote(option) if set(option) & set('"$`\\!') else f'"{option}"'
        return f"{key}={value} has characters that need quotes of their own: give {quoted}."
    parent = getattr(cause, "parent_node", None)
    if isinstance(parent, DictConfig) and getattr(cause, "key", None) not in parent:
        allowed = sorted(map(str, parent))
        return f"{getattr(cause, 'full_key', '')} is not an option; allowed: {', '.join(allowed)}."
    return f"The configuration cannot be read: {_first_line(error)}."


def families_in(module: Any) -> dict[str, type]:
    """The dataclasses that a module defines under a family name, by that name."""
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    named = [kind for kind in kinds if dataclasses.is_dataclass(kind) and hasattr(kind, FAMILY)]
    return {getattr(kind, FAMILY): kind for kind in named}


def families(protocol: type) -> dict[str, type]:
    """The classes that can stand for a protocol, by family: those of its own module, or else the one that each module
    of its room has under the module's name."""
    module = sys.modules[protocol.__module__]
    if parts := families_in(module):
        return parts
    room = _room(protocol)
    names = [info.name for info in pkgutil.iter_modules(sys.modules[room].__path__)]
    found = {name: families_in(importlib.import_module(f"{room}.{name}")).get(name) for name in names}
    return {name: kind for name, kind in found.items() if kind is not None}


def _room(protocol: type) -> str:
    """The package in which the families of a protocol stand, each in a module of its name."""
    module = protocol.__module__
    return module if hasattr(sys.modules[module], "__path__") else module.rpartition(".")[0]


def family_class(protocol: type, family: Any, where: str) -> Any:
    """The class of a family name.

    Raises:
        ConfigError: there is no such family, or its module cannot be imported.
    """
    parts = families_in(sys.modules[protocol.__module__])
    if not parts and isinstance(family, str) and family.isidentifier():
        name = f"{_room(protocol)}.{family}"
        try:
            parts = families_in(importlib.import_module(name))
        except ModuleNotFoundError as error:
            if error.name != name:
                raise ConfigError(
                    f"{name}, which {where}.{FAMILY} names, imports {error.name}, which is not installed."
                ) from error
        except ImportError as error:
            raise ConfigError(f"{name}, which {where}.{FAMILY} names, cannot be imported: {error}.") from error
    if isinstance(family, str) and family in parts:
        return parts[family]
    raise ConfigError(f"{where}.{FAMILY}={family!r} is unknown; allowed: {', '.join(sorted(families(protocol)))}.")


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


def _is_protocol(kind: Any) -> bool:
    return getattr(kind, "_is_protocol", False)


def build(node: Any, where: str, kind: type[Kind]) -> Kind:
    """The dataclass that a yaml node describes: parts first, then keys, types and values.

    Args:
        node: a mapping of that dataclass's fields; a field that is itself built may come as a node or as a dataclass.
        where: what to call the node in errors, for instance `tokenizer`.
        kind: the dataclass, or a protocol, of which the node's key `family` names one.

    Raises:
        ConfigError: names the key, what is wrong with it and what is allowed.
    """
    values = plain(node, where)
    chosen: Any = family_class(kind, values.pop(FAMILY, None), where) if _is_protocol(kind) else kind
    types = typing.get_type_hints(chosen)
    fields = {field.name: field for field in dataclasses.fields(chosen) if field.init}
    _check_keys(values, list(fields), where)
    for name, value in values.items():
        if isinstance(value, Mapping) and (_is_protocol(types[name]) or dataclasses.is_dataclass(types[name])):
            values[name] = build(value, f"{where}.{name}", types[name])
        elif _is_protocol(types[name]) and not dataclasses.is_dataclass(value):
            raise ConfigError(f"{where}.{name}={value!r} must be a part; give `{where}.{name}.{FAMILY}=<name>`.")
    missing = [
        name for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise ConfigError(f"{where}.{missing[0]} is missing; give it as `{where}.{missing[0]}=<value>`.")
    try:
        built = chosen(**values)
    except ValueError as error:
        glue = "." if re.match(r"\w*", str(error))[0] in fields else ": "  # type: ignore[index]
        raise ConfigError(f"{where}{glue}{error}.") from None
    if not isinstance(built, kind):
        lacking = [name for name in dir(kind) if not name.startswith("_") and not hasattr(built, name)]
        raise ConfigError(f"{where} must be a {kind.__name__}; {type(built).__name__} lacks {', '.join(lacking)}.")
    return built


def build_choice(
    node: Any, where: str, kind: type[Kind], reserved: tuple[str, ...] = (), defaults: Mapping[str, Any] | None = None
) -> tuple[Kind, dict[str, Any]]:
    """A config group's part and the keys that the stage itself reads.

    Args:
        defaults: values that the data set gives to options; those that this choice does not have are left out.

    Returns:
        The dataclass built of the node without its reserved keys, and those keys (`name` is always one).
    """
    values = plain(node, where)
    chosen: Any = family_class(kind, values.get(FAMILY), where) if _is_protocol(kind) else kind
    allowed = [field.name for field in dataclasses.fields(chosen) if field.init] + [FAMILY, NAME, *reserved]
    foreign = {key for key, value in (defaults or {}).items() if key not in allowed and values.get(key) == value}
    values = {key: value for key, value in values.items() if key not in foreign}
    _check_keys(values, allowed, where)
    taken = {key: values.pop(key) for key in (NAME, *reserved) if key in values}
    return build(values, where, kind), taken
