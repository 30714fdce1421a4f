"""Several processes that torchrun starts share a stage: the world as they see it, what they agree on, equal results,
and the end of all with one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from tests import tiny_shop
from tests.tiny_shop import FOLDERS, TRAINED, contents
from tigerrec.runtime import distributed
from tigerrec.runtime.signals import stop_signals
from tigerrec.storage.contracts import read_json
from tigerrec.storage.manifests import read_manifest
from tigerrec.training import loop

ROOT = Path(__file__).parent.parent
EXACT = ("generator.dropout_rate=0", "train.epochs=4", "train.validate_every=2")  # 16 steps or more, in fp32


def torchrun(
    *command: str, processes: int = 2, rendezvous: tuple[str, ...] = ("--standalone",), **more: Any
) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    launcher = [sys.executable, "-m", "torch.distributed.run", *rendezvous, "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [*launcher, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


def run_shared(orders: Path, runs: Path, *more: str, processes: int = 2) -> Path:
    """The whole pipeline under torchrun; gives the folder it printed."""
    code, out, err = ended(
        torchrun("-m", "tigerrec", "evaluate", *tiny_shop.options(orders, runs, *more), processes=processes)
    )
    assert code == 0, err
    assert out.count("\n") == 1  # the first process speaks for all
    assert err.count("train: done in") == 1
    return Path(out.strip())


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shop.write_orders(tmp_path_factory.mktemp("orders"))


INSIDE = """
import os, sys, torch, torch.distributed
from tigerrec import TigerrecError
from tigerrec.runtime import distributed
assert not distributed.joined()
distributed.join()
world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
expected = (3, int(os.environ["RANK"]), True)
assert (world, rank, distributed.joined()) == expected
assert (distributed.world_size(), distributed.rank(), True) == expected
assert distributed.is_first() == (rank == 0)
assert distributed.gathered(rank * 10) == [0, 10, 20]
assert distributed.anywhere(rank == 2) and not distributed.anywhere(False)
calls = []
assert distributed.agreed(lambda: calls.append(rank) or {"told": [rank, "x"]}) == {"told": [0, "x"]}
assert calls == ([0] if rank == 0 else [])
a, b, never = (torch.nn.Parameter(torch.zeros(2, size)) for size in (3, 1, 2))
a.grad = torch.full((2, 3), float(rank + 1))
b.grad = None if rank == 1 else torch.ones(2, 1)
assert distributed.sum_gradients([a, b, never], torch.tensor(float(rank))) == 3
assert (a.grad == 6).all() and (b.grad == 2).all() and never.grad is None
os.write(1, f"world of {world} seen by {rank}\\n".encode())  # one write, which no other process's can part
distributed.gathered(rank)  # all have written before the first fails, whose end ends the others
def fail():
    raise TigerrecError("Only the first says why.")
distributed.agreed(fail)
"""


def test_the_world_seen_from_inside() -> None:
    code, out, err = ended(torchrun("--no-python", sys.executable, "-c", INSIDE, processes=3))
    assert code != 0
    assert sorted(out.splitlines()) == [f"world of 3 seen by {rank}" for rank in range(3)], err
    assert err.count("tigerrec.TigerrecError: Only the first says why.") == 1


LEFT = """
import os, torch, torch.distributed
from tigerrec.runtime import distributed
distributed.join()
distributed.gathered(0)
torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # torch.optim loads more of torch.distributed
import torch.distributed.nn
distributed.leave()
threads = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
os.write(1, f"{[name for name in threads if 'gloo' in name]}\\n".encode())
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the names of threads are read from Linux's /proc")
def test_no_thread_of_the_group_outlives_it() -> None:
    """One that does can abort the process at its end."""
    code, out, err = ended(torchrun("--no-python", sys.executable, "-c", LEFT))
    assert code == 0, err
    assert out.splitlines() == ["[]"] * 2


def test_a_signal_that_comes_twice_still_waits_for_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler signals every process, and torchrun passes on what it got."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with stop_signals() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM


def test_a_process_alone_agrees_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")  # another launcher's, or left over
    assert (distributed.world_size(), distributed.rank(), distributed.local_rank(), distributed.joined()) == (
        1,
        0,
        0,
        True,
    )
    assert distributed.agreed(lambda: 5) == 5
    assert distributed.gathered("x") == ["x"]
    assert distributed.anywhere(True)
    distributed.join()
    distributed.leave()


