"""What single changes of training and search gain or lose, each beside the way it is done, by turns in one process.

Usage: python scripts/bench_changes.py [<option>=<value> …], options as of tigerrec, whose Semantic IDs must be there
(`tigerrec tokenize`). Prints medians in milliseconds: of a training step, of the search for a user, or of an operator.
"""

from __future__ import annotations

import ctypes
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import torch

from tigerrec import pipeline
from tigerrec.analysis.benchmark import Setting
from tigerrec.analysis.benchmark.sides import epoch_steps, search_of_users
from tigerrec.config import compose
from tigerrec.models import t5_stack
from tigerrec.models.dropout import Dropout, keep

TURNS, STEPS, USERS, BEAM = 3, 2, 768, 20
LARGEST_FROM_HEAP, TRIM_THRESHOLD = -3, -1  # of glibc's mallopt
Work = Callable[[], object]


def compared(title: str, ways: Mapping[str, Work], amount: int) -> None:
    """Print the median milliseconds of some ways to do the same, done by turns; one does it `amount` times."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for work in ways.values():
        work()
    for _ in range(TURNS):
        for name, work in ways.items():
            started = time.perf_counter()
            work()
            taken[name].append((time.perf_counter() - started) * 1000 / amount)
    told = ", ".join(
        f"{name} {statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})" for name, times in taken.items()
    )
    print(f"{title}: {told}", flush=True)


def with_kernel(kernel: Callable[..., torch.Tensor], copies: bool, work: Work) -> Work:
    """The work with another kernel of attention in the search, and with heads copied or read as they lie."""
    fused, heads = t5_stack.fused_attention, t5_stack.heads

    def split(states: torch.Tensor, n_parts: int, n_heads: int, *, copy: bool = True) -> tuple[torch.Tensor, ...]:
        return heads(states, n_parts, n_heads, copy=copy or copies)

    def done() -> None:
        t5_stack.fused_attention, t5_stack.heads = kernel, split
        try:
            work()
        finally:
            t5_stack.fused_attention, t5_stack.heads = fused, heads

    return done


def own_attention(queries, keys, values, bias, visible):  # type: ignore[no-untyped-def]
    """The attention of training, in the place of the kernel of torch."""
    return t5_stack.Attention.apply(queries, keys, values, bias, visible, t5_stack.NO_DROPOUT)


def search(setting: Setting) -> None:
    """Attention in the search."""
    rank, known = search_of_users(setting, BEAM)
    users = known[:: len(known) // USERS][:USERS]

    def work() -> None:
        rank(users)

    ways = {
        "own attention": with_kernel(own_attention, True, work),
        "kernel, heads copied": with_kernel(t5_stack.fused_attention, True, work),
        "kernel, heads as they lie": work,
    }
    compared(f"search, ms a user of {len(users)}", ways, len(users))


def training(setting: Setting) -> None:
    """Parts of a step, and blocks that glibc keeps."""
    trainer, run = epoch_steps(setting)
    configured = trainer.training

    def in_parts(tokens: int) -> Work:
        def work() -> None:
            trainer.training = dataclasses.replace(configured, part_tokens=tokens)
            run(0, STEPS)

        return work

    def with_blocks(kept: bool) -> Work:
        def work() -> None:
            libc.mallopt(LARGEST_FROM_HEAP, 2**30 if kept else 2**25)
            libc.mallopt(TRIM_THRESHOLD, 2**31 - 1 if kept else 2**26)
            run(0, STEPS)

        return work

    sizes = (configured.part_tokens // 4, configured.part_tokens // 2, configured.part_tokens)
    compared("training, ms a step", {f"parts of {size:,} tokens": in_parts(size) for size in sizes}, STEPS)
    libc = ctypes.CDLL(None)
    ways = {"large blocks given back": with_blocks(False), "large blocks kept": with_blocks(True)}
    compared("training, ms a step", ways, STEPS)


def compiled() -> None:
    """Chains of small operators under `torch.compile`."""
    scores, bias = torch.randn(60, 6, 80, 80), torch.randn(1, 6, 80, 80)
    visible, mask = torch.ones(80, 80, dtype=torch.bool).tril(), Dropout(0.1).mask(torch.empty(60, 6, 80, 80))
    hidden = torch.randn(4096, 1024)
    hidden_mask = Dropout(0.1).mask(hidden)

    def softmax(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights = (scores + bias).masked_fill(~visible, -torch.inf).softmax(-1)
        return weights, keep(weights, mask)

    def relu(hidden: torch.Tensor) -> torch.Tensor:
        return keep(hidden.relu(), hidden_mask)

    def ways(function: Callable[[torch.Tensor], object], values: torch.Tensor) -> dict[str, Work]:
        quick = torch.compile(function, dynamic=True)
        return {"as it is": lambda: function(values), "compiled": lambda: quick(values)}

    compared("attention weights, ms", ways(softmax, scores), 1)
    compared("ReLU and dropout, ms", ways(relu, hidden), 1)


def main(overrides: list[str]) -> None:
    """Measure and print."""
    steps = pipeline.plan(compose(["generator=t5_paper", *overrides]))
    setting = Setting(steps["prepare"].folder, steps["tokenize"].folder, steps["train"].config)
    with torch.no_grad():
        compiled()
    search(setting)
    training(setting)


if __name__ == "__main__":
    main(sys.argv[1:])
