"""What a page says of the Semantic IDs: how codes are used, which items share them, and what stands under their
prefixes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tigerrec import artifacts
from tigerrec.diagnostics import collisions, level_usage
from tigerrec.report.charts import sorted_bars
from tigerrec.report.evaluated import EvaluatedRun
from tigerrec.report.markup import (
    Html,
    bar,
    disclosure,
    element,
    facts,
    figure,
    figures,
    join,
    note,
    paragraph,
    percent,
    table,
)

DRAWN_LEVELS = 8
LISTED_SIZES = 12
FIRST_CODES = 12
SECOND_CODES = 8
LEAVES = 5
TITLE_LENGTH = 140


def item_title(run: EvaluatedRun, item: int) -> str:
    """An item's title, cut where it is long."""
    title = run.titles[item] or "(no title)"
    return title if len(title) <= TITLE_LENGTH else f"{title[: TITLE_LENGTH - 1].rstrip()}…"


def codes_part(run: EvaluatedRun) -> list[Html]:
    """How evenly each level uses its codes, and how many items share theirs."""
    codes, sizes = run.codes, run.semantic_ids.layout.code_sizes
    use = [level_usage(codes[:, level], size) for level, size in enumerate(sizes)]
    counts = [np.bincount(codes[:, level], minlength=size) for level, size in enumerate(sizes)]
    rows = [
        [
            f"{level}",
            f"{used['codes']:,}",
            f"{used['used_codes']:,}",
            f"{used['dead_codes']:,}",
            f"{used['perplexity']:.1f}",
            percent(count.max() / len(codes)),
        ]
        for level, (used, count) in enumerate(zip(use, counts, strict=True), start=1)
    ]
    drawn = [
        figure(
            f"Level {level}: {used['used_codes']:,} of {used['codes']:,} codes used",
            sorted_bars(count.tolist(), "codes, most used first", "items a code"),
        )
        for level, (used, count) in enumerate(zip(use, counts, strict=True), start=1)
    ][:DRAWN_LEVELS]
    left_out = f" The first {DRAWN_LEVELS} of {len(sizes)} levels are drawn." if len(sizes) > DRAWN_LEVELS else ""
    return [
        paragraph(
            "Perplexity is the number of codes that would be as varied if all were used equally often; a dead code "
            "has no item."
        ),
        table("rrrrrr", ["level", "codes", "used", "dead", "perplexity", "items of the most used code"], rows),
        figures(*drawn),
        note(f"The dashed line is the mean.{left_out}"),
        element("h3", "Items with equal codes"),
        *_collisions(run),
    ]


def _collisions(run: EvaluatedRun) -> list[Html]:
    found = collisions(run.codes)
    sizes = [(int(size), count) for size, count in found["group_sizes"].items()]
    rows = [[f"{size}", count, size * count] for size, count in sizes[:LISTED_SIZES]]
    if len(sizes) > LISTED_SIZES:
        rest = sizes[LISTED_SIZES:]
        rows.append(
            [f"{rest[0][0]} and more", sum(count for _, count in rest), sum(size * count for size, count in rest)]
        )
    most = max(row[2] for row in rows)
    bars = [[size, f"{count:,}", f"{items:,}", bar(items / most)] for size, count, items in rows]
    shared = (
        f"{percent(found['collision_rate'])} of the {len(run.codes):,} items have codes that another item has too; "
        f"{found['unique_ids']:,} are distinct."
    )
    if run.semantic_ids.layout.n_levels > run.codes.shape[1]:
        used = run.semantic_ids.codes[:, -1].max() + 1
        shared += (
            f" A suffix of {run.semantic_ids.layout.level_sizes[-1]} tokens tells them apart; {used} of these are in "
            "use."
        )
    elif run.semantic_ids.may_share:
        shared += (
            " They share their Semantic ID: a list has the items of one id by their number of training interactions."
        )
    return [paragraph(shared), table("rrrb", ["items with the same codes", "groups", "items", ""], bars), *_fit(run)]