def test_two_processes_equal_one_and_themselves(orders: Path, tmp_path: Path) -> None:
    tiny_shop.run(orders, tmp_path / "alone", *EXACT)
    for name in ("two", "again"):
        assert run_shared(orders, tmp_path / name, *EXACT) == tmp_path / name / FOLDERS["evaluate"]
    assert contents(tmp_path / "two") == contents(tmp_path / "again")
    for stage in ("prepare", "embed", "tokenize"):
        names = [
            name
            for name in contents(tmp_path / "alone")
            if (tmp_path / "alone" / name).parent == tmp_path / "alone" / FOLDERS[stage]
        ]
        assert all(contents(tmp_path / "alone")[name] == contents(tmp_path / "two")[name] for name in names)
    alone, two = (load_file(tmp_path / name / TRAINED / "model.safetensors") for name in ("alone", "two"))
    assert max(abs(alone[name] - two[name]).max() for name in alone) < 1e-4
    facts = read_manifest(tmp_path / "two" / TRAINED).provenance
    assert (facts["processes"], facts["steps"]) == (
        2,
        read_manifest(tmp_path / "alone" / TRAINED).provenance["steps"],
    )
    assert facts["steps"] >= 16
    assert losses_of(tmp_path / "alone") == pytest.approx(losses_of(tmp_path / "two"), abs=1e-4)
    metrics = [read_json(tmp_path / name / FOLDERS["evaluate"], "metrics.json") for name in ("alone", "two")]
    for one, other in zip(*metrics, strict=True):
        assert one["ndcg@10"] == pytest.approx(other["ndcg@10"], abs=1e-4)


OVERLAPPED = """
import os, sys, torch
from tigerrec.training import loop
loop.overlaps = lambda device: True
loop.new_optimizer = lambda model, training: torch.optim.SGD([{"params": list(model.parameters()), "rate": 1.0}])
from tigerrec.cli import main
main(sys.argv[1:])
threads = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
assert not any("gloo" in name for name in threads), threads
"""


