"""What is measured: an epoch and a search, the same the stock way of transformers, and the machine's arithmetic."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tigerrec.analysis.benchmark import Setting, operations
from tigerrec.data.batches import NO_ITEM, Batch, Examples, padded
from tigerrec.data.histories import load_histories, training_counts, training_histories
from tigerrec.evaluation.stage import known_and_targets
from tigerrec.models.base import ALL_ITEMS, CODES
from tigerrec.models.t5_model import HistoryT5
from tigerrec.runtime.devices import environment, product_type, resolve_device
from tigerrec.runtime.seeds import derived_seed
from tigerrec.search.searcher import Searcher
from tigerrec.tokenizers.ids import PAD, SemanticIds, load_inputs
from tigerrec.training.loop import Trainer
from tigerrec.training.options import ENCODER_MASK, TrainConfig

STOCK_BATCH_EXAMPLES, STOCK_BATCH_USERS = 256, 64
Allowed = Mapping[tuple[int, ...], list[int]]


def seconds_of(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds that some work takes, from the end of what was asked before until its results are there."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def new_model(config: TrainConfig, semantic_ids: SemanticIds, **changes: Any) -> Any:
    """The configured generator, some fields of it replaced, with random weights on its device."""
    configured: Any = config.generator
    mask, seed = ENCODER_MASK[config.training.examples], derived_seed(config.seed, "weights")
    model = dataclasses.replace(configured, **changes).new(semantic_ids, mask, seed)
    return model.to(resolve_device(config.training.device))


def stock_model(config: TrainConfig, semantic_ids: SemanticIds) -> HistoryT5:
    """The generator whose `t5` is the stock side: of the same sizes, its decoder reads one position a token."""
    model: HistoryT5 = new_model(config, semantic_ids, history=CODES, decoder_reads=ALL_ITEMS, item_loss=0.0)
    return model


def epoch_steps(setting: Setting) -> tuple[Trainer, Callable[[int, int], None]]:
    """A new trainer of our side, and what takes some of its steps, from the first of them on."""
    histories, semantic_ids = load_inputs(setting.prepared, setting.tokenized)
    trainer = Trainer(new_model(setting.config, semantic_ids), histories, setting.config)

    def run(start: int, count: int) -> None:
        for number in range(start, start + count):
            trainer.step(number)

    return trainer, run


def epoch(setting: Setting, warmup_steps: int) -> dict[str, float]:
    """Seconds of all steps of one epoch of ours, after some steps of the next."""
    trainer, run = epoch_steps(setting)
    run(trainer.steps_per_epoch, warmup_steps)
    return {"seconds": seconds_of(trainer.model.device, lambda: run(0, trainer.steps_per_epoch))}


def stock_inputs(model: HistoryT5, items: Tensor) -> dict[str, Tensor]:
    """Histories (B, n) as a stock model reads them: tokens, padded to the longest history possible, and their mask."""
    items = functional.pad(items, (0, model.facts["max_items"] - items.shape[1]), value=NO_ITEM)
    mask = model.attention_mask(items)
    tokens = model.tokens[items.clamp(min=0)].flatten(1).masked_fill(mask == 0, PAD)
    return {"input_ids": tokens, "attention_mask": mask}


def stock_loss(model: HistoryT5, batch: Batch) -> Tensor:
    """The loss of a stock model on prefixes with one target each, the mean over the tokens of the targets."""
    loss: Tensor = model.t5(**stock_inputs(model, batch.items), labels=model.tokens[batch.targets[:, 0]]).loss
    return loss


def stock_epoch(setting: Setting, warmup_steps: int, steps: int) -> dict[str, float]:
    """Seconds of an epoch of the stock model over every prefix, extrapolated from some steps."""
    histories, semantic_ids = load_inputs(setting.prepared, setting.tokenized)
    model = stock_model(setting.config, semantic_ids).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.config.training.learning_rate, fused=True)
    examples = Examples.prefixes(histories, model.facts["max_items"], model.device)
    size = min(STOCK_BATCH_EXAMPLES, len(examples))
    order = np.random.default_rng(0).permutation(len(examples))
    batches = itertools.cycle([order[start : start + size] for start in range(0, len(order) - size + 1, size)])

    def run(count: int) -> None:
        for rows in itertools.islice(batches, count):
            stock_loss(model, examples.batch(rows)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    run(warmup_steps)
    return {"seconds": seconds_of(model.device, lambda: run(steps)) * len(examples) / (steps * size), "measured": steps}


def search_of_users(setting: Setting, beam_size: int) -> tuple[Callable[[list[np.ndarray]], None], list[np.ndarray]]:
    """Our search by a new model, and the histories of all users."""
    histories, semantic_ids = load_inputs(setting.prepared, setting.tokenized)
    model, popularity = new_model(setting.config, semantic_ids), training_counts(histories)
    searcher = Searcher.of(model, setting.config.training.precision, popularity)
    known, _ = known_and_targets(histories, "test")

    def rank(users: list[np.ndarray]) -> None:
        searcher.rank(users, k=beam_size, beam_size=beam_size, mask_seen=False)

    return rank, known


def search(setting: Setting, beam_size: int) -> dict[str, float]:
    """Seconds of our search for all users."""
    rank, known = search_of_users(setting, beam_size)
    rank(known[:STOCK_BATCH_USERS])
    return {"seconds": seconds_of(resolve_device(setting.config.training.device), lambda: rank(known))}


def baseline(prepared: Path, chosen: Any, k: int) -> dict[str, float]:
    """Seconds of one epoch of a trained baseline, without validation, and of ranking all users by it."""
    histories = load_histories(prepared)
    training = training_histories(histories)
    once = dataclasses.replace(chosen, epochs=1)
    found: list[Any] = []

    def fit() -> None:
        found.append(once.fit(training, histories.n_items, seed=0, validate=lambda rank: 0.0))

    fit()  # warm
    seconds = seconds_of(torch.device("cpu"), fit)
    known, _ = known_and_targets(histories, "test")
    ranking = seconds_of(torch.device("cpu"), lambda: found[-1].rank(known, k=k, mask_seen=False))
    return {"epoch_seconds": seconds, "search_seconds": ranking}


def allowed_next(tokens: np.ndarray) -> Allowed:
    """For each prefix of an item's tokens (I, T) the tokens that continue it to an item, in order."""
    following: dict[tuple[int, ...], set[int]] = {}
    for row in tokens.tolist():
        for level, token in enumerate(row):
            following.setdefault(tuple(row[:level]), set()).add(token)
    return {prefix: sorted(next_tokens) for prefix, next_tokens in following.items()}


