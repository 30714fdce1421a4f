"""T5 as a generator: its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field

from tigerrec.config import NotNegative, options
from tigerrec.models.base import (
    ALL_ITEMS,
    CODES,
    ITEM_CAUSAL,
    ITEMS,
    LAST_ITEM,
    USER_TOKENS,
    DropoutRate,
    EncoderMask,
    Layers,
    Size,
)
from tigerrec.storage.fingerprints import added
from tigerrec.tokenizers.ids import PAD, SemanticIds

if TYPE_CHECKING:
    import numpy as np

    from tigerrec.models.t5_model import HistoryT5

SIZES = ("num_layers", "num_decoder_layers", "d_model", "num_heads", "d_kv", "d_ff", "dropout_rate")
READING = ("max_items", "history", "decoder_reads")


@options
class T5:
    """T5 (Raffel et al., 2020, arXiv 1910.10683) trained from scratch, as in TIGER (Rajput et al., 2023, 2305.05065).

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
        user_tokens: tokens of users, one of which the encoder reads before a history: that of the user's number modulo
            them; the paper of TIGER has 2,000. Of somebody without a number it reads their mean. 0 = none.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    scores_items: ClassVar[bool] = False
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
    user_tokens: Annotated[int, Field(ge=0, le=2**16)] = added(0)

    def __post_init__(self) -> None:
        if self.decoder_layers > self.num_layers:
            raise ValueError(
                f"num_decoder_layers must be at most num_layers={self.num_layers}, or null, got {self.decoder_layers}"
            )
        if self.item_loss and self.history != ITEMS:
            raise ValueError("item_loss needs history=items; give generator.item_loss=0")

    @property
    def decoder_layers(self) -> int:
        """Blocks in the decoder."""
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    def reads(self, encoder_mask: EncoderMask) -> str:
        """What the decoder attends to under a mask: `all_items` or `last_item`."""
        return self.decoder_reads or (LAST_ITEM if encoder_mask == ITEM_CAUSAL else ALL_ITEMS)

    def window(self, stride: int) -> int:
        """Items of a training window: a target after `max_items` items or more, where there are as many."""
        return self.max_items + stride

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> Self:
        """The sizes that a `config.json` of this family describes."""
        reading = config["tigerrec"]
        if reading["encoder_mask"] not in get_args(EncoderMask):
            raise ValueError(f"its encoder_mask is {reading['encoder_mask']!r}")
        sizes = {name: config[name] for name in SIZES} | {name: reading[name] for name in READING}
        return cls(**sizes, user_tokens=reading.get(USER_TOKENS, 0))

    def new(
        self, semantic_ids: SemanticIds, encoder_mask: EncoderMask, seed: int, vectors: np.ndarray | None = None
    ) -> HistoryT5:
        """A T5 with random weights."""
        import torch
        from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

        from tigerrec.models.t5_model import HistoryT5, ItemInputs

        layout = semantic_ids.layout
        config = T5Config(
            vocab_size=layout.vocab_size + self.user_tokens, d_model=self.d_model, d_kv=self.d_kv, d_ff=self.d_ff,
            num_layers=self.num_layers, num_decoder_layers=self.decoder_layers, num_heads=self.num_heads,
            dropout_rate=self.dropout_rate, pad_token_id=PAD, eos_token_id=None, decoder_start_token_id=PAD,  # type: ignore[call-arg]
        )  # fmt: skip
        config.tigerrec = {
            "encoder_mask": encoder_mask,
            "history": self.history,
            "decoder_reads": self.reads(encoder_mask),
            "max_items": self.max_items,
            "code_sizes": list(layout.code_sizes),
            "level_sizes": list(layout.level_sizes),
        } | ({USER_TOKENS: self.user_tokens} if self.user_tokens else {})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            t5 = T5ForConditionalGeneration(config)
            n_items = len(semantic_ids.codes)
            inputs = ItemInputs(n_items, layout.n_levels, self.d_model) if self.history == ITEMS else None
        t5.generation_config = GenerationConfig(
            max_new_tokens=layout.n_levels, min_new_tokens=layout.n_levels, num_beams=20,
            length_penalty=0.0, do_sample=False, pad_token_id=PAD, eos_token_id=None, decoder_start_token_id=PAD,
        )  # fmt: skip
        return HistoryT5(t5, semantic_ids.tokens, inputs)
