"""What is left of a view in a saved notebook, and how a job is found again: after a reload, a restart, elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import burla
from tests.browser.conftest import UNFINISHED, OpenNotebook
from tests.browser.lab import Notebook
from tests.browser.live import Gate, Panel, gated, ticking
from tests.conftest import Ledger, wait_until

MIXED = """import time
from burla import submit
def call(x):
    print("line of", x)
    time.sleep(0.2)
    return 1 / (x % 4)
job = submit(call, range(12), on_error="continue", detach=False)
job.follow()"""


def check_summary(notebook: Notebook) -> None:
    """Fail unless the static end of MIXED is there."""
    summary = notebook.output(0).locator(".burla-summary")
    summary.wait_for(timeout=40_000)
    shown = summary.inner_text()
    assert "9/12 calls done, 3 failed" in shown
    assert "3 × ZeroDivisionError at line 6 of a cell: division by zero (inputs 0, 4, 8)" in shown
    assert re.search(r"To come back: %burla attach [0-9a-f]{12}", shown)
    assert "Error displaying widget" not in notebook.text(0) and "Loading widget" not in notebook.text(0)
    summary.locator("summary", has_text="log").click()
    notebook.until(lambda: "line of 11" in summary.inner_text(), 5, "the last lines")


@pytest.mark.parametrize("app", ["lab", "notebook"])
def test_a_saved_notebook_shows_the_end_of_its_jobs(open_notebook: OpenNotebook, app: str):
    """In a fresh kernel, in the browser of somebody who does not trust it, and as exported HTML."""
    notebook = open_notebook(MIXED, app=app)
    notebook.run(0)
    check_summary(notebook)
    notebook.save()
    notebook.server.end_kernels()
    notebook.open()
    check_summary(notebook)
    notebook.shot("reopened")

    notebook.distrust()
    notebook.open()
    check_summary(notebook)
    notebook.shot("untrusted")

    subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", "html", "--log-level", "ERROR", notebook.file],
        check=True,
        timeout=60,
    )
    exported = notebook.file.with_suffix(".html").read_text()
    assert "widget-view+json" not in exported
    assert exported.count('class="burla-summary"') == 1 and "9/12 calls done, 3 failed" in exported


def test_after_a_reload_a_detached_job_is_attached_again(open_notebook: OpenNotebook, ledger: Ledger, gate: Gate):
    """Everything is drawn again from the beginning, and goes on live."""
    notebook = open_notebook(
        gated(ledger, gate) + "remote_parallel_map(call, range(20), detach=True)",
        "%load_ext burla_jupyter",
        "%burla attach",
    )
    notebook.start(0)
    gate.open(6)
    panel = Panel(notebook).wait()
    notebook.until(lambda: panel.number("done") == "6/20", 10, "calls on the page")
    notebook.save()
    notebook.open(busy=True)
    notebook.shot("reloaded")
    notebook.interrupt()
    notebook.run(1)
    notebook.start(2)
    again = Panel(notebook, 2).wait()
    notebook.until(lambda: again.number("done") == "6/20", 10, "calls on the page")
    again.fold("Log")
    notebook.until(lambda: len(again.rows()) == 16, 10, "all lines from the first on")
    assert {index for index, _ in again.rows()} >= set("01")
    again.wait_button("Cancel")
    notebook.shot("attached")
    gate.open(20)
    notebook.wait(2)
    assert "20/20 calls done" in notebook.output(2).locator(".burla-summary").inner_text()
    shown = notebook.text(2)
    assert all(f"begin {x}\n" in shown for x in range(20))


def test_after_a_restart_of_the_kernel_a_job_is_attached_again(open_notebook: OpenNotebook, ledger: Ledger, gate: Gate):
    notebook = open_notebook(
        "%load_ext burla_jupyter",
        gated(ledger, gate),
        "%%burla --detach for x in range(10)\ncall(x)",
        "%burla attach",
        "%burla results -o back",
        "back",
    )
    notebook.run(0)
    notebook.run(1)
    notebook.run(2)
    gate.open(3)
    panel = Panel(notebook, 2).wait()
    notebook.until(lambda: panel.number("done") == "3/10", 10, "calls on the page")
    notebook.restart_kernel()
    notebook.run(0)
    notebook.start(3)
    again = Panel(notebook, 3).wait()
    notebook.until(lambda: again.number("done") == "3/10", 10, "calls on the page")
    gate.open(10)
    notebook.wait(3)
    assert "10/10 calls done" in notebook.output(3).locator(".burla-summary").inner_text()
    notebook.run(4)
    assert notebook.run(5) == str(list(range(10)))


def test_a_tab_that_was_closed_and_a_second_one_show_the_same_job(
    open_notebook: OpenNotebook, ledger: Ledger, gate: Gate
):
    first = open_notebook(
        "%load_ext burla_jupyter\n" + gated(ledger, gate), "%%burla --detach for x in range(8)\ncall(x)"
    )
    first.run(0)
    first.run(1)
    Panel(first, 1).wait()
    first.page.close()
    second = open_notebook("%load_ext burla_jupyter", "%burla attach", app="notebook")
    second.run(0)
    second.start(1)
    gate.open(5)
    panel = Panel(second, 1).wait()
    second.until(lambda: panel.number("done") == "5/8", 10, "calls on the page")
    gate.open(8)
    second.wait(1)
    assert "8/8 calls done" in second.output(1).locator(".burla-summary").inner_text()


def test_two_notebooks_at_once_each_show_their_own_job(open_notebook: OpenNotebook, ledger: Ledger, gate: Gate):
    source = gated(ledger, gate)
    first = open_notebook(source + "remote_parallel_map(call, range(12))")
    second = open_notebook(source + "remote_parallel_map(call, range(100, 112))", app="notebook")
    first.start(0)
    second.start(0)
    panels = [Panel(first).wait(), Panel(second).wait()]
    gate.open(9)
    for panel in panels:
        panel.notebook.until(lambda panel=panel: panel.number("running") == "1", 10, "its share of the cluster")

    def done() -> list[int]:
        low = sum(int(entry) < 100 for entry in ledger.entries())
        return [low, len(ledger.entries()) - low]

    first.until(lambda: sum(done()) == 9, 10, "calls")
    for panel, count in zip(panels, done(), strict=True):
        panel.notebook.until(lambda panel=panel, count=count: panel.number("done") == f"{count}/12", 5, "its own calls")
        panel.notebook.shot(f"own-{count}")
    gate.open(24)
    for notebook, begins in ((first, "begin 1\n"), (second, "begin 101\n")):
        notebook.wait(0)
        assert begins in notebook.text(0)
        assert "12/12 calls done" in notebook.output(0).locator(".burla-summary").inner_text()
    assert "begin 10\n" not in second.text(0) and "begin 100\n" not in first.text(0)


def test_a_closed_page_leaves_its_job_running_until_the_kernel_ends(open_notebook: OpenNotebook, ledger: Ledger):
    """An attached job is its kernel's: a closed tab does not stop it, a kernel that ends does."""
    notebook = open_notebook(ticking(ledger) + "remote_parallel_map(tick, range(2))")
    notebook.start(0)
    wait_until(lambda: len(ledger.entries()) > 5, 40, "calls")
    notebook.page.close()
    before = len(ledger.entries())
    wait_until(lambda: len(ledger.entries()) > before + 20, 10, "calls that go on")
    notebook.server.end_kernels()
    wait_until(lambda: not len(burla.jobs(UNFINISHED)), 20, "the end of the job")
