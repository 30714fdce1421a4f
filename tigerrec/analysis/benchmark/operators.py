"""Which operators the time of training and of search goes to."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tigerrec import pipeline
from tigerrec.analysis.benchmark import Effort, Setting, as_table, planned, rounded
from tigerrec.analysis.benchmark.sides import cpu_name, epoch_steps, search_of_users
from tigerrec.runtime.devices import environment
from tigerrec.runtime.processes import in_own_process
from tigerrec.runtime.provenance import provenance
from tigerrec.storage.files import write_json
from tigerrec.storage.fingerprints import describe

logger = logging.getLogger(__name__)
KINDS = {
    "matrix products": ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::mv"),
    "fused attention": ("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_flash_attention_forward"),
    "copies and joins": ("aten::copy_", "aten::cat", "aten::clone", "aten::contiguous", "aten::index_copy_"),
    "softmax": ("aten::_softmax", "aten::_log_softmax", "aten::logsumexp", "aten::masked_fill_", "aten::masked_fill"),
    "dropout": ("aten::bitwise_and", "aten::bitwise_not_", "aten::bitwise_right_shift", "aten::sub_", "Attention"),
    "rows of tables": ("aten::index", "aten::gather", "aten::index_select", "aten::embedding", "aten::scatter_add_"),
    "optimizer": ("aten::_fused_adamw_", "aten::linalg_vector_norm", "aten::_foreach_norm", "aten::_foreach_mul_"),
}
OTHERS, BETWEEN = "other operators", "between operators: Python, numpy"
SHOWN = 12


def shares(work: Callable[[], object]) -> dict[str, Any]:
    """Seconds in which the operators of some work computed themselves, called ones left out: by kind, and of the
    largest, with their calls. The profiler itself makes the work slower."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        work()
        total = time.perf_counter() - started
    found = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    kind_of = {name: kind for kind, names in KINDS.items() for name in names}
    kinds: defaultdict[str, float] = defaultdict(float)
    for event in found:
        kinds[kind_of.get(event.key, OTHERS)] += event.self_cpu_time_total / 1e6
    kinds[BETWEEN] = max(total - sum(kinds.values()), 0.0)
    operators = [
        {"operator": event.key, "calls": event.count, "seconds": event.self_cpu_time_total / 1e6}
        for event in found[:SHOWN]
    ]
    largest_first = sorted(kinds.items(), key=lambda kind: -kind[1])
    rows = [{"kind": kind, "seconds": seconds, "share": seconds / total} for kind, seconds in largest_first]
    return {"seconds": total, "kinds": rows, "operators": operators}


def measured(setting: Setting, warmup_steps: int, steps: int, beam_size: int, n_users: int) -> dict[str, Any]:
    """The operators of some training steps and of a search for some users, each after it was done once, on a CPU."""
    trainer, run = epoch_steps(setting)
    run(0, warmup_steps)
    found = {"train": shares(lambda: run(warmup_steps, steps)) | {"steps": steps}}
    rank, known = search_of_users(setting, beam_size)
    users = known[:: max(len(known) // n_users, 1)][:n_users]
    rank(users)
    found["search"] = shares(lambda: rank(users)) | {"users": len(users)}
    return found | {
        "machine": {"cpu": cpu_name(), **environment(trainer.model.device, setting.config.training.precision)}
    }


def report(results: dict[str, Any]) -> str:
    """The results as tables, readable by people."""
    parts = []
    for name, amount in (("train", "steps"), ("search", "users")):
        heading = f"{name}, {results[name][amount]} {amount}, {results[name]['seconds']:.1f} s"
        parts += [heading, as_table(results[name]["kinds"]), as_table(results[name]["operators"]), ""]
    machine = results["machine"]
    return "\n".join([*parts, f"{machine['cpu']}, {machine['threads']} threads, {machine['precision']}"])


def profile(cfg: DictConfig, effort: Effort) -> Path:
    """Bring the Semantic IDs of a configuration up to date, measure where the time of its generator goes, and write it
    to the JSON file returned. Raises TigerrecError if an option is wrong or a stage cannot be used."""
    steps = planned(cfg)
    pipeline.run(cfg, "tokenize")
    config = steps["train"].config
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, device="cpu"))
    setting = Setting(steps["prepare"].folder, steps["tokenize"].folder, config)
    amounts = effort.warmup_steps, effort.stock_steps, effort.beam_size, effort.profiled_users
    results = rounded(in_own_process(f"{__name__}.measured", setting, *amounts))
    results |= {"config": describe(setting.config), "git": provenance(0.0)["git"]}
    name = f"{setting.prepared.name}-{setting.tokenized.name}-{cfg.generator.name}-{cfg.train.name}.json"
    path = setting.prepared.parent / "profile" / name
    write_json(path, results)
    logger.info("%s", report(results))
    return path