def test_gradients_that_are_summed_while_computing_are_those_summed_at_the_end(
    orders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What GPUs do, here on CPUs: a model of two members, whose steps pass in parts, in more processes than some steps
    have examples. The optimizer is one that feels the scale of gradients, as AdamW does not."""
    dropout = ("generator.dropout_rate=0", "generator.node_dropout=0")
    sizes = ("train.batch_targets=8", "train.part_tokens=16", "train.max_grad_norm=1e9", "train.learning_rate=0.003")
    members = ("generator=t5_tree", "generator.members=2", *dropout, *sizes)
    sgd = lambda model, training: torch.optim.SGD([{"params": list(model.parameters()), "rate": 1.0}])
    monkeypatch.setattr(loop, "new_optimizer", sgd)
    tiny_shop.run(orders, tmp_path / "alone", *members, until="train")
    options = tiny_shop.options(orders, tmp_path / "three", *members)
    code, _, err = ended(torchrun("--no-python", sys.executable, "-c", OVERLAPPED, "train", *options, processes=3))
    assert code == 0, err
    alone, shared = (load_file(next((tmp_path / name).rglob("model.safetensors"))) for name in ("alone", "three"))
    assert max(abs(alone[name] - shared[name]).max() for name in alone) < 1e-4
    assert losses_of(tmp_path / "alone") == pytest.approx(losses_of(tmp_path / "three"), abs=1e-4)
    assert losses_of(tmp_path / "alone")[-1] < losses_of(tmp_path / "alone")[0] - 0.1


def test_a_process_that_torch_itself_misses_is_one_sentence() -> None:
    with pytest.raises(distributed.LostProcessError, match=r"has ended \(no answer\)"), distributed.losing_none():
        raise torch.distributed.DistBackendError("no answer")
    with pytest.raises(RuntimeError, match=r"^out of memory$"), distributed.losing_none():
        raise RuntimeError("out of memory")


@pytest.mark.long
def test_two_nodes_equal_two_processes_of_one(orders: Path, tmp_path: Path) -> None:
    run_shared(orders, tmp_path / "one", *EXACT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free.getsockname()[1]))
    command = ("-m", "tigerrec", "evaluate", *tiny_shop.options(orders, tmp_path / "two", *EXACT))
    nodes = [torchrun(*command, processes=1, rendezvous=(*where, "--node-rank", str(rank))) for rank in range(2)]
    codes, outs, errs = zip(*map(ended, nodes), strict=True)
    assert codes == (0, 0), errs
    assert outs == (f"{tmp_path / 'two' / FOLDERS['evaluate']}\n", "")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def read_log(runs: Path) -> list[dict[str, Any]]:
    (path,) = runs.rglob("training.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses_of(runs: Path) -> list[float]:
    return [line["loss"] for line in read_log(runs) if "loss" in line]


def test_processes_share_shards_to_the_bytes_of_one(orders: Path, tmp_path: Path) -> None:
    """An encoder in shards of four items, and an evaluation in shards of eight users."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    tiny_shop.run(orders, alone)
    code, out, err = ended(torchrun("--no-python", sys.executable, "-c", SHARED, str(alone), str(shared)))
    assert code == 0, err
    worked = [line.split() for line in out.splitlines()]
    assert {rank for rank, _, _ in worked} == {"0", "1"}
    for kind, amount in (("embed", 8), ("rank", 10)):
        pieces = [piece for _, what, piece in worked if what == kind]
        assert len(pieces) == len(set(pieces)) == amount
    one, two = (read_manifest(shared / name).content for name in ("embedded", "embedded-alone"))
    assert one == two
    assert read_manifest(shared / "evaluated").content == read_manifest(shared / "evaluated-alone").content
    assert not list(shared.rglob("*.safetensors.tmp"))
    assert not list(shared.rglob("shards"))


SHARED = """
import sys
from pathlib import Path
from tests.test_embed import Spelled
from tests.tiny_shop import FOLDERS
from tigerrec.embed.stage import embed
from tigerrec.evaluation import stage as evaluation
from tigerrec.runtime import distributed
from tigerrec.search.searcher import Searcher
alone, shared = map(Path, sys.argv[1:])
evaluation.SHARD_USERS = 8
told = True
rank, spelled = Searcher.rank, Spelled.open
def telling_rank(self, histories, **more):
    if told:
        sys.stdout.write(f"{distributed.rank()} rank {more['progress'].replace(' ', '_')}\\n")
    return rank(self, histories, **more)
def telling_open(self):
    encode = spelled(self)
    def telling(ids, texts):
        if told:
            sys.stdout.write(f"{distributed.rank()} embed {ids[0]}\\n")
        return encode(ids, texts)
    return telling
Searcher.rank, Spelled.open = telling_rank, telling_open
def both(name):
    embed(alone / FOLDERS["prepare"], Spelled(), shared / f"embedded{name}")
    inputs = [alone / FOLDERS[stage] for stage in ("prepare", "tokenize", "train")]
    evaluation.evaluate(*inputs, evaluation.EvaluateConfig(model="t5"), shared / f"evaluated{name}")
distributed.join()
both("")
told, first = False, distributed.is_first()
distributed.leave()
distributed.world_size = lambda: 1
if first:
    both("-alone")
"""

SLOW = ("train.epochs=100000", "train.checkpoint_steps=5", "train.validate_every=100000")


def children(process: subprocess.Popen[str]) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def training(orders: Path, runs: Path) -> subprocess.Popen[str]:
    """Two processes that train, a checkpoint being there."""
    process = torchrun("-m", "tigerrec", "train", *tiny_shop.options(orders, runs, *SLOW), start_new_session=True)
    while not list((runs / TRAINED / "checkpoint").glob("step-*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    return process


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.long)])
def test_28_a_dead_process_ends_all_and_leaves_a_checkpoint(victim: int, orders: Path, tmp_path: Path) -> None:
    process = training(orders, tmp_path / "runs")
    workers = children(process)
    assert len(workers) == 2
    os.kill(workers[victim], signal.SIGKILL)
    code, out, _ = ended(process)
    assert code != 0
    assert out == ""
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    checkpoint = tmp_path / "runs" / TRAINED / "checkpoint"
    before = {path.name for path in checkpoint.glob("step-*.json")}
    process = torchrun("-m", "tigerrec", "train", *tiny_shop.options(orders, tmp_path / "runs", *SLOW))
    while not {path.name for path in checkpoint.glob("step-*.json")} - before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.terminate()
    code, _, err = ended(process)
    assert code != 0
    assert "going on from step" in err
    assert err.count("Stopped by SIGTERM") == err.count("go on with: tigerrec train") == 1


def alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_28_a_dead_launcher_ends_all_after_a_checkpoint(orders: Path, tmp_path: Path) -> None:
    process = training(orders, tmp_path / "runs")
    workers = children(process)
    process.kill()
    _, err = process.communicate(timeout=60)  # the workers hold its pipes
    assert not any(alive(worker) for worker in workers)
    assert err.count("Stopped by SIGTERM") == 1


def test_only_stages_can_be_shared(tmp_path: Path) -> None:
    code, _, err = ended(torchrun("-m", "tigerrec", "baseline", f"paths.runs={tmp_path}"))
    assert code != 0
    assert (
        "Error: Several processes share only prepare, embed, tokenize, train and evaluate; run this without torchrun "
        "(`LAUNCH=`)." in err
    )
    assert not (tmp_path / "sample").exists()


def test_a_users_error_is_told_once(orders: Path, tmp_path: Path) -> None:
    code, out, err = ended(
        torchrun("-m", "tigerrec", "evaluate", *tiny_shop.options(orders, tmp_path, "tokenizer.max_collision=0"))
    )
    assert (code != 0, out) == (True, "")
    assert err.count("of the items share their codes") == 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_equal_themselves(orders: Path, tmp_path: Path) -> None:
    for name in ("two", "again"):
        run_shared(orders, tmp_path / name, *EXACT)
        assert read_manifest(tmp_path / name / TRAINED).provenance["device"] == "cuda"
    assert contents(tmp_path / "two") == contents(tmp_path / "again")
