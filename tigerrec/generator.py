"""The generator: model families over the tokens of Semantic IDs, T5 among them; loading and saving."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Protocol, runtime_checkable

from pydantic import Field

from tigerrec import artifacts
from tigerrec.config import NotNegative, options
from tigerrec.semantic_ids import PAD, SemanticIds

if TYPE_CHECKING:
    from tigerrec.history_model import HistoryModel
    from tigerrec.history_t5 import HistoryT5, ItemInputs

BIDIRECTIONAL, ITEM_CAUSAL = "bidirectional", "item_causal"
ENCODER_MASKS = (BIDIRECTIONAL, ITEM_CAUSAL)
CODES: Final = "codes"
ITEMS: Final = "items"
HISTORIES = (CODES, ITEMS)
ALL_ITEMS, LAST_ITEM = "all_items", "last_item"
DECODER_READS = (ALL_ITEMS, LAST_ITEM)
READING = {"encoder_mask": ENCODER_MASKS, "history": HISTORIES, "decoder_reads": DECODER_READS}
CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
WEIGHTS, INPUT_MODULE = "model.safetensors", "input_module.safetensors"
T5_SIZES = ("num_layers", "num_decoder_layers", "d_model", "num_heads", "d_kv", "d_ff", "dropout_rate")
GPT2_SIZES = {
    "num_layers": "n_layer",
    "d_model": "n_embd",
    "num_heads": "n_head",
    "d_ff": "n_inner",
    "dropout_rate": "resid_pdrop",
}
Size = Annotated[int, Field(ge=1, le=2**16)]
Layers = Annotated[int, Field(ge=1, le=2**8)]
DropoutRate = Annotated[float, Field(ge=0, le=0.99)]
FOREIGN = ("auto_map", "quantization_config")
NOT_THE_MODEL = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")


@runtime_checkable
class Generator(Protocol):
    """A model family that generates the next item's tokens from a history."""

    @property
    def max_items(self) -> int:
        """How many of a history's last items are read."""
        ...

    @property
    def item_loss(self) -> float:
        """Weight of a further training loss, which predicts items as a whole."""
        ...

    def window(self, stride: int) -> int:
        """Items of a packed training window, of which there is one every `stride` items.

        Raises:
            ValueError: the family cannot be trained so.
        """
        ...

    def new(self, semantic_ids: SemanticIds, encoder_mask: str, seed: int) -> HistoryModel:
        """A model with random weights for these items.

        Args:
            encoder_mask: one of `ENCODER_MASKS`, for a family with an encoder.
        """
        ...


@options
class T5:
    """T5 (Raffel et al., 2020, arXiv 1910.10683) trained from scratch, as in TIGER (Rajput et al., 2023, arXiv
    2305.05065).

    Attributes:
        num_layers: blocks in the encoder.
        num_decoder_layers: blocks in the decoder, at most as many as in the encoder (`generate` of transformers needs
            that); None = as many.
        d_model: width of the hidden states.
        num_heads: attention heads a layer.
        d_kv: width of one head.
        d_ff: width of the feed-forward layers.
        dropout_rate: dropout everywhere T5 has it, but for attention to a single position.
        max_items: how many of a history's last items the encoder reads.
        history: `codes`, one encoder position a token of an item, or `items`, one an item.
        decoder_reads: the encoder's output at `all_items` of the history or at its `last_item` alone; None = the last
            under an item-causal mask, else all. T5's attention to the encoder knows no positions: under that mask a
            decoder that reads all items has to infer which was the last.
        item_loss: weight of a further loss in training, by which the encoder's output predicts the next item among all;
            only with history=items.
    """

    family: ClassVar[str] = "t5"

    num_layers: Layers = 4
    num_decoder_layers: Layers | None = None
    d_model: Size = 128
    num_heads: Size = 6
    d_kv: Size = 64
    d_ff: Size = 1024
    dropout_rate: DropoutRate = 0.1
    max_items: Size = 20
    history: Literal["codes", "items"] = CODES
    decoder_reads: Literal["all_items", "last_item"] | None = None
    item_loss: NotNegative = 0.0

    def __post_init__(self) -> None:
        if self.decoder_layers > self.num_layers:
            raise ValueError(
                f"num_decoder_layers must be at most num_layers={self.num_layers}, got {self.num_decoder_layers}"
            )
        if self.item_loss and self.history != ITEMS:
            raise ValueError("item_loss needs history=items; give generator.item_loss=0")

    @property
    def decoder_layers(self) -> int:
        """Blocks in the decoder."""
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    def reads(self, encoder_mask: str) -> str:
        """What the decoder attends to under a mask: one of `DECODER_READS`."""
        return self.decoder_reads or (LAST_ITEM if encoder_mask == ITEM_CAUSAL else ALL_ITEMS)

    def window(self, stride: int) -> int:
        """Items of a training window: a target after `max_items` items or more, where there are as many."""
        return self.max_items + stride

    def new(self, semantic_ids: SemanticIds, encoder_mask: str, seed: int) -> HistoryT5:
        """A T5 with random weights; `config.tigerrec` says how its inputs are made."""
        import torch
        from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

        from tigerrec.history_t5 import HistoryT5, ItemInputs

        layout = semantic_ids.layout
        config = T5Config(
            vocab_size=layout.vocab_size, d_model=self.d_model, d_kv=self.d_kv, d_ff=self.d_ff, num_layers=self.num_layers,
            num_decoder_layers=self.decoder_layers, num_heads=self.num_heads, dropout_rate=self.dropout_rate,
            pad_token_id=PAD, eos_token_id=None, decoder_start_token_id=PAD,  # type: ignore[call-arg]
        )  # fmt: skip
        config.tigerrec = {
            "encoder_mask": encoder_mask,
            "history": self.history,
            "decoder_reads": self.reads(encoder_mask),
            "max_items": self.max_items,
            "code_sizes": list(layout.code_sizes),
            "level_sizes": list(layout.level_sizes),
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            t5 = T5ForConditionalGeneration(config)
            inputs = (
                ItemInputs(len(semantic_ids.codes), layout.n_levels, self.d_model) if self.history == ITEMS else None
            )
        t5.generation_config = GenerationConfig(
            max_new_tokens=layout.n_levels, min_new_tokens=layout.n_levels, num_beams=20, length_penalty=0.0, do_sample=False,
            pad_token_id=PAD, eos_token_id=None, decoder_start_token_id=PAD,
        )  # fmt: skip
        return HistoryT5(t5, semantic_ids.tokens, inputs)


def load_generator(folder: Path, semantic_ids: SemanticIds) -> HistoryModel:
    """The trained generator of a train stage or an exported folder, in evaluation mode.

    The model is built here, from the sizes in `config.json` alone, and its weights are copied into it: nothing else in
    the folder has an effect.
    Items beyond those it was trained with have no item embedding.

    Raises:
        ArtifactError: the folder's config was not written by tigerrec, does not fit the Semantic IDs, or the weights
            are not those of such a model.
    """
    import torch

    from tigerrec.history_t5 import HistoryT5

    config = artifacts.read_json(folder, CONFIG, {"model_type": str})
    facts = config.get("tigerrec")
    if not isinstance(facts, dict) or not _says_how_to_read(config["model_type"], facts):
        raise artifacts.ArtifactError(
            f"{folder / CONFIG} does not say how the model reads histories; give the folder of a train stage of this "
            "version."
        )
    generator = _read_generator(folder, config["model_type"])
    mask = facts.get("encoder_mask", ITEM_CAUSAL)
    with artifacts.contract(folder, CONFIG), torch.device("meta"):
        empty = generator.new(semantic_ids, mask, seed=0).stock
    _check_settings(folder, CONFIG, empty.config)
    _check_settings(folder, GENERATION_CONFIG, empty.generation_config)
    shapes = {name: ("float32", tuple(parameter.shape)) for name, parameter in empty.named_parameters()}
    weights = artifacts.read_arrays(folder, WEIGHTS, shapes, finite=True)
    model = generator.new(semantic_ids, mask, seed=0)
    with torch.no_grad():
        for name, parameter in model.stock.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name]))
    if isinstance(model, HistoryT5) and model.inputs is not None:
        model.inputs = _read_inputs(folder, semantic_ids, config["d_model"])
    return model


