"""The command `tigerrec`: one subcommand a stage and a job."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tigerrec import TigerrecError, __version__, pipeline, text
from tigerrec.config import composition_fault, config_folder
from tigerrec.runtime import distributed
from tigerrec.runtime.signals import Interrupted
from tigerrec.text import first_line
from tigerrec.tools import TOOLS, arguments_of, result_of

logger = logging.getLogger(__name__)

STAGES = {
    "prepare": "raw files → items, users and histories",
    "embed": "item text → vectors",
    "tokenize": "vectors → Semantic IDs, then frozen",
    "train": "histories of Semantic IDs → generator",
    "evaluate": "rank all items for all users → HR and NDCG",
}
JOBS = {
    "baseline": "tune a baseline on validation, fit it, measure it as the generator is",
    "table": "tokenizers × seeds beside baselines → one table; resumes",
    "audit": "checks on the numbers of a run",
    "compare-tokenizers": "all tokenizers, or those of tokenizers=[…], as a table and pictures",
    "profile": "which operators the time of training and search goes to",
    "benchmark": "training and search against transformers' own, and how cost grows",
}
DEMO_HISTORY = "B00SP2RMPG,B00VM0APYS"


def _help() -> str:
    def listed(commands: dict[str, str]) -> str:
        return "\n".join(f"  {name:<20}{text}" for name, text in commands.items())

    choices = "\n".join(
        f"  {group + '=':<20}{'  '.join(sorted(path.stem for path in (config_folder() / group).glob('*.yaml')))}"
        for group in text.GROUPS
    )
    return f"""tigerrec {__version__}: generative recommendation with Semantic IDs, from raw logs to honest metrics

usage: tigerrec <command> [<option>=<value> …]

Stages; each runs what it needs and is missing, and skips what is up to date:
{listed(STAGES)}

Jobs, with the same options:
{listed(JOBS)}

With arguments of their own (tigerrec <command> --help):
{listed(TOOLS)}

Choices:
{choices}

Any other option of a choice: train.epochs=5 tokenizer.seed=1. A new name keeps the older result: train.name=short.
overwrite=<stage> builds a stage again; -m runs a sweep: tigerrec evaluate -m tokenizer=rkmeans,opq generator.seed=0,1;
--cfg job prints all options. Results stand in runs/ below the folder where you are; paths.runs=<folder> moves them.

  tigerrec demo
  tigerrec evaluate dataset=beauty tokenizer=rkmeans
  tigerrec evaluate dataset=tables dataset.interactions=orders.csv dataset.items=products.csv dataset.name=shop"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name; a user's error ends in one sentence."""
    for stream in (sys.stdout, sys.stderr):  # titles that the terminal's encoding lacks are no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    name, *options = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("-h", "--help", "help") or (name in STAGES | JOBS and {"-h", "--help"} & set(options)):
        print(_help())
    elif name == "--version":
        print(__version__)
    elif name in STAGES | JOBS:
        _with_hydra(name, options, partial(run_stage if name in STAGES else run_job, name))
    elif name == "demo":
        _demo(options)
    elif name in TOOLS:
        _use_tool(name, options)
    else:
        sys.exit(f"Error: {name} is no command; allowed: {', '.join(STAGES | JOBS | TOOLS)}.")


def _with_hydra(name: str, options: Sequence[str], run: Callable[[DictConfig, list[str]], float | None]) -> None:
    """Compose the configuration by Hydra, which also runs sweeps, and run the command with it; a sweep that searches
    gets the number that the command gives."""
    import hydra
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode

    ends: dict[str, str | None] = {}  # the runs of a sweep → the sentence in which they ended, if they failed

    def task(cfg: DictConfig) -> float | None:
        given = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        overrides = [str(override) for override in given]  # type: ignore[union-attr]
        if name in JOBS:
            GlobalHydra.instance().clear()  # cells of a table are composed anew
        ends[" ".join(overrides)] = None
        try:
            return run(cfg, overrides)
        except SystemExit as stop:
            if HydraConfig.get().mode != RunMode.MULTIRUN or not isinstance(stop.code, str):
                raise
            ends[" ".join(overrides)] = stop.code.removeprefix("Error: ")
        return None

    def composable(self: BasicSweeper) -> Sequence[Sequence[str]]:
        """The next runs of a sweep, without those that cannot be composed."""
        runs: list[Sequence[str]] = []
        for overrides in next_runs(self):
            try:
                self.validate_batch_is_legal([overrides])
                runs.append(overrides)
            except (HydraException, OmegaConfBaseException) as error:
                ends[" ".join(overrides)] = composition_fault(error)
        return runs

    sys.argv = [f"tigerrec {name}", *options]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let it raise what it would print
    next_runs, BasicSweeper.get_job_batch = BasicSweeper.get_job_batch, composable  # type: ignore[method-assign]
    try:
        hydra.main(version_base="1.3", config_path=str(config_folder().resolve()), config_name="config")(task)()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"Error: {composition_fault(error)}")
    except ValueError:
        if not any(ends.values()):  # a search in which no trial has a value
            raise
    except OSError as error:
        sys.exit(f"Error: {first_line(error)}; choose a folder to write in with `paths.runs=<folder>`.")
    finally:
        BasicSweeper.get_job_batch = next_runs  # type: ignore[method-assign]
        distributed.leave()
    failures = [f"{options}: {sentence}" for options, sentence in ends.items() if sentence]
    if failures and len(ends) == 1:
        sys.exit(f"Error: {next(iter(ends.values()))}")
    if failures:
        sys.exit("\n  ".join([f"Error: {len(failures)} of {len(ends)} runs of the sweep failed:", *failures]))