def _fit(run: EvaluatedRun) -> list[Html]:
    """What the tokenize stage measured of the codes against the vectors, where it did."""
    if "diagnostics.json" not in run.manifests["tokenize"].files:
        return []
    measured: dict[str, Any] = artifacts.read_json(run.folders["tokenize"], "diagnostics.json", {})
    resolved = measured.get("collisions", {})
    error = resolved.get("reconstruction_error", measured.get("reconstruction_error"))
    agreement = measured.get("neighbour_agreement")
    pairs = []
    if resolved.get("items_moved"):
        pairs.append(("Items that got other codes", f"{resolved['items_moved']:,}, by the policy {resolved['policy']}"))
    if error is not None:
        pairs.append(("Reconstruction error", f"{error:.4f} (0 is perfect, 1 no better than the mean vector)"))
    if isinstance(agreement, list):
        shares = ", ".join(percent(share) for share in agreement[:DRAWN_LEVELS])
        pairs.append(("Nearest neighbours with the same prefix", f"{shares} for prefixes of 1, 2, … codes"))
    return [facts(pairs)] if pairs else []


def tree_part(run: EvaluatedRun) -> list[Html]:
    """The largest first codes, the largest second codes under each, and some of their items."""
    shown = _largest(run.codes[:, 0], np.arange(len(run.codes)))
    covered = sum(len(items) for _, items in shown[:FIRST_CODES])
    deeper = f", the {SECOND_CODES} largest second codes of each," if run.codes.shape[1] > 1 else ""
    words = (
        f"Shown are the {min(FIRST_CODES, len(shown))} largest of {len(shown):,} first codes in use{deeper} and up to "
        f"{LEAVES} items, "
        f"in the order of the catalogue. The first codes shown hold {covered:,} of {len(run.codes):,} items. "
        "In small print: the most frequent category, where the data have categories."
    )
    return [paragraph(words), *(_first_code(run, code, items) for code, items in shown[:FIRST_CODES])]


def _largest(codes: np.ndarray, items: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The codes of some items with the items of each, the most frequent first, equal ones by number."""
    groups = [(int(code), items[codes == code]) for code in np.unique(codes)]
    return sorted(groups, key=lambda group: (-len(group[1]), group[0]))


def _first_code(run: EvaluatedRun, code: int, items: np.ndarray) -> Html:
    if run.codes.shape[1] == 1:
        return disclosure(_node(run, f"{code}", items, 1), _leaves(run, items))
    groups = _largest(run.codes[items, 1], items)
    nodes = [
        disclosure(_node(run, f"{code}-{second}", below, 2), _leaves(run, below))
        for second, below in groups[:SECOND_CODES]
    ]
    return disclosure(_node(run, f"{code}", items, 1), *nodes, *_more(groups[SECOND_CODES:]))


def _more(groups: Sequence[tuple[int, np.ndarray]]) -> Iterator[Html]:
    if groups:
        yield note(f"and {len(groups):,} second codes with {sum(len(items) for _, items in groups):,} items")


def _node(run: EvaluatedRun, prefix: str, items: np.ndarray, depth: int) -> Html:
    number = f"{len(items):,} item{'s' if len(items) != 1 else ''}"
    return join(
        (element("code", prefix), element("small", number, _category(run.categories.__getitem__, items, depth)))
    )


def _category(path: Callable[[int], list[str]], items: np.ndarray, depth: int) -> str:
    """The most frequent category of some items at a depth of the paths, with its share; empty where no path is that
    deep."""
    names = Counter(path(item)[depth] for item in items.tolist() if len(path(item)) > depth)
    if not names:
        return ""
    name, count = names.most_common(1)[0]
    return f" · {name[:TITLE_LENGTH]} {percent(count / len(items), 0)}"


def _leaves(run: EvaluatedRun, items: np.ndarray) -> Html:
    lines = [
        element("li", element("code", run.semantic_id(item)), item_title(run, item)) for item in items[:LEAVES].tolist()
    ]
    if len(items) > LEAVES:
        lines.append(element("li", f"and {len(items) - LEAVES:,} more", class_="note"))
    return element("ul", *lines, class_="items")
