"""Whether a table has the columns that options name, and which options to give if not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tigerrec.data.base import DatasetError
from tigerrec.data.prepare import repair_of
from tigerrec.data.table import Table, shown


def check_columns(table: Table, named: Mapping[str, str], any_of: Sequence[str]) -> None:
    """Raise DatasetError if a table lacks a column `named` by an option → it, or all of the columns `any_of`."""
    path, fault = table.path, table.fault
    if fault:
        repair = repair_of(fault.reason, "items_item_column" in named)
        raise DatasetError(
            f"{path} tells no columns: its line {fault.line:,} cannot be read "
            f"({': '.join(filter(None, (fault.reason, fault.text)))}); {repair}."
        )
    if not table.columns:
        raise DatasetError(f"{path} is empty; give a file with data.")
    missing = {option: name for option, name in named.items() if name not in table.columns}
    if missing and table.is_open:
        missing = {option: name for option, name in missing.items() if name not in table.all_columns()}
    if missing:
        columns = table.all_columns()
        names = ", ".join(f"'{name}'" for name in missing.values())
        given = [f"dataset.{option}={_own(name, columns)}" for option, name in missing.items()]
        repair = " ".join(f'"{each}"' if "'" in each else each for each in given)
        advice = table.advice(list(named.values())) or f"name yours by `{repair}`"
        raise DatasetError(
            f"{path} has no column{'s' if len(missing) > 1 else ''} {names}, only {shown(columns)}; {advice}."
        )
    if any_of and not set(any_of) & set(table.columns) and not set(any_of) & set(table.all_columns()):
        raise DatasetError(
            f"{path} has none of the columns {', '.join(any_of)}, only {shown(table.columns)}; name yours, as "
            "`dataset.title_column=<column>`."
        )


def _own(name: str, columns: Sequence[str]) -> str:
    """The column that seems to be meant by a name, as an option is given."""
    alike = [column for column in columns if column.strip().lower() == name.lower()]
    return "<column>" if not alike else alike[0] if alike[0] == alike[0].strip() else repr(alike[0])