@contextmanager
def reporting(resume: str | None = None) -> Iterator[None]:
    """Progress of the package on stderr; a user's error ends the process in one sentence, and so does a signal.

    `resume` is the command that goes on after a signal, for work that several processes may share.
    """
    pipeline.show_progress()
    try:
        if resume is None and distributed.world_size() > 1:
            shared = "prepare, embed, tokenize, train and evaluate"
            raise TigerrecError(f"Several processes share only {shared}; run this without torchrun (`LAUNCH=`).")
        yield
    except TigerrecError as error:
        sys.exit(f"Error: {error}")
    except OSError as error:
        sys.exit(f"Error: {first_line(error)}.")
    except KeyboardInterrupt as stop:
        if distributed.is_first():
            logger.warning("%s; go on with: %s", str(stop) or "Stopped", resume or "the same command")
        sys.exit(stop.code if isinstance(stop, Interrupted) else 128 + signal.SIGINT)


def run_stage(stage: str, cfg: DictConfig, overrides: list[str]) -> float | None:
    """Bring a stage up to date, say what comes next, and print its folder as the last line.

    Returns:
        The validation NDCG@10 of what was trained, also where it was evaluated on test; None for the stages before.
    """
    from hydra.core.hydra_config import HydraConfig

    from tigerrec.tuning import validation_score

    with reporting(text.same_command(stage, overrides)):
        distributed.join()
        folder = pipeline.run(cfg, stage)
    trained = {"train": folder, "evaluate": folder.parent}
    if stage == "evaluate" or (stage == "train" and not cfg.train.holdout):  # of everything nothing is left to rank
        following = text.recommend_command(trained[stage])
    else:
        following = text.same_command(list(STAGES)[list(STAGES).index(stage) + 1], overrides)
    logger.info("next: %s", following)
    if HydraConfig.get().runtime.choices["dataset"] == "sample":
        logger.info("this is the bundled sample; %s runs the real thing", text.choice_of_data("beauty"))
    if distributed.is_first():
        print(folder, flush=True)
    return validation_score(trained[stage]) if stage in trained else None


def run_job(name: str, cfg: DictConfig, overrides: list[str]) -> None:
    """Do a job and print what it wrote as the last line."""
    with reporting():
        if name == "baseline":
            path = pipeline.bring_up_to_date(pipeline.plan_baseline(cfg), "baseline", cfg.overwrite)
        elif name == "table":
            from tigerrec.analysis.table import make_table

            path = make_table(overrides)
        elif name == "audit":
            from tigerrec.analysis.audit import audit

            path = audit(cfg, text.told_command("audit", overrides))
        elif name == "compare-tokenizers":
            from tigerrec.analysis.tokenizers.comparison import compare

            path = compare(overrides)
        elif name == "profile":
            from tigerrec.analysis.benchmark import Effort
            from tigerrec.analysis.benchmark.operators import profile

            path = profile(cfg, Effort())
        else:
            from tigerrec.analysis.benchmark import Effort, benchmark

            path = benchmark(cfg, Effort(), overrides)
    print(path, flush=True)


def _demo(options: Sequence[str]) -> None:
    """Run all stages on the bundled sample and recommend something; the last line is the folder of the evaluation."""
    recommended: list[Path] = []

    def run(cfg: DictConfig, overrides: list[str]) -> None:
        with reporting():
            folder = pipeline.run(cfg, "evaluate")
        recommended.append(folder)

    _with_hydra("demo", [*options, "dataset=sample"], run)
    for folder in recommended:
        _use_tool("recommend", [str(folder.parent), "--items", DEMO_HISTORY, "--k", "5"])
        print(folder, flush=True)


def _use_tool(name: str, arguments: Sequence[str]) -> None:
    """Run a command with arguments of its own; it prints its result as the last lines."""
    options = arguments_of(name, arguments)
    with reporting():
        result = result_of(name, options)
        if result is not None:
            print(result, flush=True)
