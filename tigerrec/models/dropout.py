"""Dropout whose masks are cheap on a CPU.

PyTorch draws one double-precision random number for each element, which takes a third of a training step on a CPU. Here
one 64-bit random number serves four elements (the drop probability is exact to 1 / 32,768), and a mask is applied by
one bitwise "and".
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WORDS_AS_LARGE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Dropout:
    """The dropout of one forward pass.

    What is kept is not scaled here: the matrices that follow are multiplied by `scale`.

    Args:
        p: the probability that an element is dropped.
        seed: of all masks; elsewhere than on the CPU, of a generator of PyTorch.
    """

    def __init__(self, p: float, seed: int = 0) -> None:
        self.p, self.scale = p, 1 / (1 - p)
        self._bits, self._seed = np.random.SFC64(seed), seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def at(self, p: float) -> Dropout:
        """A dropout of another probability that goes on with the same random numbers."""
        other = Dropout(p, self._seed)
        other._bits, other._generators = self._bits, self._generators
        return other

    def mask(self, like: Tensor) -> Tensor | None:
        """All bits set where an element is kept, none where it is dropped, as an integer tensor of the same shape; None
        where p is 0."""
        if self.p == 0:
            return None
        integer = WORDS_AS_LARGE[like.element_size()]
        if like.device.type != "cpu":
            if like.device not in self._generators:
                self._generators[like.device] = torch.Generator(like.device).manual_seed(self._seed)
            kept = torch.rand(like.shape, device=like.device, generator=self._generators[like.device]) >= self.p
            return -kept.to(integer)
        words = torch.from_numpy(self._bits.random_raw(-(-like.numel() // 4)).view(np.int16)[: like.numel()])
        # 15 bits decide: a lane halved, less the bound, is negative with probability p
        dropped = words.bitwise_right_shift_(1).sub_(round(self.p * 2**15) - 2**14).bitwise_right_shift_(15)
        return dropped.bitwise_not_().view(like.shape).to(integer)

    def __call__(self, values: Tensor) -> Tensor:
        """The values with some elements dropped, the others as they are."""
        mask = self.mask(values)
        return values if mask is None else Masked.apply(values, mask)


def keep(values: Tensor, mask: Tensor | None) -> Tensor:
    """The values where the mask has all bits set, zero elsewhere; without gradients."""
    return values if mask is None else (values.view(mask.dtype) & mask).view(values.dtype)


class Masked(torch.autograd.Function):
    """`keep` with gradients, which pass where values pass."""

    @staticmethod
    def forward(ctx, values, mask):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(mask)
        return keep(values, mask)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (mask,) = ctx.saved_tensors
        return keep(gradient.contiguous(), mask), None
