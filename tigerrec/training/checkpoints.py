"""Checkpoints of a training run: the state on disk and the best candidates."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file, save_file

from tigerrec.runtime import distributed
from tigerrec.storage.files import (
    atomic,
    not_writable,
    remove_temporaries,
    sha256_file,
    sha256_text,
    write_json,
)
from tigerrec.storage.fingerprints import canonical_json, changed_keys, with_families
from tigerrec.storage.manifests import StaleError

if TYPE_CHECKING:
    from tigerrec.models.base import HistoryModel
    from tigerrec.training.tracking import TrackedRun

logger = logging.getLogger(__name__)
KEPT_CHECKPOINTS, KEPT_CANDIDATES = 2, 3


@dataclass(config=ConfigDict(strict=True, extra="forbid"))
class RunState:
    """Where a run stands; plain values only.

    Attributes:
        step: steps taken.
        seconds: spent on them, by all processes that took some one after the other.
        finished: whether training stopped early.
        candidates: the best weights so far, best first: step, score, file and sha256 of each.
        log: the lines of `training.jsonl`.
        environments: under what the run began, and from which step on under what it went on where that was another.
    """

    step: int = 0
    seconds: float = 0.0
    finished: bool = False
    validations_since_best: int = 0
    candidates: list[dict[str, Any]] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    environments: list[dict[str, Any]] = field(default_factory=list)


def _weights(model: HistoryModel, prefix: str = "") -> dict[str, torch.Tensor]:
    """All weights by name, as safetensors takes them."""
    return {prefix + name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}


def _load_weights(model: HistoryModel, tensors: Mapping[str, torch.Tensor], prefix: str = "") -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[prefix + name])


class Checkpoints:
    """The checkpoint folder of one run: `step-<n>.safetensors` with its `step-<n>.json` as the commit record, and
    `candidate-<n>.safetensors`.

    Args:
        folder: made when the run begins.
        identity: configuration and inputs of the run; a checkpoint of another one is refused.
        environment: thread count, versions, device and processes; a change is allowed, warned of and recorded.
        tracked: the run in a tracker, which follows the log.
    """

    def __init__(
        self, folder: Path, identity: dict[str, Any], environment: dict[str, Any], tracked: TrackedRun | None = None
    ) -> None:
        self.folder, self.identity, self.environment, self.tracked = folder, identity, environment, tracked
        self.state = RunState(environments=[{"step": 0, **environment}])

    def _records(self) -> list[Path]:
        """Commit records, newest first."""
        records = [path for path in self.folder.glob("step-*.json") if path.stem.removeprefix("step-").isdecimal()]
        return sorted(records, key=lambda path: int(path.stem.removeprefix("step-")), reverse=True)

    def restore(self, model: HistoryModel, optimizer: torch.optim.Optimizer) -> RunState:
        """Load the newest whole checkpoint; without one the run starts from the beginning.

        Raises:
            StaleError: the checkpoint belongs to another configuration or other inputs.
        """
        state = distributed.agreed(self._newest_whole)
        if state is None:
            return self.state
        self.state = state
        moments: dict[int, dict[str, torch.Tensor]] = {}
        tensors = load_file(self.folder / f"step-{state.step}.safetensors")
        _load_weights(model, tensors, "model.")
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, key = rest.split(".")
                moments.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
        logger.info("going on from step %d", state.step)
        return state

    def _newest_whole(self) -> RunState | None:
        """What the newest whole checkpoint says; torn ones are warned of and forgotten."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_temporaries(self.folder)
        except OSError as error:
            raise not_writable(self.folder, error) from None
        records = self._records()
        for record in records:
            try:
                state, identity = self._read(record)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                logger.warning("checkpoint %s cannot be used (%s); trying the one before", record.stem, error)
                record.unlink(missing_ok=True)
                continue
            if differences := changed_keys(identity, self.identity):
                raise StaleError(
                    f"{self.folder} belongs to a run with other settings ({'; '.join(differences)}); "
                    "give `train.name=<another>` to keep it, or add `overwrite=train` to start again."
                )
            before = state.environments[-1].copy() if state.environments else {}
            before.pop("step", None)
            if changes := changed_keys(before, self.environment):
                logger.warning(
                    "going on under another environment (%s): the result will not be bit-identical", "; ".join(changes)
                )
                state.environments.append({"step": state.step, **self.environment})
            return state
        if records:
            logger.warning("no checkpoint in %s can be used; starting over", self.folder)
        return None

    def _read(self, record: Path) -> tuple[RunState, dict[str, Any]]:
        """The state and the identity of the run that a checkpoint holds, once all its files are known to be whole."""
        saved = json.loads(record.read_bytes())
        if saved.pop("digest") != sha256_text(canonical_json(saved)):
            raise ValueError("its record is not the one that was saved")
        if sha256_file(record.with_suffix(".safetensors")) != saved["sha256"]:
            raise ValueError("its tensors are not the ones that were saved")
        state = RunState(**saved["state"])
        if record.name != f"step-{state.step}.json":
            raise ValueError(f"it is of step {state.step}")
        for candidate in state.candidates:
            if sha256_file(self.folder / candidate["file"]) != candidate["sha256"]:
                raise ValueError(f"{candidate['file']} is damaged")
        return state, with_families(saved["identity"])

    def save(self, model: HistoryModel, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint and forget all but the last two; all processes go on once it is there."""
        distributed.agreed(lambda: self._write(model, optimizer))

    def _write(self, model: HistoryModel, optimizer: torch.optim.Optimizer) -> None:
        tensors = _weights(model, "model.")
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value.cpu().contiguous() for key, value in moments.items()}
        path = self.folder / f"step-{self.state.step}.safetensors"
        with atomic(path) as temporary:
            save_file(tensors, temporary)
        record = {"sha256": sha256_file(path), "state": asdict(self.state), "identity": self.identity}
        digest = sha256_text(canonical_json(record))
        write_json(path.with_suffix(".json"), {"digest": digest} | record)
        for old in self._records()[KEPT_CHECKPOINTS:]:
            old.unlink()
        needed = set()
        for kept in self._records():
            candidates = json.loads(kept.read_bytes())["state"]["candidates"]
            needed |= {kept.with_suffix(".safetensors").name, *(candidate["file"] for candidate in candidates)}
        for tensors_file in self.folder.glob("*.safetensors"):
            if tensors_file.name not in needed:
                tensors_file.unlink()

    def log(self, line: dict[str, Any]) -> None:
        """Add a line of `training.jsonl`."""
        self.state.log.append(line)
        if self.tracked is not None:
            self.tracked.follow(self.state.log)

    def open_tracker(self) -> None:
        """Show a tracker what the log of the restored run holds already; the others wait until it is there."""
        distributed.agreed(self._open_tracker)

    def _open_tracker(self) -> None:
        if self.tracked is not None:
            self.tracked.open()
            self.tracked.follow(self.state.log)

    def consider(self, model: HistoryModel, score: float) -> None:
        """Keep the weights as a candidate if they are among the best so far; of equal scores the earlier is better."""
        state = self.state
        best = max((candidate["score"] for candidate in state.candidates), default=-1.0)
        state.validations_since_best = 0 if score > best else state.validations_since_best + 1
        if len(state.candidates) == KEPT_CANDIDATES and score <= state.candidates[-1]["score"]:
            return
        path = self.folder / f"candidate-{state.step}.safetensors"

        def write() -> str:
            with atomic(path) as temporary:
                save_file(_weights(model), temporary)
            return sha256_file(path)

        candidate = {"step": state.step, "score": score, "file": path.name, "sha256": distributed.agreed(write)}
        best_first = sorted([*state.candidates, candidate], key=lambda entry: (-entry["score"], entry["step"]))
        state.candidates = best_first[:KEPT_CANDIDATES]

    def load_candidate(self, candidate: dict[str, Any], model: HistoryModel) -> None:
        """Load a candidate's weights into the model."""
        _load_weights(model, load_file(self.folder / candidate["file"]))
