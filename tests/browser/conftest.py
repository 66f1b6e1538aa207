"""Notebooks in a real browser. Screenshots go to the folder that BURLA_SCREENSHOTS names, else to the test's own."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

import burla
from tests.browser.lab import Notebook, Server, kernel_name, launch, write_notebook
from tests.browser.live import Gate

OpenNotebook = Callable[..., Notebook]
UNFINISHED = ("receiving", "waiting", "running", "stopping")


@pytest.fixture(scope="session")
def servers(shared_home: Path) -> Iterator[Callable[[str], Server]]:
    """A Jupyter server of each kind, started when it is first needed."""
    started: dict[str, Server] = {}

    def server(app: str) -> Server:
        if app not in started:
            started[app] = Server(app)
        return started[app]

    yield server
    for one in started.values():
        one.close()


@pytest.fixture(autouse=True)
def no_job_left() -> Iterator[None]:
    """End what a test has detached: it would take the next one's room."""
    yield
    for job in burla.jobs(UNFINISHED):
        job.cancel()


@pytest.fixture(scope="module")  # not longer: while Playwright runs, no other event loop can in this thread
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


@pytest.fixture
def open_notebook(
    servers: Callable[[str], Server], browser: Browser, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[OpenNotebook]:
    """Write a notebook and open it; its kernel ends with the test."""
    opened: list[Notebook] = []
    shots = Path(os.environ.get("BURLA_SCREENSHOTS") or tmp_path) / re.sub(r"\W+", "_", request.node.name)
    shots.mkdir(parents=True, exist_ok=True)

    def open_notebook(
        *cells: str,
        app: str = "lab",
        width: int = 1400,
        height: int = 1000,
        theme: str = "JupyterLab Light",
        kernel: str = "python3",
    ) -> Notebook:
        server = servers(app)
        server.set_theme(theme)
        if kernel != "python3":
            server.add_kernel(kernel)
        page = browser.new_page(viewport={"width": width, "height": height})
        notebook = Notebook(server, page, write_notebook(server.root, list(cells), kernel_name(kernel)), shots)
        opened.append(notebook)
        return notebook

    yield open_notebook
    for number, notebook in enumerate(opened):
        if not notebook.page.is_closed():
            notebook.shot(f"end-{number}")
            notebook.page.close()
        notebook.server.end_kernels()
    assert [error for notebook in opened for error in notebook.errors] == []
