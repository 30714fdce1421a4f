"""Checkpoints of a training run: the state on disk, the best candidates, and stopping on a signal."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from tigerrec import TigerrecError, artifacts

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from tigerrec.history_model import HistoryModel

logger = logging.getLogger(__name__)
KEPT_CHECKPOINTS = 2


class Interrupted(SystemExit):
    """Training was asked to stop by a signal and left a checkpoint; exits with 128 + the signal's number."""

    def __init__(self, received: int, folder: Path) -> None:
        super().__init__(128 + received)
        self.message = f"Stopped by {signal.Signals(received).name}; a checkpoint is in {folder}: run the same command again, without overwrite=, to go on."

    def __str__(self) -> str:
        return self.message


class StopFlag:
    """The signal that asked to stop, or None."""

    def __init__(self) -> None:
        self.received: int | None = None

    def raise_if_received(self, folder: Path) -> None:
        """Raise `Interrupted` where a signal came."""
        if self.received is not None:
            raise Interrupted(self.received, folder)


@contextlib.contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Let SIGTERM and Ctrl-C set a flag instead of ending the process at once; a second one ends it."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def note(number: int, frame: Any) -> None:
        flag.received = number
        logger.warning("stopping: the step in hand ends, then a checkpoint is written")
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class RunState:
    """Where a run stands; plain values only."""

    step: int = 0
    seconds: float = 0.0
    finished: bool = False
    validations_since_best: int = 0
    candidates: list[dict[str, Any]] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints:
    """The checkpoint folder of one run: `step-<n>.safetensors` with its `step-<n>.json` as the commit record, and `candidate-<n>.safetensors`.

    Args:
        folder: made when it is missing.
        identity: configuration and inputs of the run; a checkpoint of another one is refused.
        environment: thread count, versions and device; a change is allowed and logged.
        tensorboard: mirror the log as TensorBoard events.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], environment: dict[str, Any], tensorboard: bool = False) -> None:
        self.folder, self.identity, self.environment = folder, identity, environment
        self.state = RunState()
        folder.mkdir(parents=True, exist_ok=True)
        self.writer: SummaryWriter | None = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise TigerrecError("train.tensorboard=true needs the package tensorboard; run `pip install tensorboard` or leave the option out.") from None
            self.writer = SummaryWriter(str(folder.parent / "tensorboard"))

    def _records(self) -> list[Path]:
        """Commit records, newest first."""
        return sorted(self.folder.glob("step-*.json"), key=lambda path: int(path.stem.removeprefix("step-")), reverse=True)

    def restore(self, model: HistoryModel, optimizer: torch.optim.Optimizer) -> RunState:
        """Load the newest whole checkpoint; without one the run starts from the beginning.

        Raises:
            StaleError: the checkpoint belongs to another configuration or other inputs.
        """
        records = self._records()
        for record in records:
            try:
                saved = json.loads(record.read_bytes())
                tensors = record.with_suffix(".safetensors")
                if artifacts.sha256_file(tensors) != saved["sha256"]:
                    raise ValueError("its tensors are not the ones that were saved")
                state, identity, environment = RunState(**saved["state"]), saved["identity"], saved["environment"]
                self._check_candidates(state)
            except (OSError, ValueError, KeyError, TypeError) as error:
                logger.warning("checkpoint %s cannot be used (%s); trying the one before", record.stem, error)
                record.unlink(missing_ok=True)
                continue
            differences = artifacts.changed_keys(identity, self.identity)
            if differences:
                raise artifacts.StaleError(
                    f"{self.folder} belongs to a run with other settings ({'; '.join(differences)}); "
                    "give `train.name=<another>` to keep it, or add `overwrite=train` to start again."
                )
            if changed := artifacts.changed_keys(environment, self.environment):
                logger.warning("going on under another environment (%s): the result will not be bit-identical", "; ".join(changed))
            self._load(tensors, model, optimizer)
            self.state = state
            logger.info("going on from step %d", state.step)
            return state
        if records:
            logger.warning("no checkpoint in %s can be used; starting over", self.folder)
        return self.state

    def _check_candidates(self, state: RunState) -> None:
        for candidate in state.candidates:
            if artifacts.sha256_file(self.folder / candidate["file"]) != candidate["sha256"]:
                raise ValueError(f"{candidate['file']} is damaged")

    def _load(self, path: Path, model: HistoryModel, optimizer: torch.optim.Optimizer) -> None:
        tensors = load_file(path)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        state = optimizer.state_dict()
        state["state"] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, key = rest.split(".")
                state["state"].setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict(state)

    def save(self, state: RunState, model: HistoryModel, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint and forget all but the last two; from the first one on, an older finished stage is given up."""
        (self.folder.parent / artifacts.MANIFEST).unlink(missing_ok=True)
        tensors = {f"model.{name}": parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value.cpu().contiguous() for key, value in values.items()}
        path = self.folder / f"step-{state.step}.safetensors"
        with artifacts.atomic(path) as temporary:
            save_file(tensors, temporary)
        record = {"sha256": artifacts.sha256_file(path), "state": asdict(state), "identity": self.identity, "environment": self.environment}
        artifacts.write_json(path.with_suffix(".json"), record)
        self.state = state
        for old in self._records()[KEPT_CHECKPOINTS:]:
            old.unlink()
        needed = {candidate["file"] for record in self._records() for candidate in json.loads(record.read_bytes())["state"]["candidates"]}
        needed |= {record.with_suffix(".safetensors").name for record in self._records()}
        for tensors_file in self.folder.glob("*.safetensors"):
            if tensors_file.name not in needed:
                tensors_file.unlink()

    def log(self, state: RunState, line: dict[str, Any]) -> None:
        """Add a line of `training.jsonl`."""
        state.log.append(line)
        if self.writer is not None:
            for name, value in line.items():
                if isinstance(value, float) and name not in ("epoch", "seconds"):
                    self.writer.add_scalar(name, value, line["step"])
            self.writer.flush()

    def consider(self, state: RunState, model: HistoryModel, score: float, keep: int) -> None:
        """Keep the weights as a candidate if they are among the best so far; of equal scores the earlier is better."""
        best = max((candidate["score"] for candidate in state.candidates), default=-1.0)
        state.validations_since_best = 0 if score > best else state.validations_since_best + 1
        if len(state.candidates) == keep and score <= state.candidates[-1]["score"]:
            return
        path = self.folder / f"candidate-{state.step}.safetensors"
        with artifacts.atomic(path) as temporary:
            save_file({name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}, temporary)
        candidate = {"step": state.step, "score": score, "file": path.name, "sha256": artifacts.sha256_file(path)}
        state.candidates = sorted([*state.candidates, candidate], key=lambda entry: (-entry["score"], entry["step"]))[:keep]

    def load_candidate(self, candidate: dict[str, Any], model: HistoryModel) -> None:
        """Load a candidate's weights into the model."""
        tensors = load_file(self.folder / candidate["file"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[name])
