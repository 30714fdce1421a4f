"""Item vectors that the user made elsewhere."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np

from tigerrec.config import options
from tigerrec.embed.base import EmbedError, EmbedsTexts, Encode, few
from tigerrec.storage.fingerprints import not_identity
from tigerrec.text import first_line

logger = logging.getLogger(__name__)

KINDS = (".npy", ".safetensors", ".parquet")
VECTOR_COLUMN = "vector"
AS_FLOATS = "write it again as float32 (items, dim)"


@options
class Precomputed(EmbedsTexts):
    """Vectors from a file of the user's, aligned by item id; ids that are no items are ignored.

    Attributes:
        vectors: the file, `.npy`, `.safetensors` or `.parquet`.
        ids: beside `.npy` and `.safetensors`: a text file of item ids, one a line in row order.
        id_column: of a `.parquet`.
        vector_column: of a `.parquet`; of a `.safetensors` the tensor's name, which a lone one needs
            not have.
    """

    family: ClassVar[str] = "precomputed"

    vectors: str | None = not_identity(default=None)
    ids: str | None = not_identity(default=None)
    id_column: str = "item_id"
    vector_column: str = VECTOR_COLUMN

    def _files(self) -> dict[str, Path]:
        """Role → file, of those that are read."""
        names = {"vectors": self.vectors, "ids": self.ids}
        paths = {role: Path(name).expanduser() for role, name in names.items() if name is not None}
        if "vectors" not in paths or paths["vectors"].suffix == ".parquet":
            paths.pop("ids", None)
        return paths

    def present(self) -> dict[str, Path]:
        """The files that are named and there."""
        return {role: path for role, path in self._files().items() if path.is_file()}

    def named(self) -> dict[str, str]:
        """Their names."""
        return {role: path.name for role, path in self._files().items()}

    def sources(self) -> dict[str, Path]:
        """The file of vectors and, unless that is a Parquet table, the file of ids."""
        paths = self._files()
        if "vectors" not in paths:
            raise EmbedError(
                "embedder=precomputed needs a file of vectors; give it as `embedder.vectors=<file>` "
                f"({', '.join(KINDS[:-1])} or {KINDS[-1]})."
            )
        for role, path in paths.items():
            if not path.is_file():
                raise EmbedError(f"There is no file {path}; give an existing one as `embedder.{role}=<file>`.")
        path = paths["vectors"]
        if path.suffix not in KINDS:
            raise EmbedError(
                f"{path} is neither {', '.join(KINDS[:-1])} nor {KINDS[-1]}; give a file of one of these as "
                "`embedder.vectors=<file>`."
            )
        if path.suffix == ".parquet" and self.ids is not None:
            raise EmbedError(
                f"{path} has its ids in a column, so embedder.ids={self.ids} says nothing; leave `embedder.ids` out."
            )
        if path.suffix != ".parquet" and "ids" not in paths:
            raise EmbedError(
                f"{path} says not which row is which item; give a text file of item ids, one a line in row order, as "
                "`embedder.ids=<file>`."
            )
        return paths

    def open(self) -> Encode:
        """A function that looks the items up in the file."""
        sources = self.sources()
        path, ids_file = sources["vectors"], sources.get("ids", sources["vectors"])
        try:
            ids, matrix = self._read(path, sources.get("ids"))
        except KeyError as error:
            raise EmbedError(
                f"{path} has no {error.args[0]}; name it as `embedder.vector_column=` or `embedder.id_column=`."
            ) from None
        except Exception as error:
            raise EmbedError(f"{path} cannot be read as item vectors ({first_line(error)}); {AS_FLOATS}.") from error
        if matrix.ndim != 2 or matrix.shape[1] < 1 or matrix.dtype.kind not in "fiu":
            raise EmbedError(
                f"{path} holds {matrix.dtype} of shape {matrix.shape}, not numbers (items, dim); {AS_FLOATS}."
            )
        if len(ids) != len(matrix):
            raise EmbedError(f"{ids_file} has {len(ids)} ids for the {len(matrix)} rows of {path}; write one id a row.")
        repeated = sorted(item_id for item_id, count in Counter(ids).items() if count > 1)
        if repeated:
            raise EmbedError(
                f"{ids_file} names {len(repeated)} items more than once ({few(repeated)}); keep one row an item."
            )
        rows = {item_id: row for row, item_id in enumerate(ids)}

        def encode(item_ids: list[str], texts: list[str]) -> np.ndarray:
            missing = [item_id for item_id in item_ids if item_id not in rows]
            if missing:
                raise EmbedError(
                    f"{path} has no vector for {len(missing)} of {len(item_ids)} items ({few(missing)}); add their "
                    "rows and run again."
                )
            if (extra := len(rows) - len(item_ids)) > 0:
                logger.info("ignored %d vectors of %s whose ids are no items of this data set", extra, path)
            with np.errstate(over="ignore"):
                return matrix[[rows[item_id] for item_id in item_ids]].astype(np.float32)

        return encode

    def _read(self, path: Path, ids: Path | None) -> tuple[list[str], np.ndarray]:
        """The ids and their vectors, (n, dim) where the file holds what it should. Raises KeyError, which says which,
        if the file has no such column or tensor."""
        if ids is None:
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(path)
            for name in (self.id_column, self.vector_column):
                if name not in table.column_names:
                    raise KeyError(f"column {name!r} among {table.column_names}")
            column = table.column(self.vector_column).to_numpy()
            return [str(item_id) for item_id in table.column(self.id_column).to_pylist()], np.stack(column)
        item_ids = ids.read_text(encoding="utf-8-sig").splitlines()
        if path.suffix == ".npy":
            return item_ids, np.load(path, allow_pickle=False)
        from safetensors.torch import load_file

        tensors = load_file(path)
        is_alone = len(tensors) == 1 and self.vector_column == VECTOR_COLUMN
        name = next(iter(tensors)) if is_alone else self.vector_column
        if name not in tensors:
            raise KeyError(f"tensor {name!r} among {sorted(tensors)}")
        return item_ids, tensors[name].float().numpy()
