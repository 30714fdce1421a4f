"""Dropout whose masks are cheap on a CPU, for models of transformers.

PyTorch draws one double-precision random number for each element, which takes a third of a training step on a CPU.
Here one 64-bit random number serves four elements, 16 bits each: the drop probability is exact to 1 / 65,536.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = "tigerrec_cheap_dropout"


def drop(values: Tensor, p: float) -> Tensor:
    """Each element dropped with probability `p`, the others scaled by 1 / (1 - p), drawn from torch's default generator."""
    if p == 0:
        return values
    if values.device.type != "cpu":
        return nn.functional.dropout(values, p)
    words = torch.empty((values.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.int16)[: values.numel()].view(values.shape) >= round(p * 2**16) - 2**15
    return values * (kept.to(values.dtype) * (1 / (1 - p)))


class CheapDropout(nn.Module):
    """`torch.nn.Dropout` by `drop`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        """Drop in training mode, pass through otherwise."""
        return drop(values, self.p) if self.training else values


def attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    dropout: float = 0.0, scaling: float = 1.0, position_bias: Tensor | None = None, **kwargs: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention as T5 defines it, with cheap dropout on its weights; the interface is that of transformers."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = drop(scores.softmax(-1), dropout if module.training else 0.0)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def use_cheap_dropout(model: Any) -> None:
    """Replace the dropout of a transformers model by the cheap one; weights and their names stay."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(ATTENTION, attention_forward)
    AttentionMaskInterface.register(ATTENTION, eager_mask)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, CheapDropout(child.p))
    model.set_attn_implementation(ATTENTION)
