"""What a tracker is told of a run, and what it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

PROJECT = "tigerrec"


@dataclasses.dataclass(frozen=True)
class About:
    """A run as its tracker describes it.

    Attributes:
        folder: of the train stage, where what belongs to the run may stand.
        name: what people call it: data set, embedder, tokenizer and generator.
        config: the options that identify the stage.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]


class Tracker(Protocol):
    """A run in a tracker; its module has `open_run(about, run_id)`, which goes on with the run of an id, or begins one.

    Attributes:
        run_id: by which the tracker finds the run again.
    """

    run_id: str

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Show the figures of a step, none of an earlier one than before."""

    def close(self, finished: bool) -> None:
        """Leave the run, finished or to be gone on with."""


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested configuration by dotted name."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves
