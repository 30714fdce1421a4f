"""Commands and examples of README.md and docs/: all that are printed can be given, the examples run on the sample, and
the site is built."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from tigerrec import cli, tools
from tigerrec.config import compose, config_folder
from tigerrec.pipeline import plan, plan_baseline
from tigerrec.search.options import Scores

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN = ("thirds", "lengths", "lcrec", "successors", "my_shop")  # of the examples, which run in a copy
COMMANDS = ("make", "curl", "tigerrec", "torchrun", "pip", "python", "mount")
MENTIONS = [
    [name] for name in (*cli.TOOLS, "table") if name != "demo"
]  # the target or subcommand without its arguments
PLACEHOLDERS = {"<name>": "rkmeans", "<partition>": "cpu"}
TINY = shlex.split(
    "embedder=hashed tokenizer.levels=2 generator=one_layer train.epochs=1 train.batch_targets=1024 "
    "train.validation_users=50 evaluate.batch_tokens=65536"
)
T5_IN_THE_PRINTED_FOLDER = shlex.split(
    "embedder=hashed embedder.name=minilm tokenizer=random tokenizer.name=rqvae generator=t5 generator.num_layers=1"
)
RECORD = """#!/bin/sh
printf '%s\\037' {name} "$@" "$(printf '\\036')" >> "$RECORDED"
"""
MAKE = f"""#!/bin/sh
{shutil.which("make")} -n "$@" > "$RECORDED.make" && PATH=$PATH:/usr/bin:/bin /bin/sh -e "$RECORDED.make"
"""


@dataclasses.dataclass(frozen=True)
class Block:
    """Shell lines of a page."""

    page: str
    line: int
    lines: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    """Fenced blocks of `sh` or of one line, lines after a prompt in `console` blocks, commands in sentences."""
    found = []
    for path in PAGES:
        page, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        for fence in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line, body = text[: fence.start()].count("\n") + 2, fence[2]
            if fence[1] == "sh" or (not fence[1] and body.count("\n") == 1):
                found.append(Block(page, line, body))
            if fence[1] == "console":
                prompts = re.findall(r"^\$ (.*)$", body, re.MULTILINE)
                found.append(Block(page, line, "\n".join(prompts)))
        prose = re.sub(r"^```.*?^```$", lambda fence: "\n" * fence[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
        for number, sentence in enumerate(prose.splitlines(), start=1):
            inline = re.findall(rf"`((?:{'|'.join(COMMANDS)}) [^`]+)`", sentence)
            found += [Block(page, number, command) for command in inline if command.split()[1:] not in MENTIONS]
    return found


def record(lines: str, folder: Path) -> list[list[str]]:
    """The programs that shell lines start, as argument lists; make says by `-n` what it would start."""
    lines = re.sub(r"<[a-z][^<>]*>", lambda name: PLACEHOLDERS.get(name[0], "placeholder"), lines)
    recorded = folder / "recorded"
    recorded.unlink(missing_ok=True)
    environment = {"PATH": str(folder / "bin"), "RECORDED": str(recorded), "HOME": str(folder)}
    done = subprocess.run(
        ["/bin/bash", "-e", "-c", lines], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{lines}\n{done.stderr}"
    started = recorded.read_text(encoding="utf-8").split("\036\037") if recorded.exists() else []
    return [arguments.removesuffix("\037").split("\037") for arguments in started if arguments]


def checkout(folder: Path) -> Path:
    """A folder with the Makefile, and programs that only record how they were called."""
    (folder / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, folder / name)
    for place in (folder / "bin", folder / ".venv" / "bin"):
        for name in (*COMMANDS, "ruff", "mypy", "lint-imports", "mkdocs"):
            (place / name).write_text(MAKE if name == "make" else RECORD.format(name=name))
            (place / name).chmod(0o755)
    for name in (".installed", ".developed"):
        (folder / ".venv" / name).touch()
    (folder / "data").mkdir()
    for name in ("results", "docs", "data/sample"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> dict[Block, list[list[str]]]:
    """All programs that the pages start, by place."""
    folder = checkout(tmp_path_factory.mktemp("printed"))
    return {block: record(block.lines, folder) for block in blocks()}


def values(override: Override) -> list[object]:
    """The values of a sweep; of an interval both ends."""
    if override.is_interval_sweep():
        return [override.value().start, override.value().end]
    return list(override.sweep_string_iterator())


def compositions(overrides: list[str]) -> list[tuple[str, ...]]:
    """The overrides of each job of a sweep; of one job without `-m`."""
    if "-m" not in overrides:
        return [tuple(overrides)]
    parsed = OverridesParser.create().parse_overrides([override for override in overrides if override != "-m"])
    chosen = [
        [f"{override.get_key_element()}={value}" for value in values(override)]
        if override.is_sweep_override()
        else [override.input_line]
        for override in parsed
        if not override.key_or_group.startswith("hydra")
    ]
    return list(itertools.product(*chosen))


@functools.cache
def check_options(overrides: tuple[str, ...]) -> None:
    """Compose and plan what a stage or job would do."""
    cfg = compose(list(overrides))
    plan(cfg)
    plan_baseline(cfg)
    for row in cfg.tokenizers or ():
        of_ids, _, scores = row.partition(":")
        assert not scores or scores in get_args(Scores), row
        tokenizer, _, embedder = of_ids.partition("@")
        assert (config_folder() / "tokenizer" / f"{tokenizer}.yaml").exists(), row
        assert not embedder or (config_folder() / "embedder" / f"{embedder}.yaml").exists(), row
    for baseline in cfg.baselines or ():
        assert (config_folder() / "baseline" / f"{baseline}.yaml").exists(), baseline


def check(program: str, *arguments: str) -> None:
    """Fail where a program would refuse its arguments."""
    if program == "torchrun":
        start = arguments.index("-m")
        assert arguments[start + 1] == "tigerrec"
        program, arguments = "tigerrec", arguments[start + 2 :]
        assert arguments[0] in cli.STAGES
    if program == "python":
        assert arguments[0] == "-m" or (ROOT / arguments[0]).is_file(), arguments
        for argument in arguments:
            assert not argument.startswith("tests/") or (ROOT / argument.partition("::")[0]).exists(), argument
            assert not argument.startswith("tests.") or (ROOT / f"{argument.replace('.', '/')}.py").exists(), argument
    if program == "tigerrec" and arguments[0] in {**cli.STAGES, **cli.JOBS, "demo": ""}:
        for overrides in compositions(list(arguments[1:])):
            check_options(overrides)
    elif program == "tigerrec" and arguments[0] not in ("--help", "--version"):
        tools.arguments_of(arguments[0], arguments[1:])


def test_every_page_prints_commands_and_every_stage_and_job_is_printed(recorded):
    assert {block.page for block in recorded} == {str(path.relative_to(ROOT)) for path in PAGES}
    named = {program[1] for programs in recorded.values() for program in programs if program[0] == "tigerrec"}
    assert named >= {*cli.STAGES, *cli.JOBS, *cli.TOOLS}


@pytest.mark.parametrize("page", [str(path.relative_to(ROOT)) for path in PAGES])
def test_every_printed_command_can_be_given(recorded, page):
    for block, programs in recorded.items():
        if block.page != page:
            continue
        assert programs or "make help" in block.lines or "make clean" in block.lines, f"{block} starts nothing"
        for program in programs:
            if any(name in argument for name in OWN for argument in program):
                continue
            try:
                check(*program)
            except (Exception, SystemExit) as error:
                pytest.fail(f"{block}: {shlex.join(program)}: {error}")


def test_no_page_speaks_of_what_is_gone():
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert "_target_" not in text, path
        for script in re.findall(r"scripts/([\w.]*)", text):
            assert (ROOT / "scripts" / script).is_file(), f"{path}: scripts/{script}"
        for module in re.findall(r"(?:from|import) (tigerrec[\w.]*)", text):
            place = ROOT.joinpath(*module.split("."))
            assert place.is_dir() or place.with_suffix(".py").exists(), f"{path}: {module}"
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (path.parent / link).exists(), f"{path}: {link}"


SIZED_BY_WIDTH = '''
"""A generator whose sizes follow from its width."""

from typing import ClassVar

from tigerrec.config import options
from tigerrec.models.base import Size
from tigerrec.models.t5 import T5


@options
class OneLayer:
    """A T5 of one layer, which is read back as the T5 that it is."""

    family: ClassVar[str] = "one_layer"
    item_loss: ClassVar[float] = 0.0
    needs: ClassVar[tuple[str, ...]] = ()
    scores_items: ClassVar[bool] = False
    width: Size = 16
    max_items: Size = 5

    def window(self, stride):
        return self.max_items + stride

    @classmethod
    def of_config(cls, config):
        raise ValueError("it is a T5")

    def new(self, semantic_ids, encoder_mask, seed, vectors=None):
        t5 = T5(1, None, self.width, 2, self.width // 2, self.width, max_items=self.max_items)
        return t5.new(semantic_ids, encoder_mask, seed)
'''


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the checkout with the examples of docs/tokenizers.md and docs/extend.md in their places, and a
    generator without layers to choose."""
    folder = checkout(tmp_path_factory.mktemp("extended"))
    for name in ("tigerrec", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for page in ("tokenizers.md", "extend.md"):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for code, place in re.findall(r"```(?:python|yaml)\n(# (\S+)\n.*?)```", text, re.DOTALL):
            (folder / place).write_text(code, encoding="utf-8")
    (folder / "tigerrec" / "models" / "one_layer.py").write_text(SIZED_BY_WIDTH)
    (folder / "configs" / "generator" / "one_layer.yaml").write_text(
        "name: one_layer\nseed: 0\nfamily: one_layer\nwidth: 16\nmax_items: 5\n"
    )
    return folder


DRIVER = """
import json, sys
from tigerrec.cli import main
for arguments in json.load(sys.stdin):
    main(arguments)
exec(open("README.py").read())
"""


def with_tiny(program: list[str]) -> list[str]:
    """The arguments of a printed tigerrec command, with tiny options for what it does not say."""
    name, *given = program[1:]
    if name in cli.TOOLS:
        return [name, *given]
    groups = {re.split(r"[.=]", override)[0] for override in given}
    tiny = [option for option in TINY if re.split(r"[.=]", option)[0] not in groups - {"tokenizer"}]
    return [name, *tiny, *given]


def test_the_examples_run_on_the_sample_as_printed(extended):
    lcrec = extended / "data" / "raw" / "lcrec"
    lcrec.mkdir(parents=True)
    sequences = {f"u{user}": [user % 7 + step for step in range(6)] for user in range(40)}
    (lcrec / "Games.inter.json").write_text(json.dumps(sequences))
    games = {item: {"title": f"Game {item}", "description": ["Fun."], "categories": "A,B"} for item in range(12)}
    (lcrec / "Games.item.json").write_text(json.dumps(games))
    readme = (ROOT / "docs" / "howto.md").read_text(encoding="utf-8")
    (extended / "README.py").write_text(re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1])
    run = "runs/sample/minilm/rqvae-seed0/t5-packed-seed0"
    (new_items,) = (block for block in blocks() if f"make add RUN={run}" in block.lines)
    own = [block.lines for block in blocks() if any(name in block.lines for name in OWN) and "make" in block.lines]
    programs = [program for lines in own for program in record(lines, extended)]
    assert {program[1] for program in programs if program[0] == "tigerrec"} == {
        "compare-tokenizers", "evaluate", "tokenize", "prepare", "baseline",
    }  # fmt: skip
    alone = {"tokenizers=[thirds,rkmeans,random]": "tokenizers=[thirds]"}  # the others are compared elsewhere
    programs = [[alone.get(argument, argument) for argument in program] for program in programs]
    commands = [with_tiny(program) for program in programs if program[0] == "tigerrec"]
    commands += [
        with_tiny(["tigerrec", "evaluate", *T5_IN_THE_PRINTED_FOLDER]),
        *(program[1:] for program in record(new_items.lines, extended)),
        ["export", run, "--out", "my_model"],
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(extended), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=extended, env=environment, input=json.dumps(commands), text=True,
        capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "thirds-seed0" in (extended / "runs/sample/hashed/tokenizers/comparison.md").read_text()
    codes = json.loads((extended / "runs/sample/hashed/thirds-seed0/diagnostics.json").read_text())["levels"]
    assert len(codes) == 2
    assert (extended / "runs/sample/hashed/thirds-seed0/one_layer-packed-seed0/eval-full/metrics.json").exists()
    assert json.loads((extended / "runs/lcrec/stats.json").read_text())["items_without"] == {"brand": 12, "price": 12}
    assert len(done.stdout.splitlines()[-5:]) == 5


def test_the_examples_pass_the_test_that_the_docs_name(extended):
    shutil.copytree(ROOT / "tests", extended / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    chosen = "thirds or lengths or lcrec or successors"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_configs.py", "-k", chosen],
        cwd=extended, env=os.environ | {"PYTHONPATH": str(extended)}, text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_printed_options_of_own_data_can_be_given_in_a_shell():
    table = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").partition("| your files | option |")[2]
    printed = [code for row in table.splitlines()[2:] for code in re.findall(r"`([^`]*dataset\.[^`]*)`", row)]
    assert len(printed) >= 15
    for code in printed:
        options = shlex.split(code)
        cfg = compose(["dataset=tables", "dataset.interactions=x.csv", *options])
        assert plan(cfg)["prepare"].config.family == "tables", options


def test_the_site_is_built_without_a_warning_and_asks_no_other_host(tmp_path):
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pages = {page: page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")}
    assert "<h1" in pages[tmp_path / "index.html"]
    offered = ("api.fit", "serving.recommender.Recommender.recommend", "tokenizers.base.Tokenizer.fit")
    for name in offered:
        assert f'id="tigerrec.{name}"' in pages[tmp_path / "api" / "index.html"], name
    asks = r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//|<link[^>]* href="(?:https?:)?//'
    assert [page for page, text in pages.items() if re.search(asks, text)] == []
