"""Long work in pieces of fixed size, kept as files until the stage is finished: stopped runs go on, processes share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec.runtime import distributed
from tigerrec.storage.files import atomic, not_writable, remove_temporaries, remove_tree, sha256_text
from tigerrec.storage.fingerprints import canonical_json
from tigerrec.storage.manifests import DamagedError

Arrays = Mapping[str, np.ndarray]


def prepare_folder(folder: Path, identity: Any) -> Path:
    """A folder for the pieces of exactly this work, named by what decides them (plain values); others are removed."""
    mine = folder / sha256_text(canonical_json(identity))[:16]
    for other in folder.glob("*"):
        if other != mine:
            remove_tree(other)
    try:
        mine.mkdir(parents=True, exist_ok=True)
        remove_temporaries(mine)
    except OSError as error:
        raise not_writable(folder, error) from None
    return mine


def computed(folder: Path, names: list[str], compute: Callable[[int], Arrays]) -> tuple[Iterator[Arrays], int]:
    """The arrays of all pieces in order, each read from its file when it is asked for, and how many of them were
    computed now: those of which a stopped run left no whole file, each by one of the processes. `folder` is from
    `prepare_folder`, `compute` gives a piece by its number."""
    paths, n_computed = [folder / f"{name}.safetensors" for name in names], 0
    for number in range(distributed.rank(), len(paths), distributed.world_size()):
        if _read(paths[number]) is None:
            _write(paths[number], compute(number))
            n_computed += 1
    n_computed = sum(distributed.gathered(n_computed))  # the files of all are there once all have answered
    return map(_whole, paths), n_computed


def _whole(path: Path) -> Arrays:
    piece = _read(path)
    if piece is None:
        raise DamagedError(
            f"{path} cannot be read any more; where several processes work, give all one disk, and run again."
        )
    return piece


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write(path: Path, arrays: Arrays) -> None:
    from safetensors.numpy import save_file

    with atomic(path) as temporary:
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_file(contiguous, temporary, metadata={"sha256": _digest(arrays)})


def _read(path: Path) -> Arrays | None:
    """A piece that was written before; None where there is none or it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            names = file.keys()
            arrays = {name: file.get_tensor(name) for name in names}
            expected = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError, TypeError, ValueError, KeyError):  # damage can also name another type of number
        return None
    return arrays if _digest(arrays) == expected else None
