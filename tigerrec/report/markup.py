"""Pieces of HTML: what is not markup is text, and is escaped where the two meet."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from tigerrec.report.style import STYLE

VOID = ("br", "meta")


class Html(str):
    """Markup; any other value is text."""


def markup(value: Any) -> Html:
    """A value as markup: text is escaped, `Html` stays as it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(values: Iterable[Any], between: str = "") -> Html:
    """Values as markup, one after the other."""
    return Html(between.join(markup(value) for value in values))


def element(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element; `class_` stands for `class`, `_` for `-`, and attributes that are None or False are left out."""
    parts = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            label = key.rstrip("_").replace("_", "-")
            parts.append(label if value is True else f'{label}="{html.escape(str(value))}"')
    opening = f"<{' '.join(parts)}>"
    return Html(opening if name in VOID else f"{opening}{join(children)}</{name}>")


def table(align: str, heads: Sequence[Any], rows: Iterable[Sequence[Any] | str], class_: str | None = None) -> Html:
    """A table in a box of its own that scrolls sideways where the screen is narrower.

    Args:
        align: a letter a column: `l` text, `r` numbers, `m` codes in a monospaced face, `b` bars.
        rows: the cells of each row; a string is a heading over the rows that follow.
    """
    kinds = [{"l": None, "r": "number", "m": "code", "b": "measure"}[letter] for letter in align]
    cells = lambda name, row: [element(name, value, class_=kind) for value, kind in zip(row, kinds, strict=True)]
    body = [
        element("tr", element("th", row, colspan=len(align), scope="colgroup"), class_="group")
        if isinstance(row, str)
        else element("tr", *cells("td", row))
        for row in rows
    ]
    whole = element(
        "table", element("thead", element("tr", *cells("th", heads))), element("tbody", *body), class_=class_
    )
    return element("div", whole, class_="scroll")


def percent(share: float, decimals: int = 1) -> str:
    """A share as per cent, on one line."""
    return f"{100 * share:.{decimals}f}\u00a0%"


def facts(pairs: Iterable[tuple[Any, Any]]) -> Html:
    """Names and values, one pair a line."""
    return element("dl", *(join((element("dt", name), element("dd", value))) for name, value in pairs))


def paragraph(*parts: Any, class_: str | None = None) -> Html:
    """A paragraph of text and markup."""
    return element("p", *parts, class_=class_)


def note(*parts: Any) -> Html:
    """A paragraph in small print."""
    return paragraph(*parts, class_="note")


def badge(text: str, kind: str) -> Html:
    """A word in a small frame."""
    return element("span", text, class_=f"badge {kind}")


def disclosure(summary: Any, *children: Any, opened: bool = False) -> Html:
    """A line that unfolds what belongs to it."""
    return element("details", element("summary", summary), element("div", *children), open=opened)


def bar(share: float) -> Html:
    """A bar that takes this share of its column, 0 to 1."""
    return element("span", class_="bar", style=f"width:{100 * share:.1f}%")


def figure(caption: Any, chart: Html) -> Html:
    """A chart with its caption above."""
    return element("figure", element("figcaption", caption), chart)


def figures(*parts: Html) -> Html:
    """Charts side by side where there is room."""
    return element("div", *parts, class_="figures")


def legend(names: Sequence[str]) -> Html:
    """The names of the series of a chart, each with its colour."""
    return element(
        "p",
        *(element("span", element("i", class_=f"swatch series-{number}"), name) for number, name in enumerate(names)),
        class_="legend",
    )


def section(anchor: str, title: str, *children: Any) -> Html:
    """A part of the page that the list at its top leads to."""
    return element("section", element("h2", title), *children, id=anchor)


def document(title: str, head: Sequence[Any], sections: Sequence[tuple[str, str, Sequence[Any]]]) -> str:
    """A whole page that needs nothing beside itself.

    Args:
        head: what stands under the title.
        sections: anchor, title and content of each part.
    """
    links = element(
        "nav", *(element("a", name, href=f"#{anchor}") for anchor, name, _ in sections), aria_label="Contents"
    )
    body = element(
        "main",
        element("header", element("h1", title), *head),
        links,
        *(section(anchor, name, *content) for anchor, name, content in sections),
    )
    page_head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    return f"<!doctype html>\n{element('html', page_head, element('body', body), lang='en')}\n"
