"""How a learning rate rises and falls."""

from __future__ import annotations

import math


def warmup_cosine(peak: float, step: int, total_steps: int, warmup: float = 0.0) -> float:
    """The learning rate of a step, counted from 0: it rises linearly over a share of all steps, `warmup`, then follows
    half a cosine to zero."""
    warmup_steps = max(1, round(warmup * total_steps)) if warmup else 0
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
