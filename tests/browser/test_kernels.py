"""Buttons of the view on the versions of ipykernel that differ in how they hear a front end while a cell blocks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.browser.conftest import OpenNotebook
from tests.browser.lab import Server
from tests.browser.test_live_view import last_tick_s, ticking
from tests.conftest import Ledger

VERSIONS = {"6.31": False, "7.3": True, "newest": True}  # whether it hears buttons while a cell blocks


@pytest.fixture(scope="session")
def kernel(servers: Callable[[str], Server], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Return the name of a kernel of this Python with another ipykernel, installed when it is first asked for."""
    known = {"newest": "python3"}

    def kernel(version: str) -> str:
        if version not in known:
            folder = tmp_path_factory.mktemp("ipykernel")
            install(f"ipykernel=={version}.*", folder)
            known[version] = f"ipykernel-{version}"
            servers("lab").add_kernel(known[version], folder)
        return known[version]

    return kernel


def install(package: str, folder: Path) -> None:
    """Install a package without what it needs, which is there."""
    arguments = ["install", "--quiet", "--no-deps", "--target", str(folder), package]
    own = [sys.executable, "-m", "pip", *arguments]
    other = [sys._base_executable, "-m", "pip", "--python", sys.executable, *arguments]  # type: ignore[attr-defined]
    for command in (own, other, ["uv", "pip", *arguments]):
        if subprocess.run(command, check=False).returncode == 0:
            return
    raise AssertionError(f"{package} cannot be installed")


@pytest.mark.parametrize("version", VERSIONS)
def test_buttons_work_while_the_cell_blocks_or_the_view_says_what_does(
    open_notebook: OpenNotebook, kernel: Callable[[str], str], ledger: Ledger, version: str
):
    notebook = open_notebook(
        "import ipykernel; ipykernel.__version__",
        ticking(ledger) + "remote_parallel_map(tick, range(2))",
        kernel=kernel(version),
    )
    shown = notebook.run(0).strip("'")
    assert version == "newest" or shown.startswith(version)
    notebook.start(1)
    panel = notebook.page.locator(".burla-panel")
    panel.wait_for(timeout=40_000)
    cancel = panel.locator("button", has_text="ancel")
    if VERSIONS[version]:
        notebook.until(cancel.is_enabled, 10, "a button that works")
        cancel.click()
        notebook.until(lambda: cancel.inner_text() == "Really cancel?", 5, "the question")
        cancel.click()
        notebook.wait(1, 15)
        assert "JobCancelled" in notebook.text(1)
    else:
        notebook.until(lambda: "press ■" in panel.inner_text(), 10, "what to press instead")
        assert not cancel.is_enabled()
        notebook.shot("deaf")
        notebook.interrupt()
        notebook.wait(1, 15)
        assert "KeyboardInterrupt" in notebook.text(1)
    ticks = len(ledger.entries())
    notebook.page.wait_for_timeout(500)
    assert len(ledger.entries()) == ticks and last_tick_s(ledger)
