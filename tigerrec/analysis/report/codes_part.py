"""What a page says of the Semantic IDs: use of codes, items that share them, and the tree of their prefixes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tigerrec.analysis.charts import frequency_chart, shorten
from tigerrec.analysis.report import percent
from tigerrec.analysis.report.evaluated import TITLE_LENGTH, EvaluatedRun
from tigerrec.storage.contracts import read_json
from tigerrec.tokenizers.diagnostics import collisions, level_usage

DRAWN_LEVELS = 8
LISTED_SIZES = 12
LARGEST = (12, 8)  # how many first codes, and second codes of each, the tree shows
LEAVES = 5


def code_use(run: EvaluatedRun) -> dict[str, Any]:
    """How evenly each level uses its codes, and how many items share theirs."""
    levels, charts = [], {}
    for level, size in enumerate(run.semantic_ids.layout.code_sizes, start=1):
        codes = run.codes[:, level - 1]
        counts, usage = np.bincount(codes, minlength=size), level_usage(codes, size)
        used, share = f"{usage['used_codes']:,}", percent(counts.max() / len(codes))
        levels.append([level, size, used, usage["dead_codes"], f"{usage['perplexity']:.1f}", share])
        if level <= DRAWN_LEVELS:
            caption = f"Level {level}: {used} of {size:,} codes used"
            charts[caption] = frequency_chart(counts, f"codes of level {level}, most used first", "items a code")
    shared = collisions(run.codes)
    sizes = [(int(size), count) for size, count in shared["group_sizes"].items()]
    groups = [[f"{size}", count, size * count] for size, count in sizes[:LISTED_SIZES]]
    if rest := sizes[LISTED_SIZES:]:
        items = sum(size * count for size, count in rest)
        groups.append([f"{rest[0][0]} and more", sum(count for _, count in rest), items])
    most = max(group[-1] for group in groups)
    layout = run.semantic_ids.layout
    suffixes = run.semantic_ids.codes[:, -1].max() + 1 if layout.n_levels > len(layout.code_sizes) else 0
    has_diagnostics = "diagnostics.json" in run.manifests["tokenize"].files
    measured = read_json(run.folders["tokenize"], "diagnostics.json", {}) if has_diagnostics else {}
    of_items = {"shared": shared, "groups": [[*group, group[-1] / most] for group in groups], "measured": measured}
    return {"ids": run.semantic_ids, "suffixes": suffixes, "levels": levels, "charts": charts} | of_items


def prefix_tree(run: EvaluatedRun) -> dict[str, Any]:
    """The largest first codes, the largest second codes under each, and some of their items."""
    largest = LARGEST[: run.codes.shape[1]]
    return {"root": _node(run, "", np.arange(len(run.codes)), largest), "leaves": LEAVES, "largest": largest}


def _node(run: EvaluatedRun, prefix: str, items: np.ndarray, largest: Sequence[int], depth: int = 0) -> dict[str, Any]:
    """The items of a prefix: by their next code, the most frequent first and equal ones by number, or as leaves."""
    node: dict[str, Any] = {"prefix": prefix, "n_items": len(items), "nodes": [], "leaves": []}
    if depth:
        node["category"] = _category(run, items, depth)
    if depth == len(largest):
        leaves = [(run.semantic_id(item), run.title(item)) for item in items[:LEAVES].tolist()]
        return node | {"leaves": leaves, "more": len(items) - len(leaves)}
    codes = run.codes[items, depth]
    counts = sorted(Counter(codes.tolist()).items(), key=lambda counted: (-counted[1], counted[0]))
    shown, rest = counts[: largest[depth]], counts[largest[depth] :]
    dash = "-" if depth else ""
    nodes = [_node(run, f"{prefix}{dash}{code}", items[codes == code], largest, depth + 1) for code, _ in shown]
    more = {"n_codes": len(counts), "more": len(rest), "items_of_more": sum(count for _, count in rest)}
    return node | {"nodes": nodes} | more


def _category(run: EvaluatedRun, items: np.ndarray, depth: int) -> tuple[str, float] | None:
    """The most frequent category of items at a depth of their paths, with its share; None if no path is that deep."""
    paths = [run.items[item].get("categories") or [] for item in items.tolist()]
    names = Counter(path[depth] for path in paths if len(path) > depth)
    if not names:
        return None
    name, count = names.most_common(1)[0]
    return shorten(name, TITLE_LENGTH), count / len(items)
