"""A decoder alone, GPT-2, as a generator: its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from tigerrec.config import options
from tigerrec.models.base import DropoutRate, EncoderMask, Layers, Size
from tigerrec.tokenizers.ids import PAD, SemanticIds

if TYPE_CHECKING:
    import numpy as np

    from tigerrec.models.gpt2_model import HistoryGPT2

STOCK_NAMES = {
    "num_layers": "n_layer", "d_model": "n_embd", "num_heads": "n_head", "d_ff": "n_inner",
    "dropout_rate": "resid_pdrop",
}  # fmt: skip


@options
class DecoderOnly:
    """GPT-2 (Radford et al., 2019, "Language Models are Unsupervised Multitask Learners") trained from scratch.

    It reads the start token, then the tokens of all items, oldest first. Positions count from the first item read.
    Its sizes are those of `T5` without an encoder; `d_kv` is always `d_model / num_heads`, which None stands for.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    scores_items: ClassVar[bool] = False
    family: ClassVar[str] = "gpt2"

    num_layers: Layers = 8
    d_model: Size = 64
    num_heads: Size = 4
    d_kv: int | None = None
    d_ff: Size = 256
    dropout_rate: DropoutRate = 0.2
    max_items: Size = 50

    def __post_init__(self) -> None:
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model must be a multiple of num_heads={self.num_heads}, got {self.d_model}")
        if self.d_kv not in (None, self.d_model // self.num_heads):
            width = self.d_model // self.num_heads
            raise ValueError(f"d_kv must be d_model / num_heads, {width}, or null, got {self.d_kv}")

    @property
    def item_loss(self) -> float:
        """No loss of whole items."""
        return 0.0

    def window(self, stride: int) -> int:
        """Items of a training window: a target after as many items as are ever read."""
        if stride > self.max_items:
            raise ValueError(f"stride must be at most the generator's max_items={self.max_items}, got {stride}")
        return self.max_items + 1

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> Self:
        """The sizes that a `config.json` of this family describes."""
        sizes = {name: config[stock_name] for name, stock_name in STOCK_NAMES.items()}
        return cls(**sizes, max_items=config["tigerrec"]["max_items"])

    def new(
        self, semantic_ids: SemanticIds, encoder_mask: EncoderMask, seed: int, vectors: np.ndarray | None = None
    ) -> HistoryGPT2:
        """A GPT-2 with random weights, whose mask is always causal."""
        import torch
        from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

        from tigerrec.models.gpt2_model import HistoryGPT2

        layout = semantic_ids.layout
        config = GPT2Config(
            vocab_size=layout.vocab_size, n_positions=(self.max_items + 1) * layout.n_levels, n_embd=self.d_model,
            n_layer=self.num_layers, n_head=self.num_heads, n_inner=self.d_ff, resid_pdrop=self.dropout_rate,
            embd_pdrop=self.dropout_rate, attn_pdrop=self.dropout_rate,
            pad_token_id=PAD, bos_token_id=PAD, eos_token_id=None,
        )  # fmt: skip
        config.tigerrec = {
            "history": "codes",
            "max_items": self.max_items,
            "code_sizes": list(layout.code_sizes),
            "level_sizes": list(layout.level_sizes),
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            gpt2 = GPT2LMHeadModel(config)
        gpt2.generation_config = GenerationConfig(
            max_new_tokens=layout.n_levels, min_new_tokens=layout.n_levels, num_beams=20,
            length_penalty=0.0, do_sample=False, pad_token_id=PAD, bos_token_id=PAD, eos_token_id=None,
        )  # fmt: skip
        return HistoryGPT2(gpt2, semantic_ids.tokens)
