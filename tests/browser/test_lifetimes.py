"""Cells of `%%burla` in a browser, and what becomes of a job when its page, its kernel or its notebook goes."""

from __future__ import annotations

from pathlib import Path

import pytest

import burla
from tests.browser.conftest import UNFINISHED, OpenNotebook
from tests.browser.test_live_view import Gate, ticking
from tests.browser.test_live_view import gate as gate  # a fixture
from tests.conftest import Ledger, wait_until

LOAD = "%load_ext burla_jupyter"


def waiting(gate: Gate, ledger: Ledger) -> str:
    """Return the body of a map over x that prints, waits for the gate, and writes down that it ends."""
    return f"""
print("begin", x)
while int(open({str(gate.path)!r}).read()) <= x:
    time.sleep(0.02)
with open({str(ledger.path)!r}, "a") as file:
    file.write(f"{{x}}\\n")
x * x
"""


@pytest.mark.parametrize("app", ["lab", "notebook"])
def test_a_map_and_a_run_show_what_they_print_and_bring_back_what_they_say(open_notebook: OpenNotebook, app: str):
    notebook = open_notebook(
        LOAD + "\nfactor = 3",
        "%%burla -o scaled for x in range(4)\nprint('scaling', x)\nfactor * x",
        "scaled",
        "%%burla\nprint('there')\ntotal = sum(scaled)\nimport pandas\npandas.DataFrame({'total': [total]})",
        "total",
        "%%burla for x in [2, 1, 0]\n6 // x",
        app=app,
    )
    notebook.run(0)
    assert sorted(notebook.run(1).splitlines()) == [f"scaling {x}" for x in range(4)]
    assert notebook.run(2) == "[0, 3, 6, 9]"
    assert "there" in notebook.run(3)
    table = notebook.output(3).locator("table.dataframe")
    assert table.count() == 1 and "18" in table.inner_text()
    assert notebook.run(4) == "18"
    failed = notebook.run(5)
    assert "ZeroDivisionError" in failed and "6 // x" in failed and "input 2: x = 0" in failed
    notebook.shot("cells")


def test_a_saved_notebook_shows_what_a_job_was_when_it_is_opened_with_a_fresh_kernel(
    open_notebook: OpenNotebook, ledger: Ledger, gate: Gate
):
    notebook = open_notebook(LOAD + "\nimport time", "%%burla -o y for x in range(6)" + waiting(gate, ledger))
    notebook.run(0)
    notebook.start(1)
    notebook.page.wait_for_selector(".burla-panel", timeout=40_000)
    gate.open(6)
    notebook.wait(1)
    job = burla.jobs()[0]
    saved = notebook.save()
    assert "widgets" not in saved.metadata or "burla" not in str(saved.metadata.widgets)
    notebook.server.end_kernels()
    notebook.open()
    summary = notebook.page.locator(".burla-summary")
    summary.wait_for(timeout=10_000)
    assert "done after" in summary.inner_text() and job.id in summary.inner_text()
    assert "burla.attach" in summary.inner_text()
    notebook.until(lambda: "begin 3" in notebook.text(1), 5, "what the calls printed")
    assert "model not found" not in notebook.text(1)
    notebook.shot("reopened")


@pytest.mark.parametrize("gone", ["page reloaded", "kernel restarted"])
def test_attach_shows_a_detached_job_again_from_its_first_line(
    open_notebook: OpenNotebook, ledger: Ledger, gate: Gate, gone: str
):
    """After a reload in mid-run, and after a restart of the kernel."""
    notebook = open_notebook(
        LOAD + "\nimport time",
        "%%burla --detach -o job for x in range(12)" + waiting(gate, ledger),
        LOAD,
        "%burla attach -o again",
        "again.results()[-1]",
    )
    notebook.run(0)
    notebook.run(1)
    gate.open(4)
    wait_until(lambda: len(ledger.entries()) == 4, what="the first calls")
    if gone == "page reloaded":
        notebook.save()
        notebook.open()
    else:
        notebook.restart_kernel()
    notebook.run(2)
    notebook.start(3)
    notebook.page.wait_for_selector(".burla-panel", timeout=40_000)
    notebook.until(lambda: notebook.panel(3).locator(".burla-done").inner_text() == "4/12", 10, "how it stands")
    notebook.until(lambda: "begin 0" in notebook.text(3), 5, "its first line")
    notebook.shot("attached")
    gate.open(12)
    notebook.wait(3)
    assert notebook.run(4) == "121"
    assert sorted(map(int, ledger.entries())) == list(range(12)), "no call ran again"


def test_the_view_of_a_detached_cell_goes_on_live_after_the_cell_has_ended(
    open_notebook: OpenNotebook, ledger: Ledger, gate: Gate
):
    notebook = open_notebook(
        LOAD + "\nimport time",
        "%%burla --detach -o job for x in range(8)" + waiting(gate, ledger),
        "print('meanwhile')",
    )
    notebook.run(0)
    notebook.run(1)
    for ended in (2, 5):
        gate.open(ended)
        done = notebook.panel(1).locator(".burla-done")
        notebook.until(
            lambda done=done, ended=ended: done.count() and done.inner_text() == f"{ended}/8", 20, "a number"
        )
    assert notebook.run(2).strip() == "meanwhile", "lines of the job are its own cell's"
    gate.open(8)
    notebook.until(lambda: "done after" in notebook.text(1), 15, "the end")
    assert "begin 7" in notebook.text(1) and notebook.text(2).strip() == "meanwhile"


def test_two_notebooks_at_once_each_show_their_own_job(open_notebook: OpenNotebook, ledger: Ledger, tmp_path: Path):
    first_gate, second_gate = Gate(tmp_path / "first"), Gate(tmp_path / "second")
    cells = LOAD + "\nimport time"
    first = open_notebook(cells, "%%burla -o y for x in range(5)" + waiting(first_gate, ledger))
    second = open_notebook(cells, "%%burla -o y for x in range(100, 109)" + waiting(second_gate, ledger))
    for notebook in (first, second):
        notebook.run(0)
        notebook.start(1)
    for notebook, total in ((first, 5), (second, 9)):
        notebook.page.wait_for_selector(".burla-panel", timeout=40_000)
        assert notebook.panel(1).locator(".burla-done").inner_text() == f"0/{total}"
    second_gate.open(109)
    second.wait(1)
    assert first.prompt(1) == "[*]:"
    first_gate.open(5)
    first.wait(1)
    assert "begin 100" not in first.text(1) and "begin 1\n" not in second.text(1)


def test_a_closed_page_leaves_its_job_running_until_the_kernel_ends(open_notebook: OpenNotebook, ledger: Ledger):
    """An attached job is its kernel's: a closed tab does not stop it, a kernel that ends does."""
    notebook = open_notebook(ticking(ledger) + "remote_parallel_map(tick, range(2))")
    notebook.start(0)
    wait_until(lambda: len(ledger.entries()) > 5, 40, "calls")
    notebook.page.goto("about:blank")
    before = len(ledger.entries())
    wait_until(lambda: len(ledger.entries()) > before + 20, 10, "calls that go on")
    notebook.server.end_kernels()
    wait_until(lambda: not len(burla.jobs(UNFINISHED)), 20, "the end of the job")
