"""Item vectors that the user made elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import ClassVar

import numpy as np

from tigerrec.config import options
from tigerrec.embed import EmbedError, Encode, few
from tigerrec.identity import not_identity

logger = logging.getLogger(__name__)


def _existing(path: Path, option: str) -> Path:
    if not path.is_file():
        raise EmbedError(f"There is no file {path}; give an existing one as `{option}=<file>`.")
    return path


@options
class Precomputed:
    """Vectors from a file of the user's, aligned by item id; ids that are no items are ignored."""

    family: ClassVar[str] = "precomputed"

    vectors: str | None = not_identity(default=None)
    ids: str | None = not_identity(default=None)
    id_column: str = "item_id"
    vector_column: str = "vector"

    shard_items: ClassVar[int | None] = None

    def present(self) -> dict[str, Path]:
        """The files that are named and there."""
        named = {
            "vectors": self.vectors,
            "ids": self.ids if self.vectors and not self.vectors.endswith(".parquet") else None,
        }
        paths = {role: Path(name).expanduser() for role, name in named.items() if name is not None}
        return {role: path for role, path in paths.items() if path.is_file()}

    def sources(self) -> dict[str, Path]:
        """The file of vectors and, unless that is a Parquet table, the file of ids."""
        if self.vectors is None:
            raise EmbedError(
                "embedder=precomputed needs a file of vectors; give it as `embedder.vectors=<file>` (.npy, "
                ".safetensors or .parquet)."
            )
        path = _existing(Path(self.vectors).expanduser(), "embedder.vectors")
        if path.suffix not in (".npy", ".safetensors", ".parquet"):
            raise EmbedError(
                f"{path} is neither .npy, .safetensors nor .parquet; give a file of one of these as "
                "`embedder.vectors=<file>`."
            )
        if path.suffix == ".parquet":
            return {"vectors": path}
        if self.ids is None:
            raise EmbedError(
                f"{path} says not which row is which item; give a text file of item ids, one a line in row order, as "
                "`embedder.ids=<file>`."
            )
        return {"vectors": path, "ids": _existing(Path(self.ids).expanduser(), "embedder.ids")}

    def environment(self) -> dict[str, str]:
        """Nothing: the vectors are the same everywhere."""
        return {}

    def open(self) -> Encode:
        """A function that looks the items up in the file."""
        sources = self.sources()
        path = sources["vectors"]
        try:
            known, matrix = self._read(path, sources.get("ids"))
        except KeyError as error:
            raise EmbedError(
                f"{path} has no {error.args[0]}; name it as `embedder.vector_column=` or `embedder.id_column=`."
            ) from None
        except Exception as error:
            raise EmbedError(
                f"{path} cannot be read as item vectors ({str(error).partition(chr(10))[0]}); write it again as "
                "float32 (items, dim)."
            ) from error
        if matrix.ndim != 2 or matrix.shape[1] < 1 or matrix.dtype.kind not in "fiu":
            raise EmbedError(
                f"{path} holds {matrix.dtype} of shape {matrix.shape}, not numbers (items, dim); write it again as "
                "float32 (items, dim)."
            )
        if len(known) != len(matrix):
            raise EmbedError(
                f"{sources.get('ids', path)} has {len(known)} ids for the {len(matrix)} rows of {path}; write one id "
                "a row."
            )
        rows = dict(zip(known, range(len(known)), strict=True))
        if len(rows) != len(known):
            repeated = sorted({name for row, name in enumerate(known) if rows[name] != row})
            raise EmbedError(
                f"{sources.get('ids', path)} names {len(repeated)} items more than once ({few(repeated)}); keep one "
                "row an item."
            )

        def encode(item_ids: list[str], texts: list[str]) -> np.ndarray:
            missing = [item_id for item_id in item_ids if item_id not in rows]
            if missing:
                raise EmbedError(
                    f"{path} has no vector for {len(missing)} of {len(item_ids)} items ({few(missing)}); add their "
                    "rows and run again."
                )
            extra = len(rows) - len(item_ids)
            if extra:
                logger.info("ignored %d vectors of %s whose ids are no items of this data set", extra, path)
            with np.errstate(over="ignore"):
                return matrix[[rows[item_id] for item_id in item_ids]].astype(np.float32)

        return encode

    def _read(self, path: Path, ids: Path | None) -> tuple[list[str], np.ndarray]:
        if ids is None:
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(path)
            for name in (self.id_column, self.vector_column):
                if name not in table.column_names:
                    raise KeyError(f"column {name!r} among {table.column_names}")
            column = table.column(self.vector_column).to_numpy()
            return [str(item_id) for item_id in table.column(self.id_column).to_pylist()], np.stack(column)
        known = ids.read_text(encoding="utf-8-sig").splitlines()
        return known, np.load(path, allow_pickle=False) if path.suffix == ".npy" else self._tensor(path)

    def _tensor(self, path: Path) -> np.ndarray:
        from safetensors.torch import load_file

        tensors = load_file(path)
        name = next(iter(tensors)) if len(tensors) == 1 else self.vector_column
        if name not in tensors:
            raise KeyError(f"tensor {name!r} among {sorted(tensors)}")
        return tensors[name].float().numpy()
