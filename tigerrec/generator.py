"""The generator: a stock transformers T5 over the tokens of Semantic IDs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tigerrec import artifacts
from tigerrec.semantic_ids import PAD, TokenLayout

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration

ENCODER_MASKS = ("bidirectional",)


@runtime_checkable
class Generator(Protocol):
    """A model family that generates the next item's tokens from a history's."""

    max_items: int

    def new(self, layout: TokenLayout, encoder_mask: str, seed: int) -> T5ForConditionalGeneration:
        """A model with random weights for this token layout."""
        ...


@dataclass(frozen=True)
class T5:
    """T5 (Raffel et al., 2020, arXiv 1910.10683) trained from scratch, as in TIGER (Rajput et al., 2023, arXiv 2305.05065).

    Attributes:
        num_layers: blocks in the encoder, and as many in the decoder.
        d_model: width of the hidden states.
        num_heads: attention heads a layer.
        d_kv: width of one head.
        d_ff: width of the feed-forward layers.
        dropout_rate: dropout everywhere T5 has it.
        max_items: how many of a history's last items the encoder reads.
    """

    num_layers: int = 4
    d_model: int = 128
    num_heads: int = 6
    d_kv: int = 64
    d_ff: int = 1024
    dropout_rate: float = 0.1
    max_items: int = 20

    def __post_init__(self) -> None:
        for name in ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "max_items"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate must be in [0, 1), got {self.dropout_rate}")

    def new(self, layout: TokenLayout, encoder_mask: str, seed: int) -> T5ForConditionalGeneration:
        """A T5 with random weights; `config.tigerrec` says how its inputs are made."""
        import torch
        from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

        config = T5Config(
            vocab_size=layout.vocab_size, d_model=self.d_model, d_kv=self.d_kv, d_ff=self.d_ff, num_layers=self.num_layers,
            num_heads=self.num_heads, dropout_rate=self.dropout_rate, pad_token_id=PAD, eos_token_id=None, decoder_start_token_id=PAD,  # type: ignore[call-arg]
        )  # fmt: skip
        config.tigerrec = {
            "encoder_mask": encoder_mask,
            "history": "codes",
            "max_items": self.max_items,
            "code_sizes": list(layout.code_sizes),
            "level_sizes": list(layout.level_sizes),
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = T5ForConditionalGeneration(config)
        model.generation_config = GenerationConfig(
            max_new_tokens=layout.n_levels, min_new_tokens=layout.n_levels, num_beams=20, length_penalty=0.0, do_sample=False,
            pad_token_id=PAD, eos_token_id=None, decoder_start_token_id=PAD,
        )  # fmt: skip
        return model


def load_generator(folder: Path) -> T5ForConditionalGeneration:
    """The trained generator of a train stage or an exported folder, in evaluation mode.

    Raises:
        ArtifactError: the folder's config was not written by tigerrec.
    """
    from transformers import T5ForConditionalGeneration
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = T5ForConditionalGeneration.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    facts = getattr(model.config, "tigerrec", None)
    if not isinstance(facts, dict) or facts.get("encoder_mask") not in ENCODER_MASKS:
        raise artifacts.ArtifactError(f"{folder}/config.json does not say how the model reads histories; give the folder of a tigerrec train stage.")
    return model.eval()
