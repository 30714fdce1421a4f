"""An audit as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tigerrec import text
from tigerrec.text import figure, percent

LOW, HIGH = "_low", "_high"
LEGEND = (
    "HR@10 and NDCG@10 are hits on items, over the whole catalogue; (…–…) are 95 % bootstrap intervals over users, for "
    "differences of the same users' pairs.\nSeen items are masked inside the search unless a row says otherwise. "
    "Everything random is seeded."
)


def _number(name: str, value: Any) -> str:
    """One value to read; its column's name says what it is."""
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float | None):
        return str(value)
    if value is not None and ("share" in name or "users with" in name):
        return percent(value)
    if value is not None and "inflation" in name:
        return f"{100 * value:+.1f} %"
    return figure(value, "+.4f" if "change" in name else ".4f")


def cell(row: Mapping[str, Any], name: str) -> str:
    """A row's value under a column, with its interval where it has one."""
    if name not in row:
        return ""
    is_difference = any("difference" in str(value) or "−" in str(value) for value in row.values())
    label = f"change of {name}" if is_difference and "share" not in name else name
    value, *ends = (_number(label, row[key]) for key in (name, f"{name}{LOW}", f"{name}{HIGH}") if key in row)
    return f"{value} ({' to '.join(ends)})" if ends else value


def rows_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table: a column for each key but those of intervals."""
    names = list(dict.fromkeys(name for row in rows for name in row if not name.endswith((LOW, HIGH))))
    headings = [name.replace("ndcg", "NDCG").replace("hr@", "HR@") for name in names]
    return text.table([headings, *([cell(row, name) for name in names] for row in rows)], texts=len(names))


def page(audit: Mapping[str, Any]) -> str:
    """The whole document of what `audit.json` holds."""
    checks = audit["checks"]
    blocks = [
        f"# Audit of `{audit['run']}`",
        f"```\n{audit['command']}\n```",
        audit["about"],
        *(f"**Not finished:** {failure}" for failure in audit["failures"]),
        "\n".join(f"- **{check['title']}** {check['summary']}" for check in checks),
        LEGEND,
    ]
    for check in checks:
        result = rows_table(check["rows"]) if check["rows"] else check["summary"]
        blocks += [f"## {check['title']}", check["method"], result]
    return "\n\n".join(block for block in blocks if block) + "\n"
