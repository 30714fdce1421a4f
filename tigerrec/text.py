"""Text to read: figures, settings, tables, and the commands that messages name."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

NOTHING = "–"  # stands for a value that is not there


GROUPS = ("dataset", "embedder", "tokenizer", "generator", "train", "evaluate", "baseline")
MAKE_TARGETS = {
    "prepare": "data",
    "embed": "embed",
    "tokenize": "tokenize",
    "train": "train",
    "evaluate": "eval",
    "audit": "audit",
}
OF_THIS_MACHINE = (
    "paths.",
    "audit.folder",
    "audit.checks",
    "dataset.raw_dir",
    "train.device",
    "train.tracker",
    "evaluate.device",
    "embedder.device",
)


def written(value: object) -> str:
    """A setting as people write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def figure(value: float | None, form: str = ".4f") -> str:
    """A number in a format; with four decimals, as metrics have them, without the zero before the point."""
    if value is None:
        return NOTHING
    text = f"{value:{form}}"
    return re.sub(r"^([+-]?)0\.", r"\1.", text) if form.endswith(".4f") else text


def shortened(value: str, longest: int = 100) -> str:
    """A text for one line, cut where it is longer than people read, without characters that steer a terminal."""
    printable = "".join(char if char.isprintable() else "\ufffd" for char in value[: longest + 1])
    return printable if len(printable) <= longest else f"{printable[: longest - 1]}…"


def percent(share: float) -> str:
    """A share as a percentage: `12.5 %`."""
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as plain text, their columns two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def table(rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Rows of cells in Markdown, their heading first, with columns of equal width.

    Args:
        texts: how many columns, from the left, are aligned on the left; the others, numbers, on the right.
    """
    widths = [max(2, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width if place < texts else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    lines = [
        [
            cell.ljust(width) if place < texts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def first_line(error: BaseException) -> str:
    """What an exception says, or what it is, as a part of a sentence."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return "".join(character for character in text if character.isprintable()).rstrip(".")


def make_command(stage: str, overrides: list[str]) -> str:
    """The make command that runs a stage, or the make target of that name, with these Hydra overrides."""
    choices, options = [], []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in (*GROUPS, "experiment"):
            choices.append(f"{key.upper()}={shlex.quote(value)}")
        elif key != "overwrite":
            options.append(shlex.quote(override))
    arguments = [f"ARGS={_as_one_word(' '.join(options))}"] if options else []
    return " ".join([f"make {MAKE_TARGETS.get(stage, stage)}", *choices, *arguments]).replace("$", "$$")


def _as_one_word(text: str) -> str:
    """A text as one word for a shell, in double quotes where it holds nothing that means something there."""
    return shlex.quote(text) if shlex.quote(text) == text or set(text) & set('"$`\\!') else f'"{text}"'


def told_command(target: str, overrides: Sequence[str]) -> str:
    """The make command to tell others of, without the options that say where things are on this machine; of absolute
    paths only the last part."""
    told = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not key.lstrip("+~").startswith(OF_THIS_MACHINE):
            told.append(f"{key}{equals}{Path(value).name if value.startswith('/') else value}")
    return make_command(target, told)


def same_command(stage: str, overrides: Sequence[str]) -> str:
    """The command that runs a stage with these overrides, as this process was called: by make or not, by a launcher."""
    launch = os.environ.get("LAUNCH") if int(os.environ.get("WORLD_SIZE", 1)) > 1 else None
    overrides = [*_configurations(sys.argv), *overrides]
    if "MAKELEVEL" in os.environ:
        return make_command(stage, overrides) + (f" LAUNCH={_as_one_word(launch)}" if launch else "")
    kept = [override for override in overrides if not override.startswith("overwrite=")]
    return " ".join([f"{f'{launch} -m ' if launch else ''}tigerrec {stage}", *map(shlex.quote, kept)])


def _configurations(arguments: Sequence[str]) -> list[str]:
    """The further folder of configurations that a command was given for Hydra, as one word."""
    for flag in ("--config-dir", "-cd"):
        for place, argument in enumerate(arguments):
            if argument == flag:
                return [f"--config-dir={arguments[place + 1]}"]
            if argument.startswith(f"{flag}="):
                return [f"--config-dir={argument.partition('=')[2]}"]
    return []


def recommend_command(run: Path) -> str:
    """The command that recommends with a trained run."""
    if "MAKELEVEL" in os.environ:
        return f"make recommend RUN={run} ITEMS=<item id>,<item id>"
    return f"tigerrec recommend {run} --items <item id>,<item id>"


def choice_of_data(name: str) -> str:
    """How a data set is chosen."""
    return f"DATASET={name}" if "MAKELEVEL" in os.environ else f"dataset={name}"
