"""The notebook runs as it is committed."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FILE = Path(__file__).parents[1] / "examples" / "draw_defects.ipynb"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(FILE, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_committed_without_outputs(notebook: nbformat.NotebookNode) -> None:
    nbformat.validate(notebook)
    assert all(
        not cell.outputs and cell.execution_count is None for cell in code_cells(notebook)
    )


@pytest.mark.slow
def test_it_runs_and_shows_what_it_draws(
    notebook: nbformat.NotebookNode, tmp_path: Path
) -> None:
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    kinds = [
        kind
        for cell in code_cells(notebook)
        for out in cell.outputs
        for kind in out.get("data", {})
    ]
    assert kinds.count("image/png") == 2
    written = "".join(
        str(out)
        for cell in code_cells(notebook)
        for out in cell.outputs
        if out.output_type == "error"
    )
    assert written == ""
    nbformat.write(notebook, tmp_path / "run.ipynb")
