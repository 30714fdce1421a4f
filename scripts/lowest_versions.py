"""The lower bounds in pyproject.toml are true: exactly those versions, installed into an environment of their own, run
the whole pipeline on a small table. torch is the release that constraints.txt pins.

Usage: python scripts/lowest_versions.py; needs the package index, and prints what the commands print.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "tokenize dataset=tables dataset.interactions=orders.csv embedder=hashed embedder.dim=8 tokenizer=opq "
    "tokenizer.codebook_size=8",
    "evaluate dataset=tables dataset.interactions=orders.csv tokenizer.codebook_size=8 tokenizer.epochs=2 "
    "generator.num_layers=1 train.epochs=1",
    "export {run} --out exported",
    "report --run {run}",
    "recommend exported --items i1,i2 --k 5",
)


def lowest_versions() -> list[str]:
    """Each dependency at its lower bound, torch at the tested release."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    bounds = dict(re.match(r"([\w-]+)>=([\w.]+)", dependency).groups() for dependency in named)  # type: ignore[union-attr, misc]
    bounds["torch"] = re.search(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)[1]  # type: ignore[index]
    return [f"{name}=={version}" for name, version in bounds.items()]


def main() -> None:
    """Install, and run the commands; the first that fails ends this with its exit status."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "lowest.txt").write_text("\n".join(lowest_versions()) + "\n", encoding="utf-8")
        rows = [f"u{user},i{(user + time) % 20},{time}" for user in range(40) for time in range(6)]
        (folder / "orders.csv").write_text("\n".join(["user,item,time", *rows]) + "\n", encoding="utf-8")
        venv.create(folder / "venv", with_pip=True)
        programs, run = folder / "venv" / "bin", ""
        install = [programs / "python", "-m", "pip", "install", "--quiet", "-c", "lowest.txt", f"{ROOT}[offline]"]
        for command in [install, *([programs / "tigerrec", *given.split()] for given in COMMANDS)]:
            words = [str(word).replace("{run}", run) for word in command]
            done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, text=True)
            print(done.stdout, end="", flush=True)
            if done.returncode:
                sys.exit(done.returncode)
            if "evaluate" in words:
                run = str(Path(done.stdout.splitlines()[-1]).parent)


if __name__ == "__main__":
    main()
