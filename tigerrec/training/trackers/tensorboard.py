"""TensorBoard: event files in the folder `tensorboard` of the stage."""

from __future__ import annotations

from collections.abc import Mapping

from tigerrec.storage.files import remove_tree
from tigerrec.training.trackers.base import About

FOLDER = "tensorboard"


class TensorBoard:
    """Event files of a run."""

    def __init__(self, about: About) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run_id = FOLDER
        self._writer = SummaryWriter(str(about.folder / FOLDER))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures of a step."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        """Close the file."""
        self._writer.close()


def open_run(about: About, run_id: str | None) -> TensorBoard:
    """Write further event files, or the first where none belong to the run."""
    if run_id is None:
        remove_tree(about.folder / FOLDER)
    return TensorBoard(about)
