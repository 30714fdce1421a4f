"""The files of a finished stage, held to what they must hold: columns and types, arrays and shapes, JSON fields."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tigerrec import TigerrecError
from tigerrec.storage.files import ArtifactError
from tigerrec.storage.manifests import DamagedError, read_manifest, rebuilding
from tigerrec.text import first_line

ROWS_AT_ONCE = 1 << 20
Shape = tuple[int | None, ...]
"""The length of each dimension of an array; None = any."""


def _remedy(folder: Path) -> str:
    with contextlib.suppress(ArtifactError):
        manifest = read_manifest(folder)
        if manifest is not None:
            return rebuilding(manifest.stage)
    return "run the stage that makes it again"


@contextlib.contextmanager
def contract(folder: Path, name: str) -> Iterator[None]:
    """Whatever goes wrong inside, in a library or in a check, is a fault of the file `name` of a stage; checks raise
    ValueError. Raises DamagedError, which names the file, what is wrong with it, and the command that makes it
    again."""
    try:
        yield
    except TigerrecError:
        raise
    except Exception as error:
        is_missing = isinstance(error, FileNotFoundError)
        fault = "is missing" if is_missing else f"does not hold what it should ({first_line(error)})"
        raise DamagedError(f"{folder / name} {fault}; {_remedy(folder)}.") from error


def read_table(folder: Path, name: str, columns: Mapping[str, str] | None = None) -> Any:
    """A Parquet file of a stage as a `pyarrow.Table`. Raises DamagedError if it is none, or a column is not of the type
    that pyarrow calls so; with a `?` after the type it may hold nulls."""
    import pyarrow.parquet

    with contract(folder, name):
        table = pyarrow.parquet.read_table(folder / name).replace_schema_metadata(None)
        _check_table(table, columns or {})
    return table


def read_blocks(folder: Path, name: str, columns: Mapping[str, str]) -> Iterator[Any]:
    """The columns of a Parquet file of a stage, as `pyarrow.Table`s of some rows, none of them empty. Raises
    DamagedError as `read_table`."""
    import pyarrow
    import pyarrow.parquet

    with contract(folder, name), pyarrow.parquet.ParquetFile(folder / name) as file:
        _check_table(file.schema_arrow.empty_table(), columns)
        for block in file.iter_batches(ROWS_AT_ONCE, columns=list(columns)):
            table = pyarrow.Table.from_batches([block])
            _check_table(table, columns)
            if len(table):
                yield table


def _check_table(table: Any, columns: Mapping[str, str]) -> None:
    """Raise an error for a table that is not whole or has other columns (see `read_table`)."""
    table.validate(full=True)
    for column, kind in columns.items():
        if table.column_names.count(column) != 1:
            raise ValueError(f"it has no single column '{column}'")
        if str(table[column].type) != kind.rstrip("?"):
            raise ValueError(f"its column '{column}' is of type {table[column].type}, not {kind.rstrip('?')}")
        if table[column].null_count and not kind.endswith("?"):
            raise ValueError(f"its column '{column}' has nulls")


def read_arrays(
    folder: Path, name: str, arrays: Mapping[str, tuple[str, Shape]] | None = None, finite: bool = False
) -> dict[str, Any]:
    """A safetensors file of a stage as numpy arrays by name. Raises DamagedError if it is none, holds other `arrays`
    than those of these types and shapes, or, where it must be `finite`, NaN or infinity."""
    import numpy
    from safetensors.numpy import load_file

    with contract(folder, name):
        loaded: dict[str, Any] = load_file(folder / name)
        if arrays is not None and loaded.keys() != arrays.keys():
            lacking, surplus = sorted(arrays.keys() - loaded.keys()), sorted(loaded.keys() - arrays.keys())
            raise ValueError(
                f"it lacks the array {lacking[0]!r}" if lacking else f"it has an unknown array {surplus[0]!r}"
            )
        for key, (kind, shape) in (arrays or {}).items():
            array, wanted = loaded[key], tuple("any" if length is None else length for length in shape)
            is_shape = len(shape) == array.ndim and all(
                want in (None, length) for want, length in zip(shape, array.shape, strict=True)
            )
            if array.dtype != kind or not is_shape:
                raise ValueError(
                    f"its array {key!r} is {array.dtype} of shape {array.shape}, not {kind} of shape {wanted}"
                )
        for key, array in loaded.items():
            if finite and not numpy.isfinite(array).all():
                raise ValueError(f"its array {key!r} holds NaN or infinity")
    return loaded


def _check_shape(value: Any, shape: Any, where: str) -> None:
    """Raise ValueError for a JSON value without a shape (see `read_json`); `where` is the path to it."""
    if isinstance(shape, dict):
        _check_shape(value, dict, where)
        for key, part in shape.items():
            if key not in value:
                raise ValueError(f"{where} lacks '{key}'")
            _check_shape(value[key], part, f"{where}.{key}")
    elif isinstance(shape, list):
        _check_shape(value, list, where)
        for number, part in enumerate(value):
            _check_shape(part, shape[0], f"{where}[{number}]")
    elif shape is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is not finite")
    elif type(value) is not shape:
        raise ValueError(f"{where} is of type {type(value).__name__}, not {shape.__name__}")


def _no_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


def read_json(folder: Path, name: str, shape: Any = None) -> Any:
    """A JSON file of a stage. Raises DamagedError if it is not JSON, or of another shape: a type (float takes whole
    numbers too), a dict from the keys that must be there to their shapes, or a list of the one shape of all
    elements."""
    with contract(folder, name):
        value = json.loads((folder / name).read_bytes(), parse_constant=_no_constant)
        if shape is not None:
            _check_shape(value, shape, "the JSON value")
    return value
