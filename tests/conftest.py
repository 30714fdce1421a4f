"""One thread a test process, so that tests running side by side do not wait for each other; shared fixtures."""

from __future__ import annotations

import http.server
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("MAKELEVEL", None)  # commands are told as they are without make
ROOT = Path(__file__).parent.parent


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """The folders of a tiny data set with Semantic IDs and no generator."""
    from tests.tiny_run import build_run

    made = build_run(tmp_path)
    shutil.rmtree(made["train"])
    return made


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """The command `tigerrec` in this process, which saves loading its libraries once more."""
    from tigerrec.cli import main

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        code: int | str | None = 0
        capsys.readouterr()  # what was told before
        try:
            main([*map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        if isinstance(code, str):
            code, err = 1, f"{err}{code}\n"
        return subprocess.CompletedProcess(sys.argv, code or 0, out, err)

    monkeypatch.setattr(sys, "argv", ["tigerrec"])
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    handlers = logging.root.handlers[:]
    yield run
    logging.root.handlers[:] = handlers
    logging.getLogger("tigerrec").setLevel(logging.NOTSET)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """A data set whose raw files a server on this machine has, and the server's handler."""
    import tigerrec.data.download
    from tests.test_amazon import METADATA, REVIEWS, Shop, write
    from tigerrec.data.amazon import AmazonReviews

    monkeypatch.setattr(tigerrec.data.download, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    write(tmp_path / "origin", REVIEWS, METADATA)
    content = {path.name: path.read_bytes() for path in (tmp_path / "origin").iterdir()}
    handler = type("Handler", (Shop,), {"content": content, "faults": [], "ranges": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        (tmp_path / "raw").mkdir()
        url = f"http://127.0.0.1:{server.server_port}"
        yield AmazonReviews(tmp_path / "raw", "reviews.json.gz", "meta.json.gz", url=url), handler
        server.shutdown()
