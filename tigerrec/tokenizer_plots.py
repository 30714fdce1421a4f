"""Pictures of fitted tokenizers: all at a glance, how each uses its codes, and what its first two codes say of the
items' categories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tigerrec import TigerrecError, artifacts

if TYPE_CHECKING:
    from tigerrec.compare_tokenizers import Categories, FittedTokenizer

# Eight colours that colour-blind people tell apart (Okabe and Ito 2008), and grey for all other categories.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
GREY = "#BBBBBB"
BARS = 256
PARENTS = 12
DOTS_PER_INCH = 130


class NoMatplotlibError(TigerrecError):
    """Pictures were asked for and matplotlib is not installed."""


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches.

    Raises:
        NoMatplotlibError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NoMatplotlibError(
            "Pictures need the package matplotlib; run `python -m pip install matplotlib` and the same command again."
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def draw(folder: Path, fitted: Sequence[FittedTokenizer], categories: Categories) -> list[tuple[str, Path]]:
    """Draw all pictures as PNG files.

    Returns:
        Title and path of each.

    Raises:
        NoMatplotlibError: matplotlib is not installed; nothing is written.
    """
    pictures = [("All at a glance", "overview", overview(fitted))]
    for tokenizer in fitted:
        pictures.append((f"{tokenizer.name}: use of codes", f"{tokenizer.name}-use", code_use(tokenizer)))
        pictures.append(
            (
                f"{tokenizer.name}: categories of the first two codes",
                f"{tokenizer.name}-prefixes",
                prefixes(tokenizer, categories),
            )
        )
    paths = []
    for title, name, figure in pictures:
        path = folder / f"{name}.png"
        with artifacts.atomic(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
        paths.append((title, path))
    return paths


def _level_colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["viridis"](0.85 * level / max(count - 1, 1)) for level in range(count)]


def overview(fitted: Sequence[FittedTokenizer]) -> Any:
    """A row a tokenizer: items that share codes, use of codes, reconstruction error, neighbour agreement and purity by
    prefix length."""
    n_levels = max(len(tokenizer.code_sizes) for tokenizer in fitted)
    figure = new_figure(13, 1.9 + (0.25 + 0.075 * n_levels) * len(fitted))
    axes = figure.subplots(1, 5, sharey=True)
    colours = _level_colours(n_levels)
    for row, tokenizer in enumerate(fitted):
        facts = tokenizer.facts
        slots = row + (np.arange(len(tokenizer.code_sizes)) - (len(tokenizer.code_sizes) - 1) / 2) * 0.7 / n_levels
        _bar(axes[0], row, 100 * facts["collision_rate"], f"{facts['collision_rate']:.1%}")
        error = facts["reconstruction_error"]
        _bar(axes[2], row, error or 0, "does not decode" if error is None else f"{error:.2f}")
        evenness = [100 * used / size for used, size in zip(facts["perplexity"], tokenizer.code_sizes, strict=True)]
        for panel, values in ((axes[1], evenness), (axes[3], facts["neighbour_agreement"]), (axes[4], facts["purity"])):
            if values:
                panel.scatter(values, slots, c=colours[: len(values)], s=28, zorder=3)
        if facts["purity"]:
            axes[4].scatter(facts["purity_by_chance"], slots, c=colours[: len(slots)], s=45, marker="|", zorder=2)
            axes[4].hlines(
                slots,
                facts["purity_by_chance"],
                facts["purity"],
                colors=colours[: len(slots)],
                linewidth=1.5,
                alpha=0.6,
            )
    texts = [("items that share\nall codes", "% of items"), ("evenness\nof code use", "perplexity, % of the codes"),
             ("reconstruction\nerror", "share of the variance"), ("neighbours with\nthe same prefix", "share of the "
                                                                                                      "ten nearest"),
             ("purity of prefixes,\nline: from that by chance", "share of items")]  # fmt: skip
    for panel, (title, label) in zip(axes, texts, strict=True):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel(label, fontsize=9)
        panel.grid(axis="x", alpha=0.3)
        panel.hlines(
            np.arange(1, len(fitted)) - 0.5,
            0,
            1,
            transform=panel.get_yaxis_transform(),
            colors="#DDDDDD",
            linewidth=0.8,
        )
    for panel, name, scale in ((axes[0], "collision_rate", 100), (axes[2], "reconstruction_error", 1)):
        panel.set_xlim(0, 1.3 * scale * max([tokenizer.facts[name] or 0 for tokenizer in fitted] + [0.01]))
    for panel, largest in ((axes[1], 100), (axes[3], 1), (axes[4], 1)):
        panel.set_xlim(-0.04 * largest, 1.04 * largest)
    axes[0].set_yticks(range(len(fitted)), [tokenizer.name for tokenizer in fitted])
    axes[0].set_ylim(len(fitted) - 0.5, -0.5)
    handles = [
        axes[1].scatter([], [], color=colour, s=28, label=str(level + 1)) for level, colour in enumerate(colours)
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=n_levels,
        fontsize=9,
        title="level; or codes in the prefix",
        title_fontsize=9,
    )
    return figure


def _bar(axes: Any, row: int, value: float, label: str) -> None:
    axes.bar_label(axes.barh(row, value, height=0.5, color="#888888"), [label], fontsize=8, padding=3)


def items_by_group_size(group_sizes: dict[int, int]) -> dict[str, int]:
    """The number of items that share their codes with how many, in doubling classes 1, 2, 3–4, 5–8, …."""
    classes, low, high = {}, 1, 1
    while low <= max(group_sizes):
        label = str(low) if low == high else f"{low}–{high}"
        classes[label] = sum(size * count for size, count in group_sizes.items() if low <= size <= high)
        low, high = high + 1, 2 * high
    return classes


def code_use(tokenizer: FittedTokenizer) -> Any:
    """Left, the frequencies of each level's codes against equal ones; right, how many items share all their codes with
    how many."""
    figure = new_figure(11, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    items = len(tokenizer.codes)
    colours = _level_colours(len(tokenizer.code_sizes))
    for level, (size, colour) in enumerate(zip(tokenizer.code_sizes, colours, strict=True)):
        counts = np.sort(np.bincount(tokenizer.codes[:, level], minlength=size))[::-1]
        used = counts[counts > 0]
        perplexity = tokenizer.facts["perplexity"][level]
        label = f"level {level + 1}: {len(used)} of {size} codes, perplexity {perplexity:.0f}"
        left.stairs(
            used * size / items,
            100 * np.arange(len(used) + 1) / size,
            baseline=None,
            color=colour,
            linewidth=2,
            label=label,
        )
    left.axhline(1, color="#666666", linestyle="--", linewidth=1, label="all codes equally frequent")
    left.set_yscale("log")
    low, high = left.get_ylim()
    left.set_ylim(min(low, 0.05), max(high, 20))
    left.set_xlim(0, 100)
    left.set_xlabel("codes of the level, most frequent first (%)")
    left.set_ylabel("items a code, relative to equal use")
    left.set_title("use of codes")
    left.yaxis.set_major_formatter("{x:g}")
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    classes = items_by_group_size(tokenizer.group_sizes)
    bars = right.bar(list(classes), [100 * held / items for held in classes.values()], color="#888888")
    right.bar_label(bars, [f"{held:,}" if held else "" for held in classes.values()], fontsize=8)
    if len(classes) > 7:
        right.set_xticks(range(len(classes)), list(classes), rotation=45, ha="right", rotation_mode="anchor")
    right.set_xlabel("items with the same codes")
    right.set_ylabel("items (%; their number above the bar)")
    right.set_ylim(0, 110)
    right.set_title(f"{tokenizer.facts['collision_rate']:.1%} of {items:,} items share all codes")
    figure.suptitle(tokenizer.name, fontweight="bold")
    return figure


def prefixes(tokenizer: FittedTokenizer, categories: Categories) -> Any:
    """Above, the categories of the items of each first code; below, the largest first codes with their second codes,
    widths by numbers of items."""
    from matplotlib.patches import Patch

    figure = new_figure(13, 7.6)
    upper, lower = figure.subplots(2, 1, height_ratios=[2, 3])
    shown = min(len(COLOURS), len(categories.names))
    of_items = np.where((categories.of_items < 0) | (categories.of_items >= shown), shown, categories.of_items)
    colours = np.array([*COLOURS[:shown], GREY])
    _skyline(upper, tokenizer.codes, of_items, colours)
    _tree(lower, tokenizer.codes, of_items, colours)
    labels = [*categories.names[:shown], *(["other or none"] if (of_items == shown).any() else [])]
    handles = [Patch(color=colour, label=label) for colour, label in zip(colours, labels, strict=False)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), fontsize=9)
    purity, chance = tokenizer.facts["purity"], tokenizer.facts["purity_by_chance"]
    says = [
        f"of their {name}: {found:.0%} (by chance {dealt:.0%})"
        for name, found, dealt in zip(("first code", "first two"), purity, chance, strict=False)
    ]
    title = f"{tokenizer.name}: items with the main category {', '.join(says)}" if says else tokenizer.name
    figure.suptitle(title, fontweight="bold", fontsize=11)
    return figure


def main_category(counts: np.ndarray) -> np.ndarray:
    """The most frequent category of each row (n, categories), int64 (n,); the last, of all others, only where there is
    no other."""
    return np.argmax(counts * np.append(np.ones(counts.shape[1] - 1), 1e-9), axis=1)


def by_size(codes: np.ndarray, of_items: np.ndarray, categories: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct codes of items (I,), the most frequent first and equals by their main category, and their items by
    category, int64 (codes, categories)."""
    found, places = np.unique(codes, return_inverse=True)
    counts = np.zeros((len(found), categories), dtype=np.int64)
    np.add.at(counts, (places, of_items), 1)
    order = np.lexsort((main_category(counts), -counts.sum(axis=1)))
    return found[order], counts[order]