def stock_generate(model: HistoryT5, items: Tensor, allowed: Allowed, beam_size: int) -> Tensor:
    """What `generate` finds for histories (B, n), int64 (B * beam_size, 1 + T), each row behind the decoder's start."""
    sequences: Tensor = model.t5.generate(
        **stock_inputs(model, items),
        # beams of score -inf have left the catalogue
        prefix_allowed_tokens_fn=lambda _, prefix: allowed.get(tuple(prefix[1:].tolist()), [PAD]),
        num_beams=beam_size,
        num_return_sequences=beam_size,
    )
    return sequences


def stock_search(setting: Setting, beam_size: int, users: int) -> dict[str, float]:
    """Seconds of `generate` for all users, extrapolated from the first ones."""
    histories, semantic_ids = load_inputs(setting.prepared, setting.tokenized)
    model, allowed = stock_model(setting.config, semantic_ids), allowed_next(semantic_ids.tokens)
    ranked = histories.users_with("test")
    known, _ = known_and_targets(histories, "test", ranked[:users])
    items = padded([history[-model.facts["max_items"] :] for history in known]).to(model.device)

    def generate(items: Tensor) -> None:
        for batch in items.split(STOCK_BATCH_USERS):
            stock_generate(model, batch, allowed, beam_size)

    generate(items[:2])
    seconds = seconds_of(model.device, lambda: generate(items))
    return {"seconds": seconds * len(ranked) / len(items), "measured": len(items)}


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int, trials: int = 20) -> float:
    """Floating-point operations a second of the fastest of several products of two square matrices."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_of(device, lambda: left @ right) for _ in range(trials))


def cpu_name() -> str:
    """What the processor calls itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def machine(setting: Setting, matrix_size: int) -> dict[str, Any]:
    """The machine and its rate."""
    training = setting.config.training
    device = resolve_device(training.device)
    rate = matrix_rate(device, product_type(device, training.precision), matrix_size)
    return {"cpu": cpu_name(), "operations_per_second": rate, **environment(device, training.precision)}


def limits(setting: Setting, beam_size: int) -> dict[str, Any]:
    """Operations of an epoch and of a search by a T5."""
    histories, semantic_ids = load_inputs(setting.prepared, setting.tokenized)
    model = new_model(setting.config, semantic_ids)
    configured: Any = setting.config.generator
    generator = dataclasses.replace(configured, decoder_reads=model.facts["decoder_reads"])
    sizes = operations.Sizes(generator, semantic_ids.layout.vocab_size, semantic_ids.layout.n_levels)
    known, _ = known_and_targets(histories, "test")
    items_read = np.array([min(len(history), generator.max_items) for history in known], np.int64)
    codes = semantic_ids.codes
    beams = [1, *(min(beam_size, len(np.unique(codes[:, :level], axis=0))) for level in range(1, sizes.n_levels))]
    return {
        "epoch": operations.epoch(sizes, Trainer(model, histories, setting.config).examples),
        "search": operations.search(sizes, items_read, beams),
    }
