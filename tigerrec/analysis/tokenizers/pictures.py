"""Pictures of fitted tokenizers: all at a glance, how each uses its codes, and the categories of its first codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tigerrec.analysis.charts import COLOURS, GREY, new_figure, save_png
from tigerrec.analysis.tokenizers.fitted import Categories, FittedTokenizer

BAR_COLOUR = "#888888"
MOST_BARS = 256
MOST_PARENTS = 12


def draw(folder: Path, fitted: Sequence[FittedTokenizer], categories: Categories) -> list[tuple[str, Path]]:
    """Draw all pictures as PNG files; the title and path of each."""
    pictures = [("All at a glance", "overview", overview(fitted))]
    for tokenizer in fitted:
        name, figure = tokenizer.name, prefixes(tokenizer, categories)
        pictures.append((f"{name}: use of codes", f"{name}-use", code_use(tokenizer)))
        pictures.append((f"{name}: categories of the first two codes", f"{name}-prefixes", figure))
    for _, name, figure in pictures:
        save_png(figure, folder / f"{name}.png")
    return [(title, folder / f"{name}.png") for title, name, _ in pictures]


def _level_colours(count: int) -> np.ndarray:
    from matplotlib import colormaps

    return np.asarray(colormaps["viridis"](np.linspace(0, 0.85, count)))


def overview(fitted: Sequence[FittedTokenizer]) -> Any:
    """A row a tokenizer: sharing and use of codes, reconstruction error, neighbour agreement and purity of prefixes."""
    n_levels = max(len(tokenizer.code_sizes) for tokenizer in fitted)
    figure = new_figure(13, 1.9 + (0.25 + 0.075 * n_levels) * len(fitted))
    sharing, evenness, error, neighbours, purity = panels = figure.subplots(1, 5, sharey=True)
    colours = _level_colours(n_levels)
    for row, tokenizer in enumerate(fitted):
        measures, sizes = tokenizer.measures, np.array(tokenizer.code_sizes)
        places = row + (np.arange(len(sizes)) - (len(sizes) - 1) / 2) * 0.7 / n_levels
        of_level = {"c": colours[: len(sizes)]}
        for panel, value, label in (
            (sharing, 100 * measures["collision_rate"], "{:.1f}%"),
            (error, measures["reconstruction_error"], "{:.2f}"),
        ):
            bar = panel.barh(row, value or 0, height=0.5, color=BAR_COLOUR)
            panel.bar_label(bar, ["does not decode" if value is None else label.format(value)], fontsize=8, padding=3)
        evenness.scatter(100 * np.array(measures["perplexity"]) / sizes, places, s=28, **of_level)
        for panel, values in ((neighbours, measures["neighbour_agreement"]), (purity, measures["purity"])):
            if values:
                panel.scatter(values, places, s=28, zorder=3, **of_level)
        if measures["purity"]:
            by_chance = measures["purity_by_chance"]
            purity.scatter(by_chance, places, s=45, marker="|", **of_level)
            purity.hlines(places, by_chance, measures["purity"], colors=of_level["c"], linewidth=1.5, alpha=0.6)
    texts = (
        ("items that share\nall codes", "% of items"),
        ("evenness\nof code use", "perplexity, % of the codes"),
        ("reconstruction\nerror", "share of the variance"),
        ("neighbours with\nthe same prefix", "share of the ten nearest"),
        ("purity of prefixes,\nline: from that by chance", "share of items"),
    )
    for panel, (title, label) in zip(panels, texts, strict=True):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel(label, fontsize=9)
        panel.grid(axis="x", alpha=0.3)
        for place in range(1, len(fitted)):
            panel.axhline(place - 0.5, color="#DDDDDD", linewidth=0.8)
    for panel, least in ((sharing, 1), (error, 0.01)):
        panel.set_xlim(0, 1.3 * max(least, panel.dataLim.xmax))
    for panel, largest in ((evenness, 100), (neighbours, 1), (purity, 1)):
        panel.set_xlim(-0.04 * largest, 1.04 * largest)
    sharing.set_yticks(range(len(fitted)), [tokenizer.name for tokenizer in fitted])
    sharing.set_ylim(len(fitted) - 0.5, -0.5)
    for level, colour in enumerate(colours, start=1):
        evenness.scatter([], [], color=colour, s=28, label=str(level))
    title = "level; or codes in the prefix"
    figure.legend(loc="outside lower center", ncols=n_levels, fontsize=9, title=title, title_fontsize=9)
    return figure


def items_by_group_size(group_sizes: dict[int, int]) -> dict[str, int]:
    """The number of items that share their codes with how many, in doubling classes 1, 2, 3–4, 5–8, …."""
    classes, low, high = {}, 1, 1
    while low <= max(group_sizes):
        label = str(low) if low == high else f"{low}–{high}"
        classes[label] = sum(size * count for size, count in group_sizes.items() if low <= size <= high)
        low, high = high + 1, 2 * high
    return classes


def code_use(tokenizer: FittedTokenizer) -> Any:
    """Left, frequencies of each level's codes against equal ones; right, how many items share all codes."""
    figure = new_figure(11, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    n_items, sizes = len(tokenizer.codes), tokenizer.code_sizes
    for level, colour in enumerate(_level_colours(len(sizes))):
        size, perplexity = sizes[level], tokenizer.measures["perplexity"][level]
        counts = np.sort(np.unique(tokenizer.codes[:, level], return_counts=True)[1])[::-1]
        label = f"level {level + 1}: {len(counts)} of {size} codes, perplexity {perplexity:.0f}"
        edges = 100 * np.arange(len(counts) + 1) / size
        left.stairs(counts * size / n_items, edges, baseline=None, color=colour, linewidth=2, label=label)
    left.axhline(1, color="#666666", linestyle="--", linewidth=1, label="all codes equally frequent")
    left.set_yscale("log")
    low, high = left.get_ylim()
    left.set(xlim=(0, 100), ylim=(min(low, 0.05), max(high, 20)), title="use of codes")
    left.set(xlabel="codes of the level, most frequent first (%)", ylabel="items a code, relative to equal use")
    left.yaxis.set_major_formatter("{x:g}")
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    classes = items_by_group_size(tokenizer.group_sizes)
    bars = right.bar(list(classes), [100 * held / n_items for held in classes.values()], color=BAR_COLOUR)
    right.bar_label(bars, [f"{held:,}" if held else "" for held in classes.values()], fontsize=8)
    if len(classes) > 7:
        right.tick_params(axis="x", labelrotation=45)
    right.set(ylim=(0, 110), xlabel="items with the same codes", ylabel="items (%; their number above the bar)")
    right.set_title(f"{tokenizer.measures['collision_rate']:.1%} of {n_items:,} items share all codes")
    figure.suptitle(tokenizer.name, fontweight="bold")
    return figure


def prefixes(tokenizer: FittedTokenizer, categories: Categories) -> Any:
    """Above, categories of the items of each first code; below, the largest first codes with their second codes."""
    figure = new_figure(13, 7.6)
    upper, lower = figure.subplots(2, 1, height_ratios=[2, 3])
    shown = min(len(COLOURS), len(categories.names))
    of_items = np.where((categories.of_items < 0) | (categories.of_items >= shown), shown, categories.of_items)
    colours = np.array([*COLOURS[:shown], GREY])
    _skyline(upper, tokenizer.codes, of_items, colours)
    _tree(lower, tokenizer.codes, of_items, colours)
    labels = [*categories.names[:shown], *(["other or none"] if (of_items == shown).any() else [])]
    for label, colour in zip(labels, colours, strict=False):
        upper.bar(0, 0, color=colour, label=label)
    figure.legend(loc="outside lower center", ncols=min(len(labels), 6), fontsize=9)
    measures = tokenizer.measures
    of_prefixes = zip(("first code", "first two"), measures["purity"], measures["purity_by_chance"], strict=False)
    purities = [f"of their {name}: {purity:.0%} (by chance {chance:.0%})" for name, purity, chance in of_prefixes]
    title = f"{tokenizer.name}: items with the main category {', '.join(purities)}" if purities else tokenizer.name
    figure.suptitle(title, fontweight="bold", fontsize=11)
    return figure


def main_category(counts: np.ndarray) -> np.ndarray:
    """The most frequent category of each row (n, categories), int64 (n,); the last only if there is no other."""
    return np.argmax(counts * np.append(np.ones(counts.shape[1] - 1), 1e-9), axis=1)


def by_size(codes: np.ndarray, of_items: np.ndarray, categories: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct codes of items (I,), the most frequent first and equals by their main category, and their items by
    category, int64 (codes, categories)."""
    distinct, places = np.unique(codes, return_inverse=True)
    counts = np.zeros((len(distinct), categories), dtype=np.int64)
    np.add.at(counts, (places, of_items), 1)
    order = np.lexsort((main_category(counts), -counts.sum(axis=1)))
    return distinct[order], counts[order]


def _stack(
    axes: Any, lefts: Any, widths: Any, heights: np.ndarray, colours: Any, bottom: float = 0, alpha: float = 1
) -> None:
    """Bars, each of one part a category, its main category lowest: `heights` (bars, categories)."""
    from matplotlib.collections import PolyCollection

    categories = np.arange(heights.shape[1])
    order = np.argsort(np.where(categories == main_category(heights)[:, None], -1, categories), axis=1)
    heights = np.take_along_axis(heights, order, axis=1)
    tops = bottom + np.cumsum(heights, axis=1)
    bars, layers = np.nonzero(heights)
    x, y = np.array([lefts, lefts + widths])[:, bars], np.array([tops - heights, tops])[:, bars, layers]
    corners, drawn = np.stack([x[[0, 0, 1, 1]], y[[0, 1, 1, 0]]], axis=-1).swapaxes(0, 1), colours[order[bars, layers]]
    axes.add_collection(PolyCollection(list(corners), facecolors=drawn, linewidths=0, alpha=alpha))


def _skyline(axes: Any, codes: np.ndarray, of_items: np.ndarray, colours: np.ndarray) -> None:
    """A bar a first code, as high as it has items."""
    first_codes, counts = by_size(codes[:, 0], of_items, len(colours))
    counts = counts[:MOST_BARS]
    counts = counts[np.argsort(main_category(counts), kind="stable")]
    _stack(axes, np.arange(len(counts)), np.full(len(counts), 0.9), counts, colours)
    axes.set(xlim=(0, len(counts)), ylim=(0, 1.05 * counts.sum(axis=1).max()))
    axes.set(xlabel="first codes, by their main category, then by size", ylabel="items")
    n_codes = len(first_codes)
    which = f"all {n_codes:,}" if n_codes <= MOST_BARS else f"the {MOST_BARS} largest of {n_codes:,}"
    axes.set_title(f"categories of {which} first codes", fontsize=10)


def _tree(axes: Any, codes: np.ndarray, of_items: np.ndarray, colours: np.ndarray) -> None:
    """The largest first codes side by side and, below each, the second codes of its items."""
    first_codes, counts = (some[:MOST_PARENTS] for some in by_size(codes[:, 0], of_items, len(colours)))
    sizes, has_children = counts.sum(axis=1), codes.shape[1] > 1
    gap = sizes.sum() / len(sizes) / 12
    lefts = np.cumsum(sizes + gap) - sizes - gap
    width = lefts[-1] + sizes[-1]
    _stack(axes, lefts, sizes, counts / sizes[:, None], colours, bottom=1.1)
    for code, left, size in zip(first_codes, lefts, sizes, strict=True):
        label = f"code {code}\n{size:,} items"
        if has_children:
            inside = codes[:, 0] == code
            _, second_counts = by_size(codes[inside, 1], of_items[inside], len(colours))
            _second_codes(axes, left, second_counts, colours, smallest=width / 400)
            label += f"\n{len(second_counts)} second\ncodes"
        if size > width / 25:
            axes.text(left + size / 2, 2.13, label, ha="center", va="bottom", fontsize=7.5)
    axes.set_yticks([0.5, 1.6], ["second codes", "first code"], rotation=90, va="center")
    axes.set(xlim=(0, width), ylim=(0 if has_children else 1.1, 2.1), xticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    below, pale = "", ""
    if has_children:
        below, pale = " and, below each, the second codes of its items", "; pale: second codes of a single item"
    key = f"width: items; height: shares of categories{pale}"
    axes.set_title(f"the {len(first_codes)} largest first codes{below} ({key})", fontsize=10, pad=48)


def _second_codes(axes: Any, left: float, counts: np.ndarray, colours: np.ndarray, smallest: float) -> None:
    """The children of a first code, by size; those of one item pale, a line after each of over `smallest` items."""
    widths = counts.sum(axis=1)
    ends = left + np.cumsum(widths)
    for alpha, some in ((1, widths > 1), (0.4, widths == 1)):
        _stack(axes, (ends - widths)[some], widths[some], (counts / widths[:, None])[some], colours, alpha=alpha)
    axes.vlines(ends[:-1][widths[:-1] > smallest], 0, 1, color="white", linewidth=0.6)