def _stack(
    axes: Any,
    lefts: np.ndarray,
    widths: np.ndarray,
    heights: np.ndarray,
    bottom: float,
    colours: np.ndarray,
    alpha: float = 1,
) -> None:
    """Bars, each of one part a category, its main category lowest: `heights` (bars, categories)."""
    from matplotlib.collections import PolyCollection

    places = np.arange(heights.shape[1])
    order = np.argsort(np.where(places == main_category(heights)[:, None], -1, places), axis=1)
    parts = np.take_along_axis(heights, order, axis=1)
    tops = bottom + np.cumsum(parts, axis=1)
    bars, there = np.nonzero(parts)
    x, y = np.array([lefts, lefts + widths])[:, bars], np.array([tops - parts, tops])[:, bars, there]
    corners = np.stack([x[[0, 0, 1, 1]], y[[0, 1, 1, 0]]], axis=-1)
    axes.add_collection(
        PolyCollection(list(corners.swapaxes(0, 1)), facecolors=colours[order[bars, there]], linewidths=0, alpha=alpha)
    )


def _skyline(axes: Any, codes: np.ndarray, of_items: np.ndarray, colours: np.ndarray) -> None:
    found, counts = by_size(codes[:, 0], of_items, len(colours))
    counts = counts[:BARS]
    counts = counts[np.argsort(main_category(counts), kind="stable")]
    _stack(axes, np.arange(len(counts)), np.full(len(counts), 0.9), counts, 0, colours)
    axes.set_xlim(0, len(counts))
    axes.set_ylim(0, 1.05 * counts.sum(axis=1).max())
    axes.set_xlabel("first codes, by their main category, then by size")
    axes.set_ylabel("items")
    which = f"all {len(found):,}" if len(found) <= BARS else f"the {BARS} largest of {len(found):,}"
    axes.set_title(f"categories of {which} first codes", fontsize=10)


