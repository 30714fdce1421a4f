"""Several processes on one task, as torchrun starts them: who they are, what they agree on, and sums over them."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tigerrec import TigerrecError
from tigerrec.text import first_line

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
PR_SET_PDEATHSIG = 1  # of Linux's prctl
PATIENCE = datetime.timedelta(days=7)
"""How long processes wait while one builds a stage; where one dies, torchrun ends them all."""


class LostProcessError(TigerrecError):
    """Another process of the task has ended."""


def _from_torchrun(name: str, otherwise: int) -> int:
    """A number that torchrun gives this process; variables of other launchers do not count."""
    return int(os.environ[name]) if "TORCHELASTIC_RUN_ID" in os.environ else otherwise


def world_size() -> int:
    """How many processes share the task."""
    return _from_torchrun("WORLD_SIZE", 1)


def rank() -> int:
    """The number of this process, from 0."""
    return _from_torchrun("RANK", 0)


def local_rank() -> int:
    """The number of this process on its machine, from 0, which is that of its GPU."""
    return _from_torchrun("LOCAL_RANK", 0)


def is_first() -> bool:
    """Whether this process writes for all."""
    return rank() == 0


def _end_with_launcher() -> None:
    """Let the system send this process SIGTERM when torchrun is gone, which could not do it; only Linux can."""
    if (prctl := getattr(ctypes.CDLL(None), "prctl", None)) is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def join() -> None:
    """Meet the other processes, once: gloo for what is on the CPU, nccl for what is on GPUs. Raises TigerrecError if
    there are fewer GPUs than processes on this machine."""
    if world_size() == 1:
        return
    _end_with_launcher()
    if not is_first():
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported
    import torch
    import torch.distributed
    import torch.distributed.nn  # were it imported later, its defaults would hold the group, and its threads, for ever

    if torch.distributed.is_initialized():
        return
    backend = "cpu:gloo"
    if torch.cuda.is_available():
        backend, n_gpus = "cpu:gloo,cuda:nccl", torch.cuda.device_count()
        if local_rank() >= n_gpus:
            raise TigerrecError(
                f"There are {n_gpus} GPUs for more processes; start at most {n_gpus}, or set CUDA_VISIBLE_DEVICES= to "
                "use none."
            )
        torch.cuda.set_device(local_rank())
    torch.distributed.init_process_group(backend, timeout=PATIENCE)


def joined() -> bool:
    """Whether this process works alone or has met the others."""
    return world_size() == 1 or ("torch" in sys.modules and sys.modules["torch"].distributed.is_initialized())


def leave() -> None:
    """Part from the other processes."""
    if world_size() > 1 and joined():
        import torch.distributed

        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _together() -> Iterator[Any]:
    """`torch.distributed`, with an error of its own for a process that is gone."""
    import torch.distributed

    try:
        yield torch.distributed
    except RuntimeError as error:
        raise _lost(error) from error


def _lost(error: RuntimeError) -> LostProcessError:
    return LostProcessError(
        f"Another process of the task has ended ({first_line(error)}): its message says why; if there is none, "
        "run the same command again to go on."
    )


@contextlib.contextmanager
def losing_none() -> Iterator[None]:
    """A computation during which torch itself speaks with the other processes, with an error of its own for one that is
    gone."""
    import torch.distributed

    try:
        yield
    except torch.distributed.DistBackendError as error:
        raise _lost(error) from error


def agreed(function: Callable[[], Result]) -> Result:
    """What a function gives that the first process calls once all are here; the others end silently where it fails."""
    if world_size() == 1:
        return function()
    with _together() as distributed:
        distributed.barrier()
    answer: list[Any] = [False, None]
    if is_first():
        try:
            answer = [True, function()]
        except BaseException:
            with contextlib.suppress(LostProcessError), _together() as distributed:
                distributed.broadcast_object_list(answer, src=0)
            raise
    with _together() as distributed:
        distributed.broadcast_object_list(answer, src=0)
    if not answer[0]:
        sys.exit(1)
    result: Result = answer[1]
    return result


def gathered(value: Result) -> list[Result]:
    """The value of every process, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _together() as distributed:
        distributed.all_gather_object(values, value)
    return values


def anywhere(condition: bool) -> bool:
    """Whether a condition holds in any process."""
    if world_size() == 1:
        return condition
    import torch

    flag = torch.tensor(int(condition))
    with _together() as distributed:
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag)


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum of a scalar over all processes, on its device, not yet waited for on a GPU."""
    if world_size() == 1:
        return value
    summed = value.clone()
    with _together() as distributed:
        distributed.all_reduce(summed)
    return summed


def sum_gradients(parameters: Sequence[torch.nn.Parameter], total: torch.Tensor) -> torch.Tensor:
    """Add up gradients over all processes, in place, and give the sum of the scalar `total`; a parameter without a
    gradient in any process keeps none."""
    if world_size() == 1:
        return total
    import torch

    has_one = [parameter.grad is not None for parameter in parameters]
    gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), total.new_tensor(has_one), total.view(1)])
    with _together() as distributed:
        distributed.all_reduce(flat)
    *sums, counts, summed = flat.split([*(gradient.numel() for gradient in gradients), len(gradients), 1])
    for parameter, gradient, count in zip(parameters, sums, counts.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter) if count else None
    return summed.view(())