def _says_how_to_read(model_type: str, facts: dict[str, Any]) -> bool:
    if model_type == "gpt2":
        return facts.get("history") == CODES and "max_items" in facts
    return model_type == "t5" and all(facts.get(name) in allowed for name, allowed in READING.items())


def _read_generator(folder: Path, model_type: str) -> Generator:
    """The family and the sizes that a `config.json` describes."""
    from tigerrec.decoder_only import DecoderOnly

    kind, names = (T5, {name: name for name in T5_SIZES}) if model_type == "t5" else (DecoderOnly, GPT2_SIZES)
    sizes = dict.fromkeys(names.values(), int) | {names["dropout_rate"]: float}
    config = artifacts.read_json(folder, CONFIG, sizes | {"tigerrec": {"max_items": int}})
    facts = config["tigerrec"]
    values = {name: config[stock_name] for name, stock_name in names.items()} | {"max_items": facts["max_items"]}
    if model_type == "t5":
        values |= {"history": facts["history"], "decoder_reads": facts["decoder_reads"]}
    with artifacts.contract(folder, CONFIG):
        generator: Generator = kind(**values)
    return generator


def _check_settings(folder: Path, file: str, settings: Any) -> None:
    """Refuse a file of transformers' settings that differ from those of the model built here, or that name code or a
    format of weights."""
    found, expected = artifacts.read_json(folder, file, {}), json.loads(settings.to_json_string(use_diff=False))
    with artifacts.contract(folder, file):
        for name, value in found.items():
            if name in FOREIGN:
                raise ValueError(f"it has the key '{name}'")
            if name not in NOT_THE_MODEL and name in expected and value != expected[name]:
                raise ValueError(
                    f"its '{name}' is not {expected[name]!r}, as the Semantic IDs and the other sizes ask for"
                )


def _read_inputs(folder: Path, semantic_ids: SemanticIds, d_model: int) -> ItemInputs:
    """The input module of a generator, with a row of zeros for each item beyond those it was trained with."""
    import torch

    from tigerrec.history_t5 import ItemInputs

    shapes = {
        "code_projection.weight": (d_model, semantic_ids.layout.n_levels * d_model),
        "item_embeddings.weight": (None, d_model),
    }
    arrays = artifacts.read_arrays(
        folder, INPUT_MODULE, {name: ("float32", shape) for name, shape in shapes.items()}, finite=True
    )
    with artifacts.contract(folder, INPUT_MODULE):
        return ItemInputs.of({name: torch.from_numpy(array) for name, array in arrays.items()}, len(semantic_ids.codes))


def save_generator(model: HistoryModel, folder: Path) -> Iterator[Path]:
    """Write a generator as transformers does, and what else it has; gives the files written."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model.save_pretrained(folder)
    yield from sorted(folder.iterdir())
