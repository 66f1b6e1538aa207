"""The notebooks of the repository run from top to bottom; with BURLA_SAVE_NOTEBOOKS set, their outputs are saved.

A cell with the tag `after-restart` runs in a fresh kernel.
"""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

from tests.conftest import Home

FOLDER = Path(__file__).parent.parent / "notebooks"
ELSEWHERE = {"cloud"}  # in tests/clouds
NOTEBOOKS = sorted(path for path in FOLDER.glob("*.ipynb") if path.stem not in ELSEWHERE)


def run(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}})
    with client.setup_kernel():
        for number, cell in enumerate(notebook.cells):
            if "after-restart" in cell.metadata.get("tags", ()):
                restart(client)
            client.execute_cell(cell, number)
    return notebook


def restart(client: NotebookClient) -> None:
    assert client.km is not None and client.kc is not None
    run_sync(client.km.restart_kernel)(now=True)
    run_sync(client.kc.wait_for_ready)(timeout=60)


def text_of(notebook: nbformat.NotebookNode) -> str:
    """Return all that the cells show as text."""
    parts: list[str] = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            parts += [output.get("text", ""), data.get("text/plain", ""), "\n".join(output.get("traceback", ()))]
    return "\n".join(parts)


EXPECTED = {
    "quickstart": ["[0, 1, 4, 9, 16]", "squaring 3", "files, ", "input 2: n = 0", "failed on: (0,)", "0.1\n"],
    "detached": ["False", "counted 11", "[0, 1, 4, 9, 16, 25, 36, 49, 64, 81, 100, 121]", "Jobs are kept for 7 days"],
    "real_data": ["SVM, C=10: 0.9", "<Figure size", "best: "],
}


def test_every_notebook_is_tested():
    assert {path.stem for path in NOTEBOOKS} == set(EXPECTED)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_says(path: Path, own_home: Home):
    check(path, EXPECTED[path.stem])


def check(path: Path, expected: list[str]) -> nbformat.NotebookNode:
    """Run a notebook, which has to show these texts, and to be saved with such outputs; return it."""
    notebook = run(path)
    shown = text_of(notebook)
    for text in expected:
        assert text in shown, shown
    if os.environ.get("BURLA_SAVE_NOTEBOOKS"):
        nbformat.write(clean(notebook), path)
    assert path.stat().st_size < 1_000_000
    saved = nbformat.read(path, as_version=4)
    assert shows(saved) == shows(notebook), "saved with its outputs"
    return notebook


def shows(notebook: nbformat.NotebookNode) -> list[bool]:
    """Return of each code cell whether it prints, has a value or fails; a view comes only with calls that take long."""
    return [
        any(output.output_type != "display_data" for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leave out times and live widgets, and put text together that came in pieces."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        outputs: list[nbformat.NotebookNode] = []
        for output in cell.get("outputs", ()):
            last = outputs[-1] if outputs else None
            if last is not None and output.output_type == last.output_type == "stream" and output.name == last.name:
                last.text += output.text
            else:
                outputs.append(output)
        if cell.cell_type == "code":
            cell.outputs = outputs
    return notebook
