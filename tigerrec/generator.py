"""The generator: model families over the tokens of Semantic IDs, T5 among them; loading and saving."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tigerrec import artifacts
from tigerrec.ranges import at_least_one, not_negative
from tigerrec.semantic_ids import PAD, SemanticIds

if TYPE_CHECKING:
    from tigerrec.history_model import HistoryModel
    from tigerrec.history_t5 import HistoryT5

BIDIRECTIONAL, ITEM_CAUSAL = "bidirectional", "item_causal"
ENCODER_MASKS = (BIDIRECTIONAL, ITEM_CAUSAL)
CODES, ITEMS = "codes", "items"
HISTORIES = (CODES, ITEMS)
ALL_ITEMS, LAST_ITEM = "all_items", "last_item"
DECODER_READS = (ALL_ITEMS, LAST_ITEM)
READING = {"encoder_mask": ENCODER_MASKS, "history": HISTORIES, "decoder_reads": DECODER_READS}
INPUT_MODULE = "input_module.safetensors"


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


@dataclass(frozen=True)
class T5:
    """T5 (Raffel et al., 2020, arXiv 1910.10683) trained from scratch, as in TIGER (Rajput et al., 2023, arXiv 2305.05065).

    Attributes:
        num_layers: blocks in the encoder.
        num_decoder_layers: blocks in the decoder, at most as many as in the encoder (`generate` of transformers needs that); None = as many.
        d_model: width of the hidden states.
        num_heads: attention heads a layer.
        d_kv: width of one head.
        d_ff: width of the feed-forward layers.
        dropout_rate: dropout everywhere T5 has it, but for attention to a single position.
        max_items: how many of a history's last items the encoder reads.
        history: `codes`, one encoder position a token of an item, or `items`, one an item.
        decoder_reads: the encoder's output at `all_items` of the history or at its `last_item` alone; None = the last under an item-causal
            mask, else all. T5's attention to the encoder knows no positions: under that mask a decoder that reads all items has to infer
            which was the last.
        item_loss: weight of a further loss in training, by which the encoder's output predicts the next item among all; only with history=items.
    """

    num_layers: int = 4
    num_decoder_layers: int | None = None
    d_model: int = 128
    num_heads: int = 6
    d_kv: int = 64
    d_ff: int = 1024
    dropout_rate: float = 0.1
    max_items: int = 20
    history: str = CODES
    decoder_reads: str | None = None
    item_loss: float = 0.0

    def __post_init__(self) -> None:
        at_least_one(self, "num_layers", "d_model", "num_heads", "d_kv", "d_ff", "max_items")
        if not 1 <= self.decoder_layers <= self.num_layers:
            raise ValueError(f"num_decoder_layers must be between 1 and num_layers, {self.num_layers}, or null, got {self.num_decoder_layers}")
        if not 0 <= self.dropout_rate <= 0.99:
            raise ValueError(f"dropout_rate must be between 0 and 0.99, got {self.dropout_rate}")
        if self.history not in HISTORIES:
            raise ValueError(f"history must be one of {', '.join(HISTORIES)}, got {self.history!r}")
        if self.decoder_reads not in (None, *DECODER_READS):
            raise ValueError(f"decoder_reads must be one of {', '.join(DECODER_READS)} or null, got {self.decoder_reads!r}")
        not_negative(self, "item_loss")
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
            inputs = ItemInputs(len(semantic_ids.codes), layout.n_levels, self.d_model) if self.history == ITEMS else None
        t5.generation_config = GenerationConfig(
            max_new_tokens=layout.n_levels, min_new_tokens=layout.n_levels, num_beams=20, length_penalty=0.0, do_sample=False,
            pad_token_id=PAD, eos_token_id=None, decoder_start_token_id=PAD,
        )  # fmt: skip
        return HistoryT5(t5, semantic_ids.tokens, inputs)


def load_generator(folder: Path, semantic_ids: SemanticIds) -> HistoryModel:
    """The trained generator of a train stage or an exported folder, in evaluation mode.

    Items beyond those it was trained with have no item embedding.

    Raises:
        ArtifactError: the folder's config was not written by tigerrec.
    """
    from transformers import AutoConfig, GPT2LMHeadModel
    from transformers.utils.logging import disable_progress_bar

    from tigerrec.history_gpt2 import HistoryGPT2

    disable_progress_bar()
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    facts = getattr(config, "tigerrec", None)
    if isinstance(facts, dict) and config.model_type == "t5" and all(facts.get(name) in allowed for name, allowed in READING.items()):
        return _load_t5(folder, semantic_ids)
    if isinstance(facts, dict) and config.model_type == "gpt2" and "max_items" in facts:
        return HistoryGPT2(GPT2LMHeadModel.from_pretrained(folder, local_files_only=True, use_safetensors=True), semantic_ids.tokens)
    raise artifacts.ArtifactError(f"{folder}/config.json does not say how the model reads histories; give the folder of a train stage of this version.")


def _load_t5(folder: Path, semantic_ids: SemanticIds) -> HistoryT5:
    from safetensors.torch import load_file
    from transformers import T5ForConditionalGeneration

    from tigerrec.history_t5 import HistoryT5, ItemInputs

    t5 = T5ForConditionalGeneration.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    inputs = ItemInputs.of(load_file(folder / INPUT_MODULE), len(semantic_ids.codes)) if t5.config.tigerrec["history"] == ITEMS else None
    return HistoryT5(t5, semantic_ids.tokens, inputs)


def save_generator(model: HistoryModel, folder: Path) -> Iterator[Path]:
    """Write a generator as transformers does, and what else it has; gives the files written."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model.save_pretrained(folder)
    yield from sorted(folder.iterdir())
