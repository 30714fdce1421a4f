"""An audit as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tigerrec import markdown
from tigerrec.audit.figures import figure, percent
from tigerrec.markdown import NOTHING

LOW, HIGH = "_low", "_high"
LEGEND = """\
HR@10 and NDCG@10 are hits on items, over the whole catalogue; (…–…) are 95 % bootstrap intervals over users, for differences of the same users' pairs.
Seen items are masked inside the search unless a row says otherwise. Everything random is seeded."""


def _number(name: str, value: Any) -> str:
    """One value to read; its column's name says what it is."""
    if value is None:
        return NOTHING
    if isinstance(value, float):
        if "share" in name or "users with" in name:
            return percent(value)
        if "inflation" in name:
            return f"{100 * value:+.1f} %"
        return figure(value, signed="change" in name)
    return f"{value:,}" if isinstance(value, int) else str(value)


def cell(row: Mapping[str, Any], name: str) -> str:
    """A row's value under a column, with its interval where it has one."""
    if name not in row:
        return ""
    is_difference = "change" in name or any("difference" in str(value) or "−" in str(value) for value in row.values())
    label = f"change of {name}" if is_difference and isinstance(row[name], float) and "share" not in name else name
    text = _number(label, row[name])
    if f"{name}{LOW}" in row:
        text += f" ({_number(label, row[f'{name}{LOW}'])} to {_number(label, row[f'{name}{HIGH}'])})"
    return text


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table: a column for each key but those of intervals."""
    names = list(dict.fromkeys(name for row in rows for name in row if not name.endswith((LOW, HIGH))))
    headings = [name.replace("ndcg", "NDCG").replace("hr@", "HR@") for name in names]
    return markdown.table([headings, *([cell(row, name) for name in names] for row in rows)], texts=len(names))


def page(audit: Mapping[str, Any]) -> str:
    """The whole document of what `audit.json` holds."""
    checks = audit["checks"]
    overview = "\n".join(f"- **{check['title']}** {check['summary']}" for check in checks)
    failures = [f"**Not finished:** {failure}" for failure in audit["failures"]]
    parts = [
        f"# Audit of `{audit['run']}`",
        f"```\n{audit['command']}\n```",
        audit["about"],
        *failures,
        overview,
        LEGEND,
    ]
    for check in checks:
        parts += [f"## {check['title']}", check["method"], table(check["rows"]) if check["rows"] else check["summary"]]
    return "\n\n".join(part for part in parts if part) + "\n"