def _tree(axes: Any, codes: np.ndarray, of_items: np.ndarray, colours: np.ndarray) -> None:
    found, counts = by_size(codes[:, 0], of_items, len(colours))
    found, counts = found[:PARENTS], counts[:PARENTS]
    sizes = counts.sum(axis=1)
    gap = sizes.sum() / len(sizes) / 12
    lefts = np.cumsum(sizes + gap) - sizes - gap
    width, has_children = lefts[-1] + sizes[-1], codes.shape[1] > 1
    _stack(axes, lefts, sizes, counts / sizes[:, None], 1.1, colours)
    for code, left, size in zip(found, lefts, sizes, strict=True):
        label = f"code {code}\n{size:,} items"
        if has_children:
            inside = codes[:, 0] == code
            _, parts = by_size(codes[inside, 1], of_items[inside], len(colours))
            _second_codes(axes, left, parts, colours, smallest=width / 400)
            label += f"\n{len(parts)} second codes"
        if size > width / 25:
            axes.text(left + size / 2, 2.13, label, ha="center", va="bottom", fontsize=7.5)
    axes.set_xlim(0, width)
    axes.set_ylim(0 if has_children else 1.1, 2.1)
    axes.set_yticks(
        *([0.5, 1.6], ["second codes", "first code"]) if has_children else ([1.6], ["first code"]),
        rotation=90,
        va="center",
    )
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    below, pale = (
        (" and, below each, the second codes of its items", "; pale: second codes of a single item")
        if has_children
        else ("", "")
    )
    axes.set_title(
        f"the {len(found)} largest first codes{below} (width: items; height: shares of categories{pale})",
        fontsize=10,
        pad=36,
    )


def _second_codes(axes: Any, left: float, parts: np.ndarray, colours: np.ndarray, smallest: float) -> None:
    """The children of a first code, by size; those of a single item are pale, and a line follows each of more than
    `smallest` items."""
    widths = parts.sum(axis=1)
    ends = left + np.cumsum(widths)
    for alpha, some in ((1, widths > 1), (0.4, widths == 1)):
        _stack(axes, (ends - widths)[some], widths[some], (parts / widths[:, None])[some], 0, colours, alpha)
    axes.vlines(ends[:-1][widths[:-1] > smallest], 0, 1, color="white", linewidth=0.6)
