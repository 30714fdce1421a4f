"""The notebook of examples/ runs from its first cell to its last, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> dict[str, list]:
    """What each cell of examples/shop.ipynb shows, by its id."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "data").mkdir()
    (folder / "data" / "sample").symlink_to(ROOT / "data" / "sample")
    (folder / "examples").mkdir()
    notebook = nbformat.read(shutil.copy(ROOT / "examples" / "shop.ipynb", folder / "examples"), as_version=4)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder / "examples")}}).execute()
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def text_of(outputs: list) -> str:
    return "\n".join(output.get("text") or output["data"]["text/plain"] for output in outputs)


def test_the_notebook_goes_from_two_csv_files_to_served_recommendations(printed):
    assert "validation NDCG@10" in text_of(printed["fit"])
    assert text_of(printed["recommend"]).count("Fellmark") == 1 + 5  # the tent, and what goes with it
    assert text_of(printed["rules"]).count("Sleeping Bag") == 3
    assert "recommendations for 466 users" in text_of(printed["everybody"])
    assert text_of(printed["ask"]).count("'item_id'") == 2
    assert "'catalogue': 2" in text_of(printed["add"])
    assert "Sleeping" in text_of(printed["added"])


def test_the_committed_notebook_shows_what_its_cells_gave():
    notebook = nbformat.read(ROOT / "examples" / "shop.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
