"""A run in the tracker that its options name, shown each figure of a step once, however often training is started."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tigerrec import TigerrecError
from tigerrec.runtime import distributed
from tigerrec.storage.files import write_json
from tigerrec.text import first_line
from tigerrec.training.trackers import NONE
from tigerrec.training.trackers.base import About, Tracker

logger = logging.getLogger(__name__)
RECORD = "tracker.json"
NOT_SHOWN = ("epoch", "seconds")


class TrackedRun:
    """A run in a tracker. What was shown, the last step of each figure, stands in a record beside the checkpoints.

    Args:
        name: of the tracker's module.
        checkpoints: the folder of the record.
    """

    def __init__(self, name: str, about: About, checkpoints: Path) -> None:
        self.name, self.about, self.record = name, about, checkpoints / RECORD
        self.tracker: Tracker | None = None
        self.last_steps: dict[str, int] = {}
        self.n_followed = 0

    def open(self) -> None:
        """Begin a run in the tracker, or go on with the recorded one.

        Raises:
            TigerrecError: the tracker has refused it.
        """
        recorded = self._recorded()
        self.last_steps = recorded.get("last_steps", {})
        try:
            module = importlib.import_module(f"tigerrec.training.trackers.{self.name}")
            self.tracker = module.open_run(self.about, recorded.get("run_id"))
        except Exception as error:  # each tracker has errors of its own
            raise TigerrecError(
                f"train.tracker={self.name} could not open a run ({type(error).__name__}: {first_line(error)}); mend "
                "that, or leave the option out to train without it."
            ) from error
        self._keep()

    def _recorded(self) -> dict[str, Any]:
        """The record of this tracker; empty where there is none that can be read."""
        with contextlib.suppress(OSError, ValueError):
            recorded = json.loads(self.record.read_bytes())
            if isinstance(recorded, dict) and recorded.get("tracker") == self.name:
                return recorded
        return {}

    def _keep(self) -> None:
        if self.tracker is not None:
            facts = {"tracker": self.name, "run_id": self.tracker.run_id, "last_steps": self.last_steps}
            write_json(self.record, facts)

    def follow(self, log: Sequence[Mapping[str, Any]]) -> None:
        """Show what was added to the lines of `training.jsonl`; those of the selection among checkpoints are earlier
        steps again."""
        for line in log[self.n_followed :]:
            if "selection" not in line:
                figures = {name: value for name, value in line.items() if isinstance(value, float)}
                self.show(line["step"], {name: figures[name] for name in figures if name not in NOT_SHOWN})
        self.n_followed = len(log)

    def show(self, step: int, figures: Mapping[str, float]) -> None:
        """Show the figures of a step that were not shown yet; training goes on without a tracker that fails."""
        new = {name: value for name, value in figures.items() if step > self.last_steps.get(name, -1)}
        if self.tracker is None or not new:
            return
        before = self.last_steps
        self.last_steps = before | dict.fromkeys(new, step)
        self._keep()
        try:
            self.tracker.log(step, new)
        except Exception as error:  # each tracker has errors of its own
            self.last_steps = before
            self._keep()
            self._give_up(error)

    def show_selected(self, step: int, selected: Mapping[str, float]) -> None:
        """Show at the last step which step's weights were selected, and their validation."""
        self.show(step, {f"selected_{name.removeprefix('validation_')}": value for name, value in selected.items()})

    def _give_up(self, error: Exception) -> None:
        self.tracker = None
        logger.warning(
            "train.tracker=%s failed (%s); training goes on without it, and its figures stand in training.jsonl",
            self.name,
            first_line(error),
        )

    def close(self, finished: bool) -> None:
        """Leave the run, finished or to be gone on with."""
        try:
            if self.tracker is not None:
                self.tracker.close(finished)
        except Exception as error:  # each tracker has errors of its own
            self._give_up(error)


@contextlib.contextmanager
def tracked_run(name: str, out: Path, config: Mapping[str, Any]) -> Iterator[TrackedRun | None]:
    """The run of a train stage in a tracker, in the process that writes for all; None without a tracker."""
    if name == NONE or not distributed.is_first():
        yield None
        return
    run = TrackedRun(name, About(out, "/".join(out.parts[-4:]), config), out / "checkpoint")
    finished = False
    try:
        yield run
        finished = True
    finally:
        run.close(finished)
